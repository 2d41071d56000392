#!/bin/bash
# SPDX-License-Identifier: MIT
# A writable mount whose files are mapped into memory, opened with O_DIRECT, and written to under several
# names at once: every name shows what was written, also to who has it mapped.
. "$(dirname "$0")/lib.sh"
require fusermount3 sfdisk python3 veritysetup jq qemu-img
[ -w /dev/fuse ] || skip_all "no /dev/fuse"
writers=$here/mount-writers.py
start=$((1024 * 1024))
size=$((15 * 1024 * 1024))

truncate -s 16M base.raw
sfdisk -q base.raw <<<'start=2048, size=30720, type=83'
head -c 3M /dev/urandom | dd of=base.raw bs=1M seek=5 conv=notrunc 2>dd.err
mkdir mnt
"$QVERITY" mount -f --format raw -p 1 --overlay over.qcow2 base.raw mnt >log 2>&1 &
server=$!
t_kill_later $server
for ((i = 0; i < 200 * patience; i++)); do
    [ -e mnt/disk ] && break
    sleep 0.05
done

python3 - mnt/disk >mmap.out 2>&1 <<'END_PYTHON'
import mmap, os, sys
mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096)
END_PYTHON
case $? in
0) shared=y ;;
*)
    shared=
    like "this kernel maps no such file shared" "$(uname -r) $(cat mmap.out)" '^([1-5]|6\.[0-5])\..*No such device'
    ;;
esac

if [ -n "$shared" ]; then
    # What is stored, and seen, in which order.
    python3 - mnt $start >mapped 2>&1 <<'END_PYTHON'
import mmap, os, sys

mnt, start = sys.argv[1], int(sys.argv[2])
disk = os.open(mnt + "/disk", os.O_RDWR)
part = os.open(mnt + "/part1", os.O_RDWR)
hash_file = os.open(mnt + "/hash", os.O_RDONLY)
hash_size = os.fstat(hash_file).st_size
disk_map, part_map = mmap.mmap(disk, 4 << 20), mmap.mmap(part, 2 << 20)
hash_map = mmap.mmap(hash_file, hash_size, prot=mmap.PROT_READ)
private = mmap.mmap(part, 2 << 20, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
before = disk_map[start : start + 8], part_map[:8], private[:8], hash_map[:]

os.pwrite(disk, b"by disk!", start)
print("disk", disk_map[start : start + 8], part_map[:8], private[:8])
os.pwrite(part, b"by part!", 0)
print("part", disk_map[start : start + 8], part_map[:8], private[:8])
part_map[:8] = b"by a map"
part_map.flush()
print("map", disk_map[start : start + 8], private[:8], os.pread(disk, 8, start))
disk_map[start + 100 : start + 108] = b"unsynced"
os.pwrite(part, b"the same page", 200)
print("page", disk_map[start + 100 : start + 108], part_map[200:213], os.pread(part, 113, 100)[:8], disk_map[start + 200 : start + 213])
print("hash", hash_map[:] != before[3], hash_map[:] == os.pread(hash_file, hash_size, 0))
END_PYTHON
    is "a write is seen in every mapping, and what is stored there in every file" "$(cat mapped)" "$(
        printf '%s\n' "disk b'by disk!' b'by disk!' b'by disk!'" "part b'by part!' b'by part!' b'by part!'" \
            "map b'by a map' b'by a map' b'by a map'" \
            "page b'unsynced' b'the same page' b'unsynced' b'the same page'" "hash True True"
    )"
fi

cp mnt/disk model.raw
for round in 1 2 3; do
    ok "edits, round $round" python3 "$writers" edit mnt model.raw $start $size $round 400 ${shared:+1}
done
same "disk" mnt/disk model.raw
dd if=model.raw of=part.img bs=1M skip=1 count=15 2>dd.err
is "root-hash" "$(cat mnt/root-hash)" "$(veritysetup format --uuid "$(jq -r .uuid mnt/params.json)" \
    --salt "$(jq -r .salt mnt/params.json)" part.img hash.img | awk '/^Root hash:/ { print $3 }')"
same "hash" mnt/hash hash.img

# The end comes while somebody stores to mappings under both names.
if [ -n "$shared" ]; then
    python3 - mnt $start >storing 2>&1 <<'END_PYTHON' &
import mmap, os, sys

mnt, start = sys.argv[1], int(sys.argv[2])
disk, part = os.open(mnt + "/disk", os.O_RDWR), os.open(mnt + "/part1", os.O_RDWR)
disk_map, part_map = mmap.mmap(disk, 4 << 20), mmap.mmap(part, 2 << 20)
print("stored", flush=True)
for n in range(1 << 30):
    disk_map[start + n % 500 * 4096] = n % 256
    part_map[n % 400 * 4096 + 1] = n % 256
    os.pwrite(part, b"x", n % 300 * 4096 + 2)
END_PYTHON
    storer=$!
    t_kill_later $storer
    until grep -q stored storing; do sleep 0.02; done
    sleep 0.5
    kill -TERM $server
    ended=
    for ((i = 0; i < 100 * patience; i++)); do
        kill -0 $server 2>/dev/null || { ended=y && break; }
        sleep 0.1
    done
    is "SIGTERM ends the mount while pages are being written" "$ended" y
    wait $server
    is "well" $? 0
    kill -9 $storer 2>/dev/null
    wait $storer 2>/dev/null
else
    fusermount3 -u mnt
    wait $server
fi
ok "qemu-img check finds nothing" qemu-img check -q -f qcow2 over.qcow2
finish
