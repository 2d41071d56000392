/* SPDX-License-Identifier: MIT */
#include "qemuctl/argv.h"

#include <stdarg.h>
#include <string.h>

#include "common/text.h"

void argv_clear(struct argv *argv)
{
    for (size_t i = 0; i < argv->count; i++)
        free(argv->items[i]);
    free(argv->items);
    *argv = ARGV_INIT;
}

/* Takes `item`, which is NULL when memory ran out. */
static void add_owned(struct argv *argv, char *item)
{
    if (item == NULL) {
        argv->oom = true;
        return;
    }
    if (argv->count + 1 >= argv->room) {
        size_t room = argv->room == 0 ? 32 : argv->room * 2;
        char **items = reallocarray(argv->items, room, sizeof(*items));
        if (items == NULL) {
            free(item);
            argv->oom = true;
            return;
        }
        argv->items = items;
        argv->room = room;
    }
    argv->items[argv->count++] = item;
    argv->items[argv->count] = NULL;
}

void argv_add(struct argv *argv, const char *item)
{
    add_owned(argv, strdup(item));
}

void argv_addf(struct argv *argv, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    add_owned(argv, text_vformat(format, args));
    va_end(args);
}

void argv_add_pair(struct argv *argv, const char *option, const char *value)
{
    if (value == NULL)
        return;
    argv_add(argv, option);
    argv_add(argv, value);
}

int argv_check(const struct argv *argv, struct error *err)
{
    return argv->oom ? error_oom(err) : 0;
}

/* Whether a shell leaves the word alone without quotes, whatever place it has in a command. */
static bool is_plain(const char *word)
{
    return word[0] != '\0' &&
           word[strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                             "_-+./:,@%=")] == '\0';
}

/* As $'...', which bash, zsh, ksh and POSIX of 2024 have: one line, and no harm to a terminal. */
static void put_escaped(FILE *out, const char *word)
{
    fputs("$'", out);
    for (const unsigned char *p = (const unsigned char *)word; *p != '\0'; p++) {
        if (*p < 0x20 || *p >= 0x7f)
            fprintf(out, "\\%03o", *p);
        else if (*p == '\'' || *p == '\\')
            fprintf(out, "\\%c", *p);
        else
            fputc(*p, out);
    }
    fputc('\'', out);
}

static void put_quoted(FILE *out, const char *word)
{
    fputc('\'', out);
    for (; *word != '\0'; word++) {
        if (*word == '\'')
            fputs("'\\''", out);
        else
            fputc(*word, out);
    }
    fputc('\'', out);
}

static char *join(const struct argv *argv, bool escape)
{
    _cleanup_free_ char *line = NULL;
    size_t length;

    FILE *out = open_memstream(&line, &length);
    if (out == NULL)
        return NULL;
    for (size_t i = 0; i < argv->count; i++) {
        if (i > 0)
            fputc(' ', out);
        const char *word = argv->items[i];
        if (is_plain(word))
            fputs(word, out);
        else if (escape && !text_is_line(word))
            put_escaped(out, word);
        else
            put_quoted(out, word);
    }
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed)
        return NULL;
    return TAKE_PTR(line);
}

char *argv_quote(const struct argv *argv)
{
    return join(argv, true);
}

char *argv_quote_posix(const struct argv *argv)
{
    return join(argv, false);
}

char *argv_escape_value(const char *value)
{
    size_t commas = 0;

    for (const char *p = value; *p != '\0'; p++)
        commas += *p == ',';
    char *escaped = malloc(strlen(value) + commas + 1);
    if (escaped == NULL)
        return NULL;
    char *out = escaped;
    for (const char *p = value; *p != '\0'; p++) {
        *out++ = *p;
        if (*p == ',')
            *out++ = ',';
    }
    *out = '\0';
    return escaped;
}

char *argv_escape_file(const char *path)
{
    _cleanup_free_ char *dotted = NULL;

    /* As QEMU's path_has_protocol() has it. */
    if (path[strcspn(path, ":/")] != ':')
        return argv_escape_value(path);
    if (asprintf(&dotted, "./%s", path) < 0)
        return NULL;
    return argv_escape_value(dotted);
}
