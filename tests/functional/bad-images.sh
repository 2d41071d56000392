#!/bin/bash
# SPDX-License-Identifier: MIT
# Images that must be refused, each with a message that says what is wrong, and nothing written; and
# those that are only almost bad. Partition tables are in partitions.sh, QCOW 1 in legacy-qcow.sh.
. "$(dirname "$0")/lib.sh"

PATH=$PATH:/usr/sbin:/sbin
require qemu-img qemu-io python3

quiet()
{
    "$@" >.quiet 2>&1 || { fail "$*"; note "$(cat .quiet)"; return 1; }
}

# Everything that opens an image refuses it in the same way.
refused_by_all()
{
    local description=$1 regex=$2 command
    shift 2
    for command in "info" "info --json" "map" "map --json"; do
        # shellcheck disable=SC2086
        refused "$description: $command" 1 "$regex" "$QVERITY" $command "$@"
    done
    refused "$description: read" 1 "$regex" "$QVERITY" read "$@" 0 512
}

make_good()
{
    rm -f good.qcow2
    quiet qemu-img create -f qcow2 -o "${1:-compat=1.1}" good.qcow2 8M
    quiet qemu-io -f qcow2 -c 'write -q -P 1 0 1M' -c 'write -q -P 2 3M 200k' -c 'write -q -z 5M 1M' good.qcow2
    l1=$(entry good.qcow2 40)
    l2=$(($(entry good.qcow2 "$l1") & 0x00fffffffffffe00))
    [ "$l1" -gt 0 ] && [ "$l2" -gt 0 ] || fail "the tables of good.qcow2"
}

# broken DESCRIPTION REGEX (OFFSET FORMAT NUMBER)…: refused when it is opened
broken()
{
    cp good.qcow2 bad.qcow2
    patch bad.qcow2 "${@:3}"
    refused "$1" 1 "^qverity: bad.qcow2: .*$2" "$QVERITY" info bad.qcow2
}

# --- No image ---

mkdir directory
refused_by_all "a directory" '^qverity: directory: Is a directory' directory
refused_by_all "a missing file" '^qverity: nowhere: .*No such file or directory' nowhere
mkfifo fifo
refused_by_all "a FIFO" '^qverity: fifo: neither a regular file nor a block device' fifo
refused "a character device" 1 '^qverity: /dev/null: neither a regular file' "$QVERITY" info /dev/null
head -c 3M /dev/urandom >some.raw
refused_by_all "--format qcow2 on a raw file" '^qverity: some.raw: not a qcow2 image' --format qcow2 some.raw
refused_by_all "--format qcow on a raw file" '^qverity: some.raw: not a QCOW version 1 image' --format qcow some.raw
refused "an unknown format" 1 "image format 'vmdk' is not supported" "$QVERITY" info --format vmdk some.raw
make_good
refused "--format qcow on qcow2" 1 'not a QCOW version 1 image' "$QVERITY" info --format qcow good.qcow2
"$QVERITY" read --format raw good.qcow2 0 "$(stat -c %s good.qcow2)" | head -c "$(stat -c %s good.qcow2)" >out
same "--format raw takes anything" out good.qcow2
for format in vmdk vdi vhdx vpc qed parallels; do
    # Not every QEMU makes all of them.
    qemu-img create -f $format foreign 8M >/dev/null 2>&1 || continue
    refused "a $format image" 1 '^qverity: foreign: .*(VMDK|VDI|VHDX|VHD|QED|Parallels) image, which is not supported' \
        "$QVERITY" info foreign
done
qemu-img create -f luks --object secret,id=s,data=password -o key-secret=s luks 1M >/dev/null 2>&1 &&
    refused_by_all "LUKS" '^qverity: luks: a LUKS-encrypted image, which is not supported' luks
qemu-img create -f qcow2 --object secret,id=s,data=password -o encrypt.format=luks,encrypt.key-secret=s luks.qcow2 1M \
    >/dev/null 2>&1 && refused_by_all "LUKS in qcow2" '^qverity: luks.qcow2: .*LUKS.*not supported' luks.qcow2

# --- Truncated ---

