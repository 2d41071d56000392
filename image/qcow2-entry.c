/* SPDX-License-Identifier: MIT */
#include <inttypes.h>

#include "image/qcow2-format.h"

enum { SUBCLUSTERS = 32 };

static int decode_compressed(const struct qcow2_geometry *g, const uint64_t *entry, uint64_t offset,
                             struct qcow2_run *ret, struct error *err)
{
    uint64_t cluster_size = (uint64_t)1 << g->cluster_bits;
    uint64_t host, length;
    int r;

    if (g->data_file)
        return error_set(err, EIO,
                         "L2 entry 0x%016" PRIx64 " for disk offset 0x%" PRIx64
                         " is a compressed cluster, which an image with an external data file "
                         "cannot have",
                         entry[0], offset);
    if (g->entry_words == 2 && entry[1] != 0)
        return error_set(err, EIO,
                         "L2 entry 0x%016" PRIx64 " for disk offset 0x%" PRIx64
                         " is a compressed cluster, and its subcluster bitmap 0x%" PRIx64
                         " is not 0",
                         entry[0], offset, entry[1]);
    r = qcow2_compressed_decode(g, entry[0], &host, &length, err);
    if (r < 0)
        return error_prefix(err, "L2 entry for disk offset 0x%" PRIx64, offset);
    *ret = (struct qcow2_run){
        .kind = QCOW2_COMPRESSED,
        .length = cluster_size - (offset & (cluster_size - 1)),
        .host_offset = host,
        .descriptor = entry[0],
    };
    return 0;
}

int qcow2_compressed_decode(const struct qcow2_geometry *g, uint64_t descriptor,
                            uint64_t *ret_offset, uint64_t *ret_length, struct error *err)
{
    unsigned x = 62 - (g->cluster_bits - 8);
    uint64_t offset = descriptor & (((uint64_t)1 << x) - 1);
    uint64_t more_sectors = (descriptor & ~(QCOW2_L2_COMPRESSED | QCOW2_L2_COPIED)) >> x;

    if (offset >= QCOW2_HOST_OFFSET_LIMIT)
        return error_set(err, EIO,
                         "compressed cluster descriptor 0x%016" PRIx64
                         ": the host offset 0x%" PRIx64 " uses reserved bits",
                         descriptor, offset);
    if (offset >= g->file_size)
        return error_set(err, EIO,
                         "the compressed cluster at host offset 0x%" PRIx64
                         " lies beyond the end of the file of %" PRIu64 " bytes",
                         offset, g->file_size);
    *ret_offset = offset;
    *ret_length = (more_sectors + 1) * 512 - (offset & 511);
    return 0;
}

/* The kind of the subclusters from `first` on, and how many in a row have it. */
static enum qcow2_kind subcluster_run(uint64_t bitmap, unsigned first, unsigned *ret_count)
{
    uint32_t allocated = (uint32_t)bitmap, zero = (uint32_t)(bitmap >> 32), same;
    enum qcow2_kind kind;

    if ((allocated >> first & 1) != 0) {
        kind = QCOW2_DATA;
        same = allocated;
    } else if ((zero >> first & 1) != 0) {
        kind = QCOW2_ZERO;
        same = zero;
    } else {
        kind = QCOW2_UNALLOCATED;
        same = ~(allocated | zero);
    }
    uint32_t others = ~(same >> first);
    unsigned left = SUBCLUSTERS - first;
    unsigned count = others == 0 ? SUBCLUSTERS : (unsigned)__builtin_ctz(others);
    *ret_count = count < left ? count : left;
    return kind;
}

/* Bits that a standard entry must not have. */
static int check_standard(const struct qcow2_geometry *g, const uint64_t *entry, uint64_t offset,
                          struct error *err)
{
    uint64_t host = entry[0] & QCOW2_L2_OFFSET_MASK;
    uint64_t cluster_mask = ((uint64_t)1 << g->cluster_bits) - 1;

