#!/bin/bash
# SPDX-License-Identifier: MIT
# What image/ reads, against qemu-img, over the qcow2 features: all bytes by image_read() and by
# image_map(), random ranges from several threads, and which ranges read as zeros.
. "$(dirname "$0")/lib.sh"

require qemu-img qemu-io awk
check=${QVERITY_TOOLS:-$top/build/tests/tools}/image-check
[ -x "$check" ] || skip_all "$check is not built"

quiet()
{
    "$@" >"$T/.quiet" 2>&1 || { note "failed: $*"; note "$(cat "$T/.quiet")"; return 1; }
}

# Every range that qemu-img map calls zero must be zero in our map. Unlike ours, its map goes on to
# the end of the last cluster.
zeros_agree()
{
    local image=$1
    qemu-img map --output=json "$image" >qemu.map || return 1
    "$check" --holes "$image" >our.map || return 1
    awk '
        FNR == NR { if ($3 == "zero") { n++; from[n] = $1; to[n] = $1 + $2 } last = $1 + $2; next }
        /"zero": true/ {
            start = $0; sub(/.*"start": /, "", start); sub(/,.*/, "", start)
            len = $0; sub(/.*"length": /, "", len); sub(/,.*/, "", len)
            start += 0; end = start + len; if (end > last) end = last
            for (at = start; at < end; at = next_at) {
                next_at = at
                for (i = 1; i <= n; i++) if (from[i] <= at && at < to[i]) next_at = to[i]
                if (next_at == at) { printf "not zero at %.0f\n", at; exit 1 }
            }
        }' our.map qemu.map
}

# agree DESCRIPTION IMAGE [OPTION…]
agree()
{
    local description=$1 image=$2
    shift 2
    sampled || return 0
    rm -f raw
    quiet qemu-img convert -O raw "$image" raw || { fail "$description"; return; }
    if "$check" "$@" "$image" raw >.out 2>&1 && zeros_agree "$image" >>.out 2>&1; then
        pass "$description"
    else
        fail "$description"
        note "$(cat .out)"
    fi
}

# fill IMAGE SIZE CLUSTER SEED [OPTION…]: random writes, zeroes and discards at any alignment of 512
fill()
{
    local image=$1 size=$2 cluster=$3 commands=() i offset length kinds
    RANDOM=$4
    shift 4
    for ((i = 0; i < 40; i++)); do
        offset=$(((RANDOM * 32768 + RANDOM) % size / 512 * 512))
        # Mostly about a cluster, some larger.
        length=$(((RANDOM * 32768 + RANDOM) % (cluster * (RANDOM % 4 + 1)) / 512 * 512 + 512))
        length=$((length > size - offset ? size - offset : length))
        kinds=$((RANDOM % 10))
        case $kinds in
        [0-4]) commands+=(-c "write -q -P $((RANDOM % 255 + 1)) $offset $length") ;;
        5) commands+=(-c "write -q -z $offset $length") ;;
        6) commands+=(-c "write -q -z -u $offset $length") ;;
        7) commands+=(-c "discard -q $offset $length") ;;
        *)
            # Whole clusters, so that not only parts of them are zeroed.
            offset=$((offset / cluster * cluster))
            length=$((size - offset < 2 * cluster ? size - offset : 2 * cluster))
            commands+=(-c "write -q -z -u $offset $length")
            ;;
        esac
    done
    quiet qemu-io "$@" -f qcow2 "${commands[@]}" "$image"
}

# compress IMAGE SIZE CLUSTER: some compressed clusters between the others
compress()
{
    local commands=() i offset length
    for ((i = 1; i < 6; i++)); do
        offset=$(($2 * i / 7 / $3 * $3))
        length=$(($2 - offset < $3 ? $2 - offset : $3))
        commands+=(-c "write -q -z -u $offset $length" -c "discard -q $offset $length"
            -c "write -q -c -P $((i + 40)) $offset $length")
    done
    quiet qemu-io -f qcow2 "${commands[@]}" "$1"
}

seed=1
for options in \
    compat=0.10,cluster_size=512 compat=0.10,cluster_size=4k compat=0.10 compat=0.10,cluster_size=2M \
    cluster_size=512 cluster_size=4k cluster_size=64k cluster_size=2M \
    cluster_size=512,compression_type=zstd cluster_size=4k,compression_type=zstd \
    cluster_size=64k,compression_type=zstd cluster_size=2M,compression_type=zstd \
    extended_l2=on,cluster_size=16k extended_l2=on,cluster_size=64k extended_l2=on,cluster_size=2M \
    extended_l2=on,compression_type=zstd extended_l2=on,preallocation=metadata \
    preallocation=metadata preallocation=falloc preallocation=full \
    preallocation=metadata,cluster_size=4k preallocation=metadata,cluster_size=2M \
    compat=0.10,preallocation=metadata \
    refcount_bits=1 refcount_bits=64 lazy_refcounts=on; do
    cluster=65536
    case $options in
    *cluster_size=512*) cluster=512 ;;
    *cluster_size=4k*) cluster=4096 ;;
    *cluster_size=16k*) cluster=16384 ;;
    *cluster_size=2M*) cluster=2097152 ;;
    esac
    for size in $((12 * 1024 * 1024)) $((5 * 1024 * 1024 + 1536)); do
        # A table of 512-byte clusters maps 32 KiB only: enough tables in less.
        [ $cluster -eq 512 ] && size=$((size / 8 / 512 * 512))
        seed=$((seed + 1))
        # Subclusters have states of their own.
        grain=$cluster
        [[ $options = *extended_l2* ]] && grain=$((cluster / 16))
        quiet qemu-img create -f qcow2 -o "$options" a.qcow2 $size &&
            fill a.qcow2 $size $grain $seed -d unmap &&
            compress a.qcow2 $size $cluster
        agree "$options, $size bytes" a.qcow2 --seed $seed
    done
