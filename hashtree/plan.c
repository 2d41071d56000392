/* SPDX-License-Identifier: MIT */
/*
 * The plan of a build: where there is data, and how finished pieces come together.
 *
 * The data is cut into segments of about SEGMENT_BYTES, aligned so that whole nodes of the lower
 * levels lie within one segment. A worker makes those alone (segment.c). Nodes of level `unit` and
 * above are shared: the plan walks over the data in order and keeps one open node of each shared
 * level, the path from its cursor to the root. A node starts out as if all data below it were
 * zeros, so that what the plan skips needs no work at all; a child that is hashed puts its digest
 * over the constant one.
 *
 * A shared node is complete once the plan has moved past it and all its children that were opened
 * are complete: `pending` counts these. Thus at any moment only the path and the nodes above
 * segments in flight are in memory, however large the image.
 *
 * Locking: plan->lock guards the cursor, the path, and the list of constant nodes. It is taken once
 * a segment. Mapping happens under it, hashing and sinks never do.
 */
#include <assert.h>
#include <string.h>

#include "common/checked.h"
#include "hashtree/internal.h"

/* Constant nodes that one piece of work tells the sink about. */
#define CONSTANTS_AT_ONCE 256

static uint64_t round_down_to_power_of_two(uint64_t n)
{
    assert(n > 0);
    return UINT64_C(1) << (63 - __builtin_clzll(n));
}

static void choose_unit(struct plan *plan)
{
    const struct hashtree *tree = plan->tree;
    unsigned bits = tree->geometry.fanout_bits;
    uint64_t limit = max_u64(SEGMENT_BYTES / tree->params.data_block_size, 1);

    plan->unit = 0;
    while (plan->unit < tree->geometry.levels && UINT64_C(1) << (bits * (plan->unit + 1)) <= limit)
        plan->unit++;
    uint64_t node_blocks = UINT64_C(1) << (bits * plan->unit);
    plan->segment_blocks = plan->unit == tree->geometry.levels
                               ? node_blocks
                               : node_blocks * round_down_to_power_of_two(limit / node_blocks);
}

static struct shared_node *node_new(const struct hashtree *tree, unsigned level, uint64_t index,
                                    struct shared_node *parent)
{
    size_t size =
        level == tree->geometry.levels ? VERITY_DIGEST_MAX : tree->geometry.hash_block_size;
    struct shared_node *node = malloc(sizeof(*node) + size);

    if (node == NULL)
        return NULL;
    node->parent = parent;
    node->level = level;
    node->index = index;
    atomic_init(&node->pending, 1);
    if (level == tree->geometry.levels)
        memcpy(node->block, constant_child_digest(tree, level, 0), tree->geometry.digest_size);
    else
        constant_node(tree, level, index, node->block);
    if (parent != NULL)
        atomic_fetch_add_explicit(&parent->pending, 1, memory_order_relaxed);
    return node;
}

int plan_init(struct plan *plan, struct hashtree *tree, const struct node_sink *sink,
              _Atomic bool *stop, struct error *err)
{
    memset(plan, 0, sizeof(*plan));
    plan->tree = tree;
    plan->stop = stop;
    if (sink != NULL)
        plan->sink = *sink;
    choose_unit(plan);
    unsigned top = tree->geometry.levels;
    plan->path[top] = node_new(tree, top, 0, NULL);
    if (plan->path[top] == NULL)
        return error_oom(err);
    pthread_mutex_init(&plan->lock, NULL);
    return 0;
}

void plan_free(struct plan *plan)
{
    pthread_mutex_destroy(&plan->lock);
}

/* --- Assembling --- */

static int node_complete(struct plan *plan, struct shared_node *node, struct error *err)
{
    const struct hashtree *tree = plan->tree;
    const struct verity_geometry *g = &tree->geometry;

    if (node->parent == NULL) {
        memcpy(plan->root, node->block, g->digest_size);
        return 0;
    }
    if (plan->sink.nodes != NULL) {
        int r = plan->sink.nodes(plan->sink.arg, node->level, node->index, 1, node->block, err);
        if (r < 0)
            return r;
    }
    uint64_t slot = node->index & ((UINT64_C(1) << g->fanout_bits) - 1);
    return hasher_hash_blocks(tree->hasher, node->block, g->hash_block_size, 1,
                              node->parent->block + slot * g->digest_slot, g->digest_size, err);
}

int node_release(struct plan *plan, struct shared_node *node, struct error *err)
{
    int result = 0;

    while (node != NULL &&
           atomic_fetch_sub_explicit(&node->pending, 1, memory_order_acq_rel) == 1) {
        if (!atomic_load_explicit(plan->stop, memory_order_relaxed)) {
            int r = node_complete(plan, node, err);
            if (r < 0) {
                /* The ancestors are released all the same, but not hashed. */
                atomic_store(plan->stop, true);
                result = r;
            } else {
                atomic_fetch_add_explicit(&plan->tree->nodes_computed, 1, memory_order_relaxed);
            }
        }
        struct shared_node *parent = node->parent;
        free(node);
        node = parent;
    }
    return result;
}

/* --- Handing out --- */

static void add_constants(struct plan *plan, unsigned level, uint64_t end)
{
    uint64_t first = plan->next[level];

    if (plan->sink.constants == NULL || first >= end)
        return;
    assert(plan->constants_count < sizeof(plan->constants) / sizeof(plan->constants[0]));
    plan->constants[plan->constants_count++] = (struct constant_range){level, first, end};
}

