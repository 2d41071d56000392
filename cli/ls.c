/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/file_text.h"
#include "common/log.h"
#include "common/text.h"

struct ls {
    bool all, long_lines, recursive, directory;

    bool json, headings, printed, failed;
    struct inside inside;
    struct file_json out;
    struct inode_set seen; /* directories, by -R */
    struct path path;      /* in the image, of what is listed */
};

static const struct cli_option ls_options[] = {
    {"all", 'a', NULL, "also list . and .. (other names with a dot are always listed)"},
    {"directory", 'd', NULL, "list directories themselves, not what is in them"},
    {"long", 'l', NULL, "mode, links, owner, group, size, time of change, and links' targets"},
    {"recursive", 'R', NULL, "also list what is in directories below"},
    {0},
};

enum ls_option { OPT_ALL, OPT_DIRECTORY, OPT_LONG, OPT_RECURSIVE };

static int ls_option(size_t index, const char *argument, void *context, struct error *err)
{
    struct ls *ls = context;

    (void)argument;
    (void)err;
    switch ((enum ls_option)index) {
    case OPT_ALL:
        ls->all = true;
        return 0;
    case OPT_DIRECTORY:
        ls->directory = true;
        return 0;
    case OPT_LONG:
        ls->long_lines = true;
        return 0;
    case OPT_RECURSIVE:
        ls->recursive = true;
        return 0;
    }
    abort();
}

/* Tells of what cannot be listed, and goes on. */
static void complain(struct ls *ls, struct error *err)
{
    inside_prefix(&ls->inside, err);
    log_error("%s", error_message(err));
    error_clear(err);
    ls->failed = true;
}

/* --- One file --- */

static void print_long(const struct file_info *info, const char *name, const char *target)
{
    char mode[FILE_MODE_LENGTH], time[FILE_TIME_LENGTH], size[32];

    file_mode_text(info->mode, mode);
    file_time_text(&info->modified, false, time);
    if (S_ISBLK(info->mode) || S_ISCHR(info->mode))
        snprintf(size, sizeof(size), "%" PRIu32 ", %" PRIu32, info->device_major,
                 info->device_minor);
    else
        snprintf(size, sizeof(size), "%" PRIu64, info->size);
    printf("%s %3" PRIu32 " %5" PRIu32 " %5" PRIu32 " %12s %s ", mode, info->links, info->uid,
           info->gid, size, time);
    file_print_name(name);
    if (target != NULL) {
        fputs(" -> ", stdout);
        file_print_name(target);
    }
    putchar('\n');
}

/* `name` is what a line shows. The path is ls->path. */
static int print_file(struct ls *ls, struct file_node *node, const char *name, struct error *err)
{
    const struct file_info *info = file_node_info(node);
    _cleanup_free_ char *target = NULL;

    if (S_ISLNK(info->mode)) {
        int r = file_node_read_link(node, &target, err);
        if (r < 0)
            return r;
    }
    if (ls->json)
        return file_json_print(&ls->out, ls->inside.image, ls->path.text, info, target, err);
    print_long(info, name, target);
    return 0;
}

static void print_name(const char *name)
{
    file_print_name(name);
    putchar('\n');
}

/* --- Directories --- */

/* A line for an entry of the directory that ls->path tells. */
static int list_entry(struct ls *ls, const struct listing_entry *entry, struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
    size_t length;

    if (!ls->long_lines && !ls->json) {
        print_name(entry->name);
        return 0;
    }
    int r = path_add(&ls->path, entry->name, &length, err);
    if (r < 0)
        return r;
    r = file_node_open(ls->inside.fs, entry->inode, &node, err);
    if (r == 0)
        r = print_file(ls, node, entry->name, err);
    if (r < 0 && r != -ENOMEM) {
        _cleanup_free_ char *text = text_printable(ls->path.text);

        error_prefix(err, "%s", text != NULL ? text : "?");
        complain(ls, err);
        r = 0;
    }
    path_cut(&ls->path, length);
    return r;
}

/* "." and ".." */
static int list_dots(struct ls *ls, struct error *err)
{
    static const char *const names[] = {".", ".."};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
        size_t length;

        int r = path_add(&ls->path, names[i], &length, err);
        if (r < 0)
            return r;
        r = file_node_find(ls->inside.fs, ls->path.text, 0, &node, err);
        if (r == 0 && (ls->long_lines || ls->json))
            r = print_file(ls, node, names[i], err);
        else if (r == 0)
            print_name(names[i]);
        path_cut(&ls->path, length);
        if (r < 0)
            return r;
    }
    return 0;
}

static void print_heading(struct ls *ls)
{
    if (!ls->headings || ls->json)
        return;
    if (ls->printed)
        putchar('\n');
    file_print_name(ls->inside.image);
    putchar(':');
    file_print_name(ls->path.text);
    puts(":");
}

static int list_directory(struct ls *ls, struct file_node *node, unsigned depth, struct error *err);

/* Lists the directories among the entries of the one that ls->path tells. */
static int list_below(struct ls *ls, const struct listing *listing, unsigned depth,
                      struct error *err)
{
    int r = 0;

