#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Mutated qcow2 images, read by qverity and by QEMU.

    differential.py [--count N] [--first N] [--qverity FILE] [--mutate FILE] [--seeds DIR] [--keep DIR]

Image number N is a mutation (qcow2-mutate, seed N) of one of the seeds. It goes through info, map, read,
hash, mount and read of the mount, each within limits of time and memory and without dying of a signal or
a sanitizer. Where qverity and QEMU both read it, bytes and zeros must be the same; where only one does, the
reasons are counted. What only qverity reads must be explained in ONLY_OURS; libqcow is a third voice on
bytes, for images that it is known to read rightly.

Images that are wrong go to the directory that --keep names. Exits with 1 if there are any.
"""
import argparse
import collections
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

WHOLE = 16 << 20  # Disks up to this size are read whole, of others ...
WINDOW = 1 << 20  # ... windows of this size.
WINDOWS = 6
SANITIZER = re.compile(rb"ERROR: (Address|Leak|Thread)Sanitizer|runtime error:|SUMMARY: ")

# Messages of QEMU about images that only qverity reads, and why that is right.
ONLY_OURS = [
    (r"Image does not have a reference count for cluster|Preventing invalid write|refcount",
     "refcounts matter to writers only"),
    (r"Snapshot table|[Ss]napshot", "a snapshot that nobody asks for does not matter"),
    # Bytes do not depend on bitmaps; tracking checks those that it uses (image/bitmap.c).
    (r"Could not read bitmap_table", "a damaged bitmap does not matter to readers"),
    (r"Image is corrupt: .*(Overlap|overlap)", "an overlap matters to writers only"),
]


class Wrong(Exception):
    """What must not be."""


class Runner:
    """Runs commands and knows what each took at most."""

    def __init__(self, args):
        self.args = args
        self.longest = collections.Counter()
        self.largest = collections.Counter()

    def finish(self, what, process, started, errors, logs=False):
        """Waits for the process; refuses what took too long or too much, or died. `logs`: it may say
        that something failed and go on."""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        cpu = usage.ru_utime + usage.ru_stime
        self.longest[what] = max(self.longest[what], min(seconds, 2 * cpu + 0.01))
        self.largest[what] = max(self.largest[what], usage.ru_maxrss)
        if process.returncode < 0:
            raise Wrong(f"{what}: signal {signal.Signals(-process.returncode).name}")
        if SANITIZER.search(errors):
            raise Wrong(f"{what}: {errors.decode(errors='replace')[:3000]}")
        if process.returncode not in (0, 1):
            raise Wrong(f"{what}: exit {process.returncode}: {errors.decode(errors='replace')}")
        complains = bool(re.search(rb"^qverity: (?!warning: )", errors, re.M))
        if (process.returncode == 1) != complains and not (complains and logs):
            raise Wrong(f"{what}: exit {process.returncode}, and says: {errors!r}")
        if self.args.seconds and cpu > self.args.seconds:
            raise Wrong(f"{what}: took {cpu:.1f} s")
        if self.args.megabytes and usage.ru_maxrss > self.args.megabytes << 10:
            raise Wrong(f"{what}: took {usage.ru_maxrss >> 10} MiB")

    def qverity(self, *words):
        """Output, or None and the message."""
        command = [self.args.qverity, *words]
        started = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            timer = kill_later(process, self.args.timeout)
            try:
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            finally:
                timer.cancel()
            err.seek(0)
            errors = err.read()
            self.finish(words[0], process, started, errors)
            if process.returncode == 1:
                return None, message_of(errors)
            out.seek(0)
            return out.read(), None


def kill_later(process, seconds):
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    return timer


def message_of(errors):
    lines = [line for line in errors.decode(errors="replace").splitlines() if "warning:" not in line]
    return lines[-1] if lines else ""


def qemu(*command, timeout=60):
    """Output, or None and the message."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return None, "takes too long"
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip() or f"exit {done.returncode}"
        return None, re.sub(r"'driver=[^']*'", "it", text)[:300]
    return done.stdout, None


