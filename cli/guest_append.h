/* SPDX-License-Identifier: MIT */
#pragma once

#include "cli/cli.h"

/*
 * The kernel command line that a guest is booted with: what boot gives to QEMU, and what a manifest
 * says of it.
 */
struct guest_append {
    const char *given; /* --append, in place of the default; or NULL */
    bool writable;     /* the guest is set up: its file system is mounted for writing */
    bool ssh;          /* somebody may log in: the SSH service is not masked */
    bool no_verity, no_dm_init;
    unsigned partition; /* the data partition's number; 0: the whole disk */
};

/*
 * Makes the line; `table` is dm-verity's table for the guest, which goes behind it as
 * dm-mod.create=, or NULL without verity. A usage error if the given line has that already; -EINVAL
 * or -E2BIG if the kernel would not read it to its end. *ret is an owned string.
 */
int guest_append_make(const struct guest_append *append, const char *table, char **ret,
                      struct error *err);
