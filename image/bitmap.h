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
 * Two bitmaps serve change tracking (docs/change-tracking.md): "qverity", enabled, which QEMU sets
 * bits in; and "qverity-generation", disabled, whose bits are a random number that names the moment
 * of the last reset; its very last bit, always set, tells whether the disk was ever resized. Both
 * are made by qemu-img; a reset only rewrites their data clusters in place, so that nothing is ever
 * allocated here.
 */
#define IMAGE_BITMAP_NAME "qverity"
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

/*
 * Chooses `count` (more than 0) granules to be set on purpose, ascending: the disk's last one and
 * random others, all with bits in data clusters that the bitmap has, so that image_bitmap_reset()
 * takes them. -ENOTSUP: there are no such clusters.
 */
int image_bitmap_choose_canaries(const struct image_bitmap_bits *bits, uint64_t *canaries,
                                 uint32_t count, struct error *err);

/*
 * Resets change tracking: clears all bits but those of `canaries` (numbers of granules, ascending,
 * the disk's last one among them), and writes the generation. The image's locks are raised to a
 * writer's for the time; -EBUSY, with nothing changed, if somebody else has it open. Everything is
 * on disk when it returns. A crash on the way leaves the old generation with no bit fewer than
 * before, the new one with the canaries and maybe more, or one that is neither. The tree file that
 * names the new generation must be durable before. -ENOTSUP: a bitmap has no clusters of its own to
 * be rewritten in (qemu-img must make it anew).
 */
int image_bitmap_reset(struct image *image, const uint64_t *canaries, uint32_t canary_count,
                       const uint8_t generation[static IMAGE_BITMAP_GENERATION_SIZE],
                       struct error *err);
