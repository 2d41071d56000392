/* SPDX-License-Identifier: MIT */
/*
 * Dirty bitmaps made by hand: every refusal, with its message; lookups against a naive model; and
 * the reset, of which every state is judged that a crash can leave behind.
 */
#include "qcow2-maker.h"

#include "common/checked.h"
#include "image/bitmap.h"
#include "image/internal.h"

#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/* --- Writes, as the reset makes them --- */

enum { WRITES_MAX = 64 };

static struct {
    bool on;
    unsigned count, syncs;
    bool sync_fails;
    unsigned locked; /* syncs at which nobody else could open the file */
    struct {
        unsigned syncs; /* that came before */
        uint64_t offset;
        size_t length;
        uint8_t *bytes;
    } writes[WRITES_MAX];
} recorded;

/* In the place of libc's. */
__attribute__((visibility("default"))) ssize_t pwrite64(int fd, const void *bytes, size_t length,
                                                        off64_t offset)
{
    if (recorded.on) {
        assert_true(recorded.count < WRITES_MAX);
        recorded.writes[recorded.count].syncs = recorded.syncs;
        recorded.writes[recorded.count].offset = (uint64_t)offset;
        recorded.writes[recorded.count].length = length;
        recorded.writes[recorded.count].bytes = memcpy(malloc(length), bytes, length);
        recorded.count++;
    }
    return syscall(SYS_pwrite64, fd, bytes, length, offset);
}

__attribute__((visibility("default"))) int fdatasync(int fd)
{
    struct image *other = NULL;

    (void)fd;
    recorded.syncs++;
    if (image_open("a", NULL, &other, NULL) == -EBUSY)
        recorded.locked++;
    else
        image_close(other);
    if (recorded.sync_fails) {
        errno = EIO;
        return -1;
    }
    return 0;
}

static void record(void)
{
    for (unsigned i = 0; i < recorded.count; i++)
        free(recorded.writes[i].bytes);
    memset(&recorded, 0, sizeof(recorded));
    recorded.on = true;
}

/* --- Images with bitmaps --- */

/* 512-byte clusters, each of which has 4096 bits: the disk has 10003 granules, two whole clusters
 * of bits and a part of a third. */
enum {
    CLUSTER_BITS = 9,
    CLUSTER = 512,
    GRANULARITY_BITS = 16,
    GRANULARITY = 1 << GRANULARITY_BITS,
    GRANULES = 10003, /* a part of a byte, too */
    ENTRIES = 3,
    EXTENSION = 112, /* of the bitmaps, in the header's cluster */
};
#define DISK ((uint64_t)(GRANULES - 1) * GRANULARITY + 512)

enum { BITS, GENERATION, WITNESS, BITMAPS };

struct made {
    struct maker m;
    uint64_t directory;                 /* offset */
    uint64_t entry[BITMAPS];            /* offsets */
    uint64_t table[BITMAPS];            /* offsets */
    uint64_t cluster[BITMAPS][ENTRIES]; /* offsets */
    uint64_t last_entry_end;
};

static uint64_t put_entry(struct made *i, unsigned which, const char *name, uint32_t flags,
                          uint64_t at)
{
    struct maker *m = &i->m;
    size_t length = strlen(name);

    i->entry[which] = at;
    put64(m, at, i->table[which]);
    put32(m, at + 8, ENTRIES);
    put32(m, at + 12, flags);
    m->bytes[at + 16] = 1;
    m->bytes[at + 17] = GRANULARITY_BITS;
    m->bytes[at + 19] = (uint8_t)length;
    memcpy(m->bytes + at + 24, name, length);
    return at + ((24 + length + 7) & ~(size_t)7);
}

static void set_bit_in(struct made *i, unsigned which, uint64_t bit)
{
    uint64_t entry = bit / (CLUSTER * 8), rest = bit % (CLUSTER * 8);

    i->m.bytes[i->cluster[which][entry] + rest / 8] |= (uint8_t)(1u << rest % 8);
}

