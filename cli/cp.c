/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "cli/copy.h"
#include "common/io.h"
#include "common/log.h"
#include "common/text.h"

struct cp {
    bool recursive, preserve;

    struct copy copy;
    const char *destination;
    bool into_directory; /* the destination is one */
};

static const struct cli_option cp_options[] = {
    {"recursive", 'r', NULL, "copy directories with all that is in them, and links as links"},
    {"preserve", 0, NULL, "keep times, and permissions whatever the umask"},
    {"archive", 'a', NULL, "as -r --preserve"},
    {0},
};

enum cp_option { OPT_RECURSIVE, OPT_PRESERVE, OPT_ARCHIVE };

static int cp_option(size_t index, const char *argument, void *context, struct error *err)
{
    struct cp *cp = context;

    (void)argument;
    (void)err;
    switch ((enum cp_option)index) {
    case OPT_RECURSIVE:
        cp->recursive = true;
        return 0;
    case OPT_PRESERVE:
        cp->preserve = true;
        return 0;
    case OPT_ARCHIVE:
        cp->recursive = cp->preserve = true;
        return 0;
    }
    abort();
}

/* --- Signals --- */

static void on_signal(int number)
{
    copy_interrupted = number;
}

/* So that no half of a file is left when somebody asks us to stop. */
static void catch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    /* A second one ends us at once, should a write hang. */
    const struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    struct sigaction old;

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler == SIG_DFL)
            (void)sigaction(numbers[i], &action, NULL);
}

