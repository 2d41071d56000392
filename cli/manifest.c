/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>

#include "cli/guest_append.h"
#include "cli/guest_kernel.h"
#include "cli/manifest.h"
#include "cli/manifest_blyss.h"
#include "cli/measure.h"
#include "cli/serve.h"
#include "common/log.h"
#include "common/units.h"
#include "hashtree/describe.h"

/*
 * `qverity manifest`: what a verifier has to know of a guest, in one object: the root hash of its
 * disk, the files that it is launched from, its command line, and its launch digests for all sizes
 * that it may have. Nothing in it depends on when or how it was computed: equal inputs give equal
 * manifests.
 */

#define LIST_MAX 64
#define MANIFEST_VERSION 1
/* What `qverity boot --snp` takes. */
#define VCPUS_DEFAULT 2
#define VCPU_TYPE_DEFAULT "EPYC-v4"

struct manifest {
    const char *kernel, *initrd, *append, *ovmf, *author;
    bool no_dm_init, blyss;
    enum sev_mode mode;
    bool mode_set;
    enum sev_vmm vmm;
    uint64_t features;
    bool features_set;
    unsigned vcpus[LIST_MAX];
    size_t vcpus_count;
    const char *types[LIST_MAX]; /* names of vcpu_type_name() */
    size_t type_count;
};

static const struct cli_option manifest_options[] = {
    {"kernel", 0, "FILE", "the kernel (the newest one in /boot of the image)"},
    {"initrd", 0, "FILE", "its initial RAM disk; none: without (the one that belongs to it)"},
    {"append", 0, "STRING", "the kernel command line, in place of boot's default one"},
    {"no-dm-init", 0, NULL, "do not put dm-mod.create= on the command line"},
    {"ovmf", 0, "FILE", "the firmware; with it come launch digests"},
    {"mode", 0, "snp|seves|sev", "of which kind (snp)"},
    {"vmm", 0, "qemu|ec2|gce", "who launches the guest (qemu)"},
    {"vcpus", 0, "LIST", "for these numbers of virtual CPUs, such as 1,2,8-16 (2)"},
    {"vcpu-type", 0, "LIST", "and these QEMU models, such as EPYC-v4,EPYC-Milan (EPYC-v4)"},
    {"guest-features", 0, "NUMBER", "snp: SEV features of the VMSAs (0x1)"},
    {"as", 0, "qverity|blyss", "the shape: our own, or that of Blyss's verifier (qverity)"},
    {"author", 0, "NAME", "as blyss: who says so"},
    {0},
};

enum manifest_option {
    OPT_KERNEL,
    OPT_INITRD,
    OPT_APPEND,
    OPT_NO_DM_INIT,
    OPT_OVMF,
    OPT_MODE,
    OPT_VMM,
    OPT_VCPUS,
    OPT_VCPU_TYPE,
    OPT_GUEST_FEATURES,
    OPT_AS,
    OPT_AUTHOR,
};

/* --- Options --- */

/* "8" or "8-16". */
static int add_counts(struct manifest *manifest, char *item, struct error *err)
{
    char *dash = strchr(item, '-');
    unsigned first, last;

    if (dash != NULL)
        *dash = '\0';
    int r = measure_parse_vcpus(item, "--vcpus", &first, err);
    last = first;
    if (r == 0 && dash != NULL)
        r = measure_parse_vcpus(dash + 1, "--vcpus", &last, err);
    if (r < 0)
        return r;
    if (last < first)
        return error_set(err, EINVAL, "--vcpus: %u to %u is no range", first, last);
    for (unsigned count = first; count <= last; count++) {
        if (manifest->vcpus_count == LIST_MAX)
            return error_set(err, EINVAL, "--vcpus: more than %d numbers", LIST_MAX);
        manifest->vcpus[manifest->vcpus_count++] = count;
    }
    return 0;
}

/* The name in the table of types, which lives as long as the program. */
static const char *type_name(const char *text)
{
    for (size_t i = 0;; i++) {
        const char *name = vcpu_type_name(i);
        if (name == NULL || strcmp(name, text) == 0)
            return name;
    }
}

