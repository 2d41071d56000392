/* SPDX-License-Identifier: MIT */
#include "cli/copy.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "cli/file_text.h"
#include "common/checked.h"
#include "common/io.h"
#include "common/log.h"
#include "common/text.h"

volatile sig_atomic_t copy_interrupted;

void copy_clear(struct copy *copy)
{
    path_clear(&copy->from);
    path_clear(&copy->to);
    inode_set_clear(&copy->seen);
}

/* --- Messages --- */

/* An error of what is read, or of what is written, with its path in front. */
static int from_error(const struct copy *copy, struct error *err)
{
    _cleanup_free_ char *text = text_printable(copy->from.text);

    error_prefix(err, "%s", text != NULL ? text : "?");
    return inside_prefix(copy->inside, err);
}

static int to_error(const struct copy *copy, int code, struct error *err)
{
    _cleanup_free_ char *text = text_printable(copy->to.text);

    return error_set_errno(err, code, "%s", text != NULL ? text : "?");
}

/* --- Files that have no name, or one of their own, until they are complete --- */

/*
 * A file without a name (O_TMPFILE) goes with the process, whatever ends that. Where a file is to
 * be replaced it has a name of its own for the moment between two system calls, as only rename puts
 * one file in the place of another. File systems that have no such files (NFS, some of FUSE) get
 * named ones from the beginning, which a process that is killed leaves behind.
 */
#define TEMPORARY_LENGTH 32
#define TEMPORARY_TRIES 100
#define PROC_FD_LENGTH 32

static int temporary_name(char name[static TEMPORARY_LENGTH], struct error *err)
{
    uint64_t random;

    if (getrandom(&random, sizeof(random), 0) != sizeof(random))
        return error_set_errno(err, errno, "cannot make up a name");
    snprintf(name, TEMPORARY_LENGTH, ".qverity-%016llx", (unsigned long long)random);
    return 0;
}

static const char *proc_fd(int fd, char path[static PROC_FD_LENGTH])
{
    snprintf(path, PROC_FD_LENGTH, "/proc/self/fd/%d", fd);
    return path;
}

/* Makes something in an open directory at a name that is free: a symbolic link to `target`; else, a
 * link to the file without a name in `*fd`; else a file, whose descriptor *fd becomes. */
static int make_temporary(const struct copy *copy, int parent, const char *target,
                          char name[static TEMPORARY_LENGTH], int *fd, struct error *err)
{
    char file[PROC_FD_LENGTH];
    int result;

    for (int i = 0; i < TEMPORARY_TRIES; i++) {
        int r = temporary_name(name, err);
        if (r < 0)
            return r;
        if (target != NULL)
            result = symlinkat(target, parent, name);
        else if (*fd >= 0)
            result = linkat(AT_FDCWD, proc_fd(*fd, file), parent, name, AT_SYMLINK_FOLLOW);
        else
            result = *fd =
                openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (result >= 0)
            return 0;
        if (errno != EEXIST)
            break;
    }
    return to_error(copy, errno, err);
}

/* A file without a name. -1 if the file system has none, or it could not be given one later. */
static int make_nameless(int parent)
{
    _cleanup_close_ int fd = openat(parent, ".", O_WRONLY | O_TMPFILE | O_CLOEXEC, 0600);
    char file[PROC_FD_LENGTH];

    if (fd >= 0 && access(proc_fd(fd, file), F_OK) < 0)
        return -1; /* no /proc */
    return take_fd(&fd);
}

bool copy_is_image(const struct copy *copy, const struct stat *st)
{
    const struct image *image = copy->inside->target.image;

    for (size_t i = 0; i < image_file_count(image); i++)
        if (image_file(image, i)->stat.st_dev == st->st_dev &&
            image_file(image, i)->stat.st_ino == st->st_ino)
            return true;
    return false;
}

static int put_in_place(const struct copy *copy, int parent, const char *temporary,
                        const char *name, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    struct stat st;

    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && copy_is_image(copy, &st)) {
        text = text_printable(copy->to.text);
        return error_set(err, EINVAL, "%s: the image is in this file", text != NULL ? text : "?");
    }
    if (renameat(parent, temporary, parent, name) < 0)
        return to_error(copy, errno, err);
    return 0;
}

/* --- Bytes --- */

struct writing {
    struct copy *copy;
    int fd;
    bool stream;
    bool failed; /* it was writing that failed, not reading */
};

static int write_zeros(const struct writing *writing, uint64_t length, struct error *err)
{
    static const char zeros[64 << 10];

    while (length > 0) {
        const size_t n = (size_t)min_u64(length, sizeof(zeros));

        int r = io_write(writing->fd, writing->copy->to.text, zeros, n, err);
        if (r < 0)
            return r;
        if (copy_interrupted != 0)
            return error_set(err, EINTR, "interrupted");
        length -= n;
    }
    return 0;
}

