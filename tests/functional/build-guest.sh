#!/bin/bash
# SPDX-License-Identifier: MIT
# Steps in a guest, which is played: real SSH, real overlays, and a tree in place of a system that runs.
. "$(dirname "$0")/lib.sh"
. "$top/tests/functional/build-lib.sh"
require jq pgrep python3 ssh-keygen /usr/sbin/sshd

make_tree template
mkdir -p template/etc/ssh template/usr/sbin
cp template/bin/true template/usr/sbin/sshd
cp -a template guest
for program in sync uname readlink; do cp "$(type -P $program)" guest/bin/; done
cat >guest/bin/dpkg <<'END'
#!/bin/sh
echo "dpkg $* INITRD=${INITRD:-}" >>/packages.log
mkdir -p /lib/modules/1-new
: >/boot/vmlinuz-1-new
[ ! -e /vmlinuz ] || exit 0
ln -s boot/vmlinuz-1-new /vmlinuz
ln -s vmlinuz-1-new /boot/vmlinuz
ln -s /boot/vmlinuz-0-gone /vmlinuz.old
ln -s boot/initrd.img-0-old /initrd.img
END
cat >guest/bin/update-initramfs <<'END'
#!/bin/sh
echo "update-initramfs $* $SOURCE_DATE_EPOCH" >>/packages.log
: >/boot/initrd.img-1-new
END
chmod 755 guest/bin/dpkg guest/bin/update-initramfs
echo package >linux-image-new.deb
printf '#!/bin/sh\necho "$*" >>/fsfreeze.log\n' >guest/bin/fsfreeze
chmod 755 guest/bin/fsfreeze
cat >guest/bin/systemctl <<'END'
#!/bin/sh
echo "systemctl $*" >>/systemctl.log
case " $* " in *" poweroff "*) : >/poweroff ;; esac
END
chmod 755 guest/bin/systemctl
play_mmdebstrap
export QVERITY_QEMU=$top/tests/tools/fake-guest.py FAKE_GUEST_WORK=$T/work FAKE_GUEST_TREE=$T/guest FAKE_GUEST_MODE=
export TMPDIR=$T
echo '[Unit]' >some.service

# recipe COMMAND [TIMEOUT]
recipe()
{
    cat >r.yaml <<END
name: t
steps:
  - disk: 60M
    partitions: [{type: root}]
  - install: mmdebstrap
  - boot: {timeout: ${2:-60}}
  - run: [sh, -c, "echo first >>/runs; env >/environment"]
  - copy: [{to: /etc/new, content: "new\n", mode: 0600}, {from: dir, to: /etc/dir}]
  - name: second
    run: $1
  - service: some.service
  - fetch: {from: /runs}
  - shutdown: {timeout: 3}
  - seal
  - hash
END
}
mkdir -p dir/sub
echo deep >dir/sub/file
overlays()
{
    qemu-img info --backing-chain "$1" | grep -c '^image:'
}

# --- All of it ---

recipe '[sh, -c, "echo second >>/runs; echo to stderr >&2; exit 0"]'
build --accel tcg --work work --until shutdown r.yaml
is "a guest is set up" $? 0
[ ! -s err ] || [ "$(grep -c ' s$' err)" -gt 9 ] || note "$(tail -n 5 err)"
is "commands were run" "$(cat work/runs)" 'first
second'
is "with the environment that commands in trees have" \
    "$(grep -E '^(SOURCE_DATE_EPOCH|DEBIAN_FRONTEND)=' guest/environment | sort)" 'DEBIAN_FRONTEND=noninteractive
SOURCE_DATE_EPOCH=1700000000'
like "their output is told" "$(cat err)" '^    to stderr$'
is "files were copied" "$(cat guest/etc/new guest/etc/dir/sub/file)" 'new
deep'
is "with their modes" "$(stat -c %a guest/etc/new)" 600
is "units were put in place and enabled" "$(cat guest/etc/systemd/system/some.service guest/systemctl.log | head -n 3)" '[Unit]
systemctl daemon-reload
systemctl enable some.service'
is "each step has an overlay of its own" "$(overlays work/steps/10-shutdown/disk.qcow2)" 7
is "no guest is left" "$(guests)" ''
is "the key is the owner's alone" "$(stat -c %a work/key work/host-key | tr '\n' ' ')" '600 600 '
is "and in no log" "$(grep -rlF -e "$(sed -n 2p work/key | cut -c 150-200)" work/steps/*/log work/steps/*/state.json err)" ''
public=$(ssh-keygen -y -f work/key | cut -d ' ' -f 2)
host=$(sed -n 2p work/host-key | cut -c 150-200)
qemu-img convert -O raw work/steps/10-shutdown/disk.qcow2 before.raw
is "the image has the key, and the host's" "$(grep -acF -e "$public" -e "$host" before.raw)" 2

