/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "fs/internal.h"

/* --- Mount options --- */

static void test_options(void **state)
{
    static const struct {
        const char *text;
        const char *fuse; /* NULL: refused, and then: */
        const char *message;
        bool direct_io;
    } cases[] = {
        {NULL, "max_read=1048576,fsname=/i", NULL, false},
        {"", "max_read=1048576,fsname=/i", NULL, false},
        {"ro,,defaults", "max_read=1048576,fsname=/i", NULL, false},
        {"allow_other", "allow_other", NULL, false},
        {"noexec,direct_io,noatime", "noexec,noatime", NULL, true},
        {"max_read=4096", "max_read=4096", NULL, false},
        {"fsname=a\\,b", "fsname=a\\,b", NULL, false},
        {"fsname=a\\\\b", "fsname=a\\\\b", NULL, false},
        {"fsname=x\\", "fsname=x\\\\", NULL, false},
        {"x-systemd.automount,X-a,noauto,_netdev", "fsname=/i", NULL, false},
        {"context=a:b", "context=a:b", NULL, false},
        {"max_read=4095", NULL, "'max_read=4095': must be from 4096 to 1048576", false},
        {"max_read=1048577", NULL, "must be from", false},
        {"max_read=", NULL, "max_read", false},
        {"max_read", NULL, "unknown mount option 'max_read'", false},
        {"rw", NULL, "'rw': the files are read-only", false},
        {"ro=1", NULL, "unknown mount option 'ro=1'", false},
        {"allow_others", NULL, "unknown mount option 'allow_others'", false},
        {"noexec,bogus", NULL, "unknown mount option 'bogus'", false},
        {"suid", NULL, "unknown mount option 'suid'", false},
        {"fd=3", NULL, "unknown mount option 'fd=3'", false},
        {"fsname=a,b", NULL, "unknown mount option 'b'", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct fs_mount_options parsed = {0};

        int r = fs_options_parse(cases[i].text, "/i", false, &parsed, &err);
        if (cases[i].fuse == NULL) {
            assert_int_equal(r, -EINVAL);
            assert_non_null(strstr(error_message(&err), cases[i].message));
            assert_int_not_equal(fs_check_options(cases[i].text, false, NULL), 0);
            continue;
        }
        assert_int_equal(r, 0);
        assert_non_null(strstr(parsed.fuse, cases[i].fuse));
        assert_non_null(strstr(parsed.fuse, "ro,nosuid,nodev,default_permissions"));
        assert_non_null(strstr(parsed.fuse, "subtype=qverity"));
        assert_int_equal(parsed.direct_io, cases[i].direct_io);
        free(parsed.fuse);
    }
}

/* --- Which reads of the hash device wait for a build --- */

static void test_needs_build(void **state)
{
    /* 20000 blocks: levels of 1, 2 and 157 hash blocks, in this order behind the superblock. */
    static const struct {
        uint64_t hash_offset, offset, length;
        bool superblock, uuid_set, needs;
    } cases[] = {
        {0, 0, 1, true, false, true},
        {0, 511, 1, true, false, true},
        {0, 512, 3584, true, false, false},
        {0, 512, 3585, true, false, true},
        {0, 0, 4096, true, true, false},
        {0, 0, 4097, true, true, true},
        {0, 4096, 1, true, true, true},
        {0, 4 * 4096 - 1, 1, true, true, true},
        {0, 4 * 4096, 157 * 4096, true, false, false},
        {0, 4 * 4096 - 1, 2, true, false, true},
        {0, 0, 1, false, false, true},
        {0, 3 * 4096, 4096, false, false, false},
        {8192, 0, 8192, true, false, false},
        {8192, 0, 8193, true, false, true},
        {8192, 8192 + 512, 100, true, false, false},
        {8192, 8192 + 4096, 1, true, false, true},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct verity_params params;
        struct verity_geometry geometry;

        verity_params_init(&params);
        params.data_blocks = 20000;
        params.hash_offset = cases[i].hash_offset;
        params.superblock = cases[i].superblock;
        params.uuid_set = cases[i].uuid_set;
        assert_int_equal(verity_geometry_init(&params, &geometry, NULL), 0);
        assert_int_equal(fs_hash_needs_build(&params, &geometry, cases[i].offset, cases[i].length),
                         cases[i].needs);
    }
}

/* Of a tree with one level, or none, no block needs more than its own data. */
static void test_needs_no_build(void **state)
{
    (void)state;
    for (uint64_t blocks = 1; blocks <= 128; blocks += 127) {
        struct verity_params params;
        struct verity_geometry geometry;

        verity_params_init(&params);
        params.data_blocks = blocks;
        params.superblock = false;
        assert_int_equal(verity_geometry_init(&params, &geometry, NULL), 0);
        assert_false(fs_hash_needs_build(&params, &geometry, 0, geometry.device_size));
    }
}

/* --- Nodes, texts, and bytes of an image --- */

#define IMAGE_SIZE (3u * 1024 * 1024)

/* A raw image with an MBR: a primary partition, and a logical one in an extended one. The middle
 * MiB is a hole. */
struct fixture {
    char path[64];
    uint8_t *bytes;
    struct image *image;
    struct partition_table *table;
    struct hashtree *tree;
    struct fs_options options;
};

static void put_partition(uint8_t *entry, uint8_t type, uint32_t start, uint32_t count)
{
    entry[4] = type;
    for (int i = 0; i < 4; i++) {
        entry[8 + i] = (uint8_t)(start >> (8 * i));
        entry[12 + i] = (uint8_t)(count >> (8 * i));
    }
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct verity_params params;

    assert_non_null(f);
    strcpy(f->path, "/tmp/qverity-test-fs.XXXXXX");
    f->bytes = calloc(1, IMAGE_SIZE);
    assert_non_null(f->bytes);
    for (size_t i = 0; i < IMAGE_SIZE; i++)
        if (i >> 20 != 1 && i >= 8192)
            f->bytes[i] = (uint8_t)(i * 2654435761u >> 13 | 1);
    put_partition(f->bytes + 446, 0x83, 8, 2040);
    put_partition(f->bytes + 462, 0x05, 2048, 4096);
    f->bytes[510] = 0x55;
    f->bytes[511] = 0xaa;
    put_partition(f->bytes + 1024 * 1024 + 446, 0x83, 2, 4000);
    f->bytes[1024 * 1024 + 510] = 0x55;
    f->bytes[1024 * 1024 + 511] = 0xaa;
    int fd = mkstemp(f->path);
    assert_true(fd >= 0);
    assert_int_equal(io_write_at(fd, f->path, f->bytes, 1024 * 1024 + 4096, 0, NULL), 0);
    assert_int_equal(
        io_write_at(fd, f->path, f->bytes + 2 * 1024 * 1024, 1024 * 1024, 2 * 1024 * 1024, NULL),
        0);
    close(fd);
    const struct image_options raw = {.format = "raw"};
    assert_int_equal(image_open(f->path, &raw, &f->image, NULL), 0);
    assert_int_equal(partition_table_read(f->image, &f->table, NULL), 0);
    f->options = (struct fs_options){.image = f->image, .partitions = f->table};
    assert_int_equal(partition_find(f->table, "1", &f->options.data, NULL), 0);
    verity_params_init(&params);
    params.data_blocks = f->options.data->size / 4096;
    assert_int_equal(hashtree_new(f->image, f->options.data->start, &params, NULL, &f->tree, NULL),
                     0);
    f->options.tree = f->tree;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    hashtree_free(f->tree);
    partition_table_free(f->table);
    image_close(f->image);
    unlink(f->path);
    free(f->bytes);
    free(f);
    return 0;
}

static void test_nodes(void **state)
{
    static const char *const names[] = {"disk",        "part1",     "part5", "data",
                                        "hash",        "root-hash", "table", "cmdline",
                                        "params.json", "stats.json"};
    const struct fixture *f = *state;
    size_t sizes[TEXT_COUNT];
    struct fs_nodes nodes;
    struct stat st;

    assert_int_equal(fs_texts_sizes(&f->options, sizes, NULL), 0);
    assert_int_equal(fs_nodes_init(&f->options, sizes, &nodes, NULL), 0);
    assert_int_equal(nodes.count, 1 + sizeof(names) / sizeof(names[0]));
    assert_ptr_equal(fs_node_get(&nodes, FUSE_ROOT_ID), &nodes.all[0]);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const struct fs_node *node = fs_node_find(&nodes, names[i]);
        assert_non_null(node);
        assert_ptr_equal(fs_node_get(&nodes, fs_node_ino(&nodes, node)), node);
        fs_node_stat(&nodes, node, &st);
        assert_int_equal(st.st_size, node->size);
        assert_int_equal(st.st_mode,
                         strcmp(names[i], "data") == 0 ? S_IFLNK | 0777 : S_IFREG | 0444);
        assert_true(st.st_blocks > 0 || st.st_size == 0 || S_ISLNK(st.st_mode));
    }
    assert_null(fs_node_find(&nodes, "part2")); /* the extended partition */
    assert_null(fs_node_find(&nodes, ""));
    assert_null(fs_node_get(&nodes, 0));
    assert_null(fs_node_get(&nodes, FUSE_ROOT_ID + nodes.count));
    assert_string_equal(fs_node_find(&nodes, "data")->target, "part1");
    const struct fs_node *logical = fs_node_find(&nodes, "part5");
    assert_int_equal(logical->start, 2050 * 512);
    assert_int_equal(logical->size, 4000 * 512);
    free(nodes.all);
}