/* All bitmaps, with all clusters; of bits, only the generation's last. */
static void make(struct made *i)
{
    struct maker *m = &i->m;

    memset(i, 0, sizeof(*i));
    maker_start(m, 3, CLUSTER_BITS, false, DISK);
    i->directory = maker_allocate(m, 1);
    for (unsigned which = 0; which < BITMAPS; which++) {
        i->table[which] = maker_allocate(m, 1);
        for (unsigned e = 0; e < ENTRIES; e++) {
            i->cluster[which][e] = maker_allocate(m, 1);
            put64(m, i->table[which] + e * 8, i->cluster[which][e]);
        }
    }
    uint64_t end = put_entry(i, 0, IMAGE_BITMAP_NAME, 2, i->directory);
    end = put_entry(i, GENERATION, IMAGE_BITMAP_GENERATION_NAME, 0, end);
    end = put_entry(i, WITNESS, IMAGE_BITMAP_WITNESS_NAME, 2, end);
    set_bit_in(i, 1, GRANULES - 1);
    put64(m, 88, 1);
    put32(m, EXTENSION, 0x23852875);
    put32(m, EXTENSION + 4, 24);
    put32(m, EXTENSION + 8, BITMAPS);
    put64(m, EXTENSION + 16, end - i->directory);
    put64(m, EXTENSION + 24, i->directory);
}

static struct image *open_made(const struct made *i)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image *image = NULL;

    maker_write(&i->m, "a");
    if (image_open("a", NULL, &image, &err) < 0)
        fail_msg("%s", error_message(&err));
    return image;
}

static void refused(const struct made *i, const char *name, int code, const char *message)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = open_made(i);
    struct image_bitmap_bits *bits = NULL;

    int r = image_bitmap_load(image, name, &bits, &err);
    if (r != -code || strstr(error_message(&err), message) == NULL ||
        strncmp(error_message(&err), "a: ", 3) != 0)
        fail_msg("%d, %s; expected %d, %s", r, error_message(&err), -code, message);
    assert_null(bits);
}

/* --- Refusals --- */

/* Where a patch applies. */
enum place { HEADER, ENTRY, GENERATION_ENTRY, TABLE, GENERATION_CLUSTER_2 };

static const struct {
    enum place place;
    uint64_t offset;
    unsigned width;
    uint64_t value;
    bool generation; /* load this one */
    int code;
    const char *message;
} refusals[] = {
    {HEADER, 88, 8, 0, false, ESTALE, "its bitmaps are not to be trusted"},
    {HEADER, EXTENSION, 4, 0x12345678, false, ENOENT, "it has no bitmaps"},
    {ENTRY, 24, 1, 'Q', false, ENOENT, "bitmap 'qverity': there is none of this name"},
    {ENTRY, 12, 4, 3, false, ESTALE, "bitmap 'qverity': it is marked in use"},
    {GENERATION_ENTRY, 12, 4, 1, true, ESTALE, "bitmap 'qverity-generation': it is marked in use"},
    {ENTRY, 12, 4, 0, false, ESTALE, "it is disabled, so changes are missing"},
    {GENERATION_ENTRY, 12, 4, 2, true, ESTALE, "it is enabled, and must not be"},
    {ENTRY, 17, 1, 9, false, EINVAL,
     "the bitmap table has 3 entries, and 1280257 bits in clusters "
     "of 512 bytes need 313"},
    {ENTRY, 17, 1, 31, false, EINVAL, "has 3 entries, and 1 bits in clusters of 512 bytes need 1"},
    {ENTRY, 8, 4, 2, false, EINVAL, "the bitmap table has 2 entries, and 10003 bits"},
    {ENTRY, 8, 4, 4, false, EINVAL, "the bitmap table has 4 entries, and 10003 bits"},
    {TABLE, 8, 8, 0x1000000000000200, false, EINVAL,
     "bitmap table entry 1 (0x1000000000000200) has reserved bits set"},
    {TABLE, 8, 8, 0x202, false, EINVAL, "entry 1 (0x0000000000000202) has reserved bits set"},
    {TABLE, 8, 8, 0x201, false, EINVAL, "entry 1 (0x0000000000000201) has reserved bits set"},
    {TABLE, 0, 8, 0x100000, false, EINVAL,
     "bitmap table entry 0: the cluster at offset 0x100000 does not lie within the file"},
    {TABLE, 0, 8, 0x00fffffffffffe00, false, EINVAL, "offset 0xfffffffffffe00 does not lie"},
    {GENERATION_CLUSTER_2, 0, 0, 0, true, ESTALE, "its last bit is not set: the disk was resized"},
};

