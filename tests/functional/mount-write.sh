#!/bin/bash
# SPDX-License-Identifier: MIT
# A mount that is written to: every name shows every write, the hash device and the root hash follow, and
# what becomes of the overlay at the end, however that comes.
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io veritysetup fusermount3 sfdisk jq python3
[ -w /dev/fuse ] || skip_all "no /dev/fuse"
writers=$here/mount-writers.py
salt=00112233445566778899aabbccddeeff

# mount_over OVERLAY [OPTION…]: base.qcow2, with its server's process id in $server
mount_over()
{
    local overlay=$1
    shift
    "$QVERITY" mount -f -p 1 --salt $salt --overlay "$overlay" "$@" base.qcow2 mnt >>log 2>&1 &
    server=$!
    t_kill_later $server
    for ((i = 0; i < 200 * patience; i++)); do
        [ -e mnt/disk ] && return
        kill -0 $server 2>/dev/null || break
        sleep 0.05
    done
    fail "mount --overlay $overlay $*"
    note "$(tail -3 log)"
    exit 1
}

# Until the overlay is closed.
leave()
{
    fusermount3 -u mnt
    wait $server
    is "the mount ends well" $? 0
}

# follows DESCRIPTION: the mount is as veritysetup has it of the model
follows()
{
    local expected
    rm -f expected.img
    dd if=model.raw of=part.img bs=1M iflag=skip_bytes,count_bytes skip=$start count=$size 2>dd.err
    expected=$(veritysetup format --salt $salt --uuid "$(jq -r .uuid mnt/params.json)" part.img expected.img |
        awk '/^Root hash:/ { print $3 }')
    is "$1: root-hash" "$(cat mnt/root-hash)" "$expected"
    like "$1: table" "$(cat mnt/table)" " $expected "
    same "$1: hash" mnt/hash expected.img
    same "$1: disk" mnt/disk model.raw
    same "$1: data" mnt/data part.img
}

# sound OVERLAY MODEL
sound()
{
    ok "qemu-img check finds nothing in $1" qemu-img check -q -f qcow2 "$1"
    qemu-img convert -O raw "$1" converted.raw
    same "QEMU reads the same from $1" converted.raw "$2"
}

start=$((1024 * 1024))
size=$((30 * 1024 * 1024))
truncate -s 32M base.raw
sfdisk -q base.raw <<<'start=2048, size=61440, type=83'
head -c 9M /dev/urandom | dd of=base.raw bs=1M seek=5 conv=notrunc 2>dd.err
qemu-img convert -f raw -O qcow2 base.raw base.qcow2
cp base.raw model.raw
mkdir mnt
"$QVERITY" hash -q -p 1 --salt $salt base.qcow2 >hash.out
sum=$(sha256sum base.qcow2)

# --- Many writers ---

mount_over over.qcow2
is "what can be written to" "$(stat -c '%a %n' mnt/disk mnt/part1 mnt/hash mnt/table)" \
    "$(printf '%s\n' '644 mnt/disk' '644 mnt/part1' '444 mnt/hash' '444 mnt/table')"
cat mnt/root-hash >root
is "the base's tree is used" "$(jq .hashtree.data_bytes_hashed mnt/stats.json)" 0
for round in 1 2 3 4; do
    ok "edits, round $round" python3 "$writers" edit mnt model.raw $start $size $round 300
    follows "round $round"
done
printf x | dd of=mnt/disk bs=1 seek=$((start + 5000)) conv=notrunc 2>dd.err
printf x | dd of=model.raw bs=1 seek=$((start + 5000)) conv=notrunc 2>dd.err
before=$(jq .hashtree.data_bytes_hashed mnt/stats.json)
is "one byte: root-hash" "$(cat mnt/root-hash)" "$("$QVERITY" hash --no-tree -q --format raw -p 1 --salt $salt model.raw |
    awk '/^Root hash:/ { print $3 }')"
