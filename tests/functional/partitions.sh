#!/bin/bash
# SPDX-License-Identifier: MIT
# Partition tables made by sfdisk and sgdisk: what info lists, what -p chooses, and what is refused.
. "$(dirname "$0")/lib.sh"

PATH=$PATH:/usr/sbin:/sbin
require jq sfdisk sgdisk qemu-img python3 mkfs.ext4 mkswap mkfs.vfat

quiet()
{
    "$@" >.quiet 2>&1 || { fail "$*"; note "$(cat .quiet)"; return 1; }
}

# What info says of the partitions: "number start size type filesystem label fs-label container data"
partitions()
{
    "$QVERITY" info --json "$1" 2>/dev/null | python3 -c '
import json, sys
for p in json.load(sys.stdin)["partitions"]:
    print(p["number"], p["start"], p["size"], p["type"], p["filesystem"], p["label"],
          p["filesystem_label"], p["container"], p["data"], sep="|")'
}

# number|start|size|type|uuid|label of each partition, by sfdisk, and by info
by_sfdisk()
{
    sfdisk --json "${@:2}" "$1" | python3 -c '
import json, re, sys
t = json.load(sys.stdin)["partitiontable"]
for p in sorted(t.get("partitions", []), key=lambda p: int(re.search("[0-9]+$", p["node"])[0])):
    kind = p["type"].lower() if t["label"] == "gpt" else "0x%02x" % int(p["type"], 16)
    number = int(re.search("[0-9]+$", p["node"])[0])
    uuid = p["uuid"].lower() if "uuid" in p else "%08x-%02x" % (int(t["id"], 16), number)
    size = t.get("sectorsize", 512)
    print(number, p["start"] * size, p["size"] * size, kind, uuid, p.get("name") or None, sep="|")'
}

by_info()
{
    "$QVERITY" info --json "$1" 2>/dev/null | python3 -c '
import json, sys
for p in json.load(sys.stdin)["partitions"]:
    print(p["number"], p["start"], p["size"], p["type"], p["uuid"], p["label"], sep="|")'
}

# mkfs_at IMAGE START SIZE COMMAND…: makes a file system in a partition
mkfs_at()
{
    rm -f fs.img
    truncate -s "$3" fs.img
    "${@:4}" fs.img >.quiet 2>&1 || note "$(cat .quiet)"
    dd if=fs.img of="$1" bs=64K seek="$2" oflag=seek_bytes conv=notrunc,sparse status=none
}

