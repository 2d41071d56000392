/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/*
 * Digests of many equal blocks with one salt: what dm-verity's tree is made of. SHA-256 goes
 * through the fastest kernel this CPU has (several blocks at once); every other digest through
 * OpenSSL's EVP.
 *
 * The kernel is chosen by CPUID: the first of "avx512", "shani", "avx2" and "openssl" that the CPU
 * can run, but "shani" before "avx512" on Zen 4, where it is faster. QVERITY_HASH_KERNEL in the
 * environment forces one by name. A call with more blocks is faster by the block: avx512 takes 16
 * at once, shani 4, avx2 8. What is left over goes to a lower kernel: avx512's to shani if the CPU
 * has it; avx512's without that, and avx2's, in lanes that stay partly empty; one or two blocks to
 * OpenSSL.
 *
 * A hasher does not change after hasher_new() and may be used from any number of threads at once.
 */
struct hasher;

enum hasher_salt {
    HASHER_SALT_FIRST, /* H(salt || block): dm-verity hash type 1 */
    HASHER_SALT_LAST,  /* H(block || salt): hash type 0 */
};

/*
 * `digest` is a name that veritysetup takes for --hash: one that OpenSSL's default or legacy
 * provider knows, which includes the kernel's names; case does not matter. -EINVAL if there is no
 * such digest or its size is not fixed or above 64 bytes, if the salt is longer than 256 bytes, or
 * if QVERITY_HASH_KERNEL names no kernel or one that this CPU lacks. `salt` is copied. Freed with
 * hasher_free().
 */
int hasher_new(const char *digest, enum hasher_salt where, const uint8_t *salt, size_t salt_size,
               struct hasher **ret, struct error *err);
void hasher_free(struct hasher *hasher);
DEFINE_CLEANUP(struct hasher, hasher_free);

/* The size in bytes of a digest that hasher_new() would take; the same -EINVAL for one that it
 * would not. */
int hasher_find_digest(const char *digest, size_t *ret_size, struct error *err);

size_t hasher_digest_size(const struct hasher *hasher);

/* Name of the kernel that blocks go through. */
const char *hasher_kernel(const struct hasher *hasher);

/*
 * Hashes `count` blocks of `block_size` bytes that lie one behind the other at `blocks`. Digest i
 * is written to `digests + i * digest_stride`; digest_stride is at least the digest's size and the
 * bytes between digests are left alone. No alignment is needed of either. Fails only when OpenSSL
 * does (-EIO), never with a shani, avx512 or avx2 kernel.
 */
int hasher_hash_blocks(const struct hasher *hasher, const uint8_t *blocks, size_t block_size,
                       size_t count, uint8_t *digests, size_t digest_stride, struct error *err);

/*
 * SHA-256 (FIPS 180-4) of `size` bytes, for checksums and names of ours. No alignment is needed.
 */
#define SHA256_CHECKSUM_SIZE 32
void sha256_checksum(const void *data, size_t size, uint8_t digest[static SHA256_CHECKSUM_SIZE]);
