/* SPDX-License-Identifier: MIT */
#include "cli/cli.h"

/*
 * What qverity itself can do. `build` is a program of its own: it takes libraries for SSH, HTTP,
 * YAML and archives with it, more than all other commands together, and to load them is most of
 * what a short command would take.
 */
static const struct cli_command build_program = {
    .name = CLI_BUILD_NAME,
    .summary = CLI_BUILD_SUMMARY,
    .program = "qverity-build",
};

const struct cli_command *const cli_commands[] = {
    &cmd_boot, &build_program, &cmd_cat,      &cmd_cp,     &cmd_diff,    &cmd_hash,
    &cmd_info, &cmd_ls,        &cmd_manifest, &cmd_map,    &cmd_measure, &cmd_mount,
    &cmd_read, &cmd_stat,      &cmd_track,    &cmd_update, &cmd_verify,  NULL,
};
