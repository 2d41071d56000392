/* SPDX-License-Identifier: MIT */
#pragma once

#include "common/error.h"

/*
 * The path by which execv() runs a program, found in PATH if its name has no slash. Unlike
 * execvp(), whoever runs that does not take a file that is no program for a shell script. *ret is
 * the caller's. -ENOENT, or -EACCES if all that was found cannot be run.
 */
int program_find(const char *program, char **ret, struct error *err);
