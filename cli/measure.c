/* SPDX-License-Identifier: MIT */
#include "cli/measure.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/measure_identity.h"
#include "common/io.h"
#include "common/log.h"
#include "common/openssl.h"
#include "common/units.h"

/*
 * `qverity measure`: the launch digest of a confidential guest, from files; and the ID block that
 * binds a SEV-SNP guest to it. Options and digests are those of sev-snp-measure, so that one can
 * take the other's place.
 */

struct measure {
    const char *ovmf, *kernel, *initrd, *append, *vcpu_type, *dump_vmsa;
    enum sev_mode mode;
    enum sev_vmm vmm;
    bool mode_set, ovmf_hash_only; /* --mode snp:ovmf-hash */
    bool ovmf_hash_set, vcpu_sig_set, features_set, base64;
    uint8_t ovmf_hash[LAUNCH_DIGEST_MAX];
    unsigned vcpus; /* 0: not given */
    uint32_t vcpu_sig;
    uint64_t features;
    struct {
        uint64_t value;
        bool set;
    } family, model, stepping;
    struct measure_identity identity;
};

static const struct cli_option measure_options[] = {
    {"mode", 0, "snp|snp:ovmf-hash|seves|sev", "what to compute the digest of"},
    {"ovmf", 0, "FILE", "the firmware, an OVMF image"},
    {"ovmf-hash", 0, "HEX", "snp: its hash, as of snp:ovmf-hash; only metadata is read of --ovmf"},
    {"kernel", 0, "FILE", "the kernel that QEMU is given, with kernel-hashes=on"},
    {"initrd", 0, "FILE", "its initial RAM disk"},
    {"append", 0, "STRING", "its command line"},
    {"vcpus", 0, "COUNT", "virtual CPUs, 1 to 4096"},
    {"vcpu-type", 0, "MODEL", "their QEMU model, such as EPYC-v4"},
    {"vcpu-sig", 0, "NUMBER", "or their signature, CPUID Fn0000_0001_EAX"},
    {"vcpu-family", 0, "NUMBER", "or their family,"},
    {"vcpu-model", 0, "NUMBER", "their model,"},
    {"vcpu-stepping", 0, "NUMBER", "and their stepping"},
    {"vmm", 0, "qemu|ec2|gce", "who launches the guest (qemu)"},
    {"guest-features", 0, "NUMBER", "snp: SEV features of the VMSAs (0x1)"},
    {"dump-vmsa", 0, "DIRECTORY", "write the VMSAs to vmsa0.bin, … there"},
    {"output-format", 0, "hex|base64", "how to print the digest (hex)"},
    {"id-key", 0, "FILE", "snp: sign an ID block with this P-384 key"},
    {"author-key", 0, "FILE", "and the ID key's public part with this one"},
    {"id-block", 0, "FILE", "where to write the ID block, for QEMU's id-block"},
    {"id-auth", 0, "FILE", "where to write its authentication, for QEMU's id-auth"},
    {"policy", 0, "NUMBER", "the guest's policy, in the ID block (0x30000)"},
    {"family-id", 0, "ID", "32 hex digits or 16 characters, in the ID block (zeros)"},
    {"image-id", 0, "ID", "likewise"},
    {"guest-svn", 0, "NUMBER", "security version number, in the ID block (0)"},
    {0},
};

enum measure_option {
    OPT_MODE,
    OPT_OVMF,
    OPT_OVMF_HASH,
    OPT_KERNEL,
    OPT_INITRD,
    OPT_APPEND,
    OPT_VCPUS,
    OPT_VCPU_TYPE,
    OPT_VCPU_SIG,
    OPT_VCPU_FAMILY,
    OPT_VCPU_MODEL,
    OPT_VCPU_STEPPING,
    OPT_VMM,
    OPT_GUEST_FEATURES,
    OPT_DUMP_VMSA,
    OPT_OUTPUT_FORMAT,
    OPT_IDENTITY, /* the first of enum measure_identity_option */
};

/* --- Values --- */

static int parse_mode(const char *argument, struct measure *measure, struct error *err)
{
    measure->mode_set = true;
    measure->ovmf_hash_only = strcmp(argument, "snp:ovmf-hash") == 0;
    if (measure->ovmf_hash_only) {
        measure->mode = SEV_MODE_SNP;
        return 0;
    }
    if (measure_parse_mode(argument, &measure->mode, err) < 0)
        return error_set(err, EINVAL, "--mode: '%s' is not snp, snp:ovmf-hash, seves or sev",
                         argument);
    return 0;
}

