/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <string.h>

#include "cli/cli.h"
#include "common/checked.h"

struct printer {
    bool json;
    uint64_t ranges;
    uint64_t bytes;
};

static int print_range(void *arg, uint64_t start, uint64_t length, struct error *err)
{
    struct printer *p = arg;

    (void)err;
    /* JSON is streamed: images can differ in more places than there is memory for. */
    if (p->json)
        printf("%s\n    {\"start\": %" PRIu64 ", \"length\": %" PRIu64 "}",
               p->ranges > 0 ? "," : "", start, length);
    else
        printf("%" PRIu64 " %" PRIu64 "\n", start, length);
    p->ranges++;
    p->bytes += length;
    return 0;
}

struct side {
    struct cli_target target;
    uint64_t blocks; /* that the partition has */
    struct hashtree *tree;
};

static void side_close(struct side *side)
{
    if (side->tree != NULL)
        hashtree_free(side->tree);
    cli_target_close(&side->target);
}
DEFINE_CLEANUP_INPLACE(struct side, side_close);

static int side_hash(const struct cli_options *given, uint64_t blocks, struct side *side,
                     struct error *err)
{
    struct cli_options options_of_side = *given, *options = &options_of_side;
    _cleanup_(progress_meter_stop_cleanup) struct progress_meter *meter = NULL;
    uint8_t root[VERITY_DIGEST_MAX];

    /* A tree over a part of the partition must not take the place of the one over all of it. */
    options->no_tree |= side->blocks != blocks;
    options->verity.data_blocks = blocks;
    options->verity.data_blocks_set = true;
    int r = cli_tree_new(options, &side->target, &side->tree, err);
    if (r == 0)
        r = cli_tree_meter_start(options, "hashing", side->tree, &meter, err);
    return r == 0 ? hashtree_root(side->tree, root, err) : r;
}

static int side_measure(const struct cli_options *options, struct side *side,
                        uint32_t *ret_block_size, struct error *err)
{
    struct verity_params params;

    int r = cli_verity_params(options, &side->target, &params, err);
    if (r < 0)
        return r;
    side->blocks = params.data_blocks;
    *ret_block_size = params.data_block_size;
    return 0;
}

static int print_ranges(struct side *a, struct side *b, uint64_t blocks, uint32_t block_size,
                        struct printer *printer, struct error *err)
{
    uint64_t most = max_u64(a->blocks, b->blocks);

    if (printer->json)
        printf("{\n  \"ranges\": [");
    int r = hashtree_diff(a->tree, b->tree, print_range, printer, err);
    /* What only one of them has differs as a whole. */
    if (r == 0 && most > blocks)
        r = print_range(printer, blocks * block_size, (most - blocks) * block_size, err);
    if (r < 0)
        return r;
    if (printer->json)
        printf("%s],\n  \"differ\": %s,\n  \"bytes\": %" PRIu64 "\n}\n",
               printer->ranges > 0 ? "\n  " : "", printer->ranges > 0 ? "true" : "false",
               printer->bytes);
    return printer->ranges > 0 ? CLI_WRONG : CLI_DONE;
}

static int diff_run(const struct cli_options *options, int argc, char **argv, void *arg,
                    struct error *err)
{
    _cleanup_(side_close_cleanup) struct side a = {0};
    _cleanup_(side_close_cleanup) struct side b = {0};
    struct printer printer = {.json = options->json};
    uint32_t block_size;

    (void)argc, (void)arg;
    if (options->keep.path != NULL)
        return cli_usage_error(err, "diff: --tree names one file, but there are two images");
    if (options->verity.salt != NULL && strcmp(options->verity.salt, "random") == 0)
        return cli_usage_error(err, "diff: --salt random: trees compare with the same salt only");
    struct cli_target targets[2];
    int r = cli_targets_open(argv, 2, options, NULL, targets, err);
    if (r < 0)
        return r;
    a.target = targets[0];
    b.target = targets[1];
    r = side_measure(options, &a, &block_size, err);
    if (r == 0)
        r = side_measure(options, &b, &block_size, err);
    if (r < 0)
        return r;
    uint64_t blocks = min_u64(a.blocks, b.blocks);
    r = side_hash(options, blocks, &a, err);
    if (r == 0)
        r = side_hash(options, blocks, &b, err);
    return r < 0 ? r : print_ranges(&a, &b, blocks, block_size, &printer, err);
}

const struct cli_command cmd_diff = {
    .name = "diff",
    .arguments = "A B",
    .summary = "Tells which byte ranges of two images differ, by their trees",
    .details =
        "Prints a line for each range of data blocks that differ: its offset in the partition\n"
        "and its length, in bytes. Exits with 3 if there are any. What tree files show to be\n"
        "equal is not read.",
    .groups = CLI_IMAGE | CLI_PARTITION | CLI_VERITY | CLI_TREE | CLI_KEEP | CLI_JSON |
              CLI_SANDBOX | CLI_BYTES,
    .operands_min = 2,
    .operands_max = 2,
    .run = diff_run,
};