static void test_texts(void **state)
{
    const struct fixture *f = *state;
    size_t sizes[TEXT_COUNT];
    struct fs_texts texts;

    assert_int_equal(fs_texts_sizes(&f->options, sizes, NULL), 0);
    assert_false(hashtree_root_known(f->tree));
    assert_int_equal(fs_texts_make(&f->options, &texts, NULL), 0);
    assert_true(hashtree_root_known(f->tree));
    for (size_t i = 0; i < TEXT_COUNT; i++) {
        assert_int_equal(strlen(texts.text[i]), sizes[i]);
        assert_int_equal(texts.text[i][sizes[i] - 1], '\n');
    }
    assert_int_equal(sizes[TEXT_ROOT_HASH], 65);
    assert_non_null(strstr(texts.text[TEXT_TABLE], " /dev/sda1 /dev/sdb "));
    fs_texts_clear(&texts);
}

static void test_gather(void **state)
{
    static const struct {
        uint64_t offset;
        size_t length;
    } ranges[] = {
        {0, 1},
        {0, IMAGE_SIZE},
        {IMAGE_SIZE - 1, 1},
        {1024 * 1024 - 1, 2},
        {12345, 1024 * 1024},
        {777, 2 * 1024 * 1024 + 99},
    };
    const struct fixture *f = *state;
    struct fs_gather gather;

    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        size_t at = ranges[i].offset;

        assert_int_equal(
            fs_gather_image(f->image, ranges[i].offset, ranges[i].length, &gather, NULL), 0);
        for (int k = 0; k < gather.count; k++) {
            assert_memory_equal(gather.iov[k].iov_base, f->bytes + at, gather.iov[k].iov_len);
            at += gather.iov[k].iov_len;
        }
        assert_int_equal(at, ranges[i].offset + ranges[i].length);
    }
    fs_buffer_free();
}

