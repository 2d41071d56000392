#!/bin/bash
# SPDX-License-Identifier: MIT
# `qverity ls`, `stat` and `cp` on file systems with all features that ext2, ext3 and ext4 have, made by
# mke2fs, and in images of all kinds: the same names, attributes, links and bytes as the tree that they
# were made of.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
PATH=$PATH:/usr/sbin:/sbin
require mke2fs debugfs python3 qemu-img sfdisk
tree=$here/files_tree.py
umask 022

# make IMAGE SIZE OPTION…: a file system with the tree in it; fails where mke2fs has no such feature
make()
{
    local image=$1 size=$2
    shift 2
    rm -f "$image"
    mke2fs -q -F -m 0 "$@" -d "$source" "$image" "$size" >mke2fs.log 2>&1
}

# agree DESCRIPTION IMAGE [OPTION…]: what is copied out, and what is listed, is the tree
agree()
{
    local description=$1 image=$2 got
    shift 2
    sampled || return 0
    rm -rf out
    got=$("$QVERITY" cp -q -a "$@" "$image:/" out 2>&1) && [ -z "$got" ] &&
        got=$(python3 "$tree" compare "$source" out --seconds $sparse) &&
        "$QVERITY" ls -R --json "$@" "$image:/" >listing 2>&1 &&
        got=$(python3 "$tree" listing "$source" --seconds <listing) && [ -z "$got" ]
    is "$description" "$?: $got" "0: "
}

# features SIZE NAME OPTION…: makes such a file system, and checks it
features()
{
    local size=$1 name=$2
    shift 2
    if make fs.img "$size" "$@"; then
        agree "$name" fs.img
    else
        note "$name: this mke2fs cannot make it: $(tail -n 1 mke2fs.log)"
    fi
}

# --- Features ---

sparse=--sparse
source=$T/small
mkdir small
python3 "$tree" make small 1024
features 60M "ext2, 1 KiB blocks" -t ext2 -b 1024
features 60M "ext2, revision 0, without file types in directories" -t ext2 -b 1024 -r 0 -O none
features 60M "ext3, 1 KiB blocks" -t ext3 -b 1024 -J size=1
features 60M "ext4, 1 KiB blocks" -t ext4 -b 1024 -J size=1
features 60M "ext4 without extents" -t ext4 -b 1024 -J size=1 -O ^extent,^64bit
features 60M "ext4 with blocks of one group in others" -t ext4 -b 1024 -J size=1 -O meta_bg,^resize_inode -g 1024
rm -r small/sparse # Of which some mke2fs write other sizes into file systems with inline data.
features 60M "ext4 with inline data" -t ext4 -b 1024 -J size=1 -O inline_data -I 256
features 60M "ext4 with inline data in large inodes" -t ext4 -b 1024 -J size=1 -O inline_data -I 1024

source=$T/large
mkdir large
python3 "$tree" make large 4096
features 120M "ext4, 2 KiB blocks" -t ext4 -b 2048 -J size=2
features 120M "ext2, 4 KiB blocks" -t ext2 -b 4096
features 120M "ext3, 4 KiB blocks, inodes of 128 bytes" -t ext3 -b 4096 -I 128 -J size=4
features 120M "ext4" -t ext4 -J size=4
features 120M "ext4 with checksums of group descriptors" -t ext4 -J size=4 -O ^metadata_csum,uninit_bg
features 120M "ext4 without checksums, 64bit, flex_bg and dir_index" -t ext4 -J size=4 \
    -O ^metadata_csum,^64bit,^flex_bg,^dir_index
features 120M "ext4 with bigalloc" -t ext4 -J size=4 -O bigalloc -C 65536 -N 4000
features 120M "ext4 with a checksum seed, attributes in inodes, large directories, quota, projects and verity" -t ext4 -J size=4 \
    -O metadata_csum_seed,ea_inode,large_dir,quota,project,verity
features 120M "ext4 with sparse_super2 and an orphan file, and for encrypted and case-folded directories" \
    -t ext4 -J size=4 -O sparse_super2,orphan_file,encrypt,casefold
sparse='' # The blocks are larger than the holes.
features 160M "ext4, 64 KiB blocks" -t ext4 -b 65536 -J size=64 -N 8192

# --- Images ---

sparse=--sparse
make fs.img 120M -t ext4 -J size=4 || fail "mke2fs"
truncate -s 128M disk.img
sfdisk -q disk.img <<'END' 2>/dev/null
label: gpt
start=2048, size=2048, type=uefi
start=4096, size=245760, type=linux
END
dd if=fs.img of=disk.img bs=1M seek=2 conv=notrunc,sparse status=none
agree "a partition of a raw image" disk.img
qemu-img convert -O qcow2 disk.img disk.qcow2
agree "a partition of a qcow2 image" disk.qcow2
agree "named by its number" disk.qcow2 -p 2
qemu-img convert -O qcow2 -c disk.img compressed.qcow2
agree "a compressed image" compressed.qcow2
qemu-img convert -O qcow2 -c -o compression_type=zstd,cluster_size=2M disk.img zstd.qcow2
agree "a compressed image with large clusters" zstd.qcow2
qemu-img convert -O qcow2 -o cluster_size=512,preallocation=metadata disk.img clusters.qcow2
agree "clusters smaller than blocks" clusters.qcow2
truncate -s 128M empty.img
qemu-img create -q -f qcow2 -b empty.img -F raw overlay.qcow2
qemu-img convert -n -O qcow2 disk.img overlay.qcow2
agree "an overlay" overlay.qcow2
qemu-img snapshot -c before overlay.qcow2
qemu-img convert -n -f raw -O qcow2 empty.img overlay.qcow2
agree "an internal snapshot" overlay.qcow2 --snapshot before

# --- Files in detail ---

for path in links/target sizes/4097 sparse/middle names/colon:; do
    "$QVERITY" cat "disk.qcow2:/$path" >got
    same "cat $path" got "large/$path"
done
"$QVERITY" cat disk.qcow2:/links/target disk.qcow2:/sizes/61 disk.qcow2:/links/target >got
cat large/links/target large/sizes/61 large/links/target >expected
same "cat of several" got expected
is "cat of more than 4 GiB of hole" "$("$QVERITY" cat disk.qcow2:/sparse/end | tail -c 777 | sha256sum)" \
    "$(tail -c 777 large/sparse/end | sha256sum)"

# debugfs reads it, too, by code that is not ours.
mkdir rdump
debugfs -R "rdump / rdump" fs.img >/dev/null 2>&1
rm -rf out
"$QVERITY" cp -q -a disk.qcow2:/ out
find rdump -name fifo -delete
is "the same bytes as debugfs gives" "$(python3 "$tree" compare rdump out | grep -v mode)" ""
finish
