/* SPDX-License-Identifier: MIT */
/*
 * The tree file: what is written comes back, both slots, lists of granules, who may write; and one
 * bit wrong at every byte of one, with which the right root hash must come out by every proof that
 * takes nodes or a root from it.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/checked.h"
#include "hashtree/hashtree.h"
#include "hashtree/tree-header.h"
#include "image/write.h"

enum {
    BLOCK = 512,
    BLOCKS = 20,
    NODES_OFFSET = 2 * SLOT_SIZE,
};

static char directory[64];

/* In memory if possible: thousands of files are written and synced. */
static int make_directory(void **state)
{
    static const char *const places[] = {"/dev/shm", "/tmp"};

    (void)state;
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        snprintf(directory, sizeof(directory), "%s/qverity-test-tree-file.XXXXXX", places[i]);
        if (mkdtemp(directory) != NULL)
            return chdir(directory);
    }
    return -1;
}

static int remove_directory(void **state)
{
    static const char *const names[] = {"t",           "t2",         "base",
                                        "base.qvtree", "over.qcow2", "over.qcow2.qvtree"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        unlink(names[i]);
    return chdir("/") < 0 || rmdir(directory) < 0 ? -1 : 0;
}

static uint64_t next_random(void)
{
    static uint64_t x = 88172645463325252;

    x ^= x << 13;
    x ^= x >> 7;
    return x ^= x << 17;
}

static void fill_random(void *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        ((uint8_t *)bytes)[i] = (uint8_t)next_random();
}

/* --- Files --- */

static void write_file(const char *path, const uint8_t *bytes, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, size, 0), size);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    close(fd);
}

static uint8_t *read_file(const char *path, size_t *ret_size)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    assert_int_equal(fstat(fd, &st), 0);
    uint8_t *bytes = malloc((size_t)st.st_size);
    assert_int_equal(pread(fd, bytes, (size_t)st.st_size, 0), st.st_size);
    close(fd);
    *ret_size = (size_t)st.st_size;
    return bytes;
}

static void flip_byte(const char *path, off_t at)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t byte;

    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 0x40;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

static void make_params(struct verity_params *ret)
{
    verity_params_init(ret);
    ret->data_block_size = ret->hash_block_size = BLOCK;
    ret->data_blocks = BLOCKS;
}

/* --- Headers --- */

static void random_header(struct tree_header *h)
{
    memset(h, 0, sizeof(*h));
    h->lean = next_random() % 2;
    h->settled = next_random() % 2;
    make_params(&h->params);
    fill_random(h->params.salt, sizeof(h->params.salt));
    h->params.salt_size = next_random() % (VERITY_SALT_MAX + 1);
    h->start = next_random();
    fill_random(h->root, sizeof(h->root));
    h->zero_blocks = next_random();
    strcpy(h->view, "some view");
    h->file_count = (uint32_t)(next_random() % (TREE_FILE_FILES_MAX + 1));
    for (uint32_t i = 0; i < h->file_count; i++)
        fill_random(&h->files[i], sizeof(h->files[i]));
    h->granularity = next_random();
    fill_random(h->bitmap_generation, sizeof(h->bitmap_generation));
}

static void assert_same_header(const struct tree_header *a, const struct tree_header *b)
{
    assert_int_equal(a->lean, b->lean);
    assert_int_equal(a->settled, b->settled);
    assert_true(verity_same_tree(&a->params, &b->params));
    assert_int_equal(a->start, b->start);
    assert_memory_equal(a->root, b->root, sizeof(a->root));
    assert_int_equal(a->zero_blocks, b->zero_blocks);
    assert_string_equal(a->view, b->view);
    assert_string_equal(a->base, b->base);
    assert_int_equal(a->file_count, b->file_count);
    for (uint32_t i = 0; i < a->file_count; i++) {
        const struct tree_file_identity *x = &a->files[i], *y = &b->files[i];
        assert_true(x->device == y->device && x->inode == y->inode && x->size == y->size);
        assert_true(x->mtime.tv_sec == y->mtime.tv_sec && x->mtime.tv_nsec == y->mtime.tv_nsec);
        assert_true(x->ctime.tv_sec == y->ctime.tv_sec && x->ctime.tv_nsec == y->ctime.tv_nsec);
    }
    assert_int_equal(a->granularity, b->granularity);
    assert_memory_equal(a->bitmap_generation, b->bitmap_generation, sizeof(a->bitmap_generation));
    assert_int_equal(a->granules_count, b->granules_count);
    assert_memory_equal(a->granules_digest, b->granules_digest, sizeof(a->granules_digest));
}

