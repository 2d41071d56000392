/* SPDX-License-Identifier: MIT */
/*
 * A tree that is kept in a file between runs: finding the root with the cheapest proof (proof.c),
 * and writing down what was found. That this is not possible is no error: it costs time only.
 */
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "common/log.h"
#include "hashtree/keep.h"

#define READ_AHEAD_FROM (UINT64_C(64) << 20) /* bytes that are read: fewer are read without it */

static void fill_header(const struct keep *keep, const struct proof *proof,
                        struct tree_header *header)
{
    *header = (struct tree_header){
        .lean = keep->lean,
        .params = keep->tree->params,
        .start = keep->tree->start,
        .zero_blocks = UINT64_MAX,
        .file_count = keep->file_count,
    };
    memcpy(header->view, keep->view, sizeof(header->view));
    memcpy(header->files, keep->identities, keep->file_count * sizeof(header->files[0]));
    if (proof->method == HASHTREE_BITMAP) {
        const struct tree_header *old = tree_file_header(keep->file);
        header->lean = old->lean;
        memcpy(header->base, old->base, sizeof(header->base));
    }
}

/* The tree file below, as its name shall stand in ours: alone if both are in one directory. */
static bool name_below(const struct keep *keep, const char *below, struct tree_header *header)
{
    const char *slash = strrchr(below, '/'), *own_slash = strrchr(keep->path, '/');
    size_t length = slash != NULL ? (size_t)(slash - below) : 0;
    size_t own_length = own_slash != NULL ? (size_t)(own_slash - keep->path) : 0;
    _cleanup_free_ char *absolute = NULL;

    if (length == own_length && strncmp(below, keep->path, length) == 0)
        below = slash != NULL ? slash + 1 : below;
    else
        below = absolute = realpath(below, NULL);
    if (below == NULL || strlen(below) >= sizeof(header->base))
        return false;
    strcpy(header->base, below);
    return true;
}

/* To be called before anything is read. NULL if no tree is to be kept. */
static struct tree_writer *start_writing(const struct keep *keep, const struct proof *proof,
                                         struct tree_header *header)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct tree_writer *writer = NULL;
    int r;

    fill_header(keep, proof, header);
    /* Synced first, for the sake of shared mappings (identity.c). */
    if (!keep_sync_files(keep) || !keep_files_unchanged(keep))
        return NULL;
    header->settled = keep_settle(keep);
    if (proof->method == HASHTREE_OVERLAY &&
        !name_below(keep, tree_file_path(proof->below), header))
        return NULL;
    r = proof->method == HASHTREE_BITMAP ? tree_writer_update(keep->file, header, &writer, &err)
                                         : tree_writer_new(keep->path, header, &writer, &err);
    if (r < 0) {
        log_warning("no tree is kept: %s", error_message(&err));
        return NULL;
    }
    return writer;
}

struct kept_nodes {
    struct hashtree *tree;
    struct tree_writer *writer; /* or NULL */
    _Atomic bool failed;
};

static int keep_in_file(void *arg, unsigned level, uint64_t first, uint64_t count,
                        const uint8_t *blocks, struct error *err)
{
    struct kept_nodes *k = arg;
    _cleanup_error_ struct error write_err = ERROR_INIT;

    (void)err;
    if (atomic_load_explicit(&k->failed, memory_order_relaxed))
        return 0;
    if (tree_writer_nodes(k->writer, level, first, count, blocks, &write_err) < 0 &&
        !atomic_exchange(&k->failed, true))
        log_warning("no tree is kept: %s", error_message(&write_err));
    return 0;
}

static void finish_writing(struct keep *keep, struct tree_writer *writer,
                           struct tree_header *header, const struct build_result *result)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    memcpy(header->root, result->root, sizeof(header->root));
    header->zero_blocks = result->zero_blocks;
    /* What was written may be in memory only so far, so that the files do not show it. */
    if (atomic_load(&keep->tree->changed))
        return;
    if (!keep_files_unchanged(keep))
        return;
    keep_record_tracking(keep, writer, header);
    if (tree_writer_commit(writer, header, false, &err) < 0)
        log_warning("no tree is kept: %s", error_message(&err));
}

/* Host bytes in which the changes that the proof knows of lie, at most. */
static uint64_t most_changed(const struct keep *keep, const struct proof *proof)
{
    const struct image *image = keep->tree->image;
    uint64_t bytes = 0;

    if (proof->method == HASHTREE_FULL)
        return UINT64_MAX;
    if (proof->method == HASHTREE_BITMAP)
        return image_bitmap_set_count(proof->bitmap.bits) *
               image_bitmap_granularity(proof->bitmap.bits);
    for (size_t i = 0; i < image_first_file(image, proof->overlay.depth); i++)
        bytes += (uint64_t)image_file(image, i)->stat.st_blocks * 512;
    return bytes;
}

