/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "qemuctl/until.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const struct {
    const char *regex, *text;
    bool feed;  /* matches as the text comes */
    bool pause; /* at the latest when nothing follows */
} cases[] = {
    {"login:", "x login: ", true, true},
    {"login: $", "x login: ", false, true},
    {"login: $", "x login: root\n", false, false},
    {"login: $", "x login: \n", true, true},
    {"^done$", "done\n", true, true},
    {"^done$", "done\r\n", true, true},
    {"^done$", "not\rdone\r", true, true},
    {"^done$", "x\ndone", false, true},
    {"^done$", "not done\n", false, false},
    /* A line at a time. */
    {"one.*two", "one\ntwo\n", false, false},
    {"one.*two", "one\rtwo\n", false, false},
    {"^$", "a\r\nb\r\n", false, false},
    {"^$", "a\r\n\r\nb", true, true},
    /* POSIX extended. */
    {"(ready|up)[[:digit:]]{2}$", "is up42\n", true, true},
    {"a+b", "a+b aab", true, true},
    /* Escape sequences. */
    {"^  OK  $", "\x1b[0;32m  OK  \x1b[0m\n", true, true},
    {"^\\[  OK  \\] x$", "[\x1b[0;1;32m  OK  \x1b[0m] x\n", true, true},
    {"^ab$",
     "\x1b]0;title\x07"
     "ab\n",
     true, true},
    {"^ab$", "a\x1b]8;;http://x\x1b\\b\n", true, true},
    {"^ab$", "a\x1b(Bb\x1b=\n", true, true},
    {"^ab$", "a\x1bP1$r0m\x1b\\b\n", true, true},
    {"^ab$", "a\x1b[?25l\x1b[2Jb\x1b[K\r\n", true, true},
    {"^ab$", "a\x1b[1\x1b[mb\n", true, true},
    {"^ab$", "a\x1b\x1b[mb\n", true, true},
    {"^31mab$", "\x1b\n31mab\n", true, true},
    /* A string that never ends goes no further than its line. */
    {"^ab$", "\x1b]0;cut off\nab\n", true, true},
    /* Other control characters, a correction, bytes that are no text. */
    {"^ab$",
     "a\x07\x01\x7f"
     "b\n",
     true, true},
    {"^ab$", "ax\bb\n", true, true},
    {"^ab$", "\b\bab\n", true, true},
    {"^a\tb$", "a\tb\n", true, true},
    {"gr.+\xc3\x9f!", "gr\xc3\xbc\xc3\x9f!", true, true},
    {"^b$", "\xff\xfe\nb\n", true, true},
};

static void check(size_t i, size_t piece)
{
    _cleanup_(until_free_cleanup) struct until *until = NULL;
    const size_t length = strlen(cases[i].text);
    bool feed = false;

    assert_int_equal(until_new(cases[i].regex, &until, NULL), 0);
    for (size_t done = 0; done < length; done += piece)
        feed =
            until_feed(until, cases[i].text + done, length - done < piece ? length - done : piece);
    bool pause = until_pause(until);
    if (feed != cases[i].feed || pause != cases[i].pause)
        fail_msg("case %zu, '%s' in pieces of %zu: %d, %d", i, cases[i].regex, piece, feed, pause);
}

static void test_cases(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++)
        for (size_t piece = 1; piece <= strlen(cases[i].text); piece++)
            check(i, piece);
}

static void test_nul(void **state)
{
    (void)state;
    _cleanup_(until_free_cleanup) struct until *until = NULL;

    assert_int_equal(until_new("^ab$", &until, NULL), 0);
    assert_true(until_feed(until, "\0a\0b\n", 5));
}

/* Expressions that would take all memory are refused, and those at the limits are not. */
static void test_large(void **state)
{
    (void)state;
    static const struct {
        const char *regex;
        const char *message; /* NULL: it is taken */
    } large[] = {
        {"a{2000}", NULL},
        {"[]x[:digit:]]{1999}b", NULL},
        {"((a?){40}){50}", NULL},
        {"\\+\\{9999}[{9999}+]", NULL},
        {"a{2001}", "'a{2001}': its repetitions make it 2001 places long; the limit is 2000"},
        {"a{1000000}", "1000000 places"},
        {"a{0,2001}", "2001 places"},
        {"a{2000,}", "2001 places"},
        {"a{99999999999999999999}", "more than 4294967295 places"},
        {"[^]{[.].]]{3000}", "3000 places"},
        {"a{2000}b", "2001 places"},
        {"(ab{3}){501}", "2004 places"},
        {"(x(ab|c{10}){20}){30}", "7830 places"},
        {"((((((((((((a+)+)+)+)+)+)+)+)+)+)+)+)+", "8192 places"},
        {"(((((((a{100}){100}){100}){100}){100}){100}){100})", "more than 4294967295 places"},
    };
    char longest[UNTIL_REGEX_MAX + 2];

    for (size_t i = 0; i < COUNT(large); i++) {
        _cleanup_(until_free_cleanup) struct until *until = NULL;
        _cleanup_error_ struct error err = ERROR_INIT;
        int r = until_new(large[i].regex, &until, &err);

        if (large[i].message == NULL) {
            assert_int_equal(r, 0);
            continue;
        }
        assert_int_equal(r, -E2BIG);
        if (strstr(error_message(&err), large[i].message) == NULL)
            fail_msg("%s: %s", large[i].regex, error_message(&err));
    }

    _cleanup_(until_free_cleanup) struct until *until = NULL;
    _cleanup_error_ struct error err = ERROR_INIT;
    memset(longest, '(', UNTIL_REGEX_MAX + 1);
    longest[UNTIL_REGEX_MAX + 1] = '\0';
    assert_int_equal(until_new(longest, &until, &err), -E2BIG);
    assert_string_equal(error_message(&err), "an expression of 1001 bytes is longer than 1000");
    longest[UNTIL_REGEX_MAX] = '\0';
    assert_int_equal(until_new(longest, &until, &err), -EINVAL);
    memset(longest, 'x', UNTIL_REGEX_MAX);
    assert_int_equal(until_new(longest, &until, &err), 0);
}

