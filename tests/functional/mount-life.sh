#!/bin/bash
# SPDX-License-Identifier: MIT
# A mount's life: it returns when it is readable, ends cleanly whatever is going on, and leaves
# nothing behind, also when it is killed.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
require qemu-img fusermount3 jq pgrep setpriv unshare
[ -w /dev/fuse ] || skip_all "no /dev/fuse"
faultfs=${QVERITY_TOOLS:-$top/build/tests/tools}/faultfs
[ -x "$faultfs" ] || skip_all "faultfs was not built"

mounted() # DIRECTORY
{
    grep -q " $T/$1 " /proc/mounts
}

# Processes of this test that serve a mount; a dead child that nobody has waited for is none.
servers()
{
    pgrep -f -- "mount .*$T/" | while read -r pid; do
        # Nor the helper of a confined one, which ends with it.
        grep -q -e '^State:.*Z' -e '^Name:.*qverity-broker' "/proc/$pid/status" 2>/dev/null || echo "$pid"
    done
}

gone() # PID: within 15 seconds times patience
{
    local i
    for ((i = 0; i < 300 * patience; i++)); do
        [ -d "/proc/$1" ] && ! grep -q '^State:.*Z' "/proc/$1/status" || return 0
        sleep 0.05
    done
    return 1
}

# Reads in the background that go past the page cache, so that requests are in flight all the time.
start_readers()
{
    local i
    readers=()
    for i in 1 2 3 4; do
        timeout 20 sh -c "while dd if=$T/mnt/disk of=/dev/null bs=1M iflag=direct status=none; do :; done" \
            2>/dev/null &
        readers+=($!)
    done
    sleep 0.3
}

wait_readers()
{
    wait "${readers[@]}" 2>/dev/null
}

# Data, and zeros behind it.
head -c 48M /dev/urandom >disk.raw
truncate -s 64M disk.raw
qemu-img convert -O qcow2 disk.raw disk.qcow2
mkdir mnt
before=$(sha256sum disk.qcow2; stat -c '%Y %Z %s' disk.qcow2)

# --- 100 times ---

bad=0
# Not in a substitution, whose pipe the shell may or may not have closed.
find /proc/$$/fd >descriptors
for i in {1..100}; do
    out=$("$QVERITY" mount "$T/disk.qcow2" "$T/mnt" 2>&1) || { bad=1; note "mount $i: $out"; break; }
    [ -z "$out" ] || { bad=1; note "mount $i said: $out"; }
    # Not waited for: it is readable when mount returns.
    if ! cmp -s -n 4096 mnt/disk disk.raw; then
        bad=1
        note "mount $i: not readable"
    fi
    fusermount3 -u mnt || bad=1
done
is "100 mounts and unmounts" $bad 0
until_true 5 eval '[ -z "$(servers)" ]'
is "they leave no process" "$(servers)" ""
is "and no mount" "$(grep -c " $T/mnt " /proc/mounts)" 0
find /proc/$$/fd >descriptors.after
is "and no descriptor" "$(wc -l <descriptors.after)" "$(wc -l <descriptors)"
ok "and no lock on the image" qemu-io -c 'read 0 4k' -t none disk.qcow2

# --- Descriptors of one mount ---

