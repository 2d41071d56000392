/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>

#include "common/error.h"
#include "common/progress.h"
#include "hashtree/hashtree.h"
#include "image/image.h"
#include "image/partition.h"

/*
 * The FUSE filesystem: an image's disk and partitions and the data partition's hash device as
 * plain files of one directory.
 *
 *     disk        the whole virtual disk          hash        the dm-verity hash device
 *     part1 …     each partition                  root-hash   hex and a newline
 *     data        link to the data partition      table       the dm-verity table line
 *     params.json all parameters                  cmdline     dm-mod.create="…" for a kernel
 *     stats.json  live counters
 *
 * Opening root-hash, table, cmdline or params.json, and reading the superblock or upper levels of
 * hash, waits for a full build of the tree; everything else answers at once. A build that fails is
 * EIO to those who wait for it, and is tried again for whoever comes a second later.
 *
 * If `verified`, data that has not the digest that the tree says is EIO for those who read it, and
 * logged; so are hash blocks of `hash`. What of the disk the tree does not cover is served as it
 * is.
 *
 * If image_writable(), disk and partitions can be written to, and all files tell what was written:
 * the texts as of when they are opened. Which files there are is told by the partition table as it
 * was in the beginning. fsync() makes writes durable; whoever ends the fs has to image_flush().
 */
struct fs;

struct fs_options {
    struct image *image;
    const struct partition_table *partitions;
    const struct partition *data; /* one of them, or &partitions->disk */
    struct hashtree *tree;        /* over the data partition */
    bool verified;                /* check data before it is served: hashtree_trust() was called */
    const char *mount_options;    /* of -o, comma-separated, as fs_check_options() takes; or NULL */
    unsigned idle_seconds; /* end when nothing was asked for so long, with no file open; or 0 */
    unsigned threads;      /* that serve requests; 0: a default after the number of CPUs */

    /* All may be NULL; called from threads of the fs with `arg`. */
    void (*ready)(void *arg); /* once, when requests are answered */
    /* Around each full build, never overlapping. `progress` is the tree's. */
    void (*build_started)(const struct progress *progress, void *arg);
    void (*build_ended)(void *arg);
    void *arg;
};

/* Checks mount options (-o) for an image that is `writable` or not; errors name the option that is
 * unknown or wrong. NULL is fine. */
int fs_check_options(const char *mount_options, bool writable, struct error *err);

/*
 * Checks that something can be mounted at `directory`: FUSE is there and may be used, and
 * `directory` is an empty directory with no filesystem of ours, dead or alive, mounted on it.
 * *ret is its absolute path without symbolic links, to be freed.
 */
int fs_check_directory(const char *directory, char **ret, struct error *err);

/*
 * Mounts on `directory`, as fs_check_directory() returned it. What `options` points to must outlive
 * the fs. Starts no threads; requests are answered only once fs_serve() runs. *ret is freed with
 * fs_free(), which unmounts if that has not happened.
 */
int fs_mount(const struct fs_options *options, const char *directory, struct fs **ret,
             struct error *err);

/*
 * The same without a directory: *ret_root is a descriptor of the mount's root directory
 * (close-on-exec, owned), to open files in, as openat() and /proc/self/fd do. The mount is there
 * until nobody has that or a file of it any more; there are no mount options. To be called with one
 * thread only. An error means that the system does not let us, and that fs_mount() may be able to.
 */
int fs_mount_detached(const struct fs_options *options, struct fs **ret, int *ret_root,
                      struct error *err);

void fs_free(struct fs *fs);
DEFINE_CLEANUP(struct fs, fs_free);

/* fs_serve() could not wait for all threads. */
#define FS_ABANDONED 1

/*
 * Answers requests until the filesystem is unmounted or fs_stop() is called, once in the life of an
 * fs. Then requests in flight are answered, builds are cancelled (hashtree_cancel()), and the
 * filesystem is unmounted. Signals are blocked in the threads it starts, so that they reach the
 * caller.
 *
 * Returns 0; FS_ABANDONED if a thread was still stuck in reading a file after seconds of waiting
 * (an image on a dead network file system): then fs_free() does nothing, nothing the fs uses may be
 * freed, and the process had better _exit(); or a negative errno value if serving could not begin.
 */
int fs_serve(struct fs *fs, struct error *err);

/* Makes fs_serve() return, now or when it is called; safe in signal handlers. */
void fs_stop(struct fs *fs);
