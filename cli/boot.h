/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>

#include "cli/cli.h"
#include "cli/console.h"
#include "qemuctl/machine.h"
#include "qemuctl/until.h"

/* Private to the boot command: boot.c knows the options and makes the command lines,
 * boot_session.c runs and watches the processes. */

struct boot_session {
    const struct cli_options *cli;
    const struct cli_target *target;
    const char *directory;  /* to mount in; removed in the end */
    const char *socket;     /* that QEMU makes, removed in the end; or NULL */
    bool verity;            /* wait for dm-verity's table */
    unsigned timeout;       /* seconds; 0: none */
    const char *until_text; /* the expression, or NULL */
    struct until *until;
    struct sink *console; /* the console's copy in a file */

    /* Makes QEMU's arguments, once the table is known (NULL without verity). */
    int (*make_argv)(void *arg, const char *table, struct argv *ret, struct error *err);
    void *arg;
};

/*
 * Mounts, boots, and watches the guest until it ends or is to be ended. Leaves no process, mount or
 * directory. Returns 0 if the expression matched, or, without one, if the guest powered off.
 */
int boot_session_run(const struct boot_session *session, struct error *err);
