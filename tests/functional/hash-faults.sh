#!/bin/bash
# SPDX-License-Identifier: MIT
# Reading fails while an image is hashed: an error that names file and offset, never a root hash; and
# what only comes in pieces, or slowly, is hashed right.
. "$(dirname "$0")/lib.sh"
require qemu-img veritysetup
faultfs=${QVERITY_TOOLS:-$top/build/tests/tools}/faultfs
without_uring=${QVERITY_TOOLS:-$top/build/tests/tools}/without-uring
[ -x "$faultfs" ] || skip_all "faultfs was not built"
[ -w /dev/fuse ] || skip_all "no /dev/fuse"

head -c 48M /dev/urandom >data.raw
qemu-img convert -q -O qcow2 data.raw data.qcow2
qemu-img convert -q -c -O qcow2 data.raw packed.qcow2
salt=$(printf '0%.0s' {1..64})
good=$(veritysetup format --salt "$salt" data.raw hash.img | awk '/^Root hash:/ { print $3 }')

serve() # FILE: its broken twin is mnt/image
{
    mkdir -p mnt
    : >faults
    "$faultfs" "$1" "$T/faults" mnt 2>/dev/null &
    t_kill_later $!
    local i
    for ((i = 0; i < 1200; i++)); do
        [ -e mnt/image ] && return
        sleep 0.05
    done
    fail "faultfs serves $1"
}

root()
{
    "$@" | awk '/^Root hash:/ { print $3 }'
}

check() # NAME FORMAT [PREFIX…]
{
    local name=$1 format=$2
    shift 2
    : >faults
    is "$name: nothing wrong" "$(root "$@" "$QVERITY" hash -q --format "$format" -p disk mnt/image)" "$good"
    echo "short 0 99999999999" >faults
    is "$name: short reads" "$(root "$@" "$QVERITY" hash -q --format "$format" -p disk mnt/image)" "$good"
    echo "delay 20000000 1 300" >faults
    is "$name: a slow read" "$(root "$@" "$QVERITY" hash -q --format "$format" -p disk mnt/image)" "$good"
    echo "eio 30000000 1" >faults
    refused "$name: EIO" 1 'image: .*offset [0-9]+.*Input/output error' \
        "$@" "$QVERITY" hash -q --format "$format" -p disk mnt/image
    refused "$name: EIO, --write" 1 'Input/output error' \
        "$@" "$QVERITY" hash -q --format "$format" -p disk --write out.img mnt/image
    refused "$name: EIO, verify" 1 'Input/output error' \
        "$@" "$QVERITY" verify -q --format "$format" -p disk --root-hash "$good" mnt/image
    refused "$name: EIO, one thread" 1 'Input/output error' \
        "$@" "$QVERITY" hash -q --threads 1 --format "$format" -p disk mnt/image
}

for file in data.raw data.qcow2 packed.qcow2; do
    serve $file
    check "$file" "${file##*.}"
    [ $file = data.qcow2 ] && check "$file without io_uring" qcow2 "$without_uring"
    fusermount3 -u mnt
done

: >out
"$without_uring" "$QVERITY" hash -v -p disk data.raw >out 2>err
is "root without io_uring" "$(awk '/^Root hash:/ { print $3 }' out)" "$good"
like "-v says so" "$(cat err)" 'io_uring is not available.*pread'

# A file that becomes shorter while it is hashed: held up by a slow read, then cut.
cp data.raw cut.raw
serve cut.raw
echo "delay 0 4096 1500" >faults
"$QVERITY" hash -q --format raw -p disk mnt/image >out 2>err &
pid=$!
sleep 0.5
truncate -s 20000000 cut.raw
wait $pid
is "cut while it is hashed: exit" $? 1
is "cut while it is hashed: no root hash" "$(cat out)" ""
like "cut while it is hashed: message" "$(cat err)" 'image: .*(ends|offset) '

finish
