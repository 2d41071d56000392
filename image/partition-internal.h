/* SPDX-License-Identifier: MIT */
#pragma once

#include "common/bytes.h"
#include "image/partition.h"

/* What partition.c, partition-copy.c and partition-check.c share; partition.c tells how it works.
 */

enum { PARTITION_COUNT_MAX = 256 }; /* Linux has numbers for no more */

/*
 * Makes a sparse file in memory of `size` bytes that holds what libblkid looks at of the range from
 * `start` on: its beginning, its end, and what a file system there leads to. *ret_fd is the
 * caller's.
 */
int partition_copy(struct image *image, uint64_t start, uint64_t size, int *ret_fd,
                   struct error *err);

/* Copies `length` bytes at `offset` of the range into its file, too. They must lie within it. */
int partition_copy_more(struct image *image, uint64_t start, int fd, uint64_t offset,
                        uint64_t length, struct error *err);

/*
 * Checks a disk's GPT, if its MBR tells that there is one, and completes the copy of the disk in
 * `fd` by the GPT's entries. What libblkid must not see is taken out of the copy. Warnings go to
 * the log. *ret_sector_size is 512 or 4096 bytes, or 0 if there is no GPT.
 */
int partition_check_gpt(struct image *image, int fd, unsigned *ret_sector_size, struct error *err);

/* Checks a disk's MBR, which must be a partition table, and completes the copy by the tables of the
 * logical partitions. */
int partition_check_mbr(struct image *image, int fd, struct error *err);
