/* SPDX-License-Identifier: MIT */
#include <immintrin.h>
#include <string.h>

#include "hashtree/sha256.h"

/*
 * Eight messages at once, for CPUs that have neither the SHA extensions nor AVX-512: word i of all
 * of them is one ymm register. With sixteen registers the message schedule lives on the stack.
 */
#define AVX2 __attribute__((target("avx2")))
#define INLINE AVX2 static inline __attribute__((always_inline))

INLINE __m256i add(__m256i a, __m256i b)
{
    return _mm256_add_epi32(a, b);
}

INLINE __m256i xor3(__m256i a, __m256i b, __m256i c)
{
    return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}

INLINE __m256i rotate(__m256i a, int n)
{
    return _mm256_xor_si256(_mm256_srli_epi32(a, n), _mm256_slli_epi32(a, 32 - n));
}

/* What the next round calls a is in h afterwards, and its e in d. */
INLINE void round_1(__m256i a, __m256i b, __m256i c, __m256i *d, __m256i e, __m256i f, __m256i g,
                    __m256i *h, __m256i w, uint32_t k)
{
    __m256i ch = _mm256_xor_si256(_mm256_and_si256(_mm256_xor_si256(f, g), e), g);
    __m256i maj =
        _mm256_xor_si256(_mm256_and_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(b, c)), b);
    __m256i t = add(add(*h, add(w, _mm256_set1_epi32((int)k))), ch);

    t = add(t, xor3(rotate(e, 6), rotate(e, 11), rotate(e, 25)));
    *d = add(*d, t);
    *h = add(add(t, maj), xor3(rotate(a, 2), rotate(a, 13), rotate(a, 22)));
}

/* Word t of the schedule becomes word t + 16. */
INLINE void schedule_1(__m256i w[static 16], unsigned t)
{
    __m256i w1 = w[(t + 1) % 16], w14 = w[(t + 14) % 16];
    __m256i s0 = xor3(rotate(w1, 7), rotate(w1, 18), _mm256_srli_epi32(w1, 3));
    __m256i s1 = xor3(rotate(w14, 17), rotate(w14, 19), _mm256_srli_epi32(w14, 10));

    w[t % 16] = add(add(w[t % 16], w[(t + 9) % 16]), add(s0, s1));
}

/* s[0] is a, s[7] is h, before and after. */
INLINE void round_8(__m256i s[static 8], __m256i w[static 16], unsigned at,
                    const uint32_t k[static 8], bool schedule)
{
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++) {
        round_1(s[(8 - i) % 8], s[(9 - i) % 8], s[(10 - i) % 8], &s[(11 - i) % 8], s[(12 - i) % 8],
                s[(13 - i) % 8], s[(14 - i) % 8], &s[(15 - i) % 8], w[at + i], k[i]);
        if (schedule)
            schedule_1(w, at + i);
    }
}

/* Rows of eight words become columns. */
INLINE void transpose(__m256i r[static 8])
{
    __m256i t[8], u[8];

#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
        t[i + 2] = _mm256_unpacklo_epi32(r[i + 2], r[i + 3]);
        t[i + 3] = _mm256_unpackhi_epi32(r[i + 2], r[i + 3]);
        u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
    }
}

INLINE void load_8(const uint8_t *const *data, size_t offset, __m256i swap, __m256i w[static 8])
{
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        w[i] = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i_u *)(data[i] + offset)), swap);
    transpose(w);
}

AVX2 void sha256_avx2_8(const uint32_t start[static 8], const struct sha256_run *runs,
                        size_t n_runs, uint8_t *const *digests)
{
    const __m256i swap =
        _mm256_broadcastsi128_si256(_mm_set_epi32(0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203));
    __m256i s[8];

#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        s[i] = _mm256_set1_epi32((int)start[i]);
    for (const struct sha256_run *run = runs; run < runs + n_runs; run++) {
        for (size_t offset = 0; offset < run->chunks * SHA256_CHUNK; offset += SHA256_CHUNK) {
            const uint32_t *k = sha256_k;
            __m256i before[8], w[16];

            memcpy(before, s, sizeof(before));
            load_8(run->data, offset, swap, w);
            load_8(run->data, offset + 32, swap, w + 8);
            for (int i = 0; i < 3; i++, k += 16) {
                round_8(s, w, 0, k, true);
                round_8(s, w, 8, k + 8, true);
            }
            round_8(s, w, 0, k, false);
            round_8(s, w, 8, k + 8, false);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                s[i] = add(s[i], before[i]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        s[i] = _mm256_shuffle_epi8(s[i], swap);
    transpose(s);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        _mm256_storeu_si256((__m256i_u *)digests[i], s[i]);
}
