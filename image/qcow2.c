/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 backend.
 *
 * A disk offset is looked up in two steps: the L1 table, which is in memory as far as the disk
 * reaches, gives the L2 table; its entry, from the cache of L2 slices, gives the cluster. map()
 * looks at a part of one L2 slice, or at one run of empty L1 entries, which is how half a
 * terabyte that is not allocated costs next to nothing.
 *
 * AES-encrypted images are looked up here as well; only the bytes of their allocated clusters come
 * from libqcow, which is asked for nothing else: not for zero clusters, nor for what a backing file
 * has.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/io.h"
#include "common/log.h"
#include "image/cluster-cache.h"
#include "image/decompress.h"
#include "image/internal.h"
#include "image/l2-cache.h"
#include "image/qcow1.h"
#include "image/qcow2-format.h"

enum {
    FIRST_READ = 64 << 10, /* bytes of the first cluster that are read at once */
    L1_SCAN_MAX = 16384,   /* empty L1 entries that one map() looks at */
    L2_SCAN_FIRST = 8, /* L2 entries that are looked at before more are copied out of the cache */
    L2_SCAN_MAX = 128, /* L2 entries that one map() looks at */
};

struct qcow2 {
    struct qcow2_header header;
    struct qcow2_geometry geometry;
    uint64_t *l1; /* offsets of L2 tables, 0 for none; as many as the disk needs */
    size_t l1_entries;
    unsigned l1_shift;          /* disk bytes that an L1 entry covers, as a power of two */
    size_t slice_bytes;         /* of L2 tables */
    unsigned slice_entry_shift; /* log2 of the L2 entries in a slice */
    size_t data_file;           /* number of the host file that has the clusters */
    struct decompressor_pool *pool;
    struct qcow1 *decrypter; /* AES only */
};

/* --- Looking up --- */

static int map_empty_l1(const struct qcow2 *q, size_t index, uint64_t offset, uint64_t length,
                        struct piece *ret)
{
    size_t end = index + 1;
    size_t limit = (size_t)min_u64(q->l1_entries, index + (uint64_t)L1_SCAN_MAX);

    while (end < limit && q->l1[end] == 0)
        end++;
    *ret = (struct piece){
        .kind = PIECE_UNALLOCATED,
        .length = min_u64(length, ((uint64_t)end << q->l1_shift) - offset),
    };
    return 0;
}

static enum piece_kind piece_kind_of(const struct qcow2 *q, enum qcow2_kind kind)
{
    switch (kind) {
    case QCOW2_UNALLOCATED:
        return PIECE_UNALLOCATED;
    case QCOW2_ZERO:
        return PIECE_ZERO;
    case QCOW2_DATA:
        return q->decrypter != NULL ? PIECE_OPAQUE : PIECE_DATA;
    case QCOW2_COMPRESSED:
        return PIECE_COMPRESSED;
    }
    assert(false);
    return PIECE_UNALLOCATED;
}

/*
 * How many entries behind the first go on with what it says, which is in order. Only what can be
 * seen by comparing words: it is for the long runs, most of an image, and may stop too early.
 */
static size_t count_alike(const struct qcow2_geometry *g, const uint64_t *entries, size_t count,
                          const struct qcow2_run *run, uint64_t offset)
{
    uint64_t cluster_size = (uint64_t)1 << g->cluster_bits;
    uint64_t word = entries[0], step = 0;
    size_t n = 1;

    if (run->kind == QCOW2_DATA) {
        uint64_t host = run->host_offset - (offset & (cluster_size - 1));
        uint64_t limit = min_u64(g->data_size, QCOW2_HOST_OFFSET_LIMIT);

        count = (size_t)min_u64(count, (limit - host) >> g->cluster_bits);
        step = cluster_size;
    } else if ((word & ~QCOW2_L2_ZERO) != 0) {
        return 0;
    }
    if (g->entry_words == 1) {
        while (n < count && entries[n] == (word += step))
            n++;
    } else {
        /* All subclusters must be of that one kind. */
        uint64_t bitmap = run->kind == QCOW2_DATA   ? UINT32_MAX
                          : run->kind == QCOW2_ZERO ? (uint64_t)UINT32_MAX << 32
                                                    : 0;
        if (entries[1] != bitmap)
            return 0;
        while (n < count && entries[2 * n] == (word += step) && entries[2 * n + 1] == bitmap)
            n++;
    }
    return n - 1;
}

