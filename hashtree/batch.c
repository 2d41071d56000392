/* SPDX-License-Identifier: MIT */
/*
 * Nodes that a worker has completed and not hashed yet: the topmost ones of its segments, and
 * shared ones whose last child it hashed. Alone, as scattered data has them, they would leave most
 * of a hash kernel's lanes empty.
 */
#include <string.h>

#include "hashtree/internal.h"

int node_batch_init(const struct plan *plan, struct node_batch *batch, struct error *err)
{
    batch->count = 0;
    batch->blocks = malloc((size_t)BATCH_NODES * plan->tree->geometry.hash_block_size);
    return batch->blocks != NULL ? 0 : error_oom(err);
}

int node_batch_add(struct plan *plan, struct node_batch *batch, struct shared_node *parent,
                   uint64_t index, const uint8_t *block, struct error *err)
{
    const struct verity_geometry *g = &plan->tree->geometry;
    uint64_t slot = index & ((UINT64_C(1) << g->fanout_bits) - 1);

    atomic_fetch_add_explicit(&parent->pending, 1, memory_order_relaxed);
    memcpy(batch->blocks + batch->count * (size_t)g->hash_block_size, block, g->hash_block_size);
    batch->to[batch->count].parent = parent;
    batch->to[batch->count].slot = parent->block + slot * g->digest_slot;
    batch->count++;
    return batch->count == BATCH_NODES ? node_batch_hash(plan, batch, err) : 0;
}

int node_batch_hash(struct plan *plan, struct node_batch *batch, struct error *err)
{
    const struct verity_geometry *g = &plan->tree->geometry;
    uint8_t digests[BATCH_NODES * VERITY_DIGEST_MAX];
    struct node_batch_entry to[BATCH_NODES];
    unsigned count = batch->count;

    int r = hasher_hash_blocks(plan->tree->hasher, batch->blocks, g->hash_block_size, count,
                               digests, VERITY_DIGEST_MAX, err);
    if (r < 0)
        atomic_store(plan->stop, true);
    else
        atomic_fetch_add_explicit(&plan->tree->nodes_computed, count, memory_order_relaxed);
    /* The parents that are complete now go into the batch, which may be hashed once more for it:
     * as deep as the tree is high. */
    memcpy(to, batch->to, sizeof(to));
    batch->count = 0;
    for (unsigned i = 0; i < count; i++) {
        if (r == 0)
            memcpy(to[i].slot, digests + i * VERITY_DIGEST_MAX, g->digest_size);
        int released = node_release(plan, to[i].parent, batch, r == 0 ? err : NULL);
        if (r == 0)
            r = released;
    }
    return r;
}

int node_batch_flush(struct plan *plan, struct node_batch *batch, struct error *err)
{
    int r = 0;

    while (r == 0 && batch->count > 0)
        r = node_batch_hash(plan, batch, err);
    return r;
}

void node_batch_free(struct plan *plan, struct node_batch *batch)
{
    for (unsigned i = 0; i < batch->count; i++)
        node_release(plan, batch->to[i].parent, NULL, NULL);
    free(batch->blocks);
}
