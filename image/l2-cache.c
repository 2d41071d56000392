/* SPDX-License-Identifier: MIT */
/*
 * The cache of L2 slices.
 *
 * L2 tables are cached in slices of at most 4 KiB: whole tables of 2 MiB clusters would be too
 * large a unit for random reads. The cache is set-associative; a slice's key is its offset in the
 * file, with the number of the layer in the low bits that an offset leaves free.
 *
 * Looking up takes no lock. Each slot has a sequence number, odd while somebody fills it; a reader
 * copies what it wants and believes it only if the sequence number is even and the same before and
 * after, and the key in between is its own. All loads of the copy are acquiring and all stores of a
 * fill releasing, which orders them against the sequence number (plain stores between fences would
 * be the same machine code on x86, and unknown to thread sanitizers). Whoever misses reads the file
 * without any lock, uses what it read, and then puts it into a slot under the set's mutex.
 *
 * A miss right behind a slice that is there comes, most likely, from somebody who walks over the
 * map: a few slices more are read with it, as a system call takes longer than copying them.
 *
 * Slots are filled over by second chance: a hit marks its slot, and a fill goes round the set,
 * unmarking, to the first slot without mark. All slots lie in one mapping, which takes memory where
 * it is first filled, and stays until the cache is freed, so that a late reader still reads memory
 * of ours.
 */
#include "image/l2-cache.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "common/io.h"

enum {
    WAYS = 8,
    SETS = 128, /* 4 MiB in all, which map 32 GiB of disk at 64 KiB a cluster */
    OWNER_BITS = 9,
    AHEAD_BYTES = 8 * L2_SLICE_BYTES_MAX, /* read at once, at most */
};

struct l2_set {
    _Alignas(64) _Atomic uint64_t keys[WAYS]; /* 0: empty */
    _Atomic uint32_t sequences[WAYS];
    _Atomic uint8_t used[WAYS];
    pthread_mutex_t fill_lock;
    unsigned hand; /* under fill_lock: the next slot that may be filled over */
};

struct l2_cache {
    struct l2_set sets[SETS];
    _Atomic uint64_t *words; /* as in the file; L2_SLICE_WORDS_MAX for each slot */
};

#define WORDS_BYTES ((size_t)SETS * WAYS * L2_SLICE_BYTES_MAX)

