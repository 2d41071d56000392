/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "cli/cli.h"
#include "common/log.h"
#include "image/write.h"

void cli_target_close(struct cli_target *target)
{
    if (target->partitions != NULL)
        partition_table_free(target->partitions);
    if (target->image != NULL)
        image_close(target->image);
    *target = (struct cli_target){0};
}

static int open_image(const char *path, const struct cli_options *options, struct image **ret,
                      struct error *err)
{
    if (options->overlay != NULL)
        return image_open_overlay(path, &options->image, options->overlay, ret, err);
    return image_open(path, &options->image, ret, err);
}

static int find_partition(const char *path, const struct cli_options *options, const char *spec,
                          struct cli_target *target, struct error *err)
{
    bool disk = spec != NULL && strcmp(spec, "disk") == 0;
    int r;

    if (disk && options->bytes)
        r = partition_table_none(target->image, &target->partitions, err);
    else if (options->probe_apart)
        r = cli_probe(options, target->image, &target->partitions, err);
    else
        r = partition_table_read(target->image, &target->partitions, err);
    if (disk && (r == -EFBIG || partition_table_is_wrong(r))) {
        /* The disk can be had without them. */
        if (r == -EFBIG)
            log_info("%s", error_message(err));
        else
            log_warning("%s; only the disk as a whole is there", error_message(err));
        error_clear(err);
        r = partition_table_none(target->image, &target->partitions, err);
    }
    if (r < 0)
        return r;
    r = partition_find(target->partitions, spec, &target->partition, err);
    return r < 0 ? error_prefix(err, "%s", path) : 0;
}

static int open_targets(char *const *paths, size_t count, const struct cli_options *options,
                        const char *fallback, struct cli_target *targets, struct error *err)
{
    const char *spec = options->partition != NULL ? options->partition : fallback;
    struct image *images[CLI_TARGETS_MAX];

    assert(count <= CLI_TARGETS_MAX);
    for (size_t i = 0; i < count; i++) {
        int r = open_image(paths[i], options, &targets[i].image, err);
        if (r < 0)
            return r;
        images[i] = targets[i].image;
    }
    int r = options->probe_apart ? 0 : cli_confine(options, images, count, NULL, err);
    for (size_t i = 0; i < count && r >= 0; i++)
        r = find_partition(paths[i], options, spec, &targets[i], err);
    return r;
}

int cli_targets_open(char *const *paths, size_t count, const struct cli_options *options,
                     const char *fallback, struct cli_target *ret, struct error *err)
{
    struct cli_target targets[CLI_TARGETS_MAX] = {0};

    int r = open_targets(paths, count, options, fallback, targets, err);
    for (size_t i = 0; i < count; i++) {
        if (r < 0)
            cli_target_close(&targets[i]);
        else
            ret[i] = targets[i];
    }
    return r;
}

int cli_target_open(const char *path, const struct cli_options *options, const char *fallback,
                    struct cli_target *ret, struct error *err)
{
    char *const paths[] = {(char *)path};

    return cli_targets_open(paths, 1, options, fallback, ret, err);
}

int cli_meter_start(const struct cli_options *options, const char *what,
                    const struct progress *progress, struct progress_meter **ret, struct error *err)
{
    if (options->quiet) {
        *ret = NULL;
        return 0;
    }
    return progress_meter_start(what, progress, ret, err);
}

int cli_tree_meter_start(const struct cli_options *options, const char *what, struct hashtree *tree,
                         struct progress_meter **ret, struct error *err)
{
    const struct progress *progress = options->quiet ? NULL : hashtree_progress(tree);

    return cli_meter_start(options, what, progress, ret, err);
}
