#!/bin/bash
# SPDX-License-Identifier: MIT
# What hash and verify refuse, with which message and exit code, and that nothing is left behind.
# shellcheck source=tests/functional/lib.sh
. "$(dirname "$0")/lib.sh"
require veritysetup qemu-img python3 sfdisk

truncate -s 1M disk.raw
printf 'some data' | dd of=disk.raw bs=1 seek=70000 conv=notrunc status=none
cp disk.raw untouched.raw
hash=("$QVERITY" hash --format raw disk.raw)

### Parameters

# Nothing is created for any of these: every one asks for a file.
bad()
{
    local description=$1 code=$2 regex=$3
    shift 3
    refused "$description" "$code" "$regex" "${hash[@]}" --write out "$@"
    [ ! -e out ] || fail "$description: leaves a file"
    rm -f out
}

bad "salt: odd" 1 '^qverity: --salt: 3 hex digits, an odd number$' --salt abc
bad "salt: no hex" 1 '^qverity: --salt: character 2 is not a hex digit$' --salt 0x12
bad "salt: too long" 1 '^qverity: --salt: 257 bytes, but 256 at most are allowed$' \
    --salt "$(printf 'c3%.0s' {1..257})"
bad "UUID: no UUID" 1 "^qverity: --uuid 'nonsense': not of the form" --uuid nonsense
bad "UUID: too short" 1 '^qverity: --uuid' --uuid 01234567-89ab-cdef-0123-456789abcde
bad "UUID: without dashes" 1 '^qverity: --uuid' --uuid 0123456789abcdef0123456789abcdef
bad "UUID: empty" 1 '^qverity: --uuid' --uuid ''
bad "data blocks: one too many" 1 \
    '^qverity: --data-blocks: 257 data blocks of 4096 bytes, but the disk of disk.raw holds 256 of them$' \
    --data-blocks 257
bad "data blocks: their bytes overflow" 1 '^qverity: --data-blocks: 4503599627370496 data blocks' \
    --data-blocks 4503599627370496
bad "data blocks: the most there can be" 1 '^qverity: --data-blocks: 18446744073709551615 data' \
    --data-blocks 18446744073709551615
bad "data blocks: more than that" 2 '^qverity: hash: --data-blocks: .* too large' \
    --data-blocks 18446744073709551616
bad "data blocks: no number" 2 "^qverity: hash: --data-blocks: '-1' is not a number" --data-blocks -1
bad "hash: unknown" 1 "^qverity: --hash: there is no digest 'crc32'$" --hash crc32
bad "hash: empty" 1 "^qverity: --hash: there is no digest ''$" --hash ''
bad "hash: a long name" 1 '^qverity: --hash: there is no digest' \
    --hash sha256sha256sha256sha256sha256sha256
bad "hash: an alias of a signature" 1 "^qverity: --hash: there is no digest 'RSA-SHA256'$" \
    --hash RSA-SHA256
for digest in sha256 sha512; do
    refused "kernel: unknown, with $digest" 1 "^qverity: QVERITY_HASH_KERNEL: hash kernel 'wrong' is not one of " \
        env QVERITY_HASH_KERNEL=wrong "$QVERITY" hash --no-tree -p disk --hash $digest disk.raw
    is "and nothing else is told" "$(wc -l <"$T/.err")" 1
done
bad "format version: 2" 1 '^qverity: --format-version 2: neither 0 nor 1$' --format-version 2
bad "format version: 2^32" 1 '^qverity: --format-version 4294967296: too large$' \
    --format-version 4294967296
for option in --data-block-size --hash-block-size; do
    for size in 0 256 3072 4097 1M; do
        bad "$option $size" 1 "^qverity: $option [0-9]+: not a power of two from 512 to 524288$" \
            $option $size
    done
    bad "$option 2^32 + 4096" 1 "^qverity: $option 4294971392: too large$" $option 4294971392
    bad "$option: no size" 2 "^qverity: hash: $option: 'big' is not a number" $option big
done
bad "hash offset: no multiple of 512" 1 '^qverity: --hash-offset 100: not a multiple of 512$' \
    --hash-offset 100
bad "hash offset: no multiple of a hash block" 1 \
    '^qverity: --hash-offset 512: without a superblock it must be a multiple of the hash block size, 4096$' \
    --hash-offset 512 --no-superblock
bad "hash offset: 2^63" 1 '^qverity: --hash-offset 9223372036854775808: too large$' \
    --hash-offset 9223372036854775808
bad "hash offset: the tree behind it overflows" 1 '^qverity: --hash-offset: the hash area is too large$' \
    --hash-offset 9223372036854775296
bad "an option that there is not" 2 "^qverity: hash: unknown option '--panic'" --panic
bad "a second image" 2 '^qverity: hash: ' other.raw
refused "no image" 2 '^qverity: hash: ' "$QVERITY" hash

