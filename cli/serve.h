/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "cli/cli.h"

/*
 * A child process that serves an image's mount for as long as its parent wants it or lives, and
 * cleans up behind its parent. Without a target that is all it does.
 *
 * The mount is in nobody's directory tree (fs_mount_detached()), so that nothing of it can stay
 * behind whatever is killed. Where the system does not let us do that, it is in a directory, which
 * the child removes when its parent is gone, and the parent when its child is.
 *
 * Parent and child share a socket. Over it the child reports, and its end of file tells the child
 * that the parent is gone: then the child unmounts and removes the directory by itself. The child
 * has a session of its own, so that the terminal's Ctrl-C and hang-up reach only the parent.
 */
struct serve;

struct serve_options {
    const struct cli_options *cli;
    const struct cli_target *target; /* or NULL: nothing is mounted */
    const char *socket; /* something else to remove in the end, if it is a socket; or NULL */
    bool table;         /* compute the root hash and report dm-verity's table */
};

/*
 * Forks the child, which mounts and serves the image of `target`. Call it before anything has
 * started a thread. The files can be read once serve_mounted(). *ret is freed with serve_free().
 */
int serve_start(const struct serve_options *options, struct serve **ret, struct error *err);

/* Ends the child, unmounts and removes the directory, whatever state they are in; takes a few
 * seconds at most. */
void serve_free(struct serve *serve);
DEFINE_CLEANUP(struct serve, serve_free);

/*
 * Names a process group that the child is to kill should the parent die; 0: none any more. The
 * kernel kills QEMU then already, but not what a wrapper script started, nor a QEMU that has
 * changed its user.
 */
void serve_guard(struct serve *serve, pid_t group);

/* Kills the child without letting it unmount, which serve_free() then does; for when whoever reads
 * from the mount hangs on it. */
void serve_kill(struct serve *serve);

/* Readable when there is something to dispatch. */
int serve_fd(const struct serve *serve);

/* Takes the child's reports. Returns its error if it had one, and one that tells of its death if it
 * is gone. */
int serve_dispatch(struct serve *serve, struct error *err);

bool serve_mounted(const struct serve *serve);

/* A descriptor of the mount's root directory, to open files in; -1 before serve_mounted(), or
 * without a target. It is closed by serve_close_root(), or with `serve`. */
int serve_root(const struct serve *serve);
void serve_close_root(struct serve *serve);

/* dm-verity's table as verity_guest_table() has it, NULL as long as it is not known. */
const char *serve_table(const struct serve *serve);

/* That table, computed here, with a meter. *ret is an owned string. */
int serve_compute_table(const struct cli_options *options, const struct cli_target *target,
                        struct hashtree *tree, char **ret, struct error *err);
