#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Reads random ranges of several files at once and compares every byte.

    mount-readers.py [--processes N] [--rounds N] [--seed N] FILE=REFERENCE...

Each of N processes reads ranges of all FILEs, in random order and of random length, through the
page cache, past it (O_DIRECT), through mmap, and across the end, and compares with what REFERENCE
holds. Exit status 0: all were equal.
"""
import argparse
import mmap
import os
import random
import sys

MAX_LENGTH = 3 << 20


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("pairs", nargs="+")
    return parser.parse_args()


def reference(path, offset, length):
    with open(path, "rb") as file:
        return os.pread(file.fileno(), length, offset)


def read_direct(path, offset, length):
    """O_DIRECT into page-aligned memory, whole pages; cut to what was asked for."""
    start = offset & ~4095
    size = ((offset + length + 4095) & ~4095) - start
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, size) as memory:
            got = os.preadv(fd, [memory], start)
            return memory[offset - start:min(got, offset - start + length)]
    finally:
        os.close(fd)


def read_mapped(path, offset, length):
    start = offset & ~4095
    with open(path, "rb") as file:
        end = min(offset + length, os.fstat(file.fileno()).st_size)
        if end <= offset:
            return b""
        # Private, which works without page cache as well.
        with mmap.mmap(file.fileno(), end - start, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ,
                       offset=start) as memory:
            return memory[offset - start:]


def read_buffered(path, offset, length):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, random.choice([os.POSIX_FADV_NORMAL, os.POSIX_FADV_RANDOM,
                                                  os.POSIX_FADV_DONTNEED]))
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def pick_range(size):
    kind = random.random()
    if kind < 0.1:  # across the end
        return max(0, size - random.randrange(1, 9000)), random.randrange(1, 20000)
    if kind < 0.15:  # behind it
        return size + random.randrange(0, 100000), random.randrange(1, 5000)
    length = random.choice([1, 512, 4096, random.randrange(1, 70000),
                            random.randrange(1, MAX_LENGTH)])
    return random.randrange(0, max(1, size)), length


def one_process(pairs, rounds, seed):
    random.seed(seed)
    readers = [read_buffered, read_direct, read_mapped]
    for _ in range(rounds):
        path, expected_path = random.choice(pairs)
        offset, length = pick_range(os.stat(expected_path).st_size)
        reader = random.choice(readers)
        got = reader(path, offset, length)
        if got != reference(expected_path, offset, length):
            print(f"{reader.__name__} {path} {offset} {length}: differs, got {len(got)} bytes",
                  file=sys.stderr)
            return 1
    return 0


def main():
    arguments = parse()
    pairs = [pair.split("=", 1) for pair in arguments.pairs]
    children = []
    for number in range(arguments.processes):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = one_process(pairs, arguments.rounds,
                                     arguments.seed * 1000 + number)
            except Exception as error:  # any end but success is told by the status
                print(f"process {number}: {error!r}", file=sys.stderr)
            finally:
                os._exit(status)
        children.append(pid)
    return 1 if any([os.waitpid(pid, 0)[1] != 0 for pid in children]) else 0


sys.exit(main())
