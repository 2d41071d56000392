#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Mutated qcow2 images, read by qverity and by QEMU.

    differential.py [--count N] [--first N] [--jobs N] [--qverity FILE] [--mutate FILE] [--seeds DIR] [--keep DIR]

Image number N is a mutation (qcow2-mutate, seed N) of one of the seeds. It goes through info, map, read,
hash, mount and read of the mount, each within limits of time and memory and without dying of a signal or
a sanitizer. Where qverity and QEMU both read it, bytes and zeros must be the same; where only one does, the
reasons are counted. What only qverity reads must be explained in ONLY_OURS; libqcow is a third voice on
bytes, for images that it is known to read rightly.

With --fork-server (build/tests/tools/fork-server.so) the programs are started once and forked for each
command, which is what makes a build with sanitizers fast enough for thousands of images. Time and memory are
each command's own. What takes no time of the CPU but does not end either is tried once more with more
patience before it is called a hang: the machine may be busy.

Images that are wrong go to the directory that --keep names. Exits with 1 if there are any.
"""
import argparse
import collections
import ctypes
import json
import multiprocessing
import os
import re
import select
import shutil
import signal
import socket
import struct
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


class Ended:
    """How a command ended."""

    def __init__(self, status, cpu, kib, timed_out):
        self.code = os.waitstatus_to_exitcode(status)
        self.cpu = cpu
        self.kib = kib
        self.timed_out = timed_out


class Started:
    """A command, as a process of ours."""

    def __init__(self, command, seconds, out, err):
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        self.timed_out = False
        self.timer = threading.Timer(seconds, self.kill)
        self.timer.start()

    def kill(self):
        self.timed_out = True
        self.process.kill()

    def has_ended(self):
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def wait(self):
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self.timer.cancel()
        self.timer.join()
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return Ended(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, self.timed_out)


class ForkServer:
    """A program that is started once and forked for each command (tests/tools/fork-server.c)."""

    ANSWER = struct.Struct("=iIQQ")

    def __init__(self, library, program):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), "verify_asan_link_order=0"]))
        with theirs:
            self.process = subprocess.Popen(
                [program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                env={**os.environ, "LD_PRELOAD": library, "FORK_SERVER": str(theirs.fileno()), "ASAN_OPTIONS": options})
        self.null = open(os.devnull, "rb")

    def start(self, command, seconds, out, err):
        words = b"".join(os.fsencode(word) + b"\0" for word in command)
        socket.send_fds(self.socket, [struct.pack("=I", int(seconds * 1000)) + words],
                        [self.null.fileno(), out.fileno(), err.fileno()])
        return self

    def has_ended(self):
        return bool(select.select([self.socket], [], [], 0)[0])

    def wait(self):
        answer = self.socket.recv(self.ANSWER.size)
        if len(answer) != self.ANSWER.size:
            raise RuntimeError("the fork server has ended")
        status, timed_out, cpu, kib = self.ANSWER.unpack(answer)
        return Ended(status, cpu / 1e6, kib, bool(timed_out))

    def close(self):
        self.socket.close()
        self.process.wait()
        self.null.close()


class Runner:
    """Runs commands and knows what each took at most."""

    def __init__(self, args):
        self.args = args
        self.longest = collections.Counter()
        self.largest = collections.Counter()
        self.servers = {}
        if args.fork_server:
            self.servers = {name: ForkServer(args.fork_server, shutil.which(name)) for name in (args.qverity, "qemu-img")}

    def close(self):
        for server in self.servers.values():
            server.close()

    def start(self, command, seconds, out, err):
        if command[0] in self.servers:
            return self.servers[command[0]].start(command, seconds, out, err)
        return Started(command, seconds, out, err)

    def check(self, what, ended, errors, logs=False):
        """Refuses what took too long or too much, or died. `logs`: it may say that something failed and go on."""
        self.longest[what] = max(self.longest[what], ended.cpu)
        self.largest[what] = max(self.largest[what], ended.kib)
        if ended.timed_out:
            raise Wrong(f"{what}: does not end; {ended.cpu:.1f} s of CPU time")
        if ended.code < 0:
            raise Wrong(f"{what}: signal {signal.Signals(-ended.code).name}")
        if SANITIZER.search(errors):
            raise Wrong(f"{what}: {errors.decode(errors='replace')[:3000]}")
        if ended.code not in (0, 1):
            raise Wrong(f"{what}: exit {ended.code}: {errors.decode(errors='replace')}")
        complains = bool(re.search(rb"^qverity: (?!warning: )", errors, re.M))
        if (ended.code == 1) != complains and not (complains and logs):
            raise Wrong(f"{what}: exit {ended.code}, and says: {errors!r}")
        if self.args.seconds and ended.cpu > self.args.seconds:
            raise Wrong(f"{what}: took {ended.cpu:.1f} s")
        if self.args.megabytes and ended.kib > self.args.megabytes << 10:
            raise Wrong(f"{what}: took {ended.kib >> 10} MiB")

    def patience(self):
        """Seconds until a command is killed, and those for a second try, when little time was had of the CPU."""
        return self.args.timeout, 6 * self.args.timeout

    def is_late(self, ended):
        """Whether it may be the machine that is slow."""
        return ended.timed_out and ended.cpu < (self.args.seconds or self.args.timeout / 2)

    def run(self, command):
        """How it ended, and its output and errors."""
        for seconds in self.patience():
            with tempfile.TemporaryFile(dir=".") as out, tempfile.TemporaryFile(dir=".") as err:
                ended = self.start(command, seconds, out, err).wait()
                out.seek(0)
                err.seek(0)
                output, errors = out.read(), err.read()
            if not self.is_late(ended):
                break
        return ended, output, errors

    def qverity(self, *words):
        """Output, or None and the message."""
        ended, out, errors = self.run([self.args.qverity, *words])
        self.check(words[0], ended, errors)
        return (None, message_of(errors)) if ended.code == 1 else (out, None)

    def qemu(self, *command):
        """Output, or None and the message."""
        ended, out, errors = self.run(list(command))
        if ended.timed_out:
            return None, "takes too long"
        if ended.code != 0:
            text = errors.decode(errors="replace").strip() or f"exit {ended.code}"
            return None, re.sub(r"'driver=[^']*'", "it", text)[:300]
        return out, None

    def qemu_bytes(self, image, start, length):
        """A range of the disk, as QEMU reads it; or None and the message."""
        if os.path.exists("qemu.raw"):
            os.unlink("qemu.raw")
        spec = f"driver=raw,offset={start},size={length},file.driver=qcow2,file.file.driver=file,file.file.filename={image}"
        _, message = self.qemu("qemu-img", "convert", "--image-opts", spec, "-O", "raw", "qemu.raw")
        if message is not None:
            return None, message
        with open("qemu.raw", "rb") as file:
            return file.read(), None


def message_of(errors):
    lines = [line for line in errors.decode(errors="replace").splitlines() if "warning:" not in line]
    return lines[-1] if lines else ""


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


def unmount(directory):
    if ctypes.CDLL(None).umount2(directory.encode(), 0) != 0:
        subprocess.run(["fusermount3", "-u", directory], capture_output=True, check=False)


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

    def info(self):
        """What info tells, also if it says why there is nothing about partitions; or None and the message."""
        ended, text, errors = self.runner.run([self.runner.args.qverity, "info", "--json", *self.options, self.image])
        self.runner.check("info", ended, errors)
        info = json.loads(text) if text else None
        if info is not None and (ended.code == 1) != (info["partitions"] is None):
            raise Wrong(f"info: exit {ended.code}, and partitions {info['partitions']}")
        return info, message_of(errors)

    def ours(self):
        """Size, extents and bytes, as qverity has them, or the message."""
        info, message = self.info()
        text, map_message = self.runner.qverity("map", "--json", *self.options, self.image)
        if (text is None) != (info is None):
            raise Wrong(f"info says {message}, and map {map_message}")
        if text is None:
            return None, None, map_message
        if info["partitions"] is None:
            self.count("no partitions are told: " + re.sub(r"0x[0-9a-f]+|[0-9]+", "N", message.split(": ")[-1])[:120])
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
        text, _ = self.runner.qemu("qemu-img", "map", "--output=json", "-f", "qcow2", self.image)
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
            theirs, message = self.runner.qemu_bytes(self.image, start, len(data))
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
        """None, or why there is no mount."""
        for seconds in self.runner.patience():
            ended, errors = self.mount_once(size, pieces, root, 4 * seconds)
            if not self.runner.is_late(ended):
                break
        self.runner.check("mount", ended, errors, logs=True)
        return message_of(errors) if ended.code == 1 else None

    def mount_once(self, size, pieces, root, seconds):
        command = [self.runner.args.qverity, "mount", "-f", "--no-tree", "-p", "disk", *self.options, self.image, "mnt"]
        with tempfile.TemporaryFile(dir=".") as out, tempfile.TemporaryFile(dir=".") as err:
            started = self.runner.start(command, seconds, out, err)
            try:
                while not os.path.exists("mnt/disk") and not started.has_ended():
                    time.sleep(0.002)
                if not started.has_ended():
                    self.read_mount(size, pieces, root)
            except OSError as error:
                # Killed, or it tells why.
                failure = error
            else:
                failure = None
            finally:
                unmount("mnt")
                ended = started.wait()
                err.seek(0)
                errors = err.read()
        if failure is not None and not ended.timed_out:
            raise Wrong(f"mount: {failure}; it says: {errors!r}")
        return ended, errors

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
            text, _ = self.runner.qemu("qemu-img", "info", "--output=json", "-f", "qcow2", self.image)
            size = json.loads(text)["virtual-size"] // 512 * 512 if text is not None else 512
        ranges = windows(size, extents or [])
        if any(self.runner.qemu_bytes(self.image, start, length)[0] is None for start, length in ranges):
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


class Job:
    """Every so many-th of the images, in a directory of its own."""

    def __init__(self, args, seeds, work, numbers):
        self.args = args
        self.seeds = seeds
        self.work = work
        self.numbers = numbers

    def run(self, results):
        """Puts what it found there: counts, and the number of images that are wrong."""
        os.makedirs(os.path.join(self.work, "mnt"))
        os.chdir(self.work)
        for name in "base.raw", "data.raw":
            with open(name, "wb") as file:
                file.write(bytes(1 + (i // 512 + i) % 255 for i in range(1 << 20)))
        names = sorted(os.listdir(self.seeds))
        runner = Runner(self.args)
        counts = collections.Counter()
        wrong = 0
        for number in self.numbers:
            name = names[number % len(names)]
            subprocess.run([self.args.mutate, str(number), os.path.join(self.seeds, name), "image.qcow2"], check=True)
            shutil.copy("image.qcow2", "copy.qcow2")
            try:
                Comparison(runner, counts, "image.qcow2").run()
            except Wrong as what:
                wrong += 1
                os.makedirs(self.args.keep, exist_ok=True)
                shutil.copy("image.qcow2", os.path.join(self.args.keep, f"{number}-{name}"))
                print(f"{number} ({name}): {what}", flush=True)
        runner.close()
        results.put((counts, runner.longest, runner.largest, wrong))


def run_jobs(args, seeds, work):
    """Counts, longest times, largest sizes, and the number of images that are wrong."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    numbers = range(args.first, args.first + args.count)
    jobs = [Job(args, seeds, os.path.join(work, f"job{i}"), numbers[i :: args.jobs]) for i in range(args.jobs)]
    processes = [context.Process(target=job.run, args=(results,)) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode != 0:
            sys.exit("differential.py: a job has failed")
    counts, longest, largest, wrong = collections.Counter(), collections.Counter(), collections.Counter(), 0
    for _ in processes:
        result = results.get()
        counts += result[0]
        longest |= result[1]
        largest |= result[2]
        wrong += result[3]
    return counts, longest, largest, wrong


def main():
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="how many images at once")
    parser.add_argument("--qverity", default=os.path.join(top, "build/qverity"))
    parser.add_argument("--mutate", default=os.path.join(top, "build/tests/fuzz/qcow2-mutate"))
    parser.add_argument("--fork-server", help="start each program once, with this library")
    parser.add_argument("--seeds", help="a directory of images; by default make-seeds.sh makes them")
    parser.add_argument("--keep", default="differential-found")
    parser.add_argument("--seconds", type=float, default=2, help="of CPU time a command may take; 0: any")
    parser.add_argument("--megabytes", type=int, default=256, help="of memory a command may take; 0: any")
    parser.add_argument("--timeout", type=float, default=20, help="seconds after which a command is killed")
    parser.add_argument("--verbose", action="store_true", help="tell what only QEMU reads")
    args = parser.parse_args()
    for name in "qverity", "mutate", "keep", "fork_server":
        if getattr(args, name):
            setattr(args, name, os.path.abspath(getattr(args, name)))

    with tempfile.TemporaryDirectory(prefix="qverity-differential.", dir="/dev/shm") as work:
        seeds = os.path.abspath(args.seeds) if args.seeds else os.path.join(work, "seeds/qcow2")
        if not args.seeds:
            subprocess.run([os.path.join(top, "tests/fuzz/make-seeds.sh"), os.path.join(work, "seeds")],
                           env={**os.environ, "QVERITY": args.qverity}, check=True)
        counts, longest, largest, wrong = run_jobs(args, seeds, work)

    print(f"{args.count} images, {wrong} wrong")
    for what, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        print(f"{count:7} {what}")
    for what in sorted(longest):
        print(f"{what}: at most {longest[what]:.2f} s, {largest[what] / 1024:.0f} MiB")
    sys.exit(1 if wrong else 0)


main()
