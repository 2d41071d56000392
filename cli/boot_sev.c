/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "cli/boot.h"
#include "cli/guest_kernel.h"
#include "cli/measure.h"
#include "common/log.h"
#include "common/units.h"
#include "qemuctl/capabilities.h"

/*
 * Encrypted guests: what has to hold before one is started, and the digest that its owner will find
 * in its attestation. A launch that would attest nothing of the disk, or that nobody could compare
 * with anything, is refused.
 *
 * In a dry run nothing of the host is asked, and firmware that would not do is a warning.
 */

struct boot_sev {
    const struct boot_options *options;
    const char *qemu;
    const struct guest_file *kernel, *initrd; /* NULL without a kernel */
    bool verbose;
    struct ovmf *ovmf;
    char *vcpu_type;
    uint32_t vcpu_signature;
    uint8_t host_data[SEV_HOST_DATA_SIZE];
    uint8_t id_block[ID_BLOCK_SIZE];
    uint8_t id_auth[ID_AUTH_SIZE];
    struct sev_options arguments;
};

void boot_sev_free(struct boot_sev *sev)
{
    if (sev->ovmf != NULL)
        ovmf_free(sev->ovmf);
    free(sev->vcpu_type);
    free(sev);
}

const struct sev_options *boot_sev_arguments(const struct boot_sev *sev)
{
    return &sev->arguments;
}

/* --- QEMU and the host --- */

/* In a dry run QEMU is asked only if the command line depends on it. */
static int choose_dialect(const struct boot_options *o, const char *qemu, enum snp_dialect *ret,
                          struct error *err)
{
    const bool snp = o->sev.mode == SEV_MODE_SNP;
    struct qemu_capabilities capabilities;
    enum snp_dialect dialect = o->sev.dialect == BOOT_DIALECT_FORK ? SNP_AMD_FORK : SNP_UPSTREAM;
    const bool auto_dialect = o->sev.dialect == BOOT_DIALECT_AUTO;

    if (o->dry_run && !(snp && auto_dialect)) {
        *ret = dialect;
        return 0;
    }
    int r = qemu_capabilities_get(qemu, &capabilities, err);
    if (r == 0 && snp && auto_dialect) {
        r = qemu_snp_dialect(qemu, &capabilities, &dialect, err);
        if (r == -ENOTSUP && o->dry_run)
            return error_set(err, ENOTSUP,
                             "%s (--snp-dialect upstream or amd-fork has the "
                             "command line of one that can printed)",
                             error_message(err));
    } else if (r == 0) {
        r = qemu_check_sev(qemu, &capabilities, o->sev.mode, dialect, err);
    }
    if (r < 0)
        return r;
    *ret = dialect;
    return 0;
}

int boot_sev_host(struct boot_sev *sev, struct error *err)
{
    unsigned cbitpos = SEV_CBITPOS_USUAL;

    if (!sev->options->dry_run) {
        int r = qemu_sev_host(sev->qemu, &cbitpos, err);
        if (r < 0)
            return r;
    }
    if (!sev_host_cbitpos(&cbitpos))
        log_info("this CPU does not tell of SEV; the C-bit is taken to be bit %u", cbitpos);
    sev->arguments.cbitpos = cbitpos;
    return 0;
}

/* --- What is measured --- */

/* The model is what stands in front of -cpu's properties. */
static int find_signature(const struct boot_options *o, struct boot_sev *sev, struct error *err)
{
    const char *const cpu = o->cpu != NULL ? o->cpu : MACHINE_CPU_SEV;

    sev->vcpu_type = strndup(cpu, strcspn(cpu, ","));
    if (sev->vcpu_type == NULL)
        return error_oom(err);
    if (o->sev.mode == SEV_MODE_SEV)
        return 0;
#ifdef __x86_64__
    if (strcmp(sev->vcpu_type, "host") == 0) {
        unsigned ebx, ecx, edx;
        __cpuid(1, sev->vcpu_signature, ebx, ecx, edx);
        return 0;
    }
#endif
    if (vcpu_type_signature(sev->vcpu_type, &sev->vcpu_signature, err) < 0)
        return error_prefix(err, "--cpu %s: its launch digest is not known", sev->vcpu_type);
    return 0;
}

static int check_firmware(const struct boot_options *o, struct boot_sev *sev, struct error *err)
{
    const char *const file = o->bios != NULL ? o->bios : o->ovmf_code;

    if (file == NULL)
        return cli_usage_error(err,
                               "boot: %s needs OVMF as its firmware: --bios FILE (edk2's "
                               "OvmfPkg/AmdSev/AmdSevX64.dsc builds one that checks the kernel)",
                               sev_mode_name(o->sev.mode));
    int r = ovmf_load(file, &sev->ovmf, err);
    if (r == 0)
        r = measure_check_firmware(sev->ovmf, o->sev.mode, sev->kernel != NULL, o->cpus, err);
    if (r == 0 || !o->dry_run)
        return r;
    log_warning("%s", error_message(err));
    error_clear(err);
    return 0;
}

static int read_identity(const struct boot_options *o, struct boot_sev *sev, struct error *err)
{
    if (o->sev.id_block == NULL)
        return 0;
    int r = id_block_read(o->sev.id_block, sizeof(sev->id_block), sev->id_block, err);
    if (r < 0)
        return error_prefix(err, "--id-block");
    r = id_block_read(o->sev.id_auth, sizeof(sev->id_auth), sev->id_auth, err);
    if (r < 0)
        return error_prefix(err, "--id-auth");
    sev->arguments.id_block = sev->id_block;
    sev->arguments.id_auth = sev->id_auth;
    return 0;
}

