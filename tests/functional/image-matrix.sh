#!/bin/bash
# SPDX-License-Identifier: MIT
# `read` and `map` against qemu-img, over what qemu-img and qemu-io can make: `read` of everything and
# of random ranges equals `qemu-img convert -O raw`, `map` is right, and knows at least the zeros that
# `qemu-img map` knows.
. "$(dirname "$0")/lib.sh"

require qemu-img qemu-io python3

seed=0

quiet()
{
    "$@" >.quiet 2>&1 || { fail "$*"; note "$(cat .quiet)"; return 1; }
}

# matches DESCRIPTION IMAGE RAW [check_image.py's OPTION…]
matches()
{
    local description=$1 image=$2 raw=$3
    shift 3
    seed=$((seed + 1))
    ok "$description" python3 "$here/check_image.py" --seed $seed "$QVERITY" "$image" "$raw" "$@"
}

# agrees DESCRIPTION IMAGE
agrees()
{
    sampled || return 0
    quiet qemu-img convert -O raw "$2" agrees.raw && matches "$1" "$2" agrees.raw
    rm -f agrees.raw
}

# make_raw FILE SIZE SEED: a sparse file with random bytes, runs of one byte, and zeros
make_raw()
{
    python3 - "$@" <<'PYTHON'
import random
import sys
path, size, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random.seed(seed)
with open(path, "wb") as file:
    file.truncate(size)
    for i in range(14):
        start = random.randrange(size)
        length = min(size - start, random.randrange(1, 300000))
        file.seek(start)
        file.write([random.randbytes(length), bytes([i + 1]) * length, bytes(length)][i % 3])
PYTHON
}

# A disk that is no multiple of 4096, nor of any cluster size but 512.
size=$((5 * 1024 * 1024 + 3 * 512))
make_raw data.raw $size 1

# Zeros by flag, by discard, over data and over nothing; and data again on some of it.
change()
{
    quiet qemu-io -f qcow2 -d unmap -c 'write -q -z 700k 128k' -c 'write -q -z -u 2M 2M' \
        -c 'write -q -z 1900k 512' -c 'discard -q 1M 192k' -c 'write -q -P 77 2100k 3k' \
        -c 'write -q -z 4200k 500k' -c 'write -q -P 3 4400k 512' "$@"
}

for cluster in 512 4k 64k 2M; do
    for options in compat=0.10 compat=1.1 compat=0.10,preallocation=metadata compat=1.1,preallocation=metadata \
        extended_l2=on extended_l2=on,preallocation=metadata; do
        case $options,$cluster in
        extended_l2*,512 | extended_l2*,4k) continue ;; # QEMU has subclusters from 16 KiB on
        esac
        quiet qemu-img convert -f raw -O qcow2 -o cluster_size=$cluster,$options data.raw a.qcow2 || continue
        agrees "clusters of $cluster, $options" a.qcow2
        change a.qcow2 && agrees "clusters of $cluster, $options, zeros and discards" a.qcow2
    done
    for options in compat=0.10 compat=1.1,compression_type=zlib compat=1.1,compression_type=zstd \
        extended_l2=on,compression_type=zlib extended_l2=on,compression_type=zstd; do
        case $options,$cluster in
        extended_l2*,512 | extended_l2*,4k) continue ;;
        esac
        quiet qemu-img convert -c -f raw -O qcow2 -o cluster_size=$cluster,$options data.raw a.qcow2 || continue
        agrees "clusters of $cluster, compressed, $options" a.qcow2
        change a.qcow2 && agrees "clusters of $cluster, compressed, $options, zeros and plain data" a.qcow2
    done
done

# Nothing but metadata: all of it allocated, all of it zeros.
for options in preallocation=metadata preallocation=metadata,extended_l2=on preallocation=off; do
    quiet qemu-img create -f qcow2 -o $options a.qcow2 20M
    agrees "empty, $options" a.qcow2
    is "empty, $options: one extent of zeros" "$("$QVERITY" map a.qcow2 | tr -s ' ')" " 0 20971520 zero"
done

