/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "cli/cli.h"
#include "common/io.h"
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

/* --- Without a hash device --- */

struct building {
    const struct cli_options *options;
    const struct cli_target *target;
    const uint8_t *root;
    int fd; /* for the nodes; -1: `fd_error` says why there is none */
    const struct error *fd_error;
};

/* By a process that is confined. All data is read, unless a tree file is current. */
static int build(void *arg, json_t **ret, struct error *err)
{
    const struct building *b = arg;
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    _cleanup_(progress_meter_stop_cleanup) struct progress_meter *meter = NULL;

    int r = cli_tree_new(b->options, b->target, &tree, err);
    if (r == 0)
        r = cli_meter_start(b->options, "verifying", hashtree_progress(tree), &meter, err);
    if (r == 0)
        r = hashtree_build_nodes(tree, b->root, b->fd, err);
    if (r == -EBADF && b->fd < 0) {
        error_clear(err);
        return error_set(err, b->fd_error->code, "%s", error_message(b->fd_error));
    }
    if (r < 0)
        return r;
    *ret = json_true();
    return 0;
}

/* A file without a name. */
static int open_nodes(struct error *err)
{
    const char *directory = getenv("TMPDIR");

    if (directory == NULL || *directory == '\0')
        directory = "/var/tmp";
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot make a temporary file for hash blocks",
                               directory);
    return fd;
}

static int trust_data(const struct cli_options *options, const struct cli_target *target,
                      const uint8_t *root, int *ret_fd, struct hashtree **ret, struct error *err)
{
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    _cleanup_error_ struct error fd_err = ERROR_INIT;
    _cleanup_close_ int fd = open_nodes(&fd_err);
    _cleanup_json_ json_t *done = NULL;
    struct building building = {options, target, root, fd, &fd_err};
    const struct cli_apart apart = {
        .what = "checks the root hash",
        .options = options,
        .image = target->image,
        .run = build,
        .arg = &building,
    };

    int r = cli_run_apart(&apart, &done, err);
    if (r == 0)
        r = cli_tree_new(options, target, &tree, err);
    if (r == 0)
        r = hashtree_trust_built(tree, root, fd, err);
    if (r < 0)
        return r;
    *ret_fd = take_fd(&fd);
    *ret = TAKE_PTR(tree);
    return 0;
}

/* --- With one --- */

static int trust_device(const struct cli_options *options, const struct cli_target *target,
                        const char *path, const struct verity_params *params, const uint8_t *root,
                        int *ret_fd, struct hashtree **ret, struct error *err)
{
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    _cleanup_close_ int fd = -1;

    int r =
        hashtree_new(target->image, target->partition->start, params, &options->tree, &tree, err);
    if (r == 0)
        r = cli_hash_device_open(path, hashtree_geometry(tree), &fd, err);
    if (r == 0)
        r = hashtree_trust(tree, root, fd, path, err);
    if (r < 0)
        return r;
    *ret_fd = take_fd(&fd);
    *ret = TAKE_PTR(tree);
    return 0;
}

int cli_tree_trusted(const struct cli_options *options, const struct cli_target *target,
                     const char *root_hash, const char *hash_device, int *ret_fd,
                     struct hashtree **ret, struct error *err)
{
    uint8_t root[VERITY_DIGEST_MAX] = {0};
    struct verity_params params;

    /* A salt made up now can verify nothing. */
    if (options->verity.salt != NULL && strcmp(options->verity.salt, "random") == 0)
        return cli_usage_error(err, "--salt random: verifying needs the salt that was used");
    int r = hash_device != NULL ? device_params(options, target, hash_device, &params, err)
                                : cli_verity_params(options, target, &params, err);
    if (r == 0)
        r = parse_root(root_hash, &params, root, err);
    if (r < 0)
        return r;
    return hash_device != NULL
               ? trust_device(options, target, hash_device, &params, root, ret_fd, ret, err)
               : trust_data(options, target, root, ret_fd, ret, err);
}
