/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "image/image.h"

/*
 * A bounded cache of slices of L2 tables, shared by all layers of an image and by all threads.
 * See l2-cache.c for how it works.
 */
struct l2_cache;

enum {
    L2_SLICE_BYTES_MAX = 4096,
    L2_SLICE_WORDS_MAX = L2_SLICE_BYTES_MAX / 8,
};

int l2_cache_new(struct l2_cache **ret, struct error *err);
void l2_cache_free(struct l2_cache *cache);

/*
 * Copies `count` words (in the machine's byte order), from word number `first` on, of the slice of
 * `slice_bytes` (a power of two from 512 to L2_SLICE_BYTES_MAX) that is at `offset` (a multiple of
 * slice_bytes, not 0) in `file`. `owner` (less than 512) tells the files of one image apart. The
 * table goes on for `behind` bytes (whole slices) after this one, which may be read ahead.
 */
int l2_cache_read(struct l2_cache *cache, unsigned owner, const struct image_file *file,
                  uint64_t offset, size_t slice_bytes, uint64_t behind, size_t first, size_t count,
                  uint64_t *words, struct error *err);
