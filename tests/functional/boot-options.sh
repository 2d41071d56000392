#!/bin/bash
# SPDX-License-Identifier: MIT
# `qverity boot`: what its options become on QEMU's and the kernel's command lines, and what is refused.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
require sfdisk mkfs.ext4 veritysetup

unset QVERITY_QEMU
export XDG_RUNTIME_DIR=$T/run
mkdir run
truncate -s 8M disk.raw
sfdisk -q disk.raw <<'END' 2>/dev/null
label: gpt
start=2048, size=2048, type=uefi
start=4096, size=8192, type=linux
END
mkfs.ext4 -q -F -E offset=2097152 disk.raw 4M
dd if=disk.raw of=part2.raw bs=1M skip=2 count=4 status=none
root=$(veritysetup format --salt "$(printf %064d 0)" part2.raw hash.img | sed -n 's/^Root hash:[[:space:]]*//p')
echo kernel >vmlinuz
echo initrd >initrd

# dry [OPTION…]
dry()
{
    local -a kernel=(--kernel vmlinuz)
    case " $* " in *" --writable "*) kernel=() ;; esac
    "$QVERITY" boot disk.raw --format raw "${kernel[@]}" --accel tcg --dry-run "$@" 2>&1
}

# append [OPTION…]: the kernel's command line
append()
{
    local -a words
    # What it prints is meant for a shell to read.
    eval "words=($(dry "$@"))"
    local i
    for ((i = 0; i < ${#words[@]}; i++)); do
        [ "${words[i]}" != -append ] || printf '%s\n' "${words[i + 1]}"
    done
}

disk_args()
{
    echo "-drive file=$1/disk,if=none,id=disk0,format=raw,readonly=on" \
        "-device virtio-scsi-pci,id=scsi0,disable-legacy=on,iommu_platform=true,addr=0x10" \
        "-device scsi-hd,drive=disk0,bus=scsi0.0,channel=0,scsi-id=0,lun=0,serial=qverity-disk"
}

hash_args()
{
    echo "-drive file=$1/hash,if=none,id=disk1,format=raw,readonly=on" \
        "-device virtio-scsi-pci,id=scsi1,disable-legacy=on,iommu_platform=true,addr=0x11" \
        "-device scsi-hd,drive=disk1,bus=scsi1.0,channel=0,scsi-id=0,lun=0,serial=qverity-hash"
}

dir=/proc/self/fd/3
machine="-machine q35 -smp 2,maxcpus=16 -m 2048M,slots=5,maxmem=10240M -no-reboot -nographic -serial stdio -monitor none"
create="dm-mod.create=\"dmverity,,0,ro,0 8192 verity 1 /dev/sda2 /dev/sdb 4096 4096 1024 1 sha256 $root $(
    printf %064d 0) 1 panic_on_corruption\""
default="systemd.mask=ssh.service fsck.mode=skip ro console=ttyS0 overlayroot=tmpfs root=/dev/dm-0 rootflags=noload"

# --- What is printed ---

is "the whole command line" "$(dry)" \
    "qemu-system-x86_64 -accel tcg -cpu max $machine $(disk_args "$dir") $(hash_args "$dir") -nic none -kernel vmlinuz -append '$default $create'"
monitor="-no-reboot -nographic -serial stdio -monitor none"
is "all options" "$(
    QVERITY_QEMU='/opt/my qemu' dry --initrd initrd --memory 512M --cpus 4 --cpu EPYC-v3 --accel kvm --bios initrd \
        --qmp 'q,mp' --append 'a "b c" -- single' --no-dm-init --cdrom vmlinuz --ssh-port 8000 --forward tcp:80:8080 \
        --forward udp:0.0.0.0:53:5353 --vfio 0000:41:00.0 --vfio 42:00.0 -- -device 'x y' -snapshot
)" "'/opt/my qemu' -enable-kvm -cpu EPYC-v3 -machine q35 -smp 4,maxcpus=16 -m 512M,slots=5,maxmem=8704M $monitor$(
    ) -chardev socket,id=qmp,path=q,,mp,server=on,wait=off -mon chardev=qmp,mode=control -bios initrd $(
    disk_args "$dir") $(hash_args "$dir") -drive file=vmlinuz,media=cdrom,format=raw -boot d$(
    ) -netdev user,id=vmnic,hostfwd=tcp:127.0.0.1:8000-:22,hostfwd=tcp:127.0.0.1:80-:8080,hostfwd=udp:0.0.0.0:53-:5353$(
    ) -device virtio-net-pci,disable-legacy=on,iommu_platform=true,netdev=vmnic,romfile=$(
    ) -device pcie-root-port,id=pci.1,bus=pcie.0 -device vfio-pci,host=0000:41:00.0,bus=pci.1$(
    ) -device pcie-root-port,id=pci.2,bus=pcie.0,chassis=1 -device vfio-pci,host=42:00.0,bus=pci.2$(
    ) -fw_cfg name=opt/ovmf/X-PciMmio64Mb,string=262144$(
    ) -kernel vmlinuz -initrd initrd -append 'a \"b c\" -- single' -device 'x y' -snapshot"
is "OVMF in two files" "$(dry --ovmf-code initrd --ovmf-vars vmlinuz | grep -o -- '-drive if=pflash.*snapshot=on')" \
    "-drive if=pflash,format=raw,unit=0,file=initrd,readonly=on -drive if=pflash,format=raw,unit=1,file=vmlinuz,snapshot=on"
is "--network user" "$(dry --network user | grep -oE -- '-(nic|netdev) [^ ]*')" "-netdev user,id=vmnic"
is "--network qemu" "$(dry --network qemu | grep -oE -- '-(nic|netdev) [^ ]*')" ""
is "a port for SSH lets SSH run" "$(append --ssh-port 2222)" "${default#* } $create"
is "but other ports do not" "$(append --forward tcp:80:80)" "$default $create"
is "--kernel none: the disk's own boot loader" "$(dry --kernel none)" \
    "qemu-system-x86_64 -accel tcg -cpu max $machine $(disk_args "$dir") $(hash_args "$dir") -nic none"
is "KVM's default CPU" "$(dry --accel kvm | grep -o -- '-enable-kvm -cpu [^ ]*')" "-enable-kvm -cpu host"
is "--no-verity: only the disk" "$(dry --no-verity)" \
    "qemu-system-x86_64 -accel tcg -cpu max $machine $(disk_args "$dir") -nic none -kernel vmlinuz -append '${default/dm-0/sda2}'"
is "--no-verity of the whole disk" "$(append --no-verity -p disk)" "${default/dm-0/sda}"
is "--writable: the image itself, its boot loader, a network" "$(dry --writable)" \
    "qemu-system-x86_64 -accel tcg -cpu max $machine $(
        disk_args "$T" | sed 's|/disk,if|/disk.raw,if|; s/,readonly=on//')"
