/* SPDX-License-Identifier: MIT */
#pragma once

#include "cli/inside.h"

/* What is told of a file in an image, as text and as JSON. */

/* "regular file", "directory", … */
const char *file_type_name(mode_t mode);

/* "-rw-r--r--", as ls has it. */
#define FILE_MODE_LENGTH 11
void file_mode_text(mode_t mode, char text[static FILE_MODE_LENGTH]);

/* "2023-11-14 22:13" in local time, or with seconds, nanoseconds and the zone's offset. */
#define FILE_TIME_LENGTH 64
void file_time_text(const struct timespec *time, bool precise, char text[static FILE_TIME_LENGTH]);

/* Prints a name to stdout: on a terminal without what that would take for a command
 * (text_printable()), else its very bytes. */
void file_print_name(const char *name);

/*
 * Prints objects one by one as a JSON array that is the member "entries" of one object, for they
 * can be many. Begin and end, in any case, by these.
 */
struct file_json {
    bool any;
};
void file_json_begin(struct file_json *out);
void file_json_end(struct file_json *out);

/* A file: `image` and `path` are as the user would give them, `target` a symbolic link's or NULL.
 */
int file_json_print(struct file_json *out, const char *image, const char *path,
                    const struct file_info *info, const char *target, struct error *err);
