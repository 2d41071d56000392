/* SPDX-License-Identifier: MIT */
/* A hash device that is given, and the parameters that its superblock has. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

static int contradiction(const char *option, const char *path, struct error *err)
{
    return error_set(err, EINVAL, "%s: the superblock of %s says something else", option, path);
}

/* Options that were given beside a superblock must say what it says. `asked` are the parameters
 * that the options make. */
static int compare_options(const struct cli_options *options, const struct verity_params *asked,
                           const struct verity_params *found, const char *path, struct error *err)
{
    if (options->verity.hash != NULL && strcmp(asked->hash_name, found->hash_name) != 0)
        return contradiction("--hash", path, err);
    if (options->verity.format_version_set && asked->hash_type != found->hash_type)
        return contradiction("--format-version", path, err);
    if (options->verity.data_block_size_set && asked->data_block_size != found->data_block_size)
        return contradiction("--data-block-size", path, err);
    if (options->verity.hash_block_size_set && asked->hash_block_size != found->hash_block_size)
        return contradiction("--hash-block-size", path, err);
    if (options->verity.data_blocks_set && options->verity.data_blocks != 0 &&
        asked->data_blocks != found->data_blocks)
        return contradiction("--data-blocks", path, err);
    if (options->verity.salt != NULL && (asked->salt_size != found->salt_size ||
                                         memcmp(asked->salt, found->salt, found->salt_size) != 0))
        return contradiction("--salt", path, err);
    if (options->verity.uuid != NULL && memcmp(asked->uuid, found->uuid, 16) != 0)
        return contradiction("--uuid", path, err);
    return 0;
}

int cli_hash_device_params(const struct cli_options *options, const struct cli_target *target,
                           const char *path, struct verity_params *ret, struct error *err)
{
    struct verity_params asked, found;
    struct verity_geometry geometry;

    int r = verity_superblock_load(path, options->verity.hash_offset, &found, err);
    if (r < 0)
        return r;
    r = verity_geometry_init(&found, &geometry, err);
    if (r < 0)
        return error_prefix(err, "%s: superblock at offset %" PRIu64, path,
                            options->verity.hash_offset);
    r = cli_verity_given(options, &asked, err);
    if (r < 0)
        return r;
    r = compare_options(options, &asked, &found, path, err);
    if (r < 0)
        return r;
    r = cli_check_data_blocks(target, &found, err);
    if (r < 0)
        return error_prefix(err, "%s: superblock", path);
    *ret = found;
    return 0;
}

int cli_hash_device_open(const char *path, const struct verity_geometry *geometry, int *ret,
                         struct error *err)
{
    /* O_NONBLOCK: a FIFO must not make us wait. */
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", path);
    off_t size = lseek(fd, 0, SEEK_END);
    if (size < 0)
        return error_set_errno(err, errno, "%s: cannot tell its size", path);
    if ((uint64_t)size < geometry->device_size)
        return error_set(err, ENODATA,
                         "%s: %jd bytes, but a hash device for these parameters has %" PRIu64, path,
                         (intmax_t)size, geometry->device_size);
    *ret = take_fd(&fd);
    return 0;
}
