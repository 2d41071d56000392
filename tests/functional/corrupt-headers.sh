#!/bin/bash
# SPDX-License-Identifier: MIT
# The headers and tables that QEMU's own tests (qemu-iotests 060 and 080) make corrupt, case by case: what QEMU
# says of each, and what we do. A limit is told with the figure that exceeds it.
. "$(dirname "$0")/lib.sh"

require qemu-img qemu-io python3

quiet()
{
    "$@" >.quiet 2>&1 || { fail "$*"; note "$(cat .quiet)"; return 1; }
}

# The layout that qemu-img gives an image of 64 MiB, whose first cluster is then written to.
refcounts=0x10000 block=0x20000 l1=0x30000 l2=0x40000 data=0x50000
quiet qemu-img create -f qcow2 good.qcow2 64M
quiet qemu-io -f qcow2 -c 'write -q -P 1 0 512' good.qcow2
cp good.qcow2 snapshot.qcow2
quiet qemu-img snapshot -c test snapshot.qcow2
is "the layout" "$(entry good.qcow2 40) $(entry good.qcow2 48) $(entry good.qcow2 $((refcounts))) $(($(entry good.qcow2 $((l1))) & 0xffffff)) $(($(entry good.qcow2 $((l2))) & 0xffffff))" \
    "$((l1)) $((refcounts)) $((block)) $((l2)) $((data))"
table=$(entry snapshot.qcow2 64)

# corrupt NAME FROM QEMU OURS [OPTION…] -- (OFFSET FORMAT NUMBER)…
# QEMU `reads` or `refuses` the image that is made of FROM. OURS is what our message matches, or `reads`: then the
# bytes are QEMU's, too, if that reads.
corrupt()
{
    local name=$1 from=$2 theirs=$3 ours=$4 got
    local -a options=()
    shift 4
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    cp -- "$from" bad.qcow2
    patch bad.qcow2 "$@"
    rm -f -- theirs.raw
    # As any program that has the image in its hands would, QEMU included.
    local -a snapshot=()
    [ "${options[0]:-}" != --snapshot ] || snapshot=(-l test)
    if qemu-img convert -f qcow2 "${snapshot[@]}" -O raw bad.qcow2 theirs.raw >.qemu 2>&1; then
        got=reads
    else
        got=refuses
    fi
    is "$name: QEMU $theirs it" $got "$theirs"
    if [ "$ours" != reads ]; then
        refused "$name: refused" 1 "^qverity: bad.qcow2: .*$ours" "$QVERITY" read -p disk "${options[@]}" bad.qcow2 0 64M
        return
    fi
    "$QVERITY" read -q -p disk "${options[@]}" bad.qcow2 0 64M >ours.raw 2>.err
    is "$name: read" "$? $(cat .err)" "0 "
    [ "$theirs" != reads ] || same "$name: as QEMU reads it" theirs.raw ours.raw
}

# --- 080: fields of the header ---

corrupt "huge header size" good.qcow2 refuses 'header_length is 4294967295' -- 100 I 0xffffffff
corrupt "huge header size, positive" good.qcow2 refuses 'header_length is 2147483647' -- 100 I 0x7fffffff
corrupt "header size of a cluster and 8" good.qcow2 refuses 'header_length is 65544, more than a cluster of 65536' -- 100 I 0x10008
corrupt "header size below that of version 3" good.qcow2 refuses 'header_length is 96, and must be at least 104' -- 100 I 96

extension=(104 I 0x12345678 108 I 0x7fffffff)
corrupt "huge unknown extension, backing name at the end of all" good.qcow2 refuses 'backing' -- \
    8 Q 0xffffffffffffffff 100 I 104 "${extension[@]}"
corrupt "huge unknown extension, backing name within it" good.qcow2 refuses "header extension at offset 104 is cut off at offset 108" -- \
    8 Q 108 100 I 104 "${extension[@]}"
corrupt "huge unknown extension" good.qcow2 refuses \
    'header extension 0x12345678 at offset 104 has 2147483647 bytes, and there is room for 65424' -- 100 I 104 "${extension[@]}"

