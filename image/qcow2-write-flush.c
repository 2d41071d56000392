/* SPDX-License-Identifier: MIT */
/*
 * Flushing: what the tables in memory have that the file has not.
 *
 * Under the lock everything dirty is copied; then it is written and synchronized, step by step,
 * while others go on writing (what they change meanwhile is dirty for the next flush):
 *
 *   1. refcount blocks, synchronized together with all data and with new, still empty L2 tables
 *   2. the refcount table, if there are new blocks; the header, if the table has moved
 *   3. L2 and L1 tables
 *
 * What was freed counts as free only when the third step is done: in memory, so that the next
 * flush writes it, and its space is given back.
 *
 * If a step fails, all of it stays dirty. When synchronizing fails, the kernel may have dropped
 * what it could not write, and another attempt would succeed without it: from then on every flush
 * fails.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/io.h"
#include "image/qcow2-format.h"
#include "image/qcow2-writer.h"

enum {
    HEADER_REFCOUNT_TABLE = 48,       /* where the header has the table's offset and clusters */
    HEADER_REFCOUNT_TABLE_LENGTH = 12 /* bytes; within a sector, so that it changes at once */
};

/* Bytes for a place in the file. */
struct patch {
    struct patch *next;
    uint64_t offset;
    size_t length;
    uint8_t bytes[];
};

struct snapshot {
    struct patch *blocks, *refcount_table, *header, *tables;
    struct cluster_run *freed;
    size_t freed_count;
};

static void patches_free(struct patch *patch)
{
    while (patch != NULL) {
        struct patch *next = patch->next;

        free(patch);
        patch = next;
    }
}

static void snapshot_clear(struct snapshot *s)
{
    patches_free(s->blocks);
    patches_free(s->refcount_table);
    patches_free(s->header);
    patches_free(s->tables);
    free(s->freed);
}
DEFINE_CLEANUP_INPLACE(struct snapshot, snapshot_clear);

/* --- Taking --- */

static int add_patch(struct patch **list, uint64_t offset, size_t length, struct patch **ret,
                     struct error *err)
{
    struct patch *patch = malloc(sizeof(*patch) + length);

    if (patch == NULL)
        return error_oom(err);
    *patch = (struct patch){.next = *list, .offset = offset, .length = length};
    *list = patch;
    *ret = patch;
    return 0;
}

/* A range of words of the table at `offset`; `flag` is set in all that are not 0. */
static int add_words(struct patch **list, uint64_t offset, const uint64_t *words,
                     struct entry_range range, uint64_t flag, struct error *err)
{
    struct patch *patch;
    int r;

    if (range_empty(range))
        return 0;
    r = add_patch(list, offset + range.first * 8, (range.end - range.first) * 8, &patch, err);
    if (r < 0)
        return r;
    for (size_t i = range.first; i < range.end; i++) {
        uint64_t word = htobe64(words[i] != 0 ? words[i] | flag : 0);

        memcpy(patch->bytes + (i - range.first) * 8, &word, 8);
    }
    return 0;
}

static int add_counts(struct patch **list, uint64_t offset, const struct refcount_block *block,
                      struct error *err)
{
    struct entry_range range = block->dirty.now;
    struct patch *patch;
    int r;

    if (range_empty(range))
        return 0;
    r = add_patch(list, offset + range.first * 2, (range.end - range.first) * 2, &patch, err);
    if (r < 0)
        return r;
    for (size_t i = range.first; i < range.end; i++) {
        uint16_t count = htobe16(block->counts[i]);

        memcpy(patch->bytes + (i - range.first) * 2, &count, 2);
    }
    return 0;
}

static int add_header(struct snapshot *s, const struct qcow2_writer *w, struct error *err)
{
    struct patch *patch;
    int r;

    if (!w->refcount_table_moved)
        return 0;
    r = add_patch(&s->header, HEADER_REFCOUNT_TABLE, HEADER_REFCOUNT_TABLE_LENGTH, &patch, err);
    if (r < 0)
        return r;
    uint64_t offset = htobe64(w->refcount_table_offset);
    uint32_t clusters = htobe32((uint32_t)(w->refcount_table_entries * 8 >> w->cluster_bits));
    memcpy(patch->bytes, &offset, 8);
    memcpy(patch->bytes + 8, &clusters, 4);
    return 0;
}

/* Copies all that is dirty; changes nothing. */
static int snapshot_copy(struct snapshot *s, const struct qcow2_writer *w, struct error *err)
{
    int r = 0;

    for (struct refcount_block *b = w->dirty_blocks; r == 0 && b != NULL; b = b->next_dirty)
        r = add_counts(&s->blocks, w->refcount_table[b->index], b, err);
    if (r == 0)
        r = add_words(&s->refcount_table, w->refcount_table_offset, w->refcount_table,
                      w->refcount_table_dirty.now, 0, err);
    if (r == 0)
        r = add_header(s, w, err);
    for (struct l2_table *t = w->dirty_l2; r == 0 && t != NULL; t = t->next_dirty)
        r = add_words(&s->tables, w->l1[t->index], t->entries, t->dirty.now, 0, err);
    if (r == 0)
        r = add_words(&s->tables, w->l1_offset, w->l1, w->l1_dirty.now, QCOW2_L2_COPIED, err);
    if (r == 0 && w->freed_count > 0) {
        s->freed = calloc(w->freed_count, sizeof(s->freed[0]));
        if (s->freed == NULL)
            return error_oom(err);
        memcpy(s->freed, w->freed, w->freed_count * sizeof(s->freed[0]));
        s->freed_count = w->freed_count;
    }
    return r;
}

