/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <openssl/sha.h>

#include "common/units.h"
#include "hashtree/verity.h"

/* --- UUID --- */

static void test_uuid_text(void **state)
{
    (void)state;
    static const uint8_t bytes[16] = {0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
                                      0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10};
    char text[VERITY_UUID_TEXT_SIZE];
    uint8_t uuid[16];

    verity_uuid_format(bytes, text);
    assert_string_equal(text, "01234567-89ab-cdef-fedc-ba9876543210");
    assert_int_equal(verity_uuid_parse(text, uuid, NULL), 0);
    assert_memory_equal(uuid, bytes, 16);
    assert_int_equal(verity_uuid_parse("01234567-89AB-CDEF-FEDC-BA9876543210", uuid, NULL), 0);
    assert_memory_equal(uuid, bytes, 16);
}

static void test_uuid_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "0",
        "-",
        "01234567",
        "01234567-89ab-cdef-fedc-ba987654321",
        "01234567-89ab-cdef-fedc-ba98765432100",
        "01234567-89ab-cdef-fedc-ba987654321g",
        "0123456789abcdeffedcba9876543210",
        "01234567-89ab-cdef-fedcba-9876543210",
        "{01234567-89ab-cdef-fedc-ba9876543210}",
        " 1234567-89ab-cdef-fedc-ba9876543210",
        "01234567-89ab-cdef-fedc-ba9876543210 ",
    };

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        uint8_t uuid[16] = {7};
        assert_int_equal(verity_uuid_parse(texts[i], uuid, &err), -EINVAL);
        assert_int_equal(uuid[0], 7);
        assert_non_null(strstr(error_message(&err), "--uuid"));
    }
}

/* The digests are sha256sum's of the text that verity.c describes. */
static void test_uuid_derived(void **state)
{
    (void)state;
    struct verity_params params;
    uint8_t root[VERITY_DIGEST_MAX], uuid[16], other[16];
    char text[VERITY_UUID_TEXT_SIZE];
    size_t size;

    verity_params_init(&params);
    params.data_blocks = 130796240;
    hex_decode("c51b4b94ee613a768cf555442582b9bcf6e8b04aacd26ff52cd69f87809b8190", "root", root,
               sizeof(root), &size, NULL);
    verity_derive_uuid(&params, root, size, uuid);
    verity_uuid_format(uuid, text);
    assert_string_equal(text, "469e386d-1410-822b-ad4c-e02a2078f4ab");

    params.salt_size = 31;
    verity_derive_uuid(&params, root, size, other);
    assert_memory_not_equal(uuid, other, 16);

    verity_params_init(&params);
    strcpy(params.hash_name, "sha1");
    params.hash_type = 0;
    params.data_block_size = 512;
    params.hash_block_size = 1024;
    params.data_blocks = 1;
    params.salt_size = 0;
    hex_decode("0102030405060708090a0b0c0d0e0f1011121314", "root", root, sizeof(root), &size, NULL);
    verity_derive_uuid(&params, root, size, uuid);
    verity_uuid_format(uuid, text);
    assert_string_equal(text, "d848250f-a1b9-8a1f-ad49-c780acad9294");

    /* The longest text there can be. */
    memset(params.hash_name, 'x', sizeof(params.hash_name) - 1);
    params.hash_name[sizeof(params.hash_name) - 1] = '\0';
    params.salt_size = VERITY_SALT_MAX;
    params.data_blocks = UINT64_MAX;
    params.data_block_size = params.hash_block_size = UINT32_MAX;
    params.hash_type = UINT32_MAX;
    verity_derive_uuid(&params, root, VERITY_DIGEST_MAX, uuid);
}

/* --- Table --- */

