/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "image/image.h"

/*
 * QEMU's persistent dirty bitmaps (docs/interop/qcow2.rst and bitmaps.rst of QEMU), read and reset
 * here. A bitmap has a bit for each granule of the virtual disk, set when something in it was
 * written.
 *
 * Three bitmaps serve change tracking (docs/change-tracking.md): "qverity" and "qverity-witness",
 * enabled, both of which QEMU sets bits in; and "qverity-generation", disabled, whose bits are a
 * random number that names the moment of the last reset; its very last bit, always set, tells
 * whether the disk was ever resized. All are made by qemu-img; a reset only rewrites their data
 * clusters in place, so that nothing is ever allocated here.
 */
#define IMAGE_BITMAP_NAME "qverity"
#define IMAGE_BITMAP_WITNESS_NAME "qverity-witness"
#define IMAGE_BITMAP_GENERATION_NAME "qverity-generation"
#define IMAGE_BITMAP_GENERATION_SIZE 16 /* bytes */
#define IMAGE_BITMAP_CANARIES 16
#define IMAGE_BITMAP_GRANULES_MIN 256

struct image_bitmap_bits;

/* -ENOTSUP, with the reason, if changes of this image cannot be tracked: not qcow2 version 3,
 * encrypted, with an external data file, opened at a snapshot or for writing. */
int image_bitmap_check_image(const struct image *image, struct error *err);

/*
 * Reads bitmap `name` of the image that was opened (no snapshot, no backing file). Fails, with a
 * message that says why: -ENOTSUP, see image_bitmap_check_image(); -ENOENT, no such bitmap;
 * -ESTALE, not to be trusted: the autoclear bit is not set, it is in use (QEMU did not end
 * cleanly), not enabled (but for the generation, which must not be), the disk was resized; -EFBIG,
 * more than 64 MiB of bits; -EINVAL, a damaged directory or table. *ret is freed with
 * image_bitmap_free().
 */
int image_bitmap_load(struct image *image, const char *name, struct image_bitmap_bits **ret,
                      struct error *err);
void image_bitmap_free(struct image_bitmap_bits *bits);
DEFINE_CLEANUP(struct image_bitmap_bits, image_bitmap_free);

uint64_t image_bitmap_granularity(const struct image_bitmap_bits *bits); /* bytes */
uint64_t image_bitmap_set_count(const struct image_bitmap_bits *bits);   /* granules */
uint64_t image_bitmap_count(const struct image_bitmap_bits *bits);       /* granules */

/* The first range of set bits at or behind byte `offset` of the disk (or that it lies in):
 * *ret_start is at least `offset`; *ret_end, exclusive, may lie behind the disk's end. False if
 * there is none. Safe from many threads at once. */
bool image_bitmap_next(const struct image_bitmap_bits *bits, uint64_t offset, uint64_t *ret_start,
                       uint64_t *ret_end);

/* The first IMAGE_BITMAP_GENERATION_SIZE bytes of bits. */
void image_bitmap_generation(const struct image_bitmap_bits *bits,
                             uint8_t generation[static IMAGE_BITMAP_GENERATION_SIZE]);

/* --- Change tracking --- */

/*
 * The granules that are set on purpose under a generation, ascending: numbers of granules of a disk
 * that has `granules` of them (IMAGE_BITMAP_GRANULES_MIN at least), one in each part of the disk
 * and its last one. In which of a bitmap's clusters their bits are is the same for every
 * generation, so that a reset finds clusters for the new ones where the old ones had theirs.
 */
void image_tracking_canaries(const uint8_t generation[static IMAGE_BITMAP_GENERATION_SIZE],
                             uint64_t granules, uint64_t cluster_size,
                             uint64_t canaries[static IMAGE_BITMAP_CANARIES]);

/* What the three bitmaps say together. */
struct image_tracking;

/*
 * Reads the three bitmaps. Fails as image_bitmap_load() does for any of them, and with -ESTALE if a
 * bit that was set on purpose is clear (the bitmap was cleared, or removed and added again), or if
 * they do not belong together. Success means: since the last reset, which the generation names, all
 * writes were recorded. *ret is freed with image_tracking_free().
 */
int image_tracking_load(struct image *image, struct image_tracking **ret, struct error *err);
void image_tracking_free(struct image_tracking *tracking);
DEFINE_CLEANUP(struct image_tracking, image_tracking_free);

/* Granules that are set in either bitmap. Valid as long as `tracking`. */
const struct image_bitmap_bits *image_tracking_bits(const struct image_tracking *tracking);

/* IMAGE_BITMAP_GENERATION_SIZE bytes. */
const uint8_t *image_tracking_generation(const struct image_tracking *tracking);

/* Whether nothing is set but what is on purpose. */
bool image_tracking_clean(const struct image_tracking *tracking);

/*
 * Resets change tracking: clears all bits but the new generation's canaries, and writes that
 * generation. The image's locks are raised to a writer's for the time; -EBUSY, with nothing
 * changed, if somebody else has it open. A crash on the way, or afterwards, leaves the old
 * generation with no bit fewer than before, the new one with its canaries and maybe more, or one
 * that is neither, or whose canaries are not all there. The tree file that names the new generation
 * must be durable before. -ENOTSUP: a bitmap has no clusters of its own to be rewritten in
 * (qemu-img must make it anew).
 */
int image_tracking_reset(struct image *image,
                         const uint8_t generation[static IMAGE_BITMAP_GENERATION_SIZE],
                         struct error *err);
