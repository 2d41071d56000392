#!/bin/bash
# SPDX-License-Identifier: MIT
# A loop device on the data partition of a writable mount: a filesystem is made on it, filled, synchronized,
# trimmed and unmounted, and the overlay has it; also when the mount is killed after the fsync.
. "$(dirname "$0")/lib.sh"
require qemu-img fusermount3 sfdisk losetup mkfs.ext4 e2fsck fstrim jq veritysetup
[ -w /dev/fuse ] || skip_all "no /dev/fuse"
[ "$(id -u)" -eq 0 ] || skip_all "loop devices need root"

size=$((60 * 1024 * 1024))
truncate -s 64M base.raw
sfdisk -q base.raw <<<'start=2048, size=122880, type=83'
head -c 20M /dev/urandom | dd of=base.raw bs=1M seek=1 conv=notrunc 2>dd.err
qemu-img convert -f raw -O qcow2 base.raw base.qcow2
base_sum=$(sha256sum base.qcow2)
mkdir mnt fs

mount_over()
{
    "$QVERITY" mount -f -p 1 --overlay "$1" base.qcow2 mnt >>log 2>&1 &
    server=$!
    t_kill_later $server
    for ((i = 0; i < 200 * patience; i++)); do
        [ -e mnt/disk ] && return
        sleep 0.05
    done
    fail "mount"
    note "$(cat log)"
    exit 1
}

# Also when the script ends early.
loop=
drop_loop()
{
    mountpoint -q "$T/fs" && umount "$T/fs"
    [ -z "$loop" ] || losetup -d "$loop"
    loop=
}
trap 'drop_loop 2>/dev/null; t_cleanup' EXIT

# How many bytes of the disk are zeros by the word of the overlay.
own_zeros()
{
    qemu-img map -U --output=json over.qcow2 | jq '[.[] | select(.depth == 0 and .zero and (.data | not)) | .length] | add // 0'
}

# A clone of what the partition is, and what veritysetup makes of it.
follows()
{
    cp mnt/data part.img
    is "$1: root-hash" "$(cat mnt/root-hash)" "$(veritysetup format --uuid "$(jq -r .uuid mnt/params.json)" \
        --salt "$(jq -r .salt mnt/params.json)" part.img hash.img | awk '/^Root hash:/ { print $3 }')"
}

mount_over over.qcow2
loop=$(losetup -f --show mnt/data 2>losetup.err) || skip_all "no loop device: $(cat losetup.err)"
is "the loop device's size" "$(blockdev --getsize64 "$loop")" $size
ok "mkfs.ext4" mkfs.ext4 -q "$loop"
ok "mount" mount "$loop" fs
head -c 12M /dev/urandom >fs/kept
head -c 24M /dev/urandom >fs/removed
cp -r "$top/common" fs/
ok "sync" sync -f fs
ok "and fsync below" sync mnt/data
used=$(stat -c %b over.qcow2)
zeros=$(own_zeros)
rm fs/removed
# The journal holds on to blocks until the removal is committed.
ok "sync after rm" sync -f fs
ok "fstrim" fstrim -v fs
trimmed=$(sed -n 's/.*(\([0-9]*\) bytes).*/\1/p' "$T/.out")
ok "trims what was removed" [ "${trimmed:-0}" -ge $((24 * 1024 * 1024)) ]
ok "fsync below" sync mnt/data
ok "gives its space back" [ $((used - $(stat -c %b over.qcow2))) -ge $((20 * 2048)) ]
ok "fallocate and punch hole in the file system" bash -c 'fallocate -l 4M fs/holes && head -c 4M /dev/urandom >fs/holes &&
    sync -f fs/holes && fallocate -p -o 1M -l 2M fs/holes && [ "$(tr -d "\0" <fs/holes | wc -c)" -gt 0 ]'
sum=$(cd fs && find . -type f -exec sha256sum {} + | sort)
ok "umount" umount fs
ok "e2fsck" e2fsck -fn "$loop"
follows "after it"
ok "blkdiscard of the last MiB" blkdiscard -o $((size - 1048576)) -l 1048576 "$loop"
is "reads as zeros" "$(tail -c 1048576 mnt/data | tr -d '\0' | wc -c)" 0
ok "blkdiscard --zeroout" blkdiscard -z -o $((size - 3145728)) -l 1048576 "$loop"
is "does, too" "$(dd if=mnt/data bs=1M skip=57 count=1 2>dd.err | tr -d '\0' | wc -c)" 0
losetup -d "$loop"
loop=
# The device goes when its last user has let go of it.
until fusermount3 -u mnt 2>unmount.err; do sleep 0.05; done
wait $server
is "the mount ends well" $? 0

ok "qemu-img check finds nothing" qemu-img check -q -f qcow2 over.qcow2
is "the base is as it was" "$(sha256sum base.qcow2)" "$base_sum"
ok "what was trimmed is zero clusters" [ $(($(own_zeros) - zeros)) -ge $((20 * 1024 * 1024)) ]
qemu-img convert -O raw over.qcow2 over.raw
dd if=over.raw of=part.img bs=1M skip=1 count=60 2>dd.err
loop=$(losetup -f --show -r part.img)
ok "what QEMU reads can be mounted" mount -o ro "$loop" fs
is "and has the files" "$(cd fs && find . -type f -exec sha256sum {} + | sort)" "$sum"
drop_loop

# --- Killed after an fsync ---
mount_over over.qcow2
loop=$(losetup -f --show mnt/data)
mount "$loop" fs
head -c 3M /dev/urandom >fs/synced
fsynced=$(sha256sum <fs/synced)
ok "fsync" sync fs/synced fs
head -c 8M /dev/urandom >fs/unsynced
{
    kill -9 $server
    wait $server
} 2>/dev/null
umount fs
losetup -d "$loop"
loop=
until fusermount3 -u -z mnt; do sleep 0.05; done 2>unmount.err
qemu-img check -q -f qcow2 over.qcow2 >check.out 2>&1
code=$?
ok "killed: no errors but leaks" [ $code -eq 0 -o $code -eq 3 ]
qemu-img convert -O raw over.qcow2 over.raw
dd if=over.raw of=part.img bs=1M skip=1 count=60 2>dd.err
loop=$(losetup -f --show part.img)
ok "the filesystem replays its journal" mount "$loop" fs
is "and has what was fsynced" "$(sha256sum <fs/synced)" "$fsynced"
drop_loop
finish
