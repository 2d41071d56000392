/* SPDX-License-Identifier: MIT */
#include "common/text.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

size_t text_utf8(const char *text, unsigned *ret_code)
{
    const unsigned char *s = (const unsigned char *)text;
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
        if (ret_code != NULL)
            *ret_code = code;
        return n + 1;
    }
    return 0;
}

static bool is_plain(unsigned code)
{
    return code >= 0x20 && (code < 0x7f || code > 0x9f) && code != 0xad && code != 0x61c &&
           (code < 0x200b || code > 0x200f) && (code < 0x2028 || code > 0x202e) &&
           (code < 0x2060 || code > 0x206f) && code != 0xfeff && (code < 0xfff9 || code > 0xfffb) &&
           (code < 0xe0000 || code > 0xe007f);
}

/* How many bytes at `text` can be taken together, and whether they stay as they are. */
static size_t next_character(const char *text, bool line, bool *ret_plain)
{
    unsigned code = 0;
    const size_t n = text_utf8(text, &code);

    *ret_plain = n != 0 && (is_plain(code) || (line && code == '\t'));
    return n != 0 ? n : 1;
}

static char *quote(const char *text, bool line)
{
    char *result = malloc(4 * strlen(text) + 1), *out = result;
    bool plain;

    if (result == NULL)
        return NULL;
    while (*text != '\0') {
        const size_t n = next_character(text, line, &plain);

        if (plain && *text == '\\' && !line)
            *out++ = '\\';
        for (size_t i = 0; i < n; i++) {
            if (plain)
                *out++ = text[i];
            else
                out += snprintf(out, 5, "\\x%02x", (unsigned char)text[i]);
        }
        text += n;
    }
    *out = '\0';
    return result;
}

char *text_printable(const char *text)
{
    return quote(text, false);
}

char *text_line(const char *text)
{
    return quote(text, true);
}

bool text_is_line(const char *text)
{
    bool plain = true;

    while (plain && *text != '\0')
        text += next_character(text, true, &plain);
    return plain;
}

char *text_vformat(const char *format, va_list args)
{
    char *text;

    return vasprintf(&text, format, args) < 0 ? NULL : text;
}
