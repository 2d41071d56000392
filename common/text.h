/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * Text for terminals. Names out of images, and what guests and programs say, can hold what makes a
 * terminal, or a reader, take them for something else: control characters (C0, C1, DEL), line and
 * paragraph separators, invisible characters, marks that turn the direction of writing; and bytes
 * that are not UTF-8, which terminals read in ways of their own.
 */

/*
 * A name as a terminal can take it: bytes of what is dangerous become \xNN, and a backslash two, so
 * that it can be told what the name was. The caller's to free; NULL if memory ran out.
 */
char *text_printable(const char *text);

/*
 * A whole message or line, in which names may have been made printable already: as above, but
 * backslashes and tabs stay as they are. The caller's to free; NULL if memory ran out.
 */
char *text_line(const char *text);

/* Whether text_line() would change nothing. */
bool text_is_line(const char *text);

/* Length of the valid UTF-8 sequence (RFC 3629) at `text`, which ends with a NUL; 0 if there is
 * none. ret_code, which may be NULL, gets its code point. */
size_t text_utf8(const char *text, unsigned *ret_code);

/* What printf() would print. The caller's to free; NULL if memory ran out. */
char *text_vformat(const char *format, va_list args) __attribute__((format(printf, 1, 0)));
