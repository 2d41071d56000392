/* SPDX-License-Identifier: MIT */
/*
 * The FUSE operations. Nothing of what they tell changes while the filesystem is mounted, except
 * stats.json: so the kernel may keep entries, attributes and pages for as long as it likes. In a
 * mount that is written to, it may keep entries only (write.c).
 */
#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/checked.h"
#include "fs/internal.h"

#define TIMEOUT_SECONDS 86400.0
/* How long one lseek() may look for the next data or hole. */
#define SEEK_SECONDS 1
/* Requests that the kernel may have under way for read-ahead and asynchronous direct I/O. */
#define MAX_BACKGROUND 64

static struct fs *fs_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

static double timeout_of(const struct fs *fs, const struct fs_node *node)
{
    return node->kind == NODE_STATS || (fs->writable && node->kind != NODE_LINK) ? 0.0
                                                                                 : TIMEOUT_SECONDS;
}

/* --- The connection --- */

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    struct fs *fs = userdata;

    conn->max_read = fs->mount.max_read;
    conn->max_write = FS_MAX_READ; /* libfuse makes the limit of pages in any request from it */
    conn->max_background = MAX_BACKGROUND;
    conn->congestion_threshold = MAX_BACKGROUND * 3 / 4;
    /* Replies by splice are several times slower than copies (docs/serving.md). */
    conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
    /* Cached pages never go stale. */
    conn->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
    conn->want |= conn->capable & FUSE_CAP_CACHE_SYMLINKS;
    if (fs->writable)
        fs_allow_shared_mappings(conn);
    /* O_TRUNC is seen, and refused, by op_open(). */
    conn->want |= conn->capable & FUSE_CAP_ATOMIC_O_TRUNC;
}

/* --- The directory and attributes --- */

static void make_entry(const struct fs *fs, const struct fs_node *node,
                       struct fuse_entry_param *ret)
{
    *ret = (struct fuse_entry_param){.ino = fs_node_ino(&fs->nodes, node),
                                     .attr_timeout = timeout_of(fs, node),
                                     .entry_timeout = TIMEOUT_SECONDS};
    fs_node_stat(&fs->nodes, node, &ret->attr);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fs *fs = fs_of(req);
    const struct fs_node *node = parent == FUSE_ROOT_ID ? fs_node_find(&fs->nodes, name) : NULL;
    /* Inode number 0: the kernel may remember that there is none. */
    struct fuse_entry_param entry = {.entry_timeout = TIMEOUT_SECONDS};

    if (node != NULL)
        make_entry(fs, node, &entry);
    fuse_reply_entry(req, &entry);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
    (void)ino;
    (void)nlookup;
    fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    (void)count;
    (void)forgets;
    fuse_reply_none(req);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs *fs = fs_of(req);
    const struct fs_node *node = fs_node_get(&fs->nodes, ino);
    struct stat st;

    (void)fi;
    if (node == NULL) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    fs_node_stat(&fs->nodes, node, &st);
    fuse_reply_attr(req, &st, timeout_of(fs, node));
}

static void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
    const struct fs_node *node = fs_node_get(&fs_of(req)->nodes, ino);

    if (node == NULL || node->kind != NODE_LINK)
        fuse_reply_err(req, EINVAL);
    else
        fuse_reply_readlink(req, node->target);
}

/* Entry `index` of the directory: "." and "..", then the nodes. Returns the bytes that it takes in
 * the buffer, which may be more than there is room for, or 0 behind the last. */
static size_t add_entry(fuse_req_t req, size_t index, char *buffer, size_t room, bool plus)
{
    struct fs *fs = fs_of(req);
    const struct fs_node *node = &fs->nodes.all[0];
    const char *name = index == 0 ? "." : "..";
    struct fuse_entry_param entry;

    if (index >= 2) {
        if (index - 1 >= fs->nodes.count)
            return 0;
        node = &fs->nodes.all[index - 1];
        name = node->name;
    }
    make_entry(fs, node, &entry);
    off_t next = (off_t)index + 1;
    return plus ? fuse_add_direntry_plus(req, buffer, room, name, &entry, next)
                : fuse_add_direntry(req, buffer, room, name, &entry.attr, next);
}

