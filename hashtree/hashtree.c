/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <sched.h>
#include <string.h>

#include "common/checked.h"
#include "hashtree/internal.h"

#define DEFAULT_CACHE_SIZE (64u * 1024 * 1024)

static unsigned usable_cpus(void)
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
    r = hasher_new(params->hash_name, params->hash_type == 0 ? HASHER_SALT_LAST : HASHER_SALT_FIRST,
                   params->salt, params->salt_size, &tree->hasher, err);
    if (r < 0)
        return r;
    r = node_store_new(options->cache_size != 0 ? options->cache_size : DEFAULT_CACHE_SIZE,
                       geometry.hash_block_size, &tree->nodes, err);
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
    if (tree->hasher != NULL)
        hasher_free(tree->hasher);
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

const struct progress *hashtree_progress(const struct hashtree *tree)
{
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

void hashtree_cancel(struct hashtree *tree)
{
    atomic_store(&tree->cancelled, true);
}

bool hashtree_root_known(struct hashtree *tree)
{
    return atomic_load_explicit(&tree->root_known, memory_order_acquire);
}

/* --- Building --- */

/* Every first build keeps nodes, whatever else its nodes are wanted for. */
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

/* With the lock held, and held again on return. `other` may be NULL. */
static int build_locked(struct hashtree *tree, const struct node_sink *other, struct error *err)
{
    struct two_sinks two = {.keep = node_store_sink(tree)};
    struct node_sink sink = two.keep;
    struct build_result result;

    if (other != NULL) {
        two.other = *other;
        sink = tree->root_known ? *other : (struct node_sink){two_nodes, two_constants, &two};
    }
    tree->building = true;
    pthread_mutex_unlock(&tree->lock);
    int r = build_run(tree, &sink, &result, err);
    pthread_mutex_lock(&tree->lock);
    tree->building = false;
    if (r == 0 && tree->root_known &&
        memcmp(tree->root, result.root, tree->geometry.digest_size) != 0)
        r = error_set(err, EIO, "%s: the data changed between two readings",
                      image_path(tree->image));
    if (r == 0) {
        if (!tree->root_known)
            memcpy(tree->root, result.root, sizeof(tree->root));
        tree->zero_blocks = result.zero_blocks;
        tree->build_seconds = result.seconds;
        atomic_store_explicit(&tree->root_known, true, memory_order_release);
    } else {
        error_clear(&tree->build_error);
        error_set(&tree->build_error, -r, "%s", err != NULL ? error_message(err) : "build failed");
    }
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

/* The root is not known: finds it, or waits for somebody who does and takes what comes of it. */
static int find_root(struct hashtree *tree, struct error *err)
{
    int r = 0;

    pthread_mutex_lock(&tree->lock);
    if (tree->building) {
        uint64_t ended = tree->builds_ended;
        while (tree->builds_ended == ended)
            pthread_cond_wait(&tree->built, &tree->lock);
        if (!tree->root_known)
            r = error_set(err, tree->build_error.code, "%s", error_message(&tree->build_error));
    } else if (!tree->root_known) {
        _cleanup_error_ struct error build_err = ERROR_INIT;
        r = build_locked(tree, NULL, &build_err);
        if (r < 0)
            error_move(err, &build_err);
    }
    pthread_mutex_unlock(&tree->lock);
    return r;
}

int hashtree_root(struct hashtree *tree, uint8_t *root, struct error *err)
{
    if (!hashtree_root_known(tree)) {
        int r = find_root(tree, err);
        if (r < 0)
            return r;
    }
    memcpy(root, tree->root, tree->geometry.digest_size);
    return 0;
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
        r = verity_superblock_format(&params, tree->superblock, err);
        tree->superblock_made = r == 0;
    }
    if (r == 0)
        memcpy(superblock, tree->superblock, sizeof(tree->superblock));
    pthread_mutex_unlock(&tree->lock);
    return r;
}
