/* SPDX-License-Identifier: MIT */
/*
 * Requests that would hold up a worker for long.
 *
 * Those that need the root wait in a list for the builder, one thread that runs a full build and
 * then answers all of them. Reads of the hash device that compute blocks from a bounded amount of
 * data are done by the worker that took them, but only by half of all workers at a time: the rest
 * wait in the lane, and whoever has answered one takes the next from there. So files of the image
 * can be read whatever else goes on, and nothing here needs more threads than there are.
 *
 * A waiting request may be interrupted (its process was killed). libfuse then calls interrupt() in
 * the thread that took the kernel's message, with a lock of the request held that
 * fuse_req_interrupt_func() takes as well. Hence:
 *
 *  - A job is made known to libfuse before it is put into a list. An interrupt may come within that
 *    very call, before libfuse can bear a reply; so as long as `entering` is set interrupt() only
 *    notes what happened.
 *  - Whoever takes a job out of its list, under the lock, is the one to answer it. interrupt()
 *    does both while libfuse holds its lock, so that the job is still there.
 *  - All others unhook a job from libfuse before they answer it; that waits for an interrupt() that
 *    is running. It must not be done under our own lock, which interrupt() takes.
 */
#include <assert.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "fs/internal.h"

/* After a build has failed, none is begun for so long; those who come earlier get EIO. Readers of
 * the page cache try each failed read again at once. */
#define RETRY_SECONDS 1

/* So much of the hash device takes a moment if its data need not be waited for, which reads find
 * out by themselves. */
#define QUICK_HASH_BYTES (64u * 1024)

struct fs_job {
    struct fs_job *next;
    struct fs *fs;
    fuse_req_t req;
    int channel;
    struct fs_read read;
    struct fs_node *node;
    bool open; /* else a read of the hash device */
    struct fuse_file_info fi;
    uint64_t offset;
    size_t length;
    uint64_t ticket; /* of those that wait for the root, this many came before it, and itself */

    struct fs_job **list; /* that it is in; NULL: none. From here on under the lock. */
    bool entering;
    bool interrupted;
};

void fs_jobs_init(struct fs_jobs *jobs, unsigned lane_max)
{
    pthread_mutex_init(&jobs->lock, NULL);
    pthread_cond_init(&jobs->wake, NULL);
    jobs->lane_max = lane_max;
}

void fs_jobs_destroy(struct fs_jobs *jobs)
{
    assert(jobs->waiting == NULL && jobs->lane == NULL);
    fs_texts_clear(&jobs->texts);
    pthread_cond_destroy(&jobs->wake);
    pthread_mutex_destroy(&jobs->lock);
}

/* --- Lists; with the lock held --- */

static void list_append(struct fs_job **list, struct fs_job *job)
{
    job->list = list;
    job->next = NULL;
    while (*list != NULL)
        list = &(*list)->next;
    *list = job;
}

static void list_remove(struct fs_job *job)
{
    struct fs_job **p = job->list;

    while (*p != job)
        p = &(*p)->next;
    *p = job->next;
    job->list = NULL;
}

/* Takes the jobs with tickets up to `last` out of the list; they stay chained. */
static struct fs_job *list_take(struct fs_job **list, uint64_t last)
{
    struct fs_job *first = *list;
    struct fs_job **end = &first;

    for (; *end != NULL && (*end)->ticket <= last; end = &(*end)->next)
        (*end)->list = NULL;
    *list = *end;
    *end = NULL;
    return first;
}

static struct fs_job *list_take_all(struct fs_job **list)
{
    return list_take(list, UINT64_MAX);
}

/* --- Answers --- */

static void answer_open(struct fs *fs, fuse_req_t req, struct fs_node *node,
                        const struct fuse_file_info *fi)
{
    if (fs->writable) {
        /* In the builder, whose texts they are; the next build makes others. */
        const char *text = fs->jobs.texts.text[node->text];
        fs_reply_open_text(req, node, text != NULL ? strdup(text) : NULL, fi);
        return;
    }
    fs_reply_open(req, node, fi);
}

static void answer_hash(struct fs *fs, fuse_req_t req, struct fs_node *node, uint64_t offset,
                        size_t length)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    uint8_t *buffer = fs_buffer(length);

    int r = buffer == NULL ? error_oom(&err)
                           : hashtree_read(fs->options.tree, offset, buffer, length, &err);
    if (r < 0) {
        fs_log_error(node, &err);
        fuse_reply_err(req, EIO);
        return;
    }
    fs_node_count(node, length);
    fuse_reply_buf(req, (const char *)buffer, length);
}

/* A job that was taken out of its list, or never was in one: libfuse forgets it, it is answered
 * with `code` or, if that is 0, with what it asks for, and freed. */
