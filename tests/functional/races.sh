#!/bin/bash
# SPDX-License-Identifier: MIT
# Images that change while they are read, without QEMU's locks, and commands that meet on one image. Nobody can say
# what is read then; but no root hash is of bytes that were never there, nothing is believed afterwards that
# is not so any more, and nothing crashes or hangs. RACES=100 tries more moments.
. "$(dirname "$0")/lib.sh"

require qemu-img qemu-io veritysetup fusermount3 mke2fs
zeros=$(printf '0%.0s' {1..64})
size=$((24 << 20))

of_bytes()
{
    veritysetup format --salt "$zeros" "$1" hashes | sed -n 's/^Root hash: *\t//p'
}

root_in()
{
    sed -n 's/^Root hash:[[:space:]]*//p' "$1"
}

head -c $size /dev/urandom >first
head -c $size /dev/urandom >second
head -c $((size / 2)) first >half
cat first half >grown
for name in first second half grown; do
    declare "root_$name=$(of_bytes $name)"
done

# --- A file that changes ---

# What the file is afterwards
replace() { cp second new && mv new disk; after=$root_second; }
truncated() { truncate -s $((size / 2)) disk; after=$root_half; }
grow() { cat half >>disk; after=$root_grown; }
forbid() { chmod 0 disk; after=$root_first; }

# changed_while COMMAND CHANGE DELAY: stops the command after a while, changes the file, lets it go on
changed_while()
{
    local code state
    rm -f disk disk.qvtree
    cp first disk
    "$QVERITY" "$1" -p disk --threads 1 disk >out 2>err &
    local pid=$!
    sleep "$3"
    kill -STOP $pid 2>/dev/null
    state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' /proc/$pid/status 2>/dev/null)
    [ "$state" != T ] || stopped=$((stopped + 1))
    $2
    kill -CONT $pid 2>/dev/null
    wait $pid
    code=$?
    case $code in
    0) like "$1, $2 after $3 s: a root hash of what was there" "$(root_in out)" "^($root_first|$after)$" ;;
    *) is "$1, $2 after $3 s: one error" "$code $(grep -c '^qverity: disk: ' err)" "1 1" ;;
    esac
    chmod 644 disk
    "$QVERITY" "$1" -p disk disk >out 2>err
    is "$1, $2 after $3 s: the next one is right" "$(root_in out)" "$after"
}

stopped=0
for ((i = 0; i < ${RACES:-3}; i++)); do
    delay=$(printf 0.%03d $(((i * 17) % 60 + 5)))
    for change in replace truncated grow forbid; do
        changed_while "hash" $change $delay
        changed_while update $change $delay
    done
done
note "$stopped commands were stopped at work"

# --- A file that changes below a mount ---

mkdir mnt two
mounted()
{
    rm -f disk disk.qvtree
    cp first disk
    "$QVERITY" mount -p disk disk mnt || return 1
    head -c 1M mnt/disk | cmp - <(head -c 1M first)
}

# The part that is not cached: the first half was.
ok "mounted" mounted
replace
same "replaced: the mount keeps the file that it opened" mnt/disk first
fusermount3 -u mnt
ok "mounted again" mounted
truncated
is "truncated: the size stays" "$(stat -L -c %s mnt/disk)" $size
ok "truncated: what is left can be read" cmp -n $((size / 4)) mnt/disk first
tail -c 4096 mnt/disk >tail 2>err
is "truncated: what is gone is an error, and no zeros" "$? $(stat -c %s tail)" "1 0"
ok "truncated: there is no root hash" [ -z "$(cat mnt/root-hash 2>/dev/null)" ]
fusermount3 -u mnt
ok "mounted again" mounted
grow
is "grown: the size stays" "$(stat -L -c %s mnt/disk)" $size
same "grown: the bytes do" mnt/disk first
fusermount3 -u mnt
ok "mounted again" mounted
forbid
same "forbidden: what is open can be read" mnt/disk first
is "forbidden: and hashed" "$(cat mnt/root-hash)" "$root_first"
fusermount3 -u mnt
chmod 644 disk

# --- Two commands at once ---

# both "COMMAND" "COMMAND": each is right
both()
{
    local command i
    local -a pids=()
    rm -f disk.qvtree
    for i in 0 1; do
        command=("$1" "$2")
        # shellcheck disable=SC2086
        "$QVERITY" ${command[i]} disk >"out$i" 2>"err$i" &
        pids+=($!)
    done
    for i in 0 1; do
        wait "${pids[i]}"
        is "$1 and $2: exit status ${i}" $? 0
        case ${command[i]} in
        hash* | update*) is "$1 and $2: root hash $i" "$(root_in "out$i")" "$root_first" ;;
        esac
    done
    "$QVERITY" hash -p disk disk >out 2>err
    is "$1 and $2: what they left" "$(root_in out)" "$root_first"
}

