/* SPDX-License-Identifier: MIT */
/* Where the blocks of files are: extent trees and indirect blocks, right ones and wrong ones. */
#include "ext-maker.h"

#include "common/bytes.h"
#include "common/log.h"

/* --- Extents --- */

static void put_header(uint8_t *p, uint16_t entries, uint16_t max, uint16_t depth)
{
    put_le16(p, 0xf30a);
    put_le16(p + 2, entries);
    put_le16(p + 4, max);
    put_le16(p + 6, depth);
}

static void put_extent(uint8_t *node, unsigned i, uint32_t logical, uint16_t length, uint32_t block)
{
    uint8_t *p = node + 12 + i * 12;

    put_le32(p, logical);
    put_le16(p + 4, length);
    put_le16(p + 6, 0);
    put_le32(p + 8, block);
}

static void put_index(uint8_t *node, unsigned i, uint32_t logical, uint32_t block)
{
    uint8_t *p = node + 12 + i * 12;

    put_le32(p, logical);
    put_le32(p + 4, block);
    put_le16(p + 8, 0);
}

/* What one case sees: the inode's extents, and two blocks. */
struct tree {
    uint8_t root[60];
    uint8_t blocks[2][BLOCK_SIZE];
    uint32_t numbers[2]; /* of the blocks */
    uint64_t size;       /* of the file */
};

struct expected {
    uint64_t data, holes; /* bytes */
};

static void two_extents(struct tree *t)
{
    put_header(t->root, 2, 4, 0);
    put_extent(t->root, 0, 1, 2, FREE_BLOCK);
    put_extent(t->root, 1, 5, 1, FREE_BLOCK + 10);
    t->size = 7 * BLOCK_SIZE - 100;
}

static void not_written(struct tree *t)
{
    put_header(t->root, 2, 4, 0);
    put_extent(t->root, 0, 0, 32768 + 3, FREE_BLOCK);
    put_extent(t->root, 1, 3, 1, FREE_BLOCK + 10);
    t->size = 4 * BLOCK_SIZE;
}

static void two_levels(struct tree *t)
{
    put_header(t->root, 2, 4, 1);
    put_index(t->root, 0, 0, t->numbers[0]);
    put_index(t->root, 1, 100, t->numbers[1]);
    put_header(t->blocks[0], 1, 84, 0);
    put_extent(t->blocks[0], 0, 10, 5, FREE_BLOCK);
    put_header(t->blocks[1], 1, 84, 0);
    put_extent(t->blocks[1], 0, 100, 5, FREE_BLOCK + 5);
    t->size = 200 * BLOCK_SIZE;
}

static void empty_leaf_many_times(struct tree *t)
{
    put_header(t->root, 4, 4, 1);
    for (unsigned i = 0; i < 4; i++)
        put_index(t->root, i, i * 1000, t->numbers[0]);
    put_header(t->blocks[0], 0, 84, 0);
    t->size = 5000 * BLOCK_SIZE;
}

static void behind_the_size(struct tree *t)
{
    put_header(t->root, 1, 4, 0);
    put_extent(t->root, 0, 0, 100, FREE_BLOCK);
    t->size = 1;
}

static void index_to_itself(struct tree *t)
{
    put_header(t->root, 1, 4, 2);
    put_index(t->root, 0, 0, t->numbers[0]);
    put_header(t->blocks[0], 1, 84, 1);
    put_index(t->blocks[0], 0, 0, t->numbers[0]);
    t->size = BLOCK_SIZE;
}

static void too_deep(struct tree *t)
{
    put_header(t->root, 1, 4, 6);
    put_index(t->root, 0, 0, t->numbers[0]);
    t->size = BLOCK_SIZE;
}

static void leaf_twice(struct tree *t)
{
    put_header(t->root, 2, 4, 1);
    put_index(t->root, 0, 0, t->numbers[0]);
    put_index(t->root, 1, 100, t->numbers[0]);
    put_header(t->blocks[0], 1, 84, 0);
    put_extent(t->blocks[0], 0, 0, 5, FREE_BLOCK);
    t->size = 200 * BLOCK_SIZE;
}

static void wrong_order(struct tree *t)
{
    put_header(t->root, 2, 4, 0);
    put_extent(t->root, 0, 5, 2, FREE_BLOCK);
    put_extent(t->root, 1, 1, 1, FREE_BLOCK + 10);
    t->size = 10 * BLOCK_SIZE;
}