static void job_finish(struct fs_job *job, int code)
{
    int channel = fs_channel();

    fuse_req_interrupt_func(job->req, NULL, NULL);
    fs_set_channel(job->channel);
    fs_read_set(job->read);
    if (code != 0)
        fuse_reply_err(job->req, code);
    else if (job->open)
        answer_open(job->fs, job->req, job->node, &job->fi);
    else
        answer_hash(job->fs, job->req, job->node, job->offset, job->length);
    fs_set_channel(channel);
    free(job);
}

static void finish_all(struct fs_job *all, int code)
{
    for (struct fs_job *job = all, *next; job != NULL; job = next) {
        next = job->next;
        job_finish(job, code);
    }
}

static void interrupt(fuse_req_t req, void *data)
{
    struct fs_job *job = data;
    struct fs_jobs *jobs = &job->fs->jobs;

    pthread_mutex_lock(&jobs->lock);
    job->interrupted = true;
    bool mine = !job->entering && job->list != NULL;
    if (mine)
        list_remove(job);
    pthread_mutex_unlock(&jobs->lock);
    if (!mine)
        return;
    int channel = fs_channel();
    fs_set_channel(job->channel);
    fuse_reply_err(req, EINTR);
    fs_set_channel(channel);
    free(job);
}

/* --- The builder --- */

static bool failed_just_now(const struct fs_jobs *jobs)
{
    struct timespec now;

    if (jobs->failed.tv_sec == 0)
        return false;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec - jobs->failed.tv_sec < RETRY_SECONDS ||
           (now.tv_sec - jobs->failed.tv_sec == RETRY_SECONDS &&
            now.tv_nsec < jobs->failed.tv_nsec);
}

/* Finds the root and makes the texts. */
static int build(struct fs *fs, struct error *err)
{
    struct fs_jobs *jobs = &fs->jobs;
    const struct fs_options *options = &fs->options;
    bool show = !hashtree_root_known(options->tree);

    if (show && options->build_started != NULL)
        options->build_started(hashtree_progress(options->tree), options->arg);
    fs_texts_clear(&jobs->texts);
    int r = fs_texts_make(options, &jobs->texts, err);
    if (show && options->build_ended != NULL)
        options->build_ended(options->arg);
    if (r == 0 && !fs->writable)
        atomic_store(&jobs->texts_ready, true);
    return r;
}

static void build_and_answer(struct fs *fs)
{
    struct fs_jobs *jobs = &fs->jobs;
    _cleanup_error_ struct error err = ERROR_INIT;
    int r = 0;

    /* Those who come during the build may mean data that it has missed. */
    pthread_mutex_lock(&jobs->lock);
    uint64_t last = jobs->tickets;
    pthread_mutex_unlock(&jobs->lock);
    atomic_store(&jobs->building, true);
    if (!atomic_load(&jobs->texts_ready))
        r = build(fs, &err);
    atomic_store(&jobs->building, false);
    pthread_mutex_lock(&jobs->lock);
    struct fs_job *all = list_take(&jobs->waiting, r < 0 ? UINT64_MAX : last);
    if (r < 0)
        clock_gettime(CLOCK_MONOTONIC, &jobs->failed);
    bool stopping = jobs->stopping;
    pthread_mutex_unlock(&jobs->lock);
    if (r < 0 && !stopping) {
        log_error("%s: cannot compute the root hash: %s", image_path(fs->options.image),
                  error_message(&err));
        for (struct fs_job *job = all; job != NULL; job = job->next)
            fs_node_count_error(job->node);
    }
    finish_all(all, r == 0 ? 0 : EIO);
}

static void *builder_run(void *arg)
{
    struct fs *fs = arg;
    struct fs_jobs *jobs = &fs->jobs;

    for (;;) {
        pthread_mutex_lock(&jobs->lock);
        while (jobs->waiting == NULL && !jobs->stopping)
            pthread_cond_wait(&jobs->wake, &jobs->lock);
        bool stopping = jobs->stopping;
        pthread_mutex_unlock(&jobs->lock);
        if (stopping)
            break;
        build_and_answer(fs);
    }
    fs_buffer_free();
    return NULL;
}

/* --- Entering --- */

/* Makes a request known to libfuse as one that can be interrupted. NULL: it was answered. */
static struct fs_job *job_new(struct fs *fs, fuse_req_t req, struct fs_node *node)
{
    struct fs_job *job = calloc(1, sizeof(*job));

    if (job == NULL) {
        fuse_reply_err(req, ENOMEM);
        return NULL;
    }
    job->fs = fs;
    job->req = req;
    job->channel = fs_channel();
    job->read = fs_read_get();
    job->read.waited = true;
    job->node = node;
    job->entering = true;
    fuse_req_interrupt_func(req, interrupt, job);
    return job;
}

/* What becomes of a job that enters: 0 if it may be put into a list, else an errno value to be
 * answered. With the lock held. */
