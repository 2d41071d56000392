/* SPDX-License-Identifier: MIT */
#include "common/error.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text.h"

void error_clear(struct error *err)
{
    if (err == NULL)
        return;
    free(err->message);
    *err = ERROR_INIT;
}

__attribute__((format(printf, 4, 0))) static int
error_setv(struct error *err, int code, bool with_strerror, const char *format, va_list args)
{
    _cleanup_free_ char *text = NULL;
    char *message = NULL;
    char reason[128];

    assert(code > 0);
    if (err == NULL)
        return -code;
    text = text_vformat(format, args);
    if (text != NULL && with_strerror) {
        if (asprintf(&message, "%s: %s", text, strerror_r(code, reason, sizeof(reason))) < 0)
            message = NULL;
    } else {
        message = TAKE_PTR(text);
    }
    /* The old message may be among the arguments: it goes only now. */
    free(err->message);
    err->message = message;
    err->code = code;
    return -code;
}

int error_set(struct error *err, int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    int r = error_setv(err, code, false, format, args);
    va_end(args);
    return r;
}

int error_set_errno(struct error *err, int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    int r = error_setv(err, code, true, format, args);
    va_end(args);
    return r;
}

int error_prefix(struct error *err, const char *format, ...)
{
    _cleanup_free_ char *prefix = NULL;
    char *message = NULL;
    va_list args;

    if (err == NULL)
        return -EIO;
    assert(err->code > 0);
    va_start(args, format);
    prefix = text_vformat(format, args);
    va_end(args);
    if (prefix != NULL && asprintf(&message, "%s: %s", prefix, error_message(err)) >= 0) {
        free(err->message);
        err->message = message;
    }
    return -err->code;
}

void error_move(struct error *to, struct error *from)
{
    if (to == NULL) {
        error_clear(from);
        return;
    }
    free(to->message);
    *to = *from;
    *from = ERROR_INIT;
}

int error_oom(struct error *err)
{
    if (err != NULL) {
        free(err->message);
        err->message = NULL;
        err->code = ENOMEM;
    }
    return -ENOMEM;
}

const char *error_message(const struct error *err)
{
    if (err->message != NULL)
        return err->message;
    if (err->code == ENOMEM)
        return "out of memory";
    /* strerror() of a plain errno value is a constant string in glibc and musl. */
    return strerror(err->code);
}
