/* SPDX-License-Identifier: MIT */
/*
 * Images: opening and closing the chain of layers.
 *
 * image_open() opens layer after layer, each by its backend (internal.h), until one has no backing
 * file. After that nothing changes but caches, so that reading (extents.c) takes no lock here.
 */
#include "image/image.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/io.h"
#include "image/cluster-cache.h"
#include "image/internal.h"
#include "image/l2-cache.h"

/* --- Opening --- */

int image_add_file(struct image *image, const char *path, size_t *ret, struct error *err)
{
    struct host_file *file;
    int r;

    assert(image->file_count < sizeof(image->files) / sizeof(image->files[0]));
    file = calloc(1, sizeof(*file));
    if (file == NULL)
        return error_oom(err);
    r = host_file_open(path, image->writable && image->file_count == 0, file, err);
    if (r < 0) {
        free(file);
        return r;
    }
    *ret = image->file_count;
    image->files[image->file_count++] = file;
    return 0;
}

static void layer_free(struct layer *layer)
{
    struct image_info *info = &layer->info;

    if (layer->ops != NULL && layer->ops->close != NULL)
        layer->ops->close(layer);
    free(layer->backing_path);
    free((char *)info->data_file);
    free((char *)info->backing_file);
    free((char *)info->backing_format);
    for (size_t i = 0; i < info->snapshot_count; i++) {
        free(info->snapshots[i].id);
        free(info->snapshots[i].name);
    }
    free((void *)info->snapshots);
    for (size_t i = 0; i < info->bitmap_count; i++)
        free(info->bitmaps[i].name);
    free((void *)info->bitmaps);
    free(layer);
}

/* Adds the image at `path` to the end of the chain. */
static int open_layer(struct image *image, const char *path, const struct image_options *options,
                      struct error *err)
{
    uint8_t start[PROBE_LENGTH];
    enum image_format format;
    struct layer *layer;
    ssize_t length;
    size_t number;
    int r;

    r = image_add_file(image, path, &number, err);
    if (r < 0)
        return r;
    const struct host_file *file = image->files[number];
    for (unsigned i = 0; i < image->layer_count; i++) {
        const struct host_file *other = layer_file(image->layers[i]);
        if (other->device == file->device && other->inode == file->inode)
            return error_set(err, ELOOP, "%s: the chain of backing files comes back to this file",
                             path);
    }

    length = io_read_some_at(file->file.fd, path, start, sizeof(start), 0, err);
    if (length < 0)
        return (int)length;
    r = image_format_find(options->format, start, (size_t)length, &format, err);
    if (r < 0)
        return error_prefix(err, "%s", path);

    layer = calloc(1, sizeof(*layer));
    if (layer == NULL)
        return error_oom(err);
    layer->image = image;
    layer->depth = (unsigned)image->layer_count;
    layer->file = number;
    layer->info.path = file->file.path;
    layer->info.file_size = file->file.size;
    layer->info.disk_usage = file->disk_usage;
    image->layers[image->layer_count++] = layer;

    switch (format) {
    case FORMAT_RAW:
        return raw_layer_open(layer, options, err);
    case FORMAT_QCOW1:
        return qcow1_layer_open(layer, options, err);
    case FORMAT_QCOW2:
        return qcow2_layer_open(layer, options, err);
    }
    assert(false);
    return -EINVAL;
}

/* `backing` says how the files below the first are read; their formats are in the headers. */
static int open_chain(struct image *image, const struct image_options *options,
                      const struct image_options *backing, struct error *err)
{
    int r;

    r = open_layer(image, image->path, options, err);
    for (;;) {
        if (r < 0)
            return r;
        const struct layer *last = image->layers[image->layer_count - 1];
        if (last->backing_path == NULL)
            return 0;
        if (image->layer_count == IMAGE_DEPTH_MAX)
            return error_set(err, ELOOP, "%s: the chain of backing files is deeper than %d images",
                             layer_path(last), IMAGE_DEPTH_MAX);
        const struct image_options backing_options = {
            .format = last->backing_format,
            .password_file = backing->password_file,
            .force = backing->force,
        };
        r = open_layer(image, last->backing_path, &backing_options, err);
        if (r < 0)
            r = error_prefix(err, "%s: backing file", layer_path(last));
    }
}

