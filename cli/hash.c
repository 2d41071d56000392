/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/cli.h"
#include "common/checked.h"
#include "common/io.h"
#include "common/log.h"
#include "common/units.h"
#include "image/bitmap.h"

enum { HASH_WRITE };

static const struct cli_option hash_options[] = {
    [HASH_WRITE] = {"write", 0, "FILE", "write the hash device to FILE, a file or block device"},
    {0},
};

struct hash_context {
    const char *write;
};

static int hash_option(size_t index, const char *argument, void *arg, struct error *err)
{
    struct hash_context *context = arg;

    (void)err;
    switch (index) {
    case HASH_WRITE:
        context->write = argument;
        return 0;
    }
    abort();
}

/* --- The file that is written --- */

struct output {
    const char *path;
    int fd;
    bool created; /* by us: it goes again unless all goes well */
    struct stat stat;
};

static void output_discard(struct output *output)
{
    struct stat now;

    /* Only what is ours: something else may have that name by now. */
    if (output->created && stat(output->path, &now) == 0 && now.st_dev == output->stat.st_dev &&
        now.st_ino == output->stat.st_ino)
        (void)unlink(output->path);
    output->created = false;
    cleanup_close(&output->fd);
}
DEFINE_CLEANUP_INPLACE(struct output, output_discard);

static bool same_file(const struct stat *a, const struct stat *b)
{
    if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
        return a->st_rdev == b->st_rdev;
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static int refuse_image_files(const struct output *output, const struct image *image,
                              struct error *err)
{
    for (size_t i = 0; i < image_file_count(image); i++) {
        const struct image_file *file = image_file(image, i);
        struct stat st;

        if (fstat(file->fd, &st) < 0)
            return error_set_errno(err, errno, "%s: fstat", file->path);
        if (same_file(&st, &output->stat))
            return error_set(err, EINVAL, "%s: --write would overwrite %s, which the image is in",
                             output->path, file->path);
    }
    return 0;
}

/* Creates the file, or opens the one that is there: like veritysetup we write into that one and
 * leave alone what it has before the hash area and behind its end. */
static int open_output(const char *path, struct output *output, struct error *err)
{
    output->path = path;
    output->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0600);
    output->created = output->fd >= 0;
    if (output->fd < 0 && errno != EEXIST)
        return error_set_errno(err, errno, "%s: cannot create", path);
    if (output->fd < 0) {
        struct stat st;
        /* O_EXCL keeps us off a block device that is mounted or part of another device, and
         * O_NONBLOCK from waiting at a FIFO. */
        int exclusive = stat(path, &st) == 0 && S_ISBLK(st.st_mode) ? O_EXCL : 0;
        output->fd = open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | exclusive);
    }
    if (output->fd < 0)
        return error_set_errno(err, errno, "%s: cannot open for writing", path);
    if (fstat(output->fd, &output->stat) < 0)
        return error_set_errno(err, errno, "%s: fstat", path);
    if (!S_ISREG(output->stat.st_mode) && !S_ISBLK(output->stat.st_mode))
        return error_set(err, EINVAL, "%s: neither a file nor a block device", path);
    return 0;
}

/* Too little room had better be found out before the hashing than at its end. */
static int reserve_room(const struct output *output, const struct hashtree *tree, struct error *err)
{
    uint64_t offset = hashtree_params(tree)->hash_offset;
    uint64_t end = hashtree_geometry(tree)->device_size;

    if (S_ISBLK(output->stat.st_mode)) {
        off_t size = lseek(output->fd, 0, SEEK_END);
        if (size < 0)
            return error_set_errno(err, errno, "%s: cannot tell its size", output->path);
        if ((uint64_t)size < end)
            return error_set(err, ENOSPC,
                             "%s: the block device has %jd bytes, the hash device needs %" PRIu64,
                             output->path, (intmax_t)size, end);
        return 0;
    }
    if (end <= offset)
        return 0;
    if (fallocate(output->fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)(end - offset)) < 0 &&
        errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR)
        return error_set_errno(err, errno, "%s: no room for the hash area's %" PRIu64 " bytes",
                               output->path, end - offset);
    return 0;
}

/*
 * A signal ends the writing as an error does, so that half a hash device does not stay behind. The
 * second one kills, as it would have without us.
 */
static struct hashtree *interruptible;

static void interrupt(int signal_number)
{
    (void)signal_number;
    hashtree_cancel(interruptible);
}

