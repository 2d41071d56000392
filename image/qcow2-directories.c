/* SPDX-License-Identifier: MIT */
/* The snapshot table and the bitmap directory: entries of varying length, each padded to 8. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "image/internal.h"
#include "image/qcow2-format.h"

/* --- Snapshots --- */

enum {
    SNAPSHOT_L1_OFFSET = 0,
    SNAPSHOT_L1_SIZE = 8,
    SNAPSHOT_ID_LENGTH = 12,
    SNAPSHOT_NAME_LENGTH = 14,
    SNAPSHOT_DATE = 16,
    SNAPSHOT_VM_STATE_SIZE = 32,
    SNAPSHOT_EXTRA_LENGTH = 36,
    SNAPSHOT_FIXED_LENGTH = 40,
    /* In the extra data. */
    SNAPSHOT_VM_STATE_SIZE_64 = 40,
    SNAPSHOT_DISK_SIZE = 48,
};

static int parse_snapshot(const uint8_t *table, size_t length, size_t *offset,
                          const struct qcow2_header *header, struct image_snapshot *snapshot,
                          struct qcow2_snapshot *l1, struct error *err)
{
    size_t at = *offset;

    if (!range_within(at, SNAPSHOT_FIXED_LENGTH, length))
        return error_set(err, EINVAL, "it reaches behind the end of the file, or is too large");
    const uint8_t *entry = table + at;
    uint32_t extra_length = get_be32(entry + SNAPSHOT_EXTRA_LENGTH);
    size_t id_length = get_be16(entry + SNAPSHOT_ID_LENGTH);
    size_t name_length = get_be16(entry + SNAPSHOT_NAME_LENGTH);
    if (extra_length > QCOW2_SNAPSHOT_EXTRA_MAX)
        return error_set(err, EINVAL,
                         "%" PRIu32 " bytes of extra data are more than the limit of %d",
                         extra_length, QCOW2_SNAPSHOT_EXTRA_MAX);
    size_t entry_length = SNAPSHOT_FIXED_LENGTH + extra_length + id_length + name_length;
    if (!range_within(at, entry_length, length))
        return error_set(err, EINVAL, "it reaches behind the end of the file, or is too large");

    snapshot->vm_state_size = get_be32(entry + SNAPSHOT_VM_STATE_SIZE);
    if (SNAPSHOT_FIXED_LENGTH + extra_length >= SNAPSHOT_VM_STATE_SIZE_64 + 8)
        snapshot->vm_state_size = get_be64(entry + SNAPSHOT_VM_STATE_SIZE_64);
    /* Version 2 had no disk size at first, when a disk could not be resized. */
    snapshot->disk_size = header->size;
    if (SNAPSHOT_FIXED_LENGTH + extra_length >= SNAPSHOT_DISK_SIZE + 8)
        snapshot->disk_size = get_be64(entry + SNAPSHOT_DISK_SIZE);
    if (snapshot->disk_size > INT64_MAX)
        return error_set(err, EFBIG, "its disk size of %" PRIu64 " bytes is more than 2^63 - 1",
                         snapshot->disk_size);
    snapshot->disk_size = align_down(snapshot->disk_size, IMAGE_SECTOR_SIZE);
    snapshot->date = get_be32(entry + SNAPSHOT_DATE);
    *l1 = (struct qcow2_snapshot){
        .l1_offset = get_be64(entry + SNAPSHOT_L1_OFFSET),
        .l1_entries = get_be32(entry + SNAPSHOT_L1_SIZE),
        .disk_size = snapshot->disk_size,
    };

    const char *id = (const char *)entry + SNAPSHOT_FIXED_LENGTH + extra_length;
    snapshot->id = strndup(id, id_length);
    snapshot->name = strndup(id + id_length, name_length);
    if (snapshot->id == NULL || snapshot->name == NULL)
        return error_oom(err);
    *offset = at + ((entry_length + 7) & ~(size_t)7);
    return 0;
}