static int add_type(struct manifest *manifest, char *item, struct error *err)
{
    const char *name = type_name(item);
    uint32_t signature;

    if (name == NULL) {
        vcpu_type_signature(item, &signature, err);
        return error_prefix(err, "--vcpu-type");
    }
    if (manifest->type_count == LIST_MAX)
        return error_set(err, EINVAL, "--vcpu-type: more than %d models", LIST_MAX);
    manifest->types[manifest->type_count++] = name;
    return 0;
}

/* Adds each item of a list with commas. */
static int parse_list(const char *argument, struct manifest *manifest,
                      int (*add)(struct manifest *manifest, char *item, struct error *err),
                      struct error *err)
{
    _cleanup_free_ char *list = strdup(argument);
    char *rest = list;

    if (list == NULL)
        return error_oom(err);
    for (;;) {
        int r = add(manifest, strsep(&rest, ","), err);
        if (r < 0 || rest == NULL)
            return r;
    }
}

static int parse_as(const char *argument, bool *ret_blyss, struct error *err)
{
    if (strcmp(argument, "qverity") != 0 && strcmp(argument, "blyss") != 0)
        return error_set(err, EINVAL, "--as: '%s' is not qverity or blyss", argument);
    *ret_blyss = strcmp(argument, "blyss") == 0;
    return 0;
}

static int manifest_option(size_t index, const char *argument, void *context, struct error *err)
{
    struct manifest *manifest = context;

    switch ((enum manifest_option)index) {
    case OPT_KERNEL:
        manifest->kernel = argument;
        return 0;
    case OPT_INITRD:
        manifest->initrd = argument;
        return 0;
    case OPT_APPEND:
        manifest->append = argument;
        return 0;
    case OPT_NO_DM_INIT:
        manifest->no_dm_init = true;
        return 0;
    case OPT_OVMF:
        manifest->ovmf = argument;
        return 0;
    case OPT_MODE:
        manifest->mode_set = true;
        return measure_parse_mode(argument, &manifest->mode, err);
    case OPT_VMM:
        return measure_parse_vmm(argument, &manifest->vmm, err);
    case OPT_VCPUS:
        return parse_list(argument, manifest, add_counts, err);
    case OPT_VCPU_TYPE:
        return parse_list(argument, manifest, add_type, err);
    case OPT_GUEST_FEATURES:
        manifest->features_set = true;
        return parse_u64(argument, "--guest-features", &manifest->features, err);
    case OPT_AS:
        return parse_as(argument, &manifest->blyss, err);
    case OPT_AUTHOR:
        manifest->author = argument;
        return 0;
    }
    abort();
}

static int check_options(struct manifest *manifest, struct error *err)
{
    if (!manifest->mode_set)
        manifest->mode = SEV_MODE_SNP;
    if (manifest->ovmf == NULL && (manifest->mode_set || manifest->vcpus_count > 0 ||
                                   manifest->type_count > 0 || manifest->features_set))
        return cli_usage_error(err, "manifest: launch digests take --ovmf FILE");
    if (manifest->vmm != SEV_VMM_QEMU && manifest->type_count > 0)
        return cli_usage_error(err, "manifest: --vcpu-type is for --vmm qemu");
    if (manifest->blyss && manifest->ovmf == NULL)
        return cli_usage_error(err, "manifest: --as blyss takes --ovmf FILE");
    if (manifest->kernel != NULL && strcmp(manifest->kernel, "none") == 0)
        return cli_usage_error(err, "manifest: --kernel none: a manifest is of a guest that is "
                                    "started with a kernel");
    if (!manifest->blyss && manifest->author != NULL)
        return cli_usage_error(err, "manifest: --author is for --as blyss");
    if (manifest->vcpus_count == 0)
        manifest->vcpus[manifest->vcpus_count++] = VCPUS_DEFAULT;
    if (manifest->type_count == 0)
        manifest->types[manifest->type_count++] = VCPU_TYPE_DEFAULT;
    /* There is one digest, whatever the CPUs are. */
    if (manifest->mode == SEV_MODE_SEV)
        manifest->vcpus_count = 1;
    if (manifest->mode == SEV_MODE_SEV || manifest->vmm != SEV_VMM_QEMU)
        manifest->type_count = 1;
    return 0;
}

/* --- What the guest is made of --- */