static void test_headers(void **state)
{
    uint8_t slot[SLOT_SIZE];
    struct tree_header header, decoded;

    (void)state;
    for (int n = 0; n < 200; n++) {
        random_header(&header);
        tree_header_encode(&header, slot);
        assert_null(tree_header_decode(slot, &decoded));
        assert_same_header(&header, &decoded);
        slot[next_random() % SLOT_SIZE] ^= (uint8_t)(1 << n % 8);
        assert_non_null(tree_header_decode(slot, &decoded));
    }
    tree_header_encode(&header, slot);
    slot[8]++;
    assert_string_equal(tree_header_decode(slot, &decoded),
                        "a version of tree file that this program does not know");
}

/* --- Tree files --- */

static struct tree_writer *new_writer(const struct tree_header *header)
{
    struct tree_writer *writer = NULL;

    assert_int_equal(tree_writer_new("t", header, &writer, NULL), 0);
    return writer;
}

static struct tree_file *open_file(void)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct tree_file *file = NULL;

    if (tree_file_open("t", NULL, &file, &err) < 0)
        fail_msg("%s", error_message(&err));
    return file;
}

static void test_slots(void **state)
{
    struct tree_header header, other;
    uint8_t block[BLOCK], read[BLOCK];

    (void)state;
    unlink("t");
    random_header(&header);
    header.lean = false;
    struct tree_writer *writer = new_writer(&header);
    fill_random(block, sizeof(block));
    assert_int_equal(tree_writer_nodes(writer, 0, 1, 1, block, NULL), 0);
    assert_int_equal(access("t", F_OK), -1);
    assert_int_equal(tree_writer_commit(writer, &header, true, NULL), 0);
    tree_writer_free(writer);

    _cleanup_tree_file_ struct tree_file *file = open_file();
    assert_same_header(&header, tree_file_header(file));
    assert_true(tree_file_read(file, 0, 1, read));
    assert_memory_equal(block, read, sizeof(block));
    assert_false(tree_file_read(file, 0, 13, read));
    assert_false(tree_file_read(file, 9, 0, read));

    /* In place; one at a time, and only into the file that was looked at. */
    struct tree_writer *second = NULL;
    random_header(&other);
    assert_int_equal(tree_writer_update(file, &other, &writer, NULL), 0);
    assert_int_equal(tree_writer_update(file, &other, &second, NULL), -EBUSY);
    assert_int_equal(tree_writer_commit(writer, &other, false, NULL), 0);
    tree_writer_free(writer);
    assert_int_equal(tree_writer_update(file, &other, &second, NULL), -EBUSY);
    _cleanup_tree_file_ struct tree_file *updated = open_file();
    assert_same_header(&other, tree_file_header(updated));

    /* The other slot is there still. */
    flip_byte("t", 2000);
    _cleanup_tree_file_ struct tree_file *older = open_file();
    assert_same_header(&header, tree_file_header(older));
    assert_int_equal(truncate("t", 100), 0);
    struct tree_file *none = NULL;
    assert_int_equal(tree_file_open("t", NULL, &none, NULL), -EINVAL);
    assert_null(none);
}

