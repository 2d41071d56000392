#!/bin/bash
# SPDX-License-Identifier: MIT
# `qverity boot` on a terminal: keys reach the guest, some have a meaning of their own, and the terminal is
# afterwards as it was.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=boot-lib.sh
. "$here/boot-lib.sh"

# session NAME KEYS EXPECTED-EXIT [OPTION…]: runs boot on a terminal of its own, sends the keys (as Python
# writes them) once the guest has said "up", and shows what the terminal got.
session()
{
    local keys=$1 code=$2
    shift 2
    timeout $((60 * patience)) python3 - "$keys" "$code" "$QVERITY" boot "${boot_args[@]}" "$@" <<'END'
import os, pty, re, select, signal, sys, termios, time

keys = sys.argv[1].encode().decode("unicode_escape").encode("latin-1")
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[3], sys.argv[3:])
before = termios.tcgetattr(terminal)
text = b""
sent = False
deadline = time.time() + 40 * int(os.environ["patience"])
while time.time() < deadline:
    if not select.select([terminal], [], [], 0.1)[0]:
        continue
    try:
        chunk = os.read(terminal, 4096)
    except OSError:
        break
    text += chunk
    if not sent and b"up\r" in text:
        sent = True
        raw = termios.tcgetattr(terminal)
        print("raw:", raw[3] & (termios.ECHO | termios.ICANON | termios.ISIG) == 0)
        if keys == b"HANGUP":
            os.close(terminal)
            break
        os.write(terminal, keys)
if not text:
    os.kill(pid, signal.SIGTERM)
status = os.waitpid(pid, 0)[1]
code = os.waitstatus_to_exitcode(status)
if keys != b"HANGUP":
    print("restored:", termios.tcgetattr(terminal) == before)
print("exit:", code)
# A slow machine tells how far it has come with hashing.
print(re.sub(r"(\x1b\[Khashing[^\x1b]*)+\x1b\[K", "", text.decode("latin-1").replace("\r", "")))
sys.exit(code != int(sys.argv[2]))
END
}

guest "say up\r\n" "echo"
is "keys reach the guest, Ctrl-A a and c too" "$(session 'abc\nx\x01ay\x01cz\x01\x01\nend\n' 0 | cat -v)" "raw: True
restored: True
exit: 0
up
got abc
got x^Ay^Cz^A
got end"
ok "nothing is left" clean

for keys in '\x03' '\x01x'; do
    guest "say up\r\n" "echo"
    like "$keys stops the guest" "$(session "$keys" 1 | tr '\n' ' ')" \
        'raw: True restored: True exit: 1 up qverity: Ctrl-C: the guest was stopped'
    ok "nothing is left" clean
done

guest "stubborn" "say up\r\n" "wait"
like "Ctrl-C twice kills it" "$(session '\x03\x03' 1 | tr '\n' ' ')" 'restored: True exit: 1 up qverity: Ctrl-C'
ok "nothing is left" clean

guest "say up\r\n" "wait"
like "with --until the terminal is left alone, and Ctrl-C is a signal" "$(session '\x03' 1 --until x | tr '\n' ' ')" \
    'raw: False restored: True exit: 1 .*qverity: SIGINT: the guest was stopped'
ok "nothing is left" clean

guest "say up\r\n" "wait"
like "the terminal goes away" "$(session HANGUP 1 | tr '\n' ' ')" 'exit: 1'
ok "nothing is left" clean

finish