static int parse_ovmf_hash(const char *argument, struct measure *measure, struct error *err)
{
    size_t size;

    int r = hex_decode(argument, "--ovmf-hash", measure->ovmf_hash, sizeof(measure->ovmf_hash),
                       &size, err);
    if (r == 0 && size != sizeof(measure->ovmf_hash))
        return error_set(err, EINVAL, "--ovmf-hash: %zu bytes, not 48", size);
    measure->ovmf_hash_set = true;
    return r;
}

static int parse_u32(const char *argument, const char *what, uint32_t *ret, struct error *err)
{
    uint64_t value;

    int r = parse_u64(argument, what, &value, err);
    if (r == 0 && value > UINT32_MAX)
        return error_set(err, EINVAL, "%s: '%s' is too large", what, argument);
    if (r == 0)
        *ret = (uint32_t)value;
    return r;
}

static int parse_output_format(const char *argument, bool *ret_base64, struct error *err)
{
    if (strcmp(argument, "hex") != 0 && strcmp(argument, "base64") != 0)
        return error_set(err, EINVAL, "--output-format: '%s' is not hex or base64", argument);
    *ret_base64 = strcmp(argument, "base64") == 0;
    return 0;
}

static int vcpu_option(enum measure_option option, const char *argument, struct measure *measure,
                       struct error *err)
{
    switch (option) {
    case OPT_VCPUS:
        return measure_parse_vcpus(argument, "--vcpus", &measure->vcpus, err);
    case OPT_VCPU_TYPE:
        measure->vcpu_type = argument;
        return 0;
    case OPT_VCPU_SIG:
        measure->vcpu_sig_set = true;
        return parse_u32(argument, "--vcpu-sig", &measure->vcpu_sig, err);
    case OPT_VCPU_FAMILY:
        measure->family.set = true;
        return parse_u64(argument, "--vcpu-family", &measure->family.value, err);
    case OPT_VCPU_MODEL:
        measure->model.set = true;
        return parse_u64(argument, "--vcpu-model", &measure->model.value, err);
    case OPT_VCPU_STEPPING:
        measure->stepping.set = true;
        return parse_u64(argument, "--vcpu-stepping", &measure->stepping.value, err);
    default:
        abort();
    }
}

static int measure_option(size_t index, const char *argument, void *context, struct error *err)
{
    const enum measure_option option = (enum measure_option)index;
    struct measure *measure = context;

    switch (option) {
    case OPT_MODE:
        return parse_mode(argument, measure, err);
    case OPT_OVMF:
        measure->ovmf = argument;
        return 0;
    case OPT_OVMF_HASH:
        return parse_ovmf_hash(argument, measure, err);
    case OPT_KERNEL:
        measure->kernel = argument;
        return 0;
    case OPT_INITRD:
        measure->initrd = argument;
        return 0;
    case OPT_APPEND:
        measure->append = argument;
        return 0;
    case OPT_VMM:
        return measure_parse_vmm(argument, &measure->vmm, err);
    case OPT_GUEST_FEATURES:
        measure->features_set = true;
        return parse_u64(argument, "--guest-features", &measure->features, err);
    case OPT_DUMP_VMSA:
        measure->dump_vmsa = argument;
        return 0;
    case OPT_OUTPUT_FORMAT:
        return parse_output_format(argument, &measure->base64, err);
    case OPT_VCPUS:
    case OPT_VCPU_TYPE:
    case OPT_VCPU_SIG:
    case OPT_VCPU_FAMILY:
    case OPT_VCPU_MODEL:
    case OPT_VCPU_STEPPING:
        return vcpu_option(option, argument, measure, err);
    default:
        return measure_identity_option((enum measure_identity_option)(index - OPT_IDENTITY),
                                       argument, &measure->identity, err);
    }
}

/* --- What goes together --- */

/* Which of the ways to tell the CPU's signature was taken. */
static int choose_signature(struct measure *measure, struct error *err)
{
    const int triple = measure->family.set + measure->model.set + measure->stepping.set;
    const int ways = (measure->vcpu_type != NULL) + measure->vcpu_sig_set + (triple > 0);
    int r = 0;

    if (measure->mode == SEV_MODE_SEV)
        return 0;
    if (ways > 1)
        return cli_usage_error(err, "measure: only one of --vcpu-type, --vcpu-sig and "
                                    "--vcpu-family can tell what CPU it is");
    if (triple > 0 && triple < 3)
        return cli_usage_error(err, "measure: --vcpu-family, --vcpu-model and --vcpu-stepping go "
                                    "together");
    if (ways == 0 && measure->vmm == SEV_VMM_QEMU)
        return cli_usage_error(err, "measure: --vcpu-type, --vcpu-sig or --vcpu-family is missing");
    if (measure->vcpu_type != NULL) {
        r = vcpu_type_signature(measure->vcpu_type, &measure->vcpu_sig, err);
        if (r < 0)
            return cli_usage_error(err, "measure: --vcpu-type: %s", error_message(err));
    } else if (triple > 0) {
        r = vcpu_signature(measure->family.value, measure->model.value, measure->stepping.value,
                           &measure->vcpu_sig, err);
        if (r < 0)
            return cli_usage_error(err, "measure: %s", error_message(err));
    }
    return 0;
}