int boot_sev_prepare(const struct cli_options *cli, const struct boot_options *options,
                     const char *qemu, const struct guest_file *kernel,
                     const struct guest_file *initrd, struct boot_sev **ret, struct error *err)
{
    _cleanup_(boot_sev_free_cleanup) struct boot_sev *sev = calloc(1, sizeof(*sev));

    if (sev == NULL)
        return error_oom(err);
    sev->options = options;
    sev->qemu = qemu;
    sev->kernel = kernel->path != NULL ? kernel : NULL;
    sev->initrd = initrd;
    sev->verbose = cli->verbose > 0;
    sev->arguments = (struct sev_options){
        .mode = options->sev.mode,
        .policy = options->sev.policy,
        .policy_set = options->sev.policy_set,
        .kernel = sev->kernel != NULL,
    };
    int r = choose_dialect(options, qemu, &sev->arguments.dialect, err);
    if (r == 0)
        r = find_signature(options, sev, err);
    if (r == 0)
        r = check_firmware(options, sev, err);
    if (r == 0)
        r = read_identity(options, sev, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(sev);
    return 0;
}

/* --- Launching --- */

/* The root hash in a table of dm-verity: "0 LENGTH verity VERSION DATA HASH SIZE SIZE BLOCKS START
 * ALGORITHM ROOT …". */
static int root_of_table(const char *table, uint8_t root[static VERITY_DIGEST_MAX],
                         size_t *ret_size, struct error *err)
{
    char hex[2 * VERITY_DIGEST_MAX + 1];

    if (sscanf(table, "%*s %*s verity %*s %*s %*s %*s %*s %*s %*s %*s %128s", hex) != 1)
        return error_set(err, EPROTO, "dm-verity's table has no root hash: %s", table);
    return hex_decode(hex, "root hash", root, VERITY_DIGEST_MAX, ret_size, err);
}

static int check_root(struct boot_sev *sev, const char *table, const char *append,
                      struct error *err)
{
    const struct boot_sev_options *o = &sev->options->sev;
    uint8_t root[VERITY_DIGEST_MAX];
    size_t size;

    int r = root_of_table(table, root, &size, err);
    if (r < 0)
        return r;
    if (o->host_data_root && size != sizeof(sev->host_data))
        return error_set(err, EINVAL,
                         "--host-data root-hash: the root hash has %zu bytes, and host data %zu",
                         size, sizeof(sev->host_data));
    if (o->host_data_set) {
        memcpy(sev->host_data, o->host_data_root ? root : o->host_data, sizeof(sev->host_data));
        sev->arguments.host_data = sev->host_data;
    }
    return measure_check_root_hash(root, size, append, sev->arguments.host_data, err);
}

static int report_step(void *arg, const struct measure_step *step, struct error *err)
{
    (void)arg;
    return measure_report_step(step, stderr, false, NULL, err);
}

static int measure(const struct boot_sev *sev, const char *append, struct launch_digest *ret,
                   struct error *err)
{
    const struct boot_options *o = sev->options;
    struct kernel_hashes hashes;
    const struct measure_input input = {
        .mode = o->sev.mode,
        .vmm = SEV_VMM_QEMU,
        .ovmf = sev->ovmf,
        .kernel = sev->kernel != NULL ? &hashes : NULL,
        .vcpus = o->cpus,
        .vcpu_signature = sev->vcpu_signature,
        .guest_features = measure_features(o->sev.mode, o->sev.features_set, o->sev.features),
        .step = sev->verbose ? report_step : NULL,
    };
    const struct measure_report report = {
        .input = &input,
        .kernel = sev->kernel != NULL ? sev->kernel->name : NULL,
        .initrd = sev->kernel != NULL ? sev->initrd->name : NULL,
        .append = append,
        .vcpu_type = sev->vcpu_type,
    };
    int r = 0;

    if (sev->kernel != NULL)
        r = kernel_hashes_from_fds(sev->kernel->fd, sev->kernel->name, sev->initrd->fd,
                                   sev->initrd->name, append, &hashes, err);
    if (r == 0 && sev->verbose)
        r = measure_report_inputs(&report, stderr, NULL, err);
    return r < 0 ? r : measure_launch(&input, ret, err);
}

/* The secure processor would refuse the guest only after it was loaded, and not tell why. */
static int check_identity(const struct boot_sev *sev, const struct launch_digest *digest,
                          struct error *err)
{
    if (sev->arguments.id_block == NULL)
        return 0;
    int r = id_block_check(sev->id_block, sev->id_auth, digest, sev->arguments.policy, err);
    return r < 0 ? error_prefix(err, "--id-block") : 0;
}

/* What was not opened for a dry run cannot be measured, and firmware that was warned of neither. */
static bool can_measure(const struct boot_sev *sev)
{
    const struct boot_options *o = sev->options;

    if (!o->dry_run)
        return true;
    return sev->verbose && sev->ovmf != NULL && (sev->kernel == NULL || sev->kernel->fd >= 0) &&
           measure_check_firmware(sev->ovmf, o->sev.mode, sev->kernel != NULL, o->cpus, NULL) == 0;
}

int boot_sev_launch(struct boot_sev *sev, const char *table, const char *append,
                    const struct sev_options **ret, struct error *err)
{
    char text[2 * LAUNCH_DIGEST_MAX + 1];
    struct launch_digest digest;

    int r = check_root(sev, table, append, err);
    const bool measured = r == 0 && can_measure(sev);
    if (measured) {
        r = measure(sev, append, &digest, err);
        if (r == 0) {
            hex_encode(digest.bytes, digest.size, text);
            log_notice("launch digest: %s", text);
        }
    }
    if (r == 0)
        r = check_identity(sev, measured ? &digest : NULL, err);
    if (r < 0)
        return r;
    *ret = &sev->arguments;
    return 0;
}
