#!/bin/bash
# SPDX-License-Identifier: MIT
# Every way in which a tree file can be older than its image, of something else, or damaged, and every way
# in which a bitmap can lack what was written: always the root hash that veritysetup computes.
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io veritysetup python3
zeros=$(printf '0%.0s' {1..64})

io()
{
    local image=$1 words=()
    shift
    for command in "$@"; do words+=(-c "$command"); done
    qemu-io -f "${IO_FORMAT:-qcow2}" "${words[@]}" "$image" >"$T/.io" 2>&1 || { note "qemu-io: $(tail -3 "$T/.io")"; return 1; }
}

# of_bytes IMAGE [OPTION…]: the root hash of what QEMU reads
of_bytes()
{
    local said
    qemu-img convert "${@:2}" -O raw "$1" .raw && said=$(veritysetup format --salt "$zeros" .raw .hashes) &&
        [[ $said =~ Root\ hash:[[:space:]]*([0-9a-f]+) ]] && echo "${BASH_REMATCH[1]}"
}

# right DESCRIPTION IMAGE NOT [OPTION…]: hash and update print the right root hash, and do not find it by
# a method that the regex NOT matches
right()
{
    local expected got root method command description=$1 image=$2 not=$3
    shift 3
    expected=$(of_bytes "$image")
    # hash must not spoil it for update.
    cp --preserve=all "$image.qvtree" .tree 2>/dev/null
    for command in "hash" update; do
        got=$("$QVERITY" $command --json -p disk "$@" "$image" 2>.err)
        root=missing method=missing
        [[ $got =~ \"root_hash\":\ \"([^\"]*)\" ]] && root=${BASH_REMATCH[1]}
        [[ $got =~ \"method\":\ \"([^\"]*)\" ]] && method=${BASH_REMATCH[1]}
        if [ "$root" != "$expected" ] || [[ -n $not && $method =~ ^($not)$ ]]; then
            fail "$description, $command"
            note "got $root $method, expected $expected $(cat .err)"
        else
            pass "$description, $command: $method"
        fi
        [ $command = hash ] && cp --preserve=all .tree "$image.qvtree" 2>/dev/null
    done
}

qemu-img create -q -f qcow2 fresh.qcow2 17M
io fresh.qcow2 'write -q -P 3 1M 6M' 'write -q -P 4 12M 2M'
cp fresh.qcow2 tracked.qcow2
"$QVERITY" track tracked.qcow2 on >/dev/null

# What is written to images with bitmaps is more than two granules: one alone may be a canary, which is read again in
# any case, so that an older image is as good as today's.

# new NAME [FROM]: a copy of FROM (fresh.qcow2) with a tree file that is current
new()
{
    rm -f "$1" "$1.qvtree"
    cp "${2:-fresh.qcow2}" "$1"
    "$QVERITY" update -q -p disk "$1" >/dev/null
}

# --- Files ---

new a.qcow2
right "nothing happened" a.qcow2 "full|bitmap"
touch a.qcow2
right "touched" a.qcow2 unchanged
new a.qcow2
touch -r a.qcow2 a.qcow2
right "touched, times as before" a.qcow2 unchanged
new a.qcow2
touch -r a.qcow2 times
printf x | dd of=a.qcow2 bs=1 seek=$((0x60000)) conv=notrunc status=none
touch -r times a.qcow2
right "written past QEMU, old mtime" a.qcow2 unchanged

# A backup, put back in each way.
for how in "cp -p" "cp --preserve=all --remove-destination" "mv" "cat" "rm and cp -p"; do
    for from in fresh tracked; do
        new a.qcow2 $from.qcow2
        cp --preserve=all a.qcow2 backup.qcow2
        io a.qcow2 'write -q -P 9 2M 256k'
        "$QVERITY" update -q -p disk a.qcow2 >/dev/null
        case $how in
        mv) mv backup.qcow2 a.qcow2 ;;
        cat) cat backup.qcow2 >a.qcow2; touch -r backup.qcow2 a.qcow2 ;;
        rm*) rm a.qcow2; cp -p backup.qcow2 a.qcow2 ;;
        *) $how backup.qcow2 a.qcow2 ;;
        esac
        right "a backup with its old mtime, $from, $how" a.qcow2 "unchanged|bitmap"
    done
