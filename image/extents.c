/* SPDX-License-Identifier: MIT */
/*
 * Where the bytes of an image are, and what they are.
 *
 * resolve() walks the chain for one offset: the first layer that holds the range, or says that it
 * is zeros, decides; a layer that says "unallocated" cuts the range and leaves it to the next. A
 * layer that is smaller than the one above it has zeros behind its end. image_map() puts such
 * pieces together as long as they are of one kind and contiguous. How many is bounded, so that a
 * call stays short whatever the image is like.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/io.h"
#include "image/internal.h"

enum {
    MAP_PIECES_MAX = 1024, /* that one image_map() looks at */
};

const char *extent_kind_name(enum extent_kind kind)
{
    switch (kind) {
    case EXTENT_ZERO:
        return "zero";
    case EXTENT_DATA:
        return "data";
    case EXTENT_COMPRESSED:
        return "compressed";
    case EXTENT_OPAQUE:
        return "opaque";
    }
    assert(false);
    return "";
}

/* --- Mapping --- */

/* What is at `offset`, and in which layer; never PIECE_UNALLOCATED. */
static int resolve(const struct image *image, uint64_t offset, uint64_t length, struct piece *ret,
                   struct layer **ret_layer, struct error *err)
{
    for (size_t i = 0; i < image->layer_count; i++) {
        struct layer *layer = image->layers[i];
        struct piece piece;

        if (offset >= layer->size) {
            /* Only behind the end of a smaller backing file. */
            *ret = (struct piece){.kind = PIECE_ZERO, .length = length};
            *ret_layer = layer;
            return 0;
        }
        length = min_u64(length, layer->size - offset);
        int r = layer->ops->map(layer, offset, length, &piece, err);
        if (r < 0)
            return r;
        assert(piece.length > 0 && piece.length <= length);
        if (piece.kind != PIECE_UNALLOCATED) {
            *ret = piece;
            *ret_layer = layer;
            return 0;
        }
        length = piece.length;
    }
    *ret = (struct piece){.kind = PIECE_ZERO, .length = length};
    *ret_layer = image->layers[image->layer_count - 1];
    return 0;
}

/* Asks the file system about where `piece` begins. */
static int find_hole(const struct image *image, const struct piece *piece,
                     struct image_hole_hint *hint, struct error *err)
{
    const struct image_file *file = &image->files[piece->file]->file;
    uint64_t start = piece->host_offset, end = start + piece->length;
    off_t data = (off_t)start, hole;
    struct stat st;

    if (!hint->data_follows || hint->file != piece->file || hint->end != start)
        data = lseek(file->fd, (off_t)start, SEEK_DATA);
    if (data < 0 && errno == ENXIO) {
        /* A hole up to the end of the file, unless the file became shorter. */
        if (fstat(file->fd, &st) < 0)
            return error_set_errno(err, errno, "%s: cannot stat", file->path);
        if ((uint64_t)st.st_size < end)
            return error_set(err, ENODATA,
                             "%s: the file became shorter: it ends at offset %" PRIu64
                             ", and bytes up to %" PRIu64 " belong to the image",
                             file->path, (uint64_t)st.st_size, end);
        *hint = (struct image_hole_hint){
            .file = piece->file, .start = start, .end = (uint64_t)st.st_size, .hole = true};
        return 0;
    }
    if (data < 0) {
        /* A file or device that has no notion of holes (EINVAL): all of it is data. */
        *hint = (struct image_hole_hint){.file = piece->file, .end = UINT64_MAX};
        return 0;
    }
    if ((uint64_t)data > start) {
        *hint = (struct image_hole_hint){.file = piece->file,
                                         .start = start,
                                         .end = (uint64_t)data,
                                         .hole = true,
                                         .data_follows = true};
        return 0;
    }
    hole = lseek(file->fd, (off_t)start, SEEK_HOLE);
    *hint = (struct image_hole_hint){
        .file = piece->file, .start = start, .end = hole > data ? (uint64_t)hole : end};
    return 0;
}

/* Cuts a DATA piece to its first run of data or hole, and makes it ZERO if that is a hole. */
static int apply_holes(const struct image *image, struct piece *piece, struct image_hole_hint *hint,
                       struct error *err)
{
    if (!image->files[piece->file]->has_holes)
        return 0;
    if (hint->file != piece->file || piece->host_offset < hint->start ||
        piece->host_offset >= hint->end) {
        int r = find_hole(image, piece, hint, err);
        if (r < 0)
            return r;
    }
    piece->length = min_u64(piece->length, hint->end - piece->host_offset);
    if (hint->hole)
        *piece = (struct piece){.kind = PIECE_ZERO, .length = piece->length};
    return 0;
}

static enum extent_kind extent_kind_of(enum piece_kind kind)
{
    switch (kind) {
    case PIECE_DATA:
        return EXTENT_DATA;
    case PIECE_COMPRESSED:
        return EXTENT_COMPRESSED;
    case PIECE_OPAQUE:
        return EXTENT_OPAQUE;
    case PIECE_ZERO:
    case PIECE_UNALLOCATED:
        break;
    }
    return EXTENT_ZERO;
}

/* Whether `piece` goes on where `extent` ends. A compressed cluster is never put together with
 * another: whoever reads extents one by one shall decompress each only once. */
