#!/bin/bash
# SPDX-License-Identifier: MIT
# Random edits, and all ways of being stale, against a full recomputation. SEED chooses another run
# (SEED=random one that nobody has seen yet), EDIT_SECONDS how long it takes, EDIT_STEPS how many steps it has.
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io python3 veritysetup fusermount3
[ -w /dev/fuse ] || skip_all "no /dev/fuse"
seed=${SEED:-1}
[ "$seed" != random ] || seed=$RANDOM$RANDOM
note "SEED=$seed"
mkdir edits
if python3 "$here/tree-edits.py" "$QVERITY" "$seed" edits "${EDIT_SECONDS:-12}" "${EDIT_STEPS:-}" >log 2>&1; then
    pass "root hashes after random steps"
else
    fail "root hashes after random steps, SEED=$seed"
fi
note "$(tail -n 130 log)"
finish