done
new a.qcow2 tracked.qcow2
cp --preserve=all a.qcow2.qvtree backup.qvtree
io a.qcow2 'write -q -P 9 2M 256k'
"$QVERITY" update -q -p disk a.qcow2 >/dev/null
cp --preserve=all backup.qvtree a.qcow2.qvtree
right "an older tree file" a.qcow2 "unchanged|bitmap"
new a.qcow2
new b.qcow2
io b.qcow2 'write -q -P 8 3M 256k'
"$QVERITY" update -q -p disk b.qcow2 >/dev/null
cp --preserve=all b.qcow2.qvtree a.qcow2.qvtree
right "the tree file of another image" a.qcow2 unchanged
new a.qcow2 tracked.qcow2
cp a.qcow2 b.qcow2
io b.qcow2 'write -q -P 8 3M 256k'
"$QVERITY" update -q -p disk b.qcow2 >/dev/null
cp --preserve=all b.qcow2.qvtree a.qcow2.qvtree
right "of another image with the same past" a.qcow2 "unchanged|bitmap"

qemu-img convert -O raw fresh.qcow2 fresh.raw
IO_FORMAT=raw
new a.raw fresh.raw
io a.raw 'write -q -P 8 3M 512'
right "raw" a.raw unchanged
new a.raw fresh.raw
fallocate -p -o 2M -l 64K a.raw
right "a hole in a raw file" a.raw unchanged
new a.raw fresh.raw
truncate -s 13M a.raw && truncate -s 17M a.raw
right "a raw file cut off and as long again" a.raw unchanged
new a.raw fresh.raw
python3 - "$QVERITY" <<'END'
import mmap, subprocess, sys
with open("a.raw", "r+b") as file, mmap.mmap(file.fileno(), 0) as m:
    m[5 << 20] = 77
    # The page is dirty now: the next store leaves no trace unless somebody had it written back.
    subprocess.run([sys.argv[1], "hash", "-q", "-p", "disk", "a.raw"], stdout=subprocess.DEVNULL)
    m[5 << 20] = 78
END
right "a store into a shared mapping" a.raw unchanged
IO_FORMAT=qcow2

# Many edits, each as soon as the program is through with the one before.
new a.raw fresh.raw
python3 - "$QVERITY" <<'END' && pass "edits in quick succession" || fail "edits in quick succession"
import hashlib, os, subprocess, sys
sys.path.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))
fd = os.open("a.raw", os.O_RDWR)
wrong = 0
for n in range(30):
    os.pwrite(fd, bytes([n]) * 100, 2 << 20)
    roots = [subprocess.run([sys.argv[1], "hash", "-q", "-p", "disk", *more, "a.raw"], capture_output=True).stdout
             for more in ([], ["--no-tree"])]
    wrong += roots[0] != roots[1]
sys.exit(wrong != 0)
END

# --- Bitmaps ---

for name in qverity qverity-witness qverity-generation; do
    [ $name = qverity-generation ] || for what in "--clear" "--disable" "--remove"; do
        new a.qcow2 tracked.qcow2
        io a.qcow2 'write -q -P 9 2M 256k'
        qemu-img bitmap $what a.qcow2 $name
        right "$name $what" a.qcow2 "unchanged|bitmap"
    done
    new a.qcow2 tracked.qcow2
    io a.qcow2 'write -q -P 9 2M 256k'
    more=
    [ $name = qverity-generation ] && more=--disable
    # shellcheck disable=SC2086
    qemu-img bitmap --remove a.qcow2 $name && qemu-img bitmap --add $more -g 64K a.qcow2 $name
    right "$name removed and added again" a.qcow2 "unchanged|bitmap"
    new a.qcow2 tracked.qcow2
    io a.qcow2 'write -q -P 9 2M 256k'
    qemu-img bitmap --clear a.qcow2 $name
    io a.qcow2 'write -q -P 10 3M 256k'
    right "$name cleared and written to" a.qcow2 "unchanged|bitmap"
    [ $name = qverity-generation ] && continue
    new a.qcow2 tracked.qcow2
    qemu-img bitmap --disable a.qcow2 $name
    io a.qcow2 'write -q -P 9 2M 256k'
    qemu-img bitmap --enable a.qcow2 $name
    right "$name disabled, written past, enabled" a.qcow2 unchanged
    new a.qcow2 tracked.qcow2
    qemu-img bitmap --add -g 64K a.qcow2 other
    io a.qcow2 'write -q -P 9 2M 256k'
    qemu-img bitmap --clear --merge other a.qcow2 $name
    right "$name cleared, another one merged" a.qcow2 "unchanged|bitmap"
