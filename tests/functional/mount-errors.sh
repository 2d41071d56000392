#!/bin/bash
# SPDX-License-Identifier: MIT
# What mount refuses, and what becomes of reads that fail below it.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io fusermount3 jq python3 setpriv unshare
[ -w /dev/fuse ] || skip_all "no /dev/fuse"
faultfs=${QVERITY_TOOLS:-$top/build/tests/tools}/faultfs
[ -x "$faultfs" ] || skip_all "faultfs was not built"

mounted() # DIRECTORY
{
    grep -q " $T/$1 " /proc/mounts
}

head -c 16M /dev/urandom >disk.raw
qemu-img convert -O qcow2 disk.raw disk.qcow2
mkdir mnt full
touch full/file

# --- The directory ---

refused "no directory" 1 "^qverity: missing: cannot mount there: No such file" "$QVERITY" mount disk.qcow2 missing
refused "a file" 1 "disk.raw: not a directory" "$QVERITY" mount disk.qcow2 disk.raw
refused "a directory below a file" 1 "disk.raw/x: cannot mount there: Not a directory" \
    "$QVERITY" mount disk.qcow2 disk.raw/x
refused "a directory that is not empty" 1 "full: the directory is not empty" "$QVERITY" mount disk.qcow2 full
refused "no operand" 2 "" "$QVERITY" mount disk.qcow2
refused "too many operands" 2 "" "$QVERITY" mount disk.qcow2 mnt mnt

# --- Options ---

refused "a mount option that does not exist" 2 "unknown mount option 'alow_other'" \
    "$QVERITY" mount -o noatime,alow_other disk.qcow2 mnt
refused "rw" 2 "'rw': the files are read-only" "$QVERITY" mount -o rw disk.qcow2 mnt
refused "max_read too large" 2 "'max_read=2097152': must be from 4096 to 1048576" \
    "$QVERITY" mount -o max_read=2097152 disk.qcow2 mnt
refused "max_read that is no number" 2 "max_read" "$QVERITY" mount -o max_read=x disk.qcow2 mnt
ok "options of fstab, and commas in a name" \
    "$QVERITY" mount -o 'noauto,nofail,x-systemd.automount,ro,noexec' -o 'fsname=a\,b' disk.qcow2 mnt
like "are in force" "$(grep " $T/mnt " /proc/mounts)" "^a,b .* ro,.*noexec"
fusermount3 -u mnt

# --- The image and its parameters ---

refused "no image" 1 "missing.qcow2: .*No such file" "$QVERITY" mount missing.qcow2 mnt
refused "no such partition" 1 "disk.qcow2: .*7" "$QVERITY" mount -p 7 disk.qcow2 mnt
refused "more blocks than there are" 1 "--data-blocks: 4097 data blocks of 4096 bytes" \
    "$QVERITY" mount --data-blocks 4097 disk.qcow2 mnt
refused "a salt that does not parse" 1 "--salt" "$QVERITY" mount --salt xyz disk.qcow2 mnt
refused "a UUID that does not parse" 1 "uuid|UUID" "$QVERITY" mount --uuid 12 disk.qcow2 mnt
refused "in the foreground as well" 1 "missing.qcow2: .*No such file" "$QVERITY" mount -f missing.qcow2 mnt
# The daemon of the last mount may hold the image a moment longer than the mount.
until_true 10 eval 'qemu-io -c "read 0 512" disk.qcow2 >/dev/null 2>&1'
qemu_hold disk.qcow2
refused "an image that a program writes to" 1 "disk.qcow2: .*(lock|in use|writ)" "$QVERITY" mount disk.qcow2 mnt
qemu_release
"$QVERITY" mount disk.qcow2 mnt
ok "a program that would write to a mounted image is refused" \
    bash -c '! qemu-io -c "write 0 512" disk.qcow2'
fusermount3 -u mnt
is "nothing is mounted by all that" "$(grep -c " $T/" /proc/mounts)" 0

# --- No FUSE ---

if [ "$(id -u)" -eq 0 ] && unshare -m true 2>/dev/null; then
    mkdir dev
    # shellcheck disable=SC2016
    refused "no /dev/fuse" 1 "/dev/fuse: there is no FUSE here; load it with 'modprobe fuse'" \
        unshare -m sh -c 'mount -t tmpfs none dev && mknod dev/null c 1 3 && mount --rbind dev /dev && exec "$0" mount disk.qcow2 mnt' "$QVERITY"
    chmod 755 "$T"
    mkdir user
    cp disk.qcow2 user/
    mkdir user/mnt
    chown -R 65534:65534 user
    mknod fuse c 10 229
    chmod 600 fuse
    # shellcheck disable=SC2016
    refused "a /dev/fuse that only root may use" 1 "/dev/fuse: cannot open for reading and writing: Permission denied" \
        unshare -m sh -c 'mount --bind fuse /dev/fuse && cd user && exec setpriv --reuid=65534 --regid=65534 --clear-groups "$0" mount disk.qcow2 mnt' "$QVERITY"
