/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "hashtree/hasher.h"

/*
 * Private to the hasher and its tests: SHA-256 (FIPS 180-4) over several messages of one length at
 * once. sha256.c chooses what this CPU runs best and lays the salted messages out; the kernels of
 * sha256-*.c compress chunks and know nothing of salts, blocks or padding.
 */
#define SHA256_CHUNK 64 /* bytes that one compression takes in */
#define SHA256_DIGEST 32
#define SHA256_SALT_MAX 256
#define SHA256_LANES_MAX 16

extern const uint32_t sha256_k[64];
extern const uint32_t sha256_initial[8];

/* `chunks` (at least 1) consecutive chunks for each lane, lane i's from data[i] on. */
struct sha256_run {
    const uint8_t *const *data;
    size_t chunks;
    size_t ahead; /* this many bytes behind a chunk lies one that may be prefetched; or 0 */
};

/*
 * Compresses what the runs hold, one run after the other, starting from the state `start` in every
 * lane, and writes the last states, 32 bytes big-endian as in a digest, to digests[lane]. Reads
 * nothing but those chunks. No alignment is needed of anything.
 */
typedef void sha256_compress(const uint32_t start[static 8], const struct sha256_run *runs,
                             size_t n_runs, uint8_t *const *digests);

sha256_compress sha256_avx512_16; /* the number is that of the lanes */
sha256_compress sha256_avx2_8;
sha256_compress sha256_shani_4;
sha256_compress sha256_shani_2;
sha256_compress sha256_shani_1;
sha256_compress sha256_portable_1; /* for checksums only */

/* What a CPU, and the operating system by saving its registers, offers. */
enum {
    SHA256_CPU_AVX512 = 1 << 0, /* AVX-512 F, BW and VL */
    SHA256_CPU_SHANI = 1 << 1,  /* the SHA extensions, and AVX for their three-operand neighbours */
    SHA256_CPU_AVX2 = 1 << 2,
    SHA256_CPU_HALVES = 1 << 3, /* does operations of 512 bits in two halves */
};
unsigned sha256_cpu_features(void);

/*
 * The way to hash many blocks: steps of ever fewer lanes. As long as at least `worth` blocks are
 * left, the first step with worth <= left takes up to `lanes` of them; what no step takes is
 * OpenSSL's.
 */
struct sha256_step {
    sha256_compress *compress;
    unsigned lanes;
    unsigned worth; /* below this many blocks the next steps are faster */
};

struct sha256_plan {
    const char *name; /* "avx512", "shani", "avx2" or "openssl" */
    struct sha256_step steps[4];
    unsigned n_steps;
};

/*
 * The plan for kernel `name`, or with NULL the best for a CPU with these features: the first of
 * avx512, shani, avx2, openssl that it can run; but shani before avx512 where 512 bits are done in
 * halves. -EINVAL if there is no such kernel or these features do not suffice; the message lists
 * what there is.
 */
int sha256_choose(const char *name, unsigned features, struct sha256_plan *ret, struct error *err);

/* What one salt makes the same in all messages. */
struct sha256_salt {
    uint32_t start[8]; /* the state after the whole chunks of a salt in front */
    uint8_t front[SHA256_CHUNK];
    size_t front_size; /* bytes of the salt that are left in front, less than a chunk */
    size_t taken;      /* bytes of the salt that are in `start` */
    uint8_t behind[SHA256_SALT_MAX];
    size_t behind_size;
};

/* salt_size is at most SHA256_SALT_MAX; `plan` has at least one step. */
void sha256_salt_init(const struct sha256_plan *plan, enum hasher_salt where, const uint8_t *salt,
                      size_t salt_size, struct sha256_salt *ret);

/* As hasher_hash_blocks(), for as many of the first blocks as the plan's steps take. Returns how
 * many these are. */
size_t sha256_hash_blocks(const struct sha256_plan *plan, const struct sha256_salt *salt,
                          const uint8_t *blocks, size_t block_size, size_t count, uint8_t *digests,
                          size_t digest_stride);
