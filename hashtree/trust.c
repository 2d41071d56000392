/* SPDX-License-Identifier: MIT */
/*
 * A tree whose root hash somebody gave, who trusts nothing else.
 *
 * A node is believed once it has the digest that its parent holds, and that one likewise, up to the
 * root. Believed nodes are kept in a cache of bounded size, in sets of a few ways with a mutex
 * each, which is held only to look up and to copy. Two who miss the same node both read and check
 * it.
 *
 * Nodes come from a hash device, or, without one, from where a build that came to this root put
 * them: the tree file, or another file if there is no tree file that has all levels. There, too,
 * they are checked when they are read: such a file, or the process that built it, is no safer than
 * the data. One that is damaged there is made again of the data; what comes of that has to have the
 * digest as well.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/checked.h"
#include "common/io.h"
#include "hashtree/internal.h"

enum {
    WAYS = 4,
    CACHE_BYTES = 32 << 20,
    /* Data blocks that are hashed at a time. */
    BATCH_BLOCKS = 64,
};

struct trusted_node {
    bool used; /* since the set was gone round last */
    unsigned level;
    uint64_t index;
    uint8_t *block; /* NULL: nothing is here */
};

struct trusted_set {
    pthread_mutex_t lock;
    unsigned hand;
    struct trusted_node ways[WAYS];
};

struct trust {
    uint8_t root[VERITY_DIGEST_MAX];
    bool built; /* nodes may be elsewhere, too; else in `fd` only */
    int fd;     /* where nodes lie as in the hash device, or -1 */
    const char *name;
    _Atomic uint64_t blocks_checked, faults;
    size_t set_count; /* a power of two */
    struct trusted_set sets[];
};

static int trust_new(const struct hashtree *tree, const uint8_t *root, int fd, const char *name,
                     struct trust **ret, struct error *err)
{
    size_t sets = 1;

    while (sets * 2 * WAYS * tree->geometry.hash_block_size <= CACHE_BYTES)
        sets *= 2;
    struct trust *trust = calloc(1, sizeof(*trust) + sets * sizeof(trust->sets[0]));
    if (trust == NULL)
        return error_oom(err);
    memcpy(trust->root, root, tree->geometry.digest_size);
    trust->fd = fd;
    trust->name = name;
    trust->set_count = sets;
    for (size_t i = 0; i < sets; i++)
        pthread_mutex_init(&trust->sets[i].lock, NULL);
    *ret = trust;
    return 0;
}

void trust_free(struct trust *trust)
{
    for (size_t i = 0; i < trust->set_count; i++) {
        for (unsigned way = 0; way < WAYS; way++)
            free(trust->sets[i].ways[way].block);
        pthread_mutex_destroy(&trust->sets[i].lock);
    }
    free(trust);
}

/* --- Believed nodes --- */

static struct trusted_set *set_of(struct trust *trust, unsigned level, uint64_t index)
{
    uint64_t hash = (index * 64 + level) * UINT64_C(0x9e3779b97f4a7c15);

    return &trust->sets[(hash >> 32) & (trust->set_count - 1)];
}

/* Copies a part of the node's block. False: it is not here. */
static bool find_believed(struct trust *trust, unsigned level, uint64_t index, size_t start,
                          size_t length, uint8_t *ret)
{
    struct trusted_set *set = set_of(trust, level, index);
    bool found = false;

    pthread_mutex_lock(&set->lock);
    for (unsigned way = 0; way < WAYS && !found; way++) {
        struct trusted_node *node = &set->ways[way];

        if (node->block == NULL || node->level != level || node->index != index)
            continue;
        memcpy(ret, node->block + start, length);
        node->used = true;
        found = true;
    }
    pthread_mutex_unlock(&set->lock);
    return found;
}

