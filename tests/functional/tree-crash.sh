#!/bin/bash
# SPDX-License-Identifier: MIT
# kill -9 at any moment, several at once, a full disk: never a tree file that is believed and wrong.
# CRASH_KILLS and CRASH_SECONDS tell how long the killing goes on, SEED another course of it.
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io veritysetup python3
root() { "$QVERITY" "$@" -p disk 2>/dev/null | sed -n 's/^Root hash: *\t//p'; }
# Who comes while another one resets the bitmaps is told that the image is in use, and comes again.
root_in_turn()
{
    local i said
    for ((i = 0; i < 100; i++)); do
        said=$("$QVERITY" "$@" -p disk 2>&1) || { [[ $said = *"in use: another process"* ]] && sleep 0.1 && continue; }
        break
    done
    sed -n 's/^Root hash: *\t//p' <<<"$said"
}

seed=${SEED:-1}
[ "$seed" != random ] || seed=$RANDOM$RANDOM
mkdir crash
if python3 "$here/tree-crash.py" "$QVERITY" "$seed" crash "${CRASH_KILLS:-500}" "${CRASH_SECONDS:-8}" >log 2>&1; then
    pass "root hashes after kill -9, SEED=$seed"
else
    fail "root hashes after kill -9, SEED=$seed"
fi
note "$(cat log)"

# --- Several at once ---

qemu-img create -q -f qcow2 a.qcow2 64M
qemu-io -f qcow2 -c 'write -q -P 3 1M 24M' a.qcow2
"$QVERITY" track a.qcow2 on >/dev/null
"$QVERITY" update -q -p disk a.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 over.qcow2
bad=0
for i in $(seq 8); do
    qemu-io -f qcow2 -c "write -q -P $i $((i * 5))M 64k" a.qcow2
    [ $((i % 3)) != 0 ] || rm a.qcow2.qvtree
    expected=$(root hash --no-tree a.qcow2)
    expected_over=$(root hash --no-tree over.qcow2)
    pids=()
    for n in 1 2 3 4 5; do
        command=update image=a.qcow2 others=
        [ $n -lt 4 ] || command="hash"
        # Another tree of the same image: whoever resets the bitmaps takes them away from the other one.
        [ $n != 3 ] || others="--salt - --tree other.qvtree"
        # shellcheck disable=SC2086
        root_in_turn $command $others $image >root.$n &
        pids+=($!)
    done
    root_in_turn update over.qcow2 >root.over &
    pids+=($!)
    wait "${pids[@]}"
    rm root.3
    [ "$(sort -u root.?)" = "$expected" ] && [ "$(cat root.over)" = "$expected_over" ] &&
        [ "$(root update a.qcow2)" = "$expected" ] && [ "$(root hash over.qcow2)" = "$expected_over" ] &&
        [ "$(root update --salt - --tree other.qvtree a.qcow2)" = "$(root hash --salt - --no-tree a.qcow2)" ] ||
        bad=$((bad + 1))
done
is "six at once" $bad 0
ok "qemu-img check" qemu-img check -q a.qcow2

# --- A full disk ---

if [ "$(id -u)" != 0 ] || ! mkdir small || ! mount -t tmpfs -o size=200k none small 2>/dev/null; then
    note "not root: no small disk to fill"
    finish
fi
expected=$(root hash --no-tree a.qcow2)
is "no room for the tree" "$(root update --tree small/tree a.qcow2)" "$expected"
like "a warning tells" "$("$QVERITY" update --rescan -p disk --tree small/tree a.qcow2 2>&1 >/dev/null)" 'warning: no tree is kept: .*: No space left on device'
is "nothing is left" "$(ls -A small)" ""

# Room for any number of pages, from none to all: nothing is believed that was not written.
bad=0
for pages in $(seq 0 7 80); do
    rm -f small/*
    mount -o remount,size=$((pages * 4))k,nr_blocks=$((pages + 1)) small
    for i in 1 2; do
        [ "$(root "hash" --tree small/tree a.qcow2)" = "$expected" ] || bad=$((bad + 1))
    done
    qemu-io -f qcow2 -c "write -q -P $pages $((pages / 2))M 64k" -c "write -q -P $pages $((40 + pages / 4))M 2M" a.qcow2
    expected=$(root hash --no-tree a.qcow2)
    [ "$(root update --tree small/tree a.qcow2)" = "$expected" ] || bad=$((bad + 1))
    [ "$(root "hash" --tree small/tree a.qcow2)" = "$expected" ] || bad=$((bad + 1))
done
is "room for a part of it" $bad 0

# An update in place that needs room for nodes, and for its list of granules.
mount -o remount,size=1m small
"$QVERITY" update -q -p disk --tree small/tree a.qcow2 >/dev/null
bad=0 updates=0
for room in $(seq 0 6); do
    rm -f small/fill
    free=$(($(stat -f -c '%a' small) - room))
    [ $free -le 0 ] || head -c $((free * 4096)) /dev/zero >small/fill 2>/dev/null
    qemu-io -f qcow2 -c "write -q -P $((room + 1)) $((26 + room * 4))M 4M" a.qcow2
    expected=$(root hash --no-tree a.qcow2)
    for command in "hash" update "hash"; do
        [ "$(root $command --tree small/tree a.qcow2)" = "$expected" ] || bad=$((bad + 1))
        updates=$((updates + 1))
    done
done
is "$updates updates in place with little room" $bad 0
rm -f small/*
mount -o remount,size=8m small
is "with room again" "$(root update --tree small/tree a.qcow2)" "$expected"
is "it is kept" "$("$QVERITY" update --json -p disk --tree small/tree a.qcow2 | sed -n 's/^  "method": "\(.*\)",/\1/p')" unchanged
finish
