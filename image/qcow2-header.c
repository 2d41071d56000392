/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "image/internal.h"
#include "image/qcow2-format.h"

/* --- The header --- */

/* Offsets of its fields. */
enum {
    AT_VERSION = 4,
    AT_BACKING_FILE_OFFSET = 8,
    AT_BACKING_FILE_SIZE = 16,
    AT_CLUSTER_BITS = 20,
    AT_SIZE = 24,
    AT_CRYPT_METHOD = 32,
    AT_L1_SIZE = 36,
    AT_L1_OFFSET = 40,
    AT_REFCOUNT_TABLE_OFFSET = 48,
    AT_REFCOUNT_TABLE_CLUSTERS = 56,
    AT_SNAPSHOT_COUNT = 60,
    AT_SNAPSHOTS_OFFSET = 64,
    AT_INCOMPATIBLE = 72,
    AT_COMPATIBLE = 80,
    AT_AUTOCLEAR = 88,
    AT_REFCOUNT_ORDER = 96,
    AT_HEADER_LENGTH = 100,
    AT_COMPRESSION_TYPE = 104,
};

static int parse_v3_fields(const uint8_t *bytes, size_t length, struct qcow2_header *header,
                           struct error *err)
{
    if (length < QCOW2_V3_HEADER_LENGTH)
        return error_set(err, EINVAL, "the file of %zu bytes ends within the qcow2 header", length);
    header->incompatible = get_be64(bytes + AT_INCOMPATIBLE);
    header->compatible = get_be64(bytes + AT_COMPATIBLE);
    header->autoclear = get_be64(bytes + AT_AUTOCLEAR);
    header->header_length = get_be32(bytes + AT_HEADER_LENGTH);

    uint32_t refcount_order = get_be32(bytes + AT_REFCOUNT_ORDER);
    if (refcount_order > 6)
        return error_set(err, EINVAL, "refcount_order is %" PRIu32 ", and must be at most 6",
                         refcount_order);
    header->refcount_bits = 1u << refcount_order;

    if (header->header_length < QCOW2_V3_HEADER_LENGTH)
        return error_set(err, EINVAL, "header_length is %" PRIu32 ", and must be at least %d",
                         header->header_length, QCOW2_V3_HEADER_LENGTH);
    if (header->header_length % 8 != 0)
        return error_set(err, EINVAL, "header_length is %" PRIu32 ", which is no multiple of 8",
                         header->header_length);
    if (header->header_length > qcow2_cluster_size(header))
        return error_set(err, EINVAL,
                         "header_length is %" PRIu32 ", more than a cluster of %" PRIu64 " bytes",
                         header->header_length, qcow2_cluster_size(header));
    if (qcow2_extended_l2(header) && header->cluster_bits < QCOW2_CLUSTER_BITS_MIN_EXTENDED)
        return error_set(err, EINVAL,
                         "cluster_bits is %u, and must be at least %d with extended L2 entries",
                         header->cluster_bits, QCOW2_CLUSTER_BITS_MIN_EXTENDED);
    return 0;
}

static int parse_compression(const uint8_t *bytes, size_t length, struct qcow2_header *header,
                             struct error *err)
{
    unsigned type = 0;

    if (header->header_length > AT_COMPRESSION_TYPE) {
        if (length <= AT_COMPRESSION_TYPE)
            return error_set(err, EINVAL, "the file of %zu bytes ends within the qcow2 header",
                             length);
        type = bytes[AT_COMPRESSION_TYPE];
    }
    bool flagged = (header->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION) != 0;
    if (flagged && type == 0)
        return error_set(err, EINVAL,
                         "the compression type's feature bit is set, and the compression type "
                         "is not");
    if (!flagged && type != 0)
        return error_set(err, EINVAL, "the compression type is %u, and its feature bit is not set",
                         type);
    if (type > QCOW2_COMPRESSION_ZSTD)
        return error_set(err, ENOTSUP, "compression type %u is not known", type);
    header->compression = type;
    return 0;
}

static int check_table(const struct qcow2_header *header, const char *what, uint64_t offset,
                       uint64_t bytes, uint64_t file_size, struct error *err)
{
    if ((offset & (qcow2_cluster_size(header) - 1)) != 0)
        return error_set(err, EINVAL,
                         "the %s's offset 0x%" PRIx64
                         " is not a multiple of the cluster size %" PRIu64,
                         what, offset, qcow2_cluster_size(header));
    if (!range_within(offset, bytes, file_size))
        return error_set(err, EINVAL,
                         "the %s at offset 0x%" PRIx64 ", %" PRIu64
                         " bytes, does not lie within the file of %" PRIu64 " bytes",
                         what, offset, bytes, file_size);
    if (offset == 0)
        return error_set(err, EINVAL, "the %s's offset is 0, where the header is", what);
    return 0;
}

