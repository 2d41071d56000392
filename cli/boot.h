/* SPDX-License-Identifier: MIT */
#pragma once

#include <limits.h>
#include <stdbool.h>

#include "cli/cli.h"
#include "cli/console.h"
#include "qemuctl/machine.h"
#include "qemuctl/until.h"

/* Private to the boot command: boot_options.c and boot_check.c know the options, boot.c makes the
 * command lines, boot_sev.c what encrypted guests need, boot_session.c runs and watches the
 * processes. */

/* --- The options --- */

enum boot_accel { BOOT_ACCEL_AUTO, BOOT_ACCEL_KVM, BOOT_ACCEL_TCG };

/* Who decides how QEMU is told of SEV-SNP. */
enum boot_dialect { BOOT_DIALECT_AUTO, BOOT_DIALECT_UPSTREAM, BOOT_DIALECT_FORK };

struct boot_sev_options {
    bool on;
    enum sev_mode mode;
    enum boot_dialect dialect;
    uint64_t policy, features;
    bool policy_set, features_set;
    bool host_data_set, host_data_root; /* the bytes, or the root hash */
    uint8_t host_data[SEV_HOST_DATA_SIZE];
    const char *id_block, *id_auth;
};

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
    struct boot_sev_options sev;
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
#define BOOT_FILES_MAX 12
void boot_options_files(const struct boot_options *options,
                        const char *ret_files[static BOOT_FILES_MAX]);

/* --- Encrypted guests --- */

struct guest_file;
struct boot_sev;

/*
 * Finds out what QEMU can do, and checks firmware and CPU. `kernel` and `initrd` may have no
 * descriptor if the image was only looked at for a dry run; they must outlive the result, as must
 * the options. With them complete and sev.on. *ret is freed with boot_sev_free().
 */
int boot_sev_prepare(const struct cli_options *cli, const struct boot_options *options,
                     const char *qemu, const struct guest_file *kernel,
                     const struct guest_file *initrd, struct boot_sev **ret, struct error *err);
void boot_sev_free(struct boot_sev *sev);
DEFINE_CLEANUP(struct boot_sev, boot_sev_free);

/* Finds out whether the host can start the guest. */
int boot_sev_host(struct boot_sev *sev, struct error *err);

/* Checks that what is attested stands for the disk (`table` is dm-verity's), tells the launch
 * digest of a guest with this command line (NULL without a kernel), and completes QEMU's arguments,
 * which are valid as long as `sev`. */
int boot_sev_launch(struct boot_sev *sev, const char *table, const char *append,
                    const struct sev_options **ret, struct error *err);

/* QEMU's arguments as far as the root hash has no part in them. */
const struct sev_options *boot_sev_arguments(const struct boot_sev *sev);

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
