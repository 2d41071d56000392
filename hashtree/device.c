/* SPDX-License-Identifier: MIT */
/*
 * The hash device: bytes before hash_offset and behind the superblock are zeros, then come the
 * levels, the highest first.
 */
#include <string.h>

#include "common/checked.h"
#include "common/io.h"
#include "hashtree/internal.h"

/* --- Reading --- */

static int read_head(struct hashtree *tree, uint64_t offset, uint8_t *buffer, size_t length,
                     struct error *err)
{
    uint64_t from = tree->params.hash_offset, to = from + VERITY_SUPERBLOCK_SIZE;
    uint8_t superblock[VERITY_SUPERBLOCK_SIZE];

    memset(buffer, 0, length);
    if (!tree->params.superblock || offset >= to || offset + length <= from)
        return 0;
    int r = hashtree_superblock(tree, superblock, err);
    if (r < 0)
        return r;
    uint64_t first = max_u64(offset, from), end = min_u64(offset + length, to);
    memcpy(buffer + (first - offset), superblock + (first - from), end - first);
    return 0;
}

/* The node that hash block `block` of the device is. */
static void find_node(const struct hashtree *tree, uint64_t block, unsigned *ret_level,
                      uint64_t *ret_index)
{
    const struct verity_geometry *g = &tree->geometry;
    unsigned level = 0;

    while (block < g->level_start[level])
        level++;
    *ret_level = level;
    *ret_index = block - g->level_start[level];
}

static int get_node(struct hashtree *tree, unsigned level, uint64_t index, uint8_t *block,
                    struct error *err)
{
    return tree->trust != NULL ? trust_node(tree, level, index, block, err)
                               : node_get(tree, level, index, block, err);
}

int hashtree_read(struct hashtree *tree, uint64_t offset, void *buffer, size_t length,
                  struct error *err)
{
    uint32_t block_size = tree->geometry.hash_block_size;
    uint64_t tree_start = tree->geometry.hash_start * block_size;
    _cleanup_free_ uint8_t *block = NULL;
    uint8_t *to = buffer;

    if (!range_within(offset, length, tree->geometry.device_size))
        return error_set(err, EINVAL, "hash device: a range behind its end");
    while (length > 0) {
        size_t n;
        int r;
        if (offset < tree_start) {
            n = (size_t)min_u64(length, tree_start - offset);
            r = read_head(tree, offset, to, n, err);
        } else {
            unsigned level;
            uint64_t index, skip = offset % block_size;
            find_node(tree, offset / block_size, &level, &index);
            n = (size_t)min_u64(length, block_size - skip);
            if (n == block_size) {
                r = get_node(tree, level, index, to, err);
            } else {
                if (block == NULL && (block = malloc(block_size)) == NULL)
                    return error_oom(err);
                r = get_node(tree, level, index, block, err);
                if (r == 0)
                    memcpy(to, block + skip, n);
            }
        }
        if (r < 0)
            return r;
        offset += n;
        to += n;
        length -= n;
    }
    return 0;
}

/* --- Writing --- */

struct writer {
    struct hashtree *tree;
    int fd;
    const char *name;
};

static int write_nodes(void *arg, unsigned level, uint64_t first, uint64_t count,
                       const uint8_t *blocks, struct error *err)
{
    struct writer *w = arg;
    const struct verity_geometry *g = &w->tree->geometry;

    return io_write_at(w->fd, w->name, blocks, count * g->hash_block_size,
                       (g->level_start[level] + first) * g->hash_block_size, err);
}

static int write_constants(void *arg, unsigned level, uint64_t first, uint64_t count,
                           struct error *err)
{
    struct writer *w = arg;
    const struct verity_geometry *g = &w->tree->geometry;
    uint64_t most = max_u64(SEGMENT_BYTES / 4 / g->hash_block_size, 1);
    uint64_t room = min_u64(count, most);
    _cleanup_free_ uint8_t *blocks = malloc(room * g->hash_block_size);

    if (blocks == NULL)
        return error_oom(err);
    while (count > 0) {
        uint64_t n = min_u64(count, room);
        for (uint64_t i = 0; i < n; i++)
            constant_node(w->tree, level, first + i, blocks + i * g->hash_block_size);
        int r = write_nodes(w, level, first, n, blocks, err);
        if (r < 0)
            return r;
        first += n;
        count -= n;
    }
    return 0;
}

/* The superblock, and zeros up to the tree. */
static int write_head(struct hashtree *tree, int fd, const char *name, struct error *err)
{
    uint64_t from = tree->params.hash_offset;
    uint64_t length = tree->geometry.hash_start * tree->geometry.hash_block_size - from;
    _cleanup_free_ uint8_t *head = NULL;

    if (!tree->params.superblock)
        return 0;
    head = malloc(length);
    if (head == NULL)
        return error_oom(err);
    int r = read_head(tree, from, head, length, err);
    if (r < 0)
        return r;
    return io_write_at(fd, name, head, length, from, err);
}

int hashtree_write(struct hashtree *tree, int fd, const char *name, struct error *err)
{
    struct writer writer = {tree, fd, name};
    struct node_sink sink = {write_nodes, write_constants, &writer};

    int r = hashtree_build(tree, &sink, err);
    if (r < 0)
        return r;
    /* Last: a file that was not finished has no superblock. */
    return write_head(tree, fd, name, err);
}
