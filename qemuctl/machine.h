/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "qemuctl/accel.h"
#include "qemuctl/argv.h"
#include "qemuctl/net.h"
#include "qemuctl/sev.h"

/* The virtual machine that a QEMU is to make. Paths are QEMU's to open. */

/* Disk i becomes SCSI disk scsi<i>.0 target 0 at a PCI address of its own, so that no guest finds
 * the disks in another order whatever else the machine has. */
struct machine_disk {
    const char *file;
    const char *format; /* as QEMU names it; never NULL, or QEMU would believe the bytes */
    const char *serial;
    bool readonly;
};

#define MACHINE_DISKS_MAX 8

/* What is in the machine's flash memory; all NULL: QEMU's own BIOS. */
struct machine_firmware {
    const char *bios;   /* one image */
    bool bios_in_flash; /* as flash unit 0, rather than by -bios */
    const char *code;   /* in place of bios: OVMF_CODE, flash unit 0 */
    const char *vars;   /* and OVMF_VARS, unit 1, NULL if there is none: written to a copy that QEMU
                         * drops in the end */
};

struct machine_options {
    const char *qemu; /* program, found as execvp() does; NULL: MACHINE_QEMU_DEFAULT */
    enum accel accel;
    const char *cpu; /* NULL: "host" under KVM, "max" under TCG, MACHINE_CPU_SEV with `sev` */
    const struct sev_options *sev; /* the memory is encrypted; or NULL */
    uint64_t memory;               /* bytes, a multiple of 1 MiB */
    unsigned cpus;
    struct machine_firmware firmware;
    const char *kernel, *initrd, *append; /* each or NULL */
    const struct machine_disk *disks;
    size_t disk_count; /* up to MACHINE_DISKS_MAX */
    const char *cdrom; /* an image that the machine boots from if there is no kernel; or NULL */
    struct net_options net;
    const char *const *vfio; /* PCI addresses of devices that the guest gets */
    size_t vfio_count;
    const char *qmp_socket; /* where a QMP server for others listens, or NULL */
    char *const *extra;     /* QEMU arguments to append */
    size_t extra_count;
};

#define MACHINE_QEMU_DEFAULT "qemu-system-x86_64"

/* A model whose launch digests can be known, whatever CPU the host has. */
#define MACHINE_CPU_SEV "EPYC-v4"

/* Builds the whole argument list. The serial console is on QEMU's stdin and stdout. *ret must be
 * ARGV_INIT. */
int machine_argv(const struct machine_options *options, struct argv *ret, struct error *err);
