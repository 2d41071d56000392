#!/bin/bash
# SPDX-License-Identifier: MIT
# Mounts of compressed images, whose clusters workers decompress for each other: compressed, plain, zero and
# unallocated clusters side by side, in every size, read in ranges that begin and end anywhere.
# shellcheck source=tests/functional/lib.sh
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io fusermount3 jq python3
[ -w /dev/fuse ] || skip_all "no /dev/fuse"
readers=$top/tests/functional/mount-readers.py

# Two parts of text, with some noise, which is stored as it is, and zeros in between, and an end within a cluster.
python3 - <<'END_PYTHON'
import random
dice = random.Random(11)
packable = bytes(i & 31 for i in range(256))
with open("disk.raw", "wb") as disk:
    disk.write(dice.randbytes(3 << 20).translate(packable))
    disk.write(dice.randbytes(200000))
    disk.seek(4 << 20)
    disk.write(dice.randbytes(5 << 20).translate(packable))
    disk.seek(12 << 20)
    disk.write(dice.randbytes(25 * 512).translate(packable))
END_PYTHON
mkdir mnt
count=0
for options in compression_type=zlib compression_type=zstd compression_type=zlib,cluster_size=4k \
    compression_type=zlib,cluster_size=2M,extended_l2=on; do
    # A new file each time: the last daemon may hold its image a moment longer than the mount.
    packed=packed$((count++)).qcow2
    qemu-img convert -c -f raw -O qcow2 -o "$options" disk.raw $packed
    # One cluster or several, or a part of one, every now and then.
    for ((at = 100; at < 5000; at += 900)); do
        printf '%s\n' "write -P 0x5a $((at))k 4k" "write -z $((at + 128))k 64k" "write -P 0xa5 $((at + 320))k 200k"
    done | qemu-io $packed >/dev/null
    qemu-img convert -f qcow2 -O raw $packed expected.raw
    ok "$options: there are clusters of all kinds" python3 - <(qemu-img map --output=json $packed) <<'END_PYTHON'
import json, sys
extents = json.load(open(sys.argv[1]))
assert any(e["zero"] for e in extents)
assert any(e["data"] and "offset" in e for e in extents)
assert sum(e["data"] and "offset" not in e for e in extents) > 1
END_PYTHON
    "$QVERITY" mount --no-tree -p disk $packed mnt 2>/dev/null
    same "$options: from beginning to end" mnt/disk expected.raw
    ok "$options: in ranges" python3 "$readers" --processes 4 --rounds 10 mnt/disk=expected.raw
    is "$options: no read failed" "$(jq .files.disk.errors mnt/stats.json)" 0
    fusermount3 -u mnt
done

# --- Data that are no deflate stream, in one cluster of many ---

qemu-img convert -c -f raw -O qcow2 disk.raw packed.qcow2
bad=$(python3 - <<'END_PYTHON'
import struct
with open("packed.qcow2", "r+b") as image:
    head = image.read(104)
    l1 = struct.unpack(">Q", head[40:48])[0]
    image.seek(l1)
    l2 = struct.unpack(">Q", image.read(8))[0] & 0xfffffffffffe00
    image.seek(l2 + 8 * 103)
    entry = struct.unpack(">Q", image.read(8))[0]
    assert entry >> 62 == 1
    image.seek(entry & (1 << 54) - 1)
    image.write(b"\xff" * 64)
print(103 * 65536)
END_PYTHON
)
ok "QEMU does not read it either" bash -c '! qemu-io -r -c "read $1 64k" packed.qcow2' - "$bad"
"$QVERITY" mount -f --no-tree -p disk packed.qcow2 mnt 2>log &
server=$!
t_kill_later $server
until_true 120 [ -f mnt/disk ]
like "a request over it" "$(dd if=mnt/disk of=/dev/null bs=1M skip=6 count=1 iflag=direct 2>&1)" "Input/output error"
like "the log tells of it" "$(cat log)" "packed.qcow2: .*compressed cluster at offset 0x[0-9a-f]+: zlib: invalid block type"
ok "all before it" cmp -n "$bad" mnt/disk disk.raw
ok "all behind it" cmp -i $((bad + 65536)) mnt/disk disk.raw
fusermount3 -u mnt
wait $server
is "the exit status" $? 0
finish
