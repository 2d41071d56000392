/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <string.h>

#include "cli/cli.h"
#include "common/units.h"

static int parse_root(const char *text, const struct verity_params *params,
                      uint8_t root[static VERITY_DIGEST_MAX], struct error *err)
{
    struct verity_geometry geometry;
    size_t size;

    int r = hex_decode(text, "--verify-root-hash", root, VERITY_DIGEST_MAX, &size, err);
    if (r < 0)
        return cli_usage_error(err, "%s", error_message(err));
    r = verity_geometry_init(params, &geometry, err);
    if (r < 0)
        return r;
    if (size != geometry.digest_size)
        return cli_usage_error(err, "--verify-root-hash: %zu bytes, but root hashes of %s have %zu",
                               size, params->hash_name, geometry.digest_size);
    return 0;
}

static int device_params(const struct cli_options *options, const struct cli_target *target,
                         const char *path, struct verity_params *ret, struct error *err)
{
    if (options->verity.no_superblock)
        return cli_verity_params(options, target, ret, err);
    int r = cli_hash_device_params(options, target, path, ret, err);
    if (r < 0)
        return r;
    /* Nothing vouches for a superblock: who could change it could have data served unchecked. */
    uint64_t room = target->partition->size / ret->data_block_size;
    if (ret->data_blocks < room && !options->verity.data_blocks_set)
        return error_set(err, EINVAL,
                         "%s: the superblock covers %" PRIu64 " of the %" PRIu64
                         " data blocks that there is room for, so the others would not be checked; "
                         "--data-blocks %" PRIu64 " says that this is right",
                         path, ret->data_blocks, room, ret->data_blocks);
    return 0;
}

/* All data is read, unless a tree file is current. */
static int trust_data(const struct cli_options *options, struct hashtree *tree, const uint8_t *root,
                      struct error *err)
{
    _cleanup_(progress_meter_stop_cleanup) struct progress_meter *meter = NULL;

    int r = cli_meter_start(options, "verifying", hashtree_progress(tree), &meter, err);
    return r < 0 ? r : hashtree_trust(tree, root, -1, NULL, err);
}

int cli_tree_trusted(const struct cli_options *options, const struct cli_target *target,
                     const char *root_hash, const char *hash_device, int *ret_fd,
                     struct hashtree **ret, struct error *err)
{
    _cleanup_close_ int fd = -1;
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    uint8_t root[VERITY_DIGEST_MAX] = {0};
    struct verity_params params;
    int r;

    /* A salt made up now can verify nothing. */
    if (options->verity.salt != NULL && strcmp(options->verity.salt, "random") == 0)
        return cli_usage_error(err, "--salt random: verifying needs the salt that was used");
    r = hash_device != NULL ? device_params(options, target, hash_device, &params, err)
                            : cli_verity_params(options, target, &params, err);
    if (r == 0)
        r = parse_root(root_hash, &params, root, err);
    if (r == 0 && hash_device == NULL)
        r = cli_tree_new(options, target, &tree, err);
    else if (r == 0)
        r = hashtree_new(target->image, target->partition->start, &params, &options->tree, &tree,
                         err);
    if (r == 0 && hash_device != NULL)
        r = cli_hash_device_open(hash_device, hashtree_geometry(tree), &fd, err);
    if (r < 0)
        return r;
    r = hash_device != NULL ? hashtree_trust(tree, root, fd, hash_device, err)
                            : trust_data(options, tree, root, err);
    if (r < 0)
        return r;
    *ret_fd = take_fd(&fd);
    *ret = TAKE_PTR(tree);
    return 0;
}
