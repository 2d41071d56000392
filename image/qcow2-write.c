/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 writer: the layer on top of an image that is open with image_open_overlay().
 *
 * What is where: L2 tables, refcounts and the L1 table are changed in memory only; a flush writes
 * them to the file (qcow2-write-flush.c), first what says that clusters are in use, then what
 * refers to them, with everything synchronized in between. Data go to the file at once. So at any
 * moment, whether the process or the whole machine dies, the tables in the file are those of the
 * last flush or on the way to the next one, each cluster they refer to is counted, and has the
 * bytes that were there when the flush began. What else was allocated is lost space at worst. There
 * is no journal, nor a dirty bit, because nothing needs to be repaired.
 *
 * A write to a cluster that has one in the file goes there, outside all locks. A cluster of the
 * disk that has none (or reads as zeros) gets a new one, with what the write leaves out filled from
 * below; several that are adjacent are allocated, and written, together. While that goes on the
 * range stands in the list of allocations, on which others who want to write to these clusters
 * wait; readers see the old bytes until the L2 entries are set, which is after the data are
 * written. When the data cannot be written the clusters are taken back, and nothing has happened.
 *
 * Zeroing whole clusters sets their zero flag, and frees what they had after the next flush.
 * A freed cluster is never used again by this process (qcow2-write-refcounts.c), so it does no harm
 * that somebody still reads or writes it: a reader finds the old bytes or zeros, both of which were
 * right at some moment since it asked; a write that came too late counts as overwritten.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "common/checked.h"
#include "common/io.h"
#include "common/log.h"
#include "image/qcow2-format.h"
#include "image/qcow2-writer.h"
#include "image/write.h"

enum {
    MAP_ENTRIES_MAX = 4096, /* L2 entries that one map() looks at */
    MAP_L1_MAX = 16384,     /* empty L1 entries */
};

/* --- Looking up --- */

static size_t l1_index_of(const struct qcow2_writer *w, uint64_t cluster)
{
    return (size_t)(cluster >> w->l2_bits);
}

static size_t l2_index_of(const struct qcow2_writer *w, uint64_t cluster)
{
    return (size_t)(cluster & (((uint64_t)1 << w->l2_bits) - 1));
}

/* How many clusters from `cluster` on have their entries in the same table. */
static uint64_t left_in_table(const struct qcow2_writer *w, uint64_t cluster)
{
    return ((uint64_t)1 << w->l2_bits) - l2_index_of(w, cluster);
}

static enum piece_kind kind_of_entry(uint64_t entry)
{
    if ((entry & QCOW2_L2_ZERO) != 0)
        return PIECE_ZERO;
    return (entry & QCOW2_L2_OFFSET_MASK) != 0 ? PIECE_DATA : PIECE_UNALLOCATED;
}

/* How many of up to `count` entries from the first on are of its kind, and adjacent if they are
 * data. */
static uint64_t count_run(const struct qcow2_writer *w, const uint64_t *entries, uint64_t count)
{
    enum piece_kind kind = kind_of_entry(entries[0]);
    uint64_t host = entries[0] & QCOW2_L2_OFFSET_MASK, n = 1;

    while (n < count && kind_of_entry(entries[n]) == kind &&
           (kind != PIECE_DATA ||
            (entries[n] & QCOW2_L2_OFFSET_MASK) == host + (n << w->cluster_bits)))
        n++;
    return n;
}

/* Clusters from that of `offset` to that of the last byte. */
static uint64_t clusters_touched(const struct qcow2_writer *w, uint64_t offset, uint64_t length)
{
    return ((offset + length - 1) >> w->cluster_bits) - (offset >> w->cluster_bits) + 1;
}

static int map_locked(struct qcow2_writer *w, uint64_t offset, uint64_t length, struct piece *ret,
                      struct error *err)
{
    uint64_t cluster = offset >> w->cluster_bits;
    uint64_t in_cluster = offset & (cluster_size_of(w) - 1);
    size_t index = l1_index_of(w, cluster);
    struct l2_table *table;
    uint64_t count;

