/* SPDX-License-Identifier: MIT */
/*
 * Nodes in memory, and single nodes on demand.
 *
 * A full build keeps the nodes of level 1 and up that are not constant: with 4 KiB blocks 1/16384
 * of the data. If they outgrow the store's budget, the lowest level kept is dropped whole, so that
 * of a level either all nodes are kept or none. What is not kept is computed when it is asked for,
 * and then cached in what is left of the budget, least recently used going first.
 *
 * One mutex guards the store: it is held to look up and to copy a block, never while anything is
 * read or hashed. A node that is being computed stands in the table already, so that others who
 * want it wait for it instead of computing it again.
 */
#include <assert.h>
#include <string.h>

#include "common/checked.h"
#include "common/io.h"
#include "hashtree/internal.h"

#define CACHED_MIN 64 /* nodes cached whatever the budget */

enum entry_state { ENTRY_COMPUTING, ENTRY_CACHED, ENTRY_KEPT };

struct entry {
    struct entry *chain;         /* in the bucket */
    struct entry *newer, *older; /* CACHED: by last use */
    enum entry_state state;
    bool outdated; /* COMPUTING: what it is made of changed meanwhile */
    unsigned level;
    uint64_t index;
    uint8_t block[];
};

struct node_store {
    pthread_mutex_t lock;
    pthread_cond_t computed;
    size_t block_size;
    uint64_t capacity; /* entries */
    uint64_t kept, cached;
    unsigned kept_from; /* nodes of this level and up are kept by a build */
    struct entry *newest, *oldest;
    size_t bucket_mask;
    struct entry *buckets[];
};

int node_store_new(uint64_t cache_size, size_t block_size, struct node_store **ret,
                   struct error *err)
{
    uint64_t capacity = max_u64(cache_size / (sizeof(struct entry) + block_size), CACHED_MIN);
    size_t buckets = 64;

    while (buckets < capacity && buckets < (size_t)1 << 24)
        buckets *= 2;
    struct node_store *store = calloc(1, sizeof(*store) + buckets * sizeof(store->buckets[0]));
    if (store == NULL)
        return error_oom(err);
    store->block_size = block_size;
    store->capacity = capacity;
    store->kept_from = 1;
    store->bucket_mask = buckets - 1;
    pthread_mutex_init(&store->lock, NULL);
    pthread_cond_init(&store->computed, NULL);
    *ret = store;
    return 0;
}

void node_store_free(struct node_store *store)
{
    for (size_t i = 0; i <= store->bucket_mask; i++)
        for (struct entry *e = store->buckets[i], *next; e != NULL; e = next) {
            next = e->chain;
            free(e);
        }
    pthread_cond_destroy(&store->computed);
    pthread_mutex_destroy(&store->lock);
    free(store);
}

uint64_t node_store_count(struct node_store *store)
{
    pthread_mutex_lock(&store->lock);
    uint64_t count = store->kept + store->cached;
    pthread_mutex_unlock(&store->lock);
    return count;
}

/* --- The table; all with the lock held --- */

static struct entry **find(struct node_store *store, unsigned level, uint64_t index)
{
    uint64_t hash = (index * 64 + level) * UINT64_C(0x9e3779b97f4a7c15);
    struct entry **p = &store->buckets[(hash >> 32) & store->bucket_mask];

    while (*p != NULL && ((*p)->index != index || (*p)->level != level))
        p = &(*p)->chain;
    return p;
}

static void unlink_cached(struct node_store *store, struct entry *entry)
{
    *(entry->newer != NULL ? &entry->newer->older : &store->newest) = entry->older;
    *(entry->older != NULL ? &entry->older->newer : &store->oldest) = entry->newer;
    store->cached--;
}

static void link_cached(struct node_store *store, struct entry *entry)
{
    entry->older = store->newest;
    entry->newer = NULL;
    *(store->newest != NULL ? &store->newest->newer : &store->oldest) = entry;
    store->newest = entry;
    store->cached++;
}