struct guest {
    const struct cli_target *target;
    struct hashtree *tree;
    struct guest_file kernel, initrd;
    struct kernel_hashes hashes; /* of the command line once that is known */
    struct ovmf *ovmf;           /* or NULL */
    char *append;
};

static void guest_clear(struct guest *guest)
{
    if (guest->tree != NULL)
        hashtree_free(guest->tree);
    guest_file_clear(&guest->kernel);
    guest_file_clear(&guest->initrd);
    if (guest->ovmf != NULL)
        ovmf_free(guest->ovmf);
    free(guest->append);
}
DEFINE_CLEANUP_INPLACE(struct guest, guest_clear);

static int make_append(const struct manifest *manifest, const struct cli_target *target,
                       const char *table, char **ret, struct error *err)
{
    const struct guest_append append = {
        .given = manifest->append,
        .no_dm_init = manifest->no_dm_init,
        .partition = target->partition->number,
    };

    return guest_append_make(&append, table, ret, err);
}

/* A command line that will be too long is told before the root hash is computed. */
static int check_append(const struct manifest *manifest, const struct guest *guest,
                        struct error *err)
{
    const uint8_t root[VERITY_DIGEST_MAX] = {0};
    _cleanup_free_ char *append = NULL;
    _cleanup_free_ char *table =
        verity_guest_table(hashtree_params(guest->tree), hashtree_geometry(guest->tree), root,
                           guest->target->partition->number);

    return table == NULL ? error_oom(err)
                         : make_append(manifest, guest->target, table, &append, err);
}

static int hash_files(const struct guest *guest, struct kernel_hashes *ret, struct error *err)
{
    return kernel_hashes_from_fds(guest->kernel.fd, guest->kernel.name, guest->initrd.fd,
                                  guest->initrd.name, guest->append, ret, err);
}

/* Everything that can be wrong before the root hash takes its time. */
static int open_guest(const struct cli_options *options, const struct manifest *manifest,
                      struct guest *guest, struct error *err)
{
    int r = cli_tree_new(options, guest->target, &guest->tree, err);

    if (r == 0)
        r = check_append(manifest, guest, err);
    if (r == 0 && manifest->ovmf != NULL)
        r = ovmf_load(manifest->ovmf, &guest->ovmf, err);
    for (size_t i = 0; r == 0 && guest->ovmf != NULL && i < manifest->vcpus_count; i++)
        r = measure_check_firmware(guest->ovmf, manifest->mode, true, manifest->vcpus[i], err);
    if (r == 0)
        r = guest_kernel_open(guest->target, manifest->kernel, manifest->initrd, 0, &guest->kernel,
                              &guest->initrd, err);
    return r;
}

static int complete_guest(const struct cli_options *options, const struct manifest *manifest,
                          struct guest *guest, struct error *err)
{
    _cleanup_free_ char *table = NULL;

    int r = serve_compute_table(options, guest->target, guest->tree, &table, err);
    if (r == 0)
        r = make_append(manifest, guest->target, table, &guest->append, err);
    return r < 0 ? r : hash_files(guest, &guest->hashes, err);
}

/* A digest that stands for another disk as well is of little use, but there may be a reason. */
static int check_root_hash(const struct guest *guest, struct error *err)
{
    _cleanup_error_ struct error reason = ERROR_INIT;
    uint8_t root[VERITY_DIGEST_MAX];

    int r = hashtree_root(guest->tree, root, err);
    if (r < 0)
        return r;
    r = measure_check_root_hash(root, hashtree_geometry(guest->tree)->digest_size, guest->append,
                                NULL, &reason);
    if (r < 0)
        log_warning("%s", error_message(&reason));
    return 0;
}

/* --- The manifest --- */

static json_t *disk_json(const struct guest *guest, const char *root_hash)
{
    const struct verity_params *params = hashtree_params(guest->tree);
    const uint64_t size = params->data_blocks * params->data_block_size;

    return json_pack("{s:s, s:s, s:I, s:i}", "type", "dm_verity", "hash", root_hash, "size",
                     (json_int_t)size, "partition", (int)guest->target->partition->number);
}

