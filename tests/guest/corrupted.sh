#!/bin/bash
# SPDX-License-Identifier: MIT
# One byte of the data partition, or of the hash device, is changed behind the guest's back: it stops with
# an error of dm-verity that names the block, and never gets to a login prompt.
. "$(dirname "$0")/../functional/lib.sh"
. "$top/tests/guest/guest.sh"
guest_need_image
require qemu-img qemu-io debugfs

mkdir good bad
ok "the good image can be mounted" "$QVERITY" mount "$guest_image" good

# flip FILE FORMAT OFFSET: changes the byte there
flip()
{
    local old
    old=$(qemu-io -r -f "$2" -c "read -v $3 1" "$1" | awk 'NR == 1 { print $2 }')
    qemu-io -f "$2" -c "write -P $((16#$old ^ 1)) $3 1" "$1"
}

# stops DESCRIPTION REGEX: the guest with the arguments in argv stops with this error
stops()
{
    if guest_run 'end Kernel panic|login:' 600 "${argv[@]}"; then
        guest_lines >lines
        like "$1" "$(cat lines)" "$2"
        like "$1: the kernel stops" "$(cat lines)" 'Kernel panic - not syncing: dm-verity device corrupted'
        is "$1: there is no login prompt" "$(grep -c 'login:' lines)" 0
    else
        fail "$1: the guest neither stops nor boots"
        guest_note
    fi
}

# A block that every boot reads, but only after dm-verity is up and the filesystem is mounted.
block=$(debugfs -R 'bmap /usr/lib/systemd/systemd 0' good/data 2>/dev/null)
like "systemd's first block is found" "$block" '^[1-9][0-9]*$'
offset=$((root_partition_start + block * 4096 + 1234))
qemu-img create -q -f qcow2 -b "$guest_image" -F qcow2 bad.qcow2
ok "its byte 1234 is changed" flip bad.qcow2 qcow2 $offset
ok "the bad image can be mounted" "$QVERITY" mount bad.qcow2 bad
is "one byte of the disk differs" "$(cmp -l good/disk bad/disk | wc -l)" 1
[ "$(cat good/root-hash)" != "$(cat bad/root-hash)" ]
is "and with it the root hash" $? 0

guest_argv "$T/bad/disk" "$T/good/hash"
stops "a changed data block" "verity: 8:[0-9]+: data block $block is corrupted"

# The block right behind the superblock is the top of the tree, which every read needs.
cp good/hash hash
truncate -s %512 hash
ok "a byte of the top hash block is changed" flip hash raw $((4096 + 7))
guest_argv "$T/good/disk" "$T/hash"
stops "a changed hash block" 'verity: 8:[0-9]+: metadata block 1 is corrupted'
finish
