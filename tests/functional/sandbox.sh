#!/bin/bash
# SPDX-License-Identifier: MIT
# Confinement: what code can do that got into the process through a hole in a parser. The hole is a library
# that takes the place of libdeflate's decompressor.
. "$(dirname "$0")/lib.sh"

require mkfs.ext4 qemu-img qemu-io fusermount3 jq prlimit python3 setpriv
tools=${QVERITY_TOOLS:-$top/build/tests/tools}
hole=$tools/planted-hole.so
[ -e "$hole" ] || skip_all "planted-hole was not built"

# Which keep the host's kernel, and what it can, apart.
head -c 300k /dev/urandom | base64 -w 0 >text
truncate -s 1M text
qemu-img convert -c -f raw -O qcow2 text image.qcow2
cp image.qcow2 other.qcow2
mkdir text.d
cp text text.d/
echo secret >victim

if nm -D "$QVERITY" 2>/dev/null | grep -qE '__(asan|tsan)_init'; then
    "$QVERITY" -v -v hash -p disk --no-tree image.qcow2 >/dev/null 2>err
    like "a build with a sanitizer is not confined, and says so" "$(cat err)" 'not confined: built with a sanitizer'
    finish
fi

"$QVERITY" -v hash -p disk --no-tree image.qcow2 >/dev/null 2>err
! grep -q 'not confined' err || skip_all "$(sed -n 's/^qverity: //p' err)"

# attack NAME COMMAND…: runs it with the hole; what the attacker did is in err
attack()
{
    local name=$1
    shift
    LD_PRELOAD=$hole "$@" >out 2>err </dev/null
    is "$name: exit status" $? 0
    is "$name: the hole was there" "$(grep -c '^hole: end' err)" 1
}

root_in()
{
    sed -n 's/^Root hash:[[:space:]]*//p' "$1"
}

contained()
{
    is "$1: nothing that an attacker tried was done" "$(grep '^hole: .*: done$' err)" ""
    ok "$1: he tried much" [ "$(grep -c '^hole: .*: refused: ' err)" -ge 25 ]
    ok "$1: it is told" grep -qx 'qverity: warning: confinement: openat was refused: /etc/passwd' err
    is "$1: and did no harm" "$(cat victim; find . -name 'evil*')" secret
}

# --- Without confinement all of it is possible: the attacks are real ---

for attack in "read /etc/passwd" "read it by another name" "list a directory" "write to it" "create a file" "rename a file" \
    "run a program" "fork" "make a Unix socket" "make a TCP socket" "make code"; do
    [ -e out.plain ] || {
        attack "not confined" "$QVERITY" hash -p disk --no-tree --no-sandbox image.qcow2
        cp err out.plain
    }
    like "not confined: $attack" "$(grep "^hole: $attack:" out.plain)" 'done$'
done
rm -rf evil*
echo secret >victim
chmod 600 victim

# --- Every command that looks into images ---

expected=$("$QVERITY" hash -p disk --no-tree --no-sandbox image.qcow2 | sed -n 's/^Root hash:[[:space:]]*//p')
attack "hash" "$QVERITY" hash -p disk image.qcow2
contained "hash"
is "hash: the root hash" "$(root_in out)" "$expected"
ok "hash: its tree file was written" [ -s image.qcow2.qvtree ]
attack "hash, with a tree file" "$QVERITY" hash -p disk --rescan image.qcow2
contained "hash, with a tree file"
attack "hash --write" "$QVERITY" hash -p disk --no-tree --write hash.img image.qcow2
contained "hash --write"
attack "verify" "$QVERITY" verify -p disk --root-hash "$expected" --hash-device hash.img image.qcow2
contained "verify"
attack "read" "$QVERITY" read image.qcow2 0 1M
contained "read"
same "read: the bytes" out text
# A whole disk is mapped without looking into it.
truncate -s 4M table.raw
echo 'label: gpt
size=1M' | sfdisk -q table.raw
qemu-img convert -c -f raw -O qcow2 table.raw table.qcow2
attack "map" "$QVERITY" map -p 1 table.qcow2
contained "map"
attack "info" "$QVERITY" info image.qcow2
contained "info"
rm -f other.qcow2.qvtree image.qcow2.qvtree
attack "diff" "$QVERITY" diff -p disk image.qcow2 other.qcow2
contained "diff"
attack "update" "$QVERITY" update -p disk --rescan image.qcow2
contained "update"

