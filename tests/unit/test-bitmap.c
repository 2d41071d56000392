/* SPDX-License-Identifier: MIT */
/* Reading dirty bitmaps: every refusal, with its message; lookups against a naive model. */
#include "bitmap-maker.h"
#include "image/internal.h"

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

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_misaligned),
        cmocka_unit_test(test_extra_data),    cmocka_unit_test(test_twice),
        cmocka_unit_test(test_too_many_bits), cmocka_unit_test(test_other_images),
        cmocka_unit_test(test_next),
    };

    return cmocka_run_group_tests(tests, maker_enter, maker_leave);
}