ok "one byte costs no more than the node above it" \
    [ $(($(jq .hashtree.data_bytes_hashed mnt/stats.json) - before)) -le $((1024 * 1024)) ]

# --- What is refused, and where the end is ---

python3 - mnt >answers 2>&1 <<'END_PYTHON'
import errno, os, sys

mnt = sys.argv[1]
size = os.path.getsize(mnt + "/disk")


def answer(call, *args):
    try:
        return call(*args)
    except OSError as e:
        return errno.errorcode[e.errno]


fd = os.open(mnt + "/disk", os.O_RDWR)
last = os.pread(fd, 100, size - 100)
print(answer(os.pwrite, fd, last + b"behind", size - 100), answer(os.pwrite, fd, b"x", size))
print(answer(os.ftruncate, fd, 1), answer(os.ftruncate, fd, size + 1), answer(os.ftruncate, fd, size))
print(answer(os.open, mnt + "/disk", os.O_WRONLY | os.O_TRUNC))
for name in "hash", "root-hash", "table":
    print(answer(os.open, mnt + "/" + name, os.O_RDWR))
print(answer(os.open, mnt + "/new", os.O_RDWR | os.O_CREAT), os.path.getsize(mnt + "/disk") == size)
END_PYTHON
is "answers" "$(tr '\n' ' ' <answers)" \
    "100 ENOSPC EPERM EPERM None EPERM EROFS EROFS EROFS ENOSYS True "
like "other modes of fallocate" "$(fallocate -l 4096 mnt/disk 2>&1)" 'not supported'
follows "afterwards"
refused "a second mount of the overlay" 1 'over.qcow2: in use' "$QVERITY" mount -p 1 --overlay over.qcow2 base.qcow2 mnt
leave
sound over.qcow2 model.raw
is "the base is as it was" "$(sha256sum base.qcow2)" "$sum"
cp base.qcow2 other.qcow2
refused "an overlay of another image" 1 'is no overlay of' "$QVERITY" mount -p 1 --overlay over.qcow2 other.qcow2 mnt
refused "the image as its overlay" 1 'belongs to the image' "$QVERITY" mount --overlay base.qcow2 base.qcow2 mnt
refused "rw without an overlay" 2 'the files are read-only' "$QVERITY" mount -o rw base.qcow2 mnt
is "the overlay's hash" "$("$QVERITY" hash -q -p 1 --salt $salt over.qcow2 | awk '/^Root hash:/ { print $3 }')" \
    "$("$QVERITY" hash -q --no-tree --format raw -p 1 --salt $salt model.raw | awk '/^Root hash:/ { print $3 }')"

# --- Again, and a filesystem by a loop device ---

mount_over over.qcow2 --no-tree
follows "mounted again"
loop=
[ -w /dev/loop-control ] && command -v mkfs.ext4 e2fsck >/dev/null && loop=$(losetup -f --show mnt/part1 2>/dev/null)
if [ -n "$loop" ]; then
    trap 'umount "$T/fs" 2>/dev/null; losetup -d "$loop" 2>/dev/null; t_cleanup' EXIT
    ok "mkfs on a loop device" mkfs.ext4 -q -F "$loop"
    mkdir fs
    ok "which can be mounted" mount "$loop" fs
    cp -r "$top/image" fs/
    head -c 5M /dev/urandom >fs/noise
    sum_of_files=$(cd fs && find . -type f -exec sha256sum {} + | sort)
    umount fs
    ok "and checked" e2fsck -fn "$loop"
    losetup -d "$loop"
    until ! losetup -a | grep -q "$T/"; do sleep 0.05; done
    cp mnt/disk model.raw
    follows "the filesystem"
