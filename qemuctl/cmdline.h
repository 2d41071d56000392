/* SPDX-License-Identifier: MIT */
#pragma once

#include "common/error.h"

/*
 * Kernel command lines, read as the kernel's next_arg() does: words are separated by white space, a
 * double quote begins or ends a stretch in which white space is part of the word, and what follows
 * a word "--" belongs to init.
 */

/* x86's COMMAND_LINE_SIZE with the NUL: a longer line is cut off by the kernel without a word. */
#define CMDLINE_SIZE_MAX 2048

/*
 * `base` with the parameter `parameter` behind it, or in front of base's "--". `what` names base in
 * messages. -EINVAL: a quote in base is not closed, so that a parameter behind it would be lost;
 * -EEXIST: base has a parameter of that name already. *ret is an owned string.
 */
int cmdline_append(const char *base, const char *what, const char *parameter, char **ret,
                   struct error *err);

/* -E2BIG with the length if the kernel would cut the line off. */
int cmdline_check(const char *cmdline, struct error *err);
