/* SPDX-License-Identifier: MIT */
#pragma once

#include "cli/cli.h"
#include "qemuctl/measure.h"

/*
 * A manifest in the shape that Blyss's verifier reads (github.com/blyssprivacy/verifier, protocol
 * 0.0.1). It tells of the disk no more than root hash and size, and the verifier makes the rest of
 * the command line of these: so it takes the default parameters only.
 */
struct manifest_blyss {
    const char *author;      /* NULL: nobody */
    const char *kernel_name; /* whose version names the firmware */
    const char *append;      /* the guest's command line */
    const struct verity_params *params;
    const struct kernel_hashes *hashes;
    bool initrd; /* there is one */
    uint8_t root[VERITY_DIGEST_MAX];
    uint8_t ovmf[32]; /* SHA-256 */
};

/* -EINVAL if the shape cannot tell of these parameters. */
int manifest_blyss_check(const struct verity_params *params, struct error *err);

/* *ret is a new reference. */
int manifest_blyss_json(const struct manifest_blyss *blyss, json_t **ret, struct error *err);