# patch FILE OFFSET HEX: overwrites bytes
patch()
{
    printf '%b' "$(sed 's/../\\x&/g' <<<"$3")" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

M=1048576

# --- GPT ---

truncate -s 160M gpt.img
quiet sgdisk -o -n 1:2048:+8M -t 1:ef00 -c 1:EFI -n 3:0:+64M -t 3:8300 -c '3:the system' -n 4:0:+32M -t 4:8300 -c 4:home \
    -n 7:0:+8M -t 7:8200 -c 7:gr\ü\ß -n 128:0:+1M -c 128:last gpt.img
mkfs_at gpt.img $((1 * M)) 8M mkfs.vfat -n ESP
mkfs_at gpt.img $((9 * M)) 64M mkfs.ext4 -L rootfs -U 11112222-3333-4444-5555-666677778888
mkfs_at gpt.img $((73 * M)) 32M mkfs.ext4 -L rootfs2
mkfs_at gpt.img $((105 * M)) 8M mkswap -L swp
is "GPT: as sfdisk lists it" "$(by_info gpt.img)" "$(by_sfdisk gpt.img)"
is "GPT: contents, and the data partition" "$(partitions gpt.img | cut -d '|' -f 1,5,7-)" \
    "1|vfat|ESP|False|False
3|ext4|rootfs|False|True
4|ext4|rootfs2|False|False
7|swap|swp|False|False
128|None|None|False|False"

dd if=gpt.img of=p3 bs=$M skip=9 count=64 status=none
uuid=$(sfdisk --part-uuid gpt.img 3)
for spec in 3 'the system' rootfs "$uuid" "${uuid,,}" 11112222-3333-4444-5555-666677778888 \
    11112222-3333-4444-5555-666677778888; do
    "$QVERITY" read gpt.img -p "$spec" 0 64M >out
    same "-p '$spec'" out p3
done
quiet qemu-img convert -f raw -O qcow2 -c gpt.img gpt.qcow2
"$QVERITY" read gpt.qcow2 -p 3 0 64M >out
same "the same from a compressed qcow2 image" out p3
is "the same list from it" "$(partitions gpt.qcow2)" "$(partitions gpt.img)"
"$QVERITY" read gpt.img -p disk 0 160M >out
same "-p disk" out gpt.img
"$QVERITY" read gpt.img 0 160M >out
same "read without -p: the disk" out gpt.img
is "map -p counts from the partition's start" \
    "$("$QVERITY" map gpt.img -p 3 | awk 'NR == 1 { start = $1 } { end = $1 + $2; if ($3 == "data" && $4 != $1 + 9437184) bad = 1 } END { print start, end, bad + 0 }')" \
    "0 67108864 0"
refused "no such number" 1 "no partition '2': there are 1 \(vfat, 8.0 MiB\), 3 \(ext4, 64.0 MiB\)" "$QVERITY" read gpt.img -p 2 0 1
refused "no such label" 1 "no partition 'nobody'" "$QVERITY" map gpt.img -p nobody
refused "beyond the partition's end" 1 'beyond the end of the partition of 8388608 bytes' "$QVERITY" read gpt.img -p 1 8M 1
refused "beyond the partition's end, the length" 1 'beyond the end' "$QVERITY" read gpt.img -p 1 1 8M
refused "beyond the disk's end, overflowing" 1 'beyond the end' "$QVERITY" read gpt.img 1 18446744073709551615
cp gpt.img twice.img
quiet sgdisk -c 4:'the system' twice.img
refused "an ambiguous label" 1 "'the system' means partition 3 as well as 4" "$QVERITY" read twice.img -p 'the system' 0 1

# A label that is a number, and the number of another partition: the number counts.
quiet sgdisk -c 4:1 twice.img
is "a number before a label" "$("$QVERITY" map twice.img -p 1 | tail -1 | awk '{ print $1 + $2 }')" $((8 * M))

# wrong_table DESCRIPTION REGEX: of bad.img, info tells all but the partitions, then why not these, and fails
wrong_table()
{
    "$QVERITY" info bad.img >out 2>err
    is "$1: info fails" $? 1
    like "$1: tells why" "$(grep -v '^qverity: warning: ' err)" "^qverity: bad.img: .*$2"
    like "$1: tells the rest" "$(tr '\n' ' ' <out)" '^Image: .* Virtual size: .* Zeros: .* Partition table: +unknown $'
    "$QVERITY" info --json bad.img >out 2>err
    is "$1: JSON: info fails" $? 1
    is "$1: JSON: null" "$(jq -c '[.format, .partition_table, .partitions, .sector_size, .filesystem]' out)" \
        '["raw",null,null,null,null]'
}

# --- Damaged GPTs ---

cp gpt.img bad.img
patch bad.img 512 00
like "primary header without signature: a warning" "$("$QVERITY" info bad.img 2>&1 >/dev/null)" \
    "^qverity: warning: bad.img: the GPT's primary header is damaged \(no signature\); using the backup"
is "and the backup's list" "$(partitions bad.img)" "$(partitions gpt.img)"
cp gpt.img bad.img
patch bad.img 560 ff
like "primary header with a wrong checksum: a warning" "$("$QVERITY" info bad.img 2>&1 >/dev/null)" \
    'warning: .*primary header is damaged \(wrong checksum\)'
is "and the backup's list" "$(partitions bad.img)" "$(partitions gpt.img)"
cp gpt.img bad.img
patch bad.img 1100 ff
like "primary entries with a wrong checksum: a warning" "$("$QVERITY" info bad.img 2>&1 >/dev/null)" \
    'warning: .*primary header is damaged \(wrong checksum of the entries\)'
is "and the backup's list" "$(partitions bad.img)" "$(partitions gpt.img)"
patch bad.img $((160 * M - 512)) 00
wrong_table "both headers damaged" \
    'the GPT is damaged: primary header at byte 512: wrong checksum of the entries; backup at byte 167771648: no signature'
cp gpt.img bad.img
truncate -s 200M bad.img
is "a disk that grew: the primary header is enough" "$(partitions bad.img)" "$(partitions gpt.img)"
is "and no word about it" "$("$QVERITY" info bad.img 2>&1 >/dev/null)" ""
cp gpt.img bad.img
truncate -s 100M bad.img
wrong_table "a disk that shrank: names what is outside" \
    'partition 4 \(bytes 76546048 to 110100480\) does not lie within the disk of 104857600 bytes'
"$QVERITY" read bad.img -p disk 99M 1M >out 2>err
is "the disk as a whole is there" "$?" 0
same "with its bytes" out <(tail -c 1M bad.img)
is "and no word about what nobody asked for" "$(cat err)" ""
like "who looks for what the disk holds gets a warning" "$("$QVERITY" ls -p disk bad.img:/ 2>&1)" \
    '^qverity: warning: bad.img: partition 4 .* does not lie .*; only the disk as a whole is there
qverity: bad.img: the disk holds no file system'
refused "but no partition" 1 'bad.img: partition 4 \(bytes' "$QVERITY" hash --no-tree -p 1 bad.img
cp gpt.img bad.img
dd if=/dev/zero of=bad.img bs=512 count=1 conv=notrunc status=none
like "no protective MBR: a warning" "$("$QVERITY" info bad.img 2>&1 >/dev/null)" 'warning: .*GPT without a protective MBR'
like "and no table" "$("$QVERITY" info bad.img 2>/dev/null)" 'Partition table: +none'

# --- GPT: other kinds ---

truncate -s 1M tiny.img
printf 'label: gpt\nfirst-lba: 34\nstart=34, size=100, name=small\n' | quiet sfdisk tiny.img
is "GPT on a disk of 1 MiB" "$(by_info tiny.img)" "$(by_sfdisk tiny.img)"
cp gpt.img hybrid.img
quiet sgdisk -h 1:3 hybrid.img
is "hybrid MBR: the GPT counts" "$(partitions hybrid.img)" "$(partitions gpt.img)"
truncate -s 64M 4k.img
if printf 'label: gpt\nsize=8M, name=one\nsize=16M, name=two\n' | sfdisk --sector-size 4096 4k.img >.quiet 2>&1; then
    is "GPT with sectors of 4096 bytes" "$(by_info 4k.img)" "$(by_sfdisk 4k.img --sector-size 4096)"
    is "told by info" "$("$QVERITY" info --json 4k.img | grep -o '"sector_size": [0-9]*')" '"sector_size": 4096'
    cp 4k.img bad.img
    truncate -s 20M bad.img
    wrong_table "sectors of 4096 bytes: outside the disk" \
        'partition 2 \(bytes 9437184 to 26214400\) does not lie within the disk of 20971520 bytes'
else
    note "sfdisk has no --sector-size"
fi

# --- MBR ---

truncate -s 160M mbr.img
quiet sfdisk mbr.img <<'TABLE'
label: dos
label-id: 0x1234abcd
1 : start=2048, size=16384, type=c, bootable
2 : start=20480, size=102400, type=5
3 : start=122880, size=65536, type=83
5 : start=22528, size=20480, type=83
6 : start=45056, size=8192, type=82
7 : start=55296, size=67584, type=83
TABLE
mkfs_at mbr.img $((2048 * 512)) 8M mkfs.vfat -n DOS
mkfs_at mbr.img $((122880 * 512)) 32M mkfs.ext4 -L small
mkfs_at mbr.img $((55296 * 512)) 33M mkfs.ext4 -L logical
mkfs_at mbr.img $((45056 * 512)) 4M mkswap
is "MBR: as sfdisk lists it" "$(by_info mbr.img)" "$(by_sfdisk mbr.img)"
is "MBR: contents, and the data partition" "$(partitions mbr.img | cut -d '|' -f 1,4,5,7-)" \
    "1|0x0c|vfat|DOS|False|False
2|0x05|None|None|True|False
3|0x83|ext4|small|False|False
5|0x83|None|None|False|False
6|0x82|swap|None|False|False
7|0x83|ext4|logical|False|True"
for spec in 7 logical 1234abcd-07 1234ABCD-07; do
    "$QVERITY" read mbr.img -p "$spec" 0 $((67584 * 512)) >out
    dd if=mbr.img of=expected bs=512 skip=55296 count=67584 status=none
    same "a logical partition, -p $spec" out expected
done
"$QVERITY" read mbr.img -p 2 0 1M >out
dd if=mbr.img of=expected bs=512 skip=20480 count=2048 status=none
same "the extended partition itself" out expected

# The table of logical partition 6 is at sector 43008, of 7 at 53248.
ebr5=20480 ebr6=$(python3 -c '
import struct
f = open("mbr.img", "rb"); f.seek(20480 * 512 + 446 + 16 + 8); print(20480 + struct.unpack("<I", f.read(4))[0])')
le32()
{
    printf '%02x%02x%02x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255))
}
cp mbr.img bad.img
patch bad.img $((446 + 32 + 12)) "$(le32 262145)"
wrong_table "MBR: a primary partition outside the disk" \
    'partition 3 \(bytes 62914560 to 197132800\) does not lie within the disk of 167772160 bytes'
cp mbr.img bad.img
patch bad.img $((446 + 16 + 12)) "$(le32 4294967295)"
wrong_table "MBR: an extended partition outside the disk" \
    'partition 2 \(bytes 10485760 to 2199033740800\) does not lie'
cp mbr.img bad.img
patch bad.img $((ebr6 * 512 + 446 + 12)) "$(le32 4000000)"
wrong_table "MBR: a logical partition outside the disk" \
    'logical partition 6 \(bytes 23068672 to 2071068672\) does not lie'
cp mbr.img bad.img
patch bad.img $((ebr6 * 512 + 446 + 8)) "$(le32 4294960000)"
wrong_table "MBR: a logical partition that would wrap at 32 bits" 'logical partition 6 .* does not lie'
cp mbr.img bad.img
patch bad.img $((ebr5 * 512 + 446 + 16 + 8)) "$(le32 900000)"
wrong_table "MBR: a table of logical partitions outside the disk" \
    'the table of logical partition 6, at byte 471285760, does not lie'
cp mbr.img bad.img
patch bad.img $((ebr6 * 512 + 446 + 16 + 8)) "$(le32 0)"
wrong_table "MBR: tables of logical partitions that form a loop" \
    'the tables of the logical partitions form a loop at byte 10485760'

# Many logical partitions.
truncate -s 130M many.img
{
    echo 'label: dos'
    echo 'start=2048, type=5'
    for _ in $(seq 50); do echo 'size=2048'; done
} | quiet sfdisk many.img
is "MBR: 50 logical partitions" "$(by_info many.img)" "$(by_sfdisk many.img)"

# A BSD label in a partition is not looked into.
truncate -s 32M bsd.img
printf 'label: dos\nsize=8M, type=a5\nsize=8M, type=83\n' | quiet sfdisk bsd.img
is "MBR: a BSD partition" "$(by_info bsd.img)" "$(by_sfdisk bsd.img)"

# --- No table ---

truncate -s 32M plain.img
quiet mkfs.ext4 -q -F -L whole plain.img
like "a file system on the whole disk" "$("$QVERITY" info plain.img)" 'File system label: +whole'
"$QVERITY" read plain.img -p whole 0 32M >out
same "is chosen by its label" out plain.img
refused "other partitions are not there" 1 "no partition '1': the disk has no partition table, only 'disk' is there" \
    "$QVERITY" read plain.img -p 1 0 1
patch plain.img 510 55aa
like "a boot sector without partitions is no table" "$("$QVERITY" info plain.img)" 'File system: +ext4'
truncate -s 64M fat.img
quiet mkfs.vfat -F 32 -n FATDISK fat.img
like "a FAT file system is no table" "$("$QVERITY" info fat.img)" 'File system label: +FATDISK'
truncate -s 32M empty.img
printf 'label: gpt\n' | quiet sfdisk empty.img
refused "an empty table" 1 "no partition '1': the partition table is empty" "$QVERITY" read empty.img -p 1 0 1
: >nothing.img
like "no bytes at all" "$("$QVERITY" info nothing.img)" 'Partition table: +none'

# FAT32 keeps its label in a root directory that is far behind.
truncate -s 300M far.img
printf 'label: gpt\nsize=290M\n' | quiet sfdisk far.img
rm -f fs.img
truncate -s 290M fs.img
quiet mkfs.vfat -F 32 -s 1 -n FARAWAY fs.img
dd if=fs.img of=far.img bs=64K seek=$M oflag=seek_bytes conv=notrunc,sparse status=none
is "FAT32: a label behind large tables" "$(partitions far.img | cut -d '|' -f 5,7)" "vfat|FARAWAY"

# The size of a real disk.
truncate -s 499G large.img
printf 'label: gpt\nsize=512M, type=U\nname=data\n' | quiet sfdisk large.img
quiet qemu-img convert -f raw -O qcow2 large.img large.qcow2
is "499 GiB" "$(by_info large.qcow2)" "$(by_sfdisk large.img)"

# A limit of file sizes, which is not the image's fault.
limited() { bash -c 'ulimit -f 2000; exec "$@"' - "$QVERITY" "$@"; }
refused "with a limit of file sizes" 1 '^qverity: large.qcow2: partitions cannot be looked for .*limit of file sizes' \
    bash -c 'ulimit -f 2000; exec "$@"' - "$QVERITY" read large.qcow2 -p 1 0 1
is "the disk is there" "$(limited read large.qcow2 512 8)" "EFI PART"
is "and all of it" "$(limited map --json large.qcow2 | python3 -c 'import json, sys; print(sum(e["length"] for e in json.load(sys.stdin)))')" \
    $((499 << 30))

finish
