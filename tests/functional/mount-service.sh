#!/bin/bash
# SPDX-License-Identifier: MIT
# A mount as a service: by mount(8)'s helper, told to systemd, ended when nobody uses it, and while what it stands on
# is deleted, full, or does not answer.
# shellcheck source=tests/functional/lib.sh
. "$(dirname "$0")/lib.sh"
require qemu-img fusermount3 jq python3
[ -w /dev/fuse ] || skip_all "no /dev/fuse"

gone() { until_true 20 not kill -0 "$1"; }
not() { ! "$@" 2>/dev/null; }
mounted() { grep -q " $T/$1 fuse.qverity " /proc/mounts; }
# The process that serves a directory's mount.
server_of() { pgrep -f -n -- "[q]verity.* $T/$1( |\$)|[m]ount\.qverity.* $T/$1( |\$)"; }

head -c 8M /dev/urandom >disk.raw
qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
mkdir mnt

# --- mount(8) ---

ln -s "$QVERITY" mount.qverity
ln -s "$QVERITY" qverity
ok "as mount -t qverity calls it" ./mount.qverity "$T/disk.qcow2" "$T/mnt" -v -n -s -o \
    "rw,noexec,nofail,_netdev,user,x-systemd.automount,partition=disk,no-tree" -t qverity
same "it serves" mnt/disk disk.raw
like "read-only" "$(grep " $T/mnt " /proc/mounts)" " ro,nosuid,nodev"
like "with the options that are mount's" "$(grep " $T/mnt " /proc/mounts)" "noexec"
fusermount3 -u mnt
ok "with -r" ./mount.qverity -r disk.qcow2 mnt -o partition=disk,no-tree
fusermount3 -u mnt
ok "-f only looks as if" ./mount.qverity -f disk.qcow2 mnt
is "nothing is mounted" "$(ls mnt)" ""
ok "as mount.fuse3 calls it for fuse.qverity" ./qverity "$T/disk.qcow2" "$T/mnt" -o ro,partition=disk,no-tree,dev,suid
same "it serves" mnt/disk disk.raw
fusermount3 -u mnt
if [ "$(id -u)" = 0 ] && command -v mount.fuse3 >/dev/null; then
    PATH=$T:$PATH ok "mount.fuse3" mount.fuse3 "$T/disk.qcow2" "$T/mnt" -t fuse.qverity -o ro,nofail,partition=disk,no-tree
    same "it serves" mnt/disk disk.raw
    fusermount3 -u mnt
fi
refused "an option that is none" 2 "unknown mount option 'colour=red'" ./mount.qverity disk.qcow2 mnt -o colour=red
refused "a value that is none" 2 "idle-timeout: '1x'" ./mount.qverity disk.qcow2 mnt -o idle-timeout=1x
refused "-f in the list" 2 "unknown mount option 'foreground'" ./mount.qverity disk.qcow2 mnt -o foreground
many=$(printf 'lean,%.0s' {1..800})
refused "options without end" 2 "-o: more than 256 options" ./mount.qverity disk.qcow2 mnt -o "$many" -o "$many" -o "$many"
refused "no directory" 2 "arguments are missing" ./mount.qverity disk.qcow2
refused "no image" 1 "none.qcow2: cannot open" ./mount.qverity "$T/none.qcow2" mnt

# --- systemd ---

cat >notified.py <<'END'
import os, socket, subprocess, sys
name = sys.argv[1]
server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server.bind(name.replace("@", "\0"))
server.settimeout(20)
process = subprocess.Popen(sys.argv[2:], env=dict(os.environ, NOTIFY_SOCKET=name))
message = server.recv(1000).decode().split("\n")
print(message[0], "served" if os.path.exists("mnt/disk") else "not served")
pid = int(message[1].split("=")[1])
print("from it" if (pid == process.pid) == ("-f" in sys.argv) else "from somebody else")
subprocess.run(["fusermount3", "-u", "mnt"])
print(server.recv(1000).decode())
print(process.wait())
END
for name in "$T/notify" "@qverity-test-$$"; do
    is "it tells ${name%%[-/]*}… in the foreground" \
        "$(python3 notified.py "$name" "$QVERITY" mount -f -q --no-tree -p disk disk.qcow2 mnt | tr '\n' ' ')" \
        "READY=1 served from it STOPPING=1 0 "
    rm -f notify
done
is "and of a daemon" "$(python3 notified.py "$T/notify" "$QVERITY" mount -q --no-tree -p disk disk.qcow2 mnt | tr '\n' ' ')" \
    "READY=1 served from it STOPPING=1 0 "