static void test_refusals(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof(refusals) / sizeof(refusals[0]); n++) {
        struct made i;
        make(&i);
        uint64_t at = refusals[n].offset;
        switch (refusals[n].place) {
        case HEADER:
            break;
        case ENTRY:
            at += i.entry[0];
            break;
        case GENERATION_ENTRY:
            at += i.entry[1];
            break;
        case TABLE:
            at += i.table[0];
            break;
        case GENERATION_CLUSTER_2:
            memset(i.m.bytes + i.cluster[1][2], 0, CLUSTER);
            break;
        }
        for (unsigned b = 0; b < refusals[n].width; b++)
            i.m.bytes[at + b] = (uint8_t)(refusals[n].value >> 8 * (refusals[n].width - 1 - b));
        refused(&i, refusals[n].generation ? IMAGE_BITMAP_GENERATION_NAME : IMAGE_BITMAP_NAME,
                refusals[n].code, refusals[n].message);
        maker_free(&i.m);
    }
}

static void test_misaligned(void **state)
{
    struct maker m;
    struct made i = {0};

    /* Clusters of 4 KiB: an offset can be a multiple of 512, and wrong. */
    (void)state;
    maker_start(&m, 3, 12, false, DISK);
    i.m = m;
    i.directory = maker_allocate(&i.m, 1);
    i.table[0] = maker_allocate(&i.m, 1);
    put64(&i.m, i.table[0], i.table[0] + 512);
    uint64_t end = put_entry(&i, 0, IMAGE_BITMAP_NAME, 2, i.directory);
    put32(&i.m, i.entry[0] + 8, 1);
    put64(&i.m, 88, 1);
    put32(&i.m, EXTENSION, 0x23852875);
    put32(&i.m, EXTENSION + 4, 24);
    put32(&i.m, EXTENSION + 8, 1);
    put64(&i.m, EXTENSION + 16, end - i.directory);
    put64(&i.m, EXTENSION + 24, i.directory);
    refused(&i, IMAGE_BITMAP_NAME, EINVAL,
            "entry 0: the offset 0x4200 is not a multiple of the cluster size 4096");
    maker_free(&i.m);
}

static void test_extra_data(void **state)
{
    struct made i;

    (void)state;
    make(&i);
    /* The name and its padding are 8 bytes: as extra data, with the entry's name behind them. */
    uint64_t at = i.entry[0];
    memmove(i.m.bytes + at + 40, i.m.bytes + at + 32, 128);
    i.entry[1] += 8;
    memcpy(i.m.bytes + at + 32, "qverity", 8);
    put32(&i.m, at + 20, 8);
    put64(&i.m, EXTENSION + 16, peek64(&i.m, EXTENSION + 16) + 8);
    refused(&i, IMAGE_BITMAP_NAME, ENOTSUP, "it has extra data that is not understood");

    /* Flag 2: the bitmap may be used by those who do not understand it. */
    put32(&i.m, at + 12, 2 | 4);
    _cleanup_image_ struct image *image = open_made(&i);
    _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *bits = NULL;
    assert_int_equal(image_bitmap_load(image, IMAGE_BITMAP_NAME, &bits, NULL), 0);
    maker_free(&i.m);
}

static void test_twice(void **state)
{
    struct made i;

    (void)state;
    make(&i);
    put32(&i.m, EXTENSION + 8, 2);
    i.m.bytes[i.entry[1] + 19] = 7; /* "qverity", too, and the directory 8 or 16 bytes shorter */
    put64(&i.m, EXTENSION + 16, i.entry[1] + 32 - i.directory);
    refused(&i, IMAGE_BITMAP_NAME, EINVAL,
            "two entries of the bitmap directory, 0 and 1, have this name");
    maker_free(&i.m);
}

static void test_too_many_bits(void **state)
{
    struct made i;

    /* 2^29 + 1 granules of 512 bytes. */
    (void)state;
    make(&i);
    i.m.bytes[i.entry[0] + 17] = 9;
    _cleanup_image_ struct image *image = open_made(&i);
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image_bitmap_bits *bits = NULL;
    image->layers[0]->size = ((UINT64_C(1) << 29) + 1) * 512;
    assert_int_equal(image_bitmap_load(image, IMAGE_BITMAP_NAME, &bits, &err), -EFBIG);
    assert_non_null(strstr(error_message(&err),
                           "536870913 bits take 67108865 bytes of memory, more than the limit of "
                           "67108864"));
    maker_free(&i.m);
}

