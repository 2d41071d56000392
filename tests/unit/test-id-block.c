/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qemuctl/id-block.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* What is signed is checked by tests/functional/measure.sh; here, the files. */

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
        assert_int_equal(id_block_write(path, bytes, sizes[i], NULL), 0);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_written_is_read),
        cmocka_unit_test(test_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