static void evict(struct node_store *store)
{
    while (store->cached > CACHED_MIN && store->kept + store->cached > store->capacity) {
        struct entry *oldest = store->oldest;
        struct entry **p = find(store, oldest->level, oldest->index);
        *p = oldest->chain;
        unlink_cached(store, oldest);
        free(oldest);
    }
}

static void drop_kept(struct node_store *store, unsigned below_level)
{
    for (size_t i = 0; i <= store->bucket_mask; i++)
        for (struct entry **p = &store->buckets[i]; *p != NULL;) {
            struct entry *e = *p;
            if (e->state == ENTRY_KEPT && e->level < below_level) {
                *p = e->chain;
                store->kept--;
                free(e);
            } else {
                p = &e->chain;
            }
        }
}

/* --- Keeping what a build makes --- */

static int keep(struct node_store *store, unsigned level, uint64_t index, const uint8_t *block,
                struct error *err)
{
    struct entry *entry = malloc(sizeof(*entry) + store->block_size);

    if (entry == NULL)
        return error_oom(err);
    entry->state = ENTRY_KEPT;
    entry->level = level;
    entry->index = index;
    memcpy(entry->block, block, store->block_size);

    pthread_mutex_lock(&store->lock);
    struct entry **p = find(store, level, index);
    if (*p != NULL && (*p)->state == ENTRY_COMPUTING)
        (*p)->outdated = true;
    else if (*p != NULL)
        memcpy((*p)->block, block, store->block_size);
    if (level < store->kept_from || *p != NULL) {
        free(entry);
    } else {
        entry->chain = NULL;
        *p = entry;
        store->kept++;
        while (store->kept > store->capacity && store->kept_from < VERITY_LEVELS_MAX)
            drop_kept(store, ++store->kept_from);
        evict(store);
    }
    pthread_mutex_unlock(&store->lock);
    return 0;
}

static int keep_nodes(void *arg, unsigned level, uint64_t first, uint64_t count,
                      const uint8_t *blocks, struct error *err)
{
    struct node_store *store = arg;

    for (uint64_t i = 0; level >= 1 && i < count; i++) {
        int r = keep(store, level, first + i, blocks + i * store->block_size, err);
        if (r < 0)
            return r;
    }
    return 0;
}

struct node_sink node_store_sink(struct hashtree *tree)
{
    return (struct node_sink){.nodes = keep_nodes, .arg = tree->nodes};
}

/* --- Computing one --- */

struct compute_leaf {
    struct hashtree *tree;
    uint64_t child; /* entry of the node that the first block of `data` has */
    const uint8_t *data;
    uint8_t *node;
};

static int hash_leaf(void *arg, uint64_t first, uint64_t count, struct error *err)
{
    struct compute_leaf *c = arg;
    const struct verity_geometry *g = &c->tree->geometry;
    uint32_t block_size = c->tree->params.data_block_size;

    return hasher_hash_blocks(c->tree->hasher, c->data + first * block_size, block_size, count,
                              c->node + (c->child + first) * g->digest_slot, g->digest_slot, err);
}

/* Puts the digests of the data blocks of one extent, or a part of it, into the node. `at` and `end`
 * are bytes of the data; *ret_length is how far it came, whole blocks. */
static int compute_stretch(struct hashtree *tree, uint64_t at, uint64_t end, uint64_t first_block,
                           uint8_t *buffer, uint8_t *node, uint64_t *ret_length, struct error *err)
{
    uint32_t block_size = tree->params.data_block_size;
    uint64_t zeros = 0;
    struct extent extent;

    int r = image_map(tree->image, tree->start + at, end - at, IMAGE_MAP_HOLES, &extent, err);
    if (r < 0)
        return r;
    if (extent.kind == EXTENT_ZERO && extent.length >= block_size) {
        *ret_length = align_down(extent.length, block_size);
        return 0;
    }
    uint64_t length = min_u64(end - at, tree_run_bytes(tree));
    r = image_read(tree->image, tree->start + at, buffer, length, err);
    if (r < 0)
        return r;
    struct compute_leaf c = {tree, at / block_size - first_block, buffer, node};
    r = for_nonzero_blocks(buffer, block_size, length / block_size, hash_leaf, &c, &zeros, err);
    if (r < 0)
        return r;
    atomic_fetch_add_explicit(&tree->data_bytes_hashed, length, memory_order_relaxed);
    *ret_length = length;
    return 0;
}

