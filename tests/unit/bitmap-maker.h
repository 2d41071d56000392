/* SPDX-License-Identifier: MIT */
#pragma once

/* Images with dirty bitmaps, made by hand. */
#include "qcow2-maker.h"

#include <errno.h>

#include "common/checked.h"
#include "image/bitmap.h"

/* 512-byte clusters, each of which has 4096 bits: the disk has 10003 granules, two whole clusters
 * of bits and a part of a third. */
enum {
    CLUSTER_BITS = 9,
    CLUSTER = 512,
    GRANULARITY_BITS = 16,
    GRANULARITY = 1 << GRANULARITY_BITS,
    GRANULES = 10003, /* a part of a byte, too */
    ENTRIES = 3,
    EXTENSION = 112, /* of the bitmaps, in the header's cluster */
};
#define DISK ((uint64_t)(GRANULES - 1) * GRANULARITY + 512)

enum { BITS, GENERATION, WITNESS, BITMAPS };

struct made {
    struct maker m;
    uint64_t directory;                 /* offset */
    uint64_t entry[BITMAPS];            /* offsets */
    uint64_t table[BITMAPS];            /* offsets */
    uint64_t cluster[BITMAPS][ENTRIES]; /* offsets */
    uint64_t last_entry_end;
};

static inline uint64_t put_entry(struct made *i, unsigned which, const char *name, uint32_t flags,
                                 uint64_t at)
{
    struct maker *m = &i->m;
    size_t length = strlen(name);

    i->entry[which] = at;
    put64(m, at, i->table[which]);
    put32(m, at + 8, ENTRIES);
    put32(m, at + 12, flags);
    m->bytes[at + 16] = 1;
    m->bytes[at + 17] = GRANULARITY_BITS;
    m->bytes[at + 19] = (uint8_t)length;
    memcpy(m->bytes + at + 24, name, length);
    return at + ((24 + length + 7) & ~(size_t)7);
}

static inline void set_bit_in(struct made *i, unsigned which, uint64_t bit)
{
    uint64_t entry = bit / (CLUSTER * 8), rest = bit % (CLUSTER * 8);

    i->m.bytes[i->cluster[which][entry] + rest / 8] |= (uint8_t)(1u << rest % 8);
}

/* All bitmaps, with all clusters; of bits, only the generation's last. */
static inline void make(struct made *i)
{
    struct maker *m = &i->m;

    memset(i, 0, sizeof(*i));
    maker_start(m, 3, CLUSTER_BITS, false, DISK);
    i->directory = maker_allocate(m, 1);
    for (unsigned which = 0; which < BITMAPS; which++) {
        i->table[which] = maker_allocate(m, 1);
        for (unsigned e = 0; e < ENTRIES; e++) {
            i->cluster[which][e] = maker_allocate(m, 1);
            put64(m, i->table[which] + e * 8, i->cluster[which][e]);
        }
    }
    uint64_t end = put_entry(i, 0, IMAGE_BITMAP_NAME, 2, i->directory);
    end = put_entry(i, GENERATION, IMAGE_BITMAP_GENERATION_NAME, 0, end);
    end = put_entry(i, WITNESS, IMAGE_BITMAP_WITNESS_NAME, 2, end);
    set_bit_in(i, 1, GRANULES - 1);
    put64(m, 88, 1);
    put32(m, EXTENSION, 0x23852875);
    put32(m, EXTENSION + 4, 24);
    put32(m, EXTENSION + 8, BITMAPS);
    put64(m, EXTENSION + 16, end - i->directory);
    put64(m, EXTENSION + 24, i->directory);
}

static inline struct image *open_made(const struct made *i)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image *image = NULL;

    maker_write(&i->m, "a");
    if (image_open("a", NULL, &image, &err) < 0)
        fail_msg("%s", error_message(&err));
    return image;
}

/* --- A naive model of what is looked up --- */

static inline bool naive_next(const bool *model, uint64_t offset, uint64_t *start, uint64_t *end)
{
    uint64_t bit = offset / GRANULARITY;

    while (bit < GRANULES && !model[bit])
        bit++;
    if (bit >= GRANULES)
        return false;
    *start = max_u64(offset, bit * GRANULARITY);
    while (bit < GRANULES && model[bit])
        bit++;
    *end = bit * GRANULARITY;
    return true;
}

static inline void compare(const struct image_bitmap_bits *bits, const bool *model, uint64_t offset)
{
    uint64_t start, end, expected_start, expected_end;
    bool expected = naive_next(model, offset, &expected_start, &expected_end);

    assert_int_equal(image_bitmap_next(bits, offset, &start, &end), expected);
    if (expected) {
        assert_int_equal(start, expected_start);
        assert_int_equal(end, expected_end);
    }
}

/* --- Change tracking --- */

static const uint8_t old_generation[IMAGE_BITMAP_GENERATION_SIZE] = "the old one....";
static const uint8_t new_generation[IMAGE_BITMAP_GENERATION_SIZE] = "quite a new one";
static uint64_t old_canaries[IMAGE_BITMAP_CANARIES], new_canaries[IMAGE_BITMAP_CANARIES];

/* An image that is tracked, with some granules written. */
static inline void make_tracked(struct made *i, bool *model, uint64_t *random)
{
    make(i);
    image_tracking_canaries(old_generation, GRANULES, CLUSTER, old_canaries);
    image_tracking_canaries(new_generation, GRANULES, CLUSTER, new_canaries);
    memset(model, 0, GRANULES * sizeof(*model));
    memcpy(i->m.bytes + i->cluster[GENERATION][0], old_generation, sizeof(old_generation));
    for (size_t n = 0; n < IMAGE_BITMAP_CANARIES; n++)
        model[old_canaries[n]] = true;
    for (unsigned n = 0; n < 300; n++)
        model[random_next(random) % GRANULES] = true;
    for (uint64_t bit = 0; bit < GRANULES; bit++)
        if (model[bit]) {
            set_bit_in(i, BITS, bit);
            set_bit_in(i, WITNESS, bit);
        }
}
