/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/boot.h"
#include "common/units.h"

/* The options of `qverity boot`: their table, their values, and which of them go together. */

#define MIB (UINT64_C(1024) * 1024)
#define MEMORY_DEFAULT (2048 * MIB)
#define CPUS_DEFAULT 2
#define CPUS_MAX 4096
#define SSH_PORT 22
#define POWERDOWN_WRITABLE 60
#define POWERDOWN_MAX 86400

enum {
    OPT_KERNEL,
    OPT_INITRD,
    OPT_APPEND,
    OPT_MEMORY,
    OPT_CPUS,
    OPT_CPU,
    OPT_ACCEL,
    OPT_BIOS,
    OPT_OVMF_CODE,
    OPT_OVMF_VARS,
    OPT_NETWORK,
    OPT_SSH_PORT,
    OPT_FORWARD,
    OPT_VFIO,
    OPT_CDROM,
    OPT_WRITABLE,
    OPT_NO_VERITY,
    OPT_DM_INIT,
    OPT_NO_DM_INIT,
    OPT_UNTIL,
    OPT_TIMEOUT,
    OPT_POWERDOWN,
    OPT_CONSOLE,
    OPT_QMP,
    OPT_DRY_RUN,
};

const struct cli_option boot_option_table[] = {
    [OPT_KERNEL] = {"kernel", 0, "FILE",
                    "the kernel to boot, image:/PATH, or none for the disk's own boot loader (the "
                    "newest in the image)"},
    [OPT_INITRD] = {"initrd", 0, "FILE",
                    "its initial RAM disk, image:/PATH or none (the kernel's own)"},
    [OPT_APPEND] = {"append", 0, "STRING", "the kernel command line, in place of the default one"},
    [OPT_MEMORY] = {"memory", 0, "SIZE", "the guest's memory (2G)"},
    [OPT_CPUS] = {"cpus", 0, "COUNT", "virtual CPUs (2)"},
    [OPT_CPU] = {"cpu", 0, "MODEL", "CPU model of QEMU (host with KVM, else max)"},
    [OPT_ACCEL] = {"accel", 0, "auto|kvm|tcg",
                   "accelerator; auto tries whether KVM runs a guest (auto)"},
    [OPT_BIOS] = {"bios", 0, "FILE", "firmware: one image"},
    [OPT_OVMF_CODE] = {"ovmf-code", 0, "FILE", "firmware: OVMF's code, in flash memory"},
    [OPT_OVMF_VARS] = {"ovmf-vars", 0, "FILE", "its variables; the guest writes to a copy"},
    [OPT_NETWORK] = {"network", 0, "none|user|qemu",
                     "network card: none, virtio, or QEMU's default (none)"},
    [OPT_SSH_PORT] = {"ssh-port", 0, "PORT", "forward this port of 127.0.0.1 to the guest's SSH"},
    [OPT_FORWARD] = {"forward", 0, "tcp:HOST:GUEST", "forward a port; may be given several times"},
    [OPT_VFIO] = {"vfio", 0, "ADDRESS", "give the guest this PCI device; several times, too"},
    [OPT_CDROM] = {"cdrom", 0, "FILE", "put this image into a CD drive"},
    [OPT_WRITABLE] = {"writable", 0, NULL, "attach the image itself, for setting it up; no verity"},
    [OPT_NO_VERITY] = {"no-verity", 0, NULL, "only the disk: no hash device, no dm-verity"},
    [OPT_DM_INIT] = {"dm-init", 0, NULL, "put dm-mod.create= on the command line (default)"},
    [OPT_NO_DM_INIT] = {"no-dm-init", 0, NULL,
                        "do not: the command line or the guest sets dm-verity up"},
    [OPT_UNTIL] = {"until", 0, "REGEX", "stop the guest once its console shows this; done then"},
    [OPT_TIMEOUT] = {"timeout", 0, "SECONDS", "stop the guest after this time; failed then"},
    [OPT_POWERDOWN] =
        {"powerdown", 0, "SECONDS",
         "time to power down in when the guest is stopped (with --writable 60, else 0)"},
    [OPT_CONSOLE] = {"console", 0, "FILE", "write the console to FILE as well"},
    [OPT_QMP] = {"qmp", 0, "SOCKET", "let QEMU listen for QMP at this path"},
    [OPT_DRY_RUN] = {"dry-run", 0, NULL, "print QEMU's command line and run nothing"},
    {0},
};

