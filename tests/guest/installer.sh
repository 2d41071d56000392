# shellcheck shell=bash
# An installer's CD of the tests' own, in build/installer: source it after lib.sh. No Ubuntu ISO can be had
# everywhere, and installing from one takes long with an emulated CPU; this one is read, booted and answered as
# Ubuntu's is.
# shellcheck disable=SC2154

installer=$top/build/installer
installer_iso=$installer/installer.iso

# The two newest kernels for clouds that the mirrors have: the older one is installed from the CD, the newer one
# with dpkg.
installer_kernels()
{
    apt-cache search --names-only '^linux-image-[0-9.]+-[0-9]+-cloud-amd64$' | cut -d ' ' -f 1 | sort -V | tail -n 2
}

# download DIR PACKAGE…: packages, into a directory
download()
{
    local dir=$1
    shift
    mkdir -p "$dir"
    (cd "$dir" && apt-get -q -o APT::Sandbox::User=root download "$@" >/dev/null)
}

# add_program DIR FILE…: programs of this machine with their libraries
add_program()
{
    local dir=$1 file
    shift
    for file in "$@"; do
        cp -L "$(type -P "$file")" "$dir/sbin/"
        ldd "$(type -P "$file")" | grep -o '/[^ ]*' | while read -r file; do
            mkdir -p "$dir$(dirname "$file")"
            cp -L "$file" "$dir$file"
        done
    done
}

# The CD's kernel is a distribution's general one, as only that knows QEMU's default network card and CD.
make_initramfs()
{
    local dir=$1 deb version
    version=$2
    mkdir -p "$dir"/{bin,sbin,dev,proc,sys,etc}
    deb=$(ls "$installer"/cd-debs/linux-image-"$version"_*.deb)
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$dir" --wildcards "./boot/vmlinuz-*" \
        './lib/modules/*/modules.*' './lib/modules/*/kernel/drivers/ata/*ahci*' './lib/modules/*/kernel/drivers/ata/libata.ko' \
        './lib/modules/*/kernel/drivers/cdrom/*' './lib/modules/*/kernel/drivers/net/ethernet/intel/e1000e/*' \
        './lib/modules/*/kernel/drivers/p[pt][sp]/p[pt][ps]*.ko' './lib/modules/*/kernel/drivers/scsi/s[cdr]*' \
        './lib/modules/*/kernel/drivers/scsi/virtio_scsi.ko' './lib/modules/*/kernel/drivers/virtio/*' \
        './lib/modules/*/kernel/fs/isofs/*' './lib/modules/*/kernel/fs/ext4/*' './lib/modules/*/kernel/fs/jbd2/*' \
        './lib/modules/*/kernel/fs/mbcache.ko' './lib/modules/*/kernel/lib/*' './lib/modules/*/kernel/crypto/crc*' \
        './lib/modules/*/kernel/block/*'
    mv "$dir"/boot/vmlinuz-* "$installer/cd/casper/vmlinuz"
    depmod -b "$dir" "$version"
    add_program "$dir" sfdisk mke2fs "$installer"/base/steps/*-run/tree/bin/busybox
    mv "$dir/sbin/busybox" "$dir/bin/"
    cp "$top/tests/guest/installer/init" "$dir/init"
    (cd "$dir" && find . | cpio --quiet -o -H newc | gzip -1) >"$installer/cd/casper/initrd"
}

make_installer()
{
    local -a kernels
    local cd_kernel
    rm -rf "$installer/cd" "$installer/initramfs" "$installer/cd-debs" "$installer/debs" "$installer"/*.iso
    mkdir -p "$installer/cd/casper"
    readarray -t kernels < <(installer_kernels)
    [ ${#kernels[@]} -eq 2 ] || {
        echo "the mirrors have no two kernels for clouds"
        return 1
    }
    cd_kernel=${kernels[1]/-cloud-/-}
    download "$installer/cd-debs" "$cd_kernel" || return
    download "$installer/debs" "${kernels[1]}" || return
    sed -e "s|@KERNEL@|${kernels[0]}|; s|@TOP@|$top|" "$top/tests/guest/installer/base.yaml" >"$installer/base.yaml"
    "$QVERITY" build --work "$installer/base" "$installer/base.yaml" || return
    make_initramfs "$installer/initramfs" "${cd_kernel#linux-image-}" || return
    tar --numeric-owner --sort=name -C "$installer"/base/steps/*-run/tree -cf "$installer/cd/base.tar" . || return
    xorriso -as mkisofs -quiet -R -o "$installer_iso.new" "$installer/cd" 2>/dev/null || return
    mv "$installer_iso.new" "$installer_iso"
    rm -rf "$installer/cd" "$installer/initramfs"
}

# Makes the CD, if it is not there or not of these files.
installer_need()
{
    local stamp
    [ "$(id -u)" -eq 0 ] || skip_all "making the installer needs root"
    require apt-cache apt-get cpio depmod dpkg-deb mmdebstrap qemu-system-x86_64 sfdisk xorriso
    mkdir -p "$installer"
    exec 7>"$installer/lock"
    flock 7
    stamp=$(cat "$top"/tests/guest/installer.sh "$top"/tests/guest/installer/* | sha256sum)
    if [ ! -s "$installer_iso" ] || [ "$stamp" != "$(cat "$installer/stamp" 2>/dev/null)" ]; then
        if ! make_installer >"$installer/log" 2>&1; then
            fail "the installer's CD can be made"
            note "$(tail -n 20 "$installer/log")"
            finish
        fi
        echo "$stamp" >"$installer/stamp"
    fi
    exec 7>&-
}
