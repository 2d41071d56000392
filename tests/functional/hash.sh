#!/bin/bash
# SPDX-License-Identifier: MIT
# Root hashes and hash devices against veritysetup's, byte for byte: every parameter of the format,
# all ways in which an image holds its data, and what --write does to files that are there.
# shellcheck source=tests/functional/lib.sh
. "$(dirname "$0")/lib.sh"
require veritysetup qemu-img qemu-io python3 sfdisk cmp

uuid=01234567-89ab-cdef-0123-456789abcdef
salts=(- 5a "$(printf '%064d' 0)" "$(printf 'c3%.0s' {1..256})")

# COUNT bytes that look random and are the same each time
noise()
{
    python3 -c 'import random, sys
sys.stdout.buffer.write(random.Random(7).randbytes(int(sys.argv[1])))' "$1"
}

root_of()
{
    sed -n 's/^Root hash:[[:space:]]*//p' "$1"
}

# compare IMAGE RAW OPTION…: writes the hash device of both and compares output and bytes. RAW holds
# the data. Says what differs and fails.
compare()
{
    local image=$1 raw=$2 arg offset=0 block=4096 superblock=1 size ours line arguments=()
    shift 2
    rm -f ours theirs
    for arg; do
        case $arg in
        --format-version=*) arguments+=("--format=${arg#*=}") ;;
        --partition=* | --format=* | --threads=* | --snapshot=*) ;;
        *) arguments+=("$arg") ;;
        esac
        case $arg in
        --hash-offset=*) offset=${arg#*=} ;;
        --hash-block-size=*) block=${arg#*=} ;;
        --no-superblock) superblock=0 ;;
        esac
    done
    if ! "$QVERITY" hash -q "$image" --write ours "$@" >ours.txt 2>ours.err; then
        note "qverity hash $image $*: $(cat ours.err)"
        return 1
    fi
    size=$(stat -c %s ours)
    # With a superblock and no tree veritysetup does not fill the hash block that the superblock is
    # in, which the kernel wants to be there, and cannot write one into the middle of a block that
    # is not there yet.
    : >theirs
    if [ $superblock = 1 ] && [ "$size" -lt $((offset + 512 + block)) ]; then
        truncate -s "$size" theirs
    fi
    if ! veritysetup format "$raw" theirs "${arguments[@]}" >theirs.txt 2>theirs.err; then
        note "veritysetup format $raw ${arguments[*]}: $(cat theirs.err)"
        return 1
    fi
    if ! cmp ours theirs >cmp.txt 2>&1; then
        note "$image $*: $(cat cmp.txt)"
        return 1
    fi
    # Each line of veritysetup's is one of ours. The first names the file; the size of the device it
    # tells only if the offset is 0.
    ours=$(<ours.txt)$'\n'
    while IFS= read -r line; do
        case $line in
        "VERITY header information for theirs") ;;
        *)
            case $ours in
            *$'\n'"$line"$'\n'*) ;;
            *)
                note "$image $*: veritysetup says '$line'"
                return 1
                ;;
            esac
            ;;
        esac
    done <theirs.txt
}

### Parameters

noise $((129 * 4096)) >dense
# Zeros at the front, in the middle, at the end, and one bit among them.
{
    head -c 40000 /dev/zero
    noise 70000
    head -c 300000 /dev/zero
    printf '\1'
    head -c $((129 * 4096 - 410001)) /dev/zero
} >holes
n=0
for data_block_size in 512 1024 4096; do
    for hash_block_size in 512 1024 4096; do
        bad=0
        cases=0
        for version in 0 1; do
            for hash in sha1 sha256 sha512; do
                for blocks in 1 2 127 128 129; do
                    # The rest rotates: periods without a common factor meet all pairs.
                    salt=${salts[n % 4]}
                    places=(0 8192 1048576 512 3584)
                    offset=${places[(n + n / 5) % 5]}
                    data=dense
                    [ $((n % 3)) = 1 ] && data=holes
                    superblock=()
                    if [ $((n % 7)) -lt 3 ]; then
                        superblock=(--no-superblock)
                        [ $((offset % hash_block_size)) = 0 ] || offset=8192
                    fi
                    n=$((n + 1))
                    sampled || continue
                    cases=$((cases + 1))
                    compare $data $data --format=raw --partition=disk --uuid=$uuid \
                        --hash=$hash --format-version=$version --data-blocks=$blocks \
                        --data-block-size=$data_block_size --hash-block-size=$hash_block_size \
                        --salt="$salt" --hash-offset="$offset" "${superblock[@]}" || bad=$((bad + 1))
                done
            done
        done
        is "data blocks of $data_block_size, hash blocks of $hash_block_size: $cases cases" $bad 0
    done