ok "a socket that is not there is no reason to fail" \
    env NOTIFY_SOCKET="$T/none" "$QVERITY" mount -q --no-tree -p disk disk.qcow2 mnt
fusermount3 -u mnt

# --- Nobody uses it ---

"$QVERITY" mount -f --no-tree -p disk --idle-timeout 2 disk.qcow2 mnt 2>log &
pid=$!
t_kill_later $pid
until_true 10 [ -f mnt/disk ]
exec 3<mnt/disk
sleep 4
ok "it stays while a file is open" kill -0 $pid
exec 3<&-
for _ in 1 2 3 4 5 6; do
    sleep 0.5
    cat mnt/stats.json >/dev/null
done
ok "and while somebody asks" kill -0 $pid
ok "else it ends" gone $pid
wait $pid
is "with exit status 0" $? 0
ok "and is unmounted" not mounted mnt
is "and says nothing" "$(cat log)" ""

# --- What it counts ---

"$QVERITY" mount --no-tree -p disk -o direct_io disk.qcow2 mnt
for _ in 1 2 3 4 5; do
    dd if=mnt/disk of=/dev/null bs=64k count=10 skip=3 status=none
done
dd if=mnt/hash of=/dev/null bs=4k skip=2 count=3 status=none
cp mnt/stats.json stats.json
is "reads and bytes" "$(jq -c '[.files.disk | .reads, .bytes, .errors]' stats.json)" "[50,3276800,0]"
is "each has a latency" "$(jq '.files.disk.latency_us | add' stats.json)" 50
ok "nearly all were answered at once" [ "$(jq .files.disk.at_once stats.json)" -ge 40 ]
is "of the hash device" "$(jq -c '[.files.hash | .reads, .bytes]' stats.json)" "[3,12288]"
is "with three hash blocks computed" "$(jq .hashtree.nodes_computed stats.json)" 3
fusermount3 -u mnt

# --- What it stands on ---

cp disk.qcow2 doomed.qcow2
"$QVERITY" mount -f --no-tree -p disk doomed.qcow2 mnt 2>log &
pid=$!
t_kill_later $pid
until_true 10 [ -f mnt/disk ]
rm doomed.qcow2
same "an image that was deleted is served" mnt/disk disk.raw
like "and hashed" "$(cat mnt/root-hash)" "^[0-9a-f]{64}$"
kill -STOP $pid
dd if=mnt/disk of=stopped bs=1M iflag=direct status=none &
reader=$!
sleep 0.3
ok "while it is stopped a reader waits" kill -0 $reader
kill -CONT $pid
wait $reader
same "and gets its bytes afterwards" stopped disk.raw
# With readers in flight.
for i in 1 2 3 4; do
    (while dd if=mnt/disk of=/dev/null bs=1M iflag=direct status=none 2>/dev/null; do :; done) &
done
sleep 0.3
kill -TERM $pid
ok "SIGTERM ends it under load" gone $pid
wait $pid
is "with exit status 0" $? 0
ok "and unmounts" not mounted mnt
wait
is "and logs nothing" "$(cat log)" ""

if [ "$(id -u)" = 0 ] && mkdir full && mount -t tmpfs -o size=12M tmpfs full 2>/dev/null; then
    cp disk.qcow2 full/
    head -c 20M /dev/zero >full/rest 2>/dev/null
    ok "an image on a full file system" "$QVERITY" mount -p disk full/disk.qcow2 mnt
    same "is served" mnt/disk disk.raw
    like "and hashed, though no tree can be kept" "$(cat mnt/root-hash)" "^[0-9a-f]{64}$"
    fusermount3 -u mnt
    rm full/rest
    ok "to be written to" "$QVERITY" mount -p disk --overlay full/over.qcow2 --no-tree full/disk.qcow2 mnt
    head -c 20M /dev/zero >full/rest 2>/dev/null
    fill=$(dd if=/dev/urandom of=mnt/disk bs=1M conv=notrunc,fsync 2>&1 >/dev/null)
    like "a write that finds no space is told so" "$fill" "No space left"
    rm full/rest
    ok "once there is space again it is taken" dd if=disk.raw of=mnt/disk bs=64k count=4 conv=notrunc,fsync status=none
    ok "and what was not written to is as it was" cmp -i 7340032 mnt/disk disk.raw
    fusermount3 -u mnt
    until_true 10 umount full 2>/dev/null
fi
finish
