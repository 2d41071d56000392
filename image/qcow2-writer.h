/* SPDX-License-Identifier: MIT */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "image/internal.h"

/*
 * What the parts of the qcow2 writer share: qcow2-write.c (how all of it works; lookups, writes),
 * qcow2-write-tables.c (L2 tables in memory), qcow2-write-refcounts.c (allocation),
 * qcow2-write-flush.c, qcow2-write-open.c (what is accepted), qcow2-write-create.c.
 */

/* A range of a table's entries; empty if first == end. */
struct entry_range {
    size_t first, end;
};

/* What of a table is newer in memory than in the file, and what a flush is just writing. */
struct dirty {
    struct entry_range now, flushing;
};

static inline bool range_empty(struct entry_range range)
{
    return range.first == range.end;
}

static inline struct entry_range range_union(struct entry_range a, struct entry_range b)
{
    if (range_empty(a))
        return b;
    if (range_empty(b))
        return a;
    return (struct entry_range){a.first < b.first ? a.first : b.first,
                                a.end > b.end ? a.end : b.end};
}

static inline bool is_dirty(const struct dirty *dirty)
{
    return !range_empty(dirty->now) || !range_empty(dirty->flushing);
}

/* Tables that are dirty form a list, so that a flush need not search. */
struct l2_table {
    size_t index; /* in the L1 table */
    struct dirty dirty;
    unsigned pins;               /* who needs it to stay in memory */
    struct l2_table *next_dirty; /* valid if dirty */
    uint64_t entries[];          /* in the machine's byte order */
};

struct refcount_block {
    size_t index; /* in the refcount table */
    struct dirty dirty;
    struct refcount_block *next_dirty;
    uint16_t counts[]; /* in the machine's byte order */
};

/* Clusters of the file. */
struct cluster_run {
    uint64_t first, count;
};

/* Clusters of the disk that a writer is getting host clusters for; lives on that thread's stack. */
struct allocation {
    uint64_t first, count;
    struct allocation *next;
};

struct qcow2_writer {
    struct layer *layer;
    int fd;
    const char *path;
    unsigned cluster_bits;
    unsigned l2_bits;       /* log2 of the entries of an L2 table */
    unsigned refcount_bits; /* log2 of the counts of a refcount block */
    uint64_t l1_offset;
    size_t l1_entries;

    pthread_mutex_t lock; /* all that follows, up to flush_lock */
    pthread_cond_t allocated;
    struct allocation *allocations; /* under way */

    uint64_t *l1; /* offsets of L2 tables, 0 for none */
    struct dirty l1_dirty;
    struct l2_table **l2; /* those in memory */
    size_t l2_count;      /* in memory */
    size_t l2_hand;       /* where the search for one to drop goes on */
    struct l2_table *dirty_l2;
    size_t dirty_l2_count;

    uint64_t refcount_table_offset;
    size_t refcount_table_entries;
    uint64_t *refcount_table;
    struct dirty refcount_table_dirty;
    bool refcount_table_moved, refcount_table_moving; /* the header does not say so yet */
    struct refcount_block **blocks;                   /* those in memory */
    struct refcount_block *dirty_blocks;

    uint64_t next; /* the first cluster of the file that was never in use */

    struct cluster_run *freed; /* what nothing refers to any more, once L2 tables are written */
    size_t freed_count, freed_room;

    pthread_mutex_t flush_lock;
    int sync_error; /* under flush_lock: of the fdatasync() that failed, or 0 */
};

static inline uint64_t cluster_size_of(const struct qcow2_writer *w)
{
    return (uint64_t)1 << w->cluster_bits;
}

static inline uint64_t cluster_align_up(const struct qcow2_writer *w, uint64_t n)
{
    return (n + cluster_size_of(w) - 1) & ~(cluster_size_of(w) - 1);
}

/* The writer behind an image that image_open_overlay() made; NULL for any other. */
struct qcow2_writer *qcow2_writer_of(const struct image *image);

/* --- qcow2-write.c --- */

extern const struct layer_ops qcow2_writer_ops;

/* Frees what is in memory, and flushes nothing. */
void qcow2_writer_free(struct qcow2_writer *w);

/* --- qcow2-write-tables.c: under the lock, all of them --- */

/* The L2 table of L1 entry `index`, read if need be; NULL if there is none. Pin it to keep it
 * beyond the next call. */
int qcow2_l2_get(struct qcow2_writer *w, size_t index, struct l2_table **ret, struct error *err);

/* Gives an L1 entry that has none an empty L2 table. */
int qcow2_l2_create(struct qcow2_writer *w, size_t index, struct l2_table **ret, struct error *err);

void qcow2_l2_mark(struct qcow2_writer *w, struct l2_table *table, size_t first, size_t end);

/* Whether so much waits for a flush that it should come first. */
bool qcow2_l2_crowded(const struct qcow2_writer *w);

/* --- qcow2-write-refcounts.c: under the lock, all of them --- */

/* Reads the refcount table: `clusters` clusters of the file at `offset`, and checks that blocks lie
 * within the file. */
int qcow2_refcounts_load(struct qcow2_writer *w, uint64_t offset, uint64_t clusters,
                         struct error *err);

/* Reads the block that counts the cluster, and keeps it. */
int qcow2_refcount(struct qcow2_writer *w, uint64_t cluster, unsigned *ret, struct error *err);

/* Allocates up to `count` adjacent clusters behind all others; *ret->count is at least 1. */
int qcow2_allocate(struct qcow2_writer *w, uint64_t count, struct cluster_run *ret,
                   struct error *err);

/* Takes back what nothing ever referred to. */
void qcow2_unallocate(struct qcow2_writer *w, struct cluster_run run);

/* Counts clusters down to 0; their blocks are in memory. */
void qcow2_release(struct qcow2_writer *w, struct cluster_run run);

/* Notes what is to be released once a flush has written the L2 tables. Room for `count` runs must
 * have been reserved, so that this cannot fail. */
int qcow2_free_reserve(struct qcow2_writer *w, size_t count, struct error *err);
void qcow2_free_later(struct qcow2_writer *w, struct cluster_run run);

/* Gives the space of clusters that are not in use back to the file system. Needs no lock. */
void qcow2_punch(const struct qcow2_writer *w, struct cluster_run run);

/* --- qcow2-write-flush.c --- */

int qcow2_writer_flush(struct qcow2_writer *w, struct error *err);

/* Flushes until the file tells of everything, what was freed included. */
int qcow2_writer_finish(struct qcow2_writer *w, struct error *err);

/* --- qcow2-write-open.c --- */

/* Makes the layer, which was opened for reading from a file that is open for writing, writable.
 * Refuses what is not written here, or not sound. */
int qcow2_writer_open(struct layer *layer, struct error *err);

/* --- qcow2-write-create.c --- */

/* Creates an overlay of `base`. -EEXIST if there is a file. */
int qcow2_overlay_create(const char *path, const struct image *base, struct error *err);
