/* SPDX-License-Identifier: MIT */
/* Change tracking: canaries, and when the bitmaps are believed. */
#include "bitmap-maker.h"

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

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_canaries),
        cmocka_unit_test(test_tracking),
        cmocka_unit_test(test_distrust),
    };

    return cmocka_run_group_tests(tests, maker_enter, maker_leave);
}
