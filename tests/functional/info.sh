#!/bin/bash
# SPDX-License-Identifier: MIT
# What info, map and read print, and how they take their arguments.
. "$(dirname "$0")/lib.sh"

PATH=$PATH:/usr/sbin:/sbin
require qemu-img qemu-io python3 sfdisk mkfs.ext4

quiet()
{
    "$@" >.quiet 2>&1 || { fail "$*"; note "$(cat .quiet)"; return 1; }
}

# field IMAGE EXPRESSION: of info's JSON, j
field()
{
    "$QVERITY" info --json "$1" | python3 -c "import json, sys; j = json.load(sys.stdin); print($2)"
}

# --- Against qemu-img info ---

# Both as "size cluster_size compression refcounts lazy extended dirty corrupt".
by_qemu()
{
    qemu-img info --output=json "$1" | python3 -c '
import json, sys
j = json.load(sys.stdin)
d = j["format-specific"]["data"]
print(j["virtual-size"], j["cluster-size"], d.get("compression-type"), d["refcount-bits"],
      d.get("lazy-refcounts", False), d.get("extended-l2", False), j["dirty-flag"], d.get("corrupt", False),
      [s["name"] for s in j.get("snapshots", [])],
      [(b["name"], b["granularity"], "in-use" in b["flags"], "auto" in b["flags"]) for b in d.get("bitmaps", [])])'
}

by_info()
{
    field "$1" 'j["virtual_size"], j["cluster_size"], j["compression"], j["refcount_bits"], j["lazy_refcounts"],
j["extended_l2"], j["dirty"], j["corrupt"], [s["name"] for s in j["snapshots"]],
[(b["name"], b["granularity"], b["in_use"], b["automatic"]) for b in j["bitmaps"]]' | tr '\n' ' ' | sed 's/ $//'
}

for options in compat=1.1 cluster_size=512 compression_type=zstd,cluster_size=2M lazy_refcounts=on refcount_bits=1 \
    extended_l2=on,refcount_bits=64; do
    quiet qemu-img create -f qcow2 -o $options a.qcow2 10M
    is "$options" "$(by_info a.qcow2)" "$(by_qemu a.qcow2)"
done
quiet qemu-img create -f qcow2 a.qcow2 10M
quiet qemu-img bitmap --add a.qcow2 one
quiet qemu-img bitmap --add -g 4k --disable a.qcow2 two
quiet qemu-img snapshot -c alpha a.qcow2
quiet qemu-img snapshot -c 'b e t a' a.qcow2
is "bitmaps and snapshots" "$(by_info a.qcow2)" "$(by_qemu a.qcow2)"
text=$("$QVERITY" info a.qcow2)
like "text: bitmaps" "$text" '^  64.0 KiB +recording +one$'
like "text: a bitmap that is off" "$text" '^  4.0 KiB +disabled +two$'
like "text: snapshots" "$text" '^  10.0 MiB +0 B +20[0-9-]+ [0-9:]+ +2, b e t a$'
quiet qemu-img create -f qcow2 -o compat=0.10 a.qcow2 10M
is "compat 0.10: version, and what it does not have" \
    "$(field a.qcow2 '[j[k] for k in ("format", "version", "compression", "data_file", "backing_file", "encryption")]')" \
    "['qcow2', 2, 'zlib', None, None, None]"
quiet qemu-img create -f qcow2 -o data_file=a.data,data_file_raw=on a.qcow2 10M
is "data file" "$(field a.qcow2 'j["data_file"], j["data_file_raw"]')" "a.data True"

# --- Chains, bytes, sizes ---

truncate -s 3M base.raw
quiet qemu-img create -f qcow2 -b base.raw -F raw middle.qcow2 4M
quiet qemu-img create -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 5M
quiet qemu-io -f qcow2 -c 'write -q -P 1 0 192k' -c 'write -q -z 1M 64k' top.qcow2
quiet qemu-io -f qcow2 -c 'write -q -P 1 2M 64k' middle.qcow2
is "backing chain" "$(field top.qcow2 '[(c["path"], c["format"], c["virtual_size"]) for c in j["backing_chain"]]')" \
    "[('middle.qcow2', 'qcow2', 4194304), ('base.raw', 'raw', 3145728)]"