    if ((entry[0] & QCOW2_L2_RESERVED_MASK) != 0)
        return error_set(err, EIO,
                         "L2 entry 0x%016" PRIx64 " for disk offset 0x%" PRIx64
                         " has reserved bits set",
                         entry[0], offset);
    if ((entry[0] & QCOW2_L2_ZERO) != 0 && (!g->zero_flag_allowed || g->entry_words == 2))
        return error_set(
            err, EIO,
            "L2 entry 0x%016" PRIx64 " for disk offset 0x%" PRIx64 " has the zero flag, which %s",
            entry[0], offset,
            g->entry_words == 2 ? "extended L2 entries do not have" : "version 2 does not know");
    if ((host & cluster_mask) != 0)
        return error_set(err, EIO,
                         "L2 entry 0x%016" PRIx64 " for disk offset 0x%" PRIx64
                         ": the host offset 0x%" PRIx64
                         " is not a multiple of the cluster size %" PRIu64,
                         entry[0], offset, host, cluster_mask + 1);
    if (g->data_file && (host != 0 || (entry[0] & QCOW2_L2_COPIED) != 0) &&
        host != (offset & ~cluster_mask))
        return error_set(err, EIO,
                         "the L2 entry for disk offset 0x%" PRIx64 " points to offset 0x%" PRIx64
                         " of the external data file, which must be 0x%" PRIx64,
                         offset, host, offset & ~cluster_mask);
    if (g->entry_words == 2 && ((entry[1] >> 32) & entry[1] & UINT32_MAX) != 0)
        return error_set(err, EIO,
                         "L2 entry for disk offset 0x%" PRIx64
                         ": the subcluster bitmap 0x%016" PRIx64 " says both allocated and zero",
                         offset, entry[1]);
    return 0;
}

/* Whether the bytes of a DATA run that belong to the disk are in the file. */
static int check_data(const struct qcow2_geometry *g, uint64_t offset, const struct qcow2_run *run,
                      struct error *err)
{
    uint64_t needed = min_u64(run->length, g->size - offset);

    if (!range_within(run->host_offset, needed, g->data_size))
        return error_set(err, EIO,
                         "the cluster for disk offset 0x%" PRIx64 " at host offset 0x%" PRIx64
                         " lies beyond the end of the %s of %" PRIu64 " bytes",
                         offset, run->host_offset, g->data_file ? "data file" : "file",
                         g->data_size);
    return 0;
}

int qcow2_entry_decode(const struct qcow2_geometry *g, const uint64_t *entry, uint64_t offset,
                       struct qcow2_run *ret, struct error *err)
{
    uint64_t cluster_size = (uint64_t)1 << g->cluster_bits;
    uint64_t in_cluster = offset & (cluster_size - 1);
    uint64_t host = entry[0] & QCOW2_L2_OFFSET_MASK;
    struct qcow2_run run;
    int r;

    if ((entry[0] & QCOW2_L2_COMPRESSED) != 0)
        return decode_compressed(g, entry, offset, ret, err);
    r = check_standard(g, entry, offset, err);
    if (r < 0)
        return r;

    /* Host offset 0 is the image's header, but a cluster like any other in a data file. */
    bool allocated = host != 0 || (g->data_file && (entry[0] & QCOW2_L2_COPIED) != 0);
    if (g->entry_words == 2) {
        unsigned first = (unsigned)(in_cluster >> g->subcluster_bits), count;

        if (!allocated && (uint32_t)entry[1] != 0)
            return error_set(err, EIO,
                             "L2 entry for disk offset 0x%" PRIx64
                             ": the subcluster bitmap 0x%016" PRIx64
                             " has allocated subclusters, but there is no host cluster",
                             offset, entry[1]);
        run.kind = subcluster_run(entry[1], first, &count);
        run.length = ((uint64_t)(first + count) << g->subcluster_bits) - in_cluster;
    } else {
        run.kind = (entry[0] & QCOW2_L2_ZERO) != 0 ? QCOW2_ZERO
                   : allocated                     ? QCOW2_DATA
                                                   : QCOW2_UNALLOCATED;
        run.length = cluster_size - in_cluster;
    }
    run.host_offset = run.kind == QCOW2_DATA ? host + in_cluster : 0;
    run.descriptor = 0;
    if (run.kind == QCOW2_DATA) {
        r = check_data(g, offset, &run, err);
        if (r < 0)
            return r;
    }
    *ret = run;
    return 0;
}
