/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>

/*
 * Entering a tree of files as a root directory, for the first process of a PID and mount namespace
 * of its own (process.c). All after the fork: nothing here allocates memory.
 */
struct root_state {
    bool made_resolv_conf, made_policy; /* files that are put into the tree for the time being */
};

#define ROOT_STATE_INIT ((struct root_state){0})

/* Makes `path` the root directory, with /proc, /sys, /dev and, unless it `visits` only, the host's
 * DNS servers, and no service started by a package that is installed. Returns -1 with errno and
 * *ret_failed. */
int root_enter(const char *path, bool visits, struct root_state *ret, const char **ret_failed);

/* Takes out what root_enter() put there. */
void root_leave(const struct root_state *state);
