#!/bin/bash
# SPDX-License-Identifier: MIT
# The image is edited through a writable mount. A guest boots verified from the overlay that came of it, and
# shows the edit; another one writes to the overlay itself; then it is committed to the image.
. "$(dirname "$0")/../functional/lib.sh"
. "$top/tests/guest/guest.sh"
guest_need_image
require qemu-img debugfs

root_of() { "$QVERITY" hash -q "$@" | awk '/^Root hash:/ { print $3 }'; }

# mount_over OPTION…: until it can be read
mount_over()
{
    "$QVERITY" mount -f "$@" mnt >>log 2>&1 &
    server=$!
    t_kill_later $server
    for ((i = 0; i < 200 * patience; i++)); do
        [ -e mnt/disk ] && return
        sleep 0.05
    done
    fail "mount $*"
    note "$(cat log)"
    finish
}

leave()
{
    fusermount3 -u mnt
    wait $server
    is "the mount ends well" $? 0
}

mkdir mnt
before=$(sha256sum "$guest_image")
mount_over --no-tree --overlay over.qcow2 "$guest_image"
old_root=$(cat mnt/root-hash)
printf 'edited through the mount \\l\n' >issue
cat >write <<'END'
#!/bin/sh
echo written by the guest >/written
sync
exec poweroff -f
END
chmod 755 write
ok "debugfs edits a file" bash -c "! debugfs -w -f - mnt/data 2>&1 >debugfs.out <<'END' | grep -v '^debugfs '
rm /etc/issue
write issue /etc/issue
write write /usr/local/sbin/write
END"
is "which is there" "$(debugfs -R 'cat /etc/issue' mnt/data 2>/dev/null)" "$(cat issue)"
new_root=$(cat mnt/root-hash)
[ "$new_root" != "$old_root" ]
is "the root hash follows" $? 0
leave
is "the image is as it was" "$(sha256sum "$guest_image")" "$before"
ok "qemu-img check finds nothing" qemu-img check -q -f qcow2 over.qcow2
is "the overlay has the mount's root hash" "$(root_of --no-tree over.qcow2)" "$new_root"

"$QVERITY" boot --no-tree over.qcow2 --accel tcg --kernel "$demo/vmlinuz" --initrd "$demo/initrd.img" \
    --memory 1G --append "$(guest_append qverity.check)" --until 'login:' --timeout $((900 * patience)) \
    --console console >stdout 2>stderr </dev/null
code=$?
is "a guest boots verified from the overlay" "$code" 0
[ $code -eq 0 ] || {
    guest_note
    note "$(cat stderr)"
}
like "shows the edit" "$(tr -d '\r' <console)" '^edited through the mount ttyS0'
like "and finds nothing wrong" "$(guest_lines)" 'qverity-check: status: dmverity: 0 [0-9]+ verity V'
like "with that root hash" "$(guest_lines)" "qverity-check: table: .* $new_root "

# QEMU on the overlay itself, for writing: the filesystem's journal and all that a mount writes.
line=$("$QVERITY" boot --no-verity --accel tcg --kernel "$demo/vmlinuz" --initrd "$demo/initrd.img" --memory 1G \
    --append 'console=ttyS0 root=/dev/sda2 rw no_timer_check init=/usr/local/sbin/write' --dry-run over.qcow2)
eval "argv=($line)"
for i in "${!argv[@]}"; do
    case ${argv[i]} in
    file=*/disk,*) argv[i]="file=$T/over.qcow2,if=none,id=disk0,format=qcow2" ;;
    esac
done
guest_run 'reboot: (Power down|System halted)' 600 "${argv[@]}"
is "a guest writes to the overlay and powers off" $? 0
ok "qemu-img check finds nothing afterwards" qemu-img check -q -f qcow2 over.qcow2

mount_over --no-tree --overlay over.qcow2 "$guest_image"
is "what the guest wrote is there" "$(debugfs -R 'cat /written' mnt/data 2>/dev/null)" "written by the guest"
guest_root=$(cat mnt/root-hash)
leave
cp "$guest_image" committed.qcow2
ok "qemu-img rebase to a copy" qemu-img rebase -u -F qcow2 -b committed.qcow2 over.qcow2
ok "qemu-img commit" qemu-img commit -q over.qcow2
is "the copy has the root hash of what was written" "$(root_of --no-tree committed.qcow2)" "$guest_root"
finish
