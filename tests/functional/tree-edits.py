#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random changes to images and their tree files, with every tool that users have; after each, the root
hash that comes with the help of the tree file must be the one that comes without it, and every now and then
the one that veritysetup and a plain model in Python compute.

    tree-edits.py QVERITY SEED DIRECTORY SECONDS [STEPS]

Ends after so many seconds or, with STEPS, so many steps. What undetectable things there are
(docs/tree-file.md, docs/change-tracking.md) are left out; all else goes. Exits with 1, and the steps so far,
at the first difference; with 2 if one of the proofs was hardly ever used.
"""
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

qverity, seed, directory, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
steps_wanted = int(sys.argv[5]) if len(sys.argv) > 5 and sys.argv[5] else None
rnd = random.Random(seed)
os.chdir(directory)
MiB = 1 << 20
SIZE = 18 * MiB  # the smallest that is tracked has 16 MiB
PARTITIONS = [(63, 20001), (21000, 8000)]  # sectors
BITMAPS = ["qverity", "qverity-witness", "qverity-generation"]
is_root = os.geteuid() == 0
log = collections.deque(maxlen=120)
methods = collections.Counter()
deeds = collections.Counter()
reasons = collections.Counter()


class Wrong(Exception):
    pass


def run(*argv):
    log.append(" ".join(argv))
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=600)
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

def random_range():
    """Mostly in a few places, so that things are overwritten, and never the partition table."""
    length = 512 * rnd.choice([1, 1, 3, 8, 8, 128, 129, 256, 1024])
    at = rnd.choice([512, 63 * 512, 8 * MiB, 12 * MiB, SIZE - MiB, rnd.randrange(SIZE)]) + 512 * rnd.randrange(300)
    at = min(at // 512 * 512, SIZE - 512)
    return at, min(length, SIZE - at)


def qemu_commands(count):
    commands = []
    for _ in range(count):
        at, length = random_range()
        kind = rnd.choice([f"write -q -P {rnd.randrange(256)}", f"write -q -P {rnd.randrange(1, 256)}", "write -q -z",
                           "write -q -z -u", "discard -q"])
        commands += ["-c", f"{kind} {at} {length}"]
    return commands


def edit(image):
    run("qemu-io", "-f", "qcow2", *qemu_commands(rnd.choice([1, 1, 2, 5])), image)


def edit_much(image):
    """Many scattered granules, sometimes more than a quarter of the disk."""
    many = rnd.choice([20, 40, 60, 90])
    commands = []
    for granule in rnd.sample(range(1, SIZE >> 16), many):
        commands += ["-c", f"write -q -P {rnd.randrange(256)} {granule << 16} 4096"]
    run("qemu-io", "-f", "qcow2", *commands, image)


def resize(image):
    size = SIZE + rnd.choice([0, 0, -1, 1, 3]) * MiB + rnd.choice([0, 0, 512, 4096, 65536])
    run("qemu-img", "resize", "-q", "--shrink", image, str(size))
    if rnd.random() < 0.8:
        run("qemu-img", "resize", "-q", "--shrink", image, str(SIZE))


def snapshots(image):
    if rnd.random() < 0.4:
        run(qverity, "track", image, "off")
    run("qemu-img", "snapshot", rnd.choice(["-c", "-a", "-a", "-d"]), "s" + rnd.choice("ab"), image)


# --- Tracking ---

def track(image):
    run(qverity, "track", image, rnd.choice(["on", "on", "on", "off"]))


def bitmap_removed_and_added(image):
    name = rnd.choice(BITMAPS)
    run("qemu-img", "bitmap", "--remove", image, name)
    if rnd.random() < 0.7:
        edit(image)
    disabled = ["--disable"] if name == BITMAPS[2] else []
    run("qemu-img", "bitmap", "--add", *disabled, "-g", "64K", image, name)


def bitmap_cleared(image):
    edit(image)
    run("qemu-img", "bitmap", "--clear", image, rnd.choice(BITMAPS))


def bitmap_disabled(image):
    """For a while, or for good. Not both of the enabled ones by their names: nothing would tell."""
    name = rnd.choice(BITMAPS[:2])
    run("qemu-img", "bitmap", "--disable", image, name)
    edit(image)
    if rnd.random() < 0.7:
        run("qemu-img", "bitmap", "--enable", image, name)


def bitmap_merged(image):
    name, other = rnd.choice(BITMAPS), rnd.choice(BITMAPS)
    run("qemu-img", "bitmap", *rnd.choice([[], ["--clear"]]), "--merge", other, image, name)


def killed_writer(image):
    """A QEMU that dies leaves its bitmaps marked in use."""
    log.append(f"kill -9 qemu-io {image}")
    at, length = random_range()
    with subprocess.Popen(["qemu-io", "-f", "qcow2", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as writer:
        writer.stdin.write(b"write -P 7 %d %d\nflush\nsigraise 9\n" % (at, length))
        writer.stdin.close()
        writer.stdout.read()
    if rnd.random() < 0.8:
        run("qemu-img", "check", "-q", "-r", "all", image)


def killed(image):
    """hash, update and track that die at any moment."""
    argv = rnd.choice([["hash", *usual(image)], ["update", *usual(image)], ["update", *usual(image)], ["track"]])
    argv = [qverity, *argv, image] + (["on"] if argv == ["track"] else [])
    edit(image)
    log.append("kill -9 " + " ".join(argv))
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(rnd.random() * rnd.choice([0.02, 0.05, 0.3 if argv[1] == "track" else 0.05]))
        process.kill()
    # The programs that track runs go on to their end, and have the image locked until then.
    for _ in range(100):
        if run("qemu-io", "-f", "qcow2", "-c", "quit", image).returncode == 0:
            return
        log.pop()
        time.sleep(0.02)


# --- Chains ---

def overlay(image):
    name = f"over{rnd.randrange(5)}.qcow2"
    if name not in below(image) + [image] and not any(name in below(other) for other in images()):
        size = [] if rnd.random() < 0.9 else [str(SIZE + rnd.choice([-2, 2]) * MiB)]
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


def edit_overlay(image):
    """Of an overlay, one on top; the base gets a tree, and the one on top is looked at."""
    if not any(image in below(other) for other in images()):
        overlay(image)
    tops = [other for other in images() if image in below(other)]
    if tops:
        run(qverity, rnd.choice(["hash", "update"]), "-q", *usual(image), image)
        top = rnd.choice(tops)
        edit(top)
        if rnd.random() < 0.5 and os.path.exists(top + ".qvtree"):
            os.unlink(top + ".qvtree")
        check(top, usual(image))


def commit(image):
    """Not to an image that is taken for a raw one: its tables would be written over."""
    info = run("qemu-img", "info", "--output=json", image)
    if info.returncode != 0 or json.loads(info.stdout).get("backing-filename-format") == "raw":
        return
    run("qemu-img", "commit", "-q", image)


def rebase(image):
    other = rnd.choice(images())
    if image not in below(other) + [other]:
        run("qemu-img", "rebase", *rnd.choice([[], ["-u"]]), "-b", other, "-F", rnd.choice(["qcow2", "qcow2", "raw"]), image)


# --- A mount that is written to ---

def naive_root(data):
    """dm-verity with veritysetup's defaults, and 32 zero bytes of salt."""
    salt = bytes(32)
    digests = [hashlib.sha256(salt + data[i:i + 4096]).digest() for i in range(0, len(data), 4096)]
    while len(digests) > 1:
        digests = [hashlib.sha256(salt + b"".join(digests[i:i + 128]).ljust(4096, b"\0")).digest()
                   for i in range(0, len(digests), 128)]
    return digests[0].hex()


