/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "common/io.h"
#include "image/qcow1-internal.h"

#define MAGIC UINT32_C(0x514649fb) /* "QFI\xfb" */

enum {
    HEADER_SIZE = 512,       /* libqcow wants that many bytes; QEMU never writes less */
    L1_SIZE_MAX = 32 << 20,  /* bytes; QEMU's limit for qcow2 */
    BACKING_NAME_MAX = 1023, /* as QEMU has it */
};

/* What the three versions' headers hold that is of interest here. */
struct header {
    uint64_t backing_offset;
    uint32_t backing_size;
    uint32_t crypt_method;
    uint64_t l1_offset;
    uint64_t l1_count;
    uint64_t incompatible; /* feature bits */
};

static int check_features(const struct qcow1 *qcow, uint64_t incompatible, struct error *err)
{
    /* 0 and 1, dirty and corrupt, say nothing about how to read; image.c has looked at them. */
    static const char *const names[] = {
        [2] = "external data file", [3] = "compression type", [4] = "extended L2"};

    incompatible &= ~UINT64_C(3);
    if (incompatible == 0)
        return 0;
    unsigned bit = (unsigned)__builtin_ctzll(incompatible);
    if (bit < sizeof(names) / sizeof(names[0]))
        return error_set(err, EOPNOTSUPP,
                         "%s: feature '%s' is not supported in an AES-encrypted image", qcow->path,
                         names[bit]);
    return error_set(err, EOPNOTSUPP, "%s: unknown incompatible feature bit %u", qcow->path, bit);
}

/* Whether the L1 table is as large as the disk needs, no larger than is sane, and in the file. */
static int check_l1_place(const struct qcow1 *qcow, struct header *header, uint32_t l1_size,
                          struct error *err)
{
    bool v1 = qcow->version == 1;
    uint64_t covered = UINT64_C(1) << (qcow->cluster_bits + qcow->l2_bits); /* by one L2 table */
    uint64_t needed = div_round_up(qcow->size, covered);
    header->l1_count = v1 ? needed : l1_size;
    if (header->l1_count < needed)
        return error_set(err, EINVAL,
                         "%s: header: l1_size is %" PRIu64 ", but the size needs %" PRIu64
                         " entries",
                         qcow->path, header->l1_count, needed);
    if (header->l1_count > L1_SIZE_MAX / 8)
        return error_set(err, EFBIG, "%s: an L1 table of %" PRIu64 " entries, at most %d can be",
                         qcow->path, header->l1_count, L1_SIZE_MAX / 8);
    if (!v1 && header->l1_offset % (UINT64_C(1) << qcow->cluster_bits) != 0)
        return error_set(err, EINVAL,
                         "%s: header: l1_table_offset 0x%" PRIx64
                         " is not a multiple of the cluster size",
                         qcow->path, header->l1_offset);
    if (!range_within(header->l1_offset, header->l1_count * 8, qcow->file_size))
        return error_set(err, EINVAL,
                         "%s: header: the L1 table (%" PRIu64 " bytes at 0x%" PRIx64
                         ") does not lie within the file of %" PRIu64 " bytes",
                         qcow->path, header->l1_count * 8, header->l1_offset, qcow->file_size);
    return 0;
}

