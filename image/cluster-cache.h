/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/*
 * A small bounded cache of decompressed clusters, shared by all layers of an image and all threads:
 * reads of parts of a cluster decompress it once. See cluster-cache.c.
 */
struct cluster_cache;

/* `cluster_size` is the largest that will be asked for. */
int cluster_cache_new(size_t cluster_size, struct cluster_cache **ret, struct error *err);
void cluster_cache_free(struct cluster_cache *cache);

/* Makes the whole cluster, `size` bytes. */
typedef int (*cluster_fill_fn)(void *context, uint64_t id, void *cluster, size_t size,
                               struct error *err);

/*
 * Copies `length` bytes from byte `first` on of the cluster `id` of `owner` (together they are its
 * key), whose size is `size`; makes it by `fill` if it is not there. Whoever asks for one that is
 * being made waits for it. Whole clusters are not put into the cache, but made in `buffer`: who
 * reads everything once would only throw out what others read twice.
 */
int cluster_cache_read(struct cluster_cache *cache, unsigned owner, uint64_t id, size_t size,
                       cluster_fill_fn fill, void *context, size_t first, void *buffer,
                       size_t length, struct error *err);