/* --- Values --- */

static int parse_count(const char *argument, const char *what, uint64_t max, unsigned *ret,
                       struct error *err)
{
    uint64_t value;

    int r = parse_u64(argument, what, &value, err);
    if (r < 0)
        return r;
    if (value < 1 || value > max)
        return cli_usage_error(err, "%s: '%s' is not between 1 and %llu", what, argument,
                               (unsigned long long)max);
    *ret = (unsigned)value;
    return 0;
}

static int parse_powerdown(const char *argument, struct boot_options *o, struct error *err)
{
    o->powerdown_set = true;
    if (strcmp(argument, "0") == 0) {
        o->powerdown = 0;
        return 0;
    }
    return parse_count(argument, "--powerdown", POWERDOWN_MAX, &o->powerdown, err);
}

static int parse_memory(const char *argument, uint64_t *ret, struct error *err)
{
    uint64_t value;

    int r = parse_size(argument, "--memory", &value, err);
    if (r < 0)
        return r;
    if (value == 0 || value % MIB != 0)
        return cli_usage_error(err, "--memory: '%s' is not a multiple of 1M", argument);
    *ret = value;
    return 0;
}

/* One of the words, by its place among them. `choices` is for the message. */
static int parse_word(const char *argument, const char *option, const char *const *words,
                      const char *choices, unsigned *ret, struct error *err)
{
    for (unsigned i = 0; words[i] != NULL; i++)
        if (strcmp(argument, words[i]) == 0) {
            *ret = i;
            return 0;
        }
    return cli_usage_error(err, "%s: '%s' is not %s", option, argument, choices);
}

static int parse_accel(const char *argument, enum boot_accel *ret, struct error *err)
{
    static const char *const words[] = {
        [BOOT_ACCEL_AUTO] = "auto", [BOOT_ACCEL_KVM] = "kvm", [BOOT_ACCEL_TCG] = "tcg", NULL};
    unsigned value;

    int r = parse_word(argument, "--accel", words, "auto, kvm or tcg", &value, err);
    if (r == 0)
        *ret = (enum boot_accel)value;
    return r;
}

static int parse_network(const char *argument, struct boot_options *o, struct error *err)
{
    static const char *const words[] = {
        [NET_NONE] = "none", [NET_QEMU] = "qemu", [NET_USER] = "user", NULL};
    unsigned value;

    int r = parse_word(argument, "--network", words, "none, user or qemu", &value, err);
    if (r == 0) {
        o->net = (enum net_kind)value;
        o->net_set = true;
    }
    return r;
}

static int add_forward(const struct net_forward *forward, const char *option,
                       struct boot_options *o, struct error *err)
{
    if (o->forward_count == BOOT_FORWARDS_MAX)
        return cli_usage_error(err, "%s: more than %d ports", option, BOOT_FORWARDS_MAX);
    for (size_t i = 0; i < o->forward_count; i++)
        if (net_forward_clash(&o->forwards[i], forward))
            return cli_usage_error(err, "%s: port %u of the host is forwarded twice", option,
                                   forward->host);
    o->forwards[o->forward_count++] = *forward;
    return 0;
}

static int parse_forward(const char *argument, struct boot_options *o, struct error *err)
{
    struct net_forward forward;

    int r = net_forward_parse(argument, &forward, err);
    if (r < 0)
        return error_prefix(err, "--forward");
    return add_forward(&forward, "--forward", o, err);
}

static int parse_ssh_port(const char *argument, struct boot_options *o, struct error *err)
{
    struct net_forward forward = {.address = NET_ADDRESS_DEFAULT, .guest = SSH_PORT};
    unsigned port;

    int r = parse_count(argument, "--ssh-port", UINT16_MAX, &port, err);
    if (r < 0)
        return r;
    forward.host = (uint16_t)port;
    o->ssh = true;
    return add_forward(&forward, "--ssh-port", o, err);
}

