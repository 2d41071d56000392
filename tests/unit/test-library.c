/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/library.h"

/* A library that is certainly there. */
#define SONAME "libc.so.6"

static long (*labs_of_library)(long);
static void (*missing)(void);

static void load_fails(struct library *library, int code, const char *message)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    assert_int_equal(library_load(library, &err), -code);
    assert_int_equal(err.code, code);
    assert_non_null(strstr(error_message(&err), message));
}

static void test_loads(void **state)
{
    const struct library_function functions[] = {{"labs", &labs_of_library}};
    struct library library = {.soname = SONAME, .functions = functions, .count = 1};
    _cleanup_error_ struct error err = ERROR_INIT;

    (void)state;
    for (int i = 0; i < 2; i++)
        assert_int_equal(library_load(&library, &err), 0);
    assert_int_equal(labs_of_library(-7), 7);
}

/* The first failure stays, and is told each time. */
static void test_no_library(void **state)
{
    struct library library = {.soname = "libof-nothing.so.0"};

    (void)state;
    load_fails(&library, ELIBACC, "libof-nothing.so.0");
    library.soname = SONAME;
    load_fails(&library, ELIBACC, "libof-nothing.so.0");
    free(library.why_not);
}

static void test_no_function(void **state)
{
    const struct library_function functions[] = {{"labs", &labs_of_library},
                                                 {"no_such_function", &missing}};
    struct library library = {.soname = SONAME, .functions = functions, .count = 2};

    (void)state;
    for (int i = 0; i < 2; i++)
        load_fails(&library, ENOSYS, "the library libc.so.6 has no function no_such_function");
    assert_null(missing);
    free(library.why_not);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loads),
        cmocka_unit_test(test_no_library),
        cmocka_unit_test(test_no_function),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
