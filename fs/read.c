/* SPDX-License-Identifier: MIT */
/*
 * The bytes of a range of the image, gathered for one reply.
 *
 * The range is cut along the image's map. Each byte that has to be read goes into the thread's
 * buffer, at the place that it has in the range; extents that lie one behind the other in a host
 * file are read together, and so are neighbours that only image_read() can deliver. Compressed
 * clusters are decompressed last, in parts that other workers help with (share.c). Larger extents
 * of zeros are not written to the buffer at all: the reply points to a few KiB of zeros again and
 * again, which stay in the CPU's cache.
 */
#include <assert.h>
#include <string.h>
#include <sys/uio.h>

#include "common/checked.h"
#include "common/io.h"
#include "fs/internal.h"

#define ZEROS_SIZE (64u * 1024)
/* Zeros shorter than this are cheaper to write than to describe. */
#define ZEROS_MIN 8192

/* Compressed clusters that lie together are one part up to so many bytes. */
#define PART_SIZE (64u * 1024)
#define PARTS_MAX 64

/* Never written to, so that all of it is one physical page. */
static uint8_t zeros[ZEROS_SIZE] __attribute__((aligned(4096)));

static _Thread_local uint8_t *thread_buffer;
static _Thread_local size_t thread_buffer_size;

uint8_t *fs_buffer(size_t length)
{
    if (length > thread_buffer_size) {
        size_t size = length < FS_MAX_READ ? FS_MAX_READ : length;
        void *buffer;

        if (posix_memalign(&buffer, 4096, size) != 0)
            return NULL;
        free(thread_buffer);
        thread_buffer = buffer;
        thread_buffer_size = size;
    }
    return thread_buffer;
}

void fs_buffer_free(void)
{
    free(thread_buffer);
    thread_buffer = NULL;
    thread_buffer_size = 0;
}

/* --- Gathering --- */

/* Bytes that are to be read at once. */
struct run {
    enum { RUN_NONE, RUN_FILE, RUN_IMAGE } kind;
    size_t at; /* in the range */
    size_t length;
    size_t file;          /* FILE: number of the host file */
    uint64_t host_offset; /* FILE: where the byte at `at` is in it */
};

/* Of compressed clusters. */
struct part {
    size_t at; /* in the range */
    size_t length;
};

struct gathering {
    struct image *image;
    uint64_t offset; /* of the range, in the image */
    uint8_t *buffer; /* one byte for each of the range */
    struct run run;
    struct part *parts; /* room for PARTS_MAX */
    size_t part_count;
    size_t part_bytes; /* of all of them */
    struct fs_gather *gather;
};

static int read_file(struct gathering *g, const struct run *run, struct error *err)
{
    const struct image_file *file = image_file(g->image, run->file);

    return io_read_at(file->fd, file->path, g->buffer + run->at, run->length, run->host_offset,
                      err);
}

static int read_image(struct gathering *g, const struct run *run, struct error *err)
{
    /* A library reads it, and does not tell when it waits. */
    fs_worker_slow();
    return image_read(g->image, g->offset + run->at, g->buffer + run->at, run->length, err);
}

static int run_read(struct gathering *g, struct error *err)
{
    struct run run = g->run;

    g->run.kind = RUN_NONE;
    switch (run.kind) {
    case RUN_NONE:
        break;
    case RUN_FILE:
        return read_file(g, &run, err);
    case RUN_IMAGE:
        return read_image(g, &run, err);
    }
    return 0;
}

/* Adds a run; what was added before is read once it cannot be extended. */
static int run_add(struct gathering *g, const struct run *next, struct error *err)
{
    struct run *run = &g->run;

    if (run->kind == next->kind && run->at + run->length == next->at &&
        (run->kind == RUN_IMAGE ||
         (run->file == next->file && run->host_offset + run->length == next->host_offset))) {
        run->length += next->length;
        return 0;
    }
    int r = run_read(g, err);
    if (r < 0)
        return r;
    *run = *next;
    return 0;
}

/* In any thread. */
static int read_part(void *arg, size_t index, struct error *err)
{
    const struct gathering *g = arg;
    const struct part *part = &g->parts[index];

    return image_read(g->image, g->offset + part->at, g->buffer + part->at, part->length, err);
}

static int parts_read(struct gathering *g, struct error *err)
{
    size_t count = g->part_count;

    if (count == 0)
        return 0;
    size_t helpers = min_u64(count - 1, g->part_bytes / PART_SIZE);
    g->part_count = g->part_bytes = 0;
    return fs_share((unsigned)helpers, count, read_part, g, err);
}