done

# All clusters compressed, and read by parts at the same time.
quiet qemu-img create -f qcow2 s.qcow2 8M && fill s.qcow2 8388608 65536 77
for options in compression_type=zlib compression_type=zstd cluster_size=512 cluster_size=2M \
    compression_type=zstd,cluster_size=4k extended_l2=on; do
    quiet qemu-img convert -c -O qcow2 -o "$options" s.qcow2 c.qcow2
    agree "converted with compression, $options" c.qcow2
done

# Chains of three: the middle smaller or larger than the others, formats and cluster sizes mixed.
for sizes in "8M 4M 8M" "4M 8M 6M" "8M 8M 4M" "1M 2M 3M" "3M 2M 1M"; do
    read -r base middle top_size <<<"$sizes"
    for formats in "qcow2 64k 64k" "qcow2 4k 2M" "raw 64k 4k"; do
        read -r base_format c1 c2 <<<"$formats"
        seed=$((seed + 1))
        rm -f base
        if [ "$base_format" = raw ]; then
            head -c "$base" /dev/urandom | head -c -1024 >base
        else
            quiet qemu-img create -f qcow2 base "$base" && fill base $((${base%M} << 20)) 65536 $seed
        fi
        quiet qemu-img create -f qcow2 -o cluster_size=$c1 -b base -F $base_format middle "$middle" &&
            fill middle $((${middle%M} << 20)) 65536 $((seed + 100))
        quiet qemu-img create -f qcow2 -o cluster_size=$c2 -b middle -F qcow2 top "$top_size" &&
            fill top $((${top_size%M} << 20)) 65536 $((seed + 200))
        agree "chain of $sizes, $formats" top
    done
done
# The same with almost nothing in the overlays: what is unallocated must still end where they end.
head -c 8M /dev/urandom >base
for size in 4M 8M 12M; do
    quiet qemu-img create -f qcow2 -b base -F raw middle $size && quiet qemu-io -c 'write -q -P 9 1M 4k' middle
    quiet qemu-img create -f qcow2 -b middle -F qcow2 top 10M && quiet qemu-io -c 'write -q -P 8 2M 4k' top
    agree "sparse chain of 8M $size 10M" top
done
quiet qemu-img create -f qcow2 -o extended_l2=on -b top -F qcow2 top2 5M && fill top2 5242880 4096 9
agree "extended L2 entries over a chain" top2
quiet qemu-img create -f qcow2 -o compat=0.10 -b top2 -F qcow2 top3 7M && fill top3 7340032 65536 10
agree "version 2 over a chain" top3
mkdir sub && quiet qemu-img create -f qcow2 -b ../top2 -F qcow2 sub/top4 && agree "relative backing name" sub/top4
quiet qemu-img rebase -u -b top2 -F qcow2 top3
agree "backing format from the header" top3

# External data files.
for options in data_file=x.data data_file=x.data,preallocation=metadata \
    data_file=x.data,data_file_raw=on data_file=x.data,data_file_raw=on,cluster_size=4k \
    data_file=x.data,extended_l2=on data_file=x.data,preallocation=falloc; do
    rm -f x.qcow2 x.data
    quiet qemu-img create -f qcow2 -o "$options" x.qcow2 6M && fill x.qcow2 6291456 65536 5
    agree "$options" x.qcow2
done
rm -f x.qcow2 x.data
quiet qemu-img create -f qcow2 -o data_file=x.data x.qcow2 6M &&
    quiet qemu-io -c 'write -q -P 1 0 64k' -c 'write -q -P 2 1M 100k' x.qcow2 && truncate -s 1200k x.data
agree "data file shorter than the disk" x.qcow2
mkdir elsewhere && mv x.qcow2 x.data elsewhere
(cd elsewhere && qemu-img convert -O raw x.qcow2 ../raw)
ok "data file beside the image" "$check" elsewhere/x.qcow2 raw

