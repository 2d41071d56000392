/* SPDX-License-Identifier: MIT */
/*
 * Files in ext file systems: how paths are resolved, and file systems that no tool makes. They are
 * made with libext2fs in a file in memory, then written over byte by byte.
 * tests/functional/files*.sh have those that tools and Linux make.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* com_err's function of this name is not ours (common/error.h). */
#define error_message com_err_message
#include <ext2fs/ext2fs.h>
#undef error_message

#include "common/bytes.h"
#include "common/log.h"
#include "image/files.h"

#define BLOCK_SIZE 1024
#define BLOCKS 2048

/* --- Making file systems --- */

struct maker {
    int fd;
    char path[64];
    ext2_filsys fs;
};

static void maker_open(struct maker *m, bool extents)
{
    struct ext2_super_block param = {0};

    m->fd = memfd_create("test-files", MFD_CLOEXEC);
    assert_true(m->fd >= 0);
    assert_int_equal(ftruncate(m->fd, (off_t)BLOCKS * BLOCK_SIZE), 0);
    snprintf(m->path, sizeof(m->path), "/proc/self/fd/%d", m->fd);
    param.s_blocks_count = BLOCKS;
    param.s_inodes_count = 256;
    param.s_rev_level = 1;
    param.s_inode_size = 256;
    param.s_feature_incompat = EXT2_FEATURE_INCOMPAT_FILETYPE;
    if (extents)
        param.s_feature_incompat |= EXT3_FEATURE_INCOMPAT_EXTENTS;
    assert_int_equal(ext2fs_initialize(m->path, EXT2_FLAG_64BITS, &param, unix_io_manager, &m->fs),
                     0);
    assert_int_equal(ext2fs_allocate_tables(m->fs), 0);
    assert_int_equal(ext2fs_mkdir(m->fs, EXT2_ROOT_INO, EXT2_ROOT_INO, NULL), 0);
}

/* From here on the file system is only read. */
static void maker_finish(struct maker *m)
{
    assert_int_equal(ext2fs_close_free(&m->fs), 0);
}

static void maker_close(struct maker *m)
{
    close(m->fd);
}

static void add_name(struct maker *m, ext2_ino_t directory, const char *name, ext2_ino_t inode,
                     int type)
{
    errcode_t code = ext2fs_link(m->fs, directory, name, inode, type);

    if (code == EXT2_ET_DIR_NO_SPACE) {
        assert_int_equal(ext2fs_expand_dir(m->fs, directory), 0);
        code = ext2fs_link(m->fs, directory, name, inode, type);
    }
    assert_int_equal(code, 0);
}

static ext2_ino_t add_directory(struct maker *m, ext2_ino_t parent, const char *name)
{
    ext2_ino_t inode;

    assert_int_equal(ext2fs_new_inode(m->fs, parent, LINUX_S_IFDIR | 0755, NULL, &inode), 0);
    assert_int_equal(ext2fs_mkdir(m->fs, parent, inode, name), 0);
    return inode;
}

/* A file whose inode is written as it is given. */
static ext2_ino_t add_inode(struct maker *m, ext2_ino_t parent, const char *name,
                            struct ext2_inode *inode)
{
    ext2_ino_t number;

    inode->i_links_count = 1;
    assert_int_equal(ext2fs_new_inode(m->fs, parent, inode->i_mode, NULL, &number), 0);
    ext2fs_inode_alloc_stats2(m->fs, number, +1, 0);
    assert_int_equal(ext2fs_write_new_inode(m->fs, number, inode), 0);
    add_name(m, parent, name, number, EXT2_FT_UNKNOWN);
    return number;
}

static ext2_ino_t add_file(struct maker *m, ext2_ino_t parent, const char *name)
{
    struct ext2_inode inode = {.i_mode = LINUX_S_IFREG | 0644};

    return add_inode(m, parent, name, &inode);
}

static void add_link(struct maker *m, ext2_ino_t parent, const char *name, const char *target)
{
    ext2_ino_t inode;

    assert_int_equal(ext2fs_new_inode(m->fs, parent, LINUX_S_IFLNK | 0777, NULL, &inode), 0);
    assert_int_equal(ext2fs_symlink(m->fs, parent, inode, name, target), 0);
}

/* --- Reading them --- */

struct opened {
    struct image *image;
    struct file_system *fs;
};

