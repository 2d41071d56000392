/* SPDX-License-Identifier: MIT */
#pragma once

#include <jansson.h>

#include "common/error.h"

static inline void json_decref_cleanup(json_t **json)
{
    int saved_errno = errno;

    json_decref(*json);
    *json = NULL;
    errno = saved_errno;
}
#define _cleanup_json_ _cleanup_(json_decref_cleanup)

/* Sets `key` to a new reference `value`, which is taken in any case; NULL counts as out of memory.
 * Numbers above 2^63-1, which JSON integers of jansson cannot hold, do not occur: image sizes are
 * limited to that. */
int json_put(json_t *object, const char *key, json_t *value, struct error *err);

/* A string that need not be UTF-8 (labels and names out of images): bytes that are not valid
 * become U+FFFD. NULL gives null. New reference, or NULL when out of memory. */
json_t *json_text(const char *text);

/* Sets `key` to json_text(), and, if the string is not UTF-8, `hex_key` to its bytes in hex. */
int json_put_text(json_t *object, const char *key, const char *hex_key, const char *text,
                  struct error *err);

/* Flags for jansson to write strings to stdout with: on a terminal all that is not ASCII becomes
 * \uNNNN, so that names out of images cannot do anything to it. */
size_t json_stdout_flags(void);

/* Writes `json` and a newline to stdout, indented, keys in the order they were put. That stdout
 * cannot be written to is left to who flushes it in the end. */
int json_print(const json_t *json, struct error *err);