/* Takes the block, in exchange for that of the node whose place it takes. */
static void believe(struct trust *trust, unsigned level, uint64_t index, uint8_t **block)
{
    struct trusted_set *set = set_of(trust, level, index);

    pthread_mutex_lock(&set->lock);
    while (set->ways[set->hand].used) {
        set->ways[set->hand].used = false;
        set->hand = (set->hand + 1) % WAYS;
    }
    struct trusted_node *node = &set->ways[set->hand];
    uint8_t *old = node->block;
    *node = (struct trusted_node){.used = true, .level = level, .index = index, .block = *block};
    *block = old;
    pthread_mutex_unlock(&set->lock);
}

static uint64_t node_offset(const struct hashtree *tree, unsigned level, uint64_t index)
{
    return (tree->geometry.level_start[level] + index) * tree->geometry.hash_block_size;
}

/* 0: it has the digest; TRUST_WRONG: it has not. */
static int check_digest(const struct hashtree *tree, const uint8_t *block, const uint8_t *expected,
                        struct error *err)
{
    uint8_t digest[VERITY_DIGEST_MAX];
    size_t size = tree->geometry.digest_size;

    int r = hasher_hash_blocks(tree->hasher, block, tree->geometry.hash_block_size, 1, digest, size,
                               err);
    if (r < 0)
        return r;
    return memcmp(digest, expected, size) == 0 ? 0 : TRUST_WRONG;
}

/* Gets the node that has the digest from where a build left it. */
static int fetch_built(struct hashtree *tree, unsigned level, uint64_t index,
                       const uint8_t *expected, uint8_t *block, struct error *err)
{
    struct trust *trust = tree->trust;
    const struct tree_file *file = tree->keep != NULL ? keep_file(tree->keep) : NULL;

    if (base_node(tree, file, level, index, expected, block))
        return 0;
    if (trust->fd >= 0 &&
        io_read_at(trust->fd, trust->name, block, tree->geometry.hash_block_size,
                   node_offset(tree, level, index), NULL) == 0 &&
        check_digest(tree, block, expected, NULL) == 0)
        return 0;
    io_waits();
    int r = node_get(tree, level, index, block, err);
    return r < 0 ? r : check_digest(tree, block, expected, err);
}

/* Gets the node that has the digest. TRUST_WRONG: what is there has not. */
static int fetch(struct hashtree *tree, unsigned level, uint64_t index, const uint8_t *expected,
                 uint8_t *block, struct error *err)
{
    struct trust *trust = tree->trust;

    if (trust->built)
        return fetch_built(tree, level, index, expected, block, err);
    int r = io_read_at(trust->fd, trust->name, block, tree->geometry.hash_block_size,
                       node_offset(tree, level, index), err);
    return r < 0 ? r : check_digest(tree, block, expected, err);
}

/* A part of a node that is believed. TRUST_WRONG: this one, or one above it, has not the digest
 * that it should have; *ret_fault tells which. */
static int read_node(struct hashtree *tree, unsigned level, uint64_t index, size_t start,
                     size_t length, uint8_t *ret, struct hashtree_fault *ret_fault,
                     struct error *err)
{
    const struct verity_geometry *g = &tree->geometry;
    struct trust *trust = tree->trust;
    uint8_t expected[VERITY_DIGEST_MAX];
    _cleanup_free_ uint8_t *block = NULL;
    int r = 0;

    if (find_believed(trust, level, index, start, length, ret))
        return 0;
    if (level + 1 == g->levels) {
        memcpy(expected, trust->root, g->digest_size);
    } else {
        size_t slot = (size_t)(index & ((UINT64_C(1) << g->fanout_bits) - 1));
        r = read_node(tree, level + 1, index >> g->fanout_bits, slot * g->digest_slot,
                      g->digest_size, expected, ret_fault, err);
        if (r != 0)
            return r;
    }
    block = malloc(g->hash_block_size);
    if (block == NULL)
        return error_oom(err);
    r = fetch(tree, level, index, expected, block, err);
    if (r == TRUST_WRONG)
        *ret_fault = (struct hashtree_fault){
            .kind = HASHTREE_FAULT_NODE,
            .level = level,
            .index = index,
            .offset = node_offset(tree, level, index),
        };
    if (r != 0)
        return r;
    memcpy(ret, block + start, length);
    believe(trust, level, index, &block);
    return 0;
}

