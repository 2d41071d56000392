/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/boot.h"

/* The options of `qverity boot`: which of them go together, what they are by default, and the files
 * that they name. */

#define MIB (UINT64_C(1024) * 1024)
#define MEMORY_DEFAULT (2048 * MIB)
#define CPUS_DEFAULT 2
#define POWERDOWN_WRITABLE 60

/* --- Which go together --- */

struct exclusion {
    bool a, b;
    const char *text;
};

static int check_exclusions(const struct cli_options *shared, const struct boot_options *o,
                            struct error *err)
{
    const bool flash = o->ovmf_code != NULL || o->ovmf_vars != NULL;
    const struct exclusion exclusions[] = {
        {o->no_verity, o->dm_init, "--dm-init and --no-verity"},
        {o->writable, o->dm_init, "--dm-init and --writable"},
        {o->bios != NULL, flash, "--bios and --ovmf-code"},
        {o->writable, shared->image.snapshot != NULL, "--snapshot and --writable"},
        {o->writable, shared->image.password_file != NULL, "--password-file and --writable"},
        {o->net_set && o->net != NET_USER, o->forward_count > 0,
         "--network none or qemu, and --ssh-port or --forward"},
    };

    for (size_t i = 0; i < sizeof(exclusions) / sizeof(exclusions[0]); i++)
        if (exclusions[i].a && exclusions[i].b)
            return cli_usage_error(err, "boot: %s exclude each other", exclusions[i].text);
    if (o->ovmf_vars != NULL && o->ovmf_code == NULL)
        return cli_usage_error(err, "boot: --ovmf-vars needs --ovmf-code");
    return 0;
}

/* QEMU arguments of the user's own that would change what is measured, behind our back. */
static int check_measured(const struct boot_options *o, const char *mode, struct error *err)
{
    static const struct {
        const char *argument, *option;
    } measured[] = {
        {"cpu", "cpu"},       {"smp", "cpus"},  {"kernel", "kernel"}, {"initrd", "initrd"},
        {"append", "append"}, {"bios", "bios"}, {"pflash", "bios"},
    };

    for (size_t i = 0; i < o->extra_count; i++) {
        const char *argument = o->extra[i];
        if (argument[0] != '-')
            continue;
        argument += argument[1] == '-' ? 2 : 1;
        for (size_t j = 0; j < sizeof(measured) / sizeof(measured[0]); j++)
            if (strcmp(argument, measured[j].argument) == 0)
                return cli_usage_error(err,
                                       "boot: %s behind -- is not in the launch digest of %s that "
                                       "is told: use --%s",
                                       o->extra[i], mode, measured[j].option);
    }
    return 0;
}

/* An encrypted guest that nobody can judge by its attestation is not started. */
static int check_sev(struct boot_options *o, struct error *err)
{
    struct boot_sev_options *sev = &o->sev;
    const bool snp = sev->on && sev->mode == SEV_MODE_SNP;
    const char *const mode = sev->on ? sev_mode_name(sev->mode) : "";
    const char *const need_snp = sev->features_set       ? "--guest-features"
                                 : sev->host_data_set    ? "--host-data"
                                 : sev->id_block != NULL ? "--id-block"
                                 : sev->id_auth != NULL  ? "--id-auth"
                                                         : NULL;

    if (!snp && need_snp != NULL)
        return cli_usage_error(err, "boot: %s needs --snp", need_snp);
    if (!sev->on && sev->policy_set)
        return cli_usage_error(err, "boot: --policy needs --snp, --sev-es or --sev");
    if (!sev->on)
        return 0;
    if (o->writable || o->no_verity)
        return cli_usage_error(err,
                               "boot: %s and %s exclude each other: nothing would verify the disk",
                               mode, o->writable ? "--writable" : "--no-verity");
    if (o->accel == BOOT_ACCEL_TCG)
        return cli_usage_error(err, "boot: %s needs KVM, not --accel tcg", mode);
    if ((sev->id_block == NULL) != (sev->id_auth == NULL))
        return cli_usage_error(err, "boot: --id-block and --id-auth go together");
    if (check_measured(o, mode, err) < 0)
        return -err->code;
    if (snp && o->ovmf_code != NULL)
        return cli_usage_error(err, "boot: SEV-SNP takes firmware in one image, by --bios");
    if (!sev->policy_set)
        sev->policy = sev_policy_default(sev->mode);
    if (sev_policy_check(sev->mode, sev->policy, err) < 0)
        return cli_usage_error(err, "boot: --policy: %s", error_message(err));
    return 0;
}

