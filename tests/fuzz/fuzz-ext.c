/* SPDX-License-Identifier: MIT */
/*
 * The files of an ext2, ext3 or ext4 file system. Input is the file system; everything in it is
 * listed, looked up by its path, mapped, and read, as far as limits go that hold here only.
 *
 * Promises that are checked: extents come without gaps and lie within the file system, and the
 * bytes are the same however they are read.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "image/files.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/mutate.h"

enum { DEPTH_MAX = 4, NODES_MAX = 60, READ_MAX = 256 << 10, EXTENTS_MAX = 300 };

struct visit {
    struct file_system *fs;
    uint64_t size; /* of the file system */
    unsigned nodes, depth;
    char path[DEPTH_MAX * (FILE_NAME_MAX + 1) + 1];
};

static uint8_t bytes[READ_MAX];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_start();
    return 0;
}

static void map_file(struct visit *visit, struct file_node *node, uint64_t size)
{
    struct error err = ERROR_INIT;
    struct file_extent extent;

    for (uint64_t at = 0, n = 0; at < size && n < EXTENTS_MAX; at += extent.length, n++) {
        int r = file_node_map(node, at, size - at, &extent, &err);
        if (r < 0) {
            fuzz_expect_error(&err, r);
            return;
        }
        if (extent.length == 0 || extent.length > size - at)
            fuzz_fail("extent of %llu bytes at %llu of %llu", (unsigned long long)extent.length,
                      (unsigned long long)at, (unsigned long long)size);
        if (extent.kind == FILE_DATA && !range_within(extent.offset, extent.length, visit->size))
            fuzz_fail("extent at %llu outside of the file system", (unsigned long long)at);
    }
}

struct copy {
    uint64_t at;
    uint64_t data;
};

static int take_bytes(void *arg, uint64_t offset, const void *piece, uint64_t length,
                      struct error *err)
{
    struct copy *copy = arg;

    (void)err;
    if (offset != copy->at || length == 0)
        fuzz_fail("a piece at %llu, expected %llu", (unsigned long long)offset,
                  (unsigned long long)copy->at);
    for (uint64_t i = 0; i < length && offset + i < sizeof(bytes); i++)
        if (bytes[offset + i] != (piece != NULL ? ((const uint8_t *)piece)[i] : 0))
            fuzz_fail("byte %llu is another one when all is read",
                      (unsigned long long)(offset + i));
    copy->at += length;
    copy->data += piece != NULL ? length : 0;
    return 0;
}

static void read_file(struct visit *visit, struct file_node *node)
{
    uint64_t size = file_node_info(node)->size;
    struct error err = ERROR_INIT;
    struct copy copy = {0};

    map_file(visit, node, size);
    int r = file_node_read(node, 0, bytes, (size_t)min_u64(size, sizeof(bytes)), &err);
    if (r == 0)
        r = file_node_read_all(node, take_bytes, &copy, &err);
    if (r < 0)
        fuzz_expect_error(&err, r);
    else if (copy.at != size || copy.data > 2 * visit->size)
        fuzz_fail("%llu bytes, %llu of them data, of %llu", (unsigned long long)copy.at,
                  (unsigned long long)copy.data, (unsigned long long)size);
}

static void visit_node(struct visit *visit, struct file_node *node);

static int visit_entry(void *arg, const struct file_entry *entry, struct error *err)
{
    struct visit *visit = arg;
    struct error open_err = ERROR_INIT;
    size_t end = strlen(visit->path);
    struct file_node *node;

    (void)err;
    if (entry->length == 0 || entry->length > FILE_NAME_MAX || entry->inode == 0 ||
        memchr(entry->name, '/', entry->length) != NULL ||
        memchr(entry->name, '\0', entry->length) != NULL)
        fuzz_fail("an entry that is none");
    if (++visit->nodes > NODES_MAX)
        return 1;
    visit->path[end] = '/';
    memcpy(visit->path + end + 1, entry->name, entry->length);
    visit->path[end + 1 + entry->length] = '\0';
    int r = file_node_find(visit->fs, visit->path, visit->nodes % 2 == 0 ? FILE_FOLLOW : 0, &node,
                           &open_err);
    if (r == 0)
        file_node_close(node);
    else
        fuzz_expect_error(&open_err, r);
    r = file_node_open(visit->fs, entry->inode, &node, &open_err);
    if (r < 0) {
        fuzz_expect_error(&open_err, r);
    } else {
        visit_node(visit, node);
        file_node_close(node);
    }
    visit->path[end] = '\0';
    return 0;
}

