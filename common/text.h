/* SPDX-License-Identifier: MIT */
#pragma once

/*
 * A string out of an image as a terminal can take it: control characters, and bytes that are not
 * UTF-8, become \xNN; a backslash becomes two. The caller's to free; NULL if memory ran out.
 */
char *text_printable(const char *text);
