#!/bin/bash
# SPDX-License-Identifier: MIT
# Makes inputs for the fuzz targets to start from, out of what the programs make that write such files in
# real life:
#
#     QVERITY=build/qverity tests/fuzz/make-seeds.sh DIRECTORY      DIRECTORY/TARGET/…, for each target
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

QVERITY=$(realpath "${QVERITY:-build/qverity}")
top=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

quiet()
{
    "$@" >log 2>&1 || { cat log >&2; echo "make-seeds: $*" >&2; exit 1; }
}

# --- qcow2: small clusters make small files ---

# The files that the targets keep beside their images.
head -c 1M /dev/urandom >base.raw
cp base.raw data.raw

# image NAME OPTIONS [QEMU-IO COMMAND]…
image()
{
    local name=$1 options=$2 command
    local -a commands=()
    shift 2
    quiet qemu-img create -f qcow2 -o "$options" "$name.qcow2" "${size:-1M}"
    for command; do
        commands+=(-c "$command")
    done
    [ ${#commands[@]} -eq 0 ] || quiet qemu-io -f qcow2 "${commands[@]}" "$name.qcow2"
}

qcow2_seeds()
{
    local some='write -P 1 0 20k' more='write -P 2 300k 9k' zero='write -z 64k 64k'
    local packed='write -c -P 3 128k 64k' discard='discard 300k 4k' bits zlib

    for bits in 512 1k 4k 64k; do
        image "v3-$bits" "cluster_size=$bits" "$some" "$more" "$zero" "$discard"
        image "v2-$bits" "compat=0.10,cluster_size=$bits" "$some" "$more"
        image "empty-$bits" "cluster_size=$bits"
    done
    for zlib in zlib zstd; do
        for bits in 512 4k 64k; do
            image "$zlib-$bits" "cluster_size=$bits,compression_type=$zlib" "$some" \
                "$(sed "s/64k$/$bits/" <<<"$packed")"
        done
    done
    head -c 40k /dev/urandom | base64 -w 0 >text.raw
    quiet qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k,compression_type=zstd text.raw zstd-text.qcow2
    quiet qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k text.raw zlib-text.qcow2
    for bits in 16k 64k; do
        image "extended-$bits" "cluster_size=$bits,extended_l2=on" "$some" "$more" "$zero" "write -z 2k 1k" "$discard"
    done
    image extended-zstd cluster_size=16k,extended_l2=on,compression_type=zstd "$some" 'write -c -P 3 128k 16k'
    size=64k image preallocated-512 cluster_size=512,preallocation=metadata "$some"
    size=64k image preallocated-4k cluster_size=4k,preallocation=falloc "$some"
    image refcounts-1 cluster_size=4k,refcount_bits=1 "$some"
    image refcounts-64 cluster_size=4k,refcount_bits=64 "$some"
    image lazy cluster_size=4k,lazy_refcounts=on "$some"
    size=3000832 image odd cluster_size=4k "$some" 'write -P 7 3000320 512'
    size=1G image large cluster_size=4k 'write -P 1 900M 4k'

    for bits in 512 4k; do
        quiet qemu-img create -f qcow2 -u -b base.raw -F raw -o cluster_size=$bits "backing-$bits.qcow2" 1M
        quiet qemu-io -f qcow2 -c "$some" -c "$zero" "backing-$bits.qcow2"
    done
    quiet qemu-img create -f qcow2 -u -b base.raw -F raw -o cluster_size=16k,extended_l2=on backing-extended.qcow2 2M
    quiet qemu-io -f qcow2 -c "$some" -c 'write -z 2k 1k' backing-extended.qcow2
    cp base.raw copy.qcow2
    quiet qemu-img create -f qcow2 -u -b copy.qcow2 -F qcow2 -o cluster_size=512 loop.qcow2 1M
    rm copy.qcow2

    image data-file cluster_size=4k,data_file=data.raw "$some"
    image data-file-raw cluster_size=4k,data_file=data.raw,data_file_raw=on "$some"
    image data-file-extended cluster_size=16k,extended_l2=on,data_file=data.raw "$some"

    for bits in 512 4k; do
        image "snapshots-$bits" "cluster_size=$bits" "$some"
        quiet qemu-img snapshot -c first "snapshots-$bits.qcow2"
        quiet qemu-io -f qcow2 -c "$more" "snapshots-$bits.qcow2"
        quiet qemu-img snapshot -c 'second one' "snapshots-$bits.qcow2"
        image "bitmaps-$bits" "cluster_size=$bits" "$some"
        quiet qemu-img bitmap --add --enable -g 512 "bitmaps-$bits.qcow2" qverity
        quiet qemu-img bitmap --add --disable -g 512 "bitmaps-$bits.qcow2" qverity-generation
        quiet qemu-io -f qcow2 -c "$more" "bitmaps-$bits.qcow2"
    done
    quiet qemu-img create -f qcow2 --object secret,id=s,data=password \
        -o encrypt.format=aes,encrypt.key-secret=s,cluster_size=4k aes.qcow2 1M

    mkdir -p "$out/qcow2"
    find . -name '*.qcow2' -size -700k -exec cp -t "$out/qcow2" {} +
}

# --- Overlays: of base.raw, which the target has in its directory ---

overlay_seeds()
{
    local bits
    mkdir -p "$out/overlay"
    for bits in 512 1k 4k 16k 64k; do
        quiet qemu-img create -f qcow2 -b base.raw -F raw -o cluster_size=$bits "empty-$bits.qcow2"
        quiet qemu-img create -f qcow2 -b base.raw -F raw -o cluster_size=$bits "some-$bits.qcow2"
        quiet qemu-io -f qcow2 -c 'write -P 1 3k 20k' -c 'write -z 128k 128k' -c 'write -P 2 900k 9k' \
            -c 'discard 4k 4k' "some-$bits.qcow2"
        mv -- "empty-$bits.qcow2" "some-$bits.qcow2" "$out/overlay"
    done
}

# --- Partition tables ---

# disk NAME CHOICE SIZE [COMMAND…]: a disk of one of the sizes that fuzz-partition.c has, changed by the
# command, as the target wants it
disk()
{
    local name=$1 choice=$2 size=$3
    shift 3
    rm -f disk
    truncate -s "$size" disk
    [ $# -eq 0 ] || quiet "$@"
    {
        printf '%b' "\\x0$choice"
        head -c $((34 * 512)) disk
        tail -c $((33 * 512)) disk
        dd if=disk bs=1k skip=1024 count=4 status=none 2>log
    } >"$out/partition/$name"
}

# gpt_of_large_sectors FILE: what sgdisk writes only to devices with sectors of 4096 bytes
gpt_of_large_sectors()
{
    python3 - "$1" <<'END'
import struct, sys, zlib

with open(sys.argv[1], "r+b") as disk:
    last = disk.seek(0, 2) // 4096 - 1
    entries = struct.pack("<16s16sQQQ72s", b"\x11" * 16, b"\x22" * 16, 256, 4095, 0, "root".encode("utf-16le"))
    entries = entries.ljust(128 * 128, b"\0")
    for at, other, table in (1, last, 2), (last, 1, last - 4):
        header = [b"EFI PART", 0x10000, 92, 0, 0, at, other, 6, last - 5, b"\x33" * 16, table, 128, 128, zlib.crc32(entries)]
        header[3] = zlib.crc32(struct.pack("<8sIIIIQQQQ16sQIII", *header))
        disk.seek(at * 4096)
        disk.write(struct.pack("<8sIIIIQQQQ16sQIII", *header))
        disk.seek(table * 4096)
        disk.write(entries)
    disk.seek(446)
    disk.write(struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, last) + bytes(48) + b"\x55\xaa")
END
}

partition_seeds()
{
    local type
    mkdir -p "$out/partition"
    for type in ext4 vfat xfs btrfs swap; do
        # What is in the partition; not all of these programs are everywhere.
        rm -f content
        truncate -s 300M content
        case $type in
        swap) mkswap content ;;
        *) "mkfs.$type" content ;;
        esac >log 2>&1 || continue
        disk "gpt-$type" 1 64M bash -c 'sgdisk -n 1:2048:+40M -c 1:root -n 2:0:0 disk && dd if=content of=disk bs=1M seek=1 count=2 conv=notrunc'
        disk "mbr-$type" 0 4M bash -c 'sfdisk disk <<<"2048,4096,83,*
6144,1024,82" && dd if=content of=disk bs=1M seek=1 count=1 conv=notrunc'
    done
    disk gpt-many 1 64M bash -c 'for i in $(seq 40); do set -- "$@" -n "$i:0:+8"; done; sgdisk "$@" disk' -
    disk gpt-4k 1 64M gpt_of_large_sectors disk
    disk logical 0 4M sfdisk disk <<<'2048,,5
2050,100
2200,100,82
2400,50'
    disk none 0 4M
    disk tiny 3 40k
    head -c 100k /dev/urandom >"$out/partition/random"
}