static int check_tables(const uint8_t *bytes, const struct qcow2_header *header, uint64_t file_size,
                        struct error *err)
{
    uint32_t refcount_clusters = get_be32(bytes + AT_REFCOUNT_TABLE_CLUSTERS);
    uint64_t refcount_bytes = (uint64_t)refcount_clusters << header->cluster_bits;
    int r;

    /* Not needed for reading. But where it cannot be, the header is not to be believed. */
    if (refcount_bytes > QCOW2_REFCOUNT_TABLE_BYTES_MAX)
        return error_set(err, EINVAL,
                         "the refcount table has %" PRIu64 " bytes, more than the limit of %d",
                         refcount_bytes, QCOW2_REFCOUNT_TABLE_BYTES_MAX);
    if (refcount_bytes == 0)
        return error_set(err, EINVAL, "the refcount table has no clusters");
    r = check_table(header, "refcount table", get_be64(bytes + AT_REFCOUNT_TABLE_OFFSET),
                    refcount_bytes, file_size, err);
    if (r < 0)
        return r;

    if (header->snapshot_count > QCOW2_SNAPSHOTS_MAX)
        return error_set(err, EINVAL, "%" PRIu32 " snapshots are more than the limit of %d",
                         header->snapshot_count, QCOW2_SNAPSHOTS_MAX);
    /* The table's length is known only when it has been parsed. */
    if (header->snapshot_count > 0 || header->snapshots_offset != 0) {
        r = check_table(header, "snapshot table", header->snapshots_offset,
                        header->snapshot_count > 0 ? 1 : 0, file_size, err);
        if (r < 0)
            return r;
    }
    /* As QEMU has it, for the size that the header tells, not for the disk's. */
    return qcow2_l1_check(header, "active", header->l1_offset, header->l1_entries,
                          get_be64(bytes + AT_SIZE), file_size, err);
}

static int parse_basics(const uint8_t *bytes, size_t length, struct qcow2_header *header,
                        struct error *err)
{
    if (length < 8 || get_be32(bytes) != QCOW2_MAGIC)
        return error_set(err, EINVAL, "not a qcow2 image");
    header->version = get_be32(bytes + AT_VERSION);
    if (header->version != 2 && header->version != 3)
        return error_set(err, ENOTSUP, "qcow2 version %u is not supported, only 2 and 3",
                         header->version);
    if (length < QCOW2_V2_HEADER_LENGTH)
        return error_set(err, EINVAL, "the file of %zu bytes ends within the qcow2 header", length);

    header->cluster_bits = get_be32(bytes + AT_CLUSTER_BITS);
    if (header->cluster_bits < QCOW2_CLUSTER_BITS_MIN ||
        header->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
        return error_set(err, EINVAL, "cluster_bits is %u, and must be %d to %d",
                         header->cluster_bits, QCOW2_CLUSTER_BITS_MIN, QCOW2_CLUSTER_BITS_MAX);
    header->size = get_be64(bytes + AT_SIZE);
    if (header->size > INT64_MAX)
        return error_set(err, EFBIG, "the disk size of %" PRIu64 " bytes is more than 2^63 - 1",
                         header->size);
    /* As QEMU has it: a disk ends with its last whole sector. */
    header->size = align_down(header->size, IMAGE_SECTOR_SIZE);

    uint32_t crypt_method = get_be32(bytes + AT_CRYPT_METHOD);
    if (crypt_method > QCOW2_ENCRYPTION_LUKS)
        return error_set(err, ENOTSUP, "encryption method %" PRIu32 " is not known", crypt_method);
    header->encryption = crypt_method;

    header->backing_file_offset = get_be64(bytes + AT_BACKING_FILE_OFFSET);
    header->backing_file_size = get_be32(bytes + AT_BACKING_FILE_SIZE);
    header->l1_entries = get_be32(bytes + AT_L1_SIZE);
    header->l1_offset = get_be64(bytes + AT_L1_OFFSET);
    header->snapshot_count = get_be32(bytes + AT_SNAPSHOT_COUNT);
    header->snapshots_offset = get_be64(bytes + AT_SNAPSHOTS_OFFSET);
    return 0;
}

int qcow2_header_parse(const uint8_t *bytes, size_t length, uint64_t file_size,
                       struct qcow2_header *ret, struct error *err)
{
    struct qcow2_header header = {
        .header_length = QCOW2_V2_HEADER_LENGTH,
        .refcount_bits = 16,
    };
    int r;