exec 9<disk.raw
"$QVERITY" mount disk.qcow2 "$T/mnt"
exec 9<&-
pid=$(servers)
cat mnt/* >/dev/null
descriptors=$(find "/proc/$pid/fd" | wc -l)
for i in {1..100}; do
    cat mnt/disk mnt/hash mnt/root-hash mnt/stats.json mnt/table >/dev/null
done
is "500 files opened and read leave no descriptor" "$(find "/proc/$pid/fd" | wc -l)" "$descriptors"
is "the daemon has nothing of its parent's" \
    "$(readlink "/proc/$pid"/fd/[012] | sort -u) $(readlink "/proc/$pid/cwd") $(readlink "/proc/$pid"/fd/* | grep -c -e pipe: -e raw)" "/dev/null / 0"
kill -HUP "$pid"
sleep 0.2
ok "the daemon outlives the terminal" cmp -n 4096 mnt/disk disk.raw
refused "a second mount on the same directory" 1 "mnt: '$T/disk.qcow2' is mounted here already" \
    "$QVERITY" mount disk.qcow2 "$T/mnt"
mkdir mnt2
ok "a second mount of the same image" "$QVERITY" mount disk.qcow2 "$T/mnt2"
fusermount3 -u mnt2

# --- Signals with requests in flight ---

start_readers
kill -TERM "$pid"
ok "SIGTERM ends it while it is read" gone "$pid"
wait_readers
ok "and unmounts" eval '! mounted mnt'
"$QVERITY" mount -f disk.qcow2 "$T/mnt" 2>log &
pid=$!
t_kill_later $pid
until_true 5 mounted mnt
start_readers
# A shell ignores SIGINT in what it starts in the background; the command's handler must see it.
kill -INT $pid
ok "SIGINT ends it in the foreground" gone $pid
wait $pid
is "with exit status 0" $? 0
wait_readers
ok "and unmounts" eval '! mounted mnt'
is "and says nothing" "$(cat log)" ""
"$QVERITY" mount disk.qcow2 "$T/mnt"
pid=$(servers)
start_readers
fusermount3 -u -z mnt
kill "${readers[@]}" 2>/dev/null
wait_readers
ok "a lazy unmount ends it when the last reader has gone" gone "$pid"

# --- kill -9 ---

"$QVERITY" mount disk.qcow2 "$T/mnt"
pid=$(servers)
start_readers
kill -KILL "$pid"
wait_readers
like "after kill -9 the mount is dead" "$(ls mnt 2>&1)" "not connected"
refused "mount says how to clean it up" 1 "dead fuse.qverity mount of '$T/disk.qcow2'.*fusermount3 -u" \
    "$QVERITY" mount disk.qcow2 "$T/mnt"
ok "fusermount3 -u cleans it up" fusermount3 -u mnt
ok "and it can be mounted again" "$QVERITY" mount disk.qcow2 "$T/mnt"
same "with the same bytes" mnt/disk disk.raw
fusermount3 -u mnt
# fusermount3 looks whether the mount is dead, and goes away if it looks a moment too early.
for i in 1 2 3 4 5 6 7 8 9 10; do
    "$QVERITY" mount -o auto_unmount disk.qcow2 "$T/mnt"
    kill -KILL "$(servers)"
    until_true 2 eval '! mounted mnt' && break
    fusermount3 -u mnt
    i=failed
done
ok "with auto_unmount nothing has to be cleaned up" [ "$i" != failed ]
is "the image is untouched" "$(sha256sum disk.qcow2; stat -c '%Y %Z %s' disk.qcow2)" "$before"

# --- While the root hash is computed ---

# A slow disk below the image: reads of its second half take two seconds.
mkdir slow
half=$(($(stat -c %s disk.qcow2) / 2))
echo "delay $half $half 2000" >faults
"$faultfs" disk.qcow2 "$T/faults" slow 2>/dev/null &
t_kill_later $!
until_true 5 eval '[ -f slow/image ]'

build_begins() # starts a reader of root-hash and waits until it is computed
{
    cat mnt/root-hash >root 2>root.err &
    waiter=$!
    until_true 5 eval '[ "$(jq .build.running mnt/stats.json)" = true ]'
}

"$QVERITY" mount --threads 1 slow/image "$T/mnt"
pid=$(servers)
ok "stats.json tells that a build runs" build_begins
for i in {1..40}; do cat mnt/table >/dev/null & others[i]=$!; done
ok "the image is read meanwhile, however many wait" timeout $((5 * patience)) cmp -i 50331648 mnt/disk disk.raw
ok "and the directory" timeout $((5 * patience)) ls -l mnt
how_far='.build.running and .build.total > .build.done and .build.done > 0'
ok "stats.json tells how far it is" until_true 3 eval '[ "$(jq "$how_far" mnt/stats.json)" = true ]'
{
    kill -KILL $waiter "${others[@]}"
    gone $waiter
    killed=$?
    wait $waiter "${others[@]}"
} 2>/dev/null
is "who waits can be killed" $killed 0
ok "fusermount3 -u unmounts during the build" fusermount3 -u mnt
ok "and the process ends" gone "$pid"
"$QVERITY" mount --threads 1 slow/image "$T/mnt"
pid=$(servers)
build_begins
dd if=mnt/hash of=/dev/null bs=4k count=1 status=none 2>/dev/null &
other=$!
kill -TERM "$pid"
ok "SIGTERM ends it during the build" gone "$pid"
wait $waiter
like "who waited gets an error" "$(cat root.err)" "not connected|No such file"
wait $other 2>/dev/null
ok "and it is unmounted" eval '! mounted mnt'

# --- A build that fails ---

echo "eio $half 4096" >faults
"$QVERITY" mount -f slow/image "$T/mnt" 2>log &
pid=$!
t_kill_later $pid
until_true 5 mounted mnt
like "root-hash of what cannot be read" "$(cat mnt/root-hash 2>&1)" "Input/output error"
like "the log says where" "$(cat log)" \
    "^qverity: .*slow/image: cannot compute the root hash: .*slow/image.* offset [0-9]+"
ok "the rest can be read" cmp -n 4194304 mnt/disk disk.raw
: >faults
sleep 1.1
is "later it is tried again" "$(cat mnt/root-hash)" \
    "$("$QVERITY" hash disk.qcow2 --json | jq -r .root_hash)"
kill -TERM $pid
wait $pid
is "exit status" $? 0
fusermount3 -u slow

# --- Without root ---

if [ "$(id -u)" -eq 0 ] && [ -u "$(command -v fusermount3)" ]; then
    mkdir user
    cp disk.qcow2 user/
    mkdir user/mnt
    chmod 755 "$T"
    chown -R 65534:65534 user
    # /dev/fuse is everybody's on most systems.
    mknod fuse c 10 229
    chmod 666 fuse
    cat >as-user <<'END'
mount --bind fuse /dev/fuse || exit 2
user() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
cd user || exit 2
user "$QVERITY" mount disk.qcow2 mnt || exit 3
user cmp -n 1000000 mnt/disk disk.qcow2 >/dev/null && exit 4
user cmp mnt/disk ../disk.raw || exit 5
[ "$(user stat -c %u:%g mnt/disk)" = 65534:65534 ] || exit 6
user cat mnt/root-hash || exit 7
user fusermount3 -u mnt || exit 8
user "$QVERITY" mount -o allow_other disk.qcow2 mnt 2>err && exit 9
grep -q "mnt: cannot mount: .*allow_other" err || { cat err; exit 10; }
# Not through the function, whose process would be another one.
setpriv --reuid=65534 --regid=65534 --clear-groups "$QVERITY" mount -f disk.qcow2 mnt >/dev/null 2>&1 &
for ((i = 0; i < 50 * patience; i++)); do grep -q " $PWD/mnt " /proc/mounts && break; sleep 0.1; done
kill -TERM $!
wait $! || exit 11
! grep -q " $PWD/mnt " /proc/mounts || exit 12
END
    out=$(QVERITY=$QVERITY unshare -m bash as-user 2>&1)
    is "an ordinary user mounts, reads and unmounts" "$? $(tail -n 1 <<<"$out")" \
        "0 $("$QVERITY" hash disk.qcow2 --json | jq -r .root_hash)"
else
    note "the test without root needs root and a setuid fusermount3"
fi
finish
