/* SPDX-License-Identifier: MIT */
/*
 * Files of a writable mount that are mapped into memory.
 *
 * All reads and writes of such a mount go past the kernel's page cache (direct_io). Only a mapping
 * of a file has pages, and one byte of the image is in several files: so before the image is
 * changed, the pages of all files that show it have to be written if they are dirty (or they would
 * be later, with the bytes around what was stored as they were), and when it is done they must be
 * dropped, before the writer is told. The kernel does that for the file that is written to alone,
 * and before the write only, which is too early for those who fault a page in meanwhile.
 *
 * A file counts as mapped from the first read that fills a page of it until it is closed by all who
 * had it open. Direct reads name an owner of locks, those for a page do not. The mark is set before
 * the image is read, and looked at after the image was changed: so whoever read old bytes is
 * noticed.
 *
 * To drop a page the kernel waits until it is unlocked, and writes it if it is dirty; for both it
 * needs answers of ours. So it is asked in a thread of its own, the dropper, which then does and
 * answers what it was asked for. A write that comes from a page must be answered before pages of
 * other files are dropped, or the dropper would wait for itself; fsync() makes up for that, as it
 * waits for all that is to be dropped before it. Workers never wait for the dropper.
 *
 * What this does not give is what no two page caches give: whoever stores to a mapping is seen
 * under other names only after msync(), and two who store to the same page under two names at once
 * get one of the two pages.
 */
#include <assert.h>
#include <string.h>

#include "common/checked.h"
#include "common/log.h"
#include "fs/internal.h"

/* What the dropper is to do. */
struct fs_drop {
    struct fs_drop *next;
    struct fs_change change; /* its data is this one's */
    bool apply;              /* else it was done already */
    bool answer;             /* else it was answered already */
    int code;                /* if it was done */
    int channel;
    uint8_t data[];
};

void fs_mapped_init(struct fs_mapped *mapped)
{
    pthread_mutex_init(&mapped->lock, NULL);
    pthread_cond_init(&mapped->wake, NULL);
    pthread_cond_init(&mapped->idle, NULL);
    mapped->end = &mapped->drops;
}

void fs_mapped_destroy(struct fs_mapped *mapped)
{
    assert(mapped->drops == NULL);
    pthread_cond_destroy(&mapped->idle);
    pthread_cond_destroy(&mapped->wake);
    pthread_mutex_destroy(&mapped->lock);
}

/* --- Which files are mapped --- */

void fs_mapped_open(struct fs *fs, struct fs_node *node)
{
    if (!fs->writable)
        return;
    pthread_mutex_lock(&fs->mapped.lock);
    node->opened++;
    pthread_mutex_unlock(&fs->mapped.lock);
}

void fs_mapped_release(struct fs *fs, struct fs_node *node)
{
    if (!fs->writable)
        return;
    pthread_mutex_lock(&fs->mapped.lock);
    /* Whoever maps it again gets no page that is there already. */
    if (--node->opened == 0)
        atomic_store(&node->mapped, false);
    pthread_mutex_unlock(&fs->mapped.lock);
}

void fs_mapped_read(struct fs *fs, struct fs_node *node, const struct fuse_file_info *fi)
{
    if (!fs->writable || fi->lock_owner != 0 || atomic_load(&node->mapped))
        return;
    /* Under the lock, or a release that came before the open could take it back. */
    pthread_mutex_lock(&fs->mapped.lock);
    atomic_store(&node->mapped, true);
    pthread_mutex_unlock(&fs->mapped.lock);
}

static bool any_mapped(const struct fs *fs)
{
    for (size_t i = 0; i < fs->nodes.count; i++)
        if (atomic_load(&fs->nodes.all[i].mapped))
            return true;
    return false;
}

/* --- The dropper --- */

static void drop(struct fs *fs, uint64_t offset, uint64_t length)
{
    for (size_t i = 0; i < fs->nodes.count; i++) {
        const struct fs_node *node = &fs->nodes.all[i];
        uint64_t start = 0, end = 0; /* of the file; 0: all of it */

        if (length == 0 || !atomic_load(&node->mapped))
            continue;
        if (node->kind == NODE_RANGE) {
            if (offset + length <= node->start || offset >= node->start + node->size)
                continue;
            start = max_u64(offset, node->start) - node->start;
            end = min_u64(offset + length, node->start + node->size) - node->start;
        }
        /* Fails if the kernel has forgotten the file; then there are no pages. */
        int r = fuse_lowlevel_notify_inval_inode(fs->session, fs_node_ino(&fs->nodes, node),
                                                 (off_t)start, (off_t)(end - start));
        if (r < 0 && r != -ENOENT)
            log_debug("%s: cannot have pages dropped: %s", node->name, strerror(-r));
    }
}