static void test_other_images(void **state)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image_bitmap_bits *bits = NULL;
    struct image *image;
    struct maker m;

    (void)state;
    maker_start(&m, 2, CLUSTER_BITS, false, DISK);
    maker_write(&m, "a");
    maker_free(&m);
    assert_int_equal(image_open("a", NULL, &image, NULL), 0);
    assert_int_equal(image_bitmap_load(image, IMAGE_BITMAP_NAME, &bits, &err), -ENOTSUP);
    assert_non_null(strstr(error_message(&err), "this one is of version 2"));
    image_close(image);

    const struct image_options raw = {.format = "raw"};
    assert_int_equal(image_open("a", &raw, &image, NULL), 0);
    assert_int_equal(image_bitmap_load(image, IMAGE_BITMAP_NAME, &bits, &err), -ENOTSUP);
    assert_non_null(strstr(error_message(&err), "this one is raw"));
    image_close(image);
}

/* --- Lookups --- */

/* Random runs of bits; clusters that are missing, or all ones. */
static void fill_random(struct made *i, bool *model, uint64_t *random)
{
    bool set = false;

    for (uint64_t bit = 0, left = 0; bit < GRANULES; bit++) {
        if (left-- == 0) {
            set = !set;
            left =
                random_next(random) % 4 == 0 ? random_next(random) % 300 : random_next(random) % 4;
        }
        model[bit] = set;
        if (set)
            set_bit_in(i, 0, bit);
    }
    for (unsigned e = 0; e < ENTRIES; e++) {
        uint64_t kind = random_next(random) % 4;
        if (kind > 1)
            continue;
        put64(&i->m, i->table[0] + e * 8, kind);
        for (uint64_t bit = e * CLUSTER * 8; bit < GRANULES && bit < (e + 1) * CLUSTER * 8; bit++)
            model[bit] = kind == 1;
    }
    /* Behind the last bit anything may stand. */
    for (uint64_t bit = GRANULES; bit < ENTRIES * CLUSTER * 8; bit++)
        if (random_next(random) % 2 == 0)
            set_bit_in(i, 0, bit);
}

static bool naive_next(const bool *model, uint64_t offset, uint64_t *start, uint64_t *end)
{
    uint64_t bit = offset / GRANULARITY;

    while (bit < GRANULES && !model[bit])
        bit++;
    if (bit >= GRANULES)
        return false;
    *start = max_u64(offset, bit * GRANULARITY);
    while (bit < GRANULES && model[bit])
        bit++;
    *end = bit * GRANULARITY;
    return true;
}

static void compare(const struct image_bitmap_bits *bits, const bool *model, uint64_t offset)
{
    uint64_t start, end, expected_start, expected_end;
    bool expected = naive_next(model, offset, &expected_start, &expected_end);

    assert_int_equal(image_bitmap_next(bits, offset, &start, &end), expected);
    if (expected) {
        assert_int_equal(start, expected_start);
        assert_int_equal(end, expected_end);
    }
}

static void test_next(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 88172645463325252;

    (void)state;
    for (unsigned round = 0; round < 30; round++) {
        struct made i;
        make(&i);
        fill_random(&i, model, &random);
        _cleanup_image_ struct image *image = open_made(&i);
        _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *bits = NULL;
        assert_int_equal(image_bitmap_load(image, IMAGE_BITMAP_NAME, &bits, NULL), 0);
        uint64_t count = 0;
        for (uint64_t bit = 0; bit < GRANULES; bit++) {
            count += model[bit];
            compare(bits, model, bit * GRANULARITY);
        }
        assert_int_equal(image_bitmap_set_count(bits), count);
        assert_int_equal(image_bitmap_count(bits), GRANULES);
        assert_int_equal(image_bitmap_granularity(bits), GRANULARITY);
        for (unsigned n = 0; n < 1000; n++)
            compare(bits, model, random_next(&random) % (DISK + 3 * GRANULARITY));
        compare(bits, model, INT64_MAX);
        maker_free(&i.m);
    }
}

/* --- Canaries --- */

