/* SPDX-License-Identifier: MIT */
#include "common/io.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

/* --- Waiting --- */

static _Thread_local void (*before_wait)(void);

void io_on_wait(void (*hook)(void))
{
    before_wait = hook;
}

void io_waits(void)
{
    if (before_wait != NULL)
        before_wait();
}

/* A file system whose files are nowhere but in memory. */
static bool in_memory(int fd)
{
    struct statfs st;

    return fstatfs(fd, &st) == 0 && (st.f_type == TMPFS_MAGIC || st.f_type == RAMFS_MAGIC);
}

/* Reads what is to be had without waiting and returns how much that is. Tells the hook if there is
 * more, which may take long. */
static size_t read_at_once(int fd, void *buffer, size_t length, uint64_t offset)
{
    struct iovec iov = {buffer, length};
    ssize_t n = preadv2(fd, &iov, 1, (off_t)offset, RWF_NOWAIT);

    if (n != (ssize_t)length && (n >= 0 || errno != EOPNOTSUPP || !in_memory(fd)))
        before_wait();
    return n > 0 ? (size_t)n : 0;
}

/* --- Reading --- */

ssize_t io_read_some_at(int fd, const char *name, void *buffer, size_t length, uint64_t offset,
                        struct error *err)
{
    size_t done = before_wait != NULL ? read_at_once(fd, buffer, length, offset) : 0;

    while (done < length) {
        ssize_t n = pread(fd, (char *)buffer + done, length - done, (off_t)(offset + done));
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return error_set_errno(err, errno, "%s: cannot read at offset %" PRIu64, name,
                                   offset + done);
        }
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

int io_read_at(int fd, const char *name, void *buffer, size_t length, uint64_t offset,
               struct error *err)
{
    ssize_t n = io_read_some_at(fd, name, buffer, length, offset, err);

    if (n < 0)
        return (int)n;
    if (n == 0 && length > 0)
        return error_set(err, ENODATA,
                         "%s: the file ends before offset %" PRIu64 ", where %zu bytes were to be "
                         "read",
                         name, offset, length);
    if ((size_t)n < length)
        return error_set(err, ENODATA,
                         "%s: the file ends at offset %" PRIu64 ", before the %zu bytes at %" PRIu64
                         " that were to be read",
                         name, offset + (size_t)n, length, offset);
    return 0;
}

int io_write_at(int fd, const char *name, const void *buffer, size_t length, uint64_t offset,
                struct error *err)
{
    size_t done = 0;

    while (done < length) {
        ssize_t n = pwrite(fd, (const char *)buffer + done, length - done, (off_t)(offset + done));
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return error_set_errno(err, errno, "%s: cannot write at offset %" PRIu64, name,
                                   offset + done);
        }
        done += (size_t)n;
    }
    return 0;
}

int io_write(int fd, const char *name, const void *buffer, size_t length, struct error *err)
{
    size_t done = 0;

    while (done < length) {
        ssize_t n = write(fd, (const char *)buffer + done, length - done);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return error_set_errno(err, errno, "%s: cannot write", name);
        }
        done += (size_t)n;
    }
    return 0;
}

int io_read_file(const char *path, size_t limit, char **ret_buffer, size_t *ret_length,
                 struct error *err)
{
    _cleanup_free_ char *buffer = NULL;
    _cleanup_close_ int fd = -1;
    size_t length = 0, room = 0;

    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", path);
    /* Not sized by stat: files of /proc and FUSE may say 0. */
    for (;;) {
        if (length == room) {
            room = room == 0 ? 4096 : room * 2;
            char *larger = realloc(buffer, room + 1);
            if (larger == NULL)
                return error_oom(err);
            buffer = larger;
        }
        ssize_t n = read(fd, buffer + length, room - length);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return error_set_errno(err, errno, "%s: cannot read", path);
        }
        if (n == 0)
            break;
        length += (size_t)n;
        if (length > limit)
            return error_set(err, EFBIG, "%s: larger than %zu bytes", path, limit);
    }
    buffer[length] = '\0';
    *ret_buffer = TAKE_PTR(buffer);
    if (ret_length != NULL)
        *ret_length = length;
    return 0;
}

int io_close_written(int fd, const char *name, struct error *err)
{
    /* After EINTR the descriptor is gone on Linux; trying again could close somebody else's. */
    if (close(fd) < 0 && errno != EINTR)
        return error_set_errno(err, errno, "%s: cannot close", name);
    return 0;
}
