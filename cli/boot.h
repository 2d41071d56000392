/* SPDX-License-Identifier: MIT */
#pragma once

#include <limits.h>
#include <stdbool.h>

#include "cli/cli.h"
#include "cli/console.h"
#include "qemuctl/machine.h"
#include "qemuctl/until.h"

/* Private to the boot command: boot_options.c knows the options, boot.c makes the command lines,
 * boot_session.c runs and watches the processes. */

/* --- The options --- */

enum boot_accel { BOOT_ACCEL_AUTO, BOOT_ACCEL_KVM, BOOT_ACCEL_TCG };

#define BOOT_FORWARDS_MAX 64
#define BOOT_VFIO_MAX 16

struct boot_options {
    const char *kernel, *initrd, *append;
    bool no_kernel; /* --kernel none: the disk's own boot loader */
    const char *bios, *ovmf_code, *ovmf_vars, *cpu, *cdrom, *until, *console, *qmp;
    uint64_t memory; /* bytes */
    unsigned cpus;
    unsigned timeout;   /* seconds, 0: none */
    unsigned powerdown; /* seconds */
    bool powerdown_set;
    enum boot_accel accel;
    enum net_kind net; /* valid if net_set, or once the options are complete */
    bool net_set, ssh;
    struct net_forward forwards[BOOT_FORWARDS_MAX];
    size_t forward_count;
    const char *vfio[BOOT_VFIO_MAX];
    size_t vfio_count;
    bool writable, no_verity, dm_init, no_dm_init, dry_run;
    char *const *extra; /* what stands behind "--" */
    size_t extra_count;
};

extern const struct cli_option boot_option_table[];

/* Takes one option of the table; `context` is a struct boot_options. */
int boot_option(size_t index, const char *argument, void *context, struct error *err);

/* Fills in defaults and checks what can be checked without the image: contradictions, and files
 * that are not there. */
int boot_options_complete(const struct cli_options *shared, struct boot_options *options,
                          struct error *err);

/* The files that the guest is made of besides the image, NULL behind the last. */
#define BOOT_FILES_MAX 8
void boot_options_files(const struct boot_options *options,
                        const char *ret_files[static BOOT_FILES_MAX]);

/* --- The session --- */

struct boot_session {
    const struct cli_options *cli;
    const struct cli_target *target; /* to mount; NULL: QEMU opens the image itself */
    const char *socket;              /* that QEMU makes, removed in the end; or NULL */
    bool verity;                     /* wait for dm-verity's table */
    unsigned timeout;                /* seconds; 0: none */
    unsigned powerdown_ms; /* that a guest gets to power down when it is to be stopped; 0: it is not
                            * asked */
    const char *until_text; /* the expression, or NULL */
    struct until *until;
    struct sink *console; /* the console's copy in a file */

    /* Makes QEMU's arguments, once the table is known (NULL without verity). */
    int (*make_argv)(void *arg, const char *table, struct argv *ret, struct error *err);
    void *arg;
};

/*
 * Mounts, boots, and watches the guest until it ends or is to be ended. Leaves no process or mount.
 * Returns 0 if the expression matched, or, without one, if the guest powered off.
 */
int boot_session_run(const struct boot_session *session, struct error *err);