static int try_open(const struct maker *m, struct opened *ret, struct error *err)
{
    static const struct image_options options = {.format = "raw"};
    const struct partition partition = {.size = (uint64_t)BLOCKS * BLOCK_SIZE,
                                        .fs_type = (char *)"ext4"};

    *ret = (struct opened){0};
    assert_int_equal(image_open(m->path, &options, &ret->image, err), 0);
    return file_system_open(ret->image, &partition, &ret->fs, err);
}

static void open_it(const struct maker *m, struct opened *ret)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    if (try_open(m, ret, &err) < 0)
        fail_msg("%s", error_message(&err));
}

static void close_it(struct opened *opened)
{
    if (opened->fs != NULL)
        file_system_close(opened->fs);
    image_close(opened->image);
}

/* --- Paths --- */

static const struct {
    const char *path;
    unsigned flags;
    const char *found; /* the path without links; NULL: an error */
    int code;
} paths[] = {
    {"/", 0, "/", 0},
    {"", 0, "/", 0},
    {".", 0, "/", 0},
    {"..", 0, "/", 0},
    {"/../../..", 0, "/", 0},
    {"//a///b//", 0, "/a/b", 0},
    {"a/b", 0, "/a/b", 0},
    {"/a/./b/../b/file", 0, "/a/b/file", 0},
    {"/a/b/../../a/b/file", 0, "/a/b/file", 0},
    {"/a/../../a", 0, "/a", 0},
    {"/a/b/file/", 0, NULL, ENOTDIR},
    {"/a/b/file/.", 0, NULL, ENOTDIR},
    {"/a/b/file/..", 0, NULL, ENOTDIR},
    {"/a/b/file/x", 0, NULL, ENOTDIR},
    {"/a/none", 0, NULL, ENOENT},
    {"/none/b", 0, NULL, ENOENT},
    {"/a/fil", 0, NULL, ENOENT},
    /* Links. */
    {"/relative", 0, "/relative", 0},
    {"/relative", FILE_FOLLOW, "/a/b/file", 0},
    {"/relative/", 0, NULL, ENOTDIR},
    {"/absolute", FILE_FOLLOW, "/a/b", 0},
    {"/absolute", 0, "/absolute", 0},
    {"/absolute/", 0, "/a/b", 0},
    {"/absolute/file", 0, "/a/b/file", 0},
    {"/absolute/../b/file", 0, "/a/b/file", 0},
    {"/a/up", FILE_FOLLOW, "/a/b/file", 0},
    {"/a/out", FILE_FOLLOW, "/a", 0},
    {"/a/slashes", FILE_FOLLOW, "/a/b", 0},
    {"/a/slashes/file", 0, "/a/b/file", 0},
    {"/dangling", 0, "/dangling", 0},
    {"/dangling", FILE_FOLLOW, NULL, ENOENT},
    {"/self", 0, "/self", 0},
    {"/self", FILE_FOLLOW, NULL, ELOOP},
    {"/self/x", 0, NULL, ELOOP},
    {"/one", FILE_FOLLOW, NULL, ELOOP},
    {"/chain40", FILE_FOLLOW, "/a/b/file", 0},
    {"/chain41", FILE_FOLLOW, NULL, ELOOP},
    {"/chain40", 0, "/chain40", 0},
    /* Each x is another link: the 41st is one too many. */
    {"/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/a", 0, "/a",
     0},
    {"/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/a", 0,
     NULL, ELOOP},
    {"/slow", FILE_FOLLOW, "/a/b/file", 0},
};

static void make_paths(struct maker *m)
{
    char name[32], target[32], slow[300] = "";

    maker_open(m, true);
    ext2_ino_t a = add_directory(m, EXT2_ROOT_INO, "a"), b = add_directory(m, a, "b");
    add_file(m, b, "file");
    add_link(m, EXT2_ROOT_INO, "relative", "a/b/file");
    add_link(m, EXT2_ROOT_INO, "absolute", "/a/b");
    add_link(m, a, "up", "../../../a/./b/file");
    add_link(m, a, "out", "../../../../../../a");
    add_link(m, a, "slashes", "///a//b///");
    add_link(m, EXT2_ROOT_INO, "dangling", "/none/file");
    add_link(m, EXT2_ROOT_INO, "self", "self");
    add_link(m, EXT2_ROOT_INO, "one", "/a/../two");
    add_link(m, EXT2_ROOT_INO, "two", "one");
    add_link(m, EXT2_ROOT_INO, "x", ".");
    for (int i = 0; i < 100; i++)
        strcat(slow, "./");
    strcat(slow, "a/b/file");
    add_link(m, EXT2_ROOT_INO, "slow", slow);
    for (int i = 1; i <= 41; i++) {
        snprintf(name, sizeof(name), "chain%d", i);
        snprintf(target, sizeof(target), "chain%d", i - 1);
        add_link(m, EXT2_ROOT_INO, name, i == 1 ? "a/b/file" : target);
    }
    maker_finish(m);
}

