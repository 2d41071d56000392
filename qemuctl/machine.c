/* SPDX-License-Identifier: MIT */
#include "qemuctl/machine.h"

#include <assert.h>
#include <inttypes.h>

/* Slots of PCI bus 0 from here on are the disks' controllers. QEMU gives devices without an address
 * the lowest slots that are free, and q35 has its own at 31. */
#define DISK_SLOT 0x10

#define MIB (UINT64_C(1024) * 1024)

/* Room to plug in CPUs and memory later, by QMP. */
#define CPUS_ROOM 16
#define MEMORY_SLOTS 5
#define MEMORY_ROOM_MIB 8192

/* --- Parts of the machine --- */

static void add_cpus_and_memory(struct argv *argv, const struct machine_options *options)
{
    const uint64_t mib = options->memory / MIB;

    argv_add(argv, "-smp");
    argv_addf(argv, "%u,maxcpus=%u", options->cpus,
              options->cpus > CPUS_ROOM ? options->cpus : CPUS_ROOM);
    argv_add(argv, "-m");
    argv_addf(argv, "%" PRIu64 "M,slots=%d,maxmem=%" PRIu64 "M", mib, MEMORY_SLOTS,
              mib + MEMORY_ROOM_MIB);
}

static int add_qmp_server(struct argv *argv, const char *path, struct error *err)
{
    _cleanup_free_ char *escaped = NULL;

    if (path == NULL)
        return 0;
    escaped = argv_escape_value(path);
    if (escaped == NULL)
        return error_oom(err);
    argv_add(argv, "-chardev");
    argv_addf(argv, "socket,id=qmp,path=%s,server=on,wait=off", escaped);
    argv_add_pair(argv, "-mon", "chardev=qmp,mode=control");
    return 0;
}

static int add_flash(struct argv *argv, unsigned unit, const char *file, const char *how,
                     struct error *err)
{
    _cleanup_free_ char *escaped = argv_escape_file(file);

    if (escaped == NULL)
        return error_oom(err);
    argv_add(argv, "-drive");
    argv_addf(argv, "if=pflash,format=raw,unit=%u,file=%s,%s", unit, escaped, how);
    return 0;
}

static int add_firmware(struct argv *argv, const struct machine_firmware *firmware,
                        struct error *err)
{
    const bool in_flash = firmware->bios_in_flash && firmware->bios != NULL;
    const char *flash = in_flash ? firmware->bios : firmware->code;
    int r = 0;

    assert(firmware->bios == NULL || firmware->code == NULL);
    if (!in_flash)
        argv_add_pair(argv, "-bios", firmware->bios);
    if (flash != NULL)
        r = add_flash(argv, 0, flash, "readonly=on", err);
    /* QEMU writes to a temporary file over it, which has no name from its beginning. */
    if (r == 0 && firmware->vars != NULL)
        r = add_flash(argv, 1, firmware->vars, "snapshot=on", err);
    return r;
}

static int add_disk(struct argv *argv, size_t i, const struct machine_disk *disk, struct error *err)
{
    _cleanup_free_ char *file = argv_escape_file(disk->file);
    _cleanup_free_ char *serial = argv_escape_value(disk->serial);

    if (file == NULL || serial == NULL)
        return error_oom(err);
    argv_add(argv, "-drive");
    argv_addf(argv, "file=%s,if=none,id=disk%zu,format=%s%s", file, i, disk->format,
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

static int add_cdrom(struct argv *argv, const char *file, struct error *err)
{
    _cleanup_free_ char *escaped = NULL;

    if (file == NULL)
        return 0;
    escaped = argv_escape_file(file);
    if (escaped == NULL)
        return error_oom(err);
    /* With a format, or QEMU would open whatever an image in its place names as its backing file.
     */
    argv_add(argv, "-drive");
    argv_addf(argv, "file=%s,media=cdrom,format=raw", escaped);
    argv_add_pair(argv, "-boot", "d");
    return 0;
}

/* Each device gets a root port of its own, and OVMF room for the 64-bit BARs of GPUs. */
static void add_vfio(struct argv *argv, const struct machine_options *options)
{
    for (size_t i = 0; i < options->vfio_count; i++) {
        argv_add(argv, "-device");
        /* QEMU's default chassis is 0, and there can be one port of each. */
        if (i == 0)
            argv_add(argv, "pcie-root-port,id=pci.1,bus=pcie.0");
        else
            argv_addf(argv, "pcie-root-port,id=pci.%zu,bus=pcie.0,chassis=%zu", i + 1, i);
        argv_add(argv, "-device");
        argv_addf(argv, "vfio-pci,host=%s,bus=pci.%zu", options->vfio[i], i + 1);
    }
    if (options->vfio_count > 0)
        argv_add_pair(argv, "-fw_cfg", "name=opt/ovmf/X-PciMmio64Mb,string=262144");
}

/* --- The whole --- */

static int add_all(struct argv *argv, const struct machine_options *options, struct error *err)
{
    const bool kvm = options->accel == ACCEL_KVM;
    int r;

    argv_add(argv, options->qemu != NULL ? options->qemu : MACHINE_QEMU_DEFAULT);
    if (kvm)
        argv_add(argv, "-enable-kvm");
    else
        argv_add_pair(argv, "-accel", "tcg");
    argv_add_pair(argv, "-cpu",
                  options->cpu != NULL   ? options->cpu
                  : options->sev != NULL ? MACHINE_CPU_SEV
                  : kvm                  ? "host"
                                         : "max");
    argv_add_pair(argv, "-machine", sev_machine(options->sev));
    add_cpus_and_memory(argv, options);
    argv_add(argv, "-no-reboot");
    argv_add(argv, "-nographic");
    argv_add_pair(argv, "-serial", "stdio");
    argv_add_pair(argv, "-monitor", "none");
    r = add_qmp_server(argv, options->qmp_socket, err);
    if (r == 0 && options->sev != NULL)
        r = sev_add(argv, options->sev, options->memory / MIB, err);
    if (r == 0)
        r = add_firmware(argv, &options->firmware, err);
    for (size_t i = 0; r == 0 && i < options->disk_count; i++)
        r = add_disk(argv, i, &options->disks[i], err);
    if (r == 0)
        r = add_cdrom(argv, options->cdrom, err);
    if (r < 0)
        return r;
    net_add(argv, &options->net);
    add_vfio(argv, options);
    argv_add_pair(argv, "-kernel", options->kernel);
    argv_add_pair(argv, "-initrd", options->initrd);
    argv_add_pair(argv, "-append", options->append);
    for (size_t i = 0; i < options->extra_count; i++)
        argv_add(argv, options->extra[i]);
    return argv_check(argv, err);
}

int machine_argv(const struct machine_options *options, struct argv *ret, struct error *err)
{
    _cleanup_argv_ struct argv argv = ARGV_INIT;

    assert(options->disk_count <= MACHINE_DISKS_MAX);
    assert(options->memory % MIB == 0);
    int r = add_all(&argv, options, err);
    if (r < 0)
        return r;
    *ret = argv;
    argv = ARGV_INIT;
    return 0;
}
