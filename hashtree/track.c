/* SPDX-License-Identifier: MIT */
/*
 * The tie between a tree file and the bitmaps in which QEMU records changes
 * (docs/change-tracking.md): what is believed of them, what is noted of them with each tree that is
 * kept, and resetting them.
 *
 * The order of a reset is what makes it safe: first the tree file names a new generation, durably;
 * then the bitmaps get it, and lose their other bits. Whatever stops this on the way leaves a tree
 * file whose generation the image does not have, and the next update reads everything. No writer
 * can slip between: the image is locked against them from before it was read.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>

#include "common/checked.h"
#include "common/log.h"
#include "hashtree/keep.h"

static void untracked(struct keep *keep, const char *why)
{
    snprintf(keep->tree->untracked, sizeof(keep->tree->untracked), "%s", why);
}

static void forget_tracking(struct keep *keep)
{
    if (keep->tracking != NULL)
        image_tracking_free(TAKE_PTR(keep->tracking));
    keep->tracking_known = false;
}

static bool has_bitmap(const struct image *image)
{
    const struct image_info *info = image_info(image, 0);

    for (size_t i = 0; i < info->bitmap_count; i++)
        if (strcmp(info->bitmaps[i].name, IMAGE_BITMAP_NAME) == 0)
            return true;
    return false;
}

const struct image_tracking *keep_tracking(struct keep *keep)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image *image = keep->tree->image;

    if (keep->tracking_known)
        return keep->tracking;
    keep->tracking_known = true;
    if (image_bitmap_check_image(image, &err) < 0)
        untracked(keep, error_message(&err));
    else if (!has_bitmap(image))
        untracked(keep, "'qverity track' was not switched on");
    else if (image_tracking_load(image, &keep->tracking, &err) < 0)
        untracked(keep, error_message(&err));
    else
        untracked(keep, "");
    return keep->tracking;
}

/* Writes after a clearing could hit all canaries by chance: in each of fifteen parts of the disk,
 * and at its end. With a quarter of the granules set this is far from likely. If more are set,
 * reading everything takes hardly longer. */
static bool too_many_set(const struct image_bitmap_bits *bits)
{
    return image_bitmap_set_count(bits) > image_bitmap_count(bits) / 4 + IMAGE_BITMAP_CANARIES;
}

static bool all_set(const struct image_bitmap_bits *bits, const struct tree_file_granules *granules,
                    uint64_t count)
{
    uint64_t granularity = image_bitmap_granularity(bits), start, end;

    for (uint64_t i = 0; i < count; i++)
        if (!image_bitmap_next(bits, granules[i].first * granularity, &start, &end) ||
            start > granules[i].first * granularity || end < granules[i].end * granularity)
            return false;
    return true;
}

/*
 * With the tree file's generation, the image is in a state that came by recorded writes from the
 * one at the reset, as the state was that the tree file was made of. The two differ in what is set
 * now, or was then. That what was set then is still set tells that nothing else matters: if the
 * image was put back to a state before the tree file, something may not be.
 */
bool keep_tracked_since(struct keep *keep, const struct image_tracking *tracking,
                        const struct tree_file *file)
{
    const struct tree_header *header = tree_file_header(file);
    _cleanup_free_ struct tree_file_granules *granules = NULL;
    _cleanup_error_ struct error err = ERROR_INIT;
    const char *why = NULL;

    if (tracking == NULL) {
        keep_reason_add(keep->tree, "changes are not tracked: %s", keep->tree->untracked);
        return false;
    }
    const struct image_bitmap_bits *bits = image_tracking_bits(tracking);
    if (header->granularity == 0)
        why = "changes were not tracked when the tree file was written";
    else if (image_bitmap_granularity(bits) != header->granularity ||
             memcmp(image_tracking_generation(tracking), header->bitmap_generation,
                    sizeof(header->bitmap_generation)) != 0)
        why = "the bitmaps were made or reset by somebody else since, or the image was put back to "
              "an "
              "older state";
    else if (too_many_set(bits))
        why = "more than a quarter of the disk was written";
    else if (tree_file_granules(file, &granules, &err) < 0)
        why = error_message(&err);
    else if (!all_set(bits, granules, header->granules_count))
        why = "the image was put back to a state before the tree file's";
    if (why != NULL)
        keep_reason_add(keep->tree, "%s", why);
    return why == NULL;
}

/* --- With each tree that is kept --- */

/* The ranges that are set; their number is TREE_FILE_GRANULES_MAX + 1 if there are more. */
static uint64_t list_granules(const struct image_bitmap_bits *bits,
                              struct tree_file_granules *granules)
{
    uint64_t granularity = image_bitmap_granularity(bits), start, end, count = 0;

