#!/bin/bash
# SPDX-License-Identifier: MIT
# `boot` of an image that changes meanwhile without QEMU's locks, several boots of one image, and the locks. What a
# guest reads is what was there when the image was opened, or an error, and nothing is left behind. RACES=100
# tries more moments.
. "$(dirname "$0")/lib.sh"
. "$here/boot-lib.sh"

require qemu-img qemu-io
head -c 4M /dev/urandom >first
head -c 4M /dev/urandom >second
head -c 2M first >half
cat first half >grown

# What the guest said of its disks: "qverity-disk DIGEST", "qverity-hash DIGEST"
disks_in() { tr -d '\r' <"$1" | grep -E '^[a-z]+[a-z0-9-]* [0-9a-f]{64}$'; }

# What each state of the image is to a guest.
for name in first second half grown; do
    cp $name disk.raw
    guest "disks" "end guest-shutdown"
    ok "the disks of $name" boot 0 '^$'
    disks_in out >"$name.disks"
    is "$name: two disks, the first one's bytes" "$(wc -l <$name.disks) $(head -n 1 $name.disks | cut -d' ' -f2)" \
        "2 $(sha256sum $name | cut -d' ' -f1)"
done

replace() { cp second new && mv new disk.raw; after=second; }
truncated() { truncate -s 2M disk.raw; after=half; }
grow() { cat half >>disk.raw; after=grown; }
forbid() { chmod 0 disk.raw; after=first; }
delete() { rm disk.raw; after=; }

# --- While the guest runs, which has read nothing ---

for change in replace grow forbid delete truncated; do
    rm -f disk.raw go
    cp first disk.raw
    guest 'say up\n' "await go" "disks" "end guest-shutdown"
    start
    ok "$change: the guest is up" await '^up' out
    $change
    : >go
    if [ $change = truncated ]; then
        ends 1 'exit status 1' >ended # and says more than one line
        like "$change: the guest cannot read what is gone" "$(cat err)" '^qverity: disk: disk.raw: the file ends before'
        like "$change: which ended it" "$(cat err)" 'ended with exit status 1'
        is "$change: and read no zeros" "$(disks_in out)" ""
    else
        ok "$change: the guest ends as ever" ends 0 '^$'
        disks_in out >disks
        same "$change: it read what was opened" disks first.disks
    fi
    ok "$change: nothing is left" clean
done

# --- At any moment ---

boots=0 failures=0
for ((i = 0; i < ${RACES:-4}; i++)); do
    for change in replace truncated grow forbid delete; do
        rm -f disk.raw
        cp first disk.raw
        guest "disks" "end guest-shutdown"
        start
        sleep "$(printf 0.%03d $(((i * 37) % 160 + 5)))"
        $change
        if ends 0 '^$' >ended; then
            boots=$((boots + 1))
            disks_in out >disks
            if cmp -s disks first.disks || { [ -n "$after" ] && cmp -s disks $after.disks; }; then
                pass "$change, moment $i: what was there"
            else
                fail "$change, moment $i: the guest read what was never there"
                note "$(cat disks)"
            fi
        else
            failures=$((failures + 1))
            # A message that names the image, or the guest that could not read.
            like "$change, moment $i: an error" "$(cat err)" "^qverity: .*(disk.raw|exit status 1)"
        fi
        ok "$change, moment $i: nothing is left" clean
    done
done
note "$boots boots went well, $failures ended with an error"

# --- Several of one image ---

rm -f disk.raw
cp first disk.raw
guest "disks" "end guest-shutdown"
for i in 1 2 3; do
    "$QVERITY" boot "${boot_args[@]}" >"out$i" 2>"err$i" </dev/null &
    pids[i]=$!
done
"$QVERITY" hash -q --no-tree -p disk --format raw disk.raw >hash.out
is "hash besides" $? 0
for i in 1 2 3; do
    wait "${pids[i]}"
    is "boot $i of three" "$? $(cat "err$i")" "0 "
    disks_in "out$i" >disks
    same "boot $i of three: its disks" disks first.disks
done
ok "nothing is left of them" clean

# --- QEMU's locks ---

qemu-img convert -f raw -O qcow2 first disk.qcow2
boot_args=(disk.qcow2 -p disk --no-tree --kernel vmlinuz --accel tcg)
rm -f go
guest 'say up\n' "await go" "end guest-shutdown"
start
ok "of a qcow2 image" await '^up' out
ok "QEMU reads what is booted" qemu-io -r -f qcow2 -c 'read 0 4k' disk.qcow2
like "and does not write to it" "$(qemu-io -f qcow2 -c 'write 0 4k' disk.qcow2 2>&1)" 'Failed to get "write" lock'
: >go
ok "it ends" ends 0 '^$'
ok "and lets go of the image" until_true 30 qemu-io -f qcow2 -c 'write 0 4k' disk.qcow2
coproc QEMU { exec qemu-io -f qcow2 disk.qcow2 2>&1; }
# Its answer tells that it has the image.
echo 'write 0 4k' >&"${QEMU[1]}"
read -r -t 30 <&"${QEMU[0]}"
guest "end guest-shutdown"
ok "what QEMU writes to is not booted" boot 1 'disk.qcow2.*in use'
echo quit >&"${QEMU[1]}"
wait $!
ok "nothing is left" clean
finish
