/* SPDX-License-Identifier: MIT */
#include "image/qcow1.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "common/io.h"
#include "image/qcow1-internal.h"

/*
 * libqcow is handed only what it is known to read rightly and safely. It trusts what a file says,
 * so the headers and the tables that lead to a cluster are read and checked first (the headers and
 * the L1 table in qcow1-header.c), and what is
 * not stored is answered from them without asking it. What it would get wrong, and what is done:
 *
 *  - It takes L2 tables and clusters at an offset rounded down to their size. QEMU writes them so,
 *    other offsets are refused; but in version 1 images with a backing file an L2 table is larger
 *    than a cluster and stands anywhere. The plain clusters of such an image are read here.
 *  - It does not know zero-flagged clusters of version 3, and wants a backing file for unallocated
 *    ones: it is asked for neither.
 *  - A compressed cluster that inflates to less than a cluster leaves what malloc() returned in the
 *    rest. Compressed clusters are inflated here.
 *  - It keeps decrypted clusters by where they are in the file, while the key stream depends on
 *    where they are on the disk: a cluster that stands in two places would get the bytes of the
 *    first. `decrypted` remembers which place each cluster was read for; before one is read for
 *    another, the handle is opened anew, which empties its cache.
 *  - It reads past its buffer when the file ends within a cluster.
 *
 * Only the L1 table is read at open. L2 tables come as they are needed, so that an image with a
 * huge number of them (all pointing to the same place in a small file, say) costs neither time nor
 * memory.
 *
 * `lock` guards everything from `l2` on: libqcow's handles have one position and one cache.
 */

enum {
    DECRYPTED_SLOTS = 1 << 14,
};

struct qcow1_decrypted {
    uint64_t host; /* number of the cluster in the file, plus 1; 0: nothing */
    uint64_t guest;
};

#define COMPRESSED (UINT64_C(1) << 62)
#define ALL_ZEROS UINT64_C(1)

enum cluster_kind { CLUSTER_NONE, CLUSTER_ZERO, CLUSTER_PLAIN, CLUSTER_DEFLATED };

struct cluster {
    enum cluster_kind kind;
    uint64_t entry; /* as in the L2 table */
    uint64_t offset;
    uint64_t length; /* DEFLATED: bytes in the file */
};

uint64_t qcow1_size(const struct qcow1 *qcow)
{
    return qcow->size;
}

uint64_t qcow1_cluster_size(const struct qcow1 *qcow)
{
    return UINT64_C(1) << qcow->cluster_bits;
}

unsigned qcow1_version(const struct qcow1 *qcow)
{
    return qcow->version;
}

bool qcow1_encrypted(const struct qcow1 *qcow)
{
    return qcow->encrypted;
}

const char *qcow1_backing_file(const struct qcow1 *qcow)
{
    return qcow->backing_file;
}

/* --- Opening --- */

/* Fails with libqcow's own words. Frees `error`. */
static int libqcow_failed(const struct qcow1 *qcow, libqcow_error_t *error, const char *what,
                          struct error *err)
{
    char text[256] = "unknown error";

    if (error != NULL) {
        libqcow_error_sprint(error, text, sizeof(text));
        libqcow_error_free(&error);
    }
    text[strcspn(text, "\n")] = '\0';
    return error_set(err, EIO, "%s: %s: %s", qcow->path, what, text);
}

static void close_handle(struct qcow1 *qcow)
{
    /* Closing is part of freeing. */
    if (qcow->handle != NULL)
        libqcow_file_free(&qcow->handle, NULL);
    if (qcow->parent != NULL)
        libqcow_file_free(&qcow->parent, NULL);
    qcow->handle = qcow->parent = NULL;
}

static bool try_open(struct qcow1 *qcow, libqcow_file_t **handle, libqcow_error_t **error)
{
    char name[64];

    /* The file that was locked and checked, also if the path has been given to another one. */
    snprintf(name, sizeof(name), "/proc/self/fd/%d", qcow->fd);
    return libqcow_file_initialize(handle, error) == 1 &&
           (!qcow->encrypted ||
            libqcow_file_set_keys(*handle, qcow->key, QCOW1_KEY_SIZE, error) == 1) &&
           libqcow_file_open(*handle, name, LIBQCOW_OPEN_READ, error) == 1;
}

