#!/bin/bash
# SPDX-License-Identifier: MIT
# `qverity boot`: whichever of its processes gets a signal, dies or hangs first, nothing is left behind.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=boot-lib.sh
. "$here/boot-lib.sh"

# --- Signals and deaths ---

for signal in INT TERM HUP QUIT; do
    guest 'say up\n' "wait"
    start
    ok "SIG$signal: the guest is up" await up out
    kill -$signal "$pid"
    ok "SIG$signal: failed" ends 1 "^qverity: SIG$signal: the guest was stopped$"
    ok "SIG$signal: nothing is left" clean
done

guest "stubborn" 'say up\n' "wait"
start
ok "SIGINT twice: the guest is up" await up out
kill -INT "$pid"
ok "QEMU was asked first" await '^qmp quit' qemu.log
started=$SECONDS
kill -INT "$pid"
ok "the second kills" ends 1 '^qverity: SIGINT: the guest was stopped$'
ok "at once" [ $((SECONDS - started)) -le 3 ]
ok "nothing is left" clean

guest 'say up\n' "wait"
start
ok "QEMU is killed: the guest is up" await up out
kill -KILL "$(qemu_pid)"
ok "failed" ends 1 'fake-qemu.py was ended by signal 9$'
ok "nothing is left" clean

guest "disks" 'say up\n' "wait"
start --qmp run/qmp,socket
ok "qverity is killed: the guest is up" await up out
ok "there is a QMP socket" [ -S run/qmp,socket ]
kill -KILL "$pid"
ok "qverity is gone" ends 137 ''
ok "nothing is left" clean

# A wrapper that QEMU's death signal does not get beyond.
printf '#!/bin/sh\n"%s" "$@"\nexit $?\n' "$QVERITY_QEMU" >wrapper
chmod +x wrapper
for signal in KILL INT; do
    guest 'say up\n' "wait"
    QVERITY_QEMU=$T/wrapper start
    ok "QEMU in a script, SIG$signal: the guest is up" await up out
    kill -$signal "$pid"
    ends 1 '' >/dev/null
    ok "nothing is left" clean
done

for signal in KILL TERM; do
    guest "disks" 'say up\n' "wait"
    start
    ok "the serving process gets SIG$signal: the guest is up" await up out
    kill -$signal "$(serving_pid)"
    ok "failed" ends 1 'the process that serves the disk was ended by signal (9|15)'
    ok "nothing is left" clean
done

guest "disks" 'say up\n' "wait"
start
ok "the mount is taken away: the guest is up" await up out
fusermount3 -u -z run/qverity-boot.* || umount -l run/qverity-boot.*
kill -INT "$pid"
ok "the guest has its disks until it is stopped" ends 1 '^qverity: SIGINT: the guest was stopped$'
ok "nothing is left" clean

guest "disks" 'say up\n' "wait"
start
ok "the serving process hangs: the guest is up" await up out
server=$(serving_pid)
kill -STOP "$server"
kill -INT "$pid"
ok "failed" ends 1 '^qverity: SIGINT: the guest was stopped$'
ok "nothing is left" clean

# --- While the root hash is computed ---

# A place that only hashing reads takes 3 seconds.
mkdir slow
cp disk.raw source
echo "delay 524288 4096 3000" >faults
"$QVERITY_TOOLS/faultfs" source "$T/faults" slow 2>/dev/null &
slow=$!
t_kill_later $slow
ok "a slow disk is mounted" await "$T/slow " /proc/self/mounts
fast=("${boot_args[@]}")
boot_args[0]=slow/image

for signal in INT KILL; do
    guest "wait"
    start
    ok "SIG$signal while hashing: the image is mounted" await "$T/run" /proc/self/mounts
    kill -$signal "$pid"
    if [ $signal = INT ]; then
        ok "SIGINT while hashing: failed" ends 1 '^qverity: SIGINT: gave up$'
    else
        ok "SIGKILL while hashing: qverity is gone" ends 137 ''
    fi
    ok "SIG$signal while hashing: no QEMU was run" [ ! -e qemu.log ]
    ok "SIG$signal while hashing: nothing is left" clean
done

guest "wait"
start
ok "the serving process is killed while hashing: the image is mounted" await "$T/run" /proc/self/mounts
kill -KILL "$(serving_pid)"
ok "failed" ends 1 'the process that serves the disk was ended by signal 9'
ok "nothing is left" clean

echo "eio 524288 4096" >faults
ok "the image cannot be read: failed, with the place" boot 1 '^qverity: .*slow/image: cannot read at offset 524288: Input/output error'
ok "nothing is left" clean
boot_args=("${fast[@]}")
fusermount3 -u -z slow

# --- Another program that holds the image ---

guest 'say up\n' "wait"
start
await up out >/dev/null
ok "two boots share an image" boot 0 '^$' --until up
kill -INT "$pid"
ends 1 '' >/dev/null
ok "nothing is left" clean

finish
