/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "common/error.h"
#include "image/image.h"
#include "image/partition.h"

/*
 * The files in an ext2, ext3 or ext4 file system of an image, without mounting it. Read-only; what
 * a journal holds that was not written back is not looked at, as with the kernel's option noload.
 *
 * What the file system says is not trusted: whatever its bytes are, functions return within a time
 * and use memory that are bounded by its size, and nothing outside the partition is read. What
 * Linux would refuse is refused, with an error that names the inode and what is wrong with it;
 * metadata with checksums is checked against them.
 *
 * A file system and its nodes belong to one thread at a time.
 */
struct file_system;

/*
 * Opens the file system in a partition of an image; both must outlive it. -EMEDIUMTYPE: the
 * partition holds something else, which the message names. *ret is closed with file_system_close(),
 * after its nodes.
 */
int file_system_open(struct image *image, const struct partition *partition,
                     struct file_system **ret, struct error *err);
void file_system_close(struct file_system *fs);
DEFINE_CLEANUP(struct file_system, file_system_close);

/* Whether the partition holds what file_system_open() opens, as far as libblkid can tell. */
bool file_system_is_readable(const struct partition *partition);

/* --- Files --- */

struct file_node;

enum {
    FILE_FOLLOW = 1 << 0, /* if the last component is a symbolic link, what it leads to is meant */
};

enum {
    FILE_LINKS_MAX = 40, /* symbolic links on the way, as in the kernel */
    FILE_NAME_MAX = 255, /* bytes */
};

/*
 * Finds a file by its path, which starts at the file system's root with or without a slash.
 * Symbolic links lead to places in the same file system only; ".." of the root is the root. A path
 * that ends in a slash means a directory. -ENOENT, -ENOTDIR, -ELOOP as from open(), other errors
 * for a file system that is damaged. *ret is closed with file_node_close().
 */
int file_node_find(struct file_system *fs, const char *path, unsigned flags, struct file_node **ret,
                   struct error *err);

/* Opens a file by the number that file_node_list() told. */
int file_node_open(struct file_system *fs, uint32_t inode, struct file_node **ret,
                   struct error *err);
void file_node_close(struct file_node *node);
DEFINE_CLEANUP(struct file_node, file_node_close);

/* The path without links, "/usr/bin/sh", of one that file_node_find() found; else NULL. */
const char *file_node_path(const struct file_node *node);

struct file_info {
    uint32_t inode;
    mode_t mode; /* type and permissions, as in struct stat */
    uint32_t uid, gid;
    uint32_t links;
    uint64_t size;                       /* bytes */
    uint64_t allocated;                  /* bytes of the file system that it takes */
    uint32_t device_major, device_minor; /* of a device node */
    struct timespec accessed, modified, changed;
    struct timespec created; /* tv_sec 0 where inodes are too small to hold it */
};

const struct file_info *file_node_info(const struct file_node *node);

struct file_entry {
    const char *name; /* 1 to FILE_NAME_MAX bytes, of any values but '/' and NUL */
    size_t length;
    uint32_t inode;
};

/*
 * Calls `take` for each entry of a directory but "." and "..", in no order; names may occur twice
 * in a damaged directory. Stops where it returns other than 0, and returns that.
 */
typedef int file_take(void *arg, const struct file_entry *entry, struct error *err);
int file_node_list(struct file_node *node, file_take *take, void *arg, struct error *err);

/* A symbolic link's target, which may hold any bytes but NUL, and is not empty. *ret is the
 * caller's to free. */
int file_node_read_link(struct file_node *node, char **ret, struct error *err);

/* --- Bytes of regular files --- */

enum file_extent_kind {
    FILE_HOLE,   /* reads as zeros: not allocated, or allocated and not written */
    FILE_DATA,   /* is on the disk */
    FILE_INLINE, /* stands in the inode: file_node_read() it */
};

struct file_extent {
    enum file_extent_kind kind;
    uint64_t length; /* bytes, more than 0 */
    uint64_t offset; /* DATA: bytes from the start of the disk, for image_read() and image_map() */
};

/*
 * The extent at `offset`: as long as one look tells, cut to `length` (more than 0; offset + length
 * at most the file's size). Another of the same kind may follow.
 */
int file_node_map(struct file_node *node, uint64_t offset, uint64_t length, struct file_extent *ret,
                  struct error *err);

/* Reads bytes; the range must lie within the file's size. */
int file_node_read(struct file_node *node, uint64_t offset, void *buffer, size_t length,
                   struct error *err);

/*
 * Calls `take` for all of a file from its start on, in order: data in pieces of at most FILE_PIECE
 * bytes, and holes, `bytes` NULL, in lengths of any size. Ranges of the image that are known to be
 * zeros count as holes, too. Stops where it returns other than 0, and returns that. That a file has
 * more data than its file system has room for is an error.
 */
#define FILE_PIECE ((size_t)1 << 20)
typedef int file_take_bytes(void *arg, uint64_t offset, const void *bytes, uint64_t length,
                            struct error *err);
int file_node_read_all(struct file_node *node, file_take_bytes *take, void *arg, struct error *err);

/* --- Attributes --- */

/*
 * Calls `take` for each extended attribute, with its whole name ("security.capability") and its
 * value as it is on the disk, which for access control lists is not what getxattr() gives. Stops
 * where it returns other than 0, and returns that.
 */
typedef int file_take_xattr(void *arg, const char *name, const void *value, size_t length,
                            struct error *err);
int file_node_xattrs(struct file_node *node, file_take_xattr *take, void *arg, struct error *err);