int keep_build(struct hashtree *tree, struct build_result *ret, struct error *err)
{
    struct keep *keep = tree->keep;
    _cleanup_(proof_clear_cleanup) struct proof proof;
    _cleanup_(tree_writer_free_cleanup) struct tree_writer *writer = NULL;
    struct tree_header header;
    struct kept_nodes kept = {.tree = tree};

    proof_find(keep, &proof);
    writer = start_writing(keep, &proof, &header);
    kept.writer = writer;
    struct node_sink sink = {.nodes = writer != NULL ? keep_in_file : NULL, .arg = &kept};
    bool sparse = most_changed(keep, &proof) <= READ_AHEAD_FROM;
    if (sparse)
        image_read_ahead(tree->image, false);
    int r = build_run(tree, proof.method == HASHTREE_FULL ? NULL : &proof.base, &sink, ret, err);
    if (sparse)
        image_read_ahead(tree->image, true);
    if (r < 0)
        return r;
    tree->method = proof.method;
    if (writer != NULL && !kept.failed)
        finish_writing(keep, writer, &header, ret);
    /* For single nodes later on: what was just written, or else the base, in which they are found
     * as far as they did not change. */
    keep_reopen(keep);
    if (keep->file == NULL)
        keep->file = TAKE_PTR(proof.below);
    return 0;
}

void keep_reopen(struct keep *keep)
{
    struct tree_file *file = NULL;

    if (tree_file_open(keep->path, keep->tree->params.hash_name, &file, NULL) == 0 &&
        !proof_header_fits(keep, tree_file_header(file), keep->view)) {
        tree_file_close(file);
        file = NULL;
    }
    if (keep->file != NULL)
        tree_file_close(keep->file);
    keep->file = file;
}

/* --- Starting --- */

/* Encrypted images are not kept: nothing tells a tree over what one password gives from another's.
 */
static bool encrypted(const struct image *image)
{
    const struct image_info *info;

    for (unsigned depth = 0; (info = image_info(image, depth)) != NULL; depth++)
        if (info->encryption != NULL)
            return true;
    return false;
}

char *hashtree_file_path(const struct image *image)
{
    char *path;

    return asprintf(&path, "%s" TREE_FILE_SUFFIX, image_path(image)) < 0 ? NULL : path;
}

int keep_init(struct keep *keep, const struct hashtree_file_options *options, struct error *err)
{
    const struct image *image = keep->tree->image;

    keep->lean = options->lean;
    keep->rescan = options->rescan;
    keep->path = options->path != NULL ? strdup(options->path) : hashtree_file_path(image);
    if (keep->path == NULL)
        return error_oom(err);
    keep_view(image, 0, options->snapshot, keep->view);
    return 0;
}

#define OF_ANOTHER_TREE "the tree file is of %s"

/* Whether the tree file is one of this tree; if not, the reason is set. */
static bool header_fits(const struct keep *keep)
{
    const struct tree_header *header = tree_file_header(keep->file);
    const char *what = NULL;

    if (proof_header_fits(keep, header, keep->view))
        return true;
    if (strcmp(header->view, keep->view) != 0)
        what = "the image read in another way (as another format, or at another snapshot)";
    else if (header->start != keep->tree->start ||
             header->params.data_blocks * header->params.data_block_size !=
                 tree_data_size(keep->tree))
        what = "another partition, or another part of it";
    else
        what = "other parameters";
    keep_reason(keep->tree, OF_ANOTHER_TREE, what);
    return false;
}

int hashtree_keep(struct hashtree *tree, const struct hashtree_file_options *options,
                  struct error *err)
{
    _cleanup_error_ struct error open_err = ERROR_INIT;
    struct keep *keep;