rm -f disk
cp first disk
verify="verify -p disk --root-hash $root_first"
both "hash -p disk" "hash -p disk"
both "hash -p disk" "update -p disk"
both "update -p disk" "update -p disk --rescan"
both "$verify" "$verify"
both "info" "map"

"$QVERITY" mount -p disk disk mnt &
"$QVERITY" mount -p disk disk two
wait $!
is "two mounts at once" "$(cat mnt/root-hash two/root-hash | sort -u)" "$root_first"
"$QVERITY" hash -p disk --rescan disk >out
is "and hash besides" "$(root_in out)" "$root_first"
fusermount3 -u two
fusermount3 -u mnt

# Each of the others, twice at once: both do it, and say the same. For @ stands which of the two it is.
mkdir tree
head -c 300k first >tree/file
mke2fs -q -t ext4 -d tree fs.raw 16M
qemu-img convert -f raw -O qcow2 fs.raw twice.qcow2
qemu-img create -q -f qcow2 -b twice.qcow2 -F qcow2 over.qcow2
qemu-io -f qcow2 -c 'write -q 8M 64k' over.qcow2
root_fs=$(of_bytes fs.raw)
for command in "info twice.qcow2" "map twice.qcow2" "read twice.qcow2 1024 4096" "ls -R twice.qcow2:/" \
    "cat twice.qcow2:/file" "stat twice.qcow2:/file" "cp twice.qcow2:/file copy@" "hash -p disk over.qcow2" \
    "update -p disk over.qcow2" "diff twice.qcow2 over.qcow2" "verify -p disk --root-hash $root_fs twice.qcow2" \
    "track twice.qcow2 on" "update -p disk twice.qcow2" "track twice.qcow2 off"; do
    pids=()
    for i in 0 1; do
        # shellcheck disable=SC2086
        "$QVERITY" ${command//@/$i} >"out$i" 2>"err$i" &
        pids+=($!)
    done
    wait "${pids[0]}"
    code=$?
    wait "${pids[1]}"
    code+=" $?"
    case $command in
    diff*) is "$command, twice: exit status" "$code" "3 3" ;;
    track*)
        # It writes to the image; the other one may be told that it is in use.
        like "$command, twice: one does it" "$code" "^(0 [01]|1 0)$"
        is "$command, twice: what they say" "$(cat err0 err1 | grep -v 'twice.qcow2: in use: another process')" ""
        continue
        ;;
    *) is "$command, twice: exit status" "$code" "0 0" ;;
    esac
    is "$command, twice: what they say" "$(cat err0 err1)" ""
    case $command in
    # One of them found it done.
    update*) ;;
    *) same "$command, twice: what they print" out0 out1 ;;
    esac
done
same "both copies are right" copy0 tree/file
same "and the other" copy1 tree/file
ok "the image is well" qemu-img check -q twice.qcow2

# --- QEMU's locks and a mount's ---

qemu-img convert -f raw -O qcow2 first disk.qcow2
"$QVERITY" mount -p disk disk.qcow2 mnt
ok "QEMU reads what is mounted" qemu-io -r -f qcow2 -c 'read 0 4k' disk.qcow2
like "and does not write to it" "$(qemu-io -f qcow2 -c 'write 0 4k' disk.qcow2 2>&1)" 'Failed to get "write" lock'
fusermount3 -u mnt
# What served it lets go of it a moment after it was unmounted.
ok "the mount's locks go" until_true 30 qemu-io -f qcow2 -c 'read 0 4k' disk.qcow2
coproc QEMU { exec qemu-io -f qcow2 disk.qcow2 2>&1; }
# Its answer tells that it has the image.
echo 'write 0 4k' >&"${QEMU[1]}"
read -r -t 30 <&"${QEMU[0]}"
for command in "hash -p disk" "update -p disk" "info" "map"; do
    # shellcheck disable=SC2086
    "$QVERITY" $command disk.qcow2 >out 2>err
    is "$command: what QEMU writes to is not read" "$? $(grep -c 'disk.qcow2.*in use' err)" "1 1"
done
"$QVERITY" mount -p disk disk.qcow2 mnt 2>err
is "nor mounted" $? 1
echo quit >&"${QEMU[1]}"
wait $!
finish
