/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <unistd.h>

#include "cli/inside.h"
#include "common/checked.h"
#include "common/io.h"
#include "common/log.h"
#include "common/text.h"

#define ZEROS_SIZE ((size_t)64 << 10)

/* `arg` is set to true when it fails. */
static int write_bytes(void *arg, uint64_t offset, const void *bytes, uint64_t length,
                       struct error *err)
{
    static const char zeros[ZEROS_SIZE];
    bool *failed = arg;
    int r = 0;

    (void)offset;
    while (length > 0 && r == 0) {
        const size_t n = (size_t)(bytes != NULL ? length : min_u64(length, sizeof(zeros)));

        r = io_write(STDOUT_FILENO, "standard output", bytes != NULL ? bytes : zeros, n, err);
        length -= n;
    }
    *failed = r < 0;
    return r;
}

static int cat_operand(struct inside *inside, const char *operand, struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    bool writing = false;

    int r = inside_find(inside, operand, FILE_FOLLOW, &node, err);
    if (r < 0)
        return r;
    r = file_node_read_all(node, write_bytes, &writing, err);
    if (r == 0 || writing)
        return r;
    _cleanup_free_ char *text = text_printable(file_node_path(node));

    error_prefix(err, "%s", text != NULL ? text : "?");
    return inside_prefix(inside, err);
}

static int cat_run(const struct cli_options *options, int argc, char **argv, void *context,
                   struct error *err)
{
    _cleanup_inside_ struct inside inside = {.options = options};
    bool failed = false;

    (void)context;
    int r = inside_check_operands("cat", argc, argv, err);
    if (r < 0)
        return r;
    inside.confined = inside_one_image(argc, argv);
    for (int i = 0; i < argc; i++) {
        _cleanup_error_ struct error one = ERROR_INIT;

        r = cat_operand(&inside, argv[i], &one);
        if (r == -EPIPE)
            return CLI_FAILED; /* Whoever read our output has seen enough. */
        if (r < 0)
            log_error("%s", error_message(&one));
        failed |= r < 0;
    }
    return failed ? CLI_FAILED : CLI_DONE;
}

const struct cli_command cmd_cat = {
    .name = "cat",
    .arguments = "IMAGE:/PATH...",
    .summary = "Writes files in an image to standard output",
    .details = "The files are those of the partition that -p chooses, or of the data partition, "
               "which must be\n"
               "ext2, ext3 or ext4; nothing is mounted. Symbolic links are followed within that "
               "partition.\n"
               "A file that cannot be read is told, and the others are written.",
    .groups = CLI_IMAGE | CLI_PARTITION | CLI_SANDBOX,
    .operands_min = 1,
    .operands_max = -1,
    .run = cat_run,
};
