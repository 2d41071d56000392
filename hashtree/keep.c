/* SPDX-License-Identifier: MIT */
/*
 * Finding the root by the cheapest proof there is.
 *
 *     unchanged  the image's tree file was made of these very files, which nobody touched since
 *     bitmap     the image's tree file, and QEMU's dirty bitmap of what changed since
 *     overlay    the tree file of an image below in the chain, and what the images above it hold
 *     full       everything is read
 *
 * A file counts as untouched when its device, inode, size, mtime and ctime are those that were
 * noted before it was read, and both times lie further back from that moment than the grain of the
 * file system's clock: a write in the same tick as an earlier one would not show. Whatever is found
 * is kept in the image's tree file. Not being able to keep it is no error: it costs time only.
 */
#include <errno.h>
#include <inttypes.h>
#include <openssl/sha.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/checked.h"
#include "common/log.h"
#include "common/units.h"
#include "hashtree/internal.h"
#include "image/bitmap.h"

/* File times come from the kernel's coarse clock, which moves every 10 ms at most (HZ=100). */
#define CLOCK_GRAIN_NS 20000000
/* Times without a fraction come from a file system that has none: ext3, FAT (2 s). */
#define COARSE_GRAIN_NS INT64_C(2000000000)

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

/* --- Identity --- */

static struct tree_file_identity identity_of(const struct stat *st)
{
    return (struct tree_file_identity){
        .device = st->st_dev,
        .inode = st->st_ino,
        .size = (uint64_t)st->st_size,
        .mtime = st->st_mtim,
        .ctime = st->st_ctim,
    };
}

