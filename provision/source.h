/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "image/image.h"
#include "image/partition.h"
#include "provision/ext4.h"

/* The files of a system as they are to be copied into a new file system: of a directory tree of
 * this machine, or of the file system in an image. */

struct source_node {
    const char *path; /* from the system's root: "/etc/passwd"; "/" is the root itself */
    const char *name; /* its last part */
    struct ext4_attributes attributes;
    uint64_t id;    /* the inode's number */
    uint32_t links; /* names that it has */
    uint64_t size;  /* bytes, of a regular file */
};

struct source;

typedef int source_take_bytes(void *arg, uint64_t offset, const void *bytes, size_t length,
                              struct error *err);
typedef int source_take_xattr(void *arg, const char *name, const void *value, size_t length,
                              struct error *err);

/* All are required. */
struct source_ops {
    /* The root's node but for its path and name. */
    int (*root)(struct source *source, struct source_node *ret, struct error *err);
    /* The entries of a directory, without . and .., in any order. */
    int (*list)(struct source *source, const struct source_node *directory,
                int (*take)(void *arg, const struct source_node *entry, struct error *err),
                void *arg, struct error *err);
    /* *ret is owned. */
    int (*link)(struct source *source, const struct source_node *node, char **ret,
                struct error *err);
    /* A regular file's bytes, in order; holes may be left out. */
    int (*read)(struct source *source, const struct source_node *node, source_take_bytes *take,
                void *arg, struct error *err);
    int (*xattrs)(struct source *source, const struct source_node *node, source_take_xattr *take,
                  void *arg, struct error *err);
    void (*free)(struct source *source);
};

struct source {
    const struct source_ops *ops;
    bool raw_xattrs; /* values are as ext4 has them on the disk */
};

static inline void source_free(struct source *source)
{
    source->ops->free(source);
}
DEFINE_CLEANUP(struct source, source_free);

/* The tree below `path`; what is mounted in it is not looked at. */
int source_open_tree(const char *path, struct source **ret, struct error *err);

/* The file system in a partition of an image; both must outlive it. One that was not unmounted
 * cleanly, or has files of a kind that cannot be copied (encrypted ones), is an error. */
int source_open_image(struct image *image, const struct partition *partition, struct source **ret,
                      struct error *err);

/* What a file system is called. */
struct source_identity {
    uint8_t uuid[16], hash_seed[16];
    char label[17];
};
int source_identify(struct image *image, const struct partition *partition,
                    struct source_identity *ret, struct error *err);

/* --- Copying --- */

enum filter_verdict {
    FILTER_KEEP,
    FILTER_DROP,    /* with all below it */
    FILTER_SIFT,    /* a directory: dropped, unless something below it is kept */
    FILTER_REPLACE, /* a regular file gets other bytes */
};

struct filter {
    int (*judge)(void *arg, const struct source_node *node, enum filter_verdict *ret,
                 struct error *err);
    /* The bytes that replace `text`. *ret is owned. */
    int (*replace)(void *arg, const struct source_node *node, const char *text, size_t length,
                   char **ret, size_t *ret_length, struct error *err);
    /* Sees the bytes of each file that is kept. May be NULL. */
    int (*look)(void *arg, const struct source_node *node, uint64_t offset, const void *bytes,
                size_t length, struct error *err);
    /* A file that is left out: `top`, or one that is below it. May be NULL. */
    void (*dropped)(void *arg, const struct source_node *top, const struct source_node *node);
    void *arg;
};

/*
 * Copies a system into a new file system, in the order of the names; times after `epoch` become
 * that. `filter` may be NULL. `interrupted` is asked before each file. *ret_files gets how many
 * files there are now.
 */
struct copy_options {
    struct source *source;
    struct ext4 *ext4;
    const struct filter *filter;
    uint32_t epoch;
    int (*interrupted)(void *arg, struct error *err);
    void *arg;
};
int source_copy(const struct copy_options *options, uint64_t *ret_files, struct error *err);

/* How many files there are, the filter applied, and the bytes of regular files. `ext4` is not used.
 */
int source_count(const struct copy_options *options, uint64_t *ret_files, uint64_t *ret_bytes,
                 struct error *err);
