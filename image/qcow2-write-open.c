/* SPDX-License-Identifier: MIT */
/*
 * Which images are written to, and whether they are sound.
 *
 * Writing to an image whose refcounts are wrong can destroy it, so everything that the active
 * tables refer to is looked at first: each cluster must lie within the file, have one owner only,
 * and a refcount of exactly 1, and its entry must say so. That costs a read of the L2 tables and of
 * the refcount blocks of what the overlay has. Clusters that are counted but belong to nobody are
 * no harm; a process that was killed leaves them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "common/io.h"
#include "image/qcow2-format.h"
#include "image/qcow2-writer.h"
#include "image/write.h"

enum {
    HEADER_REFCOUNT_TABLE = 48,
    HEADER_REFCOUNT_TABLE_CLUSTERS = 56,
    HEADER_AUTOCLEAR = 88,
};

#define REPAIR "repair the image with qemu-img check -r all"

/* --- Who owns which cluster --- */

struct owners {
    struct qcow2_writer *w;
    uint64_t *seen; /* a bit for each cluster of the file */
};

static void owners_clear(struct owners *owners)
{
    free(owners->seen);
}
DEFINE_CLEANUP_INPLACE(struct owners, owners_clear);

/* `what` and `index` are for messages. */
static int claim(struct owners *o, uint64_t offset, const char *what, uint64_t index,
                 struct error *err)
{
    struct qcow2_writer *w = o->w;
    uint64_t cluster = offset >> w->cluster_bits;
    unsigned count;

    if ((offset & (cluster_size_of(w) - 1)) != 0 || cluster >= w->next)
        return error_set(err, EINVAL,
                         "%s: %s %" PRIu64 ": 0x%" PRIx64 " is no cluster within the file; " REPAIR,
                         w->path, what, index, offset);
    if ((o->seen[cluster / 64] >> (cluster % 64) & 1) != 0)
        return error_set(err, EINVAL,
                         "%s: %s %" PRIu64 ": the cluster at 0x%" PRIx64 " is used twice; " REPAIR,
                         w->path, what, index, offset);
    o->seen[cluster / 64] |= (uint64_t)1 << (cluster % 64);
    int r = qcow2_refcount(w, cluster, &count, err);
    if (r < 0)
        return r;
    if (count != 1)
        return error_set(err, EINVAL,
                         "%s: %s %" PRIu64 ": the cluster at 0x%" PRIx64
                         " has refcount %u, and must have 1; " REPAIR,
                         w->path, what, index, offset, count);
    return 0;
}

static int claim_range(struct owners *o, uint64_t offset, uint64_t length, const char *what,
                       struct error *err)
{
    uint64_t count = div_round_up(length, cluster_size_of(o->w));

