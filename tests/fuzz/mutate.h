/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>
#include <stdint.h>

/*
 * Random numbers, and mutations that know how a qcow2 image is laid out. The same seed gives the
 * same mutation.
 */

struct mutator {
    uint8_t *bytes;
    size_t size; /* bytes that there are; may grow up to `room` */
    size_t room;
    uint64_t random; /* not 0 */

    /* Changes some of `size` bytes without knowing what they are; there are as many afterwards. */
    void (*mutate_bytes)(struct mutator *m, uint8_t *bytes, size_t size);
};

/* A seed of any value, made into a state. */
uint64_t mutator_seed(uint64_t seed);
uint64_t mutator_random(struct mutator *m);
/* Below `n`; 0 if that is 0. */
uint64_t mutator_below(struct mutator *m, uint64_t n);

/* What mutate_bytes is where there is no fuzzer: flips bits, sets and moves bytes, at random. */
void mutate_bytes_simply(struct mutator *m, uint8_t *bytes, size_t size);

/* Changes some fields, table entries, or compressed data of a qcow2 image, or cuts it or makes it
 * longer. Bytes that are no image are changed, too. */
void qcow2_mutate(struct mutator *m);
