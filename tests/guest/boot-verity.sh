#!/bin/bash
# SPDX-License-Identifier: MIT
# A guest boots from the mount's disk and hash device to its login prompt; its kernel's dm-verity table is
# the one that the mount tells, and every block of the data partition passes the kernel's check.
. "$(dirname "$0")/../functional/lib.sh"
. "$top/tests/guest/guest.sh"
guest_need_image

mkdir mnt
ok "the image can be mounted" "$QVERITY" mount "$guest_image" mnt
table=$(cat mnt/table)
size=$(stat -L -c %s mnt/data)
ok "and unmounted" fusermount3 -u mnt
before=$(stat -c '%s %Y %Z' "$guest_image")

"$QVERITY" boot "$guest_image" --accel tcg --kernel "$demo/vmlinuz" --initrd "$demo/initrd.img" \
    --memory 1G --append "$(guest_append qverity.check)" --until 'login:' --timeout $((900 * patience)) \
    --console console >stdout 2>stderr </dev/null
code=$?
is "the guest gets to its login prompt" "$code" 0
[ $code -eq 0 ] || {
    guest_note
    note "$(cat stderr)"
}
guest_lines >lines
like "the console tells of dm-verity" "$(cat lines)" 'qverity: dm-verity is up: dmverity'
like "and has the prompt" "$(tail -n 1 lines)" 'login:'
same "stdout is the console" stdout console

# The guest knows its devices by number: 8:2 and 8:16, or 8:18 and 8:0 if their names are swapped.
numbers()
{
    awk '{ $4 = $4 == "/dev/sda2" || $4 == "8:2" || $4 == "8:18" ? "disk" : $4
           $5 = $5 == "/dev/sdb" || $5 == "8:16" || $5 == "8:0" ? "hash" : $5
           print }' | sed 's/verity 1 [^ ]* [^ ]*/verity 1 disk hash/'
}
is "the guest's table is the mount's" \
    "$(sed -n 's/.*qverity-check: table: dmverity: //p' lines | numbers)" "$(numbers <<<"$table")"
like "its root is on dm-verity" "$(cat lines)" 'qverity-check: root: /dev/dm-0 ext4'
like "its kernel verifies every block" "$(cat lines)" "qverity-check: read all $size bytes"
like "and finds nothing wrong" "$(cat lines)" 'qverity-check: status: dmverity: 0 [0-9]+ verity V'
is "the image is as it was" "$(stat -c '%s %Y %Z' "$guest_image")" "$before"
finish