int trust_node(struct hashtree *tree, unsigned level, uint64_t index, uint8_t *block,
               struct error *err)
{
    struct hashtree_fault fault;

    int r = read_node(tree, level, index, 0, tree->geometry.hash_block_size, block, &fault, err);
    if (r == TRUST_WRONG)
        return error_set(err, EIO,
                         "level %u, hash block %" PRIu64
                         ": not what the root hash, or the level above, says",
                         fault.level, fault.index);
    return r;
}

/* --- Data --- */

struct checking {
    struct hashtree *tree;
    void (*report)(const struct hashtree_fault *fault, void *arg);
    void *arg;
    uint64_t faults;
};

static void tell(struct checking *c, const struct hashtree_fault *fault)
{
    c->faults++;
    atomic_fetch_add_explicit(&c->tree->trust->faults, 1, memory_order_relaxed);
    if (c->report != NULL)
        c->report(fault, c->arg);
}

/* The digests that `count` blocks should have, all of them below one node of level 0. */
static int expected_digests(struct checking *c, uint64_t first, size_t count, uint8_t *slots,
                            struct hashtree_fault *ret_fault, struct error *err)
{
    const struct verity_geometry *g = &c->tree->geometry;
    size_t slot = (size_t)(first & ((UINT64_C(1) << g->fanout_bits) - 1));

    if (g->levels == 0) {
        memcpy(slots, c->tree->trust->root, g->digest_size);
        return 0;
    }
    return read_node(c->tree, 0, first >> g->fanout_bits, slot * g->digest_slot,
                     (count - 1) * g->digest_slot + g->digest_size, slots, ret_fault, err);
}

static int check_batch(struct checking *c, uint64_t first, size_t count, const uint8_t *data,
                       struct error *err)
{
    const struct hashtree *tree = c->tree;
    const struct verity_geometry *g = &tree->geometry;
    uint8_t expected[BATCH_BLOCKS * VERITY_DIGEST_MAX], found[BATCH_BLOCKS * VERITY_DIGEST_MAX];
    struct hashtree_fault fault;

    int r = expected_digests(c, first, count, expected, &fault, err);
    if (r == TRUST_WRONG) {
        tell(c, &fault);
        return 0;
    }
    if (r == 0 && data != NULL)
        r = hasher_hash_blocks(tree->hasher, data, tree->params.data_block_size, count, found,
                               g->digest_slot, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *digest = data != NULL ? found + i * g->digest_slot : tree->zero_digest;

        if (memcmp(digest, expected + i * g->digest_slot, g->digest_size) != 0)
            tell(c, &(struct hashtree_fault){
                        .kind = HASHTREE_FAULT_DATA,
                        .index = first + i,
                        .offset = (first + i) * tree->params.data_block_size,
                    });
    }
    return 0;
}

int hashtree_check(struct hashtree *tree, uint64_t first, uint64_t count, const uint8_t *data,
                   void (*report)(const struct hashtree_fault *fault, void *arg), void *arg,
                   uint64_t *ret_faults, struct error *err)
{
    struct checking c = {.tree = tree, .report = report, .arg = arg};
    uint64_t fanout = UINT64_C(1) << tree->geometry.fanout_bits;

    assert(tree->trust != NULL && range_within(first, count, tree->params.data_blocks));
    atomic_fetch_add_explicit(&tree->trust->blocks_checked, count, memory_order_relaxed);
    while (count > 0) {
        size_t n = (size_t)min_u64(min_u64(count, BATCH_BLOCKS), fanout - (first & (fanout - 1)));

        int r = check_batch(&c, first, n, data, err);
        if (r < 0)
            return r;
        first += n;
        count -= n;
        if (data != NULL)
            data += n * tree->params.data_block_size;
    }
    *ret_faults = c.faults;
    return 0;
}

/* --- Building --- */

static int wrong_root(const char *name, struct error *err)
{
    return error_set(err, HASHTREE_WRONG_ROOT, "%s: does not have this root hash", name);
}

#define NODES_NAME "temporary file for hash blocks"

struct nodes_file {
    const struct hashtree *tree;
    int fd;
};

