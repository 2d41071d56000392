/* SPDX-License-Identifier: MIT */
#include "hashtree/sha256.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "common/checked.h"

/*
 * How salted blocks become chunks. A message is `salt || block || padding` or `block || salt ||
 * padding`, where padding is 0x80, zeros up to the end of a chunk, and in the last 8 bytes the
 * message's length in bits. The salt's whole chunks, if it comes first, are compressed once
 * (start). What remains is
 *
 *     | front | block ................................................ | behind | 80 00 … length |
 *     |  staged first  |       body        |       body        |  staged last  |  staged last    |
 *
 * Body chunks lie wholly in the block and are read in place, however the salt shifts them against
 * 64-byte boundaries. Only the chunks that a boundary between two parts cuts are put together in a
 * stage, one for each lane: their constant parts once for a call, the block's bytes for each group
 * of blocks.
 */

const uint32_t sha256_initial[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

const uint32_t sha256_k[64] __attribute__((aligned(64))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* --- Choice --- */

#if defined(__x86_64__)

unsigned sha256_cpu_features(void)
{
    unsigned a, b, c, d;
    unsigned features = 0;

    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    bool ssse3 = c & bit_SSSE3, sse41 = c & bit_SSE4_1, avx = c & bit_AVX;
    if (!(c & bit_OSXSAVE) || !avx)
        return 0;

    /* XCR0: which registers the operating system saves. 6: SSE and AVX; 0xe0: the mask registers,
     * the upper halves of zmm0-15, and zmm16-31. */
    uint32_t xcr0, high;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    if ((xcr0 & 0x06) != 0x06)
        return 0;

    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    if ((b & bit_SHA) && ssse3 && sse41)
        features |= SHA256_CPU_SHANI;
    if (b & bit_AVX2)
        features |= SHA256_CPU_AVX2;
    if ((b & bit_AVX512F) && (b & bit_AVX512BW) && (b & bit_AVX512VL) && (xcr0 & 0xe0) == 0xe0)
        features |= SHA256_CPU_AVX512;

    /* AMD's family 0x19: Zen 3, which has no AVX-512, and Zen 4. */
    if (__get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx && c == signature_AMD_ecx &&
        d == signature_AMD_edx && __get_cpuid(1, &a, &b, &c, &d) &&
        (a >> 8 & 0xf) + (a >> 20 & 0xff) == 0x19)
        features |= SHA256_CPU_HALVES;
    return features;
}

#else

unsigned sha256_cpu_features(void)
{
    return 0;
}

#endif

/* Best first; the benchmark "hasher" shows what each is worth on a CPU. */
static const struct {
    const char *name;
    unsigned features;
} kernels[] = {
    {"avx512", SHA256_CPU_AVX512},
    {"shani", SHA256_CPU_SHANI},
    {"avx2", SHA256_CPU_AVX2},
    {"openssl", 0},
};
#define N_KERNELS (sizeof(kernels) / sizeof(kernels[0]))

static void plan_add(struct sha256_plan *plan, sha256_compress *compress, unsigned lanes,
                     unsigned worth)
{
    assert(plan->n_steps < sizeof(plan->steps) / sizeof(plan->steps[0]));
    plan->steps[plan->n_steps++] = (struct sha256_step){compress, lanes, worth};
}

/*
 * The steps. A wide step with lanes left over costs as much as a full one, so it is worth its time
 * only for so many blocks: beside the SHA extensions, which give one block in an eighth of the time
 * of AVX-512's sixteen, only when full; without them, as OpenSSL then takes some 450 cycles a
 * chunk and these 900 to 1100, from three blocks on.
 */
static void plan_fill(struct sha256_plan *plan, unsigned kernel, unsigned features)
{
    *plan = (struct sha256_plan){.name = kernels[kernel].name};
#if defined(__x86_64__)
    bool avx512 = kernels[kernel].features == SHA256_CPU_AVX512;
    bool shani = kernels[kernel].features == SHA256_CPU_SHANI;

    if (avx512) {
        shani = features & SHA256_CPU_SHANI;
        plan_add(plan, sha256_avx512_16, 16, shani ? 16 : 3);
    }
    if (shani) {
        plan_add(plan, sha256_shani_4, 4, 3);
        plan_add(plan, sha256_shani_2, 2, 2);
        plan_add(plan, sha256_shani_1, 1, 1);
    }
    if (kernels[kernel].features == SHA256_CPU_AVX2)
        plan_add(plan, sha256_avx2_8, 8, 3);
#else
    (void)features;
    (void)plan_add;
#endif
}

int sha256_choose(const char *name, unsigned features, struct sha256_plan *ret, struct error *err)
{
    const unsigned both = SHA256_CPU_HALVES | SHA256_CPU_SHANI;
    char have[64] = "";
    bool known = false;

    /* Zen 4's SHA unit with four messages in turn is as fast as its sixteen lanes or faster (2.3
     * and 2.15 times OpenSSL), and does not want sixteen blocks to be so. */
    if (name == NULL && (features & both) == both)
        name = "shani";

    for (unsigned i = 0; i < N_KERNELS; i++) {
        bool runs = (kernels[i].features & ~features) == 0;
        bool wanted = name == NULL || strcmp(name, kernels[i].name) == 0;

        if (wanted && runs) {
            plan_fill(ret, i, features);
            return 0;
        }
        known = known || wanted;
        if (runs) {
            size_t used = strlen(have);
            snprintf(have + used, sizeof(have) - used, "%s%s", used > 0 ? ", " : "",
                     kernels[i].name);
        }
    }
    if (known)
        return error_set(err, EINVAL, "hash kernel '%s': this CPU cannot run it; it can run: %s",
                         name, have);
    return error_set(err, EINVAL,
                     "hash kernel '%s' is not one of avx512, shani, avx2, openssl; this CPU can "
                     "run: %s",
                     name, have);
}

/* --- Layout --- */

/* A salt behind the block, the end of the block before it, and padding: at most 63 + 256 + 9 bytes
 * after a body. Without a body, 63 bytes of salt and 64 of a block (or 63 without salt) come before
 * those. */
#define LAST_CHUNKS 7

/* Bytes: half of a small second-level cache. */
#define PREFETCH_MAX ((size_t)128 << 10)

/*
 * Where one lane's staged chunks are put together: bytes of the first chunk and the last ones. The
 * block's bytes come by copies of a whole chunk, which compilers turn into a few moves: what is too
 * much lies in slack behind the first chunk and in front of the last ones.
 */
#define STAGE_FIRST 0
#define STAGE_LAST (3 * SHA256_CHUNK)
#define STAGE_SIZE (STAGE_LAST + LAST_CHUNKS * SHA256_CHUNK)

struct layout {
    size_t first; /* bytes of the block in the first staged chunk; 0 if there is none */
    size_t body;  /* chunks read in place, from block + first on */
    size_t front; /* bytes of salt in the last staged chunks: only without a body */
    size_t last;  /* bytes of the block after that */
    size_t last_chunks;
};

static void layout_init(const struct sha256_salt *salt, size_t block_size, struct layout *ret)
{
    size_t first = salt->front_size > 0 ? SHA256_CHUNK - salt->front_size : 0;
    size_t body = block_size > first ? (block_size - first) / SHA256_CHUNK : 0;

    if (body > 0)
        *ret = (struct layout){
            .first = first, .body = body, .last = (block_size - first) % SHA256_CHUNK};
    else
        *ret = (struct layout){.front = salt->front_size, .last = block_size};
    ret->last_chunks = div_round_up(ret->front + ret->last + salt->behind_size + 9, SHA256_CHUNK);
    assert(ret->last_chunks <= LAST_CHUNKS);
}

/* Everything that is not the block's. */
static void stage_init(uint8_t stage[static STAGE_SIZE], const struct sha256_salt *salt,
                       const struct layout *layout, size_t block_size)
{
    uint8_t *end = stage + STAGE_LAST + layout->last_chunks * SHA256_CHUNK;
    uint8_t *behind = stage + STAGE_LAST + layout->front + layout->last;
    uint64_t bits = 8 * (uint64_t)(salt->taken + salt->front_size + block_size + salt->behind_size);

    memcpy(stage + (layout->body > 0 ? STAGE_FIRST : STAGE_LAST), salt->front, salt->front_size);
    memcpy(behind, salt->behind, salt->behind_size);
    behind += salt->behind_size;
    *behind = 0x80;
    memset(behind + 1, 0, (size_t)(end - behind) - 1);
    for (int i = 0; i < 8; i++)
        end[i - 8] = (uint8_t)(bits >> (56 - 8 * i));
}

/* The block's part. */
static void stage_block(uint8_t stage[static STAGE_SIZE], const struct layout *layout,
                        const uint8_t *block, size_t block_size)
{
    if (layout->body == 0) {
        memcpy(stage + STAGE_LAST + layout->front, block, block_size);
        return;
    }
    if (layout->first > 0)
        memcpy(stage + STAGE_FIRST + SHA256_CHUNK - layout->first, block, SHA256_CHUNK);
    memcpy(stage + STAGE_LAST + layout->last - SHA256_CHUNK, block + block_size - SHA256_CHUNK,
           SHA256_CHUNK);
}

void sha256_salt_init(const struct sha256_plan *plan, enum hasher_salt where, const uint8_t *salt,
                      size_t salt_size, struct sha256_salt *ret)
{
    assert(salt_size <= SHA256_SALT_MAX && plan->n_steps > 0);
    *ret = (struct sha256_salt){0};
    memcpy(ret->start, sha256_initial, sizeof(ret->start));
    if (salt_size == 0)
        return;
    if (where == HASHER_SALT_LAST) {
        memcpy(ret->behind, salt, salt_size);
        ret->behind_size = salt_size;
        return;
    }

    ret->front_size = salt_size % SHA256_CHUNK;
    ret->taken = salt_size - ret->front_size;
    memcpy(ret->front, salt + ret->taken, ret->front_size);
    if (ret->taken == 0)
        return;

    const uint8_t *data[SHA256_LANES_MAX];
    uint8_t state[SHA256_DIGEST];
    uint8_t *digests[SHA256_LANES_MAX];
    for (unsigned i = 0; i < SHA256_LANES_MAX; i++) {
        data[i] = salt;
        digests[i] = state;
    }
    struct sha256_run run = {data, ret->taken / SHA256_CHUNK, 0};
    plan->steps[0].compress(sha256_initial, &run, 1, digests);
    for (int i = 0; i < 8; i++)
        ret->start[i] = (uint32_t)state[4 * i] << 24 | (uint32_t)state[4 * i + 1] << 16 |
                        (uint32_t)state[4 * i + 2] << 8 | state[4 * i + 3];
}

/* How far on the same chunk of the next n blocks lies, if there are so many and it is near enough
 * to stay in the cache until it is wanted. */
static size_t ahead(size_t block_size, unsigned n, size_t left)
{
    return left >= 2 * n && block_size <= PREFETCH_MAX / n ? n * block_size : 0;
}

size_t sha256_hash_blocks(const struct sha256_plan *plan, const struct sha256_salt *salt,
                          const uint8_t *blocks, size_t block_size, size_t count, uint8_t *digests,
                          size_t digest_stride)
{
    uint8_t stages[SHA256_LANES_MAX][STAGE_SIZE];
    const uint8_t *first[SHA256_LANES_MAX], *body[SHA256_LANES_MAX], *last[SHA256_LANES_MAX];
    uint8_t *out[SHA256_LANES_MAX];
    uint8_t unwanted[SHA256_DIGEST];
    struct sha256_run runs[3], *body_run = NULL;
    size_t n_runs = 0;
    size_t done = 0;
    unsigned staged = 0;
    struct layout layout;

    layout_init(salt, block_size, &layout);
    if (layout.first > 0)
        runs[n_runs++] = (struct sha256_run){first, 1, 0};
    if (layout.body > 0) {
        body_run = &runs[n_runs];
        runs[n_runs++] = (struct sha256_run){body, layout.body, 0};
    }
    runs[n_runs++] = (struct sha256_run){last, layout.last_chunks, 0};

    for (unsigned s = 0; s < plan->n_steps; s++) {
        const struct sha256_step *step = &plan->steps[s];

        while (count - done >= step->worth) {
            unsigned n = (unsigned)min_u64(step->lanes, count - done);

            for (unsigned i = 0; i < n; i++) {
                const uint8_t *block = blocks + (done + i) * block_size;

                if (i == staged)
                    stage_init(stages[staged++], salt, &layout, block_size);
                stage_block(stages[i], &layout, block, block_size);
                first[i] = stages[i] + STAGE_FIRST;
                body[i] = block + layout.first;
                last[i] = stages[i] + STAGE_LAST;
                out[i] = digests + (done + i) * digest_stride;
            }
            /* Lanes without a block do the last one's work once more. */
            for (unsigned i = n; i < step->lanes; i++) {
                first[i] = first[n - 1];
                body[i] = body[n - 1];
                last[i] = last[n - 1];
                out[i] = unwanted;
            }
            if (body_run != NULL)
                body_run->ahead = ahead(block_size, n, count - done);
            step->compress(salt->start, runs, n_runs, out);
            done += n;
        }
    }
    return done;
}