static int new_cluster_cache(struct image *image, struct error *err)
{
    uint64_t largest = 1;

    for (size_t i = 0; i < image->layer_count; i++)
        largest = max_u64(largest, image->layers[i]->info.cluster_size);
    return cluster_cache_new((size_t)largest, &image->cluster_cache, err);
}

static int open_image(const char *path, bool writable, const struct image_options *options,
                      const struct image_options *backing, struct image **ret, struct error *err)
{
    _cleanup_image_ struct image *image = NULL;
    int r;

    image = calloc(1, sizeof(*image));
    if (image == NULL)
        return error_oom(err);
    image->writable = writable;
    image->path = strdup(path);
    if (image->path == NULL)
        return error_oom(err);
    r = l2_cache_new(&image->l2_cache, err);
    if (r < 0)
        return r;
    r = open_chain(image, options, backing, err);
    if (r < 0)
        return r;
    r = new_cluster_cache(image, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(image);
    return 0;
}

static const struct image_options no_options;

int image_open(const char *path, const struct image_options *options, struct image **ret,
               struct error *err)
{
    if (options == NULL)
        options = &no_options;
    return open_image(path, false, options, options, ret, err);
}

int image_open_for_writing(const char *path, const struct image_options *backing,
                           struct image **ret, struct error *err)
{
    static const struct image_options options = {.format = "qcow2"};

    return open_image(path, true, &options, backing != NULL ? backing : &no_options, ret, err);
}

void image_close(struct image *image)
{
    if (image == NULL)
        return;
    for (size_t i = 0; i < image->layer_count; i++)
        layer_free(image->layers[i]);
    l2_cache_free(image->l2_cache);
    cluster_cache_free(image->cluster_cache);
    for (size_t i = 0; i < image->file_count; i++) {
        host_file_close(image->files[i]);
        free(image->files[i]);
    }
    free(image->path);
    free(image);
}

int image_hold(struct image *image, int *ret_fd, struct error *err)
{
    const struct host_file *file = image->files[image->layers[0]->file];
    int r = host_file_raise(file, err);

    if (r == 0)
        *ret_fd = file->file.fd;
    return r;
}

void image_release(struct image *image)
{
    host_file_lower(image->files[image->layers[0]->file]);
}

uint64_t image_size(const struct image *image)
{
    return image->layers[0]->size;
}

const char *image_path(const struct image *image)
{
    return image->path;
}

size_t image_file_count(const struct image *image)
{
    return image->file_count;
}

const struct image_file *image_file(const struct image *image, size_t index)
{
    assert(index < image->file_count);
    return &image->files[index]->file;
}

void image_read_ahead(const struct image *image, bool on)
{
    for (size_t i = 0; i < image_file_count(image); i++)
        (void)posix_fadvise(image_file(image, i)->fd, 0, 0,
                            on ? POSIX_FADV_NORMAL : POSIX_FADV_RANDOM);
}

size_t image_first_file(const struct image *image, unsigned depth)
{
    assert(depth < image->layer_count);
    return image->layers[depth]->file;
}

const struct image_info *image_info(const struct image *image, unsigned depth)
{
    return depth < image->layer_count ? &image->layers[depth]->info : NULL;
}

int image_check_sizes(const struct image *image, struct error *err)
{
    for (size_t i = 0; i < image->file_count; i++) {
        const struct image_file *file = &image->files[i]->file;
        struct stat st;

        if (fstat(file->fd, &st) < 0)
            return error_set_errno(err, errno, "%s: cannot stat", file->path);
        if (S_ISREG(st.st_mode) && (uint64_t)st.st_size < file->size)
            return error_set(err, ENODATA,
                             "%s: the file became shorter: it ends at offset %" PRIu64
                             ", and at %" PRIu64 " when it was opened",
                             file->path, (uint64_t)st.st_size, file->size);
    }
    return 0;
}