# --- Small file systems ---

# file_system NAME SIZE OPTION…: with a bit of everything in it
file_system()
{
    local name=$1 size=$2
    shift 2
    rm -f "$out/ext/$name"
    quiet mke2fs -q -F -d tree -L root "$@" "$out/ext/$name" "$size"
}

ext_seeds()
{
    local number
    mkdir -p "$out/ext" tree/boot tree/a/b/c
    echo hello >tree/a/hello
    seq 4000 >tree/boot/vmlinuz-1
    truncate -s 300k tree/a/sparse
    printf x | dd of=tree/a/sparse bs=1 seek=200000 conv=notrunc status=none
    ln -s ../boot/vmlinuz-1 tree/a/link
    ln -s "$(printf 'x%.0s' $(seq 100))" tree/a/long-link
    ln -s loop tree/loop
    : >tree/a/b/c/empty
    for number in $(seq 40); do
        : >"tree/boot/a file with a long name, number $number"
    done
    file_system ext2 300k -t ext2 -b 1024 -N 80
    file_system ext4 400k -t ext4 -b 1024 -N 80 -O ^has_journal,^metadata_csum
    file_system ext4-sums 400k -t ext4 -b 1024 -N 80 -O ^has_journal,metadata_csum
    file_system ext4-4k 640k -t ext4 -b 4096 -N 80 -O ^has_journal,^metadata_csum
    file_system ext4-inline 400k -t ext4 -b 1024 -N 80 -I 256 -O ^has_journal,^metadata_csum,inline_data
    file_system ext4-32bit 300k -t ext4 -b 1024 -N 80 -O ^has_journal,^metadata_csum,^64bit
    rm -rf tree
}