static void test_table(void **state)
{
    (void)state;
    static const char expected[] =
        "0 1046369920 verity 1 /dev/sda2 /dev/sdb 4096 4096 130796240 1 sha256 "
        "c51b4b94ee613a768cf555442582b9bcf6e8b04aacd26ff52cd69f87809b8190 "
        "0000000000000000000000000000000000000000000000000000000000000000 1 panic_on_corruption";
    struct verity_params params;
    struct verity_geometry geometry;
    uint8_t root[VERITY_DIGEST_MAX];
    size_t size;

    verity_params_init(&params);
    params.data_blocks = 130796240;
    assert_int_equal(verity_geometry_init(&params, &geometry, NULL), 0);
    hex_decode("c51b4b94ee613a768cf555442582b9bcf6e8b04aacd26ff52cd69f87809b8190", "root", root,
               sizeof(root), &size, NULL);
    _cleanup_free_ char *table =
        verity_table(&params, &geometry, root, "/dev/sda2", "/dev/sdb", "1 panic_on_corruption");
    assert_string_equal(table, expected);
    _cleanup_free_ char *guest = verity_guest_table(&params, &geometry, root, 2);
    assert_string_equal(guest, expected);
    _cleanup_free_ char *disk = verity_guest_table(&params, &geometry, root, 0);
    assert_non_null(strstr(disk, " verity 1 /dev/sda /dev/sdb 4096 "));

    _cleanup_free_ char *create = verity_dm_mod_create(table);
    char *wanted;
    assert_true(asprintf(&wanted, "dm-mod.create=\"dmverity,,0,ro,%s\"", expected) > 0);
    assert_string_equal(create, wanted);
    free(wanted);

    params.data_block_size = 1024;
    params.hash_block_size = 512;
    params.hash_type = 0;
    params.hash_offset = 8192;
    params.data_blocks = 5;
    params.salt_size = 0;
    params.superblock = false;
    strcpy(params.hash_name, "sha1");
    assert_int_equal(verity_geometry_init(&params, &geometry, NULL), 0);
    _cleanup_free_ char *plain = verity_table(&params, &geometry, root, "a", "b", NULL);
    assert_string_equal(
        plain, "0 10 verity 0 a b 1024 512 5 16 sha1 c51b4b94ee613a768cf555442582b9bcf6e8b04a -");
}

/* --- Superblock --- */

static void uuid_and_blocks(struct verity_params *params)
{
    verity_uuid_parse("01234567-89ab-cdef-0123-456789abcdef", params->uuid, NULL);
    params->uuid_set = true;
    params->data_blocks = 256;
}

static void check_superblock(const struct verity_params *params, const char *sha256)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    uint8_t superblock[VERITY_SUPERBLOCK_SIZE], sum[SHA256_DIGEST_LENGTH];
    char text[2 * SHA256_DIGEST_LENGTH + 1];

    if (verity_superblock_format(params, superblock, &err) < 0)
        fail_msg("%s", error_message(&err));
    SHA256(superblock, sizeof(superblock), sum);
    hex_encode(sum, sizeof(sum), text);
    assert_string_equal(text, sha256);
}

/* The digests are of superblocks that `veritysetup format` 2.6.1 wrote. */
static void test_superblock_format(void **state)
{
    (void)state;
    struct verity_params params;

    verity_params_init(&params);
    uuid_and_blocks(&params);
    params.salt_size = 0;
    check_superblock(&params, "74265a0d66bac14c6545ca9489dac1ec0dd56a54454de9d5ab5691b913d99fc8");
    params.salt_size = VERITY_SALT_MAX;
    memset(params.salt, 0xab, sizeof(params.salt));
    check_superblock(&params, "09354fdfbf0e0353b45eca75c4f035283cf4720dfb16c28317563e1298d81373");

    verity_params_init(&params);
    uuid_and_blocks(&params);
    hex_decode("00112233445566778899aabbccddeeff", "salt", params.salt, sizeof(params.salt),
               &params.salt_size, NULL);
    strcpy(params.hash_name, "sha512");
    params.hash_type = 0;
    params.data_block_size = 1024;
    params.hash_block_size = 512;
    params.data_blocks = 1024;
    /* The hash device's place for it is no part of it. */
    params.hash_offset = 51200;
    check_superblock(&params, "0d3e4180d6fc864dd8fc63ff1ece0ca02f379078d2a8171eb376b0c50ae3e9c5");
}

static void test_superblock_format_refused(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;
    uint8_t superblock[VERITY_SUPERBLOCK_SIZE];
    struct verity_params params;

    verity_params_init(&params);
    uuid_and_blocks(&params);
    strcpy(params.hash_name, "crc32");
    assert_true(verity_superblock_format(&params, superblock, &err) < 0);
    assert_non_null(strstr(error_message(&err), "crc32"));
}