/* The longest run of one kind at `offset`, from its entry and those that follow it. */
static int scan_entries(const struct qcow2_geometry *g, const uint64_t *entries, size_t count,
                        uint64_t offset, uint64_t length, struct qcow2_run *ret, struct error *err)
{
    struct qcow2_run run, next;
    uint64_t alike;
    int r;

    r = qcow2_entry_decode(g, entries, offset, &run, err);
    if (r < 0)
        return r;
    if (run.length < length && run.kind != QCOW2_COMPRESSED) {
        alike = count_alike(g, entries, count, &run, offset);
        run.length += alike << g->cluster_bits;
    }
    while (run.length < length && run.kind != QCOW2_COMPRESSED) {
        uint64_t at = offset + run.length;
        size_t index = (size_t)((at >> g->cluster_bits) - (offset >> g->cluster_bits));

        /* A wrong entry is told when it is its turn. */
        if (index >= count ||
            qcow2_entry_decode(g, entries + index * g->entry_words, at, &next, NULL) < 0 ||
            next.kind != run.kind ||
            (run.kind == QCOW2_DATA && next.host_offset != run.host_offset + run.length))
            break;
        run.length += next.length;
    }
    run.length = min_u64(run.length, length);
    *ret = run;
    return 0;
}

/* The run at `offset`, as far as the L2 slice that has its entry, and L2_SCAN_MAX, let it be seen.
 */
static int map_slice(const struct layer *layer, uint64_t table, uint64_t offset, uint64_t length,
                     struct qcow2_run *ret, struct error *err)
{
    const struct qcow2 *q = layer->state;
    const struct qcow2_geometry *g = &q->geometry;
    uint64_t words[2 * L2_SCAN_MAX];
    uint64_t slice_entries = (uint64_t)1 << q->slice_entry_shift;
    uint64_t entry = (offset & (((uint64_t)1 << q->l1_shift) - 1)) >> g->cluster_bits;
    uint64_t slice = table + (entry >> q->slice_entry_shift) * q->slice_bytes;
    uint64_t behind = table + ((uint64_t)1 << g->cluster_bits) - slice - q->slice_bytes;
    size_t first = (size_t)(entry & (slice_entries - 1));
    uint64_t in_cluster = offset & (((uint64_t)1 << g->cluster_bits) - 1);
    uint64_t wanted =
        min_u64(slice_entries - first,
                (in_cluster + length + ((uint64_t)1 << g->cluster_bits) - 1) >> g->cluster_bits);
    size_t count = (size_t)min_u64(wanted, L2_SCAN_FIRST);

    /* Many runs are short: most of them are seen whole in the first few entries. */
    for (;;) {
        int r = l2_cache_read(layer->image->l2_cache, layer->depth, &layer_file(layer)->file, slice,
                              q->slice_bytes, behind, first * g->entry_words,
                              count * g->entry_words, words, err);
        if (r < 0)
            return r;
        r = scan_entries(g, words, count, offset, length, ret, err);
        if (r < 0)
            return error_prefix(err, "%s", layer_path(layer));
        size_t most = (size_t)min_u64(wanted, L2_SCAN_MAX);
        if (count == most || in_cluster + ret->length < (uint64_t)count << g->cluster_bits)
            return 0;
        count = most;
    }
}

static int qcow2_map(struct layer *layer, uint64_t offset, uint64_t length, struct piece *ret,
                     struct error *err)
{
    const struct qcow2 *q = layer->state;
    size_t l1_index = (size_t)(offset >> q->l1_shift);
    struct qcow2_run run;

