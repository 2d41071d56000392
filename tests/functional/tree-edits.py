#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random changes to images and their tree files, with every tool that users have; after each, the root
hash that comes with the help of the tree file must be the one that comes without.

    tree-edits.py QVERITY SEED SECONDS DIRECTORY

What undetectable things there are (docs/tree-file.md, docs/change-tracking.md: a bitmap that is disabled,
written past and enabled again) are left out; all else goes. Exits with 1, and the steps so far, at the first
difference.
"""
import collections
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time

qverity, seed, seconds, directory = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
rnd = random.Random(seed)
os.chdir(directory)
MiB = 1 << 20
SIZE = 40 * MiB
log = []
methods = collections.Counter()
deeds = collections.Counter()


def run(*argv):
    log.append(" ".join(argv))
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    if done.returncode != 0:
        log.append(f"    exit {done.returncode}: {done.stderr.decode(errors='replace').strip()[-200:]}")
    return done


def images():
    return sorted(name for name in os.listdir(".") if name.endswith(".qcow2"))


def trees():
    return sorted(name for name in os.listdir(".") if name.endswith(".qvtree"))


def pick(weights):
    return rnd.choices([k for k, _ in weights], [w for _, w in weights])[0]


# --- Changes of the disk ---

def qemu_commands(count):
    commands = []
    for _ in range(count):
        length = 512 * rnd.choice([1, 1, 3, 8, 8, 128, 129, 256, 2048])
        # Mostly in a few places, so that things are overwritten, and never the partition table.
        at = rnd.choice([512, 63 * 512, 20 * MiB, 30 * MiB, SIZE - 2 * MiB, rnd.randrange(SIZE)]) + 512 * rnd.randrange(300)
        at = at // 512 * 512
        kind = rnd.choice([f"write -q -P {rnd.randrange(256)}", f"write -q -P {rnd.randrange(1, 256)}", "write -q -z",
                           "write -q -z -u", "discard -q"])
        commands += ["-c", f"{kind} {at} {length}"]
    return commands


def edit(image):
    run("qemu-io", "-f", "qcow2", *qemu_commands(rnd.choice([1, 1, 2, 5])), image)


def resize(image):
    size = SIZE + rnd.choice([0, 0, -1, 1, 7]) * MiB + rnd.choice([0, 0, 512, 4096, 65536])
    run("qemu-img", "resize", "-q", "--shrink", image, str(size))
    if rnd.random() < 0.7:
        run("qemu-img", "resize", "-q", "--shrink", image, str(SIZE))


def snapshots(image):
    if rnd.random() < 0.4:
        run(qverity, "track", image, "off")
    run("qemu-img", "snapshot", rnd.choice(["-c", "-a", "-a", "-d"]), "s" + rnd.choice("ab"), image)


# --- Tracking ---

def track(image):
    run(qverity, "track", image, rnd.choice(["on", "on", "off"]))


def bitmap_removed_and_added(image):
    run("qemu-img", "bitmap", "--remove", image, "qverity")
    if rnd.random() < 0.7:
        edit(image)
    run("qemu-img", "bitmap", "--add", "-g", "64K", image, "qverity")


def bitmap_cleared(image):
    edit(image)
    run("qemu-img", "bitmap", "--clear", image, "qverity")


def bitmap_disabled(image):
    run("qemu-img", "bitmap", "--disable", image, "qverity")
    edit(image)


def killed_writer(image):
    """A QEMU that dies leaves its bitmaps marked in use."""
    log.append(f"kill -9 qemu-io {image}")
    writer = subprocess.Popen(["qemu-io", "-f", "qcow2", image], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    writer.stdin.write(b"write -q -P 7 20M 64k\nflush\n")
    writer.stdin.flush()
    time.sleep(0.2)
    writer.kill()
    writer.wait()
    run("qemu-img", "check", "-q", "-r", "all", image)


# --- Chains ---

def overlay(image):
    name = f"over{rnd.randrange(4)}.qcow2"
    if name not in below(image) + [image] and not any(name in below(other) for other in images()):
        size = [] if rnd.random() < 0.8 else [str(SIZE + rnd.choice([-5, 5]) * MiB)]
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", name, *size)


def below(image):
    """The backing files' names, as far as they can be told."""
    names = []
    while image and os.path.exists(image) and len(names) < 10:
        with open(image, "rb") as file:
            head = file.read(20)
            if head[:4] != b"QFI\xfb":
                break
            offset, length = struct.unpack(">QI", head[8:20])
            file.seek(offset)
            image = file.read(length).decode() if offset else None
        if image:
            names.append(image)
    return names


