#!/bin/bash
# SPDX-License-Identifier: MIT
# QEMU's arguments, word for word, of a confidential service's three launches: the installer, the boots that
# set its guest up, and the finished guest; for upstream's QEMU and for AMD's fork of it.
#
# They are what the service's own launch script gave to QEMU, and besides, everywhere: the console on stdio,
# no monitor (QMP is on a descriptor that is not shown), a PCI slot and SCSI address and a serial for each disk,
# the CD's format, and ports that are forwarded from 127.0.0.1 only.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
require qemu-img sfdisk mkfs.ext4 python3

unset QVERITY_QEMU
qemu-img create -q -f qcow2 disk.qcow2 64M
# The finished guest: the same disk, with something in it.
truncate -s 64M disk.raw
sfdisk -q disk.raw <<'END2' 2>/dev/null
label: gpt
start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649
start=4096, size=122880, type=linux
END2
mkfs.ext4 -q -F -E "offset=$((4096 * 512)),hash_seed=8eadd6c4-3a1f-4f4e-8d9c-0b2c1e0c7a10" \
    -U 5a1f9f0e-6a3c-4d0a-9c37-90f6ad0a3d11 disk.raw 60M
qemu-img convert -O qcow2 disk.raw disk-sparse.qcow2
for file in ubuntu.iso casper-vmlinuz casper-initrd vmlinuz-snp initrd-snp OVMF_CODE.fd OVMF_VARS.fd; do
    echo $file >$file
done
python3 "$here/naive_measure.py" ovmf OVMF.fd amdsev
root=$("$QVERITY" hash disk-sparse.qcow2 --no-tree | sed -n 's/^Root hash:[[:space:]]*//p')

# golden DESCRIPTION OPTION… <ARGUMENTS: the dry run prints these, one a line
golden()
{
    local description=$1 line
    local -a words
    shift
    cat >expected
    line=$("$QVERITY" boot "$@" --accel kvm --memory 8192M --cpus 4 --cpu EPYC-v4 --dry-run 2>err) || {
        fail "$description"
        note "$(cat err)"
        return
    }
    eval "words=($line)"
    printf '%s\n' "${words[@]}" >got
    if cmp -s got expected && [ ! -s err ]; then
        pass "$description"
    else
        fail "$description"
        note "$(diff expected got)"
        note "$(cat err)"
    fi
}

flash()
{
    printf '%s\n' -drive if=pflash,format=raw,unit=0,file=OVMF_CODE.fd,readonly=on \
        -drive if=pflash,format=raw,unit=1,file=OVMF_VARS.fd,snapshot=on
}

always()
{
    cat <<'END2'
qemu-system-x86_64
-enable-kvm
-cpu
EPYC-v4
-machine
q35
-smp
4,maxcpus=16
-m
8192M,slots=5,maxmem=16384M
-no-reboot
-nographic
-serial
stdio
-monitor
none
END2
}

upstream_snp()
{
    always | sed 's/^q35$/q35,confidential-guest-support=sev0,memory-backend=ram1,vmport=off/'
    cat <<END2
-object
memory-backend-memfd,id=ram1,size=8192M,share=true,prealloc=false
-object
sev-snp-guest,id=sev0,$cbitpos,reduced-phys-bits=1,policy=0x30000,kernel-hashes=on
-bios
OVMF.fd
END2
}

fork_snp()
{
    always
    cat <<END2
-machine
memory-encryption=sev0,vmport=off
-object
memory-backend-memfd-private,id=ram1,size=8192M,share=true
-object
sev-snp-guest,id=sev0,$cbitpos,reduced-phys-bits=1,discard=none,kernel-hashes=on
-machine
memory-backend=ram1,kvm-type=protected
-drive
if=pflash,format=raw,unit=0,file=OVMF.fd,readonly=on
END2
}

# disk I FILE SERIAL: controllers are in slots 10, 11…
disk()
{
    cat <<END2
-drive
file=$2,if=none,id=disk$1,format=$4
-device
virtio-scsi-pci,id=scsi$1,disable-legacy=on,iommu_platform=true,addr=0x1$1
-device
scsi-hd,drive=disk$1,bus=scsi$1.0,channel=0,scsi-id=0,lun=0,serial=$3
END2
}

network()
{
    cat <<'END2'
-netdev
user,id=vmnic,hostfwd=tcp:127.0.0.1:8000-:22,hostfwd=tcp:127.0.0.1:8080-:8080,hostfwd=tcp:127.0.0.1:80-:80,hostfwd=tcp:127.0.0.1:443-:443
-device
virtio-net-pci,disable-legacy=on,iommu_platform=true,netdev=vmnic,romfile=
END2
}
default_network=(--ssh-port 8000 --forward tcp:8080:8080 --forward tcp:80:80 --forward tcp:443:443)