static int ovmf_json(const struct ovmf *ovmf, json_t **ret, struct error *err)
{
    uint8_t sha256[32], snp[LAUNCH_DIGEST_MAX];
    _cleanup_json_ json_t *object = NULL;

    int r = ovmf_sha256(ovmf, sha256, err);
    if (r < 0)
        return r;
    object = measure_file_json(ovmf_name(ovmf), sha256);
    if (object == NULL)
        return error_oom(err);
    r = json_put(object, "size", json_integer((json_int_t)ovmf_size(ovmf)), err);
    if (r == 0)
        r = ovmf_snp_hash(ovmf, snp, err);
    if (r == 0)
        r = measure_put_hex(object, "snp_hash", snp, sizeof(snp), err);
    if (r == 0)
        *ret = TAKE_PTR(object);
    return r;
}

static int add_digest(const struct manifest *manifest, const struct guest *guest, unsigned vcpus,
                      const char *type, json_t *array, struct error *err)
{
    struct measure_input input = {
        .mode = manifest->mode,
        .vmm = manifest->vmm,
        .ovmf = guest->ovmf,
        .kernel = &guest->hashes,
        .vcpus = vcpus,
        .guest_features =
            measure_features(manifest->mode, manifest->features_set, manifest->features),
    };
    struct launch_digest digest;
    json_t *object = json_object();

    if (object == NULL || json_array_append_new(array, object) != 0)
        return error_oom(err);
    int r = vcpu_type_signature(type, &input.vcpu_signature, err);
    if (r == 0)
        r = measure_launch(&input, &digest, err);
    if (r == 0)
        r = json_put(object, "mode", json_string(measure_mode_name(input.mode)), err);
    if (r == 0)
        r = json_put(object, "vmm", json_string(measure_vmm_name(input.vmm)), err);
    if (r == 0 && input.mode != SEV_MODE_SEV)
        r = json_put(object, "vcpus", json_integer(vcpus), err);
    if (r == 0 && input.mode != SEV_MODE_SEV && input.vmm == SEV_VMM_QEMU)
        r = json_put(object, "vcpu_type", json_string(type), err);
    if (r == 0 && input.mode == SEV_MODE_SNP)
        r = json_put(object, "guest_features", json_integer((json_int_t)input.guest_features), err);
    if (r == 0)
        r = measure_put_hex(object, "launch_digest", digest.bytes, digest.size, err);
    return r;
}

static int digests_json(const struct manifest *manifest, const struct guest *guest, json_t *array,
                        struct error *err)
{
    for (size_t i = 0; guest->ovmf != NULL && i < manifest->vcpus_count; i++)
        for (size_t j = 0; j < manifest->type_count; j++) {
            int r = add_digest(manifest, guest, manifest->vcpus[i], manifest->types[j], array, err);
            if (r < 0)
                return r;
        }
    return 0;
}

static int files_json(const struct guest *guest, json_t *object, struct error *err)
{
    json_t *ovmf = NULL;
    int r = json_put(object, "kernel", measure_file_json(guest->kernel.name, guest->hashes.kernel),
                     err);

    if (r == 0)
        r = json_put(object, "initrd",
                     guest->initrd.name != NULL
                         ? measure_file_json(guest->initrd.name, guest->hashes.initrd)
                         : json_null(),
                     err);
    if (r == 0 && guest->ovmf != NULL)
        r = ovmf_json(guest->ovmf, &ovmf, err);
    if (r == 0)
        r = json_put(object, "ovmf", guest->ovmf != NULL ? ovmf : json_null(), err);
    if (r == 0)
        r = json_put_text(object, "command_line", "command_line_hex", guest->append, err);
    return r;
}

static int manifest_json(const struct manifest *manifest, const struct guest *guest, json_t **ret,
                         struct error *err)
{
    _cleanup_json_ json_t *object = json_object(), *verity = NULL;
    json_t *digests = json_array();

    int r = json_put(object, "manifest_version", json_integer(MANIFEST_VERSION), err);
    if (r == 0)
        r = hashtree_describe(guest->tree, guest->target->partition->number, &verity, err);
    if (r == 0) {
        const char *root = json_string_value(json_object_get(verity, "root_hash"));
        r = json_put(object, "root_hash", json_string(root), err);
        if (r == 0)
            r = json_put(object, "disk", disk_json(guest, root), err);
    }
    if (r == 0)
        r = json_put(object, "verity", json_incref(verity), err);
    if (r == 0)
        r = files_json(guest, object, err);
    if (r == 0)
        r = digests_json(manifest, guest, digests, err);
    if (r < 0) {
        json_decref(digests);
        return r;
    }
    r = json_put(object, "launch_digests", digests, err);
    if (r == 0)
        *ret = TAKE_PTR(object);
    return r;
}

