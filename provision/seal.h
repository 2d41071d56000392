/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/internal.h"
#include "provision/source.h"

/*
 * What seal takes out of a system: a filter for copying it into a new file system.
 *
 * Copying is what makes the result clean: only what a file that is kept holds gets into a block.
 * What files that were removed, overwritten or moved have left, the journal, the ends of blocks and
 * directories, inodes that are not used: none of it is read.
 */
struct sealer;

struct seal_rules {
    uint32_t epoch;
    const struct texts *remove, *keep; /* patterns of paths, as the recipe has them */
};

/* Bytes that must be in no file, with a name for messages: the build's keys. Up to
 * SEALER_SECRETS_MAX, each of 8 to 128 bytes. */
#define SEALER_SECRETS_MAX 8
#define SEALER_SECRET_MIN 8
#define SEALER_SECRET_MAX 128
struct secret {
    const char *name;
    const void *bytes;
    size_t length;
};

/* `rules` and `secrets` must outlive it. */
int sealer_new(const struct seal_rules *rules, const struct secret *secrets, size_t secret_count,
               struct sealer **ret, struct error *err);
void sealer_free(struct sealer *sealer);
DEFINE_CLEANUP(struct sealer, sealer_free);

const struct filter *sealer_filter(const struct sealer *sealer);

/* What was removed: an array of {what, files, bytes}. New reference, NULL when out of memory. */
json_t *sealer_report(const struct sealer *sealer);

/* Looks for the secrets in the bytes of an image, all of them; -EUCLEAN if one is there, with its
 * name and where. */
int seal_search(const char *image, const struct secret *secrets, size_t secret_count,
                struct error *err);
