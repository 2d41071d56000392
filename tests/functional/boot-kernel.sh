#!/bin/bash
# SPDX-License-Identifier: MIT
# `qverity boot`: kernels and initrds out of the image: which one is taken, how it gets to QEMU, and what
# is refused.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=boot-lib.sh
. "$here/boot-lib.sh"
PATH=$PATH:/usr/sbin:/sbin
require mke2fs mkfs.vfat sfdisk qemu-img

# root NAME FILE…: a directory with these files, each of which holds its own name; NAME=LINK is a link
root()
{
    local name=$1 file
    shift
    mkdir -p "$name"
    for file; do
        mkdir -p "$name/$(dirname "${file%%=*}")"
        case $file in
        *=*) ln -sf "${file#*=}" "$name/${file%%=*}" ;;
        *) echo "$name/$file" >"$name/$file" ;;
        esac
    done
}

# filesystem NAME: makes NAME.img of the directory NAME
filesystem()
{
    rm -f "$1.img"
    mke2fs -q -F -t ext4 -d "$1" "$1.img" 8M >/dev/null
}

# chosen IMAGE [OPTION…]: the -kernel and -initrd of a dry run, without image:
chosen()
{
    local image=$1 word previous='' line
    local -a words
    shift
    line=$("$QVERITY" boot "$image" --format raw --no-tree --accel tcg --dry-run --no-verity "$@" 2>&1)
    eval "words=($line)" 2>/dev/null || {
        echo "$line"
        return
    }
    for word in "${words[@]}"; do
        case $previous in
        -kernel | -initrd) printf '%s ' "${word#image:}" ;;
        esac
        previous=$word
    done
}

# pick DESCRIPTION EXPECTED FILE…: what is chosen of a file system with these files
pick()
{
    local description=$1 expected=$2
    shift 2
    rm -rf one
    root one "$@"
    filesystem one
    is "$description" "$(chosen one.img)" "$expected"
}

# --- Which one ---

pick "the newest, by the order of versions" "/boot/vmlinuz-6.10.0-1-amd64 " \
    boot/vmlinuz-6.9.0-10-amd64 boot/vmlinuz-6.10.0-1-amd64 boot/vmlinuz-6.9.0-9-amd64
pick "a release before its candidates" "/boot/vmlinuz-6.8.0 " boot/vmlinuz-6.8.0-rc7 boot/vmlinuz-6.8.0 boot/vmlinuz-6.7.12
pick "no rescue, old or half-installed kernels, no directories, no empty files, no dangling links" "/boot/vmlinuz-5.1 " \
    boot/vmlinuz-5.1 boot/vmlinuz-9.1.old boot/vmlinuz-0-rescue-12345 boot/vmlinuz-9.3.dpkg-new \
    boot/vmlinuz-9.4/file boot/vmlinuz-9.5=nowhere boot/System.map-9.6 boot/vmlinuz-9.7=vmlinuz-9.7 boot/initrd.img-9.8
pick "Debian's initrd" "/boot/vmlinuz-6.1 /boot/initrd.img-6.1 " boot/vmlinuz-6.1 boot/initrd.img-6.1 boot/initrd.img-6.2
pick "Fedora's initrd" "/boot/vmlinuz-6.1.fc40 /boot/initramfs-6.1.fc40.img " boot/vmlinuz-6.1.fc40 \
    boot/initramfs-6.1.fc40.img boot/initramfs-6.1.fc40kdump.img
pick "openSUSE's initrd" "/boot/vmlinuz-6.1-default /boot/initrd-6.1-default " boot/vmlinuz-6.1-default boot/initrd-6.1-default
pick "Arch's kernel" "/boot/vmlinuz-linux /boot/initramfs-linux.img " boot/vmlinuz-linux boot/initramfs-linux.img \
    boot/initramfs-linux-fallback.img
pick "a link in /boot, and what it leads to" "/lib/k/vmlinuz-6.3 /lib/k/initrd.img-6.3 " boot/vmlinuz=../lib/k/vmlinuz-6.3 \
    lib/k/vmlinuz-6.3 lib/k/initrd.img-6.3
pick "a link in the root" "/lib/k/vmlinuz-6.3 " vmlinuz=lib/k/vmlinuz-6.3 lib/k/vmlinuz-6.3
pick "a kernel without a version" "/boot/vmlinuz /boot/initrd.img " boot/vmlinuz boot/initrd.img
pick "versions before links" "/boot/vmlinuz-2 " boot/vmlinuz=vmlinuz-3.old boot/vmlinuz-3.old boot/vmlinuz-2
pick "/boot as a link" "/boot/vmlinuz-4 " boot=usr/boot usr/boot/vmlinuz-4