static int write_bytes(void *arg, uint64_t offset, const void *bytes, uint64_t length,
                       struct error *err)
{
    struct writing *writing = arg;
    const char *const path = writing->copy->to.text;
    int r = 0;

    if (copy_interrupted != 0)
        r = error_set(err, EINTR, "interrupted");
    else if (writing->stream)
        r = bytes != NULL ? io_write(writing->fd, path, bytes, (size_t)length, err)
                          : write_zeros(writing, length, err);
    else if (bytes != NULL)
        r = io_write_at(writing->fd, path, bytes, (size_t)length, offset, err);
    progress_add(writing->copy->progress, length);
    writing->failed = r < 0;
    return r;
}

static int write_all(struct writing *writing, struct file_node *node, struct error *err)
{
    int r = file_node_read_all(node, write_bytes, writing, err);

    return r < 0 && !writing->failed ? from_error(writing->copy, err) : r;
}

int copy_to_stream(struct copy *copy, struct file_node *node, int fd, struct error *err)
{
    struct writing writing = {.copy = copy, .fd = fd, .stream = true};

    return write_all(&writing, node, err);
}

/* --- Attributes --- */

/* Neither set-user-ID and the like, nor more than the umask lets through. */
static mode_t permissions(const struct copy *copy, const struct file_info *info)
{
    return info->mode & 0777 & (copy->preserve ? 0777 : ~copy->umask);
}

static int set_attributes(const struct copy *copy, const struct file_info *info, int fd,
                          struct error *err)
{
    const struct timespec times[2] = {info->accessed, info->modified};

    if (fchmod(fd, permissions(copy, info)) < 0 || (copy->preserve && futimens(fd, times) < 0))
        return to_error(copy, errno, err);
    return 0;
}

/* --- Regular files and links --- */

static int fill_file(struct copy *copy, struct file_node *node, int fd, struct error *err)
{
    const struct file_info *info = file_node_info(node);
    struct writing writing = {.copy = copy, .fd = fd};

    /* What is not written stays a hole. */
    if (ftruncate(fd, (off_t)info->size) < 0)
        return to_error(copy, errno, err);
    int r = write_all(&writing, node, err);
    return r < 0 ? r : set_attributes(copy, info, fd, err);
}

static int copy_file(struct copy *copy, struct file_node *node, int parent, const char *name,
                     struct error *err)
{
    char temporary[TEMPORARY_LENGTH] = "", file[PROC_FD_LENGTH];
    _cleanup_close_ int fd = make_nameless(parent);
    bool done = false;
    int r = 0;

    if (fd < 0)
        r = make_temporary(copy, parent, NULL, temporary, &fd, err);
    if (r < 0)
        return r;
    const bool nameless = temporary[0] == '\0';
    r = fill_file(copy, node, fd, err);
    if (r == 0 && nameless) {
        /* Often there is nothing to be replaced. */
        done = linkat(AT_FDCWD, proc_fd(fd, file), parent, name, AT_SYMLINK_FOLLOW) == 0;
        if (!done)
            r = make_temporary(copy, parent, NULL, temporary, &fd, err);
    }
    int closed = io_close_written(take_fd(&fd), copy->to.text, r == 0 ? err : NULL);
    r = r < 0 ? r : closed;
    if (r == 0 && !done)
        r = put_in_place(copy, parent, temporary, name, err);
    if (r < 0 && (done || temporary[0] != '\0'))
        (void)unlinkat(parent, done ? name : temporary, 0);
    return r;
}

static int copy_link(struct copy *copy, struct file_node *node, int parent, const char *name,
                     struct error *err)
{
    const struct file_info *info = file_node_info(node);
    const struct timespec times[2] = {info->accessed, info->modified};
    char temporary[TEMPORARY_LENGTH];
    _cleanup_free_ char *target = NULL;
    int fd = -1;

    int r = file_node_read_link(node, &target, err);
    if (r < 0)
        return from_error(copy, err);
    r = make_temporary(copy, parent, target, temporary, &fd, err);
    if (r < 0)
        return r;
    if (copy->preserve && utimensat(parent, temporary, times, AT_SYMLINK_NOFOLLOW) < 0)
        r = to_error(copy, errno, err);
    if (r == 0)
        r = put_in_place(copy, parent, temporary, name, err);
    if (r < 0)
        (void)unlinkat(parent, temporary, 0);
    return r;
}

/* --- Directories --- */