    for (size_t i = 0; i < listing->count && r == 0; i++) {
        const struct listing_entry *entry = &listing->entries[i];
        _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
        size_t length;

        r = path_add(&ls->path, entry->name, &length, err);
        if (r < 0)
            return r;
        r = file_node_open(ls->inside.fs, entry->inode, &node, err);
        if (r == 0 && S_ISDIR(file_node_info(node)->mode))
            r = list_directory(ls, node, depth + 1, err);
        if (r < 0 && r != -ENOMEM) {
            /* With a long line it was told already. */
            const bool told = node == NULL && (ls->long_lines || ls->json);
            _cleanup_free_ char *text = text_printable(ls->path.text);

            error_prefix(err, "%s", text != NULL ? text : "?");
            if (!told)
                complain(ls, err);
            error_clear(err);
            r = 0;
        }
        path_cut(&ls->path, length);
    }
    return r;
}

static int list_directory(struct ls *ls, struct file_node *node, unsigned depth, struct error *err)
{
    _cleanup_listing_ struct listing listing = {0};
    int r;

    if (depth > INSIDE_DEPTH_MAX)
        return error_set(err, EUCLEAN, "more than %d directories within each other",
                         INSIDE_DEPTH_MAX);
    if (ls->recursive) {
        r = inode_set_add(&ls->seen, file_node_info(node)->inode, err);
        if (r == -EEXIST)
            return error_set(err, EUCLEAN,
                             "a directory that was listed under another name already");
        if (r < 0)
            return r;
    }
    r = listing_read(node, &listing, err);
    if (r < 0)
        return r;
    print_heading(ls);
    ls->printed = true;
    if (ls->all)
        r = list_dots(ls, err);
    for (size_t i = 0; i < listing.count && r == 0; i++) {
        r = list_entry(ls, &listing.entries[i], err);
        if (ferror(stdout))
            return r; /* main tells */
    }
    return r == 0 && ls->recursive ? list_below(ls, &listing, depth, err) : r;
}

/* --- Operands --- */

/* Finds what an operand means: of a link to a directory that directory, if that is to be listed. */
static int find_operand(struct ls *ls, const char *operand, struct file_node **ret,
                        struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL, *target = NULL;

    int r = inside_find(&ls->inside, operand, 0, &node, err);
    if (r < 0)
        return r;
    if (S_ISLNK(file_node_info(node)->mode) && !ls->long_lines && !ls->directory &&
        inside_find(&ls->inside, operand, FILE_FOLLOW, &target, NULL) == 0 &&
        S_ISDIR(file_node_info(target)->mode)) {
        *ret = TAKE_PTR(target);
        return 0;
    }
    *ret = TAKE_PTR(node);
    return 0;
}

static int list_operand(struct ls *ls, const char *operand, struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
    const char *path;

    int r = find_operand(ls, operand, &node, err);
    if (r == 0)
        r = inside_open(&ls->inside, operand, &path, err);
    if (r == 0)
        r = path_set(&ls->path, path, err);
    if (r < 0)
        return r;
    if (S_ISDIR(file_node_info(node)->mode) && !ls->directory) {
        inode_set_clear(&ls->seen);
        r = list_directory(ls, node, 0, err);
    } else if (ls->long_lines || ls->json) {
        r = print_file(ls, node, operand, err);
        ls->printed = true;
    } else {
        print_name(operand);
        ls->printed = true;
    }
    if (r < 0) {
        _cleanup_free_ char *text = text_printable(ls->path.text);

        return error_prefix(err, "%s", text != NULL ? text : "?");
    }
    return 0;
}

static int list_operands(struct ls *ls, int count, char **operands, struct error *err)
{
    if (ls->json)
        file_json_begin(&ls->out);
    for (int i = 0; i < count; i++) {
        int r = list_operand(ls, operands[i], err);

        if (r == -ENOMEM)
            return r;
        if (r < 0 && ls->inside.image != NULL) {
            complain(ls, err);
        } else if (r < 0) {
            log_error("%s", error_message(err));
            error_clear(err);
            ls->failed = true;
        }
    }
    if (ls->json)
        file_json_end(&ls->out);
    return ls->failed ? CLI_FAILED : CLI_DONE;
}

static int ls_run(const struct cli_options *options, int argc, char **argv, void *context,
                  struct error *err)
{
    struct ls *ls = context;

    int r = inside_check_operands("ls", argc, argv, err);
    if (r < 0)
        return r;
    ls->inside.options = options;
    ls->inside.confined = inside_one_image(argc, argv);
    ls->json = options->json;
    ls->headings = argc > 1 || ls->recursive;
    r = list_operands(ls, argc, argv, err);
    path_clear(&ls->path);
    inode_set_clear(&ls->seen);
    inside_clear(&ls->inside);
    return r;
}

const struct cli_command cmd_ls = {
    .name = "ls",
    .arguments = "IMAGE:/PATH...",
    .summary = "Lists directories and files in an image",
    .details =
        "A name a line, in the order of their bytes. The files are those of the partition that -p\n"
        "chooses, or of the data partition, which must be ext2, ext3 or ext4; nothing is mounted.\n"
        "Owners and groups are numbers. On a terminal, control characters, marks that turn the\n"
        "direction of writing, and bytes that are not UTF-8 are shown as \\xNN.",
    .groups = CLI_IMAGE | CLI_PARTITION | CLI_JSON | CLI_SANDBOX,
    .options = ls_options,
    .operands_min = 1,
    .operands_max = -1,
    .option = ls_option,
    .context_size = sizeof(struct ls),
    .run = ls_run,
};