static bool continues(const struct extent *extent, const struct piece *piece)
{
    if (extent_kind_of(piece->kind) != extent->kind)
        return false;
    switch (extent->kind) {
    case EXTENT_ZERO:
    case EXTENT_OPAQUE:
        return true;
    case EXTENT_DATA:
        return piece->file == extent->file &&
               piece->host_offset == extent->host_offset + extent->length;
    case EXTENT_COMPRESSED:
        break;
    }
    return false;
}

static int map(struct image *image, uint64_t offset, uint64_t length, unsigned flags,
               struct image_hole_hint *hint, struct extent *ret, struct error *err)
{
    struct extent extent = {0};

    assert(length > 0 && range_within(offset, length, image_size(image)));
    for (unsigned pieces = 0; pieces < MAP_PIECES_MAX && extent.length < length; pieces++) {
        uint64_t at = offset + extent.length;
        struct layer *layer;
        struct piece piece;
        /* What is wrong behind the first piece is told when that is mapped. */
        struct error *piece_err = pieces == 0 ? err : NULL;

        int r = resolve(image, at, length - extent.length, &piece, &layer, piece_err);
        if (r == 0 && piece.kind == PIECE_DATA && (flags & IMAGE_MAP_HOLES) != 0)
            r = apply_holes(image, &piece, hint, piece_err);
        if (r < 0) {
            if (pieces == 0)
                return r;
            break;
        }
        if (pieces == 0)
            extent = (struct extent){
                .kind = extent_kind_of(piece.kind),
                .start = offset,
                .length = piece.length,
                .depth = layer->depth,
                .file = piece.file,
                .host_offset = piece.host_offset,
            };
        else if (continues(&extent, &piece))
            extent.length += piece.length;
        else
            break;
        if (extent.kind == EXTENT_COMPRESSED)
            break;
    }
    *ret = extent;
    return 0;
}

int image_map(struct image *image, uint64_t offset, uint64_t length, unsigned flags,
              struct extent *ret, struct error *err)
{
    struct image_hole_hint hint = {0};

    return map(image, offset, length, flags, &hint, ret, err);
}

/* Whether one of the first `depth` layers decides what is at `offset`, and for how long. */
static int decided_above(const struct image *image, unsigned depth, uint64_t offset,
                         uint64_t *ret_length, bool *ret_decided, struct error *err)
{
    uint64_t length = image_size(image) - offset;

    for (size_t i = 0; i < depth && i < image->layer_count; i++) {
        struct layer *layer = image->layers[i];
        struct piece piece;

        *ret_decided = true;
        *ret_length = length;
        if (offset >= layer->size)
            return 0;
        length = min_u64(length, layer->size - offset);
        int r = layer->ops->map(layer, offset, length, &piece, err);
        if (r < 0)
            return r;
        *ret_length = length = piece.length;
        if (piece.kind != PIECE_UNALLOCATED)
            return 0;
    }
    *ret_decided = false;
    *ret_length = length;
    return 0;
}

int image_next_above(struct image *image, unsigned depth, uint64_t offset, uint64_t *ret_start,
                     uint64_t *ret_end, struct error *err)
{
    uint64_t size = image_size(image), start = UINT64_MAX, length;

    for (unsigned pieces = 0; offset < size && pieces < MAP_PIECES_MAX; offset += length) {
        bool found = start != UINT64_MAX, decided;
        /* What is wrong behind a range that was found is told when somebody asks for it. */
        int r = decided_above(image, depth, offset, &length, &decided, found ? NULL : err);
        if (r < 0 && !found)
            return r;
        if (r < 0 || (found && !decided))
            break;
        if (decided && !found)
            start = offset;
        if (decided)
            pieces++;
    }
    *ret_start = start;
    *ret_end = start != UINT64_MAX ? offset : UINT64_MAX;
    return 0;
}

int image_map_hinted(struct image *image, uint64_t offset, uint64_t length, unsigned flags,
                     struct image_hole_hint *hint, struct extent *ret, struct error *err)
{
    if (image->writable && hint->file == 0)
        *hint = (struct image_hole_hint){0};
    return map(image, offset, length, flags | IMAGE_MAP_HOLES, hint, ret, err);
}

/* --- Reading --- */

int image_read(struct image *image, uint64_t offset, void *buffer, size_t length, struct error *err)
{
    uint8_t *p = buffer;
    int r = 0;

    assert(range_within(offset, length, image_size(image)));
    while (length > 0) {
        struct layer *layer;
        struct piece piece;

        r = resolve(image, offset, length, &piece, &layer, err);
        if (r < 0)
            return r;
        size_t n = (size_t)piece.length;
        switch (piece.kind) {
        case PIECE_ZERO:
        case PIECE_UNALLOCATED:
            memset(p, 0, n);
            break;
        case PIECE_DATA: {
            const struct image_file *file = &image->files[piece.file]->file;
            r = io_read_at(file->fd, file->path, p, n, piece.host_offset, err);
            break;
        }
        case PIECE_COMPRESSED:
        case PIECE_OPAQUE:
            r = layer->ops->read(layer, &piece, offset, p, n, err);
            break;
        }
        if (r < 0)
            return r;
        p += n;
        offset += n;
        length -= n;
    }
    return 0;
}
