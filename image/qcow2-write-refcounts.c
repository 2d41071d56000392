/* SPDX-License-Identifier: MIT */
/*
 * Refcounts and allocation.
 *
 * The refcount blocks of all clusters that are in use are kept in memory, once they have been read:
 * two bytes for a cluster of the file. Clusters are only
 * allocated behind all that were ever in use, so that a cluster which was freed belongs to nobody
 * else while somebody may still be reading or writing it: a reader that was told where bytes are
 * needs no lock, and no writer waits for readers. The space of freed clusters goes back to the file
 * system, and only the file's length keeps growing.
 *
 * A refcount block stands at the first cluster that it counts, itself included. When the refcount
 * table is full, a larger one is put behind everything, together with the blocks that count it;
 * until a flush has made the header refer to it, only the old one exists for whoever reads the
 * file.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/io.h"
#include "common/log.h"
#include "image/qcow2-format.h"
#include "image/qcow2-writer.h"

#define REFCOUNT_TABLE_RESERVED_MASK 0x1ffu

static size_t counts_of_block(const struct qcow2_writer *w)
{
    return (size_t)1 << w->refcount_bits;
}

static size_t block_index(const struct qcow2_writer *w, uint64_t cluster)
{
    return (size_t)(cluster >> w->refcount_bits);
}

static struct refcount_block *block_new(const struct qcow2_writer *w, size_t index)
{
    struct refcount_block *block =
        calloc(1, sizeof(*block) + counts_of_block(w) * sizeof(block->counts[0]));

    if (block != NULL)
        block->index = index;
    return block;
}

static void block_mark(struct qcow2_writer *w, struct refcount_block *block, size_t first,
                       size_t end)
{
    if (!is_dirty(&block->dirty)) {
        block->next_dirty = w->dirty_blocks;
        w->dirty_blocks = block;
    }
    block->dirty.now = range_union(block->dirty.now, (struct entry_range){first, end});
}

/* --- Reading --- */

int qcow2_refcounts_load(struct qcow2_writer *w, uint64_t offset, uint64_t clusters,
                         struct error *err)
{
    size_t bytes = (size_t)(clusters << w->cluster_bits);
    uint64_t needed = div_round_up(w->next, counts_of_block(w));
    int r;

    w->refcount_table_offset = offset;
    w->refcount_table_entries = bytes / 8;
    w->refcount_table = malloc(bytes);
    w->blocks = calloc(w->refcount_table_entries, sizeof(w->blocks[0]));
    if (w->refcount_table == NULL || w->blocks == NULL)
        return error_oom(err);
    r = io_read_at(w->fd, w->path, w->refcount_table, bytes, offset, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < w->refcount_table_entries; i++) {
        uint64_t block = be64toh(w->refcount_table[i]);

        w->refcount_table[i] = block;
        if ((block & (cluster_size_of(w) - 1)) != 0 || block >> w->cluster_bits >= w->next)
            return error_set(err, EINVAL,
                             "%s: refcount table entry %zu: 0x%" PRIx64
                             " is no cluster within the file; repair the image with qemu-img check",
                             w->path, i, block);
        if (i >= needed && block != 0)
            return error_set(err, EINVAL,
                             "%s: refcount table entry %zu counts clusters behind the end of the "
                             "file; repair the image with qemu-img check",
                             w->path, i);
    }
    return 0;
}

static int load_block(struct qcow2_writer *w, size_t index, struct error *err)
{
    _cleanup_free_ struct refcount_block *block = block_new(w, index);
    int r;

    if (block == NULL)
        return error_oom(err);
    r = io_read_at(w->fd, w->path, block->counts, (size_t)cluster_size_of(w),
                   w->refcount_table[index], err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < counts_of_block(w); i++)
        block->counts[i] = be16toh(block->counts[i]);
    w->blocks[index] = TAKE_PTR(block);
    return 0;
}

int qcow2_refcount(struct qcow2_writer *w, uint64_t cluster, unsigned *ret, struct error *err)
{
    size_t index = block_index(w, cluster);

    if (index >= w->refcount_table_entries || w->refcount_table[index] == 0) {
        *ret = 0;
        return 0;
    }
    if (w->blocks[index] == NULL) {
        int r = load_block(w, index, err);
        if (r < 0)
            return r;
    }
    *ret = w->blocks[index]->counts[cluster & (counts_of_block(w) - 1)];
    return 0;
}

/* --- Blocks and the table --- */

/* Writes what a block holds to where it is going to be, so that its space is there when the table
 * refers to it. */