static void list_directory(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, bool plus)
{
    _cleanup_free_ char *buffer = NULL;
    size_t used = 0;

    if (ino != FUSE_ROOT_ID) {
        fuse_reply_err(req, ENOTDIR);
        return;
    }
    size = min_u64(size, FS_MAX_READ);
    buffer = malloc(size);
    if (buffer == NULL) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    for (size_t index = (size_t)offset;; index++) {
        size_t n = add_entry(req, index, buffer + used, size - used, plus);
        if (n == 0 || n > size - used)
            break;
        used += n;
    }
    fuse_reply_buf(req, buffer, used);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                       struct fuse_file_info *fi)
{
    (void)fi;
    list_directory(req, ino, size, offset, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                           struct fuse_file_info *fi)
{
    (void)fi;
    list_directory(req, ino, size, offset, true);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct fs *fs = fs_of(req);
    struct statvfs st = {.f_bsize = 4096, .f_frsize = 4096, .f_namemax = 255};

    (void)ino;
    st.f_blocks = div_round_up(image_size(fs->options.image), 4096);
    st.f_files = fs->nodes.count;
    fuse_reply_statfs(req, &st);
}

/* --- Open files --- */

static void open_stats(fuse_req_t req, struct fs_node *node, const struct fuse_file_info *fi)
{
    struct fs *fs = fs_of(req);
    _cleanup_error_ struct error err = ERROR_INIT;
    char *text;

    int r = fs_stats_make(&fs->options, &fs->nodes, atomic_load(&fs->jobs.building), &text, &err);
    if (r < 0) {
        fs_log_error(node, &err);
        fuse_reply_err(req, ENOMEM);
        return;
    }
    fs_reply_open_text(req, node, text, fi);
}

static bool has_snapshot(const struct fs *fs, const struct fs_node *node)
{
    return node->kind == NODE_STATS || (fs->writable && node->kind == NODE_TEXT);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs *fs = fs_of(req);
    struct fs_node *node = fs_node_get(&fs->nodes, ino);

    if (node == NULL) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    if ((fi->flags & O_ACCMODE) != O_RDONLY && !fs_node_writable(fs, node)) {
        fuse_reply_err(req, EROFS);
        return;
    }
    if ((fi->flags & O_TRUNC) != 0) { /* as setattr has it */
        fuse_reply_err(req, EPERM);
        return;
    }
    switch (node->kind) {
    case NODE_RANGE:
    case NODE_HASH:
        fs_reply_open(req, node, fi);
        return;
    case NODE_TEXT:
        fs_job_open(fs, req, node, fi);
        return;
    case NODE_STATS:
        open_stats(req, node, fi);
        return;
    case NODE_ROOT:
    case NODE_LINK:
        break;
    }
    fuse_reply_err(req, EINVAL);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs *fs = fs_of(req);
    struct fs_node *node = fs_node_get(&fs->nodes, ino);

    if (node != NULL && has_snapshot(fs, node))
        fs_snapshot_free(fs, (struct fs_snapshot *)(uintptr_t)fi->fh);
    else if (node != NULL)
        fs_mapped_release(fs, node);
    atomic_fetch_sub(&fs->open_files, 1);
    fuse_reply_err(req, 0);
}

/* --- Reading --- */

static void read_range(fuse_req_t req, struct fs_node *node, uint64_t offset, size_t length)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct fs *fs = fs_of(req);
    struct fs_gather gather;

    int r = fs->options.verified
                ? fs_gather_verified(fs, node, node->start + offset, length, &gather, &err)
                : fs_gather_image(fs->options.image, node->start + offset, length, &gather, &err);
    if (r < 0 && err.code == 0) {
        fs_node_count_error(node); /* was logged already */
        fuse_reply_err(req, EIO);
        return;
    }
    if (r < 0) {
        /* All of the request: a short reply would be taken for the end of the file. */
        fs_log_error(node, &err);
        fuse_reply_err(req, EIO);
        return;
    }
    fs_node_count(node, length);
    if (gather.count == 1)
        fuse_reply_buf(req, gather.iov[0].iov_base, gather.iov[0].iov_len);
    else
        fuse_reply_iov(req, gather.iov, gather.count);
}