def windows(size, extents):
    """Ranges to be compared: all of a small disk, else its start, end, and where there is something."""
    if size <= WHOLE:
        return [(0, size)] if size > 0 else []
    starts = [0, (size - WINDOW) // 512 * 512]
    starts += [extent["start"] // 512 * 512 for extent in extents if extent["kind"] != "zero"]
    ranges = []
    for start in starts[:2] + sorted(set(starts[2:]))[:WINDOWS]:
        ranges.append((start, min(WINDOW, size - start)))
    return ranges


def qemu_bytes(image, start, length):
    """A range of the disk, as QEMU reads it; or None and the message."""
    if os.path.exists("qemu.raw"):
        os.unlink("qemu.raw")
    spec = f"driver=raw,offset={start},size={length},file.driver=qcow2,file.file.driver=file,file.file.filename={image}"
    _, message = qemu("qemu-img", "convert", "--image-opts", spec, "-O", "raw", "qemu.raw")
    if message is not None:
        return None, message
    with open("qemu.raw", "rb") as file:
        return file.read(), None


class Qcow:
    """libqcow, where it is known to be right: no zero clusters, no backing files, no compression by zstd, and so
    on, which the caller knows."""

    def __init__(self):
        try:
            self.lib = ctypes.CDLL("libqcow.so.1")
        except OSError:
            self.lib = None

    def read(self, image, start, length):
        if self.lib is None:
            return None
        file = ctypes.c_void_p()
        if self.lib.libqcow_file_initialize(ctypes.byref(file), None) != 1:
            return None
        try:
            if self.lib.libqcow_file_open(file, image.encode(), 1, None) != 1:
                return None
            buffer = ctypes.create_string_buffer(length)
            self.lib.libqcow_file_read_buffer_at_offset.restype = ctypes.c_ssize_t
            done = 0
            while done < length:
                n = self.lib.libqcow_file_read_buffer_at_offset(
                    file, ctypes.byref(buffer, done), ctypes.c_size_t(length - done),
                    ctypes.c_int64(start + done), None)
                if n <= 0:
                    return None
                done += n
            return buffer.raw
        finally:
            self.lib.libqcow_file_free(ctypes.byref(file), None)


def read_file(path, offset, length):
    with open(path, "rb", buffering=0) as file:
        data = b""
        while len(data) < length:
            part = os.pread(file.fileno(), length - len(data), offset + len(data))
            if not part:
                raise Wrong(f"{path} ends at {offset + len(data)}")
            data += part
        return data


class Comparison:
    """One image."""

    def __init__(self, runner, counts, image):
        self.runner = runner
        self.counts = counts
        self.image = image
        self.options = ["--format", "qcow2"]

    def count(self, what):
        self.counts[what] += 1

    def ours(self):
        """Size, extents and bytes, as qverity has them, or the message."""
        text, message = self.runner.qverity("info", "--json", *self.options, self.image)
        info = json.loads(text) if text is not None else None
        text, map_message = self.runner.qverity("map", "--json", *self.options, self.image)
        if (text is None) != (info is None):
            raise Wrong(f"info says {message}, and map {map_message}")
        if text is None:
            return None, None, map_message
        extents = json.loads(text)
        size = info["disk_size"]
        at = 0
        for extent in extents:
            if extent["start"] != at or extent["length"] <= 0:
                raise Wrong(f"map: {extent} at {at}")
            at += extent["length"]
        if at != size:
            raise Wrong(f"map ends at {at}, the disk has {size} bytes")
        pieces = {}
        for start, length in windows(size, extents):
            data, message = self.runner.qverity("read", *self.options, self.image, str(start), str(length))
            if data is None:
                return size, extents, message
            if len(data) != length:
                raise Wrong(f"read: {len(data)} bytes instead of {length}")
            pieces[start] = data
        return size, extents, pieces

    def check_zeros(self, size, extents, pieces):
        """What the map calls zeros is zeros; what QEMU calls zeros, too, the map does."""
        zeros = [(e["start"], e["start"] + e["length"]) for e in extents if e["zero"]]
        for start, data in pieces.items():
            for first, last in zeros:
                part = data[max(first - start, 0):max(last - start, 0)]
                if part.count(0) != len(part):
                    raise Wrong(f"map: {first} to {last} are no zeros")
        text, _ = qemu("qemu-img", "map", "--output=json", "-f", "qcow2", self.image)
        if text is None:
            return
        for extent in json.loads(text):
            start, end = extent["start"], min(extent["start"] + extent["length"], size)
            if extent["zero"] and start < end and not any(a <= start and end <= b for a, b in zeros):
                raise Wrong(f"map: {start} to {end} are zeros for qemu-img only")
        self.count("maps compared")

    def check_qcow(self, pieces):
        with open(self.image, "rb") as file:
            header = file.read(112)
        version = int.from_bytes(header[4:8], "big")
        backing = int.from_bytes(header[8:16], "big")
        if version != 2 or backing != 0:
            return
        for start, data in pieces.items():
            read = QCOW.read(self.image, start, len(data))
            if read is None:
                self.count("libqcow: cannot read it")
            elif read == data:
                self.count("libqcow: the same bytes")
            else:
                self.count("libqcow: other bytes than QEMU and qverity")

    def check_bytes(self, pieces):
        """Whether QEMU reads the same bytes; its message if it reads none."""
        for start, data in pieces.items():
            theirs, message = qemu_bytes(self.image, start, len(data))
            if theirs is None:
                return message
            if theirs != data:
                at = next(i for i, (a, b) in enumerate(zip(theirs, data)) if a != b)
                raise Wrong(f"byte {start + at} is {data[at]}, and for QEMU {theirs[at]}")
        return None

    def check_hash(self, size, extents):
        if size < 4096 or sum(e["length"] for e in extents if e["kind"] != "zero") > 1 << 30:
            return None
        text, message = self.runner.qverity("hash", "--json", "--no-tree", "-p", "disk", *self.options, self.image)
        return json.loads(text)["root_hash"] if text is not None else message

    def check_mount(self, size, pieces, root):
        started = time.monotonic()
        command = [self.runner.args.qverity, "mount", "-f", "--no-tree", "-p", "disk", *self.options, self.image, "mnt"]
        with tempfile.TemporaryFile() as err:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err)
            timer = kill_later(process, 4 * self.runner.args.timeout)
            try:
                while not os.path.exists("mnt/disk"):
                    if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                        break
                    time.sleep(0.002)
                else:
                    self.read_mount(size, pieces, root)
            finally:
                subprocess.run(["fusermount3", "-u", "mnt"], capture_output=True, check=False)
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                timer.cancel()
                err.seek(0)
                errors = err.read()
                self.runner.finish("mount", process, started, errors, logs=True)
        return message_of(errors) if process.returncode == 1 else None

    def read_mount(self, size, pieces, root):
        if os.stat("mnt/disk").st_size != size:
            raise Wrong("mount: disk has another size")
        for start, data in pieces.items():
            if read_file("mnt/disk", start, len(data)) != data:
                raise Wrong(f"mount: other bytes at {start}")
        if root is not None:
            with open("mnt/root-hash", encoding="ascii") as file:
                if file.read().strip() != root:
                    raise Wrong("mount: another root hash than hash has")
            length = os.stat("mnt/hash").st_size
            read_file("mnt/hash", 0, min(length, 4 << 20))

    def only_qemu(self, size, extents, message):
        """qverity does not read it, or not all."""
        if size is not None:
            self.check_hash(size, extents)
        else:
            text, _ = qemu("qemu-img", "info", "--output=json", "-f", "qcow2", self.image)
            size = json.loads(text)["virtual-size"] // 512 * 512 if text is not None else 512
        ranges = windows(size, extents or [])
        if any(qemu_bytes(self.image, start, length)[0] is None for start, length in ranges):
            self.count("neither reads it")
        else:
            self.count("only QEMU reads it")
            self.count("only QEMU reads it: " + shape(message))
            if self.runner.args.verbose:
                print(f"  only QEMU reads it: {message}")

    def run(self):
        size, extents, pieces = self.ours()
        if not isinstance(pieces, dict):
            self.only_qemu(size, extents, pieces)
            return
        message = self.check_bytes(pieces)
        root = self.check_hash(size, extents)
        if root is not None and len(root) != 64:
            raise Wrong(f"read works, and hash says: {root}")
        if size >= 4096:
            why = self.check_mount(size, pieces, root)
            if why is not None:
                raise Wrong(f"read works, and mount says: {why}")
        if message is None:
            self.count("both read it")
            self.check_zeros(size, extents, pieces)
            self.check_qcow(pieces)
            return
        for pattern, reason in ONLY_OURS:
            if re.search(pattern, message):
                self.count("only qverity reads it: " + reason)
                return
        raise Wrong(f"only qverity reads it; QEMU says: {message}")


def shape(message):
    """A message without the numbers in it."""
    return re.sub(r"0x[0-9a-f]+|[0-9]+", "N", re.sub(r"^qverity: [^:]*: ", "", str(message)))[:90]


QCOW = Qcow()


def main():
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--qverity", default=os.path.join(top, "build/qverity"))
    parser.add_argument("--mutate", default=os.path.join(top, "build/tests/fuzz/qcow2-mutate"))
    parser.add_argument("--seeds", help="a directory of images; by default make-seeds.sh makes them")
    parser.add_argument("--keep", default="differential-found")
    parser.add_argument("--seconds", type=float, default=2, help="of CPU time a command may take; 0: any")
    parser.add_argument("--megabytes", type=int, default=256, help="of memory a command may take; 0: any")
    parser.add_argument("--timeout", type=float, default=20, help="seconds after which a command is killed")
    parser.add_argument("--verbose", action="store_true", help="tell what only QEMU reads, and keep it")
    args = parser.parse_args()
    for name in "qverity", "mutate", "keep":
        setattr(args, name, os.path.abspath(getattr(args, name)))
    runner = Runner(args)
    counts = collections.Counter()
    wrong = 0

    with tempfile.TemporaryDirectory(prefix="qverity-differential.", dir="/dev/shm") as work:
        seeds = os.path.abspath(args.seeds) if args.seeds else os.path.join(work, "seeds/qcow2")
        if not args.seeds:
            subprocess.run([os.path.join(top, "tests/fuzz/make-seeds.sh"), os.path.join(work, "seeds")],
                           env={**os.environ, "QVERITY": args.qverity}, check=True)
        names = sorted(os.listdir(seeds))
        os.chdir(work)
        os.mkdir("mnt")
        for name in "base.raw", "data.raw":
            with open(name, "wb") as file:
                file.write(bytes(1 + (i // 512 + i) % 255 for i in range(1 << 20)))
        for number in range(args.first, args.first + args.count):
            seed = os.path.join(seeds, names[number % len(names)])
            subprocess.run([args.mutate, str(number), seed, "image.qcow2"], check=True)
            shutil.copy("image.qcow2", "copy.qcow2")
            try:
                Comparison(runner, counts, "image.qcow2").run()
            except Wrong as what:
                wrong += 1
                os.makedirs(args.keep, exist_ok=True)
                shutil.copy("image.qcow2", os.path.join(args.keep, f"{number}-{names[number % len(names)]}"))
                print(f"{number} ({names[number % len(names)]}): {what}", flush=True)

    print(f"{args.count} images, {wrong} wrong")
    for what, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        print(f"{count:7} {what}")
    for what in sorted(runner.longest):
        print(f"{what}: at most {runner.longest[what]:.2f} s, {runner.largest[what] / 1024:.0f} MiB")
    sys.exit(1 if wrong else 0)


main()