static void visit_node(struct visit *visit, struct file_node *node)
{
    mode_t mode = file_node_info(node)->mode;
    struct error err = ERROR_INIT;
    char *target;
    int r = 0;

    if (S_ISREG(mode)) {
        read_file(visit, node);
    } else if (S_ISLNK(mode)) {
        r = file_node_read_link(node, &target, &err);
        if (r == 0 && target[0] == '\0')
            fuzz_fail("an empty link");
        if (r == 0)
            free(target);
    } else if (S_ISDIR(mode) && visit->depth < DEPTH_MAX) {
        visit->depth++;
        r = file_node_list(node, visit_entry, visit, &err);
        visit->depth--;
    }
    if (r < 0)
        fuzz_expect_error(&err, r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct image_options options = {.format = "raw"};
    static char type[] = "ext4";
    struct visit visit = {.size = size};
    struct error err = ERROR_INIT;
    struct file_node *root;
    struct image *image;

    fuzz_write("ext.raw", data, size);
    if (image_open("ext.raw", &options, &image, &err) < 0)
        fuzz_fail("%s", error_message(&err));
    visit.size = image_size(image);
    const struct partition partition = {.size = visit.size, .fs_type = type};
    int r = file_system_open(image, &partition, &visit.fs, &err);
    if (r == 0) {
        r = file_node_find(visit.fs, "/", 0, &root, &err);
        if (r == 0) {
            visit_node(&visit, root);
            file_node_close(root);
        }
        file_system_close(visit.fs);
    }
    if (r < 0)
        fuzz_expect_error(&err, r);
    image_close(image);
    return 0;
}

static uint32_t get32(const uint8_t *data, size_t size, size_t at)
{
    return at + 4 > size ? 0
                         : (uint32_t)data[at] | (uint32_t)data[at + 1] << 8 |
                               (uint32_t)data[at + 2] << 16 | (uint32_t)data[at + 3] << 24;
}

/* Where there is metadata: the superblock, the first group's descriptor, one of its inodes, or a
 * block that one of these has first. */
static size_t some_metadata(struct mutator *m, const uint8_t *data, size_t size)
{
    size_t block = (size_t)1024 << (get32(data, size, 1024 + 24) & 7);
    size_t descriptors = block == 1024 ? 2048 : block;
    size_t inode_size = get32(data, size, 1024 + 88) & 0xffff;
    size_t inode = get32(data, size, descriptors + 8) * block +
                   (inode_size != 0 ? inode_size : 128) * (size_t)mutator_below(m, 24);

    switch (mutator_below(m, 6)) {
    case 0:
        return 1024 + (size_t)mutator_below(m, 512);
    case 1:
        return descriptors + (size_t)mutator_below(m, 64);
    case 2:
        return inode + (size_t)mutator_below(m, 256);
    case 3:
        return inode + 40 + (size_t)mutator_below(m, 60);
    default: /* An extent's, or else a direct, block. */
        return get32(data, size, inode + (mutator_below(m, 2) == 0 ? 60 : 40)) * block +
               (size_t)mutator_below(m, 128);
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    struct mutator m = {.random = mutator_seed(seed)};

    if (mutator_below(&m, 8) == 0)
        return LLVMFuzzerMutate(data, size, room);
    for (uint64_t n = 1 + mutator_below(&m, 3); n > 0; n--) {
        size_t at = some_metadata(&m, data, size), length = 1 + (size_t)mutator_below(&m, 12);
        if (range_within(at, length, size))
            fuzz_mutate_bytes(&m, data + at, length);
    }
    return size;
}