# Files inside an image that is compressed
truncate -s 8M fs.raw
mkfs.ext4 -q -F -d text.d fs.raw
qemu-img convert -c -f raw -O qcow2 fs.raw fs.qcow2
for command in ls stat cat; do
    attack "$command" "$QVERITY" $command fs.qcow2:/text
    contained "$command"
done
same "cat: the bytes" out text

# --- What works as it did: nothing is refused ---

calm()
{
    local name=$1
    shift
    "$QVERITY" "$@" >/dev/null 2>err
    is "$name: nothing is refused" "$(grep confinement: err)" ""
}

calm "info" info fs.qcow2
calm "hash" hash -p disk --rescan image.qcow2
calm "hash, sha512" hash -p disk --rescan --hash sha512 image.qcow2
calm "hash, whirlpool" hash -p disk --rescan --hash whirlpool image.qcow2
calm "hash, after whirlpool" hash -p disk --rescan image.qcow2
calm "hash --write" hash -p disk --no-tree --write calm.img image.qcow2
calm "update" update -p disk image.qcow2
calm "verify" verify -p disk --root-hash "$expected" --hash-device hash.img image.qcow2
calm "ls" ls -lR fs.qcow2:/

# --- Names of descriptors are the process's own ---

"$QVERITY" hash -q -p disk --no-tree --write /dev/stdout image.qcow2 >stdout.img 2>err
"$QVERITY" hash -q -p disk --no-tree --no-sandbox --write /dev/stdout image.qcow2 >stdout.plain
same "hash --write /dev/stdout" stdout.img stdout.plain
same "which has the hash device, behind what is printed" <(tail -c +4097 stdout.img) <(tail -c +4097 calm.img)
"$QVERITY" hash -q -p disk --no-tree --write /dev/fd/7 image.qcow2 7>fd.img >/dev/null 2>>err
same "hash --write /dev/fd/7" fd.img calm.img
for name in /dev/stdin /dev/fd/8 /proc/self/fd/8; do
    "$QVERITY" verify -q -p disk --root-hash "$expected" --hash-device $name image.qcow2 <calm.img 8<calm.img >/dev/null 2>>err
    is "verify --hash-device $name" $? 0
done
is "nobody is told of an attack" "$(cat err)" ""
refused "for no more than they are open for" 1 '/dev/fd/7.*: Permission denied' bash -c \
    'exec "$0" hash -q -p disk --no-tree --write /dev/fd/7 image.qcow2 7<calm.img' "$QVERITY"
refused "and only if they are open" 1 '/proc/self/fd/99.*No such file' \
    "$QVERITY" hash -q -p disk --no-tree --write /proc/self/fd/99 image.qcow2
"$QVERITY" hash -q -p disk /dev/fd/7 7<image.qcow2 >out
is "no tree file is kept beside a descriptor" "$(root_in out) $(ls /dev/fd/*.qvtree /dev/*.qvtree 2>/dev/null)" "$expected "

# --- No process is left to others ---

# As the first process of a container would have them to wait for.
is "none is left to wait for" "$(python3 - "$QVERITY" hash -q -p disk --no-tree image.qcow2 <<'PYTHON'
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
try:
    print(os.waitpid(-1, 0))
except ChildProcessError:
    print("none")
PYTHON
)" none

# --- A mount ---

# mount_and_read OPTION…: in the foreground, so that there is a place to tell
mount_and_read()
{
    mkdir -p mnt
    LD_PRELOAD=$hole "$QVERITY" mount -f -p disk --no-tree "$@" image.qcow2 mnt >out 2>err </dev/null &
    server=$!
    t_kill_later $server
    for ((i = 0; i < 200 * patience; i++)); do
        [ ! -e mnt/disk ] || break
        sleep 0.05
    done
}

mount_and_read
same "mount: the bytes" mnt/disk text
is "mount: the root hash" "$(cat mnt/root-hash)" "$expected"
same "mount: the hash device" mnt/hash hash.img
is "mount: no capability but one" "$(sed -n 's/^CapEff:[[:space:]]*//p; s/^CapPrm:[[:space:]]*//p; s/^CapBnd:[[:space:]]*//p' /proc/$server/status | sort -u | grep -vcx -e 0000000000000000 -e 0000000000004000)" 0
is "mount: no new privileges" "$(sed -n 's/^NoNewPrivs:[[:space:]]*//p' /proc/$server/status)" 1
is "mount: a filter" "$(sed -n 's/^Seccomp:[[:space:]]*//p' /proc/$server/status)" 2
is "mount: the broker has nothing of the image" "$(find /proc/"$(pgrep -P $server -x qverity-broker)"/fd -lname '*image*' | wc -l)" 0
broker=$(pgrep -P $server -x qverity-broker)
kill -TERM $server
wait $server
is "mount: SIGTERM ends and unmounts it" "$? $(grep -c " $T/mnt " /proc/mounts)" "0 0"
for ((i = 0; i < 100 * patience; i++)); do
    [ -d "/proc/$broker" ] || break
    sleep 0.05