    int r = qcow2_l2_get(w, index, &table, err);
    if (r < 0)
        return r;
    *ret = (struct piece){.kind = PIECE_UNALLOCATED};
    if (table == NULL) {
        size_t end = index + 1, limit = (size_t)min_u64(w->l1_entries, index + MAP_L1_MAX);

        while (end < limit && w->l1[end] == 0)
            end++;
        count = ((uint64_t)end << w->l2_bits) - cluster;
    } else {
        const uint64_t *entries = table->entries + l2_index_of(w, cluster);

        count = min_u64(left_in_table(w, cluster), clusters_touched(w, offset, length));
        count = count_run(w, entries, min_u64(count, MAP_ENTRIES_MAX));
        ret->kind = kind_of_entry(entries[0]);
        ret->file = w->layer->file;
        if (ret->kind == PIECE_DATA)
            ret->host_offset = (entries[0] & QCOW2_L2_OFFSET_MASK) + in_cluster;
    }
    ret->length = min_u64(length, (count << w->cluster_bits) - in_cluster);
    return 0;
}

static int writer_map(struct layer *layer, uint64_t offset, uint64_t length, struct piece *ret,
                      struct error *err)
{
    struct qcow2_writer *w = layer->state;

    pthread_mutex_lock(&w->lock);
    int r = map_locked(w, offset, length, ret, err);
    pthread_mutex_unlock(&w->lock);
    return r;
}

/* --- Allocations under way --- */

static bool overlaps(const struct allocation *a, uint64_t first, uint64_t count)
{
    return a->first < first + count && first < a->first + a->count;
}

static bool is_being_allocated(const struct qcow2_writer *w, uint64_t first, uint64_t count)
{
    for (const struct allocation *a = w->allocations; a != NULL; a = a->next) {
        if (overlaps(a, first, count))
            return true;
    }
    return false;
}

static void wait_for_allocations(struct qcow2_writer *w, uint64_t first, uint64_t count)
{
    while (is_being_allocated(w, first, count)) {
        io_waits();
        pthread_cond_wait(&w->allocated, &w->lock);
    }
}

static void allocation_end(struct qcow2_writer *w, struct allocation *allocation)
{
    struct allocation **link = &w->allocations;

    while (*link != allocation)
        link = &(*link)->next;
    *link = allocation->next;
    pthread_cond_broadcast(&w->allocated);
}

/* --- Writing to new clusters --- */

/* Clusters of the disk, and those of the file that they are getting. */
struct new_clusters {
    struct allocation disk;
    struct cluster_run host;
    struct l2_table *table; /* pinned */
};

/* How many clusters from `cluster` on, up to `count`, can be allocated together. */
static uint64_t count_new(const struct qcow2_writer *w, const struct l2_table *table,
                          uint64_t cluster, uint64_t count)
{
    uint64_t n = 1;

    count = min_u64(count, left_in_table(w, cluster));
    while (
        n < count && !is_being_allocated(w, cluster + n, 1) &&
        (table == NULL || kind_of_entry(table->entries[l2_index_of(w, cluster + n)]) != PIECE_DATA))
        n++;
    return n;
}

/* Under the lock. `table` may be NULL, and is made then. */
static int new_clusters_begin(struct qcow2_writer *w, struct l2_table *table, uint64_t cluster,
                              uint64_t count, struct new_clusters *ret, struct error *err)
{
    int r = 0;

    count = count_new(w, table, cluster, count);
    if (table == NULL)
        r = qcow2_l2_create(w, l1_index_of(w, cluster), &table, err);
    if (r == 0)
        r = qcow2_allocate(w, count, &ret->host, err);
    if (r < 0)
        return r;
    ret->table = table;
    ret->table->pins++;
    ret->disk = (struct allocation){cluster, ret->host.count, w->allocations};
    w->allocations = &ret->disk;
    return 0;
}

/* Lets the L2 entries refer to the new clusters. What a zero cluster had allocated is freed. */
static int new_clusters_publish(struct qcow2_writer *w, const struct new_clusters *new,
                                struct error *err)
{
    size_t first = l2_index_of(w, new->disk.first);
    int r = qcow2_free_reserve(w, (size_t) new->host.count, err);

    if (r < 0)
        return r;
    for (uint64_t i = 0; i < new->host.count; i++) {
        uint64_t *entry = &new->table->entries[first + i];
        uint64_t old = *entry & QCOW2_L2_OFFSET_MASK;

        if (old != 0)
            qcow2_free_later(w, (struct cluster_run){old >> w->cluster_bits, 1});
        *entry = (new->host.first + i) << w->cluster_bits | QCOW2_L2_COPIED;
    }
    qcow2_l2_mark(w, new->table, first, first + (size_t) new->host.count);
    return 0;
}

