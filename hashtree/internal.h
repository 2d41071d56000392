/* SPDX-License-Identifier: MIT */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "hashtree/hasher.h"
#include "hashtree/hashtree.h"
#include "hashtree/tree-file.h"

/*
 * Private to hashtree/. How the files share the work:
 *
 *     hashtree.c  a tree's life; its root, UUID and figures
 *     constant.c  the nodes over data that is all zeros
 *     plan.c      where there is data: cuts it into segments, assembles the nodes above them
 *     segment.c   one segment: the nodes that one worker makes alone
 *     batch.c     a worker's complete nodes, until they are hashed together
 *     reader.c    reads of a worker: io_uring or pread
 *     ring.c      io_uring's rings, and where they come from in a confined process
 *     build.c     a build: workers that take segments from the plan
 *     nodes.c     nodes kept in memory, and the computation of a single one
 *     device.c    the hash device: reading and writing it
 *     verify.c    checking a hash device against data
 *     trust.c     believing nothing but a root hash that was given
 */

/* How much a worker reads at a time: small enough to be hashed while it is still in the L2 cache.
 * At least one data block. */
#define RUN_BYTES (256u * 1024)
/* Runs that a worker keeps reading ahead while the data is not in the page cache. */
#define RUN_DEPTH 16
/* Reads that one run may consist of. More scattered data is read in shorter runs. */
#define RUN_PIECES 32
/* Reads that all runs may consist of. */
#define RING_ENTRIES (RUN_DEPTH * RUN_PIECES)
/* What a worker takes from the plan at a time, about. */
#define SEGMENT_BYTES (4u * 1024 * 1024)

struct hashtree {
    struct image *image;
    uint64_t start; /* bytes of the image before the data */
    struct verity_params params;
    struct verity_geometry geometry;
    struct hasher *hasher;
    unsigned threads;
    enum hashtree_direct direct;
    bool root_only;
    struct node_store *nodes;

    /* Digests over zeros: of a data block, and of the full and the last node of each level. */
    uint8_t zero_digest[VERITY_DIGEST_MAX];
    uint8_t full_digest[VERITY_LEVELS_MAX][VERITY_DIGEST_MAX];
    uint8_t last_digest[VERITY_LEVELS_MAX][VERITY_DIGEST_MAX];

    struct progress progress;
    _Atomic bool watched; /* somebody looks at the progress */
    _Atomic bool cancelled;
    _Atomic uint64_t data_bytes_hashed;
    _Atomic uint64_t nodes_computed;

    struct keep *keep;           /* NULL: nothing is kept in a file */
    struct trust *trust;         /* NULL: nobody gave a root hash */
    enum hashtree_method method; /* under lock */
    char reason[512];
    char untracked[512]; /* why changes are not tracked */

    /* The root and the build that finds it. */
    pthread_mutex_t lock;
    pthread_cond_t built;
    bool building; /* this and what follows: under lock */
    uint64_t builds_ended;
    struct error build_error; /* of the last build, if it failed */
    uint64_t zero_blocks;
    double build_seconds;
    bool superblock_made;
    uint8_t superblock[VERITY_SUPERBLOCK_SIZE];
    bool root_known;
    uint8_t root[VERITY_DIGEST_MAX];
    struct change_map *changes; /* of the data since the root was found; NULL: it never changes */
    _Atomic bool current;       /* the root is known, and nothing changed since: set under lock */
    _Atomic bool changed;       /* hashtree_changed() was called */
};

static inline uint64_t tree_data_size(const struct hashtree *tree)
{
    return tree->params.data_blocks * tree->params.data_block_size;
}

/* Nodes below which a node has its entries: data blocks for level 0. */
static inline uint64_t tree_children(const struct hashtree *tree, unsigned level)
{
    return level == 0 ? tree->params.data_blocks : tree->geometry.level_blocks[level - 1];
}