/* Takes the header apart and checks all that does not need the tables. */
static int parse_header(struct qcow1 *qcow, const uint8_t *h, struct header *ret, struct error *err)
{
    bool v1 = qcow->version == 1;
    struct header header = {
        .backing_offset = get_be64(h + 8),
        .backing_size = get_be32(h + 16),
        .crypt_method = get_be32(h + (v1 ? 36 : 32)),
        .l1_offset = get_be64(h + 40),
        .incompatible = qcow->version == 3 ? get_be64(h + 72) : 0,
    };
    uint32_t cluster_bits = v1 ? h[32] : get_be32(h + 20);
    uint32_t l2_bits = v1 ? h[33] : cluster_bits - 3;
    uint32_t cluster_bits_max = v1 ? 16 : 21;

    if (cluster_bits < 9 || cluster_bits > cluster_bits_max)
        return error_set(err, EINVAL, "%s: header: cluster_bits is %u, not 9 to %u", qcow->path,
                         cluster_bits, cluster_bits_max);
    if (v1 && (l2_bits < 6 || l2_bits > 13))
        return error_set(err, EINVAL, "%s: header: l2_bits is %u, not 6 to 13", qcow->path,
                         l2_bits);
    qcow->cluster_bits = cluster_bits;
    qcow->l2_bits = l2_bits;
    qcow->size = get_be64(h + 24);
    if (qcow->size > INT64_MAX || qcow->size % 512 != 0)
        return error_set(err, EINVAL,
                         "%s: header: size is %" PRIu64 ", too large or no multiple of 512",
                         qcow->path, qcow->size);
    if (header.crypt_method > 1)
        return error_set(err, EOPNOTSUPP, "%s: header: encryption method %u is not supported",
                         qcow->path, header.crypt_method);
    qcow->encrypted = header.crypt_method == 1;
    if (!v1 && !qcow->encrypted)
        return error_set(err, EINVAL, "%s: neither QCOW version 1 nor encrypted", qcow->path);
    if (header.backing_offset != 0 &&
        (header.backing_size > BACKING_NAME_MAX ||
         !range_within(header.backing_offset, header.backing_size, qcow->file_size)))
        return error_set(err, EINVAL,
                         "%s: header: backing file name of %u bytes at 0x%" PRIx64
                         ": longer than %d or not within the file",
                         qcow->path, header.backing_size, header.backing_offset, BACKING_NAME_MAX);

    int r = check_features(qcow, header.incompatible, err);
    if (r >= 0)
        r = check_l1_place(qcow, &header, v1 ? 0 : get_be32(h + 36), err);
    if (r < 0)
        return r;
    *ret = header;
    return 0;
}

static int check_l1_entry(struct qcow1 *qcow, size_t index, uint64_t entry, uint64_t *ret_offset,
                          struct error *err)
{
    uint64_t offset = entry;

    if (qcow->version != 1) {
        offset = entry & QCOW1_OFFSET_MASK;
        if ((entry & ~(QCOW1_OFFSET_MASK | QCOW1_COPIED)) != 0)
            return error_set(err, EINVAL, "%s: L1 entry %zu: reserved bits are set in 0x%" PRIx64,
                             qcow->path, index, entry);
    }
    /* QEMU aligns tables to clusters. In version 1 images with a backing file, tables are larger.
     */
    if (offset % min_u64(qcow1_l2_table_size(qcow), qcow1_cluster_size(qcow)) != 0)
        return error_set(err, EINVAL,
                         "%s: L1 entry %zu: L2 table offset 0x%" PRIx64 " is not aligned",
                         qcow->path, index, offset);
    if (offset % qcow1_l2_table_size(qcow) != 0) {
        if (qcow->encrypted)
            return error_set(err, EOPNOTSUPP,
                             "%s: L1 entry %zu: L2 table offset 0x%" PRIx64
                             " is not a multiple of the table's size, which is not supported in an "
                             "encrypted image",
                             qcow->path, index, offset);
        qcow->unaligned = true;
    }
    if (offset != 0 && !range_within(offset, qcow1_l2_table_size(qcow), qcow->file_size))
        return error_set(err, EINVAL,
                         "%s: L1 entry %zu: the L2 table at 0x%" PRIx64
                         " does not lie within the file of %" PRIu64 " bytes",
                         qcow->path, index, offset, qcow->file_size);
    *ret_offset = offset;
    return 0;
}

