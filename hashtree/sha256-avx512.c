/* SPDX-License-Identifier: MIT */
#include <immintrin.h>
#include <string.h>

#include "hashtree/sha256.h"

/*
 * Sixteen messages at once: word i of all of them is one zmm register, so SHA-256 is computed just
 * as FIPS 180-4 writes it, in sixteen lanes. The eight working variables and sixteen words of the
 * message schedule stay in registers; the other eight are for what is in between. Compilers, left
 * alone with intrinsics, let more values live than there are registers and lose a sixth of the
 * speed to spilling; hence each round is one block of assembly.
 *
 * The transposition of the messages is half a chunk at a time, in the last rounds of the chunk
 * before: there the schedule needs no more words, so registers are free, and the shuffles fill
 * what the rounds leave idle. Half a chunk, because blocks of 4096 bytes put the same chunk of all
 * sixteen messages into the same set of an 8-way cache: whatever is not taken from a line at once
 * has to be fetched again.
 */
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define INLINE AVX512 static inline __attribute__((always_inline))

/* vpternlogd: 0x96 is the exclusive or of three, 0xca Ch, 0xe8 Maj. */

/* One round. What the next round calls a is in h afterwards, and its e in d. */
INLINE void round_1(__m512i a, __m512i b, __m512i c, __m512i *d, __m512i e, __m512i f, __m512i g,
                    __m512i *h, __m512i w, const uint32_t *k)
{
    __m512i x, y, z;

    __asm__ volatile("vpaddd %[w], %[h], %[h]\n\t"
                     "vprord $6, %[e], %[x]\n\t"
                     "vprord $11, %[e], %[y]\n\t"
                     "vpaddd %[k]%{1to16%}, %[h], %[h]\n\t"
                     "vprord $25, %[e], %[z]\n\t"
                     "vpternlogd $0x96, %[y], %[x], %[z]\n\t"
                     "vmovdqa64 %[e], %[x]\n\t"
                     "vpternlogd $0xca, %[g], %[f], %[x]\n\t"
                     "vpaddd %[x], %[h], %[h]\n\t"
                     "vprord $2, %[a], %[x]\n\t"
                     "vpaddd %[z], %[h], %[h]\n\t"
                     "vprord $13, %[a], %[y]\n\t"
                     "vpaddd %[h], %[d], %[d]\n\t"
                     "vprord $22, %[a], %[z]\n\t"
                     "vpternlogd $0x96, %[y], %[x], %[z]\n\t"
                     "vmovdqa64 %[a], %[x]\n\t"
                     "vpternlogd $0xe8, %[c], %[b], %[x]\n\t"
                     "vpaddd %[z], %[h], %[h]\n\t"
                     "vpaddd %[x], %[h], %[h]"
                     : [d] "+v"(*d), [h] "+v"(*h), [x] "=&v"(x), [y] "=&v"(y), [z] "=&v"(z)
                     : [a] "v"(a), [b] "v"(b), [c] "v"(c), [e] "v"(e), [f] "v"(f), [g] "v"(g),
                       [w] "v"(w), [k] "m"(*k));
}

/*
 * One round, and word t of the schedule becomes word t + 16, from words t + 1, t + 9 and t + 14.
 * The order was found by measuring many: it deals rotations, which only half of the vector units
 * do, and the rest evenly, and is 2 to 4 % faster on Zen 4 than a round followed by a step of the
 * schedule.
 */
