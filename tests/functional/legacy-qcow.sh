#!/bin/bash
# SPDX-License-Identifier: MIT
# QCOW version 1, and AES-encrypted images of every version: equal to what qemu-img makes of them, or
# refused.
. "$(dirname "$0")/lib.sh"

require qemu-img qemu-io python3

quiet()
{
    "$@" >.quiet 2>&1 || { fail "$*"; note "$(cat .quiet)"; return 1; }
}

# compressed RAW IMAGE: qemu-img makes it well, but returns an error
compressed()
{
    qemu-img convert -c -f raw -O qcow "$1" "$2" >.quiet 2>&1
    quiet qemu-img compare -f raw -F qcow "$1" "$2"
}

seed=0
matches()
{
    seed=$((seed + 1))
    sampled || return 0
    ok "$1" python3 "$here/check_image.py" --seed $seed "$QVERITY" "${@:2}"
}

python3 - <<'PYTHON'
import random
random.seed(7)
for name, size in ("a.raw", 6 << 20), ("b.raw", (3 << 20) + 512), ("c.raw", (17 << 20) + 1536):
    with open(name, "wb") as file:
        file.truncate(size)
        for i in range(16):
            start = random.randrange(size)
            length = min(size - start, random.randrange(1, 200000))
            file.seek(start)
            file.write(random.randbytes(length) if i % 2 else bytes([i]) * length)
PYTHON
printf 'a password of more than sixteen bytes\nand another line\n' >password
head -n 1 password | tr -d '\n' >secret
printf 'short' >short
secret=(--object secret,id=s0,file=secret)

# --- Version 1 ---

for raw in a.raw b.raw c.raw; do
    quiet qemu-img convert -f raw -O qcow $raw v1
    matches "version 1, $raw" v1 $raw
    compressed $raw v1c
    matches "version 1, compressed, $raw" v1c $raw
done
quiet qemu-io -f qcow -c 'write -q -P 3 1M 3000k' v1c
quiet qemu-img convert -f qcow -O raw v1c expected.raw
matches "version 1, compressed and not" v1c expected.raw
"$QVERITY" read --format qcow v1c 0 17M >out && same "--format qcow" out <(head -c 17M expected.raw)
like "info tells" "$("$QVERITY" info v1c)" 'Format: +qcow, version 1'
quiet qemu-img create -f qcow empty 499G
is "an empty one of 499 GiB" "$(timeout $((10 * patience)) "$QVERITY" map empty | tr -s ' ')" " 0 535797170176 zero"

# Backing files: clusters of 512 bytes, L2 tables at any multiple of that.
for format in qcow raw qcow2; do
    quiet qemu-img convert -f raw -O $format a.raw base
    rm -f over
    quiet qemu-img create -f qcow -b base -F $format over 8M
    quiet qemu-io -f qcow -c 'write -q -P 1 100k 700' -c 'write -q -P 2 2M 1M' -c 'write -q -P 3 7M 513' over
    quiet qemu-img convert -f qcow -O raw over expected.raw
    matches "version 1 over a larger disk's $format" over expected.raw
done
quiet qemu-img create -f qcow2 -b over -F qcow top 5M
quiet qemu-io -f qcow2 -c 'write -q -P 4 2100k 100k' -c 'write -q -z 2500k 100k' top
quiet qemu-img convert -O raw top expected.raw
matches "qcow2 over version 1 over qcow2" top expected.raw

# --- AES ---

# aes FORMAT OPTIONS RAW IMAGE
aes()
{
    quiet qemu-img convert "${secret[@]}" -f raw -O "$1" -o "encrypt.format=aes,encrypt.key-secret=s0$2" "$3" "$4"
}

for raw in a.raw b.raw c.raw; do
    aes qcow "" $raw aes1
    matches "AES, version 1, $raw" aes1 $raw --no-qemu-map -- --password-file password