is "--writable with a kernel" "$(append --writable --kernel vmlinuz)" "console=ttyS0 root=/dev/sda2 rw"
is "--writable with a network of one's own" "$(dry --writable --network none | grep -o -- '-nic.*')" "-nic none"
is "--append has dm-mod.create behind it" "$(append --append 'root=/dev/dm-0  quiet ')" "root=/dev/dm-0  quiet $create"
is "--append '' too" "$(append --append '')" "$create"
is "but not behind what is init's" "$(append --append 'x="a -- b" -- 3 y')" "x=\"a -- b\" $create -- 3 y"
is "--no-dm-init: not at all" "$(append --append 'root=/dev/dm-0 "' --no-dm-init)" 'root=/dev/dm-0 "'
is "--no-dm-init with the default" "$(append --no-dm-init)" "$default"
is "the last of --no-dm-init and --dm-init counts" "$(append --no-dm-init --dm-init)" "$default $create"
is "verity options" "$(append --salt - --hash sha512 -p disk | grep -o 'verity 1 .*')" \
    "verity 1 /dev/sda /dev/sdb 4096 4096 2048 1 sha512 $(
        veritysetup format --salt - --hash sha512 disk.raw hash.img | sed -n 's/^Root hash:[[:space:]]*//p') - 1 panic_on_corruption\""

long=$(printf 'x%.0s' {1..2047})
is "2047 bytes fit" "$(append --no-verity --append "$long")" "$long"

for accel in auto kvm tcg; do
    ok "--dry-run with --accel $accel succeeds" timeout $((20 * patience)) "$QVERITY" boot disk.raw --kernel vmlinuz --accel $accel --dry-run
done
is "a dry run leaves nothing" "$(ls -A run)" ""

# --- What is refused ---

refuse()
{
    local description=$1 code=$2 regex=$3
    shift 3
    refused "$description" "$code" "$regex" "$QVERITY" boot disk.raw --format raw --accel tcg --dry-run "$@"
}