static int open_handle(struct qcow1 *qcow, struct error *err)
{
    libqcow_error_t *error = NULL;
    size64_t size;

    close_handle(qcow);
    /* A handle of an image with a backing file delivers nothing until it has one of that, too. What
     * is asked for is never in it, so any will do. */
    if (!try_open(qcow, &qcow->handle, &error) ||
        (qcow->backing_file != NULL &&
         (!try_open(qcow, &qcow->parent, &error) ||
          libqcow_file_set_parent_file(qcow->handle, qcow->parent, &error) != 1)) ||
        libqcow_file_get_media_size(qcow->handle, &size, &error) != 1) {
        close_handle(qcow);
        return libqcow_failed(qcow, error, "libqcow cannot open it", err);
    }
    if (size != qcow->size) {
        close_handle(qcow);
        return error_set(err, EIO, "%s: libqcow takes it for %" PRIu64 " bytes, not %" PRIu64,
                         qcow->path, size, qcow->size);
    }
    return 0;
}

int qcow1_open(int fd, const char *path, const char *password_file, struct qcow1 **ret,
               struct error *err)
{
    _cleanup_(qcow1_close_cleanup) struct qcow1 *qcow = NULL;

    qcow = calloc(1, sizeof(*qcow));
    if (qcow == NULL)
        return error_oom(err);
    pthread_mutex_init(&qcow->lock, NULL);
    qcow->fd = fd;
    qcow->path = strdup(path);
    if (qcow->path == NULL)
        return error_oom(err);
    int r = qcow1_load(qcow, password_file, err);
    if (r < 0)
        return r;
    if (qcow->encrypted) {
        qcow->decrypted = calloc(DECRYPTED_SLOTS, sizeof(*qcow->decrypted));
        if (qcow->decrypted == NULL)
            return error_oom(err);
    }
    *ret = TAKE_PTR(qcow);
    return 0;
}

void qcow1_close(struct qcow1 *qcow)
{
    close_handle(qcow);
    for (size_t i = 0; i < QCOW1_L2_SLOTS; i++)
        free(qcow->l2[i].entries);
    free(qcow->decrypted);
    free(qcow->inflated);
    free(qcow->l1);
    free(qcow->backing_file);
    free(qcow->path);
    pthread_mutex_destroy(&qcow->lock);
    explicit_bzero(qcow->key, sizeof(qcow->key));
    free(qcow);
}

/* --- Finding clusters --- */

/* The L2 table that l1[index] names, which is not 0. */
static int get_l2(struct qcow1 *qcow, size_t index, const uint64_t **ret, struct error *err)
{
    size_t slot = index % QCOW1_L2_SLOTS;
    size_t size = (size_t)qcow1_l2_table_size(qcow);

    if (qcow->l2[slot].offset != qcow->l1[index]) {
        if (qcow->l2[slot].entries == NULL) {
            qcow->l2[slot].entries = malloc(size);
            if (qcow->l2[slot].entries == NULL)
                return error_oom(err);
        }
        qcow->l2[slot].offset = 0;
        int r =
            io_read_at(qcow->fd, qcow->path, qcow->l2[slot].entries, size, qcow->l1[index], err);
        if (r < 0)
            return r;
        qcow->l2[slot].offset = qcow->l1[index];
    }
    *ret = qcow->l2[slot].entries;
    return 0;
}

/* What an L2 entry of version 1 says. */
static const char *parse_entry_v1(const struct qcow1 *qcow, struct cluster *cluster)
{
    uint64_t size = qcow1_cluster_size(qcow);
    unsigned shift = 63 - qcow->cluster_bits;

    if (cluster->entry == 0)
        return NULL;
    if ((cluster->entry & QCOW1_COPIED) == 0) {
        cluster->kind = CLUSTER_PLAIN;
        cluster->offset = cluster->entry;
        cluster->length = size;
        return NULL;
    }
    /* Version 1 has the compressed bit where later ones have `copied`. */
    if (qcow->encrypted)
        return "compressed cluster in an encrypted image";
    cluster->kind = CLUSTER_DEFLATED;
    cluster->offset = cluster->entry & ((UINT64_C(1) << shift) - 1);
    cluster->length = (cluster->entry >> shift) & (size - 1);
    return cluster->length == 0 ? "compressed cluster of 0 bytes" : NULL;
}

/* What an L2 entry of version 2 or 3 says, for the cluster at `guest`. */
static const char *parse_entry_v2(const struct qcow1 *qcow, uint64_t guest, struct cluster *cluster)
{
    uint64_t entry = cluster->entry;

    if ((entry & COMPRESSED) != 0)
        return "compressed cluster in an encrypted image";
    if ((entry & ~(QCOW1_OFFSET_MASK | QCOW1_COPIED | (qcow->version == 3 ? ALL_ZEROS : 0))) != 0)
        return "reserved bits are set";
    if ((entry & ALL_ZEROS) != 0) {
        cluster->kind = CLUSTER_ZERO;
        return NULL;
    }
    if ((entry & QCOW1_OFFSET_MASK) == 0)
        return NULL;
    cluster->kind = CLUSTER_PLAIN;
    cluster->offset = entry & QCOW1_OFFSET_MASK;
    /* The file may end where the disk ends, within the last cluster. */
    cluster->length = min_u64(qcow1_cluster_size(qcow), qcow->size - guest);
    return NULL;
}

