/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/progress.h"
#include "hashtree/verity.h"
#include "image/image.h"

/*
 * The dm-verity tree over a range of an image, and the hash device that holds it, which exists only
 * as far as somebody asks for it.
 *
 * A node (level, index) is one hash block. It is *constant* (all data below is known to be zeros:
 * one value per level, plus one for the last node, which may be shorter), *kept* in memory, or
 * *derivable* from what is below it. All functions may be called from any number of threads at
 * once; concurrent readers of one node share one computation.
 */
struct hashtree;

enum hashtree_direct { HASHTREE_DIRECT_AUTO, HASHTREE_DIRECT_ON, HASHTREE_DIRECT_OFF };

struct hashtree_options {
    unsigned threads;            /* 0: one for each CPU that we may run on */
    enum hashtree_direct direct; /* O_DIRECT: AUTO uses it for data larger than free memory */
    uint64_t cache_size;         /* bytes of nodes to keep in memory; 0: the default of 64 MiB */
    bool root_only; /* builds keep no nodes in memory, as none will be asked for once the root is
                       known */
};

/*
 * A tree over the bytes from `start` of the image on, params->data_blocks data blocks long; they
 * must lie within the image. params->uuid need not be set. `image` must outlive the tree. Nothing
 * is read yet. `options` may be NULL.
 */
int hashtree_new(struct image *image, uint64_t start, const struct verity_params *params,
                 const struct hashtree_options *options, struct hashtree **ret, struct error *err);
void hashtree_free(struct hashtree *tree);
DEFINE_CLEANUP(struct hashtree, hashtree_free);

const struct verity_params *hashtree_params(const struct hashtree *tree);
const struct verity_geometry *hashtree_geometry(const struct hashtree *tree);

/* --- Keeping the tree between runs --- */

#define TREE_FILE_SUFFIX ".qvtree"

/* Where an image's tree file is unless the options say where: the image's path and this suffix.
 * Owned by the caller; NULL: out of memory. */
char *hashtree_file_path(const struct image *image);

struct hashtree_file_options {
    const char *path;     /* of the tree file; NULL: hashtree_file_path() */
    const char *snapshot; /* that the image was opened with, or NULL */
    bool lean;            /* do not keep level 0 */
    bool rescan;          /* believe nothing, but keep what comes out */
};

/*
 * To be called before anything is asked of the tree: it is kept in a tree file, and what can be
 * proven unchanged since that was written is not read again (docs/tree-file.md). If nothing
 * changed, the root is known when this returns. That the file is missing, damaged, or cannot be
 * written is no error; hashtree_method() and hashtree_reason() tell what came of it.
 */
int hashtree_keep(struct hashtree *tree, const struct hashtree_file_options *options,
                  struct error *err);

/* How the root was found. */
enum hashtree_method {
    HASHTREE_FULL,      /* everything was read */
    HASHTREE_UNCHANGED, /* out of the tree file */
    HASHTREE_BITMAP,    /* what QEMU's dirty bitmap says was read */
    HASHTREE_OVERLAY,   /* what an overlay holds was read */
    HASHTREE_WRITES,    /* what was written through our own mount was read */
};
enum hashtree_method hashtree_method(struct hashtree *tree);
const char *hashtree_method_name(enum hashtree_method method);

/*
 * Once the root is known: whether the tree file is tied to bitmaps in which QEMU records what is
 * written from here on (docs/change-tracking.md); else *ret_why tells why not, or is "". Valid as
 * long as the tree.
 */
bool hashtree_tracking(struct hashtree *tree, const char **ret_why);

/*
 * Once the root is known: resets these bitmaps, if the image has some, so that the next update
 * reads only what is written from here on. An error is that of changing the image or the tree file;
 * the root is right all the same, and the tree file may still be tied to the bitmaps as they were.
 */
int hashtree_track(struct hashtree *tree, struct error *err);

/*
 * Keeps an image's tree file across an edit of the image file that changes no byte of the disk:
 * begin, edit, end. From before the first until after the last nobody else may be able to write to
 * the image. *ret is NULL if there is no tree file that is current. hashtree_carry_end() takes the
 * image as it was opened anew after the edit; *ret_carried tells whether the tree file is current
 * again. If not, it is as if the image was changed. `options` are the same in both.
 */
struct hashtree_carry;
int hashtree_carry_begin(struct image *image, const struct hashtree_file_options *options,
                         struct hashtree_carry **ret, struct error *err);
int hashtree_carry_end(struct hashtree_carry *carry, struct image *image,
                       const struct hashtree_file_options *options, bool *ret_carried,
                       struct error *err);
void hashtree_carry_free(struct hashtree_carry *carry);
DEFINE_CLEANUP(struct hashtree_carry, hashtree_carry_free);