    for (uint64_t at = 0; image_bitmap_next(bits, at, &start, &end); at = end) {
        if (count == TREE_FILE_GRANULES_MAX || end / granularity > UINT32_MAX)
            return TREE_FILE_GRANULES_MAX + 1;
        if (granules != NULL)
            granules[count] = (struct tree_file_granules){(uint32_t)(start / granularity),
                                                          (uint32_t)(end / granularity)};
        count++;
    }
    return count;
}

static int record(const struct image_tracking *tracking, struct tree_writer *writer,
                  struct tree_header *header, struct error *err)
{
    const struct image_bitmap_bits *bits = image_tracking_bits(tracking);
    uint64_t count = list_granules(bits, NULL);

    if (too_many_set(bits) || count > TREE_FILE_GRANULES_MAX)
        return error_set(err, EFBIG,
                         "too much of the disk was written since the bitmaps were reset; "
                         "'qverity update' resets them");
    _cleanup_free_ struct tree_file_granules *granules = malloc((count + 1) * sizeof(*granules));
    if (granules == NULL)
        return error_oom(err);
    (void)list_granules(bits, granules);
    int r = tree_writer_granules(writer, granules, count, header, err);
    if (r < 0)
        return r;
    header->granularity = image_bitmap_granularity(bits);
    memcpy(header->bitmap_generation, image_tracking_generation(tracking),
           sizeof(header->bitmap_generation));
    return 0;
}

void keep_record_tracking(struct keep *keep, struct tree_writer *writer, struct tree_header *header)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    const struct image_tracking *tracking = keep_tracking(keep);

    header->granularity = 0;
    header->granules_count = 0;
    if (tracking != NULL && record(tracking, writer, header, &err) < 0)
        untracked(keep, error_message(&err));
}

bool hashtree_tracking(struct hashtree *tree, const char **ret_why)
{
    struct keep *keep = tree->keep;

    *ret_why = "";
    if (keep == NULL || keep->file == NULL ||
        memcmp(tree_file_header(keep->file)->root, tree->root, tree->geometry.digest_size) != 0) {
        *ret_why = "no tree is kept";
        return false;
    }
    if (tree_file_header(keep->file)->granularity != 0)
        return true;
    if (keep_tracking(keep) != NULL && tree->untracked[0] == '\0')
        untracked(keep,
                  "the tree file is older than that; 'qverity update' ties it to the bitmaps");
    *ret_why = tree->untracked;
    return false;
}

/* --- Reset --- */

/* Whether the bitmaps are as a reset left them, for the tree that is in the file. */
static bool tracked_already(struct keep *keep)
{
    const struct tree_header *header = tree_file_header(keep->file);
    const struct image_tracking *tracking = keep_tracking(keep);

    return tracking != NULL && image_tracking_clean(tracking) && header->granularity != 0 &&
           keep_header_current(keep, header, 0) &&
           memcmp(image_tracking_generation(tracking), header->bitmap_generation,
                  sizeof(header->bitmap_generation)) == 0;
}

/* Whether the image is as our reset left it. Somebody who knows nothing of locks may have put
 * another file's contents into it meanwhile. */
static bool reset_stands(struct keep *keep, const struct tree_header *header)
{
    forget_tracking(keep);
    const struct image_tracking *tracking = keep_tracking(keep);

    return tracking != NULL && image_tracking_clean(tracking) &&
           memcmp(image_tracking_generation(tracking), header->bitmap_generation,
                  sizeof(header->bitmap_generation)) == 0;
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
    r = image_tracking_reset(keep->tree->image, header->bitmap_generation, err);
    if (r < 0) {
        /* If nothing was changed, the old generation still counts. */
        (void)tree_writer_commit(writer, &old, true, NULL);
        return r;
    }
    /* Otherwise the image looks changed, and the bitmaps say what little did; so they do if a crash
     * takes back what is written now. */
    if (!keep_retake_identity(keep) || !reset_stands(keep, header))
        return 0;
    header->files[0] = keep->identities[0];
    header->settled = true;
    return tree_writer_commit(writer, header, false, err);
}

/* A header for the tree that is in the file, and a generation that nobody has seen. */
static int new_header(const struct keep *keep, struct tree_header *ret, struct error *err)
{
    const struct image_info *info = image_info(keep->tree->image, 0);

    *ret = *tree_file_header(keep->file);
    for (size_t i = 0; i < info->bitmap_count; i++)
        if (strcmp(info->bitmaps[i].name, IMAGE_BITMAP_NAME) == 0)
            ret->granularity = info->bitmaps[i].granularity;
    ret->granules_count = 0;
    if (getrandom(ret->bitmap_generation, sizeof(ret->bitmap_generation), 0) !=
        sizeof(ret->bitmap_generation))
        return error_set_errno(err, errno, "getrandom");
    return 0;
}

