/* SPDX-License-Identifier: MIT */
/*
 * Resetting change tracking, in place. docs/change-tracking.md tells why the order is as it is:
 *
 *     1. the new canaries' bits are set in both bitmaps, the generation becomes the new one; synced
 *     2. all other bits are cleared in both
 *
 * No bit is cleared while the old generation can still be read, whatever a crash leaves of the
 * writes before the sync: whoever believes the old generation finds every bit that was set. Whoever
 * believes the new one has seen its canaries, since step 2 writes them as they are. That bits are
 * not cleared, because a crash took that back, is never wrong.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/io.h"
#include "image/bitmap-internal.h"
#include "image/internal.h"

enum {
    BITMAPS = 2,  /* whose bits QEMU sets */
    PIECE = 4096, /* bytes that are written at once */
};
static const char *const names[BITMAPS] = {IMAGE_BITMAP_NAME, IMAGE_BITMAP_WITNESS_NAME};

struct reset {
    struct image *image;
    const char *path;
    int fd;
    struct bitmap_directory directory;
    struct image_bitmap_bits *bits[BITMAPS], *generation;
    uint64_t canaries[IMAGE_BITMAP_CANARIES]; /* in ascending order */
};

static void reset_clear(struct reset *reset)
{
    bitmap_directory_clear(&reset->directory);
    for (size_t b = 0; b < BITMAPS; b++)
        image_bitmap_free(reset->bits[b]);
    image_bitmap_free(reset->generation);
    cleanup_close(&reset->fd);
}
DEFINE_CLEANUP_INPLACE(struct reset, reset_clear);

/* --- What may be written --- */

/* Nothing is written where the image has something else: what it keeps there would be lost. */
static int check_cluster(const struct reset *reset, uint64_t offset, struct error *err)
{
    const struct qcow2_header *header = &reset->directory.header;
    const struct qcow2_extensions *extensions = &reset->directory.extensions;
    const uint64_t cluster_size = qcow2_cluster_size(header);
    const struct {
        const char *name;
        uint64_t offset, length;
    } taken[] = {
        {"the header", 0, cluster_size},
        {"the L1 table", header->l1_offset, header->l1_entries * UINT64_C(8)},
        {"the refcount table", reset->directory.refcount_table_offset,
         reset->directory.refcount_table_size},
        {"the snapshot table", header->snapshots_offset, header->snapshot_count > 0},
        {"the bitmap directory", extensions->bitmap_directory_offset,
         extensions->bitmap_directory_size},
        {"a bitmap table", reset->bits[0]->table_offset, reset->bits[0]->table_entries * 8},
        {"a bitmap table", reset->bits[1]->table_offset, reset->bits[1]->table_entries * 8},
        {"a bitmap table", reset->generation->table_offset, reset->generation->table_entries * 8},
    };

    for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++) {
        if (taken[i].length > 0 && offset < taken[i].offset + taken[i].length &&
            taken[i].offset < offset + cluster_size)
            return error_set(err, EINVAL,
                             "%s: the bitmap cluster at offset 0x%" PRIx64 " overlaps %s",
                             reset->path, offset, taken[i].name);
    }
    return 0;
}

