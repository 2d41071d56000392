/* SPDX-License-Identifier: MIT */
/*
 * Mutations of qcow2 images.
 *
 * A qcow2 image is a graph: fields of the header point to tables, whose entries point to tables or
 * clusters. Changing bytes at random mostly hits data, or makes offsets that point out of the file.
 * So here a mutation picks a field by what it is, and writes what is likely to be wrong in an
 * interesting way: the place of another table, its own, the neighbour's entry, the last place that
 * is allowed and the first that is not. What is read from the image to get there may be nonsense;
 * every access is checked against the buffer.
 */
#include "tests/fuzz/mutate.h"

#include <stdbool.h>
#include <string.h>

static bool one_in(struct mutator *m, unsigned n)
{
    return mutator_below(m, n) == 0;
}

/* --- Numbers in the image: 0 where there are none --- */

static uint64_t get(const struct mutator *m, uint64_t at, unsigned width)
{
    uint64_t n = 0;

    if (at > m->size || width > m->size - at)
        return 0;
    for (unsigned i = 0; i < width; i++)
        n = n << 8 | m->bytes[at + i];
    return n;
}

static void put(struct mutator *m, uint64_t at, unsigned width, uint64_t n)
{
    if (at > m->size || width > m->size - at)
        return;
    for (unsigned i = 0; i < width; i++)
        m->bytes[at + i] = (uint8_t)(n >> (8 * (width - 1 - i)));
}

/* --- Where things are --- */

enum {
    AT_VERSION = 4,
    AT_BACKING_OFFSET = 8,
    AT_BACKING_SIZE = 16,
    AT_CLUSTER_BITS = 20,
    AT_SIZE = 24,
    AT_L1_SIZE = 36,
    AT_L1_OFFSET = 40,
    AT_REFCOUNT_OFFSET = 48,
    AT_REFCOUNT_CLUSTERS = 56,
    AT_SNAPSHOT_COUNT = 60,
    AT_SNAPSHOTS_OFFSET = 64,
    AT_INCOMPATIBLE = 72,
    AT_AUTOCLEAR = 88,
    AT_HEADER_LENGTH = 100,
    EXTENSION_BITMAPS = 0x23852875,
    INCOMPATIBLE_EXTENDED_L2 = 1 << 4,
};
#define OFFSET_MASK 0x00fffffffffffe00u
#define COPIED ((uint64_t)1 << 63)
#define COMPRESSED ((uint64_t)1 << 62)

static const struct field {
    uint16_t at;
    uint8_t width;
} header_fields[] = {
    {0, 4},  {4, 4},  {8, 8},  {16, 4}, {20, 4}, {24, 8}, {32, 4}, {36, 4},  {40, 8},  {48, 8},
    {56, 4}, {60, 4}, {64, 8}, {72, 8}, {80, 8}, {88, 8}, {96, 4}, {100, 4}, {104, 1},
};

static unsigned cluster_bits(const struct mutator *m)
{
    uint64_t bits = get(m, AT_CLUSTER_BITS, 4);

    return bits >= 9 && bits <= 21 ? (unsigned)bits : 9;
}

static uint64_t cluster_size(const struct mutator *m)
{
    return (uint64_t)1 << cluster_bits(m);
}

static unsigned l2_entry_bytes(const struct mutator *m)
{
    bool extended = (get(m, AT_INCOMPATIBLE, 8) & INCOMPATIBLE_EXTENDED_L2) != 0;

    return get(m, AT_VERSION, 4) >= 3 && extended ? 16 : 8;
}

static bool is_qcow2(const struct mutator *m)
{
    return m->size >= 112 && get(m, 0, 4) == 0x514649fb;
}

/* An L1 table: the active one, or that of a snapshot. */
static uint64_t pick_l1(struct mutator *m, uint64_t *ret_entries)
{
    uint64_t table = get(m, AT_SNAPSHOTS_OFFSET, 8);

    if (get(m, AT_SNAPSHOT_COUNT, 4) > 0 && one_in(m, 4)) {
        *ret_entries = get(m, table + 8, 4);
        return get(m, table, 8);
    }
    *ret_entries = get(m, AT_L1_SIZE, 4);
    return get(m, AT_L1_OFFSET, 8);
}

