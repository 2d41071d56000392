#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random edits through the files of a writable mount, and the same ones in a model of the disk.

mount-writers.py edit MNT MODEL PART_START PART_SIZE SEED COUNT [MAPPED]
    Several processes at once, each with a stretch of the disk of its own, whose limits are not
    aligned; each edit is read again through the other names. MODEL gets the same edits. With
    MAPPED, edits and reads are also made through mappings and with O_DIRECT, and the limits are
    those of pages: of two who store to one page of two mappings, one may win all of it.
mount-writers.py fsynced DISK LOG SEED
    Writes, and logs an edit in LOG once it was fsynced, until it is killed.
mount-writers.py replay LOG DISK
    Whether DISK has all edits of LOG; later ones than the log has may be there as well.
"""
import ctypes
import hashlib
import mmap
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


class File:
    """A file of the mount, which has a range of the disk, open in several ways."""

    def __init__(self, path, start, length, mapped):
        self.start, self.length = start, length
        self.fd = os.open(path, os.O_RDWR)
        self.ways = ["call"]
        if mapped:
            self.direct = os.open(path, os.O_RDWR | os.O_DIRECT)
            self.map = mmap.mmap(self.fd, length)
            self.ways = ["call", "direct", "map"]

    def write(self, way, data, offset):
        offset -= self.start
        if way == "map":
            self.map[offset : offset + len(data)] = data
            first = offset & -4096
            self.map.flush(first, offset + len(data) - first)
            os.fsync(self.fd)
        else:
            write_all(self.direct if way == "direct" else self.fd, data, offset)

    def read(self, way, n, offset):
        offset -= self.start
        if way == "map":
            return self.map[offset : offset + n]
        return os.pread(self.direct if way == "direct" else self.fd, n, offset)


def stretch(size, worker, mapped):
    if mapped:
        return (size * worker // WORKERS) & -4096, (size * (worker + 1) // WORKERS) & -4096
    low = size * worker // WORKERS + (worker and 1000 * worker + 1)
    high = size * (worker + 1) // WORKERS + (1000 * (worker + 1) + 1 if worker + 1 < WORKERS else 0)
    return low, high


def edit(mnt, model, part_start, part_size, seed, count, mapped, worker):
    rng = random.Random(seed * 100 + worker)
    size = os.path.getsize(model)
    low, high = stretch(size, worker, mapped)
    model_fd = os.open(model, os.O_RDWR)
    ranges = {"disk": (0, size), "part1": (part_start, part_size), "data": (part_start, part_size)}
    files = {name: File(f"{mnt}/{name}", *ranges[name], mapped) for name in ranges}
    for _ in range(count):
        name = rng.choice(list(files))
        file = files[name]
        first, end = max(low, file.start), min(high, file.start + file.length)
        offset = rng.randrange(first, end)
        if rng.random() < 0.4:
            offset = max(first, offset & -4096)
        n = min(rng.choice([1, 512, 4096, 4097, 70000, 300000]), end - offset)
        what = rng.random()
        if what < 0.65:
            data = bytes([rng.randrange(256)]) * n if rng.random() < 0.3 else rng.randbytes(n)
            way = rng.choice(file.ways)
            file.write(way, data, offset)
        else:
            data = bytes(n)
            way = "fallocate"
            zero(file.fd, PUNCH_HOLE if what < 0.85 else ZERO_RANGE, offset - file.start, n)
        if rng.random() < 0.1:
            os.fsync(file.fd)
        write_all(model_fd, data, offset)
        for other, there in files.items():
            if there.start <= offset and offset + n <= there.start + there.length:
                how = rng.choice(there.ways)
                if there.read(how, n, offset) != data:
                    sys.exit(f"{name} ({way}): {n} bytes at {offset} are not the same in {other} ({how})")


def edits(args):
    mnt, model, *numbers = args
    part_start, part_size, seed, count, *mapped = map(int, numbers)
    pids = []
    for worker in range(WORKERS):
        pid = os.fork()
        if pid == 0:
            edit(mnt, model, part_start, part_size, seed, count // WORKERS, bool(mapped), worker)
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