INLINE void round_and_schedule_1(__m512i a, __m512i b, __m512i c, __m512i *d, __m512i e, __m512i f,
                                 __m512i g, __m512i *h, __m512i *w, const uint32_t *k, __m512i w1,
                                 __m512i w9, __m512i w14)
{
    __m512i t, u, v, x, y, z, s;

    __asm__ volatile("vpaddd %[w], %[h], %[h]\n\t"
                     "vprord $17, %[w14], %[s]\n\t"
                     "vprord $6, %[e], %[x]\n\t"
                     "vprord $11, %[e], %[y]\n\t"
                     "vpaddd %[k]%{1to16%}, %[h], %[h]\n\t"
                     "vprord $25, %[e], %[z]\n\t"
                     "vprord $18, %[w1], %[t]\n\t"
                     "vpsrld $3, %[w1], %[u]\n\t"
                     "vmovdqa64 %[e], %[v]\n\t"
                     "vpternlogd $0xca, %[g], %[f], %[v]\n\t"
                     "vpaddd %[v], %[h], %[h]\n\t"
                     "vprord $7, %[w1], %[v]\n\t"
                     "vpaddd %[w9], %[w], %[w]\n\t"
                     "vpternlogd $0x96, %[x], %[y], %[z]\n\t"
                     "vpaddd %[z], %[h], %[h]\n\t"
                     "vpternlogd $0x96, %[t], %[u], %[v]\n\t"
                     "vprord $2, %[a], %[x]\n\t"
                     "vprord $13, %[a], %[y]\n\t"
                     "vprord $19, %[w14], %[z]\n\t"
                     "vprord $22, %[a], %[t]\n\t"
                     "vpternlogd $0x96, %[x], %[y], %[t]\n\t"
                     "vmovdqa64 %[a], %[x]\n\t"
                     "vpternlogd $0xe8, %[c], %[b], %[x]\n\t"
                     "vpaddd %[v], %[w], %[w]\n\t"
                     "vpaddd %[h], %[x], %[x]\n\t"
                     "vpaddd %[h], %[d], %[d]\n\t"
                     "vpaddd %[x], %[t], %[h]\n\t"
                     "vpsrld $10, %[w14], %[u]\n\t"
                     "vpternlogd $0x96, %[s], %[z], %[u]\n\t"
                     "vpaddd %[u], %[w], %[w]"
                     : [d] "+v"(*d), [h] "+v"(*h), [w] "+v"(*w), [t] "=&v"(t), [u] "=&v"(u),
                       [v] "=&v"(v), [x] "=&v"(x), [y] "=&v"(y), [z] "=&v"(z), [s] "=&v"(s)
                     : [a] "v"(a), [b] "v"(b), [c] "v"(c), [e] "v"(e), [f] "v"(f), [g] "v"(g),
                       [w1] "v"(w1), [w9] "v"(w9), [w14] "v"(w14), [k] "m"(*k));
}

struct state {
    __m512i a, b, c, d, e, f, g, h;
};

/*
 * Eight rounds with words at ... at + 7, after which every variable goes by its own name again.
 * With `schedule` the words become those of sixteen rounds later.
 */
INLINE void round_8(struct state *s, __m512i w[static 16], unsigned at, const uint32_t k[static 8],
                    bool schedule)
{
#define ROUND(i, a, b, c, d, e, f, g, h)                                                          \
    if (schedule)                                                                                 \
        round_and_schedule_1(s->a, s->b, s->c, &s->d, s->e, s->f, s->g, &s->h, &w[at + i], &k[i], \
                             w[(at + i + 1) % 16], w[(at + i + 9) % 16], w[(at + i + 14) % 16]);  \
    else                                                                                          \
        round_1(s->a, s->b, s->c, &s->d, s->e, s->f, s->g, &s->h, w[at + i], &k[i])

    ROUND(0, a, b, c, d, e, f, g, h);
    ROUND(1, h, a, b, c, d, e, f, g);
    ROUND(2, g, h, a, b, c, d, e, f);
    ROUND(3, f, g, h, a, b, c, d, e);
    ROUND(4, e, f, g, h, a, b, c, d);
    ROUND(5, d, e, f, g, h, a, b, c);
    ROUND(6, c, d, e, f, g, h, a, b);
    ROUND(7, b, c, d, e, f, g, h, a);
#undef ROUND
}

