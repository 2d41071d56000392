/* SPDX-License-Identifier: MIT */
/*
 * A build: reads all data once and hashes it into the root.
 *
 * Each worker is a thread with a reader of its own. It takes segments from the plan, makes runs out
 * of the data in them, starts reading a run and, when its bytes are there, hashes it. While reads
 * complete at once (the data is in the page cache) it has one run at a time, which is still in the
 * L2 cache when it is hashed; as soon as one does not, it starts more, up to RUN_DEPTH, before it
 * waits.
 *
 * A worker touches nothing that others touch but the plan (once a segment or several), a segment's
 * parent node, and relaxed counters. The first error stops all; whoever meets it tells it.
 */
#include <assert.h>
#include <string.h>
#include <time.h>

#include "common/checked.h"
#include "hashtree/internal.h"

/* Counting the data there is, for a progress that somebody looks at, starts only in builds that
 * take longer. */
#define COUNT_AFTER_MS 250

/* Runs of a worker that are read by pread() where there is a base, and so perhaps little to do. */
#define RUNS_WITHOUT_URING 8

struct build {
    struct hashtree *tree;
    struct plan plan;
    struct reader_files files;
    _Atomic bool stop;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool counting_ends; /* under lock */
    struct error error; /* under lock: the first one */
};

struct worker {
    struct build *build;
    struct reader *reader;
    struct plan_item items[PLAN_ITEMS]; /* that the plan gave; those before next_item are begun */
    unsigned next_item, items_count;
    struct segment *segment; /* that runs are made of */
    struct segment *active;  /* all that were not given back */
    struct segment *free;
    struct node_batch batch; /* of segments given back */
    unsigned runs;           /* started and not yet hashed */
    bool plan_ended;
};

/* Takes the error over. */
static void build_fail(struct build *build, struct error *error)
{
    pthread_mutex_lock(&build->lock);
    if (build->error.code == 0)
        error_move(&build->error, error);
    pthread_mutex_unlock(&build->lock);
    error_clear(error);
    atomic_store(&build->stop, true);
}

static bool stopped(struct build *build)
{
    return atomic_load_explicit(&build->stop, memory_order_relaxed);
}

/* --- Making runs --- */

/* The extent at `position` of the data, which lies in the segment, cut to the segment's end. */
static int map_at(struct worker *worker, struct segment *segment, uint64_t position,
                  struct extent *ret, struct error *err)
{
    const struct hashtree *tree = worker->build->tree;

    return map_cursor_find(&segment->map, tree, position,
                           segment->end_block * tree->params.data_block_size, ret, err);
}

/* Moves the segment's position to the first block before `end` that is not known to be zeros. */
static int skip_zero_blocks(struct worker *worker, struct segment *segment, uint64_t end,
                            struct error *err)
{
    uint32_t block_size = worker->build->tree->params.data_block_size;
    struct extent extent;

    while (segment->position < end) {
        int r = map_at(worker, segment, segment->position, &extent, err);
        if (r < 0)
            return r;
        uint64_t whole = align_down(extent.length, block_size);
        if (extent.kind != EXTENT_ZERO || whole == 0)
            return 0;
        segment->position = min_u64(segment->position + whole, end);
    }
    return 0;
}