is "backing file and format, as the header has them" "$(field top.qcow2 'j["backing_file"], j["backing_format"]')" \
    "middle.qcow2 qcow2"
is "allocated and zero bytes" "$(field top.qcow2 'j["allocated_bytes"], j["zero_bytes"], j["compressed_bytes"]')" \
    "262144 4980736 0"
like "text: the chain" "$("$QVERITY" info top.qcow2 | tr '\n' ' ')" 'Backing chain: +middle.qcow2 \(qcow2, 4.0 MiB\) +base.raw \(raw, 3.0 MiB\)'
quiet qemu-img convert -c -O qcow2 top.qcow2 c.qcow2
is "compressed bytes" "$(field c.qcow2 'j["allocated_bytes"], j["compressed_bytes"]')" "262144 262144"
truncate -s 1000 odd.raw
is "a raw file" "$(field odd.raw 'j["format"], j["version"], j["cluster_size"], j["virtual_size"], j["file_size"]')" \
    "raw None None 1024 1000"
quiet qemu-img create -f qcow2 huge.qcow2 499G
is "499 GiB, empty" "$(time=$(date +%s); field huge.qcow2 'j["allocated_bytes"], j["zero_bytes"]'; [ $(($(date +%s) - time)) -lt 5 ] || echo slow)" \
    "0 535797170176"
quiet qemu-img create -f qcow2 -o cluster_size=2M,preallocation=metadata,size=20G meta.qcow2
is "preallocated metadata: nothing but zeros" "$(field meta.qcow2 'j["allocated_bytes"]')" 0

# --- Strings that an image's maker chose ---

quiet qemu-img create -f qcow2 evil.qcow2 1M
quiet qemu-img snapshot -c $'red\e[31m\nqverity: fine\x9b\xff' evil.qcow2
text=$("$QVERITY" info evil.qcow2)
like "control characters do not reach the terminal" "$text" '1, red\\x1b\[31m\\x0aqverity: fine\\x9b\\xff$'
is "nor does any other line" "$(grep -c '^qverity' <<<"$text")" 0
is "JSON has what UTF-8 can tell" "$(field evil.qcow2 'ascii(j["snapshots"][0]["name"])')" \
    "'red\\x1b[31m\\nqverity: fine\\ufffd\\ufffd'"
truncate -s 32M label.img
printf 'label: gpt\nsize=16M, name="gr\xc3\xbc\xc3\x9fe \\\\x1b"\n' | quiet sfdisk label.img
rm -f fs.img
truncate -s 16M fs.img
quiet mkfs.ext4 -q -F -L $'fs\e[2Jlabel' fs.img
dd if=fs.img of=label.img bs=1M seek=1 conv=notrunc status=none
text=$("$QVERITY" info label.img)
is "labels: no control characters" "$(tr -d '\n' <<<"$text" | grep -c '[[:cntrl:]]')" 0
like "a file system's label" "$text" 'fs-label="fs\\x1b\[2Jlabel"'
like "a partition's label" "$text" 'label="grüße'
mkdir $'dir\n\e[1m'
mv label.img $'dir\n\e[1m/label.img'
text=$("$QVERITY" info $'dir\n\e[1m/label.img')
like "paths" "$text" '^Image: +dir\\x0a\\x1b\[1m/label.img$'
like "paths in the map" "$("$QVERITY" map $'dir\n\e[1m/label.img' | head -n 1)" 'data 0 dir\\x0a\\x1b\[1m/label.img$'
ok "and in its JSON" bash -c '"$1" map --json "$2" | python3 -c "import json, sys; json.load(sys.stdin)"' - \
    "$QVERITY" $'dir\n\e[1m/label.img'