static void overlap(struct tree *t)
{
    put_header(t->root, 2, 4, 0);
    put_extent(t->root, 0, 0, 5, FREE_BLOCK);
    put_extent(t->root, 1, 4, 1, FREE_BLOCK + 10);
    t->size = 10 * BLOCK_SIZE;
}

static void no_length(struct tree *t)
{
    put_header(t->root, 1, 4, 0);
    put_extent(t->root, 0, 0, 0, FREE_BLOCK);
    t->size = 10 * BLOCK_SIZE;
}

static void beyond_the_end(struct tree *t)
{
    put_header(t->root, 1, 4, 0);
    put_extent(t->root, 0, 0, 10, BLOCKS - 9);
    t->size = 10 * BLOCK_SIZE;
}

static void block_zero(struct tree *t)
{
    put_header(t->root, 1, 4, 0);
    put_extent(t->root, 0, 0, 1, 0);
    t->size = 10 * BLOCK_SIZE;
}

static void index_beyond(struct tree *t)
{
    put_header(t->root, 1, 4, 1);
    put_index(t->root, 0, 0, BLOCKS);
    t->size = BLOCK_SIZE;
}

static void bad_magic(struct tree *t)
{
    two_extents(t);
    t->root[0]++;
}

static void too_many_entries(struct tree *t)
{
    put_header(t->root, 5, 5, 0);
    t->size = BLOCK_SIZE;
}

static void empty_inner_node(struct tree *t)
{
    put_header(t->root, 0, 4, 1);
    t->size = BLOCK_SIZE;
}

static void more_than_there_is(struct tree *t)
{
    put_header(t->root, 4, 4, 0);
    for (unsigned i = 0; i < 4; i++)
        put_extent(t->root, i, i * 1000, 1000, 100);
    t->size = 4000 * BLOCK_SIZE;
}

static void enormous(struct tree *t)
{
    two_extents(t);
    t->size = UINT64_C(1) << 60;
}

static const struct {
    void (*make)(struct tree *t);
    struct expected expected;
    const char *message; /* or NULL: it can be read */
} trees[] = {
    {two_extents, {3 * BLOCK_SIZE, 4 * BLOCK_SIZE - 100}, NULL},
    {not_written, {BLOCK_SIZE, 3 * BLOCK_SIZE}, NULL},
    {two_levels, {10 * BLOCK_SIZE, 190 * BLOCK_SIZE}, NULL},
    {empty_leaf_many_times, {0, 5000 * BLOCK_SIZE}, NULL},
    {behind_the_size, {1, 0}, NULL},
    {index_to_itself, {0}, "eh_depth is 1, not 0"},
    {too_deep, {0}, "extents in the inode: eh_depth is 6"},
    {leaf_twice, {0}, "logical block 0 is not from 100"},
    {wrong_order, {0}, "entry 1: logical block 1 is not from 7"},
    {overlap, {0}, "entry 1: logical block 4 is not from 5"},
    {no_length, {0}, "ee_len is 0"},
    {beyond_the_end, {0}, "10 blocks from 2039 are not in the file system"},
    {block_zero, {0}, "1 blocks from 0 are not in the file system"},
    {index_beyond, {0}, "there is no block 2048"},
    {bad_magic, {0}, "the magic number is 0xf30b"},
    {too_many_entries, {0}, "eh_entries is 5, eh_max 5"},
    {empty_inner_node, {0}, "an inner node is empty"},
    {more_than_there_is, {0}, "it has more data than the file system"},
    {enormous, {0}, "i_size is 1152921504606846976, more than a file can have"},
};

static int count_bytes(void *arg, uint64_t offset, const void *bytes, uint64_t length,
                       struct error *err)
{
    struct expected *got = arg;

    (void)err;
    assert_int_equal(offset, got->data + got->holes);
    /* Blocks have their numbers in them. */
    if (bytes != NULL)
        assert_true(length > 0);
    *(bytes != NULL ? &got->data : &got->holes) += length;
    return 0;
}

/* Where IMAGE_MAP_HOLES would find holes, there is to be data. */
static void fill_blocks(const struct maker *m, uint32_t first, uint32_t count)
{
    uint8_t block[BLOCK_SIZE];

    memset(block, 'x', sizeof(block));
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(pwrite(m->fd, block, sizeof(block), (off_t)(first + i) * BLOCK_SIZE),
                         sizeof(block));
}

