/* SPDX-License-Identifier: MIT */
#include "qemuctl/cmdline.h"

#include <stdbool.h>
#include <string.h>

static bool is_space(char c)
{
    return strchr(" \t\n\v\f\r", c) != NULL && c != '\0';
}

/* The end of the word that begins at `p`; *ret_open tells that a quote is open at the text's end.
 */
static const char *word_end(const char *p, bool *ret_open)
{
    bool quoted = false;

    for (; *p != '\0' && (quoted || !is_space(*p)); p++)
        if (*p == '"')
            quoted = !quoted;
    *ret_open = quoted;
    return p;
}

/* The length of a parameter's name; the kernel also takes it with a quote in front. */
static size_t name_length(const char *word, size_t length)
{
    const char *equals = memchr(word, '=', length);

    return equals != NULL ? (size_t)(equals - word) : length;
}

/* The kernel takes - and _ in names as the same. */
static bool same_name(const char *a, size_t a_length, const char *b, size_t b_length)
{
    if (a_length != b_length)
        return false;
    for (size_t i = 0; i < a_length; i++)
        if ((a[i] == '-' ? '_' : a[i]) != (b[i] == '-' ? '_' : b[i]))
            return false;
    return true;
}

int cmdline_append(const char *base, const char *what, const char *parameter, char **ret,
                   struct error *err)
{
    const size_t name = name_length(parameter, strlen(parameter));
    const char *p = base, *kernel_end = NULL;
    bool open = false;

    while (kernel_end == NULL) {
        while (is_space(*p))
            p++;
        if (*p == '\0') {
            kernel_end = p;
            break;
        }
        const char *end = word_end(p, &open);
        size_t length = (size_t)(end - p);
        if (open)
            return error_set(err, EINVAL,
                             "%s: a double quote is not closed; %.*s behind it would be lost", what,
                             (int)name, parameter);
        if (length == 2 && memcmp(p, "--", 2) == 0) {
            kernel_end = p;
            break;
        }
        const char *word = p + (*p == '"');
        if (same_name(word, name_length(word, (size_t)(end - word)), parameter, name))
            return error_set(err, EEXIST, "%s: has %.*s= already", what, (int)name, parameter);
        p = end;
    }

    /* White space in front of the parameter is the base's own where there is some. */
    while (kernel_end > base && is_space(kernel_end[-1]))
        kernel_end--;
    while (is_space(*base) && base < kernel_end)
        base++;
    while (is_space(*p))
        p++;
    char *line;
    if (asprintf(&line, "%.*s%s%s%s%s", (int)(kernel_end - base), base,
                 kernel_end > base ? " " : "", parameter, *p != '\0' ? " " : "", p) < 0)
        return error_oom(err);
    *ret = line;
    return 0;
}

int cmdline_check(const char *cmdline, struct error *err)
{
    size_t length = strlen(cmdline);

    if (length >= CMDLINE_SIZE_MAX)
        return error_set(err, E2BIG,
                         "kernel command line: %zu bytes, and the kernel takes at most %d", length,
                         CMDLINE_SIZE_MAX - 1);
    return 0;
}
