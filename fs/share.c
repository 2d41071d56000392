/* SPDX-License-Identifier: MIT */
/*
 * Parts of a request that idle workers take over.
 *
 * A request for many compressed clusters would be decompressed by one CPU while the others wait for
 * the reader to go on. So the worker that has it makes a list of its parts known and wakes as many
 * idle workers as there are other CPUs. All of them take parts in order, its owner too, until none
 * is left. The owner depends on nobody: nothing waits for a helper to come, one that is too late
 * finds nothing to do, and where nobody is idle the owner does it all. It waits only for parts that
 * somebody has begun, and whoever does a part waits for no other part.
 *
 * A helper may have to wait for a disk. It says so to the owner, which then gives its place at the
 * device to somebody else, as it does when it waits for a disk itself, and no longer counts among
 * those who help, so that others are helped meanwhile. Half of the spare workers are never taken as
 * helpers: a disk that stalls holds up the helpers of a request along with its owner, and others
 * have to be there for what does not stall.
 *
 * When a part fails no further ones are begun. The error is that of the first part that fails, in
 * the order of the parts: all that come before it have been begun before.
 *
 * A share lives on its owner's stack. It is in the list, where helpers find it, as long as it has
 * parts that nobody has begun. All of it is guarded by the workers' lock.
 */
#include "common/io.h"
#include "fs/internal.h"

struct fs_share {
    struct fs_share *next;
    fs_part_fn part;
    void *arg;
    size_t count;
    size_t begun;
    bool listed;
    unsigned helpers; /* that are at work on a part */
    bool waits;       /* one of them has had to wait for something */
    pthread_cond_t changed;
    size_t failed; /* the first part that failed; `count`: none */
    int result;    /* of that one */
    struct error err;
};

/* --- With the lock held --- */

static void unlist(struct fs_workers *workers, struct fs_share *share)
{
    struct fs_share **p = &workers->shares;

    if (!share->listed)
        return;
    while (*p != share)
        p = &(*p)->next;
    *p = share->next;
    share->listed = false;
}

static void list(struct fs_workers *workers, struct fs_share *share)
{
    struct fs_share **p = &workers->shares;

    while (*p != NULL)
        p = &(*p)->next;
    *p = share;
    share->listed = true;
}

static size_t begin_part(struct fs_workers *workers, struct fs_share *share)
{
    size_t index = share->begun++;

    if (share->begun == share->count)
        unlist(workers, share);
    return index;
}

static void part_ended(struct fs_workers *workers, struct fs_share *share, size_t index, int result,
                       struct error *err)
{
    if (result < 0)
        unlist(workers, share);
    if (result < 0 && index < share->failed) {
        share->failed = index;
        share->result = result;
        error_clear(&share->err);
        error_move(&share->err, err);
    }
}

/* --- Helping --- */

/* What the calling thread does a part of. */
static _Thread_local struct fs_workers *helped_workers;
static _Thread_local struct fs_share *helped;

static void helper_waits(void)
{
    io_on_wait(NULL);
    pthread_mutex_lock(&helped_workers->lock);
    helped->waits = true;
    pthread_cond_signal(&helped->changed);
    helped_workers->helping--;
    pthread_mutex_unlock(&helped_workers->lock);
    helped_workers = NULL;
}

void fs_share_help(struct fs_workers *workers)
{
    struct fs_share *share;

    helped_workers = workers;
    pthread_mutex_lock(&workers->lock);
    while (helped_workers != NULL && (share = workers->shares) != NULL) {
        _cleanup_error_ struct error err = ERROR_INIT;
        size_t index = begin_part(workers, share);

        share->helpers++;
        pthread_mutex_unlock(&workers->lock);
        helped = share;
        io_on_wait(helper_waits);
        int r = share->part(share->arg, index, &err);
        io_on_wait(NULL);
        pthread_mutex_lock(&workers->lock);
        part_ended(workers, share, index, r, &err);
        share->helpers--;
        if (share->helpers == 0)
            pthread_cond_signal(&share->changed);
    }
    if (helped_workers != NULL)
        workers->helping--;
    pthread_mutex_unlock(&workers->lock);
}

/* --- Being helped --- */

static int do_alone(size_t count, fs_part_fn part, void *arg, struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        int r = part(arg, i, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* With the lock held; it is released meanwhile. */
static void wait_for_helpers(struct fs_workers *workers, struct fs_share *share)
{
    bool told = false;

    while (share->helpers > 0) {
        if (share->waits && !told) {
            told = true;
            pthread_mutex_unlock(&workers->lock);
            fs_worker_slow();
            pthread_mutex_lock(&workers->lock);
        } else {
            pthread_cond_wait(&share->changed, &workers->lock);
        }
    }
    if (share->waits)
        fs_read_waits();
}

int fs_share(unsigned helpers, size_t count, fs_part_fn part, void *arg, struct error *err)
{
    struct fs_workers *workers = fs_workers_mine();
    struct fs_share share = {.part = part, .arg = arg, .count = count, .failed = count};

    if (workers == NULL || helpers == 0 || count < 2)
        return do_alone(count, part, arg, err);
    pthread_cond_init(&share.changed, NULL);
    pthread_mutex_lock(&workers->lock);
    list(workers, &share);
    fs_workers_call(workers, helpers);
    while (share.listed) {
        _cleanup_error_ struct error part_err = ERROR_INIT;
        size_t index = begin_part(workers, &share);

        pthread_mutex_unlock(&workers->lock);
        int r = part(arg, index, &part_err);
        pthread_mutex_lock(&workers->lock);
        part_ended(workers, &share, index, r, &part_err);
    }
    wait_for_helpers(workers, &share);
    pthread_mutex_unlock(&workers->lock);
    pthread_cond_destroy(&share.changed);
    if (share.result < 0)
        error_move(err, &share.err);
    return share.result;
}
