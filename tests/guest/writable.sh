#!/bin/bash
# SPDX-License-Identifier: MIT
# A set-up boot: the guest has the image itself, makes a file, and powers off.
. "$(dirname "$0")/../functional/lib.sh"
. "$top/tests/guest/guest.sh"
guest_need_image
require qemu-img dumpe2fs debugfs e2fsck

qemu-img create -q -f qcow2 -b "$guest_image" -F qcow2 disk.qcow2
before=$(stat -c '%s %Y %Z' "$guest_image")
work='touch /set-up && mount -o remount,ro / && echo o >/proc/sysrq-trigger; sleep 100'
"$QVERITY" boot disk.qcow2 --writable --accel tcg --kernel "$demo/vmlinuz" --initrd "$demo/initrd.img" --memory 1G \
    --append "console=ttyS0 root=/dev/sda2 rw no_timer_check init=/bin/sh -- -c \"$work\"" \
    --timeout $((900 * patience)) --console console >stdout 2>stderr </dev/null
code=$?
is "the guest runs and powers off" "$code $(cat stderr)" "0 "
[ $code -eq 0 ] || guest_note
like "as its console says" "$(tail -n 5 console)" 'reboot: Power down'

mkdir mnt
ok "the image can be mounted" "$QVERITY" mount --no-tree disk.qcow2 mnt
like "its file is there" "$(debugfs -R 'stat /set-up' mnt/data 2>/dev/null)" 'Type: regular'
header=$(dumpe2fs -h mnt/data 2>/dev/null)
is "nothing of its journal is to be replayed" "$(grep -c -e 'Filesystem state: *clean$' <<<"$header") $(
    grep -c needs_recovery <<<"$header")" "1 0"
ok "and its filesystem has no errors" e2fsck -f -n mnt/data
is "the base is as it was" "$(stat -c '%s %Y %Z' "$guest_image")" "$before"
finish
