/* SPDX-License-Identifier: MIT */
#pragma once

#include "common/error.h"

/*
 * QEMU's programs, run to their end.
 */
enum {
    TOOL_FDS = 2,      /* descriptors that a program can be given */
    TOOL_FD_FIRST = 3, /* what the first one is called there */
};

/*
 * Runs argv[0], found in the PATH, with nothing on standard input and output. It gets fds[i] as
 * descriptor TOOL_FD_FIRST + i unless that is -1; they must come from tool_fd(). What it says on
 * standard error is the message of its failure. *ret_status gets its exit status if it exited, and
 * may be NULL.
 */
int tool_run(char *const argv[], const int fds[static TOOL_FDS], int *ret_status,
             struct error *err);

/* A duplicate of `fd` with a number that is none of those in the program; the caller's to close. */
int tool_fd(int fd, struct error *err);

/*
 * A local qcow2 image's path for --image-opts, where only commas mean anything: a plain name with a
 * colon would be a protocol, one with a dash an option. The program takes no locks on the image:
 * the caller has them. The caller frees it.
 */
char *tool_image_options(const char *path);