def commit(image):
    run("qemu-img", "commit", "-q", image)


def rebase(image):
    other = rnd.choice(images())
    if image not in below(other) + [other]:
        run("qemu-img", "rebase", "-u", "-b", other, "-F", rnd.choice(["qcow2", "qcow2", "raw"]), image)


# --- Files ---

def touch(image):
    log.append(f"touch {image}")
    if rnd.random() < 0.5:
        os.utime(image)
    else:
        st = os.stat(image)
        os.utime(image, ns=(st.st_atime_ns, st.st_mtime_ns))


def copy(source, target):
    """One of the ways in which a file comes to hold what another one does."""
    how = rnd.choice(["over", "over, old mtime", "new", "new, old mtime", "rename"])
    log.append(f"copy {source} {target}: {how}")
    old = os.stat(target) if os.path.exists(target) else None
    times = old or os.stat(source)
    if how.startswith("new") and old:
        os.unlink(target)
    if how == "rename":
        shutil.copyfile(source, ".renamed")
        os.rename(".renamed", target)
    else:
        shutil.copyfile(source, target)
    if how.endswith("old mtime"):
        times = rnd.choice([times, os.stat(source)])
        os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def backup(image):
    for name in (image, image + ".qvtree"):
        if os.path.exists(name):
            shutil.copy2(name, "backup/" + name)
            log.append(f"cp -p {name} backup/{name}")


def restore(image):
    which = rnd.choice([(1, 0), (1, 0), (0, 1), (1, 1)])
    for wanted, name in zip(which, (image, image + ".qvtree")):
        if wanted and os.path.exists("backup/" + name):
            copy("backup/" + name, name)


def other_image(image):
    """The image's place is taken by another one; not so that the chain becomes a circle."""
    other = rnd.choice(images())
    if other != image and image not in below(other):
        copy(other, image)


# --- Tree files ---

def other_tree(_):
    if trees():
        source, target = rnd.choice(trees()), rnd.choice(images()) + ".qvtree"
        if source != target:
            copy(source, target)


def flip_bit(_):
    if not trees():
        return
    name = rnd.choice(trees())
    size = os.path.getsize(name)
    if size == 0:
        return
    at = rnd.choice([rnd.randrange(size), rnd.randrange(min(size, 32768)), size - 1 - rnd.randrange(min(size, 4096)),
                     16384 * rnd.randrange(2) + rnd.randrange(2500)])
    if at >= size:
        return
    log.append(f"flip a bit of byte {at} of {name}")
    with open(name, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << rnd.randrange(8)]))


def truncate(_):
    if trees():
        name = rnd.choice(trees())
        size = rnd.choice([0, 100, 16384, 20000, 32768, 36864, max(os.path.getsize(name) - 4096, 0)])
        log.append(f"truncate {name} to {size}")
        os.truncate(name, size)


DEEDS = [(edit, 60), (track, 3), (resize, 3), (snapshots, 4), (bitmap_removed_and_added, 2), (bitmap_cleared, 2),
         (bitmap_disabled, 0.5), (killed_writer, 0.5), (overlay, 4), (commit, 2), (rebase, 2), (touch, 3), (backup, 8),
         (restore, 9), (other_image, 1), (other_tree, 2), (flip_bit, 4), (truncate, 2)]


# --- Checking ---

def options():
    """Mostly the same ones, or no tree file would ever be good for anything."""
    chosen = ["-p", pick([("disk", 16), ("1", 3), ("2", 1)])]
    chosen += pick([([], 16), (["--salt", "ab"], 1), (["--data-block-size", "512", "--hash-block-size", "512"], 3),
                    (["--data-block-size", "1024", "--hash", "sha512"], 1), (["--data-blocks", "3000"], 1)])
    return chosen


