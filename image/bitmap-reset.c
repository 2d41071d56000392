/* SPDX-License-Identifier: MIT */
/*
 * Resetting change tracking, in place. docs/change-tracking.md tells why the order is as it is:
 *
 *     1. the canaries' bits are set          and synced
 *     2. the generation becomes the new one  and synced
 *     3. all other bits are cleared          and synced
 *
 * No bit is cleared while the old generation can still be read, whatever a crash leaves of the
 * writes between two syncs: whoever believes the old generation finds every bit that was set.
 * Whoever believes the new one finds the canaries, since step 3 writes them as they are.
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

struct reset {
    struct image *image;
    const char *path;
    int fd;
    struct bitmap_directory directory;
    struct image_bitmap_bits *bits, *generation;
    uint64_t *wanted; /* words, as bits->words: the canaries and nothing else */
};

static void reset_clear(struct reset *reset)
{
    bitmap_directory_clear(&reset->directory);
    image_bitmap_free(reset->bits);
    image_bitmap_free(reset->generation);
    free(reset->wanted);
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
        {"a bitmap table", reset->bits->table_offset, reset->bits->table_entries * 8},
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
    const struct image_bitmap_bits *both[] = {reset->bits, reset->generation};
    _cleanup_free_ uint64_t *offsets = NULL;
    size_t count = 0;

    offsets = calloc(both[0]->table_entries + both[1]->table_entries + 1, sizeof(*offsets));
    if (offsets == NULL)
        return error_oom(err);
    for (size_t b = 0; b < 2; b++) {
        for (size_t i = 0; i < both[b]->table_entries; i++) {
            if (!bitmap_has_cluster(both[b], i))
                continue;
            int r = check_cluster(reset, both[b]->table[i], err);
            if (r < 0)
                return r;
            offsets[count++] = both[b]->table[i];
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
static int check_allocated(const struct reset *reset, const uint64_t *canaries, uint32_t count,
                           struct error *err)
{
    const struct image_bitmap_bits *bits = reset->bits;
    const char *missing = NULL;

    for (size_t i = 0; i < bits->table_entries; i++)
        if (bits->table[i] == BITMAP_ONES)
            missing = IMAGE_BITMAP_NAME;
    for (uint32_t i = 0; i < count; i++)
        if (!bitmap_has_cluster(bits, (size_t)(canaries[i] / bits->cluster_bits)))
            missing = IMAGE_BITMAP_NAME;
    if (!bitmap_has_cluster(reset->generation, 0))
        missing = IMAGE_BITMAP_GENERATION_NAME;
    if (missing != NULL)
        return error_set(err, ENOTSUP,
                         "%s: bitmap '%s' has no clusters of its own that could be rewritten",
                         reset->path, missing);
    return 0;
}

static int check_canaries(const struct reset *reset, const uint64_t *canaries, uint32_t count,
                          struct error *err)
{
    for (uint32_t i = 0; i < count; i++)
        if (canaries[i] >= reset->bits->count || (i > 0 && canaries[i] <= canaries[i - 1]))
            return error_set(err, EINVAL, "%s: canary %" PRIu64 " is out of order or range",
                             reset->path, canaries[i]);
    if (count == 0 || canaries[count - 1] != reset->bits->count - 1)
        return error_set(err, EINVAL, "%s: the last granule is no canary", reset->path);
    return 0;
}

/* --- Writing --- */

static int sync_file(const struct reset *reset, struct error *err)
{
    if (fdatasync(reset->fd) < 0)
        return error_set_errno(err, errno, "%s: cannot sync", reset->path);
    return 0;
}

/* Writes the clusters whose bits differ from `words`, and takes them over. */
static int write_bits(struct reset *reset, const uint64_t *words, struct error *err)
{
    struct image_bitmap_bits *bits = reset->bits;

    for (size_t i = 0; i < bits->table_entries; i++) {
        size_t at = i * (size_t)(bits->cluster_bits / 8), length = bitmap_entry_bytes(bits, i);
        const uint8_t *from = (const uint8_t *)words + at;
        uint8_t *to = (uint8_t *)bits->words + at;

        if (!bitmap_has_cluster(bits, i) || memcmp(from, to, length) == 0)
            continue;
        int r = io_write_at(reset->fd, reset->path, from, length, bits->table[i], err);
        if (r < 0)
            return r;
        memcpy(to, from, length);
    }
    return sync_file(reset, err);
}

static int write_all(struct reset *reset,
                     const uint8_t generation[static IMAGE_BITMAP_GENERATION_SIZE],
                     struct error *err)
{
    struct image_bitmap_bits *bits = reset->bits;
    _cleanup_free_ uint64_t *superset = calloc(bits->word_count + 1, sizeof(*superset));
    int r;

    if (superset == NULL)
        return error_oom(err);
    for (size_t i = 0; i < bits->word_count; i++)
        if ((bits->words[i] | reset->wanted[i]) != 0)
            superset[i] = bits->words[i] | reset->wanted[i];
    r = write_bits(reset, superset, err);
    if (r < 0)
        return r;
    r = io_write_at(reset->fd, reset->path, generation, IMAGE_BITMAP_GENERATION_SIZE,
                    reset->generation->table[0], err);
    if (r == 0)
        r = sync_file(reset, err);
    if (r < 0)
        return r;
    return write_bits(reset, reset->wanted, err);
}

/* With the locks held. */
static int reset_locked(struct reset *reset, const uint64_t *canaries, uint32_t count,
                        const uint8_t generation[static IMAGE_BITMAP_GENERATION_SIZE],
                        struct error *err)
{
    int r;

    r = bitmap_directory_read(reset->image, &reset->directory, err);
    if (r == 0)
        r = bitmap_load(reset->image, &reset->directory, IMAGE_BITMAP_NAME, &reset->bits, err);
    if (r == 0)
        r = bitmap_load(reset->image, &reset->directory, IMAGE_BITMAP_GENERATION_NAME,
                        &reset->generation, err);
    if (r == 0)
        r = check_canaries(reset, canaries, count, err);
    if (r == 0)
        r = check_allocated(reset, canaries, count, err);
    if (r == 0)
        r = check_clusters(reset, err);
    if (r < 0)
        return r;
    reset->wanted = calloc(reset->bits->word_count + 1, sizeof(*reset->wanted));
    if (reset->wanted == NULL)
        return error_oom(err);
    for (uint32_t i = 0; i < count; i++)
        bitmap_set_bit(reset->wanted, canaries[i]);
    return write_all(reset, generation, err);
}

int image_bitmap_reset(struct image *image, const uint64_t *canaries, uint32_t canary_count,
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
    r = host_file_raise(file, &reset.fd, err);
    if (r < 0)
        return r;
    r = reset_locked(&reset, canaries, canary_count, generation, err);
    if (r == 0)
        r = io_close_written(take_fd(&reset.fd), reset.path, err);
    host_file_lower(file);
    return r;
}