    assert(l1_index < q->l1_entries);
    uint64_t table = q->l1[l1_index];
    if (table == 0)
        return map_empty_l1(q, l1_index, offset, length, ret);
    int r = map_slice(layer, table, offset, length, &run, err);
    if (r < 0)
        return r;
    *ret = (struct piece){
        .kind = piece_kind_of(q, run.kind),
        .length = run.length,
        .file = run.kind == QCOW2_COMPRESSED ? layer->file : q->data_file,
        .host_offset = run.host_offset,
        .descriptor = run.descriptor,
    };
    return 0;
}

/* --- Reading what is no plain data --- */

/* The cluster of an L2 entry. */
static int fill_cluster(void *context, uint64_t descriptor, void *cluster, size_t size,
                        struct error *err)
{
    const struct layer *layer = context;
    const struct qcow2 *q = layer->state;
    uint64_t offset, length;
    int r;

    r = qcow2_compressed_decode(&q->geometry, descriptor, &offset, &length, err);
    if (r < 0)
        return error_prefix(err, "%s", layer_path(layer));
    return decompress_cluster(q->pool, q->header.compression, &layer_file(layer)->file, offset,
                              length, cluster, size, err);
}

/* Puts it behind the file's name, with which the error begins. */
static int add_disk_offset(const struct layer *layer, uint64_t offset, struct error *err)
{
    const char *path = layer_path(layer);
    const size_t length = strlen(path);

    if (err == NULL)
        return -EIO;
    const char *rest = error_message(err);
    if (strncmp(rest, path, length) == 0 && strncmp(rest + length, ": ", 2) == 0)
        rest += length + 2;
    return error_set(err, err->code, "%s: disk offset 0x%" PRIx64 ": %s", path, offset, rest);
}

static int qcow2_read(struct layer *layer, const struct piece *piece, uint64_t offset, void *buffer,
                      size_t length, struct error *err)
{
    const struct qcow2 *q = layer->state;

    if (piece->kind == PIECE_OPAQUE)
        return qcow1_read(q->decrypter, offset, buffer, length, err);

    uint64_t cluster_size = qcow2_cluster_size(&q->header);
    int r = cluster_cache_read(layer->image->cluster_cache, layer->depth, piece->descriptor,
                               (size_t)cluster_size, fill_cluster, layer,
                               (size_t)(offset & (cluster_size - 1)), buffer, length, err);
    return r < 0 ? add_disk_offset(layer, offset, err) : 0;
}

static void qcow2_close(struct layer *layer)
{
    struct qcow2 *q = layer->state;

    if (q == NULL)
        return;
    free(q->l1);
    decompressor_pool_free(q->pool);
    if (q->decrypter != NULL)
        qcow1_close(q->decrypter);
    free(q);
}

static const struct layer_ops qcow2_ops = {
    .map = qcow2_map,
    .read = qcow2_read,
    .close = qcow2_close,
};

/* --- Opening --- */

static int read_header(struct layer *layer, struct qcow2_header *header,
                       struct qcow2_extensions *extensions, struct error *err)
{
    const struct image_file *file = &layer_file(layer)->file;
    _cleanup_free_ uint8_t *cluster = malloc(FIRST_READ);
    int r;

    if (cluster == NULL)
        return error_oom(err);
    ssize_t length = io_read_some_at(file->fd, file->path, cluster, FIRST_READ, 0, err);
    if (length < 0)
        return (int)length;
    r = qcow2_header_parse(cluster, (size_t)length, file->size, header, err);
    if (r < 0)
        return error_prefix(err, "%s", file->path);

    size_t cluster_size = (size_t)qcow2_cluster_size(header);
    if (cluster_size > FIRST_READ) {
        free(cluster);
        cluster = malloc(cluster_size);
        if (cluster == NULL)
            return error_oom(err);
        length = io_read_some_at(file->fd, file->path, cluster, cluster_size, 0, err);
        if (length < 0)
            return (int)length;
    }
    r = qcow2_extensions_parse(cluster, (size_t)min_u64((uint64_t)length, cluster_size), header,
                               file->size, extensions, err);
    if (r < 0)
        return error_prefix(err, "%s", file->path);
    return 0;
}

