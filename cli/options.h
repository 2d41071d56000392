/* SPDX-License-Identifier: MIT */
#pragma once

#include "cli/cli.h"

/* cli_parse() has printed the command's help; there is nothing to run. */
#define CLI_PARSE_HELP 1

/*
 * Parses a command's arguments (argv[0] is its name) into `options` and, through command->option,
 * `context`. `operands` has room for argc pointers. Returns 0, CLI_PARSE_HELP, or a usage error.
 */
int cli_parse(const struct cli_command *command, int argc, char **argv, struct cli_options *options,
              void *context, char **operands, int *ret_operands, struct error *err);
