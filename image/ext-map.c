/* SPDX-License-Identifier: MIT */
#include "image/ext-internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/checked.h"

/*
 * Where a file's blocks are. Each look goes down from the inode; the block that was used last on
 * each level is kept, so that a look at what follows costs no read.
 *
 * A block of an extent tree is checked in whole when it is read: its entries are in order, and lie
 * between what the entry above says and that entry's neighbour. So no block can stand for two
 * ranges, unless it is empty, and a walk over a file ends after as many steps as there are entries.
 */

/* --- Extent trees --- */

enum {
    EXTENT_MAGIC = 0xf30a,
    EXTENT_HEADER = 12,        /* magic, entries, max, depth (2 bytes each), generation */
    EXTENT_ENTRY = 12,         /* of both kinds */
    EXTENT_LENGTH_MAX = 32768, /* larger ones are not written to, and by so much longer */
};
#define EXTENT_LOGICAL_END (UINT64_C(1) << 32)

/* A node of the tree. */
struct extents {
    const uint8_t *bytes;
    unsigned count, depth; /* depth 0: a leaf */
    uint64_t low, end;     /* the logical blocks that it stands for */
};

static const uint8_t *entry_at(const struct extents *extents, unsigned index)
{
    return extents->bytes + EXTENT_HEADER + (size_t)index * EXTENT_ENTRY;
}

/* Of both kinds of entry. */
static uint64_t entry_logical(const struct extents *extents, unsigned index)
{
    return get_le32(entry_at(extents, index));
}

struct leaf_entry {
    uint64_t logical, block, length;
    bool unwritten;
};

static struct leaf_entry leaf_entry(const struct extents *leaf, unsigned index)
{
    const uint8_t *p = entry_at(leaf, index);
    const unsigned length = get_le16(p + 4);

    return (struct leaf_entry){
        .logical = get_le32(p),
        .length = length > EXTENT_LENGTH_MAX ? length - EXTENT_LENGTH_MAX : length,
        .unwritten = length > EXTENT_LENGTH_MAX,
        .block = get_le32(p + 8) | (uint64_t)get_le16(p + 6) << 32,
    };
}

static uint64_t index_block(const struct extents *extents, unsigned index)
{
    const uint8_t *p = entry_at(extents, index);

    return get_le32(p + 4) | (uint64_t)get_le16(p + 8) << 32;
}

static int check_header(const struct extents *extents, size_t room, struct error *err)
{
    const unsigned magic = get_le16(extents->bytes), count = get_le16(extents->bytes + 2),
                   max = get_le16(extents->bytes + 4), depth = get_le16(extents->bytes + 6);

    if (magic != EXTENT_MAGIC)
        return error_set(err, EUCLEAN, "the magic number is 0x%04x", magic);
    if (depth != extents->depth)
        return error_set(err, EUCLEAN, "eh_depth is %u, not %u", depth, extents->depth);
    if (count > max || max > (room - EXTENT_HEADER) / EXTENT_ENTRY)
        return error_set(err, EUCLEAN, "eh_entries is %u, eh_max %u", count, max);
    if (count == 0 && depth > 0)
        return error_set(err, EUCLEAN, "an inner node is empty");
    return 0;
}

static int check_entries(const struct file_system *fs, const struct extents *extents,
                         struct error *err)
{
    uint64_t low = extents->low;

    for (unsigned i = 0; i < extents->count; i++) {
        const uint64_t logical = entry_logical(extents, i);

        if (logical < low || logical >= extents->end)
            return error_set(err, EUCLEAN,
                             "entry %u: logical block %" PRIu64 " is not from %" PRIu64
                             " to below %" PRIu64,
                             i, logical, low, extents->end);
        low = logical + 1;
        if (extents->depth > 0)
            continue;
        const struct leaf_entry entry = leaf_entry(extents, i);
        if (entry.length == 0 || entry.length > extents->end - logical)
            return error_set(err, EUCLEAN, "entry %u: ee_len is %" PRIu64, i, entry.length);
        if (!ext_blocks_valid(fs, entry.block, entry.length))
            return error_set(err, EUCLEAN,
                             "entry %u: %" PRIu64 " blocks from %" PRIu64 " are not in the file "
                             "system",
                             i, entry.length, entry.block);
        low = logical + entry.length;
    }
    return 0;
}

