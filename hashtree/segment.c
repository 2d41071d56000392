/* SPDX-License-Identifier: MIT */
/*
 * A segment: the part of the tree that one worker makes alone. Nothing here is shared with other
 * threads but the parent node, whose slots for this segment are ours. Its topmost nodes wait in the
 * worker's batch until enough are there to be hashed together.
 *
 * Only nodes with data below them are made ("touched"). They begin as constant nodes, or as the
 * base's; the parent begins as one, too, so that untouched nodes need not be given to it.
 */
#include <assert.h>
#include <string.h>

#include "common/checked.h"
#include "hashtree/internal.h"

/* Shorter stretches of zero blocks than this are hashed with the data around them: cutting there
 * would leave the hash kernel's lanes empty. */
#define ZERO_STRETCH_MIN 4

bool is_zeros(const uint8_t *data, size_t length)
{
    static const uint8_t zeros[64];

    /* The bytes equal those 64 further on: glibc's memcmp() is as fast as the memory. */
    if (length <= sizeof(zeros))
        return memcmp(data, zeros, length) == 0;
    return memcmp(data, zeros, sizeof(zeros)) == 0 &&
           memcmp(data, data + sizeof(zeros), length - sizeof(zeros)) == 0;
}

int for_nonzero_blocks(const uint8_t *data, size_t block_size, uint64_t count,
                       int (*hash)(void *arg, uint64_t first, uint64_t count, struct error *err),
                       void *arg, uint64_t *zero_blocks, struct error *err)
{
    uint64_t first = 0, end = 0; /* a stretch that shall be hashed; empty when first == end */
    uint64_t zeros = 0;

    for (uint64_t i = 0; i < count; i++) {
        if (is_zeros(data + i * block_size, block_size)) {
            zeros++;
            continue;
        }
        if (end > first && i - end >= ZERO_STRETCH_MIN) {
            int r = hash(arg, first, end - first, err);
            if (r < 0)
                return r;
            first = end = i;
        }
        if (end == first)
            first = i;
        end = i + 1;
    }
    *zero_blocks += zeros;
    return end > first ? hash(arg, first, end - first, err) : 0;
}

int segment_new(const struct plan *plan, struct segment **ret, struct error *err)
{
    const struct verity_geometry *g = &plan->tree->geometry;
    struct segment *segment = calloc(1, sizeof(*segment));

    if (segment == NULL)
        return error_oom(err);
    for (unsigned level = 0; level < plan->unit; level++) {
        uint64_t most = max_u64(plan->segment_blocks >> (g->fanout_bits * (level + 1)), 1);
        segment->levels[level].blocks = malloc(most * g->hash_block_size);
        segment->levels[level].touched = malloc(most);
        if (segment->levels[level].blocks == NULL || segment->levels[level].touched == NULL) {
            segment_free(segment);
            return error_oom(err);
        }
    }
    if (plan->unit == 0) {
        segment->digests = calloc(plan->segment_blocks, g->digest_slot);
        segment->digests_set = malloc(plan->segment_blocks);
    }
    if (plan->unit == 0 && (segment->digests == NULL || segment->digests_set == NULL)) {
        segment_free(segment);
        return error_oom(err);
    }
    *ret = segment;
    return 0;
}

void segment_free(struct segment *segment)
{
    for (unsigned level = 0; level < VERITY_LEVELS_MAX; level++) {
        free(segment->levels[level].blocks);
        free(segment->levels[level].touched);
    }
    free(segment->digests);
    free(segment->digests_set);
    free(segment);
}

void segment_start(const struct plan *plan, struct segment *segment, const struct plan_item *item)
{
    unsigned bits = plan->tree->geometry.fanout_bits;

    segment->first_block = item->first_block;
    segment->end_block = item->end_block;
    segment->parent = item->parent;
    segment->runs = 0;
    segment->mapped = false;
    segment->position = max_u64(align_down(item->start, plan->tree->params.data_block_size),
                                item->first_block * plan->tree->params.data_block_size);
    segment->map = item->map;
    segment->stretch_end = segment->position;
    segment->fresh_end =
        item->fresh ? item->end_block * plan->tree->params.data_block_size : segment->position;
    for (unsigned level = 0; level < plan->unit; level++) {
        uint64_t span = UINT64_C(1) << (bits * (level + 1));
        uint64_t first = item->first_block / span;
        uint64_t count = div_round_up(item->end_block, span) - first;
        segment->levels[level].first = first;
        segment->levels[level].count = count;
        memset(segment->levels[level].touched, false, count);
    }
    if (plan->unit == 0)
        memset(segment->digests_set, false, plan->segment_blocks);
}