/* 32 bytes of lane `low`, and of the lane four further on. */
INLINE __m512i load_2(const uint8_t *const *low, size_t offset)
{
    __m256i a = _mm256_loadu_si256((const __m256i_u *)(low[0] + offset));
    __m256i b = _mm256_loadu_si256((const __m256i_u *)(low[4] + offset));

    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

/* Half a chunk of eight lanes: out[i] gets words i and i + 4 as four groups of four lanes:
 * word i of lanes 0-3, word i + 4 of lanes 0-3, word i of lanes 4-7, word i + 4 of lanes 4-7. */
INLINE void load_8(const uint8_t *const *data, size_t offset, __m512i out[static 4])
{
    __m512i r0 = load_2(data, offset), r1 = load_2(data + 1, offset);
    __m512i r2 = load_2(data + 2, offset), r3 = load_2(data + 3, offset);
    __m512i t0 = _mm512_unpacklo_epi32(r0, r1), t1 = _mm512_unpackhi_epi32(r0, r1);
    __m512i t2 = _mm512_unpacklo_epi32(r2, r3), t3 = _mm512_unpackhi_epi32(r2, r3);

    out[0] = _mm512_unpacklo_epi64(t0, t2);
    out[1] = _mm512_unpackhi_epi64(t0, t2);
    out[2] = _mm512_unpacklo_epi64(t1, t3);
    out[3] = _mm512_unpackhi_epi64(t1, t3);
}

/* Half a chunk, eight words, of all lanes. */
INLINE void load_16(const uint8_t *const *data, size_t offset, __m512i swap, __m512i w[static 8])
{
    __m512i low[4], high[4];

    load_8(data, offset, low);
    load_8(data + 8, offset, high);
#pragma GCC unroll 8
    for (int i = 0; i < 4; i++) {
        w[i] = _mm512_shuffle_epi8(_mm512_shuffle_i32x4(low[i], high[i], 0x88), swap);
        w[i + 4] = _mm512_shuffle_epi8(_mm512_shuffle_i32x4(low[i], high[i], 0xdd), swap);
    }
    /* Here and not later: the compiler would move the shuffles to where the words are used. */
    __asm__ volatile("" : "+v"(w[0]), "+v"(w[1]), "+v"(w[2]), "+v"(w[3]));
    __asm__ volatile("" : "+v"(w[4]), "+v"(w[5]), "+v"(w[6]), "+v"(w[7]));
}

/* The states as digests: transposes eight words of sixteen lanes. */
INLINE void store_16(const struct state *s, __m512i swap, uint8_t *const *digests)
{
    __m512i r[8] = {s->a, s->b, s->c, s->d, s->e, s->f, s->g, s->h};
    uint8_t rows[4][SHA256_CHUNK] __attribute__((aligned(64)));

#pragma GCC unroll 8
    for (int half = 0; half < 2; half++) {
        const __m512i *h = r + 4 * half;
        __m512i t0 = _mm512_unpacklo_epi32(h[0], h[1]), t1 = _mm512_unpackhi_epi32(h[0], h[1]);
        __m512i t2 = _mm512_unpacklo_epi32(h[2], h[3]), t3 = _mm512_unpackhi_epi32(h[2], h[3]);

        /* Row i: four words of lanes i, 4 + i, 8 + i and 12 + i. */
        _mm512_store_si512(rows[0], _mm512_shuffle_epi8(_mm512_unpacklo_epi64(t0, t2), swap));
        _mm512_store_si512(rows[1], _mm512_shuffle_epi8(_mm512_unpackhi_epi64(t0, t2), swap));
        _mm512_store_si512(rows[2], _mm512_shuffle_epi8(_mm512_unpacklo_epi64(t1, t3), swap));
        _mm512_store_si512(rows[3], _mm512_shuffle_epi8(_mm512_unpackhi_epi64(t1, t3), swap));
        for (int lane = 0; lane < 16; lane++)
            memcpy(digests[lane] + 16 * half, rows[lane % 4] + lane / 4 * 16, 16);
    }
}

AVX512 void sha256_avx512_16(const uint32_t start[static 8], const struct sha256_run *runs,
                             size_t n_runs, uint8_t *const *digests)
{
    const __m512i swap =
        _mm512_broadcast_i32x4(_mm_set_epi32(0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203));
    struct state s = {
        _mm512_set1_epi32((int)start[0]), _mm512_set1_epi32((int)start[1]),
        _mm512_set1_epi32((int)start[2]), _mm512_set1_epi32((int)start[3]),
        _mm512_set1_epi32((int)start[4]), _mm512_set1_epi32((int)start[5]),
        _mm512_set1_epi32((int)start[6]), _mm512_set1_epi32((int)start[7]),
    };
    const struct sha256_run *run = runs, *end = runs + n_runs;
    size_t chunk = 0;
    __m512i w[16];

    load_16(run->data, 0, swap, w);
    load_16(run->data, 32, swap, w + 8);
    while (run < end) {
        struct state before = s;
        const uint32_t *k = sha256_k;

        /* In memory, and only there, as long as the rounds need the registers. */
        __asm__ volatile("" : "+m"(before));
        if (++chunk == run->chunks) {
            run++;
            chunk = 0;
        }
        /* Behind the last chunk there is nothing to load: take it again. */
        const uint8_t *const *data = run < end ? run->data : end[-1].data;
        size_t offset = (run < end ? chunk : end[-1].chunks - 1) * SHA256_CHUNK;

        /* Into the second-level cache: the first has no room for sixteen lines of one set. */
        for (int i = 0; i < 16; i++)
            _mm_prefetch((const char *)data[i] + offset + (run < end ? run->ahead : 0),
                         _MM_HINT_T1);

        for (int i = 0; i < 3; i++, k += 16) {
            round_8(&s, w, 0, k, true);
            round_8(&s, w, 8, k + 8, true);
        }
        round_8(&s, w, 0, k, false);
        load_16(data, offset, swap, w);
        round_8(&s, w, 8, k + 8, false);
        load_16(data, offset + 32, swap, w + 8);

        s.a = _mm512_add_epi32(s.a, before.a);
        s.b = _mm512_add_epi32(s.b, before.b);
        s.c = _mm512_add_epi32(s.c, before.c);
        s.d = _mm512_add_epi32(s.d, before.d);
        s.e = _mm512_add_epi32(s.e, before.e);
        s.f = _mm512_add_epi32(s.f, before.f);
        s.g = _mm512_add_epi32(s.g, before.g);
        s.h = _mm512_add_epi32(s.h, before.h);
    }
    store_16(&s, swap, digests);
}
