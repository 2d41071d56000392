/* SPDX-License-Identifier: MIT */
#pragma once

#include "hashtree/internal.h"
#include "image/bitmap.h"

/*
 * Private to the files that keep trees:
 *
 *     keep.c      a tree's file: reading it, building with it, writing it
 *     identity.c  whether files are what they were
 *     proof.c     what is known to be unchanged, and where changes are told
 *     track.c     change tracking by QEMU's dirty bitmaps
 */
struct keep {
    struct hashtree *tree;
    char *path;
    char view[TREE_FILE_VIEW_MAX];
    bool lean;
    bool rescan;
    struct tree_file *file; /* the image's tree file as it was, if it is of this tree */
    struct timespec opened; /* before anything was read, after the identities were taken */
    uint32_t file_count;
    struct tree_file_identity identities[TREE_FILE_FILES_MAX];
};

/* --- identity.c --- */

/* Takes the identities that the image's files had when it was opened. False, with the reason in the
 * log, if they are of a kind that does not show changes. */
bool keep_take_identities(struct keep *keep);

/* Takes the first file's identity anew, after we wrote to it ourselves. */
bool keep_retake_identity(struct keep *keep);

/* Whether the files are still what they were when the identities were taken. */
bool keep_files_unchanged(const struct keep *keep);

/* Makes what the files hold durable: bytes that a crash of the machine could take back must not be
 * vouched for. */
bool keep_sync_files(const struct keep *keep);

/* Whether the tree file was made of what our files hold, its first file being our file `first`. */
bool keep_header_current(const struct keep *keep, const struct tree_header *header, uint32_t first);

/* Whether a file is the one that is meant, untouched. */
bool keep_same_identity(const struct tree_file_identity *a, const struct tree_file_identity *b);

/* --- proof.c --- */

/* What the chain from `depth` on is read as, beyond the bytes of its files: each image's format,
 * and the snapshot (or NULL). */
void keep_view(const struct image *image, unsigned depth, const char *snapshot,
               char view[static TREE_FILE_VIEW_MAX]);

struct overlay_changes {
    struct hashtree *tree;
    unsigned depth;
};

struct bitmap_changes {
    struct hashtree *tree;
    const struct image_bitmap_bits *bits;
};

/* The cheapest proof there is: with which base, and which changes since. */
struct proof {
    enum hashtree_method method;
    struct node_base base; /* unless method is FULL */
    struct hashtree_changes changes;
    struct overlay_changes overlay;
    struct bitmap_changes bitmap;
    struct tree_file *below;        /* owned: the tree file of an image below */
    struct image_bitmap_bits *bits; /* owned */
};

/* Fills *ret, which points into itself; proof_clear() it. */
void proof_find(struct keep *keep, struct proof *ret);
void proof_clear(struct proof *proof);
DEFINE_CLEANUP_INPLACE(struct proof, proof_clear);

/* Whether the header is of a tree like ours, and of `view`. */
bool proof_header_fits(const struct keep *keep, const struct tree_header *header, const char *view);

/* Whether the bitmap has recorded all that was written since the tree file was. */
bool proof_same_bitmap(const struct keep *keep, const struct image_bitmap_bits *bits,
                       const struct tree_header *header);

/* Notes which granules are set. False if that is too much to note. */
bool proof_record_granules(const struct image_bitmap_bits *bits, struct tree_header *header);

/* --- keep.c --- */

/* Opens the tree file anew, after it was written. */
void keep_reopen(struct keep *keep);
