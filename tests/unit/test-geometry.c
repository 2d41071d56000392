/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "hashtree/verity.h"

static struct verity_params params_of(uint64_t blocks, uint32_t data_block_size,
                                      uint32_t hash_block_size, const char *hash, unsigned type,
                                      uint64_t hash_offset, bool superblock)
{
    struct verity_params params;

    verity_params_init(&params);
    params.data_blocks = blocks;
    params.data_block_size = data_block_size;
    params.hash_block_size = hash_block_size;
    snprintf(params.hash_name, sizeof(params.hash_name), "%s", hash);
    params.hash_type = type;
    params.hash_offset = hash_offset;
    params.superblock = superblock;
    return params;
}

/* What `veritysetup format` 2.6.1 says ("Hash blocks") and how large it makes an empty file. */
static void test_veritysetup(void **state)
{
    (void)state;
    static const struct {
        uint64_t blocks;
        uint32_t data_block_size, hash_block_size;
        const char *hash;
        unsigned type;
        uint64_t hash_offset;
        bool superblock;
        uint64_t hash_blocks, size;
    } cases[] = {
        {1, 4096, 4096, "sha256", 1, 0, true, 0, 4096},
        {2, 4096, 4096, "sha256", 1, 0, true, 1, 8192},
        {127, 4096, 4096, "sha256", 1, 0, true, 1, 8192},
        {128, 4096, 4096, "sha256", 1, 0, true, 1, 8192},
        {129, 4096, 4096, "sha256", 1, 0, true, 3, 16384},
        {16384, 4096, 4096, "sha256", 1, 0, true, 129, 532480},
        {16385, 4096, 4096, "sha256", 1, 0, true, 132, 544768},
        {2097153, 512, 4096, "sha256", 1, 0, true, 16517, 67657728},
        {1, 4096, 4096, "sha256", 1, 0, false, 0, 0},
        {2, 4096, 4096, "sha256", 1, 0, false, 1, 4096},
        {129, 512, 512, "sha1", 0, 0, true, 10, 5632},
        {129, 512, 512, "sha1", 1, 0, true, 10, 5632},
        {129, 512, 1024, "sha512", 1, 0, true, 10, 11264},
        {129, 512, 1024, "sha384", 0, 0, true, 10, 11264},
        {129, 512, 1024, "sha384", 1, 0, true, 10, 11264},
        {16385, 512, 512, "sha512", 1, 0, false, 2345, 1200640},
        {16385, 512, 512, "md5", 0, 0, true, 531, 272384},
        {16385, 512, 4096, "sha512", 0, 512, true, 263, 1081344},
        {129, 4096, 4096, "sha256", 1, 3584, true, 3, 16384},
        {129, 4096, 4096, "sha256", 1, 4096, true, 3, 20480},
        {129, 4096, 4096, "sha256", 1, 4608, true, 3, 20480},
        {129, 4096, 1024, "sha256", 1, 1048576, false, 6, 1054720},
        {1, 4096, 1024, "sha256", 1, 4096, true, 0, 5120},
        {1, 4096, 1024, "sha256", 1, 4096, false, 0, 0},
        {40000, 512, 524288, "sha224", 1, 0, true, 4, 2621440},
        {2, 524288, 512, "sha512", 1, 0, true, 1, 1024},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct verity_params params =
            params_of(cases[i].blocks, cases[i].data_block_size, cases[i].hash_block_size,
                      cases[i].hash, cases[i].type, cases[i].hash_offset, cases[i].superblock);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct verity_geometry geometry;
        uint64_t blocks = 0;

        if (verity_geometry_init(&params, &geometry, &err) < 0)
            fail_msg("case %zu: %s", i, error_message(&err));
        for (unsigned level = 0; level < geometry.levels; level++)
            blocks += geometry.level_blocks[level];
        if (blocks != cases[i].hash_blocks || geometry.device_size != cases[i].size)
            fail_msg("case %zu: %llu blocks, %llu bytes", i, (unsigned long long)blocks,
                     (unsigned long long)geometry.device_size);
    }
}