static int put_nodes(void *arg, unsigned level, uint64_t first, uint64_t count,
                     const uint8_t *blocks, struct error *err)
{
    const struct nodes_file *file = arg;

    return io_write_at(file->fd, NODES_NAME, blocks, count * file->tree->geometry.hash_block_size,
                       node_offset(file->tree, level, first), err);
}

/* base_node() knows them. */
static int skip_constants(void *arg, unsigned level, uint64_t first, uint64_t count,
                          struct error *err)
{
    (void)arg, (void)level, (void)first, (void)count, (void)err;
    return 0;
}

/* Whether the tree file has nodes of all levels. */
static bool kept_whole(const struct hashtree *tree)
{
    const struct tree_file *file = tree->keep != NULL ? keep_file(tree->keep) : NULL;

    for (; file != NULL; file = tree_file_below(file))
        if (tree_file_header(file)->lean)
            return false;
    return tree->keep != NULL && keep_file(tree->keep) != NULL;
}

int hashtree_build_nodes(struct hashtree *tree, const uint8_t *root, int nodes_fd,
                         struct error *err)
{
    struct nodes_file file = {tree, nodes_fd};
    struct node_sink sink = {put_nodes, skip_constants, &file};
    uint8_t found[VERITY_DIGEST_MAX];
    int r = 0;

    if (tree->keep != NULL)
        r = hashtree_root(tree, found, err);
    if (r == 0 && !kept_whole(tree)) {
        if (nodes_fd < 0)
            return error_set_errno(err, EBADF, NODES_NAME);
        r = hashtree_build(tree, &sink, err);
        if (r == 0)
            r = hashtree_root(tree, found, err);
    }
    if (r < 0)
        return r;
    return memcmp(found, root, tree->geometry.digest_size) == 0
               ? 0
               : wrong_root(image_path(tree->image), err);
}

/* --- Beginning --- */

/* The root hash is what was given. */
static void take_root(struct hashtree *tree)
{
    pthread_mutex_lock(&tree->lock);
    memcpy(tree->root, tree->trust->root, sizeof(tree->root));
    tree->root_known = true;
    atomic_store_explicit(&tree->current, true, memory_order_release);
    pthread_mutex_unlock(&tree->lock);
}

static int read_top(struct hashtree *tree, struct error *err)
{
    _cleanup_free_ uint8_t *block = malloc(tree->geometry.hash_block_size);
    struct hashtree_fault fault;

    if (block == NULL)
        return error_oom(err);
    if (tree->geometry.levels == 0)
        return 0;
    int r = read_node(tree, tree->geometry.levels - 1, 0, 0, tree->geometry.hash_block_size, block,
                      &fault, err);
    return r == TRUST_WRONG ? wrong_root(tree->trust->name, err) : r;
}

int hashtree_trust(struct hashtree *tree, const uint8_t *root, int hash_fd, const char *hash_name,
                   struct error *err)
{
    assert(tree->trust == NULL && tree->changes == NULL);
    int r = trust_new(tree, root, hash_fd, hash_name, &tree->trust, err);
    if (r < 0)
        return r;
    r = read_top(tree, err);
    if (r < 0) {
        trust_free(tree->trust);
        tree->trust = NULL;
        return r;
    }
    take_root(tree);
    return 0;
}

int hashtree_trust_built(struct hashtree *tree, const uint8_t *root, int nodes_fd,
                         struct error *err)
{
    assert(tree->trust == NULL && tree->changes == NULL);
    int r = trust_new(tree, root, nodes_fd, NODES_NAME, &tree->trust, err);
    if (r < 0)
        return r;
    tree->trust->built = true;
    take_root(tree);
    return 0;
}

bool hashtree_trusted(const struct hashtree *tree, uint64_t *ret_checked, uint64_t *ret_faults)
{
    if (tree->trust == NULL)
        return false;
    *ret_checked = atomic_load_explicit(&tree->trust->blocks_checked, memory_order_relaxed);
    *ret_faults = atomic_load_explicit(&tree->trust->faults, memory_order_relaxed);
    return true;
}