build --accel tcg --work work r.yaml
is "the image is sealed" "$? $(grep -c 'done already' err)" '0 10'
[ -s out ] || note "$(tail -n 3 err)"
qemu-img convert -O raw work/disk.qcow2 after.raw
is "the sealed image has none of them" "$(grep -acF -e "$public" -e "$host" after.raw)" 0
is "nor has the work directory a key" "$(find work -maxdepth 1 -name '*key*')" ''
dd if=after.raw of=root.raw bs=1M skip=1 count=58 status=none
ok "its file system is sound" e2fsck -fn root.raw
is "its files are the tree's" "$(debugfs -R 'cat /etc/passwd' root.raw 2>/dev/null)" "$(cat template/etc/passwd)"
is "nobody may log in" "$(debugfs -R 'ls -p /root/.ssh' root.raw 2>/dev/null | grep -c authorized)" 1
is "as the list of keys is empty" "$(debugfs -R 'cat /root/.ssh/authorized_keys' root.raw 2>/dev/null)" ''
same "the partition table is what it was" <(head -c 1048576 before.raw) <(head -c 1048576 after.raw)
is "the file system's UUID, too" "$(dumpe2fs -h root.raw 2>/dev/null | grep UUID)" \
    "$(dd if=before.raw of=b.raw bs=1M skip=1 count=58 status=none; dumpe2fs -h b.raw 2>/dev/null | grep UUID)"
"$QVERITY" build --json --accel tcg --work work r.yaml >out 2>/dev/null
like "what was removed is told" "$(jq -r '.removed[].what' out | tr '\n' ' ')" 'SSH keys'

# --- A kernel ---

cat >kernel.yaml <<'END'
name: t
steps:
  - disk: 60M
    partitions: [{type: root}]
  - install: mmdebstrap
  - boot
  - {name: first, debs: linux-image-new.deb}
  - initramfs
  - debs: linux-image-new.deb
  - shutdown
END
rm guest/fsfreeze.log
FAKE_GUEST_WORK=$T/kernel build --accel tcg --work kernel kernel.yaml
is "a kernel's packages are installed" $? 0
# Once at the end of boot, and of each step that changes the guest.
is "and written to where a boot loader finds them" "$(sort guest/fsfreeze.log | uniq -c | tr -s ' ')" ' 4 --freeze /
 4 --freeze /boot
 4 --unfreeze /
 4 --unfreeze /boot'
is "in this order" "$(head -n 4 guest/fsfreeze.log | tr '\n' ' ')" '--freeze / --unfreeze / --freeze /boot --unfreeze /boot '
# It may be booted before a step makes another: when the build is killed there, and goes on.
is "which make their initramfs" "$(cut -d ' ' -f 1-2,4- guest/packages.log)" 'dpkg --install INITRD=
update-initramfs -c 1-new 1700000000
dpkg --install INITRD='
is "and a kernel's links have their initrds" "$(readlink guest/initrd.img guest/boot/initrd.img guest/initrd.img.old)" \
    'boot/initrd.img-1-new
initrd.img-1-new'
rm -rf kernel guest/poweroff guest/initrd.img*

# --- A key that nobody thought of ---

cat >leak.yaml <<'END'
name: t
steps:
  - disk: 60M
    partitions: [{type: root}]
  - install: mmdebstrap
  - boot
  - shutdown
  - seal
END
sed -i 's/    r = make/&/' leak.yaml
ok "a build up to its seal" "$QVERITY" build --accel tcg --work work --until shutdown leak.yaml
ssh-keygen -y -f work/key >stray
rm -f image
ln -s "$(ls -d work/steps/*shutdown)/disk.qcow2" image
mkdir mnt
"$QVERITY" mount --overlay stray.qcow2 -p 1 "$(readlink image)" mnt
debugfs -w -R "write stray /etc/stray" mnt/data 2>/dev/null
fusermount3 -u mnt
for ((i = 0; i < 50 * patience; i++)); do
    qemu-img info stray.qcow2 >/dev/null 2>&1 && break
    sleep 0.1
done
qemu-img commit -q stray.qcow2
build --accel tcg --work work leak.yaml
is "a key in some other file" $? 1
like "is found" "$(tail -n 1 err)" "step 6 \(seal\): /etc/stray: holds the build's SSH key; name it in the step's remove"
is "and nothing is shipped" "$(find work -maxdepth 1 -name disk.qcow2 -newer stray)" ''
sed -i 's|- seal|- seal: {remove: [/etc/stray]}|' leak.yaml
build --accel tcg --work work leak.yaml
is "named, it is removed" "$? $(qemu-img convert -O raw work/disk.qcow2 l.raw && grep -acF "$(cut -d ' ' -f 2 stray)" l.raw)" '0 0'