/* Why nothing cheaper than HASHTREE_FULL would do; "" if there is nothing to say. */
const char *hashtree_reason(const struct hashtree *tree);

/*
 * Ranges of the data that may differ from what an older tree was made of: `next` gets the first
 * that ends behind `offset`, cut so that it begins at `offset` or behind it, or UINT64_MAX twice.
 * Bytes from the start of the data. Called by many threads at once.
 */
struct hashtree_changes {
    int (*next)(void *arg, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end,
                struct error *err);
    void *arg;
};

/* What a tree file is, for somebody who looks. */
struct hashtree_file_info {
    char *path;     /* owned */
    bool exists;    /* the rest is filled only if it does and is not damaged */
    char *damage;   /* owned: why it is not believed, or NULL */
    bool untrusted; /* that is because somebody else could have written it */
    bool current;   /* the image is what it was made of */
    bool lean;
    bool tracking;        /* it names a dirty bitmap */
    uint64_t usage;       /* bytes on disk */
    uint64_t start, size; /* bytes of the image that it covers */
    uint8_t root[VERITY_DIGEST_MAX];
    size_t root_size;
};
int hashtree_file_info(struct image *image, const struct hashtree_file_options *options,
                       struct hashtree_file_info *ret, struct error *err);
void hashtree_file_info_clear(struct hashtree_file_info *info);
DEFINE_CLEANUP_INPLACE(struct hashtree_file_info, hashtree_file_info_clear);

/* --- Data that changes --- */

/* To be called before the first hashtree_changed(), and before anything is asked of the tree. */
int hashtree_changing(struct hashtree *tree, struct error *err);

/*
 * Bytes of the image have been written: to be called after each write, before it is acknowledged.
 * What is asked of the tree from then on speaks of the new data; the root is found anew from what
 * changed. To be called before the write as well if the tree is kept in a file: that must not get
 * what the image's files do not hold yet.
 */
void hashtree_changed(struct hashtree *tree, uint64_t offset, uint64_t length);

/* What hashing took. */
struct hashtree_stats {
    uint64_t data_bytes_hashed; /* read and hashed, or read and found to be zeros */
    uint64_t zero_blocks;       /* data blocks that are zeros; UINT64_MAX: not known */
    uint64_t nodes_computed;
    uint64_t nodes_kept;
    double build_seconds; /* of the full build; 0 before it */
};
void hashtree_stats(struct hashtree *tree, struct hashtree_stats *ret);

/*
 * The root hash, geometry->digest_size bytes. The first call reads all data (a full build, in all
 * threads, counted in hashtree_progress()); others wait for it. If reading fails, every caller gets
 * the error and the next call tries again.
 */
int hashtree_root(struct hashtree *tree, uint8_t *root, struct error *err);

/* Makes builds that run, and all later ones, fail with -ECANCELED: for a program that wants to end.
 * Reads of single nodes go on. Safe in signal handlers. */
void hashtree_cancel(struct hashtree *tree);

/* Whether hashtree_root() would return at once. */
bool hashtree_root_known(struct hashtree *tree);

/* The UUID of the superblock: the one that was given, or derived from the root hash, which is
 * computed for that. */
int hashtree_uuid(struct hashtree *tree, uint8_t uuid[static 16], struct error *err);

/* How far a full build has come: data bytes done of data bytes there are. Valid as long as the
 * tree. To be called only by who looks at it: from then on builds that take their time count the
 * data there is, which is a walk over all of the image's map. */
const struct progress *hashtree_progress(struct hashtree *tree);

/* --- The hash device --- */

/* Reads bytes of the hash device, computing what is not kept. The range must lie within
 * geometry->device_size. */
int hashtree_read(struct hashtree *tree, uint64_t offset, void *buffer, size_t length,
                  struct error *err);

/*
 * Writes the whole hash device to `fd`, as `veritysetup format` would: bytes before hash_offset are
 * left alone. Also computes the root. `name` is the file's name for messages. Not synced.
 */
int hashtree_write(struct hashtree *tree, int fd, const char *name, struct error *err);

/* --- Checking --- */

enum hashtree_fault_kind {
    HASHTREE_FAULT_ROOT, /* the highest node does not have the root hash */
    HASHTREE_FAULT_NODE, /* a hash block does not have the digest that its parent holds */
    HASHTREE_FAULT_DATA, /* a data block does not have the digest that level 0 holds */
};

struct hashtree_fault {
    enum hashtree_fault_kind kind;
    unsigned level;  /* NODE */
    uint64_t index;  /* NODE: of the hash block in its level; DATA: of the data block */
    uint64_t offset; /* bytes: NODE: in the hash device; DATA: in the data */
};