    if (encrypted(tree->image)) {
        keep_reason(tree, "no tree is kept: the image is encrypted");
        return 0;
    }
    keep = calloc(1, sizeof(*keep));
    if (keep == NULL)
        return error_oom(err);
    keep->tree = tree;
    int r = keep_init(keep, options, err);
    if (r < 0 || !keep_take_identities(keep)) {
        keep_free(keep);
        return r;
    }
    tree->keep = keep;
    r = tree_file_open(keep->path, tree->params.hash_name, &keep->file, &open_err);
    if (r == -EPERM && !keep->rescan)
        keep_warn_untrusted(keep, &open_err);
    if (r < 0 && options->path != NULL && !tree_file_replaceable(keep->path)) {
        log_warning("no tree is kept: %s is there and is no tree file", keep->path);
        keep_reason(tree, "no tree is kept: %s", error_message(&open_err));
        keep_free(TAKE_PTR(tree->keep));
        return 0;
    }
    if (keep->rescan) {
        keep_reason(tree, "asked for");
        if (keep->file != NULL && !header_fits(keep))
            tree_file_close(TAKE_PTR(keep->file));
        return 0;
    }
    if (r < 0) {
        if (r == -ENOENT)
            keep_reason(tree, "there is no tree file");
        else if (r == -ESTALE)
            keep_reason(tree, OF_ANOTHER_TREE, "other parameters");
        else
            keep_reason(tree, "%s", error_message(&open_err));
        return 0;
    }
    if (!header_fits(keep)) {
        tree_file_close(TAKE_PTR(keep->file));
        return 0;
    }
    const struct tree_header *header = tree_file_header(keep->file);
    const char *changed = keep_changed_file(keep, header, 0, 0);
    if (changed != NULL) {
        keep_reason(tree, "%s was changed since the tree file was written", changed);
        return 0;
    }
    pthread_mutex_lock(&tree->lock);
    memcpy(tree->root, header->root, sizeof(tree->root));
    tree->zero_blocks = header->zero_blocks;
    tree->method = HASHTREE_UNCHANGED;
    tree->root_known = true;
    atomic_store_explicit(&tree->current, true, memory_order_release);
    pthread_mutex_unlock(&tree->lock);
    return 0;
}

void keep_warn_untrusted(struct keep *keep, const struct error *err)
{
    /* The same file may be met by several names. */
    if (!keep->warned_untrusted)
        log_warning("%s", error_message(err));
    keep->warned_untrusted = true;
}

struct tree_file *keep_file(const struct keep *keep)
{
    return keep->file;
}

void keep_reason(struct hashtree *tree, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(tree->reason, sizeof(tree->reason), format, args);
    va_end(args);
}

void keep_reason_add(struct hashtree *tree, const char *format, ...)
{
    size_t length = strlen(tree->reason);
    va_list args;

    if (length > 0)
        length += (size_t)snprintf(tree->reason + length, sizeof(tree->reason) - length, "; ");
    if (length >= sizeof(tree->reason))
        return;
    va_start(args, format);
    vsnprintf(tree->reason + length, sizeof(tree->reason) - length, format, args);
    va_end(args);
}

void keep_clear(struct keep *keep)
{
    if (keep->file != NULL)
        tree_file_close(keep->file);
    if (keep->tracking != NULL)
        image_tracking_free(keep->tracking);
    free(keep->path);
}

void keep_free(struct keep *keep)
{
    keep_clear(keep);
    free(keep);
}

/* --- Looking --- */

int hashtree_file_info(struct image *image, const struct hashtree_file_options *options,
                       struct hashtree_file_info *ret, struct error *err)
{
    /* No tree: the file says what it is of. */
    struct hashtree tree = {.image = image};
    struct keep *keep = calloc(1, sizeof(*keep));
    _cleanup_error_ struct error open_err = ERROR_INIT;
    struct verity_geometry geometry;

    *ret = (struct hashtree_file_info){0};
    if (keep == NULL)
        return error_oom(err);
    keep->tree = &tree;
    int r = keep_init(keep, options, err);
    if (r < 0) {
        keep_free(keep);
        return r;
    }
    r = tree_file_open(keep->path, NULL, &keep->file, &open_err);
    ret->exists = r != -ENOENT;
    if (r < 0 && r != -ENOENT)
        ret->damage = strdup(error_message(&open_err));
    ret->untrusted = r == -EPERM;
    if (r == 0 &&
        verity_geometry_init(&tree_file_header(keep->file)->params, &geometry, NULL) == 0) {
        const struct tree_header *header = tree_file_header(keep->file);
        ret->current = strcmp(header->view, keep->view) == 0 && !encrypted(image) &&
                       keep_take_identities(keep) && keep_header_current(keep, header, 0);
        ret->lean = header->lean;
        ret->tracking = header->granularity != 0;
        ret->usage = tree_file_usage(keep->file);
        ret->start = header->start;
        ret->size = header->params.data_blocks * header->params.data_block_size;
        memcpy(ret->root, header->root, sizeof(ret->root));
        ret->root_size = geometry.digest_size;
    }
    ret->path = TAKE_PTR(keep->path);
    keep_free(keep);
    return 0;
}

void hashtree_file_info_clear(struct hashtree_file_info *info)
{
    free(info->path);
    free(info->damage);
    *info = (struct hashtree_file_info){0};
}
