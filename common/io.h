/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/*
 * Whole reads and writes: short transfers and EINTR are continued. `name` is the file's name for
 * the message, which also tells the offset. Offsets and lengths are bytes.
 */

/*
 * Has the calling thread's reads tell when they are going to wait for a disk: io_read_at() and
 * io_read_some_at() then call `hook` before they ask for bytes that are not in memory already. NULL
 * ends that. Whoever is about to wait for another thread that may be reading calls io_waits().
 */
void io_on_wait(void (*hook)(void));
void io_waits(void);

/* Reads exactly `length` bytes; the end of the file before that is -ENODATA. */
int io_read_at(int fd, const char *name, void *buffer, size_t length, uint64_t offset,
               struct error *err);

/* Reads up to `length` bytes, less only at the end of the file. Returns how many, or -errno. */
ssize_t io_read_some_at(int fd, const char *name, void *buffer, size_t length, uint64_t offset,
                        struct error *err);

int io_write_at(int fd, const char *name, const void *buffer, size_t length, uint64_t offset,
                struct error *err);

/* To a pipe, a terminal, or a file's current position. */
int io_write(int fd, const char *name, const void *buffer, size_t length, struct error *err);

/* The whole of a small file (up to `limit` bytes, else -EFBIG), with a NUL behind it.
 * `*ret_buffer` is the caller's to free; ret_length may be NULL. */
int io_read_file(const char *path, size_t limit, char **ret_buffer, size_t *ret_length,
                 struct error *err);

/* Closes a descriptor that was written to; an error of close is an error. Never retried. */
int io_close_written(int fd, const char *name, struct error *err);