/* A file that holds these bytes at `offset`; the caller removes it. */
static void write_file(char *path, const void *bytes, size_t size, long offset)
{
    strcpy(path, "/tmp/test-verity.XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, size, offset), (ssize_t)size);
    close(fd);
}

static int load(const void *bytes, size_t size, long offset, struct verity_params *ret,
                struct error *err)
{
    char path[] = "/tmp/test-verity.XXXXXX";

    write_file(path, bytes, size, offset);
    int r = verity_superblock_load(path, (uint64_t)offset, ret, err);
    unlink(path);
    return r;
}

static void test_superblock_load(void **state)
{
    (void)state;
    static const long offsets[] = {0, 512, 1048576};
    static const size_t salts[] = {0, 1, 32, 256};

    for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
        for (size_t j = 0; j < sizeof(salts) / sizeof(salts[0]); j++) {
            _cleanup_error_ struct error err = ERROR_INIT;
            uint8_t superblock[VERITY_SUPERBLOCK_SIZE];
            struct verity_params params, loaded;

            verity_params_init(&params);
            uuid_and_blocks(&params);
            params.hash_offset = (uint64_t)offsets[i];
            params.salt_size = salts[j];
            memset(params.salt, 0x5a, salts[j]);
            strcpy(params.hash_name, "blake2b-512");
            params.data_block_size = 524288;
            assert_int_equal(verity_superblock_format(&params, superblock, &err), 0);
            if (load(superblock, sizeof(superblock), offsets[i], &loaded, &err) < 0)
                fail_msg("%s", error_message(&err));
            assert_string_equal(loaded.hash_name, params.hash_name);
            assert_int_equal(loaded.hash_type, params.hash_type);
            assert_int_equal(loaded.data_block_size, params.data_block_size);
            assert_int_equal(loaded.hash_block_size, params.hash_block_size);
            assert_int_equal(loaded.data_blocks, params.data_blocks);
            assert_int_equal(loaded.hash_offset, params.hash_offset);
            assert_int_equal(loaded.salt_size, params.salt_size);
            assert_memory_equal(loaded.salt, params.salt, params.salt_size);
            assert_true(loaded.superblock);
            assert_true(loaded.uuid_set);
            assert_memory_equal(loaded.uuid, params.uuid, 16);
        }
    }
}

/* Each field with a value that it cannot have. */
static void test_superblock_damaged(void **state)
{
    (void)state;
    static const struct {
        size_t offset;
        const char *bytes;
        size_t size;
        const char *message;
    } cases[] = {
        {0, "V", 1, "no dm-verity superblock at offset 0"},
        {7, "\1", 1, "no dm-verity superblock"},
        {8, "\2", 1, "version 2"},
        {12, "\2", 1, "hash type 2"},
        {32, "nonesuch", 8, "nonesuch"},
        {32, "sha\33[2J", 8, "sha?[2J"},
        {32, "", 1, "not supported"},
        {32, "sha256sha256sha256sha256sha256sh", 32, "sha256sha256"},
        {64, "\1\20", 2, "block size"},
        {64, "\0\0\20\0", 4, "block size"},
        {68, "\0\0\0\0", 4, "block size"},
        {68, "\0\0\0\1", 4, "block size"},
        {80, "\1\1", 2, "corrupted"},
        {80, "\377\377", 2, "corrupted"},
    };
    uint8_t good[VERITY_SUPERBLOCK_SIZE];
    struct verity_params params;

    verity_params_init(&params);
    uuid_and_blocks(&params);
    assert_int_equal(verity_superblock_format(&params, good, NULL), 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        uint8_t damaged[VERITY_SUPERBLOCK_SIZE];

        memcpy(damaged, good, sizeof(damaged));
        memcpy(damaged + cases[i].offset, cases[i].bytes, cases[i].size);
        int r = load(damaged, sizeof(damaged), 0, &params, &err);
        if (r >= 0 || strstr(error_message(&err), cases[i].message) == NULL)
            fail_msg("case %zu: %d, %s", i, r, error_message(&err));
    }
}

static void test_superblock_load_refused(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;
    struct verity_params params;
    uint8_t bytes[VERITY_SUPERBLOCK_SIZE] = {0};

    assert_int_equal(verity_superblock_load("/nonexistent/hash", 0, &params, &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), "/nonexistent/hash"));
    assert_int_equal(verity_superblock_load("/dev/null", 100, &params, &err), -EINVAL);
    assert_non_null(strstr(error_message(&err), "--hash-offset 100"));
    assert_int_equal(verity_superblock_load("/dev/null", UINT64_C(1) << 63, &params, &err),
                     -EOVERFLOW);
    assert_int_equal(load(bytes, 511, 0, &params, &err), -ENODATA);
    assert_non_null(strstr(error_message(&err), "too short"));
    assert_int_equal(load(bytes, 512, 0, &params, &err), -EINVAL);
    assert_non_null(strstr(error_message(&err), "no dm-verity superblock"));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uuid_text),
        cmocka_unit_test(test_uuid_refused),
        cmocka_unit_test(test_uuid_derived),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_superblock_format),
        cmocka_unit_test(test_superblock_format_refused),
        cmocka_unit_test(test_superblock_load),
        cmocka_unit_test(test_superblock_damaged),
        cmocka_unit_test(test_superblock_load_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
