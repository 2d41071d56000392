/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/text.h"

static void test_printable(void **state)
{
    (void)state;
    static const struct {
        const char *text, *name, *line; /* NULL: as it is */
    } cases[] = {
        {"", NULL, NULL},
        {"plain", NULL, NULL},
        {"gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80", NULL, NULL},
        {"a\\x1b", "a\\\\x1b", NULL},
        {"a\tb", "a\\x09b", NULL},
        {"a\n\r\x1b[31m\x7f", "a\\x0a\\x0d\\x1b[31m\\x7f", "a\\x0a\\x0d\\x1b[31m\\x7f"},
        /* C1 controls, as a byte and in UTF-8 */
        {"\x9b", "\\x9b", "\\x9b"},
        {"\xc2\x9b"
         "2J",
         "\\xc2\\x9b2J", "\\xc2\\x9b2J"},
        /* what turns the direction, U+202A to U+202E and U+2066 to U+2069, and its marks */
        {"\xe2\x80\xaa", "\\xe2\\x80\\xaa", "\\xe2\\x80\\xaa"},
        {"exe.\xe2\x80\xaetxt", "exe.\\xe2\\x80\\xaetxt", "exe.\\xe2\\x80\\xaetxt"},
        {"\xe2\x81\xa6\xe2\x81\xa9", "\\xe2\\x81\\xa6\\xe2\\x81\\xa9",
         "\\xe2\\x81\\xa6\\xe2\\x81\\xa9"},
        {"\xd8\x9c", "\\xd8\\x9c", "\\xd8\\x9c"},
        {"\xe2\x80\x8f", "\\xe2\\x80\\x8f", "\\xe2\\x80\\x8f"},
        /* separators, what is invisible, tags */
        {"\xe2\x80\xa8", "\\xe2\\x80\\xa8", "\\xe2\\x80\\xa8"},
        {"\xc2\xad\xef\xbb\xbf", "\\xc2\\xad\\xef\\xbb\\xbf", "\\xc2\\xad\\xef\\xbb\\xbf"},
        {"\xf3\xa0\x81\xa1", "\\xf3\\xa0\\x81\\xa1", "\\xf3\\xa0\\x81\\xa1"},
        /* no UTF-8: alone, cut off, overlong, a surrogate, too large */
        {"a\xff", "a\\xff", "a\\xff"},
        {"\xe2\x82", "\\xe2\\x82", "\\xe2\\x82"},
        {"\xc0\x9b", "\\xc0\\x9b", "\\xc0\\x9b"},
        {"\xed\xa0\x80", "\\xed\\xa0\\x80", "\\xed\\xa0\\x80"},
        {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80", "\\xf4\\x90\\x80\\x80"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *const text = cases[i].text;
        const char *const expected = cases[i].line != NULL ? cases[i].line : text;
        _cleanup_free_ char *name = text_printable(text), *line = text_line(text);

        assert_string_equal(name, cases[i].name != NULL ? cases[i].name : text);
        assert_string_equal(line, expected);
        assert_int_equal(text_is_line(text), strcmp(text, expected) == 0);
        /* What was made fit for a terminal stays as it is within a message. */
        assert_true(text_is_line(name));
    }
}

static void test_utf8(void **state)
{
    (void)state;
    unsigned code = 0;

    assert_int_equal(text_utf8("\xf0\x9f\x98\x80", &code), 4);
    assert_int_equal(code, 0x1f600);
    assert_int_equal(text_utf8("\x7f", NULL), 1);
    assert_int_equal(text_utf8("\xe2\x82", &code), 0);
    assert_int_equal(code, 0x1f600);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_printable),
        cmocka_unit_test(test_utf8),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
