#!/bin/bash
# SPDX-License-Identifier: MIT
# Change tracking: the bitmaps that `track` makes, read and reset natively, against what QEMU says of them;
# and every way in which they must not be believed.
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io qemu-nbd python3
TOOL=${QVERITY_TOOLS:-$(dirname "$QVERITY")/tests/tools}/bitmap-tool
[ -x "$TOOL" ] || skip_all "bitmap-tool is not built"

# io IMAGE COMMAND…: qemu-io, quietly
io()
{
    local image=$1 words=()
    shift
    for command in "$@"; do words+=(-c "$command"); done
    qemu-io -f qcow2 "${words[@]}" "$image" >"$T/.io" 2>&1 || { note "qemu-io: $(tail -3 "$T/.io")"; return 1; }
}

# bitmaps IMAGE: names and flags, as qemu-img shows them
bitmaps()
{
    qemu-img info --output=json "$1" | python3 -c '
import json, sys
data = json.load(sys.stdin)["format-specific"]["data"]
print(" ".join(b["name"] + "".join("," + f for f in b["flags"]) for b in data.get("bitmaps", [])))'
}

# qemu_ranges IMAGE BITMAP: the dirty ranges that QEMU's NBD server tells of, as bitmap-tool prints them
qemu_ranges()
{
    local pid
    rm -f nbd.sock
    # The bitmap that QEMU records in can be exported for writing only, and so gets marked in use in between.
    qemu-nbd -f qcow2 -B "$2" -k "$T/nbd.sock" "$1" &
    pid=$!
    t_kill_later $pid
    for ((i = 0; i < 3000 * patience; i++)); do [ -S nbd.sock ] && break; sleep 0.02; done
    qemu-img map --output=json --image-opts \
        "driver=nbd,server.type=unix,server.path=$T/nbd.sock,x-dirty-bitmap=qemu:dirty-bitmap:$2" |
        python3 -c '
import json, sys
last = None
for e in json.load(sys.stdin):
    if e["data"]:
        continue
    if last and last[0] + last[1] == e["start"]:
        last[1] += e["length"]
    else:
        if last: print(*last)
        last = [e["start"], e["length"]]
if last: print(*last)'
    wait $pid
}

# our_ranges IMAGE BITMAP SIZE: cut to the disk, as QEMU does
our_ranges()
{
    "$TOOL" dump "$1" "$2" | awk -v size="$3" 'NR > 1 { if ($1 + $2 > size) $2 = size - $1; print $1, $2 }'
}

# set_of IMAGE: how many granules are set
set_of()
{
    "$TOOL" dump "$1" qverity | awk 'NR == 1 { print $4 }'
}

all="qverity-generation qverity-witness,auto qverity,auto"

# --- on and off ---

qemu-img create -q -f qcow2 a.qcow2 1G
is "on" "$("$QVERITY" track a.qcow2 on)" "a.qcow2: change tracking is on, in granules of 65536 bytes"
is "the bitmaps are there" "$(bitmaps a.qcow2)" "$all"
ok "qemu-img check after on" qemu-img check a.qcow2
cp a.qcow2 fresh.qcow2
is "on again" "$("$QVERITY" track a.qcow2 on)" "a.qcow2: change tracking is on already, in granules of 65536 bytes"
same "on again changes nothing" a.qcow2 fresh.qcow2
is "on again, JSON" "$("$QVERITY" track --json a.qcow2 on | python3 -c 'import json, sys; print(json.load(sys.stdin))')" \
    "{'tracking': True, 'granularity': 65536}"
is "off, JSON" "$("$QVERITY" --json track a.qcow2 off | python3 -c 'import json, sys; print(json.load(sys.stdin))')" \
    "{'tracking': False, 'granularity': None}"