done
ok "mount: the broker ends with it" [ ! -d "/proc/$broker" ]

is "mount: two processes had the hole" "$(grep -c '^hole: end' err)" 2
contained "mount"

# Without a hash device all of it is read before anything is mounted, by a process that ends then.
mount_and_read --verify-root-hash "$expected"
same "verified mount: the bytes" mnt/disk text
same "verified mount: the hash device" mnt/hash hash.img
kill -TERM $server
wait $server
is "verified mount: SIGTERM ends and unmounts it" "$? $(grep -c " $T/mnt " /proc/mounts)" "0 0"
is "verified mount: three processes had the hole" "$(grep -c '^hole: end' err)" 3
contained "verified mount"

# --- Kernels that have less ---

attack "without Landlock, hash" "$tools/without-landlock" "$QVERITY" -v hash -p disk --rescan image.qcow2
contained "without Landlock, hash"
like "without Landlock, hash: it is told" "$(cat err)" "the kernel has no Landlock: $(python3 -c 'import errno, os; print(os.strerror(errno.ENOSYS))')"
is "without Landlock, hash: the root hash" "$(root_in out)" "$expected"

# Nothing can be kept from him then, and all else works.
for less in notifications "landlock notifications" seccomp; do
    name="without ${less/ /, }"
    read -r -a words <<<"$less"
    attack "$name, hash" "${words[@]/#/$tools/without-}" "$QVERITY" -v hash -p disk --rescan image.qcow2
    like "$name, hash: it is told" "$(cat err)" '^qverity: not confined: no seccomp notifications here$'
    like "$name, hash: the attacks are real" "$(cat err)" '^hole: read /etc/passwd: done$'
    is "$name, hash: the root hash" "$(root_in out)" "$expected"
    rm -rf evil*
    echo secret >victim
    chmod 600 victim
done

# Where there is too little of something for a moment, nothing is read by who should be confined.
refused "without threads, info" 1 '^qverity: confinement: seccomp: Resource temporarily unavailable$' \
    "$tools/without-threads" "$QVERITY" info image.qcow2

confined=
for ((limit = 4; limit < 20; limit++)); do
    if prlimit --nofile=$limit "$QVERITY" -v info image.qcow2 >out 2>err; then
        confined=y
        is "with $limit descriptors, info: it is confined" "$(grep 'not confined' err)" ""
    else
        like "with $limit descriptors, info: an error" "$(tail -n 1 err)" '(Too many open files|error while loading shared libraries)'
    fi
done
is "with enough of them it is done" "$confined" y

# without_mount LIBRARY LESS…: mounts and reads, with the library preloaded
without_mount()
{
    local library=$1
    shift
    LD_PRELOAD=$library "${@/#/$tools/without-}" "$QVERITY" -v mount -f -p disk --no-tree image.qcow2 mnt >out 2>err </dev/null &
    server=$!
    t_kill_later $server
    until_true 30 [ -e mnt/disk ]
    is "without $*, mount: the root hash" "$(cat mnt/root-hash)" "$expected"
    kill -TERM $server
    wait $server
    is "without $*, mount: SIGTERM ends and unmounts it" "$? $(grep -c " $T/mnt " /proc/mounts)" "0 0"
}

# A filter on a process without rights keeps fusermount3 from becoming root.
if [ "$(id -u)" -eq 0 ]; then
    without_mount "$hole" landlock
    contained "without landlock, mount"
    # Without the hole: an attacker who becomes another user cannot unmount any more.
    without_mount "" landlock notifications
fi

# --- As a user who is not root ---

if [ "$(id -u)" -eq 0 ]; then
    chmod 777 .
    chmod 644 image.qcow2
    rm -f out err user.qvtree
    LD_PRELOAD=$hole setpriv --reuid 65534 --regid 65534 --clear-groups -- \
        "$QVERITY" hash -p disk --tree user.qvtree image.qcow2 >"$T/user.out" 2>err
    is "a plain user: exit status" $? 0
    is "a plain user: nothing that an attacker tried was done" "$(grep '^hole: .*: done$' err)" ""
    is "a plain user: the root hash" "$(root_in user.out)" "$expected"
    ok "a plain user: the tree file" [ -s user.qvtree ]
fi

finish