static void run(struct fs *fs, struct fs_drop *next, int session_fd)
{
    const struct fs_change *change = &next->change;

    fs_set_channel(session_fd);
    if (next->apply) {
        drop(fs, change->offset, change->length);
        next->code = fs_change_apply(fs, change);
    }
    drop(fs, change->offset, change->length);
    fs_set_channel(next->channel);
    if (next->answer)
        fs_change_answer(change, next->code);
}

static void *dropper_run(void *arg)
{
    struct fs *fs = arg;
    struct fs_mapped *mapped = &fs->mapped;
    int session_fd = fuse_session_fd(fs->session);

    pthread_mutex_lock(&mapped->lock);
    for (;;) {
        while (mapped->drops == NULL && !mapped->stopping)
            pthread_cond_wait(&mapped->wake, &mapped->lock);
        struct fs_drop *next = mapped->drops;
        if (next == NULL)
            break;
        mapped->busy = true;
        mapped->drops = next->next;
        if (mapped->drops == NULL)
            mapped->end = &mapped->drops;
        pthread_mutex_unlock(&mapped->lock);

        run(fs, next, session_fd);
        free(next);

        pthread_mutex_lock(&mapped->lock);
        mapped->busy = false;
        if (mapped->drops == NULL)
            pthread_cond_broadcast(&mapped->idle);
    }
    pthread_mutex_unlock(&mapped->lock);
    return NULL;
}

/* With the lock held. */
static bool append(struct fs *fs, struct fs_drop *drop)
{
    struct fs_mapped *mapped = &fs->mapped;

    if (mapped->stopping)
        return false;
    if (!mapped->started && fs_thread_start(&mapped->dropper, dropper_run, fs) != 0)
        return false;
    mapped->started = true;
    *mapped->end = drop;
    mapped->end = &drop->next;
    pthread_cond_signal(&mapped->wake);
    return true;
}

/* Leaves a change to the dropper. False if it cannot be taken. */
static bool hand_over(struct fs *fs, const struct fs_change *change, bool apply, bool answer,
                      int code)
{
    size_t bytes = apply && change->data != NULL ? change->length : 0;
    struct fs_drop *drop = malloc(sizeof(*drop) + bytes);

    if (drop == NULL)
        return false;
    *drop = (struct fs_drop){
        .change = *change, .apply = apply, .answer = answer, .code = code, .channel = fs_channel()};
    if (bytes > 0) {
        memcpy(drop->data, change->data, bytes);
        drop->change.data = drop->data;
    }
    pthread_mutex_lock(&fs->mapped.lock);
    bool taken = append(fs, drop);
    pthread_mutex_unlock(&fs->mapped.lock);
    if (!taken)
        free(drop);
    return taken;
}

void fs_mapped_change(struct fs *fs, const struct fs_change *change)
{
    bool later = !change->from_page && change->what != CHANGE_FLUSH;

    if (later && any_mapped(fs) && hand_over(fs, change, true, true, 0))
        return;
    int code = fs_change_apply(fs, change);
    /* Also those that were not mapped before. */
    if (any_mapped(fs) && hand_over(fs, change, false, !change->from_page, code) &&
        !change->from_page)
        return;
    fs_change_answer(change, code);
}

bool fs_mapped_stop(struct fs *fs, const struct timespec *deadline)
{
    struct fs_mapped *mapped = &fs->mapped;
    int r = 0;

    pthread_mutex_lock(&mapped->lock);
    mapped->stopping = true;
    pthread_cond_signal(&mapped->wake);
    while (r == 0 && (mapped->drops != NULL || mapped->busy))
        r = pthread_cond_timedwait(&mapped->idle, &mapped->lock, deadline);
    pthread_mutex_unlock(&mapped->lock);
    if (r == 0 && mapped->started)
        pthread_join(mapped->dropper, NULL);
    return r == 0;
}
