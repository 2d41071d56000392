/* SPDX-License-Identifier: MIT */
/*
 * Files in ext file systems: how paths are resolved, and directories and superblocks that are
 * wrong. tests/functional/files*.sh have file systems that tools and Linux make.
 */
#include "ext-maker.h"

#include "common/bytes.h"
#include "common/log.h"

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
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_directories),
        cmocka_unit_test(test_superblocks),
    };

    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