/* Takes an L2 entry apart and checks it. `guest` is where its cluster starts on the disk. */
static int parse_entry(const struct qcow1 *qcow, uint64_t guest, uint64_t entry,
                       struct cluster *ret, struct error *err)
{
    struct cluster cluster = {.kind = CLUSTER_NONE, .entry = entry};
    uint64_t size = qcow1_cluster_size(qcow);

    const char *fault =
        qcow->version == 1 ? parse_entry_v1(qcow, &cluster) : parse_entry_v2(qcow, guest, &cluster);
    if (fault == NULL && cluster.kind == CLUSTER_PLAIN && cluster.offset % size != 0)
        fault = "offset is not a multiple of the cluster size";
    if (fault == NULL && (cluster.kind == CLUSTER_PLAIN || cluster.kind == CLUSTER_DEFLATED) &&
        !range_within(cluster.offset, cluster.length, qcow->file_size))
        fault = "cluster lies beyond the end of the file";
    /* libqcow decrypts whole sectors of what there is of the cluster. */
    if (fault == NULL && cluster.kind == CLUSTER_PLAIN &&
        !range_within(cluster.offset, size, qcow->file_size) && qcow->file_size % 512 != 0)
        fault = "the file ends within a sector of the cluster";
    if (fault != NULL)
        return error_set(err, EIO,
                         "%s: L2 entry 0x%" PRIx64 " of the cluster at disk offset %" PRIu64
                         ": %s (file size %" PRIu64 ")",
                         qcow->path, entry, guest, fault, qcow->file_size);
    *ret = cluster;
    return 0;
}

/* Whoever has the lock may be reading. */
static void lock(struct qcow1 *qcow)
{
    if (pthread_mutex_trylock(&qcow->lock) == 0)
        return;
    io_waits();
    pthread_mutex_lock(&qcow->lock);
}

/* The cluster that holds disk offset `offset`. */
static int find_cluster(struct qcow1 *qcow, uint64_t offset, struct cluster *ret, struct error *err)
{
    size_t l1_index = (size_t)(offset >> (qcow->cluster_bits + qcow->l2_bits));
    size_t l2_index = (size_t)(offset >> qcow->cluster_bits) & ((1U << qcow->l2_bits) - 1);
    const uint64_t *l2;

    if (qcow->l1[l1_index] == 0) {
        *ret = (struct cluster){.kind = CLUSTER_NONE};
        return 0;
    }
    int r = get_l2(qcow, l1_index, &l2, err);
    if (r < 0)
        return r;
    return parse_entry(qcow, align_down(offset, qcow1_cluster_size(qcow)), be64toh(l2[l2_index]),
                       ret, err);
}

static enum qcow1_kind kind_of(const struct cluster *cluster)
{
    switch (cluster->kind) {
    case CLUSTER_NONE:
        return QCOW1_UNALLOCATED;
    case CLUSTER_ZERO:
        return QCOW1_ZERO;
    case CLUSTER_PLAIN:
    case CLUSTER_DEFLATED:
        break;
    }
    return QCOW1_DATA;
}

int qcow1_map(struct qcow1 *qcow, uint64_t offset, uint64_t length, enum qcow1_kind *ret_kind,
              uint64_t *ret_length, struct error *err)
{
    uint64_t covered = UINT64_C(1) << (qcow->cluster_bits + qcow->l2_bits);
    uint64_t size = qcow1_cluster_size(qcow), end = offset + length, pos = offset;
    enum qcow1_kind kind = QCOW1_UNALLOCATED;
    struct cluster cluster;
    int r = 0;

    assert(length > 0 && range_within(offset, length, qcow->size));
    /* L2 tables that do not exist: the L1 table is in memory. */
    while (pos < end && qcow->l1[pos / covered] == 0)
        pos = align_down(pos, covered) + covered;
    if (pos > offset) {
        *ret_kind = QCOW1_UNALLOCATED;
        *ret_length = min_u64(pos, end) - offset;
        return 0;
    }
    end = min_u64(end, align_down(offset, covered) + covered);
    lock(qcow);
    while (pos < end) {
        /* What is wrong behind the first cluster is told when it is asked for. */
        r = find_cluster(qcow, pos, &cluster, pos == offset ? err : NULL);
        if (r < 0 || (pos > offset && kind_of(&cluster) != kind))
            break;
        kind = kind_of(&cluster);
        pos = align_down(pos, size) + size;
    }
    pthread_mutex_unlock(&qcow->lock);
    if (pos == offset)
        return r;
    *ret_kind = kind;
    *ret_length = min_u64(pos, end) - offset;
    return 0;
}

