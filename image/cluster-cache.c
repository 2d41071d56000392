/* SPDX-License-Identifier: MIT */
/*
 * The cache of decompressed clusters.
 *
 * One mutex guards the slots' descriptions, never their bytes: it is not held while a cluster is
 * decompressed or copied. A slot that somebody fills or copies from is pinned, and a pinned slot
 * keeps its key and its bytes. Who finds the slot being filled pins it and waits; if filling fails,
 * those who waited try for themselves, so that each gets the error. Where all slots are pinned, one
 * goes without the cache. The slot to be filled over is the one unpinned that was used the longest
 * time ago.
 */
#include "image/cluster-cache.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/io.h"

enum {
    CACHE_BYTES = 8 << 20,
    SLOTS_MIN = 4,
    SLOTS_MAX = 128,
};

enum slot_state { SLOT_EMPTY, SLOT_FILLING, SLOT_READY, SLOT_FAILED };

struct slot {
    enum slot_state state;
    unsigned pins;
    unsigned owner;
    uint64_t id;
    uint64_t last_use;
    uint8_t *bytes;
    size_t allocated;
};

struct cluster_cache {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    uint64_t clock;
    size_t slot_count;
    struct slot slots[SLOTS_MAX];
};

int cluster_cache_new(size_t cluster_size, struct cluster_cache **ret, struct error *err)
{
    struct cluster_cache *cache = calloc(1, sizeof(*cache));

    if (cache == NULL)
        return error_oom(err);
    assert(cluster_size > 0);
    pthread_mutex_init(&cache->lock, NULL);
    pthread_cond_init(&cache->filled, NULL);
    cache->slot_count = (size_t)min_u64(max_u64(CACHE_BYTES / cluster_size, SLOTS_MIN), SLOTS_MAX);
    *ret = cache;
    return 0;
}

void cluster_cache_free(struct cluster_cache *cache)
{
    if (cache == NULL)
        return;
    for (size_t i = 0; i < cache->slot_count; i++)
        free(cache->slots[i].bytes);
    pthread_cond_destroy(&cache->filled);
    pthread_mutex_destroy(&cache->lock);
    free(cache);
}

/* Under the lock, as all of these. */
static struct slot *find_slot(struct cluster_cache *cache, unsigned owner, uint64_t id)
{
    for (size_t i = 0; i < cache->slot_count; i++) {
        struct slot *slot = &cache->slots[i];

        if (slot->id == id && slot->owner == owner &&
            (slot->state == SLOT_FILLING || slot->state == SLOT_READY))
            return slot;
    }
    return NULL;
}

static struct slot *find_victim(struct cluster_cache *cache)
{
    struct slot *victim = NULL;

    for (size_t i = 0; i < cache->slot_count; i++) {
        struct slot *slot = &cache->slots[i];

        if (slot->pins > 0)
            continue;
        if (slot->state == SLOT_EMPTY)
            return slot;
        if (victim == NULL || slot->last_use < victim->last_use)
            victim = slot;
    }
    return victim;
}

static void unpin(struct slot *slot)
{
    assert(slot->pins > 0);
    slot->pins--;
    if (slot->pins == 0 && slot->state == SLOT_FAILED)
        slot->state = SLOT_EMPTY;
}

/* Makes the cluster in a slot that is FILLING and pinned; without the lock. */
static int fill_slot(struct slot *slot, size_t size, cluster_fill_fn fill, void *context,
                     struct error *err)
{
    if (slot->allocated < size) {
        free(slot->bytes);
        slot->allocated = 0;
        slot->bytes = malloc(size);
        if (slot->bytes == NULL)
            return error_oom(err);
        slot->allocated = size;
    }
    return fill(context, slot->id, slot->bytes, size, err);
}

static int read_uncached(uint64_t id, size_t size, cluster_fill_fn fill, void *context,
                         size_t first, void *buffer, size_t length, struct error *err)
{
    _cleanup_free_ uint8_t *bytes = NULL;

    if (length == size)
        return fill(context, id, buffer, size, err);
    bytes = malloc(size);
    if (bytes == NULL)
        return error_oom(err);
    int r = fill(context, id, bytes, size, err);
    if (r < 0)
        return r;
    memcpy(buffer, bytes + first, length);
    return 0;
}

int cluster_cache_read(struct cluster_cache *cache, unsigned owner, uint64_t id, size_t size,
                       cluster_fill_fn fill, void *context, size_t first, void *buffer,
                       size_t length, struct error *err)
{
    bool whole = length == size, failed = false;
    struct slot *slot;
    int r = 0;

    assert(range_within(first, length, size));
    pthread_mutex_lock(&cache->lock);
    slot = find_slot(cache, owner, id);
    if (slot != NULL && whole && slot->state == SLOT_FILLING)
        slot = NULL;
    if (slot != NULL) {
        slot->pins++;
        if (slot->state == SLOT_FILLING)
            io_waits();
        while (slot->state == SLOT_FILLING)
            pthread_cond_wait(&cache->filled, &cache->lock);
        failed = slot->state == SLOT_FAILED;
    } else if (!whole && (slot = find_victim(cache)) != NULL) {
        slot->state = SLOT_FILLING;
        slot->owner = owner;
        slot->id = id;
        slot->pins = 1;
        pthread_mutex_unlock(&cache->lock);
        r = fill_slot(slot, size, fill, context, err);
        pthread_mutex_lock(&cache->lock);
        slot->state = r < 0 ? SLOT_FAILED : SLOT_READY;
        pthread_cond_broadcast(&cache->filled);
    }
    if (slot != NULL)
        slot->last_use = ++cache->clock;
    pthread_mutex_unlock(&cache->lock);

    if (slot == NULL)
        return read_uncached(id, size, fill, context, first, buffer, length, err);
    if (r == 0 && !failed)
        memcpy(buffer, slot->bytes + first, length);
    pthread_mutex_lock(&cache->lock);
    unpin(slot);
    pthread_mutex_unlock(&cache->lock);
    if (failed)
        r = read_uncached(id, size, fill, context, first, buffer, length, err);
    return r;
}
