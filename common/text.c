/* SPDX-License-Identifier: MIT */
#include "common/text.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Length of the valid UTF-8 sequence at `s`, and its code point; 0 if there is none. */
static size_t decode(const unsigned char *s, unsigned *ret_code)
{
    static const struct {
        unsigned char mask, lead;
        unsigned least; /* what a shorter sequence can hold must not be in a longer one */
    } forms[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};

    for (size_t n = 0; n < 4; n++) {
        if ((s[0] & forms[n].mask) != forms[n].lead)
            continue;
        unsigned code = s[0] & (unsigned char)~forms[n].mask;
        for (size_t i = 1; i <= n; i++) {
            if ((s[i] & 0xc0) != 0x80)
                return 0;
            code = code << 6 | (s[i] & 0x3f);
        }
        if (code < forms[n].least || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
            return 0;
        *ret_code = code;
        return n + 1;
    }
    return 0;
}

/* Also what makes a terminal, or a reader, take text for other text: C1 controls, separators, and
 * marks that turn the direction of writing. */
static bool is_plain(unsigned code)
{
    return code >= 0x20 && (code < 0x7f || code > 0x9f) && (code < 0x200b || code > 0x200f) &&
           (code < 0x2028 || code > 0x202e) && (code < 0x2060 || code > 0x206f) && code != 0x61c &&
           code != 0xfeff;
}

char *text_printable(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    char *result = malloc(4 * strlen(text) + 1), *out = result;
    unsigned code;

    if (result == NULL)
        return NULL;
    while (*s != '\0') {
        size_t n = decode(s, &code);

        if (n != 0 && is_plain(code)) {
            if (code == '\\')
                *out++ = '\\';
            memcpy(out, s, n);
            out += n;
        } else {
            n = n == 0 ? 1 : n;
            for (size_t i = 0; i < n; i++)
                out += snprintf(out, 5, "\\x%02x", s[i]);
        }
        s += n;
    }
    *out = '\0';
    return result;
}