/* --- Reading --- */

/* Inflates a compressed cluster into qcow->inflated. It is a deflate stream without a header that
 * must give a whole cluster. */
static int inflate_cluster(struct qcow1 *qcow, const struct cluster *cluster, struct error *err)
{
    _cleanup_free_ uint8_t *deflated = NULL;
    z_stream stream = {0};

    if (qcow->inflated_entry == cluster->entry)
        return 0;
    qcow->inflated_entry = 0;
    if (qcow->inflated == NULL)
        qcow->inflated = malloc(qcow1_cluster_size(qcow));
    deflated = malloc(cluster->length);
    if (qcow->inflated == NULL || deflated == NULL)
        return error_oom(err);
    int r = io_read_at(qcow->fd, qcow->path, deflated, cluster->length, cluster->offset, err);
    if (r < 0)
        return r;
    stream.next_in = deflated;
    stream.avail_in = (uInt)cluster->length;
    stream.next_out = qcow->inflated;
    stream.avail_out = (uInt)qcow1_cluster_size(qcow);
    if (inflateInit2(&stream, -12) != Z_OK)
        return error_oom(err);
    int z = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    /* Z_BUF_ERROR: the output is full before the end of the stream is seen, which QEMU takes. */
    if ((z != Z_STREAM_END && z != Z_BUF_ERROR) || stream.avail_out != 0)
        return error_set(err, EIO,
                         "%s: the compressed cluster of %" PRIu64 " bytes at 0x%" PRIx64
                         " does not inflate to a cluster",
                         qcow->path, cluster->length, cluster->offset);
    qcow->inflated_entry = cluster->entry;
    return 0;
}

/* Sees to it that libqcow has not cached this cluster for another place on the disk. */
static int claim_decrypted(struct qcow1 *qcow, uint64_t host, uint64_t guest, struct error *err)
{
    struct qcow1_decrypted *slot = &qcow->decrypted[host % DECRYPTED_SLOTS];

    if (slot->host != 0 && (slot->host != host + 1 || slot->guest != guest)) {
        int r = open_handle(qcow, err);
        if (r < 0)
            return r;
        memset(qcow->decrypted, 0, DECRYPTED_SLOTS * sizeof(*qcow->decrypted));
    }
    *slot = (struct qcow1_decrypted){.host = host + 1, .guest = guest};
    return 0;
}

static int read_plain(struct qcow1 *qcow, const struct cluster *cluster, uint64_t offset,
                      void *buffer, size_t length, struct error *err)
{
    libqcow_error_t *error = NULL;
    int r = 0;

    if (qcow->handle == NULL)
        r = open_handle(qcow, err);
    if (r >= 0 && qcow->encrypted)
        r = claim_decrypted(qcow, cluster->offset >> qcow->cluster_bits,
                            offset >> qcow->cluster_bits, err);
    if (r < 0)
        return r;
    ssize_t n =
        libqcow_file_read_buffer_at_offset(qcow->handle, buffer, length, (off64_t)offset, &error);
    if (n < 0 || (size_t)n != length) {
        r = libqcow_failed(qcow, error, "libqcow cannot read", err);
        return error_prefix(err, "cluster at 0x%" PRIx64 " of the file", cluster->offset);
    }
    return 0;
}

int qcow1_read(struct qcow1 *qcow, uint64_t offset, void *buffer, size_t length, struct error *err)
{
    uint64_t size = qcow1_cluster_size(qcow);
    struct cluster cluster;
    uint8_t *out = buffer;
    int r = 0;

    assert(range_within(offset, length, qcow->size));
    while (r >= 0 && length > 0) {
        uint64_t within = offset % size;
        size_t n = (size_t)min_u64(length, size - within);

        lock(qcow);
        r = find_cluster(qcow, offset, &cluster, err);
        if (r >= 0 && cluster.kind == CLUSTER_PLAIN && qcow->unaligned)
            r = io_read_at(qcow->fd, qcow->path, out, n, cluster.offset + within, err);
        else if (r >= 0 && cluster.kind == CLUSTER_PLAIN)
            r = read_plain(qcow, &cluster, offset, out, n, err);
        else if (r >= 0 && cluster.kind == CLUSTER_DEFLATED)
            r = inflate_cluster(qcow, &cluster, err);
        if (r >= 0 && cluster.kind == CLUSTER_DEFLATED)
            memcpy(out, qcow->inflated + within, n);
        pthread_mutex_unlock(&qcow->lock);
        if (r >= 0 && (cluster.kind == CLUSTER_NONE || cluster.kind == CLUSTER_ZERO))
            memset(out, 0, n);
        out += n;
        offset += n;
        length -= n;
    }
    return r;
}
