/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdint.h>

#include "common/error.h"

/* SHA-256 over a sequence of things, each with its kind and length in front, so that no two
 * sequences give the same bytes. */
#define DIGEST_SIZE 32

struct digest;

int digest_new(struct digest **ret, struct error *err);
void digest_free(struct digest *digest);
DEFINE_CLEANUP(struct digest, digest_free);

void digest_bytes(struct digest *digest, const void *bytes, size_t length);
void digest_text(struct digest *digest, const char *text); /* NULL is not "" */
void digest_number(struct digest *digest, uint64_t number);

/* A file's bytes and whether it may be executed, or a directory with all that is in it. */
int digest_file(struct digest *digest, const char *path, struct error *err);

/* Of all that was added; -ENOMEM if something could not be. */
int digest_end(struct digest *digest, uint8_t ret[static DIGEST_SIZE], struct error *err);
