/* SPDX-License-Identifier: MIT */
#include "common/json.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/text.h"
#include "common/units.h"

int json_put(json_t *object, const char *key, json_t *value, struct error *err)
{
    if (value == NULL || json_object_set_new(object, key, value) != 0)
        return error_oom(err);
    return 0;
}

json_t *json_text(const char *text)
{
    static const char replacement[] = "\xef\xbf\xbd";
    _cleanup_free_ char *clean = NULL;
    size_t length = 0;

    if (text == NULL)
        return json_null();
    clean = malloc(strlen(text) * (sizeof(replacement) - 1) + 1);
    if (clean == NULL)
        return NULL;
    while (*text != '\0') {
        size_t n = text_utf8(text, NULL);
        if (n == 0) {
            memcpy(clean + length, replacement, sizeof(replacement) - 1);
            length += sizeof(replacement) - 1;
            text++;
        } else {
            memcpy(clean + length, text, n);
            length += n;
            text += n;
        }
    }
    return json_stringn(clean, length);
}

/* New reference. */
static json_t *hex_text(const char *text)
{
    const size_t length = strlen(text);
    _cleanup_free_ char *hex = malloc(2 * length + 1);

    if (hex == NULL)
        return NULL;
    hex_encode((const uint8_t *)text, length, hex);
    return json_string(hex);
}

int json_put_text(json_t *object, const char *key, const char *hex_key, const char *text,
                  struct error *err)
{
    _cleanup_json_ json_t *exact = json_string(text);

    int r = json_put(object, key, json_text(text), err);
    if (r == 0 && text != NULL && exact == NULL)
        r = json_put(object, hex_key, hex_text(text), err);
    return r;
}

size_t json_stdout_flags(void)
{
    static int terminal = -1;

    if (terminal < 0)
        terminal = isatty(STDOUT_FILENO);
    return terminal != 0 ? JSON_ENSURE_ASCII : 0;
}

int json_print(const json_t *json, struct error *err)
{
    int r = json_dumpf(json, stdout, JSON_INDENT(2) | json_stdout_flags());

    (void)putchar('\n');
    (void)fflush(stdout);
    return r != 0 && ferror(stdout) == 0 ? error_oom(err) : 0;
}
