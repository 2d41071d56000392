#!/bin/bash
# SPDX-License-Identifier: MIT
# update: each method, why, and how much is read; what `hash` and `track` keep of change tracking.
. "$(dirname "$0")/lib.sh"
TOOL=${QVERITY_TOOLS:-$(dirname "$QVERITY")/tests/tools}/bitmap-tool
require qemu-img qemu-io python3
# field NAME ARGUMENT…: of the JSON
field() { local name=$1; shift; "$QVERITY" --json "$@" 2>"$T/.err" | python3 -c "import json,sys; print(json.load(sys.stdin)['$name'])"; }
root() { field root_hash hash --no-tree -p disk "$1"; }
say() { field method update -p disk "$@"; }
# right DESCRIPTION IMAGE METHOD [COMMAND]: update (or COMMAND) finds the right root by METHOD
right() {
    local got
    echo "$1:" >>"$T/log"
    got=$("$QVERITY" -vv --json "${4:-update}" -p disk "$2" 2>>"$T/log" | python3 -c "import json,sys; d=json.load(sys.stdin); print(d['method'], d['root_hash'])")
    is "$1" "$got" "$3 $(root "$2")"
}
# second COMMAND: how it finds the root of the tree file `second`, and that; second_root: by reading everything
second() { "$QVERITY" -vv --json "$1" -p disk --salt ab --tree second a.qcow2 2>>"$T/log" | python3 -c "import json,sys; d=json.load(sys.stdin); print(d['method'], d['root_hash'])"; }
second_root() { field root_hash hash --no-tree -p disk --salt ab a.qcow2; }
# because DESCRIPTION IMAGE REASON: update reads everything, and says why
because() { like "$1" "$("$QVERITY" update -p disk "$2" 2>&1)" "^Method: *	full: $3\$"; }

# --- Methods ---

qemu-img create -q -f qcow2 a.qcow2 256M
qemu-io -f qcow2 -c 'write -q -P 3 1M 64M' a.qcow2
right "first" a.qcow2 full
is "why" "$(rm a.qcow2.qvtree; field reason update -p disk a.qcow2)" "there is no tree file"
right "again" a.qcow2 unchanged
is "there is no reason then" "$(field reason update -p disk a.qcow2)" None
is "nothing is read" "$(field data_bytes_hashed update -p disk a.qcow2)" 0
is "--rescan" "$(say --rescan a.qcow2)" full
is "why rescan" "$(field reason update --rescan -p disk a.qcow2)" "asked for"
is "tracking is off" "$(field tracking update -p disk a.qcow2)" off
like "why it is off" "$("$QVERITY" update -p disk a.qcow2)" "^Tracking: *	off: 'qverity track' was not switched on$"
qemu-io -f qcow2 -c 'write -q -P 4 30M 512' a.qcow2
because "untracked" a.qcow2 "a.qcow2 was changed since the tree file was written; changes are not tracked: 'qverity track' was not switched on"

# --- Tracking, and what it reads ---

ok "track" "$QVERITY" track a.qcow2 on
right "the tree file stays current" a.qcow2 unchanged
is "tracking is on" "$(field tracking update -p disk a.qcow2)" on
qemu-io -f qcow2 -c 'write -q -P 4 30M 1M' a.qcow2
bytes=$(field data_bytes_hashed update -p disk a.qcow2)
ok "1 MiB through the bitmap: $bytes bytes read" [ "$bytes" -ge 1048576 -a "$bytes" -le 4194304 ]
right "the reset leaves it current" a.qcow2 unchanged
qemu-io -f qcow2 -c 'discard -q 30M 1M' -c 'write -q -z 5M 64k' a.qcow2
right "bitmap" a.qcow2 bitmap
touch a.qcow2
right "touched" a.qcow2 bitmap
ok "off" "$QVERITY" track a.qcow2 off
right "off leaves it current" a.qcow2 unchanged
is "tracking is off again" "$(field tracking update -p disk a.qcow2)" off
ok "on again" "$QVERITY" track a.qcow2 on
qemu-io -f qcow2 -c 'write -q -P 5 6M 64k' a.qcow2
right "changes count from then on" a.qcow2 bitmap

# hash does not write to the image, and changes count from it on all the same.
qemu-io -f qcow2 -c 'write -q -P 9 40M 64k' a.qcow2
cp --preserve=all a.qcow2 before
right "hash through the bitmap" a.qcow2 bitmap hash
same "hash does not write to the image" a.qcow2 before
like "its result is tracked" "$("$QVERITY" info a.qcow2)" "current, changes tracked"
cp a.qcow2 earlier
qemu-io -f qcow2 -c 'write -q -P 10 41M 64k' a.qcow2
right "hash again" a.qcow2 bitmap hash
rm a.qcow2.qvtree
right "a full hash" a.qcow2 full hash
qemu-io -f qcow2 -c 'write -q -P 11 42M 64k' a.qcow2
bytes=$(field data_bytes_hashed update -p disk a.qcow2)
ok "ties the tree file to the bitmap: $bytes bytes read" [ "$bytes" -le 4194304 ]
right "so does a full update" a.qcow2 unchanged
for n in 1 2 3; do
    python3 -c "for i in range(700): print('write -q -P $n', (i * 3 + $n) * 65536, 4096)" | qemu-io -f qcow2 a.qcow2 >/dev/null
    right "many ranges of granules, hash $n" a.qcow2 bitmap hash
    [ $n = 1 ] && break
