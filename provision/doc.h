/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"
#include "provision/provision.h"

/*
 * A YAML file as a tree that knows its lines.
 *
 * libyaml's events are the basis, not libcyaml: that loads into C structures by a schema, but ends
 * at the first mistake, and a recipe's mistakes are told all at once, each with its line.
 *
 * Of YAML, what a recipe needs: mappings with scalar keys, sequences, scalars. Anchors, aliases and
 * tags are refused, and so nothing in a file can be larger than the file.
 */
enum doc_kind { DOC_TEXT, DOC_LIST, DOC_MAP };

struct doc {
    enum doc_kind kind;
    unsigned line;      /* of the file, from 1 */
    char *text;         /* TEXT: without quotes */
    bool plain;         /* TEXT: it had no quotes, so that nothing, "~" and "null" are no value */
    size_t count;       /* LIST, MAP */
    struct doc **keys;  /* MAP: always TEXT, no two alike */
    struct doc **items; /* LIST, MAP */
};

/* "FILE:LINE: TEXT". */
void problems_add(struct problems *problems, const char *file, unsigned line, const char *format,
                  ...) __attribute__((format(printf, 4, 5)));

/*
 * Reads the YAML document in `file`. Mistakes that leave a tree (a key given twice) are problems
 * and the tree is returned without what is wrong; behind a mistake of syntax nothing can be known,
 * so that *ret is NULL then. Returns an error only if the file cannot be read.
 */
int doc_read(const char *file, struct problems *problems, struct doc **ret, struct error *err);
/* The same of a text in memory. */
int doc_parse(const char *text, size_t length, const char *file, struct problems *problems,
              struct doc **ret, struct error *err);
void doc_free(struct doc *node);
DEFINE_CLEANUP(struct doc, doc_free);

/* The value of `key` in a MAP, or NULL. */
const struct doc *doc_get(const struct doc *map, const char *key);

/* No value: an empty plain scalar, "~" or "null". */
bool doc_is_null(const struct doc *node);

/* "a mapping", "a list", "a text", for messages. */
const char *doc_kind_name(const struct doc *node);
