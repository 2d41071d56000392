#!/bin/bash
# SPDX-License-Identifier: MIT
# A disk below a mount that takes seconds for some reads, or fails them, or delivers less than was asked for,
# does so to those who ask for these bytes, and to nobody else.
. "$(dirname "$0")/lib.sh"
require qemu-img fusermount3 python3
[ -w /dev/fuse ] || skip_all "no /dev/fuse"
faultfs=${QVERITY_TOOLS:-$top/build/tests/tools}/faultfs
[ -x "$faultfs" ] || skip_all "faultfs was not built"

serve() # IMAGE OPTION…: with the broken disk in between
{
    : >faults
    mkdir -p below mnt
    "$faultfs" "$1" "$T/faults" below 2>/dev/null &
    below=$!
    t_kill_later $below
    until_true 5 [ -f below/image ]
    "$QVERITY" mount -f "${@:2}" -p disk --no-tree below/image mnt 2>log &
    server=$!
    t_kill_later $server
    until_true 5 [ -f mnt/disk ]
}

leave()
{
    fusermount3 -u mnt
    wait $server
    fusermount3 -u below
    wait $below
}

head -c 16M /dev/urandom >disk.raw
# Small clusters: L2 tables are all over the file, so that some of them are slow as well.
qemu-img convert -f raw -O qcow2 -o cluster_size=4096 disk.raw disk.qcow2
qemu-img convert -c -f raw -O qcow2 disk.raw packed.qcow2

for image in disk.qcow2 packed.qcow2; do
    serve $image
    file_size=$(stat -c %s $image)
    half=$((file_size / 2))
    # No read of the second half of the file gets done for now, and 24 readers want one each.
    echo "hold $half $half" >faults
    slow=()
    for i in {1..24}; do
        dd if=mnt/disk of="slow.$i" bs=64k skip=$((160 + 3 * i)) count=1 iflag=direct 2>/dev/null &
        slow+=($!)
    done
    sleep 0.5
    ok "$image: what is not slow is read meanwhile" timeout $((60 * patience)) python3 - mnt/disk disk.raw <<'END_PYTHON'
import os, sys
fds = [os.open(name, flags) for name, flags in ((sys.argv[1], os.O_RDONLY | os.O_DIRECT), (sys.argv[2], os.O_RDONLY))]
for n in range(200):
    offset = n * 7919 % 1400 * 4096
    if os.pread(fds[0], 4096, offset) != os.pread(fds[1], 4096, offset):
        sys.exit(f"other bytes at {offset}")
END_PYTHON
    ok "$image: and what the mount tells" timeout $((60 * patience)) cat mnt/stats.json
    waiting=0
    for pid in "${slow[@]}"; do
        kill -0 "$pid" 2>/dev/null && waiting=$((waiting + 1))
    done
    is "$image: while all of the slow ones wait" $waiting 24
    wrong=0
    : >faults
    wait "${slow[@]}"
    for i in {1..24}; do
        cmp -s "slow.$i" <(dd if=disk.raw bs=64k skip=$((160 + 3 * i)) count=1 2>/dev/null) || wrong=$((wrong + 1))
    done
    is "$image: the slow ones are right in the end" $wrong 0

    echo "short 0 $file_size" >faults
    ok "$image: reads that deliver half" cmp mnt/disk disk.raw
    : >faults
    leave
done
finish
