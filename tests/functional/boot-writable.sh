#!/bin/bash
# SPDX-License-Identifier: MIT
# `qverity boot --writable`: QEMU gets the image itself, and a guest that is stopped gets the time to power
# down.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=boot-lib.sh
. "$here/boot-lib.sh"
require qemu-img

boot_args=(disk.raw --format raw --writable --accel tcg)

# --- The image ---

guest "write" 'say up\r\n' "wait"
ok "the guest is stopped once --until matches: done" boot 0 '^$' --until up
is "it wrote to the image" "$(head -c 5 disk.raw)" guest
is "it was asked to power down, and nothing else" "$(grep -E '^(qmp|signal) ' qemu.log | tr '\n' ' ')" \
    "qmp qmp_capabilities qmp system_powerdown "
ok "nothing is left" clean

qemu-img create -q -f qcow2 -b disk.raw -F raw overlay.qcow2
guest "say up\r\n" "end guest-shutdown"
ok "an overlay" "$QVERITY" boot overlay.qcow2 --writable --accel tcg
like "its format is told to QEMU" "$("$QVERITY" boot overlay.qcow2 --writable --accel tcg --dry-run)" \
    "-drive file=$T/overlay.qcow2,if=none,id=disk0,format=qcow2 "
is "no tree file was made" "$(ls ./*.qvtree 2>/dev/null)" ""

guest "write" 'say up\n' "wait"
start
ok "a guest writes to the image" await up out
refused "another cannot" 1 "disk.raw: .*(in use|writ|lock)" "$QVERITY" boot "${boot_args[@]}"
ok "it still runs" kill -0 "$pid"
kill -INT "$pid"
ends 1 '' >/dev/null
ok "nothing is left" clean

# --- Stopping ---

for signal in INT TERM; do
    guest 'bye Powering down\r\n' 'say up\n' "wait"
    start --console copy
    ok "SIG$signal: the guest is up" await up out
    kill -$signal "$pid"
    ok "SIG$signal: failed" ends 1 "^qverity: SIG$signal: the guest was stopped$"
    is "SIG$signal: its last words are shown" "$(tail -n 1 out | tr -d '\r')" "Powering down"
    same "and written" out copy
    ok "SIG$signal: nothing is left" clean
done

guest "deaf" 'say up\n' "wait"
ok "a guest that does not power down is cut off, and told" boot 0 \
    '^qverity: warning: the guest did not power down within 1 seconds and was cut off$' --until up --powerdown 1
is "after it was asked" "$(grep -E '^(qmp|signal) ' qemu.log | tr '\n' ' ')" \
    "qmp qmp_capabilities qmp system_powerdown qmp quit "
ok "nothing is left" clean

guest 'say up\n' "wait"
ok "--powerdown 0 does not ask" boot 0 '^$' --until up --powerdown 0
ok "QEMU was told to quit" grep -q '^qmp quit$' qemu.log
ok "nor is --timeout kinder" boot 1 '^qverity: timeout: ' --timeout 1 --powerdown 0

guest 'say up\n' "wait"
ok "a timeout asks, too" boot 1 '^qverity: timeout: ' --timeout 1
ok "as the log says" grep -q '^qmp system_powerdown$' qemu.log

guest "deaf" 'say up\n' "wait"
start
ok "SIGINT twice: the guest is up" await up out
kill -INT "$pid"
ok "it is asked first" await '^qmp system_powerdown' qemu.log
started=$SECONDS
kill -INT "$pid"
ok "then QEMU is told to quit" ends 1 '^qverity: SIGINT: the guest was stopped$'
ok "at once" [ $((SECONDS - started)) -le $((3 * patience)) ]
ok "by QMP, so that its image is whole" grep -q '^qmp quit$' qemu.log
ok "nothing is left" clean

guest "deaf" "stubborn" 'say up\n' "wait"
start
ok "SIGINT three times: the guest is up" await up out
kill -INT "$pid"
ok "it is asked first" await '^qmp system_powerdown' qemu.log
kill -INT "$pid"
ok "then QEMU is told to quit" await '^qmp quit' qemu.log
started=$SECONDS
kill -INT "$pid"
ok "the third kills" ends 1 '^qverity: SIGINT: the guest was stopped$'
ok "at once" [ $((SECONDS - started)) -le $((3 * patience)) ]
ok "nothing is left" clean

guest 'flood 3000000' 'say \r\nup\r\n' "wait"
ok "a reader that does not read does not hold up the end" bash -c '
    "$@" 2>err | sleep 3
    [ "${PIPESTATUS[0]}" -eq 1 ] && grep -q "^qverity: timeout" err' - \
    timeout $((60 * patience)) "$QVERITY" boot "${boot_args[@]}" --timeout 1
ok "nothing is left" clean

# --- Deaths ---

guest 'say up\n' "wait"
start --qmp run/qmp
ok "qverity is killed: the guest is up" await up out
kill -KILL "$pid"
ends 137 '' >/dev/null
ok "nothing is left" clean

guest 'say up\n' "wait"
start
ok "the process that cleans up is killed: the guest is up" await up out
kill -KILL "$(serving_pid)"
ok "the guest is powered down" ends 1 'the process that cleans up behind this one was ended by signal 9$'
ok "as the log says" grep -q '^qmp system_powerdown$' qemu.log
ok "nothing is left" clean

guest 'say up\n' "wait"
start
ok "QEMU is killed: the guest is up" await up out
kill -KILL "$(qemu_pid)"
ok "failed" ends 1 'fake-qemu.py was ended by signal 9$'
ok "nothing is left" clean

finish
