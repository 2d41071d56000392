/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/json.h"
#include "provision/digest.h"
#include "provision/fields.h"
#include "provision/provision.h"

/*
 * What recipe, engine and steps have in common.
 *
 * The system that is built is, at any time, in one of these places. A step says in which of them it
 * can be done and where the system is then; the recipe is checked against that before anything
 * runs.
 */
enum place {
    PLACE_BLANK,   /* there is no system yet, at most a blank disk */
    PLACE_TREE,    /* a directory tree of this machine: programs run in it by chroot */
    PLACE_IMAGE,   /* an image, with no guest running */
    PLACE_RUNNING, /* a guest runs on the image and is reached by SSH */
    PLACE_SEALED,  /* an image that is not changed any more */
    PLACE_COUNT,
};

#define IN(place) (1u << (place))

struct step;
struct build;
struct checker;

/* A kind of step: what step-*.c define. */
struct step_type {
    const char *kind;           /* required: its key in a recipe */
    const char *variant;        /* of `install`: what that key's value is; NULL: there are none */
    size_t size;                /* required if there are fields: of the options' structure */
    const struct field *fields; /* NULL: it takes no keys */
    unsigned places;            /* required: bits of IN(): where it can be done */
    enum place after;           /* required if it moves */
    bool moves;                 /* the system is at `after` afterwards */
    bool changes; /* the system: the step gets a copy of the tree, or an overlay, to itself */
    bool packs;   /* in a tree: it needs an image, which is made of the tree before */

    /* Checks what tables cannot say. Problems are added with checker_problem(). */
    void (*check)(struct checker *checker, struct step *step);
    /* Adds what decides about the result beside the text and the files of the recipe. */
    int (*inputs)(const struct build *build, const struct step *step, struct digest *digest,
                  struct error *err);
    /* Required. Does it. What it has to report goes to build->result. */
    int (*run)(struct build *build, struct step *step, struct error *err);
    /* What it would do: lines for --dry-run, added with plan_action(). */
    int (*plan)(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err);
};

struct step {
    const struct step_type *type;
    const struct doc *node;        /* in the recipe; NULL: it is not written there */
    size_t kind_key;               /* which of its keys is the kind */
    unsigned number;               /* from 1 */
    char *label;                   /* what the recipe calls it, or NULL */
    char *name;                    /* for people: "run: update-initramfs -u" */
    char *folder;                  /* of the work directory: "03-run" */
    void *options;                 /* type->size bytes */
    enum place before;             /* where the system is when it begins */
    uint8_t identity[DIGEST_SIZE]; /* set by the engine */
};

struct recipe {
    char *path, *directory; /* the directory is absolute */
    char *name;
    uint64_t epoch; /* seconds: SOURCE_DATE_EPOCH, else what the recipe says, else a fixed one */
    struct doc *root;
    struct step *steps;
    size_t step_count;
};

/* --- Checking --- */

struct checker {
    struct recipe *recipe;
    struct problems *problems;
    struct error *err; /* out of memory only */
    int result;        /* 0, or -ENOMEM */
};

/* "FILE:LINE: step 3, run: TEXT"; the line is the step's if `line` is 0. */
void checker_problem(struct checker *checker, const struct step *step, unsigned line,
                     const char *format, ...) __attribute__((format(printf, 4, 5)));

/* The step of this kind in front of `step` (NULL: of all), the last one; or NULL. */
const struct step *recipe_step(const struct recipe *recipe, const struct step *step,
                               const char *kind);

/* All kinds of steps, ended by NULL. */
extern const struct step_type *const step_types[];
extern const struct step_type step_image; /* made by the recipe's reader where it is needed */

/* --- Building --- */

struct guest;
struct keys;
struct log;

struct build {
    const struct recipe *recipe;
    const struct build_options *options;
    char *work; /* absolute */
    enum place place;
    char *tree;          /* path, in PLACE_TREE */
    char *image;         /* path, in the other places, once there is one */
    struct guest *guest; /* in PLACE_RUNNING */
    struct keys *keys;   /* loaded or made when they are asked for: build_keys() */
    /* Of the step that runs: */
    const struct step *step;
    char *directory; /* its folder's path */
    struct log *log;
    json_t *result; /* an object */
};

/* Runs a program of this machine. Output goes to the log; ending with another code than 0 is an
 * error with its last line. `argv` is ended by NULL. */
int build_exec(struct build *build, char *const *argv, struct error *err);

/* The same with more to say. */
struct build_command {
    char *const *argv;
    char *const *environment; /* NULL: this process's */
    const char *text;         /* for stdin, or NULL */
    uint64_t timeout;         /* seconds; 0: none */
};
int build_exec_command(struct build *build, const struct build_command *command, struct error *err);

/*
 * Runs a program in the system, as root: in the tree by chroot or in the guest by SSH. `input` is
 * its stdin or -1. stdout goes to `output`, or to the log if that is -1; stderr goes to the log.
 * *ret_status as process_run() has it.
 */
struct place_command {
    char *const *argv;        /* ended by NULL */
    char *const *environment; /* more variables, "NAME=VALUE", ended by NULL; or NULL */
    int input, output;
    uint64_t timeout; /* seconds; 0: none */
};
int place_run_status(struct build *build, const struct place_command *command, int *ret_status,
                     struct error *err);
/* Another code than 0 is an error with the last line of its output. */
int place_run(struct build *build, const struct place_command *command, struct error *err);

/* What a program in the system says on stdout, up to 1 MiB, with a NUL behind it. *ret is owned. */
int place_capture(struct build *build, char *const *argv, char **ret, struct error *err);

/* PATH of `name` below the work directory, or the step's folder. Owned; NULL when out of memory. */
char *build_path(const struct build *build, const char *name);
char *step_path(const struct build *build, const char *name);

/* From now on the system is in the tree, or the image, at *path, which moves into the build. */
void build_set_tree(struct build *build, char **path);
void build_set_image(struct build *build, char **path);

/* A line for the log and for whoever looks on. */
void build_say(struct build *build, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* -EINTR once the build is to stop. */
int build_interrupted(const struct build *build, struct error *err);

/* Copies `format` to the plan's actions; what is too long for memory is left out. */
int plan_action(struct plan_step *plan, struct error *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A UUID (RFC 9562, version 8) that is always the same for the recipe and this use of it. */
void recipe_uuid(const struct recipe *recipe, const char *use, uint8_t ret[static 16]);
#define UUID_TEXT_SIZE 37
void uuid_text(const uint8_t uuid[static 16], char ret[static UUID_TEXT_SIZE]);
