/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "common/error.h"
#include "hashtree/verity.h"

/*
 * The tree file: nodes of one tree, kept between runs. Its layout is told in docs/tree-file.md.
 *
 * It is a cache that nobody needs to trust. Its header is believed if nobody else could have
 * written it and its checksum is right; whether it speaks of today's image is for the caller to
 * judge by what the header says of the image's files. A node is believed only if it has the digest
 * that its parent, believed before, holds.
 */

#define TREE_FILE_VERSION 2
#define TREE_FILE_FILES_MAX 128 /* host files of an image: as many as image/ opens */
#define TREE_FILE_VIEW_MAX 256  /* bytes, with the NUL */
#define TREE_FILE_BASE_MAX 1024 /* bytes, with the NUL */
#define TREE_FILE_GRANULES_MAX (UINT64_C(1) << 20) /* ranges of granules */
#define TREE_FILE_DIGEST_SIZE 32                   /* of what has no parent: SHA-256 */

/* What tells a host file, and its contents, from others. */
struct tree_file_identity {
    uint64_t device, inode;
    uint64_t size; /* bytes */
    struct timespec mtime, ctime;
};

struct tree_header {
    uint64_t generation; /* of two header slots the one that counts more is the file's */
    bool lean;           /* level 0 is not kept */

    /* The tree. */
    struct verity_params params; /* hash_offset, superblock and UUID have no say in it */
    uint64_t start;              /* bytes of the image before the data */
    uint8_t root[VERITY_DIGEST_MAX];
    uint64_t zero_blocks; /* UINT64_MAX: not known */

    /* The image it was made of. */
    char view[TREE_FILE_VIEW_MAX]; /* which of an image's faces: format and snapshot */
    bool settled;                  /* what is written to the files since gives them other times */
    uint32_t file_count;
    struct tree_file_identity files[TREE_FILE_FILES_MAX];

    /* Another tree file that holds nodes which are not here: an overlay's base. Or "". */
    char base[TREE_FILE_BASE_MAX];

    /* Change tracking (docs/change-tracking.md): what tells the bitmaps that have recorded all
     * changes since from any other, and which granules were set in them already. */
    uint64_t granularity; /* bytes; 0: changes were not tracked when this was written */
    uint8_t bitmap_generation[16];
    uint64_t granules_count; /* ranges */
    uint8_t granules_digest[TREE_FILE_DIGEST_SIZE];
};

/* A range of granules. */
struct tree_file_granules {
    uint32_t first, end;
};

struct tree_file;

/*
 * Opens the tree file at `path` for reading, with those below it, if it is one of the digest
 * `digest` (NULL: any). -ENOENT: there is none; -EINVAL: it is not one, is damaged, or of another
 * version; -ESTALE: it is of another digest, which may be one that a confined process knows nothing
 * of; -EPERM: it belongs to neither the effective user nor root, or its mode lets others write to
 * it. *ret is freed with tree_file_close().
 */
int tree_file_open(const char *path, const char *digest, struct tree_file **ret, struct error *err);

/* Whether a new tree file may take the place of what is at `path`: nothing, an empty file, or what
 * was a tree file, however damaged. */
bool tree_file_replaceable(const char *path);

void tree_file_close(struct tree_file *file);
DEFINE_CLEANUP(struct tree_file, tree_file_close);
#define _cleanup_tree_file_ _cleanup_(tree_file_close_cleanup)

const struct tree_header *tree_file_header(const struct tree_file *file);
const char *tree_file_path(const struct tree_file *file);

/* Bytes that it takes on disk, without those below it. */
uint64_t tree_file_usage(const struct tree_file *file);

/* The file below, or NULL. */
struct tree_file *tree_file_below(const struct tree_file *file);

/* The header's granules_count ranges of granules; *ret is the caller's to free. -EINVAL: they are
 * damaged. */
int tree_file_granules(const struct tree_file *file, struct tree_file_granules **ret,
                       struct error *err);

/* Reads the bytes that stand for a node, geometry->hash_block_size of them, from this file alone.
 * False if there are none; that they are the node's is for the caller to check. */
bool tree_file_read(const struct tree_file *file, unsigned level, uint64_t index, uint8_t *block);

/* --- Writing --- */

struct tree_writer;

/* A new file that takes the place of the one at `path` when it is committed. */
int tree_writer_new(const char *path, const struct tree_header *header, struct tree_writer **ret,
                    struct error *err);

/* Changes `file` in place. -EBUSY: another process does. */
int tree_writer_update(const struct tree_file *file, const struct tree_header *header,
                       struct tree_writer **ret, struct error *err);

/* Gives up what was not committed. */
void tree_writer_free(struct tree_writer *writer);
DEFINE_CLEANUP(struct tree_writer, tree_writer_free);

/* Writes nodes; from any number of threads at once. */
int tree_writer_nodes(struct tree_writer *writer, unsigned level, uint64_t first, uint64_t count,
                      const uint8_t *blocks, struct error *err);

/* Writes the ranges of granules, TREE_FILE_GRANULES_MAX of them at most, that go with the next
 * header, and puts their number and digest into it. */
int tree_writer_granules(struct tree_writer *writer, const struct tree_file_granules *granules,
                         uint64_t count, struct tree_header *header, struct error *err);

/* Writes the header, from where on readers believe the file. With `durable`, everything is on disk
 * when it returns. May be called again with another header. */
int tree_writer_commit(struct tree_writer *writer, const struct tree_header *header, bool durable,
                       struct error *err);
