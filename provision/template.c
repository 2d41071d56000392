/* SPDX-License-Identifier: MIT */
#include "provision/template.h"

#include <inttypes.h>
#include <string.h>

#include "common/io.h"

#define FILE_MAX (1024 * 1024)

/* A value; its lines but the first behind `indentation` bytes of `line`. */
static void put_value(FILE *file, const char *value, const char *line, size_t indentation)
{
    for (const char *p = value; *p != '\0'; p++) {
        /* The text has a newline of its own behind it. */
        if (*p == '\n' && p[1] == '\0')
            break;
        fputc(*p, file);
        if (*p == '\n')
            fwrite(line, 1, indentation, file);
    }
}

int template_fill(const char *text, const struct keys *keys, uint64_t epoch, char **ret,
                  struct error *err)
{
    char number[24];
    const struct {
        const char *name, *value;
    } values[] = {
        {"@AUTHORIZED_KEY@", keys->client_public},
        {"@HOST_KEY@", keys->host_public},
        {"@HOST_PRIVATE_KEY@", keys->host_private},
        {"@EPOCH@", number},
    };
    const char *line = text;
    char *filled = NULL;
    size_t length;

    snprintf(number, sizeof(number), "%" PRIu64, epoch);
    FILE *file = open_memstream(&filled, &length);
    if (file == NULL)
        return error_oom(err);
    for (const char *p = text; *p != '\0';) {
        bool found = false;
        for (size_t i = 0; !found && i < sizeof(values) / sizeof(values[0]); i++) {
            const size_t name = strlen(values[i].name);
            if (strncmp(p, values[i].name, name) != 0)
                continue;
            put_value(file, values[i].value, line, strspn(line, " \t"));
            p += name;
            found = true;
        }
        if (found)
            continue;
        fputc(*p, file);
        if (*p++ == '\n')
            line = p;
    }
    if (fclose(file) != 0) {
        free(filled);
        return error_oom(err);
    }
    *ret = filled;
    return 0;
}

int template_file(struct build *build, const char *path, const char *usual, char **ret,
                  struct error *err)
{
    _cleanup_free_ char *text = NULL;
    const struct keys *keys;

    int r = keys_get(build, &keys, err);
    if (r == 0 && path != NULL)
        r = io_read_file(path, FILE_MAX, &text, NULL, err);
    if (r == 0)
        r = template_fill(text != NULL ? text : usual, keys, build->recipe->epoch, ret, err);
    return r;
}
