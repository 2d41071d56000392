/* SPDX-License-Identifier: MIT */
#include "hashtree/hasher.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "hashtree/hasher-evp.h"
#include "hashtree/sha256.h"

/*
 * A hasher always has the EVP way, and for SHA-256 a plan of kernels (sha256.h) that takes most
 * blocks: all, where the CPU has the SHA extensions, else all but one or two at the end of a call.
 */
struct hasher {
    struct evp_hasher evp;
    struct sha256_plan plan; /* without steps for other digests */
    struct sha256_salt salt; /* valid if the plan has steps */
};

int hasher_new(const char *digest, enum hasher_salt where, const uint8_t *salt, size_t salt_size,
               struct hasher **ret, struct error *err)
{
    _cleanup_(hasher_free_cleanup) struct hasher *hasher = calloc(1, sizeof(*hasher));
    const char *forced = getenv("QVERITY_HASH_KERNEL");

    if (hasher == NULL)
        return error_oom(err);
    if (salt_size > SHA256_SALT_MAX)
        return error_set(err, EINVAL, "a salt of %zu bytes is longer than %d", salt_size,
                         SHA256_SALT_MAX);
    int r = evp_hasher_init(&hasher->evp, digest, where, salt, salt_size, err);
    if (r < 0)
        return r;

    if (forced != NULL && forced[0] == '\0')
        forced = NULL;
    /* A wrong name is an error for every digest. */
    r = sha256_choose(forced, sha256_cpu_features(), &hasher->plan, err);
    if (r < 0) {
        error_prefix(err, "QVERITY_HASH_KERNEL");
        return r;
    }
    if (!evp_hasher_is(&hasher->evp, "SHA2-256"))
        sha256_choose("openssl", 0, &hasher->plan, NULL);
    if (hasher->plan.n_steps > 0)
        sha256_salt_init(&hasher->plan, where, salt, salt_size, &hasher->salt);
    *ret = TAKE_PTR(hasher);
    return 0;
}

void hasher_free(struct hasher *hasher)
{
    if (hasher == NULL)
        return;
    evp_hasher_clear(&hasher->evp);
    free(hasher);
}

size_t hasher_digest_size(const struct hasher *hasher)
{
    return hasher->evp.digest_size;
}

const char *hasher_kernel(const struct hasher *hasher)
{
    return hasher->plan.name;
}

int hasher_hash_blocks(const struct hasher *hasher, const uint8_t *blocks, size_t block_size,
                       size_t count, uint8_t *digests, size_t digest_stride, struct error *err)
{
    size_t done = 0;

    assert(digest_stride >= hasher->evp.digest_size);
    if (hasher->plan.n_steps > 0)
        done = sha256_hash_blocks(&hasher->plan, &hasher->salt, blocks, block_size, count, digests,
                                  digest_stride);
    if (done == count)
        return 0;
    return evp_hash_blocks(&hasher->evp, blocks + done * block_size, block_size, count - done,
                           digests + done * digest_stride, digest_stride, err);
}
