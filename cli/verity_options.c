/* SPDX-License-Identifier: MIT */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>

#include "cli/cli.h"
#include "common/log.h"
#include "common/units.h"
#include "hashtree/describe.h"

#define RANDOM_SALT_SIZE 32

/* "partition 2", or "the disk". */
#define PARTITION_TEXT_SIZE 32
static const char *partition_text(const struct partition *partition,
                                  char text[static PARTITION_TEXT_SIZE])
{
    if (partition->number == 0)
        strcpy(text, "the disk");
    else
        snprintf(text, PARTITION_TEXT_SIZE, "partition %u", partition->number);
    return text;
}

static int set_hash(const char *name, struct verity_params *params, struct error *err)
{
    if (strlen(name) >= sizeof(params->hash_name))
        return error_set(err, EINVAL, "--hash: there is no digest '%s'", name);
    strcpy(params->hash_name, name);
    /* libcryptsetup takes either case, writes what it was given, and the kernel finds nothing. */
    for (const char *p = name; *p != '\0'; p++)
        if (isupper((unsigned char)*p)) {
            log_warning("--hash %s: kernels know hash algorithms in lower case only", name);
            break;
        }
    return 0;
}

static int set_salt(const char *text, struct verity_params *params, struct error *err)
{
    if (strcmp(text, "-") == 0) {
        params->salt_size = 0;
        return 0;
    }
    if (strcmp(text, "random") == 0) {
        if (getrandom(params->salt, RANDOM_SALT_SIZE, 0) != RANDOM_SALT_SIZE)
            return error_set_errno(err, errno, "--salt random: cannot get random bytes");
        params->salt_size = RANDOM_SALT_SIZE;
        return 0;
    }
    return hex_decode(text, "--salt", params->salt, sizeof(params->salt), &params->salt_size, err);
}

static int set_u32(const char *option, uint64_t value, uint32_t *ret, struct error *err)
{
    if (value > UINT32_MAX)
        return error_set(err, EINVAL, "%s %" PRIu64 ": too large", option, value);
    *ret = (uint32_t)value;
    return 0;
}

int cli_verity_given(const struct cli_options *options, struct verity_params *ret,
                     struct error *err)
{
    struct verity_params params;
    int r = 0;

    verity_params_init(&params);
    if (options->verity.hash != NULL)
        r = set_hash(options->verity.hash, &params, err);
    if (r == 0 && options->verity.format_version_set)
        r = set_u32("--format-version", options->verity.format_version, &params.hash_type, err);
    if (r == 0 && options->verity.data_block_size_set)
        r = set_u32("--data-block-size", options->verity.data_block_size, &params.data_block_size,
                    err);
    if (r == 0 && options->verity.hash_block_size_set)
        r = set_u32("--hash-block-size", options->verity.hash_block_size, &params.hash_block_size,
                    err);
    if (r == 0 && options->verity.salt != NULL)
        r = set_salt(options->verity.salt, &params, err);
    if (r == 0 && options->verity.uuid != NULL) {
        r = verity_uuid_parse(options->verity.uuid, params.uuid, err);
        params.uuid_set = true;
    }
    params.data_blocks = options->verity.data_blocks;
    params.hash_offset = options->verity.hash_offset;
    params.superblock = !options->verity.no_superblock;
    if (r == 0)
        *ret = params;
    return r;
}

int cli_check_data_blocks(const struct cli_target *target, const struct verity_params *params,
                          struct error *err)
{
    uint64_t room = target->partition->size / params->data_block_size;
    char text[PARTITION_TEXT_SIZE];

    if (params->data_blocks > room)
        return error_set(err, EINVAL,
                         "%" PRIu64 " data blocks of %" PRIu32 " bytes, but %s of %s holds %" PRIu64
                         " of them",
                         params->data_blocks, params->data_block_size,
                         partition_text(target->partition, text), image_path(target->image), room);
    return 0;
}

/* All of the partition that makes whole data blocks; 0 means that too, as veritysetup has it. */
static int set_data_blocks(const struct cli_options *options, const struct cli_target *target,
                           struct verity_params *params, struct error *err)
{
    const struct partition *partition = target->partition;
    char text[PARTITION_TEXT_SIZE];

    if (options->verity.data_blocks_set && options->verity.data_blocks != 0) {
        params->data_blocks = options->verity.data_blocks;
        int r = cli_check_data_blocks(target, params, err);
        return r < 0 ? error_prefix(err, "--data-blocks") : 0;
    }
    params->data_blocks = partition->size / params->data_block_size;
    if (params->data_blocks == 0)
        return error_set(err, EINVAL,
                         "%s: %s has %" PRIu64 " bytes, less than a data block of %" PRIu32,
                         image_path(target->image), partition_text(partition, text),
                         partition->size, params->data_block_size);
    uint64_t rest = partition->size % params->data_block_size;
    if (rest != 0)
        log_warning("%s: the last %" PRIu64 " bytes of %s are no whole data block and are left out",
                    image_path(target->image), rest, partition_text(partition, text));
    return 0;
}

int cli_verity_params(const struct cli_options *options, const struct cli_target *target,
                      struct verity_params *ret, struct error *err)
{
    struct verity_params params;
    struct verity_geometry geometry;

    int r = cli_verity_given(options, &params, err);
    if (r < 0)
        return r;
    /* The block size must be known to be good before the partition is divided by it. */
    params.data_blocks = 1;
    r = verity_geometry_init(&params, &geometry, err);
    if (r < 0)
        return r;
    r = set_data_blocks(options, target, &params, err);
    if (r < 0)
        return r;
    r = verity_geometry_init(&params, &geometry, err);
    if (r < 0)
        return r;
    *ret = params;
    return 0;
}

int cli_tree_new(const struct cli_options *options, const struct cli_target *target,
                 struct hashtree **ret, struct error *err)
{
    struct verity_params params;

    int r = cli_verity_params(options, target, &params, err);
    if (r < 0)
        return r;
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    r = hashtree_new(target->image, target->partition->start, &params, &options->tree, &tree, err);
    if (r < 0)
        return r;
    if (!options->no_tree) {
        struct hashtree_file_options keep = options->keep;
        keep.snapshot = options->image.snapshot;
        r = hashtree_keep(tree, &keep, err);
        if (r < 0)
            return r;
    }
    *ret = TAKE_PTR(tree);
    return 0;
}

int cli_hash_json(const struct cli_target *target, struct hashtree *tree, json_t **ret,
                  struct error *err)
{
    _cleanup_json_ json_t *object = NULL;
    struct hashtree_stats stats;

    int r = hashtree_describe(tree, target->partition->number, &object, err);
    if (r < 0)
        return r;
    hashtree_stats(tree, &stats);
    if ((r = json_put(object, "method", json_string(hashtree_method_name(hashtree_method(tree))),
                      err)) < 0 ||
        (r = json_put(object, "data_bytes_hashed",
                      json_integer((json_int_t)stats.data_bytes_hashed), err)) < 0 ||
        (r = json_put(object, "zero_blocks",
                      stats.zero_blocks != UINT64_MAX ? json_integer((json_int_t)stats.zero_blocks)
                                                      : json_null(),
                      err)) < 0 ||
        (r = json_put(object, "seconds", json_real(stats.build_seconds), err)) < 0)
        return r;
    *ret = TAKE_PTR(object);
    return 0;
}