else
    note "no tests without FUSE: they need root and mount namespaces"
fi

# --- An image that is cut off while it is mounted ---

serve() # IMAGE: on mnt, in the foreground, logging to $T/log
{
    "$QVERITY" mount -f "$1" mnt 2>log &
    server=$!
    t_kill_later $server
    until_true 5 mounted mnt
}

leave()
{
    fusermount3 -u mnt
    wait $server
}

cp disk.qcow2 cut.qcow2
cut=$((8 * 1024 * 1024))
serve cut.qcow2
truncate -s $cut cut.qcow2
like "reading what is gone" "$(dd if=mnt/disk of=/dev/null bs=64k skip=240 count=1 2>&1)" "Input/output error"
like "the log names file and offset" "$(head -n 1 log)" "^qverity: disk: $T/cut.qcow2: .*offset [0-9]+"
like "also past the page cache" "$(dd if=mnt/disk of=/dev/null bs=64k skip=250 count=1 iflag=direct 2>&1)" "Input/output error"
ok "what is there is right" cmp -n 6291456 mnt/disk disk.raw
# The cluster that the cut goes through: every byte is right or an error.
python3 - <<'END' >edge 2>&1
import os
good = open("disk.raw", "rb").read()
fd = os.open("mnt/disk", os.O_RDONLY)
right = errors = wrong = 0
for offset in range(7 << 20, 9 << 20, 4096):
    try:
        data = os.pread(fd, 4096, offset)
    except OSError:
        errors += 1
    else:
        if data == good[offset:offset + 4096]:
            right += 1
        else:
            wrong += 1
print(wrong, right > 100, errors > 100)
END
is "at the edge nothing is wrong" "$(cat edge)" "0 True True"
ok "errors are counted" [ "$(jq .files.disk.errors mnt/stats.json)" -ge 2 ]
like "root-hash" "$(cat mnt/root-hash 2>&1)" "Input/output error"
dd if=mnt/disk of=/dev/null bs=4k skip=2300 conv=noerror 2>/dev/null
ok "errors do not flood the log" [ "$(wc -l <log)" -lt 300 ]
ok "but are all counted" [ "$(jq .files.disk.errors mnt/stats.json)" -gt 1500 ]
leave

# --- A disk that fails in places ---

mkdir slow
"$faultfs" disk.qcow2 "$T/faults" slow 2>/dev/null &
t_kill_later $!
until_true 5 eval '[ -f slow/image ]'
: >faults
serve slow/image
# A block in the middle of the data; where it is in the file is known by its content.
place=$(python3 -c '
data = open("disk.qcow2", "rb").read()
print(data.find(open("disk.raw", "rb").read()[9 << 20:(9 << 20) + 4096]))')
echo "eio $place 4096" >faults
like "a bad block" "$(dd if=mnt/disk of=/dev/null bs=4k skip=2304 count=1 2>&1)" "Input/output error"
like "the log names it" "$(cat log)" "^qverity: disk: .*slow/image: cannot read at offset [0-9]+: Input/output error"
ok "the block before it" cmp -i $(((9 << 20) - 4096)) -n 4096 mnt/disk disk.raw
ok "the block behind it" cmp -i $(((9 << 20) + 4096)) -n 4096 mnt/disk disk.raw
like "the hash blocks above it" "$(dd if=mnt/hash of=/dev/null bs=4k count=1 skip=$(((9 << 20) / 4096 / 128 + 2)) 2>&1)" \
    "Input/output error"
: >faults
ok "once the disk is good again, all is right" cmp mnt/disk disk.raw
"$QVERITY" hash disk.qcow2 --write hash.ref -q >/dev/null
same "the hash device, too" mnt/hash hash.ref
# Read one block at a time: in a longer read a short one is an error as well, but of more blocks.
echo "short $place 4096" >faults
python3 - <<'END' >edge 2>&1
import os
fd = os.open("mnt/disk", os.O_RDONLY | os.O_DIRECT)
import mmap
memory = mmap.mmap(-1, 4096)
offset = 9 << 20
try:
    n = os.preadv(fd, [memory], offset)
    print("right" if memory[:n] == open("disk.raw", "rb").read()[offset:offset + 4096] else "wrong")
except OSError as error:
    print("error", error.errno)
END
is "short reads below are continued" "$(cat edge)" right
leave
fusermount3 -u slow
finish
