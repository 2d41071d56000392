/* SPDX-License-Identifier: MIT */
/*
 * Nodes over data that is all zeros. All full nodes of one level are alike; the last one of a level
 * may have fewer entries, and a last entry of its own. So a level has two digests, and any such
 * node can be written down without looking at data.
 */
#include <string.h>

#include "hashtree/internal.h"

static bool is_last(const struct hashtree *tree, unsigned level, uint64_t index)
{
    return index == tree->geometry.level_blocks[level] - 1;
}

const uint8_t *constant_child_digest(const struct hashtree *tree, unsigned level, uint64_t index)
{
    if (level == 0)
        return tree->zero_digest;
    return is_last(tree, level - 1, index) ? tree->last_digest[level - 1]
                                           : tree->full_digest[level - 1];
}

/* Repeats the digest slot at the start of `block` for all of `count` entries, by doubling. */
static void repeat_slot(uint8_t *block, size_t slot, size_t count)
{
    size_t size = slot * count;

    for (size_t done = slot; done < size; done *= 2)
        memcpy(block + done, block, done < size - done ? done : size - done);
}

static void fill_node(const struct hashtree *tree, const uint8_t *digest,
                      const uint8_t *last_digest, uint64_t count, uint8_t *block)
{
    size_t size = tree->geometry.digest_size, slot = tree->geometry.digest_slot;

    memset(block, 0, tree->geometry.hash_block_size);
    memcpy(block, digest, size);
    repeat_slot(block, slot, count);
    memcpy(block + (count - 1) * slot, last_digest, size);
}

void constant_node(const struct hashtree *tree, unsigned level, uint64_t index, uint8_t *block)
{
    uint64_t fanout = UINT64_C(1) << tree->geometry.fanout_bits;
    uint64_t first = index << tree->geometry.fanout_bits;
    uint64_t children = tree_children(tree, level);
    uint64_t count = children - first < fanout ? children - first : fanout;

    fill_node(tree, level == 0 ? tree->zero_digest : tree->full_digest[level - 1],
              constant_child_digest(tree, level, first + count - 1), count, block);
}

int constant_init(struct hashtree *tree, struct error *err)
{
    const struct verity_geometry *g = &tree->geometry;
    uint32_t data_block_size = tree->params.data_block_size;
    size_t room = data_block_size > g->hash_block_size ? data_block_size : g->hash_block_size;
    _cleanup_free_ uint8_t *block = NULL;

    block = calloc(1, room);
    if (block == NULL)
        return error_oom(err);
    int r = hasher_hash_blocks(tree->hasher, block, data_block_size, 1, tree->zero_digest,
                               g->digest_size, err);
    for (unsigned level = 0; r == 0 && level < g->levels; level++) {
        const uint8_t *full = level == 0 ? tree->zero_digest : tree->full_digest[level - 1];
        fill_node(tree, full, full, UINT64_C(1) << g->fanout_bits, block);
        r = hasher_hash_blocks(tree->hasher, block, g->hash_block_size, 1, tree->full_digest[level],
                               g->digest_size, err);
        if (r < 0)
            break;
        constant_node(tree, level, g->level_blocks[level] - 1, block);
        r = hasher_hash_blocks(tree->hasher, block, g->hash_block_size, 1, tree->last_digest[level],
                               g->digest_size, err);
    }
    return r;
}
