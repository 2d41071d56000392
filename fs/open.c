/* SPDX-License-Identifier: MIT */
/*
 * Answers to opens: plain ones, and those of files whose content is a text that stays as it was
 * when the file was opened, whatever becomes of the next one.
 */
#include <linux/fuse.h>
#include <string.h>

#include "fs/internal.h"

#ifndef FOPEN_PARALLEL_DIRECT_WRITES /* Linux 6.0 */
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif

void fs_snapshot_free(struct fs *fs, struct fs_snapshot *snapshot)
{
    pthread_mutex_lock(&fs->snapshots_lock);
    if (snapshot->newer != NULL)
        snapshot->newer->older = snapshot->older;
    else
        fs->snapshots = snapshot->older;
    if (snapshot->older != NULL)
        snapshot->older->newer = snapshot->newer;
    pthread_mutex_unlock(&fs->snapshots_lock);
    free(snapshot->text);
    free(snapshot);
}

void fs_snapshots_free(struct fs *fs)
{
    while (fs->snapshots != NULL)
        fs_snapshot_free(fs, fs->snapshots);
}

/* Takes the text, which may be NULL for want of memory; so is then what is returned. */
static struct fs_snapshot *snapshot_new(struct fs *fs, char *text)
{
    struct fs_snapshot *snapshot = text != NULL ? calloc(1, sizeof(*snapshot)) : NULL;

    if (snapshot == NULL) {
        free(text);
        return NULL;
    }
    snapshot->text = text;
    snapshot->length = strlen(text);
    pthread_mutex_lock(&fs->snapshots_lock);
    snapshot->older = fs->snapshots;
    if (snapshot->older != NULL)
        snapshot->older->newer = snapshot;
    fs->snapshots = snapshot;
    pthread_mutex_unlock(&fs->snapshots_lock);
    return snapshot;
}

/* Not by fuse_reply_open(), which knows the flag for parallel writes only from libfuse 3.15 on. */
void fs_reply_open(fuse_req_t req, struct fs_node *node, const struct fuse_file_info *fi)
{
    struct fs *fs = fuse_req_userdata(req);
    bool image = node->kind == NODE_RANGE || node->kind == NODE_HASH;
    struct fuse_open_out out = {.fh = fi->fh};

    if (!fs->writable)
        out.open_flags |= FOPEN_KEEP_CACHE;
    if (fs->writable || (image && fs->mount.direct_io))
        out.open_flags |= FOPEN_DIRECT_IO;
    if (fs_node_writable(fs, node))
        out.open_flags |= FOPEN_PARALLEL_DIRECT_WRITES;
    fs_mapped_open(fs, node);
    atomic_fetch_add(&fs->open_files, 1);
    if (fuse_reply_buf(req, (const char *)&out, sizeof(out)) < 0) {
        /* Nobody waits for it any more, and there will be no release. */
        fs_mapped_release(fs, node);
        atomic_fetch_sub(&fs->open_files, 1);
    }
}

void fs_reply_open_text(fuse_req_t req, struct fs_node *node, char *text,
                        const struct fuse_file_info *fi)
{
    struct fs *fs = fuse_req_userdata(req);
    struct fuse_file_info opened = *fi;
    struct fs_snapshot *snapshot = snapshot_new(fs, text);

    if (snapshot == NULL) {
        fs_node_count_error(node);
        fuse_reply_err(req, ENOMEM);
        return;
    }
    opened.fh = (uintptr_t)snapshot;
    opened.direct_io = 1; /* it is not what others may have read; nor is the size of stats known */
    atomic_fetch_add(&fs->open_files, 1);
    if (fuse_reply_open(req, &opened) < 0) {
        /* Nobody waits for it any more, and there will be no release. */
        fs_snapshot_free(fs, snapshot);
        atomic_fetch_sub(&fs->open_files, 1);
    }
}
