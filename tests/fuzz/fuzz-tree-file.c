/* SPDX-License-Identifier: MIT */
/*
 * Tree files. Input is the file; mutations get right checksums, most of the time. Each input is
 * used three times: as it is; as one of the image that is there (its identity is written into the
 * header); and as one that has the right root hash as well, so that only nodes may be wrong.
 *
 * Only a header that claims to be of this image, unchanged, may decide which root hash comes out.
 * With the right root hash, the whole hash device is right, whatever nodes the file has.
 */
#include <errno.h>
#include <liburing.h>
#include <openssl/sha.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "hashtree/hashtree.h"
#include "hashtree/tree-file.h"
#include "image/image.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/mutate.h"

enum { DATA = 1 << 20, SLOT = 16384, INPUT_MAX = 1 << 20 };

static struct image *image;
static uint8_t true_root[VERITY_DIGEST_MAX];
static uint8_t *true_device, *device;
static size_t device_size;

static struct hashtree *new_tree(void)
{
    static const struct hashtree_options options = {.threads = 1, .cache_size = 1 << 20};
    struct error err = ERROR_INIT;
    struct verity_params params;
    struct hashtree *tree;

    verity_params_init(&params);
    params.data_blocks = DATA / params.data_block_size;
    if (hashtree_new(image, 0, &params, &options, &tree, &err) < 0)
        fuzz_fail("%s", error_message(&err));
    return tree;
}

/* In place of liburing's: setting up a ring takes the kernel longer than all the rest. */
int io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
    (void)entries;
    (void)ring;
    (void)flags;
    return -ENOSYS;
}

/* --- What the input does not know: where this image is --- */

/* Offsets in a slot of version 2, as docs/tree-file.md has them. */
enum {
    AT_FLAGS = 8 + 8 + 8,
    AT_ROOT = AT_FLAGS + 8 + 32 + 5 * 8 + 256 + 8,
    AT_VIEW = AT_ROOT + 64 + 8,
    AT_BASE = AT_VIEW + 256,
    AT_FILE_COUNT = AT_BASE + 1024 + 8 + 16 + 8 + 32,
    AT_FILES = AT_FILE_COUNT + 8,
    SETTLED = 1 << 1,
};

static void put_number(uint8_t *slot, size_t at, uint64_t n)
{
    for (unsigned i = 0; i < 8; i++)
        slot[at + i] = (uint8_t)(n >> (8 * i));
}

static void sum_slots(uint8_t *data, size_t size)
{
    for (size_t at = 0; at + SLOT <= size && at < 2 * SLOT; at += SLOT)
        SHA256(data + at, SLOT - SHA256_DIGEST_LENGTH, data + at + SLOT - SHA256_DIGEST_LENGTH);
}

static void claim_image(uint8_t *data, size_t size, bool root)
{
    const struct stat *st = &image_file(image, 0)->stat;
    const uint64_t numbers[] = {st->st_dev,
                                st->st_ino,
                                (uint64_t)st->st_size,
                                (uint64_t)st->st_mtim.tv_sec,
                                (uint64_t)st->st_mtim.tv_nsec,
                                (uint64_t)st->st_ctim.tv_sec,
                                (uint64_t)st->st_ctim.tv_nsec};

    for (size_t at = 0; at + SLOT <= size && at < 2 * SLOT; at += SLOT) {
        data[at + AT_FLAGS] |= SETTLED;
        put_number(data + at, AT_FILE_COUNT, 1);
        for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
            put_number(data + at, AT_FILES + 8 * i, numbers[i]);
        if (root)
            memcpy(data + at + AT_ROOT, true_root, SHA256_DIGEST_LENGTH);
    }
    sum_slots(data, size);
}

