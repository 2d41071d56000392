/* SPDX-License-Identifier: MIT */
#include "cli/cli.h"

/* What qverity-build can do, which is started by `qverity build` (commands.c). */
const struct cli_command *const cli_commands[] = {&cmd_build, NULL};
