#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compares what `qverity read` and `qverity map` say of an image with a raw disk that qemu-img made
of it, and with `qemu-img map`.

    check_image.py QVERITY IMAGE RAW [--no-qemu-map] [--random N] [--seed N] [-- OPTION...]

OPTIONs go to qverity. Prints what is wrong, and then exits with 1.
"""
import argparse
import json
import random
import subprocess
import sys
import time


def fail(text):
    print(text)
    sys.exit(1)


def output(*command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if result.returncode != 0 or result.stderr:
        fail(f"{' '.join(command)}: exit {result.returncode}: {result.stderr.decode()}")
    return result.stdout


def check_reads(args, raw):
    def read(offset, length):
        data = output(args.qverity, "read", *args.options, args.image, str(offset), str(length))
        if data != raw[offset:offset + length]:
            fail(f"read {offset} {length}: other bytes ({len(data)} of them)")

    read(0, len(raw))
    rand = random.Random(args.seed)
    for i in range(args.random):
        offset = rand.randrange(len(raw))
        longest = min(len(raw) - offset, 1 << rand.randrange(1, 22))
        read(offset, rand.randint(0 if i == 0 else 1, longest))
    read(len(raw), 0)


def check_map(extents, raw):
    """Checks each extent against the bytes; returns the zero ones as [(start, end)]."""
    zeros = []
    at = 0
    for extent in extents:
        start, length, kind = extent["start"], extent["length"], extent["kind"]
        if start != at or length <= 0:
            fail(f"map: extent {extent} does not start at {at}")
        at = start + length
        part = raw[start:at]
        if extent["zero"] != (kind == "zero") or ("file" in extent) != (kind == "data"):
            fail(f"map: {extent} contradicts itself")
        if kind == "zero":
            if part.count(0) != length:
                fail(f"map: {extent} is no zeros")
            if zeros and zeros[-1][1] == start:
                fail(f"map: {extent} is not merged with the one before")
            zeros.append((start, at))
        elif kind == "data":
            with open(extent["file"], "rb") as file:
                file.seek(extent["offset"])
                if file.read(length) != part:
                    fail(f"map: other bytes are at {extent}")
        elif extent["offset"] is not None:
            fail(f"map: {extent} has an offset")
    if at != len(raw):
        fail(f"map: ends at {at}, the disk has {len(raw)} bytes")
    return zeros


def json_map(args):
    return json.loads(output(args.qverity, "map", "--json", *args.options, args.image))


def check_text_map(args):
    """The text has the same extents. While a file is written back, its holes become fewer."""
    for _ in range(5):
        lines = output(args.qverity, "map", *args.options, args.image).decode().splitlines()
        expected = []
        for extent in json_map(args):
            words = [str(extent["start"]), str(extent["length"]), extent["kind"]]
            if extent["kind"] == "data":
                words += [str(extent["offset"]), extent["file"]]
            expected.append(words)
        if [line.split() for line in lines] == expected:
            return
        time.sleep(1)
    fail("map: the text and the JSON differ")


def check_qemu_map(args, size, zeros):
    """What qemu-img calls zeros must be zeros in ours; ours may know more."""
    for extent in json.loads(output("qemu-img", "map", "--output=json", args.image)):
        # qemu-img goes on to the end of the last cluster.
        start, end = extent["start"], min(extent["start"] + extent["length"], size)
        if not extent["zero"] or start >= end:
            continue
        if not any(first <= start and end <= last for first, last in zeros):
            fail(f"map: {start} to {end} are zeros for qemu-img, but not for us")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("qverity")
    parser.add_argument("image")
    parser.add_argument("raw")
    parser.add_argument("--no-qemu-map", action="store_true")
    parser.add_argument("--random", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:split])
    args.options = words[split + 1:]

    with open(args.raw, "rb") as file:
        raw = file.read()
    check_reads(args, raw)
    zeros = check_map(json_map(args), raw)
    check_text_map(args)
    # Last: holes of a file can only become fewer while it is written back.
    if not args.no_qemu_map:
        check_qemu_map(args, len(raw), zeros)


main()