static void catch_signals(struct hashtree *tree)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = interrupt, .sa_flags = SA_RESTART | SA_RESETHAND};
    struct sigaction old;

    interruptible = tree;
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler == SIG_DFL)
            sigaction(signals[i], &action, NULL);
}

static int fill_output(struct output *output, struct hashtree *tree, struct error *err)
{
    int r = hashtree_write(tree, output->fd, output->path, err);
    if (r < 0)
        return r;
    if (fsync(output->fd) < 0)
        return error_set_errno(err, errno, "%s: cannot write to disk", output->path);
    return io_close_written(take_fd(&output->fd), output->path, err);
}

static int write_hash_device(const char *path, const struct cli_target *target,
                             struct hashtree *tree, struct error *err)
{
    _cleanup_(output_discard_cleanup) struct output output = {.fd = -1};

    int r = open_output(path, &output, err);
    if (r < 0)
        return r;
    r = refuse_image_files(&output, target->image, err);
    if (r < 0)
        return r;
    r = reserve_room(&output, tree, err);
    if (r < 0)
        return r;
    catch_signals(tree);
    r = fill_output(&output, tree, err);
    if (r == -ECANCELED)
        error_set(err, ECANCELED, "interrupted");
    if (r < 0 && !output.created)
        return error_set(err, err->code, "%s (%s was there before and may now be incomplete)",
                         error_message(err), path);
    if (r < 0)
        return r;
    output.created = false;
    return 0;
}

/* --- The command --- */

static int compute(const struct cli_options *options, const struct cli_target *target,
                   const char *write, struct hashtree *tree, struct error *err)
{
    _cleanup_(progress_meter_stop_cleanup) struct progress_meter *meter = NULL;
    uint8_t root[VERITY_DIGEST_MAX];

    int r = cli_tree_meter_start(options, "hashing", tree, &meter, err);
    if (r < 0)
        return r;
    if (write != NULL)
        return write_hash_device(write, target, tree, err);
    return hashtree_root(tree, root, err);
}

/* Who switched tracking on counts on the next update being quick. */
static void warn_if_untracked(const struct cli_target *target, struct hashtree *tree)
{
    const struct image_info *info = image_info(target->image, 0);
    const char *why_not;

    if (hashtree_tracking(tree, &why_not))
        return;
    for (size_t i = 0; i < info->bitmap_count; i++)
        if (strcmp(info->bitmaps[i].name, IMAGE_BITMAP_NAME) == 0)
            log_warning("the next update will have to read everything: %s", why_not);
}

static int hash_run(const struct cli_options *options, int argc, char **argv, void *arg,
                    struct error *err)
{
    const struct hash_context *context = arg;
    struct cli_options with_files = *options;
    _cleanup_target_ struct cli_target target = {0};
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    struct cli_options root_only = *options;

    (void)argc;
    if (context->write != NULL) {
        with_files.superblock = true;
        with_files.files[with_files.file_count++] =
            (struct sandbox_file){context->write, SANDBOX_WRITE | SANDBOX_CREATE};
    }
    int r = cli_target_open(argv[0], &with_files, NULL, &target, err);
    if (r < 0)
        return r;
    root_only.tree.root_only = true;
    r = cli_tree_new(&root_only, &target, &tree, err);
    if (r < 0)
        return r;
    r = compute(options, &target, context->write, tree, err);
    if (r < 0)
        return r;
    if (!options->no_tree && context->write == NULL)
        warn_if_untracked(&target, tree);
    return cli_hash_print(options, &target, context->write, tree, false, err);
}

const struct cli_command cmd_hash = {
    .name = "hash",
    .arguments = "IMAGE",
    .summary = "Computes a dm-verity root hash, and writes the hash device",
    .details = "Hashes the data partition of IMAGE, or the one that -p tells, and prints what\n"
               "'veritysetup format' would. With --write, FILE becomes the hash device: it is\n"
               "created, or, if it exists, written into from --hash-offset on.",
    .groups = CLI_IMAGE | CLI_PARTITION | CLI_VERITY | CLI_TREE | CLI_KEEP | CLI_JSON |
              CLI_SANDBOX | CLI_BYTES,
    .options = hash_options,
    .operands_min = 1,
    .operands_max = 1,
    .option = hash_option,
    .context_size = sizeof(struct hash_context),
    .run = hash_run,
};
