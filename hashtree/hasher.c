/* SPDX-License-Identifier: MIT */
#include "hashtree/hasher.h"

#include <assert.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "hashtree/hasher-evp.h"

struct hasher {
    struct evp_hasher evp;
};

int hasher_new(const char *digest, enum hasher_salt where, const uint8_t *salt, size_t salt_size,
               struct hasher **ret, struct error *err)
{
    _cleanup_(hasher_free_cleanup) struct hasher *hasher = calloc(1, sizeof(*hasher));

    if (hasher == NULL)
        return error_oom(err);
    int r = evp_hasher_init(&hasher->evp, digest, where, salt, salt_size, err);
    if (r < 0)
        return r;
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
    (void)hasher;
    return "openssl";
}

int hasher_hash_blocks(const struct hasher *hasher, const uint8_t *blocks, size_t block_size,
                       size_t count, uint8_t *digests, size_t digest_stride, struct error *err)
{
    assert(digest_stride >= hasher->evp.digest_size);
    return evp_hash_blocks(&hasher->evp, blocks, block_size, count, digests, digest_stride, err);
}