int hashtree_track(struct hashtree *tree, struct error *err)
{
    _cleanup_(tree_writer_free_cleanup) struct tree_writer *writer = NULL;
    struct keep *keep = tree->keep;
    struct tree_header header;

    if (keep == NULL || keep->file == NULL || !has_bitmap(tree->image) ||
        image_bitmap_check_image(tree->image, NULL) < 0 ||
        memcmp(tree_file_header(keep->file)->root, tree->root, tree->geometry.digest_size) != 0 ||
        !keep_header_current(keep, tree_file_header(keep->file), 0) || tracked_already(keep))
        return 0;
    int r = new_header(keep, &header, err);
    if (r == 0)
        r = tree_writer_update(keep->file, &header, &writer, err);
    if (r == 0)
        r = reset(keep, writer, &header, err);
    if (r == 0)
        keep_reopen(keep);
    return r;
}

/* --- Across an edit that changes no byte of the disk --- */

struct hashtree_carry {
    struct hashtree tree; /* nothing but what `keep` needs: the file says what it is of */
    struct keep keep;
};

static int carry_new(struct image *image, const struct hashtree_file_options *options,
                     struct hashtree_carry **ret, struct error *err)
{
    struct hashtree_carry *carry = calloc(1, sizeof(*carry));

    if (carry == NULL)
        return error_oom(err);
    carry->tree.image = image;
    carry->keep.tree = &carry->tree;
    *ret = carry;
    return keep_init(&carry->keep, options, err);
}

void hashtree_carry_free(struct hashtree_carry *carry)
{
    keep_clear(&carry->keep);
    free(carry);
}

int hashtree_carry_begin(struct image *image, const struct hashtree_file_options *options,
                         struct hashtree_carry **ret, struct error *err)
{
    _cleanup_(hashtree_carry_free_cleanup) struct hashtree_carry *carry = NULL;

    *ret = NULL;
    int r = carry_new(image, options, &carry, err);
    if (r < 0)
        return r;
    if (!keep_take_identities(&carry->keep) ||
        tree_file_open(carry->keep.path, NULL, &carry->keep.file, NULL) < 0)
        return 0;
    const struct tree_header *header = tree_file_header(carry->keep.file);
    if (strcmp(header->view, carry->keep.view) == 0 &&
        keep_header_current(&carry->keep, header, 0) && keep_files_unchanged(&carry->keep))
        *ret = TAKE_PTR(carry);
    return 0;
}

/* Whether the image of `now` is the one of `before` but for its first file's times and size. */
static bool same_chain(const struct keep *before, const struct keep *now)
{
    const struct tree_header *header = tree_file_header(before->file);

    return header->file_count == now->file_count && strcmp(header->view, now->view) == 0 &&
           keep_same_file(&header->files[0], &now->identities[0]) &&
           (header->file_count == 1 || keep_changed_file(now, header, 0, 1) == NULL);
}

static bool tie_to_bitmaps(struct keep *now, struct tree_header *header)
{
    const struct image_tracking *tracking = keep_tracking(now);

    header->granularity = 0;
    header->granules_count = 0;
    if (tracking == NULL)
        return !has_bitmap(now->tree->image);
    header->granularity = image_bitmap_granularity(image_tracking_bits(tracking));
    memcpy(header->bitmap_generation, image_tracking_generation(tracking),
           sizeof(header->bitmap_generation));
    return image_tracking_clean(tracking);
}

int hashtree_carry_end(struct hashtree_carry *carry, struct image *image,
                       const struct hashtree_file_options *options, bool *ret_carried,
                       struct error *err)
{
    _cleanup_(hashtree_carry_free_cleanup) struct hashtree_carry *after = NULL;
    _cleanup_(tree_writer_free_cleanup) struct tree_writer *writer = NULL;
    struct keep *before = &carry->keep;
    struct tree_header header = *tree_file_header(before->file);

    *ret_carried = false;
    int r = carry_new(image, options, &after, err);
    if (r < 0)
        return r;
    struct keep *now = &after->keep;
    if (!keep_take_identities(now) || !same_chain(before, now) || !keep_sync_files(now) ||
        !keep_settle(now) || !tie_to_bitmaps(now, &header) || !keep_files_unchanged(now))
        return 0;
    header.files[0] = now->identities[0];
    r = tree_writer_update(before->file, &header, &writer, err);
    if (r == 0)
        r = tree_writer_commit(writer, &header, false, err);
    *ret_carried = r == 0;
    return r;
}
