/* SPDX-License-Identifier: MIT */
/*
 * What a QEMU, or what took its place, says on its QMP socket. Input is the bytes; the first one
 * chooses in which pieces they come.
 */
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "qemuctl/qmp.h"
#include "tests/fuzz/fuzz.h"

enum { QUESTIONS_MAX = 20 };

static unsigned replies, events;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_start();
    return 0;
}

static void take_event(const char *name, const json_t *data, void *arg)
{
    (void)arg;
    events += (unsigned)strlen(name) + (data != NULL);
}

static void take_reply(json_t *ret, const char *error, void *arg)
{
    (void)arg;
    if (ret != NULL && error != NULL)
        fuzz_fail("an answer that is an error, too");
    replies++;
}

static unsigned ask(struct qmp *qmp)
{
    struct error err = ERROR_INIT;

    if (qmp_execute(qmp, "query-status", NULL, take_reply, NULL, &err) == 0)
        return 1;
    error_clear(&err);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct qmp_handlers handlers = {.event = take_event};
    struct error err = ERROR_INIT;
    struct qmp *qmp;
    unsigned asked = 0;
    int ends[2], r = 0;

    if (size == 0)
        return 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0 ||
        qmp_new(ends[0], &handlers, &qmp, &err) < 0)
        fuzz_fail("socketpair");
    replies = 0;
    asked += ask(qmp);
    size_t step = 1 + (size_t)data[0] * data[0];
    for (size_t at = 1; at < size && r == 0 && qmp_fd(qmp) >= 0; at += step) {
        size_t n = size - at < step ? size - at : step;
        if (send(ends[1], data + at, n, MSG_DONTWAIT) != (ssize_t)n)
            break;
        r = qmp_dispatch(qmp, &err);
        if (r < 0)
            fuzz_expect_error(&err, r);
        if (asked < QUESTIONS_MAX)
            asked += ask(qmp);
    }
    close(ends[1]);
    if (r == 0 && qmp_dispatch(qmp, &err) < 0)
        error_clear(&err);
    qmp_free(qmp);
    if (replies != asked)
        fuzz_fail("%u questions, and %u answers", asked, replies);
    return 0;
}