/* Refuses what is known and not supported, or not to be trusted. */
static int check_header(const struct layer *layer, const struct qcow2_header *header,
                        const struct qcow2_extensions *extensions,
                        const struct image_options *options, struct error *err)
{
    const char *path = layer_path(layer);
    bool data_file = (header->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE) != 0;

    if (header->encryption == QCOW2_ENCRYPTION_LUKS)
        return error_set(err, ENOTSUP, "%s: LUKS encryption is not supported", path);
    if ((header->incompatible & QCOW2_INCOMPATIBLE_CORRUPT) != 0) {
        if (!options->force)
            return error_set(err, EINVAL,
                             "%s: the image is marked corrupt; repair it with qemu-img check, or "
                             "read it as it is with --force",
                             path);
        log_warning("%s: the image is marked corrupt, and read as it is", path);
    }
    if ((header->incompatible & QCOW2_INCOMPATIBLE_DIRTY) != 0)
        log_warning("%s: the image is marked dirty: it was not closed properly", path);
    if (data_file && extensions->data_file == NULL)
        return error_set(err, EINVAL, "%s: the external data file's name is missing", path);
    bool raw = (header->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW) != 0;
    if (raw && !data_file)
        return error_set(err, EINVAL, "%s: the external data file is marked raw, and there is none",
                         path);
    if (raw && extensions->backing_file != NULL)
        return error_set(err, EINVAL,
                         "%s: a raw external data file and a backing file exclude each other",
                         path);
    if (data_file && header->encryption != QCOW2_ENCRYPTION_NONE)
        return error_set(err, ENOTSUP, "%s: encryption with an external data file is not supported",
                         path);
    if (options->snapshot != NULL && header->encryption != QCOW2_ENCRYPTION_NONE)
        return error_set(err, ENOTSUP, "%s: snapshots of encrypted images are not supported", path);
    return 0;
}

/* Reads a table of the file; *ret is the caller's. The table lies within the file. */
static int read_table(const struct layer *layer, uint64_t offset, size_t length, void **ret,
                      struct error *err)
{
    const struct image_file *file = &layer_file(layer)->file;
    _cleanup_free_ void *table = malloc(length > 0 ? length : 1);

    if (table == NULL)
        return error_oom(err);
    int r = io_read_at(file->fd, file->path, table, length, offset, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(table);
    return 0;
}

/* The snapshot that `wanted` names: an id counts more than a name, as in QEMU. */
static int find_snapshot(const struct layer *layer, const char *wanted, size_t *ret,
                         struct error *err)
{
    const struct image_info *info = &layer->info;

