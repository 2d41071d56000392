/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdint.h>

#include "image/image.h"
#include "image/partition.h"

/*
 * Calls `keep` for the ranges (bytes of the partition) of a FAT file system that are in use: the
 * reserved sectors, the tables, the root directory, and each cluster that the table says has an
 * owner. -EMEDIUMTYPE: it is no FAT that is understood here.
 */
int fat_used(struct image *image, const struct partition *partition,
             int (*keep)(void *arg, uint64_t start, uint64_t length, struct error *err), void *arg,
             struct error *err);
