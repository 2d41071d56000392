/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/*
 * One image whose bytes libqcow delivers: QCOW version 1, and qcow2 images with AES encryption.
 * Only this one layer is read, without internal snapshots: the backing file that a header names is
 * never opened, and what is not allocated reads as zeros; qcow1_map() tells which ranges these are.
 * What libqcow is known to read wrongly is refused. Functions that take an open image may be called
 * from any number of threads at once.
 */
struct qcow1;

/*
 * Reads an image from `fd`, which stays the caller's and must stay open; `path` is for messages.
 * All that is read comes from this file, also what libqcow reads. An encrypted image needs
 * `password_file`, whose first line, without the newline, is the password; the format has no means
 * to tell a wrong one, which gives wrong bytes. An image without encryption ignores it, and it may
 * be NULL. *ret is closed with qcow1_close().
 */
int qcow1_open(int fd, const char *path, const char *password_file, struct qcow1 **ret,
               struct error *err);
void qcow1_close(struct qcow1 *qcow);
DEFINE_CLEANUP(struct qcow1, qcow1_close);

/* The virtual disk's size in bytes; a multiple of 512, at most INT64_MAX. */
uint64_t qcow1_size(const struct qcow1 *qcow);
uint64_t qcow1_cluster_size(const struct qcow1 *qcow); /* bytes */
unsigned qcow1_version(const struct qcow1 *qcow);      /* 1, 2 or 3 */
bool qcow1_encrypted(const struct qcow1 *qcow);

/* The backing file's name as the header has it, or NULL. Valid until qcow1_close(). */
const char *qcow1_backing_file(const struct qcow1 *qcow);

enum qcow1_kind {
    QCOW1_UNALLOCATED, /* the backing file's; zeros if there is none */
    QCOW1_ZERO,        /* zeros, without a byte stored */
    QCOW1_DATA,        /* qcow1_read() it */
};

/*
 * What is at `offset`, and for how many bytes that holds (*ret_length, at least 1, at most
 * `length`). More of the same kind may follow: one call looks at one L2 table at most. The range
 * must not be empty and must lie within qcow1_size().
 */
int qcow1_map(struct qcow1 *qcow, uint64_t offset, uint64_t length, enum qcow1_kind *ret_kind,
              uint64_t *ret_length, struct error *err);

/* Reads bytes; the range must lie within qcow1_size(). */
int qcow1_read(struct qcow1 *qcow, uint64_t offset, void *buffer, size_t length, struct error *err);