/* Writes all of `iov`, of which it makes a mess. */
static int write_vector(const struct qcow2_writer *w, struct iovec *iov, int count, uint64_t offset,
                        struct error *err)
{
    while (count > 0) {
        if (iov->iov_len == 0) {
            iov++;
            count--;
            continue;
        }
        ssize_t n = pwritev(w->fd, iov, count, (off_t)offset);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return error_set_errno(err, errno, "%s: cannot write at offset %" PRIu64, w->path,
                                   offset);
        }
        offset += (uint64_t)n;
        for (size_t done = (size_t)n; done > 0;) {
            size_t part = (size_t)min_u64(done, iov->iov_len);

            iov->iov_base = (uint8_t *)iov->iov_base + part;
            iov->iov_len -= part;
            done -= part;
            if (iov->iov_len == 0) {
                iov++;
                count--;
            }
        }
    }
    return 0;
}

/* What the disk has in [start, end), of which what lies behind the disk is zeros. */
static int read_fill(const struct qcow2_writer *w, uint64_t start, uint64_t end, void *buffer,
                     struct error *err)
{
    uint64_t within = min_u64(end, w->layer->size);
    size_t n = within > start ? (size_t)(within - start) : 0;

    memset((uint8_t *)buffer + n, 0, (size_t)(end - start) - n);
    return image_read(w->layer->image, start, buffer, n, err);
}

/* Writes the new clusters: the bytes given, and around them what the disk has there now. */
static int new_clusters_write(struct qcow2_writer *w, const struct new_clusters *new,
                              uint64_t offset, const void *buffer, size_t length, struct error *err)
{
    uint64_t start = new->disk.first << w->cluster_bits;
    uint64_t end = start + (new->host.count << w->cluster_bits);
    size_t head = (size_t)(offset - start), tail = (size_t)(end - offset - length);
    _cleanup_free_ uint8_t *fill = NULL;
    int r;

    if (head + tail > 0) {
        fill = malloc(head + tail);
        if (fill == NULL)
            return error_oom(err);
        r = read_fill(w, start, offset, fill, err);
        if (r == 0)
            r = read_fill(w, offset + length, end, fill + head, err);
        if (r < 0)
            return r;
    }
    struct iovec iov[] = {
        {fill, head},
        {(void *)buffer, length},
        {fill != NULL ? fill + head : NULL, tail},
    };
    return write_vector(w, iov, 3, new->host.first << w->cluster_bits, err);
}

static int new_clusters_end(struct qcow2_writer *w, struct new_clusters *new, int r,
                            struct error *err)
{
    /* Before they are taken back, for then they may belong to somebody else at once. */
    if (r < 0)
        qcow2_punch(w, new->host);
    pthread_mutex_lock(&w->lock);
    if (r == 0)
        r = new_clusters_publish(w, new, err);
    if (r < 0)
        qcow2_unallocate(w, new->host);
    new->table->pins--;
    allocation_end(w, &new->disk);
    pthread_mutex_unlock(&w->lock);
    return r;
}

/* --- Writing --- */

/* Makes room for more dirty tables. Under the lock, which it lets go for a while; *ret_again then:
 * what the caller looked up before no longer holds. */
static int flush_if_crowded(struct qcow2_writer *w, bool *ret_again, struct error *err)
{
    *ret_again = qcow2_l2_crowded(w);
    if (!*ret_again)
        return 0;
    pthread_mutex_unlock(&w->lock);
    int r = qcow2_writer_flush(w, err);
    pthread_mutex_lock(&w->lock);
    return r;
}

/* Where the first part of a write goes. */
struct target {
    uint64_t host_offset; /* if nothing is new */
    size_t length;
    struct new_clusters new;
    bool is_new;
};

/* Under the lock, which it may let go for a while. */
static int find_target(struct qcow2_writer *w, uint64_t offset, size_t length, struct target *ret,
                       struct error *err)
{
    uint64_t cluster = offset >> w->cluster_bits;
    uint64_t in_cluster = offset & (cluster_size_of(w) - 1);
    uint64_t count = clusters_touched(w, offset, length);
    struct l2_table *table;
    bool again;
    int r;

