/* SPDX-License-Identifier: MIT */
#include "qemuctl/machine.h"

#include <assert.h>
#include <inttypes.h>

/* Slots of PCI bus 0 from here on are the disks' controllers. QEMU gives devices without an address
 * the lowest slots that are free, and q35 has its own at 31. */
#define DISK_SLOT 0x10

static void add_pair(struct argv *argv, const char *option, const char *value)
{
    if (value != NULL) {
        argv_add(argv, option);
        argv_add(argv, value);
    }
}

static int add_disk(struct argv *argv, size_t i, const struct machine_disk *disk, struct error *err)
{
    _cleanup_free_ char *file = argv_escape_value(disk->file);
    _cleanup_free_ char *serial = argv_escape_value(disk->serial);

    if (file == NULL || serial == NULL)
        return error_oom(err);
    argv_add(argv, "-drive");
    argv_addf(argv, "file=%s,if=none,id=disk%zu,format=raw%s", file, i,
              disk->readonly ? ",readonly=on" : "");
    /* Modern virtio behind the platform's IOMMU rules: what a guest with encrypted memory needs to
     * bounce its buffers. It is harmless to others and needs no IOMMU. */
    argv_add(argv, "-device");
    argv_addf(argv, "virtio-scsi-pci,id=scsi%zu,disable-legacy=on,iommu_platform=true,addr=0x%zx",
              i, DISK_SLOT + i);
    argv_add(argv, "-device");
    argv_addf(argv, "scsi-hd,drive=disk%zu,bus=scsi%zu.0,channel=0,scsi-id=0,lun=0,serial=%s", i, i,
              serial);
    return 0;
}

static int add_qmp_server(struct argv *argv, const char *path, struct error *err)
{
    _cleanup_free_ char *escaped = argv_escape_value(path);

    if (escaped == NULL)
        return error_oom(err);
    argv_add(argv, "-chardev");
    argv_addf(argv, "socket,id=qmp,path=%s,server=on,wait=off", escaped);
    add_pair(argv, "-mon", "chardev=qmp,mode=control");
    return 0;
}

int machine_argv(const struct machine_options *options, struct argv *ret, struct error *err)
{
    _cleanup_argv_ struct argv argv = ARGV_INIT;
    const bool kvm = options->accel == ACCEL_KVM;
    int r;

    assert(options->disk_count <= MACHINE_DISKS_MAX);
    assert(options->memory % (1024 * 1024) == 0);

    argv_add(&argv, options->qemu != NULL ? options->qemu : MACHINE_QEMU_DEFAULT);
    if (kvm)
        argv_add(&argv, "-enable-kvm");
    else
        add_pair(&argv, "-accel", "tcg");
    add_pair(&argv, "-cpu", options->cpu != NULL ? options->cpu : kvm ? "host" : "max");
    add_pair(&argv, "-machine", "q35");
    argv_add(&argv, "-smp");
    argv_addf(&argv, "%u", options->cpus);
    argv_add(&argv, "-m");
    argv_addf(&argv, "%" PRIu64 "M", options->memory / (1024 * 1024));
    argv_add(&argv, "-no-reboot");
    argv_add(&argv, "-nographic");
    add_pair(&argv, "-serial", "stdio");
    add_pair(&argv, "-monitor", "none");
    add_pair(&argv, "-nic", "none");
    if (options->qmp_socket != NULL) {
        r = add_qmp_server(&argv, options->qmp_socket, err);
        if (r < 0)
            return r;
    }
    add_pair(&argv, "-bios", options->bios);
    for (size_t i = 0; i < options->disk_count; i++) {
        r = add_disk(&argv, i, &options->disks[i], err);
        if (r < 0)
            return r;
    }
    add_pair(&argv, "-kernel", options->kernel);
    add_pair(&argv, "-initrd", options->initrd);
    add_pair(&argv, "-append", options->append);
    for (size_t i = 0; i < options->extra_count; i++)
        argv_add(&argv, options->extra[i]);
    r = argv_check(&argv, err);
    if (r < 0)
        return r;
    *ret = argv;
    argv = ARGV_INIT;
    return 0;
}
