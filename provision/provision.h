/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/json.h"
#include "qemuctl/accel.h"

/*
 * Recipes: YAML files whose steps make an image from nothing, install and set up a system in it,
 * seal, hash and describe it. qverity-recipe(5) is the format.
 *
 * What has been done is kept in a work directory, a folder a step. A step is done if it ended well
 * with the inputs that it has now: its text in the recipe, the files it names, the options that
 * matter, and the same of the step before it. A build begins at the first step that is not done, on
 * what the step before left: a tree of files, or a qcow2 overlay.
 */

/* --- What is wrong with a recipe --- */

/* Lines for people, "FILE:LINE: KEY: WHY", in the order of the file. */
struct problems {
    char **lines;
    unsigned *numbers; /* of the lines in the file */
    size_t count;
    size_t dropped; /* for which there was no memory, or that were too many */
};

#define PROBLEMS_INIT ((struct problems){0})

void problems_clear(struct problems *problems);
DEFINE_CLEANUP_INPLACE(struct problems, problems_clear);
#define _cleanup_problems_ _cleanup_(problems_clear_cleanup)

/* --- Recipes --- */

struct recipe;

/*
 * Reads a recipe and checks all that can be known before anything is done: keys and values, the
 * files that it names, the order of its steps. All that is wrong with it is added to `problems`,
 * and then -EINVAL is returned with an error that says how many there are. *ret is freed with
 * recipe_free().
 */
int recipe_load(const char *path, struct problems *problems, struct recipe **ret,
                struct error *err);
void recipe_free(struct recipe *recipe);
DEFINE_CLEANUP(struct recipe, recipe_free);

/* The recipe's name: what the work directory is called if nobody says. */
const char *recipe_name(const struct recipe *recipe);

/* --- Building --- */

enum build_event {
    BUILD_STEP_SKIPPED, /* done already */
    BUILD_STEP_STARTED,
    BUILD_STEP_DONE,
};

struct build_step {
    unsigned number, count; /* number from 1 */
    const char *name;       /* "run: update-initramfs -u" */
    unsigned line;          /* of the recipe; 0: the step is not written there */
    double seconds;         /* DONE: that it took; SKIPPED: that it took when it was done */
    const char *log;        /* its log file */
};

/* Called from the thread that builds. */
struct build_handlers {
    void (*step)(const struct build_step *step, enum build_event event, void *arg);
    /* A line of a program's or the guest's output, which goes to the log in any case. */
    void (*output)(const char *line, void *arg);
    void *arg;
};

/* What `manifest` is about. Paths, each of a file that is there; all but `image` may be NULL. */
struct build_manifest {
    const char *image;
    const char *kernel, *initrd, *append, *ovmf;
};

/* What a guest is booted with; owned strings. */
struct build_boot {
    char *kernel, *initrd; /* paths; the initrd's may be NULL */
    char *append;          /* a command line that mounts the root file system for writing */
};
void build_boot_clear(struct build_boot *boot);
DEFINE_CLEANUP_INPLACE(struct build_boot, build_boot_clear);

struct build_options {
    const char *work;         /* the work directory; made if it is not there */
    const char *from, *until; /* a step's number, name or kind; or NULL */
    enum accel accel;         /* for guests */
    const char *compress;     /* "zlib", "zstd", "none", or NULL: what the recipe's seal says */
    int interrupt;            /* a descriptor: once it is readable the build stops; or -1 */
    unsigned threads;         /* that hash; 0: one for each CPU */
    struct build_handlers handlers;
    /* Describes an image for the step `manifest`: an object, a new reference. NULL: that step
     * fails. */
    int (*manifest)(const struct build_manifest *manifest, json_t **ret, void *arg,
                    struct error *err);
    /* Copies the newest kernel in an image and its initrd to files in `folder`, for the step
     * `boot`. NULL: that step cannot do so. */
    int (*find_boot)(const char *image, const char *folder, struct build_boot *ret, void *arg,
                     struct error *err);
};

/*
 * Does what is not done yet. Leaves no process, mount or port, however it ends; also if this
 * process is killed. *ret_report tells what came of it: `work`, `image` (path), `root_hash`,
 * `fetched` (paths), `removed` (by seal), `steps` (name, seconds, skipped). -EINTR: interrupted.
 */
int recipe_build(const struct recipe *recipe, const struct build_options *options,
                 json_t **ret_report, struct error *err);

/* A step and how far it is, as recipe_plan() tells. */
struct plan_step {
    unsigned number;
    unsigned line; /* of the recipe; 0: not written there */
    char *name;    /* owned */
    bool done;
    bool will_run;  /* a build with these options would run it */
    char **actions; /* owned: what it would do, a line each */
    size_t action_count;
};

/* What recipe_build() would do, of each step. Nothing is changed; the work directory need not be
 * there. */
int recipe_plan(const struct recipe *recipe, const struct build_options *options,
                struct plan_step **ret, size_t *ret_count, struct error *err);
void recipe_plan_free(struct plan_step *steps, size_t count);
