/* SPDX-License-Identifier: MIT */
#include "hashtree/hasher-evp.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/openssl.h"
#include "common/sandbox.h"

/*
 * A library context of our own, as libcryptsetup has one, for what the process's default context
 * does not have: whirlpool and md4 come from the legacy provider, and loading that into the default
 * context would change what everybody else in the process gets. Made when it is first needed, it
 * lives as long as the process.
 */
static OSSL_LIB_CTX *library;
static pthread_once_t library_once = PTHREAD_ONCE_INIT;

static void library_open(void)
{
    /* From files, which a confined process may not open. */
    OSSL_LIB_CTX *ctx = sandbox_active() ? NULL : libcrypto.OSSL_LIB_CTX_new();

    if (ctx == NULL)
        return;
    if (libcrypto.OSSL_PROVIDER_load(ctx, "default") == NULL) {
        libcrypto.OSSL_LIB_CTX_free(ctx);
        return;
    }
    /* Distributions may leave the legacy provider out; then its digests are unknown. */
    (void)libcrypto.OSSL_PROVIDER_try_load(ctx, "legacy", 1);
    libcrypto.ERR_clear_error();
    library = ctx;
}

static void md_free(EVP_MD *md)
{
    libcrypto.EVP_MD_free(md);
}
DEFINE_CLEANUP(EVP_MD, md_free);

static int digest_fetch(const char *digest, EVP_MD **ret, struct error *err)
{
    _cleanup_(md_free_cleanup) EVP_MD *md = NULL;

    int r = libcrypto_load(err);
    if (r < 0)
        return r;
    md = libcrypto.EVP_MD_fetch(NULL, digest, NULL);
    if (md == NULL) {
        pthread_once(&library_once, library_open);
        if (library != NULL)
            md = libcrypto.EVP_MD_fetch(library, digest, NULL);
    }
    if (md == NULL) {
        libcrypto.ERR_clear_error();
        return error_set(err, EINVAL, "hash algorithm '%s' is not known to OpenSSL", digest);
    }
    if ((libcrypto.EVP_MD_get_flags(md) & EVP_MD_FLAG_XOF) != 0)
        return error_set(err, EINVAL, "hash algorithm '%s' has no digest of fixed size", digest);
    if (libcrypto.EVP_MD_get_size(md) <= 0 || libcrypto.EVP_MD_get_size(md) > EVP_MAX_MD_SIZE)
        return error_set(err, EINVAL, "hash algorithm '%s' has a digest of %d bytes, not 1 to %d",
                         digest, libcrypto.EVP_MD_get_size(md), EVP_MAX_MD_SIZE);
    *ret = TAKE_PTR(md);
    return 0;
}

int evp_find_digest(const char *digest, size_t *ret_size, struct error *err)
{
    _cleanup_(md_free_cleanup) EVP_MD *md = NULL;

    int r = digest_fetch(digest, &md, err);
    if (r < 0)
        return r;
    *ret_size = (size_t)libcrypto.EVP_MD_get_size(md);
    return 0;
}

int evp_hasher_init(struct evp_hasher *evp, const char *digest, enum hasher_salt where,
                    const uint8_t *salt, size_t salt_size, struct error *err)
{
    int r = digest_fetch(digest, &evp->md, err);
    if (r < 0)
        return r;
    evp->digest_size = (size_t)libcrypto.EVP_MD_get_size(evp->md);

    if (where == HASHER_SALT_LAST && salt_size > 0) {
        evp->behind = malloc(salt_size);
        if (evp->behind == NULL)
            return error_oom(err);
        memcpy(evp->behind, salt, salt_size);
        evp->behind_size = salt_size;
    }

    evp->start = libcrypto.EVP_MD_CTX_new();
    if (evp->start == NULL)
        return error_oom(err);
    if (libcrypto.EVP_DigestInit_ex2(evp->start, evp->md, NULL) != 1 ||
        (where == HASHER_SALT_FIRST && salt_size > 0 &&
         libcrypto.EVP_DigestUpdate(evp->start, salt, salt_size) != 1))
        return libcrypto_error(err, EIO, digest);
    return 0;
}

void evp_hasher_clear(struct evp_hasher *evp)
{
    if (evp->start != NULL)
        libcrypto.EVP_MD_CTX_free(evp->start);
    if (evp->md != NULL)
        libcrypto.EVP_MD_free(evp->md);
    free(evp->behind);
    *evp = (struct evp_hasher){0};
}

bool evp_hasher_is(const struct evp_hasher *evp, const char *name)
{
    return libcrypto.EVP_MD_is_a(evp->md, name);
}

int evp_hash_blocks(const struct evp_hasher *evp, const uint8_t *blocks, size_t block_size,
                    size_t count, uint8_t *digests, size_t digest_stride, struct error *err)
{
    _cleanup_(md_ctx_free_cleanup) EVP_MD_CTX *ctx = libcrypto.EVP_MD_CTX_new();

    if (ctx == NULL)
        return error_oom(err);
    for (size_t i = 0; i < count; i++) {
        if (libcrypto.EVP_MD_CTX_copy_ex(ctx, evp->start) != 1 ||
            libcrypto.EVP_DigestUpdate(ctx, blocks + i * block_size, block_size) != 1 ||
            (evp->behind_size > 0 &&
             libcrypto.EVP_DigestUpdate(ctx, evp->behind, evp->behind_size) != 1) ||
            libcrypto.EVP_DigestFinal_ex(ctx, digests + i * digest_stride, NULL) != 1)
            return libcrypto_error(err, EIO, libcrypto.EVP_MD_get0_name(evp->md));
    }
    return 0;
}