gpu()
{
    cat <<'END2'
-device
pcie-root-port,id=pci.1,bus=pcie.0
-device
vfio-pci,host=0000:41:00.0,bus=pci.1
-fw_cfg
name=opt/ovmf/X-PciMmio64Mb,string=262144
END2
}

kernel()
{
    printf '%s\n' -kernel "$1" -initrd "$2" -append "$3"
}

# The C-bit of CPUs that have SEV; of others the usual one.
cbitpos=$("$QVERITY" boot disk-sparse.qcow2 --no-tree --kernel vmlinuz-snp --snp --snp-dialect upstream --bios OVMF.fd \
    --dry-run | grep -o 'cbitpos=[0-9]*')
grep -qw sev /proc/cpuinfo || is "a machine without SEV prints the usual C-bit" "$cbitpos" cbitpos=51

# --- The installer: QEMU's own network card, where the host is 10.0.2.2 ---

install='console=ttyS0 earlyprintk=serial autoinstall ds=nocloud-net;s=http://_gateway:3003/'
for dialect in upstream amd-fork; do
    golden "$dialect: the installer" disk.qcow2 --writable --snp-dialect $dialect \
        --ovmf-code OVMF_CODE.fd --ovmf-vars OVMF_VARS.fd --cdrom ubuntu.iso \
        --kernel casper-vmlinuz --initrd casper-initrd --append "$install" < <(
        always
        flash
        disk 0 "$T/disk.qcow2" qverity-disk qcow2
        printf '%s\n' -drive file=ubuntu.iso,media=cdrom,format=raw -boot d
        kernel casper-vmlinuz casper-initrd "$install"
    )
done

# --- Setting up ---

for dialect in upstream amd-fork; do
    golden "$dialect: the installed disk, by its boot loader" disk.qcow2 --writable --snp-dialect $dialect \
        --ovmf-code OVMF_CODE.fd --ovmf-vars OVMF_VARS.fd "${default_network[@]}" < <(
        always
        flash
        disk 0 "$T/disk.qcow2" qverity-disk qcow2
        network
    )
done

golden "upstream: the new kernel" disk.qcow2 --writable --snp-dialect upstream --bios OVMF.fd "${default_network[@]}" \
    --kernel vmlinuz-snp --initrd initrd-snp --append 'console=ttyS0 earlyprintk=serial' < <(
    always
    printf '%s\n' -bios OVMF.fd
    disk 0 "$T/disk.qcow2" qverity-disk qcow2
    network
    kernel vmlinuz-snp initrd-snp 'console=ttyS0 earlyprintk=serial'
)
golden "amd-fork: the new kernel" disk.qcow2 --writable --snp-dialect amd-fork --bios OVMF.fd "${default_network[@]}" \
    --kernel vmlinuz-snp --initrd initrd-snp --append 'console=ttyS0 earlyprintk=serial' < <(
    always
    printf '%s\n' -drive if=pflash,format=raw,unit=0,file=OVMF.fd,readonly=on
    disk 0 "$T/disk.qcow2" qverity-disk qcow2
    network
    kernel vmlinuz-snp initrd-snp 'console=ttyS0 earlyprintk=serial'
)

# --- The finished guest, read-only with an overlay in memory ---

append="systemd.mask=ssh.service fsck.mode=skip ro console=ttyS0 overlayroot=tmpfs root=/dev/dm-0 rootflags=noload"
images='blyss_shim_docker_img="shim@sha256:01 x" blyss_ui_docker_img="ui" blyss_docker_img="app"'
create="dm-mod.create=\"dmverity,,0,ro,0 122880 verity 1 /dev/sda2 /dev/sdb 4096 4096 15360 1 sha256 $root $(
    printf %064d 0) 1 panic_on_corruption\""
disks()
{
    disk 0 /proc/self/fd/3/disk qverity-disk raw,readonly=on
    disk 1 /proc/self/fd/3/hash qverity-hash raw,readonly=on
}
finished=(disk-sparse.qcow2 --no-tree --snp --bios OVMF.fd --kernel vmlinuz-snp --initrd initrd-snp
    "${default_network[@]}" --append "$append $images")
golden "upstream: the finished guest" "${finished[@]}" --snp-dialect upstream < <(
    upstream_snp
    disks
    network
    kernel vmlinuz-snp initrd-snp "$append $images $create"
)
golden "amd-fork: the finished guest" "${finished[@]}" --snp-dialect amd-fork < <(
    fork_snp
    disks
    network
    kernel vmlinuz-snp initrd-snp "$append $images $create"
)
golden "upstream: with a GPU" "${finished[@]}" --snp-dialect upstream --vfio 0000:41:00.0 < <(
    upstream_snp
    disks
    network
    gpu
    kernel vmlinuz-snp initrd-snp "$append $images $create"
)
golden "amd-fork: with a GPU" "${finished[@]}" --snp-dialect amd-fork --vfio 0000:41:00.0 < <(
    fork_snp
    disks
    network
    gpu
    kernel vmlinuz-snp initrd-snp "$append $images $create"
)
finish
