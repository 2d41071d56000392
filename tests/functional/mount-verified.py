#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Which blocks of a file can be read, and whether they are right.

mount-verified.py FILE ORIGINAL BLOCK FLAGS...: prints the numbers of the blocks of BLOCK bytes that cannot be read,
in ranges, and fails if one that can be differs from ORIGINAL's. FLAGS: "direct" reads with O_DIRECT.
mount-verified.py FILE ORIGINAL --ranges SEED: reads random ranges, whose ends are anywhere, of a file that is all right.
"""
import errno
import mmap
import os
import random
import sys


def ranges(numbers):
    out = []
    for n in numbers:
        if out and out[-1][1] == n - 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


file, original = (os.open(name, os.O_RDONLY) for name in sys.argv[1:3])
size = os.fstat(original).st_size
if sys.argv[3] == "--ranges":
    dice = random.Random(int(sys.argv[4]))
    for _ in range(300):
        offset = dice.randrange(size)
        length = min(dice.choice([1, 511, 4096, 70000, 1 << 20]), size - offset)
        got, expected = (os.pread(fd, length, offset) for fd in (file, original))
        if got != expected:
            sys.exit(f"other bytes in {length} at {offset}")
    sys.exit(0)
block = int(sys.argv[3])
if "direct" in sys.argv[4:]:
    file = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, max(block, mmap.PAGESIZE))
bad = []
for n in range((size + block - 1) // block):
    length = min(block, size - n * block)
    try:
        got = os.preadv(file, [memoryview(buffer)[:length]], n * block)
    except OSError as error:
        if error.errno != errno.EIO:
            sys.exit(f"block {n}: {error}")
        bad.append(n)
        continue
    if got != length or buffer[:length] != os.pread(original, length, n * block):
        sys.exit(f"block {n}: other bytes, {got} of them")
print(ranges(bad))
