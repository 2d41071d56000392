/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 writer on overlays that somebody else made. Input is the overlay; it is one of
 * base.raw.
 *
 * The writer refuses what is not sound. What it takes must therefore hold what is written to it,
 * keep all other bytes, and be an image that the reader reads the same way afterwards.
 */
#include <stdbool.h>
#include <string.h>

#include "image/image.h"
#include "image/write.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/mutate.h"

enum { DISK = 1 << 20, OPERATIONS = 12 };

static uint8_t model[DISK], bytes[DISK];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_start();
    fuzz_write_pattern("base.raw", DISK);
    return 0;
}

/* Reads the whole disk. False if it cannot be read: an L2 entry that is wrong is found only then.
 */
static bool read_all(struct image *image, uint8_t *to)
{
    struct error err = ERROR_INIT;
    int r = image_read(image, 0, to, DISK, &err);

    if (r < 0)
        fuzz_expect_error(&err, r);
    return r == 0;
}

static void change(struct image *image, struct mutator *m)
{
    struct error err = ERROR_INIT;
    bool zeros = mutator_below(m, 3) == 0;
    size_t at = (size_t)mutator_below(m, DISK);
    size_t n = 1 + (size_t)mutator_below(m, mutator_below(m, 2) == 0 ? 512 : 200000);
    int r;

    if (n > DISK - at)
        n = DISK - at;
    memset(model + at, zeros ? 0 : (int)mutator_below(m, 256), n);
    r = zeros ? image_write_zeros(image, at, n, &err) : image_write(image, at, model + at, n, &err);
    if (r == 0 && mutator_below(m, 4) == 0)
        r = image_flush(image, &err);
    if (r < 0)
        fuzz_fail("a sound overlay cannot be written: %s", error_message(&err));
}

static void compare(struct image *image, const char *when)
{
    if (!read_all(image, bytes))
        fuzz_fail("%s it cannot be read", when);
    for (size_t i = 0; i < DISK; i++)
        if (bytes[i] != model[i])
            fuzz_fail("%s byte %zu is %u, not %u", when, i, bytes[i], model[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct image_options raw = {.format = "raw"};
    struct error err = ERROR_INIT;
    struct mutator m = {.random = mutator_seed(size)};
    struct image *image;

    fuzz_write("image.qcow2", data, size);
    int r = image_open_overlay("base.raw", &raw, "image.qcow2", &image, &err);
    if (r < 0) {
        fuzz_expect_error(&err, r);
        return 0;
    }
    if (!read_all(image, model))
        fuzz_fail("what was accepted cannot be read");
    for (unsigned i = 0; i < OPERATIONS; i++)
        change(image, &m);
    compare(image, "after writing");
    r = image_flush(image, &err);
    if (r < 0)
        fuzz_fail("flush: %s", error_message(&err));
    image_close(image);
    r = image_open("image.qcow2", NULL, &image, &err);
    if (r < 0)
        fuzz_fail("after closing it cannot be opened: %s", error_message(&err));
    compare(image, "after closing");
    image_close(image);
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
