/* SPDX-License-Identifier: MIT */
#pragma once

#include "cli/cli.h"

/* Whether the command has a long option of that name, which is `length` bytes long. */
bool cli_has_option(const struct cli_command *command, const char *name, size_t length);

/* Whether we were called as mount(8) calls its helpers. */
bool cli_is_mount_helper(int argc, char **argv);

/* Runs `qverity mount` by `run`, with what mount(8) says in its words. Returns as cli_command's run
 * does. */
int cli_mount_helper(int argc, char **argv,
                     int (*run)(const struct cli_command *command, int argc, char **argv,
                                struct error *err),
                     struct error *err);

/* cli_parse() has printed the command's help; there is nothing to run. */
#define CLI_PARSE_HELP 1

/*
 * Parses a command's arguments (argv[0] is its name) into `options` and, through command->option,
 * `context`. `operands` has room for argc pointers. Returns 0, CLI_PARSE_HELP, or a usage error.
 */
int cli_parse(const struct cli_command *command, int argc, char **argv, struct cli_options *options,
              void *context, char **operands, int *ret_operands, struct error *err);
