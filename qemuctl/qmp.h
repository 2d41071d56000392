/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>

#include "common/error.h"
#include "common/json.h"

/*
 * A client of QEMU's machine protocol (docs/interop/qmp-spec.rst of QEMU) over a stream socket
 * that never blocks. The capabilities are negotiated by itself; commands queued before that wait.
 * One thread only.
 */
struct qmp;

/* What happened to a command: `ret` is its result, or NULL with QEMU's `error` text. Also called
 * with both NULL when the connection ends before there is an answer. Borrowed, as in all
 * callbacks. */
typedef void (*qmp_reply)(json_t *ret, const char *error, void *arg);

struct qmp_handlers {
    /* An event, with its data (an object, or NULL); may be NULL. */
    void (*event)(const char *name, const json_t *data, void *arg);
    void *arg;
};

/* Takes `fd`, which gets O_NONBLOCK, in any case. *ret is freed with qmp_free(). */
int qmp_new(int fd, const struct qmp_handlers *handlers, struct qmp **ret, struct error *err);
void qmp_free(struct qmp *qmp);
DEFINE_CLEANUP(struct qmp, qmp_free);

/* The descriptor to poll, and whether for writing too; -1 once the connection has ended. */
int qmp_fd(const struct qmp *qmp);
bool qmp_wants_write(const struct qmp *qmp);

/* Whether QEMU has greeted and takes commands. */
bool qmp_ready(const struct qmp *qmp);

/* Reads and writes what can be at once and calls the handlers. The end of the connection is no
 * error; text that is not the protocol is (-EPROTO), and ends it. */
int qmp_dispatch(struct qmp *qmp, struct error *err);

/* Queues a command. `arguments` (an object, or NULL) is taken in any case; `reply` may be NULL. */
int qmp_execute(struct qmp *qmp, const char *command, json_t *arguments, qmp_reply reply, void *arg,
                struct error *err);