int l2_cache_new(struct l2_cache **ret, struct error *err)
{
    struct l2_cache *cache = aligned_alloc(_Alignof(struct l2_cache), sizeof(*cache));

    if (cache == NULL)
        return error_oom(err);
    memset(cache, 0, sizeof(*cache));
    void *words = mmap(NULL, WORDS_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (words == MAP_FAILED) {
        free(cache);
        return error_oom(err);
    }
    cache->words = words;
    for (unsigned i = 0; i < SETS; i++)
        pthread_mutex_init(&cache->sets[i].fill_lock, NULL);
    *ret = cache;
    return 0;
}

void l2_cache_free(struct l2_cache *cache)
{
    if (cache == NULL)
        return;
    for (unsigned i = 0; i < SETS; i++)
        pthread_mutex_destroy(&cache->sets[i].fill_lock);
    munmap((void *)cache->words, WORDS_BYTES);
    free(cache);
}

static struct l2_set *set_of(struct l2_cache *cache, uint64_t key)
{
    return &cache->sets[(key * 0x9e3779b97f4a7c15u) >> 57];
}

static _Atomic uint64_t *slot_words(struct l2_cache *cache, const struct l2_set *set, unsigned way)
{
    size_t slot = (size_t)(set - cache->sets) * WAYS + way;

    return cache->words + slot * L2_SLICE_WORDS_MAX;
}

static bool lookup(struct l2_cache *cache, uint64_t key, size_t first, size_t count,
                   uint64_t *words)
{
    struct l2_set *set = set_of(cache, key);

    for (unsigned way = 0; way < WAYS; way++) {
        uint32_t sequence = atomic_load_explicit(&set->sequences[way], memory_order_acquire);

        if (atomic_load_explicit(&set->keys[way], memory_order_acquire) != key ||
            (sequence & 1) != 0)
            continue;
        const _Atomic uint64_t *slot = slot_words(cache, set, way);
        for (size_t i = 0; i < count; i++)
            words[i] = be64toh(atomic_load_explicit(&slot[first + i], memory_order_acquire));
        if (atomic_load_explicit(&set->sequences[way], memory_order_relaxed) != sequence)
            continue;
        /* Only when it is not marked already, or every hit would take the line from the others. */
        if (atomic_load_explicit(&set->used[way], memory_order_relaxed) == 0)
            atomic_store_explicit(&set->used[way], 1, memory_order_relaxed);
        return true;
    }
    return false;
}

/* Under fill_lock. */
static unsigned find_victim(struct l2_set *set)
{
    for (;;) {
        unsigned way = set->hand;

        set->hand = (set->hand + 1) % WAYS;
        if (atomic_load_explicit(&set->used[way], memory_order_relaxed) == 0)
            return way;
        atomic_store_explicit(&set->used[way], 0, memory_order_relaxed);
    }
}

static void insert(struct l2_cache *cache, uint64_t key, const uint64_t *words, size_t count)
{
    struct l2_set *set = set_of(cache, key);

    pthread_mutex_lock(&set->fill_lock);
    for (unsigned way = 0; way < WAYS; way++) {
        if (atomic_load_explicit(&set->keys[way], memory_order_relaxed) == key) {
            pthread_mutex_unlock(&set->fill_lock);
            return;
        }
    }
    unsigned way = find_victim(set);
    _Atomic uint64_t *slot = slot_words(cache, set, way);
    uint32_t sequence = atomic_load_explicit(&set->sequences[way], memory_order_relaxed);

    atomic_store_explicit(&set->sequences[way], sequence + 1, memory_order_relaxed);
    for (size_t i = 0; i < count; i++)
        atomic_store_explicit(&slot[i], words[i], memory_order_release);
    atomic_store_explicit(&set->keys[way], key, memory_order_release);
    atomic_store_explicit(&set->used[way], 1, memory_order_relaxed);
    atomic_store_explicit(&set->sequences[way], sequence + 2, memory_order_release);
    pthread_mutex_unlock(&set->fill_lock);
}

static bool contains(struct l2_cache *cache, uint64_t key)
{
    struct l2_set *set = set_of(cache, key);

    for (unsigned way = 0; way < WAYS; way++)
        if (atomic_load_explicit(&set->keys[way], memory_order_relaxed) == key)
            return true;
    return false;
}

/* Reads the slice at `offset`, and those behind it if that is worth it, into the cache. */
static int read_slices(struct l2_cache *cache, unsigned owner, const struct image_file *file,
                       uint64_t offset, size_t slice_bytes, uint64_t behind, size_t first,
                       size_t count, uint64_t *words, struct error *err)
{
    uint64_t slices[AHEAD_BYTES / 8];
    size_t length = (size_t)min_u64(slice_bytes + behind, AHEAD_BYTES);
    uint64_t key = offset | owner;

    /* Nobody asked for those behind: if they cannot be read, it does not matter. */
    if (length == slice_bytes || offset == slice_bytes || !contains(cache, key - slice_bytes) ||
        io_read_at(file->fd, file->path, slices, length, offset, NULL) < 0) {
        length = slice_bytes;
        int r = io_read_at(file->fd, file->path, slices, length, offset, err);
        if (r < 0)
            return r;
    }
    for (size_t at = 0; at < length; at += slice_bytes)
        insert(cache, key + at, slices + at / 8, slice_bytes / 8);
    for (size_t i = 0; i < count; i++)
        words[i] = be64toh(slices[first + i]);
    return 0;
}

int l2_cache_read(struct l2_cache *cache, unsigned owner, const struct image_file *file,
                  uint64_t offset, size_t slice_bytes, uint64_t behind, size_t first, size_t count,
                  uint64_t *words, struct error *err)
{
    uint64_t key = offset | owner;

    assert(owner < 1u << OWNER_BITS && offset != 0 && (offset & (slice_bytes - 1)) == 0);
    assert(slice_bytes >= 1u << OWNER_BITS && slice_bytes <= L2_SLICE_BYTES_MAX);
    assert(range_within(first, count, slice_bytes / 8));
    if (lookup(cache, key, first, count, words))
        return 0;
    return read_slices(cache, owner, file, offset, slice_bytes, behind, first, count, words, err);
}
