/* SPDX-License-Identifier: MIT */
/*
 * Which parts of the data changed, as a bit for each granule. A granule is the data below one node
 * of level 0, or so much more that there are at most CHANGE_GRANULES_MAX: a node of level 0 is read
 * whole to be made anew, so finer would not help.
 */
#include <string.h>

#include "common/checked.h"
#include "hashtree/internal.h"

#define CHANGE_GRANULES_MAX (UINT64_C(8) << 20)

struct change_map {
    unsigned granule_bits;
    uint64_t granules;
    bool empty;
    uint64_t words[];
};

int change_map_new(const struct hashtree *tree, struct change_map **ret, struct error *err)
{
    uint64_t size = tree_data_size(tree);
    unsigned bits =
        (unsigned)__builtin_ctz(tree->params.data_block_size) + tree->geometry.fanout_bits;

    while (div_round_up(size, UINT64_C(1) << bits) > CHANGE_GRANULES_MAX)
        bits++;
    uint64_t granules = div_round_up(size, UINT64_C(1) << bits);
    struct change_map *map =
        calloc(1, sizeof(*map) + div_round_up(granules, 64) * sizeof(map->words[0]));
    if (map == NULL)
        return error_oom(err);
    map->granule_bits = bits;
    map->granules = granules;
    map->empty = true;
    *ret = map;
    return 0;
}

void change_map_free(struct change_map *map)
{
    free(map);
}

void change_map_add(struct change_map *map, uint64_t offset, uint64_t length)
{
    if (length == 0)
        return;
    uint64_t last = (offset + length - 1) >> map->granule_bits;
    for (uint64_t granule = offset >> map->granule_bits; granule <= last; granule++)
        map->words[granule / 64] |= UINT64_C(1) << (granule % 64);
    map->empty = false;
}

void change_map_merge(struct change_map *map, const struct change_map *other)
{
    for (uint64_t i = 0; i < div_round_up(map->granules, 64); i++)
        map->words[i] |= other->words[i];
    map->empty &= other->empty;
}

bool change_map_empty(const struct change_map *map)
{
    return map->empty;
}

/* The first granule from `granule` on whose bit is `set`, or map->granules. */
static uint64_t find_granule(const struct change_map *map, uint64_t granule, bool set)
{
    while (granule < map->granules) {
        uint64_t word = map->words[granule / 64];
        if (!set)
            word = ~word;
        word &= UINT64_MAX << (granule % 64);
        if (word != 0)
            return min_u64(granule / 64 * 64 + (uint64_t)__builtin_ctzll(word), map->granules);
        granule = granule / 64 * 64 + 64;
    }
    return map->granules;
}

static int next_change(void *arg, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end,
                       struct error *err)
{
    const struct change_map *map = arg;
    uint64_t granule = find_granule(map, offset >> map->granule_bits, true);

    (void)err;
    if (granule == map->granules) {
        *ret_start = *ret_end = UINT64_MAX;
        return 0;
    }
    *ret_start = max_u64(granule << map->granule_bits, offset);
    *ret_end = find_granule(map, granule, false) << map->granule_bits;
    return 0;
}

struct hashtree_changes change_map_changes(const struct change_map *map)
{
    return (struct hashtree_changes){next_change, (void *)map};
}