static inline size_t tree_run_bytes(const struct hashtree *tree)
{
    return tree->params.data_block_size > RUN_BYTES ? tree->params.data_block_size : RUN_BYTES;
}

struct node_sink;
struct node_batch;

/* --- hashtree.c --- */

/* CPUs that we may run on. */
unsigned usable_cpus(void);

/* A full build, also if the root is known already, whose nodes go to `sink` (which may be NULL,
 * else has both members). Sets the root. */
int hashtree_build(struct hashtree *tree, const struct node_sink *sink, struct error *err);

/* The superblock's VERITY_SUPERBLOCK_SIZE bytes; finds the root if the UUID is derived from it. */
int hashtree_superblock(struct hashtree *tree, uint8_t *superblock, struct error *err);

/* --- constant.c --- */

int constant_init(struct hashtree *tree, struct error *err);

/* Fills hash block `index` of `level` as if all data below were zeros. */
void constant_node(const struct hashtree *tree, unsigned level, uint64_t index, uint8_t *block);

/* The digest of child `index` of level `level` (a data block for level 0; the topmost node for
 * level == levels) as if all data below it were zeros. */
const uint8_t *constant_child_digest(const struct hashtree *tree, unsigned level, uint64_t index);

/* --- changes.c --- */

/* Which parts of the data changed; with the tree's lock held. */
struct change_map;

int change_map_new(const struct hashtree *tree, struct change_map **ret, struct error *err);
void change_map_free(struct change_map *map);
DEFINE_CLEANUP(struct change_map, change_map_free);
/* Bytes of the data. */
void change_map_add(struct change_map *map, uint64_t offset, uint64_t length);
void change_map_merge(struct change_map *map, const struct change_map *other);
bool change_map_empty(const struct change_map *map);
/* The map as a build takes it. */
struct hashtree_changes change_map_changes(const struct change_map *map);

/* --- Where finished nodes go --- */

/*
 * Receives the nodes of a build, each exactly once, from many threads at once and in no special
 * order. Either function may be NULL.
 */
struct node_sink {
    /* `count` hash blocks from `first` of `level` on, one behind the other at `blocks`. */
    int (*nodes)(void *arg, unsigned level, uint64_t first, uint64_t count, const uint8_t *blocks,
                 struct error *err);
    /* These hash blocks are as constant_node() has them. A moderate number at a time. */
    int (*constants)(void *arg, unsigned level, uint64_t first, uint64_t count, struct error *err);
    void *arg;
};

/* --- base.c --- */

/*
 * An older tree over the same data, of which a build only makes anew what changed since.
 */
struct node_base {
    uint8_t root[VERITY_DIGEST_MAX];
    struct tree_file *file; /* where nodes are that are not in memory, or NULL */
    uint64_t zero_blocks;   /* UINT64_MAX: not known */
    const struct hashtree_changes *changes;
};

/* The node that has the digest `expected`, be it constant, in memory, or in `file` (which may be
 * NULL) or one below it. False if it is not to be had: it must be made of what is below. */
bool base_node(const struct hashtree *tree, const struct tree_file *file, unsigned level,
               uint64_t index, const uint8_t *expected, uint8_t *block);

/* --- plan.c --- */

/*
 * A node that several workers fill. `pending` counts what it waits for: its child nodes and
 * segments under way, plus one while the plan may still find data below it. Whoever takes that to
 * zero hashes the node into its parent. Slots of different children are written without a lock:
 * they do not overlap, and the counter orders them before the hashing.
 *
 * Above the tree stands one more node of level `levels`, whose only entry becomes the root hash.
 */
struct shared_node {
    struct shared_node *parent; /* NULL for the one above the tree */
    unsigned level;
    uint64_t index;
    _Atomic uint64_t pending;
    uint8_t block[];
};

/*
 * Where somebody is who walks over the data's map. Zeroed, it is nowhere; a copy walks on from the
 * same place. For one thread at a time.
 */
