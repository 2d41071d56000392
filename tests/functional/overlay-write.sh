#!/bin/bash
# SPDX-License-Identifier: MIT
# Overlays that are written here, as QEMU sees them; full disks and failing ones; what is refused.
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io
tool=${QVERITY_TOOLS:-$top/build/tests/tools}/overlay-tool

head -c 6M /dev/urandom >base.raw
truncate -s 8M base.raw
qemu-img convert -f raw -O qcow2 base.raw base.qcow2

clean() { qemu-img check -f qcow2 "$1" >"$T/check.out" 2>&1; }
raw_of() { qemu-img convert -O raw "$1" "$T/of.raw"; }

# --- What QEMU makes of it ---
cp base.raw model.raw
ok "random writes" "$tool" --seed 1 random base.qcow2 over.qcow2 model.raw
ok "clean" clean over.qcow2
raw_of over.qcow2
same "the bytes" of.raw model.raw
info=$(qemu-img info over.qcow2)
like "an image beside it is named by its name" "$info" '^backing file: base.qcow2( |$)'
like "with its format" "$info" '^backing file format: qcow2$'
ok "QEMU writes to it" qemu-io -f qcow2 -c 'write -P 7 100k 300k' -c 'write -z 1M 200k' -c 'discard 2M 1M' over.qcow2
raw_of over.qcow2
cp of.raw model.raw
ok "and after that we again" "$tool" --seed 2 random base.qcow2 over.qcow2 model.raw
ok "clean after both" clean over.qcow2
raw_of over.qcow2
same "the bytes of both" of.raw model.raw
cp base.qcow2 committed.qcow2
qemu-img rebase -u -F qcow2 -b committed.qcow2 over.qcow2
ok "commit" qemu-img commit -q over.qcow2
raw_of committed.qcow2
same "the bytes committed" of.raw model.raw

# Elsewhere, the image is named by its path.
mkdir sub
cp base.raw model.raw
ok "an overlay in another directory" "$tool" --count 50 random base.qcow2 sub/over.qcow2 model.raw
like "names the image by its path" "$(qemu-img info sub/over.qcow2)" "^backing file: $T/base.qcow2\$"
raw_of sub/over.qcow2
same "and has its bytes" of.raw model.raw
cp base.raw 'with:colon.raw'
cp base.raw model.raw
ok "a name that looks like a protocol" "$tool" --format raw --count 50 random with:colon.raw colon.qcow2 model.raw
raw_of colon.qcow2
same "is understood by QEMU" of.raw model.raw

# --- Full disks, and broken ones ---
failed=0
errors=0
for seed in 1 2 3 4 5 6 7 8 9 10; do
    rm -f faulty.qcow2
    cp base.raw model.raw
    if ! { out=$("$tool" --seed $seed --count 200 --faults 20 random base.qcow2 faulty.qcow2 model.raw 2>&1) &&
        clean faulty.qcow2 && raw_of faulty.qcow2 && cmp -s of.raw model.raw; }; then
        failed=$((failed + 1))
        note "seed $seed: $out $(head -3 check.out)"
    fi
    errors=$((errors + ${out%% *}))
done
is "calls that fail lose nothing" $failed 0
ok "and some have failed" [ $errors -gt 50 ]

mkdir small
if mount -t tmpfs -o size=3M none small 2>mount.err; then
    cp base.raw model.raw
    out=$("$tool" --seed 4 --count 400 random base.qcow2 small/over.qcow2 model.raw 2>&1)
    is "a full disk loses nothing" $? 0
    like "writes to it have failed" "$out" '^[1-9][0-9]+ failed, 0 bytes wrong$'
    ok "and left no mark" clean small/over.qcow2
    raw_of small/over.qcow2
    same "nor other bytes" of.raw model.raw
    mount -o remount,size=64M small
    is "with space again, writes succeed" \
        "$("$tool" --seed 5 --count 300 random base.qcow2 small/over.qcow2 model.raw 2>&1)" \
        "0 failed, 0 bytes wrong"
    raw_of small/over.qcow2
    same "all of them" of.raw model.raw
    mkdir tiny
    mount -t tmpfs -o size=128k none tiny
    refused "no space for an overlay" 1 'No space left' "$tool" open base.qcow2 tiny/over.qcow2
    is "which leaves nothing behind" "$(ls tiny)" ""
fi

# --- What is refused ---
# refuse DESCRIPTION REGEX OPTIONS-OF-QEMU-IMG…: an overlay made with those
refuse()
{
    local description=$1 regex=$2
    shift 2
    rm -f bad.qcow2
    qemu-img create -q -f qcow2 "$@" >create.out 2>&1 || note "$(cat create.out)"
    refused "$description" 1 "$regex" "$tool" open base.qcow2 bad.qcow2
}
over=(-F qcow2 -b base.qcow2 bad.qcow2)