done
new a.qcow2 tracked.qcow2
for name in qverity qverity-witness qverity-generation; do qemu-img bitmap --disable a.qcow2 $name; done
io a.qcow2 'write -q -P 9 2M 256k'
for name in qverity qverity-witness qverity-generation; do qemu-img bitmap --enable a.qcow2 $name; done
right "all disabled, written past, all enabled" a.qcow2 "unchanged|bitmap"
new a.qcow2 tracked.qcow2
io a.qcow2 'write -q -P 9 2M 256k'
"$QVERITY" track a.qcow2 off >/dev/null
io a.qcow2 'write -q -P 10 3M 256k'
"$QVERITY" track a.qcow2 on >/dev/null
right "tracking off and on" a.qcow2 "unchanged|bitmap"

# A QEMU that was killed.
for options in lazy_refcounts=off lazy_refcounts=on; do
    cp tracked.qcow2 lazy.qcow2
    qemu-img amend -o $options lazy.qcow2
    new a.qcow2 lazy.qcow2
    coproc HOLD { exec qemu-io -f qcow2 a.qcow2; }
    hold=$HOLD_PID
    read -r -t 5 -n 8 _ <&"${HOLD[0]}"
    printf 'write -P 9 2M 256k\nflush\n' >&"${HOLD[1]}"
    for _ in 1 2 3; do read -r -t 5 _ <&"${HOLD[0]}"; done
    { kill -9 "$hold"; wait "$hold"; } 2>/dev/null
    right "QEMU was killed, $options" a.qcow2 "unchanged|bitmap"
    qemu-img check -q -r all a.qcow2 >/dev/null 2>&1
    right "and the image repaired, $options" a.qcow2 bitmap
    "$QVERITY" track a.qcow2 on >/dev/null 2>&1
    right "and tracked again, $options" a.qcow2 "bitmap"
done

# --- What else QEMU does with images ---

