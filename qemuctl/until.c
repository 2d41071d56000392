/* SPDX-License-Identifier: MIT */
#include "qemuctl/until.h"

#include <ctype.h>
#include <inttypes.h>
#include <regex.h>
#include <stdint.h>
#include <string.h>

/* Where we are in an escape sequence (ECMA-48, xterm's control sequences). */
enum escape {
    ESCAPE_NONE,
    ESCAPE_START,  /* behind ESC */
    ESCAPE_CSI,    /* ESC [ … up to a byte from @ to ~ */
    ESCAPE_STRING, /* ESC ] P X ^ or _ … up to BEL or ESC \ */
    ESCAPE_STRING_END,
    ESCAPE_CHARSET, /* ESC and a byte from space to /, … up to a byte from 0 to ~ */
};

struct until {
    regex_t regex;
    bool has_regex;
    bool matched;
    enum escape escape;
    size_t escape_length;
    bool carriage_return; /* the last byte was one: the line ended there */
    bool cut;             /* the line's beginning is gone */
    bool looked;          /* at this partial line as if it ended here */
    size_t length;
    char line[UNTIL_LINE_MAX + 1];
    char last[UNTIL_LINE_MAX + 1];
    char *panic;
    bool halted;
};

/* A sequence longer than this is none: a stray ESC must not swallow the console. */
#define ESCAPE_MAX 4096

/* --- How large an expression becomes --- */

/* The end of a bracket expression that starts behind '[': its ']', or the end of the text. */
static const char *skip_bracket(const char *p)
{
    p += *p == '^';
    p += *p == ']';
    while (*p != '\0' && *p != ']') {
        const char kind = p[1];

        if (*p == '[' && (kind == '.' || kind == ':' || kind == '=')) {
            p += 2;
            while (*p != '\0' && !(p[0] == kind && p[1] == ']'))
                p++;
            p += *p != '\0';
        }
        p += *p != '\0';
    }
    return p;
}

/* "N}", "N,}" or "N,M}": how often what stands in front of it is written out, and where it ends.
 * False: it is none, and '{' is a character. */
static bool read_bound(const char *p, uint64_t *ret_times, const char **ret_end)
{
    uint64_t numbers[2] = {0};
    bool open = false;

    for (unsigned i = 0; i < 2; i++) {
        open = i == 1 && !isdigit((unsigned char)*p);
        while (isdigit((unsigned char)*p)) {
            numbers[i] = numbers[i] * 10 + (uint64_t)(*p++ - '0');
            if (numbers[i] > UINT32_MAX)
                numbers[i] = UINT32_MAX;
        }
        if (i == 1 || *p != ',')
            break;
        p++;
    }
    if (*p != '}')
        return false;
    uint64_t times = numbers[0] > numbers[1] ? numbers[0] : numbers[1];
    *ret_times = open ? times + 1 : times;
    *ret_end = p;
    return true;
}

/* Places of an expression of at most UNTIL_REGEX_MAX bytes, UINT32_MAX standing for all larger
 * numbers. Of one that is none, any number. */
static uint64_t places_of(const char *regex)
{
    /* Of each group that is open: what is complete, and what a repetition would repeat. */
    struct {
        uint64_t before, last;
    } groups[UNTIL_REGEX_MAX + 1] = {0};
    size_t depth = 0;

    for (const char *p = regex; *p != '\0'; p++) {
        uint64_t atom = 1, times = 1;

        if (*p == '\\' && p[1] != '\0') {
            p++;
        } else if (*p == '[') {
            p = skip_bracket(p + 1);
            p -= *p == '\0';
        } else if (*p == '(') {
            depth++;
            groups[depth].before = groups[depth].last = 0;
            continue;
        } else if (*p == ')' && depth > 0) {
            atom = groups[depth].before + groups[depth].last;
            depth--;
        } else if (*p == '+' || (*p == '{' && read_bound(p + 1, &times, &p))) {
            /* "x+" is "xx*". */
            groups[depth].last *= *p == '+' ? 2 : times > 0 ? times : 1;
            if (groups[depth].last > UINT32_MAX)
                groups[depth].last = UINT32_MAX;
            continue;
        } else if (*p == '*' || *p == '?') {
            continue;
        }
        groups[depth].before += groups[depth].last;
        groups[depth].last = atom;
    }
    uint64_t places = 0;
    for (size_t i = 0; i <= depth; i++)
        places += groups[i].before + groups[i].last;
    return places < UINT32_MAX ? places : UINT32_MAX;
}

static int check_size(const char *regex, struct error *err)
{
    size_t length = strlen(regex);

    if (length > UNTIL_REGEX_MAX)
        return error_set(err, E2BIG, "an expression of %zu bytes is longer than %d", length,
                         UNTIL_REGEX_MAX);
    uint64_t places = places_of(regex);
    if (places > UNTIL_PLACES_MAX)
        return error_set(err, E2BIG,
                         "'%s': its repetitions make it %s%" PRIu64 " places long; the limit is %d",
                         regex, places == UINT32_MAX ? "more than " : "", places, UNTIL_PLACES_MAX);
    return 0;
}

int until_new(const char *regex, struct until **ret, struct error *err)
{
    struct until *until = calloc(1, sizeof(*until));
    char message[256];

    if (until == NULL)
        return error_oom(err);
    int r = regex != NULL ? check_size(regex, err) : 0;
    if (r < 0) {
        free(until);
        return r;
    }
    if (regex != NULL) {
        r = regcomp(&until->regex, regex, REG_EXTENDED | REG_NOSUB);
        if (r != 0) {
            regerror(r, &until->regex, message, sizeof(message));
            free(until);
            return error_set(err, EINVAL, "'%s': %s", regex, message);
        }
        until->has_regex = true;
    }
    *ret = until;
    return 0;
}

