/* SPDX-License-Identifier: MIT */
#pragma once

#include <openssl/types.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "common/error.h"

/*
 * Private to qemuctl: a digest of libcrypto, which can be used for one message after the other.
 */
struct sha {
    EVP_MD *md;
    EVP_MD_CTX *ctx;
    size_t size; /* bytes of a digest */
};
#define SHA_INIT ((struct sha){0})
#define SHA256_SIZE 32
#define SHA384_SIZE 48

/* `name` is libcrypto's: "SHA256", "SHA384". */
int sha_open(struct sha *sha, const char *name, struct error *err);
void sha_close(struct sha *sha);
DEFINE_CLEANUP_INPLACE(struct sha, sha_close);
#define _cleanup_sha_ _cleanup_(sha_close_cleanup)

int sha_begin(struct sha *sha, struct error *err);
int sha_add(struct sha *sha, const void *data, size_t size, struct error *err);
int sha_end(struct sha *sha, uint8_t *digest, struct error *err);

/* All of a message at once. */
int sha_of(struct sha *sha, const void *data, size_t size, uint8_t *digest, struct error *err);
int sha256_of(const void *data, size_t size, uint8_t digest[static SHA256_SIZE], struct error *err);
