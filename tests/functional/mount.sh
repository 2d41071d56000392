#!/bin/bash
# SPDX-License-Identifier: MIT
# The files of a mount hold the right bytes, whoever reads them and how.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io veritysetup fusermount3 sfdisk mkfs.ext4 jq python3
[ -w /dev/fuse ] || skip_all "no /dev/fuse"

uuid=12345678-9abc-4def-8123-456789abcdef

# mount_image IMAGE [OPTION…]: on $T/mnt
mount_image()
{
    mkdir -p mnt
    timeout $((20 * patience)) "$QVERITY" mount "$@" mnt
}

unmount()
{
    fusermount3 -u mnt
}

# A disk of 96 MiB and a bit: EFI partition, ext4 partition with data, zeros and holes in it, and a
# third that ends in the middle of a cluster.
truncate -s $((96 * 1024 * 1024 + 3 * 512)) disk.raw
sfdisk -q disk.raw <<'END' 2>/dev/null
label: gpt
start=2048, size=8192, type=uefi, name=esp
start=10240, size=153600, type=linux, name=root
start=163840, size=30721, type=linux, name=odd
END
head -c 20M /dev/urandom >noise
truncate -s 75M part2.raw
mkfs.ext4 -q -F -d /dev/null part2.raw 2>/dev/null || mkfs.ext4 -q -F part2.raw
dd if=noise of=part2.raw bs=1M seek=30 conv=notrunc status=none
dd if=part2.raw of=disk.raw bs=512 seek=10240 conv=notrunc,sparse status=none
dd if=noise of=disk.raw bs=512 seek=163840 count=30721 conv=notrunc status=none
dd if=noise of=disk.raw bs=512 seek=2048 count=5000 conv=notrunc status=none
qemu-img convert -O qcow2 disk.raw disk.qcow2
# Zero-flagged clusters over data, so that the map has all kinds.
qemu-io -c "write -z 40M 3M" -c "write -z 41234567 70000" disk.qcow2 >/dev/null 2>&1
qemu-img convert -O raw disk.qcow2 disk.ref
for p in 1:2048:8192 2:10240:153600 3:163840:30721; do
    IFS=: read -r number start size <<<"$p"
    dd if=disk.ref of="part$number.ref" bs=512 skip="$start" count="$size" status=none
done

# --- Names, sizes, attributes ---

ok "mount returns" mount_image disk.qcow2
is "the files" "$(ls mnt | tr '\n' ' ')" \
    "cmdline data disk hash params.json part1 part2 part3 root-hash stats.json table "
is "before the root hash is known, all sizes are" \
    "$(stat -c '%n %s' mnt/disk mnt/part[123] mnt/hash mnt/root-hash | tr '\n' ' ')" \
    "mnt/disk 100664832 mnt/part1 4194304 mnt/part2 78643200 mnt/part3 15729152 mnt/hash $(
        veritysetup format part2.ref sizes.img >/dev/null && stat -c %s sizes.img) mnt/root-hash 65 "
table_size=$(stat -c %s mnt/table) cmdline_size=$(stat -c %s mnt/cmdline) params_size=$(stat -c %s mnt/params.json)
is "no root hash was computed for that" "$(jq .build.root_known mnt/stats.json)" false
is "data is a link to the data partition" "$(readlink mnt/data)" part2
is "files are read-only" "$(stat -c %a mnt/disk mnt/hash mnt/table | sort -u)" 444
is "files belong to who mounted" "$(stat -c %u:%g mnt/disk)" "$(id -u):$(id -g)"
like "the mount is read-only, of type fuse.qverity, and names the image" "$(grep " $T/mnt " /proc/mounts)" \
    "^$T/disk.qcow2 $T/mnt fuse.qverity ro,"
ok "nothing can be written" bash -c '! echo x >mnt/disk && ! touch mnt/new && ! rm -f mnt/disk' 2>/dev/null
is "a name that is not there" "$(stat mnt/part4 2>&1 | grep -c 'No such file')" 1
ok "statfs" stat -f mnt

# --- Contents ---

same "disk" mnt/disk disk.ref
for number in 1 2 3; do
    same "part$number" "mnt/part$number" "part$number.ref"
done
same "data" mnt/data part2.ref
root=$(cat mnt/root-hash)
like "root-hash is one line of hex" "$root" '^[0-9a-f]{64}$'
"$QVERITY" hash disk.qcow2 --json >hash.json
is "root-hash is hash's" "$root" "$(jq -r .root_hash hash.json)"
is "table is hash's" "$(cat mnt/table)" "$(jq -r .table hash.json)"
like "table" "$(cat mnt/table)" \
    "^0 153600 verity 1 /dev/sda2 /dev/sdb 4096 4096 19200 1 sha256 $root 0{64} 1 panic_on_corruption$"
is "cmdline" "$(cat mnt/cmdline)" "dm-mod.create=\"dmverity,,0,ro,$(cat mnt/table)\""
is "params.json is hash's" "$(jq -S . mnt/params.json)" \
    "$(jq -S 'del(.method, .data_bytes_hashed, .zero_blocks, .seconds)' hash.json)"
is "the sizes were right" \
    "$(cat mnt/table | wc -c) $(cat mnt/cmdline | wc -c) $(cat mnt/params.json | wc -c)" \
    "$table_size $cmdline_size $params_size"
ok "veritysetup verify accepts data and hash" veritysetup verify mnt/data mnt/hash "$root"
ok "veritysetup verify refuses another root hash" \
    bash -c "! veritysetup verify mnt/data mnt/hash ${root//[0-9]/5}"
