#!/bin/bash
# SPDX-License-Identifier: MIT
# qverity verify: whatever is changed, by one byte and anywhere, is found and its place named; what
# veritysetup wrote and nobody touched is accepted.
# shellcheck source=tests/functional/lib.sh
. "$(dirname "$0")/lib.sh"
require veritysetup qemu-img qemu-io python3

uuid=01234567-89ab-cdef-0123-456789abcdef
salt=00112233445566778899aabbccddeeff

noise()
{
    python3 -c 'import random, sys
sys.stdout.buffer.write(random.Random(7).randbytes(int(sys.argv[1])))' "$1"
}

# flip FILE OFFSET: changes one bit of the byte there
flip()
{
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    # shellcheck disable=SC2059
    printf "\\$(printf %03o $((byte ^ 4)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# check ARG…: runs verify on disk.raw; code in $code, output in $out
check()
{
    out=$("$QVERITY" verify -q --format raw -p disk "$@" 2>&1)
    code=$?
}

# found DESCRIPTION LINES ARG…: verify exits with 3 and prints just these lines and their number
found()
{
    local description=$1 lines=$2 expected count
    shift 2
    check "$@"
    count=$(grep -c . <<<"$lines")
    expected=$(printf '%s\nWrong: %d place%s' "$lines" "$count" "$([ "$count" = 1 ] || echo s)")
    if [ $code = 3 ] && [ "$out" = "$expected" ]; then
        return 0
    fi
    note "$description: exit $code"
    note "got:      $out"
    note "expected: $expected"
    return 1
}

# 5000 data blocks; 313, 20, 2 and 1 hash blocks of 16 digests.
blocks=5000
{
    noise 500000
    head -c 1000000 /dev/zero
    noise $((blocks * 512 - 1500000))
} >disk.raw
veritysetup format disk.raw hash --data-block-size 512 --hash-block-size 512 --salt $salt --uuid $uuid >format.txt
root=$(sed -n 's/^Root hash:[[:space:]]*//p' format.txt)
levels=(313 20 2 1)
start=(24 4 2 1) # hash block where each begins

### What is right

check disk.raw --root-hash "$root" --hash-device hash
is "untouched: exit code" $code 0
is "untouched: output" "$out" "Verified: $blocks data blocks and 336 hash blocks"
check disk.raw --root-hash "${root^^}" --hash-device hash
is "a root hash in upper case" $code 0
check disk.raw --root-hash "$root" --data-block-size 512 --hash-block-size 512 --salt $salt
is "without a hash device" "$code $out" "0 Verified: $blocks data blocks"
echo "$root" >root.txt
check disk.raw --root-hash-file root.txt --hash-device hash
is "root hash from a file" $code 0
check disk.raw --root-hash "$root" --hash-device hash --hash sha256 --format-version 1 --salt $salt \
    --data-block-size 512 --hash-block-size 512 --data-blocks $blocks --uuid $uuid
is "options that repeat the superblock" $code 0

qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
out=$("$QVERITY" verify -q disk.qcow2 -p disk --root-hash "$root" --hash-device hash 2>&1)
is "a qcow2 image" "$? $out" "0 Verified: $blocks data blocks and 336 hash blocks"

for options in "--no-superblock" "--hash-offset 1048576" "--hash-offset 512" \
    "--format 0 --hash sha1 --no-superblock --hash-offset 8192" "--data-blocks 1" "--data-blocks 2" \
    "--data-blocks 1 --no-superblock" "--hash sha512 --data-block-size 4096" "--salt -"; do
    : >other
    # An unaligned superblock needs a file that is there.
    [ "$options" = "--hash-offset 512" ] && truncate -s 4096 other
    # shellcheck disable=SC2086
    other=$(veritysetup format disk.raw other --salt $salt $options | sed -n 's/^Root hash:[[:space:]]*//p')
    # shellcheck disable=SC2086
    check disk.raw --root-hash "$other" --hash-device other --salt $salt ${options/--format /--format-version }
    is "veritysetup format $options" $code 0
done

### One byte, anywhere

bad=0
for ((i = 0; i < 24; i++)); do
    # The first and the last byte, zeros, and bytes all over.
    case $i in
    0) offset=0 ;;
    1) offset=$((blocks * 512 - 1)) ;;
    2) offset=800000 ;;
    *) offset=$((i * 104729 % (blocks * 512))) ;;
    esac
    block=$((offset / 512))
    flip disk.raw $offset
    found "data, offset $offset" \
        "disk.raw: data block $block: not what level 0 says (offset $((block * 512)) of the partition)" \
        disk.raw --root-hash "$root" --hash-device hash || bad=$((bad + 1))
    if [ $((i % 8)) = 0 ]; then
        found "data, offset $offset, no hash device" "disk.raw: does not have the root hash" \
            disk.raw --root-hash "$root" --data-block-size 512 --hash-block-size 512 --salt $salt ||
            bad=$((bad + 1))
        veritysetup verify disk.raw hash "$root" 2>/dev/null && bad=$((bad + 1))
    fi
    flip disk.raw $offset