static void test_canaries(void **state)
{
    static const uint64_t sizes[] = {256, 257, 300, 4095, 4096, 4097, GRANULES, 1 << 20, 1 << 29};
    uint64_t random = 1181783497276652981;

    (void)state;
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        uint64_t in_cluster[IMAGE_BITMAP_CANARIES], different = 0;
        for (unsigned n = 0; n < 300; n++) {
            uint8_t generation[IMAGE_BITMAP_GENERATION_SIZE];
            uint64_t canaries[IMAGE_BITMAP_CANARIES], again[IMAGE_BITMAP_CANARIES];
            for (size_t b = 0; b < sizeof(generation); b++)
                generation[b] = (uint8_t)random_next(&random);
            image_tracking_canaries(generation, sizes[s], CLUSTER, canaries);
            image_tracking_canaries(generation, sizes[s], CLUSTER, again);
            assert_memory_equal(canaries, again, sizeof(canaries));
            for (unsigned c = 0; c < IMAGE_BITMAP_CANARIES; c++) {
                assert_true(c == 0 || canaries[c] > canaries[c - 1]);
                /* One in each part, and always in the same cluster of the bitmap. */
                assert_true(c == IMAGE_BITMAP_CANARIES - 1 ||
                            (canaries[c] >= (sizes[s] - 1) * c / 15 &&
                             canaries[c] < (sizes[s] - 1) * (c + 1) / 15));
                if (n > 0)
                    assert_int_equal(canaries[c] / (CLUSTER * 8), in_cluster[c]);
                in_cluster[c] = canaries[c] / (CLUSTER * 8);
            }
            assert_int_equal(canaries[IMAGE_BITMAP_CANARIES - 1], sizes[s] - 1);
            /* Another generation by one bit has others. */
            generation[n % sizeof(generation)] ^= (uint8_t)(1 << n / 16 % 8);
            image_tracking_canaries(generation, sizes[s], CLUSTER, again);
            for (unsigned c = 0; c < IMAGE_BITMAP_CANARIES; c++)
                different += canaries[c] != again[c];
        }
        assert_true(different > 300 * 11);
    }
}

/* --- All together --- */

static const uint8_t old_generation[IMAGE_BITMAP_GENERATION_SIZE] = "the old one....";
static const uint8_t new_generation[IMAGE_BITMAP_GENERATION_SIZE] = "quite a new one";
static uint64_t old_canaries[IMAGE_BITMAP_CANARIES], new_canaries[IMAGE_BITMAP_CANARIES];

/* An image that is tracked, with some granules written. */
static void make_tracked(struct made *i, bool *model, uint64_t *random)
{
    make(i);
    image_tracking_canaries(old_generation, GRANULES, CLUSTER, old_canaries);
    image_tracking_canaries(new_generation, GRANULES, CLUSTER, new_canaries);
    memset(model, 0, GRANULES * sizeof(*model));
    memcpy(i->m.bytes + i->cluster[GENERATION][0], old_generation, sizeof(old_generation));
    for (size_t n = 0; n < IMAGE_BITMAP_CANARIES; n++)
        model[old_canaries[n]] = true;
    for (unsigned n = 0; n < 300; n++)
        model[random_next(random) % GRANULES] = true;
    for (uint64_t bit = 0; bit < GRANULES; bit++)
        if (model[bit]) {
            set_bit_in(i, BITS, bit);
            set_bit_in(i, WITNESS, bit);
        }
}

static void clear_bit_in(struct made *i, unsigned which, uint64_t bit)
{
    uint64_t entry = bit / (CLUSTER * 8), rest = bit % (CLUSTER * 8);

    i->m.bytes[i->cluster[which][entry] + rest / 8] &= (uint8_t) ~(1u << rest % 8);
}

static void distrusted(struct made *i, int code, const char *message)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = open_made(i);
    struct image_tracking *tracking = NULL;

    int r = image_tracking_load(image, &tracking, &err);
    if (r != -code || strstr(error_message(&err), message) == NULL ||
        strncmp(error_message(&err), "a: ", 3) != 0)
        fail_msg("%d, %s; expected %d, %s", r, error_message(&err), -code, message);
    assert_null(tracking);
    maker_free(&i->m);
}