fi
kill -TERM $server
wait $server
is "SIGTERM ends the mount well" $? 0
sound over.qcow2 model.raw
if [ -n "$loop" ]; then
    dd if=converted.raw of=part.img bs=1M skip=1 count=30 2>dd.err
    ok "the filesystem in the overlay" e2fsck -fn part.img
    mount -o loop,ro part.img fs && is "has the files" "$(cd fs && find . -type f -exec sha256sum {} + | sort)" "$sum_of_files"
    umount fs
fi
cp base.qcow2 saved.qcow2
ok "qemu-img commit" qemu-img commit -q -f qcow2 over.qcow2
sound base.qcow2 model.raw
cp saved.qcow2 base.qcow2

# --- Killed ---

failed=0
for round in {1..6}; do
    rm -f killed.qcow2 written
    mount_over killed.qcow2
    python3 "$writers" fsynced mnt/disk written "$round" 2>>writers.log &
    writer=$!
    cat mnt/root-hash >root
    until grep -q = written 2>>writers.log; do sleep 0.02; done
    sleep "0.$((RANDOM % 6 + 2))"
    kill -9 $server
    wait $server $writer
    fusermount3 -u -z mnt 2>>writers.log
    qemu-img check -q -f qcow2 killed.qcow2 >check.out 2>&1
    code=$?
    qemu-img convert -O raw killed.qcow2 converted.raw
    python3 "$writers" replay written converted.raw >replay.out 2>&1 && { [ $code -eq 0 ] || [ $code -eq 3 ]; } || {
        failed=$((failed + 1))
        note "qemu-img check: $code $(head -3 check.out); $(cat replay.out)"
    }
done 2>>writers.log
is "killed: no errors but leaks, and what was fsynced is there" $failed 0
mount_over killed.qcow2
is "the root hash afterwards" "$(cat mnt/root-hash)" \
    "$("$QVERITY" hash --no-tree -q --format raw -p 1 --salt $salt converted.raw | awk '/^Root hash:/ { print $3 }')"
leave

# Zeros that are in memory only must not be believed to be in the file.
rm -f killed.qcow2*
mount_over killed.qcow2
fallocate -p -o 6M -l 4M mnt/disk
cat mnt/root-hash >root
{
    kill -9 $server
    wait $server
} 2>>writers.log
fusermount3 -u -z mnt
qemu-img convert -O raw killed.qcow2 converted.raw
is "killed before zeros were flushed" "$("$QVERITY" hash -q -p 1 --salt $salt killed.qcow2 | awk '/^Root hash:/ { print $3 }')" \
    "$("$QVERITY" hash --no-tree -q --format raw -p 1 --salt $salt converted.raw | awk '/^Root hash:/ { print $3 }')"

# --- No space ---

mkdir small
if mount -t tmpfs -o size=3M none small 2>/dev/null; then
    mount_over small/over.qcow2 --no-tree
    cp base.raw model.raw
    dd if=/dev/zero bs=64k count=16 2>dd.err | tr '\0' y >noise
    for at in 4 5 6 7; do
        dd if=noise of=mnt/disk bs=64k seek=$((at * 16)) conv=notrunc,fsync 2>dd.err || break
        dd if=noise of=model.raw bs=64k seek=$((at * 16)) conv=notrunc 2>/dev/null
    done
    like "a full disk" "$(cat dd.err)" 'No space left on device'
    written=$(sed -n 's/^\([0-9]*\)+.* records out/\1/p' dd.err)
    dd if=noise of=model.raw bs=64k count="$written" seek=$((at * 16)) conv=notrunc 2>dd.err
    ok "acknowledged writes are there" cmp -n $((at * 1048576 + written * 65536)) mnt/disk model.raw
    mount -o remount,size=20M small
    dd if=noise of=mnt/disk bs=64k seek=$((at * 16)) conv=notrunc,fsync 2>dd.err
    dd if=noise of=model.raw bs=64k seek=$((at * 16)) conv=notrunc 2>dd.err
    follows "once there is space"
    leave
    sound small/over.qcow2 model.raw
fi
finish