refuse "no overlay at all" 'bad.qcow2: exists, and is no overlay of base.qcow2: it has no backing file' bad.qcow2 8M
cp base.qcow2 other.qcow2
refused "the image itself" 1 'base.qcow2: is no overlay, but belongs to the image' \
    "$tool" open base.qcow2 base.qcow2
refuse "an overlay of another image" 'is no overlay of base.qcow2: its backing file is other.qcow2' \
    -F qcow2 -b other.qcow2 bad.qcow2
refuse "another size" 'the overlay has 16777216 bytes, and base.qcow2 has 8388608' "${over[@]}" 16M
refuse "taken for raw" 'takes base.qcow2 for a raw image, and not for a qcow2 image' -F raw -b base.qcow2 bad.qcow2 8M
refuse "version 2" 'version 2 image, and only version 3' -o compat=0.10 "${over[@]}"
refuse "extended L2" 'has extended L2 entries' -o extended_l2=on "${over[@]}"
refuse "other refcounts" 'has refcounts of 1 bits, and only 16' -o refcount_bits=1 "${over[@]}"
refuse "a data file" 'has an external data file' -o data_file=bad.data "${over[@]}"

qemu-img create -q -f qcow2 "${over[@]}"
qemu-img snapshot -c a bad.qcow2
refused "snapshots" 1 'has internal snapshots' "$tool" open base.qcow2 bad.qcow2
qemu-img create -q -f qcow2 "${over[@]}"
qemu-img bitmap --add bad.qcow2 b
refused "bitmaps" 1 'has dirty bitmaps' "$tool" open base.qcow2 bad.qcow2
qemu-img create -q -f qcow2 "${over[@]}"
printf '\1' | dd of=bad.qcow2 bs=1 seek=79 conv=notrunc 2>dd.err
refused "dirty" 1 'overlay is marked dirty.*qemu-img check' "$tool" open base.qcow2 bad.qcow2
printf '\2' | dd of=bad.qcow2 bs=1 seek=79 conv=notrunc 2>dd.err
refused "corrupt" 1 'marked corrupt' "$tool" open base.qcow2 bad.qcow2
rm -f bad.qcow2
qemu-img create -q -f qcow2 "${over[@]}"
qemu-io -f qcow2 -c 'write -c -P 3 0 64k' bad.qcow2 >io.out
refused "compressed clusters" 1 'has compressed clusters \(the first at disk offset 0x0\)' \
    "$tool" open base.qcow2 bad.qcow2

# Damage: the first L2 table, its entries, refcounts. Header, refcount table and block, L1, L2, data.
damaged()
{
    local description=$1 regex=$2 offset=$3 bytes=$4
    rm -f bad.qcow2
    qemu-img create -q -f qcow2 "${over[@]}"
    qemu-io -f qcow2 -c 'write -P 3 0 128k' bad.qcow2 >io.out
    # shellcheck disable=SC2059
    printf "$bytes" | dd of=bad.qcow2 bs=1 seek=$((offset)) conv=notrunc 2>dd.err
    refused "$description" 1 "$regex" "$tool" open base.qcow2 bad.qcow2
}
damaged "refcount 0" 'cluster 0: the cluster at 0x50000 has refcount 0, and must have 1' 0x2000a '\0\0'
damaged "refcount 2" 'cluster 1: the cluster at 0x60000 has refcount 2' 0x2000c '\0\2'
damaged "a cluster twice" 'cluster 1: the cluster at 0x50000 is used twice' 0x4000d '\5'
damaged "a flag that is wrong" 'of cluster 0: the flag for a refcount of 1 is wrong' 0x40000 '\0'
damaged "a cluster outside" 'cluster 0: 0x7f050000 is no cluster within the file' 0x40004 '\x7f'
damaged "a wrong flag in L1" 'L1 entry 0 .*: the flag for a refcount of 1 is wrong' 0x30000 '\0'
damaged "a refcount block outside" 'refcount table entry 0: 0x.* is no cluster within the file' 0x10004 '\x7f'

qemu-img create -q -f qcow2 "${over[@]}"
mkfifo hold
"$tool" open base.qcow2 bad.qcow2 <hold >open.out &
holder=$!
t_kill_later $holder
exec 9>hold
until grep -q open open.out; do sleep 0.05; done
refused "one that is open" 1 'bad.qcow2: in use' "$tool" open base.qcow2 bad.qcow2
ok "QEMU cannot open it either" bash -c '! qemu-img info bad.qcow2'
ok "but the image below" qemu-img info base.qcow2
exec 9>&-
wait $holder
qemu_hold bad.qcow2
refused "one that QEMU has open" 1 'bad.qcow2: in use' "$tool" open base.qcow2 bad.qcow2
qemu_release
finish