static int check_extents(const struct file_system *fs, struct extents *extents, size_t room,
                         struct error *err)
{
    int r = check_header(extents, room, err);
    if (r < 0)
        return r;
    extents->count = get_le16(extents->bytes + 2);
    return check_entries(fs, extents, err);
}

/* The last entry at or before the logical block; -1: all are behind it. */
static int find_entry(const struct extents *extents, uint64_t logical)
{
    int low = -1, high = (int)extents->count;

    while (high - low > 1) {
        int middle = low + (high - low) / 2;

        if (entry_logical(extents, (unsigned)middle) <= logical)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static int root_extents(const struct file_node *node, struct extents *ret, struct error *err)
{
    struct extents root = {
        .bytes = node->block, .depth = get_le16(node->block + 6), .end = EXTENT_LOGICAL_END};

    if (root.depth > EXT_DEPTH_MAX)
        return error_set(err, EUCLEAN, "extents in the inode: eh_depth is %u", root.depth);
    int r = check_extents(node->fs, &root, EXT_INODE_BLOCK, err);
    if (r < 0)
        return error_prefix(err, "extents in the inode");
    *ret = root;
    return 0;
}

static uint8_t *level_buffer(struct file_node *node, struct ext_level *level)
{
    level->block = 0;
    if (level->bytes == NULL)
        level->bytes = malloc(node->fs->block_size);
    return level->bytes;
}

static int read_extents(struct file_node *node, struct ext_level *level, uint64_t block,
                        struct extents *extents, struct error *err)
{
    struct file_system *fs = node->fs;
    uint8_t *bytes = level_buffer(node, level);

    if (bytes == NULL)
        return error_oom(err);
    int r = ext_read_block(fs, block, bytes, err);
    if (r < 0)
        return r;
    extents->bytes = bytes;
    r = check_extents(fs, extents, fs->block_size, err);
    if (r < 0)
        return r;
    if (!ext2fs_extent_block_csum_verify(fs->ext, node->info.inode,
                                         (struct ext3_extent_header *)(void *)bytes))
        return error_set(err, EUCLEAN, "the checksum is wrong");
    level->block = block;
    level->low = extents->low;
    level->end = extents->end;
    return 0;
}

/* The child of entry `index`. */
static int child_extents(struct file_node *node, const struct extents *parent, unsigned index,
                         struct extents *ret, struct error *err)
{
    struct ext_level *level = &node->levels[parent->depth - 1];
    const uint64_t block = index_block(parent, index);
    struct extents child = {
        .bytes = level->bytes,
        .depth = parent->depth - 1,
        .low = entry_logical(parent, index),
        .end = index + 1 < parent->count ? entry_logical(parent, index + 1) : parent->end,
    };

    if (level->block != 0 && level->block == block && level->low == child.low &&
        level->end == child.end) {
        child.count = get_le16(child.bytes + 2);
    } else {
        int r = read_extents(node, level, block, &child, err);
        if (r < 0)
            return error_prefix(err, "block %" PRIu64 " of extents", block);
    }
    *ret = child;
    return 0;
}

static int map_extents(struct file_node *node, uint64_t logical, uint64_t *ret_block,
                       uint64_t *ret_count, struct error *err)
{
    struct extents extents;
    int index;

    int r = root_extents(node, &extents, err);
    if (r < 0)
        return r;
    for (;;) {
        index = find_entry(&extents, logical);
        if (index < 0 || extents.depth == 0)
            break;
        r = child_extents(node, &extents, (unsigned)index, &extents, err);
        if (r < 0)
            return r;
    }
    const uint64_t next = (unsigned)(index + 1) < extents.count
                              ? entry_logical(&extents, (unsigned)(index + 1))
                              : extents.end;
    if (index >= 0) {
        const struct leaf_entry entry = leaf_entry(&extents, (unsigned)index);
        const uint64_t inside = logical - entry.logical;

        if (inside < entry.length) {
            *ret_block = entry.unwritten ? 0 : entry.block + inside;
            *ret_count = entry.length - inside;
            return 0;
        }
    }
    *ret_block = 0;
    *ret_count = next - logical;
    return 0;
}

/* --- Indirect blocks --- */

enum {
    DIRECT_COUNT = 12,
    INDIRECT_LEVELS = 3,
};

/* What `table` of `count` pointers says from `index` on: pointers in a row, or zeros. */
static int map_pointers(const struct file_system *fs, const uint8_t *table, uint64_t index,
                        uint64_t count, uint64_t *ret_block, uint64_t *ret_count, struct error *err)
{
    const uint64_t first = get_le32(table + index * 4);
    uint64_t n = 1;

    while (index + n < count && get_le32(table + (index + n) * 4) == (first != 0 ? first + n : 0))
        n++;
    if (first != 0 && !ext_blocks_valid(fs, first, n))
        return error_set(err, EUCLEAN,
                         "%" PRIu64 " blocks from %" PRIu64 " are not in the file system", n,
                         first);
    *ret_block = first;
    *ret_count = n;
    return 0;
}

static int read_pointers(struct file_node *node, struct ext_level *level, uint64_t block,
                         struct error *err)
{
    if (level->block == block)
        return 0;
    if (level_buffer(node, level) == NULL)
        return error_oom(err);
    int r = ext_read_block(node->fs, block, level->bytes, err);
    if (r < 0)
        return error_prefix(err, "indirect block");
    level->block = block;
    return 0;
}

/* `logical` counts from the first block behind `depth` levels of pointers, whose top is `block`. */
static int map_tree(struct file_node *node, unsigned depth, uint64_t block, uint64_t logical,
                    uint64_t *ret_block, uint64_t *ret_count, struct error *err)
{
    const uint64_t pointers = node->fs->block_size / 4;
    uint64_t span = 1; /* that one pointer stands for */

    for (unsigned i = 0; i < depth; i++)
        span *= pointers;
    for (; depth > 0; depth--) {
        /* Nothing below: a hole up to the next pointer. */
        if (block == 0) {
            *ret_block = 0;
            *ret_count = span - logical % span;
            return 0;
        }
        struct ext_level *level = &node->levels[depth - 1];
        int r = read_pointers(node, level, block, err);
        if (r < 0)
            return r;
        logical %= span;
        span /= pointers;
        if (depth == 1)
            return map_pointers(node->fs, level->bytes, logical, pointers, ret_block, ret_count,
                                err);
        block = get_le32(level->bytes + logical / span * 4);
    }
    return error_set(err, EINVAL, "no level of pointers");
}

static int map_indirect(struct file_node *node, uint64_t logical, uint64_t *ret_block,
                        uint64_t *ret_count, struct error *err)
{
    const uint64_t pointers = node->fs->block_size / 4;
    uint64_t span = pointers;

    if (logical < DIRECT_COUNT)
        return map_pointers(node->fs, node->block, logical, DIRECT_COUNT, ret_block, ret_count,
                            err);
    logical -= DIRECT_COUNT;
    for (unsigned depth = 1; depth <= INDIRECT_LEVELS; depth++) {
        if (logical < span)
            return map_tree(node, depth, get_le32(node->block + (DIRECT_COUNT + depth - 1) * 4),
                            logical, ret_block, ret_count, err);
        logical -= span;
        span *= pointers;
    }
    return error_set(err, EUCLEAN, "logical block %" PRIu64 " is beyond the indirect blocks",
                     logical);
}

/* --- Both --- */

uint64_t ext_map_limit(const struct file_node *node)
{
    const uint64_t n = node->fs->block_size / 4;

    if ((node->flags & EXT4_EXTENTS_FL) != 0)
        return EXTENT_LOGICAL_END - 1;
    return min_u64(DIRECT_COUNT + n + n * n + n * n * n, EXTENT_LOGICAL_END);
}

int ext_map(struct file_node *node, uint64_t logical, uint64_t count, uint64_t *ret_block,
            uint64_t *ret_count, struct error *err)
{
    uint64_t block = 0, n = 0;

    int r = (node->flags & EXT4_EXTENTS_FL) != 0 ? map_extents(node, logical, &block, &n, err)
                                                 : map_indirect(node, logical, &block, &n, err);
    if (r < 0)
        return error_prefix(err, "inode %" PRIu32, node->info.inode);
    *ret_block = block;
    *ret_count = min_u64(n, count);
    return 0;
}
