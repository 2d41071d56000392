/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>

/*
 * Lines for people: "qverity: …" on stderr, or syslog for a daemon. Safe to use from any thread;
 * a line is written in one piece. Libraries log what is worth knowing but is no error of theirs;
 * errors are returned (error.h).
 */
enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARNING,
    LOG_LEVEL_NOTICE, /* not wrong, but everybody should see it */
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
};

/* Lines above `level` are dropped. The default is LOG_LEVEL_NOTICE. */
void log_set_level(enum log_level level);
bool log_enabled(enum log_level level);

/* Connects to syslog, for a process that cannot do so later. */
void log_open_syslog(void);

/* From now on lines go to syslog (daemon facility) instead of stderr. */
void log_to_syslog(void);

void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...) log_line(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)
