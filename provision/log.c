/* SPDX-License-Identifier: MIT */
#include "provision/log.h"

#include <fcntl.h>
#include <stdarg.h>
#include <string.h>

#include "common/io.h"
#include "common/text.h"

#define LINE_MAX_LENGTH 1000

struct log {
    const struct build_handlers *handlers;
    char *path;
    int fd;
    size_t length; /* of the line that is not complete; what is longer is cut */
    char line[LINE_MAX_LENGTH + 1];
    char last[LINE_MAX_LENGTH + 1];
};

int log_open(const char *path, const struct build_handlers *handlers, struct log **ret,
             struct error *err)
{
    struct log *log = calloc(1, sizeof(*log));

    if (log == NULL)
        return error_oom(err);
    log->handlers = handlers;
    log->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    log->path = strdup(path);
    if (log->fd < 0 || log->path == NULL) {
        error_set_errno(err, errno, "%s: cannot create", path);
        log_close(log);
        return -err->code;
    }
    *ret = log;
    return 0;
}

static void end_line(struct log *log)
{
    log->line[log->length] = '\0';
    log->length = 0;
    if (log->line[strspn(log->line, " \t")] == '\0')
        return;
    memcpy(log->last, log->line, sizeof(log->last));
    if (log->handlers->output != NULL)
        log->handlers->output(log->line, log->handlers->arg);
}

void log_close(struct log *log)
{
    if (log == NULL)
        return;
    if (log->length > 0)
        end_line(log);
    if (log->fd >= 0)
        close(log->fd);
    free(log->path);
    free(log);
}

int log_write(struct log *log, const void *bytes, size_t length, struct error *err)
{
    const char *text = bytes;

    for (size_t i = 0; i < length; i++) {
        /* A carriage return begins the line anew: a progress bar. */
        if (text[i] == '\n' || text[i] == '\r')
            end_line(log);
        else if (log->length < LINE_MAX_LENGTH && text[i] != '\0')
            log->line[log->length++] = text[i];
    }
    return io_write(log->fd, log->path, bytes, length, err);
}

void log_say(struct log *log, const char *text)
{
    if (log->length > 0)
        (void)log_write(log, "\n", 1, NULL);
    (void)log_write(log, text, strlen(text), NULL);
    (void)log_write(log, "\n", 1, NULL);
}

const char *log_last(const struct log *log)
{
    return log->last;
}

void log_forget(struct log *log)
{
    log->last[0] = '\0';
}

void build_say(struct build *build, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    _cleanup_free_ char *text = text_vformat(format, args);
    va_end(args);
    if (build->log != NULL && text != NULL)
        log_say(build->log, text);
}

void log_quietly(struct log *log, const char *text)
{
    (void)io_write(log->fd, log->path, text, strlen(text), NULL);
}