/* Names that occur twice would have one file replace the other. */
static int check_names(const struct listing *listing, struct error *err)
{
    for (size_t i = 1; i < listing->count; i++)
        if (strcmp(listing->entries[i - 1].name, listing->entries[i].name) == 0) {
            _cleanup_free_ char *text = text_printable(listing->entries[i].name);

            return error_set(err, EUCLEAN, "the directory has the name %s twice",
                             text != NULL ? text : "?");
        }
    return 0;
}

static int open_directory(const struct copy *copy, int parent, const char *name, bool *ret_made,
                          int *ret, struct error *err)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    const bool made = strcmp(name, ".") != 0 && mkdirat(parent, name, 0700) == 0;

    if (!made && strcmp(name, ".") != 0 && errno != EEXIST)
        return to_error(copy, errno, err);
    int fd = openat(parent, name, flags);
    if (fd < 0)
        /* A link that is there is not followed, whoever made it. */
        return to_error(copy, errno == ELOOP ? ENOTDIR : errno, err);
    *ret_made = made;
    *ret = fd;
    return 0;
}

static int copy_into(struct copy *copy, struct file_node *node, int parent, const char *name,
                     unsigned depth, struct error *err);

static int copy_entry(struct copy *copy, const struct listing_entry *entry, int directory,
                      unsigned depth, struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
    size_t from, to;

    int r = path_add(&copy->from, entry->name, &from, err);
    if (r < 0)
        return r;
    r = path_add(&copy->to, entry->name, &to, err);
    if (r < 0)
        return r;
    r = file_node_open(copy->inside->fs, entry->inode, &node, err);
    if (r < 0)
        r = from_error(copy, err);
    else
        r = copy_into(copy, node, directory, entry->name, depth, err);
    if (r < 0 && r != -EINTR && r != -ENOMEM && r != -ENOSPC) {
        log_error("%s", error_message(err));
        error_clear(err);
        copy->failed = true;
        r = 0;
    }
    path_cut(&copy->from, from);
    path_cut(&copy->to, to);
    return r;
}

/* What is in a directory, if it is one that can be copied. */
static int read_directory(struct copy *copy, struct file_node *node, unsigned depth,
                          struct listing *ret, struct error *err)
{
    if (depth > INSIDE_DEPTH_MAX)
        return error_set(err, EUCLEAN, "more than %d directories within each other",
                         INSIDE_DEPTH_MAX);
    int r = inode_set_add(&copy->seen, file_node_info(node)->inode, err);
    if (r == -EEXIST)
        return error_set(err, EUCLEAN, "a directory that was copied under another name already");
    if (r == 0)
        r = listing_read(node, ret, err);
    if (r == 0)
        r = check_names(ret, err);
    return r;
}

static int copy_directory(struct copy *copy, struct file_node *node, int parent, const char *name,
                          unsigned depth, struct error *err)
{
    const struct file_info *info = file_node_info(node);
    _cleanup_listing_ struct listing listing = {0};
    _cleanup_close_ int fd = -1;
    bool made;

    int r = read_directory(copy, node, depth, &listing, err);
    if (r < 0)
        return from_error(copy, err);
    r = open_directory(copy, parent, name, &made, &fd, err);
    for (size_t i = 0; i < listing.count && r == 0; i++)
        r = copy_entry(copy, &listing.entries[i], fd, depth, err);
    if (r == 0 && (made || copy->preserve))
        r = set_attributes(copy, info, fd, err);
    return r;
}

/* --- All kinds --- */

static int skip_special(const struct copy *copy, const struct file_info *info)
{
    _cleanup_free_ char *text = text_printable(copy->from.text);

    log_warning("%s: %s: not copied: it is a %s", copy->inside->image, text != NULL ? text : "?",
                file_type_name(info->mode));
    return 0;
}

static int copy_into(struct copy *copy, struct file_node *node, int parent, const char *name,
                     unsigned depth, struct error *err)
{
    const struct file_info *info = file_node_info(node);
    int r;

    if (copy_interrupted != 0)
        return error_set(err, EINTR, "interrupted");
    switch (info->mode & S_IFMT) {
    case S_IFREG:
        r = copy_file(copy, node, parent, name, err);
        break;
    case S_IFLNK:
        r = copy_link(copy, node, parent, name, err);
        break;
    case S_IFDIR:
        r = copy_directory(copy, node, parent, name, depth + 1, err);
        break;
    default:
        return skip_special(copy, info);
    }
    return r;
}

int copy_node(struct copy *copy, struct file_node *node, int parent, const char *name,
              struct error *err)
{
    inode_set_clear(&copy->seen);
    return copy_into(copy, node, parent, name, 0, err);
}