    for (uint64_t i = 0; i < count; i++) {
        int r = claim(o, offset + (i << o->w->cluster_bits), what, i, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int check_l2_entry(struct owners *o, uint64_t cluster, uint64_t entry, struct error *err)
{
    const struct qcow2_writer *w = o->w;
    uint64_t host = entry & QCOW2_L2_OFFSET_MASK;

    if ((entry & QCOW2_L2_COMPRESSED) != 0)
        return error_set(err, ENOTSUP,
                         "%s: the overlay has compressed clusters (the first at disk offset "
                         "0x%" PRIx64 "), which are not written here",
                         w->path, cluster << w->cluster_bits);
    if ((entry & QCOW2_L2_RESERVED_MASK) != 0)
        return error_set(err, EINVAL,
                         "%s: L2 entry 0x%016" PRIx64 " of cluster %" PRIu64
                         " has reserved bits set",
                         w->path, entry, cluster);
    if (((entry & QCOW2_L2_COPIED) != 0) != (host != 0))
        return error_set(err, EINVAL,
                         "%s: L2 entry 0x%016" PRIx64 " of cluster %" PRIu64
                         ": the flag for a refcount of 1 is wrong; " REPAIR,
                         w->path, entry, cluster);
    return host != 0 ? claim(o, host, "cluster", cluster, err) : 0;
}

static int check_l2_table(struct owners *o, size_t index, uint64_t *entries, struct error *err)
{
    struct qcow2_writer *w = o->w;
    uint64_t first = (uint64_t)index << w->l2_bits;
    int r;

    r = claim(o, w->l1[index], "L1 entry", index, err);
    if (r == 0)
        r = io_read_at(w->fd, w->path, entries, (size_t)cluster_size_of(w), w->l1[index], err);
    for (size_t i = 0; r == 0 && i < (size_t)1 << w->l2_bits; i++)
        r = check_l2_entry(o, first + i, be64toh(entries[i]), err);
    return r;
}

static int check_owners(struct qcow2_writer *w, struct error *err)
{
    _cleanup_(owners_clear_cleanup) struct owners o = {
        .w = w,
        .seen = calloc((size_t)div_round_up(w->next, 64), 8),
    };
    _cleanup_free_ uint64_t *entries = malloc((size_t)cluster_size_of(w));
    int r;

    if (o.seen == NULL || entries == NULL)
        return error_oom(err);
    r = claim(&o, 0, "header cluster", 0, err);
    if (r == 0)
        r = claim_range(&o, w->refcount_table_offset, w->refcount_table_entries * 8,
                        "refcount table cluster", err);
    for (size_t i = 0; r == 0 && i < w->refcount_table_entries; i++) {
        if (w->refcount_table[i] != 0)
            r = claim(&o, w->refcount_table[i], "refcount table entry", i, err);
    }
    if (r == 0)
        r = claim_range(&o, w->l1_offset, w->l1_entries * 8, "L1 table cluster", err);
    for (size_t i = 0; r == 0 && i < w->l1_entries; i++) {
        if (w->l1[i] != 0)
            r = check_l2_table(&o, i, entries, err);
    }
    return r;
}

/* --- Opening --- */

static int check_kind(const struct layer *layer, const struct qcow2_header *header,
                      struct error *err)
{
    const struct image_info *info = &layer->info;
    const char *path = layer_path(layer);

    if (header->version != 3)
        return error_set(err, ENOTSUP,
                         "%s: the overlay is a version %u image, and only version 3 is written",
                         path, header->version);
    if (info->dirty)
        return error_set(err, ENOTSUP,
                         "%s: the overlay is marked dirty: it was not closed properly; " REPAIR,
                         path);
    if (info->corrupt)
        return error_set(err, ENOTSUP, "%s: the overlay is marked corrupt; " REPAIR, path);
    if (info->encryption != NULL)
        return error_set(err, ENOTSUP, "%s: encrypted overlays are not written", path);
    if ((header->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE) != 0)
        return error_set(err, ENOTSUP,
                         "%s: the overlay has an external data file, which is not written", path);
    if (info->extended_l2)
        return error_set(err, ENOTSUP,
                         "%s: the overlay has extended L2 entries, which are not written", path);
    if (info->refcount_bits != 16)
        return error_set(err, ENOTSUP,
                         "%s: the overlay has refcounts of %u bits, and only 16 are written", path,
                         info->refcount_bits);
    if (info->snapshot_count > 0)
        return error_set(err, ENOTSUP,
                         "%s: the overlay has internal snapshots, which would have to be kept; "
                         "delete them with qemu-img snapshot -d",
                         path);
    if (info->bitmap_count > 0)
        return error_set(err, ENOTSUP,
                         "%s: the overlay has dirty bitmaps, which would have to be kept up to "
                         "date; remove them with qemu-img bitmap --remove",
                         path);
    return 0;
}

/* The L1 table as far as the disk goes. */
static int load_l1(struct qcow2_writer *w, const struct qcow2_header *header, struct error *err)
{
    int r;

    w->l1_offset = header->l1_offset;
    w->l1_entries = (size_t)qcow2_l1_entries_needed(header, w->layer->size);
    w->l1 = calloc(w->l1_entries + 1, sizeof(w->l1[0]));
    w->l2 = calloc(w->l1_entries + 1, sizeof(w->l2[0]));
    if (w->l1 == NULL || w->l2 == NULL)
        return error_oom(err);
    r = io_read_at(w->fd, w->path, w->l1, w->l1_entries * 8, w->l1_offset, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < w->l1_entries; i++) {
        uint64_t entry = be64toh(w->l1[i]);

        if ((entry & QCOW2_L1_RESERVED_MASK) != 0)
            return error_set(err, EINVAL,
                             "%s: L1 entry %zu (0x%016" PRIx64 ") has reserved bits set", w->path,
                             i, entry);
        w->l1[i] = entry & QCOW2_L1_OFFSET_MASK;
        if (((entry & QCOW2_L2_COPIED) != 0) != (w->l1[i] != 0))
            return error_set(err, EINVAL,
                             "%s: L1 entry %zu (0x%016" PRIx64
                             "): the flag for a refcount of 1 is wrong; " REPAIR,
                             w->path, i, entry);
    }
    return 0;
}

/* Fills the file up to a whole cluster, so that all of its clusters can be read. */
static int align_file(struct qcow2_writer *w, uint64_t size, struct error *err)
{
    uint64_t aligned = cluster_align_up(w, size);

    if (aligned != size && ftruncate(w->fd, (off_t)aligned) < 0)
        return error_set_errno(err, errno, "%s: cannot set the size", w->path);
    w->next = aligned >> w->cluster_bits;
    return 0;
}

/* Optional features that are not known here stop being true with the first write. */
static int clear_features(struct qcow2_writer *w, const struct qcow2_header *header,
                          struct error *err)
{
    static const uint8_t none[8];

    if (header->autoclear == 0)
        return 0;
    int r = io_write_at(w->fd, w->path, none, sizeof(none), HEADER_AUTOCLEAR, err);
    if (r < 0)
        return r;
    if (fdatasync(w->fd) < 0)
        return error_set_errno(err, errno, "%s: cannot synchronize", w->path);
    return 0;
}

static int writer_load(struct qcow2_writer *w, const uint8_t *bytes,
                       const struct qcow2_header *header, struct error *err)
{
    uint64_t size = layer_file(w->layer)->file.size;
    int r;

    w->cluster_bits = header->cluster_bits;
    w->l2_bits = header->cluster_bits - 3;
    w->refcount_bits = header->cluster_bits - 1;
    w->next = div_round_up(size, cluster_size_of(w));
    r = load_l1(w, header, err);
    if (r == 0)
        r = qcow2_refcounts_load(w, get_be64(bytes + HEADER_REFCOUNT_TABLE),
                                 get_be32(bytes + HEADER_REFCOUNT_TABLE_CLUSTERS), err);
    if (r == 0)
        r = check_owners(w, err);
    if (r == 0)
        r = align_file(w, size, err);
    return r < 0 ? r : clear_features(w, header, err);
}

int qcow2_writer_open(struct layer *layer, struct error *err)
{
    const struct image_file *file = &layer_file(layer)->file;
    uint8_t bytes[QCOW2_HEADER_READ] = {0};
    struct qcow2_header header;
    int r;

    ssize_t length = io_read_some_at(file->fd, file->path, bytes, sizeof(bytes), 0, err);
    if (length < 0)
        return (int)length;
    r = qcow2_header_parse(bytes, (size_t)length, file->size, &header, err);
    if (r < 0)
        return error_prefix(err, "%s", file->path);
    r = check_kind(layer, &header, err);
    if (r < 0)
        return r;

    struct qcow2_writer *w = calloc(1, sizeof(*w));
    if (w == NULL)
        return error_oom(err);
    w->layer = layer;
    w->fd = file->fd;
    w->path = file->path;
    pthread_mutex_init(&w->lock, NULL);
    pthread_mutex_init(&w->flush_lock, NULL);
    pthread_cond_init(&w->allocated, NULL);
    r = writer_load(w, bytes, &header, err);
    if (r < 0) {
        qcow2_writer_free(w);
        return r;
    }
    /* From here on the tables are the writer's; whoever only reads asks it as well. */
    layer->ops->close(layer);
    layer->state = w;
    layer->ops = &qcow2_writer_ops;
    return 0;
}

/* --- Overlays --- */

/* Whether the overlay is one of the image that is meant. */
static int check_backing(const struct image *overlay, const struct image *base, struct error *err)
{
    const char *path = image_path(overlay);

    if (overlay->layer_count < 2)
        return error_set(err, EINVAL, "%s: exists, and is no overlay of %s: it has no backing file",
                         path, image_path(base));
    const struct layer *below = overlay->layers[1];
    const struct host_file *file = layer_file(below), *wanted = layer_file(base->layers[0]);
    if (file->device != wanted->device || file->inode != wanted->inode)
        return error_set(err, EINVAL, "%s: exists, and is no overlay of %s: its backing file is %s",
                         path, image_path(base), file->file.path);
    if (strcmp(below->info.format, base->layers[0]->info.format) != 0)
        return error_set(err, EINVAL,
                         "%s: the overlay takes %s for a %s image, and not for a %s image", path,
                         image_path(base), below->info.format, base->layers[0]->info.format);
    if (image_size(overlay) != image_size(base))
        return error_set(err, EINVAL, "%s: the overlay has %" PRIu64 " bytes, and %s has %" PRIu64,
                         path, image_size(overlay), image_path(base), image_size(base));
    return 0;
}

/* The image and what is below it are never written to. */
static int check_not_below(const char *path, const struct stat *st, const struct image *base,
                           struct error *err)
{
    for (size_t i = 0; i < base->file_count; i++) {
        if (base->files[i]->device == st->st_dev && base->files[i]->inode == st->st_ino)
            return error_set(err, EINVAL, "%s: is no overlay, but belongs to the image %s itself",
                             path, image_path(base));
    }
    return 0;
}

int image_open_overlay(const char *path, const struct image_options *options,
                       const char *overlay_path, struct image **ret, struct error *err)
{
    _cleanup_image_ struct image *base = NULL, *overlay = NULL;
    struct stat st;
    int r;

    if (options != NULL && options->snapshot != NULL)
        return error_set(err, ENOTSUP, "%s: an overlay cannot be on top of an internal snapshot",
                         overlay_path);
    r = image_open(path, options, &base, err);
    if (r < 0)
        return r;
    if (stat(overlay_path, &st) == 0)
        r = check_not_below(overlay_path, &st, base, err);
    else if (errno == ENOENT)
        r = qcow2_overlay_create(overlay_path, base, err);
    else
        r = error_set_errno(err, errno, "%s: cannot stat", overlay_path);
    if (r < 0)
        return r;
    r = image_open_for_writing(overlay_path, options, &overlay, err);
    if (r == 0)
        r = check_backing(overlay, base, err);
    if (r == 0)
        r = qcow2_writer_open(overlay->layers[0], err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(overlay);
    return 0;
}
