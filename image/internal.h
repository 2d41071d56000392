/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "image/image.h"

/*
 * An image is a chain of layers: the image that was opened, its backing file, that one's backing
 * file, and so on. Each layer is read by one backend, which knows nothing of the others: it says of
 * a range whether it holds the bytes, whether they are zeros, or whether they are the next layer's
 * to tell. image.c opens the chain; extents.c walks it, and merges what the layers say into
 * extents.
 *
 * Threads: a layer does not change once it is open. What is cached behind it takes care of itself
 * (l2-cache.c, cluster-cache.c).
 */

enum {
    IMAGE_DEPTH_MAX = 64,    /* images in one chain */
    IMAGE_SECTOR_SIZE = 512, /* a disk is a whole number of these */
};

/* A host file that is open and locked (host-file.c). */
struct host_file {
    struct image_file file; /* owns fd and path */
    dev_t device;
    ino_t inode;
    uint64_t disk_usage; /* bytes allocated to it */
    bool has_holes;      /* it may have some */
};

/*
 * Opens a regular file or block device for reading, or for writing as well, and takes QEMU's image
 * locks on it (see host-file.c). Anything else at `path` is refused. -EBUSY, after half a second:
 * somebody has it open for writing; to write, if somebody has it open at all.
 */
int host_file_open(const char *path, bool writable, struct host_file *ret, struct error *err);
void host_file_close(struct host_file *file);
DEFINE_CLEANUP_INPLACE(struct host_file, host_file_close);
#define _cleanup_host_file_ _cleanup_(host_file_close_cleanup)

/*
 * Raises the locks of an open file to a writer's, for writes that change nothing of what its
 * readers here see. -EBUSY, with the locks as they were: somebody else has the file open. -ENOTSUP:
 * the file system has no locks. host_file_raise() waits for half a second before it says -EBUSY.
 * host_file_raise_open() does not: who has the file open is mostly a mount, for hours. It also
 * opens the file for writing; *ret is the caller's to close.
 */
int host_file_raise(const struct host_file *file, struct error *err);
int host_file_raise_open(const struct host_file *file, int *ret, struct error *err);
void host_file_lower(const struct host_file *file);

/* What a backend says of a range. */
enum piece_kind {
    PIECE_UNALLOCATED, /* the next layer's; zeros if there is none */
    PIECE_ZERO,
    PIECE_DATA,
    PIECE_COMPRESSED,
    PIECE_OPAQUE,
};

struct piece {
    enum piece_kind kind;
    uint64_t length;      /* bytes, more than 0 */
    size_t file;          /* DATA, COMPRESSED: number of the host file */
    uint64_t host_offset; /* DATA, COMPRESSED: as in struct extent */
    uint64_t descriptor;  /* COMPRESSED: what the backend's read needs to find it */
};

struct layer;

struct layer_ops {
    /* What is at `offset`, for at most `length` bytes; the range lies within the layer's size.
     * Looks only as far as is cheap: the caller puts pieces together. Required. */
    int (*map)(struct layer *layer, uint64_t offset, uint64_t length, struct piece *ret,
               struct error *err);

    /* Reads from a COMPRESSED or OPAQUE piece that map returned for `offset`; length is at most
     * the piece's. Required if map returns such pieces. */
    int (*read)(struct layer *layer, const struct piece *piece, uint64_t offset, void *buffer,
                size_t length, struct error *err);

    /* Frees layer->state. Optional. */
    void (*close)(struct layer *layer);
};

struct layer {
    const struct layer_ops *ops;
    void *state; /* the backend's */
    struct image *image;
    unsigned depth; /* 0 is the image that was opened */
    size_t file;    /* number of the image file itself */
    uint64_t size;  /* bytes of the disk, as read */

    /* What image.c opens next; NULL if there is no backing file. Owned. */
    char *backing_path;
    const char *backing_format; /* NULL: to be probed. Points into `info` */

    struct image_info info; /* strings and arrays in it are owned by the layer */
};

struct l2_cache;
struct cluster_cache;

struct image {
    char *path;
    bool at_snapshot; /* the first layer shows an internal snapshot */
    size_t layer_count;
    struct layer *layers[IMAGE_DEPTH_MAX];
    size_t file_count;
    struct host_file *files[2 * IMAGE_DEPTH_MAX]; /* each image file and its data file */
    bool writable;                                /* the first file is open for writing */
    struct l2_cache *l2_cache;                    /* shared by all layers */
    struct cluster_cache *cluster_cache;
};

/*
 * Backends' open functions: the image file is open as layer->file, `options` are those for this
 * layer. They fill ops, state, size, info and backing_path; on failure image.c frees what they set.
 */
int raw_layer_open(struct layer *layer, const struct image_options *options, struct error *err);
int qcow1_layer_open(struct layer *layer, const struct image_options *options, struct error *err);
int qcow2_layer_open(struct layer *layer, const struct image_options *options, struct error *err);

static inline const struct host_file *layer_file(const struct layer *layer)
{
    return layer->image->files[layer->file];
}

static inline const char *layer_path(const struct layer *layer)
{
    return layer_file(layer)->file.path;
}

/* Opens a qcow2 image whose own file is open, and locked, for writing; its layer is one for reading
 * still. `backing` is for the files below it, and may be NULL. */
int image_open_for_writing(const char *path, const struct image_options *backing,
                           struct image **ret, struct error *err);

/* Opens one more file of the image (a data file); *ret is its number. */
int image_add_file(struct image *image, const char *path, size_t *ret, struct error *err);

/* --- Which format, which file (probe.c) --- */

enum image_format { FORMAT_RAW, FORMAT_QCOW1, FORMAT_QCOW2 };

/*
 * The format that `name` means, or, if it is NULL, what the file's first bytes say: those of a
 * format that is not read here are an error that names it, unknown ones mean raw. `start` are the
 * first `length` bytes of the file, up to PROBE_LENGTH.
 */
enum { PROBE_LENGTH = 512 };
int image_format_find(const char *name, const uint8_t *start, size_t length, enum image_format *ret,
                      struct error *err);

/*
 * The path of a file that an image's header names: relative names start from the image's
 * directory. Protocols ("nbd:…", "json:…", "file:…") are refused. `what` ("backing file") is for
 * the message. *ret is the caller's.
 */
int image_resolve_name(const char *image_path, const char *what, const char *name, char **ret,
                       struct error *err);

/*
 * As image_resolve_name(), for an external data file. QEMU takes a relative name from the working
 * directory, not from the image's. The file may be in either place; two different ones are an
 * error, for nobody can tell which is meant.
 */
int image_resolve_data_file(const char *image_path, const char *name, char **ret,
                            struct error *err);
