/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* com_err's function of this name is not ours (common/error.h). */
#define error_message com_err_message
#include <ext2fs/ext2fs.h>
#undef error_message

#include "common/bytes.h"
#include "image/files.h"

/*
 * ext2, ext3 and ext4. The format is described in the kernel's Documentation/filesystems/ext4.
 *
 * libext2fs opens the file system, and reads inodes and directory blocks with their checksums
 * (ext.c is its io manager over image_read()). Which blocks a file has, and what a directory, a
 * symbolic link or inline data says, is worked out here: the library's walks trust the shape of
 * what they walk, and their time has no bound that a file system's size gives.
 *
 *   ext.c        opening, reading blocks, the library's errors
 *   ext-inode.c  inodes, inline data, symbolic links
 *   ext-map.c    where a file's blocks are: extent trees, indirect blocks
 *   ext-dir.c    directories, paths
 *   ext-read.c   the bytes of files
 *   ext-xattr.c  extended attributes
 */
struct file_system {
    struct image *image;
    uint64_t start, size; /* of the partition, bytes */
    ext2_filsys ext;
    uint32_t block_size;
    uint64_t blocks;
    struct error io_error; /* of the last read that failed */
    uint8_t *piece;        /* FILE_PIECE bytes for file_node_read_all(); NULL until needed */
};

enum {
    EXT_DEPTH_MAX = 5, /* levels of an extent tree below the root */
    EXT_INODE_BLOCK = 60,
    EXT_LINK_MAX = 4095, /* bytes of a symbolic link's target */
};

/* The tree of a file's blocks as it was walked last (ext-map.c): one block per level. */
struct ext_level {
    uint8_t *bytes;    /* block_size of them; NULL until needed */
    uint64_t block;    /* that they are, or 0 */
    uint64_t low, end; /* logical blocks that the block was checked for */
};

struct file_node {
    struct file_system *fs;
    struct file_info info;
    char *path;
    uint32_t flags; /* i_flags */
    bool fast_link;
    uint8_t block[EXT_INODE_BLOCK]; /* i_block, as it is on the disk */
    uint8_t *inline_data;
    size_t inline_size;
    struct ext_level levels[EXT_DEPTH_MAX];
};

/* Reads a block; one that the file system has not is an error. */
int ext_read_block(struct file_system *fs, uint64_t block, void *buffer, struct error *err);

/* Whether [first, first + count) are blocks that files may have. */
bool ext_blocks_valid(const struct file_system *fs, uint64_t first, uint64_t count);

/* Turns an error of the library into one of ours, with what was being done in front. Returns a
 * negative errno value. */
int ext_error(struct file_system *fs, errcode_t code, struct error *err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/*
 * Where a file's logical block is: *ret_block is 0 for a hole, else the first of *ret_count blocks
 * in a row. *ret_count is at least 1 and at most `count`. The node must not have inline data.
 */
int ext_map(struct file_node *node, uint64_t logical, uint64_t count, uint64_t *ret_block,
            uint64_t *ret_count, struct error *err);

/* How many logical blocks a file of this node's kind can have. */
uint64_t ext_map_limit(const struct file_node *node);
