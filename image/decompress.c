/* SPDX-License-Identifier: MIT */
/*
 * Deflate streams are inflated by libdeflate, which is faster than zlib by a factor of two to three
 * but knows only streams that are whole and fit. QEMU asks less: what counts is that zlib fills the
 * cluster, be the stream longer or its end missing. So whatever libdeflate cannot inflate to
 * exactly one cluster goes to zlib, called as QEMU calls it, whose verdict and reason hold.
 *
 * libdeflate inflates some streams that zlib refuses: tables of code lengths that are too long, and
 * codes that no compressor uses. No cluster that both inflate comes out differently.
 */
#include "image/decompress.h"

#include <errno.h>
#include <inttypes.h>
#include <libdeflate.h>
#include <pthread.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "common/checked.h"
#include "common/io.h"

enum {
    KEPT_MAX = 16,            /* decompressors that nobody uses just now */
    DEFLATE_WINDOW_BITS = 12, /* as qcow2 has it, without zlib's header */
};

struct decompressor {
    struct libdeflate_decompressor *deflate;
    z_stream zlib;
    bool zlib_ready;
    ZSTD_DCtx *zstd;
    uint8_t *input;
    size_t input_size;
};

struct decompressor_pool {
    pthread_mutex_t lock;
    unsigned count;
    struct decompressor *kept[KEPT_MAX];
};

int decompressor_pool_new(struct decompressor_pool **ret, struct error *err)
{
    struct decompressor_pool *pool = calloc(1, sizeof(*pool));

    if (pool == NULL)
        return error_oom(err);
    pthread_mutex_init(&pool->lock, NULL);
    *ret = pool;
    return 0;
}

static void decompressor_free(struct decompressor *d)
{
    if (d->deflate != NULL)
        libdeflate_free_decompressor(d->deflate);
    if (d->zlib_ready)
        inflateEnd(&d->zlib);
    ZSTD_freeDCtx(d->zstd);
    free(d->input);
    free(d);
}

void decompressor_pool_free(struct decompressor_pool *pool)
{
    if (pool == NULL)
        return;
    for (unsigned i = 0; i < pool->count; i++)
        decompressor_free(pool->kept[i]);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

static struct decompressor *take_decompressor(struct decompressor_pool *pool)
{
    struct decompressor *d = NULL;

    pthread_mutex_lock(&pool->lock);
    if (pool->count > 0)
        d = pool->kept[--pool->count];
    pthread_mutex_unlock(&pool->lock);
    return d != NULL ? d : calloc(1, sizeof(*d));
}

static void give_back(struct decompressor_pool *pool, struct decompressor *d)
{
    pthread_mutex_lock(&pool->lock);
    if (pool->count < KEPT_MAX) {
        pool->kept[pool->count++] = d;
        d = NULL;
    }
    pthread_mutex_unlock(&pool->lock);
    if (d != NULL)
        decompressor_free(d);
}

static int zlib_any_cluster(struct decompressor *d, size_t length, void *cluster,
                            size_t cluster_size, struct error *err)
{
    z_stream *z = &d->zlib;
    int r;

    r = d->zlib_ready ? inflateReset(z) : inflateInit2(z, -DEFLATE_WINDOW_BITS);
    if (r != Z_OK)
        return r == Z_MEM_ERROR ? error_oom(err)
                                : error_set(err, EIO, "zlib cannot be used: %s", zError(r));
    d->zlib_ready = true;
    z->next_in = d->input;
    z->avail_in = (uInt)length;
    z->next_out = cluster;
    z->avail_out = (uInt)cluster_size;
    r = inflate(z, Z_FINISH);
    /* The stream's end may be missing or not reached as long as the cluster is full. */
    if ((r == Z_STREAM_END || r == Z_BUF_ERROR) && z->avail_out == 0)
        return 0;
    return error_set(err, EIO, "zlib: %s after %zu of %zu bytes",
                     r == Z_STREAM_END  ? "the stream ends"
                     : r == Z_BUF_ERROR ? "the data end"
                     : z->msg != NULL   ? z->msg
                                        : zError(r),
                     cluster_size - z->avail_out, cluster_size);
}

static int zlib_cluster(struct decompressor *d, size_t length, void *cluster, size_t cluster_size,
                        struct error *err)
{
    size_t used, made;

    if (d->deflate == NULL)
        d->deflate = libdeflate_alloc_decompressor();
    if (d->deflate == NULL)
        return error_oom(err);
    if (libdeflate_deflate_decompress_ex(d->deflate, d->input, length, cluster, cluster_size, &used,
                                         &made) == LIBDEFLATE_SUCCESS &&
        made == cluster_size)
        return 0;
    return zlib_any_cluster(d, length, cluster, cluster_size, err);
}

/*
 * Frame by frame in one step each: unlike zstd's streaming functions, that needs no window of the
 * size that a frame asks for, which may be 128 MiB.
 */
static int zstd_cluster(struct decompressor *d, size_t length, void *cluster, size_t cluster_size,
                        struct error *err)
{
    const uint8_t *input = d->input;
    size_t done = 0;

    if (d->zstd == NULL)
        d->zstd = ZSTD_createDCtx();
    if (d->zstd == NULL)
        return error_oom(err);
    while (done < cluster_size) {
        size_t frame = ZSTD_findFrameCompressedSize(input, length);
        size_t n = frame;
        if (!ZSTD_isError(frame))
            n = ZSTD_decompressDCtx(d->zstd, (uint8_t *)cluster + done, cluster_size - done, input,
                                    frame);
        if (ZSTD_isError(n))
            return error_set(err, EIO, "zstd: %s after %zu of %zu bytes", ZSTD_getErrorName(n),
                             done, cluster_size);
        input += frame;
        length -= frame;
        done += n;
    }
    return 0;
}

static int read_input(struct decompressor *d, const struct image_file *file, uint64_t offset,
                      uint64_t length, struct error *err)
{
    size_t n = (size_t)min_u64(length, file->size - offset);

    if (d->input_size < n) {
        free(d->input);
        d->input_size = 0;
        d->input = malloc(n);
        if (d->input == NULL)
            return error_oom(err);
        d->input_size = n;
    }
    int r = io_read_at(file->fd, file->path, d->input, n, offset, err);
    return r < 0 ? r : (int)n;
}

int decompress_cluster(struct decompressor_pool *pool, enum qcow2_compression compression,
                       const struct image_file *file, uint64_t offset, uint64_t length,
                       void *cluster, size_t cluster_size, struct error *err)
{
    struct decompressor *d = take_decompressor(pool);
    int r;

    if (d == NULL)
        return error_oom(err);
    r = read_input(d, file, offset, length, err);
    if (r >= 0) {
        size_t n = (size_t)r;

        r = compression == QCOW2_COMPRESSION_ZLIB ? zlib_cluster(d, n, cluster, cluster_size, err)
                                                  : zstd_cluster(d, n, cluster, cluster_size, err);
        if (r < 0)
            r = error_prefix(err, "%s: the compressed cluster at offset 0x%" PRIx64, file->path,
                             offset);
    }
    give_back(pool, d);
    return r;
}
