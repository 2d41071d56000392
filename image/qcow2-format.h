/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/checked.h"
#include "common/error.h"
#include "image/image.h"

/*
 * qcow2's structures, after QEMU's docs/interop/qcow2: functions that parse and check bytes, and
 * touch no file. What they refuse they refuse with a message that names the field; the caller puts
 * the file's name in front.
 */

enum {
    QCOW2_MAGIC = 0x514649fb,
    QCOW2_V2_HEADER_LENGTH = 72,
    QCOW2_V3_HEADER_LENGTH = 104, /* at least */

    QCOW2_CLUSTER_BITS_MIN = 9,
    QCOW2_CLUSTER_BITS_MAX = 21,
    QCOW2_CLUSTER_BITS_MIN_EXTENDED = 14,

    QCOW2_L1_BYTES_MAX = 32 << 20,
    QCOW2_REFCOUNT_TABLE_BYTES_MAX = 8 << 20,
    QCOW2_NAME_MAX = 1023, /* of backing and data files */
    QCOW2_FORMAT_NAME_MAX = 63,

    QCOW2_SNAPSHOTS_MAX = 65536,
    QCOW2_SNAPSHOT_EXTRA_MAX = 1024,
    QCOW2_SNAPSHOT_TABLE_MAX = 64 << 20, /* bytes */
    QCOW2_BITMAPS_MAX = 65535,
    QCOW2_BITMAP_DIRECTORY_MAX = 64 << 20, /* bytes */
};

enum {
    QCOW2_INCOMPATIBLE_DIRTY = 1 << 0,
    QCOW2_INCOMPATIBLE_CORRUPT = 1 << 1,
    QCOW2_INCOMPATIBLE_DATA_FILE = 1 << 2,
    QCOW2_INCOMPATIBLE_COMPRESSION = 1 << 3,
    QCOW2_INCOMPATIBLE_EXTENDED_L2 = 1 << 4,
    QCOW2_INCOMPATIBLE_KNOWN = (1 << 5) - 1,

    QCOW2_COMPATIBLE_LAZY_REFCOUNTS = 1 << 0,

    QCOW2_AUTOCLEAR_BITMAPS = 1 << 0,
    QCOW2_AUTOCLEAR_DATA_FILE_RAW = 1 << 1,
};

enum qcow2_encryption { QCOW2_ENCRYPTION_NONE, QCOW2_ENCRYPTION_AES, QCOW2_ENCRYPTION_LUKS };

enum qcow2_compression { QCOW2_COMPRESSION_ZLIB, QCOW2_COMPRESSION_ZSTD };

/* Entries of an L1 table. */
#define QCOW2_L1_OFFSET_MASK 0x00fffffffffffe00u
#define QCOW2_L1_RESERVED_MASK 0x7f000000000001ffu

/* Entries of an L2 table. */
#define QCOW2_L2_OFFSET_MASK 0x00fffffffffffe00u
#define QCOW2_L2_RESERVED_MASK 0x3f000000000001feu /* of standard clusters */
#define QCOW2_L2_ZERO ((uint64_t)1 << 0)
#define QCOW2_L2_COMPRESSED ((uint64_t)1 << 62)
#define QCOW2_L2_COPIED ((uint64_t)1 << 63)
#define QCOW2_HOST_OFFSET_LIMIT ((uint64_t)1 << 56)

struct qcow2_header {
    unsigned version;
    uint64_t backing_file_offset; /* 0: none */
    uint32_t backing_file_size;   /* bytes */
    unsigned cluster_bits;
    uint64_t size; /* of the disk in bytes, a multiple of 512 */
    enum qcow2_encryption encryption;
    uint32_t l1_entries;
    uint64_t l1_offset;
    uint32_t snapshot_count;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    unsigned refcount_bits;
    uint32_t header_length;
    enum qcow2_compression compression;
};

/* What stands in the first cluster behind the header. Strings and arrays are owned. */
struct qcow2_extensions {
    char *backing_file;   /* NULL: none */
    char *backing_format; /* NULL: not said */
    char *data_file;      /* NULL: not said */
    bool has_bitmaps;     /* and they are valid as far as the header knows */
    uint32_t bitmap_count;
    uint64_t bitmap_directory_offset, bitmap_directory_size; /* bytes */
};

/* The snapshot that was asked for. */
struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_entries;
    uint64_t disk_size; /* bytes */
};

static inline uint64_t qcow2_cluster_size(const struct qcow2_header *header)
{
    return (uint64_t)1 << header->cluster_bits;
}

static inline bool qcow2_extended_l2(const struct qcow2_header *header)
{
    return (header->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2) != 0;
}

/*
 * Parses the header from the file's first `length` bytes (as many as there are, up to
 * QCOW2_HEADER_READ). Fields and the tables' positions are checked, against `file_size` as well;
 * feature bits that are not known are not refused yet, for their names stand in the extensions.
 */
enum { QCOW2_HEADER_READ = 112 };
int qcow2_header_parse(const uint8_t *bytes, size_t length, uint64_t file_size,
                       struct qcow2_header *ret, struct error *err);