struct map_cursor {
    struct extent extent; /* the last one mapped; empty: none */
    struct image_hole_hint holes;
};

/* The extent at byte `at` of the data, which starts there and ends before `end`. */
int map_cursor_find(struct map_cursor *cursor, const struct hashtree *tree, uint64_t at,
                    uint64_t end, struct extent *ret, struct error *err);

/* Work that a plan hands out. */
struct plan_item {
    enum { PLAN_END, PLAN_SEGMENT, PLAN_CONSTANTS } kind;
    /* SEGMENT */
    uint64_t first_block, end_block; /* data blocks */
    uint64_t start;                  /* bytes of the data: before it there is nothing to hash */
    struct map_cursor map;           /* that found the data */
    bool fresh;                      /* nothing is known of it: all its data is to be hashed */
    struct shared_node *parent; /* holds one count in `pending`, to be given to node_release() */
    /* CONSTANTS */
    unsigned level;
    uint64_t first, count;
};

/* Pieces of work that a plan hands out at once, at most. */
#define PLAN_ITEMS 16

struct plan {
    struct hashtree *tree;
    struct node_sink sink;
    const struct node_base *base;    /* or NULL */
    _Atomic bool *stop;              /* nodes are then released without being hashed */
    unsigned unit;                   /* nodes below this level are private to a segment */
    uint64_t segment_blocks;         /* data blocks, a power of two */
    _Atomic uint64_t nonzero_blocks; /* found among fresh data blocks */
    _Atomic int64_t zero_change;     /* of the number of zero blocks, among changed ones */
    _Atomic bool distrust;           /* a node of the base was not to be had */

    pthread_mutex_t lock;
    /* Bytes of the data; everything before it was handed out, or is zeros, or did not change. */
    uint64_t cursor;
    struct map_cursor map;
    uint64_t fresh_end; /* bytes: up to here the base has no say */
    bool ended;
    struct shared_node *path[VERITY_LEVELS_MAX + 1]; /* the open node of each level */
    uint64_t next[VERITY_LEVELS_MAX]; /* first node of each level not yet opened or told constant */
    struct constant_range {
        unsigned level;
        uint64_t first, end;
    } constants[2 * VERITY_LEVELS_MAX];
    unsigned constants_count;
    uint8_t root[VERITY_DIGEST_MAX];
};

/* `base` may be NULL: then everything is hashed. */
int plan_init(struct plan *plan, struct hashtree *tree, const struct node_base *base,
              const struct node_sink *sink, _Atomic bool *stop, struct error *err);
/* Releases what is still open; to be called once all segments were given back. Completes the root
 * unless stopped. */
int plan_finish(struct plan *plan, struct error *err);
void plan_free(struct plan *plan);

/* The next pieces of work: fills `ret`, PLAN_ITEMS of them, and says how many there are, at least
 * one; PLAN_END stands alone. Errors come from mapping the image. */
int plan_next(struct plan *plan, struct plan_item *ret, unsigned *ret_count,
              struct node_batch *batch, struct error *err);

/* Gives back the counts of work that was not begun, which only a plan that is stopped has. */
void plan_give_back(struct plan *plan, const struct plan_item *items, unsigned count);

/* Gives back one count of `node`. If it was the last, the node goes into the batch; without one
 * (NULL) it is hashed into its parent, and so on up. */
int node_release(struct plan *plan, struct shared_node *node, struct node_batch *batch,
                 struct error *err);

/* --- batch.c --- */

#define BATCH_NODES 16

struct node_batch {
    unsigned count;
    struct node_batch_entry {
        struct shared_node *parent; /* one count in its `pending` */
        uint8_t *slot;              /* in its block */
    } to[BATCH_NODES];
    uint8_t *blocks;
};

int node_batch_init(const struct plan *plan, struct node_batch *batch, struct error *err);
/* Adds node `index` of the level below the parent's, a copy of `block`; hashes the batch when it is
 * full. */