done
qemu-io -f qcow2 -c 'write -q -P 7 250M 64k' a.qcow2
right "and update" a.qcow2 bitmap
qemu-io -f qcow2 -c 'write -q -P 7 64M 70M' a.qcow2
because "more than a quarter" a.qcow2 "a.qcow2 was changed since the tree file was written; more than a quarter of the disk was written"
right "then it starts anew" a.qcow2 unchanged
qemu-io -f qcow2 -c 'write -q -P 8 64M 70M' a.qcow2
is "hash after more than a quarter" "$(field method hash -p disk a.qcow2)" full
like "says that it is not tied" "$("$QVERITY" hash -p disk a.qcow2 2>&1)" "warning: the next update will have to read everything: .*'qverity update'"
right "and update ties it" a.qcow2 unchanged
is "hash has nothing to say then" "$("$QVERITY" hash -p disk a.qcow2 2>&1 >/dev/null)" ""

# Somebody who reads the image keeps the bitmaps from being reset, and that is all.
qemu-io -f qcow2 -c 'write -q -P 12 43M 64k' a.qcow2
coproc HOLD { qemu-io -r -f qcow2 a.qcow2; }
hold=$HOLD_PID
read -r -t 5 -n 8 _ <&"${HOLD[0]}"
like "with another reader" "$("$QVERITY" update -p disk a.qcow2 2>&1)" 'warning: the next update will have to read more: a.qcow2: in use: another process reads it'
is "tracking stays on" "$(field tracking update -p disk a.qcow2)" on
echo quit >&"${HOLD[1]}"; wait "$hold"
qemu-io -f qcow2 -c 'write -q -P 13 44M 64k' a.qcow2
right "and works" a.qcow2 bitmap

# Two tree files: hash keeps both tied to the bitmaps. Two granules are written each time: one alone may be a canary.
qemu-io -f qcow2 -c 'write -q -P 14 45M 128k' a.qcow2
field method hash -p disk --salt ab --tree second a.qcow2 >/dev/null
right "the first" a.qcow2 bitmap hash
qemu-io -f qcow2 -c 'write -q -P 15 45M 128k' a.qcow2
is "the second" "$(second hash)" "bitmap $(second_root)"
right "the first again" a.qcow2 bitmap
qemu-io -f qcow2 -c 'write -q -P 16 45M 128k' a.qcow2
right "update is for the first only" a.qcow2 bitmap
like "the second" "$("$QVERITY" update -vv -p disk --salt ab --tree second a.qcow2 2>&1)" 'full: .*; the bitmaps were made or reset by somebody else since'

# Canaries are read each time. Where nothing else was written there is nothing to reset, which would take the
# bitmaps away from the other tree file.
right "a reset of nothing" a.qcow2 unchanged
canary=$("$TOOL" dump a.qcow2 qverity | awk 'NR == 2 { print $1 }')
for n in 17 18; do
    qemu-io -f qcow2 -c "write -q -P $n $canary 64k" a.qcow2
    right "a canary was written" a.qcow2 bitmap
    is "the second then" "$(second update)" "bitmap $(second_root)"
done
cp a.qcow2 t.qcow2
"$QVERITY" update -q -p disk --tree t.tree t.qcow2 >/dev/null
"$QVERITY" track --tree t.tree t.qcow2 off >/dev/null
is "track --tree" "$(say --tree t.tree t.qcow2)" unchanged

# --- Overlays ---

"$QVERITY" update -q -p disk a.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
qemu-io -f qcow2 -c 'write -q -P 8 20M 1M' b.qcow2
bytes=$(field data_bytes_hashed update -p disk b.qcow2)
ok "1 MiB in an overlay: $bytes bytes read" [ "$bytes" -ge 1048576 -a "$bytes" -le 4194304 ]
rm b.qcow2.qvtree
right "overlay" b.qcow2 overlay
right "its result is kept" b.qcow2 unchanged
right "the base is not touched" a.qcow2 unchanged
ln -s a.qcow2 link.qcow2
qemu-img create -q -f qcow2 -b link.qcow2 -F qcow2 over-link.qcow2
right "a base by another name" over-link.qcow2 overlay
ok "track the overlay" "$QVERITY" track b.qcow2 on
right "an overlay that is tracked" b.qcow2 unchanged
qemu-io -f qcow2 -c 'write -q -P 9 21M 64k' b.qcow2
right "its bitmap" b.qcow2 bitmap
qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 c.qcow2 300M
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 short.qcow2 32M
qemu-img create -q -f qcow2 -b short.qcow2 -F qcow2 long.qcow2 256M
right "a chain with a short image in it" long.qcow2 overlay
because "a longer overlay" c.qcow2 'there is no tree file; no image below it has a tree file that is up to date and of the same partition and parameters'
touch a.qcow2
because "the base was touched" long.qcow2 'a.qcow2 was changed since the tree file was written; no image below .*'
because "the base of one that is tracked" b.qcow2 'a.qcow2 was changed since the tree file was written; no image below .*'
qemu-io -f qcow2 -c 'write -q -P 9 21M 64k' b.qcow2
touch a.qcow2
because "both" b.qcow2 'b.qcow2 was changed since the tree file was written; its backing file a.qcow2 changed, too; no image below .*'