done

# Each salt, offset and superblock with each other, for a tree of three levels.
bad=0
for salt in "${salts[@]}"; do
    for offset in 0 512 4096 1048576; do
        for superblock in "" --no-superblock; do
            [ -n "$superblock" ] && [ $offset = 512 ] && continue
            sampled || continue
            compare dense dense --format=raw --partition=disk --uuid=$uuid --data-block-size=512 \
                --hash-block-size=1024 --salt="$salt" --hash-offset=$offset $superblock ||
                bad=$((bad + 1))
        done
    done
done
is "salts, offsets and superblock" $bad 0

bad=0
for hash in md5 sha224 sha384 sha3-256 blake2b-512 blake2s-256 ripemd160 sm3 SHA256; do
    for version in 0 1; do
        sampled || continue
        compare dense dense --format=raw --partition=disk --uuid=$uuid --hash=$hash \
            --format-version=$version --salt=5a --data-block-size=512 || bad=$((bad + 1))
    done
done
is "other digests that veritysetup takes" $bad 0

bad=0
for sizes in "65536 512" "512 65536" "524288 524288"; do
    compare dense dense --format=raw --partition=disk --uuid=$uuid --salt=5a \
        --data-block-size="${sizes% *}" --hash-block-size="${sizes#* }" || bad=$((bad + 1))
done
is "large blocks" $bad 0

# A level that is just full, and one block more.
noise $((16385 * 512)) >dense
{
    noise 100000
    head -c 1000000 /dev/zero
    noise $((16385 * 512 - 1100000))
} >mixed
bad=0
for blocks in 16384 16385; do
    compare dense dense --format=raw --partition=disk --uuid=$uuid --data-block-size=512 \
        --data-blocks=$blocks --salt=5a || bad=$((bad + 1))
    compare mixed mixed --format=raw --partition=disk --uuid=$uuid --data-block-size=512 \
        --hash-block-size=512 --data-blocks=$blocks --salt=- --hash=sha512 || bad=$((bad + 1))
    compare mixed mixed --format=raw --partition=disk --uuid=$uuid --data-block-size=512 \
        --hash-block-size=1024 --data-blocks=$blocks --salt=- --hash=sha1 --format-version=0 \
        --hash-offset=8192 --no-superblock || bad=$((bad + 1))
done
truncate -s $((16385 * 4096)) sparse
noise 300000 | dd of=sparse bs=4096 seek=9000 conv=notrunc status=none
for blocks in 16384 16385; do
    compare sparse sparse --format=raw --partition=disk --uuid=$uuid --data-blocks=$blocks \
        --salt="$(printf '%064d' 0)" || bad=$((bad + 1))
done
truncate -s $((2097153 * 512)) sparse
noise 70000 | dd of=sparse bs=512 seek=2097000 conv=notrunc status=none
noise 70000 | dd of=sparse bs=512 seek=100 conv=notrunc status=none
compare sparse sparse --format=raw --partition=disk --uuid=$uuid --data-block-size=512 --salt=- ||
    bad=$((bad + 1))
compare sparse sparse --format=raw --partition=disk --uuid=$uuid --data-block-size=512 --salt=5a \
    --hash-block-size=1024 --hash=sha1 --format-version=0 --no-superblock || bad=$((bad + 1))
is "16384, 16385 and 2097153 blocks" $bad 0
rm -f sparse

# A third opinion, which knows no C.
for options in "" "type=0 hash=sha1 salt=5a data_block_size=512 hash_block_size=512" \
    "hash=sha384 salt= data_block_size=1024 hash_block_size=512 blocks=8000"; do
    arguments=(--no-superblock)
    for option in $options; do
        value=${option#*=}
        case $option in
        type=*) arguments+=(--format-version "$value") ;;
        hash=*) arguments+=(--hash "$value") ;;
        salt=*) arguments+=(--salt "${value:--}") ;;
        data_block_size=*) arguments+=(--data-block-size "$value") ;;
        hash_block_size=*) arguments+=(--hash-block-size "$value") ;;
        blocks=*) arguments+=(--data-blocks "$value") ;;
        esac
    done
    # shellcheck disable=SC2086
    root=$(python3 "$here/naive_verity.py" tree mixed naive $options)
    rm -f ours
    "$QVERITY" hash -q mixed --format raw -p disk "${arguments[@]}" --write ours >ours.txt 2>/dev/null
    is "the naive model's root hash: ${options:-defaults}" "$(root_of ours.txt)" "$root"
    same "the naive model's tree: ${options:-defaults}" ours naive
done

