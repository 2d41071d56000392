/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/version.h"

/* Each is older than the next. `dpkg --compare-versions` says the same of those that it takes,
 * where it does not split a revision off. */
static const char *const ordered[] = {
    "~~",
    "~~a",
    "~",
    "",
    "0.9",
    "1~rc1",
    "1~rc2",
    "1",
    "1a",
    "1+b",
    "1-1",
    "1.0.2",
    "1.0.10",
    "1.1",
    "5.10.0-9-amd64",
    "5.10.0-10-amd64",
    "5.10.0-10-cloud-amd64",
    "6.1.0-18-amd64",
    "6.1.0-18-cloud-amd64",
    "6.1.0-18-rt-amd64",
    "6.1.12",
    "6.10.0~rc3",
    "6.10.0",
    "6.10.0-1",
    "999999999999999999999999999998",
    "999999999999999999999999999999",
    "1000000000000000000000000000000",
    "a",
    "b",
    "ba",
    "b+",
};

static void test_order(void **state)
{
    const size_t count = sizeof(ordered) / sizeof(ordered[0]);

    (void)state;
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < count; j++) {
            const int order = version_compare(ordered[i], ordered[j]);

            if ((order < 0) != (i < j) || (order > 0) != (i > j))
                fail_msg("'%s' and '%s' give %d", ordered[i], ordered[j], order);
        }
    }
}

static void test_equal(void **state)
{
    static const char *const equal[][2] = {
        {"1.0", "1.00"}, {"", "0"}, {"1.", "1.0"}, {"a0", "a"}, {"007", "7"}};

    (void)state;
    for (size_t i = 0; i < sizeof(equal) / sizeof(equal[0]); i++) {
        assert_int_equal(version_compare(equal[i][0], equal[i][1]), 0);
        assert_int_equal(version_compare(equal[i][1], equal[i][0]), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_equal),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