/* What only a kernel that we start can get. */
static int check_kernel(const struct boot_options *o, struct error *err)
{
    const bool initrd = o->initrd != NULL && strcmp(o->initrd, "none") != 0;
    const char *const needs_it[] = {initrd ? "--initrd" : NULL,
                                    o->append != NULL ? "--append" : NULL,
                                    o->dm_init ? "--dm-init" : NULL};

    for (size_t i = 0; o->no_kernel && i < sizeof(needs_it) / sizeof(needs_it[0]); i++)
        if (needs_it[i] != NULL)
            return cli_usage_error(err, "boot: %s needs --kernel FILE", needs_it[i]);
    return 0;
}

static int check_readable(const char *path)
{
    _cleanup_close_ int fd = -1;
    struct stat st;

    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    return S_ISDIR(st.st_mode) ? -EISDIR : 0;
}

static int check_files(const struct boot_options *o, struct error *err)
{
    const struct {
        const char *option, *path;
    } files[] = {
        {"--bios", o->bios},   {"--ovmf-code", o->ovmf_code},   {"--ovmf-vars", o->ovmf_vars},
        {"--cdrom", o->cdrom}, {"--id-block", o->sev.id_block}, {"--id-auth", o->sev.id_auth},
    };

    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        int r = files[i].path != NULL ? check_readable(files[i].path) : 0;
        if (r < 0)
            return error_set_errno(err, -r, "%s %s", files[i].option, files[i].path);
    }
    return 0;
}

/* QEMU deletes whatever is at the path where it is to listen. */
static int check_socket(const char *path, struct error *err)
{
    struct stat st;

    if (path == NULL || lstat(path, &st) < 0 || S_ISSOCK(st.st_mode))
        return 0;
    return error_set(err, EEXIST, "--qmp %s: exists and is not a socket", path);
}

/* A device that its host driver holds would be taken away from the host, or QEMU would fail with
 * a message that names no driver. */
static int check_vfio(const char *address, struct error *err)
{
    char path[64], driver[256];

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s%s",
             strlen(address) == strlen("hh:hh.o") ? "0000:" : "", address);
    if (access(path, F_OK) < 0)
        return error_set(err, ENODEV, "--vfio %s: there is no such PCI device", address);
    strcat(path, "/driver");
    ssize_t n = readlink(path, driver, sizeof(driver) - 1);
    driver[n > 0 ? n : 0] = '\0';
    const char *name = strrchr(driver, '/') != NULL ? strrchr(driver, '/') + 1 : "none";
    if (strcmp(name, "vfio-pci") != 0)
        return error_set(err, EBUSY,
                         "--vfio %s: its driver is %s; bind the device to vfio-pci first", address,
                         name);
    return 0;
}

int boot_options_complete(const struct cli_options *shared, struct boot_options *options,
                          struct error *err)
{
    struct boot_options *o = options;
    int r;

    o->memory = o->memory != 0 ? o->memory : MEMORY_DEFAULT;
    o->cpus = o->cpus != 0 ? o->cpus : CPUS_DEFAULT;
    r = check_exclusions(shared, o, err);
    if (r == 0)
        r = check_sev(o, err);
    if (r < 0)
        return r;
    if (o->writable) {
        o->no_verity = true;
        o->no_kernel |= o->kernel == NULL;
    }
    /* With read-only disks a guest has nothing that it could lose. */
    if (!o->powerdown_set)
        o->powerdown = o->writable ? POWERDOWN_WRITABLE : 0;
    /* Setting a guest up takes a network; one that is finished gets what was asked for. */
    if (!o->net_set)
        o->net = o->forward_count > 0 ? NET_USER : o->writable ? NET_QEMU : NET_NONE;
    /* It would get away from us. */
    for (size_t i = 0; i < o->extra_count; i++)
        if (strcmp(o->extra[i], "-daemonize") == 0 || strcmp(o->extra[i], "--daemonize") == 0)
            return cli_usage_error(err, "boot: QEMU cannot be run with -daemonize here");
    r = check_kernel(o, err);
    if (r == 0)
        r = check_files(o, err);
    if (r == 0)
        r = check_socket(o->qmp, err);
    for (size_t i = 0; r == 0 && !o->dry_run && i < o->vfio_count; i++)
        r = check_vfio(o->vfio[i], err);
    return r;
}

void boot_options_files(const struct boot_options *options,
                        const char *ret_files[static BOOT_FILES_MAX])
{
    const char *const all[] = {options->kernel,       options->initrd,     options->bios,
                               options->ovmf_code,    options->ovmf_vars,  options->cdrom,
                               options->sev.id_block, options->sev.id_auth};
    static_assert(sizeof(all) / sizeof(all[0]) < BOOT_FILES_MAX, "no room for all files");
    size_t count = 0;

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (all[i] != NULL)
            ret_files[count++] = all[i];
    ret_files[count] = NULL;
}
