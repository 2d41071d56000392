/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "common/bytes.h"
#include "hashtree/sha256.h"

/* For any CPU, one lane, and no rival to OpenSSL: for the few bytes of a checksum that shall need
 * no library and cannot fail. FIPS 180-4, 6.2.2. */

static uint32_t rotate(uint32_t x, unsigned n)
{
    return x >> n | x << (32 - n);
}

/* Word t of the message schedule; of the last sixteen, w holds word t at t % 16. */
static uint32_t schedule(uint32_t w[static 16], unsigned t)
{
    const uint32_t a = w[(t + 1) % 16], b = w[(t + 14) % 16];

    if (t >= 16)
        w[t % 16] += (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[(t + 9) % 16] +
                     (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    return w[t % 16];
}

static void compress_chunk(uint32_t state[static 8], const uint8_t *chunk)
{
    uint32_t w[16], s[8];

    for (unsigned t = 0; t < 16; t++)
        w[t] = get_be32(chunk + 4 * (size_t)t);
    memcpy(s, state, sizeof(s));
    for (unsigned t = 0; t < 64; t++) {
        const uint32_t a = s[0], b = s[1], c = s[2], e = s[4], f = s[5], g = s[6];
        const uint32_t one = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                             ((e & f) ^ (~e & g)) + sha256_k[t] + schedule(w, t);
        const uint32_t two =
            (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));

        memmove(s + 1, s, 7 * sizeof(s[0]));
        s[0] = one + two;
        s[4] += one;
    }
    for (unsigned i = 0; i < 8; i++)
        state[i] += s[i];
}

void sha256_portable_1(const uint32_t start[static 8], const struct sha256_run *runs, size_t n_runs,
                       uint8_t *const *digests)
{
    uint32_t state[8];

    memcpy(state, start, sizeof(state));
    for (size_t i = 0; i < n_runs; i++)
        for (size_t chunk = 0; chunk < runs[i].chunks; chunk++)
            compress_chunk(state, runs[i].data[0] + chunk * SHA256_CHUNK);
    for (size_t i = 0; i < 8; i++)
        put_be32(digests[0] + 4 * i, state[i]);
}