static void read_text(fuse_req_t req, struct fs_node *node, const char *text, size_t text_length,
                      uint64_t offset, size_t length)
{
    offset = min_u64(offset, text_length);
    length = min_u64(length, text_length - offset);
    fs_node_count(node, length);
    fuse_reply_buf(req, text + offset, length);
}

/* Replies from a copy: the reader may get it, close the file, and so have the snapshot freed, all
 * before the reply has returned here. The kernel does not mind, but sanitizers do. */
static void read_snapshot(fuse_req_t req, struct fs_node *node, const struct fs_snapshot *snapshot,
                          uint64_t offset, size_t length)
{
    char *copy = (char *)fs_buffer(snapshot->length);

    if (copy == NULL) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    memcpy(copy, snapshot->text, snapshot->length);
    read_text(req, node, copy, snapshot->length, offset, length);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    struct fs *fs = fs_of(req);
    struct fs_node *node = fs_node_get(&fs->nodes, ino);
    uint64_t offset = (uint64_t)off;

    fs_read_begin();
    if (node == NULL || off < 0) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    if (has_snapshot(fs, node)) {
        read_snapshot(req, node, (const struct fs_snapshot *)(uintptr_t)fi->fh, offset, size);
        return;
    }
    if (node->kind == NODE_TEXT) {
        if (!atomic_load(&fs->jobs.texts_ready)) { /* not opened */
            fuse_reply_err(req, EINVAL);
            return;
        }
        const char *text = fs->jobs.texts.text[node->text];
        read_text(req, node, text, strlen(text), offset, size);
        return;
    }
    if (offset >= node->size) {
        fuse_reply_buf(req, NULL, 0);
        return;
    }
    size_t length = min_u64(size, node->size - offset);
    fs_mapped_read(fs, node, fi);
    if (node->kind == NODE_RANGE)
        read_range(req, node, offset, length);
    else if (node->kind == NODE_HASH)
        fs_job_read_hash(fs, req, node, offset, length);
    else
        fuse_reply_err(req, EINVAL);
}

/* --- Holes --- */

struct patience {
    fuse_req_t req;
    struct timespec start;
};

static bool seek_enough(void *arg)
{
    const struct patience *patience = arg;
    struct timespec now;

    fs_worker_slow();
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec - patience->start.tv_sec > SEEK_SECONDS ||
           fuse_req_interrupted(patience->req) || atomic_load(&fs_of(patience->req)->stop);
}

static void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
                     struct fuse_file_info *fi)
{
    struct fs *fs = fs_of(req);
    struct fs_node *node = fs_node_get(&fs->nodes, ino);
    _cleanup_error_ struct error err = ERROR_INIT;
    struct patience patience = {.req = req};
    uint64_t found;

    (void)fi;
    if (node == NULL || (whence != SEEK_DATA && whence != SEEK_HOLE)) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    if (off < 0 || (uint64_t)off >= node->size) {
        fuse_reply_err(req, ENXIO);
        return;
    }
    if (node->kind != NODE_RANGE) {
        fuse_reply_lseek(req, whence == SEEK_DATA ? off : (off_t)node->size);
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &patience.start);
    int r = fs_seek_image(fs->options.image, node->start, node->size, (uint64_t)off, whence,
                          seek_enough, &patience, &found, &err);
    if (r == -ENXIO && err.code == 0) {
        fuse_reply_err(req, ENXIO);
    } else if (r < 0) {
        fs_log_error(node, &err);
        fuse_reply_err(req, EIO);
    } else {
        fuse_reply_lseek(req, (off_t)found);
    }
}

const struct fuse_lowlevel_ops fs_ops = {
    .init = op_init,
    .lookup = op_lookup,
    .forget = op_forget,
    .forget_multi = op_forget_multi,
    .getattr = op_getattr,
    .setattr = fs_op_setattr,
    .readlink = op_readlink,
    .readdir = op_readdir,
    .readdirplus = op_readdirplus,
    .statfs = op_statfs,
    .open = op_open,
    .release = op_release,
    .read = op_read,
    .write = fs_op_write,
    .fsync = fs_op_fsync,
    .fallocate = fs_op_fallocate,
    .lseek = op_lseek,
};
