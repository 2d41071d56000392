/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 reader on whole files: opened in all the ways there are, mapped and read. Input is the
 * image; beside it are the raw files that the seeds name, and a copy of itself.
 *
 * Promises that are checked: extents come in order, without gaps, within their files; zeros are
 * zeros and data is what the file has; the same bytes come out however they are read.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"
#include "image/bitmap.h"
#include "image/image.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/mutate.h"

enum {
    READ_MAX = 2 << 20, /* bytes of one image that are read */
    EXTENTS_MAX = 2000, /* of one image that are looked at */
    SNAPSHOTS_MAX = 3,
    FILE_PATTERN = 1 << 20,
};

static uint8_t whole[READ_MAX], again[READ_MAX];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_start();
    fuzz_write_pattern("base.raw", FILE_PATTERN);
    fuzz_write_pattern("data.raw", FILE_PATTERN);
    return 0;
}

/* Reads what an extent says is there, and compares with what image_read() gave. */
static void check_bytes(const struct image *image, const struct extent *extent, unsigned flags,
                        const uint8_t *bytes, size_t length)
{
    if (extent->kind == EXTENT_ZERO) {
        for (size_t i = 0; i < length; i++)
            if (bytes[i] != 0)
                fuzz_fail("byte %zu of a zero extent at %#llx is not zero (flags %u)", i,
                          (unsigned long long)extent->start, flags);
    } else if (extent->kind == EXTENT_DATA) {
        const struct image_file *file = image_file(image, extent->file);

        if (pread(file->fd, again, length, (off_t)extent->host_offset) != (ssize_t)length ||
            memcmp(again, bytes, length) != 0)
            fuzz_fail("data at %#llx is not what the file has", (unsigned long long)extent->start);
    }
}

static void check_extent(const struct image *image, const struct extent *extent, uint64_t at,
                         uint64_t length)
{
    if (extent->start != at || extent->length == 0 || extent->length > length)
        fuzz_fail("extent %#llx+%#llx at %#llx", (unsigned long long)extent->start,
                  (unsigned long long)extent->length, (unsigned long long)at);
    if (extent->kind == EXTENT_DATA &&
        (extent->file >= image_file_count(image) ||
         !range_within(extent->host_offset, extent->length, image_file(image, extent->file)->size)))
        fuzz_fail("extent %#llx lies outside of its file", (unsigned long long)at);
}

/* The map of all of it, and the bytes of the extents up to a limit. */
static void walk(struct image *image, unsigned flags, bool *ret_failed)
{
    uint64_t size = image_size(image), at = 0;
    size_t done = 0;
    struct error err = ERROR_INIT;
    struct extent extent;

    for (unsigned n = 0; at < size && n < EXTENTS_MAX; n++, at += extent.length) {
        int r = image_map(image, at, size - at, flags, &extent, &err);
        if (r < 0) {
            fuzz_expect_error(&err, r);
            *ret_failed = true;
            return;
        }
        check_extent(image, &extent, at, size - at);
        size_t length = (size_t)min_u64(extent.length, 65536);
        if (done + length > sizeof(whole))
            continue;
        r = image_read(image, at, whole, length, &err);
        if (r < 0) {
            fuzz_expect_error(&err, r);
            *ret_failed = true;
        } else {
            check_bytes(image, &extent, flags, whole, length);
        }
        done += length;
    }
}

/* What the image itself decides, whatever is below. */
static void walk_above(struct image *image)
{
    struct error err = ERROR_INIT;
    uint64_t start, end;

    for (uint64_t at = 0, n = 0; at < image_size(image) && n < EXTENTS_MAX; at = end, n++) {
        int r = image_next_above(image, 1, at, &start, &end, &err);
        if (r < 0) {
            fuzz_expect_error(&err, r);
            return;
        }
        if (start != UINT64_MAX && (start < at || end <= start || end > image_size(image)))
            fuzz_fail("the range %#llx to %#llx at %#llx", (unsigned long long)start,
                      (unsigned long long)end, (unsigned long long)at);
    }
}

