/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"

/*
 * An argument list under construction. It is handed to execvp() as it is: no shell ever sees it.
 *
 * The adding functions do not report that memory ran out but remember it, so that a long list can
 * be built without a check behind each line; argv_check() tells in the end.
 */
struct argv {
    char **items; /* ended by NULL once something was added; owned, as are the strings */
    size_t count;
    size_t room;
    bool oom;
};

#define ARGV_INIT ((struct argv){0})

void argv_clear(struct argv *argv);
DEFINE_CLEANUP_INPLACE(struct argv, argv_clear);
#define _cleanup_argv_ _cleanup_(argv_clear_cleanup)

/* A copy of `item`. */
void argv_add(struct argv *argv, const char *item);
void argv_addf(struct argv *argv, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* An option and its value; nothing if `value` is NULL. */
void argv_add_pair(struct argv *argv, const char *option, const char *value);
int argv_check(const struct argv *argv, struct error *err);

/* All items as one line, to be shown, that a shell splits into the same items. Of a word that has
 * control characters, every byte that is no printable ASCII is escaped, which takes the $'...' of
 * bash and of POSIX 2024. Owned string, NULL when out of memory. */
char *argv_quote(const struct argv *argv);

/* The same for a shell that may know nothing newer than POSIX 2001, such as dash, and not to be
 * shown: control characters stand in it as they are. */
char *argv_quote_posix(const struct argv *argv);

/* A value for one of QEMU's key=value lists, where a comma is written twice. Owned string, NULL
 * when out of memory. */
char *argv_escape_value(const char *value);

/* The same for the name of a file, which QEMU must not take for a protocol and what follows it
 * ("nbd:host:10809"): such a name gets "./" in front. */
char *argv_escape_file(const char *path);