/* That the offsets are still right: a tree file of other files than ours is one of ours then. */
static void check_claim(void)
{
    const struct hashtree_file_options options = {.path = "tree"};
    struct hashtree *tree = new_tree();
    uint8_t root[VERITY_DIGEST_MAX], *bytes;
    struct error err = ERROR_INIT;
    size_t size;
    char *text;

    if (hashtree_keep(tree, &options, &err) < 0 || hashtree_root(tree, root, &err) < 0)
        fuzz_fail("%s", error_message(&err));
    hashtree_free(tree);
    if (io_read_file("tree", INPUT_MAX, &text, &size, &err) < 0)
        fuzz_fail("%s", error_message(&err));
    bytes = (uint8_t *)text;
    for (size_t at = 0; at < 2 * SLOT; at += SLOT) {
        bytes[at + AT_FLAGS] = 0;
        memset(bytes + at + AT_FILE_COUNT, 0, 64);
    }
    claim_image(bytes, size, false);
    fuzz_write("tree", bytes, size);
    free(bytes);
    tree = new_tree();
    if (hashtree_keep(tree, &options, &err) < 0)
        fuzz_fail("%s", error_message(&err));
    if (!hashtree_root_known(tree))
        fuzz_fail("the layout of tree files is another");
    hashtree_free(tree);
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
    struct hashtree *tree = new_tree();
    device_size = (size_t)hashtree_geometry(tree)->device_size;
    true_device = malloc(device_size);
    device = malloc(device_size);
    if (hashtree_root(tree, true_root, &err) < 0 ||
        hashtree_read(tree, 0, true_device, device_size, &err) < 0)
        fuzz_fail("%s", error_message(&err));
    hashtree_free(tree);
    check_claim();
    return 0;
}

/* Every node of a file that can be opened, and of those below it. */
static void look_at_file(void)
{
    struct error err = ERROR_INIT;
    struct tree_file *file;
    struct verity_geometry geometry;

    int r = tree_file_open("tree", NULL, &file, &err);
    if (r < 0) {
        fuzz_expect_error(&err, r);
        return;
    }
    for (struct tree_file *f = file; f != NULL; f = tree_file_below(f)) {
        if (verity_geometry_init(&tree_file_header(f)->params, &geometry, NULL) < 0)
            fuzz_fail("a header without a geometry");
        uint8_t *block = malloc(geometry.hash_block_size);
        for (unsigned level = 0; level < geometry.levels; level++) {
            (void)tree_file_read(f, level, 0, block);
            (void)tree_file_read(f, level, geometry.level_blocks[level] - 1, block);
        }
        free(block);
    }
    tree_file_close(file);
}

static void use_file(bool may_lie)
{
    struct hashtree_file_options options = {.path = "tree"};
    struct hashtree *tree = new_tree();
    uint8_t root[VERITY_DIGEST_MAX];
    struct error err = ERROR_INIT;

    if (hashtree_keep(tree, &options, &err) < 0)
        fuzz_fail("%s", error_message(&err));
    bool believed = hashtree_root_known(tree);
    if (hashtree_root(tree, root, &err) < 0)
        fuzz_fail("root: %s", error_message(&err));
    if (!(may_lie && believed)) {
        if (memcmp(root, true_root, SHA256_DIGEST_LENGTH) != 0)
            fuzz_fail("a wrong root hash");
        if (hashtree_read(tree, 0, device, device_size, &err) < 0)
            fuzz_fail("hash device: %s", error_message(&err));
        if (memcmp(device, true_device, device_size) != 0)
            fuzz_fail("a wrong hash device");
    } else if (hashtree_read(tree, 0, device, device_size, &err) < 0) {
        error_clear(&err);
    }
    hashtree_free(tree);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t copy[INPUT_MAX];

    size = size < sizeof(copy) ? size : sizeof(copy);
    memcpy(copy, data, size);
    for (unsigned round = 0; round < 3; round++) {
        if (round > 0)
            claim_image(copy, size, round == 2);
        fuzz_write("tree", copy, size);
        look_at_file();
        use_file(round == 1);
    }
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    struct mutator m = {.random = mutator_seed(seed)};

    if (size > 2 * SLOT && mutator_below(&m, 2) == 0) {
        /* Within what the header has, or a node. */
        size_t at = (size_t)mutator_below(&m, mutator_below(&m, 3) == 0 ? size - 64 : 2600);
        fuzz_mutate_bytes(&m, data + at, 1 + (size_t)mutator_below(&m, 64));
    } else {
        size = LLVMFuzzerMutate(data, size, room);
    }
    if (mutator_below(&m, 8) != 0)
        sum_slots(data, size);
    return size;
}