new a.qcow2 tracked.qcow2
qemu-img resize -q --shrink a.qcow2 13M && qemu-img resize -q a.qcow2 17M
right "smaller and as large again" a.qcow2 "unchanged|bitmap"
new a.qcow2 tracked.qcow2
qemu-img resize -q a.qcow2 20M && io a.qcow2 'write -q -P 3 16M 2M' && qemu-img resize -q --shrink a.qcow2 17M
right "larger, written to, and as small again" a.qcow2 unchanged
new a.qcow2 tracked.qcow2
qemu-img resize -q a.qcow2 20M
right "larger" a.qcow2 "unchanged|bitmap"
new a.qcow2
qemu-img snapshot -c s a.qcow2 && io a.qcow2 'write -q -P 9 2M 256k'
"$QVERITY" update -q -p disk a.qcow2 >/dev/null
qemu-img snapshot -a s a.qcow2
right "put back to a snapshot" a.qcow2 unchanged
new a.qcow2 tracked.qcow2
qemu-img snapshot -c s a.qcow2 && io a.qcow2 'write -q -P 9 2M 256k'
"$QVERITY" update -q -p disk a.qcow2 >/dev/null
qemu-img snapshot -a s a.qcow2 2>/dev/null
right "QEMU does not, with bitmaps" a.qcow2 "full"
for name in qverity qverity-witness qverity-generation; do qemu-img bitmap --remove a.qcow2 $name; done
qemu-img snapshot -a s a.qcow2
qemu-img bitmap --add -g 64K a.qcow2 qverity; qemu-img bitmap --add -g 64K a.qcow2 qverity-witness; qemu-img bitmap --add --disable -g 64K a.qcow2 qverity-generation
right "put back to a snapshot behind the bitmaps' back" a.qcow2 "unchanged|bitmap"
qemu-img snapshot -d s a.qcow2
right "and the snapshot deleted" a.qcow2 "bitmap"
"$QVERITY" hash -q -p disk a.qcow2 >/dev/null
qemu-img snapshot -c s a.qcow2 && io a.qcow2 'write -q -P 9 2M 256k'
"$QVERITY" update -q -p disk a.qcow2 >/dev/null
is "a snapshot is another disk" "$("$QVERITY" hash -p disk --snapshot s a.qcow2 | tail -1 | cut -f2)" "$(of_bytes a.qcow2 -l s)"
"$QVERITY" hash -q -p disk --snapshot s --tree s.tree a.qcow2 >/dev/null
qemu-img snapshot -d s a.qcow2 && qemu-img snapshot -c s a.qcow2
is "so is another snapshot of the same name" "$("$QVERITY" hash -p disk --snapshot s --tree s.tree a.qcow2 | tail -1 | cut -f2)" "$(of_bytes a.qcow2 -l s)"
new a.qcow2
qemu-img amend -o compat=0.10 a.qcow2
right "amended to version 2" a.qcow2 unchanged
new a.qcow2 tracked.qcow2
io a.qcow2 'write -q -P 9 2M 256k'
qemu-img amend -o compat=0.10 a.qcow2 >/dev/null 2>&1
qemu-img amend -o refcount_bits=64 a.qcow2 >/dev/null 2>&1
right "amended" a.qcow2 unchanged
new a.qcow2 tracked.qcow2
qemu-img convert -O qcow2 -n b.qcow2 a.qcow2 2>/dev/null
right "converted into" a.qcow2 unchanged
new a.qcow2 tracked.qcow2
qemu-img convert -O qcow2 b.qcow2 a.qcow2
right "made anew" a.qcow2 "unchanged|bitmap"
new a.qcow2 tracked.qcow2
io a.qcow2 'write -q -P 9 2M 256k'
qemu-img convert -O qcow2 --bitmaps a.qcow2 b.qcow2 && io a.qcow2 'write -q -P 10 3M 256k'
"$QVERITY" hash -q -p disk a.qcow2 >/dev/null
cat b.qcow2 >a.qcow2
right "a copy with its bitmaps put in its place" a.qcow2 "unchanged|bitmap"

# --- Chains ---

# chain [TRACKED]: base.qcow2 <- middle.qcow2 <- top.qcow2, their tree files current
chain()
{
    rm -f {base,middle,top}.qcow2{,.qvtree}
    cp "${1:-fresh.qcow2}" base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2
    io middle.qcow2 'write -q -P 5 4M 64k' 'write -q -z 13M 128k'
    [ -n "${1:-}" ] && "$QVERITY" track middle.qcow2 on >/dev/null
    qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2
    io top.qcow2 'write -q -P 6 5M 64k' 'discard -q 4M 64k'
    [ -n "${1:-}" ] && "$QVERITY" track top.qcow2 on >/dev/null
    for image in base middle top; do "$QVERITY" update -q -p disk $image.qcow2 >/dev/null; done
}

