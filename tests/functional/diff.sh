#!/bin/bash
# SPDX-License-Identifier: MIT
# diff: ranges, exit codes, and what is not read.
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io python3
qemu-img create -q -f qcow2 a.qcow2 64M
qemu-io -f qcow2 -c 'write -q -P 3 1M 20M' a.qcow2
cp a.qcow2 b.qcow2
is "equal" "$("$QVERITY" diff -p disk a.qcow2 b.qcow2; echo $?)" 0
qemu-img convert -O raw a.qcow2 a.raw
is "equal in another format" "$("$QVERITY" diff -p disk a.qcow2 a.raw; echo $?)" 0
qemu-io -f qcow2 -c 'write -q -P 4 2M 8k' -c 'write -q -z 3M 512' -c 'write -q -P 5 40M 64k' -c 'write -q -P 6 67108352 512' b.qcow2
ranges=$'2097152 8192\n3145728 4096\n41943040 65536\n67104768 4096\n3'
is "ranges" "$("$QVERITY" diff -p disk a.qcow2 b.qcow2; echo $?)" "$ranges"
is "the same from the trees" "$("$QVERITY" diff -p disk a.qcow2 b.qcow2; echo $?)" "$ranges"
is "the same without" "$("$QVERITY" diff --no-tree -p disk a.qcow2 b.qcow2; echo $?)" "$ranges"
is "JSON" "$("$QVERITY" diff --json -p disk a.qcow2 b.qcow2 | python3 -c 'import json,sys; d=json.load(sys.stdin); print(d["differ"], d["bytes"], d["ranges"][0])')" \
    "True 81920 {'start': 2097152, 'length': 8192}"
is "JSON, equal" "$("$QVERITY" diff --json -p disk a.qcow2 a.raw | python3 -c 'import json,sys; print(json.load(sys.stdin))')" "{'ranges': [], 'differ': False, 'bytes': 0}"
qemu-img resize -q b.qcow2 65M
is "another size" "$("$QVERITY" diff -p disk a.qcow2 b.qcow2 | tail -1)" "67108864 1048576"
refused "--tree" 2 'names one file' "$QVERITY" diff --tree x a.qcow2 b.qcow2
refused "salts of their own" 2 'the same salt only' "$QVERITY" diff --salt random a.qcow2 b.qcow2
refused "missing" 1 'cannot open' "$QVERITY" diff a.qcow2 none
finish
