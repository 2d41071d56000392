/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/internal.h"
#include "provision/source.h"

/* Disks: what the step `disk` says of them, and how they are made of files. */

enum partition_type { PARTITION_EFI, PARTITION_ROOT };

struct partition_options {
    int type;      /* enum partition_type */
    uint64_t size; /* bytes; 0: the rest */
    char *label;   /* or NULL */
};

enum preallocation { PREALLOCATION_OFF, PREALLOCATION_METADATA };

struct disk_options {
    uint64_t size;
    int preallocation;         /* enum preallocation */
    struct objects partitions; /* struct partition_options; none: EFI and root */
};

extern const struct step_type step_disk;

/* A partition's place on the disk, bytes. */
struct disk_partition {
    enum partition_type type;
    uint64_t start, size;
    const char *label;
};

#define DISK_PARTITIONS_MAX 16

struct disk_layout {
    uint64_t size;
    size_t count;
    struct disk_partition partitions[DISK_PARTITIONS_MAX];
    size_t root; /* the root partition's place in `partitions` */
};

/* Where the partitions of these options lie. NULL, or a text that says why they cannot. */
const char *disk_layout(const struct disk_options *options, struct disk_layout *ret);

/*
 * Makes `path`, a qcow2 image with a GPT, an empty EFI file system, and a root file system that
 * holds the files of `source` that `filter` (or NULL) lets through. All in it is determined by
 * these and the recipe. `compress` is "zlib", "zstd" or NULL. Works in the step's folder.
 */
struct disk_contents {
    const struct disk_layout *layout;
    struct source *source;
    const struct filter *filter;
    const char *compress;
};
int disk_make(struct build *build, const struct disk_contents *contents, const char *path,
              struct error *err);

/* --- For images that a guest has set up --- */

/* What mke2fs is to know of a new file system. */
struct disk_filesystem {
    const char *path;
    uint64_t offset, size; /* bytes */
    const uint8_t *uuid, *hash_seed;
    const char *label; /* or NULL */
};

/* Makes a file system in `path` and fills it; then has e2fsck look at it. */
int disk_fill(struct build *build, const struct disk_filesystem *filesystem, struct source *source,
              const struct filter *filter, struct error *err);

/* Makes a qcow2 overlay of an image. `size`: bytes that its disk has; 0: as many as the image's. */
int disk_overlay(struct build *build, const char *base, const char *base_format, uint64_t size,
                 const char *path, struct error *err);

/* Makes a qcow2 image of a raw one, which goes. The image appears at `path` when it is whole. */
int disk_convert(struct build *build, const char *raw, const char *compress, const char *path,
                 struct error *err);