/* Ends as the signal would have ended us. */
static void die_of_signal(void)
{
    const int number = copy_interrupted;

    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

/* --- Where to --- */

/* The last component of a path; "." when what is in the directory is meant. */
static int last_name(const char *path, char **ret, struct error *err)
{
    size_t end = strlen(path), start;

    while (end > 0 && path[end - 1] == '/')
        end--;
    for (start = end; start > 0 && path[start - 1] != '/'; start--)
        ;
    const size_t length = end - start;
    const bool all = length == 0 || (length == 2 && strncmp(path + start, "..", 2) == 0);
    char *name = all ? strdup(".") : strndup(path + start, length);
    if (name == NULL)
        return error_oom(err);
    *ret = name;
    return 0;
}

/* Opens the directory that a path's last component is in. *ret_name points into the path or is ".".
 */
static int open_parent(const char *path, int *ret, char **ret_name, struct error *err)
{
    _cleanup_free_ char *copy = strdup(path), *name = NULL;
    _cleanup_close_ int fd = -1;

    if (copy == NULL)
        return error_oom(err);
    size_t length = strlen(copy);
    while (length > 1 && copy[length - 1] == '/')
        copy[--length] = '\0';
    char *slash = strrchr(copy, '/');
    name = strdup(slash != NULL ? slash + 1 : copy);
    if (name == NULL)
        return error_oom(err);
    if (slash != NULL)
        slash[slash == copy ? 1 : 0] = '\0';
    fd = open(slash != NULL ? copy : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(err, errno, "%s", path);
    *ret = take_fd(&fd);
    *ret_name = TAKE_PTR(name);
    return 0;
}

/* --- Copying --- */

static int copy_to_special(struct cp *cp, struct file_node *node, struct error *err)
{
    int fd = open(cp->destination, O_WRONLY | O_CLOEXEC | O_NOCTTY);

    if (fd < 0)
        return error_set_errno(err, errno, "%s", cp->destination);
    int r = copy_to_stream(&cp->copy, node, fd, err);
    if (r < 0) {
        (void)close(fd);
        return r;
    }
    return io_close_written(fd, cp->destination, err);
}

/* To a destination that is to become the copy, or is a file. */
static int copy_to_name(struct cp *cp, struct file_node *node, struct error *err)
{
    const bool directory = S_ISDIR(file_node_info(node)->mode);
    const size_t length = strlen(cp->destination);
    _cleanup_free_ char *real = NULL, *name = NULL;
    _cleanup_close_ int parent = -1;
    struct stat st;

    if (stat(cp->destination, &st) == 0) {
        if (directory)
            return error_set_errno(err, ENOTDIR, "%s", cp->destination);
        if (!S_ISREG(st.st_mode) && S_ISREG(file_node_info(node)->mode))
            return copy_to_special(cp, node, err);
        /* A link of the user's own is followed. */
        real = realpath(cp->destination, NULL);
        if (real == NULL)
            return error_set_errno(err, errno, "%s", cp->destination);
    } else if (lstat(cp->destination, &st) == 0) {
        return error_set(err, ENOENT, "%s: a symbolic link that leads nowhere", cp->destination);
    } else if (!directory && length > 0 && cp->destination[length - 1] == '/') {
        return error_set_errno(err, ENOTDIR, "%s", cp->destination);
    }
    int r = open_parent(real != NULL ? real : cp->destination, &parent, &name, err);
    return r < 0 ? r : copy_node(&cp->copy, node, parent, name, err);
}

/* `path` is the operand's, in the image. */
static int copy_to_directory(struct cp *cp, struct file_node *node, const char *path,
                             struct error *err)
{
    _cleanup_free_ char *name = NULL;
    _cleanup_close_ int fd = open(cp->destination, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    size_t length;

    if (fd < 0)
        return error_set_errno(err, errno, "%s", cp->destination);
    int r = last_name(path, &name, err);
    if (r == 0 && strcmp(name, ".") != 0)
        r = path_add(&cp->copy.to, name, &length, err);
    return r < 0 ? r : copy_node(&cp->copy, node, fd, name, err);
}

static int copy_operand(struct cp *cp, const char *operand, struct error *err)
{
    struct inside *inside = cp->copy.inside;
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
    const char *path;

    /* With -r a link is copied as one, unless a slash behind it says otherwise. */
    int r = inside_find(inside, operand, cp->recursive ? 0 : FILE_FOLLOW, &node, err);
    if (r == 0)
        r = inside_open(inside, operand, &path, err);
    if (r == 0)
        r = path_set(&cp->copy.from, path, err);
    if (r == 0)
        r = path_set(&cp->copy.to, cp->destination, err);
    if (r < 0)
        return r;
    const struct file_info *info = file_node_info(node);
    if (S_ISDIR(info->mode) && !cp->recursive) {
        error_set(err, EISDIR, "%s: a directory, which takes -r", path);
        return inside_prefix(inside, err);
    }
    return cp->into_directory ? copy_to_directory(cp, node, path, err)
                              : copy_to_name(cp, node, err);
}

static int copy_operands(struct cp *cp, int count, char **operands)
{
    for (int i = 0; i < count && copy_interrupted == 0; i++) {
        _cleanup_error_ struct error err = ERROR_INIT;

        if (copy_operand(cp, operands[i], &err) < 0) {
            if (err.code != EINTR || copy_interrupted == 0)
                log_error("%s", error_message(&err));
            cp->copy.failed = true;
        }
    }
    return cp->copy.failed ? CLI_FAILED : CLI_DONE;
}

/* --- The command --- */

/* Directories within each other are all open. */
static void raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 2 * INSIDE_DEPTH_MAX) {
        limit.rlim_cur =
            limit.rlim_max < 2 * INSIDE_DEPTH_MAX ? limit.rlim_max : 2 * INSIDE_DEPTH_MAX;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int check_destination(struct cp *cp, int count, struct error *err)
{
    struct stat st;

    if (inside_is_operand(cp->destination) && stat(cp->destination, &st) < 0)
        return cli_usage_error(err, "cp: '%s': files can be copied out of an image, not into one",
                               cp->destination);
    cp->into_directory = stat(cp->destination, &st) == 0 && S_ISDIR(st.st_mode);
    if (count > 1 && !cp->into_directory)
        return error_set_errno(err, ENOTDIR, "%s", cp->destination);
    return 0;
}

static int cp_run(const struct cli_options *options, int argc, char **argv, void *context,
                  struct error *err)
{
    _cleanup_(progress_meter_stop_cleanup) struct progress_meter *meter = NULL;
    _cleanup_inside_ struct inside inside = {.options = options};
    struct progress progress = {0};
    struct cp *cp = context;

    int r = inside_check_operands("cp", argc - 1, argv, err);
    if (r < 0)
        return r;
    cp->destination = argv[argc - 1];
    r = check_destination(cp, argc - 1, err);
    if (r < 0)
        return r;
    cp->copy.inside = &inside;
    cp->copy.preserve = cp->preserve;
    cp->copy.progress = &progress;
    cp->copy.umask = umask(0);
    (void)umask(cp->copy.umask);
    raise_file_limit();
    r = cli_meter_start(options, "copying", &progress, &meter, err);
    if (r < 0)
        return r;
    catch_signals();
    r = copy_operands(cp, argc - 1, argv);
    copy_clear(&cp->copy);
    if (copy_interrupted != 0)
        die_of_signal();
    return r;
}

const struct cli_command cmd_cp = {
    .name = "cp",
    .arguments = "IMAGE:/PATH... DESTINATION",
    .summary = "Copies files and directories out of an image",
    .details = "The files are those of the partition that -p chooses, or of the data partition, "
               "which must be\n"
               "ext2, ext3 or ext4; nothing is mounted. To an existing DESTINATION directory they "
               "are copied\n"
               "into it. Without -r, symbolic links are followed within the partition; with it "
               "they are copied\n"
               "as links. Holes stay holes. A file that is there is replaced when its copy is "
               "complete.\n\n"
               "Nothing is written through a link that is in the destination directory, and no "
               "names lead out\n"
               "of it. Device nodes, sockets and fifos are left out with a warning; owners, "
               "set-user-ID and the\n"
               "like, hard links and extended attributes are not kept.",
    .groups = CLI_IMAGE | CLI_PARTITION,
    .options = cp_options,
    .operands_min = 2,
    .operands_max = -1,
    .option = cp_option,
    .context_size = sizeof(struct cp),
    .run = cp_run,
};