# Every length up to the last byte that matters: refused, or (where only bytes are gone that nothing
# points to) the same bytes as before.
quiet qemu-img convert -O raw good.qcow2 good.raw
size=$(stat -c %s good.qcow2)
ok "truncated to many lengths: refused, or whole" python3 - "$QVERITY" "$size" <<'PYTHON'
import os
import random
import subprocess
import sys

qverity, size = sys.argv[1], int(sys.argv[2])
random.seed(1)
good = open("good.qcow2", "rb").read()
raw = open("good.raw", "rb").read()
lengths = [4, 5, 7, 8, 16, 71, 72, 73, 103, 104, 105, 111, 112, 200, 511, 512, 4096, size - 1, size - 512, size - 513]
lengths += [random.randrange(4, size) for _ in range(25)] + [i * 65536 + d for i in range(1, 8) for d in (-1, 0, 1)]
refusals = 0
for length in lengths:
    with open("short.qcow2", "wb") as file:
        file.write(good[:length])
    command = [qverity, "read", "short.qcow2", "0", str(len(raw))]
    done = subprocess.run(command, capture_output=True, timeout=20 * int(os.environ["patience"]), check=False)
    if done.returncode == 1 and done.stderr.startswith(b"qverity: short.qcow2: ") and done.stderr.count(b"\n") == 1:
        refusals += 1
        if raw[:len(done.stdout)] != done.stdout:
            sys.exit(f"{length}: wrong bytes before the error")
    elif done.returncode != 0 or done.stdout != raw:
        sys.exit(f"{length}: exit {done.returncode}, {len(done.stdout)} bytes, {done.stderr}")
if refusals < len(lengths) - 2:
    sys.exit(f"only {refusals} of {len(lengths)} are refused")
PYTHON
head -c 50 good.qcow2 >short.qcow2
refused_by_all "truncated within the header" '^qverity: short.qcow2: .*(header|ends)' short.qcow2
head -c $((size - 65536)) good.qcow2 >short.qcow2
refused "truncated within the data: read writes nothing of it" 1 'short.qcow2: .*(beyond|end)' \
    "$QVERITY" read short.qcow2 0 "$(qemu-img info --output=json -U short.qcow2 | jq '."virtual-size"')"
refused "truncated within the data: map" 1 'short.qcow2: .*(beyond|end)' bash -c '"$1" map short.qcow2 >/dev/null' - "$QVERITY"

# --- The header ---

broken "version 4" 'version 4' 4 I 4
broken "cluster_bits 8" 'cluster.*8' 20 I 8
broken "cluster_bits 22" 'cluster.*22' 20 I 22
broken "cluster_bits beyond all bounds" 'cluster' 20 I 0xffffffff
broken "a size that is too large" 'size' 24 Q 0x8000000000000000
broken "a size that the L1 table does not cover" '(L1|l1)' 24 Q 0x100000000000
broken "an unknown encryption method" '(encrypt|crypt).*7' 32 I 7
broken "a huge L1 table" '(L1|l1)' 36 I 0xffffffff
broken "L1 table offset not aligned" '(L1|l1).*(aligned|multiple)' 40 Q $((l1 + 512))
broken "L1 table outside the file" '(L1|l1).*(file|end)' 40 Q 0x100000000
broken "L1 table offset that overflows" '(L1|l1)' 40 Q 0xffffffffffff0000
broken "snapshots outside the file" 'snapshot' 60 I 3 64 Q 0x100000000
broken "too many snapshots" 'snapshot' 60 I 0xffffffff 64 Q 0x10000
broken "snapshot table not aligned" 'snapshot.*(aligned|multiple)' 60 I 1 64 Q 0x10008
broken "refcount_order 7" 'refcount.*7' 96 I 7
broken "a header length of 103" 'header.*103' 100 I 103
broken "a header length beyond the cluster" 'header' 100 I 0x10001
broken "a header extension that does not end" 'extension' 112 I 0x12345678 116 I 0x7fffffff
broken "backing file name too long" 'backing' 8 Q 1000 16 I 1024
broken "backing file name outside the file" 'backing' 8 Q 0x7fffffff0000 16 I 10

# --- Features ---