static bool same_time(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

static bool same_identity(const struct tree_file_identity *a, const struct tree_file_identity *b)
{
    return a->device == b->device && a->inode == b->inode && a->size == b->size &&
           same_time(&a->mtime, &b->mtime) && same_time(&a->ctime, &b->ctime);
}

static int64_t nanoseconds_between(const struct timespec *from, const struct timespec *to)
{
    return ((int64_t)to->tv_sec - from->tv_sec) * 1000000000 + (to->tv_nsec - from->tv_nsec);
}

/* How long after a file's last change a moment must be, that a further change shows. */
static int64_t grain_of(const struct tree_file_identity *id)
{
    return id->mtime.tv_nsec == 0 && id->ctime.tv_nsec == 0 ? COARSE_GRAIN_NS : CLOCK_GRAIN_NS;
}

static int64_t age(const struct tree_file_identity *id, const struct timespec *moment)
{
    int64_t since_mtime = nanoseconds_between(&id->mtime, moment);
    int64_t since_ctime = nanoseconds_between(&id->ctime, moment);

    return since_mtime < since_ctime ? since_mtime : since_ctime;
}

/* Whether `header`, of an image whose files are ours from `first` on, was made of what they hold
 * now. */
static bool header_current(const struct keep *keep, const struct tree_header *header,
                           uint32_t first)
{
    if (header->file_count == 0 || header->file_count != keep->file_count - first)
        return false;
    for (uint32_t i = 0; i < header->file_count; i++)
        if (!same_identity(&header->files[i], &keep->identities[first + i]) ||
            age(&header->files[i], &header->recorded) <= grain_of(&header->files[i]))
            return false;
    return true;
}

static bool header_fits(const struct keep *keep, const struct tree_header *header, const char *view)
{
    return verity_same_tree(&header->params, &keep->tree->params) &&
           header->start == keep->tree->start && strcmp(header->view, view) == 0;
}

/* What the files are, as the image had them when it was opened. */
static bool take_identities(struct keep *keep)
{
    const struct image *image = keep->tree->image;
    int64_t wait = 0;

    keep->file_count = (uint32_t)image_file_count(image);
    for (uint32_t i = 0; i < keep->file_count; i++) {
        const struct image_file *file = image_file(image, i);
        if (!S_ISREG(file->stat.st_mode)) {
            log_info("%s: not a regular file, so changes would not show: no tree is kept",
                     file->path);
            return false;
        }
        keep->identities[i] = identity_of(&file->stat);
    }
    clock_gettime(CLOCK_REALTIME, &keep->opened);
    /* A file that was changed this very moment is given the time to look changed if it is again. */
    for (uint32_t i = 0; i < keep->file_count; i++) {
        int64_t rest = CLOCK_GRAIN_NS - age(&keep->identities[i], &keep->opened);
        if (rest > wait && rest <= CLOCK_GRAIN_NS)
            wait = rest;
    }
    if (wait > 0) {
        nanosleep(&(struct timespec){.tv_nsec = wait + 1000000}, NULL);
        clock_gettime(CLOCK_REALTIME, &keep->opened);
    }
    return true;
}

/* Whether the files are still what they were when the image was opened. */
static bool files_unchanged(const struct keep *keep)
{
    for (uint32_t i = 0; i < keep->file_count; i++) {
        const struct image_file *file = image_file(keep->tree->image, i);
        struct stat st;
        if (fstat(file->fd, &st) < 0)
            return false;
        struct tree_file_identity now = identity_of(&st);
        if (!same_identity(&now, &keep->identities[i])) {
            log_warning("%s: it was written to while it was read; no tree is kept", file->path);
            return false;
        }
    }
    return true;
}

/* Bytes that a crash of the machine could still take back must not be vouched for. */
static bool sync_files(const struct keep *keep)
{
    for (uint32_t i = 0; i < keep->file_count; i++) {
        const struct image_file *file = image_file(keep->tree->image, i);
        if (fsync(file->fd) < 0 && errno != EROFS) {
            log_info("%s: cannot sync (%s): no tree is kept", file->path, strerror(errno));
            return false;
        }
    }
    return true;
}

/* --- Changes: where they are told --- */

struct overlay_changes {
    struct hashtree *tree;
    unsigned depth;
};

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

struct bitmap_changes {
    struct hashtree *tree;
    const struct image_bitmap_bits *bits;
};

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

struct proof {
    enum hashtree_method method;
    struct node_base base;
    struct hashtree_changes changes;
    struct overlay_changes overlay;
    struct bitmap_changes bitmap;
    struct tree_file *below;        /* owned: the tree file of an image below */
    struct image_bitmap_bits *bits; /* owned */
};

static void proof_clear(struct proof *proof)
{
    if (proof->below != NULL)
        tree_file_close(proof->below);
    if (proof->bits != NULL)
        image_bitmap_free(proof->bits);
}
DEFINE_CLEANUP_INPLACE(struct proof, proof_clear);

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
 */
static bool same_bitmap(const struct keep *keep, const struct image_bitmap_bits *bits,
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
    for (uint32_t i = 0; i < header->canary_count; i++) {
        uint64_t at = header->canaries[i] * header->granularity;
        if (!image_bitmap_next(bits, at, &start, &end) || start > at)
            return false;
    }
    return header->canary_count == IMAGE_BITMAP_CANARIES;
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
        if (!same_identity(&header->files[i], &keep->identities[i])) {
            keep_reason(keep->tree, "another file of the chain changed");
            return false;
        }
    if (image_bitmap_load(image, IMAGE_BITMAP_NAME, &proof->bits, &err) < 0) {
        keep_reason(keep->tree, error_message(&err));
        return false;
    }
    if (!same_bitmap(keep, proof->bits, header)) {
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

    if (info->size < keep->tree->start + tree_data_size(keep->tree))
        return false;
    if (asprintf(&path, "%s" TREE_FILE_SUFFIX, info->path) < 0) {
        path = NULL;
        return false;
    }
    if (tree_file_open(path, &file, NULL) < 0 ||
        !header_fits(keep, tree_file_header(file), info->format) ||
        !header_current(keep, tree_file_header(file),
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

/* --- Keeping --- */

static void fill_header(const struct keep *keep, const struct proof *proof,
                        struct tree_header *header)
{
    const struct tree_header *old = keep->file != NULL ? tree_file_header(keep->file) : NULL;

    *header = (struct tree_header){
        .lean = keep->lean,
        .params = keep->tree->params,
        .start = keep->tree->start,
        .zero_blocks = UINT64_MAX,
        .recorded = keep->opened,
        .file_count = keep->file_count,
    };
    memcpy(header->view, keep->view, sizeof(header->view));
    memcpy(header->files, keep->identities, keep->file_count * sizeof(header->files[0]));
    if (proof->method == HASHTREE_BITMAP) {
        header->lean = old->lean;
        memcpy(header->base, old->base, sizeof(header->base));
        /* The bitmap was not cleared: it still tells all that changed since then. */
        header->granularity = old->granularity;
        memcpy(header->bitmap_generation, old->bitmap_generation,
               sizeof(header->bitmap_generation));
        header->canary_count = old->canary_count;
        memcpy(header->canaries, old->canaries, sizeof(header->canaries));
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

static struct tree_writer *start_writing(const struct keep *keep, const struct proof *proof,
                                         struct tree_header *header)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct tree_writer *writer = NULL;
    int r;

    fill_header(keep, proof, header);
    if (proof->method == HASHTREE_OVERLAY &&
        !name_below(keep, tree_file_path(proof->below), header))
        return NULL;
    r = proof->method == HASHTREE_BITMAP ? tree_writer_update(keep->file, header, &writer, &err)
                                         : tree_writer_new(keep->path, header, &writer, &err);
    if (r < 0) {
        log_info("no tree is kept: %s", error_message(&err));
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
    if (!files_unchanged(keep) || !sync_files(keep))
        return;
    if (tree_writer_commit(writer, header, false, &err) < 0)
        log_warning("no tree is kept: %s", error_message(&err));
}

int keep_build(struct hashtree *tree, struct build_result *ret, struct error *err)
{
    struct keep *keep = tree->keep;
    _cleanup_(proof_clear_cleanup) struct proof proof = {.method = HASHTREE_FULL};
    _cleanup_(tree_writer_free_cleanup) struct tree_writer *writer = NULL;
    struct tree_header header;
    struct kept_nodes kept = {.tree = tree};

    if (!keep->rescan && !try_bitmap(keep, &proof))
        try_overlay(keep, &proof);
    writer = start_writing(keep, &proof, &header);
    kept.writer = writer;
    struct node_sink sink = {.nodes = writer != NULL ? keep_in_file : NULL, .arg = &kept};
    int r = build_run(tree, proof.method == HASHTREE_FULL ? NULL : &proof.base, &sink, ret, err);
    if (r < 0)
        return r;
    tree->method = proof.method;
    if (writer != NULL && !kept.failed)
        finish_writing(keep, writer, &header, ret);
    /* For single nodes later on: what was just written, or else the base, in which they are found
     * as far as they did not change. */
    struct tree_file *file = NULL;
    if (tree_file_open(keep->path, &file, NULL) < 0 ||
        !header_fits(keep, tree_file_header(file), keep->view)) {
        if (file != NULL)
            tree_file_close(file);
        file = TAKE_PTR(proof.below);
    }
    if (file != NULL) {
        if (keep->file != NULL)
            tree_file_close(keep->file);
        keep->file = file;
    }
    return 0;
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

static int keep_init(struct keep *keep, const struct hashtree_file_options *options,
                     struct error *err)
{
    const struct image *image = keep->tree->image;

    keep->lean = options->lean;
    keep->rescan = options->rescan;
    if (options->path != NULL)
        keep->path = strdup(options->path);
    else if (asprintf(&keep->path, "%s" TREE_FILE_SUFFIX, image_path(image)) < 0)
        keep->path = NULL;
    if (keep->path == NULL)
        return error_oom(err);
    /* Snapshot names may be long: what counts is that two of them do not look alike. */
    if (options->snapshot == NULL) {
        snprintf(keep->view, sizeof(keep->view), "%s", image_info(image, 0)->format);
    } else {
        uint8_t digest[SHA256_DIGEST_LENGTH];
        char hex[2 * SHA256_DIGEST_LENGTH + 1];
        SHA256((const unsigned char *)options->snapshot, strlen(options->snapshot), digest);
        hex_encode(digest, sizeof(digest), hex);
        snprintf(keep->view, sizeof(keep->view), "%s snapshot %s", image_info(image, 0)->format,
                 hex);
    }
    return 0;
}

int hashtree_keep(struct hashtree *tree, const struct hashtree_file_options *options,
                  struct error *err)
{
    _cleanup_error_ struct error open_err = ERROR_INIT;
    struct keep *keep;

    if (encrypted(tree->image)) {
        keep_reason(tree, "trees of encrypted images are not kept");
        return 0;
    }
    keep = calloc(1, sizeof(*keep));
    if (keep == NULL)
        return error_oom(err);
    keep->tree = tree;
    int r = keep_init(keep, options, err);
    if (r < 0 || !take_identities(keep)) {
        keep_free(keep);
        return r;
    }
    tree->keep = keep;
    r = tree_file_open(keep->path, &keep->file, &open_err);
    if (r < 0) {
        keep_reason(tree, r == -ENOENT ? "there is no tree file" : error_message(&open_err));
        return 0;
    }
    const struct tree_header *header = tree_file_header(keep->file);
    if (!header_fits(keep, header, keep->view)) {
        keep_reason(tree, "the tree file is of another partition, or of other parameters");
        tree_file_close(TAKE_PTR(keep->file));
        return 0;
    }
    if (keep->rescan) {
        keep_reason(tree, "asked for");
        return 0;
    }
    if (!header_current(keep, header, 0)) {
        keep_reason(tree, "the image changed");
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

struct tree_file *keep_file(const struct keep *keep)
{
    return keep->file;
}

void keep_reason(struct hashtree *tree, const char *reason)
{
    snprintf(tree->reason, sizeof(tree->reason), "%s", reason);
}

void keep_free(struct keep *keep)
{
    if (keep->file != NULL)
        tree_file_close(keep->file);
    free(keep->path);
    free(keep);
}
