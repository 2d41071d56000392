/* SPDX-License-Identifier: MIT */
/*
 * Change tracking: what the bitmaps say together, and when that is to be believed
 * (docs/change-tracking.md). The canaries follow from the generation, so that whoever reads the
 * image can check them, also without knowing who set them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "image/bitmap-internal.h"
#include "image/internal.h"

struct image_tracking {
    struct image_bitmap_bits *bits; /* of both bitmaps */
    uint8_t generation[IMAGE_BITMAP_GENERATION_SIZE];
};

/* --- Canaries --- */

/* Spreads: it need not be secret, only different for each generation. (The finalizer of
 * splitmix64.) */
static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

void image_tracking_canaries(const uint8_t generation[static IMAGE_BITMAP_GENERATION_SIZE],
                             uint64_t granules, uint64_t cluster_size,
                             uint64_t canaries[static IMAGE_BITMAP_CANARIES])
{
    const uint64_t parts = IMAGE_BITMAP_CANARIES - 1, cluster_bits = cluster_size * 8;
    uint64_t words[2];

    assert(granules >= IMAGE_BITMAP_GRANULES_MIN);
    memcpy(words, generation, sizeof(words));
    for (uint64_t i = 0; i < parts; i++) {
        /* Where the part's middle has its bit, and no farther than the part goes. */
        uint64_t part = (granules - 1) * i / parts, part_end = (granules - 1) * (i + 1) / parts;
        uint64_t cluster = (part + part_end) / 2 / cluster_bits * cluster_bits;
        uint64_t start = max_u64(part, cluster), end = min_u64(part_end, cluster + cluster_bits);
        uint64_t random = mix(mix(le64toh(words[0]) + i) ^ le64toh(words[1]));
        canaries[i] = start + random % (end - start);
    }
    canaries[parts] = granules - 1;
}

/* --- Reading --- */

int tracking_check_granules(const struct image *image, const struct image_bitmap_bits *bits,
                            const struct image_bitmap_bits *witness,
                            const struct image_bitmap_bits *generation, struct error *err)
{
    if (bits->granularity == witness->granularity && bits->granularity == generation->granularity &&
        bits->count >= IMAGE_BITMAP_GRANULES_MIN)
        return 0;
    return error_set(err, ESTALE,
                     "%s: bitmap '%s' has granules of %" PRIu64 " bytes, '%s' of %" PRIu64
                     ", and '%s' of %" PRIu64,
                     image_path(image), IMAGE_BITMAP_NAME, bits->granularity,
                     IMAGE_BITMAP_WITNESS_NAME, witness->granularity, IMAGE_BITMAP_GENERATION_NAME,
                     generation->granularity);
}

static int check_canaries(const struct image *image, const char *name,
                          const struct image_bitmap_bits *bits, const uint64_t *canaries,
                          struct error *err)
{
    for (size_t i = 0; i < IMAGE_BITMAP_CANARIES; i++)
        if (!bitmap_bit(bits->words, canaries[i]))
            return error_set(err, ESTALE,
                             "%s: bitmap '%s': bits are clear that had been set on purpose: it was "
                             "cleared, or removed and added again",
                             image_path(image), name);
    return 0;
}

static void merge(struct image_bitmap_bits *bits, const struct image_bitmap_bits *other)
{
    for (size_t i = 0; i < bits->word_count; i++)
        if (other->words[i] != 0)
            bits->words[i] |= other->words[i];
    bits->set_count = bitmap_count_set(bits->words, bits->word_count);
}

int image_tracking_load(struct image *image, struct image_tracking **ret, struct error *err)
{
    _cleanup_(bitmap_directory_clear_cleanup) struct bitmap_directory directory = {0};
    _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *bits = NULL, *witness = NULL;
    _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *generation = NULL;
    _cleanup_(image_tracking_free_cleanup) struct image_tracking *tracking = NULL;
    uint64_t canaries[IMAGE_BITMAP_CANARIES];

    int r = bitmap_directory_read(image, &directory, err);
    if (r == 0)
        r = bitmap_load(image, &directory, IMAGE_BITMAP_NAME, &bits, err);
    if (r == 0)
        r = bitmap_load(image, &directory, IMAGE_BITMAP_WITNESS_NAME, &witness, err);
    if (r == 0)
        r = bitmap_load(image, &directory, IMAGE_BITMAP_GENERATION_NAME, &generation, err);
    if (r == 0)
        r = tracking_check_granules(image, bits, witness, generation, err);
    if (r < 0)
        return r;
    tracking = calloc(1, sizeof(*tracking));
    if (tracking == NULL)
        return error_oom(err);
    image_bitmap_generation(generation, tracking->generation);
    image_tracking_canaries(tracking->generation, bits->count, bits->cluster_bits / 8, canaries);
    r = check_canaries(image, IMAGE_BITMAP_NAME, bits, canaries, err);
    if (r == 0)
        r = check_canaries(image, IMAGE_BITMAP_WITNESS_NAME, witness, canaries, err);
    if (r < 0)
        return r;
    merge(bits, witness);
    tracking->bits = TAKE_PTR(bits);
    *ret = TAKE_PTR(tracking);
    return 0;
}

void image_tracking_free(struct image_tracking *tracking)
{
    image_bitmap_free(tracking->bits);
    free(tracking);
}

const struct image_bitmap_bits *image_tracking_bits(const struct image_tracking *tracking)
{
    return tracking->bits;
}

const uint8_t *image_tracking_generation(const struct image_tracking *tracking)
{
    return tracking->generation;
}

bool image_tracking_clean(const struct image_tracking *tracking)
{
    return tracking->bits->set_count == IMAGE_BITMAP_CANARIES;
}
