/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "common/error.h"

/*
 * A disk image as a flat range of bytes with a map: what is data (and where in which file), what
 * reads as zeros, what is compressed. Formats: qcow2 version 2 and 3 (read here, after
 * docs/interop/qcow2.rst of QEMU), QCOW version 1 and AES-encrypted images (read by libqcow), raw.
 *
 * An image is open for reading only and does not change while it is open: QEMU's image locks are
 * held on every file of it. All functions that take an open image may be called from any number
 * of threads at once; everything they return stays valid until image_close().
 */
struct image;

struct image_options {
    const char *format;        /* "qcow2", "qcow" or "raw"; NULL probes */
    const char *snapshot;      /* id or name of an internal snapshot; NULL for the current state */
    const char *password_file; /* for AES-encrypted images: its first line, without the newline */
    bool force;                /* read an image that is marked corrupt, or shares L2 tables */
};

/*
 * Opens the image at `path` with its whole backing chain and data files, which must all be local
 * files whatever the headers say. Everything that can be known to be wrong from the headers and L1
 * tables is refused here, with an error that names the file and the field or offset; what the L2
 * tables hold is checked as it is mapped. `options` may be NULL. Warnings (a dirty image) go to the
 * log. -EBUSY: a running writer holds the image. *ret is closed with image_close().
 */
int image_open(const char *path, const struct image_options *options, struct image **ret,
               struct error *err);
void image_close(struct image *image);
DEFINE_CLEANUP(struct image, image_close);
#define _cleanup_image_ _cleanup_(image_close_cleanup)

/*
 * For an edit of the image file by another program that is told not to take locks: raises the locks
 * to a writer's, until image_release(); before and after, nobody can write, either. *ret_fd, which
 * stays the image's, is the descriptor that has the locks. A program that inherits it keeps them
 * should we be killed. -EBUSY: somebody else has the image open. What the edit changed is seen when
 * the image is opened again, which can be done before it is closed.
 */
int image_hold(struct image *image, int *ret_fd, struct error *err);
void image_release(struct image *image);

/* The virtual disk's size in bytes; at most INT64_MAX. */
uint64_t image_size(const struct image *image);

/* The path that was opened. */
const char *image_path(const struct image *image);

/* --- Bytes --- */

/*
 * A host file that holds bytes of the image: the image file, a backing file, a data file. They
 * are numbered from 0, so that a reader can keep things of its own beside them (an io_uring's
 * registered descriptors, O_DIRECT descriptors).
 */
struct image_file {
    int fd;           /* owned by the image; read it with offsets only */
    const char *path; /* for messages */
    uint64_t size;    /* bytes, when it was opened */
    struct stat stat; /* when it was opened, before anything was read */
    bool settled;     /* what is written after that gives it another ctime (file-times.h) */
};

size_t image_file_count(const struct image *image);
const struct image_file *image_file(const struct image *image, size_t index);

/* Whether the kernel shall read ahead in the files, as it does at first. Where only bits are wanted
 * here and there, read-ahead multiplies what comes from the disk. */
void image_read_ahead(const struct image *image, bool on);

/* The first of the files of the image at `depth` of the chain and those behind it. */
size_t image_first_file(const struct image *image, unsigned depth);

enum extent_kind {
    EXTENT_ZERO,       /* reads as zeros; nothing to read */
    EXTENT_DATA,       /* plain bytes of a host file: pread() them, or image_read() */
    EXTENT_COMPRESSED, /* whole or part of one compressed cluster: image_read() it */
    EXTENT_OPAQUE,     /* bytes that libqcow delivers: image_read() them; they may be zeros */
};

/* "zero", "data", "compressed", "opaque". */
const char *extent_kind_name(enum extent_kind kind);

struct extent {
    enum extent_kind kind;
    uint64_t start;       /* bytes of the virtual disk */
    uint64_t length;      /* bytes, more than 0 */
    unsigned depth;       /* which image of the chain decided of the first bytes; 0 is the one that
                           * was opened */
    size_t file;          /* DATA, COMPRESSED: number of the host file */
    uint64_t host_offset; /* DATA: where the byte at `start` is in that file; all `length` bytes lie
                           * within the file's size. COMPRESSED: where the compressed cluster is */
};

