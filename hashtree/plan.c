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
 * With a base, an older tree, nodes start out as the base's, and the plan goes from change to
 * change instead of from data to data. A node that the base cannot give is started as if all data
 * below were zeros, and all data below it counts as changed ("fresh").
 *
 * A shared node is complete once the plan has moved past it and all its children that were opened
 * are complete: `pending` counts these. Thus at any moment only the path and the nodes above
 * segments in flight are in memory, however large the image.
 *
 * Locking: plan->lock guards the cursor, the path, and the list of constant nodes. It is taken once
 * a segment, or a few with little data in them. Mapping happens under it, hashing and sinks never
 * do.
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

static uint8_t *node_slot(const struct hashtree *tree, struct shared_node *node, uint64_t child)
{
    uint64_t mask = (UINT64_C(1) << tree->geometry.fanout_bits) - 1;

    return node->block + (child & mask) * tree->geometry.digest_slot;
}

/* What the node holds before anything below it is hashed. */
static void fill_node(struct plan *plan, struct shared_node *node)
{
    const struct hashtree *tree = plan->tree;
    uint64_t first, end;

    if (node->parent == NULL) {
        memcpy(node->block,
               plan->base != NULL ? plan->base->root : constant_child_digest(tree, node->level, 0),
               tree->geometry.digest_size);
        return;
    }
    verity_geometry_span(&tree->geometry, tree->params.data_blocks, node->level, node->index,
                         &first, &end);
    if (plan->base != NULL && first * tree->params.data_block_size >= plan->fresh_end) {
        if (base_node(tree, plan->base->file, node->level, node->index,
                      node_slot(tree, node->parent, node->index), node->block))
            return;
        /* Nothing below it was handed out yet, so the cursor may go back to its start. */
        atomic_store_explicit(&plan->distrust, true, memory_order_relaxed);
        plan->fresh_end = end * tree->params.data_block_size;
        plan->cursor = first * tree->params.data_block_size;
    }
    constant_node(tree, node->level, node->index, node->block);
}

static struct shared_node *node_new(struct plan *plan, unsigned level, uint64_t index,
                                    struct shared_node *parent)
{
    const struct hashtree *tree = plan->tree;
    size_t size =
        level == tree->geometry.levels ? VERITY_DIGEST_MAX : tree->geometry.hash_block_size;
    struct shared_node *node = malloc(sizeof(*node) + size);

    if (node == NULL)
        return NULL;
    node->parent = parent;
    node->level = level;
    node->index = index;
    atomic_init(&node->pending, 1);
    fill_node(plan, node);
    if (parent != NULL)
        atomic_fetch_add_explicit(&parent->pending, 1, memory_order_relaxed);
    return node;
}

int plan_init(struct plan *plan, struct hashtree *tree, const struct node_base *base,
              const struct node_sink *sink, _Atomic bool *stop, struct error *err)
{
    pthread_mutexattr_t attr;

    memset(plan, 0, sizeof(*plan));
    plan->tree = tree;
    plan->base = base;
    plan->stop = stop;
    if (sink != NULL)
        plan->sink = *sink;
    choose_unit(plan);
    unsigned top = tree->geometry.levels;
    plan->path[top] = node_new(plan, top, 0, NULL);
    if (plan->path[top] == NULL)
        return error_oom(err);
    /* It is held for a few microseconds at a time: waiting in the kernel takes longer. */
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&plan->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    return 0;
}

void plan_free(struct plan *plan)
{
    pthread_mutex_destroy(&plan->lock);
}

/* --- Assembling --- */

static int node_complete(struct plan *plan, struct shared_node *node, struct node_batch *batch,
                         struct error *err)
{
    struct hashtree *tree = plan->tree;
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
    if (batch != NULL)
        return node_batch_add(plan, batch, node->parent, node->index, node->block, err);
    atomic_fetch_add_explicit(&tree->nodes_computed, 1, memory_order_relaxed);
    return hasher_hash_blocks(tree->hasher, node->block, g->hash_block_size, 1,
                              node_slot(tree, node->parent, node->index), g->digest_size, err);
}

int node_release(struct plan *plan, struct shared_node *node, struct node_batch *batch,
                 struct error *err)
{
    int result = 0;

