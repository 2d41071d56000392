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
#include <openssl/sha.h>
#include <string.h>

#include "common/units.h"
#include "hashtree/keep.h"

/* --- Changes: where they are told --- */

/* Ranges that are decided above `depth` in the chain. */
static int next_overlay_change(void *arg, uint64_t offset, uint64_t *ret_start, uint64_t *ret_end,
                               struct error *err)
{
    struct overlay_changes *o = arg;
    uint64_t size = tree_data_size(o->tree);
    struct extent extent;

    for (; offset < size; offset += extent.length) {
        int r = image_map(o->tree->image, o->tree->start + offset, size - offset, IMAGE_MAP_LAYERS,
                          &extent, err);
        if (r < 0)
            return r;
        if (extent.depth < o->depth) {
            *ret_start = offset;
            *ret_end = offset + extent.length;
            return 0;
        }
    }
    *ret_start = *ret_end = UINT64_MAX;
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
    uint8_t digest[SHA256_DIGEST_LENGTH];

    SHA256((const unsigned char *)text, strlen(text), digest);
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
    if (proof->bits != NULL)
        image_bitmap_free(proof->bits);
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

/*
 * Whether the bitmap has recorded all that was written since the tree file was. The generation is
 * another one if the image was put back to an older state; and a bitmap that was removed and
 * added again, or cleared by somebody else, lacks the granules that were set on purpose, unless
 * writes happened to hit every single one: with a quarter of all granules set, one in 4^16 times.
 * If more are set, reading everything takes hardly longer.
 *
 * The tree file may have been written again since the bitmap was reset. If the image was then put
 * back to a state between the two, it has the same generation and canaries, but lacks bits that
 * were set when the tree file was written; they are noted there.
 */
bool proof_same_bitmap(const struct keep *keep, const struct image_bitmap_bits *bits,
                       const struct tree_header *header)
{
    _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *generation_bits = NULL;
    uint8_t generation[IMAGE_BITMAP_GENERATION_SIZE];
    uint64_t start, end;

    if (image_bitmap_granularity(bits) != header->granularity ||
        image_bitmap_set_count(bits) > image_bitmap_count(bits) / 4 + header->canary_count ||
        image_bitmap_load(keep->tree->image, IMAGE_BITMAP_GENERATION_NAME, &generation_bits, NULL) <
            0)
        return false;
    image_bitmap_generation(generation_bits, generation);
    if (memcmp(generation, header->bitmap_generation, sizeof(generation)) != 0)
        return false;
    for (uint32_t i = 0; i < header->recorded_count; i++) {
        uint64_t first = header->recorded_granules[i].first * header->granularity;
        uint64_t after = header->recorded_granules[i].end * header->granularity;
        if (!image_bitmap_next(bits, first, &start, &end) || start > first || end < after)
            return false;
    }
    for (uint32_t i = 0; i < header->canary_count; i++) {
        uint64_t at = header->canaries[i] * header->granularity;
        if (!image_bitmap_next(bits, at, &start, &end) || start > at)
            return false;
    }
    return header->canary_count == IMAGE_BITMAP_CANARIES;
}

bool proof_record_granules(const struct image_bitmap_bits *bits, struct tree_header *header)
{
    uint64_t granularity = image_bitmap_granularity(bits), start, end;

    header->recorded_count = 0;
    for (uint64_t at = 0; image_bitmap_next(bits, at, &start, &end); at = end) {
        if (header->recorded_count == TREE_FILE_RECORDED_MAX || end / granularity > UINT32_MAX)
            return false;
        header->recorded_granules[header->recorded_count++] = (struct tree_file_granules){
            (uint32_t)(start / granularity), (uint32_t)(end / granularity)};
    }
    return true;
}

static bool try_bitmap(struct keep *keep, struct proof *proof)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image *image = keep->tree->image;

    if (keep->file == NULL)
        return false;
    const struct tree_header *header = tree_file_header(keep->file);
    if (header->granularity == 0) {
        keep_reason(keep->tree, "changes were not tracked when the tree file was written");
        return false;
    }
    /* All but the first file must be as they were: the bitmap speaks of that one only. */
    if (header->file_count != keep->file_count ||
        keep->identities[0].device != header->files[0].device ||
        keep->identities[0].inode != header->files[0].inode) {
        keep_reason(keep->tree, "the image file is another one");
        return false;
    }
    for (uint32_t i = 1; i < header->file_count; i++)
        if (!keep_same_identity(&header->files[i], &keep->identities[i])) {
            keep_reason(keep->tree, "another file of the chain changed");
            return false;
        }
    if (image_bitmap_load(image, IMAGE_BITMAP_NAME, &proof->bits, &err) < 0) {
        keep_reason(keep->tree, error_message(&err));
        return false;
    }
    if (!proof_same_bitmap(keep, proof->bits, header)) {
        keep_reason(keep->tree, "the bitmap is not the one that was there when the tree file was "
                                "written");
        return false;
    }
    use_base(proof, HASHTREE_BITMAP, keep->file);
    proof->bitmap = (struct bitmap_changes){keep->tree, proof->bits};
    proof->changes = (struct hashtree_changes){next_bitmap_change, &proof->bitmap};
    return true;
}

static bool try_below(struct keep *keep, struct proof *proof, unsigned depth,
                      const struct image_info *info)
{
    _cleanup_free_ char *path = NULL;
    _cleanup_tree_file_ struct tree_file *file = NULL;
    char view[TREE_FILE_VIEW_MAX];

    if (info->size < keep->tree->start + tree_data_size(keep->tree))
        return false;
    keep_view(keep->tree->image, depth, NULL, view);
    if (asprintf(&path, "%s" TREE_FILE_SUFFIX, info->path) < 0) {
        path = NULL;
        return false;
    }
    if (tree_file_open(path, &file, NULL) < 0 ||
        !proof_header_fits(keep, tree_file_header(file), view) ||
        !keep_header_current(keep, tree_file_header(file),
                             (uint32_t)image_first_file(keep->tree->image, depth)))
        return false;
    proof->below = TAKE_PTR(file);
    use_base(proof, HASHTREE_OVERLAY, proof->below);
    proof->overlay = (struct overlay_changes){keep->tree, depth};
    proof->changes = (struct hashtree_changes){next_overlay_change, &proof->overlay};
    return true;
}

static bool try_overlay(struct keep *keep, struct proof *proof)
{
    const struct image_info *info;

    for (unsigned depth = 1; (info = image_info(keep->tree->image, depth)) != NULL; depth++)
        if (try_below(keep, proof, depth, info))
            return true;
    return false;
}

void proof_find(struct keep *keep, struct proof *ret)
{
    *ret = (struct proof){.method = HASHTREE_FULL};
    if (!keep->rescan && !try_bitmap(keep, ret))
        (void)try_overlay(keep, ret);
}
