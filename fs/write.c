/* SPDX-License-Identifier: MIT */
/*
 * Writing to the files of the image, where it has an overlay that takes it.
 *
 * One byte of the image is in several files: disk, a partition, and above it in the hash device and
 * all texts. So in a mount that is written to the kernel caches nothing of any of them (direct_io),
 * and each request sees what the last one left; mapped.c has the exception. The files behave as
 * block devices do: a write that reaches behind the end is cut there, and one that begins there has
 * no space; nothing truncates.
 */
#include <fcntl.h>
#include <linux/falloc.h>

#include "common/checked.h"
#include "fs/internal.h"

/* The node, or NULL: it cannot be written to, and that was answered. */
static struct fs_node *writable_node(struct fs *fs, fuse_req_t req, fuse_ino_t ino, off_t offset)
{
    struct fs_node *node = fs_node_get(&fs->nodes, ino);

    if (node != NULL && offset >= 0 && fs_node_writable(fs, node))
        return node;
    fuse_reply_err(req, node == NULL || offset < 0 ? EINVAL : EROFS);
    return NULL;
}

void fs_op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
                 struct fuse_file_info *fi)
{
    struct fs *fs = fuse_req_userdata(req);
    struct fs_node *node = writable_node(fs, req, ino, off);
    uint64_t offset = (uint64_t)off;

    if (node == NULL)
        return;
    if (offset >= node->size && size > 0) {
        fuse_reply_err(req, ENOSPC);
        return;
    }
    size_t length = min_u64(size, node->size - min_u64(offset, node->size));
    if (length == 0) {
        fuse_reply_write(req, 0);
        return;
    }
    const struct fs_change change = {.what = CHANGE_WRITE,
                                     .req = req,
                                     .node = node,
                                     .offset = node->start + offset,
                                     .length = length,
                                     .data = (const uint8_t *)buf,
                                     .from_page = fi->writepage};
    fs_mapped_change(fs, &change);
}

void fs_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t size,
                     struct fuse_file_info *fi)
{
    struct fs *fs = fuse_req_userdata(req);
    struct fs_node *node = writable_node(fs, req, ino, off);
    uint64_t offset = (uint64_t)off;
    bool keeps_size = (mode & FALLOC_FL_KEEP_SIZE) != 0;
    int what = mode & ~FALLOC_FL_KEEP_SIZE;

    (void)fi;
    if (node == NULL)
        return;
    if ((what != FALLOC_FL_PUNCH_HOLE || !keeps_size) && what != FALLOC_FL_ZERO_RANGE) {
        fuse_reply_err(req, EOPNOTSUPP);
        return;
    }
    if (size <= 0 || (!keeps_size && !range_within(offset, (uint64_t)size, node->size))) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    offset = min_u64(offset, node->size);
    uint64_t length = min_u64((uint64_t)size, node->size - offset);
    if (length == 0) {
        fuse_reply_err(req, 0);
        return;
    }
    const struct fs_change change = {.what = CHANGE_ZERO,
                                     .req = req,
                                     .node = node,
                                     .offset = node->start + offset,
                                     .length = length};
    fs_mapped_change(fs, &change);
}

void fs_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct fs *fs = fuse_req_userdata(req);
    struct fs_node *node = fs_node_get(&fs->nodes, ino);
    const struct fs_change change = {.what = CHANGE_FLUSH, .req = req, .node = node};

    (void)datasync;
    (void)fi;
    if (node != NULL && fs_node_writable(fs, node))
        fs_mapped_change(fs, &change);
    else
        fuse_reply_err(req, node != NULL ? 0 : EINVAL);
}

void fs_op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                   struct fuse_file_info *fi)
{
    struct fs *fs = fuse_req_userdata(req);
    const struct fs_node *node = fs_node_get(&fs->nodes, ino);
    const int times = FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME |
                      FUSE_SET_ATTR_MTIME_NOW | FUSE_SET_ATTR_CTIME;
    struct stat st;

    (void)fi;
    if (node == NULL) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    if (!fs_node_writable(fs, node)) {
        fuse_reply_err(req, fs->writable ? EPERM : EROFS);
        return;
    }
    /* A size that stays is no change; times are those of the last write whatever one asks for. */
    if ((to_set & ~(times | FUSE_SET_ATTR_SIZE)) != 0 ||
        ((to_set & FUSE_SET_ATTR_SIZE) != 0 && (uint64_t)attr->st_size != node->size)) {
        fuse_reply_err(req, EPERM);
        return;
    }
    fs_node_stat(&fs->nodes, node, &st);
    fuse_reply_attr(req, &st, 0.0);
}