static void take_constants(struct plan *plan, struct plan_item *ret)
{
    struct constant_range *range = &plan->constants[plan->constants_count - 1];
    uint64_t count = min_u64(range->end - range->first, CONSTANTS_AT_ONCE);

    *ret = (struct plan_item){
        .kind = PLAN_CONSTANTS, .level = range->level, .first = range->first, .count = count};
    range->first += count;
    if (range->first == range->end)
        plan->constants_count--;
}

/* The plan has moved on: nodes that are no longer on its path. */
struct closed_nodes {
    struct shared_node *nodes[VERITY_LEVELS_MAX];
    unsigned count;
};

/* Makes node `index` of `level` the open one, with its ancestors. NULL when out of memory. */
static struct shared_node *open_node(struct plan *plan, unsigned level, uint64_t index,
                                     struct closed_nodes *closed)
{
    struct shared_node *open = plan->path[level];

    if (open != NULL && open->index == index)
        return open;
    struct shared_node *parent =
        open_node(plan, level + 1, index >> plan->tree->geometry.fanout_bits, closed);
    if (parent == NULL)
        return NULL;
    struct shared_node *node = node_new(plan->tree, level, index, parent);
    if (node == NULL)
        return NULL;
    if (open != NULL)
        closed->nodes[closed->count++] = open;
    plan->path[level] = node;
    add_constants(plan, level, index);
    plan->next[level] = index + 1;
    return node;
}

/* Moves the cursor to the next data. */
static int skip_zeros(struct plan *plan, uint64_t end, struct error *err)
{
    struct hashtree *tree = plan->tree;
    struct extent extent;

    while (plan->cursor < end && !atomic_load_explicit(plan->stop, memory_order_relaxed)) {
        int r = image_map(tree->image, tree->start + plan->cursor, end - plan->cursor,
                          IMAGE_MAP_HOLES, &extent, err);
        if (r < 0)
            return r;
        if (extent.kind != EXTENT_ZERO)
            return 0;
        plan->cursor += extent.length;
    }
    return 0;
}

static void end_plan(struct plan *plan)
{
    const struct verity_geometry *g = &plan->tree->geometry;

    plan->ended = true;
    for (unsigned level = 0; level < g->levels; level++) {
        add_constants(plan, level, g->level_blocks[level]);
        plan->next[level] = g->level_blocks[level];
    }
}

static int take_segment(struct plan *plan, struct plan_item *ret, struct closed_nodes *closed,
                        struct error *err)
{
    struct hashtree *tree = plan->tree;
    uint32_t block_size = tree->params.data_block_size;
    unsigned bits = tree->geometry.fanout_bits;
    uint64_t end = tree_data_size(tree);

    int r = skip_zeros(plan, end, err);
    if (r < 0)
        return r;
    if (plan->cursor >= end || atomic_load_explicit(plan->stop, memory_order_relaxed)) {
        end_plan(plan);
        return 0;
    }
    uint64_t first = align_down(plan->cursor / block_size, plan->segment_blocks);
    uint64_t after = min_u64(first + plan->segment_blocks, tree->params.data_blocks);
    uint64_t parent_index =
        plan->unit == tree->geometry.levels ? 0 : first >> (bits * plan->unit) >> bits;
    struct shared_node *parent = open_node(plan, plan->unit, parent_index, closed);
    if (parent == NULL)
        return error_oom(err);
    atomic_fetch_add_explicit(&parent->pending, 1, memory_order_relaxed);
    for (unsigned level = 0; level < plan->unit; level++) {
        add_constants(plan, level, first >> (bits * (level + 1)));
        plan->next[level] = div_round_up(after, UINT64_C(1) << (bits * (level + 1)));
    }
    *ret = (struct plan_item){
        .kind = PLAN_SEGMENT, .first_block = first, .end_block = after, .parent = parent};
    plan->cursor = after * block_size;
    return 0;
}

int plan_next(struct plan *plan, struct plan_item *ret, struct error *err)
{
    struct closed_nodes closed = {.count = 0};
    struct plan_item item = {.kind = PLAN_END};
    int r = 0;

    pthread_mutex_lock(&plan->lock);
    if (plan->constants_count == 0 && !plan->ended)
        r = take_segment(plan, &item, &closed, err);
    if (r == 0 && item.kind == PLAN_END && plan->constants_count > 0)
        take_constants(plan, &item);
    pthread_mutex_unlock(&plan->lock);

    /* Outside the lock: this can hash, and the sink can write. */
    for (unsigned i = 0; i < closed.count; i++) {
        int released = node_release(plan, closed.nodes[i], err);
        if (released < 0)
            r = released;
    }
    if (r < 0) {
        if (item.kind == PLAN_SEGMENT)
            node_release(plan, item.parent, NULL);
        return r;
    }
    *ret = item;
    return 0;
}

int plan_finish(struct plan *plan, struct error *err)
{
    int result = 0;

    for (unsigned level = plan->unit; level <= plan->tree->geometry.levels; level++) {
        struct shared_node *node = TAKE_PTR(plan->path[level]);
        int r = node_release(plan, node, err);
        if (r < 0)
            result = r;
    }
    return result;
}
