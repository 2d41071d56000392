#!/bin/bash
# SPDX-License-Identifier: MIT
# 64 processes read random ranges of all files and compare every byte; then once more while parts of the disk below
# are broken or slow. SOAK_SECONDS=60 in the environment makes it long.
# shellcheck source=tests/functional/lib.sh
. "$(dirname "$0")/lib.sh"
require qemu-img fusermount3 sfdisk python3
[ -w /dev/fuse ] || skip_all "no /dev/fuse"
faultfs=${QVERITY_TOOLS:-$top/build/tests/tools}/faultfs
[ -x "$faultfs" ] || skip_all "faultfs was not built"
soak=$top/tests/functional/mount-soak.py
seconds=${SOAK_SECONDS:-2}

# soak DESCRIPTION ARG…
soak()
{
    local out
    if out=$(python3 "$soak" "$seconds" mnt ref "${@:2}" 2>&1); then
        pass "$1"
    else
        fail "$1"
    fi
    note "$out"
}

truncate -s 40M disk.raw
sfdisk -q disk.raw <<'END' 2>/dev/null
label: gpt
start=2048, size=4097, type=uefi
start=8192, size=65536, type=linux
END
python3 - <<'END_PYTHON'
import random
dice = random.Random(5)
packable = bytes(i & 63 for i in range(256))
with open("disk.raw", "r+b") as disk:
    for start, length in (1 << 20, 2 << 20), (4 << 20, 12 << 20), (20 << 20, 70000), (24 << 20, 11 << 20):
        disk.seek(start)
        data = dice.randbytes(length)
        disk.write(data[:length // 4] + data[length // 4:].translate(packable))
END_PYTHON
mkdir mnt ref
"$QVERITY" mount --no-tree -p 2 disk.raw mnt
for file in disk part1 part2 data hash root-hash table cmdline params.json; do
    cp mnt/$file ref/
done
fusermount3 -u mnt
same "the files to compare with are right" ref/disk disk.raw
cat >ref/starts <<'END'
disk 0
part1 1048576
part2 4194304
data 4194304
hash -
root-hash -
table -
cmdline -
params.json -
END
qemu-img convert -f raw -O qcow2 -o cluster_size=4096 disk.raw disk.qcow2
qemu-img convert -c -f raw -O qcow2 disk.raw packed.qcow2
root=$(cat ref/root-hash)

for image in disk.qcow2 packed.qcow2; do
    "$QVERITY" mount --no-tree -p 2 $image mnt
    soak "$image"
    fusermount3 -u mnt
done
"$QVERITY" mount --no-tree -p 2 --verify-root-hash "$root" disk.qcow2 mnt
soak "a verified mount"
fusermount3 -u mnt

# Broken at 10 MiB, slow at 30 MiB, and half of what is asked for is delivered in between.
: >faults
mkdir below
"$faultfs" disk.raw "$T/faults" below 2>/dev/null &
below=$!
t_kill_later $below
until_true 10 [ -f below/image ]
"$QVERITY" mount -f --no-tree -p 2 below/image mnt 2>log &
server=$!
t_kill_later $server
until_true 10 [ -f mnt/disk ]
is "the root hash over a disk that is well still" "$(cat mnt/root-hash)" "$root"
printf '%s\n' "eio 10485760 65536" "short 12582912 4194304" "delay 31457280 65536 5000" >faults
soak "a disk that is broken, cuts reads short, and is slow" 10485760-10551296 31457280-31522816
# Where all is slow, nobody may have come that far.
dd if=mnt/disk of=/dev/null bs=64k skip=160 count=1 status=none 2>/dev/null
is "what is broken cannot be read" $? 1
like "what is broken was told" "$(cat log)" "cannot read at offset 10"
: >faults
fusermount3 -u mnt
wait $server
is "the exit status" $? 0
finish
