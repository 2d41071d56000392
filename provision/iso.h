/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>

#include "common/error.h"

/* Reading and writing ISO 9660 images with libarchive, without mounting. */

/* A file to take out: the first of `names` (ended by NULL, paths in the ISO without a slash in
 * front) that is there goes to `to`, a path of this machine. `what` is for messages. */
struct iso_file {
    const char *what;
    const char *const *names;
    const char *to;
};

/* -ENOENT: one is not there; the message says which names were looked for. */
int iso_extract(const char *iso, const struct iso_file *files, size_t count, struct error *err);

/* Makes an ISO with these files in its root directory. */
struct iso_text {
    const char *name, *text;
};
int iso_write(const char *path, const char *volume, const struct iso_text *texts, size_t count,
              struct error *err);