static void test_lean(void **state)
{
    struct tree_header header;
    uint8_t block[BLOCK] = {1};
    struct stat st;

    (void)state;
    unlink("t");
    random_header(&header);
    header.lean = true;
    struct tree_writer *writer = new_writer(&header);
    assert_int_equal(tree_writer_nodes(writer, 0, 1, 1, block, NULL), 0);
    assert_int_equal(tree_writer_nodes(writer, 1, 0, 1, block, NULL), 0);
    struct tree_file_granules granules = {3, 4};
    assert_int_equal(tree_writer_granules(writer, &granules, 1, &header, NULL), 0);
    assert_int_equal(tree_writer_commit(writer, &header, true, NULL), 0);
    tree_writer_free(writer);
    _cleanup_tree_file_ struct tree_file *file = open_file();
    assert_false(tree_file_read(file, 0, 1, block));
    assert_true(tree_file_read(file, 1, 0, block));
    assert_int_equal(block[0], 1);
    /* What is behind the nodes lies where level 0 would. */
    assert_int_equal(stat("t", &st), 0);
    assert_true(st.st_size <= NODES_OFFSET + 3 * 4096);
}

static void test_granules(void **state)
{
    static const uint64_t counts[] = {0, 1, 511, 512, 513, 5000, 1024, 100000, 0, 7};
    struct tree_header header;

    (void)state;
    unlink("t");
    random_header(&header);
    header.lean = false;
    struct tree_writer *writer = new_writer(&header);
    assert_int_equal(tree_writer_commit(writer, &header, true, NULL), 0);
    for (size_t n = 0; n < sizeof(counts) / sizeof(counts[0]); n++) {
        size_t size = counts[n] * sizeof(struct tree_file_granules);
        struct tree_file_granules *granules = malloc(size + 1);
        _cleanup_tree_file_ struct tree_file *before = open_file();
        fill_random(granules, size);
        assert_int_equal(tree_writer_granules(writer, granules, counts[n], &header, NULL), 0);

        /* The old header has the old list until the new one is written. */
        _cleanup_free_ struct tree_file_granules *old = NULL, *read = NULL, *wrong = NULL;
        assert_int_equal(tree_file_granules(before, &old, NULL), 0);
        assert_int_equal(tree_writer_commit(writer, &header, true, NULL), 0);
        _cleanup_tree_file_ struct tree_file *file = open_file();
        assert_int_equal(tree_file_header(file)->granules_count, counts[n]);
        assert_int_equal(tree_file_granules(file, &read, NULL), 0);
        assert_memory_equal(granules, read, size);

        if (counts[n] > 0) {
            size_t file_size;
            uint8_t *bytes = read_file("t", &file_size);
            uint8_t *at = memmem(bytes, file_size, granules, min_u64(size, 64));
            assert_non_null(at);
            flip_byte("t", at - bytes);
            assert_int_equal(tree_file_granules(file, &wrong, NULL), -EINVAL);
            flip_byte("t", at - bytes);
            free(bytes);
        }
        free(granules);
    }
    tree_writer_free(writer);
}

static void test_granules_too_many(void **state)
{
    struct tree_header header;
    struct tree_file_granules *granules = NULL;

    (void)state;
    unlink("t");
    random_header(&header);
    struct tree_writer *writer = new_writer(&header);
    header.granules_count = TREE_FILE_GRANULES_MAX + 1;
    assert_int_equal(tree_writer_commit(writer, &header, true, NULL), 0);
    tree_writer_free(writer);
    _cleanup_tree_file_ struct tree_file *file = open_file();
    assert_int_equal(tree_file_granules(file, &granules, NULL), -EINVAL);
    assert_null(granules);
}

static void test_replaceable(void **state)
{
    struct tree_header header;

    (void)state;
    unlink("t");
    assert_true(tree_file_replaceable("t"));
    int fd = open("t", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(tree_file_replaceable("t"));
    assert_int_equal(write(fd, "text", 4), 4);
    close(fd);
    assert_false(tree_file_replaceable("t"));
    assert_false(tree_file_replaceable("."));
    assert_false(tree_file_replaceable("/dev/null"));
    random_header(&header);
    struct tree_writer *writer = new_writer(&header);
    assert_int_equal(tree_writer_commit(writer, &header, true, NULL), 0);
    tree_writer_free(writer);
    assert_true(tree_file_replaceable("t"));
    fd = open("t", O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "xxxx", 4, SLOT_SIZE + 100), 4);
    close(fd);
    assert_true(tree_file_replaceable("t"));
}