/* Adds a compressed cluster, or a piece of one. */
static int part_add(struct gathering *g, size_t at, size_t length, struct error *err)
{
    struct part *last = g->part_count > 0 ? &g->parts[g->part_count - 1] : NULL;

    g->part_bytes += length;
    if (last != NULL && last->at + last->length == at && last->length + length <= PART_SIZE) {
        last->length += length;
        return 0;
    }
    g->parts[g->part_count++] = (struct part){at, length};
    return g->part_count == PARTS_MAX ? parts_read(g, err) : 0;
}

/* The next `length` bytes of the reply are at `base`. There is always room for one entry. */
static void append(struct fs_gather *gather, uint8_t *base, size_t length)
{
    struct iovec *last = gather->count > 0 ? &gather->iov[gather->count - 1] : NULL;

    if (last != NULL && (uint8_t *)last->iov_base + last->iov_len == base &&
        last->iov_base != (void *)zeros) {
        last->iov_len += length;
        return;
    }
    assert(gather->count < GATHER_MAX);
    gather->iov[gather->count++] = (struct iovec){.iov_base = base, .iov_len = length};
}

static void append_zeros(struct gathering *g, size_t at, size_t length)
{
    /* What follows may need one more entry, for all that is left of the range. */
    int room = GATHER_MAX - 1 - g->gather->count;

    if ((length < ZEROS_MIN && g->gather->count > 0) || room < 0 ||
        div_round_up(length, ZEROS_SIZE) > (size_t)room) {
        memset(g->buffer + at, 0, length);
        append(g->gather, g->buffer + at, length);
        return;
    }
    while (length > 0) {
        size_t n = min_u64(length, ZEROS_SIZE);
        append(g->gather, zeros, n);
        length -= n;
    }
}

int fs_gather_image(struct image *image, uint64_t offset, size_t length, struct fs_gather *ret,
                    struct error *err)
{
    struct part parts[PARTS_MAX];
    struct gathering g = {.image = image,
                          .offset = offset,
                          .buffer = fs_buffer(length),
                          .parts = parts,
                          .gather = ret};
    size_t done = 0;
    int r;

    if (g.buffer == NULL)
        return error_oom(err);
    ret->buffer = g.buffer;
    ret->count = 0;
    while (done < length) {
        struct extent extent;

        r = image_map(image, offset + done, length - done, 0, &extent, err);
        if (r < 0)
            return r;
        assert(extent.length > 0 && extent.length <= length - done);
        size_t n = (size_t)extent.length;
        if (extent.kind == EXTENT_ZERO) {
            append_zeros(&g, done, n);
        } else {
            const struct run next = {
                .kind = extent.kind == EXTENT_DATA ? RUN_FILE : RUN_IMAGE,
                .at = done,
                .length = n,
                .file = extent.file,
                .host_offset = extent.host_offset,
            };
            r = extent.kind == EXTENT_COMPRESSED ? part_add(&g, done, n, err)
                                                 : run_add(&g, &next, err);
            if (r < 0)
                return r;
            append(ret, g.buffer + done, n);
        }
        done += n;
    }
    r = run_read(&g, err);
    return r < 0 ? r : parts_read(&g, err);
}

bool fs_gather_is_zeros(const struct iovec *iov)
{
    return iov->iov_base == (const void *)zeros;
}

/* --- Seeking --- */

/* How many extents are looked at before the clock is. */
#define SEEK_BATCH 256

int fs_seek_image(struct image *image, uint64_t start, uint64_t size, uint64_t offset, int whence,
                  bool (*give_up)(void *arg), void *arg, uint64_t *ret, struct error *err)
{
    bool hole = whence == SEEK_HOLE;
    uint64_t at = offset;

    if (offset >= size)
        return -ENXIO;
    for (unsigned n = 1; at < size; n++) {
        struct extent extent;

        int r = image_map(image, start + at, size - at, IMAGE_MAP_HOLES, &extent, err);
        if (r < 0)
            return r;
        if ((extent.kind == EXTENT_ZERO) == hole) {
            *ret = at;
            return 0;
        }
        at += extent.length;
        /* It is never wrong to take zeros for data. */
        if (n % SEEK_BATCH == 0 && at < size && give_up(arg)) {
            *ret = hole ? size : at;
            return 0;
        }
    }
    if (!hole)
        return -ENXIO;
    *ret = size;
    return 0;
}