with=(--kernel vmlinuz)
refuse "no kernel" 1 '^qverity: disk.raw: no kernel is given, and /boot of partition 2 has none: use --kernel FILE$'
refuse "a kernel that is not there" 1 '^qverity: --kernel nothing: No such file or directory$' --kernel nothing
refuse "a directory as the initrd" 1 '^qverity: --initrd run: Is a directory$' "${with[@]}" --initrd run
refuse "a firmware that is not there" 1 '^qverity: --bios none: No such file' "${with[@]}" --bios none
refuse "memory of no whole MiB" 2 "memory: '1000' is not a multiple of 1M" "${with[@]}" --memory 1000
refuse "no memory" 2 "memory: '0'" "${with[@]}" --memory 0
refuse "memory that is no number" 2 'memory' "${with[@]}" --memory much
refuse "no CPU" 2 "cpus: '0' is not between" "${with[@]}" --cpus 0
refuse "an accelerator that there is not" 2 "accel: 'xen' is not auto, kvm or tcg" "${with[@]}" --accel xen
refuse "no time" 2 "timeout: '0' is not between" "${with[@]}" --timeout 0
refuse "an expression that is none" 2 "until: '.x': Unmatched" "${with[@]}" --until '(x'
refuse "--dm-init without verity" 2 'exclude each other' "${with[@]}" --no-verity --dm-init
refuse "--append with dm-mod.create" 2 'append: has dm-mod.create= already; leave it out' "${with[@]}" --append 'dm_mod.create="x y"'
refuse "--append with an open quote" 1 'append: a double quote is not closed' "${with[@]}" --append 'x="a b'
refuse "a command line that is too long" 1 'kernel command line: 2048 bytes, and the kernel takes at most 2047' \
    "${with[@]}" --no-verity --append "x$long"
refuse "also by dm-mod.create" 1 'kernel command line: [0-9]+ bytes' "${with[@]}" --append "$long"
refuse "also by a salt" 1 'kernel command line: [0-9]+ bytes' "${with[@]}" --salt "$(printf %0512d 0)" \
    --append "$(printf 'x%.0s' {1..1450})"
refuse "QEMU's arguments without --" 2 'too many arguments' "${with[@]}" more
refuse "QEMU in the background" 2 'cannot be run with -daemonize' "${with[@]}" -- -daemonize
refuse "an initrd without a kernel" 2 'initrd needs --kernel' --kernel none --initrd initrd
refuse "a command line without a kernel" 2 'append needs --kernel' --writable --append ro
refuse "dm-init without a kernel" 2 'dm-init needs --kernel' --kernel none --dm-init
refuse "two kinds of firmware" 2 'bios and --ovmf-code exclude each other' "${with[@]}" --bios initrd --ovmf-code initrd
refuse "variables without code" 2 'ovmf-vars needs --ovmf-code' "${with[@]}" --ovmf-vars initrd
refuse "OVMF that is not there" 1 'ovmf-code none: No such file' "${with[@]}" --ovmf-code none
refuse "variables that are not there" 1 'ovmf-vars none: No such file' "${with[@]}" --ovmf-code initrd --ovmf-vars none
refuse "a CD that is not there" 1 'cdrom none: No such file' "${with[@]}" --cdrom none
refuse "a network that there is not" 2 "network: 'tap' is not none, user or qemu" "${with[@]}" --network tap
refuse "ports without a network" 2 'network none or qemu, and --ssh-port or --forward exclude' "${with[@]}" \
    --network none --forward tcp:1:1
refuse "a forward that is none" 2 "forward: 'tcp:80' is not tcp:HOST:GUEST" "${with[@]}" --forward tcp:80
refuse "a port twice" 2 'port 80 of the host is forwarded twice' "${with[@]}" --forward tcp:80:80 --ssh-port 80
refuse "a port that is none" 2 "ssh-port: '65536' is not between" "${with[@]}" --ssh-port 65536
for address in 1:00.0 0000:01:00.8 0000:01:00 01.00.0 g1:00.0 00000:01:00.0 ''; do
    refuse "the PCI address '$address'" 2 "vfio: '$address' is not a PCI address" "${with[@]}" --vfio "$address"
done
refuse "--dm-init with --writable" 2 'exclude each other' --writable --dm-init
refuse "--snapshot with --writable" 2 'exclude each other' --writable --snapshot s
refuse "time to power down that is none" 2 "powerdown: '-1' is not a number" "${with[@]}" --powerdown -1
refused "--writable and no known format" 1 'writable: no known format; give --format raw' \
    "$QVERITY" boot disk.raw --writable --accel tcg --dry-run
refused "a PCI device that is not there" 1 'vfio ffff:ff:1f.7: there is no such PCI device' \
    "$QVERITY" boot disk.raw --format raw --kernel vmlinuz --accel tcg --vfio ffff:ff:1f.7
refuse "no such partition" 1 'partition' "${with[@]}" -p 7
refused "no image" 1 'none.qcow2' "$QVERITY" boot none.qcow2 --kernel vmlinuz --dry-run
for file in disk.raw vmlinuz; do
    cp $file before
    refused "the console over $file" 1 "--console would overwrite $file" \
        "$QVERITY" boot disk.raw --format raw -p disk --no-tree --kernel vmlinuz --accel tcg --console $file
    same "and $file is as it was" $file before
done
is "and nothing is left" "$(ls -A run)" ""

finish
