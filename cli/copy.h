/* SPDX-License-Identifier: MIT */
#pragma once

#include <signal.h>
#include <sys/stat.h>

#include "cli/inside.h"
#include "common/progress.h"

/*
 * Copying files out of an image to the host. Names and links in an image are its maker's choice, so
 * nothing is written outside the destination: everything is made relative to an open directory, by
 * one name, and links at that name are replaced or refused, never followed.
 */
struct copy {
    struct inside *inside;
    bool preserve; /* times, and permissions whatever the umask says */
    mode_t umask;
    struct progress *progress;

    bool failed;           /* something was told and left out */
    struct path from, to;  /* of what is copied: in the image, and where to */
    struct inode_set seen; /* directories of the operand */
};

void copy_clear(struct copy *copy);
DEFINE_CLEANUP_INPLACE(struct copy, copy_clear);

/* A signal that asks to stop was caught: copying fails with -EINTR soon. */
extern volatile sig_atomic_t copy_interrupted;

/*
 * Copies a file, link or directory to the name `name` in an open directory; copy->from and copy->to
 * are its paths for messages. A file that is there is replaced, by rename, once the copy is
 * complete; a directory that is there is copied into. `name` may be "." for a directory only: what
 * is in it is copied into the open one. What cannot be copied within a directory is told, and the
 * rest goes on. Device nodes, sockets and fifos are left out with a warning.
 */
int copy_node(struct copy *copy, struct file_node *node, int parent, const char *name,
              struct error *err);

/* Whether a file of the host is one that the image is in. */
bool copy_is_image(const struct copy *copy, const struct stat *st);

/* Writes a regular file's bytes to an open file that is none itself: a device or a pipe. */
int copy_to_stream(struct copy *copy, struct file_node *node, int fd, struct error *err);