/*
 * Parses the extensions and the backing file's name. `cluster` is the first cluster, `length`
 * bytes of it as far as the file goes. Refuses incompatible features that are not known, by name.
 * *ret is emptied with qcow2_extensions_clear().
 */
int qcow2_extensions_parse(const uint8_t *cluster, size_t length, const struct qcow2_header *header,
                           uint64_t file_size, struct qcow2_extensions *ret, struct error *err);
void qcow2_extensions_clear(struct qcow2_extensions *extensions);
DEFINE_CLEANUP_INPLACE(struct qcow2_extensions, qcow2_extensions_clear);

/* How many entries an L1 table needs for a disk of `size` bytes. */
uint64_t qcow2_l1_entries_needed(const struct qcow2_header *header, uint64_t size);

/*
 * Checks where an L1 table is and whether it is large enough for a disk of `size` bytes.
 * `what` ("active", "snapshot 'a'") is for the message.
 */
int qcow2_l1_check(const struct qcow2_header *header, const char *what, uint64_t l1_offset,
                   uint64_t l1_entries, uint64_t size, uint64_t file_size, struct error *err);

/*
 * Turns `count` entries of an L1 table, big-endian as they are in the file, into the offsets of L2
 * tables in place (0: none), and checks them.
 */
int qcow2_l1_decode(const struct qcow2_header *header, uint64_t *entries, size_t count,
                    uint64_t file_size, struct error *err);

/*
 * Refuses an L1 table, decoded, two of whose entries name one L2 table. QEMU reads such an image,
 * but no program writes it, and 32 MiB of L1 table over a single L2 table would be 2 PiB to be
 * looked at. If all L2 tables are different ones, what a map has to look at is bounded by the file.
 */
int qcow2_l1_check_shared(const uint64_t *offsets, size_t count, struct error *err);

/*
 * Parses the snapshot table. `table` holds `length` bytes from its start on, as far as the file
 * and QCOW2_SNAPSHOT_TABLE_MAX go. *ret_snapshots is an array of header->snapshot_count, with
 * their L1 tables in *ret_tables (both owned by the caller, and the strings; NULL if there are
 * none). L1 tables are checked only when they are used.
 */
int qcow2_snapshots_parse(const uint8_t *table, size_t length, const struct qcow2_header *header,
                          struct image_snapshot **ret_snapshots, struct qcow2_snapshot **ret_tables,
                          struct error *err);

/* Parses the bitmap directory, all of it. *ret is an array of extensions->bitmap_count, owned by
 * the caller, as the strings are. */
int qcow2_bitmaps_parse(const uint8_t *directory, const struct qcow2_header *header,
                        const struct qcow2_extensions *extensions, uint64_t file_size,
                        struct image_bitmap **ret, struct error *err);

/* What struct image_bitmap does not tell. */
struct qcow2_bitmap_place {
    uint64_t table_offset;
    uint32_t table_entries;
    bool extra_data; /* there is some, and it must be understood for the bitmap to be used */
};

/* Of entry `index` of a directory that qcow2_bitmaps_parse() accepted. */
void qcow2_bitmap_find_place(const uint8_t *directory, size_t index,
                             struct qcow2_bitmap_place *ret);

/* --- L2 entries --- */

/* What is needed to understand an L2 entry. */
struct qcow2_geometry {
    unsigned cluster_bits;
    unsigned subcluster_bits; /* cluster_bits if there are no subclusters */
    unsigned entry_words;     /* 64-bit words of an L2 entry: 1, or 2 with extended L2 */
    bool zero_flag_allowed;   /* version 3 */
    bool data_file;           /* clusters are in an external data file */
    uint64_t size;            /* of the disk, bytes */
    uint64_t data_size;       /* of the file that has the clusters, bytes */
    uint64_t file_size;       /* of the image file, which has compressed clusters, bytes */
};

enum qcow2_kind {
    QCOW2_UNALLOCATED,
    QCOW2_ZERO,
    QCOW2_DATA,
    QCOW2_COMPRESSED,
};

/* A run of bytes of one kind within a cluster. */
struct qcow2_run {
    enum qcow2_kind kind;
    uint64_t length;      /* bytes, up to the end of the cluster or of subclusters of its kind */
    uint64_t host_offset; /* DATA: of the run's first byte; COMPRESSED: of the compressed data */
    uint64_t descriptor;  /* COMPRESSED: the L2 entry */
};

/*
 * What is at byte `offset` of the disk, if `entry` (entry_words words in the machine's byte order)
 * is its cluster's L2 entry. The run may reach behind the end of the disk.
 */
int qcow2_entry_decode(const struct qcow2_geometry *geometry, const uint64_t *entry,
                       uint64_t offset, struct qcow2_run *ret, struct error *err);

/* Where a compressed cluster's data are, as its L2 entry has it: *ret_length bytes at most, which
 * may reach behind the end of the file. */
int qcow2_compressed_decode(const struct qcow2_geometry *geometry, uint64_t descriptor,
                            uint64_t *ret_offset, uint64_t *ret_length, struct error *err);
