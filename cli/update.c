/* SPDX-License-Identifier: MIT */
#include "cli/cli.h"
#include "common/log.h"

static int update_run(const struct cli_options *options, int argc, char **argv, void *arg,
                      struct error *err)
{
    _cleanup_target_ struct cli_target target = {0};
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    uint8_t root[VERITY_DIGEST_MAX];

    (void)argc, (void)arg;
    int r = cli_target_open(argv[0], options, NULL, &target, err);
    if (r < 0)
        return r;
    r = cli_tree_new(options, &target, &tree, err);
    if (r < 0)
        return r;
    {
        _cleanup_(progress_meter_stop_cleanup) struct progress_meter *meter = NULL;
        r = cli_tree_meter_start(options, "hashing", tree, &meter, err);
        if (r == 0)
            r = hashtree_root(tree, root, err);
    }
    if (r < 0)
        return r;
    _cleanup_error_ struct error track_err = ERROR_INIT;
    if (hashtree_track(tree, &track_err) < 0)
        log_warning("the next update will have to read more: %s", error_message(&track_err));
    return cli_hash_print(options, &target, NULL, tree, true, err);
}

const struct cli_command cmd_update = {
    .name = "update",
    .arguments = "IMAGE",
    .summary = "Brings an image's tree file up to date by the cheapest proof there is",
    .details =
        "Prints what 'qverity hash' does, and by what proof it was found: unchanged (nobody\n"
        "touched the image's files), bitmap (QEMU's record of what was written: see\n"
        "'qverity track'), overlay (the tree file of an image below), or full, and why.",
    .groups = CLI_IMAGE | CLI_PARTITION | CLI_VERITY | CLI_TREE | CLI_KEEP | CLI_JSON |
              CLI_SANDBOX | CLI_BYTES,
    .operands_min = 1,
    .operands_max = 1,
    .run = update_run,
};