    for (size_t i = 0; i < info->snapshot_count; i++) {
        if (strcmp(info->snapshots[i].id, wanted) == 0) {
            *ret = i;
            return 0;
        }
    }
    for (size_t i = 0; i < info->snapshot_count; i++) {
        if (strcmp(info->snapshots[i].name, wanted) == 0) {
            *ret = i;
            return 0;
        }
    }
    return error_set(err, ENOENT, "%s: there is no snapshot with the id or name '%s'",
                     layer_path(layer), wanted);
}

/* Reads the snapshot table into layer->info, and gives `wanted`'s L1 table if it is not NULL. */
static int read_snapshots(struct layer *layer, const struct qcow2_header *header,
                          const char *wanted, struct qcow2_snapshot *ret, struct error *err)
{
    uint64_t file_size = layer_file(layer)->file.size;
    _cleanup_free_ struct qcow2_snapshot *tables = NULL;
    _cleanup_free_ void *table = NULL;
    struct image_snapshot *snapshots;
    size_t index;
    int r;

    if (header->snapshot_count > 0) {
        /* An entry's fixed part, extra data, id and name, and padding. */
        uint64_t most =
            header->snapshot_count * (uint64_t)(40 + QCOW2_SNAPSHOT_EXTRA_MAX + 2 * UINT16_MAX + 7);
        uint64_t length =
            min_u64(min_u64(most, QCOW2_SNAPSHOT_TABLE_MAX), file_size - header->snapshots_offset);

        r = read_table(layer, header->snapshots_offset, (size_t)length, &table, err);
        if (r < 0)
            return r;
        r = qcow2_snapshots_parse(table, (size_t)length, header, &snapshots, &tables, err);
        if (r < 0)
            return error_prefix(err, "%s", layer_path(layer));
        layer->info.snapshots = snapshots;
        layer->info.snapshot_count = header->snapshot_count;
    }
    if (wanted == NULL)
        return 0;
    r = find_snapshot(layer, wanted, &index, err);
    if (r < 0)
        return r;
    *ret = tables[index];
    return 0;
}

static int read_bitmaps(struct layer *layer, const struct qcow2_header *header,
                        const struct qcow2_extensions *extensions, struct error *err)
{
    _cleanup_free_ void *directory = NULL;
    struct image_bitmap *bitmaps;
    int r;

    if (!extensions->has_bitmaps)
        return 0;
    r = read_table(layer, extensions->bitmap_directory_offset,
                   (size_t)extensions->bitmap_directory_size, &directory, err);
    if (r < 0)
        return r;
    r = qcow2_bitmaps_parse(directory, header, extensions, layer_file(layer)->file.size, &bitmaps,
                            err);
    if (r < 0)
        return error_prefix(err, "%s", layer_path(layer));
    layer->info.bitmaps = bitmaps;
    layer->info.bitmap_count = extensions->bitmap_count;
    return 0;
}

/* The L1 table that is to be read: the active one, or a snapshot's. */
static int read_l1(struct layer *layer, const struct image_options *options, struct error *err)
{
    struct qcow2 *q = layer->state;
    struct qcow2_snapshot l1 = {
        .l1_offset = q->header.l1_offset,
        .l1_entries = q->header.l1_entries,
        .disk_size = q->header.size,
    };
    uint64_t file_size = layer_file(layer)->file.size;
    void *entries;
    int r;

    r = read_snapshots(layer, &q->header, options->snapshot, &l1, err);
    if (r < 0)
        return r;
    if (options->snapshot != NULL) {
        r = qcow2_l1_check(&q->header, "snapshot's", l1.l1_offset, l1.l1_entries, l1.disk_size,
                           file_size, err);
        if (r < 0)
            return error_prefix(err, "%s: snapshot '%s'", layer_path(layer), options->snapshot);
    }
    layer->size = l1.disk_size;
    q->l1_entries = (size_t)qcow2_l1_entries_needed(&q->header, l1.disk_size);
    r = read_table(layer, l1.l1_offset, q->l1_entries * 8, &entries, err);
    if (r < 0)
        return r;
    q->l1 = entries;
    r = qcow2_l1_decode(&q->header, q->l1, q->l1_entries, file_size, err);
    if (r == 0 && !options->force)
        r = qcow2_l1_check_shared(q->l1, q->l1_entries, err);
    if (r < 0)
        return error_prefix(err, "%s", layer_path(layer));
    return 0;
}

static int open_data_file(struct layer *layer, const char *name, struct error *err)
{
    struct qcow2 *q = layer->state;
    _cleanup_free_ char *path = NULL;
    int r;

    q->data_file = layer->file;
    if ((q->header.incompatible & QCOW2_INCOMPATIBLE_DATA_FILE) == 0)
        return 0;
    r = image_resolve_data_file(layer_path(layer), name, &path, err);
    if (r == 0)
        r = image_add_file(layer->image, path, &q->data_file, err);
    if (r < 0)
        return error_prefix(err, "%s: data file", layer_path(layer));
    layer->info.data_file = TAKE_PTR(path);
    return 0;
}

static int open_decrypter(struct layer *layer, const struct image_options *options,
                          struct error *err)
{
    struct qcow2 *q = layer->state;

