/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "provision/digest.h"
#include "provision/doc.h"

/*
 * Tables that say which keys a mapping of a recipe takes and where in a C structure their values
 * go. A table makes the reading, the messages, the digest of what is read, and the freeing.
 */
enum field_type {
    FIELD_TEXT,     /* char *: not empty, one line */
    FIELD_CONTENT,  /* char *: any text */
    FIELD_CHOICE,   /* int: its place in `choices` */
    FIELD_BOOL,     /* bool: yes or no */
    FIELD_SIZE,     /* uint64_t: bytes, as parse_size() */
    FIELD_COUNT,    /* uint64_t */
    FIELD_SECONDS,  /* uint64_t: a number, or one with s, m or h */
    FIELD_MODE,     /* uint64_t: octal permissions */
    FIELD_PATH,     /* char *: in the guest: absolute, without . and .. */
    FIELD_FILE,     /* char *: here: relative to the recipe; absolute once it is read */
    FIELD_TEXTS,    /* struct texts: a text, or a list of them */
    FIELD_FILES,    /* struct texts: a glob, or a list of them; absolute paths, each a file */
    FIELD_PATHS,    /* struct texts: as FIELD_PATH */
    FIELD_COMMANDS, /* struct commands: a command, or a list of them; a command is a list of texts
                     */
    FIELD_OBJECTS,  /* struct objects: a mapping, or a list of them */
};

enum {
    FIELD_REQUIRED = 1 << 0,
    FIELD_MAIN = 1 << 1,      /* the value of the step's own key goes here */
    FIELD_DIRECTORY = 1 << 2, /* FILE: may be one */
};

struct field {
    const char *name;
    enum field_type type;
    size_t offset; /* in the structure */
    unsigned flags;
    uint64_t initial;           /* of numbers, choices and yes or no */
    uint64_t minimum, maximum;  /* of numbers; maximum 0: none */
    const char *const *choices; /* CHOICE; ended by NULL */
    const struct field *fields; /* OBJECTS: of each item */
    size_t size;                /* OBJECTS: of an item's structure */
};

/* Ended by NULL, so that it can be an argument list. */
struct texts {
    char **items;
    size_t count;
};

struct commands {
    struct texts *items;
    size_t count;
};

struct objects {
    void *items;
    unsigned *lines; /* of the recipe */
    size_t count;
};

/* Where problems are told. */
struct field_place {
    const char *file;      /* the recipe */
    const char *directory; /* its */
    const char *what;      /* "step 3, run" */
    struct problems *problems;
};

/* The keys and values to read: a mapping's, or several mappings' together. */
struct field_input {
    const struct doc *const *keys;
    const struct doc *const *items;
    size_t count;
    unsigned line; /* for keys that are missing */
};

/* `out` is zeroed. What is wrong is a problem, and its field keeps what it had. Returns an error
 * only when out of memory. */
int fields_read(const struct field_place *place, const struct field *fields,
                const struct field_input *input, void *out, struct error *err);

/* Frees what fields_read() put there. */
void fields_clear(const struct field *fields, void *out);

/* Adds the bytes of all files that the fields name. */
int fields_digest(const struct field *fields, const void *in, struct digest *digest,
                  struct error *err);

/* The field that takes the value of the step's own key, or NULL. */
const struct field *fields_main(const struct field *fields);

/* Why `path` cannot be one in a guest, or NULL. */
const char *guest_path_fault(const char *path);
