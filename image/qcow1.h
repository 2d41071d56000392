/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/*
 * QCOW version 1, and AES-encrypted QCOW version 1, 2 and 3: the images whose bytes libqcow
 * delivers. One layer only: an image with a backing file is refused (-EOPNOTSUPP), as is everything
 * else that libqcow is known to read wrongly. Internal snapshots cannot be read.
 *
 * The functions that take an open image may be called from any number of threads at once.
 */
struct qcow1;

/*
 * Opens an image for reading. Takes no locks: the caller does. An encrypted image needs
 * `password_file`, whose first line is the password; the format has no means to tell a wrong one,
 * so that reading then gives other bytes than were written. An unencrypted image ignores it, and it
 * may be NULL. *ret is closed with qcow1_close().
 */
int qcow1_open(const char *path, const char *password_file, struct qcow1 **ret, struct error *err);
void qcow1_close(struct qcow1 *qcow);
DEFINE_CLEANUP(struct qcow1, qcow1_close);

/* The virtual disk's size in bytes; a multiple of 512, at most INT64_MAX. */
uint64_t qcow1_size(const struct qcow1 *qcow);
uint64_t qcow1_cluster_size(const struct qcow1 *qcow); /* bytes */
unsigned qcow1_version(const struct qcow1 *qcow);      /* 1, 2 or 3 */
bool qcow1_encrypted(const struct qcow1 *qcow);

/*
 * Tells whether the bytes from `offset` on read as zeros because nothing is stored for them
 * (*ret_zero), and for how many bytes that holds (*ret_length, at least 1, at most `length`). The
 * next ones may be of the same kind: one call looks at one L2 table at most. The range must lie
 * within qcow1_size() and not be empty.
 */
int qcow1_map(struct qcow1 *qcow, uint64_t offset, uint64_t length, bool *ret_zero,
              uint64_t *ret_length, struct error *err);

/* Reads bytes; the range must lie within qcow1_size(). */
int qcow1_read(struct qcow1 *qcow, uint64_t offset, void *buffer, size_t length, struct error *err);