# Chains of three, each larger or smaller than the one below; the lowest qcow2 or raw.
mega=1048576
for sizes in "4 4 4" "3 4 6" "6 4 3" "3 6 4" "5 3 6"; do
    read -r s1 s2 s3 <<<"$sizes"
    for formats in "qcow2 64k 64k" "qcow2 2M 4k" "raw 64k 512"; do
        read -r format c2 c3 <<<"$formats"
        rm -f base base.raw
        make_raw base.raw $((s1 * mega + 1536)) "$s1$s2"
        if [ $format = raw ]; then
            mv base.raw base
        else
            quiet qemu-img convert -c -f raw -O qcow2 base.raw base
        fi
        quiet qemu-img create -f qcow2 -o cluster_size=$c2 -b base -F $format middle $((s2 * mega + 512))
        quiet qemu-io -f qcow2 -c 'write -q -P 9 700k 1M' -c 'write -q -z 2M 300k' -c 'write -q -z -u 2600k 100k' middle
        quiet qemu-img create -f qcow2 -o cluster_size=$c3 -b middle -F qcow2 top $((s3 * mega + 1024))
        quiet qemu-io -f qcow2 -c 'write -q -P 8 1500k 10k' -c 'write -q -z 900k 64k' -c 'discard -q 2400k 512k' top
        agrees "chain of $s1, $s2, $s3 MiB on $format, clusters of $c2 and $c3" top
    done
done
quiet qemu-img create -f qcow2 -o extended_l2=on -b top -F qcow2 top2
quiet qemu-io -f qcow2 -c 'write -q -P 7 1M 3k' -c 'write -q -z 1200k 6k' top2
agrees "chain of four, extended L2 on top" top2

# External data files.
for options in data_file=x.data data_file=x.data,data_file_raw=on data_file=x.data,preallocation=metadata \
    data_file=x.data,extended_l2=on data_file=x.data,data_file_raw=on,preallocation=metadata; do
    rm -f x.data
    quiet qemu-img create -f qcow2 -o $options x.qcow2 $size
    quiet qemu-img convert -n -f raw -O qcow2 data.raw x.qcow2
    quiet qemu-io -f qcow2 -c 'write -q -P 6 4M 100k' -c 'write -q -z 500k 200k' x.qcow2
    agrees "$options" x.qcow2
done

# Internal snapshots: each as it was, also after the disk has grown.
for options in compat=0.10,cluster_size=4k compat=1.1 extended_l2=on; do
    quiet qemu-img convert -f raw -O qcow2 -o $options data.raw s.qcow2
    quiet qemu-img snapshot -c first s.qcow2
    change s.qcow2
    quiet qemu-img snapshot -c second s.qcow2
    quiet qemu-io -f qcow2 -c 'write -q -P 1 0 5M' s.qcow2
    agrees "$options: with snapshots" s.qcow2
    for name in first second; do
        quiet qemu-img convert -l snapshot.name=$name -f qcow2 -O raw s.qcow2 $name.raw
    done
    same "$options: the snapshot is what was there" first.raw data.raw
    matches "$options: snapshot by name" s.qcow2 first.raw --no-qemu-map -- --snapshot first
    matches "$options: snapshot by id" s.qcow2 second.raw --no-qemu-map -- --snapshot 2
    refused "$options: no such snapshot" 1 'snapshot' "$QVERITY" read s.qcow2 0 1 --snapshot third
done

# Odd sizes.
for bytes in 512 1536 4608 65024 66048 2097664; do
    make_raw odd.raw $bytes $bytes
    for options in cluster_size=512 cluster_size=64k cluster_size=2M,compat=0.10; do
        quiet qemu-img convert -f raw -O qcow2 -o $options odd.raw odd.qcow2
        agrees "$bytes bytes, $options" odd.qcow2
    done
    agrees "$bytes bytes, raw" odd.raw
done
head -c 100000 data.raw >odd.raw
agrees "100000 bytes, raw: filled up to a sector" odd.raw
quiet qemu-img create -f qcow2 empty.qcow2 0
is "no bytes: map" "$("$QVERITY" map --json empty.qcow2)" "[]"
is "no bytes: read" "$("$QVERITY" read empty.qcow2 0 0)" ""

finish
