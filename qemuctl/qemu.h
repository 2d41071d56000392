/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "common/error.h"
#include "qemuctl/argv.h"
#include "qemuctl/qmp.h"

/*
 * A QEMU process: its console, its QMP connection, its end.
 *
 * Nothing here blocks (except for qemu_free() and qemu_spawn(), shortly). The owner polls
 * qemu_fd(), together with whatever else it waits for, and calls qemu_dispatch() when that is
 * readable, until qemu_end() says that the process is gone.
 *
 * The owner ignores SIGPIPE. QEMU runs in a session of its own, so that the terminal's Ctrl-C
 * reaches only its owner, and is killed by the kernel when the thread that spawned it ends, however
 * that comes.
 */
struct qemu;

enum qemu_end {
    QEMU_RUNNING,
    QEMU_POWERED_OFF, /* by the guest */
    QEMU_RESET,       /* by the guest, which ends QEMU because of -no-reboot */
    QEMU_PANICKED,    /* the guest told QEMU so through a pvpanic device */
    QEMU_STOPPED,     /* after qemu_stop() or qemu_kill() */
    QEMU_QUIT,        /* somebody else told QEMU to end: by QMP or a signal it handles */
    QEMU_FAILED,      /* all else */
};

struct qemu_handlers {
    /* What the guest's console says. */
    void (*console)(const void *text, size_t length, void *arg);
    /* Each line of QEMU's stderr, NUL-terminated, without newline; may be NULL. */
    void (*message)(const char *line, void *arg);
    void *arg;
};

/* The descriptor that QEMU may be given, and its path, below which files are if it is a directory.
 */
#define QEMU_INHERITED_FD 3
#define QEMU_INHERITED "/proc/self/fd/3"

/*
 * Runs argv, to which the arguments of a QMP connection are added; argv's serial console must be
 * on stdin and stdout. `inherited` becomes QEMU_INHERITED_FD there, unless it is -1; it stays the
 * caller's. The error of a program that cannot be run is returned. *ret is freed with qemu_free().
 */
int qemu_spawn(const struct argv *argv, int inherited, const struct qemu_handlers *handlers,
               struct qemu **ret, struct error *err);

/* Kills the process if it still runs and waits for its end, but no longer than a few seconds: one
 * that hangs in the kernel is left to be reaped by init. */
void qemu_free(struct qemu *qemu);
DEFINE_CLEANUP(struct qemu, qemu_free);

/* The process's id, which is also its process group's and its session's. */
pid_t qemu_pid(const struct qemu *qemu);

/* Readable when there is something to dispatch. */
int qemu_fd(const struct qemu *qemu);

/* Takes what has come and calls the handlers. An error is about the supervision itself. */
int qemu_dispatch(struct qemu *qemu, struct error *err);

/* While paused, no console output is taken, and so the guest's output waits. */
void qemu_console_pause(struct qemu *qemu, bool paused);

/* Sends input to the console; returns how many of the bytes it had room for. */
size_t qemu_console_write(struct qemu *qemu, const void *bytes, size_t length);

/* For commands of one's own. */
struct qmp *qemu_qmp(struct qemu *qemu);

/* How the guest ended. After an end that is not QEMU_RUNNING no handler is called any more. */
enum qemu_end qemu_end(const struct qemu *qemu);

/* The end in words, behind "the guest" or "QEMU": valid as long as `qemu`. */
const char *qemu_end_text(const struct qemu *qemu);

/*
 * Once its guest has ended QEMU is told to quit if it does not by itself, and after five minutes
 * killed.
 *
 * Begins to stop the guest: asks it to power down and gives it `powerdown_ms` for that (0: does not
 * ask), then tells QEMU to quit, then kills it. Calling it again shortens what is under way, never
 * prolongs it.
 */
void qemu_stop(struct qemu *qemu, unsigned powerdown_ms);

/* Whether the guest was asked to power down, and still has time for that. */
bool qemu_powering_down(const struct qemu *qemu);

/* The longest that this takes behind `powerdown_ms`, unless QEMU hangs in the kernel. */
#define QEMU_STOP_MS 5000

/* Kills QEMU at once. */
void qemu_kill(struct qemu *qemu);