/* Moves the segment's position to the next change, opening the nodes above it. */
static int next_change(struct worker *worker, struct segment *segment, struct error *err)
{
    struct plan *plan = &worker->build->plan;
    const struct hashtree *tree = worker->build->tree;
    const struct hashtree_changes *changes = plan->base->changes;
    uint32_t block_size = tree->params.data_block_size;
    uint64_t segment_end = segment->end_block * block_size, start, end;
    struct block_range fresh;

    int r = changes->next(changes->arg, segment->position, &start, &end, err);
    if (r < 0)
        return r;
    if (start >= segment_end) {
        segment->position = segment_end;
        return 0;
    }
    start = max_u64(segment->position, start - start % block_size);
    segment_open(plan, segment, start / block_size, &fresh);
    if (fresh.end > fresh.first) {
        /* The node was not open before: nothing below it was hashed. */
        segment->position = max_u64(fresh.first, segment->first_block) * block_size;
        segment->fresh_end = min_u64(fresh.end, segment->end_block) * block_size;
        return 0;
    }
    /* Up to the end of the level 0 node that is open, or of all if there is none below the unit. */
    if (plan->unit > 0) {
        uint64_t node = start / block_size >> tree->geometry.fanout_bits;
        segment_end = min_u64(segment_end, ((node + 1) << tree->geometry.fanout_bits) * block_size);
    }
    segment->position = start;
    segment->stretch_end =
        end >= segment_end ? segment_end : div_round_up(end, block_size) * block_size;
    return 0;
}

/* Moves the segment's position to the next block to hash, or its end, and stretch_end to where that
 * stretch ends. */
static int next_stretch(struct worker *worker, struct segment *segment, bool *ret_fresh,
                        struct error *err)
{
    uint64_t end = segment->end_block * worker->build->tree->params.data_block_size;

