/* SPDX-License-Identifier: MIT */
/*
 * Checking data and a hash device against each other and against a root hash.
 *
 * A build computes every node from the data; each is compared with its block in the hash device.
 * Equal blocks need no more thought. Where they differ, the digest that the device's own parent
 * block holds tells whose fault it is: if the device's block does not have it, that block is
 * damaged; if it does, the device is of one mind up to here, and the entries that differ are looked
 * at. At level 0 their data blocks are the ones that changed. Above it the blocks below them are
 * wrong: those that differ from the computed ones are told when their turn comes, those that do not
 * (somebody made a new parent for the old block) are told here.
 *
 * Whatever this finds, a root hash that the data does not have is never passed: if nothing else was
 * told, that is.
 */
#include <string.h>

#include "common/checked.h"
#include "common/io.h"
#include "hashtree/internal.h"

struct verifier {
    struct hashtree *tree;
    const uint8_t *root;
    int fd;
    const char *name;
    void (*report)(const struct hashtree_fault *fault, void *arg);
    void *arg;
    pthread_mutex_t lock; /* around report */
    uint64_t faults;      /* under lock */
    bool top_differs;     /* the device's topmost block is not what the data gives */
};

static void tell(struct verifier *v, const struct hashtree_fault *fault)
{
    pthread_mutex_lock(&v->lock);
    v->faults++;
    if (v->report != NULL)
        v->report(fault, v->arg);
    pthread_mutex_unlock(&v->lock);
}

static uint64_t node_offset(const struct hashtree *tree, unsigned level, uint64_t index)
{
    return (tree->geometry.level_start[level] + index) * tree->geometry.hash_block_size;
}

/* The digest that a block of the device should have: its parent's entry, or the root hash. */
static int expected_digest(struct verifier *v, unsigned level, uint64_t index, uint8_t *digest,
                           struct error *err)
{
    const struct verity_geometry *g = &v->tree->geometry;

    if (level + 1 == g->levels) {
        memcpy(digest, v->root, g->digest_size);
        return 0;
    }
    uint64_t slot = index & ((UINT64_C(1) << g->fanout_bits) - 1);
    return io_read_at(
        v->fd, v->name, digest, g->digest_size,
        node_offset(v->tree, level + 1, index >> g->fanout_bits) + slot * g->digest_slot, err);
}

/* Entry i of a block that is as its parent says is not what was computed from below. */
static int judge_entry(struct verifier *v, unsigned level, uint64_t child, const uint8_t *computed,
                       uint8_t *scratch, struct error *err)
{
    const struct verity_geometry *g = &v->tree->geometry;
    uint8_t digest[VERITY_DIGEST_MAX];

    if (level == 0) {
        tell(v, &(struct hashtree_fault){
                    .kind = HASHTREE_FAULT_DATA,
                    .index = child,
                    .offset = child * v->tree->params.data_block_size,
                });
        return 0;
    }
    int r = io_read_at(v->fd, v->name, scratch, g->hash_block_size,
                       node_offset(v->tree, level - 1, child), err);
    if (r == 0)
        r = hasher_hash_blocks(v->tree->hasher, scratch, g->hash_block_size, 1, digest,
                               g->digest_size, err);
    if (r == 0 && memcmp(digest, computed, g->digest_size) == 0)
        tell(v, &(struct hashtree_fault){
                    .kind = HASHTREE_FAULT_NODE,
                    .level = level - 1,
                    .index = child,
                    .offset = node_offset(v->tree, level - 1, child),
                });
    return r;
}

static int judge_entries(struct verifier *v, unsigned level, uint64_t index,
                         const uint8_t *computed, const uint8_t *block, struct error *err)
{
    const struct verity_geometry *g = &v->tree->geometry;
    uint64_t first = index << g->fanout_bits;
    uint64_t count = min_u64(tree_children(v->tree, level) - first, UINT64_C(1) << g->fanout_bits);
    _cleanup_free_ uint8_t *scratch = malloc(g->hash_block_size);
    int r = 0;

    if (scratch == NULL)
        return error_oom(err);
    for (uint64_t i = 0; r == 0 && i < count; i++) {
        size_t at = i * g->digest_slot;
        if (memcmp(computed + at, block + at, g->digest_size) != 0)
            r = judge_entry(v, level, first + i, computed + at, scratch, err);
    }
    return r;
}

