/* SPDX-License-Identifier: MIT */
/*
 * Reads that are checked against a root hash (hashtree_trust()).
 *
 * A reader may ask for a part of a data block, but only a whole one has a digest: the range is
 * widened to whole blocks, gathered, checked, and cut down again. Bytes outside of the data that
 * the tree covers (other partitions, what lies between them) are served as they are.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/checked.h"
#include "fs/internal.h"

/* A stretch of what was gathered: zeros, or bytes in the buffer. Offsets are the image's. */
struct stretch {
    uint64_t start, end;
    bool zeros;
};

struct verified_read {
    struct fs *fs;
    struct fs_node *node;
    struct fs_gather *gather;
    uint64_t start, end;           /* of the range that was gathered */
    uint64_t data_start, data_end; /* what of it the tree covers: whole blocks */
    uint32_t block_size;
    bool wrong;
};

static void log_fault(const struct hashtree_fault *fault, void *arg)
{
    struct verified_read *v = arg;
    _cleanup_error_ struct error err = ERROR_INIT;

    unsigned levels = hashtree_geometry(v->fs->options.tree)->levels;

    if (fault->kind == HASHTREE_FAULT_DATA)
        error_set(&err, EIO,
                  "data block %" PRIu64 " (offset %" PRIu64 " of the partition): not what %s says",
                  fault->index, fault->offset,
                  levels == 0 ? "the root hash" : "level 0 of the hash tree");
    else
        error_set(&err, EIO,
                  "level %u, block %" PRIu64 " of the hash tree (offset %" PRIu64
                  " of the hash device): not what %s says; the data below it cannot be checked",
                  fault->level, fault->index, fault->offset,
                  fault->level + 1 == levels ? "the root hash" : "the level above");
    v->wrong = true;
    fs_log_fault(v->node, &err);
}

/* Whole blocks: zeros if `data` is NULL. */
static int check_blocks(struct verified_read *v, uint64_t start, uint64_t end, const uint8_t *data,
                        struct error *err)
{
    struct hashtree *tree = v->fs->options.tree;
    uint64_t first = start - v->fs->options.data->start, faults;

    if (start >= end)
        return 0;
    return hashtree_check(tree, first / v->block_size, (end - start) / v->block_size, data,
                          log_fault, v, &faults, err);
}

static const uint8_t *bytes_at(const struct verified_read *v, uint64_t offset)
{
    return v->gather->buffer + (offset - v->start);
}

/*
 * A stretch of zeros: the whole blocks in it are zeros; those that it shares with bytes are put
 * together in the buffer, where there is room for every byte of the range. *ret_start and *ret_end
 * get the whole ones; empty if there is none.
 */
static void split_zeros(struct verified_read *v, const struct stretch *zeros, uint64_t *ret_start,
                        uint64_t *ret_end)
{
    uint64_t base = v->data_start;
    uint64_t start = max_u64(zeros->start, base), end = min_u64(zeros->end, v->data_end);
    uint64_t first = base + div_round_up(start - base, v->block_size) * v->block_size;
    uint64_t last = end > base ? base + align_down(end - base, v->block_size) : base;

    if (first >= last)
        first = last = end;
    memset(v->gather->buffer + (start - v->start), 0, (size_t)(first - start));
    memset(v->gather->buffer + (last - v->start), 0, (size_t)(end - last));
    *ret_start = first;
    *ret_end = last;
}

/* The next stretch of one kind, from iov[*i] on. */
static struct stretch next_stretch(const struct fs_gather *gather, int *i, uint64_t start)
{
    struct stretch stretch = {start, start, fs_gather_is_zeros(&gather->iov[*i])};

    for (; *i < gather->count && fs_gather_is_zeros(&gather->iov[*i]) == stretch.zeros; ++*i)
        stretch.end += gather->iov[*i].iov_len;
    return stretch;
}

static int check_gathered(struct verified_read *v, struct error *err)
{
    uint64_t checked = v->data_start, at = v->start;
    int i = 0;

    while (i < v->gather->count) {
        struct stretch stretch = next_stretch(v->gather, &i, at);
        uint64_t start, end;

        at = stretch.end;
        if (!stretch.zeros || stretch.end <= v->data_start || stretch.start >= v->data_end)
            continue;
        split_zeros(v, &stretch, &start, &end);
        if (start == end)
            continue;
        int r = check_blocks(v, checked, start, bytes_at(v, checked), err);
        if (r == 0)
            r = check_blocks(v, start, end, NULL, err);
        if (r < 0)
            return r;
        checked = end;
    }
    return check_blocks(v, checked, v->data_end, bytes_at(v, checked), err);
}

/* Leaves `length` bytes behind the first `skip`. */
static void cut(struct fs_gather *gather, size_t skip, size_t length)
{
    int from = 0, to = 0;

    while (skip > 0 && skip >= gather->iov[from].iov_len)
        skip -= gather->iov[from++].iov_len;
    for (; length > 0; from++) {
        struct iovec iov = gather->iov[from];

        iov.iov_base = (uint8_t *)iov.iov_base + skip;
        iov.iov_len = (size_t)min_u64(iov.iov_len - skip, length);
        length -= iov.iov_len;
        skip = 0;
        gather->iov[to++] = iov;
    }
    gather->count = to;
}

int fs_gather_verified(struct fs *fs, struct fs_node *node, uint64_t offset, size_t length,
                       struct fs_gather *ret, struct error *err)
{
    const struct verity_params *params = hashtree_params(fs->options.tree);
    uint64_t covered = fs->options.data->start;
    uint64_t covered_end = covered + params->data_blocks * params->data_block_size;
    uint64_t end = offset + length;

    if (end <= covered || offset >= covered_end)
        return fs_gather_image(fs->options.image, offset, length, ret, err);
    struct verified_read v = {
        .fs = fs,
        .node = node,
        .gather = ret,
        .start = offset,
        .end = end,
        .block_size = params->data_block_size,
    };
    if (offset > covered)
        v.start = covered + align_down(offset - covered, v.block_size);
    if (end < covered_end)
        v.end = covered + div_round_up(end - covered, v.block_size) * v.block_size;
    v.data_start = max_u64(v.start, covered);
    v.data_end = min_u64(v.end, covered_end);
    int r = fs_gather_image(fs->options.image, v.start, (size_t)(v.end - v.start), ret, err);
    if (r == 0)
        r = check_gathered(&v, err);
    if (r < 0)
        return r;
    if (v.wrong)
        return -EIO;
    cut(ret, (size_t)(offset - v.start), length);
    return 0;
}