    do {
        wait_for_allocations(w, cluster, 1);
        r = qcow2_l2_get(w, l1_index_of(w, cluster), &table, err);
        if (r < 0)
            return r;
        const uint64_t *entries = table != NULL ? table->entries + l2_index_of(w, cluster) : NULL;

        ret->is_new = entries == NULL || kind_of_entry(entries[0]) != PIECE_DATA;
        if (!ret->is_new) {
            ret->host_offset = (entries[0] & QCOW2_L2_OFFSET_MASK) + in_cluster;
            count = count_run(w, entries, min_u64(count, left_in_table(w, cluster)));
            ret->length = (size_t)min_u64(length, (count << w->cluster_bits) - in_cluster);
            return 0;
        }
        r = flush_if_crowded(w, &again, err);
        if (r < 0)
            return r;
    } while (again);

    r = new_clusters_begin(w, table, cluster, count, &ret->new, err);
    if (r == 0)
        ret->length =
            (size_t)min_u64(length, (ret->new.host.count << w->cluster_bits) - in_cluster);
    return r;
}

static int write_some(struct qcow2_writer *w, uint64_t offset, const void *buffer, size_t length,
                      size_t *ret_length, struct error *err)
{
    struct target target = {0};
    int r;

    pthread_mutex_lock(&w->lock);
    r = find_target(w, offset, length, &target, err);
    pthread_mutex_unlock(&w->lock);
    if (r < 0)
        return r;
    if (target.is_new) {
        r = new_clusters_write(w, &target.new, offset, buffer, target.length, err);
        r = new_clusters_end(w, &target.new, r, err);
    } else {
        r = io_write_at(w->fd, w->path, buffer, target.length, target.host_offset, err);
    }
    if (r == 0)
        *ret_length = target.length;
    return r;
}

/* Whether a write that failed may succeed now: because a flush gave space back. */
static bool space_came_back(struct qcow2_writer *w, int r)
{
    if (r != -ENOSPC && r != -EDQUOT)
        return false;
    pthread_mutex_lock(&w->lock);
    bool freed = w->freed_count > 0;
    pthread_mutex_unlock(&w->lock);
    return freed && qcow2_writer_flush(w, NULL) == 0;
}

static int write_all(struct qcow2_writer *w, uint64_t offset, const uint8_t *buffer, size_t length,
                     struct error *err)
{
    while (length > 0) {
        size_t n;
        int r = write_some(w, offset, buffer, length, &n, err);

        if (r < 0 && space_came_back(w, r)) {
            error_clear(err);
            r = write_some(w, offset, buffer, length, &n, err);
        }
        if (r < 0)
            return r;
        buffer += n;
        offset += n;
        length -= n;
    }
    return 0;
}

/* --- Zeroing --- */

/* Sets the zero flag of `count` clusters of one table. Under the lock. */
static int set_zero(struct qcow2_writer *w, uint64_t cluster, uint64_t count, struct error *err)
{
    size_t first = l2_index_of(w, cluster);
    struct l2_table *table;
    bool again;
    int r;

    do {
        wait_for_allocations(w, cluster, count);
        r = flush_if_crowded(w, &again, err);
        if (r < 0)
            return r;
    } while (again);
    r = qcow2_l2_get(w, l1_index_of(w, cluster), &table, err);
    if (r == 0 && table == NULL)
        r = qcow2_l2_create(w, l1_index_of(w, cluster), &table, err);
    if (r == 0)
        r = qcow2_free_reserve(w, (size_t)count, err);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t *entry = &table->entries[first + i];
        uint64_t old = *entry & QCOW2_L2_OFFSET_MASK;

        if (old != 0)
            qcow2_free_later(w, (struct cluster_run){old >> w->cluster_bits, 1});
        *entry = QCOW2_L2_ZERO;
    }
    qcow2_l2_mark(w, table, first, first + (size_t)count);
    return 0;
}

/* Zeroes whole clusters; `end` may be the end of the disk. Those that read as zeros already stay as
 * they are: to discard an empty disk shall cost nothing. */