corrupt "huge refcount table" good.qcow2 refuses 'refcount table has 281474976645120 bytes, more than the limit of 8388608' -- 56 I 0xffffffff
corrupt "refcount table just too large" good.qcow2 refuses 'refcount table has 8454144 bytes, more than the limit of 8388608' -- 56 I 129
corrupt "refcount table misaligned" good.qcow2 refuses "refcount table's offset 0x1234567890abcdef is not a multiple of the cluster size 65536" -- \
    48 Q 0x1234567890abcdef
corrupt "refcount table at a huge offset" good.qcow2 refuses 'refcount table at offset 0xffffffffffff0000' -- 48 Q 0xffffffffffff0000 56 I 0x7f
corrupt "no refcount table" good.qcow2 refuses 'refcount table has no clusters' -- 56 I 0

corrupt "huge number of snapshots" good.qcow2 refuses '4294967295 snapshots are more than the limit of 65536' -- 60 I 0xffffffff
corrupt "huge number of snapshots, positive" good.qcow2 refuses '2147483647 snapshots are more than the limit of 65536' -- 60 I 0x7fffffff
corrupt "snapshot table at a huge offset" good.qcow2 refuses 'snapshot table at offset 0xffffffffffff0000' -- 60 I 0xffff 64 Q 0xffffffffffff0000
corrupt "snapshot table misaligned, and empty" good.qcow2 refuses "snapshot table's offset 0x1234567890abcdef is not a multiple" -- \
    60 I 0 64 Q 0x1234567890abcdef
corrupt "snapshot table at the limit, of zeros" good.qcow2 reads 'snapshot table at offset 0x1000000' -- 60 I 0x10000 64 Q 0x1000000
corrupt "snapshot table in the middle of nothing" snapshot.qcow2 refuses 'snapshot table' -- 64 Q $((table + 512))

corrupt "huge L1 table" good.qcow2 refuses 'active L1 table has 34359738360 bytes, more than the limit of 33554432' -- 36 I 0xffffffff
corrupt "huge L1 table, positive" good.qcow2 refuses 'active L1 table has 17179869176 bytes, more than the limit of 33554432' -- 36 I 0x7fffffff
corrupt "L1 table at a huge offset" good.qcow2 refuses 'active L1 table at offset 0x7fffffffffff0000, 524280 bytes, does not lie' -- \
    40 Q 0x7fffffffffff0000 36 I 0xffff
corrupt "L1 table misaligned" good.qcow2 refuses "active L1 table's offset 0x1234567890abcdef is not a multiple" -- 40 Q 0x1234567890abcdef 36 I 1
corrupt "no L1 table" good.qcow2 refuses 'active L1 table has 0 entries, and a disk of 67108864 bytes needs 1' -- 36 I 0
corrupt "no L1 table, but a snapshot" snapshot.qcow2 refuses 'active L1 table has 0 entries, and a disk of 67108864 bytes needs 1' -- 36 I 0

corrupt "huge backing name" good.qcow2 refuses "backing file's name has 4294967295 bytes, more than the limit of 1023" -- 8 Q 0x1000 16 I 0xffffffff
corrupt "huge backing name, positive" good.qcow2 refuses "backing file's name has 2147483647 bytes, more than the limit of 1023" -- 8 Q 0x1000 16 I 0x7fffffff
corrupt "backing name of 1024 bytes" good.qcow2 refuses "backing file's name has 1024 bytes, more than the limit of 1023" -- 8 Q 0x1000 16 I 1024
corrupt "backing name beyond the first cluster" good.qcow2 refuses "backing file's name" -- 8 Q 0xfff0 16 I 64

corrupt "huge disk" good.qcow2 refuses 'disk size of 18446744073709551615 bytes is more than' -- 24 Q 0xffffffffffffffff
corrupt "disk that the L1 table is too small for" good.qcow2 refuses 'L1 table has 1 entries, and a disk of 17592186044416 bytes needs 32768' -- \
    24 Q 0x100000000000

# --- 080: entries ---