    while (segment->position < end) {
        if (segment->position < segment->fresh_end) {
            int r = skip_zero_blocks(worker, segment, segment->fresh_end, err);
            if (r < 0)
                return r;
            if (segment->position < segment->fresh_end) {
                segment->stretch_end = segment->fresh_end;
                *ret_fresh = true;
                return 0;
            }
        } else {
            if (segment->position < segment->stretch_end) {
                *ret_fresh = false;
                return 0;
            }
            int r = next_change(worker, segment, err);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

/* Puts one extent into the run at `offset` of its buffer. False if it has no room for a piece. */
static int add_extent(struct hashtree *tree, struct run *run, const struct extent *extent,
                      uint64_t offset, uint64_t length, bool *ret_added, struct error *err)
{
    *ret_added = true;
    switch (extent->kind) {
    case EXTENT_ZERO:
        memset(run->buffer + offset, 0, length);
        return 0;
    case EXTENT_DATA:
        if (run->pieces_count == RUN_PIECES) {
            *ret_added = false;
            return 0;
        }
        run->pieces[run->pieces_count++] = (struct piece){
            .run = run,
            .file = extent->file,
            .host_offset = extent->host_offset,
            .length = (uint32_t)length,
            .buffer_offset = (uint32_t)offset,
        };
        return 0;
    case EXTENT_COMPRESSED:
    case EXTENT_OPAQUE:
        break;
    }
    return image_read(tree->image, extent->start, run->buffer + offset, length, err);
}

/* Cuts the run to whole blocks within `length` bytes. With not even one, that block is read whole
 * here and now: it is more scattered than a run has pieces. */
static int cut_run(struct hashtree *tree, struct run *run, uint64_t position, uint64_t *length,
                   struct error *err)
{
    uint32_t block_size = tree->params.data_block_size;
    uint64_t cut = align_down(*length, block_size);

    if (cut == 0) {
        run->pieces_count = 0;
        *length = block_size;
        return image_read(tree->image, tree->start + position, run->buffer, block_size, err);
    }
    while (run->pieces_count > 0 && run->pieces[run->pieces_count - 1].buffer_offset >= cut)
        run->pieces_count--;
    if (run->pieces_count > 0) {
        struct piece *last = &run->pieces[run->pieces_count - 1];
        last->length = (uint32_t)min_u64(last->length, cut - last->buffer_offset);
    }
    *length = cut;
    return 0;
}

/* Makes a run of what comes next in the segment. *ret_made is false at its end. */
static int make_run(struct worker *worker, struct segment *segment, struct run *run, bool *ret_made,
                    struct error *err)
{
    struct hashtree *tree = worker->build->tree;
    uint32_t block_size = tree->params.data_block_size;
    uint64_t length = 0;

    int r = next_stretch(worker, segment, &run->fresh, err);
    if (r < 0)
        return r;
    uint64_t first = segment->position;
    *ret_made = first < segment->end_block * block_size;
    if (!*ret_made)
        return 0;
    uint64_t limit = min_u64(segment->stretch_end - first, tree_run_bytes(tree));
    while (length < limit) {
        struct extent extent;
        bool added;
        r = map_at(worker, segment, first + length, &extent, err);
        if (r < 0)
            return r;
        uint64_t n = min_u64(extent.length, limit - length);
        if (extent.kind == EXTENT_ZERO && run->fresh) {
            uint64_t in_block = length % block_size;
            if (in_block == 0 && n >= block_size)
                break;
            /* Only to the end of this block: whole blocks of zeros end the run. */
            n = min_u64(n, block_size - in_block);
        }
        r = add_extent(tree, run, &extent, length, n, &added, err);
        if (r < 0)
            return r;
        if (!added) {
            r = cut_run(tree, run, first, &length, err);
            if (r < 0)
                return r;
            break;
        }
        length += n;
    }
    assert(length > 0 && length % block_size == 0);
    run->segment = segment;
    run->first_block = first / block_size;
    run->blocks = length / block_size;
    segment->position = first + length;
    return 0;
}

/* --- A worker --- */

static int finish_segment(struct worker *worker, struct segment *segment, struct error *err)
{
    int r = segment_finish(&worker->build->plan, segment, &worker->batch, err);

    for (struct segment **p = &worker->active;; p = &(*p)->next)
        if (*p == segment) {
            *p = segment->next;
            break;
        }
    segment->next = worker->free;
    worker->free = segment;
    return r;
}

static int start_segment(struct worker *worker, const struct plan_item *item, struct error *err)
{
    struct segment *segment = worker->free;

    if (segment != NULL) {
        worker->free = segment->next;
    } else {
        int r = segment_new(&worker->build->plan, &segment, err);
        if (r < 0) {
            node_release(&worker->build->plan, item->parent, NULL, NULL);
            return r;
        }
    }
    segment_start(&worker->build->plan, segment, item);
    segment->next = worker->active;
    worker->active = segment;
    worker->segment = segment;
    return 0;
}

/* Takes work from the plan until there is a segment to make runs of, or nothing more. */
static int next_segment(struct worker *worker, struct error *err)
{
    struct build *build = worker->build;
    int r = 0;

    while (worker->segment == NULL && !worker->plan_ended) {
        if (worker->next_item == worker->items_count) {
            worker->next_item = worker->items_count = 0;
            r = plan_next(&build->plan, worker->items, &worker->items_count, &worker->batch, err);
            if (r < 0)
                return r;
        }
        const struct plan_item *item = &worker->items[worker->next_item++];
        switch (item->kind) {
        case PLAN_END:
            worker->plan_ended = true;
            break;
        case PLAN_CONSTANTS:
            r = build->plan.sink.constants(build->plan.sink.arg, item->level, item->first,
                                           item->count, err);
            break;
        case PLAN_SEGMENT:
            r = start_segment(worker, item, err);
            break;
        }
        if (r < 0)
            return r;
    }
    return 0;
}

/* Starts reading one more run. *ret_started is false when there are none left. */
static int start_run(struct worker *worker, struct run *run, bool *ret_started, struct error *err)
{
    *ret_started = false;
    for (;;) {
        int r = next_segment(worker, err);
        if (r < 0)
            return r;
        struct segment *segment = worker->segment;
        if (segment == NULL)
            return 0;
        r = make_run(worker, segment, run, ret_started, err);
        if (r < 0)
            return r;
        if (*ret_started) {
            segment->runs++;
            worker->runs++;
            return reader_start(worker->reader, run, err);
        }
        segment->mapped = true;
        worker->segment = NULL;
        if (segment->runs == 0) {
            r = finish_segment(worker, segment, err);
            if (r < 0)
                return r;
        }
    }
}

static int hash_run(struct worker *worker, struct run *run, struct error *err)
{
    struct hashtree *tree = worker->build->tree;
    struct segment *segment = run->segment;
    uint64_t bytes = run->blocks * tree->params.data_block_size;

    int r = segment_hash(&worker->build->plan, segment, run->first_block, run->blocks, run->buffer,
                         run->fresh, err);
    if (r < 0)
        return r;
    progress_add(&tree->progress, bytes);
    atomic_fetch_add_explicit(&tree->data_bytes_hashed, bytes, memory_order_relaxed);
    reader_put_run(worker->reader, run);
    worker->runs--;
    segment->runs--;
    return segment->runs == 0 && segment->mapped ? finish_segment(worker, segment, err) : 0;
}

static int work(struct worker *worker, struct error *err)
{
    struct build *build = worker->build;
    bool more = true;

    for (;;) {
        if (atomic_load_explicit(&build->tree->cancelled, memory_order_relaxed))
            return error_set(err, ECANCELED, "cancelled");
        if (stopped(build))
            return 0;
        struct run *run = more ? reader_get_run(worker->reader) : NULL;
        if (run != NULL) {
            int r = start_run(worker, run, &more, err);
            if (r < 0)
                return r;
            if (!more)
                reader_put_run(worker->reader, run);
        }
        if (worker->runs == 0 && !more)
            return node_batch_flush(&build->plan, &worker->batch, err);
        /* Short runs, of scattered data, are read together. */
        if (run != NULL && more && reader_gathers(worker->reader))
            continue;
        struct run *finished = NULL;
        int r = reader_finished(worker->reader, run == NULL || !more, &finished, err);
        if (r == 0 && finished != NULL)
            r = hash_run(worker, finished, err);
        if (r < 0)
            return r;
    }
}

static void *worker_main(void *arg)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct build *build = arg;
    struct worker worker = {.build = build};

    unsigned without_uring = build->plan.base != NULL ? RUNS_WITHOUT_URING : 0;
    int r = node_batch_init(&build->plan, &worker.batch, &err);
    if (r == 0)
        r = reader_new(build->tree, &build->files, without_uring, &worker.reader, &err);
    if (r == 0)
        r = work(&worker, &err);
    if (r < 0)
        build_fail(build, &err);
    /* The kernel may still be writing to the buffers of an abandoned run. */
    if (worker.reader != NULL)
        reader_free(worker.reader);
    while (worker.active != NULL) {
        struct segment *segment = worker.active;
        worker.active = segment->next;
        node_release(&build->plan, segment->parent, NULL, NULL);
        segment_free(segment);
    }
    while (worker.free != NULL) {
        struct segment *segment = worker.free;
        worker.free = segment->next;
        segment_free(segment);
    }
    plan_give_back(&build->plan, worker.items + worker.next_item,
                   worker.items_count - worker.next_item);
    node_batch_free(&build->plan, &worker.batch);
    return NULL;
}

/* --- Counting the data, for the progress --- */

/* Waits until it is time to look whether to count. False if the build ended. */
static bool wait_to_count(struct build *build)
{
    struct timespec until;
    int r = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += COUNT_AFTER_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&build->lock);
    while (!build->counting_ends && r != ETIMEDOUT)
        r = pthread_cond_timedwait(&build->ended, &build->lock, &until);
    bool ends = build->counting_ends;
    pthread_mutex_unlock(&build->lock);
    return !ends;
}

static void *count_main(void *arg)
{
    struct build *build = arg;
    struct hashtree *tree = build->tree;
    uint64_t end = tree_data_size(tree), data = 0;
    struct image_hole_hint holes = {0};
    struct extent extent;

    do {
        if (!wait_to_count(build))
            return NULL;
    } while (!atomic_load_explicit(&tree->watched, memory_order_relaxed));
    for (uint64_t at = 0; at < end; at += extent.length) {
        /* An error will be met, and told, by a worker. */
        if (image_map_hinted(tree->image, tree->start + at, end - at, 0, &holes, &extent, NULL) < 0)
            return NULL;
        if (extent.kind != EXTENT_ZERO)
            data += extent.length;
        pthread_mutex_lock(&build->lock);
        bool ends = build->counting_ends;
        pthread_mutex_unlock(&build->lock);
        if (ends || stopped(build))
            return NULL;
    }
    progress_set_total(&tree->progress, data);
    return NULL;
}

static void end_counting(struct build *build, const pthread_t *counter)
{
    pthread_mutex_lock(&build->lock);
    build->counting_ends = true;
    pthread_cond_signal(&build->ended);
    pthread_mutex_unlock(&build->lock);
    pthread_join(*counter, NULL);
}

/* --- The build --- */

static void run_workers(struct build *build)
{
    unsigned wanted = build->tree->threads;
    _cleanup_free_ pthread_t *threads = calloc(wanted, sizeof(*threads));
    pthread_t counter;
    unsigned started = 0;

    /* With a base there is so little to do that nobody waits for it; and who wants the root alone
     * looks from the beginning or not at all. */
    bool wanted_total = build->plan.base == NULL &&
                        (!build->tree->root_only ||
                         atomic_load_explicit(&build->tree->watched, memory_order_relaxed));
    bool counting = wanted_total && pthread_create(&counter, NULL, count_main, build) == 0;
    /* This thread is a worker, too; with fewer threads than wanted it only takes longer. */
    while (threads != NULL && started + 1 < wanted &&
           pthread_create(&threads[started], NULL, worker_main, build) == 0)
        started++;
    worker_main(build);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    if (counting)
        end_counting(build, &counter);
}

static void init_sync(struct build *build)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&build->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&build->ended, &attr);
    pthread_condattr_destroy(&attr);
}