# A block larger than all there is.
truncate -s 1536 tiny.raw
refused "less than a data block" 1 \
    '^qverity: tiny.raw: the disk has 1536 bytes, less than a data block of 4096$' \
    "$QVERITY" hash --format raw tiny.raw
: >empty.raw
refused "nothing at all" 1 'empty.raw' "$QVERITY" hash --format raw empty.raw -p disk

truncate -s 4M gpt.raw
sfdisk -q gpt.raw <<T
label: gpt
start=2048, size=7, type=linux
start=2056, size=800, type=linux
T
refused "a partition of less than a data block" 1 \
    '^qverity: gpt.raw: partition 1 has 3584 bytes, less than a data block of 4096$' \
    "$QVERITY" hash --format raw gpt.raw -p 1
refused "more data blocks than the partition has" 1 \
    '^qverity: --data-blocks: 101 data blocks of 4096 bytes, but partition 2 of gpt.raw holds 100 of them$' \
    "$QVERITY" hash --format raw gpt.raw -p 2 --data-blocks 101
refused "no such partition" 1 'gpt.raw' "$QVERITY" hash --format raw gpt.raw -p 3
refused "no such image" 1 'nowhere.raw.*No such file' "$QVERITY" hash nowhere.raw

### Where the hash device goes

hash=("$QVERITY" hash --format raw -p disk disk.raw)
refused "no such directory" 1 '^qverity: nowhere/out: cannot create: No such file or directory$' \
    "${hash[@]}" --write nowhere/out
refused "below a file" 1 '^qverity: disk.raw/out: cannot create: Not a directory$' \
    "${hash[@]}" --write disk.raw/out
mkdir directory
refused "a directory" 1 '^qverity: directory: cannot open for writing: Is a directory$' \
    "${hash[@]}" --write directory
mkfifo fifo
refused "a FIFO" 1 '^qverity: fifo: cannot open for writing' "${hash[@]}" --write fifo
refused "a character device" 1 '^qverity: /dev/null: neither a file nor a block device$' \
    "${hash[@]}" --write /dev/null
ln -s nothing dangling
refused "a link to nothing" 1 '^qverity: dangling: cannot open for writing: No such file' \
    "${hash[@]}" --write dangling
if [ "$(id -u)" != 0 ]; then
    : >locked
    chmod 400 locked
    refused "no permission" 1 '^qverity: locked: cannot open for writing: Permission denied$' \
        "${hash[@]}" --write locked
fi

ln -s disk.raw symbolic
ln disk.raw hard
for name in disk.raw symbolic hard; do
    refused "the image itself as $name" 1 \
        "^qverity: $name: --write would overwrite disk.raw, which the image is in$" \
        "${hash[@]}" --write $name
done
qemu-img create -q -f qcow2 -b disk.raw -F raw middle.qcow2
qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2
qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=on external.qcow2 1M
for name in top.qcow2 middle.qcow2 disk.raw; do
    refused "$name of the backing chain" 1 "^qverity: $name: --write would overwrite .*$name, which" \
        "$QVERITY" hash top.qcow2 -p disk --write $name
done
refused "the data file" 1 '^qverity: data.raw: --write would overwrite .*data.raw, which' \
    "$QVERITY" hash external.qcow2 -p disk --write data.raw
same "the image is as it was" disk.raw untouched.raw

# Too little room.
if [ "$(id -u)" = 0 ] && mkdir small && mount -t tmpfs -o size=64k tmpfs small 2>/dev/null; then
    # 2048 data blocks need 17 hash blocks.
    refused "a full disk" 1 "^qverity: small/out: no room for the hash area's 69632 bytes: No space left on device$" \
        "${hash[@]}" --data-block-size 512 --hash-block-size 4096 --no-superblock --write small/out
    [ ! -e small/out ] || fail "a full disk: leaves a file"
    printf 'precious' >small/out
    refused "a full disk, into a file" 1 '^qverity: small/out: no room' \
        "${hash[@]}" --data-block-size 512 --hash-block-size 4096 --no-superblock --write small/out
    is "a full disk, into a file: the file" "$(cat small/out)" precious
    umount small
else
    note "cannot mount a tmpfs here: a full disk is not tested"
fi

### A signal

python3 -c 'import random, sys
sys.stdout.buffer.write(random.Random(7).randbytes(128 << 20))' >slow.raw
"$QVERITY" hash -q --format raw slow.raw -p disk --hash sha3-512 --data-block-size 512 --threads 1 \
    --write out 2>err.txt &
pid=$!
t_kill_later $pid
for ((i = 0; i < 500 * patience; i++)); do
    [ ! -s out ] || break
    sleep 0.01
