/* SPDX-License-Identifier: MIT */
/*
 * A hash device that somebody else made, as `qverity verify --hash-device` reads it: the
 * superblock, the geometry that it asks for, and the tree. Input is the hash device; the data is
 * always the same.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"
#include "hashtree/hashtree.h"
#include "image/image.h"
#include "tests/fuzz/fuzz.h"

enum { DATA = 256 << 10 };

static struct image *image;

/* In place of liburing's: setting up a ring takes the kernel longer than all the rest. */
int io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
    (void)entries;
    (void)ring;
    (void)flags;
    return -ENOSYS;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const struct image_options options = {.format = "raw"};
    struct error err = ERROR_INIT;

    (void)argc;
    (void)argv;
    fuzz_start();
    fuzz_write_pattern("data.raw", DATA);
    if (image_open("data.raw", &options, &image, &err) < 0)
        fuzz_fail("%s", error_message(&err));
    return 0;
}

/* Whether a geometry makes sense by itself. */
static void check_geometry(const struct verity_params *params, const struct verity_geometry *g)
{
    uint64_t below = params->data_blocks;

    for (unsigned level = 0; level < g->levels; level++) {
        if (g->level_blocks[level] != div_round_up(below, UINT64_C(1) << g->fanout_bits))
            fuzz_fail("level %u has %llu blocks over %llu", level,
                      (unsigned long long)g->level_blocks[level], (unsigned long long)below);
        below = g->level_blocks[level];
        uint64_t end = (g->level_start[level] + below) * g->hash_block_size;
        if (end > g->device_size || end < g->hash_block_size)
            fuzz_fail("level %u ends behind the device", level);
    }
}

static void verify(const struct verity_params *params)
{
    static const struct hashtree_options options = {.threads = 1, .cache_size = 1 << 20};
    uint8_t root[VERITY_DIGEST_MAX] = {0};
    struct error err = ERROR_INIT;
    struct hashtree *tree;
    uint64_t faults;

    int r = hashtree_new(image, 0, params, &options, &tree, &err);
    if (r < 0) {
        fuzz_expect_error(&err, r);
        return;
    }
    int fd = open("hash", O_RDONLY | O_CLOEXEC);
    r = hashtree_verify(tree, root, fd, "hash", NULL, NULL, &faults, &err);
    if (r < 0)
        fuzz_expect_error(&err, r);
    else if (faults == 0)
        fuzz_fail("a root hash of zeros is verified");
    close(fd);
    hashtree_free(tree);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_INIT;
    struct verity_params params;
    struct verity_geometry geometry;

    fuzz_write("hash", data, size);
    int r = verity_superblock_load("hash", 0, &params, &err);
    if (r == 0)
        r = verity_geometry_init(&params, &geometry, &err);
    if (r < 0) {
        fuzz_expect_error(&err, r);
        return 0;
    }
    check_geometry(&params, &geometry);
    verify(&params);
    return 0;
}