done
is "24 bytes of the data" $bad 0

for level in 0 1 2 3; do
    bad=0
    for ((i = 0; i < 12; i++)); do
        # Level 0's and 1's last block have padding behind their digests, as have levels 2 and 3.
        case $i in
        0) index=0 byte=0 ;;
        1) index=$((levels[level] - 1)) byte=511 ;;
        *) index=$((i * 7919 % levels[level])) byte=$((i * 4099 % 512)) ;;
        esac
        at=$(((start[level] + index) * 512))
        flip hash $((at + byte))
        line="hash: level $level, block $index: not what the level above says (offset $at)"
        [ $level = 3 ] && line="hash: does not have the root hash"
        found "level $level, block $index, byte $byte" "$line" disk.raw --root-hash "$root" \
            --hash-device hash || bad=$((bad + 1))
        flip hash $((at + byte))
    done
    is "12 bytes of level $level" $bad 0
done
check disk.raw --root-hash "$root" --hash-device hash
is "all was put back" $code 0

# Every byte of a superblock that means something, and some of those that mean nothing. A UUID is
# as good as any other.
bad=0
for byte in {0..15} {32..37} 38 63 {64..87} {88..103} 104 200 343 344 400 511; do
    flip hash "$byte"
    check disk.raw --root-hash "$root" --hash-device hash
    case $byte in
    63 | 8[2-7] | 104 | 200 | 343 | 344 | 400 | 511)
        line="hash: superblock: byte $byte, which has no meaning, is not zero (offset $byte)"
        [ $code = 3 ] && [ "$(head -1 <<<"$out")" = "$line" ]
        ;;
    *)
        [ $code = 1 ] || [ $code = 3 ]
        ;;
    esac || {
        bad=$((bad + 1))
        note "superblock, byte $byte: exit $code, $out"
    }
    flip hash "$byte"
done
is "bytes of the superblock" $bad 0
flip hash 20
check disk.raw --root-hash "$root" --hash-device hash
is "another UUID" $code 0
check disk.raw --root-hash "$root" --hash-device hash --uuid $uuid
like "another UUID than asked for" "$code $out" '^1 qverity: --uuid: the superblock of hash says something else$'
flip hash 20

### More than one place

flip disk.raw 100
flip disk.raw 2000000
flip disk.raw 2000001
flip hash $(((24 + 200) * 512 + 3))
flip hash $(((4 + 7) * 512 + 500))
lines="hash: level 1, block 7: not what the level above says (offset 5632)
hash: level 0, block 200: not what the level above says (offset 114688)
disk.raw: data block 0: not what level 0 says (offset 0 of the partition)
disk.raw: data block 3906: not what level 0 says (offset 1999872 of the partition)"
ok "several places, in order" found "several places" "$lines" disk.raw --root-hash "$root" --hash-device hash
"$QVERITY" verify -q --format raw -p disk disk.raw --root-hash "$root" --hash-device hash --json >json.txt
is "JSON: exit code" $? 3
is "JSON" "$(python3 -c 'import json
v = json.load(open("json.txt"))
print(v["verified"], v["wrong"], v["data_blocks"], v["hash_blocks"], v["root_hash"])
for p in v["places"]:
    print(p["kind"], p.get("level"), p["index"], p["offset"])')" "False 4 5000 336 $root
hash_block 1 7 5632
hash_block 0 200 114688
data_block None 0 0
data_block None 3906 1999872"
flip disk.raw 100
flip disk.raw 2000000
flip disk.raw 2000001
flip hash $(((24 + 200) * 512 + 3))
flip hash $(((4 + 7) * 512 + 500))
"$QVERITY" verify -q --format raw -p disk disk.raw --root-hash "$root" --hash-device hash --json >json.txt
is "JSON of what is right" "$? $(python3 -c 'import json
v = json.load(open("json.txt"))
print(v["verified"], v["wrong"], v["places"])')" "0 True 0 []"