def check_mount(what):
    with open("mnt/disk", "rb") as disk, open("mnt/root-hash") as root:
        if naive_root(disk.read()) != root.read().strip():
            raise Wrong(f"the mount's root hash is wrong after {what}")


def edit_mount():
    fd = os.open("mnt/disk", os.O_RDWR)
    for _ in range(rnd.choice([1, 2, 8])):
        at, length = random_range()
        if rnd.random() < 0.75:
            os.pwrite(fd, bytes([rnd.randrange(256)]) * length, at)
        else:
            subprocess.run(["fallocate", "-p", "-o", str(at), "-l", str(length), "mnt/disk"], check=True)
    if rnd.random() < 0.5:
        os.fsync(fd)
    os.close(fd)


def edit_loop():
    """A file system in the mount's second partition, mounted by way of a loop device."""
    if run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "mnt/part2").returncode != 0:
        return
    if run("mount", "-o", "loop", "mnt/part2", "loop").returncode != 0:
        return
    try:
        for i in range(rnd.randrange(1, 8)):
            with open(f"loop/{i}", "wb") as file:
                file.write(rnd.randbytes(rnd.choice([1, 5000, 100000])))
        os.sync()
        check_mount("writes through a loop device")
    finally:
        run("umount", "loop")


def unmount(server):
    """Whoever copied our mounts into a namespace of its own, as other tests do, may keep a loop device, and so the
    mount, busy for a while, or for good."""
    for _ in range(50):
        if run("fusermount3", "-u", "mnt").returncode == 0:
            break
        for _ in range(2):
            log.pop()  # the command, and what it said
        time.sleep(0.1)
    else:
        run("fusermount3", "-u", "-z", "mnt")
    try:
        server.wait(timeout=60)
    except subprocess.TimeoutExpired:
        log.append("kill -9 the mount, which is busy")
        server.kill()
        server.wait()