static void test_tracking(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 2685821657736338717;

    (void)state;
    for (unsigned round = 0; round < 20; round++) {
        struct made i;
        make_tracked(&i, model, &random);
        /* Each of them may lack what the other one has. */
        for (unsigned n = 0; n < 100; n++) {
            uint64_t bit = random_next(&random) % GRANULES;
            set_bit_in(&i, random_next(&random) % 2 == 0 ? BITS : WITNESS, bit);
            model[bit] = true;
        }
        _cleanup_image_ struct image *image = open_made(&i);
        _cleanup_(image_tracking_free_cleanup) struct image_tracking *tracking = NULL;
        assert_int_equal(image_tracking_load(image, &tracking, NULL), 0);
        assert_false(image_tracking_clean(tracking));
        assert_memory_equal(image_tracking_generation(tracking), old_generation,
                            sizeof(old_generation));
        uint64_t count = 0;
        for (uint64_t bit = 0; bit < GRANULES; bit++) {
            count += model[bit];
            compare(image_tracking_bits(tracking), model, bit * GRANULARITY);
        }
        assert_int_equal(image_bitmap_set_count(image_tracking_bits(tracking)), count);
        maker_free(&i.m);
    }
}

static void test_distrust(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 31;
    struct made i;

    (void)state;
    for (unsigned n = 0; n < IMAGE_BITMAP_CANARIES; n++) {
        make_tracked(&i, model, &random);
        clear_bit_in(&i, BITS, old_canaries[n]);
        distrusted(&i, ESTALE, "bitmap 'qverity': bits are clear that had been set on purpose");
        make_tracked(&i, model, &random);
        clear_bit_in(&i, WITNESS, old_canaries[n]);
        distrusted(&i, ESTALE, "bitmap 'qverity-witness': bits are clear");
    }
    make_tracked(&i, model, &random);
    i.m.bytes[i.cluster[GENERATION][0]] ^= 1;
    distrusted(&i, ESTALE, "bits are clear that had been set on purpose");
    make_tracked(&i, model, &random);
    i.m.bytes[i.entry[WITNESS] + 24] = 'Q';
    distrusted(&i, ENOENT, "bitmap 'qverity-witness': there is none of this name");
    make_tracked(&i, model, &random);
    put32(&i.m, i.entry[WITNESS] + 12, 0);
    distrusted(&i, ESTALE, "bitmap 'qverity-witness': it is disabled");
    make_tracked(&i, model, &random);
    put32(&i.m, i.entry[WITNESS] + 12, 3);
    distrusted(&i, ESTALE, "bitmap 'qverity-witness': it is marked in use");
    make_tracked(&i, model, &random);
    /* Half as large granules: two clusters more of bits. */
    uint64_t table = maker_allocate(&i.m, 1);
    put64(&i.m, i.entry[WITNESS], table);
    put32(&i.m, i.entry[WITNESS] + 8, 5);
    i.m.bytes[i.entry[WITNESS] + 17] = GRANULARITY_BITS - 1;
    distrusted(&i, ESTALE, "has granules of 65536 bytes, 'qverity-witness' of 32768");
}

/* --- Reset --- */

static bool has_bit(const struct image_bitmap_bits *bits, uint64_t bit)
{
    uint64_t start, end;

    return image_bitmap_next(bits, bit * GRANULARITY, &start, &end) && start == bit * GRANULARITY;
}

/* What may be believed of the image file `a`: under the old generation all bits, under the new one
 * all canaries. Returns whether it is the new one. */
static bool judge(const bool *model)
{
    _cleanup_image_ struct image *image = NULL;
    _cleanup_(image_tracking_free_cleanup) struct image_tracking *tracking = NULL;

    assert_int_equal(image_open("a", NULL, &image, NULL), 0);
    if (image_tracking_load(image, &tracking, NULL) < 0) {
        /* The old generation is not turned down: nothing was taken from it. */
        _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *bits = NULL;
        uint8_t bytes[IMAGE_BITMAP_GENERATION_SIZE];
        assert_int_equal(image_bitmap_load(image, IMAGE_BITMAP_GENERATION_NAME, &bits, NULL), 0);
        image_bitmap_generation(bits, bytes);
        assert_memory_not_equal(bytes, old_generation, sizeof(bytes));
        return false;
    }
    const uint8_t *bytes = image_tracking_generation(tracking);
    if (memcmp(bytes, old_generation, sizeof(old_generation)) == 0)
        for (uint64_t bit = 0; bit < GRANULES; bit++)
            assert_true(!model[bit] || has_bit(image_tracking_bits(tracking), bit));
    return memcmp(bytes, new_generation, sizeof(new_generation)) == 0;
}

