#!/bin/bash
# SPDX-License-Identifier: MIT
# `qverity boot`: each way a guest or QEMU can end, and each trouble with the console, gives the
# documented exit code and leaves nothing behind.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=boot-lib.sh
. "$here/boot-lib.sh"

# --- Endings of the guest ---

guest "disks" 'say one\r\ntwo\r\n' "end guest-shutdown"
ok "the guest powers off: done" boot 0 '^$'
is "its console is stdout" "$(tail -2 out | tr -d '\r' | tr '\n' ' ')" "one two "
"$QVERITY" hash disk.raw --format raw -p disk --write hash.img >/dev/null 2>&1
is "it read the disk and the hash device" "$(grep '^disk' out)" \
    "disk0 $(sha256sum <disk.raw | cut -d' ' -f1)
disk1 $(sha256sum <hash.img | cut -d' ' -f1)"
ok "nothing is left" clean

guest 'say Linux\r\n\r\nqverity login: ' "wait"
ok "--until matches a line that is not complete: done" boot 0 '^$' --until 'login: $'
like "the console was shown" "$(cat out)" 'qverity login: '
ok "QEMU was told to quit" grep -q '^qmp quit$' qemu.log
ok "nothing is left" clean

guest 'say \x1b[0;32m  OK  \x1b[0m Rea' "sleep 0.3" 'say ched \x1b[1mtarget\x1b[0m\r\n' "wait"
ok "--until matches across writes and escape sequences" boot 0 '^$' --until '^  OK   Reached target$'

guest 'say nothing\r\n' "end guest-shutdown"
ok "the guest powers off before --until matches: failed" \
    boot 1 "^qverity: the guest powered off; no line of its console had matched 'login:'" --until login:

guest 'say [    1.5] Kernel panic - not syncing: dm-verity device corrupted\r\n' "sleep 0.2" "end guest-reset"
ok "a panic and a reset: failed, with the panic" \
    boot 1 '^qverity: the guest.s kernel panicked: Kernel panic - not syncing: dm-verity device corrupted' --until login:
ok "also without --until" boot 1 'kernel panicked: Kernel panic'

guest 'say [    1.5] Kernel panic - not syncing: x\r\n' "sleep 0.2" \
    'say [    1.6] ---[ end Kernel panic - not syncing: x ]---\r\n' "wait"
ok "a panic that halts: failed, soon" boot 1 'kernel panicked: Kernel panic - not syncing: x$'
ok "nothing is left" clean

guest "end guest-reset"
ok "a reset: failed" boot 1 '^qverity: the guest reset itself'
guest "end guest-panic"
ok "a panic that QEMU was told: failed" boot 1 '^qverity: the guest panicked'
guest "end host-qmp-quit"
ok "QEMU was told to quit by others: failed" boot 1 '^qverity: QEMU was told to end'

guest 'say last words\r\n' "wait"
ok "--timeout: failed, with the last line" boot 1 \
    "^qverity: timeout: no line of the console matched 'login:' within 4 seconds; the last was: last words$" \
    --until login: --timeout 4
ok "--timeout without --until" boot 1 '^qverity: timeout: the guest still ran after 1 seconds$' --timeout 1
ok "nothing is left" clean

guest "tell guest-shutdown" "wait"
ok "the guest powers off, and QEMU stays, as with -no-shutdown: it is told to quit" boot 0 '^$'
ok "which it was" grep -q '^qmp quit$' qemu.log
guest 'say x\r\n' "tell guest-reset" "wait"
ok "the same after a reset" boot 1 '^qverity: the guest reset itself' --until y
guest "tell guest-shutdown" "stubborn" "wait"
ok "an impatient user" boot 1 '^qverity: timeout: the guest still ran' --timeout 1
ok "nothing is left" clean

# --- Endings of QEMU ---

guest "stderr fake: warning: never mind" "stderr fake: no such device" "stderr fake: giving up" "exit 1"
ok "QEMU fails: what it said, without warnings" boot 1 \
    '^qverity: .*fake-qemu.py ended with exit status 1: fake: no such device; fake: giving up$' --until x
