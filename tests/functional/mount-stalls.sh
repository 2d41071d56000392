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
    until_true 120 [ -f below/image ]
    "$QVERITY" mount -f "${@:2}" -p disk --no-tree below/image mnt 2>log &
    server=$!
    t_kill_later $server
    until_true 120 [ -f mnt/disk ] || {
        fail "it is mounted"
        finish
    }
}

leave()
{
    fusermount3 -u mnt
    wait $server
    fusermount3 -u below
    wait $below
}

held() # COUNT: so many reads below are being held
{
    [ "$(stat -c %s faults.held)" -ge "$1" ]
}

# Bytes of 7 bits: every cluster of the compressed image is compressed.
head -c 16M /dev/urandom | tr '\200-\377' '\0-\177' >disk.raw
# Small clusters: L2 tables are all over the file, so that some of them are held as well.
qemu-img convert -f raw -O qcow2 -o cluster_size=4096 disk.raw disk.qcow2
qemu-img convert -c -f raw -O qcow2 disk.raw packed.qcow2
readers=60

for image in disk.qcow2 packed.qcow2; do
    serve $image
    file_size=$(stat -c %s $image)
    half=$((file_size / 2))
    # Every read of the second half of the file is held, and 60 readers want one each.
    echo "hold $half $half" >faults
    slow=()
    for ((i = 0; i < readers; i++)); do
        dd if=mnt/disk of="slow.$i" bs=64k skip=$((160 + i)) count=1 iflag=direct 2>/dev/null &
        slow+=($!)
    done
    # Where an L2 table is held, many wait for one read.
    if [ $image = packed.qcow2 ]; then
        ok "$image: $readers reads are held" until_true 60 held $readers
    else
        ok "$image: reads are held" until_true 60 held 1
        sleep 0.5
    fi
    # Without workers that are free it would not end.
    ok "$image: what is not held is read meanwhile" timeout $((60 * patience)) python3 - mnt/disk disk.raw <<'END_PYTHON'
import os, sys
fds = [os.open(name, flags) for name, flags in ((sys.argv[1], os.O_RDONLY | os.O_DIRECT), (sys.argv[2], os.O_RDONLY))]
for n in range(200):
    offset, length = n * 7919 % 1400 * 4096, 4096 if n % 10 else 1 << 20
    if os.pread(fds[0], length, offset) != os.pread(fds[1], length, offset):
        sys.exit(f"other bytes at {offset}")
END_PYTHON
    ok "$image: and what the mount tells" timeout $((60 * patience)) cat mnt/stats.json
    waiting=0
    for pid in "${slow[@]}"; do
        kill -0 "$pid" 2>/dev/null && waiting=$((waiting + 1))
    done
    is "$image: while all of the held ones wait" $waiting $readers
    : >faults
    wait "${slow[@]}"
    wrong=0
    for ((i = 0; i < readers; i++)); do
        cmp -s "slow.$i" <(dd if=disk.raw bs=64k skip=$((160 + i)) count=1 2>/dev/null) || wrong=$((wrong + 1))
    done
    is "$image: the held ones are right in the end" $wrong 0

    echo "short 0 $file_size" >faults
    ok "$image: reads that deliver half" cmp mnt/disk disk.raw
    : >faults
    leave
done

# --- Parts of one request ---

serve packed.qcow2
half=$(($(stat -c %s packed.qcow2) / 2))
echo "hold $half $half" >faults
# The first ones may come before enough workers are there to help.
long=()
for ((n = 1; n < 20; n++)); do
    dd if=mnt/disk of=long bs=1M skip=12 count=1 iflag=direct 2>/dev/null &
    long+=($!)
    until_true 5 held $((n + 1)) && break
done
ok "two workers read for one request" held $((n + 1))
is "others are served meanwhile" "$(timeout $((60 * patience)) head -c 2M mnt/disk | cmp - <(head -c 2M disk.raw) 2>&1)" ""
: >faults
wait "${long[@]}"
is "and it is right in the end" "$(cmp long <(tail -c +$((12 * 1048576 + 1)) disk.raw | head -c 1M) 2>&1)" ""

# One bad place fails the requests that have to do with it, whoever came upon it.
echo "eio $half 4096" >faults
python3 - >bad <<'END_PYTHON'
import os
good = open("disk.raw", "rb").read()
fd = os.open("mnt/disk", os.O_RDONLY | os.O_DIRECT)

def bad(start, end, step):
    found = []
    for offset in range(start, end, step):
        try:
            if os.pread(fd, step, offset) != good[offset:offset + step]:
                print("other bytes at", offset)
        except OSError as error:
            found.append(offset)
    return found

clusters = bad(0, len(good), 65536)
print(1 <= len(clusters) <= 2)
print(bad(0, len(good), 1 << 20) == sorted({offset >> 20 << 20 for offset in clusters}))
END_PYTHON
is "a place that cannot be read fails requests for its clusters, and no others" "$(cat bad)" $'True\nTrue'
like "the log names it" "$(tail -n 1 log)" "image: disk offset 0x[0-9a-f]+: cannot read at offset [0-9]+: Input/output error"
leave
finish