static int judge_difference(struct verifier *v, unsigned level, uint64_t index,
                            const uint8_t *computed, const uint8_t *block, struct error *err)
{
    const struct verity_geometry *g = &v->tree->geometry;
    uint8_t expected[VERITY_DIGEST_MAX], digest[VERITY_DIGEST_MAX];

    if (level + 1 == g->levels)
        v->top_differs = true;
    int r = expected_digest(v, level, index, expected, err);
    if (r == 0)
        r = hasher_hash_blocks(v->tree->hasher, block, g->hash_block_size, 1, digest,
                               g->digest_size, err);
    if (r < 0)
        return r;
    if (memcmp(digest, expected, g->digest_size) == 0)
        return judge_entries(v, level, index, computed, block, err);
    tell(v, &(struct hashtree_fault){
                .kind = level + 1 == g->levels ? HASHTREE_FAULT_ROOT : HASHTREE_FAULT_NODE,
                .level = level,
                .index = index,
                .offset = node_offset(v->tree, level, index),
            });
    return 0;
}

static int check_nodes(void *arg, unsigned level, uint64_t first, uint64_t count,
                       const uint8_t *blocks, struct error *err)
{
    struct verifier *v = arg;
    uint32_t block_size = v->tree->geometry.hash_block_size;
    _cleanup_free_ uint8_t *device = malloc(count * block_size);

    if (device == NULL)
        return error_oom(err);
    int r = io_read_at(v->fd, v->name, device, count * block_size,
                       node_offset(v->tree, level, first), err);
    for (uint64_t i = 0; r == 0 && i < count; i++) {
        const uint8_t *computed = blocks + i * block_size, *block = device + i * block_size;
        if (memcmp(computed, block, block_size) != 0)
            r = judge_difference(v, level, first + i, computed, block, err);
    }
    return r;
}

static int check_constants(void *arg, unsigned level, uint64_t first, uint64_t count,
                           struct error *err)
{
    struct verifier *v = arg;
    uint32_t block_size = v->tree->geometry.hash_block_size;
    uint64_t room = min_u64(count, max_u64(SEGMENT_BYTES / 4 / block_size, 1));
    _cleanup_free_ uint8_t *blocks = malloc(room * block_size);

    if (blocks == NULL)
        return error_oom(err);
    while (count > 0) {
        uint64_t n = min_u64(count, room);
        for (uint64_t i = 0; i < n; i++)
            constant_node(v->tree, level, first + i, blocks + i * block_size);
        int r = check_nodes(v, level, first, n, blocks, err);
        if (r < 0)
            return r;
        first += n;
        count -= n;
    }
    return 0;
}

int hashtree_verify(struct hashtree *tree, const uint8_t *root, int hash_fd, const char *hash_name,
                    void (*report)(const struct hashtree_fault *fault, void *arg), void *arg,
                    uint64_t *ret_faults, struct error *err)
{
    struct verifier v = {
        .tree = tree,
        .root = root,
        .fd = hash_fd,
        .name = hash_name,
        .report = report,
        .arg = arg,
    };
    struct node_sink sink = {check_nodes, check_constants, &v};
    uint8_t computed[VERITY_DIGEST_MAX];

    pthread_mutex_init(&v.lock, NULL);
    int r = hashtree_build(tree, hash_fd >= 0 ? &sink : NULL, err);
    if (r == 0)
        r = hashtree_root(tree, computed, err);
    /* If the device's topmost block differs from the data's, it was judged against the root by
     * itself; if it is equal, or there is no device, this is what judges it. It also stands for
     * blocks that are of one mind with the root but for bytes that are no entries. */
    if (r == 0 && (!v.top_differs || v.faults == 0) &&
        memcmp(computed, root, tree->geometry.digest_size) != 0)
        tell(&v, &(struct hashtree_fault){.kind = HASHTREE_FAULT_ROOT});
    pthread_mutex_destroy(&v.lock);
    if (r == 0)
        *ret_faults = v.faults;
    return r;
}