static void reset(const struct made *i, int code, const char *message)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = open_made(i);

    record();
    int r = image_tracking_reset(image, new_generation, &err);
    recorded.on = false;
    if (r != -code || (code != 0 && strstr(error_message(&err), message) == NULL))
        fail_msg("%d, %s; expected %d, %s", r, error_message(&err), -code, message);
    /* The locks are a reader's again. */
    struct image *other = NULL;
    assert_int_equal(image_open("a", NULL, &other, NULL), 0);
    image_close(other);
}

static void test_reset(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 521288629546311;
    struct made i;

    (void)state;
    make_tracked(&i, model, &random);
    reset(&i, 0, NULL);
    assert_int_equal(recorded.syncs, 1);
    assert_int_equal(recorded.locked, 1);
    assert_true(judge(model));

    _cleanup_image_ struct image *image = NULL;
    _cleanup_(image_tracking_free_cleanup) struct image_tracking *tracking = NULL;
    assert_int_equal(image_open("a", NULL, &image, NULL), 0);
    assert_int_equal(image_tracking_load(image, &tracking, NULL), 0);
    assert_true(image_tracking_clean(tracking));

    /* Nothing but the bitmaps' clusters changed. */
    uint8_t *after = malloc(i.m.size);
    int fd = open("a", O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, after, i.m.size, 0), i.m.size);
    close(fd);
    for (unsigned e = 0; e < ENTRIES; e++) {
        memset(i.m.bytes + i.cluster[BITS][e], 0, CLUSTER);
        memset(after + i.cluster[BITS][e], 0, CLUSTER);
        memset(i.m.bytes + i.cluster[WITNESS][e], 0, CLUSTER);
        memset(after + i.cluster[WITNESS][e], 0, CLUSTER);
    }
    memcpy(i.m.bytes + i.cluster[1][0], new_generation, sizeof(new_generation));
    assert_memory_equal(after, i.m.bytes, i.m.size);
    free(after);
    maker_free(&i.m);
}

/*
 * A crash: all writes before some sync are there; of those behind it, each 16 bytes are or are not.
 * (Disks write sectors whole; nothing here depends on it but for the generation.)
 */
static void test_crashes(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 362436069123456;
    unsigned seen_new = 0, seen_others = 0;

    (void)state;
    for (unsigned round = 0; round < 600; round++) {
        struct made i;
        make_tracked(&i, model, &random);
        reset(&i, 0, NULL);
        unsigned synced = (unsigned)(random_next(&random) % (recorded.syncs + 1));
        for (unsigned n = 0; n < recorded.count; n++) {
            if (recorded.writes[n].syncs > synced)
                continue;
            for (size_t at = 0; at < recorded.writes[n].length; at += 16)
                if (recorded.writes[n].syncs < synced || random_next(&random) % 2 == 0)
                    memcpy(i.m.bytes + recorded.writes[n].offset + at,
                           recorded.writes[n].bytes + at,
                           min_u64(16, recorded.writes[n].length - at));
        }
        maker_write(&i.m, "a");
        if (judge(model))
            seen_new++;
        else
            seen_others++;
        maker_free(&i.m);
    }
    assert_true(seen_new > 100 && seen_others > 100);
}

static void test_sync_error(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 7777777;
    struct made i;

    (void)state;
    make_tracked(&i, model, &random);
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = open_made(&i);
    record();
    recorded.sync_fails = true;
    assert_int_equal(image_tracking_reset(image, new_generation, &err), -EIO);
    recorded.on = recorded.sync_fails = false;
    assert_non_null(strstr(error_message(&err), "a: cannot sync"));
    assert_int_equal(recorded.syncs, 1);
    /* Nothing was cleared. */
    _cleanup_(image_tracking_free_cleanup) struct image_tracking *tracking = NULL;
    assert_int_equal(image_tracking_load(image, &tracking, NULL), 0);
    for (uint64_t bit = 0; bit < GRANULES; bit++)
        assert_true(!model[bit] || has_bit(image_tracking_bits(tracking), bit));
    maker_free(&i.m);
}

/* What is refused must not have been written to. */
static void refused_reset(struct made *i, int code, const char *message)
{
    reset(i, code, message);
    assert_int_equal(recorded.count, 0);
    maker_free(&i->m);
}

