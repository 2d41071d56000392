/* SPDX-License-Identifier: MIT */
#include "cli/console.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "common/io.h"

/* --- Sinks --- */

void sink_clear(struct sink *sink)
{
    if (sink->fd > STDERR_FILENO)
        cleanup_close(&sink->fd);
    free(sink->waiting);
    *sink = SINK_INIT;
}

/*
 * stdout is shared with whoever started us, who would not like to find it non-blocking. A pipe or a
 * terminal can be opened anew, which gives flags of our own; a file does not block for long.
 */
int sink_open_stdout(struct sink *ret, const char *name, struct error *err)
{
    struct sink sink = {.fd = STDOUT_FILENO, .name = name};
    struct stat st;

    if (fstat(STDOUT_FILENO, &st) < 0)
        return error_set_errno(err, errno, "%s", name);
    if ((fcntl(STDOUT_FILENO, F_GETFL) & O_ACCMODE) == O_RDONLY)
        return error_set(err, EBADF, "%s: not open for writing", name);
    if (S_ISSOCK(st.st_mode)) {
        sink.socket = true;
    } else if (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode)) {
        int fd = open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (fd > STDERR_FILENO)
            sink.fd = fd;
        else
            sink.may_block = true;
    }
    *ret = sink;
    return 0;
}

int sink_open_file(struct sink *ret, const char *path, struct error *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0666);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", path);
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0) {
        int code = errno;
        (void)close(fd);
        return error_set_errno(err, code, "%s: fcntl", path);
    }
    *ret = (struct sink){.fd = fd, .name = path, .written = true};
    return 0;
}

/* Returns how many bytes were written; 0 if that would block; -errno. */
static ssize_t write_some(const struct sink *sink, const char *bytes, size_t length)
{
    struct pollfd pollfd = {.fd = sink->fd, .events = POLLOUT};
    ssize_t n;

    if (sink->may_block) {
        /* A pipe that polls as writable has room for this much. */
        if (poll(&pollfd, 1, 0) <= 0)
            return 0;
        if (length > PIPE_BUF)
            length = PIPE_BUF;
    }
    do
        n = sink->socket ? send(sink->fd, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL)
                         : write(sink->fd, bytes, length);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN ? 0 : -errno;
    return n;
}

static int keep(struct sink *sink, const char *bytes, size_t length, struct error *err)
{
    if (sink->waiting_room - sink->waiting_length < length) {
        size_t room = (sink->waiting_length + length) * 2;
        char *larger = realloc(sink->waiting, room);
        if (larger == NULL)
            return error_oom(err);
        sink->waiting = larger;
        sink->waiting_room = room;
    }
    memcpy(sink->waiting + sink->waiting_length, bytes, length);
    sink->waiting_length += length;
    return 0;
}

static int write_error(const struct sink *sink, ssize_t n, struct error *err)
{
    return error_set_errno(err, (int)-n, "%s: cannot write", sink->name);
}

int sink_flush(struct sink *sink, struct error *err)
{
    size_t done = 0;

    while (done < sink->waiting_length) {
        ssize_t n = write_some(sink, sink->waiting + done, sink->waiting_length - done);
        if (n < 0)
            return write_error(sink, n, err);
        if (n == 0)
            break;
        done += (size_t)n;
    }
    if (done > 0)
        memmove(sink->waiting, sink->waiting + done, sink->waiting_length - done);
    sink->waiting_length -= done;
    return 0;
}

int sink_write(struct sink *sink, const void *bytes, size_t length, struct error *err)
{
    const char *p = bytes;

    if (sink->fd < 0)
        return 0;
    while (length > 0 && sink->waiting_length == 0) {
        ssize_t n = write_some(sink, p, length);
        if (n < 0)
            return write_error(sink, n, err);
        if (n == 0)
            break;
        p += n;
        length -= (size_t)n;
    }
    return length > 0 ? keep(sink, p, length, err) : 0;
}

bool sink_waits(const struct sink *sink)
{
    return sink->fd >= 0 && sink->waiting_length > 0;
}

int sink_close(struct sink *sink, struct error *err)
{
    int r = 0;

    if (sink->written && sink->fd >= 0)
        r = io_close_written(take_fd(&sink->fd), sink->name, err);
    return r;
}

/* --- The terminal --- */

void terminal_open(struct terminal *terminal, int fd)
{
    struct termios raw;

    /* In the background, reading or setting it would stop us. */
    if (!isatty(fd) || tcgetpgrp(fd) != getpgrp() || tcgetattr(fd, &terminal->saved) < 0)
        return;
    raw = terminal->saved;
    cfmakeraw(&raw);
    if (tcsetattr(fd, TCSANOW, &raw) == 0)
        terminal->fd = fd;
}

void terminal_restore(struct terminal *terminal)
{
    if (terminal->fd >= 0)
        (void)tcsetattr(terminal->fd, TCSANOW, &terminal->saved);
    terminal->fd = -1;
}

#define CTRL_A 0x01
#define CTRL_C 0x03

size_t terminal_translate(struct terminal *terminal, const char *keys, size_t length,
                          char *ret_keys, bool *ret_stop)
{
    size_t count = 0;

    for (size_t i = 0; i < length; i++) {
        const char key = keys[i];
        if (!terminal->prefix) {
            if (key == CTRL_C)
                *ret_stop = true;
            else if (key == CTRL_A)
                terminal->prefix = true;
            else
                ret_keys[count++] = key;
            continue;
        }
        terminal->prefix = false;
        if (key == 'x')
            *ret_stop = true;
        else if (key == 'c')
            ret_keys[count++] = CTRL_C;
        else if (key == 'a' || key == CTRL_A)
            ret_keys[count++] = CTRL_A;
    }
    return count;
}
