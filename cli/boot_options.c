/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>

#include "cli/boot.h"
#include "common/units.h"

/* The options of `qverity boot`: their table and their values. */

#define MIB (UINT64_C(1024) * 1024)
#define CPUS_MAX 4096
#define SSH_PORT 22
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
    OPT_SEV,
    OPT_SEV_ES,
    OPT_SNP,
    OPT_SNP_DIALECT,
    OPT_POLICY,
    OPT_GUEST_FEATURES,
    OPT_HOST_DATA,
    OPT_ID_BLOCK,
    OPT_ID_AUTH,
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
    [OPT_SNP] = {"snp", 0, NULL, "encrypt and protect the guest with SEV-SNP"},
    [OPT_SEV_ES] = {"sev-es", 0, NULL, "encrypt its memory and registers with SEV-ES"},
    [OPT_SEV] = {"sev", 0, NULL, "encrypt its memory with SEV"},
    [OPT_SNP_DIALECT] = {"snp-dialect", 0, "auto|upstream|amd-fork",
                         "whose QEMU it is; auto asks it (auto)"},
    [OPT_POLICY] = {"policy", 0, "NUMBER", "the guest's policy (snp 0x30000, sev-es 0x5, sev 0x1)"},
    [OPT_GUEST_FEATURES] = {"guest-features", 0, "NUMBER",
                            "snp: SEV features that the host's KVM turns on (0x1)"},
    [OPT_HOST_DATA] = {"host-data", 0, "HEX|root-hash", "snp: 32 bytes for attestation reports"},
    [OPT_ID_BLOCK] = {"id-block", 0, "FILE", "snp: the ID block, of 'qverity measure'"},
    [OPT_ID_AUTH] = {"id-auth", 0, "FILE", "snp: and its authentication"},
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

static int set_sev(enum sev_mode mode, struct boot_options *o, struct error *err)
{
    if (o->sev.on && o->sev.mode != mode)
        return cli_usage_error(err, "--sev, --sev-es and --snp exclude each other");
    o->sev.on = true;
    o->sev.mode = mode;
    return 0;
}

static int parse_dialect(const char *argument, enum boot_dialect *ret, struct error *err)
{
    static const char *const words[] = {[BOOT_DIALECT_AUTO] = "auto",
                                        [BOOT_DIALECT_UPSTREAM] = "upstream",
                                        [BOOT_DIALECT_FORK] = "amd-fork",
                                        NULL};
    unsigned value;

    int r = parse_word(argument, "--snp-dialect", words, "auto, upstream or amd-fork", &value, err);
    if (r == 0)
        *ret = (enum boot_dialect)value;
    return r;
}

static int parse_number(const char *argument, const char *what, uint64_t *ret, bool *ret_set,
                        struct error *err)
{
    int r = parse_u64(argument, what, ret, err);

    if (r == 0)
        *ret_set = true;
    return r;
}

static int parse_host_data(const char *argument, struct boot_sev_options *sev, struct error *err)
{
    size_t size;

    sev->host_data_root = strcmp(argument, "root-hash") == 0;
    sev->host_data_set = true;
    if (sev->host_data_root)
        return 0;
    int r = hex_decode(argument, "--host-data", sev->host_data, sizeof(sev->host_data), &size, err);
    if (r == 0 && size != sizeof(sev->host_data))
        return cli_usage_error(err, "--host-data: %zu bytes, not %zu", size,
                               sizeof(sev->host_data));
    return r;
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
    case OPT_SEV:
        return set_sev(SEV_MODE_SEV, o, err);
    case OPT_SEV_ES:
        return set_sev(SEV_MODE_SEV_ES, o, err);
    case OPT_SNP:
        return set_sev(SEV_MODE_SNP, o, err);
    case OPT_SNP_DIALECT:
        return parse_dialect(argument, &o->sev.dialect, err);
    case OPT_POLICY:
        return parse_number(argument, "--policy", &o->sev.policy, &o->sev.policy_set, err);
    case OPT_GUEST_FEATURES:
        return parse_number(argument, "--guest-features", &o->sev.features, &o->sev.features_set,
                            err);
    case OPT_HOST_DATA:
        return parse_host_data(argument, &o->sev, err);
    case OPT_ID_BLOCK:
        return set(&o->sev.id_block, argument);
    case OPT_ID_AUTH:
        return set(&o->sev.id_auth, argument);
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
