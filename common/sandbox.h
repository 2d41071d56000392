/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"

/*
 * Confinement of a process that is going to look at bytes which somebody else made. A fault in what
 * parses them shall give nobody more than these bytes.
 *
 * sandbox_enter() leaves the process without capabilities and without the means to get any; with a
 * short list of system calls, among them none that runs a program, opens a socket, or makes a
 * mapping executable (seccomp); and with no right to any file (Landlock, where the kernel has it).
 * Files that are open stay so. What the process may still open, because it was asked to from the
 * beginning, is on a list that a second process holds, the broker: the kernel hands it the system
 * call, it opens the file itself, and the descriptor is put into the confined process. Code that
 * opens files need not know of any of this. All other calls fail, openat() with EACCES and the rest
 * with EPERM, and the broker tells of them in a warning.
 *
 * The broker is a child of the confined process, which keeps its process id, its parent and its
 * signals. It ends with it. SECURITY.md tells what this is good for and what not.
 */

enum sandbox_right {
    SANDBOX_READ = 1 << 0,    /* open it for reading */
    SANDBOX_WRITE = 1 << 1,   /* open it for writing, or both */
    SANDBOX_CREATE = 1 << 2,  /* create it, and remove it */
    SANDBOX_REPLACE = 1 << 3, /* put another file in its place, which is made in its directory,
                               * named PATH.SOMETHING or not at all, and renamed */
};

struct sandbox_file {
    const char *path; /* as it is opened: compared as a string */
    unsigned rights;
};

struct sandbox {
    const struct sandbox_file *files;
    size_t file_count;

    /* Regular files of any name may be opened for reading if they have this text, all of its bytes,
     * at one of two offsets: for files whose names are learnt only later. NULL: none. */
    const char *magic;
    size_t magic_size;
    size_t magic_at[2];

    /* A FUSE mount of this process, which it may unmount, and whose descriptor it may clone. NULL:
     * none. */
    const char *mountpoint;

    /* The process is to be a daemon: what is refused is told in the system log, and the broker
     * keeps nothing open of those who started it. */
    bool daemon;

    /* Called with `prepare_arg` before the process is confined, and only if it is going to be: for
     * what it will need and cannot get then. The broker gets ready meanwhile. NULL: nothing. */
    void (*prepare)(void *arg);
    void *prepare_arg;
};

/*
 * Confines the process, which must have a single thread, for the rest of its life. What `sandbox`
 * points to is needed during the call only. Returns 1; 0 where the kernel does not have what is
 * needed, which is logged (LOG_LEVEL_INFO), and nothing has changed; or a negative errno value.
 */
int sandbox_enter(const struct sandbox *sandbox, struct error *err);

/* Ends the broker of a confined process that is about to end, so that nobody else has to wait for
 * it. */
void sandbox_leave(void);

/* Whether the process is confined. */
bool sandbox_active(void);