broken "incompatible feature bit 5" 'feature.*5' 72 Q 0x20
broken "incompatible feature bit 63" 'feature.*63' 72 Q 0x8000000000000000
cp good.qcow2 bad.qcow2
# A name for bit 5 in the feature name table, whose first entry is rewritten.
ok "a name for it in the feature name table" python3 - <<'PYTHON'
import struct
with open("bad.qcow2", "r+b") as file:
    data = file.read(65536)
    at = 104 if struct.unpack(">I", data[100:104])[0] == 104 else 112
    while struct.unpack(">I", data[at:at + 4])[0] != 0x6803f857:
        at += 8 + (struct.unpack(">I", data[at + 4:at + 8])[0] + 7) // 8 * 8
    file.seek(at + 8)
    file.write(b"\0\5" + b"time travel".ljust(46, b"\0"))
    file.seek(72)
    file.write(struct.pack(">Q", 0x20))
PYTHON
refused_by_all "an incompatible feature with a name" '^qverity: bad.qcow2: .*feature.*time travel' bad.qcow2
broken "compression type 2" 'compression' 72 Q 8 104 B 2
broken "zstd without its feature bit" 'compression' 104 B 1

cp good.qcow2 bad.qcow2
patch bad.qcow2 72 Q 1
"$QVERITY" read bad.qcow2 0 8M >out 2>err
is "dirty: exit" $? 0
same "dirty: the bytes" out good.raw
like "dirty: a warning" "$(cat err)" '^qverity: warning: bad.qcow2: .*dirty'
is "dirty: one line" "$(wc -l <err)" 1
is "dirty: no warning with -q" "$("$QVERITY" read -q bad.qcow2 0 1 2>&1 >/dev/null)" ""
like "dirty: in info" "$("$QVERITY" info bad.qcow2 2>/dev/null)" '^Features:.* dirty'
patch bad.qcow2 72 Q 2
refused_by_all "corrupt" '^qverity: bad.qcow2: .*corrupt.*--force' bad.qcow2
"$QVERITY" read --force bad.qcow2 0 8M >out 2>err
is "corrupt, with --force: exit" $? 0
same "corrupt, with --force: the bytes" out good.raw

# --- L1 and L2 entries ---

broken "L2 table not aligned" 'L1 entry 0.*(aligned|multiple)' "$l1" Q $((l2 + 512))
broken "L2 table outside the file" 'L1 entry 0' "$l1" Q 0x8000000100000000
broken "reserved bits of an L1 entry" 'L1 entry 0.*reserved' "$l1" Q $((l2 | 1 << 57))

# broken_l2 DESCRIPTION REGEX ENTRY INDEX: refused by map and read when they come there
broken_l2()
{
    cp good.qcow2 bad.qcow2
    patch bad.qcow2 $((l2 + 8 * $4)) Q "$3"
    refused "$1: read" 1 "^qverity: bad.qcow2: .*$2" "$QVERITY" read bad.qcow2 $((65536 * $4)) 1
    refused "$1: info" 1 "^qverity: bad.qcow2: .*$2" "$QVERITY" info bad.qcow2
    "$QVERITY" map bad.qcow2 >out 2>err
    is "$1: map fails" $? 1
    like "$1: map tells" "$(cat err)" "^qverity: bad.qcow2: .*$2"
}
broken_l2 "a cluster outside the file" 'cluster for disk offset 0x30000 at host offset 0x100000000 lies beyond the end' \
    0x8000000100000000 3
broken_l2 "a cluster not aligned" 'L2.*3.*(aligned|multiple)' 0x8000000000050200 3
broken_l2 "a cluster at the end of all numbers" 'host offset 0xffffffffff0000 lies beyond the end' 0x80ffffffffff0000 3
broken_l2 "reserved bits of an L2 entry" 'L2.*3.*reserved' 0x8100000000050000 3
broken_l2 "a compressed cluster outside the file" 'L2.*3' 0x4000000100000000 3
cp good.qcow2 bad.qcow2
patch bad.qcow2 $((l2 + 24)) Q $((0x4000000000000000 | l2))
refused "compressed data that are none" 1 '^qverity: bad.qcow2: .*(compress|inflate)' "$QVERITY" read bad.qcow2 196608 512
make_good compat=0.10
cp good.qcow2 bad.qcow2
patch bad.qcow2 $((l2 + 24)) Q 1
refused "a zero-flagged cluster in version 2" 1 '^qverity: bad.qcow2: .*L2.*3' "$QVERITY" read bad.qcow2 196608 512
make_good

# --- Other files ---