    r = parse_basics(bytes, length, &header, err);
    if (r == 0 && header.version >= 3)
        r = parse_v3_fields(bytes, length, &header, err);
    if (r == 0)
        r = check_tables(bytes, &header, file_size, err);
    if (r == 0 && (header.incompatible & ~(uint64_t)QCOW2_INCOMPATIBLE_KNOWN) == 0)
        r = parse_compression(bytes, length, &header, err);
    if (r < 0)
        return r;
    *ret = header;
    return 0;
}

/* --- L1 tables --- */

uint64_t qcow2_l1_entries_needed(const struct qcow2_header *header, uint64_t size)
{
    unsigned entry_bits = qcow2_extended_l2(header) ? 4 : 3;

    return div_round_up(size, (uint64_t)1 << (2 * header->cluster_bits - entry_bits));
}

int qcow2_l1_check(const struct qcow2_header *header, const char *what, uint64_t l1_offset,
                   uint64_t l1_entries, uint64_t size, uint64_t file_size, struct error *err)
{
    uint64_t needed = qcow2_l1_entries_needed(header, size);
    uint64_t bytes = l1_entries * 8;

    if (bytes > QCOW2_L1_BYTES_MAX)
        return error_set(err, EFBIG,
                         "the %s L1 table has %" PRIu64 " bytes, more than the limit of %d", what,
                         bytes, QCOW2_L1_BYTES_MAX);
    if (l1_entries < needed)
        return error_set(err, EINVAL,
                         "the %s L1 table has %" PRIu64 " entries, and a disk of %" PRIu64
                         " bytes needs %" PRIu64,
                         what, l1_entries, size, needed);
    if (l1_entries == 0)
        return 0;

    _cleanup_free_ char *table = NULL;
    if (asprintf(&table, "%s L1 table", what) < 0) {
        table = NULL;
        return error_oom(err);
    }
    return check_table(header, table, l1_offset, bytes, file_size, err);
}

int qcow2_l1_decode(const struct qcow2_header *header, uint64_t *entries, size_t count,
                    uint64_t file_size, struct error *err)
{
    uint64_t cluster_size = qcow2_cluster_size(header);

    for (size_t i = 0; i < count; i++) {
        uint64_t entry = be64toh(entries[i]);
        uint64_t offset = entry & QCOW2_L1_OFFSET_MASK;

        if ((entry & QCOW2_L1_RESERVED_MASK) != 0)
            return error_set(err, EINVAL, "L1 entry %zu (0x%016" PRIx64 ") has reserved bits set",
                             i, entry);
        if (offset != 0) {
            if ((offset & (cluster_size - 1)) != 0)
                return error_set(err, EINVAL,
                                 "L1 entry %zu: the L2 table's offset 0x%" PRIx64
                                 " is not a multiple of the cluster size %" PRIu64,
                                 i, offset, cluster_size);
            if (!range_within(offset, cluster_size, file_size))
                return error_set(err, EINVAL,
                                 "L1 entry %zu: the L2 table at offset 0x%" PRIx64
                                 " does not lie within the file of %" PRIu64 " bytes",
                                 i, offset, file_size);
        }
        entries[i] = offset;
    }
    return 0;
}

static int compare_offsets(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* Says which entries have the offset. */
static int shared_table(const uint64_t *offsets, uint64_t shared, struct error *err)
{
    size_t first = 0, second;

    while (offsets[first] != shared)
        first++;
    for (second = first + 1; offsets[second] != shared;)
        second++;
    return error_set(err, EINVAL,
                     "L1 entries %zu and %zu share the L2 table at offset 0x%" PRIx64
                     ", which no program writes (--force reads it as it is)",
                     first, second, shared);
}

int qcow2_l1_check_shared(const uint64_t *offsets, size_t count, struct error *err)
{
    uint64_t last = 0;
    size_t used = 0;
    bool ascending = true;

    for (size_t i = 0; i < count; i++) {
        if (offsets[i] == 0)
            continue;
        ascending = ascending && offsets[i] > last;
        last = offsets[i];
        used++;
    }
    if (ascending)
        return 0;

    _cleanup_free_ uint64_t *sorted = malloc(used * sizeof(*sorted));
    if (sorted == NULL)
        return error_oom(err);
    used = 0;
    for (size_t i = 0; i < count; i++) {
        if (offsets[i] != 0)
            sorted[used++] = offsets[i];
    }
    qsort(sorted, used, sizeof(*sorted), compare_offsets);
    for (size_t i = 1; i < used; i++) {
        if (sorted[i] == sorted[i - 1])
            return shared_table(offsets, sorted[i], err);
    }
    return 0;
}
