/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "qemuctl/accel.h"
#include "qemuctl/argv.h"

/* The virtual machine that a QEMU is to make. */

/* Disk i becomes SCSI disk scsi<i>.0 target 0 at a PCI address of its own, so that no guest finds
 * the disks in another order whatever else the machine has. */
struct machine_disk {
    const char *file; /* raw bytes; an absolute path */
    const char *serial;
    bool readonly;
};

#define MACHINE_DISKS_MAX 8

struct machine_options {
    const char *qemu; /* program, found as execvp() does; NULL: qemu-system-x86_64 */
    enum accel accel;
    const char *cpu; /* NULL: "host" under KVM, "max" under TCG */
    uint64_t memory; /* bytes, a multiple of 1 MiB */
    unsigned cpus;
    const char *bios;                     /* firmware image for -bios, or NULL */
    const char *kernel, *initrd, *append; /* each or NULL */
    const struct machine_disk *disks;
    size_t disk_count;      /* up to MACHINE_DISKS_MAX */
    const char *qmp_socket; /* where a QMP server for others listens, or NULL */
    char *const *extra;     /* QEMU arguments to append */
    size_t extra_count;
};

#define MACHINE_QEMU_DEFAULT "qemu-system-x86_64"

/* Builds the whole argument list. The serial console is on QEMU's stdin and stdout. *ret must be
 * ARGV_INIT. */
int machine_argv(const struct machine_options *options, struct argv *ret, struct error *err);
