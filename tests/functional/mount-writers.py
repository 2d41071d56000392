#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random edits through the files of a writable mount, and the same ones in a model of the disk.

mount-writers.py edit MNT MODEL PART_START PART_SIZE SEED COUNT
    Several processes at once, each with a stretch of the disk of its own, whose limits are not
    aligned; each edit is read again through the other names. MODEL gets the same edits.
mount-writers.py fsynced DISK LOG SEED
    Writes, and logs an edit in LOG once it was fsynced, until it is killed.
mount-writers.py replay LOG DISK
    Whether DISK has all edits of LOG; later ones than the log has may be there as well.
"""
import ctypes
import hashlib
import os
import random
import sys

PUNCH_HOLE = 3  # with KEEP_SIZE
ZERO_RANGE = 0x10
WORKERS = 4
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def zero(fd, mode, offset, length):
    if libc.fallocate(fd, mode, offset, length) < 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def write_all(fd, data, offset):
    while data:
        n = os.pwrite(fd, data, offset)
        data = data[n:]
        offset += n


def edit(mnt, model, part_start, part_size, seed, count, worker):
    rng = random.Random(seed * 100 + worker)
    size = os.path.getsize(model)
    low = size * worker // WORKERS + (worker and 1000 * worker + 1)
    high = size * (worker + 1) // WORKERS + (1000 * (worker + 1) + 1 if worker + 1 < WORKERS else 0)
    model_fd = os.open(model, os.O_RDWR)
    names = {"disk": (0, size), "part1": (part_start, part_size), "data": (part_start, part_size)}
    fds = {name: os.open(f"{mnt}/{name}", os.O_RDWR) for name in names}
    for _ in range(count):
        name = rng.choice(list(names))
        start, length = names[name]
        first, end = max(low, start), min(high, start + length)
        offset = rng.randrange(first, end)
        if rng.random() < 0.4:
            offset = max(first, offset & -4096)
        n = min(rng.choice([1, 512, 4096, 4097, 70000, 300000]), end - offset)
        what = rng.random()
        if what < 0.65:
            data = bytes([rng.randrange(256)]) * n if rng.random() < 0.3 else rng.randbytes(n)
            write_all(fds[name], data, offset - start)
        else:
            data = bytes(n)
            zero(fds[name], PUNCH_HOLE if what < 0.85 else ZERO_RANGE, offset - start, n)
        if rng.random() < 0.1:
            os.fsync(fds[name])
        write_all(model_fd, data, offset)
        for other, (other_start, other_length) in names.items():
            if other_start <= offset and offset + n <= other_start + other_length:
                if os.pread(fds[other], n, offset - other_start) != data:
                    sys.exit(f"{name}: {n} bytes at {offset} are not the same in {other}")


def edits(args):
    mnt, model, *numbers = args
    part_start, part_size, seed, count = map(int, numbers)
    pids = []
    for worker in range(WORKERS):
        pid = os.fork()
        if pid == 0:
            edit(mnt, model, part_start, part_size, seed, count // WORKERS, worker)
            os._exit(0)
        pids.append(pid)
    sys.exit(any(os.waitpid(pid, 0)[1] for pid in pids))


def block_of(seed, number, offset):
    return hashlib.sha256(f"{seed} {number} {offset}".encode()).digest() * 128


def fsynced(disk, log, seed):
    rng = random.Random(seed)
    fd = os.open(disk, os.O_RDWR)
    blocks = os.fstat(fd).st_size // 4096
    with open(log, "a", encoding="ascii") as out:
        for number in range(1 << 30):
            some = [4096 * rng.randrange(blocks) for _ in range(rng.randrange(1, 9))]
            # What may have reached the disk without being acknowledged.
            out.write("".join(f"? {seed} {number} {offset}\n" for offset in some))
            out.flush()
            for offset in some:
                write_all(fd, block_of(seed, number, offset), offset)
            os.fsync(fd)
            out.write("".join(f"= {seed} {number} {offset}\n" for offset in some))
            out.flush()


def replay(log, disk):
    sure, maybe = {}, {}
    for line in open(log, encoding="ascii"):
        kind, seed, number, offset = line.split()
        block = block_of(seed, number, int(offset))
        if kind == "=":
            sure[offset] = block
            maybe.pop(offset, None)
        else:
            maybe[offset] = block
    fd = os.open(disk, os.O_RDONLY)
    wrong = [o for o, b in sure.items() if os.pread(fd, 4096, int(o)) not in (b, maybe.get(o))]
    print(f"{len(sure)} fsynced blocks, {len(wrong)} wrong")
    sys.exit(bool(wrong) or not sure)


if sys.argv[1] == "edit":
    edits(sys.argv[2:])
elif sys.argv[1] == "fsynced":
    fsynced(*sys.argv[2:])
else:
    replay(*sys.argv[2:])
