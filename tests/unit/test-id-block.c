/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qemuctl/id-block.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* What is made is checked by tests/functional/measure.sh with another program; here, the files, and
 * what a damaged block is told to be. */

static void make_file(char *path, const void *bytes, size_t size)
{
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), size);
    assert_int_equal(close(fd), 0);
}

static void test_written_is_read(void **state)
{
    (void)state;
    static uint8_t bytes[ID_AUTH_SIZE], got[ID_AUTH_SIZE];

    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 7 + i / 256);
    /* Of every remainder by 3: with no, two and one characters of padding. */
    static const size_t sizes[] = {ID_BLOCK_SIZE, ID_AUTH_SIZE, 95};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        char path[] = "/tmp/qverity-test-id.XXXXXX";
        make_file(path, "old contents", 12);
        assert_int_equal(id_block_write(&(struct id_block_file){path, bytes, sizes[i]}, 1, NULL),
                         0);
        memset(got, 0, sizeof(got));
        assert_int_equal(id_block_read(path, sizes[i], got, NULL), 0);
        assert_memory_equal(got, bytes, sizes[i]);
        assert_int_equal(unlink(path), 0);
    }
}

static void test_read(void **state)
{
    (void)state;
    static const struct {
        const char *contents;
        const char *bytes; /* NULL: refused */
    } cases[] = {
        {"YWJjZA==", "abcd"}, {"YWJjZA==\n", "abcd"}, {"YWJjZA==\r\n \n", "abcd"},
        {"wxyz", "wxyz"},                                                 /* the bytes themselves */
        {"YWJjZA=", NULL},    {"YWJjZA", NULL},       {"YWJjZGU=", NULL}, /* 5 bytes */
        {"YWJj", "YWJj"},     {"YW\nJjZA==", NULL},   {"YWJj=A==", NULL},
        {"YWJ*ZA==", NULL},   {"======ZA", NULL},     {"", NULL},
        {"\n", NULL},
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        char path[] = "/tmp/qverity-test-id.XXXXXX", expected[200];
        _cleanup_error_ struct error err = ERROR_INIT;
        uint8_t got[4] = {1, 2, 3, 4};
        make_file(path, cases[i].contents, strlen(cases[i].contents));
        int r = id_block_read(path, 4, got, &err);
        assert_int_equal(unlink(path), 0);
        if ((r == 0) != (cases[i].bytes != NULL))
            fail_msg("case %zu: %d", i, r);
        assert_memory_equal(got, r == 0 ? cases[i].bytes : "\1\2\3\4", 4);
        if (r == 0)
            continue;
        assert_int_equal(r, -EINVAL);
        snprintf(expected, sizeof(expected), "%s: holds neither 4 bytes nor those in Base64", path);
        assert_string_equal(error_message(&err), expected);
    }
}

/* --- Checking --- */

static void new_key(struct id_key **ret)
{
    char path[] = "/tmp/qverity-test-id.XXXXXX";
    _cleanup_free_ unsigned char *der = NULL;
    EVP_PKEY *pkey = EVP_EC_gen("P-384");

    assert_non_null(pkey);
    const int size = i2d_PrivateKey(pkey, &der);
    EVP_PKEY_free(pkey);
    assert_true(size > 0);
    make_file(path, der, (size_t)size);
    assert_int_equal(id_key_load(path, ret, NULL), 0);
    assert_int_equal(unlink(path), 0);
}

static void test_check(void **state)
{
    (void)state;
    _cleanup_id_key_ struct id_key *key = NULL, *author = NULL;
    struct launch_digest digest = {.size = 48}, other;
    uint8_t block[ID_BLOCK_SIZE], auth[ID_AUTH_SIZE];

    new_key(&key);
    new_key(&author);
    memset(digest.bytes, 0xd1, digest.size);
    other = digest;
    other.bytes[47] ^= 1;
    const struct id_block made = {.digest = &digest, .guest_svn = 3, .policy = 0x30001};
    for (int with_author = 0; with_author < 2; with_author++) {
        const struct id_key *const by = with_author ? author : NULL;
        assert_int_equal(id_block_make(&made, key, by, block, auth, NULL), 0);
        assert_int_equal(id_block_check(block, auth, &digest, 0x30001, NULL), 0);
        assert_int_equal(id_block_check(block, auth, NULL, 0x30001, NULL), 0);
        assert_int_equal(id_block_check(block, auth, &other, 0x30001, NULL), -EINVAL);
        assert_int_equal(id_block_check(block, auth, &digest, 0x30000, NULL), -EINVAL);

        /* Each byte that the processor looks at: of the block, the algorithms, the signatures (R
         * and S of 48 bytes each) and the keys. */
        static const struct {
            size_t start, count;
            bool author;
        } places[] = {{0x00, 4, false},   {0x40, 48, false}, {0x88, 48, false}, {0x240, 52, false},
                      {0x28c, 48, false}, {0x04, 4, true},   {0x680, 48, true}, {0x6c8, 48, true},
                      {0x880, 52, true},  {0x8cc, 48, true}};
        for (size_t i = 0; i < COUNT(places); i++)
            for (size_t j = 0; j < places[i].count; j++) {
                if (places[i].author && !with_author)
                    continue;
                uint8_t *const byte = &auth[places[i].start + j];
                *byte ^= 0x10;
                assert_int_equal(id_block_check(block, auth, &digest, 0x30001, NULL), -EBADMSG);
                *byte ^= 0x10;
            }
        for (size_t j = 0x30; j < 0x58; j++) {
            block[j] ^= 0x10;
            assert_int_equal(id_block_check(block, auth, &digest, 0x30001, NULL),
                             j >= 0x50 && j < 0x54 ? -EINVAL : -EBADMSG);
            block[j] ^= 0x10;
        }
        assert_int_equal(id_block_check(block, auth, &digest, 0x30001, NULL), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_written_is_read),
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_check),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