/* The number of zero blocks, if it can be known. */
static uint64_t count_zeros(const struct build *build)
{
    const struct plan *plan = &build->plan;

    if (plan->base == NULL)
        return build->tree->params.data_blocks - atomic_load(&plan->nonzero_blocks);
    if (plan->base->zero_blocks == UINT64_MAX || atomic_load(&plan->distrust))
        return UINT64_MAX;
    return plan->base->zero_blocks + (uint64_t)atomic_load(&plan->zero_change);
}

int build_run(struct hashtree *tree, const struct node_base *base, const struct node_sink *sink,
              struct build_result *ret, struct error *err)
{
    struct build build = {.tree = tree};
    struct timespec start, end;

    clock_gettime(CLOCK_MONOTONIC, &start);
    atomic_store(&tree->progress.done, 0);
    atomic_store(&tree->progress.total, 0);
    int r = reader_files_open(tree, &build.files, err);
    if (r < 0)
        return r;
    r = plan_init(&build.plan, tree, base, sink, &build.stop, err);
    if (r < 0) {
        reader_files_close(&build.files);
        return r;
    }
    init_sync(&build);
    run_workers(&build);
    _cleanup_error_ struct error finish_err = ERROR_INIT;
    if (plan_finish(&build.plan, &finish_err) < 0 ||
        image_check_sizes(tree->image, &finish_err) < 0)
        build_fail(&build, &finish_err);
    if (build.error.code != 0) {
        r = -build.error.code;
        error_move(err, &build.error);
    } else {
        clock_gettime(CLOCK_MONOTONIC, &end);
        memcpy(ret->root, build.plan.root, sizeof(ret->root));
        ret->zero_blocks = count_zeros(&build);
        ret->seconds =
            (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
        progress_set_total(&tree->progress, atomic_load(&tree->progress.done));
    }
    pthread_cond_destroy(&build.ended);
    pthread_mutex_destroy(&build.lock);
    plan_free(&build.plan);
    reader_files_close(&build.files);
    return r;
}