def mount(image):
    """Writes go to an overlay, whose bytes are then those of an image like any other."""
    name = f"mounted{rnd.randrange(3)}.qcow2"
    if os.path.getsize(image) < 1024 or name in below(image) + [image] or any(name in below(o) for o in images()):
        return
    if os.path.exists(name) and below(name)[:1] != [image]:
        os.unlink(name)
    log.append(f"mount --overlay {name} {image}")
    server = subprocess.Popen([qverity, "mount", "-f", "-p", "disk", "--overlay", name, image, "mnt"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not os.path.exists("mnt/disk") and server.poll() is None:
        time.sleep(0.01)
    if server.poll() is not None:
        log.append("    " + server.stdout.read().decode()[-200:])
        return
    try:
        if rnd.random() < 0.3:
            check_mount("no edit")
        for _ in range(rnd.choice([1, 1, 3])):
            if os.path.getsize("mnt/disk") % 4096 == 0 and os.path.getsize("mnt/disk") >= SIZE:
                edit_mount()
                check_mount("writes")
                if is_root and rnd.random() < 0.3 and os.path.exists("mnt/part2"):
                    edit_loop()
                    check_mount("an unmount")
    finally:
        if rnd.random() < 0.2:
            log.append("kill -9 the mount")
            server.send_signal(signal.SIGKILL)
            server.wait()
        unmount(server)
    if run("qemu-img", "check", "-q", name).returncode not in (0, 3):
        raise Wrong(f"qemu-img check finds errors in {name}")
    check(name, ["-p", "disk"])


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


DEEDS = [(edit, 80), (edit_much, 4), (edit_overlay, 25), (track, 3), (resize, 2), (snapshots, 2),
         (bitmap_removed_and_added, 1.5), (bitmap_cleared, 1.5), (bitmap_disabled, 3), (bitmap_merged, 1.5), (killed_writer, 1),
         (killed, 4), (overlay, 5), (commit, 2), (rebase, 1.5), (mount, 5), (touch, 4), (backup, 5), (restore, 4),
         (other_image, 1), (other_tree, 2), (flip_bit, 4), (truncate, 1.5)]


# --- Checking ---

def usual(image):
    """Each image has its own usual options: deep trees, partitions that begin anywhere. Its name tells, but
    for overlays, which have those of what is below."""
    chain = [image] + below(image)
    return [["-p", "disk"], ["-p", "1"], ["-p", "disk", "--data-block-size", "512", "--hash-block-size", "512"],
            ["-p", "1", "--data-block-size", "512", "--hash-block-size", "1024"]][sum(chain[-1].encode()) % 4]


def unusual():
    return ["-p", pick([("disk", 16), ("1", 3), ("2", 1)])] + pick(
        [([], 16), (["--salt", "ab"], 1), (["--data-block-size", "512", "--hash-block-size", "512"], 3),
         (["--data-block-size", "1024", "--hash", "sha512"], 1), (["--data-blocks", "3000"], 1)])


def check(image, chosen):
    """hash or update, with the tree file, against a computation without."""
    without = run(qverity, "hash", "--json", "--no-tree", *chosen, image)
    keep = pick([([], 12), (["--lean"], 1), (["--rescan"], 0.3), (["--tree", "shared.qvtree"], 0.7)])
    done = run(qverity, pick([("hash", 2), ("update", 3)]), "--json", *keep, *chosen, image)
    if done.returncode != without.returncode:
        raise Wrong("exits differ: %s %s" % (without.stderr.decode(), done.stderr.decode()))
    if done.returncode != 0:
        methods["failed"] += 1
        return
    expected, got = json.loads(without.stdout), json.loads(done.stdout)
    methods[got["method"]] += 1
    log.append("    %s %s" % (got["method"], got.get("reason")))
    if got["method"] == "full" and "reason" in got:
        reasons[got["reason"].split("; ")[-1].split(": ")[0]] += 1
    if expected["root_hash"] != got["root_hash"]:
        raise Wrong("the root hashes differ")
    if got["zero_blocks"] is not None and got["zero_blocks"] != expected["zero_blocks"]:
        raise Wrong("the numbers of zero blocks differ: %r instead of %r" % (got["zero_blocks"], expected["zero_blocks"]))
    if done.stderr and b"warning" not in done.stderr:
        raise Wrong("it says: " + done.stderr.decode())


def check_independently(image):
    """The whole disk as QEMU reads it, against veritysetup and the model in Python."""
    if run("qemu-img", "convert", "-O", "raw", image, "raw").returncode != 0 or os.path.getsize("raw") % 4096:
        return
    done = run(qverity, "update", "--json", "-p", "disk", image)
    if done.returncode != 0:
        raise Wrong("what QEMU reads is refused: " + done.stderr.decode())
    got = json.loads(done.stdout)
    run("veritysetup", "format", "--salt", "0" * 64, "--root-hash-file", "root", "raw", "hashes")
    with open("root") as file:
        if file.read().strip() != got["root_hash"]:
            raise Wrong("veritysetup says another root hash")
    with open("raw", "rb") as file:
        if naive_root(file.read()) != got["root_hash"]:
            raise Wrong("the model says another root hash")
    methods["veritysetup agrees"] += 1


def prepare():
    for name in ("backup", "mnt", "loop"):
        os.mkdir(name)
    table = bytearray(512)
    table[510:] = b"\x55\xaa"
    for i, (start, length) in enumerate(PARTITIONS):
        table[446 + 16 * i:462 + 16 * i] = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", start, length)
    with open("table", "wb") as file:
        file.write(table)
    for name in ("base.qcow2", "second.qcow2"):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", name, str(SIZE)], check=True)
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -s table 0 512", "-c", "write -q -P 5 1M 3M",
                        "-c", "write -q -P 6 9M 2M", name], check=True)
    shutil.copy("base.qcow2", "twin.qcow2")