# Internal snapshots.
for options in compat=1.1 compat=0.10 extended_l2=on cluster_size=4k; do
    quiet qemu-img create -f qcow2 -o $options n.qcow2 6M && fill n.qcow2 6291456 65536 21
    quiet qemu-img convert -O raw n.qcow2 first.raw && quiet qemu-img snapshot -c first n.qcow2
    fill n.qcow2 6291456 65536 22
    quiet qemu-img convert -O raw n.qcow2 second.raw && quiet qemu-img snapshot -c 1 n.qcow2
    fill n.qcow2 6291456 65536 23
    agree "$options, with snapshots" n.qcow2
    ok "$options, snapshot by name" "$check" --snapshot first n.qcow2 first.raw
    ok "$options, snapshot by id" "$check" --snapshot 2 n.qcow2 second.raw
    # Its id is 2, its name is the other's id: ids go first.
    ok "$options, a name that is another's id" "$check" --snapshot 1 n.qcow2 first.raw
    [ $options = compat=0.10 ] && continue
    quiet qemu-img resize n.qcow2 9M && fill n.qcow2 9437184 65536 24
    agree "$options, resized" n.qcow2
    ok "$options, a snapshot of another size" "$check" --snapshot first n.qcow2 first.raw
done

# What libqcow decrypts or reads, as a layer among others. qemu-io takes the password as a secret.
printf 'open sesame\n' >password
secret=(--object "secret,id=s,data=open sesame")
aes()
{
    printf 'driver=qcow2,encrypt.key-secret=s,file.filename=%s' "$1"
}
quiet qemu-img convert -O raw s.qcow2 base
for options in compat=1.1 compat=0.10 cluster_size=4k; do
    quiet qemu-img create -f qcow2 "${secret[@]}" -b base -F raw \
        -o "encrypt.format=aes,encrypt.key-secret=s,$options" e.qcow2 6M
    quiet qemu-io "${secret[@]}" --image-opts -c 'write -q -P 7 1M 300k' -c 'write -q -P 8 3M 64k' \
        -c 'write -q -z -u 2M 1M' -c 'write -q -z 3M 4k' -c 'discard -q 1M 64k' "$(aes e.qcow2)"
    quiet qemu-img convert "${secret[@]}" --image-opts -O raw "$(aes e.qcow2)" raw
    ok "AES over raw, $options" "$check" --password-file password e.qcow2 raw
done
quiet qemu-img create -f qcow2 -b e.qcow2 -F qcow2 e2.qcow2 8M && quiet cp raw e.raw && truncate -s 8M e.raw
ok "AES as the backing file" "$check" --password-file password e2.qcow2 e.raw
quiet qemu-img create -f qcow -b base -F raw v1.qcow 8M &&
    quiet qemu-io -f qcow -c 'write -q -P 5 1M 300k' -c 'write -q -P 6 5M 1k' v1.qcow
agree "QCOW version 1 over raw" v1.qcow
quiet qemu-img create -f qcow2 -b v1.qcow -F qcow v2.qcow2 10M && fill v2.qcow2 10485760 65536 31
agree "QCOW version 1 as the backing file" v2.qcow2

# QEMU's locks, both ways, on any file of the chain.
qemu-img create -q -f qcow2 bottom 4M && qemu-img create -q -f qcow2 -b bottom -F qcow2 over 4M
for file in over bottom; do
    rm -f qemu.out hold.out
    mkfifo in && { qemu-io -f qcow2 "$file" <in >qemu.out 2>&1 & } && exec 3>in && t_kill_later $!
    # It has the image open when it answers.
    echo "length" >&3
    for ((i = 0; i < 1200 * patience; i++)); do grep -qs MiB qemu.out && break; sleep 0.05; done
    like "refused while qemu-io writes to $file" "$("$check" over 2>&1)" \
        "image_open: .*$file: in use: another process \(a running VM, or qemu-img\) has it open for writing"
    exec 3>&-; wait $!; rm in
    ok "opened afterwards" "$check" over
    mkfifo in && { "$check" --hold over <in >hold.out 2>&1 & } && exec 3>in && t_kill_later $!
    for ((i = 0; i < 1200 * patience; i++)); do grep -qs open hold.out && break; sleep 0.05; done
    like "QEMU does not write to $file while it is read" "$(qemu-io -f qcow2 -c 'write 0 4k' $file 2>&1)" \
        'Failed to get "write" lock'
    ok "QEMU reads $file meanwhile" qemu-io -r -f qcow2 -c 'read 0 4k' $file
    ok "others read it meanwhile" "$check" over
    exec 3>&-; wait $!; rm in
    ok "QEMU writes to $file afterwards" qemu-io -f qcow2 -c 'write 0 4k' $file
done

# Raw, with holes and odd sizes.
truncate -s 3000000 r.raw && printf x | dd of=r.raw bs=1 seek=1500000 conv=notrunc status=none
agree "raw with holes, 3000000 bytes" r.raw
agree "raw with holes, format given" r.raw --format raw
: >empty.raw
agree "empty raw" empty.raw

finish