is "no bitmap is left" "$(bitmaps a.qcow2)" ""
ok "qemu-img check after off" qemu-img check a.qcow2
is "off again" "$("$QVERITY" track a.qcow2 off)" "a.qcow2: change tracking is off already"
ok "on after off" "$QVERITY" track a.qcow2 on
is "another generation" "$([ "$("$TOOL" generation a.qcow2)" != "$("$TOOL" generation fresh.qcow2)" ] && echo other)" other
mkdir -p 'x,y:z'
cp fresh.qcow2 'x,y:z/-d,e.qcow2'
(cd 'x,y:z' && "$QVERITY" track -- -d,e.qcow2 off) >/dev/null
mv 'x,y:z/-d,e.qcow2' b.qcow2
is "names with commas, colons and dashes" "$(bitmaps b.qcow2)" ""

for options in cluster_size=512 cluster_size=2M extended_l2=on lazy_refcounts=on; do
    qemu-img create -q -f qcow2 -o $options b.qcow2 1000000512
    ok "on, $options" "$QVERITY" track b.qcow2 on
    is "QEMU's bits, $options" "$(our_ranges b.qcow2 qverity 1000000512)" "$(qemu_ranges b.qcow2 qverity)"
    ok "reset, $options" "$TOOL" reset b.qcow2
    is "QEMU's bits after the reset, $options" "$(our_ranges b.qcow2 qverity 1000000512)" "$(qemu_ranges b.qcow2 qverity)"
    ok "reset after QEMU wrote the bitmaps again, $options" "$TOOL" reset b.qcow2
    ok "qemu-img check, $options" qemu-img check b.qcow2
done
qemu-img create -q -f qcow2 b.qcow2 64T
is "a disk of 64 TiB has larger granules" "$("$QVERITY" track b.qcow2 on)" \
    "b.qcow2: change tracking is on, in granules of 262144 bytes"
ok "reset of 64 TiB" "$TOOL" reset b.qcow2
qemu-img create -q -f qcow2 -b fresh.qcow2 -F qcow2 b.qcow2
ok "on for an overlay" "$QVERITY" track b.qcow2 on
is "the base is left alone" "$(cmp fresh.qcow2 <(cat fresh.qcow2) && bitmaps fresh.qcow2)" "$all"

# --- What cannot be tracked ---

truncate -s 1G raw
qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 1G
qemu-img create -q -f qcow2 small.qcow2 16711680
qemu-img create -q -f qcow2 enough.qcow2 16M
qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=on data.qcow2 1G
qemu-img create -q -f qcow2 luks.qcow2 1G
printf '\2' | dd of=luks.qcow2 bs=1 seek=35 conv=notrunc status=none # crypt_method
qemu-img create -q -f qcow2 --object secret,id=s,data=abc -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 1G 2>/dev/null
refused "raw" 1 'raw: changes are tracked in qcow2 version 3 images only, and this one is raw' "$QVERITY" track raw on
refused "version 2" 1 'and this one is of version 2 \(qemu-img amend' "$QVERITY" track v2.qcow2 on
refused "too small" 1 'a disk of 16711680 bytes is too small to be worth tracking; it must have 16 MiB' "$QVERITY" track small.qcow2 on
ok "just large enough" "$QVERITY" track enough.qcow2 on
refused "external data file" 1 'data.qcow2: its data is in data.raw' "$QVERITY" track data.qcow2 on
refused "LUKS" 1 'LUKS' "$QVERITY" track luks.qcow2 on
[ -f aes.qcow2 ] && refused "AES" 1 'encrypted' "$QVERITY" track aes.qcow2 on
refused "no such file" 1 'none.qcow2: cannot open' "$QVERITY" track none.qcow2 on
refused "neither on nor off" 2 "'maybe' is neither on nor off" "$QVERITY" track a.qcow2 maybe
refused "on or off is missing" 2 'track' "$QVERITY" track a.qcow2
qemu-img create -q -f qcow2 v3.qcow2 1G
refused "no QEMU" 1 'v3.qcow2: qemu-img: cannot run \(it comes with QEMU\)' env PATH=/nonexistent "$QVERITY" track v3.qcow2 on
coproc HOLD { qemu-io -f qcow2 v3.qcow2; }
hold=$HOLD_PID
read -r -t 5 -n 8 _ <&"${HOLD[0]}"
refused "in use by a writer" 1 'v3.qcow2: in use: another process' "$QVERITY" track v3.qcow2 on
echo quit >&"${HOLD[1]}"; wait $hold
coproc HOLD { qemu-io -r -f qcow2 v3.qcow2; }
hold=$HOLD_PID
read -r -t 5 -n 8 _ <&"${HOLD[0]}"
refused "in use by a reader" 1 'v3.qcow2: in use: another process reads it' "$QVERITY" track v3.qcow2 on
echo quit >&"${HOLD[1]}"; wait $hold
is "nothing was added" "$(bitmaps v3.qcow2)" ""

