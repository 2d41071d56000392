/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>

#include "common/error.h"
#include "hashtree/hashtree.h"
#include "image/image.h"
#include "image/partition.h"

/*
 * The FUSE filesystem: an image's disk and partitions and the data partition's hash device as
 * plain, read-only files of one directory.
 *
 *     disk        the whole virtual disk          hash        the dm-verity hash device
 *     part1 …     each partition                  root-hash   hex and a newline
 *     data        link to the data partition      table       the dm-verity table line
 *     params.json all parameters                  cmdline     dm-mod.create="…" for a kernel
 *     stats.json  live counters
 *
 * Reading root-hash, table, cmdline, params.json, or the superblock and upper levels of hash waits
 * for a full build of the tree; everything else answers at once.
 */
struct fs;

struct fs_options {
    struct image *image;
    const struct partition_table *partitions;
    const struct partition *data; /* one of them, or &partitions->disk */
    struct hashtree *tree;        /* over the data partition */
    const char *mount_options;    /* further options of -o, comma-separated, or NULL */
    unsigned threads;             /* that serve requests; 0: a default */
};

/*
 * Mounts on `directory`, which must exist and be empty. What `options` points to must outlive the
 * fs. Requests are answered only once fs_serve() runs. *ret is freed with fs_free(), which unmounts
 * if that has not happened.
 */
int fs_mount(const struct fs_options *options, const char *directory, struct fs **ret,
             struct error *err);
void fs_free(struct fs *fs);
DEFINE_CLEANUP(struct fs, fs_free);

/*
 * Answers requests until the filesystem is unmounted or fs_stop() is called. Call it from a process
 * that has started no threads before a fork it needs.
 */
int fs_serve(struct fs *fs, struct error *err);

/* Makes fs_serve() return; safe in signal handlers. */
void fs_stop(struct fs *fs);
