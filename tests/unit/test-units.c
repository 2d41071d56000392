/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/checked.h"
#include "common/json.h"
#include "common/units.h"

static void test_parse_size(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int result;
        uint64_t value;
    } cases[] = {
        {"0", 0, 0},
        {"4096", 0, 4096},
        {"0x1000", 0, 4096},
        {"2G", 0, UINT64_C(2) << 30},
        {"64k", 0, 65536},
        {"15E", 0, UINT64_C(15) << 60},
        {"18446744073709551615", 0, UINT64_MAX},
        {"16E", -ERANGE, 0},
        {"18446744073709551616", -ERANGE, 0},
        {"", -EINVAL, 0},
        {"-1", -EINVAL, 0},
        {"+1", -EINVAL, 0},
        {" 1", -EINVAL, 0},
        {"1 ", -EINVAL, 0},
        {"1KB", -EINVAL, 0},
        {"K", -EINVAL, 0},
        {"0x", -EINVAL, 0},
        {"ff", -EINVAL, 0},
        {"1.5G", -EINVAL, 0},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        uint64_t value = 0;
        int r = parse_size(cases[i].text, "size", &value, &err);
        if (r != cases[i].result || value != cases[i].value)
            fail_msg("'%s': %d, %llu", cases[i].text, r, (unsigned long long)value);
        assert_int_equal(err.code, -cases[i].result);
    }
}

static void test_hex(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;
    uint8_t bytes[4] = {0};
    char text[9];
    size_t length = 99;

    assert_int_equal(hex_decode("00fFa5", "salt", bytes, sizeof(bytes), &length, &err), 0);
    assert_int_equal(length, 3);
    hex_encode(bytes, length, text);
    assert_string_equal(text, "00ffa5");
    assert_int_equal(hex_decode("", "salt", bytes, sizeof(bytes), &length, &err), 0);
    assert_int_equal(length, 0);
    assert_int_equal(hex_decode("123", "salt", bytes, sizeof(bytes), &length, &err), -EINVAL);
    assert_int_equal(hex_decode("0g", "salt", bytes, sizeof(bytes), &length, &err), -EINVAL);
    assert_int_equal(hex_decode("0011223344", "salt", bytes, sizeof(bytes), &length, &err),
                     -EINVAL);
}

static void test_format_size(void **state)
{
    (void)state;
    char buffer[FORMAT_SIZE_MAX];

    assert_string_equal(format_size(0, buffer), "0 B");
    assert_string_equal(format_size(1023, buffer), "1023 B");
    assert_string_equal(format_size(1536, buffer), "1.5 KiB");
    assert_string_equal(format_size(UINT64_C(499) << 30, buffer), "499 GiB");
    assert_string_equal(format_size(UINT64_MAX, buffer), "16.0 EiB");
}

static void test_checked(void **state)
{
    (void)state;
    uint64_t value = 7;

    assert_false(checked_add(UINT64_MAX, 1, &value));
    assert_false(checked_mul(UINT64_C(1) << 32, UINT64_C(1) << 32, &value));
    assert_false(checked_align_up(UINT64_MAX, 4096, &value));
    assert_int_equal(value, 7);
    assert_true(range_within(10, 0, 10));
    assert_false(range_within(11, 0, 10));
    assert_false(range_within(1, UINT64_MAX, 10));
    assert_int_equal(div_round_up(UINT64_MAX, 2), UINT64_C(1) << 63);
}

static void test_error(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;

    assert_int_equal(error_set(&err, EINVAL, "field %d: %s", 3, "wrong"), -EINVAL);
    assert_int_equal(error_prefix(&err, "%s", "disk.qcow2"), -EINVAL);
    assert_string_equal(error_message(&err), "disk.qcow2: field 3: wrong");
    /* The old message may be an argument of the new one. */
    error_set(&err, EIO, "again: %s", err.message);
    assert_string_equal(err.message, "again: disk.qcow2: field 3: wrong");
    assert_int_equal(error_set(NULL, EIO, "nobody listens"), -EIO);
}

static void test_json_text(void **state)
{
    (void)state;
    static const struct {
        const char *text, *json;
    } cases[] = {
        {"plain", "plain"},
        {"gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f"},
        {"a\xff!", "a\xef\xbf\xbd!"},
        {"\xc3", "\xef\xbf\xbd"},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xc0\x80", "\xef\xbf\xbd\xef\xbf\xbd"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_json_ json_t *json = json_text(cases[i].text);
        assert_non_null(json);
        assert_string_equal(json_string_value(json), cases[i].json);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_size),  cmocka_unit_test(test_hex),
        cmocka_unit_test(test_format_size), cmocka_unit_test(test_checked),
        cmocka_unit_test(test_error),       cmocka_unit_test(test_json_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
