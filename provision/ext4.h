/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

/*
 * Writing a new ext4 file system, once, from its first file to its last one.
 *
 * The same calls give the same bytes: inodes are numbered and blocks allocated in the order of the
 * calls, all times are told, and nothing comes from a clock or a random source. Blocks of zeros
 * become holes, in the file system and in the file that it is in. What is not used was never
 * written.
 */
struct ext4;

/*
 * Opens the file system that mke2fs made at `offset` bytes of the file at `path`, empty but for
 * lost+found. `now` (seconds) is what every time in it becomes that nobody tells. The file system
 * is marked as in use, and thus damaged, until ext4_finish(). *ret is freed with ext4_free().
 */
int ext4_open(const char *path, uint64_t offset, uint32_t now, struct ext4 **ret,
              struct error *err);
void ext4_free(struct ext4 *ext4);
DEFINE_CLEANUP(struct ext4, ext4_free);

struct ext4_attributes {
    mode_t mode; /* type and permissions */
    uint32_t uid, gid;
    uint32_t mtime; /* seconds; also atime, ctime and crtime */
    dev_t device;   /* of device nodes */
};

#define EXT4_ROOT 2

/* Each adds a file to the directory `parent`, which must not have been closed, and tells its inode.
 * `path` is for messages. */
int ext4_add_directory(struct ext4 *ext4, uint32_t parent, const char *name,
                       const struct ext4_attributes *attributes, const char *path,
                       uint32_t *ret_inode, struct error *err);
int ext4_add_link(struct ext4 *ext4, uint32_t parent, const char *name,
                  const struct ext4_attributes *attributes, const char *target, const char *path,
                  uint32_t *ret_inode, struct error *err);
/* FIFOs, sockets and devices. */
int ext4_add_special(struct ext4 *ext4, uint32_t parent, const char *name,
                     const struct ext4_attributes *attributes, const char *path,
                     uint32_t *ret_inode, struct error *err);
/* Another name of a file that is there; not of a directory. */
int ext4_add_name(struct ext4 *ext4, uint32_t parent, const char *name, uint32_t inode,
                  const char *path, struct error *err);

/* A regular file: begun, its bytes written in order, ended. */
int ext4_begin_file(struct ext4 *ext4, uint32_t parent, const char *name,
                    const struct ext4_attributes *attributes, const char *path, uint32_t *ret_inode,
                    struct error *err);
int ext4_write_file(struct ext4 *ext4, uint64_t offset, const void *bytes, size_t length,
                    struct error *err);
int ext4_end_file(struct ext4 *ext4, uint64_t size, struct error *err);

/* The root directory is there already; this says what it is like. */
int ext4_set_root(struct ext4 *ext4, const struct ext4_attributes *attributes, struct error *err);

/* `name` with its prefix ("security.capability"). `raw`: the value is as it is on the disk of
 * another ext4, else as lgetxattr() gives it. */
int ext4_set_xattr(struct ext4 *ext4, uint32_t inode, const char *name, const void *value,
                   size_t length, bool raw, const char *path, struct error *err);

/* Writes the directory, to which nothing is added any more. */
int ext4_close_directory(struct ext4 *ext4, uint32_t inode, const char *path, struct error *err);

/* Writes what is left and syncs. The root directory must have been closed. */
int ext4_finish(struct ext4 *ext4, struct error *err);
