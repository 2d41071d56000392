/* SPDX-License-Identifier: MIT */
/*
 * L2 tables in memory: those that a flush has still to write, those in use at the moment, and as
 * many others as there is room for. A table that is written to the file at the moment counts as
 * dirty, or it could be dropped and read again in the state before.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/checked.h"
#include "common/io.h"
#include "image/qcow2-format.h"
#include "image/qcow2-writer.h"

enum {
    CLEAN_BYTES_MAX = 64 << 20, /* of tables: they map 512 GiB of disk */
    DIRTY_BYTES_MAX = 16 << 20,
};

static size_t entries_of_table(const struct qcow2_writer *w)
{
    return (size_t)1 << w->l2_bits;
}

static struct l2_table *table_new(const struct qcow2_writer *w, size_t index)
{
    struct l2_table *table = calloc(1, sizeof(*table) + (size_t)cluster_size_of(w));

    if (table != NULL)
        table->index = index;
    return table;
}

/* Drops tables until there is room for one more, if it finds some to drop. */
static void make_room(struct qcow2_writer *w)
{
    size_t most = CLEAN_BYTES_MAX >> w->cluster_bits;

    for (size_t looked = 0; w->l2_count >= most && looked < w->l1_entries; looked++) {
        struct l2_table *table = w->l2[w->l2_hand];

        if (table != NULL && table->pins == 0 && !is_dirty(&table->dirty)) {
            free(table);
            w->l2[w->l2_hand] = NULL;
            w->l2_count--;
        }
        w->l2_hand = (w->l2_hand + 1) % w->l1_entries;
    }
}

/* Was checked when the image was opened; but a file can still be written to by somebody who
 * ignores its locks. */
static int check_entry(const struct qcow2_writer *w, size_t index, size_t i, uint64_t entry,
                       struct error *err)
{
    uint64_t host = entry & QCOW2_L2_OFFSET_MASK;

    if ((entry & (QCOW2_L2_COMPRESSED | QCOW2_L2_RESERVED_MASK)) != 0 ||
        (host & (cluster_size_of(w) - 1)) != 0 || host >> w->cluster_bits >= w->next)
        return error_set(err, EIO, "%s: L1 entry %zu, L2 entry %zu (0x%016" PRIx64 ") is wrong",
                         w->path, index, i, entry);
    return 0;
}

int qcow2_l2_get(struct qcow2_writer *w, size_t index, struct l2_table **ret, struct error *err)
{
    _cleanup_free_ struct l2_table *table = NULL;
    int r;

    if (w->l1[index] == 0 || w->l2[index] != NULL) {
        *ret = w->l2[index];
        return 0;
    }
    make_room(w);
    table = table_new(w, index);
    if (table == NULL)
        return error_oom(err);
    r = io_read_at(w->fd, w->path, table->entries, (size_t)cluster_size_of(w), w->l1[index], err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < entries_of_table(w); i++) {
        table->entries[i] = be64toh(table->entries[i]);
        r = check_entry(w, index, i, table->entries[i], err);
        if (r < 0)
            return r;
    }
    w->l2[index] = table;
    w->l2_count++;
    *ret = TAKE_PTR(table);
    return 0;
}

int qcow2_l2_create(struct qcow2_writer *w, size_t index, struct l2_table **ret, struct error *err)
{
    _cleanup_free_ struct l2_table *table = NULL;
    struct cluster_run run;
    int r;

    assert(w->l1[index] == 0);
    make_room(w);
    table = table_new(w, index);
    if (table == NULL)
        return error_oom(err);
    r = qcow2_allocate(w, 1, &run, err);
    if (r < 0)
        return r;
    /* In the file it is empty until the flush; but its space is there from now on. */
    r = io_write_at(w->fd, w->path, table->entries, (size_t)cluster_size_of(w),
                    run.first << w->cluster_bits, err);
    if (r < 0) {
        qcow2_punch(w, run);
        qcow2_unallocate(w, run);
        return r;
    }
    w->l1[index] = run.first << w->cluster_bits;
    w->l1_dirty.now = range_union(w->l1_dirty.now, (struct entry_range){index, index + 1});
    w->l2[index] = table;
    w->l2_count++;
    *ret = TAKE_PTR(table);
    return 0;
}

void qcow2_l2_mark(struct qcow2_writer *w, struct l2_table *table, size_t first, size_t end)
{
    if (!is_dirty(&table->dirty)) {
        table->next_dirty = w->dirty_l2;
        w->dirty_l2 = table;
        w->dirty_l2_count++;
    }
    table->dirty.now = range_union(table->dirty.now, (struct entry_range){first, end});
}

bool qcow2_l2_crowded(const struct qcow2_writer *w)
{
    return w->dirty_l2_count >= (size_t)DIRTY_BYTES_MAX >> w->cluster_bits;
}
