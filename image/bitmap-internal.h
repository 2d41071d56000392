/* SPDX-License-Identifier: MIT */
#pragma once

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image/bitmap.h"
#include "image/qcow2-format.h"

enum {
    BITMAP_BYTES_MAX = 64 << 20, /* of bits in memory */
    BITMAP_WORD_BITS = 64,
};

/* Entries of a bitmap's table that are no offsets. */
#define BITMAP_ZEROS UINT64_C(0)
#define BITMAP_ONES UINT64_C(1)

struct image_bitmap_bits {
    uint64_t granularity; /* bytes */
    uint64_t count;       /* bits */
    uint64_t set_count;   /* of them set */
    uint64_t table_offset;
    uint64_t cluster_bits; /* bits that one table entry stands for */
    size_t table_entries;
    uint64_t *table; /* BITMAP_ZEROS, BITMAP_ONES, or the offset of a data cluster */
    size_t word_count;
    uint64_t *words; /* little-endian, as in the file; behind `count` they are clear */
};

static inline bool bitmap_has_cluster(const struct image_bitmap_bits *bits, size_t entry)
{
    return bits->table[entry] != BITMAP_ZEROS && bits->table[entry] != BITMAP_ONES;
}

static inline bool bitmap_bit(const uint64_t *words, uint64_t number)
{
    return (le64toh(words[number / BITMAP_WORD_BITS]) >> number % BITMAP_WORD_BITS & 1) != 0;
}

static inline void bitmap_set_bit(uint64_t *words, uint64_t number)
{
    words[number / BITMAP_WORD_BITS] |= htole64((uint64_t)1 << number % BITMAP_WORD_BITS);
}

static inline uint64_t bitmap_count_set(const uint64_t *words, size_t word_count)
{
    uint64_t count = 0;

    /* Nearly all of them are zero, and not every CPU that we are built for counts bits. */
    for (size_t i = 0; i < word_count; i++)
        if (words[i] != 0)
            count += (uint64_t)__builtin_popcountll(words[i]);
    return count;
}

/* The bytes of bits that table entry `entry` stands for, as far as the bitmap goes. */
static inline size_t bitmap_entry_bytes(const struct image_bitmap_bits *bits, size_t entry)
{
    uint64_t total = div_round_up(bits->count, 8), at = entry * (bits->cluster_bits / 8);

    return (size_t)min_u64(bits->cluster_bits / 8, total - at);
}

/* What an image's header and bitmap directory say. */
struct bitmap_directory {
    struct qcow2_header header;
    struct qcow2_extensions extensions;
    uint64_t refcount_table_offset, refcount_table_size; /* bytes */
    uint8_t *bytes;                                      /* of the directory */
    struct image_bitmap *bitmaps;
};

int bitmap_directory_read(struct image *image, struct bitmap_directory *ret, struct error *err);
void bitmap_directory_clear(struct bitmap_directory *directory);
DEFINE_CLEANUP_INPLACE(struct bitmap_directory, bitmap_directory_clear);

/* As image_bitmap_load(), from a directory that was read before. */
int bitmap_load(struct image *image, const struct bitmap_directory *directory, const char *name,
                struct image_bitmap_bits **ret, struct error *err);

/* --- tracking.c --- */

/* -ESTALE if they do not have the same granules. */
int tracking_check_granules(const struct image *image, const struct image_bitmap_bits *bits,
                            const struct image_bitmap_bits *witness,
                            const struct image_bitmap_bits *generation, struct error *err);