static int print_manifest(const struct manifest *manifest, const struct guest *guest,
                          struct error *err)
{
    _cleanup_json_ json_t *object = NULL;

    int r = manifest_json(manifest, guest, &object, err);
    return r < 0 ? r : json_print(object, err);
}

static int print_blyss(const struct manifest *manifest, const struct guest *guest,
                       struct error *err)
{
    struct manifest_blyss blyss = {
        .author = manifest->author,
        .kernel_name = guest->kernel.name,
        .append = guest->append,
        .params = hashtree_params(guest->tree),
        .hashes = &guest->hashes,
        .initrd = guest->initrd.name != NULL,
    };
    _cleanup_json_ json_t *object = NULL;

    int r = hashtree_root(guest->tree, blyss.root, err);
    if (r == 0)
        r = ovmf_sha256(guest->ovmf, blyss.ovmf, err);
    if (r == 0)
        r = manifest_blyss_json(&blyss, &object, err);
    return r < 0 ? r : json_print(object, err);
}

int manifest_describe(const struct manifest_files *files, json_t **ret, struct error *err)
{
    const struct cli_options options = {0};
    struct manifest manifest = {
        .kernel = files->kernel,
        .initrd = files->initrd,
        .append = files->append,
        .ovmf = files->ovmf,
    };
    _cleanup_target_ struct cli_target target = {0};
    _cleanup_(guest_clear_cleanup) struct guest guest = {
        .target = &target, .kernel = GUEST_FILE_INIT, .initrd = GUEST_FILE_INIT};

    int r = check_options(&manifest, err);
    if (r == 0)
        r = cli_target_open(files->image, &options, NULL, &target, err);
    if (r == 0)
        r = open_guest(&options, &manifest, &guest, err);
    if (r == 0)
        r = complete_guest(&options, &manifest, &guest, err);
    if (r == 0 && guest.ovmf != NULL)
        r = check_root_hash(&guest, err);
    return r < 0 ? r : manifest_json(&manifest, &guest, ret, err);
}

static int manifest_run(const struct cli_options *options, int argc, char **argv, void *context,
                        struct error *err)
{
    struct manifest *manifest = context;
    _cleanup_target_ struct cli_target target = {0};
    _cleanup_(guest_clear_cleanup) struct guest guest = {
        .target = &target, .kernel = GUEST_FILE_INIT, .initrd = GUEST_FILE_INIT};

    (void)argc;
    int r = check_options(manifest, err);
    if (r == 0)
        r = cli_target_open(argv[0], options, NULL, &target, err);
    if (r == 0)
        r = open_guest(options, manifest, &guest, err);
    if (r == 0 && manifest->blyss)
        r = manifest_blyss_check(hashtree_params(guest.tree), err);
    if (r == 0)
        r = complete_guest(options, manifest, &guest, err);
    if (r == 0 && guest.ovmf != NULL)
        r = check_root_hash(&guest, err);
    if (r < 0)
        return r;
    return manifest->blyss ? print_blyss(manifest, &guest, err)
                           : print_manifest(manifest, &guest, err);
}

const struct cli_command cmd_manifest = {
    .name = "manifest",
    .arguments = "IMAGE",
    .summary = "Tells all that a verifier has to know of a guest, launch digests too",
    .details =
        "Prints one JSON object: the root hash of the image, SHA-256 of kernel, initrd and\n"
        "firmware, the command line that boot makes of them, and the launch digest for each\n"
        "number and model of virtual CPUs. Equal inputs give equal manifests.",
    .groups = CLI_IMAGE | CLI_PARTITION | CLI_VERITY | CLI_TREE | CLI_KEEP | CLI_JSON,
    .options = manifest_options,
    .operands_min = 1,
    .operands_max = 1,
    .option = manifest_option,
    .context_size = sizeof(struct manifest),
    .run = manifest_run,
};