for threads in 1 2 7; do
    ok "$threads threads" compare mixed mixed --format=raw --partition=disk --uuid=$uuid --salt=- \
        --data-block-size=512 --threads=$threads
done

### Ways in which an image holds its data

# image DESCRIPTION FILE: the image hashes like the bytes that qemu-img finds in it
image()
{
    qemu-img convert -O raw "$2" bytes.raw
    ok "$1" compare "$2" bytes.raw --partition=disk --uuid=$uuid --salt=5a
}

head -c $((8 * 1048576)) mixed >bytes
truncate -s 20M bytes
qemu-img convert -f raw -O qcow2 bytes dense.qcow2
image "qcow2" dense.qcow2
qemu-img convert -f raw -c -O qcow2 bytes packed.qcow2
image "qcow2, compressed" packed.qcow2
qemu-img convert -f raw -c -O qcow2 -o compression_type=zstd,cluster_size=4k bytes packed.qcow2
image "qcow2, compressed by zstd, 4 KiB clusters" packed.qcow2
qemu-img convert -f raw -O qcow2 -o cluster_size=512 bytes small.qcow2
image "qcow2, 512-byte clusters" small.qcow2
qemu-img create -q -f qcow2 -o preallocation=metadata allocated.qcow2 20M
qemu-io -c 'write -P 7 1M 70k' -c 'write -z 4M 1M' allocated.qcow2 >/dev/null
image "qcow2, metadata preallocated" allocated.qcow2
qemu-img create -q -f qcow2 -o preallocation=falloc full.qcow2 20M
qemu-io -c 'write -P 7 1M 70k' full.qcow2 >/dev/null
image "qcow2, space preallocated" full.qcow2
qemu-img create -q -f qcow2 -b dense.qcow2 -F qcow2 overlay.qcow2 24M
qemu-io -c 'write -P 9 100k 3k' -c 'write -z 1M 128k' -c 'write -P 3 21M 5000' overlay.qcow2 >/dev/null
image "qcow2, a larger overlay" overlay.qcow2
qemu-img create -q -f qcow2 empty.qcow2 20M
image "qcow2, empty" empty.qcow2

# A GPT disk: each partition is hashed by itself.
truncate -s 40M disk.raw
sfdisk -q disk.raw <<T
label: gpt
start=2048, size=8192, type=uefi
start=10240, size=40961, type=linux
T
noise 4194304 | dd of=disk.raw bs=512 seek=2048 conv=notrunc status=none
dd if=mixed of=disk.raw bs=512 seek=10240 conv=notrunc status=none
qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
dd if=disk.raw of=part1 bs=512 skip=2048 count=8192 status=none
dd if=disk.raw of=part2 bs=512 skip=10240 count=40961 status=none
for image in disk.raw disk.qcow2; do
    ok "$image, partition 1" compare $image part1 --partition=1 --uuid=$uuid --salt=-
    ok "$image, partition 2" compare $image part2 --partition=2 --uuid=$uuid --salt=- \
        --data-block-size=512
    # Its last sector is no whole block.
    ok "$image, partition 2 by blocks of 4096" compare $image part2 --partition=2 --uuid=$uuid \
        --salt=-
done
"$QVERITY" hash disk.qcow2 -p 2 >/dev/null 2>warning.txt
like "the bytes that are left out are told" "$(cat warning.txt)" \
    'warning: .*disk.qcow2: the last 512 bytes of partition 2'

### What is printed

# The disk that all this is for: 499 GiB, of which nothing is written yet. Its root hash is what
# veritysetup took ten minutes to find.
truncate -s $((10240 * 512 + 535741399040 + 1048576)) large.raw
sfdisk -q large.raw <<T
label: gpt
start=2048, size=8192, type=uefi
start=10240, size=1046369920, type=linux
T
zeros=$(printf '%064d' 0)
golden=6dda91c517d80f6426cff98c130a3964163eda0f8fef7f7f7d95292883086215
table="0 1046369920 verity 1 /dev/sda2 /dev/sdb 4096 4096 130796240 1 sha256 $golden $zeros 1 panic_on_corruption"
"$QVERITY" hash large.raw -p 2 --json >json.txt
json()
{
    python3 -c 'import json, sys; v = json.load(open("json.txt"))[sys.argv[1]]
print("null" if v is None else v)' "$1"
}
is "root hash of 499 GiB of zeros" "$(json root_hash)" $golden
is "its table" "$(json table)" "$table"
is "its dm-mod.create" "$(json dm_mod_create)" "dm-mod.create=\"dmverity,,0,ro,$table\""
is "its hash device's size" "$(json hash_device_size)" 4218449920
is "its data blocks, all zeros" "$(json data_blocks) $(json zero_blocks)" "130796240 130796240"
is "method" "$(json method)" full
is "nothing was read" "$(json data_bytes_hashed)" 0
is "keys" "$(python3 -c 'import json; print(*json.load(open("json.txt")))')" \
    "root_hash salt uuid hash_algorithm hash_type data_blocks data_block_size hash_block_size hash_start_block hash_device_size table dm_mod_create method data_bytes_hashed zero_blocks seconds"
