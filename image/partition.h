/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "image/image.h"

/* The partitions of an image: GPT, MBR with logical partitions, or none. Found with libblkid. */
struct partition {
    unsigned number; /* as the kernel numbers it: 1…; 0 is the whole disk */
    uint64_t start;  /* bytes from the start of the disk */
    uint64_t size;   /* bytes */
    char *type;      /* GPT type GUID, or MBR type as 0x83; NULL if unknown. Strings are owned by */
    char *label;     /* the table. Partition label (GPT name), or NULL */
    char *uuid;      /* partition UUID, or NULL */
    char *fs_type;   /* file system or other content as blkid names it ("ext4", "vfat", "swap"), or
                        NULL */
    char *fs_label;  /* or NULL */
    char *fs_uuid;   /* or NULL */
    bool container;  /* an MBR extended partition: holds others, no content of its own */
};

struct partition_table {
    char *type;            /* "gpt", "dos", or NULL: the disk has no partition table */
    char *uuid;            /* or NULL */
    unsigned sector_size;  /* bytes that one unit of the table has: 512 or 4096 */
    struct partition disk; /* number 0, all of the disk */
    size_t count;
    struct partition *partitions; /* in order of their numbers */
};

/*
 * Reads the table and what the partitions hold. A partition that does not lie within the disk is an
 * error that names it. -EFBIG: the process has a limit of file sizes below the disk's size, with
 * which libblkid cannot look at it. *ret is freed with partition_table_free().
 */
int partition_table_read(struct image *image, struct partition_table **ret, struct error *err);

/* Whether that result of partition_table_read() says that the table was read, and what it says
 * cannot be: the disk's bytes are as good as ever. */
bool partition_table_is_wrong(int result);

/* The table of a disk that is not looked at: there is nothing but all of it. */
int partition_table_none(const struct image *image, struct partition_table **ret,
                         struct error *err);

void partition_table_free(struct partition_table *table);
DEFINE_CLEANUP(struct partition_table, partition_table_free);

/*
 * The partition that a user means by `spec`: a number, a partition label, a partition UUID, a file
 * system's label or UUID, or "disk". Ambiguous labels are an error. NULL means the data partition:
 * the largest one that holds a Linux file system; the whole disk when there is no table.
 * -ENOENT: no such partition; the message lists those there are. *ret points into the table.
 */
int partition_find(const struct partition_table *table, const char *spec,
                   const struct partition **ret, struct error *err);