static int compare_offsets(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static int check_clusters(const struct reset *reset, struct error *err)
{
    const struct image_bitmap_bits *all[] = {reset->bits[0], reset->bits[1], reset->generation};
    const size_t bitmaps = sizeof(all) / sizeof(all[0]);
    _cleanup_free_ uint64_t *offsets = NULL;
    size_t count = 0;

    offsets = calloc(bitmaps * all[0]->table_entries + 1, sizeof(*offsets));
    if (offsets == NULL)
        return error_oom(err);
    for (size_t b = 0; b < bitmaps; b++) {
        for (size_t i = 0; i < all[b]->table_entries; i++) {
            if (!bitmap_has_cluster(all[b], i))
                continue;
            int r = check_cluster(reset, all[b]->table[i], err);
            if (r < 0)
                return r;
            offsets[count++] = all[b]->table[i];
        }
    }
    qsort(offsets, count, sizeof(*offsets), compare_offsets);
    for (size_t i = 1; i < count; i++)
        if (offsets[i] == offsets[i - 1])
            return error_set(err, EINVAL,
                             "%s: two bitmap table entries have the cluster at offset 0x%" PRIx64,
                             reset->path, offsets[i]);
    return 0;
}

/* Whether everything that is to be rewritten has a cluster. */
static int check_allocated(const struct reset *reset, struct error *err)
{
    const char *missing = NULL;

    for (size_t b = 0; b < BITMAPS; b++) {
        const struct image_bitmap_bits *bits = reset->bits[b];
        for (size_t i = 0; i < bits->table_entries; i++)
            if (bits->table[i] == BITMAP_ONES)
                missing = names[b];
        for (size_t i = 0; i < IMAGE_BITMAP_CANARIES; i++)
            if (!bitmap_has_cluster(bits, (size_t)(reset->canaries[i] / bits->cluster_bits)))
                missing = names[b];
    }
    if (!bitmap_has_cluster(reset->generation, 0))
        missing = IMAGE_BITMAP_GENERATION_NAME;
    if (missing != NULL)
        return error_set(err, ENOTSUP,
                         "%s: bitmap '%s' has no clusters of its own that could be rewritten",
                         reset->path, missing);
    return 0;
}

/* --- Writing --- */

/* Sets those of `words`, the bitmap's bytes from `at` on, that are canaries. */
static void add_canaries(const struct reset *reset, size_t at, size_t length, uint64_t *words)
{
    for (size_t i = 0; i < IMAGE_BITMAP_CANARIES; i++)
        if (reset->canaries[i] / 8 >= at && reset->canaries[i] / 8 - at < length)
            bitmap_set_bit(words, reset->canaries[i] - at * UINT64_C(8));
}

/* Sets the canaries' bits and, unless others are `kept`, clears these. Only what differs is
 * written, a piece at a time. */
static int write_bits(struct reset *reset, struct image_bitmap_bits *bits, bool kept,
                      struct error *err)
{
    uint64_t piece[PIECE / sizeof(uint64_t)];

    for (size_t i = 0; i < bits->table_entries; i++) {
        size_t start = i * (size_t)(bits->cluster_bits / 8), end = start;

        if (!bitmap_has_cluster(bits, i))
            continue;
        end += bitmap_entry_bytes(bits, i);
        for (size_t at = start; at < end; at += PIECE) {
            uint8_t *to = (uint8_t *)bits->words + at;
            size_t length = min_u64(end - at, PIECE);
            memset(piece, 0, sizeof(piece));
            if (kept)
                memcpy(piece, to, length);
            add_canaries(reset, at, length, piece);
            if (memcmp(piece, to, length) == 0)
                continue;
            int r = io_write_at(reset->fd, reset->path, piece, length,
                                bits->table[i] + (at - start), err);
            if (r < 0)
                return r;
            memcpy(to, piece, length);
        }
    }
    return 0;
}

static int write_all(struct reset *reset,
                     const uint8_t generation[static IMAGE_BITMAP_GENERATION_SIZE],
                     struct error *err)
{
    int r = 0;

    for (size_t b = 0; r == 0 && b < BITMAPS; b++)
        r = write_bits(reset, reset->bits[b], true, err);
    if (r == 0)
        r = io_write_at(reset->fd, reset->path, generation, IMAGE_BITMAP_GENERATION_SIZE,
                        reset->generation->table[0], err);
    if (r == 0 && fdatasync(reset->fd) < 0)
        r = error_set_errno(err, errno, "%s: cannot sync", reset->path);
    for (size_t b = 0; r == 0 && b < BITMAPS; b++)
        r = write_bits(reset, reset->bits[b], false, err);
    return r;
}

static int load_bitmaps(struct reset *reset, struct error *err)
{
    int r = bitmap_directory_read(reset->image, &reset->directory, err);

    for (size_t b = 0; r == 0 && b < BITMAPS; b++)
        r = bitmap_load(reset->image, &reset->directory, names[b], &reset->bits[b], err);
    if (r == 0)
        r = bitmap_load(reset->image, &reset->directory, IMAGE_BITMAP_GENERATION_NAME,
                        &reset->generation, err);
    if (r < 0)
        return r;
    return tracking_check_granules(reset->image, reset->bits[0], reset->bits[1], reset->generation,
                                   err);
}

/* With the locks held. */
static int reset_locked(struct reset *reset,
                        const uint8_t generation[static IMAGE_BITMAP_GENERATION_SIZE],
                        struct error *err)
{
    int r = load_bitmaps(reset, err);
    if (r < 0)
        return r;
    image_tracking_canaries(generation, reset->bits[0]->count, reset->bits[0]->cluster_bits / 8,
                            reset->canaries);
    r = check_allocated(reset, err);
    if (r == 0)
        r = check_clusters(reset, err);
    if (r < 0)
        return r;
    return write_all(reset, generation, err);
}

int image_tracking_reset(struct image *image,
                         const uint8_t generation[static IMAGE_BITMAP_GENERATION_SIZE],
                         struct error *err)
{
    _cleanup_(reset_clear_cleanup) struct reset reset = {
        .image = image,
        .path = image_path(image),
        .fd = -1,
    };
    const struct host_file *file = layer_file(image->layers[0]);
    int r;

    r = image_bitmap_check_image(image, err);
    if (r < 0)
        return r;
    r = host_file_raise_open(file, &reset.fd, err);
    if (r < 0)
        return r;
    r = reset_locked(&reset, generation, err);
    if (r == 0)
        r = io_close_written(take_fd(&reset.fd), reset.path, err);
    host_file_lower(file);
    return r;
}