    if (q->header.encryption != QCOW2_ENCRYPTION_AES)
        return 0;
    return qcow1_open(layer_file(layer)->file.fd, layer_path(layer), options->password_file,
                      &q->decrypter, err);
}

static void set_geometry(struct layer *layer)
{
    struct qcow2 *q = layer->state;
    const struct qcow2_header *header = &q->header;
    bool extended = qcow2_extended_l2(header);
    unsigned entry_bits = extended ? 4 : 3;

    q->geometry = (struct qcow2_geometry){
        .cluster_bits = header->cluster_bits,
        .subcluster_bits = extended ? header->cluster_bits - 5 : header->cluster_bits,
        .entry_words = extended ? 2 : 1,
        .zero_flag_allowed = header->version >= 3,
        .data_file = q->data_file != layer->file,
        .size = layer->size,
        .data_size = layer->image->files[q->data_file]->file.size,
        .file_size = layer_file(layer)->file.size,
    };
    q->l1_shift = 2 * header->cluster_bits - entry_bits;
    q->slice_bytes = (size_t)min_u64(L2_SLICE_BYTES_MAX, qcow2_cluster_size(header));
    q->slice_entry_shift = (unsigned)__builtin_ctzll(q->slice_bytes) - entry_bits;
}

static void set_info(struct layer *layer, struct qcow2_extensions *extensions)
{
    const struct qcow2 *q = layer->state;
    const struct qcow2_header *header = &q->header;
    struct image_info *info = &layer->info;

    info->format = "qcow2";
    info->version = header->version;
    info->size = header->size;
    info->cluster_size = qcow2_cluster_size(header);
    info->compression = header->compression == QCOW2_COMPRESSION_ZSTD ? "zstd" : "zlib";
    info->encryption = header->encryption == QCOW2_ENCRYPTION_AES ? "aes" : NULL;
    info->refcount_bits = header->refcount_bits;
    info->extended_l2 = qcow2_extended_l2(header);
    info->lazy_refcounts = (header->compatible & QCOW2_COMPATIBLE_LAZY_REFCOUNTS) != 0;
    info->dirty = (header->incompatible & QCOW2_INCOMPATIBLE_DIRTY) != 0;
    info->corrupt = (header->incompatible & QCOW2_INCOMPATIBLE_CORRUPT) != 0;
    info->data_file_raw =
        q->data_file != layer->file && (header->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW) != 0;
    info->backing_file = TAKE_PTR(extensions->backing_file);
    info->backing_format = TAKE_PTR(extensions->backing_format);
}

int qcow2_layer_open(struct layer *layer, const struct image_options *options, struct error *err)
{
    _cleanup_(qcow2_extensions_clear_cleanup) struct qcow2_extensions extensions = {0};
    struct qcow2 *q = calloc(1, sizeof(*q));
    int r;

    if (q == NULL)
        return error_oom(err);
    layer->state = q;
    layer->ops = &qcow2_ops;
    r = read_header(layer, &q->header, &extensions, err);
    if (r == 0)
        r = check_header(layer, &q->header, &extensions, options, err);
    if (r == 0)
        r = open_data_file(layer, extensions.data_file, err);
    if (r == 0)
        r = read_l1(layer, options, err);
    if (r == 0)
        r = read_bitmaps(layer, &q->header, &extensions, err);
    if (r == 0)
        r = open_decrypter(layer, options, err);
    if (r == 0)
        r = decompressor_pool_new(&q->pool, err);
    if (r < 0)
        return r;
    set_geometry(layer);
    set_info(layer, &extensions);
    if (layer->info.backing_file == NULL || layer->info.backing_file[0] == '\0')
        return 0;
    layer->backing_format = layer->info.backing_format;
    r = image_resolve_name(layer_path(layer), "backing file", layer->info.backing_file,
                           &layer->backing_path, err);
    if (r < 0)
        return error_prefix(err, "%s", layer_path(layer));
    return 0;
}
