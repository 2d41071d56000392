/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <inttypes.h>
#include <sched.h>
#include <string.h>

#include "common/checked.h"
#include "hashtree/internal.h"

#define DEFAULT_CACHE_SIZE (64u * 1024 * 1024)

unsigned usable_cpus(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 1;
    int count = CPU_COUNT(&set);
    return count > 0 ? (unsigned)count : 1;
}

static int check_range(const struct image *image, uint64_t start,
                       const struct verity_params *params, struct error *err)
{
    uint64_t size;

    if (!checked_mul(params->data_blocks, params->data_block_size, &size) ||
        !range_within(start, size, image_size(image)))
        return error_set(err, EINVAL, "%s: %" PRIu64 " data blocks of %u bytes do not fit",
                         image_path(image), params->data_blocks, params->data_block_size);
    return 0;
}

int hashtree_new(struct image *image, uint64_t start, const struct verity_params *params,
                 const struct hashtree_options *options, struct hashtree **ret, struct error *err)
{
    static const struct hashtree_options defaults = {0};
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    struct verity_geometry geometry;

    if (options == NULL)
        options = &defaults;
    int r = verity_geometry_init(params, &geometry, err);
    if (r < 0)
        return r;
    r = check_range(image, start, params, err);
    if (r < 0)
        return r;
    tree = calloc(1, sizeof(*tree));
    if (tree == NULL)
        return error_oom(err);
    pthread_mutex_init(&tree->lock, NULL);
    pthread_cond_init(&tree->built, NULL);
    tree->image = image;
    tree->start = start;
    tree->params = *params;
    tree->geometry = geometry;
    tree->threads = options->threads != 0 ? options->threads : usable_cpus();
    tree->direct = options->direct;
    tree->root_only = options->root_only;
    r = hasher_new(params->hash_name, params->hash_type == 0 ? HASHER_SALT_LAST : HASHER_SALT_FIRST,
                   params->salt, params->salt_size, &tree->hasher, err);
    if (r < 0)
        return r;
    uint64_t cache_size = options->cache_size != 0 ? options->cache_size : DEFAULT_CACHE_SIZE;
    r = node_store_new(options->root_only ? 0 : cache_size, geometry.hash_block_size, &tree->nodes,
                       err);
    if (r < 0)
        return r;
    r = constant_init(tree, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(tree);
    return 0;
}

void hashtree_free(struct hashtree *tree)
{
    if (tree->nodes != NULL)
        node_store_free(tree->nodes);
    if (tree->keep != NULL)
        keep_free(tree->keep);
    if (tree->trust != NULL)
        trust_free(tree->trust);
    if (tree->hasher != NULL)
        hasher_free(tree->hasher);
    if (tree->changes != NULL)
        change_map_free(tree->changes);
    error_clear(&tree->build_error);
    pthread_cond_destroy(&tree->built);
    pthread_mutex_destroy(&tree->lock);
    free(tree);
}

const struct verity_params *hashtree_params(const struct hashtree *tree)
{
    return &tree->params;
}

const struct verity_geometry *hashtree_geometry(const struct hashtree *tree)
{
    return &tree->geometry;
}

const struct progress *hashtree_progress(struct hashtree *tree)
{
    atomic_store_explicit(&tree->watched, true, memory_order_relaxed);
    return &tree->progress;
}

void hashtree_stats(struct hashtree *tree, struct hashtree_stats *ret)
{
    *ret = (struct hashtree_stats){
        .data_bytes_hashed = atomic_load_explicit(&tree->data_bytes_hashed, memory_order_relaxed),
        .nodes_computed = atomic_load_explicit(&tree->nodes_computed, memory_order_relaxed),
        .nodes_kept = node_store_count(tree->nodes),
    };
    pthread_mutex_lock(&tree->lock);
    ret->zero_blocks = tree->zero_blocks;
    ret->build_seconds = tree->build_seconds;
    pthread_mutex_unlock(&tree->lock);
}

enum hashtree_method hashtree_method(struct hashtree *tree)
{
    pthread_mutex_lock(&tree->lock);
    enum hashtree_method method = tree->method;
    pthread_mutex_unlock(&tree->lock);
    return method;
}

const char *hashtree_method_name(enum hashtree_method method)
{
    static const char *const names[] = {
        [HASHTREE_FULL] = "full",     [HASHTREE_UNCHANGED] = "unchanged",
        [HASHTREE_BITMAP] = "bitmap", [HASHTREE_OVERLAY] = "overlay",
        [HASHTREE_WRITES] = "writes",
    };

    return names[method];
}

const char *hashtree_reason(const struct hashtree *tree)
{
    return tree->reason;
}

void hashtree_cancel(struct hashtree *tree)
{
    atomic_store(&tree->cancelled, true);
}

bool hashtree_root_known(struct hashtree *tree)
{
    return atomic_load_explicit(&tree->current, memory_order_acquire);
}

/* --- Building --- */

/* Every first build keeps nodes, whatever else its nodes are wanted for, unless none will be asked
 * for. */
struct two_sinks {
    struct node_sink keep, other;
};

static int two_nodes(void *arg, unsigned level, uint64_t first, uint64_t count,
                     const uint8_t *blocks, struct error *err)
{
    struct two_sinks *two = arg;

    int r = two->keep.nodes(two->keep.arg, level, first, count, blocks, err);
    return r < 0 ? r : two->other.nodes(two->other.arg, level, first, count, blocks, err);
}

static int two_constants(void *arg, unsigned level, uint64_t first, uint64_t count,
                         struct error *err)
{
    struct two_sinks *two = arg;

    return two->other.constants(two->other.arg, level, first, count, err);
}

/* A full build, its nodes kept in memory by the first one and given to `other`, which may be NULL.
 */
static int build_full(struct hashtree *tree, bool first, const struct node_sink *other,
                      struct build_result *ret, struct error *err)
{
    struct two_sinks two = {.keep = node_store_sink(tree)};
    struct node_sink sink = two.keep;

    if (tree->root_only)
        return build_run(tree, NULL, other, ret, err);
    if (other != NULL) {
        two.other = *other;
        sink = first ? (struct node_sink){two_nodes, two_constants, &two} : *other;
    }
    return build_run(tree, NULL, &sink, ret, err);
}

/* Hashes what was written since the root was found. */
static int build_changes(struct hashtree *tree, const struct change_map *map,
                         struct node_base *base, struct build_result *ret, struct error *err)
{
    struct hashtree_changes changes = change_map_changes(map);
    struct node_sink sink = node_store_sink(tree);

    base->changes = &changes;
    base->file = tree->keep != NULL ? keep_file(tree->keep) : NULL;
    int r = build_run(tree, base, &sink, ret, err);
    base->changes = NULL;
    return r;
}

/* With the lock held: what a build found, or why it did not. */
static int take_result(struct hashtree *tree, int r, bool changing,
                       const struct build_result *result, struct error *err)
{
    if (r == 0 && tree->root_known && !changing && tree->changes == NULL &&
        memcmp(tree->root, result->root, tree->geometry.digest_size) != 0)
        r = error_set(err, EIO, "%s: the data changed between two readings",
                      image_path(tree->image));
    if (r < 0) {
        error_clear(&tree->build_error);
        error_set(&tree->build_error, -r, "%s", err != NULL ? error_message(err) : "build failed");
        return r;
    }
    error_clear(&tree->build_error);
    memcpy(tree->root, result->root, sizeof(tree->root));
    tree->root_known = true;
    tree->superblock_made = false;
    tree->zero_blocks = result->zero_blocks;
    tree->build_seconds = result->seconds;
    return 0;
}

/*
 * With the lock held, and held again on return. With a sink it is a full build; else it is the
 * cheapest that finds the root. Changes that are reported while it runs are for the next one.
 */
static int build_locked(struct hashtree *tree, const struct node_sink *sink, struct error *err)
{
    _cleanup_(change_map_free_cleanup) struct change_map *fresh = NULL;
    struct change_map *taken = NULL;
    struct node_base base = {.zero_blocks = tree->zero_blocks};
    bool first = !tree->root_known;
    struct build_result result;
    int r;

    if (tree->changes != NULL) {
        r = change_map_new(tree, &fresh, err);
        if (r < 0)
            return r;
        taken = tree->changes;
        tree->changes = TAKE_PTR(fresh);
    }
    memcpy(base.root, tree->root, sizeof(base.root));
    bool changing = sink == NULL && !first && taken != NULL;
    tree->building = true;
    pthread_mutex_unlock(&tree->lock);
    if (changing)
        r = build_changes(tree, taken, &base, &result, err);
    else if (sink == NULL && first && tree->keep != NULL)
        r = keep_build(tree, &result, err);
    else
        r = build_full(tree, first, sink, &result, err);
    pthread_mutex_lock(&tree->lock);
    tree->building = false;
    r = take_result(tree, r, changing, &result, err);
    if (r == 0 && changing)
        tree->method = HASHTREE_WRITES;
    if (r < 0 && taken != NULL)
        change_map_merge(tree->changes, taken);
    if (taken != NULL)
        change_map_free(taken);
    atomic_store_explicit(&tree->current,
                          tree->root_known &&
                              (tree->changes == NULL || change_map_empty(tree->changes)),
                          memory_order_release);
    tree->builds_ended++;
    pthread_cond_broadcast(&tree->built);
    return r;
}

int hashtree_build(struct hashtree *tree, const struct node_sink *sink, struct error *err)
{
    pthread_mutex_lock(&tree->lock);
    while (tree->building)
        pthread_cond_wait(&tree->built, &tree->lock);
    int r = build_locked(tree, sink, err);
    pthread_mutex_unlock(&tree->lock);
    return r;
}

/* With the lock held. A build that began before we came may not have seen the latest changes: those
 * who find one running take what comes of the next. */
static int find_root(struct hashtree *tree, struct error *err)
{
    _cleanup_error_ struct error build_err = ERROR_INIT;

    if (tree->building) {
        uint64_t ended = tree->builds_ended;
        while (tree->builds_ended == ended)
            pthread_cond_wait(&tree->built, &tree->lock);
        if (hashtree_root_known(tree))
            return 0;
        if (tree->build_error.code != 0 && !tree->building)
            return error_set(err, tree->build_error.code, "%s", error_message(&tree->build_error));
        while (tree->building)
            pthread_cond_wait(&tree->built, &tree->lock);
        if (hashtree_root_known(tree))
            return 0;
    }
    int r = build_locked(tree, NULL, &build_err);
    if (r < 0)
        error_move(err, &build_err);
    return r;
}

int hashtree_root(struct hashtree *tree, uint8_t *root, struct error *err)
{
    int r = 0;

    pthread_mutex_lock(&tree->lock);
    if (!hashtree_root_known(tree))
        r = find_root(tree, err);
    if (r == 0)
        memcpy(root, tree->root, tree->geometry.digest_size);
    pthread_mutex_unlock(&tree->lock);
    return r;
}

/* --- Changes --- */

int hashtree_changing(struct hashtree *tree, struct error *err)
{
    int r = 0;

    pthread_mutex_lock(&tree->lock);
    if (tree->changes == NULL)
        r = change_map_new(tree, &tree->changes, err);
    pthread_mutex_unlock(&tree->lock);
    return r;
}

void hashtree_changed(struct hashtree *tree, uint64_t offset, uint64_t length)
{
    uint64_t start = max_u64(offset, tree->start);
    uint64_t end = min_u64(offset + length, tree->start + tree_data_size(tree));
    uint64_t node_size = (uint64_t)tree->params.data_block_size << tree->geometry.fanout_bits;

    if (start >= end)
        return;
    start -= tree->start;
    end -= tree->start;
    atomic_store(&tree->changed, true);
    pthread_mutex_lock(&tree->lock);
    assert(tree->changes != NULL);
    change_map_add(tree->changes, start, end - start);
    atomic_store_explicit(&tree->current, false, memory_order_release);
    pthread_mutex_unlock(&tree->lock);
    node_store_forget(tree->nodes, start / node_size, div_round_up(end, node_size));
}

int hashtree_uuid(struct hashtree *tree, uint8_t uuid[static 16], struct error *err)
{
    uint8_t root[VERITY_DIGEST_MAX];

    if (tree->params.uuid_set) {
        memcpy(uuid, tree->params.uuid, 16);
        return 0;
    }
    int r = hashtree_root(tree, root, err);
    if (r < 0)
        return r;
    verity_derive_uuid(&tree->params, root, tree->geometry.digest_size, uuid);
    return 0;
}

int hashtree_superblock(struct hashtree *tree, uint8_t *superblock, struct error *err)
{
    struct verity_params params = tree->params;
    int r = 0;

    r = hashtree_uuid(tree, params.uuid, err);
    if (r < 0)
        return r;
    params.uuid_set = true;
    /* Made once; libcryptsetup is not for several threads at a time. */
    pthread_mutex_lock(&tree->lock);
    if (!tree->superblock_made) {
        /* The data may have changed by now, and the root with it. */
        if (!tree->params.uuid_set)
            verity_derive_uuid(&params, tree->root, tree->geometry.digest_size, params.uuid);
        r = verity_superblock_format(&params, tree->superblock, err);
        tree->superblock_made = r == 0;
    }
    if (r == 0)
        memcpy(superblock, tree->superblock, sizeof(tree->superblock));
    pthread_mutex_unlock(&tree->lock);
    return r;
}