rm -r one
root one boot/vmlinuz-1 boot/initrd.img-1 boot/vmlinuz-2 boot/initrd.img-2 boot/mine
filesystem one
is "--kernel image:/PATH, and its initrd" "$(chosen one.img --kernel image:/boot/vmlinuz-1)" "/boot/vmlinuz-1 /boot/initrd.img-1 "
is "--initrd image:/PATH" "$(chosen one.img --initrd image:/boot/mine)" "/boot/vmlinuz-2 /boot/mine "
is "--initrd of the host" "$(chosen one.img --initrd vmlinuz)" "/boot/vmlinuz-2 vmlinuz "
is "--initrd none" "$(chosen one.img --kernel image:/boot/vmlinuz-1 --initrd none)" "/boot/vmlinuz-1 "
is "a kernel of the host has no initrd" "$(chosen one.img --kernel vmlinuz)" "vmlinuz "

# --- Partitions ---

M=1048576
truncate -s 64M disk.img
sfdisk -q disk.img <<'END' 2>/dev/null
label: gpt
start=1MiB, size=8MiB, type=uefi
start=10MiB, size=24MiB, type=linux
start=36MiB, size=8MiB, type=linux
start=46MiB, size=8MiB, type=linux
END
truncate -s 8M vfat.img
mkfs.vfat vfat.img >/dev/null
# put PARTITION DIR: a file system of the directory
put()
{
    local -a starts=(0 1 10 36 46)
    filesystem "$2"
    dd if="$2.img" of=disk.img bs=$M seek="${starts[$1]}" conv=notrunc status=none
}
dd if=vfat.img of=disk.img bs=$M seek=1 conv=notrunc status=none
root data etc/hostname
root boot3 vmlinuz-3 initrd.img-3
root boot4 boot/vmlinuz-4
truncate -s 24M data.img
mke2fs -q -F -t ext4 -d data data.img 24M >/dev/null
dd if=data.img of=disk.img bs=$M seek=10 conv=notrunc status=none
put 3 boot3
is "a partition for /boot" "$(chosen disk.img)" "/vmlinuz-3 /initrd.img-3 "
is "image:/boot/NAME on it" "$(chosen disk.img --kernel image:/boot/vmlinuz-3)" "/vmlinuz-3 /initrd.img-3 "
is "image:/NAME on it" "$(chosen disk.img --kernel image:/vmlinuz-3)" "/vmlinuz-3 /initrd.img-3 "
put 4 boot4
is "the newest of the other partitions" "$(chosen disk.img)" "/boot/vmlinuz-4 "
root data boot/vmlinuz-1
mke2fs -q -F -t ext4 -d data data.img 24M >/dev/null
dd if=data.img of=disk.img bs=$M seek=10 conv=notrunc status=none
is "the data partition's own before all others" "$(chosen disk.img)" "/boot/vmlinuz-1 "
is "-p chooses the data partition" "$(chosen disk.img -p 4)" "/boot/vmlinuz-4 "

# --- How it gets to QEMU ---

head -c 3000001 /dev/urandom >one/boot/vmlinuz-9
head -c 9M /dev/urandom >one/boot/initrd.img-9
truncate -s 12M one/boot/initrd.img-9
rm -f one.img
mke2fs -q -F -t ext4 -d one one.img 32M >/dev/null
qemu-img convert -O qcow2 -c one.img one.qcow2
cp one.qcow2 before
boot_args=(one.qcow2 --no-tree --accel tcg)
guest "kernel" "end guest-shutdown"
ok "it boots" boot 0 '^$'
is "QEMU reads the image's bytes" "$(grep '^-' out)" "-kernel $(sha256sum <one/boot/vmlinuz-9 | cut -d' ' -f1)
-initrd $(sha256sum <one/boot/initrd.img-9 | cut -d' ' -f1)"
ok "nothing is left" clean
same "and the image is as it was" one.qcow2 before

# --- What is refused ---

refuse()
{
    local description=$1 regex=$2 image=$3
    shift 3
    refused "$description" 1 "$regex" "$QVERITY" boot "$image" --format raw --no-tree --accel tcg --dry-run "$@"
}

root none etc/hostname
filesystem none
refuse "no kernel" '^qverity: none.img: no kernel is given, and /boot of the disk has none: use --kernel FILE$' none.img
refuse "a partition that is not ext" '^qverity: --kernel: disk.img: partition 1 holds vfat: files can be read on' \
    disk.img -p 1 --kernel image:/x
refuse "no ext partition" '^qverity: vfat.img: no kernel is given, and none is found: the disk holds vfat' vfat.img
refuse "a kernel that is not there" '^qverity: --kernel: one.img: /boot/x: No such file or directory$' one.img --kernel image:/boot/x
refuse "an initrd that is not there" '^qverity: --initrd: one.img: /boot/x: No such file or directory$' one.img --initrd image:/boot/x
refuse "a directory" '^qverity: --kernel: one.img: /boot: not a regular file$' one.img --kernel image:/boot
root none boot/loop=loop boot/away=../../../etc/x
filesystem none
refuse "a link to itself" '^qverity: --kernel: none.img: /boot/loop: Too many levels of symbolic links$' none.img --kernel image:/boot/loop
refuse "a link that leads out of the image" '^qverity: --kernel: none.img: /boot/away: /etc/x: No such file or directory$' \
    none.img --kernel image:/boot/away
finish