static int read_l1(struct qcow1 *qcow, const struct header *header, struct error *err)
{
    qcow->l1_count = (size_t)header->l1_count;
    qcow->l1 = calloc(qcow->l1_count + 1, sizeof(*qcow->l1)); /* never calloc(0) */
    if (qcow->l1 == NULL)
        return error_oom(err);
    int r = io_read_at(qcow->fd, qcow->path, qcow->l1, qcow->l1_count * sizeof(*qcow->l1),
                       header->l1_offset, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < qcow->l1_count; i++) {
        r = check_l1_entry(qcow, i, be64toh(qcow->l1[i]), &qcow->l1[i], err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_backing_file(struct qcow1 *qcow, const struct header *header, struct error *err)
{
    if (header->backing_offset == 0 || header->backing_size == 0)
        return 0;
    qcow->backing_file = calloc(1, header->backing_size + 1);
    if (qcow->backing_file == NULL)
        return error_oom(err);
    return io_read_at(qcow->fd, qcow->path, qcow->backing_file, header->backing_size,
                      header->backing_offset, err);
}

/* QEMU's key of these images is the password's first 16 bytes, zeros behind. */
static int read_key(struct qcow1 *qcow, const char *password_file, struct error *err)
{
    _cleanup_free_ char *password = NULL;
    size_t length;

    if (password_file == NULL)
        return error_set(err, EACCES, "%s: the image is encrypted: --password-file is needed",
                         qcow->path);
    int r = io_read_file(password_file, 1 << 16, &password, &length, err);
    if (r < 0)
        return r;
    size_t line = strcspn(password, "\n");
    if (line == 0)
        r = error_set(err, EINVAL, "%s: the first line, which is the password, is empty",
                      password_file);
    else
        memcpy(qcow->key, password, min_u64(line, QCOW1_KEY_SIZE));
    explicit_bzero(password, length);
    return r;
}

/* Reads the first bytes, and finds the version. */
static int read_header(struct qcow1 *qcow, uint8_t header[static HEADER_SIZE], struct error *err)
{
    struct stat st;

    if (fstat(qcow->fd, &st) < 0)
        return error_set_errno(err, errno, "%s: cannot stat", qcow->path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return error_set(err, EINVAL, "%s: not a regular file or block device", qcow->path);
    off_t end = lseek(qcow->fd, 0, SEEK_END);
    if (end < 0)
        return error_set_errno(err, errno, "%s: cannot find its size", qcow->path);
    qcow->file_size = (uint64_t)end;
    ssize_t n = io_read_some_at(qcow->fd, qcow->path, header, HEADER_SIZE, 0, err);
    if (n < 0)
        return (int)n;
    if (n < 8 || get_be32(header) != MAGIC)
        return error_set(err, EINVAL, "%s: not a QCOW image: wrong magic", qcow->path);
    qcow->version = get_be32(header + 4);
    if (qcow->version < 1 || qcow->version > 3)
        return error_set(err, EOPNOTSUPP, "%s: QCOW version %u is not supported", qcow->path,
                         qcow->version);
    if (n < HEADER_SIZE)
        return error_set(err, EINVAL, "%s: truncated: %zd bytes are no whole header", qcow->path,
                         n);
    return 0;
}

int qcow1_load(struct qcow1 *qcow, const char *password_file, struct error *err)
{
    uint8_t bytes[HEADER_SIZE];
    struct header header;

    int r = read_header(qcow, bytes, err);
    if (r >= 0)
        r = parse_header(qcow, bytes, &header, err);
    if (r >= 0)
        r = read_l1(qcow, &header, err);
    if (r >= 0)
        r = read_backing_file(qcow, &header, err);
    if (r < 0)
        return r;
    /* libqcow numbers tables and clusters of the file with an int. */
    if (qcow->file_size / min_u64(qcow1_l2_table_size(qcow), qcow1_cluster_size(qcow)) >= INT_MAX)
        return error_set(err, EFBIG, "%s: a file of %" PRIu64 " bytes is too large for libqcow",
                         qcow->path, qcow->file_size);
    return qcow->encrypted ? read_key(qcow, password_file, err) : 0;
}