/* The offset of an entry of an L1 table; mostly one that is not 0. */
static uint64_t pick_l1_entry(struct mutator *m)
{
    uint64_t entries, at = 0, table = pick_l1(m, &entries);

    if (entries == 0 || entries > m->size / 8)
        entries = m->size / 8;
    for (unsigned tries = 0; tries < 16; tries++) {
        at = table + mutator_below(m, entries) * 8;
        if ((get(m, at, 8) & OFFSET_MASK) != 0)
            break;
    }
    return at;
}

/* The offset of an entry of an L2 table, and of the table; mostly one that is not 0. */
static uint64_t pick_l2_entry(struct mutator *m, uint64_t *ret_table)
{
    uint64_t table = get(m, pick_l1_entry(m), 8) & OFFSET_MASK, at = table;
    unsigned bytes = l2_entry_bytes(m);

    for (unsigned tries = 0; tries < 16; tries++) {
        at = table + mutator_below(m, cluster_size(m) / bytes) * bytes;
        if (get(m, at, 8) != 0)
            break;
    }
    *ret_table = table;
    return at;
}

/* The offset of one of the header extensions; 0 if there is none. */
static uint64_t pick_extension(struct mutator *m)
{
    uint64_t at = get(m, AT_VERSION, 4) >= 3 ? get(m, AT_HEADER_LENGTH, 4) : 72, found = 0;

    for (unsigned seen = 1; seen < 32 && at + 8 <= m->size && at < cluster_size(m); seen++) {
        if (one_in(m, seen))
            found = at;
        if (get(m, at, 4) == 0)
            break;
        at += 8 + ((get(m, at + 4, 4) + 7) & ~UINT64_C(7));
    }
    return found;
}

static uint64_t bitmap_directory(const struct mutator *m)
{
    uint64_t at = get(m, AT_HEADER_LENGTH, 4);

    for (unsigned i = 0; i < 32 && at + 8 <= m->size; i++) {
        if (get(m, at, 4) == EXTENSION_BITMAPS)
            return get(m, at + 8 + 16, 8);
        at += 8 + ((get(m, at + 4, 4) + 7) & ~UINT64_C(7));
    }
    return 0;
}

/* --- What to write there --- */

/* The place of something that the image has, or almost has. */
static uint64_t some_place(struct mutator *m)
{
    uint64_t table;

    switch (mutator_below(m, 14)) {
    case 0:
        return 0;
    case 1:
        return get(m, AT_L1_OFFSET, 8);
    case 2:
        return get(m, AT_REFCOUNT_OFFSET, 8);
    case 3:
        return get(m, get(m, AT_REFCOUNT_OFFSET, 8), 8);
    case 4:
        return get(m, AT_SNAPSHOTS_OFFSET, 8);
    case 5:
        return bitmap_directory(m);
    case 6:
    case 7:
        return get(m, pick_l1_entry(m), 8) & OFFSET_MASK;
    case 8:
    case 9:
        return get(m, pick_l2_entry(m, &table), 8) & OFFSET_MASK;
    case 10: /* The end of the file, and behind it. */
        return (m->size & ~(cluster_size(m) - 1)) + (mutator_below(m, 3) - 1) * cluster_size(m);
    case 11: /* Where offsets end. */
        return (((uint64_t)1 << (54 + mutator_below(m, 10))) - cluster_size(m)) & ~UINT64_C(511);
    default:
        return mutator_below(m, m->size / cluster_size(m) + 1) * cluster_size(m);
    }
}