static int read_file(struct opened *opened, const char *path, struct expected *ret,
                     struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    int r = file_node_find(opened->fs, path, 0, &node, err);
    return r < 0 ? r : file_node_read_all(node, count_bytes, ret, err);
}

static void check_tree(size_t i)
{
    struct ext2_inode inode = {.i_mode = LINUX_S_IFREG | 0644, .i_flags = EXT4_EXTENTS_FL};
    struct tree tree = {.numbers = {1400, 1401}};
    struct expected got = {0};
    struct maker m;
    struct opened opened;
    _cleanup_error_ struct error err = ERROR_INIT;

    trees[i].make(&tree);
    maker_open(&m, true);
    set_size(&inode, tree.size);
    memcpy(inode.i_block, tree.root, sizeof(tree.root));
    add_inode(&m, EXT2_ROOT_INO, "file", &inode);
    maker_finish(&m);
    fill_blocks(&m, FREE_BLOCK, 200);
    fill_blocks(&m, 700, 400);
    for (size_t j = 0; j < 2; j++)
        assert_int_equal(
            pwrite(m.fd, tree.blocks[j], BLOCK_SIZE, (off_t)tree.numbers[j] * BLOCK_SIZE),
            BLOCK_SIZE);
    open_it(&m, &opened);
    int r = read_file(&opened, "/file", &got, &err);
    if (trees[i].message == NULL) {
        if (r < 0)
            fail_msg("tree %zu: %s", i, error_message(&err));
        assert_int_equal(got.data, trees[i].expected.data);
        assert_int_equal(got.holes, trees[i].expected.holes);
    } else if (r != -EUCLEAN || strstr(error_message(&err), trees[i].message) == NULL) {
        fail_msg("tree %zu gives %d '%s', not '%s'", i, r, r < 0 ? error_message(&err) : "",
                 trees[i].message);
    }
    close_it(&opened);
    maker_close(&m);
}

static void test_extents(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(trees) / sizeof(trees[0]); i++)
        check_tree(i);
}

/* --- Indirect blocks --- */

/* A block of pointers that all lead to itself is data, too, and more than the file system has. */
static void test_indirect(void **state)
{
    struct ext2_inode loop = {.i_mode = LINUX_S_IFREG | 0644}, holes = loop, beyond = loop;
    uint32_t pointers[BLOCK_SIZE / 4];
    struct expected got = {0};
    struct maker m;
    struct opened opened;
    _cleanup_error_ struct error err = ERROR_INIT;

    (void)state;
    for (size_t i = 0; i < BLOCK_SIZE / 4; i++)
        pointers[i] = FREE_BLOCK;
    maker_open(&m, false);
    loop.i_block[14] = FREE_BLOCK;
    set_size(&loop, UINT64_C(16) << 30);
    add_inode(&m, EXT2_ROOT_INO, "loop", &loop);
    /* As large as it can be, with one block far away. */
    holes.i_block[13] = FREE_BLOCK + 1;
    set_size(&holes, UINT64_C(16) << 30);
    add_inode(&m, EXT2_ROOT_INO, "holes", &holes);
    beyond.i_block[0] = BLOCKS;
    set_size(&beyond, 1);
    add_inode(&m, EXT2_ROOT_INO, "beyond", &beyond);
    maker_finish(&m);
    assert_int_equal(pwrite(m.fd, pointers, sizeof(pointers), (off_t)FREE_BLOCK * BLOCK_SIZE),
                     sizeof(pointers));
    open_it(&m, &opened);
    assert_int_equal(read_file(&opened, "/loop", &got, &err), -EUCLEAN);
    assert_non_null(strstr(error_message(&err), "it has more data than the file system"));
    error_clear(&err);
    got = (struct expected){0};
    assert_int_equal(read_file(&opened, "/holes", &got, &err), 0);
    assert_int_equal(got.holes, UINT64_C(16) << 30);
    assert_int_equal(read_file(&opened, "/beyond", &got, &err), -EUCLEAN);
    assert_non_null(strstr(error_message(&err), "1 blocks from 2048 are not in the file system"));
    close_it(&opened);
    maker_close(&m);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_extents),
        cmocka_unit_test(test_indirect),
    };

    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