int qcow2_snapshots_parse(const uint8_t *table, size_t length, const struct qcow2_header *header,
                          struct image_snapshot **ret_snapshots, struct qcow2_snapshot **ret_tables,
                          struct error *err)
{
    uint32_t count = header->snapshot_count;
    struct image_snapshot *snapshots;
    _cleanup_free_ struct qcow2_snapshot *tables = NULL;
    size_t offset = 0;
    int r = 0;

    if (count == 0) {
        *ret_snapshots = NULL;
        *ret_tables = NULL;
        return 0;
    }
    snapshots = calloc(count, sizeof(*snapshots));
    tables = calloc(count, sizeof(*tables));
    if (snapshots == NULL || tables == NULL) {
        free(snapshots);
        return error_oom(err);
    }
    for (uint32_t i = 0; i < count; i++) {
        r = parse_snapshot(table, length, &offset, header, &snapshots[i], &tables[i], err);
        if (r < 0) {
            r = error_prefix(err, "snapshot table entry %" PRIu32, i);
            break;
        }
    }
    if (r < 0) {
        for (uint32_t i = 0; i < count; i++) {
            free(snapshots[i].id);
            free(snapshots[i].name);
        }
        free(snapshots);
        return r;
    }
    *ret_snapshots = snapshots;
    *ret_tables = TAKE_PTR(tables);
    return 0;
}

/* --- Bitmaps --- */

enum {
    BITMAP_TABLE_OFFSET = 0,
    BITMAP_TABLE_SIZE = 8,
    BITMAP_FLAGS = 12,
    BITMAP_TYPE = 16,
    BITMAP_GRANULARITY_BITS = 17,
    BITMAP_NAME_LENGTH = 18,
    BITMAP_EXTRA_LENGTH = 20,
    BITMAP_FIXED_LENGTH = 24,

    BITMAP_TYPE_DIRTY = 1,
    BITMAP_FLAG_IN_USE = 1 << 0,
    BITMAP_FLAG_AUTO = 1 << 1,
    BITMAP_FLAG_EXTRA_COMPATIBLE = 1 << 2,
    BITMAP_FLAGS_RESERVED = ~7,

    BITMAP_GRANULARITY_BITS_MIN = 9,
    BITMAP_GRANULARITY_BITS_MAX = 31,
};

static int check_bitmap_table(const uint8_t *entry, const struct qcow2_header *header,
                              uint64_t file_size, struct error *err)
{
    uint64_t offset = get_be64(entry + BITMAP_TABLE_OFFSET);
    uint64_t bytes = (uint64_t)get_be32(entry + BITMAP_TABLE_SIZE) * 8;

    if ((offset & (qcow2_cluster_size(header) - 1)) != 0)
        return error_set(err, EINVAL,
                         "the bitmap table's offset 0x%" PRIx64
                         " is not a multiple of the cluster size %" PRIu64,
                         offset, qcow2_cluster_size(header));
    if (offset == 0 || bytes == 0 || !range_within(offset, bytes, file_size))
        return error_set(err, EINVAL,
                         "the bitmap table at offset 0x%" PRIx64 ", %" PRIu64
                         " bytes, does not lie within the file of %" PRIu64 " bytes",
                         offset, bytes, file_size);
    return 0;
}

static int parse_bitmap(const uint8_t *directory, size_t length, size_t *offset,
                        const struct qcow2_header *header, uint64_t file_size,
                        struct image_bitmap *ret, struct error *err)
{
    size_t at = *offset;

    if (!range_within(at, BITMAP_FIXED_LENGTH, length))
        return error_set(err, EINVAL, "it reaches behind the directory's end at %zu", length);
    const uint8_t *entry = directory + at;
    uint32_t flags = get_be32(entry + BITMAP_FLAGS);
    unsigned granularity_bits = entry[BITMAP_GRANULARITY_BITS];
    uint32_t extra_length = get_be32(entry + BITMAP_EXTRA_LENGTH);
    size_t name_length = get_be16(entry + BITMAP_NAME_LENGTH);
    uint64_t entry_length = (uint64_t)BITMAP_FIXED_LENGTH + extra_length + name_length;