# A qemu-img that fails when the image is changed for the n-th time.
mkdir bin
cat >bin/qemu-img <<'END'
#!/bin/bash
case " $* " in *" bitmap --image-opts "*)
    echo >>"$COUNT_FILE"
    [ "$(wc -l <"$COUNT_FILE")" = "$FAIL_AT" ] && { echo "qemu-img: the disk is full" >&2; exit 1; }
esac
PATH=${PATH#*:} exec qemu-img "$@"
END
chmod +x bin/qemu-img
"$QVERITY" update -q v3.qcow2 >/dev/null
for at in 1 2 3; do
    : >count
    refused "qemu-img fails at step $at" 1 'v3.qcow2: qemu-img: the disk is full$' \
        env FAIL_AT=$at COUNT_FILE="$T/count" PATH="$T/bin:$PATH" "$QVERITY" track v3.qcow2 on
    is "no bitmap is left after a failure at step $at" "$(bitmaps v3.qcow2)" ""
    like "the tree file stays current after a failure at step $at" "$("$QVERITY" update v3.qcow2)" '^Method: *	unchanged$'
done
qemu-img bitmap --add --disable v3.qcow2 qverity-generation
ok "on after a crash between the first two" "$QVERITY" track v3.qcow2 on
is "all bitmaps are there then" "$(bitmaps v3.qcow2)" "$all"
qemu-img bitmap --remove v3.qcow2 qverity
ok "on after a crash between the last two" "$QVERITY" track v3.qcow2 on
is "and then" "$(bitmaps v3.qcow2)" "$all"

# An image in which a new cluster would be put over one that is used: refcounts that are not there.
qemu-img create -q -f qcow2 broken.qcow2 64M
io broken.qcow2 'write -q -P 7 0 1M'
refcount_block=$(python3 -c '
import struct
f = open("broken.qcow2", "rb")
f.seek(48); f.seek(struct.unpack(">Q", f.read(8))[0]); print(struct.unpack(">Q", f.read(8))[0])')
head -c 64 /dev/zero | dd of=broken.qcow2 bs=1 seek=$((refcount_block + 8)) conv=notrunc status=none
cp broken.qcow2 before
refused "wrong refcounts" 1 "broken.qcow2: qemu-img check finds errors in it; 'qemu-img check -r all'" "$QVERITY" track broken.qcow2 on
same "nothing was written to it" broken.qcow2 before

# --- Locks while it works ---

# Each qemu-img that changes the image says so and waits.
cat >bin/qemu-img <<'END'
#!/bin/bash
case " $* " in *" bitmap --image-opts "*)
    echo "$$" >"$STEPS"
    read -r _ <"$GO"
esac
PATH=${PATH#*:} exec qemu-img "$@"
END
mkfifo steps go
qemu-img create -q -f qcow2 busy.qcow2 1G
env STEPS="$T/steps" GO="$T/go" PATH="$T/bin:$PATH" "$QVERITY" track busy.qcow2 on >.track &
pid=$!
t_kill_later $pid
for step in 1 2; do
    read -r -t 20 child <steps
    like "QEMU cannot write at step $step" "$(qemu-io -f qcow2 -c quit busy.qcow2 2>&1)" 'Failed to get .*lock'
    like "nor read at step $step" "$(qemu-io -r -f qcow2 -c quit busy.qcow2 2>&1)" 'Failed to get .*lock'
    echo >go
done
read -r -t 20 child <steps
{ kill -9 $pid; wait $pid; } 2>/dev/null
like "qverity was killed, qemu-img was not: QEMU cannot write" "$(qemu-io -f qcow2 -c quit busy.qcow2 2>&1)" 'Failed to get .*lock'
echo >go
while kill -0 "$child" 2>/dev/null; do sleep 0.02; done
ok "it can when that has ended" qemu-io -f qcow2 -c quit busy.qcow2
is "and finds what it left" "$(bitmaps busy.qcow2)" "$all"
ok "qemu-img check after that" qemu-img check busy.qcow2

# --- Bits, as QEMU has them ---

cp fresh.qcow2 a.qcow2
reset=$("$TOOL" reset a.qcow2)
generation=$(sed -n 1p <<<"$reset")
canaries=$(sed -n '2s/canaries //p' <<<"$reset")
ok "qemu-img check after a reset" qemu-img check a.qcow2
is "only canaries are set" "$("$TOOL" dump a.qcow2 qverity | awk 'NR > 1 { for (i = 0; i < $2; i += 65536) print ($1 + i) / 65536 }')" \
    "$(tr ' ' '\n' <<<"$canaries")"
is "the generation is the new one" "$("$TOOL" generation a.qcow2)" "$generation"
is "QEMU sees the same" "$(our_ranges a.qcow2 qverity 1073741824)" "$(qemu_ranges a.qcow2 qverity)"
is "the generation, too" "$(our_ranges a.qcow2 qverity-generation 1073741824)" "$(qemu_ranges a.qcow2 qverity-generation)"
python3 - "$canaries" >expected 3>commands <<'END'
import random, sys
seed = random.randrange(1 << 30)
print("# seed", seed, file=sys.stderr)
random.seed(seed)
G, size = 65536, 1 << 30
granules = set(map(int, sys.argv[1].split()))
out = open(3, "w")
for _ in range(120):
    at = random.randrange(size // 512) * 512
    length = min(size - at, 512 * random.choice([1, 1, 8, 128, 129, 2000]))
    out.write(random.choice(["write -q", "write -q -z", "discard -q", "write -q -z -u"]) + f" {at} {length}\n")
    granules |= set(range(at // G, (at + length - 1) // G + 1))
start = None
for g in range(size // G + 1):
    if g in granules and start is None:
        start = g
    if g not in granules and start is not None:
        print(start * G, (g - start) * G)
        start = None
END
mapfile -t commands <commands
ok "random writes" io a.qcow2 "${commands[@]}"
is "the bits are those of what was written" "$(our_ranges a.qcow2 qverity 1073741824)" "$(cat expected)"
is "QEMU's bits are the same" "$(our_ranges a.qcow2 qverity 1073741824)" "$(qemu_ranges a.qcow2 qverity)"
is "writes leave the generation alone" "$("$TOOL" generation a.qcow2)" "$generation"
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 over.qcow2
"$TOOL" reset a.qcow2 >/dev/null
io over.qcow2 'write -q 700M 64k'
ok "an overlay is committed" qemu-img commit -q over.qcow2
is "a commit into the image sets bits" "$("$TOOL" dump a.qcow2 qverity | awk '$1 <= 734003200 && 734003200 < $1 + $2' | wc -l)" 1

# --- Locks of a reset ---

cp a.qcow2 busy.qcow2
coproc HOLD { qemu-io -r -f qcow2 busy.qcow2; }
hold=$HOLD_PID
read -r -t 5 -n 8 _ <&"${HOLD[0]}"
like "no reset while somebody reads" "$("$TOOL" reset busy.qcow2 2>&1)" 'Device or resource busy: busy.qcow2: in use: another process reads it'
echo quit >&"${HOLD[1]}"; wait $hold
same "and nothing was written" a.qcow2 busy.qcow2
coproc HOLD { qemu-io -f qcow2 busy.qcow2; }
hold=$HOLD_PID
read -r -t 5 -n 8 _ <&"${HOLD[0]}"
like "no reset while somebody writes" "$("$TOOL" reset busy.qcow2 2>&1)" 'Device or resource busy: busy.qcow2: in use: another process .* has it open for writing'
echo quit >&"${HOLD[1]}"; wait $hold

# --- A reset that is interrupted ---

# Ended by kill -9 before its sync: all that was written until then is in the file.
cp a.qcow2 crash.qcow2
io crash.qcow2 'write -q 100M 20M' 'write -q 900M 1M'
"$TOOL" dump crash.qcow2 qverity | tail -n +2 >bits
coproc RESET { exec "$TOOL" --pause reset crash.qcow2; }
pid=$RESET_PID
read -r -t 5 _ new <&"${RESET[0]}"
read -r -t 5 _ canaries <&"${RESET[0]}"
read -r -t 5 line <&"${RESET[0]}"
is "the sync is reached" "$line" "sync 0"
like "QEMU cannot write then" "$(qemu-io -f qcow2 -c quit crash.qcow2 2>&1)" 'Failed to get .*lock'
like "nor read" "$(qemu-io -r -f qcow2 -c quit crash.qcow2 2>&1)" 'Failed to get .*lock'
like "nor we" "$("$TOOL" generation crash.qcow2 2>&1)" 'in use'
{ kill -9 $pid; wait $pid; } 2>/dev/null
ok "qemu-img check after kill -9 at the sync" qemu-img check crash.qcow2
is "QEMU takes the bitmaps" "$(our_ranges crash.qcow2 qverity 1073741824)" "$(qemu_ranges crash.qcow2 qverity)"
is "the generation is the new one" "$("$TOOL" generation crash.qcow2)" "generation $new"
for name in qverity qverity-witness; do
    "$TOOL" dump crash.qcow2 $name | tail -n +2 >now
    python3 - bits now "$canaries" <<'END' && pass "no bit of $name is missing" || fail "bits of $name"
import sys
def granules(name):
    return {g for line in open(name) for s, n in [map(int, line.split())] for g in range(s // 65536, (s + n) // 65536)}
old, now, canaries = granules(sys.argv[1]), granules(sys.argv[2]), set(map(int, sys.argv[3].split()))
sys.exit(now != old | canaries)
END
done
ok "the next reset works" "$TOOL" reset crash.qcow2
is "and clears" "$("$TOOL" check crash.qcow2)" clean

# At any moment: never anything that QEMU finds fault with.
cp a.qcow2 crash.qcow2
bad=0
for delay in 0.001 0.002 0.003 0.004 0.005 0.006 0.008 0.010 0.015; do
    "$TOOL" reset crash.qcow2 >/dev/null &
    pid=$!
    sleep $delay
    { kill -9 $pid; wait $pid; } 2>/dev/null
    if ! { qemu-img check crash.qcow2 && "$TOOL" generation crash.qcow2 && [ "$(set_of crash.qcow2)" -ge 16 ]; } >.check 2>&1; then
        bad=$((bad + 1))
        note "after $delay s: $(cat .check)"
    fi
done
is "kill -9 at other moments" $bad 0

# --- What must not be believed ---

# distrusted DESCRIPTION REGEX: the bitmaps of t.qcow2 are refused for this reason, and `on` makes them anew
distrusted()
{
    like "$1" "$("$TOOL" dump t.qcow2 qverity 2>&1 >/dev/null; "$TOOL" check t.qcow2 2>&1 >/dev/null)" "$2"
    ok "$1: on makes new ones" "$QVERITY" track t.qcow2 on
    is "$1: bitmaps then" "$(bitmaps t.qcow2)" "$all"
    ok "$1: they are good" "$TOOL" reset t.qcow2
    ok "$1: qemu-img check" qemu-img check t.qcow2
}

cp a.qcow2 t.qcow2
coproc HOLD { exec qemu-io -f qcow2 t.qcow2; }
hold=$HOLD_PID
read -r -t 5 -n 8 _ <&"${HOLD[0]}"
echo 'write 5M 1M' >&"${HOLD[1]}"
read -r -t 5 line <&"${HOLD[0]}"
{ kill -9 $hold; wait $hold; } 2>/dev/null
distrusted "QEMU was killed" "bitmap 'qverity': it is marked in use"

cp a.qcow2 t.qcow2
qemu-img bitmap --disable t.qcow2 qverity
distrusted "disabled" "bitmap 'qverity': it is disabled"
cp a.qcow2 t.qcow2
qemu-img bitmap --enable t.qcow2 qverity-generation
distrusted "generation enabled" "bitmap 'qverity-generation': it is enabled, and must not be"
cp a.qcow2 t.qcow2
qemu-img bitmap --disable t.qcow2 qverity-witness
distrusted "witness disabled" "bitmap 'qverity-witness': it is disabled"
cp a.qcow2 t.qcow2
qemu-img bitmap --remove t.qcow2 qverity-witness
distrusted "witness removed" "bitmap 'qverity-witness': there is none of this name"
cp a.qcow2 t.qcow2
io t.qcow2 'write -q -z 0 8M'
qemu-img bitmap --merge qverity t.qcow2 qverity-generation
distrusted "generation changed" "bits are clear that had been set on purpose"
cp a.qcow2 t.qcow2
qemu-img bitmap --remove t.qcow2 qverity-generation
distrusted "generation removed" "bitmap 'qverity-generation': there is none of this name"

# Bit 0 of autoclear_features, bytes 88 to 95.
cp a.qcow2 t.qcow2
printf '\0' | dd of=t.qcow2 bs=1 seek=95 conv=notrunc status=none
like "written to by a program that knows no bitmaps" "$("$TOOL" dump t.qcow2 qverity 2>&1)" 'its bitmaps are not to be trusted: .*autoclear bit 0'
ok "on, then" "$QVERITY" track t.qcow2 on
is "bitmaps, then" "$(bitmaps t.qcow2)" "$all"

# What the disk loses and gets back as zeros is told by no bit.
cp a.qcow2 t.qcow2
qemu-img resize -q --shrink t.qcow2 900M && qemu-img resize -q t.qcow2 1G
io t.qcow2 'write -q 1073676288 64k'
distrusted "smaller and larger again" "its last bit is not set: the disk was resized"

# What canaries are for.
for name in qverity qverity-witness; do
    cp a.qcow2 t.qcow2
    qemu-img bitmap --clear t.qcow2 $name
    like "$name cleared: nothing to rewrite" "$("$TOOL" reset t.qcow2 2>&1)" "bitmap '$name' has no clusters of its own"
    distrusted "$name cleared" "bitmap '$name': bits are clear that had been set on purpose"
    cp a.qcow2 t.qcow2
    qemu-img bitmap --remove t.qcow2 $name && qemu-img bitmap --add -g 64K t.qcow2 $name
    distrusted "$name removed and added again" "bitmap '$name': bits are clear that had been set on purpose"
    cp a.qcow2 t.qcow2
    qemu-img bitmap --remove t.qcow2 $name && qemu-img bitmap --add -g 128K t.qcow2 $name
    distrusted "$name with other granules" "has granules of .* bytes"

    # What one of them did not record the other one did.
    cp a.qcow2 t.qcow2
    "$TOOL" reset t.qcow2 >/dev/null
    qemu-img bitmap --disable t.qcow2 $name
    io t.qcow2 'write -q 333M 64k'
    qemu-img bitmap --enable t.qcow2 $name
    is "disabled and enabled again: dirty" "$("$TOOL" check t.qcow2)" dirty
done

# QEMU itself refuses to change the disk behind the bitmaps' back.
cp a.qcow2 t.qcow2
qemu-img snapshot -c s t.qcow2
like "a snapshot cannot be applied" "$(qemu-img snapshot -a s t.qcow2 2>&1)" 'active dirty bitmaps'
finish
