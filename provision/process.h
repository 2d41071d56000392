/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/*
 * Programs that a step runs, here or in a tree of files (chroot). An argument list is handed to
 * execvp() as it is; no shell sees it.
 *
 * As root a program runs in a PID namespace and a mount namespace of its own: whatever it has
 * started ends when it ends, and what it mounted is seen by nobody else and goes with it, also
 * when this process is killed: then descriptors that this process had without FD_CLOEXEC, and locks
 * by them, stay open until the last of them is gone. Without root there is only its process group,
 * which is killed.
 */
struct process_options {
    char *const *argv;        /* ended by NULL */
    char *const *environment; /* "NAME=VALUE", ended by NULL; NULL: this process's */
    const char *root;         /* the tree to run in, with /proc, /sys and /dev; NULL: here.
                               * Needs root */
    bool visits;              /* the tree stays as it is, not a file of ours is put there meanwhile:
                               * no name is resolved, and services may be started */
    int input;                /* stdin, read from where it stands; -1: /dev/null */
    uint64_t timeout;         /* seconds; 0: none */
    int interrupt;            /* a descriptor: once it is readable the program is killed; or -1 */
    /* Bytes of stdout and stderr as they come. An error ends the program. */
    int (*output)(const void *bytes, size_t length, bool is_stderr, void *arg, struct error *err);
    void *arg;
};

/*
 * Runs a program to its end. Returns 0 with *ret_status: its exit code, or 128 and its signal's
 * number. Errors: it cannot be run; -ETIMEDOUT; -EINTR; output()'s.
 */
int process_run(const struct process_options *options, int *ret_status, struct error *err);

/* "exited with 1", "was killed by SIGSEGV". Returns `buffer`. */
#define PROCESS_STATUS_MAX 48
const char *process_status_text(int status, char buffer[static PROCESS_STATUS_MAX]);
