/* SPDX-License-Identifier: MIT */
#pragma once

#include <openssl/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "hashtree/hasher.h"

/*
 * Private to hasher*.c: digests through OpenSSL's EVP. Does not change after evp_hasher_init().
 */
struct evp_hasher {
    EVP_MD *md;
    EVP_MD_CTX *start; /* has taken the salt already if that comes first */
    size_t digest_size;
    uint8_t *behind; /* the salt if it comes last */
    size_t behind_size;
};

/* As hasher_find_digest(). */
int evp_find_digest(const char *digest, size_t *ret_size, struct error *err);

/* Fills a zeroed `evp`, also in part when it fails: evp_hasher_clear() frees it either way. */
int evp_hasher_init(struct evp_hasher *evp, const char *digest, enum hasher_salt where,
                    const uint8_t *salt, size_t salt_size, struct error *err);
void evp_hasher_clear(struct evp_hasher *evp);

/* Whether the digest goes by this name too. */
bool evp_hasher_is(const struct evp_hasher *evp, const char *name);

/* As hasher_hash_blocks(). */
int evp_hash_blocks(const struct evp_hasher *evp, const uint8_t *blocks, size_t block_size,
                    size_t count, uint8_t *digests, size_t digest_stride, struct error *err);
