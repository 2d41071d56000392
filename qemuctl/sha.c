/* SPDX-License-Identifier: MIT */
#include "qemuctl/sha.h"

#include <errno.h>

#include "common/openssl.h"

int sha_open(struct sha *sha, const char *name, struct error *err)
{
    int r = libcrypto_load(err);
    if (r < 0)
        return r;
    sha->md = libcrypto.EVP_MD_fetch(NULL, name, NULL);
    sha->ctx = libcrypto.EVP_MD_CTX_new();
    if (sha->md == NULL || sha->ctx == NULL)
        return libcrypto_error(err, EIO, name);
    sha->size = (size_t)libcrypto.EVP_MD_get_size(sha->md);
    return 0;
}

void sha_close(struct sha *sha)
{
    if (sha->ctx != NULL)
        libcrypto.EVP_MD_CTX_free(sha->ctx);
    if (sha->md != NULL)
        libcrypto.EVP_MD_free(sha->md);
    *sha = SHA_INIT;
}

int sha_begin(struct sha *sha, struct error *err)
{
    if (libcrypto.EVP_DigestInit_ex2(sha->ctx, sha->md, NULL) != 1)
        return libcrypto_error(err, EIO, libcrypto.EVP_MD_get0_name(sha->md));
    return 0;
}

int sha_add(struct sha *sha, const void *data, size_t size, struct error *err)
{
    if (libcrypto.EVP_DigestUpdate(sha->ctx, data, size) != 1)
        return libcrypto_error(err, EIO, libcrypto.EVP_MD_get0_name(sha->md));
    return 0;
}

int sha_end(struct sha *sha, uint8_t *digest, struct error *err)
{
    if (libcrypto.EVP_DigestFinal_ex(sha->ctx, digest, NULL) != 1)
        return libcrypto_error(err, EIO, libcrypto.EVP_MD_get0_name(sha->md));
    return 0;
}

int sha_of(struct sha *sha, const void *data, size_t size, uint8_t *digest, struct error *err)
{
    int r = sha_begin(sha, err);

    if (r == 0)
        r = sha_add(sha, data, size, err);
    if (r == 0)
        r = sha_end(sha, digest, err);
    return r;
}

int sha256_of(const void *data, size_t size, uint8_t digest[static SHA256_SIZE], struct error *err)
{
    _cleanup_sha_ struct sha sha = SHA_INIT;

    int r = sha_open(&sha, "SHA256", err);
    return r < 0 ? r : sha_of(&sha, data, size, digest, err);
}
