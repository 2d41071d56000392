/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <sys/stat.h>

#include "cli/file_text.h"
#include "common/log.h"

struct stat_context {
    bool follow;
};

static const struct cli_option stat_options[] = {
    {"dereference", 'L', NULL, "of a symbolic link, tell what it leads to"},
    {0},
};

static int stat_option(size_t index, const char *argument, void *context, struct error *err)
{
    struct stat_context *stat = context;

    (void)index;
    (void)argument;
    (void)err;
    stat->follow = true;
    return 0;
}

static void print_time(const char *label, const struct timespec *time)
{
    char text[FILE_TIME_LENGTH];

    file_time_text(time, true, text);
    printf("%-12s%s\n", label, text);
}

static void print_text(const char *operand, const struct file_info *info, const char *target)
{
    char mode[FILE_MODE_LENGTH];

    printf("%-12s", "File:");
    file_print_name(operand);
    if (target != NULL) {
        fputs(" -> ", stdout);
        file_print_name(target);
    }
    file_mode_text(info->mode, mode);
    printf("\n%-12s%s\n", "Type:", file_type_name(info->mode));
    if (S_ISBLK(info->mode) || S_ISCHR(info->mode))
        printf("%-12s%" PRIu32 ", %" PRIu32 "\n", "Device:", info->device_major,
               info->device_minor);
    printf("%-12s%" PRIu64 " bytes (%" PRIu64 " allocated)\n", "Size:", info->size,
           info->allocated);
    printf("%-12s%" PRIu32 "\n%-12s%" PRIu32 "\n", "Inode:", info->inode, "Links:", info->links);
    printf("%-12s%04o (%s)\n", "Mode:", (unsigned)info->mode & 07777, mode);
    printf("%-12s%" PRIu32 "\n%-12s%" PRIu32 "\n", "Uid:", info->uid, "Gid:", info->gid);
    print_time("Modified:", &info->modified);
    print_time("Accessed:", &info->accessed);
    print_time("Changed:", &info->changed);
    if (info->created.tv_sec != 0)
        print_time("Created:", &info->created);
}

static int stat_operand(struct inside *inside, const char *operand, bool follow,
                        struct file_json *json, bool first, struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
    _cleanup_free_ char *target = NULL;
    const char *path;

    int r = inside_find(inside, operand, follow ? FILE_FOLLOW : 0, &node, err);
    if (r == 0)
        r = inside_open(inside, operand, &path, err);
    if (r < 0)
        return r;
    const struct file_info *info = file_node_info(node);
    if (S_ISLNK(info->mode)) {
        r = file_node_read_link(node, &target, err);
        if (r < 0)
            return inside_prefix(inside, err);
    }
    if (json != NULL)
        return file_json_print(json, inside->image, path, info, target, err);
    if (!first)
        putchar('\n');
    print_text(operand, info, target);
    return 0;
}

static int stat_run(const struct cli_options *options, int argc, char **argv, void *context,
                    struct error *err)
{
    _cleanup_inside_ struct inside inside = {.options = options};
    const struct stat_context *stat = context;
    struct file_json json;
    bool failed = false, first = true;

    int r = inside_check_operands("stat", argc, argv, err);
    if (r < 0)
        return r;
    inside.confined = inside_one_image(argc, argv);
    if (options->json)
        file_json_begin(&json);
    for (int i = 0; i < argc; i++) {
        _cleanup_error_ struct error one = ERROR_INIT;

        r = stat_operand(&inside, argv[i], stat->follow, options->json ? &json : NULL, first, &one);
        if (r < 0)
            log_error("%s", error_message(&one));
        failed |= r < 0;
        first &= r < 0;
    }
    if (options->json)
        file_json_end(&json);
    return failed ? CLI_FAILED : CLI_DONE;
}

const struct cli_command cmd_stat = {
    .name = "stat",
    .arguments = "IMAGE:/PATH...",
    .summary = "Tells type, size, owner, permissions and times of files in an image",
    .details = "The files are those of the partition that -p chooses, or of the data partition, "
               "which must be\n"
               "ext2, ext3 or ext4; nothing is mounted. Of a symbolic link it tells of the link, "
               "and where it\n"
               "leads, unless -L is given.",
    .groups = CLI_IMAGE | CLI_PARTITION | CLI_JSON | CLI_SANDBOX,
    .options = stat_options,
    .operands_min = 1,
    .operands_max = -1,
    .option = stat_option,
    .context_size = sizeof(struct stat_context),
    .run = stat_run,
};