for from in fresh tracked; do
    chain $from.qcow2
    right "a chain, $from" top.qcow2 full
    chain $from.qcow2
    touch -r base.qcow2 times
    io base.qcow2 'write -q -P 11 1M 64k' 'write -q -P 11 4M 64k'
    touch -r times base.qcow2
    right "the base was written to, $from" top.qcow2 "unchanged|bitmap|overlay"
    "$QVERITY" update -q -p disk base.qcow2 >/dev/null
    right "and hashed, $from" top.qcow2 full
    chain $from.qcow2
    io middle.qcow2 'write -q -P 11 1M 64k'
    right "the middle one was written to, $from" top.qcow2 "unchanged|bitmap|full"
    chain $from.qcow2
    qemu-img create -q -f qcow2 -b fresh.qcow2 -F qcow2 other.qcow2
    io other.qcow2 'write -q -P 12 1M 3M'
    qemu-img rebase -q -u -b other.qcow2 -F qcow2 top.qcow2
    right "another backing file, $from" top.qcow2 "unchanged|bitmap"
    chain $from.qcow2
    cp --preserve=all base.qcow2 swapped.qcow2
    io swapped.qcow2 'write -q -P 12 1M 64k'
    touch -r base.qcow2 swapped.qcow2
    mv swapped.qcow2 base.qcow2
    right "the base was swapped, $from" top.qcow2 "unchanged|bitmap|overlay"
    chain $from.qcow2
    qemu-img rebase -q -b base.qcow2 -F qcow2 top.qcow2
    right "a safe rebase, $from" top.qcow2 "unchanged"
    chain $from.qcow2
    qemu-img convert -O raw base.qcow2 raw.qcow2 && mv raw.qcow2 base.qcow2
    qemu-img rebase -q -u -b base.qcow2 -F raw middle.qcow2
    right "a base of another format, $from" top.qcow2 "unchanged|bitmap"
    chain $from.qcow2
    qemu-img commit -q top.qcow2
    right "committed: the one below, $from" middle.qcow2 unchanged
    right "committed: the one above, $from" top.qcow2 unchanged
    qemu-img commit -q middle.qcow2
    right "committed: the base, $from" base.qcow2 unchanged
    chain $from.qcow2
    qemu-img resize -q --shrink middle.qcow2 12M && qemu-img resize -q middle.qcow2 17M
    right "the middle one smaller and as large again, $from" middle.qcow2 "unchanged|bitmap"
    right "seen from above, $from" top.qcow2 "unchanged|bitmap"
    chain $from.qcow2
    for image in base middle; do cp --preserve=all top.qcow2.qvtree $image.qcow2.qvtree; done
    rm top.qcow2.qvtree
    right "tree files in each other's place, $from" top.qcow2 "unchanged|bitmap|overlay"
done

# --- Data in another file ---

qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=on data.qcow2 17M
io data.qcow2 'write -q -P 3 1M 6M'
"$QVERITY" update -q -p disk data.qcow2 >/dev/null
right "an external data file" data.qcow2 "full|bitmap"
touch -r data.raw times
qemu-io -f raw -c 'write -q -P 9 2M 512' data.raw
touch -r times data.raw
right "was written to" data.qcow2 unchanged

# --- Tree files that are damaged ---

# flip FILE OFFSET: one bit of this byte
flip()
{
    local byte
    byte=$(od -An -t u1 -j "$2" -N 1 "$1")
    # shellcheck disable=SC2059
    printf "\\x$(printf %x $((byte ^ 1 << RANDOM % 8)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# Whatever bits are wrong: a wrong file is a slower start. (tests/unit/test-tree-file.c takes every byte.)
chain tracked.qcow2
cp base.qcow2.qvtree good
size=$(stat -c %s good)
io top.qcow2 'write -q -P 14 8M 64k'
expected=$(of_bytes top.qcow2)
bad=0
for n in {1..20}; do
    at=$((n % 2 ? RANDOM * 32768 % size + RANDOM % 32768 : RANDOM % 2 * 16384 + RANDOM % 2500))
    cp good base.qcow2.qvtree
    flip base.qcow2.qvtree $((at % size))
    rm -f top.qcow2.qvtree
    for image in base middle top; do
        root=$("$QVERITY" "hash" -q -p disk $image.qcow2 | tail -1 | cut -f2)
    done
    [ "$root" = "$expected" ] || { bad=$((bad + 1)); note "byte $at"; }
done
is "one bit flipped" $bad 0
finish