static int compute_level0(struct hashtree *tree, uint64_t index, uint8_t *block, struct error *err)
{
    uint32_t block_size = tree->params.data_block_size;
    _cleanup_free_ uint8_t *buffer = malloc(tree_run_bytes(tree));
    uint64_t first, end, length;

    if (buffer == NULL)
        return error_oom(err);
    verity_geometry_span(&tree->geometry, tree->params.data_blocks, 0, index, &first, &end);
    constant_node(tree, 0, index, block);
    for (uint64_t at = first * block_size; at < end * block_size; at += length) {
        int r = compute_stretch(tree, at, end * block_size, first, buffer, block, &length, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* A node above level 0 that is not kept. */
static int compute_upper(struct hashtree *tree, unsigned level, uint64_t index, uint8_t *block,
                         struct error *err)
{
    const struct verity_geometry *g = &tree->geometry;
    uint64_t first_child = index << g->fanout_bits;
    uint64_t children =
        min_u64(tree_children(tree, level) - first_child, UINT64_C(1) << g->fanout_bits);
    _cleanup_free_ uint8_t *child = malloc(g->hash_block_size);
    struct extent extent;
    uint64_t first, end;

    if (child == NULL)
        return error_oom(err);
    constant_node(tree, level, index, block);
    verity_geometry_span(g, tree->params.data_blocks, level, index, &first, &end);
    uint64_t length = (end - first) * tree->params.data_block_size;
    int r = image_map(tree->image, tree->start + first * tree->params.data_block_size, length, 0,
                      &extent, err);
    if (r < 0 || (extent.kind == EXTENT_ZERO && extent.length == length))
        return r;
    for (uint64_t i = 0; i < children; i++) {
        r = node_get(tree, level - 1, first_child + i, child, err);
        if (r == 0)
            r = hasher_hash_blocks(tree->hasher, child, g->hash_block_size, 1,
                                   block + i * g->digest_slot, g->digest_size, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Looks the node up, waiting for one that is being computed. If there is none, puts an entry there
 * for the caller to compute. */
static int look_up(struct node_store *store, unsigned level, uint64_t index, uint8_t *block,
                   struct entry **ret_new, struct error *err)
{
    struct entry **p;

    *ret_new = NULL;
    pthread_mutex_lock(&store->lock);
    while (*(p = find(store, level, index)) != NULL && (*p)->state == ENTRY_COMPUTING) {
        io_waits();
        pthread_cond_wait(&store->computed, &store->lock);
    }
    struct entry *entry = *p;
    if (entry != NULL) {
        memcpy(block, entry->block, store->block_size);
        if (entry->state == ENTRY_CACHED) {
            unlink_cached(store, entry);
            link_cached(store, entry);
        }
    } else {
        entry = calloc(1, sizeof(*entry) + store->block_size);
        if (entry != NULL) {
            entry->state = ENTRY_COMPUTING;
            entry->level = level;
            entry->index = index;
            *p = entry;
            *ret_new = entry;
        }
    }
    pthread_mutex_unlock(&store->lock);
    return entry != NULL ? 0 : error_oom(err);
}

static void settle(struct node_store *store, struct entry *entry, bool good)
{
    pthread_mutex_lock(&store->lock);
    if (good && !entry->outdated) {
        entry->state = ENTRY_CACHED;
        link_cached(store, entry);
        evict(store);
    } else {
        /* Those who wait look again, and meet the error themselves. */
        struct entry **p = find(store, entry->level, entry->index);
        *p = entry->chain;
        free(entry);
    }
    pthread_cond_broadcast(&store->computed);
    pthread_mutex_unlock(&store->lock);
}

bool node_store_find(struct node_store *store, unsigned level, uint64_t index, uint8_t *block)
{
    pthread_mutex_lock(&store->lock);
    const struct entry *entry = *find(store, level, index);
    bool found = entry != NULL && entry->state != ENTRY_COMPUTING;
    if (found)
        memcpy(block, entry->block, store->block_size);
    pthread_mutex_unlock(&store->lock);
    return found;
}

/* Removes one, or sees to it that it is not kept once it is computed. */
static void forget(struct node_store *store, struct entry **p)
{
    struct entry *entry = *p;

    if (entry->state == ENTRY_COMPUTING) {
        entry->outdated = true;
        return;
    }
    *p = entry->chain;
    if (entry->state == ENTRY_CACHED)
        unlink_cached(store, entry);
    else
        store->kept--;
    free(entry);
}

void node_store_forget(struct node_store *store, uint64_t first, uint64_t end)
{
    pthread_mutex_lock(&store->lock);
    if (end - first <= store->bucket_mask) {
        for (uint64_t index = first; index < end; index++) {
            struct entry **p = find(store, 0, index);
            if (*p != NULL)
                forget(store, p);
        }
    } else {
        for (size_t i = 0; i <= store->bucket_mask; i++)
            for (struct entry **p = &store->buckets[i]; *p != NULL;) {
                struct entry *e = *p;
                if (e->level == 0 && e->index >= first && e->index < end)
                    forget(store, p);
                if (*p == e)
                    p = &e->chain;
            }
    }
    pthread_mutex_unlock(&store->lock);
}

/*
 * Finds a node without making it: by the digest that it has in the node above, found likewise. Only
 * goes up, and waits for nobody: making nodes goes down and does wait, so the two cannot wait for
 * each other.
 */
static bool find_node(struct hashtree *tree, unsigned level, uint64_t index, const uint8_t *root,
                      uint8_t *block)
{
    const struct verity_geometry *g = &tree->geometry;
    const struct tree_file *file = tree->keep != NULL ? keep_file(tree->keep) : NULL;
    uint8_t expected[VERITY_DIGEST_MAX];

    if (level + 1 == g->levels) {
        memcpy(expected, root, g->digest_size);
    } else {
        /* The parent's block goes where the node's is wanted: only one of its digests matters. */
        uint64_t slot = index & ((UINT64_C(1) << g->fanout_bits) - 1);
        if (!find_node(tree, level + 1, index >> g->fanout_bits, root, block))
            return false;
        memcpy(expected, block + slot * g->digest_slot, g->digest_size);
    }
    return base_node(tree, file, level, index, expected, block);
}

static int compute(struct hashtree *tree, unsigned level, uint64_t index, uint8_t *block,
                   struct error *err)
{
    uint8_t root[VERITY_DIGEST_MAX];

    /* Level 0 is made of the data without further ado, unless there is a file to find it in. */
    if (level > 0 || (tree->keep != NULL && hashtree_root_known(tree))) {
        int r = hashtree_root(tree, root, err);
        if (r < 0)
            return r;
        if (find_node(tree, level, index, root, block))
            return 0;
    }
    atomic_fetch_add_explicit(&tree->nodes_computed, 1, memory_order_relaxed);
    return level == 0 ? compute_level0(tree, index, block, err)
                      : compute_upper(tree, level, index, block, err);
}

int node_get(struct hashtree *tree, unsigned level, uint64_t index, uint8_t *block,
             struct error *err)
{
    struct node_store *store = tree->nodes;
    uint8_t root[VERITY_DIGEST_MAX];
    struct entry *entry;

    /* One build finds all upper nodes for about the price of a single one of the highest levels. */
    if (level > 0) {
        int r = hashtree_root(tree, root, err);
        if (r < 0)
            return r;
    }
    int r = look_up(store, level, index, block, &entry, err);
    if (r < 0 || entry == NULL)
        return r;
    r = compute(tree, level, index, entry->block, err);
    if (r == 0)
        memcpy(block, entry->block, store->block_size);
    settle(store, entry, r == 0);
    return r;
}