is "stats.json counts" \
    "$(jq '.files.disk.bytes >= 100664832 and .files.hash.reads > 0 and .files.disk.errors == 0 and
        .build.root_known and .hashtree.build_seconds > 0' mnt/stats.json)" true

# --- Holes ---

cp --sparse=auto mnt/disk copy.raw
same "a sparse copy" copy.raw disk.ref
ok "is sparse" test "$(stat -c '%b' copy.raw)" -lt $((70 * 1024 * 1024 / 512))
qemu-img map --output=json -f raw mnt/part2 >map.json
is "holes are seen" "$(jq 'any(.[]; .zero)' map.json)" true

# --- Many readers ---

cp mnt/hash hash.ref
unmount
mount_image disk.qcow2
pairs=(mnt/disk=disk.ref mnt/part1=part1.ref mnt/part2=part2.ref mnt/part3=part3.ref mnt/data=part2.ref
    mnt/hash=hash.ref)
ok "random ranges of all files, 8 processes" "$here/mount-readers.py" "${pairs[@]}"
unmount
mount_image disk.qcow2 -o direct_io
ok "the same without page cache" "$here/mount-readers.py" --rounds 60 --seed 2 mnt/disk=disk.ref mnt/part3=part3.ref
unmount
mount_image disk.qcow2 -o max_read=65536
ok "the same with small reads" "$here/mount-readers.py" --rounds 40 --seed 3 "${pairs[@]}"
unmount
qemu-img convert -c -O qcow2 disk.ref packed.qcow2
mount_image packed.qcow2
ok "the same of a compressed image" "$here/mount-readers.py" --rounds 60 --seed 4 "${pairs[@]}"
printf 'x' | dd of=part3.ref bs=1 seek=7654321 conv=notrunc status=none
ok "a byte that differs is noticed" bash -c "! '$here/mount-readers.py' --seed 4 mnt/part3=part3.ref"
unmount

# Data and zeros in turns: more pieces in a large read than a reply can point to.
python3 - >turns.raw <<'END'
import os, sys
for i in range(512):
    sys.stdout.buffer.write(os.urandom(8192) + bytes(8192 if i % 3 else 12288))
END
qemu-img convert -O qcow2 -S 4k -o cluster_size=4k turns.raw turns.qcow2
mount_image turns.qcow2 -p disk
dd if=mnt/disk of=turns.copy bs=1M iflag=direct status=none
same "data and zeros in turns" turns.copy turns.raw
ok "and in ranges" "$here/mount-readers.py" --rounds 40 --seed 5 mnt/disk=turns.raw
unmount

# --- A disk without partitions, and of an odd size ---

head -c 10485999 noise >odd.raw
qemu-img convert -f raw -O raw odd.raw odd.ref
ok "a raw image of an odd size" mount_image odd.raw --format raw
is "data is a link to disk" "$(readlink mnt/data)" disk
is "its size is QEMU's" "$(stat -c %s mnt/disk)" "$(stat -c %s odd.ref)"
same "its bytes" mnt/disk odd.ref
is "dd of the end is short" "$(dd if=mnt/disk bs=4096 skip=2560 status=none | wc -c)" \
    $(($(stat -c %s odd.ref) - 2560 * 4096))
like "its table" "$(cat mnt/table)" '^0 20480 verity 1 /dev/sda /dev/sdb 4096 4096 2560 1 '
unmount

# --- The tree file ---

mkdir elsewhere
ok "a tree file by a relative name" mount_image disk.qcow2 --tree elsewhere/tree
is "at first no root hash is known" "$(jq .build.root_known mnt/stats.json)" false
is "then it is" "$(cat mnt/root-hash)" "$root"
unmount
mount_image disk.qcow2 --tree elsewhere/tree
is "and the next mount knows it at once" "$(jq .build.root_known mnt/stats.json) $(cat mnt/root-hash)" "true $root"
same "with the same hash device" mnt/hash hash.ref
unmount

# --- Hash devices ---

# The same parameters through the mount and by veritysetup: blocks of the data, then options.
salt256=$(printf '7f%.0s' {1..256})
while read -r blocks options; do
    bs=4096
    [[ $options =~ --data-block-size=([0-9]+) ]] && bs=${BASH_REMATCH[1]}
    [[ $options =~ --salt ]] || options+=" --salt=00112233445566778899aabbccddeeff"
    rm -f data.img expected.img
    head -c $((blocks * bs < 8388608 ? blocks * bs : 8388608)) noise >data.img
    truncate -s $((blocks * bs)) data.img
    # shellcheck disable=SC2086
    expected=$(veritysetup format --uuid $uuid $options data.img expected.img |
        awk '/^Root hash:/ { print $3 }')
    # shellcheck disable=SC2086
    mount_image data.img --format raw -p disk --uuid $uuid ${options//--format=/--format-version=} 2>/dev/null
    name="$blocks blocks ${options//$salt256/256 bytes}"
    same "hash device: $name" mnt/hash expected.img
    is "root hash: $name" "$(cat mnt/root-hash)" "$expected"
    unmount
done <<END
1
2 --salt=-
127 --salt=ab
128 --salt=$salt256
129
16384 --hash=sha1
16385
2097153 --data-block-size=512 --hash-block-size=4096
1 --format=0
129 --format=0 --salt=-
16385 --format=0 --hash=sha512 --salt=$salt256
1000 --data-block-size=512 --hash-block-size=512
1000 --data-block-size=1024 --hash-block-size=4096 --hash=sha512
4097 --data-block-size=4096 --hash-block-size=1024 --format=0
300 --hash-offset=8192
300 --hash-offset=1048576 --hash=sha1 --format=0
1 --no-superblock
300 --no-superblock
300 --no-superblock --hash-offset=40960
END
finish
