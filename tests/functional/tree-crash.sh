#!/bin/bash
# SPDX-License-Identifier: MIT
# kill -9 at any moment, a full disk, several at once: never a tree file that is believed and wrong.
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io
root() { "$QVERITY" "$@" -p disk 2>/dev/null | sed -n 's/^Root hash: *\t//p'; }

qemu-img create -q -f qcow2 a.qcow2 64M
qemu-io -f qcow2 -c 'write -q -P 3 1M 24M' a.qcow2
"$QVERITY" track a.qcow2 on >/dev/null
"$QVERITY" update -q -p disk a.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 over.qcow2
bad=0 kills=0
start=$SECONDS
while [ $((SECONDS - start)) -lt "${CRASH_SECONDS:-35}" ] && [ $kills -lt 500 ]; do
    image=a.qcow2
    [ $((RANDOM % 4)) = 0 ] && image=over.qcow2
    if [ $((kills % 5)) = 0 ]; then
        qemu-io -f qcow2 -c "write -q -P $((RANDOM % 256)) $((RANDOM % 60))M 64k" $image
        [ $((RANDOM % 3)) = 0 ] && rm -f $image.qvtree
    fi
    command=update
    [ $((RANDOM % 3)) = 0 ] && command="hash"
    "$QVERITY" $command -q -p disk $image >/dev/null 2>&1 &
    pid=$!
    sleep "0.0$(printf %02d $((RANDOM % 60)))"
    { kill -9 $pid; wait $pid; } 2>/dev/null
    kills=$((kills + 1))
    if [ $((kills % 3)) = 0 ] && [ "$(root hash $image)" != "$(root hash --no-tree $image)" ]; then
        bad=$((bad + 1))
        note "wrong after $kills kills: $command $image"
    fi
done
is "root hashes after $kills kills" $bad 0
ok "qemu-img check" qemu-img check a.qcow2

# --- Several at once ---

bad=0
for i in 1 2 3 4 5 6; do
    qemu-io -f qcow2 -c "write -q -P $i $((i * 5))M 64k" a.qcow2
    expected=$(root hash --no-tree a.qcow2)
    pids=()
    for n in 1 2 3 4; do
        command=update
        [ $n = 4 ] && command="hash"
        root $command a.qcow2 >root.$n &
        pids+=($!)
    done
    wait "${pids[@]}"
    [ "$(sort -u root.?)" = "$expected" ] && [ "$(root update a.qcow2)" = "$expected" ] || bad=$((bad + 1))
done
is "four at once" $bad 0

# --- A full disk ---

if [ "$(id -u)" = 0 ] && mkdir small && mount -t tmpfs -o size=200k none small 2>/dev/null; then
    expected=$(root hash --no-tree a.qcow2)
    is "no room for the tree" "$(root update --tree small/tree a.qcow2)" "$expected"
    like "a warning tells" "$("$QVERITY" update --rescan -p disk --tree small/tree a.qcow2 2>&1 >/dev/null)" 'warning: no tree is kept: '
    is "nothing is left" "$(ls -A small)" ""
    is "again" "$(root update --tree small/tree a.qcow2)" "$expected"
else
    note "not root: no small disk to fill"
fi
finish
