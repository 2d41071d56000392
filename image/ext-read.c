/* SPDX-License-Identifier: MIT */
#include "image/ext-internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/checked.h"

static int check_regular(const struct file_node *node, struct error *err)
{
    if (S_ISDIR(node->info.mode))
        return error_set(err, EISDIR, "is a directory");
    if (!S_ISREG(node->info.mode))
        return error_set(err, EINVAL, "is not a regular file");
    if ((node->flags & EXT4_ENCRYPT_FL) != 0)
        return error_set(err, ENOKEY, "the file is encrypted");
    return 0;
}

/* As file_node_map(), for any node that has bytes. */
static int map_range(struct file_node *node, uint64_t offset, uint64_t length,
                     struct file_extent *ret, struct error *err)
{
    const struct file_system *fs = node->fs;
    const uint64_t inside = offset % fs->block_size;
    uint64_t block, count;

    if (node->inline_data != NULL) {
        /* What is behind it reads as zeros: mke2fs makes such files, and Linux reads them so. */
        const uint64_t end = node->inline_size;

        *ret = offset < end ? (struct file_extent){.kind = FILE_INLINE,
                                                   .length = min_u64(length, end - offset)}
                            : (struct file_extent){.kind = FILE_HOLE, .length = length};
        return 0;
    }
    int r = ext_map(node, offset / fs->block_size, div_round_up(inside + length, fs->block_size),
                    &block, &count, err);
    if (r < 0)
        return r;
    *ret = (struct file_extent){
        .kind = block != 0 ? FILE_DATA : FILE_HOLE,
        .length = min_u64(count * fs->block_size - inside, length),
        .offset = block != 0 ? fs->start + block * fs->block_size + inside : 0,
    };
    return 0;
}

int file_node_map(struct file_node *node, uint64_t offset, uint64_t length, struct file_extent *ret,
                  struct error *err)
{
    int r = check_regular(node, err);
    return r < 0 ? r : map_range(node, offset, length, ret, err);
}

static int read_extent(struct file_node *node, uint64_t offset, const struct file_extent *extent,
                       void *buffer, size_t length, struct error *err)
{
    switch (extent->kind) {
    case FILE_HOLE:
        memset(buffer, 0, length);
        return 0;
    case FILE_INLINE:
        memcpy(buffer, node->inline_data + offset, length);
        return 0;
    case FILE_DATA:
        return image_read(node->fs->image, extent->offset, buffer, length, err);
    }
    abort();
}

static int read_bytes(struct file_node *node, uint64_t offset, void *buffer, size_t length,
                      struct error *err)
{
    struct file_extent extent;
    uint8_t *p = buffer;

    for (size_t at = 0; at < length; at += (size_t)extent.length) {
        int r = map_range(node, offset + at, length - at, &extent, err);
        if (r == 0)
            r = read_extent(node, offset + at, &extent, p + at, (size_t)extent.length, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int file_node_read(struct file_node *node, uint64_t offset, void *buffer, size_t length,
                   struct error *err)
{
    int r = check_regular(node, err);
    return r < 0 ? r : read_bytes(node, offset, buffer, length, err);
}

int file_node_read_link(struct file_node *node, char **ret, struct error *err)
{
    const size_t length = (size_t)node->info.size;
    _cleanup_free_ char *target = NULL;

    if (!S_ISLNK(node->info.mode))
        return error_set(err, EINVAL, "is not a symbolic link");
    if ((node->flags & EXT4_ENCRYPT_FL) != 0)
        return error_set(err, ENOKEY, "the symbolic link is encrypted");
    target = malloc(length + 1);
    if (target == NULL)
        return error_oom(err);
    if (node->fast_link) {
        memcpy(target, node->block, length);
    } else {
        int r = read_bytes(node, 0, target, length, err);
        if (r < 0)
            return error_prefix(err, "target of the symbolic link");
    }
    target[length] = '\0';
    if (strlen(target) != length)
        return error_set(err, EUCLEAN,
                         "inode %" PRIu32 ": the target of the symbolic link has a NUL",
                         node->info.inode);
    *ret = TAKE_PTR(target);
    return 0;
}

/* --- All of a file --- */

struct reading {
    struct file_node *node;
    file_take_bytes *take;
    void *arg;
};

/* Data on the disk, of which the image may know that it is zeros. */
static int take_data(const struct reading *reading, uint64_t offset,
                     const struct file_extent *extent, struct error *err)
{
    struct file_system *fs = reading->node->fs;
    struct extent map;

    for (uint64_t at = 0; at < extent->length;) {
        const uint64_t disk = extent->offset + at;

        int r = image_map(fs->image, disk, extent->length - at, IMAGE_MAP_HOLES, &map, err);
        if (r < 0)
            return r;
        if (map.kind == EXTENT_ZERO) {
            r = reading->take(reading->arg, offset + at, NULL, map.length, err);
            if (r != 0)
                return r;
            at += map.length;
            continue;
        }
        for (uint64_t end = at + map.length; at < end;) {
            /* Up to where pieces of the disk end, so that compressed clusters are read in whole. */
            const uint64_t disk_at = extent->offset + at;
            const size_t n = (size_t)min_u64(end - at, FILE_PIECE - disk_at % FILE_PIECE);

            r = image_read(fs->image, disk_at, fs->piece, n, err);
            if (r == 0)
                r = reading->take(reading->arg, offset + at, fs->piece, n, err);
            if (r != 0)
                return r;
            at += n;
        }
    }
    return 0;
}

static int take_extent(const struct reading *reading, uint64_t offset,
                       const struct file_extent *extent, struct error *err)
{
    switch (extent->kind) {
    case FILE_HOLE:
        return reading->take(reading->arg, offset, NULL, extent->length, err);
    case FILE_INLINE:
        return reading->take(reading->arg, offset, reading->node->inline_data + offset,
                             extent->length, err);
    case FILE_DATA:
        return take_data(reading, offset, extent, err);
    }
    abort();
}

int file_node_read_all(struct file_node *node, file_take_bytes *take, void *arg, struct error *err)
{
    const struct reading reading = {.node = node, .take = take, .arg = arg};
    struct file_system *fs = node->fs;
    struct file_extent extent;
    uint64_t data = 0;

    int r = check_regular(node, err);
    if (r < 0)
        return r;
    if (fs->piece == NULL)
        fs->piece = malloc(FILE_PIECE);
    if (fs->piece == NULL)
        return error_oom(err);
    for (uint64_t at = 0; at < node->info.size; at += extent.length) {
        r = map_range(node, at, node->info.size - at, &extent, err);
        if (r < 0)
            return r;
        if (extent.kind == FILE_DATA)
            data += extent.length;
        if (data > fs->blocks * fs->block_size)
            return error_set(err, EUCLEAN,
                             "inode %" PRIu32 ": it has more data than the file system",
                             node->info.inode);
        r = take_extent(&reading, at, &extent, err);
        if (r != 0)
            return r;
    }
    return 0;
}