    if (!range_within(at, entry_length, length))
        return error_set(err, EINVAL, "it reaches behind the directory's end at %zu", length);
    if (name_length == 0 || name_length > QCOW2_NAME_MAX)
        return error_set(err, EINVAL, "its name has %zu bytes, not 1 to %d", name_length,
                         QCOW2_NAME_MAX);
    if (entry[BITMAP_TYPE] != BITMAP_TYPE_DIRTY)
        return error_set(err, ENOTSUP, "bitmap type %u is not known", entry[BITMAP_TYPE]);
    if ((flags & (uint32_t)BITMAP_FLAGS_RESERVED) != 0)
        return error_set(err, EINVAL, "the flags 0x%" PRIx32 " have reserved bits set", flags);
    if (granularity_bits < BITMAP_GRANULARITY_BITS_MIN ||
        granularity_bits > BITMAP_GRANULARITY_BITS_MAX)
        return error_set(err, EINVAL, "granularity_bits is %u, and must be %d to %d",
                         granularity_bits, BITMAP_GRANULARITY_BITS_MIN,
                         BITMAP_GRANULARITY_BITS_MAX);
    int r = check_bitmap_table(entry, header, file_size, err);
    if (r < 0)
        return r;
    ret->granularity = (uint64_t)1 << granularity_bits;
    ret->in_use = (flags & BITMAP_FLAG_IN_USE) != 0;
    ret->automatic = (flags & BITMAP_FLAG_AUTO) != 0;
    ret->name = strndup((const char *)entry + BITMAP_FIXED_LENGTH + extra_length, name_length);
    if (ret->name == NULL)
        return error_oom(err);
    *offset = at + (((size_t)entry_length + 7) & ~(size_t)7);
    return 0;
}

int qcow2_bitmaps_parse(const uint8_t *directory, const struct qcow2_header *header,
                        const struct qcow2_extensions *extensions, uint64_t file_size,
                        struct image_bitmap **ret, struct error *err)
{
    uint32_t count = extensions->bitmap_count;
    size_t length = (size_t)extensions->bitmap_directory_size, offset = 0;
    struct image_bitmap *bitmaps;
    int r = 0;

    bitmaps = calloc(count, sizeof(*bitmaps));
    if (bitmaps == NULL)
        return error_oom(err);
    for (uint32_t i = 0; i < count; i++) {
        r = parse_bitmap(directory, length, &offset, header, file_size, &bitmaps[i], err);
        if (r < 0) {
            r = error_prefix(err, "bitmap directory entry %" PRIu32, i);
            break;
        }
    }
    if (r == 0 && offset != length)
        r = error_set(err, EINVAL,
                      "the bitmap directory has %zu bytes, and its %" PRIu32 " entries take %zu",
                      length, count, offset);
    if (r < 0) {
        for (uint32_t i = 0; i < count; i++)
            free(bitmaps[i].name);
        free(bitmaps);
        return r;
    }
    *ret = bitmaps;
    return 0;
}

void qcow2_bitmap_find_place(const uint8_t *directory, size_t index, struct qcow2_bitmap_place *ret)
{
    const uint8_t *entry = directory;

    for (size_t i = 0; i < index; i++) {
        size_t length = (size_t)BITMAP_FIXED_LENGTH + get_be32(entry + BITMAP_EXTRA_LENGTH) +
                        get_be16(entry + BITMAP_NAME_LENGTH);
        entry += (length + 7) & ~(size_t)7;
    }
    *ret = (struct qcow2_bitmap_place){
        .table_offset = get_be64(entry + BITMAP_TABLE_OFFSET),
        .table_entries = get_be32(entry + BITMAP_TABLE_SIZE),
        .extra_data = get_be32(entry + BITMAP_EXTRA_LENGTH) > 0 &&
                      (get_be32(entry + BITMAP_FLAGS) & BITMAP_FLAG_EXTRA_COMPATIBLE) == 0,
    };
}
