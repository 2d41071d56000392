/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "image/image.h"

/*
 * Writing to an overlay: a qcow2 version 3 image on top of another, which is never touched. The
 * overlay and what is below it make one `struct image`, that all functions of image.h take; only
 * that what they tell holds until the next write of the range in question.
 *
 * A write is acknowledged when image_write() returns, and durable when a later image_flush() has
 * returned. A process that is killed at any moment leaves an overlay in which `qemu-img check`
 * finds no error but leaked clusters, and which holds all that was flushed. All functions may be
 * called from any number of threads at once; of writes that overlap, either may come out on top,
 * cluster by cluster.
 */

/*
 * Opens `overlay_path` for writing on top of the image at `path` (which `options` speak of). The
 * overlay is created if there is no such file, and reused if it is an overlay of that very file, of
 * its size, and of a kind that is written here; anything else is refused with the reason. It is
 * locked as QEMU locks an image that it writes to: -EBUSY if somebody else has it open.
 *
 * Of the image that comes of it, image_path() is the overlay's, and image_info() at depth 0 and
 * image_file() number 0 are the overlay, as it was when it was opened. Where image_map() said that
 * bytes are may still be read after they were written to or zeroed: that gives what the range had
 * at some moment, or zeros, but never the bytes of another range.
 *
 * image_close() flushes, and can only log what goes wrong: whoever wants to know calls
 * image_flush() before.
 */
int image_open_overlay(const char *path, const struct image_options *options,
                       const char *overlay_path, struct image **ret, struct error *err);

/* Whether image_write() may be called. */
bool image_writable(const struct image *image);

/* Writes bytes; the range must lie within image_size(). -ENOSPC, -EDQUOT, -EFBIG and -EIO as the
 * host file system has them; nothing that was acknowledged is lost then, and bytes outside the
 * range do not change. */
int image_write(struct image *image, uint64_t offset, const void *buffer, size_t length,
                struct error *err);

/* Makes bytes read as zeros: discard, punched holes and write-zeroes. Whole clusters become zero
 * clusters, whose space is given back to the host file system. Errors as image_write(). */
int image_write_zeros(struct image *image, uint64_t offset, uint64_t length, struct error *err);

/*
 * Makes everything acknowledged so far durable, and gives the space of clusters that were zeroed or
 * replaced back. After an error nothing is lost, and another attempt may succeed; only when the
 * host's fdatasync() failed, which may drop bytes, do all later flushes fail as well.
 */
int image_flush(struct image *image, struct error *err);