# 250 data blocks, of which the first hundred are told.
cp disk.raw other.raw
noise 128000 | tr '\000-\377' '\001-\377\000' | dd of=other.raw bs=512 seek=1100 conv=notrunc status=none
check other.raw --root-hash "$root" --hash-device hash
is "many places: exit code" $code 3
is "many places: lines" "$(wc -l <<<"$out")" 102
is "many places: the first" "$(head -1 <<<"$out")" \
    "other.raw: data block 1100: not what level 0 says (offset 563200 of the partition)"
is "many places: the hundredth" "$(sed -n 100p <<<"$out")" \
    "other.raw: data block 1199: not what level 0 says (offset 613888 of the partition)"
is "many places: how many" "$(tail -1 <<<"$out")" "Wrong: 250 places"
rm -f other.raw

# Data of a partition of a qcow2 image, changed through QEMU.
qemu-io -c 'write -P 0x5a 1000k 1' disk.qcow2 >/dev/null
out=$("$QVERITY" verify -q disk.qcow2 -p disk --root-hash "$root" --hash-device hash 2>&1)
is "a byte written by QEMU" "$? $out" "3 disk.qcow2: data block 2000: not what level 0 says (offset 1024000 of the partition)
Wrong: 1 place"

### A wrong root hash, and forgeries

wrong=$(tr 0-9a-f 1-9a-f0 <<<"$root")
ok "a wrong root hash" found "wrong root" "hash: does not have the root hash" disk.raw \
    --root-hash "$wrong" --hash-device hash
ok "a wrong root hash, no hash device" found "wrong root" "disk.raw: does not have the root hash" \
    disk.raw --root-hash "$wrong" --data-block-size 512 --hash-block-size 512 --salt $salt

# A hash block is changed and all above it made to fit, root hash included: no digest is wrong but
# that of the block below.
forge()
{
    tail -c +513 hash >tree
    forged=$(python3 "$here/naive_verity.py" rehash tree "$1" "$2" "$3" hash=sha256 salt=$salt \
        data_block_size=512 hash_block_size=512 blocks=$blocks)
    head -c 512 hash | cat - tree >forgery
}
forge 0 77 35
ok "forged level 0" found "forgery" \
    "disk.raw: data block $((77 * 16 + 1)): not what level 0 says (offset $(((77 * 16 + 1) * 512)) of the partition)" \
    disk.raw --root-hash "$forged" --hash-device forgery
forge 1 5 100
ok "forged level 1" found "forgery" \
    "forgery: level 0, block 83: not what the level above says (offset $(((24 + 83) * 512)))" \
    disk.raw --root-hash "$forged" --hash-device forgery
forge 3 0 40
ok "forged level 3" found "forgery" \
    "forgery: level 2, block 1: not what the level above says (offset $((3 * 512)))" \
    disk.raw --root-hash "$forged" --hash-device forgery
forge 3 0 500
ok "forged padding" found "forgery" "forgery: does not have the root hash" \
    disk.raw --root-hash "$forged" --hash-device forgery
flip disk.raw 600000
ok "the naive model agrees with an honest change" test \
    "$(python3 "$here/naive_verity.py" root disk.raw hash=sha256 salt=$salt data_block_size=512 hash_block_size=512)" \
    = "$("$QVERITY" hash -q --format raw -p disk disk.raw --salt $salt --data-block-size 512 --hash-block-size 512 |
        sed -n 's/^Root hash:[[:space:]]*//p')"
flip disk.raw 600000

# A superblock that leaves data out is told.
veritysetup format disk.raw short --data-block-size 512 --hash-block-size 512 --data-blocks 4000 --salt - >short.txt
"$QVERITY" verify --format raw -p disk disk.raw --hash-device short \
    --root-hash "$(sed -n 's/^Root hash:[[:space:]]*//p' short.txt)" >/dev/null 2>err.txt
is "fewer blocks than there is room for" "$? $(cat err.txt)" \
    "0 qverity: warning: short: the superblock covers 4000 of the 5000 data blocks that there is room for; only those are checked"

finish
