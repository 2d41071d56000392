/* SPDX-License-Identifier: MIT */
#include <immintrin.h>
#include <string.h>

#include "hashtree/sha256.h"

/*
 * The SHA extensions do two rounds in one instruction, which takes four cycles but could be started
 * every cycle: one message at a time leaves three quarters of the unit idle. Here four (two, one)
 * messages go through it in turn. More gain nothing: what they wait for then are the vector units
 * that the message schedule takes (its sha256msg2 alone are five operations on Zen 3), and
 * registers are short. Three are as fast as four there, within a hundredth, and do not divide the
 * numbers of blocks that come.
 *
 * The state is held as the instructions want it: a, b, e, f in one register, c, d, g, h in another.
 * The arrays of `lanes` elements vanish when the loops are unrolled, which is why everything is
 * inlined into one function for each number of lanes. AVX is asked for only for its three-operand
 * forms: without them every shuffle needs a copy.
 */
#define SHANI __attribute__((target("sha,avx")))
#define INLINE SHANI static inline __attribute__((always_inline))
#define LANES_MAX 4
/* clang unrolls early enough for that only what it is told to unroll fully. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 4")
#endif
#define EACH_LANE UNROLL for (unsigned l = 0; l < lanes; l++)

struct state {
    __m128i abef[LANES_MAX], cdgh[LANES_MAX];
};

/* Rounds 4 * t to 4 * t + 3. With `schedule`, m[t % 4] becomes the words of sixteen rounds later.
 */
INLINE void round_4(unsigned lanes, unsigned t, struct state *s, __m128i m[LANES_MAX][4],
                    bool schedule)
{
    __m128i k = _mm_load_si128((const __m128i *)&sha256_k[4 * t]);

    EACH_LANE
    {
        __m128i wk = _mm_add_epi32(m[l][t % 4], k);

        s->cdgh[l] = _mm_sha256rnds2_epu32(s->cdgh[l], s->abef[l], wk);
        wk = _mm_unpackhi_epi64(wk, wk);
        s->abef[l] = _mm_sha256rnds2_epu32(s->abef[l], s->cdgh[l], wk);
        if (!schedule)
            continue;

        __m128i w = _mm_sha256msg1_epu32(m[l][t % 4], m[l][(t + 1) % 4]);
        __m128i w9 = _mm_alignr_epi8(m[l][(t + 3) % 4], m[l][(t + 2) % 4], 4);

        m[l][t % 4] = _mm_sha256msg2_epu32(_mm_add_epi32(w, w9), m[l][(t + 3) % 4]);
    }
}

INLINE void compress(unsigned lanes, const uint32_t start[static 8], const struct sha256_run *runs,
                     size_t n_runs, uint8_t *const *digests)
{
    const __m128i swap = _mm_set_epi32(0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203);
    const uint32_t *i = start;
    const __m128i abef = _mm_set_epi32((int)i[0], (int)i[1], (int)i[4], (int)i[5]);
    const __m128i cdgh = _mm_set_epi32((int)i[2], (int)i[3], (int)i[6], (int)i[7]);
    struct state s;

    EACH_LANE
    {
        s.abef[l] = abef;
        s.cdgh[l] = cdgh;
    }
    for (const struct sha256_run *run = runs; run < runs + n_runs; run++) {
        for (size_t offset = 0; offset < run->chunks * SHA256_CHUNK; offset += SHA256_CHUNK) {
            __m128i m[LANES_MAX][4];
            struct state before = s;

            EACH_LANE
            {
                const uint8_t *at = run->data[l] + offset;
                const __m128i_u *data = (const __m128i_u *)at;

                _mm_prefetch((const char *)at + run->ahead, _MM_HINT_T1);
                m[l][0] = _mm_shuffle_epi8(_mm_loadu_si128(data), swap);
                m[l][1] = _mm_shuffle_epi8(_mm_loadu_si128(data + 1), swap);
                m[l][2] = _mm_shuffle_epi8(_mm_loadu_si128(data + 2), swap);
                m[l][3] = _mm_shuffle_epi8(_mm_loadu_si128(data + 3), swap);
            }
            round_4(lanes, 0, &s, m, true);
            round_4(lanes, 1, &s, m, true);
            round_4(lanes, 2, &s, m, true);
            round_4(lanes, 3, &s, m, true);
            round_4(lanes, 4, &s, m, true);
            round_4(lanes, 5, &s, m, true);
            round_4(lanes, 6, &s, m, true);
            round_4(lanes, 7, &s, m, true);
            round_4(lanes, 8, &s, m, true);
            round_4(lanes, 9, &s, m, true);
            round_4(lanes, 10, &s, m, true);
            round_4(lanes, 11, &s, m, true);
            round_4(lanes, 12, &s, m, false);
            round_4(lanes, 13, &s, m, false);
            round_4(lanes, 14, &s, m, false);
            round_4(lanes, 15, &s, m, false);
            EACH_LANE
            {
                s.abef[l] = _mm_add_epi32(s.abef[l], before.abef[l]);
                s.cdgh[l] = _mm_add_epi32(s.cdgh[l], before.cdgh[l]);
            }
        }
    }
    EACH_LANE
    {
        __m128i abcd = _mm_unpackhi_epi64(s.cdgh[l], s.abef[l]); /* d c b a, from the lowest */
        __m128i efgh = _mm_unpacklo_epi64(s.cdgh[l], s.abef[l]);
        const __m128i reverse = _mm_set_epi32(0x00010203, 0x04050607, 0x08090a0b, 0x0c0d0e0f);

        _mm_storeu_si128((__m128i_u *)digests[l], _mm_shuffle_epi8(abcd, reverse));
        _mm_storeu_si128((__m128i_u *)(digests[l] + 16), _mm_shuffle_epi8(efgh, reverse));
    }
}

SHANI void sha256_shani_4(const uint32_t start[static 8], const struct sha256_run *runs,
                          size_t n_runs, uint8_t *const *digests)
{
    compress(4, start, runs, n_runs, digests);
}

SHANI void sha256_shani_2(const uint32_t start[static 8], const struct sha256_run *runs,
                          size_t n_runs, uint8_t *const *digests)
{
    compress(2, start, runs, n_runs, digests);
}

SHANI void sha256_shani_1(const uint32_t start[static 8], const struct sha256_run *runs,
                          size_t n_runs, uint8_t *const *digests)
{
    compress(1, start, runs, n_runs, digests);
}
