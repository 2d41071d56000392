#!/bin/bash
# SPDX-License-Identifier: MIT
# Whoever can write a tree file chooses the root hash that is printed: it is believed only if that is the user who
# asks, or root.
. "$(dirname "$0")/lib.sh"
require qemu-img qemu-io python3 setpriv
root() { "$QVERITY" "$@" -p disk 2>.err | sed -n 's/^Root hash: *\t//p'; }
update() { "$QVERITY" update --json -p disk "$@" 2>.err | sed -n 's/^  "\(root_hash\|method\)": "\(.*\)",/\2/p' | sort | tr '\n' ' '; }

# forge FILE: a header that is right in all but the root hash
forge()
{
    python3 - "$1" <<'PYTHON'
import hashlib, sys
with open(sys.argv[1], "r+b") as file:
    for at in (0, 16384):
        file.seek(at)
        slot = file.read(16384)
        if slot[:8] != b"qvtree\x1a\n":
            continue
        root = bytes.fromhex(open("expected").read())
        assert slot.count(root) == 1
        slot = slot[:-32].replace(root, b"\xee" * len(root))
        file.seek(at)
        file.write(slot + hashlib.sha256(slot).digest())
PYTHON
}
forged=$(printf 'ee%.0s' {1..32})

chmod 755 .
qemu-img create -q -f qcow2 a.qcow2 17M
qemu-io -f qcow2 -c 'write -q -P 3 1M 6M' a.qcow2
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 over.qcow2
expected=$(root hash --no-tree a.qcow2)
echo "$expected" >expected
full=$(printf '%s\n' "$expected" full | sort | tr '\n' ' ')
unchanged=$(printf '%s\n' "$expected" unchanged | sort | tr '\n' ' ')
overlay=$(printf '%s\n' "$expected" overlay | sort | tr '\n' ' ')

(umask 000; root hash a.qcow2) >/dev/null
is "a new one, whatever the umask" "$(stat -c %a a.qcow2.qvtree)" 644
is "is believed" "$(update a.qcow2)" "$unchanged"
(umask 077; root hash --rescan a.qcow2) >/dev/null
is "but not readable where umask says so" "$(stat -c %a a.qcow2.qvtree)" 600

forge a.qcow2.qvtree
cp -p a.qcow2.qvtree good
is "our own word we take" "$(root hash a.qcow2)" "$forged"
for mode in 664 646 666 620; do
    for command in "hash" update; do
        cp -p good a.qcow2.qvtree
        chmod $mode a.qcow2.qvtree
        is "$command, mode $mode" "$(root $command a.qcow2)" "$expected"
        is "$command, mode $mode, is told" "$(cat .err)" \
            "qverity: warning: a.qcow2.qvtree: others than its owner can write to it (mode 0$mode), so it is not believed"
        is "$command, mode $mode, a new one takes its place" "$(stat -c %a a.qcow2.qvtree) $(update a.qcow2)" "644 $unchanged"
    done
done
cp -p good a.qcow2.qvtree
chmod 666 a.qcow2.qvtree
is "an overlay does not believe the base's" "$(update over.qcow2)" "$full"
is "and tells, once" "$(cat .err)" \
    "qverity: warning: a.qcow2.qvtree: others than its owner can write to it (mode 0666), so it is not believed"
like "info tells" "$("$QVERITY" info a.qcow2)" 'so it is not believed'
is "a state of its own" "$("$QVERITY" info --json a.qcow2 | sed -n 's/^    "state": "\(.*\)",*$/\1/p')" untrusted
is "no bytes of it for diff" "$("$QVERITY" diff -p disk a.qcow2 over.qcow2 2>&1 >/dev/null | sort -u)" "$(cat .err)"
cp -p good a.qcow2.qvtree
rm over.qcow2.qvtree
is "what belongs to us counts there" "$(root hash over.qcow2)" "$forged"

if [ "$(id -u)" != 0 ]; then
    note "not root: nobody else's files to look at"
    finish
fi

for command in "hash" update; do
    cp -p good a.qcow2.qvtree
    chown 65534 a.qcow2.qvtree
    is "$command, another user's" "$(root $command a.qcow2)" "$expected"
    is "$command, another user's, is told" "$(cat .err)" "qverity: warning: a.qcow2.qvtree: it belongs to user 65534, so it is not believed"
    is "$command, the new one is ours" "$(stat -c %u a.qcow2.qvtree) $(update a.qcow2)" "0 $unchanged"
done
cp -p good a.qcow2.qvtree
chown 65534 a.qcow2.qvtree
rm -f over.qcow2.qvtree
is "an overlay on top of another user's" "$(update over.qcow2)" "$full"
"$QVERITY" hash -q --rescan -p disk a.qcow2 >/dev/null
rm over.qcow2.qvtree
is "and of ours" "$(update over.qcow2)" "$overlay"
# The base's file then only holds nodes, which prove themselves.
chown 65534 a.qcow2.qvtree
is "nodes of anybody's" "$(update over.qcow2)" "$unchanged"

# The other way round: a user believes root, but no third one.
mkdir user
chown 65534 user
user() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
as_user() { user "$QVERITY" update --json -p disk "$@" 2>.err | sed -n 's/^  "\(root_hash\|method\)": "\(.*\)",/\2/p' | sort | tr '\n' ' '; }
cp a.qcow2 user/a.qcow2
chown 65534 user/a.qcow2
chmod 644 user/a.qcow2
"$QVERITY" hash -q -p disk user/a.qcow2 >/dev/null
is "a user believes root's" "$(stat -c %u user/a.qcow2.qvtree) $(as_user user/a.qcow2)" "0 $unchanged"
forge user/a.qcow2.qvtree
chown 1 user/a.qcow2.qvtree
is "not a third one's" "$(as_user user/a.qcow2)" "$full"
like "is told of it" "$(cat .err)" 'user/a.qcow2.qvtree: it belongs to user 1, so it is not believed$'
is "and has its own then" "$(stat -c %u user/a.qcow2.qvtree) $(as_user user/a.qcow2)" "65534 $unchanged"
is "which root does not believe" "$(update user/a.qcow2)" "$full"
finish
