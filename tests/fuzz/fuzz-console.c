/* SPDX-License-Identifier: MIT */
/* What a guest writes to its console, in pieces whose lengths the first byte chooses. */
#include <string.h>

#include "qemuctl/until.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_start();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_INIT;
    struct until *until;
    bool matched = false, halted;
    size_t at = 1;

    if (size == 0)
        return 0;
    if (until_new("login: *$|x+y", &until, &err) < 0)
        fuzz_fail("%s", error_message(&err));
    size_t step = 1 + (size_t)data[0] * data[0];
    for (; at < size; at += step) {
        bool now = until_feed(until, data + at, size - at < step ? size - at : step);
        if (matched && !now)
            fuzz_fail("what has matched does so no longer");
        matched = now;
        if (strlen(until_line(until)) > UNTIL_LINE_MAX)
            fuzz_fail("a line is too long");
        const char *panic = until_panic(until, &halted);
        if (panic != NULL && strlen(panic) > UNTIL_LINE_MAX)
            fuzz_fail("a panic is too long");
    }
    (void)until_pause(until);
    until_free(until);
    return 0;
}
