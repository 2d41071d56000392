/* SPDX-License-Identifier: MIT */
#include "hashtree/hasher.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/cleanup.h"
#include "hashtree/hasher-evp.h"
#include "hashtree/sha256.h"

/*
 * For SHA-256 a hasher has a plan of kernels (sha256.h) that takes most blocks: all, where the CPU
 * has the SHA extensions, else all but one or two at the end of a call. Unless the plan takes all
 * it has the EVP way, too, which takes some milliseconds to load and set up.
 */
struct hasher {
    size_t digest_size;
    bool has_evp;
    struct evp_hasher evp;
    struct sha256_plan plan; /* without steps for other digests */
    struct sha256_salt salt; /* valid if the plan has steps */
};

static bool is_sha256(const char *digest)
{
    return strcasecmp(digest, "sha256") == 0;
}

/* The plan that the environment asks for. A wrong name is an error for every digest. */
static int choose_plan(struct sha256_plan *ret, struct error *err)
{
    const char *forced = getenv("QVERITY_HASH_KERNEL");

    if (forced != NULL && forced[0] == '\0')
        forced = NULL;
    int r = sha256_choose(forced, sha256_cpu_features(), ret, err);
    return r < 0 ? error_prefix(err, "QVERITY_HASH_KERNEL") : 0;
}

static bool takes_all(const struct sha256_plan *plan)
{
    return plan->n_steps > 0 && plan->steps[plan->n_steps - 1].worth <= 1;
}

static int use_evp(struct hasher *hasher, const char *digest, enum hasher_salt where,
                   const uint8_t *salt, size_t salt_size, struct error *err)
{
    hasher->has_evp = true;
    int r = evp_hasher_init(&hasher->evp, digest, where, salt, salt_size, err);
    if (r < 0)
        return r;
    hasher->digest_size = hasher->evp.digest_size;
    return 0;
}

int hasher_new(const char *digest, enum hasher_salt where, const uint8_t *salt, size_t salt_size,
               struct hasher **ret, struct error *err)
{
    _cleanup_(hasher_free_cleanup) struct hasher *hasher = calloc(1, sizeof(*hasher));

    if (hasher == NULL)
        return error_oom(err);
    if (salt_size > SHA256_SALT_MAX)
        return error_set(err, EINVAL, "a salt of %zu bytes is longer than %d", salt_size,
                         SHA256_SALT_MAX);
    int r = choose_plan(&hasher->plan, err);
    if (r < 0)
        return r;
    if (is_sha256(digest) && takes_all(&hasher->plan)) {
        hasher->digest_size = SHA256_DIGEST;
    } else {
        r = use_evp(hasher, digest, where, salt, salt_size, err);
        if (r < 0)
            return r;
        if (!evp_hasher_is(&hasher->evp, "SHA2-256"))
            sha256_choose("openssl", 0, &hasher->plan, NULL);
    }
    if (hasher->plan.n_steps > 0)
        sha256_salt_init(&hasher->plan, where, salt, salt_size, &hasher->salt);
    *ret = TAKE_PTR(hasher);
    return 0;
}

void hasher_free(struct hasher *hasher)
{
    if (hasher == NULL)
        return;
    if (hasher->has_evp)
        evp_hasher_clear(&hasher->evp);
    free(hasher);
}

int hasher_find_digest(const char *digest, size_t *ret_size, struct error *err)
{
    if (!is_sha256(digest))
        return evp_find_digest(digest, ret_size, err);
    *ret_size = SHA256_DIGEST;
    return 0;
}

size_t hasher_digest_size(const struct hasher *hasher)
{
    return hasher->digest_size;
}

const char *hasher_kernel(const struct hasher *hasher)
{
    return hasher->plan.name;
}

int hasher_hash_blocks(const struct hasher *hasher, const uint8_t *blocks, size_t block_size,
                       size_t count, uint8_t *digests, size_t digest_stride, struct error *err)
{
    size_t done = 0;

    assert(digest_stride >= hasher->digest_size);
    if (hasher->plan.n_steps > 0)
        done = sha256_hash_blocks(&hasher->plan, &hasher->salt, blocks, block_size, count, digests,
                                  digest_stride);
    if (done == count)
        return 0;
    assert(hasher->has_evp);
    return evp_hash_blocks(&hasher->evp, blocks + done * block_size, block_size, count - done,
                           digests + done * digest_stride, digest_stride, err);
}

/* --- SHA-256 of anything --- */

static struct sha256_plan checksum_plan;
static pthread_once_t checksum_once = PTHREAD_ONCE_INIT;

static void choose_checksum_plan(void)
{
    if (choose_plan(&checksum_plan, NULL) < 0 || !takes_all(&checksum_plan))
        checksum_plan = (struct sha256_plan){.steps = {{sha256_portable_1, 1, 1}}, .n_steps = 1};
}

void sha256_checksum(const void *data, size_t size, uint8_t digest[static SHA256_CHECKSUM_SIZE])
{
    struct sha256_salt salt;

    pthread_once(&checksum_once, choose_checksum_plan);
    sha256_salt_init(&checksum_plan, HASHER_SALT_FIRST, NULL, 0, &salt);
    size_t done = sha256_hash_blocks(&checksum_plan, &salt, data, size, 1, digest, SHA256_DIGEST);
    assert(done == 1);
    (void)done;
}
