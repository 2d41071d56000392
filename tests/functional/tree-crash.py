#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""kill -9 at random moments of hash, update and track: the next run must print the right root hash, and qemu-img
check must find no errors.

    tree-crash.py QVERITY SEED DIRECTORY KILLS SECONDS

Ends after so many kills, or so many seconds. Prints how many there were, and how far the programs had come.
"""
import collections
import os
import random
import subprocess
import sys
import time

qverity, seed, directory, kills, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
rnd = random.Random(seed)
os.chdir(directory)
OPTIONS = ["-p", "disk"]
came_to = collections.Counter()


def run(*argv):
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=600)


def root(*argv):
    done = run(qverity, *argv)
    if done.returncode != 0:
        sys.exit(f"{argv}: {done.stderr.decode()}")
    return done.stdout.decode().split()[-1]


def edit(image):
    count = rnd.choice([1, 1, 4])
    commands = []
    for _ in range(count):
        commands += ["-c", f"write -q -P {rnd.randrange(256)} {rnd.randrange(0, 60 << 20) // 512 * 512} {rnd.choice([512, 65536, 1 << 20])}"]
    run("qemu-io", "-f", "qcow2", *commands, image)


def locked(image):
    return run("qemu-io", "-f", "qcow2", "-c", "quit", image).returncode != 0


def start_and_kill(argv, longest):
    """At any moment of its run, whose length is known about; some are through by then."""
    start = time.monotonic()
    with subprocess.Popen([qverity, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        delay = rnd.random() * longest[argv[0]] * 1.1
        try:
            process.wait(timeout=delay)
            longest[argv[0]] = 0.8 * longest[argv[0]] + 0.2 * (time.monotonic() - start)
            came_to[argv[0] + " to its end"] += 1
            return False
        except subprocess.TimeoutExpired:
            process.kill()
            longest[argv[0]] *= 1.01
            came_to[argv[0]] += 1
            return True


def files():
    return sorted(os.listdir("."))


def main():
    run("qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "64M")
    run("qemu-io", "-f", "qcow2", "-c", "write -q -P 3 1M 24M", "a.qcow2")
    run(qverity, "track", "a.qcow2", "on")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "over.qcow2")
    longest = {"hash": 0.03, "update": 0.05, "track": 0.4}
    end = time.monotonic() + seconds
    killed = 0
    while killed < kills and time.monotonic() < end:
        image = rnd.choice(["a.qcow2", "a.qcow2", "a.qcow2", "over.qcow2"])
        command = rnd.choices(["hash", "update", "track"], [30, 60, 5])[0]
        if rnd.random() < 0.7:
            edit(image)
        if rnd.random() < 0.15 and os.path.exists(image + ".qvtree"):
            os.unlink(image + ".qvtree")
        if command == "track":
            argv = ["track", image, rnd.choice(["on", "on", "off"])]
        else:
            argv = [command, *rnd.choice([[], [], ["--lean"], ["--threads", "1"]]), *OPTIONS, image]
        if not start_and_kill(argv, longest):
            continue
        killed += 1
        while locked(image):  # what track runs goes on to its end
            time.sleep(0.01)
        expected = root("hash", "--no-tree", *OPTIONS, image)
        # Either of them may be the one that meets what the crash left.
        got = tuple(root(command, *OPTIONS, image) for command in rnd.sample(["hash", "update"], 2))
        if got != (expected, expected):
            sys.exit(f"kill {killed}, {argv}: {got}, expected {expected}")
        if killed % 25 == 0:
            if run("qemu-img", "check", "-q", "a.qcow2").returncode not in (0, 3):
                sys.exit(f"kill {killed}, {argv}: qemu-img check finds errors")
            run("qemu-img", "convert", "-O", "raw", image, "raw")
            run("veritysetup", "format", "--salt", "0" * 64, "--root-hash-file", "root", "raw", "hashes")
            with open("root") as file:
                if file.read().strip() != expected:
                    sys.exit(f"kill {killed}: veritysetup says another root hash")
        if rnd.random() < 0.1:
            root("update", *OPTIONS, "a.qcow2")
            run(qverity, "track", "a.qcow2", "on")
    left = [name for name in files() if ".qvtree." in name]
    if len(left) > killed // 50 + 1:
        sys.exit(f"files are left behind: {left}")
    print(killed, "kills:", *(f"{name} {count}," for name, count in sorted(came_to.items())))


main()