/* A number that is likely to be at some limit, out of, or close to, the old one. */
static uint64_t some_number(struct mutator *m, uint64_t old, unsigned width)
{
    switch (mutator_below(m, 12)) {
    case 0:
        return 0;
    case 1:
        return UINT64_MAX;
    case 2:
        return old + 1;
    case 3:
        return old - 1;
    case 4:
        return old ^ (uint64_t)1 << mutator_below(m, width * 8);
    case 5:
        return old * 2;
    case 6:
        return ((uint64_t)1 << mutator_below(m, width * 8)) - mutator_below(m, 2);
    case 7:
        return mutator_below(m, 16);
    case 8:
        return m->size + mutator_below(m, 3) - 1;
    case 9:
        return old + cluster_size(m) * (1 + mutator_below(m, 4));
    case 10:
        return some_place(m);
    default:
        return mutator_random(m);
    }
}

static void mutate_number(struct mutator *m, uint64_t at, unsigned width)
{
    put(m, at, width, some_number(m, get(m, at, width), width));
}

/* --- Mutations --- */

static void mutate_header(struct mutator *m)
{
    const struct field *field =
        &header_fields[mutator_below(m, sizeof(header_fields) / sizeof(header_fields[0]))];

    mutate_number(m, field->at, field->width);
}

static void mutate_table_place(struct mutator *m)
{
    static const uint8_t places[] = {AT_BACKING_OFFSET, AT_L1_OFFSET, AT_REFCOUNT_OFFSET,
                                     AT_SNAPSHOTS_OFFSET};

    put(m, places[mutator_below(m, sizeof(places))], 8, some_place(m));
}

static void mutate_feature(struct mutator *m)
{
    unsigned at = AT_INCOMPATIBLE + 8 * (unsigned)mutator_below(m, 3);

    put(m, at, 8, get(m, at, 8) ^ (uint64_t)1 << mutator_below(m, one_in(m, 4) ? 64 : 6));
}

/* A larger or smaller disk, often with an L1 table that is large enough for it. */
static void mutate_disk_size(struct mutator *m)
{
    unsigned shift = 2 * cluster_bits(m) - (l2_entry_bytes(m) == 16 ? 4 : 3);
    uint64_t size = get(m, AT_SIZE, 8);

    switch (mutator_below(m, 4)) {
    case 0:
        size = (uint64_t)1 << mutator_below(m, 64);
        break;
    case 1:
        size += (mutator_below(m, 64) - 32) * 512;
        break;
    case 2:
        size = ((uint64_t)get(m, AT_L1_SIZE, 4) << shift) + (mutator_below(m, 3) - 1) * 512;
        break;
    default:
        size = (1 + mutator_below(m, 64)) << shift;
        break;
    }
    put(m, AT_SIZE, 8, size);
    if (!one_in(m, 3))
        put(m, AT_L1_SIZE, 4, (size >> shift) + 1);
}

static void mutate_extension(struct mutator *m)
{
    static const uint32_t types[] = {0, 0xe2792aca, 0x6803f857, 0x23852875, 0x44415441, 0x0537be77};
    uint64_t at = pick_extension(m), length = get(m, at + 4, 4);

    if (at == 0)
        return;
    switch (mutator_below(m, 4)) {
    case 0:
        put(m, at, 4, types[mutator_below(m, sizeof(types) / sizeof(types[0]))]);
        break;
    case 1:
        mutate_number(m, at + 4, 4);
        break;
    default:
        if (length > 0 && length <= m->size && at + 8 <= m->size - length)
            m->mutate_bytes(m, m->bytes + at + 8, (size_t)length);
        break;
    }
}

static void mutate_l1_entry(struct mutator *m)
{
    uint64_t at = pick_l1_entry(m), entries, old = get(m, at, 8);

    switch (mutator_below(m, 6)) {
    case 0: /* Shared. */
        put(m, at, 8, get(m, pick_l1_entry(m), 8));
        break;
    case 1:
        entries = 1 + mutator_below(m, get(m, AT_L1_SIZE, 4) + 1);
        for (uint64_t i = 0; i < entries && i < 4096; i++)
            put(m, at + i * 8, 8, old);
        break;
    case 2:
        put(m, at, 8, old ^ (uint64_t)1 << mutator_below(m, 64));
        break;
    case 3:
        put(m, at, 8, old ^ COPIED);
        break;
    default:
        put(m, at, 8, some_place(m) | (one_in(m, 2) ? COPIED : 0));
        break;
    }
}

