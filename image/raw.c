/* SPDX-License-Identifier: MIT */
#include "common/checked.h"
#include "image/internal.h"

static int raw_map(struct layer *layer, uint64_t offset, uint64_t length, struct piece *ret,
                   struct error *err)
{
    uint64_t file_size = layer_file(layer)->file.size;

    (void)err;
    if (offset >= file_size)
        *ret = (struct piece){.kind = PIECE_ZERO, .length = length};
    else
        *ret = (struct piece){
            .kind = PIECE_DATA,
            .length = min_u64(length, file_size - offset),
            .file = layer->file,
            .host_offset = offset,
        };
    return 0;
}

static const struct layer_ops raw_ops = {.map = raw_map};

int raw_layer_open(struct layer *layer, const struct image_options *options, struct error *err)
{
    const struct host_file *file = layer_file(layer);

    if (options->snapshot != NULL)
        return error_set(err, EINVAL, "%s: a raw image has no internal snapshots",
                         layer_path(layer));
    /* A disk has whole sectors: as QEMU does, the last one is filled up with zeros. */
    if (!checked_align_up(file->file.size, IMAGE_SECTOR_SIZE, &layer->size) ||
        layer->size > INT64_MAX)
        return error_set(err, EFBIG, "%s: the file is too large", layer_path(layer));
    layer->ops = &raw_ops;
    layer->info.format = "raw";
    layer->info.size = layer->size;
    return 0;
}
