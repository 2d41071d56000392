#!/bin/bash
# SPDX-License-Identifier: MIT
# Whoever writes to an overlay is killed, or the power fails: qemu-img check finds no error but leaks, and
# everything that was flushed is there.
. "$(dirname "$0")/lib.sh"
require qemu-img
tool=${QVERITY_TOOLS:-$top/build/tests/tools}/overlay-tool
# No disk is needed to be killed, and no test waits for one.
if [ -d /dev/shm ] && [ -w /dev/shm ]; then
    S=$(mktemp -d /dev/shm/qverity-test.XXXXXX)
    trap 'rm -rf "$S"; t_cleanup' EXIT
    cd "$S" || exit 1
fi

head -c 8M /dev/urandom >base.raw
dd if=/dev/zero of=base.raw bs=1M seek=2 count=2 conv=notrunc 2>"$T/.err"

# sound MODEL OVERLAY THREADS: as described above; leaves what the disk has in disk.raw
sound()
{
    local code
    qemu-img check -f qcow2 "$2" >check.out 2>&1
    code=$?
    if [ $code -ne 0 ] && [ $code -ne 3 ]; then
        note "qemu-img check: exit $code: $(head -3 check.out)"
        return 1
    fi
    qemu-img convert -O raw "$2" disk.raw && "$tool" --threads "$3" verify "$1" disk.raw log 2>verify.err && return 0
    note "$(cat verify.err)"
    return 1
}

# Anywhere, four threads, always on with the same overlay.
failed=0
cp base.raw model.raw
for round in $(seq "${QVERITY_CRASHES:-60}"); do
    sampled || continue
    rm -f log.*
    "$tool" --format raw --seed "$((round * 31))" --threads 4 crash base.raw overlay.qcow2 log >tool.out 2>&1 &
    pid=$!
    sleep "0.0$((RANDOM % 60 + 10))"
    kill -9 $pid
    wait $pid 2>>"$T/.err"
    # Else it was killed before it wrote.
    if [ -e log.3 ]; then
        sound model.raw overlay.qcow2 4 || failed=$((failed + 1))
        mv disk.raw model.raw
    fi
done 2>>"$T/.err"
is "killed anywhere" $failed 0
is "leaks can be repaired" "$(qemu-img check -r leaks overlay.qcow2 >check.out 2>&1; echo $?)" 0

# At each system call in turn.
failed=0
for call in $(seq 1 7 400); do
    sampled || continue
    rm -f single.qcow2 log.*
    "$tool" --format raw --seed "$call" --die "$call" crash base.raw single.qcow2 log >tool.out 2>&1
    sound base.raw single.qcow2 1 || failed=$((failed + 1))
done 2>>"$T/.err"
is "killed at a system call" $failed 0

failed=0
for call in $(seq 1 6 480); do
    sampled || continue
    rm -f single.qcow2 log.*
    "$tool" --format raw --seed "$call" --die "$call" --power-loss lost.qcow2 crash base.raw single.qcow2 log \
        >tool.out 2>&1
    sound base.raw lost.qcow2 1 || failed=$((failed + 1))
done 2>>"$T/.err"
is "the power failed at a system call" $failed 0
finish