def usual(image):
    """Each image has its own usual options: deep trees, partitions that begin anywhere."""
    return [["-p", "disk"], ["-p", "1"], ["-p", "disk", "--data-block-size", "512", "--hash-block-size", "512"],
            ["-p", "1", "--data-block-size", "512", "--hash-block-size", "1024"]][sum(image.encode()) % 4]


def check(image):
    chosen = usual(image) if rnd.random() < 0.92 else options()
    without = run(qverity, "hash", "--json", "--no-tree", *chosen, image)
    log.pop()
    if without.returncode != 0:
        log.pop()
    keep = pick([([], 8), (["--lean"], 1), (["--rescan"], 0.3), (["--tree", "shared.qvtree"], 1)])
    done = run(qverity, pick([("hash", 2), ("update", 3)]), "--json", *keep, *chosen, image)
    if done.returncode != without.returncode:
        return "exits differ: %s %s" % (without.stderr.decode(), done.stderr.decode())
    if done.returncode != 0:
        methods["failed"] += 1
        return None
    expected, got = json.loads(without.stdout), json.loads(done.stdout)
    methods[got["method"]] += 1
    log.append("    %s %s" % (got["method"], got.get("reason", "")))
    if expected["root_hash"] != got["root_hash"]:
        return "the root hashes differ"
    if got["zero_blocks"] is not None and got["zero_blocks"] != expected["zero_blocks"]:
        return "the numbers of zero blocks differ: %r instead of %r" % (got["zero_blocks"], expected["zero_blocks"])
    if done.stderr and b"warning" not in done.stderr:
        return "it says: " + done.stderr.decode()
    return None


def check_independently(image):
    """The whole disk against veritysetup."""
    if run("qemu-img", "convert", "-O", "raw", image, "raw").returncode != 0 or os.path.getsize("raw") % 4096:
        return None
    done = run("veritysetup", "format", "--salt", "0" * 64, "--root-hash-file", "root", "raw", "hashes")
    got = json.loads(run(qverity, "update", "--json", "-p", "disk", image).stdout)
    with open("root") as file:
        if file.read().strip() != got["root_hash"]:
            return "veritysetup says another root hash: " + done.stdout.decode()
    methods["veritysetup agrees"] += 1
    return None


def main():
    os.mkdir("backup")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", str(SIZE)], check=True)
    table = bytearray(512)
    table[510:] = b"\x55\xaa"
    for i, (start, length) in enumerate([(63, 60001), (61000, 8000)]):
        table[446 + 16 * i:462 + 16 * i] = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", start, length)
    with open("table", "wb") as file:
        file.write(table)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -s table 0 512", "-c", "write -q -P 5 1M 3M",
                    "-c", "write -q -P 6 19M 2M", "base.qcow2"], check=True)
    shutil.copy("base.qcow2", "twin.qcow2")
    current = "base.qcow2"
    end = time.monotonic() + seconds
    steps = 0
    while time.monotonic() < end:
        steps += 1
        # Several things to one image before it is another one's turn.
        if rnd.random() < 0.2 or current not in images():
            current = rnd.choice(images())
        log.append(f"--- {steps}")
        for _ in range(rnd.choice([1, 1, 1, 2, 3])):
            deed = pick(DEEDS)
            deeds[deed.__name__] += 1
            deed(current)
        wrong = check(current)
        if wrong is None and rnd.random() < 0.15:
            run(qverity, "track", current, "on")
            run(qverity, "update", *usual(current), current)
        if wrong is None and steps % 20 == 0:
            wrong = check_independently(current)
        if wrong:
            print(f"step {steps}, {current}: {wrong}")
            print("\n".join(log[-80:]))
            return 1
    print(steps, "steps:", *(f"{name} {count}," for name, count in sorted(methods.items())))
    print(*(f"{name} {count}," for name, count in sorted(deeds.items())))
    return 0 if {"bitmap", "unchanged", "full", "overlay"} <= set(methods) else 2


sys.exit(main())