# --- Failures ---

recipe '[sh, -c, "echo it broke >&2; exit 7"]'
rm -rf work guest/runs
build --accel tcg --work work r.yaml
is "a command that fails" $? 1
like "fails its step" "$(tail -n 1 err)" "r.yaml:9: step 7 \(second\): sh -c '.*' exited with 7: it broke \(log: "
is "and leaves no guest" "$(guests)" ''
recipe '[sh, -c, "echo second >>/runs; echo again >&2"]'
build --accel tcg --work work r.yaml
is "mended, the build goes on there, in a guest that boots once more" \
    "$? $(grep -c 'done already' err) $(grep -c 'booting once more' err)" '0 6 1'
is "and comes to its end" "$(cat work/runs)" 'first
second'

# fails DESCRIPTION MODE REGEX: from the boot step on. An emulated guest may take long until it answers, and so
# may this one on a busy machine: only the one that never does is given little time.
fails()
{
    FAKE_GUEST_MODE=$2 build --accel tcg --work work --from boot r.yaml
    is "$1: exit" $? 1
    like "$1: the cause" "$(tail -n 1 err)" "$3"
    is "$1: nothing is left" "$(guests)" ''
}
recipe '[sh, -c, "echo second >>/runs"]'
fails "a kernel that panics" panic "step 4 \(boot\): the guest's kernel panicked: Kernel panic - not syncing: no such luck"
fails "a QEMU that fails" dies 'step 4 \(boot\): .*it broke'
fails "a guest that powers off" off 'step 4 \(boot\): the guest powered off.*; the last line of its console: booting'
recipe '[sh, -c, "echo second >>/runs"]' 4
fails "a guest that never answers" no-ssh 'step 4 \(boot\): SSH did not answer within 4 seconds: timeout; the last line of the guest.s console: login:'
recipe '[sh, -c, "echo second >>/runs"]'
fails "another host key" other-key 'step 4 \(boot\): SSH: what answers does not have the host key that was put into the system'
fails "a key that is not known" no-login "step 4 \(boot\): SSH: the guest does not let the user root in"
fails "a QEMU that ends when the disk changes" falls 'step 5 \(run.*\): making an overlay: .*/05-run/disk.qcow2: .*it fell'
fails "a guest that does not power off" hangs 'step 10 \(shutdown\): the guest did not power off within 3 seconds'
QVERITY_QEMU=/nonexistent fails "no QEMU" '' 'step 4 \(boot\): /nonexistent: cannot run'

rm -f guest/poweroff
# What QEMU was asked and has not answered when the build ends is forgotten in good order.
ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_stack_use_after_return=1 FAKE_GUEST_MODE=stuck \
    setsid "$QVERITY" build --accel tcg --work work --from boot r.yaml >out 2>err </dev/null &
pid=$!
for ((i = 0; i < 600 * patience; i++)); do
    [ ! -e guest/stuck ] || break
    sleep 0.1
done
kill -INT $pid
wait $pid
is "interrupted while QEMU changes the disk, the build ends" $? 1
like "and says where" "$(tail -n 1 err)" 'step 5 \(run.*\): making an overlay: .*: interrupted'
is "with no guest left" "$(guests)" ''

recipe "[sleep, '$nap']
    timeout: 2"
build --accel tcg --work work r.yaml
like "a command that takes too long" "$(tail -n 1 err)" 'step 7 \(second\): sleep: still ran after 2 seconds'
recipe '[sh, -c, "kill -9 $$"]'
build --accel tcg --work work r.yaml
is "a command that is killed" "$? $(tail -n 1 err | grep -cE 'step 7 \(second\): sh.*(SIGKILL|ended without a status)')" '1 1'
recipe '[no-such-program]'
build --accel tcg --work work r.yaml
like "a program that is not there" "$(tail -n 1 err)" "no-such-program exited with 127: env: .*no-such-program"

# --- Killed ---

recipe "[sh, -c, 'echo second >>/runs; exec sleep $nap']"
"$QVERITY" build --accel tcg --work work r.yaml >out 2>err </dev/null &
pid=$!
for ((i = 0; i < 200 * patience; i++)); do
    pgrep -f "sleep $nap" >/dev/null && break
    sleep 0.1
done
kill -9 $pid
wait $pid 2>/dev/null
is "a build that is killed leaves no guest" "$(guests)" ''
pkill -f "sleep $nap"
recipe '[sh, -c, "echo second >>/runs"]'
build --accel tcg --work work r.yaml
is "and goes on at that step" "$? $(grep -c 'done already' err)" '0 6'
finish
