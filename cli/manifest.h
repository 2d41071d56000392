/* SPDX-License-Identifier: MIT */
#pragma once

#include "cli/cli.h"

/* What `qverity manifest` prints for an image with these files and otherwise its defaults: a new
 * reference. NULL is what is not given there. */
struct manifest_files {
    const char *image, *kernel, *initrd, *append, *ovmf;
};
int manifest_describe(const struct manifest_files *files, json_t **ret, struct error *err);
