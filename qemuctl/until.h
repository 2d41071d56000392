/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"

/*
 * Looks for a POSIX extended regular expression in the text of a console as it comes.
 *
 * The text is taken line by line, without the terminal's escape sequences and other control
 * characters; a carriage return ends a line as well as a newline does. The last line is looked at
 * too while it is not complete (a prompt ends without a newline), but `$` matches its end only when
 * until_pause() or a newline says that it ends there. Of a line longer than UNTIL_LINE_MAX bytes
 * only the last part is kept.
 */
struct until;

#define UNTIL_LINE_MAX 8192

/* An expression has so many bytes at most, and so many places when its repetitions are written out,
 * as regcomp() does: "(ab{3}){5}" has 20. A few characters can ask for more than there is memory.
 */
#define UNTIL_REGEX_MAX 1000
#define UNTIL_PLACES_MAX 2000

/* `regex` may be NULL: nothing matches, only the last line is kept. -EINVAL with regcomp's message;
 * -E2BIG if the expression is beyond the limits. Freed with until_free(). */
int until_new(const char *regex, struct until **ret, struct error *err);
void until_free(struct until *until);
DEFINE_CLEANUP(struct until, until_free);

/* Takes more of the text. Returns whether the expression has matched, now or before. */
bool until_feed(struct until *until, const void *text, size_t length);

/* Nothing came for a moment, or the text has ended. Returns as until_feed(). */
bool until_pause(struct until *until);

/* The line that matched, else the last line that holds more than blanks; "" if there is none.
 * Valid until the next call. */
const char *until_line(const struct until *until);

/*
 * The kernel's panic message, if a line held one: "Kernel panic - not syncing: …"; else NULL.
 * *ret_halted tells whether the kernel has said that it does nothing any more. It is text on a
 * console: anybody in the guest can write it.
 */
const char *until_panic(const struct until *until, bool *ret_halted);