/* The seed's disk: 499 GiB. */
static void test_large(void **state)
{
    (void)state;
    struct verity_params params = params_of(130796240, 4096, 4096, "sha256", 1, 0, true);
    struct verity_geometry geometry;

    assert_int_equal(verity_geometry_init(&params, &geometry, NULL), 0);
    assert_int_equal(geometry.levels, 4);
    assert_int_equal(geometry.hash_start, 1);
    assert_int_equal(geometry.digest_size, 32);
    assert_int_equal(geometry.digest_slot, 32);
    assert_int_equal(geometry.fanout_bits, 7);
    static const uint64_t blocks[] = {1021846, 7984, 63, 1};
    static const uint64_t starts[] = {1 + 1 + 63 + 7984, 1 + 1 + 63, 1 + 1, 1};
    for (unsigned level = 0; level < 4; level++) {
        assert_int_equal(geometry.level_blocks[level], blocks[level]);
        assert_int_equal(geometry.level_start[level], starts[level]);
    }
    assert_int_equal(geometry.device_size,
                     (UINT64_C(1) + 1 + 63 + 7984 + 1021846) * geometry.hash_block_size);
}

static void test_slots(void **state)
{
    (void)state;
    static const struct {
        const char *hash;
        unsigned type;
        size_t size, slot;
        unsigned fanout_bits;
    } cases[] = {
        {"md5", 0, 16, 16, 8},         {"md5", 1, 16, 16, 8},         {"sha1", 0, 20, 20, 7},
        {"sha1", 1, 20, 32, 7},        {"sha224", 0, 28, 28, 7},      {"sha224", 1, 28, 32, 7},
        {"sha256", 0, 32, 32, 7},      {"sha256", 1, 32, 32, 7},      {"sha384", 0, 48, 48, 6},
        {"sha384", 1, 48, 64, 6},      {"sha512", 0, 64, 64, 6},      {"sha512", 1, 64, 64, 6},
        {"blake2b-512", 1, 64, 64, 6}, {"blake2s-256", 1, 32, 32, 7}, {"sha3-256", 1, 32, 32, 7},
        {"SHA256", 1, 32, 32, 7},      {"ripemd160", 1, 20, 32, 7},   {"sm3", 1, 32, 32, 7},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct verity_params params =
            params_of(1000, 4096, 4096, cases[i].hash, cases[i].type, 0, true);
        _cleanup_error_ struct error err = ERROR_INIT;
        struct verity_geometry geometry;

        if (verity_geometry_init(&params, &geometry, &err) < 0)
            fail_msg("%s: %s", cases[i].hash, error_message(&err));
        assert_int_equal(geometry.digest_size, cases[i].size);
        assert_int_equal(geometry.digest_slot, cases[i].slot);
        assert_int_equal(geometry.fanout_bits, cases[i].fanout_bits);
    }
}

static void test_span(void **state)
{
    (void)state;
    static const uint64_t counts[] = {2, 127, 128, 129, 16384, 16385, 2097153};

    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        struct verity_params params = params_of(counts[i], 512, 4096, "sha256", 1, 0, true);
        struct verity_geometry geometry;

        assert_int_equal(verity_geometry_init(&params, &geometry, NULL), 0);
        for (unsigned level = 0; level < geometry.levels; level++) {
            uint64_t next = 0, first, end;
            for (uint64_t index = 0; index < geometry.level_blocks[level]; index++) {
                verity_geometry_span(&geometry, counts[i], level, index, &first, &end);
                assert_int_equal(first, next);
                assert_true(end > first);
                next = end;
            }
            assert_int_equal(next, counts[i]);
        }
    }
}

