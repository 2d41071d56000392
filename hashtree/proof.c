/* SPDX-License-Identifier: MIT */
/*
 * The cheapest proof of what the root is made of:
 *
 *     bitmap   the image's tree file, and QEMU's dirty bitmap of what was written since
 *     overlay  the tree file of an image below in the chain, and what the images above it hold
 *     full     none: everything is read
 *
 * (That nothing changed at all is found before: hashtree_keep().)
 */
#include <errno.h>
#include <string.h>

#include "common/units.h"
#include "hashtree/hasher.h"
#include "hashtree/keep.h"

/* --- Changes: where they are told --- */

/* Ranges that are decided above `depth` in the chain. */
static int next_overlay_change(void *arg, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end,
                               struct error *err)
{
    struct overlay_changes *o = arg;
    uint64_t start = UINT64_MAX, end, begin = o->tree->start;

    if (offset < tree_data_size(o->tree)) {
        int r = image_next_above(o->tree->image, o->depth, begin + offset, &start, &end, err);
        if (r < 0)
            return r;
    }
    *ret_start = start != UINT64_MAX ? start - begin : UINT64_MAX;
    *ret_end = start != UINT64_MAX ? end - begin : UINT64_MAX;
    return 0;
}

static int next_bitmap_change(void *arg, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end,
                              struct error *err)
{
    struct bitmap_changes *b = arg;
    uint64_t size = tree_data_size(b->tree), start, end;

    (void)err;
    if (offset >= size || !image_bitmap_next(b->bits, b->tree->start + offset, &start, &end)) {
        *ret_start = *ret_end = UINT64_MAX;
        return 0;
    }
    *ret_start = start - b->tree->start;
    *ret_end = end - b->tree->start;
    return 0;
}

/* --- Which proof --- */

static char *add_digest(char *to, const char *text)
{
    uint8_t digest[SHA256_CHECKSUM_SIZE];

    sha256_checksum(text, strlen(text), digest);
    hex_encode(digest, sizeof(digest), to);
    return to + 2 * sizeof(digest);
}

void keep_view(const struct image *image, unsigned depth, const char *snapshot,
               char view[static TREE_FILE_VIEW_MAX])
{
    char formats[1024] = "";
    const struct image_info *info;
    size_t length = 0;

    for (; (info = image_info(image, depth)) != NULL && length < sizeof(formats) - 16; depth++)
        length += (size_t)snprintf(formats + length, 16, "%s ", info->format);
    /* Digests: chains are long, and names of snapshots hold anything. */
    memset(view, 0, TREE_FILE_VIEW_MAX);
    char *end = add_digest(view, formats);
    if (snapshot != NULL)
        add_digest(end, snapshot);
}

bool proof_header_fits(const struct keep *keep, const struct tree_header *header, const char *view)
{
    return verity_same_tree(&header->params, &keep->tree->params) &&
           header->start == keep->tree->start && strcmp(header->view, view) == 0;
}

void proof_clear(struct proof *proof)
{
    if (proof->below != NULL)
        tree_file_close(proof->below);
}

static void use_base(struct proof *proof, enum hashtree_method method, struct tree_file *file)
{
    const struct tree_header *header = tree_file_header(file);

    proof->method = method;
    proof->base = (struct node_base){
        .file = file,
        .zero_blocks = header->zero_blocks,
        .changes = &proof->changes,
    };
    memcpy(proof->base.root, header->root, sizeof(proof->base.root));
}

static bool try_bitmap(struct keep *keep, struct proof *proof)
{
    const struct image_tracking *tracking = keep_tracking(keep);

    if (keep->file == NULL)
        return false;
    const struct tree_header *header = tree_file_header(keep->file);
    /* The bitmaps speak of the first file only. */
    if (header->file_count != keep->file_count) {
        keep_reason_add(keep->tree, "its backing chain is another one");
        return false;
    }
    if (!keep_same_file(&header->files[0], &keep->identities[0])) {
        keep_reason_add(keep->tree, "it is another file than then");
        return false;
    }
    if (header->file_count > 1) {
        const char *changed = keep_changed_file(keep, header, 0, 1);
        if (changed != NULL) {
            if (changed != keep_changed_file(keep, header, 0, 0))
                keep_reason_add(keep->tree, "its backing file %s changed, too", changed);
            return false;
        }
    }
    if (!keep_tracked_since(keep, tracking, keep->file))
        return false;
    use_base(proof, HASHTREE_BITMAP, keep->file);
    proof->bitmap = (struct bitmap_changes){keep->tree, image_tracking_bits(tracking)};
    proof->changes = (struct hashtree_changes){next_bitmap_change, &proof->bitmap};
    return true;
}

/* The tree file that belongs to `path` if it is one of `view` that is current, or NULL. */
static struct tree_file *open_below(struct keep *keep, unsigned depth, const char *path,
                                    const char *view)
{
    _cleanup_free_ char *name = NULL;
    _cleanup_tree_file_ struct tree_file *file = NULL;
    _cleanup_error_ struct error err = ERROR_INIT;

    if (asprintf(&name, "%s" TREE_FILE_SUFFIX, path) < 0) {
        name = NULL;
        return NULL;
    }
    int r = tree_file_open(name, keep->tree->params.hash_name, &file, &err);
    if (r == -EPERM)
        keep_warn_untrusted(keep, &err);
    if (r < 0 || !proof_header_fits(keep, tree_file_header(file), view) ||
        !keep_header_current(keep, tree_file_header(file),
                             (uint32_t)image_first_file(keep->tree->image, depth)))
        return NULL;
    return TAKE_PTR(file);
}

static bool try_below(struct keep *keep, struct proof *proof, unsigned depth,
                      const struct image_info *info)
{
    char view[TREE_FILE_VIEW_MAX];

    if (info->size < keep->tree->start + tree_data_size(keep->tree))
        return false;
    keep_view(keep->tree->image, depth, NULL, view);
    proof->below = open_below(keep, depth, info->path, view);
    if (proof->below == NULL) {
        /* It may have been hashed by another name. */
        _cleanup_free_ char *real = realpath(info->path, NULL);
        if (real != NULL)
            proof->below = open_below(keep, depth, real, view);
    }
    if (proof->below == NULL)
        return false;
    use_base(proof, HASHTREE_OVERLAY, proof->below);
    proof->overlay = (struct overlay_changes){keep->tree, depth};
    proof->changes = (struct hashtree_changes){next_overlay_change, &proof->overlay};
    return true;
}

static bool try_overlay(struct keep *keep, struct proof *proof)
{
    const struct image_info *info;
    unsigned depth;

    for (depth = 1; (info = image_info(keep->tree->image, depth)) != NULL; depth++)
        if (try_below(keep, proof, depth, info))
            return true;
    if (depth > 1)
        keep_reason_add(keep->tree, "no image below it has a tree file that is up to date and of "
                                    "the same partition and parameters");
    return false;
}

void proof_find(struct keep *keep, struct proof *ret)
{
    *ret = (struct proof){.method = HASHTREE_FULL};
    if (keep->rescan)
        return;
    if (try_bitmap(keep, ret) || try_overlay(keep, ret))
        keep->tree->reason[0] = '\0';
}