guest "signal 11"
ok "QEMU crashes" boot 1 'fake-qemu.py was ended by signal 11'
guest "exit 0"
ok "QEMU ends without a word" boot 1 'fake-qemu.py ended with exit status 0'
ok "no such QEMU" env QVERITY_QEMU="$T/none" bash -c '"$0" boot "$@" 2>&1 | grep -q "^qverity: .*none: cannot run: No such file"' \
    "$QVERITY" "${boot_args[@]}"
printf 'touch "%s/ran"\n' "$T" >text
chmod +x text
ok "nor one that is no program" env QVERITY_QEMU="$T/text" bash -c '"$0" boot "$@" 2>&1 | grep -q "^qverity: .*text: cannot run: Exec format error"' \
    "$QVERITY" "${boot_args[@]}"
ok "which no shell reads" [ ! -e ran ]
ok "nothing is left" clean

guest "silent" "wait"
ok "QMP is silent: SIGTERM ends it" boot 1 'still ran' --timeout 4
ok "it got SIGTERM" grep -q '^signal 15$' qemu.log
guest "garbage" "sleep 0.5" "end guest-shutdown"
ok "QMP is garbage: nobody knows why QEMU ended" boot 1 'ended with exit status 0'
guest "stubborn" 'say ready\n' "wait"
ok "QEMU that ends at nothing is killed" boot 0 '^$' --until ready
ok "nothing is left" clean

# --- Floods and slow readers ---

guest "flood 30000000" 'say \r\nready\r\n' "wait"
ok "30 MB of console" boot 0 '^$' --until '^ready$' --console copy
is "all of it arrived" "$(wc -c <out)" 30000009
same "the copy is the same" out copy
guest "flood 100000000" "wait"
ok "a reader that goes away: failed" bash -c '
    "$@" 2>err | head -c 1000 >/dev/null
    [ "${PIPESTATUS[0]}" -eq 1 ] && grep -q "^qverity: standard output: cannot write: Broken pipe$" err' - \
    timeout $((60 * patience)) "$QVERITY" boot "${boot_args[@]}"
ok "a reader that does not read: --timeout still works" bash -c '
    "$@" 2>err | sleep $((4 * patience))
    [ "${PIPESTATUS[0]}" -eq 1 ] && grep -q "^qverity: timeout" err' - \
    timeout $((60 * patience)) "$QVERITY" boot "${boot_args[@]}" --timeout 1
guest 'flood 200000' "end guest-shutdown"
ok "a slow reader gets all of what a guest said before its end" bash -c '
    "$@" 2>err | { sleep 2; cat; } | wc -c | grep -qx 200000' - timeout $((60 * patience)) "$QVERITY" boot "${boot_args[@]}"
guest 'say x\r\n' "wait"
ok "a full disk under stdout" bash -c '"$@" >/dev/full 2>err; [ $? -eq 1 ] && grep -q "standard output: cannot write: No space" err' - \
    timeout $((60 * patience)) "$QVERITY" boot "${boot_args[@]}"
ok "stdin is closed" bash -c '"$@" <&- >out 2>err && grep -q ^x out' - timeout $((60 * patience)) "$QVERITY" boot "${boot_args[@]}" --until x
ok "stdout is closed" bash -c '"$@" >&- 2>err; [ $? -eq 1 ] && grep -q "standard output: not open for writing" err' - \
    timeout $((60 * patience)) "$QVERITY" boot "${boot_args[@]}" --until x
guest "disks" 'say x\r\n' "wait"
ok "stdin and stderr are closed" bash -c '"$@" <&- 2>&- >out' - timeout $((60 * patience)) "$QVERITY" boot "${boot_args[@]}" --until x
like "the guest gets the right bytes" "$(cat out)" "^disk0 $(sha256sum <disk.raw | cut -d' ' -f1)"
guest 'say x\r\n' "wait"
ok "a QMP socket is removed" boot 0 '^$' --until x --qmp run/qmp
echo precious >file
ok "a file in the place of a QMP socket is left alone" boot 1 '^qverity: --qmp file: exists and is not a socket$' --qmp file
is "it holds what it held" "$(cat file)" precious
ok "a full disk under --console" boot 1 '^qverity: /dev/full: cannot write: No space left on device$' --console /dev/full
ok "a console file that cannot be made" boot 1 '^qverity: none/file: cannot open: No such file' --console none/file
ok "nothing is left" clean

finish