int node_batch_add(struct plan *plan, struct node_batch *batch, struct shared_node *parent,
                   uint64_t index, const uint8_t *block, struct error *err);
/* Hashes the nodes into their parents, and gives these their counts. */
int node_batch_hash(struct plan *plan, struct node_batch *batch, struct error *err);
/* The same until nothing is left. */
int node_batch_flush(struct plan *plan, struct node_batch *batch, struct error *err);
/* Gives back the counts of nodes that are left, which only a plan that is stopped has. */
void node_batch_free(struct plan *plan, struct node_batch *batch);

/* --- segment.c --- */

/*
 * A run of data blocks that one worker hashes, with the whole nodes above them up to plan->unit.
 * What comes out are the digests of its topmost nodes (of the data blocks themselves if unit is 0).
 */
struct segment {
    struct segment *next; /* in a worker's list of free or active ones */
    uint64_t first_block, end_block;
    struct shared_node *parent;
    unsigned runs;         /* being read */
    bool mapped;           /* no further runs will come */
    uint64_t position;     /* bytes of the data that runs were made of so far */
    struct map_cursor map; /* for `position` */
    uint64_t fresh_end;    /* bytes of the data: up to here all is hashed, zeros being skipped */
    uint64_t stretch_end;  /* bytes of the data: what lies between `position` and here is hashed */
    uint8_t *digests;      /* if unit is 0: what comes out, a slot each */
    bool *digests_set;
    struct {
        uint64_t first, count;
        uint8_t *blocks;
        bool *touched;
    } levels[VERITY_LEVELS_MAX];
};

int segment_new(const struct plan *plan, struct segment **ret, struct error *err);
void segment_free(struct segment *segment);
void segment_start(const struct plan *plan, struct segment *segment, const struct plan_item *item);
/* Hashes data blocks that lie at `data`; all-zero ones are noticed. If they are `fresh`, their
 * entries are still those of zeros, else they are those of the base. */
int segment_hash(struct plan *plan, struct segment *segment, uint64_t first_block, uint64_t count,
                 const uint8_t *data, bool fresh, struct error *err);

/* Gets the base's nodes above a changed block of a segment that is not fresh. If one is not to be
 * had, *ret_fresh gets the data blocks below it, which are then fresh; else it is empty. */
struct block_range {
    uint64_t first, end;
};
void segment_open(struct plan *plan, struct segment *segment, uint64_t block,
                  struct block_range *ret_fresh);

/* Makes the nodes, tells the sink, and gives the digests and the count to the parent, or the nodes
 * to `batch` for that. */
int segment_finish(struct plan *plan, struct segment *segment, struct node_batch *batch,
                   struct error *err);

/* Whether all bytes are zeros. */
bool is_zeros(const uint8_t *data, size_t length);

/* Calls `hash` for the stretches of blocks that hold something else than zeros; short stretches of
 * zeros between them are left in. Adds the number of blocks that are zeros to *zero_blocks. */
int for_nonzero_blocks(const uint8_t *data, size_t block_size, uint64_t count,
                       int (*hash)(void *arg, uint64_t first, uint64_t count, struct error *err),
                       void *arg, uint64_t *zero_blocks, struct error *err);

/* --- reader.c --- */

struct piece {
    struct run *run;
    size_t file;
    uint64_t host_offset;
    uint32_t length;
    uint32_t buffer_offset;
};

/* A stretch of data blocks being read into a buffer. */
struct run {
    struct segment *segment;
    uint64_t first_block;
    uint64_t blocks;
    bool fresh; /* see segment_hash() */
    uint8_t *buffer;
    unsigned buffer_index;
    unsigned reads; /* of its pieces, under way */
    unsigned pieces_count;
    struct piece pieces[RUN_PIECES];
    struct run *next; /* in a list of finished or free runs */
};

struct reader;

