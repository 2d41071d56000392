#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Measures copying files out of an image beside a loop mount and cp.
#
#     tests/bench/cp.sh [OPTION…]
#
# Parts: cp. Needs hyperfine, qemu-utils, e2fsprogs, python3, root for the loop mount, and 2.5 GB of memory.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

rounds=7
options "$@"
need hyperfine qemu-img mke2fs python3 mount umount
[ "$(id -u)" -eq 0 ] || { echo "cp.sh: only root can mount the peer" >&2; exit 77; }

export how='An ext4 file system with 3000 files of 1 KiB to 1 MiB and four of 64 MiB, 870 MiB in all, which lies in the page
cache, is copied to a tmpfs: by `qverity cp -r`, and by root, who mounts the raw image with `-o loop,ro`, copies with
`cp -r`, and unmounts, all of which counts. The copies are compared before anything is timed.'

make_files()
{
    local tree=$BENCH_WORK/tree
    python3 - "$tree" <<'PY'
import os, random, sys

rng = random.Random(1)
top = sys.argv[1]
for i in range(3000):
    directory = f"{top}/{i % 60:02}/{i % 7}"
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/{i}", "wb") as file:
        file.write(rng.randbytes(int(1024 * 1024 ** rng.random())))
for i in range(4):
    with open(f"{top}/large-{i}", "wb") as file:
        file.write(rng.randbytes(64 << 20))
PY
    mke2fs -q -t ext4 -d "$tree" "$1" 1536M
    rm -rf "$tree"
}

image files.raw make_files
image files.qcow2 qcow2_of "$images/files.raw"
images_ready
ln -s "$images"/files.* .
mkdir mnt
memory=$(mktemp -d /dev/shm/qverity-bench.XXXXXX)
stop()
{
    umount mnt 2>/dev/null || true
    rm -rf "$memory"
}

cat >loop <<'END'
mount -o loop,ro files.raw mnt
cp -r mnt "$1"
umount mnt
END
loop="bash -e loop $memory/loop"
ours() { echo "$qverity cp -q -r -p disk files.$1:/ $memory/$1"; }

echo "comparing copies"
$loop
for kind in raw qcow2; do
    mkdir "$memory/$kind"
    read -ra command <<<"$(ours $kind)"
    "${command[@]}"
    [ -d "$memory/$kind/00" ] || die "where did qverity cp put the files?"
    diff -r "$memory/loop" "$memory/$kind" || die "qverity cp copies other files than cp"
done

if wanted cp; then
    echo "cp, $rounds rounds"
    hot files.raw files.qcow2
    before="rm -rf $memory/loop $memory/raw $memory/qcow2"
    part cp
    take_turns loop "$loop" raw "$(ours raw)" qcow2 "$(ours qcow2)"
    end_part
    save "$rounds" <<'PY'
import os, sys
import results

part = results.Part(int(sys.argv[1]), {"cp": results.version("cp", "--version"),
                                       "qemu-img": results.version("qemu-img", "--version")})
t = results.times()
for kind in "raw", "qcow2":
    part.compare(f"`cp -r` of 3004 files, 870 MiB, from a {kind} image", t[kind], "loop mount of raw, cp -r", t["loop"], "peer/ours")
results.done(part.save(50, "Files in images", os.environ["how"]))
PY
fi
finish