/* All at once, and in odd pieces. */
static void read_twice(struct image *image)
{
    size_t size = (size_t)min_u64(image_size(image), sizeof(whole)), at = 0, step = 1;
    struct error err = ERROR_INIT;

    int r = image_read(image, 0, whole, size, &err);
    if (r < 0) {
        fuzz_expect_error(&err, r);
        return;
    }
    for (; at < size; at += step) {
        step = (size_t)min_u64(1 + (at * 2654435761u >> 7) % 40000, size - at);
        r = image_read(image, at, again, step, &err);
        if (r < 0)
            fuzz_fail("bytes at %zu can be read only together with others: %s", at,
                      error_message(&err));
        if (memcmp(again, whole + at, step) != 0)
            fuzz_fail("bytes at %zu are others when they are read alone", at);
    }
}

static void load_bitmaps(struct image *image)
{
    static const char *const names[] = {IMAGE_BITMAP_NAME, IMAGE_BITMAP_GENERATION_NAME,
                                        IMAGE_BITMAP_WITNESS_NAME};
    struct image_tracking *tracking;
    uint8_t generation[IMAGE_BITMAP_GENERATION_SIZE];
    struct error err = ERROR_INIT;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct image_bitmap_bits *bits;
        uint64_t start, end, at = 0;

        int r = image_bitmap_load(image, names[i], &bits, &err);
        if (r < 0) {
            fuzz_expect_error(&err, r);
            continue;
        }
        for (unsigned n = 0; n < EXTENTS_MAX && image_bitmap_next(bits, at, &start, &end); n++) {
            if (start < at || end <= start)
                fuzz_fail("bitmap range %#llx to %#llx at %#llx", (unsigned long long)start,
                          (unsigned long long)end, (unsigned long long)at);
            at = end;
        }
        if (i == 1)
            image_bitmap_generation(bits, generation);
        image_bitmap_free(bits);
    }
    int r = image_tracking_load(image, &tracking, &err);
    if (r < 0)
        fuzz_expect_error(&err, r);
    else
        image_tracking_free(tracking);
}

/* The strings of the header are strings. */
static size_t look_at_info(const struct image *image)
{
    const struct image_info *info;
    size_t sum = 0;

    for (unsigned depth = 0; (info = image_info(image, depth)) != NULL; depth++) {
        for (size_t i = 0; i < info->snapshot_count; i++)
            sum += strlen(info->snapshots[i].id) + strlen(info->snapshots[i].name);
        for (size_t i = 0; i < info->bitmap_count; i++)
            sum += strlen(info->bitmaps[i].name);
        sum += info->backing_file != NULL ? strlen(info->backing_file) : 0;
    }
    return sum;
}

static bool exercise(const struct image_options *options, char *ret_snapshots[SNAPSHOTS_MAX])
{
    struct error err = ERROR_INIT;
    struct image *image;
    bool failed = false;

    int r = image_open("image.qcow2", options, &image, &err);
    if (r < 0) {
        fuzz_expect_error(&err, r);
        return false;
    }
    (void)look_at_info(image);
    walk(image, 0, &failed);
    if (!failed)
        walk(image, IMAGE_MAP_HOLES, &failed);
    walk_above(image);
    read_twice(image);
    load_bitmaps(image);
    const struct image_info *info = image_info(image, 0);
    for (size_t i = 0; ret_snapshots != NULL && i < info->snapshot_count && i < SNAPSHOTS_MAX; i++)
        ret_snapshots[i] = strdup(info->snapshots[i].id);
    image_close(image);
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char copy[] = "copy.qcow2";
    char *snapshots[SNAPSHOTS_MAX] = {NULL};
    struct image_options options = {.format = "qcow2"};

    fuzz_write("image.qcow2", data, size);
    if (memmem(data, size, copy, sizeof(copy) - 1) != NULL)
        fuzz_write(copy, data, size);
    if (!exercise(&options, snapshots)) {
        options.force = true;
        (void)exercise(&options, snapshots);
    }
    for (size_t i = 0; i < SNAPSHOTS_MAX; i++) {
        options.snapshot = snapshots[i];
        if (snapshots[i] != NULL)
            (void)exercise(&options, NULL);
        free(snapshots[i]);
    }
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    struct mutator m = {.bytes = data,
                        .size = size,
                        .room = room,
                        .random = mutator_seed(seed),
                        .mutate_bytes = fuzz_mutate_bytes};

    qcow2_mutate(&m);
    return m.size;
}
