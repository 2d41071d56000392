#!/bin/bash
# SPDX-License-Identifier: MIT
# Damaged ext file systems: whatever bytes of their metadata are changed, reading all files neither crashes
# nor hangs, and what cannot be read is an error with a message. tests/fuzz/fuzz-ext.c looks deeper; this
# runs with the sanitizers of an ordinary build.
#
# $QVERITY_FILES_ROUNDS changes the number of rounds, $QVERITY_FILES_SEED what is changed in them.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
PATH=$PATH:/usr/sbin:/sbin
require mke2fs debugfs dumpe2fs python3
tool=${QVERITY_TOOLS:-$(dirname "$QVERITY")/tests/tools}/files-check
rounds=${QVERITY_FILES_ROUNDS:-150}
seed=${QVERITY_FILES_SEED:-1}

# Little data, so that most of what is not zero is metadata.
mkdir -p tree/dir tree/links tree/big
echo hi >tree/dir/file
python3 - <<'END'
def blocks(name, count, step=1):
    with open("tree/" + name, "wb") as file:
        for i in range(0, count, step):
            file.seek(i * 1024 + 5)
            file.write(b"Z")

blocks("small", 3)
blocks("medium", 290)
blocks("sparse", 600, 2)
open("tree/dir/inline", "wb").write(b"a" * 100)
for i in range(300):
    open("tree/big/%d-%s" % (i, "y" * (i % 40)), "wb")
END
ln -s loop tree/links/loop
ln -s ../dir tree/links/up
ln -s "$(printf 'x%.0s' {1..200})" tree/links/slow

# damage WHAT START LENGTH: some rounds over a range of fs.img; bytes
damage()
{
    local got
    got=$("$tool" fs.img "$seed" "$rounds" "$2" "$3" 2>&1) || {
        fail "$name, $1: seed $seed: $(tail -n 5 <<<"$got")"
        return
    }
    pass "$name, $1: $got"
}

# What debugfs says are a file's blocks of metadata, or its data.
blocks_of()
{
    debugfs -R "$1" fs.img 2>/dev/null
}

check()
{
    local name=$1 table extents directory block pointers
    shift
    mke2fs -q -F -b 1024 "$@" -d tree fs.img 3M >mke2fs.log 2>&1 || {
        fail "$name: $(tail -n 1 mke2fs.log)"
        return
    }
    table=$(dumpe2fs fs.img 2>/dev/null | sed -n 's/.*Inode table at \([0-9]*\).*/\1/p' | head -1)
    damage "superblock" 1024 1024
    damage "group descriptors" 2048 256
    damage "inodes" $((table * 1024)) 4096
    for directory in / /big /links; do
        # One whose entries are all in its inode has none.
        block=$(blocks_of "blocks $directory" | awk '{ print $1 }')
        [ -z "$block" ] || damage "directory $directory" $((block * 1024)) 1024
    done
    # The one block above the leaves, and a leaf.
    extents=$(blocks_of "ex -n sparse" | awk '/^ 0\/ *1/ { print $8; exit }')
    [ -z "$extents" ] || damage "extents" $((extents * 1024)) 1024
    pointers=$(blocks_of "stat medium" | grep -o '([DT]*IND):[0-9]*' | head -1 | cut -d: -f2)
    [ -z "$pointers" ] || damage "indirect block" $((pointers * 1024)) 1024
    damage "anywhere" 0 3M
}

check "ext2" -t ext2 -O ^resize_inode
check "ext4 without checksums" -t ext4 -O ^metadata_csum,^has_journal,^resize_inode
check "ext4 with inline data" -t ext4 -I 256 -O inline_data,^metadata_csum,^has_journal,^resize_inode
check "ext4 with meta_bg" -t ext4 -g 256 -O meta_bg,64bit,^metadata_csum,^has_journal,^resize_inode
check "ext4 with checksums" -t ext4 -O inline_data,^has_journal,^resize_inode
finish