static void test_reset_refusals(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 1234567;
    struct made i;
    static const struct {
        unsigned which, entry;
        uint64_t value;
        int code;
        const char *message;
    } cases[] = {
        {0, 0, 0, ENOTSUP, "bitmap 'qverity' has no clusters of its own"},
        {0, 1, 0, ENOTSUP, "bitmap 'qverity' has no clusters of its own"},
        {0, 1, 1, ENOTSUP, "bitmap 'qverity' has no clusters of its own"},
        {2, 0, 0, ENOTSUP, "bitmap 'qverity-witness' has no clusters of its own"},
        {2, 2, 1, ENOTSUP, "bitmap 'qverity-witness' has no clusters of its own"},
        {2, 2, 0x400, EINVAL, "the bitmap cluster at offset 0x400 overlaps the L1 table"},
        {1, 0, 0, ENOTSUP, "bitmap 'qverity-generation' has no clusters of its own"},
        {1, 0, 1, ENOTSUP, "bitmap 'qverity-generation' has no clusters of its own"},
        {1, 2, 0, ESTALE, "the disk was resized"},
        {0, 0, 0x200, EINVAL, "the bitmap cluster at offset 0x200 overlaps the refcount table"},
        {0, 0, 0x400, EINVAL, "the bitmap cluster at offset 0x400 overlaps the L1 table"},
    };

    (void)state;
    for (size_t n = 0; n < sizeof(cases) / sizeof(cases[0]); n++) {
        make_tracked(&i, model, &random);
        put64(&i.m, i.table[cases[n].which] + cases[n].entry * 8, cases[n].value);
        refused_reset(&i, cases[n].code, cases[n].message);
    }
    make_tracked(&i, model, &random);
    put64(&i.m, i.table[0] + 8, i.directory);
    refused_reset(&i, EINVAL, "overlaps the bitmap directory");
    make_tracked(&i, model, &random);
    put64(&i.m, i.table[0], i.table[1]);
    refused_reset(&i, EINVAL, "overlaps a bitmap table");
    make_tracked(&i, model, &random);
    put64(&i.m, i.table[0], i.table[2]);
    refused_reset(&i, EINVAL, "overlaps a bitmap table");
    make_tracked(&i, model, &random);
    put64(&i.m, i.table[0], i.cluster[2][1]);
    refused_reset(&i, EINVAL, "two bitmap table entries have the cluster");
    make_tracked(&i, model, &random);
    put64(&i.m, i.table[0], i.cluster[1][0]);
    refused_reset(&i, EINVAL, "two bitmap table entries have the cluster");
    make_tracked(&i, model, &random);
    put32(&i.m, i.entry[0] + 12, 3);
    refused_reset(&i, ESTALE, "marked in use");
}

static void test_locks(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 99;
    struct made i;

    (void)state;
    make_tracked(&i, model, &random);
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = open_made(&i), *reader = NULL;
    assert_int_equal(image_open("a", NULL, &reader, NULL), 0);
    record();
    assert_int_equal(image_tracking_reset(image, new_generation, &err), -EBUSY);
    assert_non_null(strstr(error_message(&err), "a: in use: another process reads it"));
    assert_int_equal(recorded.count, 0);
    image_close(TAKE_PTR(reader));
    assert_int_equal(image_tracking_reset(image, new_generation, NULL), 0);

    /* Another file of this name is not written to. */
    assert_int_equal(rename("a", "b"), 0);
    maker_write(&i.m, "a");
    assert_int_equal(image_tracking_reset(image, new_generation, &err), -ESTALE);
    assert_non_null(strstr(error_message(&err), "another file took its place"));
    assert_false(judge(model));
    recorded.on = false;
    maker_free(&i.m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_misaligned),
        cmocka_unit_test(test_extra_data),    cmocka_unit_test(test_twice),
        cmocka_unit_test(test_too_many_bits), cmocka_unit_test(test_other_images),
        cmocka_unit_test(test_next),          cmocka_unit_test(test_canaries),
        cmocka_unit_test(test_tracking),      cmocka_unit_test(test_distrust),
        cmocka_unit_test(test_reset),         cmocka_unit_test(test_crashes),
        cmocka_unit_test(test_sync_error),    cmocka_unit_test(test_reset_refusals),
        cmocka_unit_test(test_locks),
    };

    return cmocka_run_group_tests(tests, maker_enter, maker_leave);
}
