/* SPDX-License-Identifier: MIT */
/*
 * Change tracking's bitmaps, by hand:
 *
 *     bitmap-tool dump IMAGE NAME      granularity, counts, and the ranges of set bits
 *     bitmap-tool generation IMAGE     in hex
 *     bitmap-tool reset IMAGE          with a random generation; prints it and its canaries
 *     bitmap-tool check IMAGE          whether the bitmaps are to be believed, clean or dirty
 *
 * With --pause, reset says "sync N" before each of its syncs, and waits for a line on standard
 * input.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/units.h"
#include "image/bitmap.h"

static bool pausing;

/* In the place of libc's. */
__attribute__((visibility("default"))) int fdatasync(int fd)
{
    static unsigned count;
    char line[16];

    if (pausing) {
        printf("sync %u\n", count++);
        fflush(stdout);
        if (fgets(line, sizeof(line), stdin) == NULL)
            exit(1);
    }
    return (int)syscall(SYS_fdatasync, fd);
}

static int dump(struct image *image, const char *name, struct error *err)
{
    _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *bits = NULL;
    uint64_t start, end;

    int r = image_bitmap_load(image, name, &bits, err);
    if (r < 0)
        return r;
    printf("granularity %" PRIu64 " set %" PRIu64 " of %" PRIu64 "\n",
           image_bitmap_granularity(bits), image_bitmap_set_count(bits), image_bitmap_count(bits));
    for (uint64_t at = 0; image_bitmap_next(bits, at, &start, &end); at = end)
        printf("%" PRIu64 " %" PRIu64 "\n", start, end - start);
    return 0;
}

static void print_generation(const uint8_t *generation)
{
    char hex[2 * IMAGE_BITMAP_GENERATION_SIZE + 1];

    hex_encode(generation, IMAGE_BITMAP_GENERATION_SIZE, hex);
    printf("generation %s\n", hex);
}

static int show_generation(struct image *image, struct error *err)
{
    _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *bits = NULL;
    uint8_t generation[IMAGE_BITMAP_GENERATION_SIZE];

    int r = image_bitmap_load(image, IMAGE_BITMAP_GENERATION_NAME, &bits, err);
    if (r < 0)
        return r;
    image_bitmap_generation(bits, generation);
    print_generation(generation);
    return 0;
}

static int reset(struct image *image, struct error *err)
{
    _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *bits = NULL;
    uint64_t canaries[IMAGE_BITMAP_CANARIES];
    uint8_t generation[IMAGE_BITMAP_GENERATION_SIZE];

    int r = image_bitmap_load(image, IMAGE_BITMAP_NAME, &bits, err);
    if (r < 0)
        return r;
    if (getrandom(generation, sizeof(generation), 0) != (ssize_t)sizeof(generation))
        return error_set_errno(err, errno, "getrandom");
    image_tracking_canaries(generation, image_bitmap_count(bits),
                            image_info(image, 0)->cluster_size, canaries);
    print_generation(generation);
    printf("canaries");
    for (unsigned i = 0; i < IMAGE_BITMAP_CANARIES; i++)
        printf(" %" PRIu64, canaries[i]);
    putchar('\n');
    fflush(stdout);
    return image_tracking_reset(image, generation, err);
}

/* Whether all three together are to be believed. */
static int check(struct image *image, struct error *err)
{
    _cleanup_(image_tracking_free_cleanup) struct image_tracking *tracking = NULL;

    int r = image_tracking_load(image, &tracking, err);
    if (r == 0)
        puts(image_tracking_clean(tracking) ? "clean" : "dirty");
    return r;
}

int main(int argc, char **argv)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = NULL;

    if (argc > 1 && strcmp(argv[1], "--pause") == 0) {
        pausing = true;
        argc--;
        argv++;
    }
    if (argc < 3) {
        fprintf(stderr, "usage: bitmap-tool [--pause] dump|generation|reset|check IMAGE [NAME]\n");
        return 2;
    }
    int r = image_open(argv[2], NULL, &image, &err);
    if (r == 0 && strcmp(argv[1], "dump") == 0 && argc == 4)
        r = dump(image, argv[3], &err);
    else if (r == 0 && strcmp(argv[1], "generation") == 0)
        r = show_generation(image, &err);
    else if (r == 0 && strcmp(argv[1], "check") == 0)
        r = check(image, &err);
    else if (r == 0)
        r = reset(image, &err);
    if (r < 0)
        fprintf(stderr, "%s: %s\n", strerror(-r), error_message(&err));
    return r < 0 ? 1 : 0;
}