/*
 * Reads all data and, if `hash_fd` is not -1, all of the tree in that hash device, and checks them
 * against each other and against `root`. Calls `report` (from one thread at a time, in no special
 * order) for each place that is wrong. Returns 0 when everything was checked, *ret_faults telling
 * how many places were wrong: 0 means verified. Without a hash device the only fault there can be
 * is ROOT, at a price of nothing kept.
 */
int hashtree_verify(struct hashtree *tree, const uint8_t *root, int hash_fd, const char *hash_name,
                    void (*report)(const struct hashtree_fault *fault, void *arg), void *arg,
                    uint64_t *ret_faults, struct error *err);

/* --- Believing a root hash --- */

/* Code of the error that there is another root hash; no errno value. */
#define HASHTREE_WRONG_ROOT 10001

/*
 * From here on the tree is the one that has this root hash, whatever the data gives, so that
 * hashtree_check() can tell which data is right. Nodes are read from the hash device `hash_fd` and
 * checked up to the root when they are needed; only the topmost one is at once.
 * -HASHTREE_WRONG_ROOT: the hash device has another root. To be called once, by one thread, before
 * anything else is asked of the tree; not for data that changes. `hash_fd` and `hash_name` must
 * outlive the tree.
 */
int hashtree_trust(struct hashtree *tree, const uint8_t *root, int hash_fd, const char *hash_name,
                   struct error *err);

/*
 * The same without a hash device, for data that has the root hash, as hashtree_build_nodes() found
 * on another tree of the same image: nodes are read from the tree file or from `nodes_fd`, and made
 * again of the data if they are not right there. `nodes_fd` (-1: there is none) must outlive the
 * tree.
 */
int hashtree_trust_built(struct hashtree *tree, const uint8_t *root, int nodes_fd,
                         struct error *err);

/*
 * Finds out whether the data has this root hash: -HASHTREE_WRONG_ROOT if not. All of it is read,
 * unless a tree file is current. The nodes are then in the tree file, or, unless that has the nodes
 * of all levels, in `nodes_fd`, which must be empty, where they are in the hash device. -EBADF:
 * that is -1 and would be needed.
 */
int hashtree_build_nodes(struct hashtree *tree, const uint8_t *root, int nodes_fd,
                         struct error *err);

/*
 * Checks data blocks that were read: `count` of them from `first` on, one behind the other at
 * `data`, or zeros if that is NULL. Calls `report` (which may be NULL), in their order, for each
 * that is wrong, and for each hash block that is wrong so that nothing is known of the data below
 * it. Returns 0 when everything was checked, *ret_faults telling how often that was. Any number of
 * threads.
 */
int hashtree_check(struct hashtree *tree, uint64_t first, uint64_t count, const uint8_t *data,
                   void (*report)(const struct hashtree_fault *fault, void *arg), void *arg,
                   uint64_t *ret_faults, struct error *err);

/* False without hashtree_trust(); else how many data blocks were checked, and how often something
 * was wrong. */
bool hashtree_trusted(const struct hashtree *tree, uint64_t *ret_checked, uint64_t *ret_faults);

/* --- Comparing --- */

/*
 * Finds where the data of two trees of one shape (all that verity_same_tree() looks at) differs,
 * and calls `report` for each range of data blocks, in order: bytes from the start of the data.
 * What `report` returns, if it is negative, ends it.
 */
int hashtree_diff(struct hashtree *a, struct hashtree *b,
                  int (*report)(void *arg, uint64_t start, uint64_t length, struct error *err),
                  void *arg, struct error *err);

/* --- Confinement --- */

/*
 * To be called before the process is confined (common/sandbox.h): sets up what builds in up to
 * `threads` threads (0: one for each CPU) take and a confined process cannot get: io_uring rings,
 * which can do nothing but read, and libraries that are loaded when they are first used: for the
 * digest `digest` (NULL: the default one), and as `needs` says. What cannot be had, builds will do
 * without.
 */
enum hashtree_needs {
    HASHTREE_NEEDS_ANY_DIGEST = 1 << 0,
    HASHTREE_NEEDS_SUPERBLOCK = 1 << 1, /* and every digest that one may name */
};
void hashtree_prepare_confined(unsigned threads, const char *digest, unsigned needs);

/* The text that tree files have, of HASHTREE_FILE_MAGIC_SIZE bytes, at one of two offsets. */
#define HASHTREE_FILE_MAGIC "qvtree\032\n"
#define HASHTREE_FILE_MAGIC_SIZE 8
#define HASHTREE_FILE_MAGIC_AT_1 0
#define HASHTREE_FILE_MAGIC_AT_2 16384
