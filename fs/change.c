/* SPDX-License-Identifier: MIT */
/* Changes of the image that somebody asked for: doing them, and telling how that went. */
#include <errno.h>
#include <time.h>

#include "fs/internal.h"
#include "image/write.h"

/* What the writer is told; what is behind it goes to the log. */
static int failure(struct fs_node *node, int r, const struct error *err)
{
    fs_log_error(node, err);
    switch (-r) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case ENOMEM:
        return -r;
    }
    return EIO;
}

/*
 * The tree is told before a write as well: what is read of the image in between may be new already,
 * and must not be taken for what the files held when they were opened. Also after a failure, which
 * may leave a part of the range written.
 */
static void changed(struct fs *fs, uint64_t offset, uint64_t length)
{
    struct timespec now;

    hashtree_changed(fs->options.tree, offset, length);
    clock_gettime(CLOCK_REALTIME, &now);
    atomic_store_explicit(&fs->nodes.written_ns, (int64_t)now.tv_sec * 1000000000 + now.tv_nsec,
                          memory_order_relaxed);
}

int fs_change_apply(struct fs *fs, const struct fs_change *change)
{
    struct image *image = fs->options.image;
    uint64_t offset = change->offset, length = change->length;
    _cleanup_error_ struct error err = ERROR_INIT;
    int r = 0;

    switch (change->what) {
    case CHANGE_WRITE:
        changed(fs, offset, length);
        r = image_write(image, offset, change->data, length, &err);
        changed(fs, offset, length);
        break;
    case CHANGE_ZERO:
        changed(fs, offset, length);
        r = image_write_zeros(image, offset, length, &err);
        changed(fs, offset, length);
        break;
    case CHANGE_FLUSH:
        r = image_flush(image, &err);
        break;
    }
    return r < 0 ? failure(change->node, r, &err) : 0;
}

void fs_change_answer(const struct fs_change *change, int code)
{
    if (code == 0 && change->what == CHANGE_WRITE)
        fuse_reply_write(change->req, change->length);
    else
        fuse_reply_err(change->req, code);
}
