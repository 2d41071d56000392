/* SPDX-License-Identifier: MIT */
/*
 * Where two trees differ: from the root down, only into nodes whose digests differ. With nodes
 * kept, what is equal is neither read nor hashed.
 */
#include <string.h>

#include "common/checked.h"
#include "hashtree/internal.h"

struct differ {
    struct hashtree *a, *b;
    int (*report)(void *arg, uint64_t start, uint64_t length, struct error *err);
    void *arg;
    uint64_t start, end; /* bytes: a range that differs and may go on; empty at first */
};

static int flush(struct differ *d, struct error *err)
{
    if (d->end == d->start)
        return 0;
    return d->report(d->arg, d->start, d->end - d->start, err);
}

static int add_block(struct differ *d, uint64_t block, struct error *err)
{
    uint32_t size = d->a->params.data_block_size;

    if (d->end > d->start && d->end == block * size) {
        d->end += size;
        return 0;
    }
    int r = flush(d, err);
    d->start = block * size;
    d->end = d->start + size;
    return r;
}

/* The node is not the same in both. */
static int compare(struct differ *d, unsigned level, uint64_t index, struct error *err)
{
    const struct verity_geometry *g = &d->a->geometry;
    _cleanup_free_ uint8_t *a = malloc(g->hash_block_size), *b = malloc(g->hash_block_size);
    uint64_t first = index << g->fanout_bits;
    uint64_t count = min_u64(tree_children(d->a, level) - first, UINT64_C(1) << g->fanout_bits);

    if (a == NULL || b == NULL)
        return error_oom(err);
    int r = node_get(d->a, level, index, a, err);
    if (r == 0)
        r = node_get(d->b, level, index, b, err);
    for (uint64_t i = 0; r == 0 && i < count; i++) {
        if (memcmp(a + i * g->digest_slot, b + i * g->digest_slot, g->digest_size) == 0)
            continue;
        r = level > 0 ? compare(d, level - 1, first + i, err) : add_block(d, first + i, err);
    }
    return r;
}

int hashtree_diff(struct hashtree *a, struct hashtree *b,
                  int (*report)(void *arg, uint64_t start, uint64_t length, struct error *err),
                  void *arg, struct error *err)
{
    struct differ d = {.a = a, .b = b, .report = report, .arg = arg};
    uint8_t root_a[VERITY_DIGEST_MAX], root_b[VERITY_DIGEST_MAX];

    if (!verity_same_tree(&a->params, &b->params))
        return error_set(err, EINVAL, "%s and %s: trees of different shapes", image_path(a->image),
                         image_path(b->image));
    int r = hashtree_root(a, root_a, err);
    if (r == 0)
        r = hashtree_root(b, root_b, err);
    if (r < 0 || memcmp(root_a, root_b, a->geometry.digest_size) == 0)
        return r;
    unsigned levels = a->geometry.levels;
    r = levels > 0 ? compare(&d, levels - 1, 0, err) : add_block(&d, 0, err);
    return r < 0 ? r : flush(&d, err);
}