corrupt "L2 entry with a huge offset" good.qcow2 reads 'L2 entry 0xbfffffffffff0000 .* reserved bits' -- $((l2)) Q 0xbfffffffffff0000
corrupt "L2 entry behind the file's end" good.qcow2 reads 'at host offset 0xffffff0000 lies beyond the end of the file' -- $((l2)) Q 0x800000ffffff0000

test_of=(--snapshot test)
corrupt "the snapshot as it is" snapshot.qcow2 reads reads "${test_of[@]}" -- 0 I 0x514649fb
corrupt "snapshot's L1 table misaligned" snapshot.qcow2 refuses "snapshot's L1 table's offset 0x400200 is not a multiple" "${test_of[@]}" -- "$table" Q 0x400200
corrupt "snapshot's L1 table huge" snapshot.qcow2 refuses "snapshot's L1 table has 2147483648 bytes, more than the limit of 33554432" "${test_of[@]}" -- \
    $((table + 8)) I 0x10000000
corrupt "both, if nobody asks for the snapshot" snapshot.qcow2 reads reads -- "$table" Q 0x400200 $((table + 8)) I 0x10000000
corrupt "snapshot with much extra data" snapshot.qcow2 refuses 'snapshot table entry 0: .*extra data are more than the limit of 1024' -- $((table + 36)) I 1032
corrupt "snapshot's id and name of 64 KiB" snapshot.qcow2 reads 'snapshot table entry 0: it reaches behind the end' -- $((table + 12)) I 0xffffffff

# --- 060: what overlaps or refers to itself is no matter for who only reads ---

corrupt "L1 entry onto the L1 table" good.qcow2 reads reads -- $((l1)) Q $((1 << 63 | l1))
corrupt "data in the refcount block" good.qcow2 reads reads -- $((l2)) Q $((1 << 63 | block))
corrupt "data in a snapshot's L2 table" snapshot.qcow2 reads reads -- "$((0x80000))" Q $((1 << 63 | l2))
corrupt "L2 entry onto its own table" good.qcow2 reads reads -- $((l2)) Q $((1 << 63 | l2))
corrupt "L2 entry onto the L1 table" good.qcow2 reads reads -- $((l2)) Q $((1 << 63 | l1))
corrupt "L2 entry onto the header" good.qcow2 reads reads -- $((l2)) Q $((1 << 63))
corrupt "L2 table misaligned" good.qcow2 refuses "L1 entry 0: the L2 table's offset 0x42a00 is not a multiple" -- $((l1)) Q $((1 << 63 | 0x42a00))
corrupt "data misaligned" good.qcow2 refuses 'host offset 0x52a00 is not a multiple' -- $((l2)) Q $((1 << 63 | 0x52a00))
corrupt "zero cluster whose data is misaligned" good.qcow2 refuses 'host offset 0x52a00 is not a multiple' -- $((l2)) Q $((1 << 63 | 0x52a01))
corrupt "refcount block misaligned" good.qcow2 reads reads -- $((refcounts)) Q $((block + 0x2a00))
corrupt "refcount block missing" good.qcow2 reads reads -- $((refcounts)) Q 0
corrupt "refcounts of 0 for all" good.qcow2 reads reads -- $((block)) Q 0 $((block + 8)) Q 0
corrupt "refcount of 0 for the header" good.qcow2 reads reads -- $((block)) H 0
corrupt "refcount of 0 for the L1 table" good.qcow2 reads reads -- $((block + 6)) H 0
corrupt "refcount block behind the file's end" good.qcow2 reads reads -- $((refcounts)) Q 0x7fff0000
corrupt "compressed cluster in the header" good.qcow2 refuses 'compressed cluster at offset 0x0: zlib' -- $((l2)) Q $((1 << 62))
corrupt "compressed cluster with a copied flag and all sectors" good.qcow2 refuses 'compressed cluster' -- $((l2)) Q $((0xffffffffffff0000))
corrupt "an image that is marked corrupt" good.qcow2 reads 'the image is marked corrupt' -- 72 Q 2
corrupt "an image that is marked corrupt, with --force" good.qcow2 reads reads --force -- 72 Q 2
corrupt "an image that is marked dirty and corrupt, with --force" good.qcow2 reads reads --force -- 72 Q 3

finish
