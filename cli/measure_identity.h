/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdio.h>

#include "cli/cli.h"
#include "qemuctl/id-block.h"

/* The part of `qverity measure` that makes an ID block of the digest. */

struct measure_identity {
    const char *id_key, *author_key, *id_block, *id_auth;
    uint8_t family_id[16], image_id[16];
    uint32_t guest_svn;
    uint64_t policy; /* 0: not given */
    bool set;        /* any option was given */
};

/* The options, in this order in the command's table. */
enum measure_identity_option {
    IDENTITY_ID_KEY,
    IDENTITY_AUTHOR_KEY,
    IDENTITY_ID_BLOCK,
    IDENTITY_ID_AUTH,
    IDENTITY_POLICY,
    IDENTITY_FAMILY_ID,
    IDENTITY_IMAGE_ID,
    IDENTITY_GUEST_SVN,
};

int measure_identity_option(enum measure_identity_option option, const char *argument,
                            struct measure_identity *identity, struct error *err);

/* Whether the options go together, and with the mode. */
int measure_identity_check(const struct measure_identity *identity, enum sev_mode mode,
                           struct error *err);

struct measure_identity_keys {
    struct id_key *key, *author; /* NULL: none */
};
void measure_identity_keys_clear(struct measure_identity_keys *keys);
DEFINE_CLEANUP_INPLACE(struct measure_identity_keys, measure_identity_keys_clear);
#define _cleanup_identity_ _cleanup_(measure_identity_keys_clear_cleanup)

/* Reads the keys, if an ID block is asked for. `inputs`, some of which may be NULL, are the
 * `count` files that must not be overwritten besides. */
int measure_identity_load(const struct measure_identity *identity, const char *const *inputs,
                          size_t count, struct measure_identity_keys *ret, struct error *err);

/* Makes and writes the ID block, if there is a key; tells the keys' digests. `out` and `object` may
 * be NULL. */
int measure_identity_make(const struct measure_identity *identity,
                          const struct measure_identity_keys *keys,
                          const struct launch_digest *digest, FILE *out, json_t *object,
                          struct error *err);
