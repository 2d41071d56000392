/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli/cli.h"
#include "common/checked.h"
#include "common/io.h"
#include "common/units.h"

/* A multiple of every cluster size, and pieces start at multiples of it, so that no compressed
 * cluster is decompressed twice. */
#define PIECE_SIZE (UINT64_C(2) << 20)

static int read_range(struct image *image, uint64_t offset, uint64_t length, struct error *err)
{
    _cleanup_free_ char *buffer = NULL;

    buffer = malloc(PIECE_SIZE);
    if (buffer == NULL)
        return error_oom(err);
    while (length > 0) {
        size_t n = (size_t)min_u64(length, PIECE_SIZE - offset % PIECE_SIZE);

        int r = image_read(image, offset, buffer, n, err);
        if (r >= 0)
            r = io_write(STDOUT_FILENO, "standard output", buffer, n, err);
        if (r < 0)
            return r;
        offset += n;
        length -= n;
    }
    return 0;
}

static int parse_operand(const char *text, const char *what, uint64_t *ret, struct error *err)
{
    int r = parse_size(text, what, ret, err);

    return r < 0 ? cli_usage_error(err, "read: %s", error_message(err)) : 0;
}

static int check_range(struct image *image, uint64_t offset, uint64_t length, struct error *err)
{
    struct extent extent;

    for (uint64_t at = 0; at < length; at += extent.length) {
        int r = image_map(image, offset + at, length - at, 0, &extent, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_run(const struct cli_options *options, int argc, char **argv, void *context,
                    struct error *err)
{
    _cleanup_target_ struct cli_target target = {0};
    uint64_t offset, length;

    (void)argc;
    (void)context;
    int r = parse_operand(argv[1], "OFFSET", &offset, err);
    if (r >= 0)
        r = parse_operand(argv[2], "LENGTH", &length, err);
    if (r >= 0)
        r = cli_target_open(argv[0], options, "disk", &target, err);
    if (r < 0)
        return r;
    if (!range_within(offset, length, target.partition->size))
        return error_set(err, ERANGE,
                         "%s: %" PRIu64 " bytes at offset %" PRIu64
                         " reach beyond the end of the %s of %" PRIu64 " bytes",
                         argv[0], length, offset,
                         target.partition->number == 0 ? "disk" : "partition",
                         target.partition->size);
    /* Nothing is written of a range that is not all there. */
    r = check_range(target.image, target.partition->start + offset, length, err);
    if (r < 0)
        return r;
    r = read_range(target.image, target.partition->start + offset, length, err);
    /* Whoever read our output has seen enough. */
    return r == -EPIPE ? CLI_FAILED : r;
}

const struct cli_command cmd_read = {
    .name = "read",
    .arguments = "IMAGE OFFSET LENGTH",
    .summary = "Writes bytes of the disk, or of a partition, to standard output",
    .details =
        "OFFSET and LENGTH are bytes, decimal or 0x hexadecimal; K, M, G, T, P and E stand for\n"
        "powers of 1024. OFFSET counts from the start of the partition that -p chooses, or of the\n"
        "disk. A range that reaches beyond its end is an error, and nothing is written.",
    .groups = CLI_IMAGE | CLI_PARTITION | CLI_SANDBOX | CLI_BYTES,
    .operands_min = 3,
    .operands_max = 3,
    .run = read_run,
};