static int check_options(struct measure *measure, struct error *err)
{
    if (!measure->mode_set)
        return cli_usage_error(err, "measure: --mode is missing");
    if (measure->ovmf == NULL)
        return cli_usage_error(err, "measure: --ovmf FILE is missing");
    if (measure->ovmf_hash_only)
        return 0;
    if (measure->kernel == NULL && (measure->initrd != NULL || measure->append != NULL))
        return cli_usage_error(err, "measure: --%s needs a --kernel",
                               measure->initrd != NULL ? "initrd" : "append");
    if (measure->ovmf_hash_set && measure->mode != SEV_MODE_SNP)
        return cli_usage_error(err, "measure: --ovmf-hash is for --mode snp");
    if (measure->mode != SEV_MODE_SEV && measure->vcpus == 0)
        return cli_usage_error(err, "measure: --vcpus is missing");
    if (measure->mode == SEV_MODE_SEV && measure->dump_vmsa != NULL)
        return cli_usage_error(err, "measure: there are no VMSAs in --mode sev for --dump-vmsa");
    if (measure->mode == SEV_MODE_SEV_ES && measure->features_set && measure->features > 1)
        log_warning("--guest-features: 0x%llx is not measured in --mode seves, where "
                    "sev-snp-measure takes none; a host with debug-swap has other digests",
                    (unsigned long long)measure->features);
    int r = choose_signature(measure, err);
    return r < 0 ? r : measure_identity_check(&measure->identity, measure->mode, err);
}

/* --- Running --- */

/* What is made while the digest is computed. Nothing is printed before all is known. */
struct result {
    const struct measure *measure;
    char *text;
    size_t text_size;
    FILE *out;      /* writes to text; or NULL */
    bool digests;   /* after each step */
    json_t *object; /* or NULL */
    json_t *steps;  /* in object */
};

static void result_clear(struct result *result)
{
    if (result->out != NULL)
        fclose(result->out);
    free(result->text);
    json_decref(result->steps);
    json_decref(result->object);
}
DEFINE_CLEANUP_INPLACE(struct result, result_clear);

static int result_init(struct result *result, const struct cli_options *options, struct error *err)
{
    result->digests = options->verbose > 1;
    if (options->json) {
        result->object = json_object();
        result->steps = json_array();
        if (result->object == NULL)
            return error_oom(err);
    } else if (options->verbose > 0) {
        result->out = open_memstream(&result->text, &result->text_size);
        if (result->out == NULL)
            return error_oom(err);
    }
    return 0;
}

static int dump_vmsa(const char *directory, const struct measure_step *step, struct error *err)
{
    _cleanup_free_ char *path = NULL;
    _cleanup_close_ int fd = -1;

    if (asprintf(&path, "%s/vmsa%u.bin", directory, step->index) < 0)
        return error_oom(err);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0666);
    if (fd < 0)
        return error_set_errno(err, errno, "--dump-vmsa %s: cannot open for writing", path);
    int r = io_write(fd, path, step->vmsa, VMSA_SIZE, err);
    return r < 0 ? r : io_close_written(take_fd(&fd), path, err);
}

static int take_step(void *arg, const struct measure_step *step, struct error *err)
{
    struct result *result = arg;

    if (step->kind == MEASURE_VMSA && result->measure->dump_vmsa != NULL) {
        int r = dump_vmsa(result->measure->dump_vmsa, step, err);
        if (r < 0)
            return r;
    }
    return measure_report_step(step, result->out, result->digests, result->steps, err);
}

static int print_digest(const struct cli_options *options, const struct measure *measure,
                        const uint8_t *bytes, size_t size, struct result *result, struct error *err)
{
    char text[2 * LAUNCH_DIGEST_MAX + 1];

    hex_encode(bytes, size, text);
    if (options->json) {
        const char *key = measure->ovmf_hash_only ? "ovmf_hash" : "launch_digest";
        int r = json_put(result->object, key, json_string(text), err);
        if (r == 0 && !measure->ovmf_hash_only)
            r = json_put(result->object, "steps", TAKE_PTR(result->steps), err);
        return r < 0 ? r : json_print(result->object, err);
    }
    if (measure->base64) {
        int r = libcrypto_load(err);
        if (r < 0)
            return r;
        libcrypto.EVP_EncodeBlock((unsigned char *)text, bytes, (int)size);
    }
    if (result->out != NULL) {
        if (fflush(result->out) == EOF)
            return error_oom(err);
        fputs(result->text, stdout);
        printf("%-16s ", measure->ovmf_hash_only ? "OVMF hash:" : "Launch digest:");
    }
    puts(text);
    return 0;
}