static void test_paths(void **state)
{
    struct maker m;
    struct opened opened;

    (void)state;
    make_paths(&m);
    open_it(&m, &opened);
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
        _cleanup_error_ struct error err = ERROR_INIT;

        int r = file_node_find(opened.fs, paths[i].path, paths[i].flags, &node, &err);
        if (paths[i].found == NULL) {
            if (r != -paths[i].code || err.message == NULL)
                fail_msg("'%s' gives %d (%s), not %d", paths[i].path, r,
                         r < 0 ? error_message(&err) : "", -paths[i].code);
        } else if (r < 0 || strcmp(file_node_path(node), paths[i].found) != 0) {
            fail_msg("'%s' gives %s, not %s", paths[i].path,
                     r < 0 ? error_message(&err) : file_node_path(node), paths[i].found);
        }
    }
    close_it(&opened);
    maker_close(&m);
}

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

/* Numbers of blocks that are free, for data. */
#define FREE_BLOCK 1500

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

static void set_size(struct ext2_inode *inode, uint64_t size)
{
    inode->i_size = (uint32_t)size;
    inode->i_size_high = (uint32_t)(size >> 32);
}

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

/* --- Directories --- */

static int count_entries(void *arg, const struct file_entry *entry, struct error *err)
{
    (void)entry;
    (void)err;
    ++*(unsigned *)arg;
    return 0;
}

static int stop_at_once(void *arg, const struct file_entry *entry, struct error *err)
{
    (void)entry;
    ++*(unsigned *)arg;
    return error_set(err, ECANCELED, "enough");
}

static int list_path(struct opened *opened, const char *path, file_take *take, unsigned *count,
                     struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    int r = file_node_find(opened->fs, path, 0, &node, err);
    return r < 0 ? r : file_node_list(node, take, count, err);
}

/* Each is written over the first bytes of a directory block. */
static const struct {
    uint8_t bytes[24];
    const char *message;
} blocks[] = {
    {{12, 0, 0, 0, 0, 0, 1, 1, 'a'}, "rec_len is 0"},
    {{12, 0, 0, 0, 10, 0, 1, 1, 'a'}, "rec_len is 10"},
    {{12, 0, 0, 0, 4, 0, 1, 1, 'a'}, "rec_len is 4"},
    {{12, 0, 0, 0, 4, 4, 1, 1, 'a'}, "rec_len is 1028"},
    {{12, 0, 0, 0, 12, 0, 0, 1, 'a'}, "name_len is 0"},
    {{12, 0, 0, 0, 12, 0, 5, 1, 'a'}, "name_len is 5, rec_len 12"},
    {{12, 0, 0, 0, 12, 0, 3, 1, 'a', '/', 'b'}, "the name has a slash or a NUL"},
    {{12, 0, 0, 0, 12, 0, 3, 1, 'a', 0, 'b'}, "the name has a slash or a NUL"},
    {{0xff, 0xff, 0, 0, 12, 0, 1, 1, 'a'}, "there is no inode 65535"},
    {{12, 0, 0, 0, 0xfc, 3, 1, 1, 'a'}, "4 bytes are left, too few for an entry"},
};

