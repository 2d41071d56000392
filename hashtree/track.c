/* SPDX-License-Identifier: MIT */
/*
 * Beginning to track changes from the tree on that was just found (docs/change-tracking.md). The
 * order is what makes it safe: first the tree file names a new generation and new canaries,
 * durably; then the bitmaps get them, and the bitmap loses its other bits. Whatever stops this on
 * the way leaves a tree file whose generation the image does not have, and the next update reads
 * everything. No writer can slip between: the image is locked against them from before it was read.
 */
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "common/log.h"
#include "hashtree/keep.h"

/* Whether the bitmap is as a reset left it, for the tree that is in the file. */
static bool tracked_already(const struct keep *keep, const struct image_bitmap_bits *bits)
{
    const struct tree_header *header = tree_file_header(keep->file);

    return keep_header_current(keep, header, 0) && header->granularity != 0 &&
           proof_same_bitmap(keep, bits, header) &&
           image_bitmap_set_count(bits) == header->canary_count;
}

static int reset(struct keep *keep, struct tree_writer *writer, struct tree_header *header,
                 struct error *err)
{
    const struct tree_header old = *tree_file_header(keep->file);

    /* The new identity must not vouch for what somebody wrote past the locks. */
    if (!keep_files_unchanged(keep))
        return error_set(err, EAGAIN, "%s: it was written to while it was read",
                         image_path(keep->tree->image));
    int r = tree_writer_commit(writer, header, true, err);
    if (r < 0)
        return r;
    r = image_bitmap_reset(keep->tree->image, header->canaries, header->canary_count,
                           header->bitmap_generation, err);
    if (r < 0) {
        /* If nothing was changed, the old generation still counts. */
        (void)tree_writer_commit(writer, &old, true, NULL);
        return r;
    }
    if (!keep_retake_identity(keep))
        return 0;
    header->files[0] = keep->identities[0];
    header->recorded = keep->opened;
    /* If a crash takes this back, the image looks changed, and the bitmap says what little did. */
    return tree_writer_commit(writer, header, false, err);
}

int hashtree_track(struct hashtree *tree, bool *ret_tracked, struct error *err)
{
    _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *bits = NULL;
    _cleanup_(tree_writer_free_cleanup) struct tree_writer *writer = NULL;
    _cleanup_error_ struct error load_err = ERROR_INIT;
    struct keep *keep = tree->keep;

    *ret_tracked = false;
    if (keep == NULL || keep->file == NULL ||
        memcmp(tree_file_header(keep->file)->root, tree->root, tree->geometry.digest_size) != 0)
        return 0;
    if (image_bitmap_load(tree->image, IMAGE_BITMAP_NAME, &bits, &load_err) < 0) {
        log_info("changes are not tracked: %s", error_message(&load_err));
        return 0;
    }
    if (tracked_already(keep, bits)) {
        *ret_tracked = true;
        return 0;
    }
    struct tree_header header = *tree_file_header(keep->file);
    header.granularity = image_bitmap_granularity(bits);
    header.canary_count = IMAGE_BITMAP_CANARIES;
    header.recorded_count = 0;
    int r = image_bitmap_choose_canaries(bits, header.canaries, header.canary_count, err);
    if (r < 0)
        return r;
    if (getrandom(header.bitmap_generation, sizeof(header.bitmap_generation), 0) !=
        sizeof(header.bitmap_generation))
        return error_set_errno(err, errno, "getrandom");
    r = tree_writer_update(keep->file, &header, &writer, err);
    if (r < 0)
        return r;
    r = reset(keep, writer, &header, err);
    if (r < 0)
        return r;
    keep_reopen(keep);
    *ret_tracked = true;
    return 0;
}