static void test_bad_regex(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;
    struct until *until = NULL;

    assert_int_equal(until_new("(x", &until, &err), -EINVAL);
    assert_non_null(strstr(error_message(&err), "'(x'"));
    assert_null(until);
}

/* Lines of any length take the same memory; what is within reach of a cut is found. */
static void test_long_lines(void **state)
{
    (void)state;
    _cleanup_free_ char *text = malloc(100 * UNTIL_LINE_MAX);

    assert_non_null(text);
    memset(text, 'x', 100 * UNTIL_LINE_MAX);
    for (size_t at = UNTIL_LINE_MAX - 8; at < UNTIL_LINE_MAX + 8; at++) {
        _cleanup_(until_free_cleanup) struct until *until = NULL;
        assert_int_equal(until_new("needle", &until, NULL), 0);
        assert_false(until_feed(until, text, at));
        assert_true(until_feed(until, "needle", 6));
    }

    _cleanup_(until_free_cleanup) struct until *until = NULL;
    assert_int_equal(until_new("^xx$|^xy", &until, NULL), 0);
    assert_false(until_feed(until, text, 100 * UNTIL_LINE_MAX));
    /* The line does not begin where it was cut. */
    assert_false(until_feed(until, "y", 1));
    assert_false(until_pause(until));
    assert_true(until_feed(until, "\nxy", 3));
}

static void test_escape_is_bounded(void **state)
{
    (void)state;
    _cleanup_(until_free_cleanup) struct until *until = NULL;

    assert_int_equal(until_new("needle", &until, NULL), 0);
    assert_false(until_feed(until, "\x1b[", 2));
    for (int i = 0; i < 10000; i++)
        assert_false(until_feed(until, "0", 1));
    assert_true(until_feed(until, "needle", 6));
}

static void test_last_line(void **state)
{
    (void)state;
    _cleanup_(until_free_cleanup) struct until *until = NULL;

    assert_int_equal(until_new(NULL, &until, NULL), 0);
    assert_string_equal(until_line(until), "");
    static const char text[] = "one\ntwo \x1b[1mthree\r\n  \r\n\n";
    assert_false(until_feed(until, text, sizeof(text) - 1));
    assert_string_equal(until_line(until), "two three");
    assert_false(until_feed(until, "fo", 2));
    assert_string_equal(until_line(until), "fo");
    assert_false(until_pause(until));
}

static void test_panic(void **state)
{
    (void)state;
    static const struct {
        const char *text, *panic;
        bool halted;
    } panics[] = {
        {"[    2.599078] Kernel panic - not syncing: VFS: x\r\n",
         "Kernel panic - not syncing: VFS: x", false},
        {"[    2.5][    T1] Kernel panic - not syncing: y\n", "Kernel panic - not syncing: y",
         false},
        {"login: [    2.5] Kernel panic - not syncing: y\n", "Kernel panic - not syncing: y",
         false},
        {"[ 2.5] Kernel panic - not syncing: y\n[ 2.6] CPU: 0\n"
         "[ 2.7] ---[ end Kernel panic - not syncing: y ]---\n",
         "Kernel panic - not syncing: y", true},
        {"Kernel panic - not syncing: y", NULL, false},
        {"Kernel panic\n - not syncing: y\n", NULL, false},
        {"---[ end trace 0 ]---\n", NULL, false},
        {"", NULL, false},
    };

    for (size_t i = 0; i < COUNT(panics); i++) {
        _cleanup_(until_free_cleanup) struct until *until = NULL;
        bool halted;
        assert_int_equal(until_new(NULL, &until, NULL), 0);
        until_feed(until, panics[i].text, strlen(panics[i].text));
        if (panics[i].panic == NULL)
            assert_null(until_panic(until, &halted));
        else
            assert_string_equal(until_panic(until, &halted), panics[i].panic);
        assert_int_equal(halted, panics[i].halted);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),      cmocka_unit_test(test_nul),
        cmocka_unit_test(test_bad_regex),  cmocka_unit_test(test_large),
        cmocka_unit_test(test_long_lines), cmocka_unit_test(test_escape_is_bounded),
        cmocka_unit_test(test_last_line),  cmocka_unit_test(test_panic),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