/* --- One bit wrong --- */

static enum hashtree_method root_of(const char *path, bool keep, uint8_t root[static 32])
{
    static const struct hashtree_options options = {.threads = 1};
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = NULL;
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    struct verity_params params;

    make_params(&params);
    if (image_open(path, NULL, &image, &err) < 0 ||
        hashtree_new(image, 0, &params, &options, &tree, &err) < 0 ||
        (keep && hashtree_keep(tree, &(struct hashtree_file_options){0}, &err) < 0) ||
        hashtree_root(tree, root, &err) < 0)
        fail_msg("%s", error_message(&err));
    return hashtree_method(tree);
}

static void make_images(void)
{
    static uint8_t data[BLOCKS * BLOCK];
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *over = NULL;

    unlink("base.qvtree");
    unlink("over.qcow2");
    unlink("over.qcow2.qvtree");
    fill_random(data, sizeof(data));
    write_file("base", data, sizeof(data));
    if (image_open_overlay("base", NULL, "over.qcow2", &over, &err) < 0 ||
        image_write(over, 9 * BLOCK, "changed", 7, &err) < 0 || image_flush(over, &err) < 0)
        fail_msg("%s", error_message(&err));
}

static void test_every_byte(void **state)
{
    uint8_t base_root[32], over_root[32], root[32];
    unsigned methods[HASHTREE_WRITES + 1] = {0};
    size_t size;

    (void)state;
    make_images();
    root_of("base", false, base_root);
    root_of("over.qcow2", false, over_root);
    assert_memory_not_equal(base_root, over_root, 32);
    assert_int_equal(root_of("base", true, root), HASHTREE_FULL);
    assert_int_equal(root_of("base", true, root), HASHTREE_UNCHANGED);
    assert_int_equal(root_of("over.qcow2", true, root), HASHTREE_OVERLAY);
    uint8_t *good = read_file("base.qvtree", &size);
    /* Two slots, level 1, level 0. */
    assert_int_equal(size, NODES_OFFSET + (1 + div_round_up(BLOCKS, 16)) * BLOCK);

    _cleanup_tree_file_ struct tree_file *as_it_was = NULL;
    assert_int_equal(tree_file_open("base.qvtree", NULL, &as_it_was, NULL), 0);
    for (size_t at = 0; at < size; at++) {
        struct tree_file *file = NULL;
        uint8_t kept = good[at];
        good[at] ^= (uint8_t)(1 << next_random() % 8);
        write_file("base.qvtree", good, size);
        /* Of the two slots one is in use, and does not count with a bit wrong. */
        int r = tree_file_open("base.qvtree", NULL, &file, NULL);
        assert_int_equal(r, at >= SLOT_SIZE && at < NODES_OFFSET ? -EINVAL : 0);
        if (r == 0) {
            assert_same_header(tree_file_header(file), tree_file_header(as_it_was));
            tree_file_close(file);
        }
        /* Most of a slot is zeros; of these a part will do. */
        if (at >= NODES_OFFSET || at % 61 == 0) {
            /* The base's own root, out of the header; the overlay's, with the base's nodes. */
            methods[root_of("base", true, root)]++;
            assert_memory_equal(root, base_root, 32);
            write_file("base.qvtree", good, size);
            unlink("over.qcow2.qvtree");
            methods[root_of("over.qcow2", true, root)]++;
            assert_memory_equal(root, over_root, 32);
        }
        good[at] = kept;
    }
    assert_true(methods[HASHTREE_FULL] >= 2 * (SLOT_SIZE / 61));
    assert_true(methods[HASHTREE_UNCHANGED] > size - NODES_OFFSET);
    assert_true(methods[HASHTREE_OVERLAY] > size - NODES_OFFSET);
    free(good);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_slots),
        cmocka_unit_test(test_lean),
        cmocka_unit_test(test_granules),
        cmocka_unit_test(test_granules_too_many),
        cmocka_unit_test(test_replaceable),
        cmocka_unit_test(test_every_byte),
    };

    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
