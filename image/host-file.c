/* SPDX-License-Identifier: MIT */
/*
 * Host files and QEMU's image locks.
 *
 * QEMU's file driver tells other processes what it does with a file by shared OFD locks on single
 * bytes: byte 100 + n is locked by those who use permission n, byte 200 + n by those who do not let
 * others use it. To open, one locks one's own bytes first and then tests those of the others, so
 * that of two who come at the same time at least one sees the other. The locks go when the
 * descriptor is closed.
 *
 * To read we need consistent reads, and nobody else may write or resize: the same bytes that
 * qemu-img takes to read an image. Any number of readers go together; a writer and we exclude each
 * other, whoever comes first. To write we lock what QEMU does for a disk that it writes to; nobody
 * else who takes locks can then have the file open.
 *
 * Some locks are there for a moment only: while our own update resets dirty bitmaps, while qemu-img
 * looks at the file. So who meets one tries again for half a second, and holds nothing meanwhile,
 * lest two who meet wait for each other. Tries are counted, and not the time: on a busy machine,
 * where the other one takes longer, so do we.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>

#include "common/log.h"
#include "image/file-times.h"
#include "image/internal.h"

enum {
    LOCK_PERMISSION_BASE = 100,
    LOCK_UNSHARED_BASE = 200,
};

/* QEMU's numbers of permissions. */
enum {
    PERMISSION_CONSISTENT_READ = 0,
    PERMISSION_WRITE = 1,
    PERMISSION_RESIZE = 3,
};

/* Locks (F_RDLCK, shared) or unlocks (F_UNLCK) one byte. Returns 0 or -errno. */
static int set_byte(int fd, short type, off_t byte)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int r;

    do
        r = fcntl(fd, F_OFD_SETLK, &lock);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

/* -EBUSY if somebody else holds the byte. */
static int test_byte(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int r;

    do
        r = fcntl(fd, F_OFD_GETLK, &lock);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return -errno;
    return lock.l_type == F_UNLCK ? 0 : -EBUSY;
}

enum { PAUSES_MAX = 50, PAUSE_MILLISECONDS = 10 };

/* Whether to try again, after a pause. *pauses counts those that were made, `most` at last. */
static bool pause_and_retry(const char *path, unsigned most, unsigned *pauses)
{
    const struct timespec pause = {.tv_nsec = PAUSE_MILLISECONDS * 1000000L};

    if (*pauses == most)
        return false;
    if (*pauses == 0)
        log_debug("%s: in use: waiting for a moment", path);
    (*pauses)++;
    (void)nanosleep(&pause, NULL);
    return true;
}

enum { FOR_WRITING = 1 << 0, LOCK = 1 << 1 };

static const struct {
    off_t byte;
    unsigned flags;
    const char *conflict;
} steps[] = {
    {LOCK_PERMISSION_BASE + PERMISSION_CONSISTENT_READ, LOCK, NULL},
    {LOCK_PERMISSION_BASE + PERMISSION_WRITE, LOCK | FOR_WRITING, NULL},
    {LOCK_PERMISSION_BASE + PERMISSION_RESIZE, LOCK | FOR_WRITING, NULL},
    {LOCK_UNSHARED_BASE + PERMISSION_WRITE, LOCK, NULL},
    {LOCK_UNSHARED_BASE + PERMISSION_RESIZE, LOCK, NULL},
    {LOCK_UNSHARED_BASE + PERMISSION_CONSISTENT_READ, 0, "lets nobody else read it"},
    {LOCK_PERMISSION_BASE + PERMISSION_WRITE, 0, "has it open for writing"},
    {LOCK_PERMISSION_BASE + PERMISSION_RESIZE, 0, "may resize it"},
    {LOCK_UNSHARED_BASE + PERMISSION_WRITE, FOR_WRITING, "has it open"},
    {LOCK_UNSHARED_BASE + PERMISSION_RESIZE, FOR_WRITING, "has it open"},
};

enum { STEPS = sizeof(steps) / sizeof(steps[0]) };

static void unlock_image(int fd)
{
    for (size_t i = 0; i < STEPS; i++)
        if ((steps[i].flags & LOCK) != 0)
            (void)set_byte(fd, F_UNLCK, steps[i].byte);
}

static int lock_image_once(int fd, const char *path, bool writable, struct error *err)
{
    for (size_t i = 0; i < STEPS; i++) {
        if ((steps[i].flags & FOR_WRITING) != 0 && !writable)
            continue;
        bool lock = (steps[i].flags & LOCK) != 0;
        int r = lock ? set_byte(fd, F_RDLCK, steps[i].byte) : test_byte(fd, steps[i].byte);

        /* A shared lock meets only an exclusive one, which QEMU never takes: some other program
         * wants the file for itself. */
        if (r == -EAGAIN || r == -EACCES)
            return error_set(err, EBUSY, "%s: in use: another process has locked it", path);
        if (r == -EBUSY)
            return error_set(err, EBUSY,
                             "%s: in use: another process (a running VM, or qemu-img) %s; stop it "
                             "first",
                             path, steps[i].conflict);
        if (r < 0 && writable)
            return error_set(err, ENOTSUP,
                             "%s: cannot be locked (%s), so it cannot be written safely", path,
                             strerror(-r));
        if (r < 0) {
            log_debug("%s: cannot be locked (%s), so a running writer goes unnoticed", path,
                      strerror(-r));
            return 0;
        }
    }
    return 0;
}