done
for cluster in 512 4k 64k 2M; do
    for compat in 0.10 1.1; do
        aes qcow2 ",compat=$compat,cluster_size=$cluster" b.raw aes2
        matches "AES, compat $compat, clusters of $cluster" aes2 b.raw --no-qemu-map -- --password-file password
    done
done
cp short secret
aes qcow2 "" a.raw short2
matches "a password of less than 16 bytes" short2 a.raw --no-qemu-map -- --password-file short
head -n 1 password | tr -d '\n' >secret

# Zero-flagged clusters: libqcow does not know them.
aes qcow2 "" a.raw zeros
spec=driver=qcow2,file.filename=zeros,encrypt.format=aes,encrypt.key-secret=s0
quiet qemu-io "${secret[@]}" --image-opts $spec -c 'write -q -z 0 1M' -c 'write -q -z -u 2M 1M' -c 'write -q -P 5 2500k 1k'
quiet qemu-img convert "${secret[@]}" --image-opts $spec -O raw expected.raw
matches "AES, version 3 with zero-flagged clusters" zeros expected.raw --no-qemu-map -- --password-file password

# One cluster in two places of the disk: the key stream is that of the place.
aes qcow2 "" a.raw twice
l1=$(entry twice 40)
l2=$(($(entry twice "$l1") & 0x00fffffffffffe00))
first=$(python3 -c '
import struct, sys
f = open("twice", "rb"); f.seek(int(sys.argv[1]))
t = struct.unpack(">96Q", f.read(768))
print(next(i for i, e in enumerate(t) if e))' $l2)
patch twice $((l2 + 8 * 90)) Q "$(entry twice $((l2 + 8 * first)))"
spec=driver=qcow2,file.filename=twice,encrypt.format=aes,encrypt.key-secret=s0
quiet qemu-img convert "${secret[@]}" --image-opts $spec -O raw expected.raw
matches "AES, a cluster that stands twice" twice expected.raw --no-qemu-map --random 30 -- --password-file password

# An encrypted overlay. (qemu-img makes it only with the same encryption below, or none.)
quiet qemu-img convert -f raw -O qcow2 a.raw base
quiet qemu-img create "${secret[@]}" -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s0 -b base -F qcow2 over2 7M
spec=driver=qcow2,file.filename=over2,encrypt.format=aes,encrypt.key-secret=s0
quiet qemu-io "${secret[@]}" --image-opts $spec -c 'write -q -P 6 1M 100k' -c 'write -q -z 3M 1M'
quiet qemu-img convert "${secret[@]}" --image-opts $spec -O raw expected.raw
matches "AES over a plain image" over2 expected.raw --no-qemu-map -- --password-file password

"$QVERITY" read aes2 0 3M --password-file short >out
ok "another password gives other bytes, as in QEMU" bash -c '! cmp -s out <(head -c 3M b.raw)'
like "info tells" "$("$QVERITY" info aes2 --password-file password)" 'encryption aes'
for image in aes1 aes2; do
    refused "$image: no password" 1 "^qverity: $image: .*encrypted.*--password-file" "$QVERITY" read $image 0 1
    refused "$image: no password file" 1 'nowhere: .*No such file' "$QVERITY" read $image 0 1 --password-file nowhere
    : >nothing
    refused "$image: an empty password" 1 'nothing: the first line, which is the password, is empty' \
        "$QVERITY" read $image 0 1 --password-file nothing
done

# --- What is wrong ---

quiet qemu-img convert -f raw -O qcow a.raw v1
compressed a.raw v1c
l1=$(entry v1 40)
l2=$(entry v1 "$l1")
broken()
{
    cp v1 bad
    patch bad "$2" "$3" "$4"
    refused "$1" 1 "^qverity: bad: .*$5" "$QVERITY" info bad
}
broken "cluster_bits too small" 32 B 8 'cluster_bits is 8, not 9 to 16'
broken "cluster_bits too large" 32 B 17 'cluster_bits is 17, not 9 to 16'
broken "l2_bits too small" 33 B 5 'l2_bits is 5, not 6 to 13'
broken "l2_bits too large" 33 B 14 'l2_bits is 14, not 6 to 13'
broken "an odd size" 24 Q 1000 'size is 1000'
broken "a size beyond all bounds" 24 Q 0xffffffffffffff00 'size is'
broken "a size that needs a huge L1 table" 24 Q 0x4000000000000000 'L1 table of [0-9]* entries'
broken "L1 table outside the file" 40 Q 0x1000000000 'L1 table .* does not lie within the file'
broken "L1 table offset that overflows" 40 Q 0xfffffffffffffff8 'L1 table .* does not lie within the file'
broken "an unknown encryption method" 36 I 2 'encryption method 2'
broken "backing file name outside the file" 8 Q 0x7fffffff0000 'backing file name'
broken "L2 table outside the file" "$l1" Q 0x1000000000 'L1 entry 0: the L2 table at 0x1000000000'
broken "L2 table offset that is not aligned" "$l1" Q $((l2 + 8)) 'L1 entry 0: .*not aligned'
cp v1 bad
patch bad 8 Q 100
patch bad 16 I 1024
refused "a backing file name that is too long" 1 'backing file name of 1024 bytes' "$QVERITY" info bad

# The L2 entry of a cluster that is there.
index=$(python3 -c '
import struct, sys
f = open("v1", "rb"); f.seek(int(sys.argv[1]))
print(next(i for i, e in enumerate(struct.unpack(">512Q", f.read(4096))) if e))' "$l2")
at=$((l2 + 8 * index))
disk=$((index * 4096))
broken "a cluster outside the file" $at Q 0x1000000000 "L2 entry 0x1000000000 of the cluster at disk offset $disk: cluster lies beyond"
broken "a cluster that is not aligned" $at Q $(($(entry v1 $at) + 512)) 'not a multiple of the cluster size'
broken "a compressed cluster outside the file" $at Q 0x8050001000000000 'cluster lies beyond'
broken "a compressed cluster of no bytes" $at Q 0x8000000000001000 'compressed cluster of 0 bytes'
cp v1 bad
patch bad $at Q $((0x8010000000000000 + $(entry v1 $at)))
refused "compressed data that are none" 1 'does not inflate to a cluster' "$QVERITY" read bad $disk 4096

# A short file: each length is refused.
quiet qemu-img convert -f raw -O qcow b.raw small
size=$(stat -c %s small)
for length in 4 7 8 47 48 500 511 512 600 4096 8191 8192 $((size / 2)) $((size - 1)); do
    head -c $length small >bad
    if [ $length -lt 4 ]; then
        continue
    fi
    refused "truncated to $length bytes" 1 '^qverity: bad: ' "$QVERITY" info bad
done

quiet qemu-img convert "${secret[@]}" -f raw -O qcow2 -o encrypt.format=aes,encrypt.key-secret=s0 a.raw aes2
l1=$(entry aes2 40)
l2=$(($(entry aes2 "$l1") & 0x00fffffffffffe00))
broken_aes()
{
    cp aes2 bad
    patch bad "$2" "$3" "$4"
    refused "AES: $1" 1 "^qverity: bad: .*$5" "$QVERITY" map -p 1 bad --password-file password
}
broken_aes "a compressed cluster" $((l2 + 8)) Q 0x4000000000050000 'compressed'
broken_aes "reserved bits of an L2 entry" $((l2 + 8)) Q 0x0100000000050000 'reserved'
broken_aes "a cluster outside the file" $((l2 + 8)) Q 0x1000000000 'beyond the end of the file'
broken_aes "a cluster that is not aligned" $((l2 + 8)) Q 0x50200 'aligned|multiple'
broken_aes "L2 table outside the file" "$l1" Q 0x8000001000000000 'L2 table'
broken_aes "LUKS instead" 32 I 2 'LUKS'

finish
