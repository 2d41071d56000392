/* SPDX-License-Identifier: MIT */
#include "tests/fuzz/mutate.h"

uint64_t mutator_seed(uint64_t seed)
{
    seed = (seed + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    seed ^= seed >> 31;
    return seed != 0 ? seed : 1;
}

uint64_t mutator_random(struct mutator *m)
{
    m->random ^= m->random << 13;
    m->random ^= m->random >> 7;
    m->random ^= m->random << 17;
    return m->random * 0x2545f4914f6cdd1du;
}

uint64_t mutator_below(struct mutator *m, uint64_t n)
{
    return n > 0 ? (mutator_random(m) >> 16) % n : 0;
}

void mutate_bytes_simply(struct mutator *m, uint8_t *bytes, size_t size)
{
    for (uint64_t n = 1 + mutator_below(m, 4); n > 0; n--) {
        uint64_t at = mutator_below(m, size);

        switch (mutator_below(m, 4)) {
        case 0:
            bytes[at] = (uint8_t)mutator_random(m);
            break;
        case 1:
            bytes[at] = mutator_below(m, 2) == 0 ? 0 : 0xff;
            break;
        case 2:
            bytes[at] = bytes[mutator_below(m, size)];
            break;
        default:
            bytes[at] ^= (uint8_t)(1u << mutator_below(m, 8));
            break;
        }
    }
}
