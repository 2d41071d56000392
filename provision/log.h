/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/internal.h"

/* A step's log file: the bytes that programs wrote, and lines of our own. Whoever looks on gets
 * whole lines. */

int log_open(const char *path, const struct build_handlers *handlers, struct log **ret,
             struct error *err);
/* Closes it; a partial line is told. NULL is fine. */
void log_close(struct log *log);

/* Output as it comes. */
int log_write(struct log *log, const void *bytes, size_t length, struct error *err);

/* A line, with a newline behind it. */
void log_say(struct log *log, const char *text);

/* The last line that held more than blanks; "" if there is none. Valid until the next write. */
const char *log_last(const struct log *log);

/* Forgets the last line, so that log_last() tells only what came since. */
void log_forget(struct log *log);

/* Text for the file alone. */
void log_quietly(struct log *log, const char *text);
