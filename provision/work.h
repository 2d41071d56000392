/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/internal.h"

/*
 * The work directory.
 *
 *     lock                     held while a build runs
 *     key, host-key            the build's SSH keys (keys.c); gone once the image is sealed
 *     disk.qcow2, …            what the recipe makes: of `seal`, `fetch`, `manifest`
 *     steps/03-run/state.json  that the step is done, and with which inputs
 *     steps/03-run/log         its log
 *     steps/03-run/tree        the tree, or
 *     steps/03-run/disk.qcow2  the image, as the step left it; an overlay of the step before
 *
 * state.json is written when a step has ended well and its results are on disk, in one piece. A
 * folder without it is what a failed or killed step left, and goes when the step is run again.
 * Only for trees that were made of another one nobody waits: these count until the machine is
 * booted again, as state.json tells; then the build begins at a tree that is on disk.
 */
#define TREE_NAME "tree"
#define DISK_NAME "disk.qcow2"

/* Makes the directory and takes its lock: -EBUSY if another build runs there. If one was killed,
 * its last processes are waited for, for up to a minute. *ret_path is its absolute path, owned; the
 * lock goes with *ret_lock, which programs that are started inherit. */
int work_open(const char *path, char **ret_path, int *ret_lock, struct error *err);

struct step_state {
    bool done; /* the rest counts only then */
    double seconds;
    json_t *result;          /* what the step reported: an object */
    bool has_tree, has_disk; /* in its folder, still there, and all of it */
};

void step_state_clear(struct step_state *state);
DEFINE_CLEANUP_INPLACE(struct step_state, step_state_clear);

/* Whether the step is done with its identity and what it made is still as it left it. That the
 * state cannot be read means that it is not done. `path` is the work directory's. */
int step_state_load(const char *work, const struct step *step, struct step_state *ret,
                    struct error *err);

/* Writes it, durably. Files outside of the folder that must stay as they are for the step to be
 * done are those of the result's "outputs" array: paths below the work directory. */
int step_state_save(const struct build *build, const struct step *step, double seconds,
                    struct error *err);

/* Removes the folders of all steps whose numbers are `from` or higher, and of steps that the
 * recipe does not have. */
int work_forget(const struct build *build, unsigned from, struct error *err);

/* Removes the tree that a step left, which is then gone at once for whoever looks for it. */
int work_drop_tree(const struct build *build, const struct step *step, struct error *err);

/* Removes what is left of a tree if that was not done to its end. */
int work_finish_drop(const struct build *build, const struct step *step, struct error *err);

/* Removes a file or a directory with all below it, on one file system only, following no links;
 * that it is not there is no error. */
int remove_all(const char *path, struct error *err);

/* Makes what was written to `path` (a file or directory) durable. */
int sync_path(const char *path, struct error *err);
