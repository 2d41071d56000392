/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <termios.h>

#include "common/error.h"

/* Where a guest's console goes to, and where its keys come from. Nothing here blocks. */

/* --- A file, pipe or terminal to write to --- */

struct sink {
    int fd; /* -1: none */
    const char *name;
    bool written; /* fd is ours, and closing it is checked */
    bool socket;
    bool may_block; /* fd blocks: only short writes, and only after poll() */
    char *waiting;  /* what could not be written yet */
    size_t waiting_length, waiting_room;
};

#define SINK_INIT ((struct sink){.fd = -1})

void sink_clear(struct sink *sink);
DEFINE_CLEANUP_INPLACE(struct sink, sink_clear);
#define _cleanup_sink_ _cleanup_(sink_clear_cleanup)

/* For stdout. `name` must outlive the sink. */
int sink_open_stdout(struct sink *ret, const char *name, struct error *err);

/* For a file that is created or truncated. `path` must outlive the sink. */
int sink_open_file(struct sink *ret, const char *path, struct error *err);

/* Writes what can be written now and keeps the rest, in memory, as long as that may take. */
int sink_write(struct sink *sink, const void *bytes, size_t length, struct error *err);

/* Whether something waits: then poll the descriptor for writing and call sink_flush(). */
bool sink_waits(const struct sink *sink);
int sink_flush(struct sink *sink, struct error *err);

/* Closes what sink_open_file() opened; its error means that something may be lost. */
int sink_close(struct sink *sink, struct error *err);

/* --- The terminal that keys come from --- */

struct terminal {
    int fd; /* -1: none */
    struct termios saved;
    bool prefix; /* the last key was Ctrl-A */
};

#define TERMINAL_INIT ((struct terminal){.fd = -1})

/* Makes `fd` raw if it is a terminal that we are in the foreground of; else does nothing. */
void terminal_open(struct terminal *terminal, int fd);
void terminal_restore(struct terminal *terminal);
DEFINE_CLEANUP_INPLACE(struct terminal, terminal_restore);
#define _cleanup_terminal_ _cleanup_(terminal_restore_cleanup)

/*
 * What keys mean to the guest: writes at most `length` bytes to `ret_keys` and returns how many.
 * Ctrl-C, and Ctrl-A followed by x, set *ret_stop; Ctrl-A followed by c sends Ctrl-C, by a or
 * Ctrl-A sends Ctrl-A.
 */
size_t terminal_translate(struct terminal *terminal, const char *keys, size_t length,
                          char *ret_keys, bool *ret_stop);