done
kill -TERM $pid
wait $pid
is "a signal ends it" "$? $(cat err.txt)" "1 qverity: interrupted"
[ ! -e out ] || fail "a signal: leaves a file"
rm -f slow.raw out

### verify

zeros=$(printf '%064d' 0)
veritysetup format disk.raw device --salt "$zeros" >format.txt
root=$(sed -n 's/^Root hash:[[:space:]]*//p' format.txt)
verify=("$QVERITY" verify --format raw -p disk disk.raw)

refused "no root hash" 2 '^qverity: either --root-hash or --root-hash-file is needed' "${verify[@]}"
echo "$root" >root.txt
refused "two root hashes" 2 '^qverity: either' "${verify[@]}" --root-hash "$root" --root-hash-file root.txt
refused "a root hash that is none" 2 '^qverity: --root-hash: character 1 is not a hex digit' \
    "${verify[@]}" --root-hash "-$root"
refused "a root hash that is too short" 2 '^qverity: --root-hash: 31 bytes, but root hashes of sha256 have 32' \
    "${verify[@]}" --root-hash "${root:2}"
refused "a root hash that is too long" 2 '^qverity: --root-hash: 33 bytes, but' \
    "${verify[@]}" --root-hash "${root}00"
refused "a root hash that is empty" 2 '^qverity: --root-hash: 0 bytes, but' "${verify[@]}" --root-hash ''
refused "a root hash beyond all digests" 2 '^qverity: --root-hash: 65 bytes, but 64 at most' \
    "${verify[@]}" --root-hash "$(printf 'c3%.0s' {1..65})"
refused "a root hash file that is not there" 1 '^qverity: nowhere: cannot open: No such file' \
    "${verify[@]}" --root-hash-file nowhere
refused "an empty root hash file" 1 '^qverity: empty.raw: root hash of 0 bytes, but those of sha256 have 32$' \
    "${verify[@]}" --root-hash-file empty.raw
refused "a root hash file of something else" 1 '^qverity: format.txt: root hash: character 1 is not' \
    "${verify[@]}" --root-hash-file format.txt
refused "a salt made up on the spot" 2 '^qverity: --salt random: verifying needs the salt' \
    "${verify[@]}" --root-hash "$root" --salt random

verify+=(--root-hash "$root" --hash-device)
refused "no such hash device" 1 '^qverity: nowhere: cannot open: No such file' "${verify[@]}" nowhere
refused "a directory as hash device" 1 '^qverity: directory: cannot read' "${verify[@]}" directory
refused "a hash device without superblock" 1 '^qverity: disk.raw: no dm-verity superblock at offset 0' \
    "${verify[@]}" disk.raw
refused "a superblock at another offset" 1 '^qverity: device: no dm-verity superblock at offset 4096' \
    "${verify[@]}" device --hash-offset 4096
refused "an empty hash device" 1 '^qverity: empty.raw: too short for a dm-verity superblock at offset 0$' \
    "${verify[@]}" empty.raw
head -c $(($(stat -c %s device) - 1)) device >short
refused "a hash device that lacks a byte" 1 \
    '^qverity: short: 16383 bytes, but a hash device for these parameters has 16384$' \
    "${verify[@]}" short
refused "a hash device that is too short, no superblock" 1 '^qverity: tiny.raw: 1536 bytes, but a hash device' \
    "${verify[@]}" tiny.raw --no-superblock
while read -r option value; do
    refused "$option against the superblock" 1 "^qverity: $option: the superblock of device says something else$" \
        "${verify[@]}" device "$option" "$value"
done <<T
--hash sha512
--format-version 0
--data-block-size 512
--hash-block-size 512
--data-blocks 255
--salt -
--salt 0000
--uuid 01234567-89ab-cdef-0123-456789abcdef
T
refused "an option that does not parse, beside a superblock" 1 '^qverity: --salt: ' "${verify[@]}" device --salt x
cp device damaged
printf '\002' | dd of=damaged bs=1 seek=8 conv=notrunc status=none
refused "a superblock of version 2" 1 '^qverity: damaged: superblock at offset 0: Unsupported VERITY version 2$' \
    "${verify[@]}" damaged
cp device damaged
printf '\001\001' | dd of=damaged bs=1 seek=72 conv=notrunc status=none
refused "a superblock with more data blocks than there are" 1 \
    '^qverity: damaged: superblock: 257 data blocks of 4096 bytes, but the disk of disk.raw holds 256 of them$' \
    "${verify[@]}" damaged
printf '\377\377\377\377\377\377\377\377' | dd of=damaged bs=1 seek=72 conv=notrunc status=none
refused "a superblock with 2^64 - 1 data blocks" 1 \
    '^qverity: damaged: superblock at offset 0: --data-blocks 18446744073709551615: too large' \
    "${verify[@]}" damaged

finish
