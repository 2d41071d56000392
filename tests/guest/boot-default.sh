#!/bin/bash
# SPDX-License-Identifier: MIT
# An image, and nothing else given: its newest kernel boots on dm-verity. And QEMU's own options pass through.
. "$(dirname "$0")/../functional/lib.sh"
. "$top/tests/guest/guest.sh"
guest_need_image
require python3
# Other tests boot the same image: the processes of this one can be told by the name.
ln -s "$guest_image" own.qcow2
guest_image=$T/own.qcow2

"$QVERITY" boot "$guest_image" --until login: >console 2>stderr </dev/null
code=$?
is "the guest gets to its login prompt" "$code" 0
[ $code -eq 0 ] || {
    guest_note
    note "$(cat stderr)"
}
guest_lines >lines
root=$("$QVERITY" hash "$guest_image" | sed -n 's/^Root hash:[[:space:]]*//p')
like "on dm-verity" "$(cat lines)" "qverity: dm-verity is up: dmverity, .* sha256 root hash $root"
like "with the prompt" "$(tail -n 1 lines)" 'login:'
is "nothing is left" "$(pgrep -af "boot $guest_image")$(grep -F "$T/" /proc/self/mounts)" ""

# A device behind "--", which the running QEMU knows.
"$QVERITY" boot "$guest_image" --kernel none --no-verity --accel tcg --qmp qmp --timeout $((120 * patience)) \
    -- -device virtio-rng-pci,id=passed >/dev/null 2>stderr </dev/null &
pid=$!
t_kill_later $pid
like "QEMU's own options pass through" "$(timeout $((100 * patience)) python3 - qmp <<'END2'
import json, socket, sys, time
client = socket.socket(socket.AF_UNIX)
while True:
    try:
        client.connect(sys.argv[1])
        break
    except OSError:
        time.sleep(0.1)
stream = client.makefile("rw")
stream.readline()
for command, arguments in (("qmp_capabilities", {}), ("qom-list", {"path": "/machine/peripheral"})):
    print(json.dumps({"execute": command, "arguments": arguments}), file=stream, flush=True)
    answer = {}
    while "return" not in answer:
        answer = json.loads(stream.readline())
print(*(item["name"] + ":" + item["type"] for item in answer["return"]))
END2
)" 'passed:child<virtio-rng-pci>'
kill -INT $pid
wait $pid
is "and QEMU is stopped" "$? $(cat stderr)" "1 qverity: SIGINT: the guest was stopped"
is "its socket is gone" "$(ls qmp 2>/dev/null)" ""
finish
