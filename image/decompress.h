/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "image/image.h"
#include "image/qcow2-format.h"

/* Decompressors' states and buffers, kept from one cluster to the next; for any number of threads,
 * each of which takes one while it decompresses. */
struct decompressor_pool;

int decompressor_pool_new(struct decompressor_pool **ret, struct error *err);
void decompressor_pool_free(struct decompressor_pool *pool);

/*
 * Reads up to `length` compressed bytes at `offset` of `file` (fewer if it ends before), and
 * decompresses exactly one cluster of `cluster_size` bytes from them. What follows them is ignored:
 * the format tells the length only in sectors.
 */
int decompress_cluster(struct decompressor_pool *pool, enum qcow2_compression compression,
                       const struct image_file *file, uint64_t offset, uint64_t length,
                       void *cluster, size_t cluster_size, struct error *err);