static int lock_image(int fd, const char *path, bool writable, struct error *err)
{
    unsigned pauses = 0;
    int r;

    while ((r = lock_image_once(fd, path, writable, err)) == -EBUSY) {
        unlock_image(fd);
        if (!pause_and_retry(path, PAUSES_MAX, &pauses))
            break;
    }
    if (r == 0 && pauses > 0)
        error_clear(err);
    return r;
}

int host_file_open(const char *path, bool writable, struct host_file *ret, struct error *err)
{
    _cleanup_close_ int fd = -1;
    _cleanup_free_ char *name = NULL;
    struct stat st;
    uint64_t size;
    int r;

    /* O_NONBLOCK: a FIFO must not hold us up before we see that it is one. */
    fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", path);
    if (fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "%s: cannot stat", path);
    if (S_ISDIR(st.st_mode))
        return error_set_errno(err, EISDIR, "%s", path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return error_set(err, EINVAL, "%s: neither a regular file nor a block device", path);

    /* io_uring would take O_NONBLOCK as a wish to fail rather than wait for the disk. */
    if (fcntl(fd, F_SETFL, 0) < 0)
        return error_set_errno(err, errno, "%s: cannot clear O_NONBLOCK", path);

    r = lock_image(fd, path, writable, err);
    if (r < 0)
        return r;

    /* Again: a writer may have finished just before we got the locks. */
    if (fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "%s: cannot stat", path);
    if (S_ISBLK(st.st_mode)) {
        if (ioctl(fd, BLKGETSIZE64, &size) < 0)
            return error_set_errno(err, errno, "%s: cannot get the device's size", path);
    } else {
        size = (uint64_t)st.st_size;
    }
    if (size > INT64_MAX)
        return error_set(err, EFBIG, "%s: %" PRIu64 " bytes are too many", path, size);
    name = strdup(path);
    if (name == NULL)
        return error_oom(err);

    /* Only what takes no time: on a network it would, for all who open an image. */
    bool settled = S_ISREG(st.st_mode) && file_clock(fd) == FILE_CLOCK_OURS &&
                   file_times_settle(FILE_CLOCK_OURS, &st);
    uint64_t disk_usage = S_ISBLK(st.st_mode) ? size : (uint64_t)st.st_blocks * 512;
    *ret = (struct host_file){
        .file = {.fd = take_fd(&fd),
                 .path = TAKE_PTR(name),
                 .size = size,
                 .stat = st,
                 .settled = settled},
        .device = st.st_dev,
        .inode = st.st_ino,
        .disk_usage = disk_usage,
        .has_holes = disk_usage < size,
    };
    return 0;
}

void host_file_close(struct host_file *file)
{
    cleanup_close(&file->file.fd);
    free((char *)file->file.path);
    file->file.path = NULL;
}

/* --- Writing for a while --- */

/* A second descriptor: the first one stays for reading only, and keeps the locks. */
static int reopen_for_writing(const struct host_file *file, int *ret, struct error *err)
{
    _cleanup_close_ int fd = -1;
    struct stat st;

    fd = open(file->file.path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open for writing", file->file.path);
    if (fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "%s: cannot stat", file->file.path);
    if (st.st_dev != file->device || st.st_ino != file->inode)
        return error_set(err, ESTALE, "%s: another file took its place", file->file.path);
    *ret = take_fd(&fd);
    return 0;
}

/*
 * Since it was opened nobody else can write, so that it is enough to see that nobody counts on
 * nobody writing. Whoever opens the file from now on finds our byte locked.
 */
static int raise_once(const struct host_file *file, struct error *err)
{
    const off_t write_byte = LOCK_PERMISSION_BASE + PERMISSION_WRITE;
    int r;

    r = set_byte(file->file.fd, F_RDLCK, write_byte);
    if (r == -EAGAIN || r == -EACCES)
        return error_set(err, EBUSY, "%s: in use: another process has locked it", file->file.path);
    if (r == 0)
        r = test_byte(file->file.fd, LOCK_UNSHARED_BASE + PERMISSION_WRITE);
    if (r == -EBUSY)
        r = error_set(err, EBUSY, "%s: in use: another process reads it", file->file.path);
    else if (r < 0)
        r = error_set(err, ENOTSUP, "%s: cannot be locked (%s), so it cannot be written safely",
                      file->file.path, strerror(-r));
    if (r < 0)
        host_file_lower(file);
    return r;
}

int host_file_raise(const struct host_file *file, struct error *err)
{
    /* Of two processes that have the file open, and wait for each other, one shall give up first,
     * so that the other one gets it. */
    const unsigned most = PAUSES_MAX + (unsigned)getpid() * 7 % PAUSES_MAX;
    unsigned pauses = 0;
    int r;

    while ((r = raise_once(file, err)) == -EBUSY && pause_and_retry(file->file.path, most, &pauses))
        ;
    if (r == 0 && pauses > 0)
        error_clear(err);
    return r;
}

int host_file_raise_open(const struct host_file *file, int *ret, struct error *err)
{
    int r = raise_once(file, err);

    if (r < 0)
        return r;
    r = reopen_for_writing(file, ret, err);
    if (r < 0)
        host_file_lower(file);
    return r;
}

void host_file_lower(const struct host_file *file)
{
    (void)set_byte(file->file.fd, F_UNLCK, LOCK_PERMISSION_BASE + PERMISSION_WRITE);
}