def step(current):
    deed = None
    for _ in range(rnd.choice([1, 1, 1, 2, 3])):
        deed = pick(DEEDS)
        deeds[deed.__name__] += 1
        deed(current)
    check(current, usual(current) if rnd.random() < 0.95 else unusual())
    # Most of what was done above ends tracking; without it there would be little to learn.
    if rnd.random() < 0.25:
        run(qverity, "track", current, "on")
        if rnd.random() < 0.7:
            run(qverity, "update", *usual(current), current)


def main():
    prepare()
    current = "base.qcow2"
    end = time.monotonic() + seconds
    steps = 0
    while steps < steps_wanted if steps_wanted else time.monotonic() < end:
        steps += 1
        # Several things to one image before it is another one's turn.
        if rnd.random() < 0.12 or current not in images():
            current = rnd.choice(images())
        log.append(f"--- {steps}")
        try:
            step(current)
            if steps % 20 == 0:
                check_independently(current)
        except Wrong as wrong:
            print(f"step {steps}, {current}: {wrong}")
            print("\n".join(log))
            return 1
    print(steps, "steps:", *(f"{name} {count}," for name, count in sorted(methods.items())))
    print(*(f"{name} {count}," for name, count in sorted(deeds.items())))
    print("full:", *(f"{name} {count}," for name, count in reasons.most_common(12)))
    return 0 if all(methods[name] >= steps // 20 for name in ("bitmap", "unchanged", "full", "overlay")) else 2


sys.exit(main())