static int write_block(const struct qcow2_writer *w, const struct refcount_block *block,
                       uint64_t offset, struct error *err)
{
    size_t size = (size_t)cluster_size_of(w);
    _cleanup_free_ uint16_t *bytes = malloc(size);

    if (bytes == NULL)
        return error_oom(err);
    for (size_t i = 0; i < counts_of_block(w); i++)
        bytes[i] = htobe16(block->counts[i]);
    return io_write_at(w->fd, w->path, bytes, size, offset, err);
}

static void table_set(struct qcow2_writer *w, struct refcount_block *block, uint64_t offset)
{
    size_t index = block->index;

    w->blocks[index] = block;
    w->refcount_table[index] = offset;
    w->refcount_table_dirty.now =
        range_union(w->refcount_table_dirty.now, (struct entry_range){index, index + 1});
    block_mark(w, block, 0, counts_of_block(w));
}

/* Makes the block that counts cluster w->next, in that cluster. */
static int add_block(struct qcow2_writer *w, struct error *err)
{
    size_t index = block_index(w, w->next);
    struct refcount_block *block = block_new(w, index);
    int r;

    if (block == NULL)
        return error_oom(err);
    block->counts[w->next & (counts_of_block(w) - 1)] = 1;
    r = write_block(w, block, w->next << w->cluster_bits, err);
    if (r < 0) {
        qcow2_punch(w, (struct cluster_run){w->next, 1});
        free(block);
        return r;
    }
    table_set(w, block, w->next << w->cluster_bits);
    w->next++;
    return 0;
}

/* Where a larger table goes: `blocks` new blocks from cluster `first` on, and the table's clusters
 * behind them. */
struct growth {
    uint64_t first;
    size_t first_index; /* of the new blocks */
    size_t blocks;
    uint64_t table_clusters;
};

static int plan_growth(const struct qcow2_writer *w, struct growth *ret, struct error *err)
{
    struct growth g = {.first = w->next, .first_index = block_index(w, w->next)};
    uint64_t most = max_u64(QCOW2_REFCOUNT_TABLE_BYTES_MAX >> w->cluster_bits, 1);
    uint64_t now = w->refcount_table_entries * 8 >> w->cluster_bits;

    g.table_clusters = min_u64(now + now / 2 + 1, most);
    /* The more blocks, the more clusters to be counted. */
    for (size_t blocks = 0; blocks != g.blocks || blocks == 0;) {
        blocks = g.blocks;
        g.blocks =
            block_index(w, g.first + max_u64(blocks, 1) + g.table_clusters - 1) - g.first_index + 1;
        if (blocks == g.blocks)
            break;
    }
    if (g.first_index + g.blocks > (g.table_clusters << w->cluster_bits) / 8)
        return error_set(err, EFBIG,
                         "%s: the file cannot grow any more: its refcount table has reached its "
                         "limit of %d bytes",
                         w->path, QCOW2_REFCOUNT_TABLE_BYTES_MAX);
    *ret = g;
    return 0;
}

/* Writes the new blocks and room for the table. */
static int write_growth(const struct qcow2_writer *w, const struct growth *g,
                        struct refcount_block **blocks, struct error *err)
{
    _cleanup_free_ void *zeros = calloc(1, (size_t)(g->table_clusters << w->cluster_bits));
    int r;

    if (zeros == NULL)
        return error_oom(err);
    for (size_t i = 0; i < g->blocks; i++) {
        blocks[i] = block_new(w, g->first_index + i);
        if (blocks[i] == NULL)
            return error_oom(err);
    }
    for (uint64_t c = g->first; c < g->first + g->blocks + g->table_clusters; c++)
        blocks[block_index(w, c) - g->first_index]->counts[c & (counts_of_block(w) - 1)] = 1;
    for (size_t i = 0; i < g->blocks; i++) {
        r = write_block(w, blocks[i], (g->first + i) << w->cluster_bits, err);
        if (r < 0)
            return r;
    }
    return io_write_at(w->fd, w->path, zeros, (size_t)(g->table_clusters << w->cluster_bits),
                       (g->first + g->blocks) << w->cluster_bits, err);
}

