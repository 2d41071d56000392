/* SPDX-License-Identifier: MIT */
#pragma once

/* File systems that no tool makes: made with libext2fs in a file in memory, and then written over
 * byte by byte. */
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

#include "image/files.h"

#define BLOCK_SIZE 1024
#define BLOCKS 2048

/* --- Making file systems --- */

struct maker {
    int fd;
    char path[64];
    ext2_filsys fs;
};

static inline void maker_open(struct maker *m, bool extents)
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
static inline void maker_finish(struct maker *m)
{
    assert_int_equal(ext2fs_close_free(&m->fs), 0);
}

static inline void maker_close(struct maker *m)
{
    close(m->fd);
}

static inline void add_name(struct maker *m, ext2_ino_t directory, const char *name,
                            ext2_ino_t inode, int type)
{
    errcode_t code = ext2fs_link(m->fs, directory, name, inode, type);

    if (code == EXT2_ET_DIR_NO_SPACE) {
        assert_int_equal(ext2fs_expand_dir(m->fs, directory), 0);
        code = ext2fs_link(m->fs, directory, name, inode, type);
    }
    assert_int_equal(code, 0);
}

static inline ext2_ino_t add_directory(struct maker *m, ext2_ino_t parent, const char *name)
{
    ext2_ino_t inode;

    assert_int_equal(ext2fs_new_inode(m->fs, parent, LINUX_S_IFDIR | 0755, NULL, &inode), 0);
    assert_int_equal(ext2fs_mkdir(m->fs, parent, inode, name), 0);
    return inode;
}

/* A file whose inode is written as it is given. */
static inline ext2_ino_t add_inode(struct maker *m, ext2_ino_t parent, const char *name,
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

static inline ext2_ino_t add_file(struct maker *m, ext2_ino_t parent, const char *name)
{
    struct ext2_inode inode = {.i_mode = LINUX_S_IFREG | 0644};

    return add_inode(m, parent, name, &inode);
}

static inline void add_link(struct maker *m, ext2_ino_t parent, const char *name,
                            const char *target)
{
    ext2_ino_t inode;

    assert_int_equal(ext2fs_new_inode(m->fs, parent, LINUX_S_IFLNK | 0777, NULL, &inode), 0);
    assert_int_equal(ext2fs_symlink(m->fs, parent, inode, name, target), 0);
}

/* From here on blocks are free, for data. */
#define FREE_BLOCK 1500

static inline void set_size(struct ext2_inode *inode, uint64_t size)
{
    inode->i_size = (uint32_t)size;
    inode->i_size_high = (uint32_t)(size >> 32);
}

/* --- Reading them --- */

struct opened {
    struct image *image;
    struct file_system *fs;
};

static inline int try_open(const struct maker *m, struct opened *ret, struct error *err)
{
    static const struct image_options options = {.format = "raw"};
    const struct partition partition = {.size = (uint64_t)BLOCKS * BLOCK_SIZE,
                                        .fs_type = (char *)"ext4"};

    *ret = (struct opened){0};
    assert_int_equal(image_open(m->path, &options, &ret->image, err), 0);
    return file_system_open(ret->image, &partition, &ret->fs, err);
}

static inline void open_it(const struct maker *m, struct opened *ret)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    if (try_open(m, ret, &err) < 0)
        fail_msg("%s", error_message(&err));
}

static inline void close_it(struct opened *opened)
{
    if (opened->fs != NULL)
        file_system_close(opened->fs);
    image_close(opened->image);
}