static void test_gather_error(void **state)
{
    const struct fixture *f = *state;
    _cleanup_error_ struct error err = ERROR_INIT;
    struct fs_gather gather;

    assert_int_equal(truncate(f->path, 2 * 1024 * 1024 + 10), 0);
    assert_true(fs_gather_image(f->image, 2 * 1024 * 1024, 4096, &gather, &err) < 0);
    assert_non_null(strstr(error_message(&err), f->path));
    assert_non_null(strstr(error_message(&err), "2097162"));
    fs_buffer_free();
}

static bool never(void *arg)
{
    (void)arg;
    return false;
}

static void test_seek(void **state)
{
    const struct fixture *f = *state;
    uint64_t at;

    /* File systems without SEEK_HOLE tell one piece of data. */
    struct extent extent;
    assert_int_equal(image_map(f->image, 0, IMAGE_SIZE, IMAGE_MAP_HOLES, &extent, NULL), 0);
    bool holes = extent.length < IMAGE_SIZE;
    uint64_t hole = holes ? extent.length : IMAGE_SIZE;

    assert_int_equal(fs_seek_image(f->image, 0, IMAGE_SIZE, 5, SEEK_DATA, never, NULL, &at, NULL),
                     0);
    assert_int_equal(at, 5);
    assert_int_equal(fs_seek_image(f->image, 0, IMAGE_SIZE, 5, SEEK_HOLE, never, NULL, &at, NULL),
                     0);
    assert_int_equal(at, hole);
    assert_int_equal(
        fs_seek_image(f->image, 0, IMAGE_SIZE, IMAGE_SIZE, SEEK_HOLE, never, NULL, &at, NULL),
        -ENXIO);
    assert_int_equal(
        fs_seek_image(f->image, 0, IMAGE_SIZE, IMAGE_SIZE - 1, SEEK_HOLE, never, NULL, &at, NULL),
        0);
    assert_int_equal(at, IMAGE_SIZE);
    if (!holes)
        return;
    assert_int_equal(
        fs_seek_image(f->image, 0, IMAGE_SIZE, hole, SEEK_DATA, never, NULL, &at, NULL), 0);
    assert_int_equal(at, 2 * 1024 * 1024);
    /* A range that begins in the hole and ends in it: offsets are the range's. */
    assert_int_equal(
        fs_seek_image(f->image, 1536 * 1024, 4096, 0, SEEK_DATA, never, NULL, &at, NULL), -ENXIO);
    assert_int_equal(
        fs_seek_image(f->image, 1536 * 1024, 1024 * 1024, 7, SEEK_DATA, never, NULL, &at, NULL), 0);
    assert_int_equal(at, 512 * 1024);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_needs_build),
        cmocka_unit_test(test_needs_no_build),
        cmocka_unit_test_setup_teardown(test_nodes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_texts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_gather, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_gather_error, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_seek, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
