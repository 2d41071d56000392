#!/bin/bash
# SPDX-License-Identifier: MIT
# `qverity ls`, `stat`, `cat` and `cp` on file systems that Linux has written, compared with what it reads
# from them: hash trees of directories, extents in several levels, preallocated and punched ranges,
# inline data, times to the nanosecond.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
PATH=$PATH:/usr/sbin:/sbin
require mke2fs python3 losetup fallocate
[ "$(id -u)" -eq 0 ] || skip_all "mounting needs root"
tree=$here/files_tree.py
umask 022

truncate -s 1M probe.img
loop=$(losetup -f --show probe.img 2>&1) || skip_all "no loop devices: $loop"
losetup -d "$loop"

# fill DIR BLOCK_SIZE: what a tree that was copied does not have
fill()
{
    local dir=$1 i
    mkdir "$dir/kernel" "$dir/kernel/large" "$dir/kernel/inline"
    # With inline data, some entries of this directory are behind the inode's first bytes.
    touch "$dir"/kernel/inline/{1,2,3,4,5,6,7,8,9}
    # Not written, written in part, punched.
    fallocate -l 3M "$dir/kernel/preallocated" 2>/dev/null || truncate -s 3M "$dir/kernel/preallocated"
    echo middle | dd of="$dir/kernel/preallocated" bs=1 seek=1500000 conv=notrunc status=none
    head -c 2M /dev/urandom >"$dir/kernel/punched"
    fallocate -p -o 65536 -l 300000 "$dir/kernel/punched" 2>/dev/null
    head -c 100000 /dev/urandom >"$dir/kernel/cut"
    truncate -s 50001 "$dir/kernel/cut"
    truncate -s 90000 "$dir/kernel/cut"
    # Two files that grow in turn have many extents.
    python3 -c '
import os, sys
a, b = (open(sys.argv[1] + name, "wb", buffering=0) for name in ("/a", "/b"))
for i in range(200):
    a.write(os.urandom(5000)); os.fsync(a.fileno())
    b.write(os.urandom(3000)); os.fsync(b.fileno())
' "$dir/kernel"
    # A hash tree, with entries that are gone.
    python3 -c '
import os, sys
for i in range(int(sys.argv[2])):
    os.close(os.open(sys.argv[1] + "/a name that takes some room, the one with the number %d" % i, os.O_CREAT))
for i in range(0, int(sys.argv[2]), 3):
    os.unlink(sys.argv[1] + "/a name that takes some room, the one with the number %d" % i)
' "$dir/kernel/large" "$2"
    mknod "$dir/kernel/block" b 259 70000
    mknod "$dir/kernel/character" c 1 3
    python3 -c '
import socket, sys
socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$dir/kernel/socket"
    touch -d '2446-05-10 22:38:55.123456789 UTC' "$dir/kernel/late"
    touch -d '1901-12-13 20:45:53 UTC' "$dir/kernel/early"
    echo owner >"$dir/kernel/owner"
    chown 4000000000:100000 "$dir/kernel/owner"
    echo long >"$dir/kernel/$(printf 'l%.0s' {1..255})"
}

# check NAME SOURCE ENTRIES OPTION…: Linux fills such a file system with SOURCE and more
check()
{
    local name=$1 source=$2 entries=$3 got
    shift 3
    rm -rf fs.img out
    if ! mke2fs -q -F -m 0 "$@" fs.img 160M >mke2fs.log 2>&1; then
        note "$name: this mke2fs cannot make it: $(tail -n 1 mke2fs.log)"
        return
    fi
    mkdir -p mnt
    if ! mount -o loop fs.img mnt 2>mount.log; then
        note "$name: Linux does not mount it here: $(cat mount.log)"
        return
    fi
    cp -a "$source/." mnt/ && fill mnt "$entries" || fail "$name: filling it"
    # Not unmounted and mounted again: somebody who has copied our mounts meanwhile would keep it.
    mount -o remount,ro mnt || fail "$name: cannot be made read-only"
    sync -f mnt
    got=$("$QVERITY" cp -q -a fs.img:/ out 2>&1)
    is "$name: everything can be copied" "$got" ""
    got=$(python3 "$tree" compare mnt out --times --sparse)
    is "$name: as Linux reads it" "$got" ""
    got=$("$QVERITY" ls -R --json fs.img:/ | python3 "$tree" listing mnt)
    is "$name: and lists it" "$got" ""
    umount mnt
    checked=$((checked + 1))
}

checked=0
mkdir source
python3 "$tree" make source 1024
rm -r source/many
check "ext4" source 8000 -t ext4
check "ext4, 1 KiB blocks" source 8000 -t ext4 -b 1024
check "ext4 with inline data" source 1000 -t ext4 -O inline_data -I 512
check "ext4 with bigalloc" source 1000 -t ext4 -O bigalloc,metadata_csum_seed -C 32768
rm source/sparse/end # Too large for it.
check "ext3" source 1000 -t ext3 -b 1024
check "ext2" source 1000 -t ext2 -b 2048 -I 128
[ "$checked" -gt 0 ] || skip_all "Linux does not mount ext4 from a file here"

check "32000 entries" source 32000 -t ext4 -b 1024 -N 60000
is "the last of them" "$("$QVERITY" stat --json "fs.img:/kernel/large/a name that takes some room, the one with the number 31999" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["entries"][0]["type"])')" "regular file"
finish
