#!/bin/bash
# SPDX-License-Identifier: MIT
# Random edits, and all ways of being stale, against a full recomputation. SEED and EDIT_SECONDS choose
# another run; SEED=random one that nobody has seen yet.
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io python3 veritysetup
seed=${SEED:-1}
[ "$seed" != random ] || seed=$RANDOM$RANDOM
note "SEED=$seed"
mkdir edits
if timeout 300 python3 "$here/tree-edits.py" "$QVERITY" "$seed" "${EDIT_SECONDS:-40}" edits >log 2>&1; then
    pass "root hashes after random steps"
else
    fail "root hashes after random steps, SEED=$seed"
fi
note "$(tail -n 90 log)"
finish