/*
 * Where the digest of child `child` of `level` goes (a data block for level 0). `*room` gets how
 * many children from this one on lie behind each other there.
 */
static uint8_t *child_slot(const struct plan *plan, struct segment *segment, unsigned level,
                           uint64_t child, uint64_t *room)
{
    const struct verity_geometry *g = &plan->tree->geometry;

    if (plan->unit == 0) {
        *room = UINT64_MAX;
        return segment->digests + (child - segment->first_block) * g->digest_slot;
    }
    uint64_t index = child >> g->fanout_bits;
    uint64_t slot = child & ((UINT64_C(1) << g->fanout_bits) - 1);
    uint64_t place = index - segment->levels[level].first;
    uint8_t *block = segment->levels[level].blocks + place * g->hash_block_size;
    if (!segment->levels[level].touched[place]) {
        constant_node(plan->tree, level, index, block);
        segment->levels[level].touched[place] = true;
    }
    *room = (UINT64_C(1) << g->fanout_bits) - slot;
    return block + slot * g->digest_slot;
}

/* Hashes blocks whose digests are the entries `child`… of `level`. */
static int hash_children(const struct plan *plan, struct segment *segment, unsigned level,
                         uint64_t child, uint64_t count, const uint8_t *blocks, size_t block_size,
                         struct error *err)
{
    const struct verity_geometry *g = &plan->tree->geometry;

    if (plan->unit == 0)
        memset(segment->digests_set + (child - segment->first_block), true, count);
    while (count > 0) {
        uint64_t room;
        uint8_t *slot = child_slot(plan, segment, level, child, &room);
        uint64_t n = min_u64(room, count);
        int r = hasher_hash_blocks(plan->tree->hasher, blocks, block_size, n, slot, g->digest_slot,
                                   err);
        if (r < 0)
            return r;
        child += n;
        count -= n;
        blocks += n * block_size;
    }
    return 0;
}

/* The digest of private node (level, index) as the node above has it; with no private nodes, that
 * of data block `index`. */
static const uint8_t *expected_digest(const struct plan *plan, const struct segment *segment,
                                      unsigned level, uint64_t index)
{
    const struct verity_geometry *g = &plan->tree->geometry;
    uint64_t slot = index & ((UINT64_C(1) << g->fanout_bits) - 1);
    const uint8_t *above;

    if (level + 1 >= plan->unit) {
        above = segment->parent->block;
    } else {
        uint64_t place = (index >> g->fanout_bits) - segment->levels[level + 1].first;
        above = segment->levels[level + 1].blocks + place * g->hash_block_size;
    }
    return above + slot * g->digest_slot;
}

void segment_open(struct plan *plan, struct segment *segment, uint64_t block,
                  struct block_range *ret_fresh)
{
    const struct verity_geometry *g = &plan->tree->geometry;

    *ret_fresh = (struct block_range){0, 0};
    for (unsigned level = plan->unit; level-- > 0;) {
        uint64_t index = block >> (g->fanout_bits * (level + 1));
        uint64_t place = index - segment->levels[level].first;
        uint8_t *node = segment->levels[level].blocks + place * g->hash_block_size;
        if (segment->levels[level].touched[place])
            continue;
        segment->levels[level].touched[place] = true;
        if (base_node(plan->tree, plan->base->file, level, index,
                      expected_digest(plan, segment, level, index), node))
            continue;
        atomic_store_explicit(&plan->distrust, true, memory_order_relaxed);
        constant_node(plan->tree, level, index, node);
        verity_geometry_span(g, plan->tree->params.data_blocks, level, index, &ret_fresh->first,
                             &ret_fresh->end);
        return;
    }
}

struct hash_data {
    const struct plan *plan;
    struct segment *segment;
    uint64_t first_block;
    const uint8_t *data;
};

static int hash_data(void *arg, uint64_t first, uint64_t count, struct error *err)
{
    struct hash_data *h = arg;
    uint32_t block_size = h->plan->tree->params.data_block_size;

    return hash_children(h->plan, h->segment, 0, h->first_block + first, count,
                         h->data + first * block_size, block_size, err);
}

/* Puts the digest of zeros in place of the entries of `count` data blocks, and counts those that
 * had it before. */
