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
    uint32_t file_count;
    struct tree_file_identity identities[TREE_FILE_FILES_MAX];
    bool warned_untrusted;
    bool tracking_known;
    struct image_tracking *tracking; /* what the bitmaps say, if they are to be believed */
};

/* --- identity.c --- */

/* Takes the identities that the image's files had when it was opened. False, with the reason for
 * it, if they are of a kind that does not show changes. */
bool keep_take_identities(struct keep *keep);

/* Whether what is written to the files from now on gives them other identities; may wait for
 * that. */
bool keep_settle(const struct keep *keep);

/* Takes the first file's identity anew, after we wrote to it ourselves. False if other changes
 * could have gone unseen, or would. */
bool keep_retake_identity(struct keep *keep);

/* Whether the files are still what they were when the identities were taken. */
bool keep_files_unchanged(const struct keep *keep);

/* Makes what the files hold durable: bytes that a crash of the machine could take back must not be
 * vouched for. */
bool keep_sync_files(const struct keep *keep);

/* Whether the tree file was made of what our files hold, its first file being our file `first`. */
bool keep_header_current(const struct keep *keep, const struct tree_header *header, uint32_t first);

/* The path of a file for which that does not hold, its files before `from` aside; or NULL. */
const char *keep_changed_file(const struct keep *keep, const struct tree_header *header,
                              uint32_t first, uint32_t from);

/* Whether it is the same file, changed or not. */
bool keep_same_file(const struct tree_file_identity *a, const struct tree_file_identity *b);

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
    struct tree_file *below; /* owned: the tree file of an image below */
};

/* Fills *ret, which points into itself; proof_clear() it. */
void proof_find(struct keep *keep, struct proof *ret);
void proof_clear(struct proof *proof);
DEFINE_CLEANUP_INPLACE(struct proof, proof_clear);

/* Whether the header is of a tree like ours, and of `view`. */
bool proof_header_fits(const struct keep *keep, const struct tree_header *header, const char *view);

/* --- track.c --- */

/* What the image's bitmaps say of changes, or NULL; tree->untracked then tells why. Valid until
 * they are reset. */
const struct image_tracking *keep_tracking(struct keep *keep);

/* Whether the bitmaps have recorded all that was written since the tree file was. If not, the
 * reason is set. */
bool keep_tracked_since(struct keep *keep, const struct image_tracking *tracking,
                        const struct tree_file *file);

/* Ties the next header to the bitmaps as they are. That it cannot be tied is no error. */
void keep_record_tracking(struct keep *keep, struct tree_writer *writer,
                          struct tree_header *header);

/* --- keep.c --- */

/* Opens the tree file anew, after it was written. */
void keep_reopen(struct keep *keep);

/* What the image's tree file is called, and what it must be of. */
int keep_init(struct keep *keep, const struct hashtree_file_options *options, struct error *err);

/* Tells, once, of a tree file that tree_file_open() turned down with -EPERM. */
void keep_warn_untrusted(struct keep *keep, const struct error *err);

/* Frees what `keep` holds. */
void keep_clear(struct keep *keep);
