# SPDX-License-Identifier: MIT
"""Trees of files for the tests of ls, cat, stat and cp.

    files_tree.py make DIR [BLOCK_SIZE]
        makes a tree with what is special to ext file systems
    files_tree.py compare A B [--times|--seconds] [--sparse]
        tells where two trees differ: names, types, permissions (without set-user-ID and the like), links'
        targets and bytes; with --times, times of change, too, with --seconds as far as mke2fs keeps them
        (32 bits of seconds); with --sparse, B must not take much more room than A. Device nodes, fifos
        and sockets of A must be missing in B.
    files_tree.py listing DIR [--seconds]
        reads what `qverity ls -R --json IMAGE:/` printed and tells where it differs from a tree
"""
import json
import os
import random
import stat
import sys


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def sparse(path, size, pieces):
    """A file of `size` bytes with data at some offsets."""
    with open(path, "wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(size)


def make(top, block_size=4096):
    top = os.fsencode(top)
    rnd = random.Random(5)
    join = os.path.join

    os.makedirs(join(top, b"sizes"))
    # Around what fits into an inode, into its direct blocks, and into a block of pointers.
    pointers = block_size // 4
    for size in {0, 1, 59, 60, 61, 100, 150, 160, 200, block_size - 1, block_size, block_size + 1,
                 12 * block_size, 13 * block_size, (12 + pointers) * block_size + 1}:
        if size <= 5 << 20:
            write(join(top, b"sizes/%d" % size), rnd.randbytes(size))

    os.makedirs(join(top, b"sparse"))
    tail = rnd.randbytes(5000)
    sparse(join(top, b"sparse/hole"), 10 << 20, [])
    sparse(join(top, b"sparse/end"), (4 << 30) + 777, [(4 << 30, rnd.randbytes(777))])
    sparse(join(top, b"sparse/start"), 3 << 30, [(0, tail)])
    sparse(join(top, b"sparse/middle"), 300 << 20, [(150 << 20, tail), ((150 << 20) + 3 * 65536, tail)])
    # More extents than a block of them holds, and a third level of indirect blocks if blocks are small.
    sparse(join(top, b"sparse/many"), 0x3000000,
           [(i * 65536, rnd.randbytes(1 + i % 100)) for i in range(700)])

    os.makedirs(join(top, b"links/deep/er"))
    write(join(top, b"links/target"), b"the target\n")
    for name, target in [(b"relative", b"target"), (b"absolute", b"/links/target"),
                         (b"up", b"../../../links/./deep/../target"), (b"directory", b"deep"),
                         (b"dangling", b"nowhere"), (b"loop", b"loop"), (b"a", b"b"), (b"b", b"a"),
                         (b"outside", b"/etc/passwd"), (b"twice", b"absolute"),
                         (b"deep/er/back", b"../../directory/../relative"),
                         (b"59", b"y" * 59), (b"60", b"y" * 60), (b"61", b"y" * 61),
                         (b"1000", b"long/../" * 125), (b"odd", b"\x1b[31m\n\xff")]:
        os.symlink(target, join(top, b"links", name))
    os.link(join(top, b"links/target"), join(top, b"links/hard"))

    os.makedirs(join(top, b"names"))
    for name in [b"a b", b"new\nline", b"escape\x1b[31m", b"\xff\xfe", "gr\u00fc\u00df".encode(),
                 b"back\\slash", b"-rf", b"*", b".hidden", b"...", b"n" * 255, b"colon:", b"\x7f",
                 b"tab\t", b" ", b"'\"$(x)`"]:
        write(join(top, b"names", name), name)
    os.makedirs(join(top, b"names/x:/y"))
    write(join(top, b"names/x:/y/z"), b"colon and slash")

    os.makedirs(join(top, b"many"))
    for i in range(1200):
        write(join(top, b"many/file-%d-%s" % (i, b"x" * (i % 50))), b"")

    os.makedirs(join(top, b"modes"))
    for mode in [0o000, 0o400, 0o644, 0o755, 0o777, 0o4755, 0o2755, 0o1644]:
        path = join(top, b"modes/%04o" % mode)
        write(path, b"x")
        os.chmod(path, mode)
    os.makedirs(join(top, b"modes/sticky"))
    os.chmod(join(top, b"modes/sticky"), 0o1777)
    os.mkfifo(join(top, b"modes/fifo"))

    for i in range(60):
        os.makedirs(join(top, b"nested/" + b"d/" * i), exist_ok=True)
    write(join(top, b"nested/" + b"d/" * 59 + b"file"), b"deep down")

    os.makedirs(join(top, b"attributes"))
    write(join(top, b"attributes/file"), b"a" * 70)
    try:
        os.setxattr(join(top, b"attributes/file"), "user.small", b"value")
        os.setxattr(join(top, b"attributes/file"), "user.large", b"v" * 300)
        os.setxattr(join(top, b"attributes"), "user.directory", b"value")
    except OSError:
        pass

    times = [0, 1, 999999999, 1234567890123456789, 4000000000 * 10**9 + 7, -5 * 10**9]
    for directory, directories, names in os.walk(top, topdown=False):
        for name in names + directories:
            when = times[hash_name(name) % len(times)]
            os.utime(join(directory, name), ns=(when, when), follow_symlinks=False)


def hash_name(name):
    return sum(name) * 7 + len(name)


def kind(st):
    return stat.S_IFMT(st.st_mode)


def content_differs(a, b):
    with open(a, "rb") as left, open(b, "rb") as right:
        while True:
            # Holes are many.
            try:
                at = left.tell()
                data = os.lseek(left.fileno(), at, os.SEEK_DATA)
            except OSError:
                data = os.fstat(left.fileno()).st_size
            if data > at and all_zeros(right, at, data):
                left.seek(data)
                right.seek(data)
            one, two = left.read(1 << 20), right.read(1 << 20)
            if one != two:
                return True
            if not one:
                return False


def all_zeros(file, start, end):
    """Whether a range is a hole, or zeros."""
    while start < end:
        try:
            data = os.lseek(file.fileno(), start, os.SEEK_DATA)
        except OSError:
            return True
        if data >= end:
            return True
        file.seek(data)
        chunk = file.read(min(1 << 20, end - data))
        if chunk.count(0) != len(chunk) or not chunk:
            return False
        start = data + len(chunk)
    return True


def cut_time(ns):
    """A time as mke2fs keeps it."""
    return ((ns // 10**9 + (1 << 31)) % (1 << 32) - (1 << 31)) * 10**9


def compare(a, b, times, seconds, room):
    a, b = os.fsencode(a), os.fsencode(b)
    problems = 0

    def differ(path, what):
        nonlocal problems
        problems += 1
        if problems < 20:
            print(f"{path!r}: {what}")

    seen = set()
    for directory, directories, names in os.walk(a):
        for name in names + directories + ([b"."] if directory == a else []):
            left = os.path.join(directory, name)
            relative = os.path.relpath(left, a)
            right = os.path.join(b, relative)
            x = os.lstat(left)
            seen.add(relative)
            if not os.path.lexists(right):
                if kind(x) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                    differ(relative, "missing")
                continue
            y = os.lstat(right)
            if kind(x) != kind(y):
                differ(relative, "type %o is now %o" % (kind(x), kind(y)))
                continue
            if kind(x) == stat.S_IFLNK:
                if os.readlink(left) != os.readlink(right):
                    differ(relative, "another target")
            elif x.st_mode & 0o777 != y.st_mode & 0o7777:
                differ(relative, "mode %o is now %o" % (x.st_mode, y.st_mode))
            if kind(x) == stat.S_IFREG:
                if x.st_size != y.st_size:
                    differ(relative, f"size {x.st_size} is now {y.st_size}")
                elif content_differs(left, right):
                    differ(relative, "other bytes")
                # Blocks may be larger here.
                if room and y.st_blocks > 4 * x.st_blocks + 256:
                    differ(relative, f"{x.st_blocks} blocks are now {y.st_blocks}")
            expected = cut_time(x.st_mtime_ns) if seconds else x.st_mtime_ns
            # mke2fs gives the root another.
            if (times or seconds and relative != b".") and expected != y.st_mtime_ns:
                differ(relative, f"time {x.st_mtime_ns} is now {y.st_mtime_ns}")
    for directory, directories, names in os.walk(b):
        for name in names + directories:
            relative = os.path.relpath(os.path.join(directory, name), b)
            if relative not in seen and relative != b"lost+found":
                differ(relative, "too much")
    return problems


def listing(top, seconds):
    top = os.fsencode(top)
    entries = json.load(sys.stdin)["entries"]
    listed = {}
    for e in entries:
        path = bytes.fromhex(e["path_hex"]) if "path_hex" in e else os.fsencode(e["path"])
        if path in listed:
            print(f"{path!r} is listed twice")
            return 1
        listed[path] = e
    problems = 0
    for directory, directories, names in os.walk(top):
        for name in names + directories:
            real = os.path.join(directory, name)
            path = real[len(top):]
            st = os.lstat(real)
            e = listed.pop(path, None)
            if e is None:
                print(f"{path!r} is not listed")
                problems += 1
                continue
            target = None
            if kind(st) == stat.S_IFLNK:
                target = os.readlink(real)
                got = bytes.fromhex(e["target_hex"]) if "target_hex" in e else os.fsencode(e["target"])
                if got != target:
                    print(f"{path!r}: target {got!r}, not {target!r}")
                    problems += 1
            when = cut_time(st.st_mtime_ns) if seconds else st.st_mtime_ns
            pairs = {"mode": st.st_mode, "uid": st.st_uid, "gid": st.st_gid,
                     "mtime": when // 10**9, "mtime_nsec": when % 10**9}
            if kind(st) == stat.S_IFREG:
                pairs["size"] = st.st_size
                pairs["links"] = st.st_nlink
            for key, value in pairs.items():
                if e[key] != value:
                    print(f"{path!r}: {key} is {e[key]}, not {value}")
                    problems += 1
    listed.pop(b"/lost+found", None)
    for path in listed:
        print(f"{path!r} is not there")
        problems += 1
    return problems


def main():
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "make":
        make(arguments[0], int((arguments[1:] + ["4096"])[0]))
    elif command == "compare":
        sys.exit(compare(arguments[0], arguments[1], "--times" in arguments, "--seconds" in arguments,
                         "--sparse" in arguments) > 0)
    elif command == "listing":
        sys.exit(listing(arguments[0], "--seconds" in arguments) > 0)
    else:
        sys.exit(2)


main()