    while (node != NULL &&
           atomic_fetch_sub_explicit(&node->pending, 1, memory_order_acq_rel) == 1) {
        if (!atomic_load_explicit(plan->stop, memory_order_relaxed)) {
            int r = node_complete(plan, node, batch, err);
            if (r < 0) {
                /* The ancestors are released all the same, but not hashed. */
                atomic_store(plan->stop, true);
                result = r;
            }
        }
        struct shared_node *parent = node->parent;
        free(node);
        node = parent;
    }
    return result;
}

/* --- Walking over the map --- */

int map_cursor_find(struct map_cursor *cursor, const struct hashtree *tree, uint64_t at,
                    uint64_t end, struct extent *ret, struct error *err)
{
    struct extent *last = &cursor->extent;
    uint64_t start = tree->start + at;

    if (last->length == 0 || start < last->start || start - last->start >= last->length) {
        int r = image_map_hinted(tree->image, start, end - at, 0, &cursor->holes, last, err);
        if (r < 0) {
            last->length = 0;
            return r;
        }
    }
    uint64_t skipped = start - last->start;
    *ret = *last;
    ret->start += skipped;
    ret->length = min_u64(ret->length - skipped, end - at);
    if (last->kind == EXTENT_DATA)
        ret->host_offset += skipped;
    return 0;
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
#define CLOSED_MAX (2 * VERITY_LEVELS_MAX)

struct closed_nodes {
    struct shared_node *nodes[CLOSED_MAX];
    unsigned count;
};

/*
 * Makes node `index` of `level` the open one, with its ancestors. Returns 0, or REPLAN when a node
 * was opened that made data before the cursor fresh, whereupon its children are not opened: others
 * may come first.
 */
enum { REPLAN = 1 };

static int open_node(struct plan *plan, unsigned level, uint64_t index, struct closed_nodes *closed,
                     struct shared_node **ret, struct error *err)
{
    struct shared_node *open = plan->path[level], *parent;
    uint64_t fresh_end = plan->fresh_end;

    *ret = open;
    if (open != NULL && open->index == index)
        return 0;
    int r =
        open_node(plan, level + 1, index >> plan->tree->geometry.fanout_bits, closed, &parent, err);
    if (r != 0)
        return r;
    struct shared_node *node = node_new(plan, level, index, parent);
    if (node == NULL)
        return error_oom(err);
    if (open != NULL)
        closed->nodes[closed->count++] = open;
    plan->path[level] = node;
    add_constants(plan, level, index);
    plan->next[level] = index + 1;
    *ret = node;
    return plan->fresh_end != fresh_end ? REPLAN : 0;
}

/* Moves the cursor to the next data, or to `end`. */
static int skip_zeros(struct plan *plan, uint64_t end, struct error *err)
{
    struct extent extent;

    while (plan->cursor < end && !atomic_load_explicit(plan->stop, memory_order_relaxed)) {
        int r = map_cursor_find(&plan->map, plan->tree, plan->cursor, end, &extent, err);
        if (r < 0)
            return r;
        if (extent.kind != EXTENT_ZERO)
            return 0;
        plan->cursor += extent.length;
    }
    return 0;
}

/* Moves the cursor to the next bytes that must be hashed, or to the end of the data. */
static int find_work(struct plan *plan, struct error *err)
{
    uint64_t size = tree_data_size(plan->tree);

    if (plan->base == NULL)
        return skip_zeros(plan, size, err);
    if (plan->cursor < plan->fresh_end) {
        int r = skip_zeros(plan, plan->fresh_end, err);
        if (r < 0 || plan->cursor < plan->fresh_end)
            return r;
    }
    uint64_t start, end;
    int r = plan->base->changes->next(plan->base->changes->arg, plan->cursor, &start, &end, err);
    if (r == 0)
        plan->cursor = min_u64(max_u64(plan->cursor, start), size);
    return r;
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

/* Moves the cursor to the next work, and opens the nodes above it. *ret_parent is NULL if there is
 * none left. */
static int open_next(struct plan *plan, struct closed_nodes *closed, uint64_t *ret_first,
                     struct shared_node **ret_parent, struct error *err)
{
    struct hashtree *tree = plan->tree;
    unsigned bits = tree->geometry.fanout_bits;
    int r;

    *ret_parent = NULL;
    do {
        r = find_work(plan, err);
        if (r < 0)
            return r;
        if (plan->cursor >= tree_data_size(tree) ||
            atomic_load_explicit(plan->stop, memory_order_relaxed))
            return 0;
        uint64_t first =
            align_down(plan->cursor / tree->params.data_block_size, plan->segment_blocks);
        uint64_t parent =
            plan->unit == tree->geometry.levels ? 0 : first >> (bits * plan->unit) >> bits;
        *ret_first = first;
        r = open_node(plan, plan->unit, parent, closed, ret_parent, err);
    } while (r == REPLAN);
    return r;
}

static int take_segment(struct plan *plan, struct plan_item *ret, struct closed_nodes *closed,
                        struct error *err)
{
    struct hashtree *tree = plan->tree;
    uint32_t block_size = tree->params.data_block_size;
    unsigned bits = tree->geometry.fanout_bits;
    struct shared_node *parent;
    uint64_t first;

    int r = open_next(plan, closed, &first, &parent, err);
    if (r < 0)
        return r;
    if (parent == NULL) {
        end_plan(plan);
        ret->kind = PLAN_END;
        return 0;
    }
    uint64_t after = min_u64(first + plan->segment_blocks, tree->params.data_blocks);
    atomic_fetch_add_explicit(&parent->pending, 1, memory_order_relaxed);
    for (unsigned level = 0; level < plan->unit; level++) {
        add_constants(plan, level, first >> (bits * (level + 1)));
        plan->next[level] = div_round_up(after, UINT64_C(1) << (bits * (level + 1)));
    }
    *ret = (struct plan_item){
        .kind = PLAN_SEGMENT,
        .first_block = first,
        .end_block = after,
        .start = plan->cursor,
        .map = plan->map,
        .fresh = plan->base == NULL || first * block_size < plan->fresh_end,
        .parent = parent,
    };
    plan->cursor = after * block_size;
    return 0;
}

/*
 * Takes segments as long as they have little data, up to PLAN_ITEMS: with single clusters all over
 * a disk, taking the lock would cost as much as hashing one. Not more than a part of what is left,
 * so that all workers have something to do until the end.
 */
static int take_segments(struct plan *plan, struct plan_item *items, unsigned *count,
                         struct closed_nodes *closed, struct error *err)
{
    const struct hashtree *tree = plan->tree;
    uint64_t fair = plan->cursor + (tree_data_size(tree) - plan->cursor) / 4 / tree->threads;
    uint64_t data = 0;

    do {
        struct plan_item *item = &items[*count];
        int r = take_segment(plan, item, closed, err);
        if (r < 0 || item->kind == PLAN_END)
            return r;
        ++*count;
        const struct extent *first = &item->map.extent;
        data += min_u64(first->start + first->length - tree->start, plan->cursor) - item->start;
    } while (*count < PLAN_ITEMS && data < SEGMENT_BYTES && plan->cursor < fair &&
             plan->base == NULL && plan->constants_count == 0 &&
             closed->count + tree->geometry.levels <= CLOSED_MAX);
    return 0;
}

void plan_give_back(struct plan *plan, const struct plan_item *items, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (items[i].kind == PLAN_SEGMENT)
            node_release(plan, items[i].parent, NULL, NULL);
}

int plan_next(struct plan *plan, struct plan_item *ret, unsigned *ret_count,
              struct node_batch *batch, struct error *err)
{
    struct closed_nodes closed;
    unsigned count = 0;
    int r = 0;

    closed.count = 0;
    pthread_mutex_lock(&plan->lock);
    if (plan->constants_count == 0 && !plan->ended)
        r = take_segments(plan, ret, &count, &closed, err);
    if (r == 0 && count == 0) {
        ret[count++] = (struct plan_item){.kind = PLAN_END};
        if (plan->constants_count > 0)
            take_constants(plan, ret);
    }
    pthread_mutex_unlock(&plan->lock);

    /* Outside the lock: this can hash, and the sink can write. */
    for (unsigned i = 0; i < closed.count; i++) {
        int released = node_release(plan, closed.nodes[i], batch, err);
        if (released < 0)
            r = released;
    }
    if (r < 0) {
        plan_give_back(plan, ret, count);
        return r;
    }
    *ret_count = count;
    return 0;
}

int plan_finish(struct plan *plan, struct error *err)
{
    int result = 0;

    for (unsigned level = plan->unit; level <= plan->tree->geometry.levels; level++) {
        struct shared_node *node = TAKE_PTR(plan->path[level]);
        int r = node_release(plan, node, NULL, err);
        if (r < 0)
            result = r;
    }
    return result;
}