rm -f large.raw

"$QVERITY" hash --json mixed --format raw -p disk --salt - --no-superblock --hash sha1 \
    --hash-offset 8192 --format-version 0 >json.txt 2>/dev/null
is "no salt, no superblock in JSON" \
    "[$(json salt)] $(json uuid) $(json hash_type) $(json hash_start_block)" "[] null 0 2"
like "the table has - for no salt" "$(json table)" ' [0-9a-f]{40} - 1 panic_on_corruption$'

"$QVERITY" hash -q mixed --format raw -p disk >out.txt
is "the root hash comes last" "$(tail -1 out.txt)" "Root hash:      	$(root_of out.txt)"
is "the salt is 32 zero bytes" "$(sed -n 's/^Salt:[[:space:]]*//p' out.txt)" "$zeros"

### The UUID when none is given

rm -f first second
"$QVERITY" hash -q mixed --format raw -p disk --write first >first.txt
"$QVERITY" hash -q mixed --format raw -p disk --write second --threads 1 >second.txt
same "the same bytes give the same hash device" first second
derived=$(printf 'qverity-uuid-1 sha256 1 4096 4096 2048 %s %s' "$zeros" "$(root_of first.txt)" |
    sha256sum)
is "the UUID is derived as documented" "$(sed -n 's/^UUID:[[:space:]]*//p' first.txt)" \
    "$(python3 -c 'import sys
b = bytearray.fromhex(sys.argv[1][:32])
b[6] = b[6] & 15 | 128
b[8] = b[8] & 63 | 128
h = b.hex()
print("-".join([h[:8], h[8:12], h[12:16], h[16:20], h[20:]]))' "$derived")"
ok "veritysetup dump takes it" veritysetup dump first
ok "veritysetup verify takes it" veritysetup verify mixed first "$(root_of first.txt)"
"$QVERITY" hash -q mixed --format raw -p disk --salt 00 >third.txt
if [ "$(grep UUID third.txt)" != "$(grep UUID first.txt)" ]; then
    pass "another salt, another UUID"
else
    fail "another salt, another UUID"
fi

"$QVERITY" hash -q mixed --format raw -p disk --salt random >first.txt
"$QVERITY" hash -q mixed --format raw -p disk --salt random >second.txt
like "a random salt" "$(cat first.txt)" '^Salt:[[:space:]]+[0-9a-f]{64}$'
if [ "$(grep Salt first.txt)" != "$(grep Salt second.txt)" ]; then
    pass "another one each time"
else
    fail "another one each time"
fi

### Writing

rm -f created
(umask 0 && "$QVERITY" hash -q mixed --format raw -p disk --write created >/dev/null)
is "a file that is created is private" "$(stat -c %a created)" 600
size=$(stat -c %s created)
mv created device
head -c $((size + 100000)) /dev/zero | tr '\0' '\377' >existing
cp existing before
"$QVERITY" hash -q mixed --format raw -p disk --write existing --hash-offset 8192 >/dev/null
is "a larger file keeps its size" "$(stat -c %s existing)" $((size + 100000))
same "what is before the offset stays" <(head -c 8192 existing) <(head -c 8192 before)
same "what is behind the end stays" <(tail -c $((100000 - 8192)) existing) \
    <(tail -c $((100000 - 8192)) before)
rm -f created
"$QVERITY" hash -q mixed --format raw -p disk --write created --hash-offset 8192 >/dev/null
same "the hash area is that of a new file" <(tail -c +8193 created) \
    <(head -c "$(stat -c %s created)" existing | tail -c +8193)

if [ "$(id -u)" = 0 ] && truncate -s 256K device.raw && loop=$(losetup -f --show device.raw 2>/dev/null); then
    "$QVERITY" hash -q mixed --format raw -p disk --write "$loop" >loop.txt 2>&1
    code=$?
    dd if="$loop" of=copy bs=4096 count=$((size / 4096)) status=none
    refused "a block device that is too small" 1 "$loop: the block device has 262144 bytes, the hash device needs" \
        "$QVERITY" hash mixed --format raw -p disk --write "$loop" --data-block-size 512 --hash-block-size 512
    losetup -d "$loop"
    is "to a block device" $code 0
    same "a block device gets the same bytes" copy device
else
    note "no loop device here: --write to a block device is not tested"
fi

finish