static uint64_t reset_entries(const struct plan *plan, struct segment *segment,
                              uint64_t first_block, uint64_t count)
{
    const struct hashtree *tree = plan->tree;
    size_t size = tree->geometry.digest_size;
    uint64_t zeros = 0;

    for (uint64_t block = first_block; block < first_block + count; block++) {
        uint64_t room;
        uint8_t *slot = child_slot(plan, segment, 0, block, &room);
        const uint8_t *old = plan->unit > 0 ? slot : expected_digest(plan, segment, 0, block);
        zeros += memcmp(old, tree->zero_digest, size) == 0;
        memcpy(slot, tree->zero_digest, size);
    }
    if (plan->unit == 0)
        memset(segment->digests_set + (first_block - segment->first_block), true, count);
    return zeros;
}

int segment_hash(struct plan *plan, struct segment *segment, uint64_t first_block, uint64_t count,
                 const uint8_t *data, bool fresh, struct error *err)
{
    struct hash_data h = {plan, segment, first_block, data};
    uint64_t zeros = 0, zeros_before = 0;

    if (!fresh)
        zeros_before = reset_entries(plan, segment, first_block, count);
    int r = for_nonzero_blocks(data, plan->tree->params.data_block_size, count, hash_data, &h,
                               &zeros, err);
    if (fresh)
        atomic_fetch_add_explicit(&plan->nonzero_blocks, count - zeros, memory_order_relaxed);
    else
        atomic_fetch_add_explicit(&plan->zero_change, (int64_t)zeros - (int64_t)zeros_before,
                                  memory_order_relaxed);
    return r;
}

/* Tells the sink of `count` nodes that are alike: all touched, or all constant. */
static int tell_sink(const struct plan *plan, const struct segment *segment, unsigned level,
                     uint64_t place, uint64_t count, bool touched, struct error *err)
{
    uint64_t first = segment->levels[level].first + place;

    if (touched && plan->sink.nodes != NULL)
        return plan->sink.nodes(
            plan->sink.arg, level, first, count,
            segment->levels[level].blocks + place * plan->tree->geometry.hash_block_size, err);
    if (!touched && plan->sink.constants != NULL)
        return plan->sink.constants(plan->sink.arg, level, first, count, err);
    return 0;
}

/* --- Finishing --- */

/* Hashes `count` nodes from `place` on of `level` into the level above. */
static int hash_nodes(struct plan *plan, struct segment *segment, unsigned level, uint64_t place,
                      uint64_t count, struct node_batch *batch, struct error *err)
{
    uint32_t block_size = plan->tree->geometry.hash_block_size;
    const uint8_t *blocks = segment->levels[level].blocks + place * block_size;
    uint64_t first = segment->levels[level].first + place;
    int r = 0;

    if (level + 1 < plan->unit) {
        atomic_fetch_add_explicit(&plan->tree->nodes_computed, count, memory_order_relaxed);
        return hash_children(plan, segment, level + 1, first, count, blocks, block_size, err);
    }
    for (uint64_t i = 0; r == 0 && i < count; i++)
        r = node_batch_add(plan, batch, segment->parent, first + i, blocks + i * block_size, err);
    return r;
}

/* Tells the sink of the nodes of `level`, and hashes the touched ones into the level above. */
static int finish_level(struct plan *plan, struct segment *segment, unsigned level,
                        struct node_batch *batch, struct error *err)
{
    const bool *touched = segment->levels[level].touched;
    uint64_t count = segment->levels[level].count;

    for (uint64_t place = 0, n; place < count; place += n) {
        for (n = 1; place + n < count && touched[place + n] == touched[place]; n++)
            ;
        int r = tell_sink(plan, segment, level, place, n, touched[place], err);
        if (r == 0 && touched[place])
            r = hash_nodes(plan, segment, level, place, n, batch, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Without nodes of its own a segment has the digests of its data blocks for the parent. */
static void give_digests(const struct plan *plan, struct segment *segment)
{
    const struct verity_geometry *g = &plan->tree->geometry;
    uint64_t mask = (UINT64_C(1) << g->fanout_bits) - 1;

    for (uint64_t block = segment->first_block; block < segment->end_block; block++) {
        uint64_t i = block - segment->first_block;
        if (segment->digests_set[i])
            memcpy(segment->parent->block + (block & mask) * g->digest_slot,
                   segment->digests + i * g->digest_slot, g->digest_size);
    }
}

int segment_finish(struct plan *plan, struct segment *segment, struct node_batch *batch,
                   struct error *err)
{
    int r = 0;

    for (unsigned level = 0; r == 0 && level < plan->unit; level++)
        r = finish_level(plan, segment, level, batch, err);
    if (r < 0)
        atomic_store(plan->stop, true);
    else if (plan->unit == 0)
        give_digests(plan, segment);
    int released = node_release(plan, TAKE_PTR(segment->parent), batch, r == 0 ? err : NULL);
    return r < 0 ? r : released;
}