# --- Hash devices, of the data that the target has ---

verity_seeds()
{
    local options i=0
    mkdir -p "$out/verity"
    head -c 256k base.raw >data
    while read -r options; do
        # shellcheck disable=SC2086
        quiet veritysetup format $options data "$out/verity/$((i++))"
    done <<'END'
--salt=-
--format=0 --salt=0011
--data-block-size=512 --hash-block-size=1024 --hash=sha1
--data-block-size=65536 --hash-block-size=65536 --hash=sha512
--data-block-size=4096 --hash-block-size=512 --hash=sha512
--data-blocks=1
END
}

# --- Tree files, made of a raw disk and of an overlay ---

tree_seeds()
{
    local options i=0
    mkdir -p "$out/tree-file"
    head -c 1M /dev/urandom >tree.raw
    while read -r options; do
        # shellcheck disable=SC2086
        quiet "$QVERITY" hash --format raw $options --tree "$out/tree-file/$((i++))" tree.raw
    done <<'END'

--lean
--data-block-size 1024 --hash-block-size 512 --hash sha512
--format-version 0 --salt 00
END
    quiet "$QVERITY" hash --format raw tree.raw
    quiet qemu-img create -f qcow2 -b tree.raw -F raw overlay.qcow2
    quiet qemu-io -c 'write 500k 64k' overlay.qcow2
    quiet "$QVERITY" hash --tree "$out/tree-file/overlay" overlay.qcow2
    quiet qemu-img create -f qcow2 tracked.qcow2 32M
    quiet "$QVERITY" track tracked.qcow2 on
    quiet "$QVERITY" hash --tree "$out/tree-file/tracked" -p disk tracked.qcow2
}

# --- Lines ---

line_seeds()
{
    mkdir -p "$out/qmp" "$out/console"
    printf '%s\r\n' '~{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}' \
        '{"return": {}}' '{"return": {"status": "running", "running": true}}' >"$out/qmp/greeting"
    printf '%s\n' '#{"QMP": {}}' '{"return": {}}' '{"error": {"class": "GenericError", "desc": "no"}}' \
        '{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true}}' \
        '' '{"return": []}' >"$out/qmp/events"
    printf '!%s\n' '{"error": {}}' >"$out/qmp/refused"
    printf '\t[    5.47] device-mapper: verity: 8:2: data block 0 is corrupted\r\n' >"$out/console/verity"
    printf '\x10[    1.0] Kernel panic - not syncing: dm-verity device corrupted\n---[ end Kernel panic - not syncing\n' \
        >"$out/console/panic"
    printf '~\033[2J\033[01;31mDebian\033[0m\r\n\ndebian login: ' >"$out/console/login"
}

# --- Recipes: those that come with the program, and some that a test has ---

recipe_seeds()
{
    local recipe
    mkdir -p "$out/recipe"
    for recipe in "$top"/provision/recipes/*.yaml; do
        cp -- "$recipe" "$out/recipe/"
        # What they are made of, without the words about it.
        sed -E '/^ *(#|$)/d' "$recipe" >"$out/recipe/short-${recipe##*/}"
    done
    printf '%s\n' 'name: small' 'steps:' '  - image: {size: 64M}' '  - install: {tree: .}' \
        "  - run: 'true'" '  - hash' >"$out/recipe/small.yaml"
}

qcow2_seeds
rm -f -- *.qcow2
overlay_seeds
partition_seeds
ext_seeds
verity_seeds
tree_seeds
line_seeds
recipe_seeds
