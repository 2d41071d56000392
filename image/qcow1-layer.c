/* SPDX-License-Identifier: MIT */
/* The backend of QCOW version 1 images: all of it is libqcow's (qcow1.h). */
#include <errno.h>
#include <string.h>

#include "image/internal.h"
#include "image/qcow1.h"

static int qcow1_layer_map(struct layer *layer, uint64_t offset, uint64_t length, struct piece *ret,
                           struct error *err)
{
    enum qcow1_kind kind;
    int r;

    r = qcow1_map(layer->state, offset, length, &kind, &length, err);
    if (r < 0)
        return r;
    *ret = (struct piece){
        .kind = kind == QCOW1_DATA   ? PIECE_OPAQUE
                : kind == QCOW1_ZERO ? PIECE_ZERO
                                     : PIECE_UNALLOCATED,
        .length = length,
        .file = layer->file,
    };
    return 0;
}

static int qcow1_layer_read(struct layer *layer, const struct piece *piece, uint64_t offset,
                            void *buffer, size_t length, struct error *err)
{
    (void)piece;
    return qcow1_read(layer->state, offset, buffer, length, err);
}

static void qcow1_layer_close(struct layer *layer)
{
    if (layer->state != NULL)
        qcow1_close(layer->state);
}

static const struct layer_ops qcow1_layer_ops = {
    .map = qcow1_layer_map,
    .read = qcow1_layer_read,
    .close = qcow1_layer_close,
};

int qcow1_layer_open(struct layer *layer, const struct image_options *options, struct error *err)
{
    struct qcow1 *qcow1;
    int r;

    if (options->snapshot != NULL)
        return error_set(err, EINVAL, "%s: a QCOW version 1 image has no internal snapshots",
                         layer_path(layer));
    r = qcow1_open(layer_file(layer)->file.fd, layer_path(layer), options->password_file, &qcow1,
                   err);
    if (r < 0)
        return r;
    layer->state = qcow1;
    layer->ops = &qcow1_layer_ops;

    layer->size = qcow1_size(qcow1);
    layer->info.format = "qcow";
    layer->info.version = qcow1_version(qcow1);
    layer->info.size = layer->size;
    layer->info.cluster_size = qcow1_cluster_size(qcow1);
    layer->info.compression = "zlib";
    layer->info.encryption = qcow1_encrypted(qcow1) ? "aes" : NULL;

    const char *backing_file = qcow1_backing_file(qcow1);
    if (backing_file == NULL || backing_file[0] == '\0')
        return 0;
    layer->info.backing_file = strdup(backing_file);
    if (layer->info.backing_file == NULL)
        return error_oom(err);
    /* Version 1 does not say the backing file's format. */
    r = image_resolve_name(layer_path(layer), "backing file", backing_file, &layer->backing_path,
                           err);
    if (r < 0)
        return error_prefix(err, "%s", layer_path(layer));
    return 0;
}
