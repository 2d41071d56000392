#!/bin/bash
# SPDX-License-Identifier: MIT
# Every file of the demo image, by ls, cat and cp, is the one that Linux reads from the same partition or,
# without root or loop devices, the one that debugfs reads. No guest is booted for it.
# shellcheck source=../functional/lib.sh
. "$(dirname "$0")/../functional/lib.sh"
. "$top/tests/guest/guest.sh"
PATH=$PATH:/usr/sbin:/sbin
guest_need_image
require debugfs qemu-img python3 sha256sum
tree=$top/tests/functional/files_tree.py

qemu-img convert -O raw "$guest_image" disk.raw
dd if=disk.raw of=part.raw bs=1M skip=$((root_partition_start >> 20)) conv=sparse status=none
rm disk.raw
mkdir reference
by=Linux
if [ "$(id -u)" -ne 0 ] || ! mount -o loop,ro,noload part.raw reference 2>/dev/null; then
    by=debugfs
    debugfs -R "rdump / reference" part.raw >rdump.log 2>&1
fi
note "compared with $by"

files=$(find reference -type f | wc -l)
ok "there are files ($files)" [ "$files" -gt 1000 ]

# sums DIR: digest and name of each file
sums()
{
    (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
}

is "everything can be copied" "$("$QVERITY" cp -q -a "$guest_image:/" copied 2>&1)" ""
sums reference >expected
sums copied >got
same "cp: all files have the digests that they have by $by" got expected

# All of them behind one another, in as many calls as their names need.
(cd reference && find . -type f -printf '/%P\0' | sort -z) >names
xargs -0 -a names printf "$guest_image:%s\0" | xargs -0 "$QVERITY" cat | sha256sum >got
(cd reference && tr '\0' '\n' <"$T/names" | sed 's,^/,,' | tr '\n' '\0' | xargs -0 cat) | sha256sum >expected
same "cat: all files" got expected

if [ $by = Linux ]; then
    is "cp: as Linux has it, with links, permissions and times" "$(python3 "$tree" compare reference copied --times --sparse)" ""
    is "ls: as Linux lists it, owners, sizes and links' targets" \
        "$("$QVERITY" ls -R --json "$guest_image:/" | python3 "$tree" listing reference)" ""
    umount reference
fi
finish