void until_free(struct until *until)
{
    if (until->has_regex)
        regfree(&until->regex);
    free(until->panic);
    free(until);
}

/* Anywhere in a line, as the kernel writes it behind whatever stands there. The last words of a
 * kernel that will not reset are "---[ end Kernel panic - not syncing: … ]---". */
static void look_for_panic(struct until *until)
{
    static const char end[] = "---[ end ";
    const char *panic = strstr(until->line, "Kernel panic - not syncing");

    if (panic == NULL)
        return;
    if (until->panic == NULL)
        until->panic = strdup(panic);
    if ((size_t)(panic - until->line) >= sizeof(end) - 1 &&
        memcmp(panic - (sizeof(end) - 1), end, sizeof(end) - 1) == 0)
        until->halted = true;
}

/* Looks at the line as it is. */
static void look(struct until *until, bool ends)
{
    int flags = (until->cut ? REG_NOTBOL : 0) | (ends ? 0 : REG_NOTEOL);

    until->line[until->length] = '\0';
    if (ends)
        look_for_panic(until);
    if (until->length > 0 && until->line[strspn(until->line, " \t")] != '\0')
        memcpy(until->last, until->line, until->length + 1);
    if (until->has_regex && regexec(&until->regex, until->line, 0, NULL, flags) == 0)
        until->matched = true;
}

static void end_line(struct until *until)
{
    look(until, true);
    until->length = 0;
    until->cut = false;
    until->looked = false;
}

static void put(struct until *until, char c)
{
    if (until->length == UNTIL_LINE_MAX) {
        /* What goes is looked at first, so that only a match across the cut can be missed. */
        look(until, false);
        memmove(until->line, until->line + UNTIL_LINE_MAX / 2, UNTIL_LINE_MAX / 2);
        until->length = UNTIL_LINE_MAX / 2;
        until->cut = true;
    }
    until->line[until->length++] = c;
    until->looked = false;
}

/* Whether the byte belongs to an escape sequence. */
static bool in_escape(struct until *until, unsigned char c)
{
    const enum escape before = until->escape;

    if (before != ESCAPE_NONE && ++until->escape_length > ESCAPE_MAX)
        until->escape = ESCAPE_NONE;
    switch (until->escape) {
    case ESCAPE_NONE:
        if (c != 0x1b)
            return false;
        until->escape = ESCAPE_START;
        until->escape_length = 0;
        return true;
    case ESCAPE_START:
        if (c == '[')
            until->escape = ESCAPE_CSI;
        else if (c != '\0' && strchr("]PX^_", c) != NULL)
            until->escape = ESCAPE_STRING;
        else if (c >= 0x20 && c <= 0x2f)
            until->escape = ESCAPE_CHARSET;
        else if (c != 0x1b)
            until->escape = ESCAPE_NONE;
        /* A control character within a sequence acts as it does elsewhere. */
        return c >= 0x20 || c == 0x1b;
    case ESCAPE_CSI:
        if (c == 0x1b)
            until->escape = ESCAPE_START;
        else if (c >= 0x40 && c <= 0x7e)
            until->escape = ESCAPE_NONE;
        return c >= 0x20 || c == 0x1b;
    case ESCAPE_CHARSET:
        if (c == 0x1b)
            until->escape = ESCAPE_START;
        else if (c >= 0x30 && c <= 0x7e)
            until->escape = ESCAPE_NONE;
        return c >= 0x20 || c == 0x1b;
    case ESCAPE_STRING:
        if (c == 0x07)
            until->escape = ESCAPE_NONE;
        else if (c == 0x1b)
            until->escape = ESCAPE_STRING_END;
        /* No string goes over a line's end: what looks like one was cut off. */
        else if (c == '\n')
            until->escape = ESCAPE_NONE;
        return c != '\n';
    case ESCAPE_STRING_END:
        until->escape = ESCAPE_NONE;
        if (c == '\\')
            return true;
        until->escape = ESCAPE_START;
        return in_escape(until, c);
    }
    return false;
}

bool until_feed(struct until *until, const void *text, size_t length)
{
    const unsigned char *bytes = text;

    for (size_t i = 0; i < length && !until->matched; i++) {
        const unsigned char c = bytes[i];
        if (in_escape(until, c))
            continue;
        if (c == '\n' || c == '\r') {
            /* "\r\n" ends one line. */
            if (!(c == '\n' && until->carriage_return))
                end_line(until);
            until->carriage_return = c == '\r';
            continue;
        }
        if (c == '\b') {
            until->length -= until->length > 0;
            continue;
        }
        if (c != '\t' && (c < 0x20 || c == 0x7f))
            continue;
        until->carriage_return = false;
        put(until, (char)c);
    }
    if (!until->matched && until->length > 0)
        look(until, false);
    return until->matched;
}

bool until_pause(struct until *until)
{
    if (!until->matched && !until->looked && until->length > 0) {
        look(until, true);
        until->looked = true;
    }
    return until->matched;
}

const char *until_line(const struct until *until)
{
    return until->last;
}

const char *until_panic(const struct until *until, bool *ret_halted)
{
    *ret_halted = until->halted;
    return until->panic;
}