static uint64_t some_compressed(struct mutator *m)
{
    unsigned shift = 62 - (cluster_bits(m) - 8);
    uint64_t offset = one_in(m, 2) ? mutator_below(m, m->size + 512) : some_place(m);
    uint64_t sectors = one_in(m, 2) ? mutator_below(m, 4) : mutator_random(m);

    return COMPRESSED | (offset & (((uint64_t)1 << shift) - 1)) |
           ((sectors << shift) & (COMPRESSED - 1));
}

static void mutate_l2_entry(struct mutator *m)
{
    uint64_t table, at = pick_l2_entry(m, &table), old = get(m, at, 8);
    unsigned bytes = l2_entry_bytes(m);

    switch (mutator_below(m, 10)) {
    case 0:
        put(m, at, 8, get(m, pick_l2_entry(m, &table), 8));
        break;
    case 1: /* A table that has itself as data. */
        put(m, at, 8, table | COPIED);
        break;
    case 2:
        put(m, at, 8, old ^ 1);
        break;
    case 3:
        put(m, at, 8, old ^ (uint64_t)1 << mutator_below(m, 64));
        break;
    case 4:
        put(m, at, 8, some_compressed(m));
        break;
    case 5: /* A longer or shorter compressed cluster. */
        put(m, at, 8,
            old + ((uint64_t)1 << (62 - (cluster_bits(m) - 8))) * (mutator_below(m, 3) - 1));
        break;
    case 6: /* A run, contiguous or all the same. */
        for (uint64_t i = 0, n = 1 + mutator_below(m, 64), step = mutator_below(m, 2); i < n; i++)
            put(m, at + i * bytes, 8, old + i * step * cluster_size(m));
        break;
    default:
        put(m, at, 8, some_place(m) | (one_in(m, 2) ? COPIED : 0) | one_in(m, 4));
        break;
    }
    if (bytes == 16 && one_in(m, 2)) {
        uint64_t bitmap = one_in(m, 2) ? mutator_random(m) : get(m, at + 8, 8);

        put(m, at + 8, 8,
            one_in(m, 2) ? bitmap & ~(bitmap << 32) : bitmap ^ (uint64_t)1 << mutator_below(m, 64));
    }
}

/* The bytes of a compressed cluster. */
static void mutate_compressed(struct mutator *m)
{
    uint64_t table;

    for (unsigned tries = 0; tries < 8; tries++) {
        uint64_t entry = get(m, pick_l2_entry(m, &table), 8);
        uint64_t at = entry & (((uint64_t)1 << (62 - (cluster_bits(m) - 8))) - 1);

        if ((entry & COMPRESSED) == 0 || at >= m->size)
            continue;
        uint64_t n = 1 + mutator_below(m, 64);
        m->mutate_bytes(m, m->bytes + at, (size_t)(n < m->size - at ? n : m->size - at));
        return;
    }
}

static void mutate_snapshots(struct mutator *m)
{
    static const struct field fields[] = {{0, 8},  {8, 4},  {12, 2}, {14, 2}, {16, 4},
                                          {32, 4}, {36, 4}, {40, 8}, {48, 8}, {56, 8}};
    uint64_t table = get(m, AT_SNAPSHOTS_OFFSET, 8);
    const struct field *field = &fields[mutator_below(m, sizeof(fields) / sizeof(fields[0]))];

    if (one_in(m, 6))
        put(m, AT_SNAPSHOT_COUNT, 4, some_number(m, get(m, AT_SNAPSHOT_COUNT, 4), 4));
    else if (field->at == 0)
        put(m, table, 8, some_place(m));
    else
        mutate_number(m, table + field->at, field->width);
}