/* Moves the table to a larger place. w->next is the first cluster that it cannot count. */
static int grow_table(struct qcow2_writer *w, struct error *err)
{
    _cleanup_free_ struct refcount_block **blocks = NULL;
    _cleanup_free_ uint64_t *table = NULL;
    struct growth g;
    int r;

    r = plan_growth(w, &g, err);
    if (r == 0)
        r = qcow2_free_reserve(w, 1, err);
    if (r < 0)
        return r;
    size_t entries = (size_t)((g.table_clusters << w->cluster_bits) / 8);
    blocks = calloc(g.blocks, sizeof(blocks[0]));
    table = calloc(entries, sizeof(table[0]));
    struct refcount_block **larger = calloc(entries, sizeof(larger[0]));
    if (blocks == NULL || table == NULL || larger == NULL)
        r = error_oom(err);
    else
        r = write_growth(w, &g, blocks, err);
    if (r < 0) {
        qcow2_punch(w, (struct cluster_run){g.first, g.blocks + g.table_clusters});
        for (size_t i = 0; blocks != NULL && i < g.blocks; i++)
            free(blocks[i]);
        free(larger);
        return r;
    }

    memcpy(table, w->refcount_table, w->refcount_table_entries * sizeof(table[0]));
    memcpy(larger, w->blocks, w->refcount_table_entries * sizeof(larger[0]));
    free(w->refcount_table);
    free(w->blocks);
    qcow2_free_later(w, (struct cluster_run){w->refcount_table_offset >> w->cluster_bits,
                                             w->refcount_table_entries * 8 >> w->cluster_bits});
    w->refcount_table = TAKE_PTR(table);
    w->blocks = larger;
    w->refcount_table_entries = entries;
    w->refcount_table_offset = (g.first + g.blocks) << w->cluster_bits;
    w->refcount_table_dirty.now = (struct entry_range){0, entries};
    w->refcount_table_moved = true;
    for (size_t i = 0; i < g.blocks; i++)
        table_set(w, blocks[i], (g.first + i) << w->cluster_bits);
    w->next = g.first + g.blocks + g.table_clusters;
    return 0;
}

/* --- Allocation --- */

/* Makes sure that cluster w->next is counted by a block, and free. */
static int prepare_next(struct qcow2_writer *w, struct error *err)
{
    for (;;) {
        size_t index = block_index(w, w->next);
        unsigned count;
        int r;

        if (w->next >= QCOW2_HOST_OFFSET_LIMIT >> w->cluster_bits)
            return error_set(err, EFBIG, "%s: the file has reached the limit of qcow2", w->path);
        if (index >= w->refcount_table_entries) {
            r = grow_table(w, err);
        } else if (w->refcount_table[index] == 0) {
            r = add_block(w, err);
        } else {
            r = qcow2_refcount(w, w->next, &count, err);
            if (r == 0 && count == 0)
                return 0;
            /* Else a cluster that was lost behind the end of the file. */
            if (r == 0)
                w->next++;
        }
        if (r < 0)
            return r;
    }
}

int qcow2_allocate(struct qcow2_writer *w, uint64_t count, struct cluster_run *ret,
                   struct error *err)
{
    int r = prepare_next(w, err);

    if (r < 0)
        return r;
    struct refcount_block *block = w->blocks[block_index(w, w->next)];
    size_t first = (size_t)(w->next & (counts_of_block(w) - 1)), end = first;
    while (end < counts_of_block(w) && end - first < count && block->counts[end] == 0)
        block->counts[end++] = 1;
    block_mark(w, block, first, end);
    *ret = (struct cluster_run){w->next, end - first};
    w->next += ret->count;
    return 0;
}

void qcow2_release(struct qcow2_writer *w, struct cluster_run run)
{
    for (uint64_t c = run.first; c < run.first + run.count; c++) {
        struct refcount_block *block = w->blocks[block_index(w, c)];
        size_t i = (size_t)(c & (counts_of_block(w) - 1));

        assert(block != NULL && block->counts[i] == 1);
        block->counts[i] = 0;
        block_mark(w, block, i, i + 1);
    }
}

void qcow2_unallocate(struct qcow2_writer *w, struct cluster_run run)
{
    qcow2_release(w, run);
    /* Nobody was ever told of these, so that they may be used again. */
    if (w->next == run.first + run.count)
        w->next = run.first;
}

int qcow2_free_reserve(struct qcow2_writer *w, size_t count, struct error *err)
{
    if (w->freed_room - w->freed_count >= count)
        return 0;

    size_t room = w->freed_room * 2 + count;
    struct cluster_run *larger = reallocarray(w->freed, room, sizeof(*larger));
    if (larger == NULL)
        return error_oom(err);
    w->freed = larger;
    w->freed_room = room;
    return 0;
}

void qcow2_free_later(struct qcow2_writer *w, struct cluster_run run)
{
    assert(w->freed_count < w->freed_room);
    w->freed[w->freed_count++] = run;
}

void qcow2_punch(const struct qcow2_writer *w, struct cluster_run run)
{
    if (fallocate(w->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)(run.first << w->cluster_bits), (off_t)(run.count << w->cluster_bits)) < 0)
        log_debug("%s: cannot give the space of free clusters back: %s", w->path, strerror(errno));
}
