#!/bin/bash
# SPDX-License-Identifier: MIT
# The hash device is found first by the guest's kernel and called /dev/sda: the guest still takes the
# right disks, by their serials.
. "$(dirname "$0")/../functional/lib.sh"
. "$top/tests/guest/guest.sh"
guest_need_image

mkdir mnt
ok "the image can be mounted" "$QVERITY" mount "$guest_image" mnt

# The disks change places on the PCI bus, but keep their serials.
guest_argv "$T/mnt/hash" "$T/mnt/disk"
for i in "${!argv[@]}"; do
    case ${argv[i]} in
    *serial=qverity-disk*) argv[i]=${argv[i]/serial=qverity-disk/serial=qverity-hash} ;;
    *serial=qverity-hash*) argv[i]=${argv[i]/serial=qverity-hash/serial=qverity-disk} ;;
    esac
done
if guest_run 'EXT4-fs \(dm-0\): mounted|Kernel panic|Rebooting' 120 "${argv[@]}"; then
    like "dm-verity is up" "$(guest_lines)" 'qverity: dm-verity is up: dmverity'
    like "and the root filesystem is read through it" "$(guest_lines)" 'EXT4-fs \(dm-0\): mounted'
else
    fail "the guest gets to its root filesystem"
    guest_note
fi
finish
