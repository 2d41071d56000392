/* SPDX-License-Identifier: MIT */
/*
 * Nodes of an older tree. Nothing here is taken on trust: a node from a tree file is the one that
 * is meant if it has the digest that the node above it holds. Nodes in memory are our own.
 */
#include <string.h>

#include "hashtree/internal.h"

static bool has_digest(const struct hashtree *tree, const uint8_t *block, const uint8_t *expected)
{
    uint8_t digest[VERITY_DIGEST_MAX];

    return hasher_hash_blocks(tree->hasher, block, tree->geometry.hash_block_size, 1, digest,
                              tree->geometry.digest_size, NULL) == 0 &&
           memcmp(digest, expected, tree->geometry.digest_size) == 0;
}

static bool is_constant(const struct hashtree *tree, unsigned level, uint64_t index,
                        const uint8_t *expected)
{
    return memcmp(expected, constant_child_digest(tree, level + 1, index),
                  tree->geometry.digest_size) == 0;
}

bool base_node(const struct hashtree *tree, const struct tree_file *file, unsigned level,
               uint64_t index, const uint8_t *expected, uint8_t *block)
{
    if (is_constant(tree, level, index, expected)) {
        constant_node(tree, level, index, block);
        return true;
    }
    if (node_store_find(tree->nodes, level, index, block) && has_digest(tree, block, expected))
        return true;
    for (; file != NULL; file = tree_file_below(file))
        if (tree_file_read(file, level, index, block) && has_digest(tree, block, expected))
            return true;
    return false;
}