name=$'C1 \xc2\x9b2J turned \xe2\x80\xae'
refused "nor do they in messages" 1 '^qverity: C1 \\xc2\\x9b2J turned \\xe2\\x80\\xae: ' "$QVERITY" info "$name"
cp evil.qcow2 "$name"
like "nor from JSON on a terminal" "$(script -qec "'$QVERITY' info --json '$name'" /dev/null </dev/null)" \
    '"path": "C1 \\u009B2J turned \\u202E"'
like "which is as it is elsewhere" "$("$QVERITY" info --json "$name")" "\"path\": \"$name\""

# --- Arguments ---

refused "info without an image" 2 "info: arguments are missing" "$QVERITY" info
refused "info with two" 2 'info: too many arguments' "$QVERITY" info a b
refused "a letter that is no option" 2 "unknown option .-vx." "$QVERITY" -vx info a.qcow2
like "letters together, in front of the command" "$("$QVERITY" -qvv info a.qcow2 2>&1)" "^Image: *a.qcow2$"
refused "info -p" 2 "info: unknown option '-p'" "$QVERITY" info a.qcow2 -p 1
refused "read without a length" 2 'read: arguments are missing' "$QVERITY" read a.qcow2 0
refused "read --json" 2 "read: unknown option '--json'" "$QVERITY" read --json a.qcow2 0 1
refused "an offset that is no number" 2 "read: OFFSET: 'x' is not a number" "$QVERITY" read a.qcow2 x 1
refused "a length that is no size" 2 "read: LENGTH: '1Q' is not a size" "$QVERITY" read a.qcow2 0 1Q
refused "a negative length" 2 "read: LENGTH: '-1' is not a number" "$QVERITY" read a.qcow2 0 -- -1
refused "a range beyond the end" 1 'c.qcow2: 2 bytes at offset 5242879 reach beyond the end of the disk of 5242880 bytes' \
    "$QVERITY" read c.qcow2 5242879 2
is "sizes with suffixes" "$("$QVERITY" read top.qcow2 2M 0x10 | tr '\1' x)" xxxxxxxxxxxxxxxx
"$QVERITY" read top.qcow2 64k 1K >out
is "and both" "$(stat -c %s out)" 1024
ok "--json before the command" bash -c '"$1" --json info a.qcow2 | python3 -m json.tool' - "$QVERITY"

# --- A standard output that does not take it ---

if [ -c /dev/full ]; then
    for command in "info top.qcow2" "info --json top.qcow2" "map top.qcow2" "map --json top.qcow2" "read top.qcow2 0 5M"; do
        # shellcheck disable=SC2086
        "$QVERITY" $command >/dev/full 2>err
        is "$command to a full device: fails" $? 1
        like "$command to a full device: says so" "$(cat err)" '^qverity: standard output: cannot write: No space left'
    done
fi
for command in "info top.qcow2" "map --json top.qcow2" "read top.qcow2 0 5M"; do
    # shellcheck disable=SC2086
    "$QVERITY" $command >&- 2>err
    is "$command to a closed standard output: fails" $? 1
    like "$command to a closed standard output: says so" "$(cat err)" '^qverity: standard output: cannot write'
    # shellcheck disable=SC2086
    python3 - "$QVERITY" $command 2>err <<'PYTHON'
import os
import signal
import subprocess
import sys
read, write = os.pipe()
os.close(read)
# As it is for a child of a program that ignores it.
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
sys.exit(subprocess.run(sys.argv[1:], stdout=write, restore_signals=False, check=False).returncode)
PYTHON
    is "$command to a reader that has gone: fails" $? 1
    is "$command to a reader that has gone: without a word" "$(cat err)" ""
done

"$QVERITY" info --json "a.qcow2" >/dev/full 2>err
is "standard output is full: exit" $? 1
is "standard output is full: told once" "$(cat err)" "qverity: standard output: cannot write: No space left on device"

finish
