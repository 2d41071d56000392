#!/bin/bash
# SPDX-License-Identifier: MIT
# A mount with --verify-root-hash serves what has the root hash, and nothing else: one changed bit of data or of the
# hash device is an I/O error for the blocks that it makes doubtful, and for no other.
# shellcheck source=tests/functional/lib.sh
. "$(dirname "$0")/lib.sh"
require qemu-img veritysetup fusermount3 sfdisk jq python3
[ -w /dev/fuse ] || skip_all "no /dev/fuse"
readable=$top/tests/functional/mount-verified.py

mount_it() # IMAGE OPTION…
{
    mkdir -p mnt
    : >log
    "$QVERITY" mount -f -q -p 1 "$@" mnt 2>>log &
    server=$!
    t_kill_later $server
    for ((i = 0; i < 200 * patience; i++)); do
        [ ! -f mnt/disk ] || return 0
        kill -0 $server 2>/dev/null || return 1
        sleep 0.05
    done
    return 1
}

unmount()
{
    fusermount3 -u mnt
    wait $server
}

# flip FILE OFFSET: changes one bit of the byte there; once more, and it is as it was
flip()
{
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    # shellcheck disable=SC2059
    printf "\\$(printf %03o $((byte ^ 4)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# fails DESCRIPTION COMMAND…
fails()
{
    local description=$1
    shift
    if "$@" >out 2>&1; then fail "$description"; else pass "$description"; fi
}

doubtful() { "$readable" mnt/data part.raw "$@" 2>&1; }

# A partition of 3072 blocks and a bit, with noise and zeros; 192, 12 and 1 hash blocks of 16 digests above it.
truncate -s 14M disk.raw
sfdisk -q disk.raw <<'END' 2>/dev/null
label: gpt
start=2048, size=24577, type=linux
END
python3 - disk.raw <<'END_PYTHON'
import random, sys
dice = random.Random(11)
with open(sys.argv[1], "r+b") as disk:
    for start, length in (0, 5 << 20), ((8 << 20) + 1234, 70000), ((9 << 20), (3 << 20) + 512):
        disk.seek((1 << 20) + start)
        disk.write(dice.randbytes(length))
END_PYTHON
dd if=disk.raw of=part.raw bs=512 skip=2048 count=24577 status=none
veritysetup format part.raw hash --hash-block-size 512 --salt 0123456789abcdef >format.txt 2>&1
root=$(sed -n 's/^Root hash:[[:space:]]*//p' format.txt)
options=(--hash-block-size 512 --salt 0123456789abcdef)
start=(14 2 1) # hash block where each level begins
cp disk.raw pristine.raw

# --- What is right ---

qemu-img convert -f raw -O qcow2 -o cluster_size=512 disk.raw small.qcow2
qemu-img convert -c -f raw -O qcow2 disk.raw packed.qcow2
for image in disk.raw small.qcow2 packed.qcow2; do
    ok "$image: mount with a hash device" mount_it $image -o direct_io --verify-root-hash "$root" --hash-device hash
    is "$image: all of it can be read" "$(doubtful 4096)" ""
    ok "$image: in ranges with any ends" "$readable" mnt/disk disk.raw --ranges 3
    is "$image: the root hash is known" "$(cat mnt/root-hash)" "$root"
    same "$image: the hash device is the one that was given" mnt/hash hash
    is "$image: nothing was wrong" "$(jq .verified.faults mnt/stats.json)" 0
    ok "$image: all was checked" [ "$(jq .verified.blocks_checked mnt/stats.json)" -ge 3072 ]
    unmount
done
is "and nothing was logged" "$(cat log)" ""
for how in --no-tree --lean "--tree kept"; do
    # shellcheck disable=SC2086
    ok "without a hash device, $how" mount_it small.qcow2 "${options[@]}" $how -o direct_io --verify-root-hash "$root"
    is "$how: all of it can be read" "$(doubtful 4096)" ""
    ok "$how: in ranges with any ends" "$readable" mnt/disk disk.raw --ranges 4
    ok "$how: the hash device" cmp -n $((207 * 512)) -i 512 mnt/hash hash
    unmount
done

# --- Data that changes below a mount ---

flips() # WHAT BLOCK…
{
    local block
    for block in "${@:2}"; do
        flip disk.raw $((1048576 + block * 4096 + (block * 7919) % 4096))
        is "$1: block $block changed" "$(doubtful 4096 direct)" "$block"
        flip disk.raw $((1048576 + block * 4096 + (block * 7919) % 4096))
    done
    is "$1: all of them are well again" "$(doubtful 4096 direct)" ""
}

ok "mount with a hash device" mount_it disk.raw --verify-root-hash "$root" --hash-device hash
# The first and the last block, one of zeros, and some at random.
flips "hash device" 0 3071 1500 "$(shuf -i 1-1279 -n 1)" "$(shuf -i 1-1279 -n 1)" "$(shuf -i 2048-3070 -n 1)"
is "faults were counted" "$(jq .verified.faults mnt/stats.json)" 6
is "and are errors of the partition" "$(jq .files.part1.errors mnt/stats.json)" 6
like "logged with the block" "$(cat log)" "part1: data block 3071 \(offset 12578816 of the partition\): not what level 0"
# Through the page cache, whose requests are large.
flip disk.raw $((1048576 + 700 * 4096))
is "a changed block in the page cache" "$(doubtful 4096)" 700
flip disk.raw $((1048576 + 700 * 4096))
# Outside of what the tree covers.
flip disk.raw 600
ok "a change of the partition table is served" cmp -n 1048576 mnt/disk disk.raw
flip disk.raw 600
unmount
for how in --no-tree --lean "--tree kept2"; do
    # shellcheck disable=SC2086
    ok "mount $how" mount_it disk.raw "${options[@]}" $how --verify-root-hash "$root"
    flips "$how" 0 "$(shuf -i 1-3071 -n 1)"
    unmount
done
same "the image is as it was" disk.raw pristine.raw

# --- The hash device ---

for level in 0 1; do
    last=$(((level == 0 ? 192 : 12) - 1)) below=$((level == 0 ? 16 : 256))
    for index in 0 $last $((RANDOM % last)); do
        at=$(((start[level] + index) * 512 + RANDOM % 512))
        flip hash $at
        mount_it disk.raw --verify-root-hash "$root" --hash-device hash
        is "level $level, block $index changed at $at" "$(doubtful 4096 direct)" \
            "$((index * below))-$((index * below + below - 1))"
        like "logged with its level" "$(cat log)" "level $level, block $index of the hash tree"
        fails "it is not served either" dd if=mnt/hash bs=512 skip=$((start[level] + index)) count=1 of=/dev/null
        unmount
        flip hash $at
    done
done
flip hash 700
mount_it disk.raw --verify-root-hash "$root" --hash-device hash
wait $server
is "another topmost block: exit code" $? 3
like "and what is said" "$(cat log)" "hash: does not have this root hash"
flip hash 700

# --- What is refused ---

# refuse CODE PATTERN ARG…
refuse()
{
    local code=$1 pattern=$2
    shift 2
    mkdir -p mnt
    out=$("$QVERITY" mount -q -p 1 "$@" mnt 2>&1)
    is "exit code of $*" $? "$code"
    like "it says" "$out" "$pattern"
}
other=${root/[0-7]/8}
refuse 3 "does not have this root hash" disk.raw --verify-root-hash "$other" --hash-device hash
refuse 3 "does not have this root hash" disk.raw "${options[@]}" --no-tree --verify-root-hash "$other"
flip disk.raw 5000000
refuse 3 "does not have this root hash" disk.raw "${options[@]}" --tree kept2 --verify-root-hash "$root"
flip disk.raw 5000000
TMPDIR=$T/nowhere refuse 1 "nowhere: cannot make a temporary file for hash blocks: No such file" disk.raw "${options[@]}" \
    --no-tree --verify-root-hash "$root"
TMPDIR=$T/nowhere mount_it disk.raw "${options[@]}" --tree kept2 --verify-root-hash "$root"
is "a tree file needs none" "$(doubtful 4096)" ""
unmount
refuse 2 "hex" disk.raw --verify-root-hash xyz --hash-device hash
refuse 2 "4 bytes, but root hashes of sha256 have 32" disk.raw --verify-root-hash 01234567 --hash-device hash
refuse 2 "needs --verify-root-hash" disk.raw --hash-device hash
refuse 2 "overlay" disk.raw --verify-root-hash "$root" --overlay over.qcow2
refuse 1 "hash device for these parameters has" disk.raw "${options[@]}" --no-superblock --verify-root-hash "$root" \
    --hash-device format.txt
head -c $((100 * 4096)) part.raw >cut
veritysetup format cut hash2 >format2.txt 2>&1
root2=$(sed -n 's/^Root hash:[[:space:]]*//p' format2.txt)
refuse 1 "covers 100 of the 3072 data blocks" disk.raw --verify-root-hash "$root2" --hash-device hash2
ok "unless it is said to be right" mount_it disk.raw --data-blocks 100 --verify-root-hash "$root2" --hash-device hash2
is "all of it can be read then" "$(doubtful 4096)" ""
unmount

# A single data block has no hash block above it.
head -c 4096 part.raw >one
veritysetup format one hash3 >format3.txt 2>&1
root3=$(sed -n 's/^Root hash:[[:space:]]*//p' format3.txt)
ok "one block" mount_it one --format raw -p disk --verify-root-hash "$root3" --hash-device hash3
same "it is right" mnt/disk one
unmount
flip one 77
ok "one wrong block" mount_it one --format raw -p disk --verify-root-hash "$root3" --hash-device hash3
fails "cannot be read" cat mnt/disk
unmount
finish
