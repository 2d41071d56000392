#!/bin/bash
# SPDX-License-Identifier: MIT
# update: each method, why, and how much is read.
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io python3
# field NAME ARGUMENT…: of update's JSON
field() { local name=$1; shift; "$QVERITY" --json "$@" 2>"$T/.err" | python3 -c "import json,sys; print(json.load(sys.stdin)['$name'])"; }
root() { field root_hash hash --no-tree -p disk "$1"; }
say() { field method update -p disk "$@"; }
# right DESCRIPTION IMAGE METHOD
right() {
    local got
    got=$("$QVERITY" --json update -p disk "$2" 2>/dev/null | python3 -c "import json,sys; d=json.load(sys.stdin); print(d['method'], d['root_hash'])")
    is "$1" "$got" "$3 $(root "$2")"
}
qemu-img create -q -f qcow2 a.qcow2 256M
qemu-io -f qcow2 -c 'write -q -P 3 1M 64M' a.qcow2
right "first" a.qcow2 full
right "again" a.qcow2 unchanged
is "nothing is read" "$(field data_bytes_hashed update -p disk a.qcow2)" 0
is "--rescan" "$(say --rescan a.qcow2)" full
is "why" "$(field reason update --rescan -p disk a.qcow2)" "asked for"
is "tracking is off" "$(field tracking update -p disk a.qcow2)" off
ok "track" "$QVERITY" track a.qcow2 on
right "track changed the file" a.qcow2 full
is "tracking is on" "$(field tracking update -p disk a.qcow2)" on
qemu-io -f qcow2 -c 'write -q -P 4 30M 1M' a.qcow2
bytes=$(field data_bytes_hashed update -p disk a.qcow2)
ok "1 MiB through the bitmap: $bytes bytes read" [ "$bytes" -ge 1048576 -a "$bytes" -le 4194304 ]
qemu-io -f qcow2 -c 'discard -q 30M 1M' -c 'write -q -z 5M 64k' a.qcow2
right "bitmap" a.qcow2 bitmap
cp a.qcow2 earlier
qemu-io -f qcow2 -c 'write -q -P 9 40M 64k' a.qcow2
is "hash through the bitmap" "$(field method hash -p disk a.qcow2)" bitmap
cat earlier >a.qcow2
right "put back to before a hash that did not reset the bitmap" a.qcow2 full
"$QVERITY" update -q -p disk a.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
qemu-io -f qcow2 -c 'write -q -P 8 20M 1M' b.qcow2
bytes=$(field data_bytes_hashed update -p disk b.qcow2)
ok "1 MiB in an overlay: $bytes bytes read" [ "$bytes" -ge 1048576 -a "$bytes" -le 4194304 ]
rm b.qcow2.qvtree
right "overlay" b.qcow2 overlay
right "its result is kept" b.qcow2 unchanged
qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 c.qcow2 300M
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 short.qcow2 32M
qemu-img create -q -f qcow2 -b short.qcow2 -F qcow2 long.qcow2 256M
right "a chain with a short image in it" long.qcow2 overlay
right "a longer overlay" c.qcow2 full
touch a.qcow2
is "the base was touched" "$(say b.qcow2)" full
cp a.qcow2 victim.qcow2
like "a file that is no tree file is left alone" "$("$QVERITY" hash -p disk --tree victim.qcow2 a.qcow2 2>&1 >/dev/null)" 'warning: no tree is kept: victim.qcow2 is there and is no tree file'
same "every byte of it" victim.qcow2 a.qcow2
mkdir -p no
like "a tree file that cannot be written" "$("$QVERITY" update -p disk --tree no/such/tree a.qcow2 2>&1 >/dev/null)" 'warning: no tree is kept: no/such/tree'
ok "is no failure" "$QVERITY" update -p disk --tree no/such/tree a.qcow2
finish