static void mutate_bitmaps(struct mutator *m)
{
    static const struct field fields[] = {{0, 8},  {8, 4},  {12, 4}, {16, 1},
                                          {17, 1}, {18, 2}, {20, 4}, {24, 1}};
    uint64_t directory = bitmap_directory(m);
    const struct field *field = &fields[mutator_below(m, sizeof(fields) / sizeof(fields[0]))];

    if (directory == 0)
        return;
    for (unsigned skip = (unsigned)mutator_below(m, 3); skip > 0; skip--)
        directory +=
            (24 + get(m, directory + 18, 2) + get(m, directory + 20, 4) + 7) & ~UINT64_C(7);
    if (one_in(m, 3)) /* An entry of the bitmap's table. */
        put(m, get(m, directory, 8) + 8 * mutator_below(m, 4), 8, some_place(m) | one_in(m, 3));
    else if (field->at == 0)
        put(m, directory, 8, some_place(m));
    else
        mutate_number(m, directory + field->at, field->width);
}

static void mutate_refcounts(struct mutator *m)
{
    uint64_t table = get(m, AT_REFCOUNT_OFFSET, 8);
    uint64_t block = get(m, table, 8) & OFFSET_MASK;

    switch (mutator_below(m, 4)) {
    case 0:
        put(m, table + 8 * mutator_below(m, 8), 8, some_place(m));
        break;
    case 1:
        mutate_number(m, table + 8 * mutator_below(m, 4), 8);
        break;
    default:
        put(m, block + 2 * mutator_below(m, m->size / cluster_size(m) + 2), 2, mutator_below(m, 4));
        break;
    }
}

static void resize(struct mutator *m, uint64_t size)
{
    if (size > m->room)
        size = m->room;
    if (size == 0)
        size = 1;
    if (size > m->size)
        memset(m->bytes + m->size, 0, (size_t)size - m->size);
    m->size = (size_t)size;
}

static void mutate_file_size(struct mutator *m)
{
    switch (mutator_below(m, 4)) {
    case 0:
        resize(m, mutator_below(m, m->size) + 1);
        break;
    case 1:
        resize(m, m->size + cluster_size(m));
        break;
    case 2: /* By less than a cluster. */
        resize(m,
               m->size - mutator_below(m, m->size < cluster_size(m) ? m->size : cluster_size(m)));
        break;
    default:
        resize(m, m->size + mutator_below(m, 1024));
        break;
    }
}

/* One cluster over another: tables full of what is no table. */
static void copy_cluster(struct mutator *m)
{
    uint64_t size = cluster_size(m), count = m->size / size;

    if (count < 2)
        return;
    uint64_t from = mutator_below(m, count), to = mutator_below(m, count);
    if (from != to)
        memcpy(m->bytes + to * size, m->bytes + from * size, (size_t)size);
}

/* Some bytes anywhere, mostly in one of the first clusters, where tables are. */
static void mutate_anywhere(struct mutator *m)
{
    uint64_t within = one_in(m, 4) ? m->size : 6 * cluster_size(m);
    uint64_t at = mutator_below(m, within < m->size ? within : m->size);
    uint64_t n = 1 + mutator_below(m, 32);

    m->mutate_bytes(m, m->bytes + at, (size_t)(n < m->size - at ? n : m->size - at));
}

void qcow2_mutate(struct mutator *m)
{
    static void (*const mutations[])(struct mutator *) = {
        mutate_header,    mutate_table_place, mutate_feature,    mutate_disk_size, mutate_extension,
        mutate_l1_entry,  mutate_l1_entry,    mutate_l2_entry,   mutate_l2_entry,  mutate_l2_entry,
        mutate_l2_entry,  mutate_compressed,  mutate_compressed, mutate_snapshots, mutate_bitmaps,
        mutate_refcounts, mutate_file_size,   copy_cluster,      mutate_anywhere,
    };

    if (m->size == 0)
        resize(m, 1);
    if (!is_qcow2(m)) {
        m->mutate_bytes(m, m->bytes, m->size);
        return;
    }
    for (uint64_t n = 1 + mutator_below(m, 4); n > 0; n--)
        mutations[mutator_below(m, sizeof(mutations) / sizeof(mutations[0]))](m);
}