static void test_directories(void **state)
{
    struct ext2_inode loop = {.i_mode = LINUX_S_IFDIR | 0755}, bad = loop;
    uint8_t block[BLOCK_SIZE];
    unsigned count = 0;
    struct maker m;
    struct opened opened;
    _cleanup_error_ struct error err = ERROR_INIT;

    (void)state;
    maker_open(&m, false);
    ext2_ino_t file = add_file(&m, EXT2_ROOT_INO, "file");
    /* Of 16 GiB, all of which is one block of pointers, which is no directory block. */
    loop.i_block[14] = FREE_BLOCK;
    set_size(&loop, UINT64_C(2) << 30);
    add_inode(&m, EXT2_ROOT_INO, "loop", &loop);
    bad.i_block[0] = FREE_BLOCK + 1;
    set_size(&bad, BLOCK_SIZE);
    add_inode(&m, EXT2_ROOT_INO, "bad", &bad);
    maker_finish(&m);
    open_it(&m, &opened);
    assert_int_equal(list_path(&opened, "/file", count_entries, &count, &err), -ENOTDIR);
    error_clear(&err);
    assert_int_equal(list_path(&opened, "/", stop_at_once, &count, &err), -ECANCELED);
    assert_string_equal(error_message(&err), "enough");
    assert_int_equal(count, 1);
    error_clear(&err);
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++) {
        memset(block, 0, sizeof(block));
        memcpy(block, blocks[i].bytes, sizeof(blocks[i].bytes));
        if (block[0] == 12)
            block[0] = (uint8_t)file;
        assert_int_equal(pwrite(m.fd, block, sizeof(block), (off_t)(FREE_BLOCK + 1) * BLOCK_SIZE),
                         sizeof(block));
        int r = list_path(&opened, "/bad", count_entries, &count, &err);
        if (r != -EUCLEAN || strstr(error_message(&err), blocks[i].message) == NULL)
            fail_msg("block %zu gives %d '%s', not '%s'", i, r, r < 0 ? error_message(&err) : "",
                     blocks[i].message);
        error_clear(&err);
    }
    close_it(&opened);
    maker_close(&m);
}

/* --- Superblocks --- */

static const struct {
    unsigned offset, size; /* of the field */
    uint64_t value;
    const char *message;
} fields[] = {
    {24, 4, 7, "s_log_block_size is 7"},
    {24, 4, 0xffffffff, "s_log_block_size is 4294967295"},
    {4, 4, 0xffffffff, "more than the partition"},
    {4, 4, BLOCKS + 1, "more than the partition"},
    {4, 4, 1, "the first data block is 1, there are 1"},
    {20, 4, 0xffffffff, "the first data block is 4294967295"},
    {32, 4, 0, "0 blocks and"},
    {32, 4, 7, "7 blocks and"},
    {40, 4, 0, "and 0 inodes in a group"},
    {0, 4, 0xffffffff, "4294967295 inodes, but 1 groups"},
    {0, 4, 1, "superblock: 1 inodes"},
    {88, 2, 0, "s_inode_size is 0"},
    {88, 2, 100, "s_inode_size is 100"},
    {88, 2, 2048, "s_inode_size is 2048"},
    {76, 4, 2, "revision 2 is not known"},
    {96, 4, 0x3, "s_feature_incompat has 0x1)"},
    {96, 4, 0x82, "s_desc_size is 0"},
    {96, 4, 0xa, "the journal of an ext4 file system elsewhere"},
    {56, 2, 0, "the magic number is 0x0000"},
};

static void test_superblocks(void **state)
{
    struct maker m;
    struct opened opened;

    (void)state;
    maker_open(&m, false);
    maker_finish(&m);
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        const off_t at = 1024 + (off_t)fields[i].offset;
        _cleanup_error_ struct error err = ERROR_INIT;
        uint8_t old[4], new[4];

        assert_int_equal(pread(m.fd, old, fields[i].size, at), fields[i].size);
        put_le32(new, (uint32_t)fields[i].value);
        assert_int_equal(pwrite(m.fd, new, fields[i].size, at), fields[i].size);
        int r = try_open(&m, &opened, &err);
        if (r >= 0 || strstr(error_message(&err), fields[i].message) == NULL)
            fail_msg("field %zu gives %d '%s', not '%s'", i, r, r < 0 ? error_message(&err) : "",
                     fields[i].message);
        close_it(&opened);
        assert_int_equal(pwrite(m.fd, old, fields[i].size, at), fields[i].size);
    }
    open_it(&m, &opened);
    close_it(&opened);
    maker_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths),       cmocka_unit_test(test_extents),
        cmocka_unit_test(test_indirect),    cmocka_unit_test(test_directories),
        cmocka_unit_test(test_superblocks),
    };

    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
