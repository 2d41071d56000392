/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>

/* Files of provision/initramfs, as they were when the program was built (embed.py). */
struct embedded_file {
    const char *name;
    const unsigned char *bytes;
    size_t length;
};

/* Ended by a NULL name. */
extern const struct embedded_file embedded_files[];
