/* SPDX-License-Identifier: MIT */
#include "common/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/text.h"

static _Atomic int log_level = LOG_LEVEL_NOTICE;
static _Atomic bool log_use_syslog;

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&log_level, (int)level, memory_order_relaxed);
}

bool log_enabled(enum log_level level)
{
    return (int)level <= atomic_load_explicit(&log_level, memory_order_relaxed);
}

void log_open_syslog(void)
{
    openlog("qverity", LOG_PID | LOG_NDELAY, LOG_DAEMON);
}

void log_to_syslog(void)
{
    openlog("qverity", LOG_PID, LOG_DAEMON);
    atomic_store(&log_use_syslog, true);
}

void log_line(enum log_level level, const char *format, ...)
{
    static const int priority[] = {
        [LOG_LEVEL_ERROR] = LOG_ERR,     [LOG_LEVEL_WARNING] = LOG_WARNING,
        [LOG_LEVEL_NOTICE] = LOG_NOTICE, [LOG_LEVEL_INFO] = LOG_INFO,
        [LOG_LEVEL_DEBUG] = LOG_DEBUG,
    };
    int saved_errno = errno;
    va_list args;

    if (!log_enabled(level))
        return;
    va_start(args, format);
    _cleanup_free_ char *raw = text_vformat(format, args);
    va_end(args);
    /* Names out of images and guests end up in messages: they shall not move the cursor or forge
     * lines. */
    _cleanup_free_ char *text = raw != NULL ? text_line(raw) : NULL;
    if (atomic_load_explicit(&log_use_syslog, memory_order_relaxed)) {
        syslog(priority[level], "%s", text != NULL ? text : format);
    } else {
        _cleanup_free_ char *line = NULL;
        int n = asprintf(&line, "qverity: %s%s\n", level == LOG_LEVEL_WARNING ? "warning: " : "",
                         text != NULL ? text : format);
        /* One write, so that lines of several threads or processes do not mix. */
        if (n >= 0 && write(STDERR_FILENO, line, (size_t)n) < 0) {
            /* There is nobody left to tell. */
        }
    }
    errno = saved_errno;
}