static int zero_clusters(struct qcow2_writer *w, uint64_t offset, uint64_t end, struct error *err)
{
    while (offset < end) {
        struct extent extent;
        int r = image_map(w->layer->image, offset, end - offset, 0, &extent, err);

        if (r < 0)
            return r;
        uint64_t next = offset + extent.length;
        uint64_t whole = next == end ? end : next & ~(cluster_size_of(w) - 1);
        if (extent.kind == EXTENT_ZERO && whole > offset) {
            offset = whole;
            continue;
        }
        uint64_t cluster = offset >> w->cluster_bits;
        uint64_t count =
            min_u64(clusters_touched(w, offset, extent.length), left_in_table(w, cluster));
        pthread_mutex_lock(&w->lock);
        r = set_zero(w, cluster, count, err);
        pthread_mutex_unlock(&w->lock);
        if (r < 0)
            return r;
        offset = min_u64(end, (cluster + count) << w->cluster_bits);
    }
    return 0;
}

/* Zeroes part of a cluster. */
static int zero_part(struct qcow2_writer *w, uint64_t offset, uint64_t length, struct error *err)
{
    _cleanup_free_ uint8_t *zeros = NULL;
    struct extent extent;
    int r;

    if (length == 0)
        return 0;
    r = image_map(w->layer->image, offset, length, 0, &extent, err);
    if (r < 0)
        return r;
    if (extent.kind == EXTENT_ZERO && extent.length == length)
        return 0;
    zeros = calloc(1, (size_t)length);
    if (zeros == NULL)
        return error_oom(err);
    return write_all(w, offset, zeros, (size_t)length, err);
}

static int zero_all(struct qcow2_writer *w, uint64_t offset, uint64_t length, struct error *err)
{
    uint64_t end = offset + length;
    /* The last cluster is whole up to the end of the disk. */
    uint64_t whole_end = end == w->layer->size ? end : end & ~(cluster_size_of(w) - 1);
    uint64_t whole_start = cluster_align_up(w, offset);
    int r;

    if (whole_start >= whole_end) {
        uint64_t middle = min_u64(whole_start, end);

        r = zero_part(w, offset, middle - offset, err);
        return r < 0 ? r : zero_part(w, middle, end - middle, err);
    }
    r = zero_part(w, offset, whole_start - offset, err);
    if (r == 0)
        r = zero_clusters(w, whole_start, whole_end, err);
    if (r == 0)
        r = zero_part(w, whole_end, end - whole_end, err);
    return r;
}

/* --- The layer --- */

void qcow2_writer_free(struct qcow2_writer *w)
{
    if (w == NULL)
        return;
    for (size_t i = 0; w->l2 != NULL && i < w->l1_entries; i++)
        free(w->l2[i]);
    for (size_t i = 0; w->blocks != NULL && i < w->refcount_table_entries; i++)
        free(w->blocks[i]);
    free(w->l2);
    free(w->blocks);
    free(w->l1);
    free(w->refcount_table);
    free(w->freed);
    pthread_mutex_destroy(&w->lock);
    pthread_mutex_destroy(&w->flush_lock);
    pthread_cond_destroy(&w->allocated);
    free(w);
}

static void writer_close(struct layer *layer)
{
    struct qcow2_writer *w = layer->state;
    _cleanup_error_ struct error err = ERROR_INIT;

    if (qcow2_writer_finish(w, &err) < 0)
        log_error("%s", error_message(&err));
    qcow2_writer_free(w);
}

const struct layer_ops qcow2_writer_ops = {.map = writer_map, .close = writer_close};

struct qcow2_writer *qcow2_writer_of(const struct image *image)
{
    return image->layers[0]->ops == &qcow2_writer_ops ? image->layers[0]->state : NULL;
}

bool image_writable(const struct image *image)
{
    return qcow2_writer_of(image) != NULL;
}

int image_write(struct image *image, uint64_t offset, const void *buffer, size_t length,
                struct error *err)
{
    assert(image_writable(image) && range_within(offset, length, image_size(image)));
    return write_all(qcow2_writer_of(image), offset, buffer, length, err);
}

int image_write_zeros(struct image *image, uint64_t offset, uint64_t length, struct error *err)
{
    assert(image_writable(image) && range_within(offset, length, image_size(image)));
    return zero_all(qcow2_writer_of(image), offset, length, err);
}

int image_flush(struct image *image, struct error *err)
{
    assert(image_writable(image));
    return qcow2_writer_flush(qcow2_writer_of(image), err);
}
