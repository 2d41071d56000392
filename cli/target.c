/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "cli/cli.h"
#include "image/write.h"

void cli_target_close(struct cli_target *target)
{
    if (target->partitions != NULL)
        partition_table_free(target->partitions);
    if (target->image != NULL)
        image_close(target->image);
    *target = (struct cli_target){0};
}

int cli_target_open(const char *path, const struct cli_options *options, const char *fallback,
                    struct cli_target *ret, struct error *err)
{
    _cleanup_target_ struct cli_target target = {0};
    const char *spec = options->partition != NULL ? options->partition : fallback;

    int r = options->overlay != NULL
                ? image_open_overlay(path, &options->image, options->overlay, &target.image, err)
                : image_open(path, &options->image, &target.image, err);
    if (r < 0)
        return r;
    r = partition_table_read(target.image, &target.partitions, err);
    if (r < 0)
        return r;
    r = partition_find(target.partitions, spec, &target.partition, err);
    if (r < 0)
        return error_prefix(err, "%s", path);
    *ret = target;
    target = (struct cli_target){0};
    return 0;
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