static int run_ovmf_hash(const struct cli_options *options, const struct measure *measure,
                         const struct ovmf *ovmf, struct result *result, struct error *err)
{
    const struct measure_input input = {.mode = SEV_MODE_SEV, .ovmf = ovmf};
    const struct measure_report report = {.input = &input};
    uint8_t hash[LAUNCH_DIGEST_MAX];

    int r = ovmf_snp_hash(ovmf, hash, err);
    if (r == 0 && result->object != NULL)
        r = json_put(result->object, "mode", json_string("snp:ovmf-hash"), err);
    if (r == 0)
        r = measure_report_inputs(&report, NULL, result->object, err);
    return r < 0 ? r : print_digest(options, measure, hash, sizeof(hash), result, err);
}

static int run_digest(const struct cli_options *options, struct measure *measure,
                      const struct ovmf *ovmf, struct result *result, struct error *err)
{
    const char *const inputs[] = {measure->ovmf, measure->kernel, measure->initrd};
    _cleanup_identity_ struct measure_identity_keys keys = {0};
    struct kernel_hashes kernel;
    struct launch_digest digest;
    const struct measure_input input = {
        .mode = measure->mode,
        .vmm = measure->vmm,
        .ovmf = ovmf,
        .ovmf_hash = measure->ovmf_hash_set ? measure->ovmf_hash : NULL,
        .kernel = measure->kernel != NULL ? &kernel : NULL,
        .vcpus = measure->vcpus,
        .vcpu_signature = measure->vcpu_sig,
        .guest_features = measure_features(measure->mode, measure->features_set, measure->features),
        .step = take_step,
        .arg = result,
    };
    const struct measure_report report = {
        .input = &input,
        .kernel = measure->kernel,
        .initrd = measure->initrd,
        .append = measure->append,
        .vcpu_type = measure->vcpu_type,
    };

    int r = measure_identity_load(&measure->identity, inputs, 3, &keys, err);
    if (r == 0 && measure->kernel != NULL)
        r = kernel_hashes_from_files(measure->kernel, measure->initrd, measure->append, &kernel,
                                     err);
    if (r == 0 && measure->dump_vmsa != NULL && mkdir(measure->dump_vmsa, 0777) < 0 &&
        errno != EEXIST)
        r = error_set_errno(err, errno, "--dump-vmsa %s: cannot make the directory",
                            measure->dump_vmsa);
    if (r == 0 && result->object != NULL)
        r = json_put(result->object, "mode", json_string(measure_mode_name(input.mode)), err);
    if (r == 0 && result->object != NULL)
        r = json_put(result->object, "vmm", json_string(measure_vmm_name(input.vmm)), err);
    if (r == 0)
        r = measure_report_inputs(&report, result->out, result->object, err);
    if (r == 0)
        r = measure_launch(&input, &digest, err);
    if (r == 0)
        r = measure_identity_make(&measure->identity, &keys, &digest, result->out, result->object,
                                  err);
    return r < 0 ? r : print_digest(options, measure, digest.bytes, digest.size, result, err);
}

static int measure_run(const struct cli_options *options, int argc, char **argv, void *context,
                       struct error *err)
{
    struct measure *measure = context;
    _cleanup_(result_clear_cleanup) struct result result = {.measure = measure};
    _cleanup_ovmf_ struct ovmf *ovmf = NULL;

    (void)argc;
    (void)argv;
    int r = check_options(measure, err);
    if (r == 0)
        r = result_init(&result, options, err);
    if (r == 0)
        r = ovmf_load(measure->ovmf, &ovmf, err);
    if (r < 0)
        return r;
    if (measure->ovmf_hash_only)
        return run_ovmf_hash(options, measure, ovmf, &result, err);
    return run_digest(options, measure, ovmf, &result, err);
}

const struct cli_command cmd_measure = {
    .name = "measure",
    .arguments = "--mode MODE --ovmf FILE",
    .summary = "Computes the launch digest of a SEV-SNP, SEV-ES or SEV guest",
    .details = "Prints what the secure processor will measure when QEMU (or EC2's or GCE's VMM)\n"
               "launches a guest of these files. Options and digests are those of\n"
               "sev-snp-measure. --verbose tells all that went in; twice, also the digest after\n"
               "each step of SEV-SNP. With --id-key, also makes an ID block.",
    .groups = CLI_JSON,
    .options = measure_options,
    .option = measure_option,
    .context_size = sizeof(struct measure),
    .run = measure_run,
};