/* What all readers of a build have in common: descriptors of the host files. */
struct reader_files {
    size_t count;
    int *fds;
    int *direct_fds; /* -1 where O_DIRECT cannot be had or is not wanted */
};
int reader_files_open(struct hashtree *tree, struct reader_files *ret, struct error *err);
void reader_files_close(struct reader_files *files);

/* The first `runs_without_uring` runs are read by pread(). */
int reader_new(struct hashtree *tree, const struct reader_files *files, unsigned runs_without_uring,
               struct reader **ret, struct error *err);
void reader_free(struct reader *reader);

/* A run to fill in, with a buffer; NULL when RUN_DEPTH are in use. */
struct run *reader_get_run(struct reader *reader);
void reader_put_run(struct reader *reader, struct run *run);

/* Starts reading what the run's pieces say; the rest of the buffer was filled by the caller. */
int reader_start(struct reader *reader, struct run *run, struct error *err);

/* Whether more should be started before reader_finished() is called: the kernel would be troubled
 * with little, and no run is finished anyway. */
bool reader_gathers(const struct reader *reader);

/* A run whose bytes are all there, or NULL: at once when `wait` is false, else when there is none
 * under way. */
int reader_finished(struct reader *reader, bool wait, struct run **ret, struct error *err);

/* Waits for whatever is under way, without caring how it ends: buffers must not be freed before. */
void reader_drain(struct reader *reader);

/* --- ring.c --- */

struct io_uring;

/* A ring of RING_ENTRIES. Returns 0 or -errno; -EPERM: the process is confined, and others have all
 * the rings that it has. Files must be unregistered before it is closed. `idle`: nothing that was
 * submitted is still to come. */
int ring_open(struct io_uring *ret);
void ring_close(struct io_uring *ring, bool idle);

/* --- build.c --- */

struct build_result {
    uint8_t root[VERITY_DIGEST_MAX];
    uint64_t zero_blocks; /* UINT64_MAX: not known */
    double seconds;
};

/* Reads and hashes all data, or, with a `base`, what changed since. `base` and `sink` may be NULL.
 */
int build_run(struct hashtree *tree, const struct node_base *base, const struct node_sink *sink,
              struct build_result *ret, struct error *err);

/* --- keep.c --- */

/* Finds the root by the cheapest proof, and keeps the tree. With the lock not held, by one thread.
 */
int keep_build(struct hashtree *tree, struct build_result *ret, struct error *err);
/* Where nodes of the tree whose root is known may be found; or NULL. */
struct tree_file *keep_file(const struct keep *keep);
/* Why nothing cheaper than reading everything will do: sets it, or adds to it. */
void keep_reason(struct hashtree *tree, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void keep_reason_add(struct hashtree *tree, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void keep_free(struct keep *keep);

/* --- nodes.c --- */

struct node_store;

int node_store_new(uint64_t cache_size, size_t block_size, struct node_store **ret,
                   struct error *err);
void node_store_free(struct node_store *store);
uint64_t node_store_count(struct node_store *store);

/* A node that is in memory. False if it is not. */
bool node_store_find(struct node_store *store, unsigned level, uint64_t index, uint8_t *block);

/* Forgets nodes of level 0 that are about to change, or have. */
void node_store_forget(struct node_store *store, uint64_t first, uint64_t end);

/* A sink that keeps the nodes of level 1 and up. */
struct node_sink node_store_sink(struct hashtree *tree);

/* The bytes of one hash block, kept, constant, or computed from what is below. */
int node_get(struct hashtree *tree, unsigned level, uint64_t index, uint8_t *block,
             struct error *err);

/* --- trust.c --- */

struct trust;

/* What was read has not the digest that it should have. */
#define TRUST_WRONG 1

void trust_free(struct trust *trust);

/* As node_get(), for a tree with a root hash that was given: -EIO if the node, or one above it, is
 * not the one that is meant. */
int trust_node(struct hashtree *tree, unsigned level, uint64_t index, uint8_t *block,
               struct error *err);
