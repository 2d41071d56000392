#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Many processes read random ranges of a mount's files, and compare every byte.

mount-soak.py SECONDS MOUNT REFERENCE [BROKEN SLOW]: REFERENCE holds a copy of each file. BROKEN and SLOW are START-END,
bytes of "disk", which is a raw image, so of the image file as well: reads of the former fail, reads of the latter
take 5 seconds. A read that touches BROKEN may fail and none else; a quarter of the processes read SLOW, and the others
must not notice: of their reads, no more than one in a hundred (a machine may be busy) may take seconds.
"""
import errno
import mmap
import os
import random
import sys
import time

PROCESSES = 64
LONGEST = 300000
WIDEN = 4096  # of the kernel, which reads whole pages
PATIENCE = 4  # seconds that a read may take that has nothing to do with SLOW


class File:
    def __init__(self, mount, reference, name, start):
        self.name = name
        self.start = start  # in the image; None: not a part of it
        self.path = f"{mount}/{name}"
        with open(f"{reference}/{name}", "rb") as file:
            self.bytes = file.read()
        self.buffered = os.open(self.path, os.O_RDONLY)
        self.direct = os.open(self.path, os.O_RDONLY | os.O_DIRECT)

    def touches(self, offset, length, part):
        if part is None:
            return False
        if self.start is None:
            return self.name == "hash"  # what it is computed from may be there
        return offset + self.start < part[1] + WIDEN and offset + length + self.start > part[0] - WIDEN


def read_one(dice, files, buffer, broken, slow, takes_slow):
    file = dice.choice(files)
    direct = dice.random() < 0.5
    offset = dice.randrange(len(file.bytes))
    length = 1 + int(LONGEST ** dice.random())
    if direct:
        offset &= ~4095
        length = (length + 4095) & ~4095
    if slow and file.touches(offset, length + (0 if direct else 4 << 20), slow) and not takes_slow:
        return 0, False  # read-ahead would have to do with it, too
    begun = time.monotonic()
    what = f"{file.name}: {length} bytes at {offset}, {'direct' if direct else 'buffered'}"
    try:
        got = os.preadv(file.direct if direct else file.buffered, [memoryview(buffer)[:length]], offset)
    except OSError as error:
        if error.errno != errno.EIO or not file.touches(offset, length, broken):
            raise AssertionError(f"{what}: {error}") from error
        return 0, False
    took = time.monotonic() - begun
    expected = file.bytes[offset : offset + length]
    if buffer[:got] != expected[:got]:
        raise AssertionError(f"{what}: other bytes")
    if got < len(expected) and not file.touches(offset, length, broken):
        raise AssertionError(f"{what}: only {got} bytes")
    return got, slow is not None and not takes_slow and took > PATIENCE


def run(number, end, files, broken, slow):
    dice = random.Random(number)
    buffer = mmap.mmap(-1, LONGEST + 8192)
    count = total = late = 0
    while time.monotonic() < end:
        got, was_late = read_one(dice, files, buffer, broken, slow, number % 4 == 0)
        total += got
        late += was_late
        count += 1
    return f"{count} {total} {late}"


def main():
    seconds, mount, reference = float(sys.argv[1]), sys.argv[2], sys.argv[3]
    broken, slow = (tuple(map(int, part.split("-"))) for part in sys.argv[4:6]) if len(sys.argv) > 4 else (None, None)
    with open(f"{reference}/starts") as file:
        files = [File(mount, reference, name, None if start == "-" else int(start)) for name, start in map(str.split, file)]
    end = time.monotonic() + seconds
    reader, writer = os.pipe()
    for number in range(PROCESSES):
        if os.fork() == 0:
            try:
                line = "ok " + run(number, end, files, broken, slow)
            except AssertionError as error:
                line = f"wrong {error}"
            except BaseException as error:
                line = f"wrong {type(error).__name__}: {error}"
            os.write(writer, (line[:500] + "\n").encode())
            os._exit(0)
    os.close(writer)
    with open(reader) as lines:
        results = lines.read().splitlines()
    wrong = [line for line in results if not line.startswith("ok ")]
    reads, total, late = (sum(int(line.split()[i]) for line in results if line.startswith("ok ")) for i in (1, 2, 3))
    print(f"{reads} reads, {total} bytes, {late} late, {len(results)} processes")
    print(*wrong[:5], sep="\n")
    sys.exit(0 if not wrong and len(results) == PROCESSES and reads >= PROCESSES and late * 100 <= reads else 1)


main()
