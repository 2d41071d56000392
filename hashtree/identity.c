/* SPDX-License-Identifier: MIT */
/*
 * Whether files are what they were. A file counts as untouched when its device, inode, size, mtime
 * and ctime are those that were noted before it was read, and both times lie further back from that
 * moment than the grain of the file system's clock: a write in the same tick as an earlier one
 * would not show.
 *
 * What this cannot see: a program that writes through a shared mapping some of whose pages were
 * dirty already, and file systems whose clock is another machine's.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "hashtree/keep.h"

/* File times come from the kernel's coarse clock, which moves every 10 ms at most (HZ=100). */
#define CLOCK_GRAIN_NS 20000000
/* Times without a fraction come from a file system that has none: ext3, FAT (2 s). */
#define COARSE_GRAIN_NS INT64_C(2000000000)

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

bool keep_same_identity(const struct tree_file_identity *a, const struct tree_file_identity *b)
{
    return a->device == b->device && a->inode == b->inode && a->size == b->size &&
           same_time(&a->mtime, &b->mtime) && same_time(&a->ctime, &b->ctime);
}

static int64_t nanoseconds_between(const struct timespec *from, const struct timespec *to)
{
    return ((int64_t)to->tv_sec - from->tv_sec) * 1000000000 + (to->tv_nsec - from->tv_nsec);
}

/* How long after a file's last change a moment must be, that a further change shows. */
static int64_t grain_of(const struct tree_file_identity *id)
{
    return id->mtime.tv_nsec == 0 && id->ctime.tv_nsec == 0 ? COARSE_GRAIN_NS : CLOCK_GRAIN_NS;
}

static int64_t age(const struct tree_file_identity *id, const struct timespec *moment)
{
    int64_t since_mtime = nanoseconds_between(&id->mtime, moment);
    int64_t since_ctime = nanoseconds_between(&id->ctime, moment);

    return since_mtime < since_ctime ? since_mtime : since_ctime;
}

/* Whether `header`, of an image whose files are ours from `first` on, was made of what they hold
 * now. */
bool keep_header_current(const struct keep *keep, const struct tree_header *header, uint32_t first)
{
    if (header->file_count == 0 || header->file_count != keep->file_count - first)
        return false;
    for (uint32_t i = 0; i < header->file_count; i++)
        if (!keep_same_identity(&header->files[i], &keep->identities[first + i]) ||
            age(&header->files[i], &header->recorded) <= grain_of(&header->files[i]))
            return false;
    return true;
}

/* Takes the moment from where on changes show. A file that was changed just now is given the time
 * to look changed if it is again. */
static void settle(struct keep *keep)
{
    int64_t wait = 0;

    clock_gettime(CLOCK_REALTIME, &keep->opened);
    for (uint32_t i = 0; i < keep->file_count; i++) {
        int64_t rest = CLOCK_GRAIN_NS - age(&keep->identities[i], &keep->opened);
        if (rest > wait && rest <= CLOCK_GRAIN_NS)
            wait = rest;
    }
    if (wait > 0) {
        nanosleep(&(struct timespec){.tv_nsec = wait + 1000000}, NULL);
        clock_gettime(CLOCK_REALTIME, &keep->opened);
    }
}

bool keep_take_identities(struct keep *keep)
{
    const struct image *image = keep->tree->image;
    keep->file_count = (uint32_t)image_file_count(image);
    for (uint32_t i = 0; i < keep->file_count; i++) {
        const struct image_file *file = image_file(image, i);
        if (!S_ISREG(file->stat.st_mode)) {
            log_info("%s: not a regular file, so changes would not show: no tree is kept",
                     file->path);
            return false;
        }
        keep->identities[i] = identity_of(&file->stat);
    }
    settle(keep);
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
        if (!keep_same_identity(&now, &keep->identities[i])) {
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
    struct stat st;

    if (fstat(image_file(keep->tree->image, 0)->fd, &st) < 0)
        return false;
    keep->identities[0] = identity_of(&st);
    settle(keep);
    return keep_files_unchanged(keep);
}
