#!/bin/bash
# SPDX-License-Identifier: MIT
# `qverity boot`: whichever of its processes gets a signal, dies or hangs first, nothing is left behind.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=boot-lib.sh
. "$here/boot-lib.sh"

# `boot-deaths-directory` runs this with mounts that have a place, as where there can be no others.
in_directory=${BOOT_DEATHS_DIRECTORY:-}
program=$QVERITY
if [ -n "$in_directory" ]; then
    printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$QVERITY_TOOLS/without-fsopen" "$QVERITY" >qverity
    chmod +x qverity
    QVERITY=$T/qverity
fi

# How many directories for mounts are in a directory.
directories()
{
    find "$1" -mindepth 1 -name 'qverity-boot*' | wc -l
}
expected_directories=${in_directory:+1}
expected_directories=${expected_directories:-0}

# --- Where the mount is ---

guest "say up\n" "wait"
start -v
ok "the guest is up" await up out
ok "its disks are in a mount" await_mount
is "that has a place only where it must" "$(grep -c "$T/run/" /proc/self/mounts) $(directories run)" \
    "$expected_directories $expected_directories"
if [ -n "$in_directory" ]; then
    like "why is told" "$(cat err)" 'cannot mount without a directory: .*; mounting at '"$T/run/qverity-boot"
fi
kill -INT "$pid"
ends 1 '' >/dev/null
ok "nothing is left" clean

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
ok "at once" [ $((SECONDS - started)) -le $((3 * patience)) ]
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

if [ -z "$in_directory" ]; then
    guest "disks" 'say up\n' "wait"
    start
    ok "all is killed at once: the guest is up" await up out
    kill -KILL "$pid" "$(serving_pid)"
    ok "qverity is gone" ends 137 ''
    ok "nothing is left" clean
fi

guest "disks" 'say up\n' "wait"
start
ok "the mount is taken away: the guest is up" await up out
[ -z "$in_directory" ] || fusermount3 -u -z run/qverity-boot.* || umount -l run/qverity-boot.*
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

# --- Without root ---

if [ "$(id -u)" -eq 0 ] && { [ -z "$in_directory" ] || [ -u "$(command -v fusermount3)" ]; }; then
    # /dev/fuse is everybody's on most systems.
    mknod fuse c 10 229
    chmod 666 fuse
    chmod 755 "$T"
    mkdir user
    cp -r disk.raw vmlinuz run user
    chown -R 65534:65534 user
    # As start, but as an ordinary user. A system call is refused to him before he is one, as a filter
    # of his own would take setuid programs away from him.
    start_as_user()
    {
        (
            cd user || exit
            # shellcheck disable=SC2016
            XDG_RUNTIME_DIR=$T/user/run FAKE_QEMU_LOG=$T/user/qemu.log exec unshare -m sh -c '
                mount --bind ../fuse /dev/fuse && exec "$@"' - ${in_directory:+"$QVERITY_TOOLS/without-fsopen"} \
                setpriv --reuid=65534 --regid=65534 --clear-groups \
                "$program" boot "${boot_args[@]}" >../out 2>../err </dev/null
        ) &
        pid=$!
        t_kill_later $pid
    }
    rm -f user/qemu.log
    guest "disks" 'say up\n' "wait"
    start_as_user
    ok "an ordinary user boots" await up out
    is "from the right bytes" "$(sed -n 's/^disk0 //p' out)" "$(sha256sum <disk.raw | cut -d' ' -f1)"
    cp user/qemu.log .
    # ThreadSanitizer has a thread of its own, and who has two gets no user namespace.
    user_directory=$in_directory
    if nm -D "$program" 2>/dev/null | grep -q __tsan_init; then user_directory=y; fi
    is "that has a place only where it must" "$(directories user/run)" "$([ -z "$user_directory" ]; echo $?)"
    if [ -z "$user_directory" ]; then
        kill -KILL "$pid" "$(serving_pid)"
        ok "all is killed" ends 137 ''
    else
        kill -KILL "$pid"
        ok "qverity is killed" ends 137 ''
    fi
    ok "nothing is left" clean
    is "nor there" "$(ls user/run)" ""
fi

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
    ok "SIG$signal while hashing: the image is mounted" await_mount
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
ok "the serving process is killed while hashing: the image is mounted" await_mount
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
