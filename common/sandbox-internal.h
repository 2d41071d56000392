/* SPDX-License-Identifier: MIT */
#pragma once

#include <linux/filter.h>
#include <sys/types.h>

#include "common/sandbox.h"

/* Private to sandbox.c, sandbox-filter.c and sandbox-broker.c. */

/*
 * Makes the system call filter, a program for the kernel (linux/filter.h) whose `filter` the caller
 * frees. Returns 0 or -errno.
 */
int sandbox_make_filter(struct sock_fprog *ret);

/*
 * Loads it for the calling thread, which must have set no_new_privs. *ret is the descriptor on
 * which the kernel tells of the calls that the broker makes: openat, linkat, rename*, unlink*,
 * umount2; and of those that are refused. Returns 0 or -errno.
 */
int sandbox_load_filter(const struct sock_fprog *filter, int *ret);

/*
 * Serves until `worker` ends, whose end of `socket` is closed then. Called in the child process,
 * where nothing but `socket` is needed of what is open. Packets on the socket are steps of the
 * beginning: the worker tells that it may be looked into (a byte), the broker that it can read the
 * worker's memory, the worker sends the number of the filter's descriptor (an int), the broker
 * tells that it has a copy. What it tells is a byte: 0, or the errno value by which it failed,
 * before it ends.
 */
_Noreturn void sandbox_broker_run(const struct sandbox *sandbox, pid_t worker, int socket);
