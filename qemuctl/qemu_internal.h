/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdint.h>

#include "qemuctl/qemu.h"

/* Private to qemu_spawn.c, which makes it, and qemu.c, which has the rest of its life. */

#define STDERR_KEPT 4096

/* STOP_ENDING: the guest has ended by itself, and QEMU is about to. */
enum stop_stage { STOP_NONE, STOP_ENDING, STOP_POWERDOWN, STOP_QUIT, STOP_KILL };

struct qemu {
    struct qemu_handlers handlers;
    char *program;
    pid_t pid;
    bool reaped;
    int status; /* of waitpid(), once reaped */
    int epoll, pidfd, timer;
    int console_in, console_out, messages; /* QEMU's stdin, stdout, stderr */
    bool paused;
    struct qmp *qmp;
    uint32_t qmp_events; /* that epoll watches */
    char kept[STDERR_KEPT + 1];
    size_t kept_length;
    size_t line_start;      /* in kept: of the line that is not complete */
    enum qemu_end shutdown; /* what the SHUTDOWN event said; QEMU_RUNNING: none came */
    enum stop_stage stop;
    bool asked; /* to stop, by the owner */
    enum qemu_end end;
    char *end_text;
};

/* For qemu->qmp; `arg` is the qemu. */
void qemu_on_event(const char *name, const json_t *data, void *arg);