/* [DOMAIN:]BUS:DEVICE.FUNCTION, as lspci prints it and the kernel names it. */
static bool is_pci_address(const char *text)
{
    static const char with_domain[] = "hhhh:hh:hh.o", without[] = "hh:hh.o";
    const char *pattern = strlen(text) == sizeof(with_domain) - 1 ? with_domain : without;

    if (strlen(text) != strlen(pattern))
        return false;
    for (size_t i = 0; pattern[i] != '\0'; i++) {
        const char *allowed = pattern[i] == 'h'   ? "0123456789abcdefABCDEF"
                              : pattern[i] == 'o' ? "01234567"
                                                  : NULL;
        if (allowed != NULL ? strchr(allowed, text[i]) == NULL : text[i] != pattern[i])
            return false;
    }
    return true;
}

static int add_vfio(const char *argument, struct boot_options *o, struct error *err)
{
    if (!is_pci_address(argument))
        return cli_usage_error(err, "--vfio: '%s' is not a PCI address as 0000:01:00.0", argument);
    if (o->vfio_count == BOOT_VFIO_MAX)
        return cli_usage_error(err, "--vfio: more than %d devices", BOOT_VFIO_MAX);
    o->vfio[o->vfio_count++] = argument;
    return 0;
}

static int set(const char **to, const char *argument)
{
    *to = argument;
    return 0;
}

static int set_flag(bool *to)
{
    *to = true;
    return 0;
}

int boot_option(size_t index, const char *argument, void *context, struct error *err)
{
    struct boot_options *o = context;

    switch (index) {
    case OPT_KERNEL:
        o->no_kernel = strcmp(argument, "none") == 0;
        return set(&o->kernel, o->no_kernel ? NULL : argument);
    case OPT_INITRD:
        return set(&o->initrd, argument);
    case OPT_APPEND:
        return set(&o->append, argument);
    case OPT_MEMORY:
        return parse_memory(argument, &o->memory, err);
    case OPT_CPUS:
        return parse_count(argument, "--cpus", CPUS_MAX, &o->cpus, err);
    case OPT_CPU:
        return set(&o->cpu, argument);
    case OPT_ACCEL:
        return parse_accel(argument, &o->accel, err);
    case OPT_BIOS:
        return set(&o->bios, argument);
    case OPT_OVMF_CODE:
        return set(&o->ovmf_code, argument);
    case OPT_OVMF_VARS:
        return set(&o->ovmf_vars, argument);
    case OPT_NETWORK:
        return parse_network(argument, o, err);
    case OPT_SSH_PORT:
        return parse_ssh_port(argument, o, err);
    case OPT_FORWARD:
        return parse_forward(argument, o, err);
    case OPT_VFIO:
        return add_vfio(argument, o, err);
    case OPT_CDROM:
        return set(&o->cdrom, argument);
    case OPT_WRITABLE:
        return set_flag(&o->writable);
    case OPT_NO_VERITY:
        return set_flag(&o->no_verity);
    case OPT_DM_INIT:
        o->no_dm_init = false;
        return set_flag(&o->dm_init);
    case OPT_NO_DM_INIT:
        o->dm_init = false;
        return set_flag(&o->no_dm_init);
    case OPT_UNTIL:
        return set(&o->until, argument);
    case OPT_TIMEOUT:
        return parse_count(argument, "--timeout", INT_MAX, &o->timeout, err);
    case OPT_POWERDOWN:
        return parse_powerdown(argument, o, err);
    case OPT_CONSOLE:
        return set(&o->console, argument);
    case OPT_QMP:
        return set(&o->qmp, argument);
    case OPT_DRY_RUN:
        return set_flag(&o->dry_run);
    }
    abort();
}

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

/* What only a kernel that we start can get. */
static int check_kernel(const struct boot_options *o, struct error *err)
{
    const char *const needs_it[] = {o->initrd != NULL ? "--initrd" : NULL,
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
        {"--bios", o->bios},
        {"--ovmf-code", o->ovmf_code},
        {"--ovmf-vars", o->ovmf_vars},
        {"--cdrom", o->cdrom},
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
    const char *const all[] = {options->kernel,    options->initrd,    options->bios,
                               options->ovmf_code, options->ovmf_vars, options->cdrom};
    size_t count = 0;

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (all[i] != NULL)
            ret_files[count++] = all[i];
    ret_files[count] = NULL;
}