# --- Why everything is read ---

right "up to date again" a.qcow2 bitmap
cp a.qcow2.qvtree keep.qvtree
is "another partition" "$(field reason update -p disk --data-blocks 100 a.qcow2)" "the tree file is of another partition, or another part of it"
cp keep.qvtree a.qcow2.qvtree
is "other parameters" "$(field reason update -p disk --salt ab a.qcow2)" "the tree file is of other parameters"
# Of which a confined process, which is not told of them, knows nothing.
for digest in sha512 whirlpool; do
    "$QVERITY" hash --hash $digest --tree a.qcow2.qvtree -p disk a.qcow2 >/dev/null || fail "a tree of $digest"
    for other in '' '--hash sha384'; do
        cp a.qcow2.qvtree other.qvtree
        is "another digest than $digest${other:+: $other}" "$(field reason update $other --tree other.qvtree -p disk a.qcow2)" \
            "the tree file is of other parameters"
        is "and no word about it" "$(cat "$T/.err")" ""
    done
    qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 over.qcow2
    is "a tree below of $digest: not taken" "$(field reason update -p disk over.qcow2)" \
        "there is no tree file; no image below it has a tree file that is up to date and of the same partition and parameters"
    is "and no word about it" "$(cat "$T/.err")" ""
    rm -f over.qcow2*
done
cp keep.qvtree a.qcow2.qvtree
is "another format" "$(field reason update -p disk --format raw --data-blocks 65536 a.qcow2 2>/dev/null || echo)" ""
qemu-img convert -O raw a.qcow2 a.raw
cp keep.qvtree a.raw.qvtree
is "another way to read" "$(field reason update -p disk a.raw)" "the tree file is of the image read in another way (as another format, or at another snapshot)"
qemu-io -f raw -c 'write -q -P 1 1M 512' a.raw
because "raw" a.raw 'a.raw was changed since the tree file was written; changes are not tracked: a.raw: changes are tracked in qcow2 version 3 images only, and this one is raw'
cp keep.qvtree a.qcow2.qvtree
printf x | dd of=a.qcow2.qvtree bs=1 seek=20000 conv=notrunc status=none
printf x | dd of=a.qcow2.qvtree bs=1 seek=2000 conv=notrunc status=none
because "damaged" a.qcow2 'a.qcow2.qvtree: its header is damaged'
echo text >a.qcow2.qvtree
because "no tree file" a.qcow2 'a.qcow2.qvtree: not a tree file'
"$QVERITY" update -q -p disk a.qcow2 >/dev/null
cat earlier >a.qcow2
because "put back to before a reset" a.qcow2 'a.qcow2 was changed since the tree file was written; the bitmaps were made or reset by somebody else since, or the image was put back to an older state'
"$QVERITY" update -q -p disk a.qcow2 >/dev/null
cp a.qcow2 earlier
qemu-io -f qcow2 -c 'write -q -P 10 41M 128k' a.qcow2
"$QVERITY" hash -q -p disk a.qcow2 >/dev/null
cat earlier >a.qcow2
because "put back to before a hash" a.qcow2 "a.qcow2 was changed since the tree file was written; the image was put back to a state before the tree file's"
cp a.qcow2 new && mv new a.qcow2
because "another file" a.qcow2 'a.qcow2 was changed since the tree file was written; it is another file than then'

# --- Where a tree cannot be kept ---

cp a.qcow2 victim.qcow2
like "a file that is no tree file is left alone" "$("$QVERITY" hash -p disk --tree victim.qcow2 a.qcow2 2>&1 >/dev/null)" 'warning: no tree is kept: victim.qcow2 is there and is no tree file'
same "every byte of it" victim.qcow2 a.qcow2
mkdir -p no
like "a tree file that cannot be written" "$("$QVERITY" update -p disk --tree no/such/tree a.qcow2 2>&1 >/dev/null)" 'warning: no tree is kept: no/such/tree'
ok "is no failure" "$QVERITY" update -p disk --tree no/such/tree a.qcow2
is "nothing is tracked then" "$(field tracking_reason update -p disk --tree no/such/tree a.qcow2)" "no tree is kept"
is "--no-tree" "$(field tracking_reason update -p disk --no-tree a.qcow2)" "no tree is kept"
# What a failure may be due to: what every update said to the end.
[ "$t_failed" -eq 0 ] || note "$(cat "$T/log")"
finish
