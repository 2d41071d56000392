#!/bin/bash
# SPDX-License-Identifier: MIT
# Installing from an ISO, with an installer that is played, and from a cloud image: what they are told, and by
# whom it can be read.
. "$(dirname "$0")/lib.sh"
. "$top/tests/functional/build-lib.sh"
require xorriso python3 pgrep ssh-keygen /usr/sbin/sshd

mkdir guest
make_tree guest
for program in sync uname; do cp "$(type -P $program)" guest/bin/; done
printf '#!/bin/sh\ncase " $* " in *" poweroff "*) : >/poweroff ;; esac\n' >guest/bin/systemctl
chmod 755 guest/bin/systemctl
export QVERITY_QEMU=$top/tests/tools/fake-guest.py FAKE_GUEST_WORK=$T/work FAKE_GUEST_TREE=$T/guest FAKE_GUEST_MODE=
export TMPDIR=$T

mkdir -p cd/casper cd/boot
echo kernel >cd/casper/vmlinuz
head -c 300000 /dev/urandom >cd/casper/initrd
echo other >cd/boot/other
xorriso -as mkisofs -quiet -R -o good.iso cd 2>/dev/null
cat >user-data <<'END'
#cloud-config
autoinstall:
  ssh:
    authorized-keys:
      - @AUTHORIZED_KEY@
  user-data:
    ssh_keys:
      ed25519_private: |
        @HOST_PRIVATE_KEY@
      ed25519_public: @HOST_KEY@
  note: mail@example.org at @EPOCH@
END

recipe()
{
    cat >r.yaml <<END
name: t
steps:
  - disk: {size: 100M, preallocation: metadata}
  - install: iso
    iso: good.iso
    user-data: user-data
    failure: 'Installation failed|curtin command .* failed'
    timeout: ${TIMEOUT:-20}
$1
  - boot: {user: root}
  - run: [sh, -c, "echo done >/done"]
  - fetch: {from: /done}
  - shutdown
  - hash: {partition: disk}
END
}

# --- All of it ---

recipe ''
build --accel tcg --work work r.yaml
is "a system is installed, booted and set up" "$? $(cat work/done)" '0 done'
[ -s out ] || note "$(tail -n 3 err)"
like "the kernel line is the installer's, with this machine's address for the guest" \
    "$(grep -o "\-append '[^']*'" work/steps/02-install/log)" \
    "^-append 'console=ttyS0 earlyprintk=serial autoinstall ds=nocloud-net;s=http://10\.0\.2\.2:[0-9]+/[0-9a-f]{32}/'$"
like "the CD is there, and QEMU's own network" "$(cat work/steps/02-install/log)" 'good\.iso.*-append|-append.*good\.iso'
is "nothing leads to the guest meanwhile" "$(grep -c hostfwd work/steps/02-install/log)" 0
same "the kernel is the ISO's" cd/casper/vmlinuz work/steps/02-install/kernel
same "and so is the initrd" cd/casper/initrd work/steps/02-install/initrd
like "the disk is as the recipe says" "$(qemu-img info work/steps/02-install/disk.qcow2)" 'virtual size: 100 MiB'
is "the installer gets the build's keys, indented" "$(cat guest/user-data)" "#cloud-config
autoinstall:
  ssh:
    authorized-keys:
      - $(ssh-keygen -y -f work/key | cut -d ' ' -f 1,2) qverity-build
  user-data:
    ssh_keys:
      ed25519_private: |
$(sed 's/^/        /;/^ *$/d' work/host-key)
      ed25519_public: $(ssh-keygen -y -f work/host-key | cut -d ' ' -f 1,2) qverity-build
  note: mail@example.org at 1700000000"
is "and empty meta-data and vendor-data" "$(cat guest/meta-data guest/vendor-data | wc -c)" 0
like "no other process gets an answer, though it knows the address" "$(cat guest/intruder)" \
    'RemoteDisconnected|Connection reset|BadStatusLine'
is "nothing else is served" "$(tr -d '\r' <work/steps/02-install/console | grep -E '^(served|x|\.\.|user)')" 'x: 404
../user-data: 404
user-data/x: 404'
like "that is told" "$(cat work/steps/02-install/log)" '3 requests of the installer were answered, 1 of others refused'
is "nothing is left" "$(guests)" ''

# --- Failures ---

# fails DESCRIPTION MODE REGEX [KEY]
fails()
{
    recipe "${4:-}"
    rm -rf work
    FAKE_GUEST_MODE=$2 build --accel tcg --work work r.yaml
    is "$1: exit" $? 1
    like "$1: the cause" "$(tail -n 1 err)" "r.yaml:4: step 2 \(install: iso\): $3"
    is "$1: nothing is left" "$(guests)" ''
}
fails "an installer that fails" failing "the guest's console shows a failure: curtin: Installation failed with exception"
fails "one that panics" panic "the guest's kernel panicked"
fails "one that never asks" mute 'the installer powered off and never asked for its answers'
TIMEOUT=2 fails "one that takes too long" slow 'the installer did not power off within 2 seconds: timeout; the last line.*: installing'
fails "no such kernel" '' '.*good.iso: has no kernel \(looked for: boot/vmlinuz\)' '    kernel: boot/vmlinuz'
cp cd/boot/other good.iso
fails "no ISO" '' "$T/good.iso: "
rm -r cd/casper
xorriso -as mkisofs -quiet -R -o good.iso cd 2>/dev/null
fails "an ISO without a kernel" '' '.*good.iso: has no kernel \(looked for: casper/vmlinuz, install.amd/vmlinuz, .*'

# --- A cloud image ---

qemu-img create -q -f qcow2 base.qcow2 50M
before=$(sha256sum <base.qcow2)
cat >r.yaml <<'END'
name: t
steps:
  - disk: 80M
  - install: cloud-image
    image: base.qcow2
  - boot: {user: root}
  - run: [sh, -c, "echo cloud >/done"]
  - fetch: {from: /done}
  - shutdown
  - hash: {partition: disk}
END
rm -rf work
build --accel tcg --work work r.yaml
is "a cloud image is set up" "$? $(cat work/done)" '0 cloud'
[ -s out ] || note "$(tail -n 3 err)"
like "it has a second disk, read-only" "$(cat work/steps/03-boot/log)" 'file=[^ ]*/02-install/seed.iso,[^ ]*readonly=on'
is "labelled for cloud-init" "$(blkid -o value -s LABEL work/steps/02-install/seed.iso)" CIDATA
is "for its owner alone" "$(stat -c %a work/steps/02-install/seed.iso)" 600
xorriso -osirrox on -indev work/steps/02-install/seed.iso -extract /user-data user -extract /meta-data meta 2>/dev/null
is "with the build's key" "$(grep -cF "$(ssh-keygen -y -f work/key | cut -d ' ' -f 2)" user)" 1
like "and an instance" "$(cat meta)" 'instance-id: '
is "the image that was given is as it was" "$(sha256sum <base.qcow2)" "$before"
like "the disk is as large as the recipe says" "$(qemu-img info work/steps/06-shutdown/disk.qcow2)" 'virtual size: 80 MiB'
finish