quiet qemu-img create -f qcow2 base.qcow2 8M
quiet qemu-img create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
mv base.qcow2 away.qcow2
refused_by_all "a backing file that is missing" '^qverity: top.qcow2: backing file: base.qcow2: .*No such file' top.qcow2
mkdir base.qcow2
refused "a backing file that is a directory" 1 'backing file: base.qcow2: Is a directory' "$QVERITY" info top.qcow2
rmdir base.qcow2
head -c 100 away.qcow2 >base.qcow2
refused "a backing file that is truncated" 1 'backing file: base.qcow2: ' "$QVERITY" info top.qcow2
rm base.qcow2
cp away.qcow2 base.qcow2
quiet qemu-img rebase -u -b top.qcow2 -F qcow2 base.qcow2
refused_by_all "a chain that loops" '^qverity: .*top.qcow2: the chain of backing files comes back' top.qcow2
quiet qemu-img rebase -u -b self.qcow2 -F qcow2 base.qcow2
ln base.qcow2 self.qcow2
refused "a chain that loops through another name" 1 'comes back' "$QVERITY" info base.qcow2
rm self.qcow2
mkdir deep
cp away.qcow2 deep/0
for i in $(seq 70); do
    (cd deep && qemu-img create -f qcow2 -u -b $((i - 1)) -F qcow2 "$i" 8M >/dev/null)
done
refused "a chain that is too deep" 1 'deeper than 64 images' "$QVERITY" info deep/70
ok "one that is not" "$QVERITY" info deep/60

for name in 'json:{"driver":"null-co"}' 'nbd://localhost:1/x' 'nbd:unix:/x' 'file:base.raw' 'https://example.org/x' \
    'fat:/etc' 'rbd:pool/x' 'ssh://host/x'; do
    quiet qemu-img create -f qcow2 -u -b "$name" -F raw proto.qcow2 8M
    refused "backing file $name" 1 "^qverity: proto.qcow2: backing file '.*': the protocol '${name%%:*}:' is not supported" \
        "$QVERITY" info proto.qcow2
done
quiet qemu-img create -f qcow2 -u -b away.qcow2 -F vmdk proto.qcow2 8M
refused "backing format vmdk" 1 "image format 'vmdk' is not supported" "$QVERITY" info proto.qcow2

quiet qemu-img create -f qcow2 -o data_file=x.data x.qcow2 8M
mv x.data y.data
refused_by_all "a data file that is missing" '^qverity: x.qcow2: .*x.data.*No such file' x.qcow2
mv y.data x.data
# data_file is the first extension: "x.data", padded to 8 bytes; the same length holds "nbd:x".
python3 - <<'PYTHON'
with open("x.qcow2", "r+b") as file:
    data = file.read(65536)
    file.seek(data.index(b"x.data"))
    file.write(b"nbd:xy")
PYTHON
refused_by_all "data file nbd:xy" "^qverity: x.qcow2: .*data file 'nbd:xy': the protocol 'nbd:' is not supported" x.qcow2

# --- In use ---

qemu_hold good.qcow2
refused_by_all "a running writer" '^qverity: good.qcow2: in use: another process .* has it open for writing' good.qcow2
quiet qemu-img create -f qcow2 -u -b good.qcow2 -F qcow2 over.qcow2 8M
refused "a writer of the backing file" 1 '^qverity: over.qcow2: backing file: good.qcow2: in use' "$QVERITY" info over.qcow2
qemu_release
ok "when it has gone" "$QVERITY" info good.qcow2
qemu_hold -r good.qcow2
ok "a running reader is no hindrance" "$QVERITY" info good.qcow2
qemu_release

# --- Snapshots ---

refused "no such snapshot" 1 "^qverity: good.qcow2: there is no snapshot with the id or name 'x'" "$QVERITY" info --snapshot x good.qcow2
refused "a snapshot of a raw image" 1 'no internal snapshots' "$QVERITY" info --snapshot x some.raw

# Nothing of all this wrote a thing.
cp good.qcow2 before
"$QVERITY" info good.qcow2 >/dev/null && "$QVERITY" read good.qcow2 0 8M >/dev/null
same "images are not written to" good.qcow2 before
is "nor beside them" "$(find . -name '*.qvtree' -o -name '*.lock' | wc -l)" 0

finish
