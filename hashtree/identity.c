/* SPDX-License-Identifier: MIT */
/*
 * Whether files are what they were. A file counts as untouched when its device, inode, size, mtime
 * and ctime are those that were noted before it was read, and when a write after that moment would
 * have given it another ctime (image/file-times.h).
 *
 * A store into a page that is mapped shared changes the ctime when it makes the page dirty, and not
 * again until that is written back. So files are synced before they are read: their pages are clean
 * then. This does not help on tmpfs, where such a store leaves no trace.
 */
#include <errno.h>
#include <string.h>

#include "common/log.h"
#include "hashtree/keep.h"
#include "image/file-times.h"

static struct tree_file_identity identity_of(const struct stat *st)
{
    return (struct tree_file_identity){
        .device = st->st_dev,
        .inode = st->st_ino,
        .size = (uint64_t)st->st_size,
        .mtime = st->st_mtim,
        .ctime = st->st_ctim,
    };
}

static bool same_time(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

static bool same_identity(const struct tree_file_identity *a, const struct tree_file_identity *b)
{
    return a->device == b->device && a->inode == b->inode && a->size == b->size &&
           same_time(&a->mtime, &b->mtime) && same_time(&a->ctime, &b->ctime);
}

bool keep_same_file(const struct tree_file_identity *a, const struct tree_file_identity *b)
{
    return a->device == b->device && a->inode == b->inode;
}

const char *keep_changed_file(const struct keep *keep, const struct tree_header *header,
                              uint32_t first, uint32_t from)
{
    if (header->file_count == 0 || header->file_count != keep->file_count - first)
        return image_path(keep->tree->image);
    for (uint32_t i = from; i < header->file_count; i++)
        if (!header->settled || !same_identity(&header->files[i], &keep->identities[first + i]))
            return image_file(keep->tree->image, first + i)->path;
    return NULL;
}

bool keep_header_current(const struct keep *keep, const struct tree_header *header, uint32_t first)
{
    return keep_changed_file(keep, header, first, 0) == NULL;
}

bool keep_take_identities(struct keep *keep)
{
    const struct image *image = keep->tree->image;

    keep->file_count = (uint32_t)image_file_count(image);
    for (uint32_t i = 0; i < keep->file_count; i++) {
        const struct image_file *file = image_file(image, i);
        if (!S_ISREG(file->stat.st_mode)) {
            keep_reason(keep->tree,
                        "no tree is kept: %s is no regular file, so changes of it would "
                        "not show",
                        file->path);
            return false;
        }
        if (file_clock(file->fd) == FILE_CLOCK_NONE) {
            keep_reason(keep->tree,
                        "no tree is kept: the file system that %s is on does not tell "
                        "when a file was changed, or is not known to do so",
                        file->path);
            return false;
        }
        keep->identities[i] = identity_of(&file->stat);
    }
    return true;
}

bool keep_settle(const struct keep *keep)
{
    for (uint32_t i = 0; i < keep->file_count; i++) {
        const struct image_file *file = image_file(keep->tree->image, i);
        if (file->settled)
            continue;
        enum file_clock clock = file_clock(file->fd);
        /* Of local files it was tried when they were opened. */
        if (clock != FILE_CLOCK_OTHER || !file_times_settle(clock, &file->stat)) {
            log_info("%s: it was written to just now, so that later changes might not show",
                     file->path);
            return false;
        }
    }
    return true;
}

bool keep_files_unchanged(const struct keep *keep)
{
    for (uint32_t i = 0; i < keep->file_count; i++) {
        const struct image_file *file = image_file(keep->tree->image, i);
        struct stat st;
        if (fstat(file->fd, &st) < 0)
            return false;
        struct tree_file_identity now = identity_of(&st);
        if (!same_identity(&now, &keep->identities[i])) {
            log_warning("%s: it was written to while it was read; no tree is kept", file->path);
            return false;
        }
    }
    return true;
}

bool keep_sync_files(const struct keep *keep)
{
    for (uint32_t i = 0; i < keep->file_count; i++) {
        const struct image_file *file = image_file(keep->tree->image, i);
        if (fsync(file->fd) < 0 && errno != EROFS) {
            log_info("%s: cannot sync (%s): no tree is kept", file->path, strerror(errno));
            return false;
        }
    }
    return true;
}

bool keep_retake_identity(struct keep *keep)
{
    int fd = image_file(keep->tree->image, 0)->fd;
    struct stat st;

    if (fstat(fd, &st) < 0)
        return false;
    keep->identities[0] = identity_of(&st);
    return file_times_settle(file_clock(fd), &st) && keep_files_unchanged(keep);
}