enum {
    IMAGE_MAP_HOLES = 1 << 0, /* holes of the host files (SEEK_HOLE) count as ZERO, too. Costs
                               * system calls: for hashing and `map`, not for serving reads */
};

/*
 * The extent at `offset`: the longest one of one kind that starts there, contiguous in its host
 * file if it is DATA, cut to `length` (more than 0; offset + length at most image_size()).
 * It may still be followed by another of the same kind: how far one call looks is bounded.
 * Errors name the file and the table entry that is wrong; a cluster that lies beyond the end of its
 * file is an error.
 */
int image_map(struct image *image, uint64_t offset, uint64_t length, unsigned flags,
              struct extent *ret, struct error *err);

/*
 * The first range that ends behind `offset` (less than image_size()) and that the images above
 * `depth` of the chain decide, be it data or zeros: all that the disk can differ in from the one at
 * `depth`. Cut so that it begins at `offset` or behind it; UINT64_MAX twice if there is none. It
 * may be followed by another: how far one call looks is bounded once it found something. What is
 * below is not looked at.
 */
int image_next_above(struct image *image, unsigned depth, uint64_t offset, uint64_t *ret_start,
                     uint64_t *ret_end, struct error *err);

/*
 * What a host file's holes were like where image_map_hinted() looked last. Zeroed, it says nothing.
 * It belongs to whoever maps one range after the other, to one thread at a time, and needs no
 * cleanup; a copy is another one.
 */
struct image_hole_hint {
    size_t file;         /* number of the host file */
    uint64_t start, end; /* bytes of that file */
    bool hole;           /* from start to end: a hole, or data */
    bool data_follows;   /* behind `end` */
};

/*
 * As image_map() with IMAGE_MAP_HOLES, but the host file system is asked once for each stretch of
 * data or hole and not once for each extent: `hint` is handed from call to call of one image. So a
 * hole that is cut off later goes unnoticed here: see image_check_sizes(). What is open for writing
 * is asked for anew in each call.
 */
int image_map_hinted(struct image *image, uint64_t offset, uint64_t length, unsigned flags,
                     struct image_hole_hint *hint, struct extent *ret, struct error *err);

/* -ENODATA if a host file is shorter now than when it was opened. To be called after the image was
 * read by its map: the map's holes are not read, so nothing else tells that they were cut off. */
int image_check_sizes(const struct image *image, struct error *err);

/*
 * Reads bytes; the range must lie within image_size(). What a host file cannot deliver (EIO, or a
 * file that became shorter) is an error that names the file and the offset in it, never zeros.
 * Fastest for compressed images when the range covers whole clusters.
 */
int image_read(struct image *image, uint64_t offset, void *buffer, size_t length,
               struct error *err);

/* --- What it is --- */

struct image_snapshot {
    char *id;
    char *name;
    uint64_t disk_size;     /* bytes */
    uint64_t vm_state_size; /* bytes */
    int64_t date;           /* seconds since the epoch */
};

struct image_bitmap {
    char *name;
    uint64_t granularity; /* bytes, a power of two */
    bool in_use;
    bool automatic;
};

/* What a header says. For QCOW 1, AES and raw images the fields that they lack are 0 or NULL. */
struct image_info {
    const char *format; /* "qcow2", "qcow", "raw" */
    const char *path;
    unsigned version;        /* 1, 2, 3 */
    uint64_t size;           /* virtual, bytes */
    uint64_t file_size;      /* bytes of the image file */
    uint64_t disk_usage;     /* bytes allocated to it by its file system */
    uint64_t cluster_size;   /* bytes */
    const char *compression; /* "zlib", "zstd", or NULL */
    const char *encryption;  /* "aes" or NULL */
    unsigned refcount_bits;
    bool extended_l2;
    bool lazy_refcounts;
    bool dirty;
    bool corrupt;
    const char *data_file; /* path of the external data file, or NULL */
    bool data_file_raw;
    const char *backing_file;   /* as the header has it, or NULL */
    const char *backing_format; /* as the header has it, or NULL */
    size_t snapshot_count;
    const struct image_snapshot *snapshots;
    size_t bitmap_count;
    const struct image_bitmap *bitmaps;
};

/* The image at `depth` of the chain: 0 is the one that was opened, 1 its backing file, and so on.
 * NULL behind the last. */
const struct image_info *image_info(const struct image *image, unsigned depth);