/* The largest there can be: nothing wraps. */
static void test_span_huge(void **state)
{
    (void)state;
    uint64_t blocks = INT64_MAX / 524288;
    struct verity_params params = params_of(blocks, 524288, 512, "sha512", 1, 0, true);
    struct verity_geometry geometry;
    uint64_t first, end;

    assert_int_equal(verity_geometry_init(&params, &geometry, NULL), 0);
    for (unsigned level = 0; level < geometry.levels; level++) {
        verity_geometry_span(&geometry, blocks, level, geometry.level_blocks[level] - 1, &first,
                             &end);
        assert_true(first < blocks);
        assert_int_equal(end, blocks);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        struct verity_params params;
        int result;
        const char *message;
    } cases[] = {
        {{"sha256", 2, 4096, 4096, 1, 0, {0}, 0, true, false, {0}}, -EINVAL, "--format-version 2"},
        {{"sha256", 1, 0, 4096, 1, 0, {0}, 0, true, false, {0}}, -EINVAL, "--data-block-size 0"},
        {{"sha256", 1, 256, 4096, 1, 0, {0}, 0, true, false, {0}}, -EINVAL, "--data-block-size"},
        {{"sha256", 1, 3072, 4096, 1, 0, {0}, 0, true, false, {0}}, -EINVAL, "--data-block-size"},
        {{"sha256", 1, 1048576, 4096, 1, 0, {0}, 0, true, false, {0}}, -EINVAL, "524288"},
        {{"sha256", 1, 4096, 256, 1, 0, {0}, 0, true, false, {0}}, -EINVAL, "--hash-block-size"},
        {{"sha256", 1, 4096, 1048576, 1, 0, {0}, 0, true, false, {0}}, -EINVAL, "--hash-block"},
        {{"sha256", 1, 4096, 4096, 1, 0, {0}, 257, true, false, {0}}, -EINVAL, "--salt"},
        {{"sha256", 1, 4096, 4096, 0, 0, {0}, 0, true, false, {0}}, -EINVAL, "--data-blocks 0"},
        {{"sha256", 1, 4096, 4096, UINT64_C(1) << 51, 0, {0}, 0, true, false, {0}},
         -EOVERFLOW,
         "--data-blocks"},
        {{"sha256", 1, 4096, 4096, UINT64_MAX, 0, {0}, 0, true, false, {0}},
         -EOVERFLOW,
         "--data-blocks"},
        {{"sha256", 1, 4096, 4096, 1, 100, {0}, 0, true, false, {0}}, -EINVAL, "--hash-offset 100"},
        {{"sha256", 1, 4096, 4096, 1, 512, {0}, 0, false, false, {0}},
         -EINVAL,
         "--hash-offset 512"},
        {{"sha256", 1, 4096, 4096, 1, UINT64_MAX - 511, {0}, 0, true, false, {0}},
         -EOVERFLOW,
         "--hash-offset"},
        {{"sha256", 1, 4096, 4096, 2, INT64_MAX - 511, {0}, 0, true, false, {0}},
         -EOVERFLOW,
         "--hash-offset"},
        {{"", 1, 4096, 4096, 1, 0, {0}, 0, true, false, {0}}, -EINVAL, "--hash"},
        {{"crc32", 1, 4096, 4096, 1, 0, {0}, 0, true, false, {0}}, -EINVAL, "'crc32'"},
        {{"null", 1, 4096, 4096, 1, 0, {0}, 0, true, false, {0}}, -EINVAL, "'null'"},
        /* An alias of a signature algorithm, which veritysetup does not take. */
        {{"RSA-SHA256", 1, 4096, 4096, 1, 0, {0}, 0, true, false, {0}}, -EINVAL, "RSA-SHA256"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct verity_geometry geometry = {.levels = 77};
        int r = verity_geometry_init(&cases[i].params, &geometry, &err);
        if (r != cases[i].result || strstr(error_message(&err), cases[i].message) == NULL)
            fail_msg("case %zu: %d, %s", i, r, error_message(&err));
        assert_int_equal(geometry.levels, 77);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_veritysetup), cmocka_unit_test(test_large),
        cmocka_unit_test(test_slots),       cmocka_unit_test(test_span),
        cmocka_unit_test(test_span_huge),   cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