static int enter(struct fs_job *job)
{
    job->entering = false;
    if (job->interrupted)
        return EINTR;
    return job->fs->jobs.stopping ? ENOTCONN : 0;
}

static void wait_for_build(struct fs_job *job)
{
    struct fs_jobs *jobs = &job->fs->jobs;

    pthread_mutex_lock(&jobs->lock);
    int code = enter(job);
    if (code == 0 && !jobs->builder_started) {
        code = fs_thread_start(&jobs->builder, builder_run, job->fs);
        jobs->builder_started = code == 0;
    }
    if (code == 0 && failed_just_now(jobs)) {
        code = EIO;
        fs_node_count_error(job->node);
    }
    if (code == 0) {
        job->ticket = ++jobs->tickets;
        list_append(&jobs->waiting, job);
        pthread_cond_signal(&jobs->wake);
    }
    pthread_mutex_unlock(&jobs->lock);
    if (code != 0)
        job_finish(job, code);
}

void fs_job_open(struct fs *fs, fuse_req_t req, struct fs_node *node,
                 const struct fuse_file_info *fi)
{
    if (atomic_load(&fs->jobs.texts_ready)) {
        answer_open(fs, req, node, fi);
        return;
    }
    struct fs_job *job = job_new(fs, req, node);
    if (job == NULL)
        return;
    job->open = true;
    job->fi = *fi;
    wait_for_build(job);
}

bool fs_hash_needs_build(const struct verity_params *params, const struct verity_geometry *geometry,
                         uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length;
    uint64_t head = params->hash_offset;
    uint64_t tree = geometry->hash_start * geometry->hash_block_size;

    /* A UUID that was not given comes from the root. */
    if (params->superblock && !params->uuid_set && offset < head + VERITY_SUPERBLOCK_SIZE &&
        end > head)
        return true;
    return geometry->levels > 1 && end > tree &&
           offset < geometry->level_start[0] * geometry->hash_block_size;
}

/* --- The lane --- */

/* A place in the lane was taken: gives it up once nobody waits for one. */
static void lane_drain(struct fs_jobs *jobs)
{
    for (;;) {
        pthread_mutex_lock(&jobs->lock);
        struct fs_job *job = jobs->lane;
        if (job != NULL)
            list_remove(job);
        else
            jobs->lane_running--;
        pthread_mutex_unlock(&jobs->lock);
        if (job == NULL)
            return;
        job_finish(job, 0);
    }
}

static bool lane_enter(struct fs_jobs *jobs)
{
    pthread_mutex_lock(&jobs->lock);
    bool entered = jobs->lane_running < jobs->lane_max;
    if (entered)
        jobs->lane_running++;
    pthread_mutex_unlock(&jobs->lock);
    return entered;
}

static void wait_for_turn(struct fs_job *job)
{
    struct fs_jobs *jobs = &job->fs->jobs;

    pthread_mutex_lock(&jobs->lock);
    int code = enter(job);
    bool now = code == 0 && jobs->lane_running < jobs->lane_max;
    if (now)
        jobs->lane_running++;
    else if (code == 0)
        list_append(&jobs->lane, job);
    pthread_mutex_unlock(&jobs->lock);
    if (code != 0) {
        job_finish(job, code);
    } else if (now) {
        fs_worker_slow();
        job_finish(job, 0);
        lane_drain(jobs);
    }
}

void fs_job_read_hash(struct fs *fs, fuse_req_t req, struct fs_node *node, uint64_t offset,
                      size_t length)
{
    struct hashtree *tree = fs->options.tree;
    bool needs_build =
        !hashtree_root_known(tree) &&
        fs_hash_needs_build(hashtree_params(tree), hashtree_geometry(tree), offset, length);

    if (!needs_build && lane_enter(&fs->jobs)) {
        if (length > QUICK_HASH_BYTES || fs->writable)
            fs_worker_slow();
        answer_hash(fs, req, node, offset, length);
        lane_drain(&fs->jobs);
        return;
    }
    struct fs_job *job = job_new(fs, req, node);
    if (job == NULL)
        return;
    job->offset = offset;
    job->length = length;
    if (needs_build)
        wait_for_build(job);
    else
        wait_for_turn(job);
}

/* --- The end --- */

void fs_jobs_stop(struct fs *fs)
{
    struct fs_jobs *jobs = &fs->jobs;

    pthread_mutex_lock(&jobs->lock);
    jobs->stopping = true;
    struct fs_job *waiting = list_take_all(&jobs->waiting);
    struct fs_job *lane = list_take_all(&jobs->lane);
    pthread_cond_signal(&jobs->wake);
    pthread_mutex_unlock(&jobs->lock);
    finish_all(waiting, ENOTCONN);
    finish_all(lane, ENOTCONN);
}