static void dirty_begin(struct dirty *dirty)
{
    dirty->flushing = dirty->now;
    dirty->now = (struct entry_range){0};
}

static void dirty_end(struct dirty *dirty, bool written)
{
    if (!written)
        dirty->now = range_union(dirty->now, dirty->flushing);
    dirty->flushing = (struct entry_range){0};
}

static int snapshot_take(struct snapshot *s, struct qcow2_writer *w, struct error *err)
{
    int r = snapshot_copy(s, w, err);

    if (r < 0)
        return r;
    for (struct refcount_block *b = w->dirty_blocks; b != NULL; b = b->next_dirty)
        dirty_begin(&b->dirty);
    for (struct l2_table *t = w->dirty_l2; t != NULL; t = t->next_dirty)
        dirty_begin(&t->dirty);
    dirty_begin(&w->l1_dirty);
    dirty_begin(&w->refcount_table_dirty);
    w->refcount_table_moving = w->refcount_table_moved;
    w->refcount_table_moved = false;
    return 0;
}

/* --- Writing --- */

static int write_patches(const struct qcow2_writer *w, const struct patch *patch, struct error *err)
{
    for (; patch != NULL; patch = patch->next) {
        int r = io_write_at(w->fd, w->path, patch->bytes, patch->length, patch->offset, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int synchronize(struct qcow2_writer *w, struct error *err)
{
    if (fdatasync(w->fd) < 0) {
        w->sync_error = errno;
        return error_set_errno(err, errno, "%s: cannot synchronize", w->path);
    }
    return 0;
}

static int write_step(struct qcow2_writer *w, const struct patch *patches, struct error *err)
{
    if (patches == NULL)
        return 0;
    int r = write_patches(w, patches, err);
    return r < 0 ? r : synchronize(w, err);
}

static int snapshot_write(const struct snapshot *s, struct qcow2_writer *w, struct error *err)
{
    int r = write_patches(w, s->blocks, err);

    if (r == 0)
        r = synchronize(w, err);
    if (r == 0)
        r = write_step(w, s->refcount_table, err);
    if (r == 0)
        r = write_step(w, s->header, err);
    if (r == 0)
        r = write_step(w, s->tables, err);
    return r;
}

/* --- Afterwards --- */

static void end_blocks(struct qcow2_writer *w, bool written)
{
    struct refcount_block **link = &w->dirty_blocks;

    while (*link != NULL) {
        struct refcount_block *block = *link;

        dirty_end(&block->dirty, written);
        if (is_dirty(&block->dirty))
            link = &block->next_dirty;
        else
            *link = block->next_dirty;
    }
}

static void end_tables(struct qcow2_writer *w, bool written)
{
    struct l2_table **link = &w->dirty_l2;

    while (*link != NULL) {
        struct l2_table *table = *link;

        dirty_end(&table->dirty, written);
        if (is_dirty(&table->dirty)) {
            link = &table->next_dirty;
        } else {
            *link = table->next_dirty;
            w->dirty_l2_count--;
        }
    }
}

static void snapshot_end(const struct snapshot *s, struct qcow2_writer *w, bool written)
{
    end_blocks(w, written);
    end_tables(w, written);
    dirty_end(&w->l1_dirty, written);
    dirty_end(&w->refcount_table_dirty, written);
    if (!written)
        w->refcount_table_moved |= w->refcount_table_moving;
    w->refcount_table_moving = false;
    if (!written || s->freed_count == 0)
        return;
    for (size_t i = 0; i < s->freed_count; i++)
        qcow2_release(w, s->freed[i]);
    w->freed_count -= s->freed_count;
    memmove(w->freed, w->freed + s->freed_count, w->freed_count * sizeof(w->freed[0]));
}

static int flush_locked(struct qcow2_writer *w, struct error *err)
{
    _cleanup_(snapshot_clear_cleanup) struct snapshot snapshot = {0};
    int r;

    if (w->sync_error != 0)
        return error_set(err, w->sync_error,
                         "%s: an earlier attempt to synchronize it failed (%s): what was written "
                         "since the last one that succeeded may be lost",
                         w->path, strerror(w->sync_error));
    pthread_mutex_lock(&w->lock);
    r = snapshot_take(&snapshot, w, err);
    pthread_mutex_unlock(&w->lock);
    if (r < 0)
        return r;

    r = snapshot_write(&snapshot, w, err);

    pthread_mutex_lock(&w->lock);
    snapshot_end(&snapshot, w, r == 0);
    pthread_mutex_unlock(&w->lock);
    if (r < 0)
        return r;
    for (size_t i = 0; i < snapshot.freed_count; i++)
        qcow2_punch(w, snapshot.freed[i]);
    return 0;
}

int qcow2_writer_flush(struct qcow2_writer *w, struct error *err)
{
    io_waits();
    pthread_mutex_lock(&w->flush_lock);
    int r = flush_locked(w, err);
    pthread_mutex_unlock(&w->flush_lock);
    return r;
}

int qcow2_writer_finish(struct qcow2_writer *w, struct error *err)
{
    int r = qcow2_writer_flush(w, err);

    /* What that freed is free in the file only now. */
    if (r == 0 && w->dirty_blocks != NULL)
        r = qcow2_writer_flush(w, err);
    return r;
}
