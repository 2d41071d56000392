/* SPDX-License-Identifier: MIT */
/*
 * A worker's reads. One io_uring for each worker, with registered files and buffers; where io_uring
 * is not to be had (an old kernel, seccomp, kernel.io_uring_disabled) the same reads are made by
 * pread(). Whatever io_uring does not complete whole and well is done again by pread(), which
 * either succeeds or finds the words for what is wrong: there is one place that judges a read.
 *
 * A ring costs milliseconds: registering the buffers makes the kernel fill all of them with zeros
 * and pin them. That is more than all the rest of finding the root after a small edit takes; hence
 * a reader can be told to begin with pread(), and to set up its ring only if there is more to do.
 */
#include "hashtree/internal.h"

#include <assert.h>
#include <fcntl.h>
#include <liburing.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/log.h"

/* O_DIRECT wants offsets, lengths and memory aligned to the device's logical blocks; all devices
 * that Linux knows are content with this. Reads that are not so aligned go through the page cache.
 */
#define DIRECT_ALIGNMENT 4096

/* Bytes; of larger ones there are none to be had unasked. */
#define HUGE_PAGE ((size_t)2 << 20)

struct reader {
    struct hashtree *tree;
    const struct reader_files *files;
    size_t run_bytes;
    uint8_t *mapping; /* in which `memory` is aligned */
    size_t mapping_size;
    uint8_t *memory; /* RUN_DEPTH buffers */
    struct run runs[RUN_DEPTH];
    struct run *free;
    struct run *finished;
    unsigned in_flight;          /* reads */
    uint64_t prepared;           /* bytes of reads that the kernel was not given yet */
    unsigned runs_without_uring; /* still to come before it is set up */
    bool uring_tried;
    bool uring;
    bool fixed_files;
    bool fixed_buffers;
    struct io_uring ring;
};

/* --- Files --- */

static uint64_t available_memory(void)
{
    _cleanup_free_ char *text = NULL;
    unsigned long long kib;

    if (io_read_file("/proc/meminfo", 64 * 1024, &text, NULL, NULL) == 0) {
        const char *line = strstr(text, "MemAvailable:");
        if (line != NULL && sscanf(line, "MemAvailable: %llu", &kib) == 1)
            return kib * 1024;
    }
    return (uint64_t)sysconf(_SC_AVPHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

static bool want_direct(struct hashtree *tree)
{
    uint64_t usage = 0;

    if (tree->direct != HASHTREE_DIRECT_AUTO)
        return tree->direct == HASHTREE_DIRECT_ON;
    for (size_t i = 0; i < image_file_count(tree->image); i++) {
        const struct image_file *file = image_file(tree->image, i);
        struct stat st;
        if (fstat(file->fd, &st) == 0)
            usage += S_ISBLK(st.st_mode) ? file->size : (uint64_t)st.st_blocks * 512;
    }
    return usage > available_memory();
}

/* A descriptor of its own: O_DIRECT is a flag of the open file, which others share. */
static int open_direct(const struct image_file *file)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", file->fd);
    return open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
}

int reader_files_open(struct hashtree *tree, struct reader_files *ret, struct error *err)
{
    size_t count = image_file_count(tree->image);
    bool direct = want_direct(tree);

    ret->count = count;
    ret->fds = calloc(count + 1, sizeof(int));
    ret->direct_fds = calloc(count + 1, sizeof(int));
    if (ret->fds == NULL || ret->direct_fds == NULL) {
        free(ret->fds);
        free(ret->direct_fds);
        return error_oom(err);
    }
    for (size_t i = 0; i < count; i++) {
        const struct image_file *file = image_file(tree->image, i);
        ret->fds[i] = file->fd;
        ret->direct_fds[i] = direct ? open_direct(file) : -1;
        if (direct)
            log_debug("%s: %s", file->path,
                      ret->direct_fds[i] >= 0 ? "reading with O_DIRECT"
                                              : "O_DIRECT is not possible here");
    }
    return 0;
}

void reader_files_close(struct reader_files *files)
{
    for (size_t i = 0; i < files->count; i++)
        cleanup_close(&files->direct_fds[i]);
    free(files->fds);
    free(files->direct_fds);
}

/* --- Setting up --- */

static int register_files(struct reader *reader)
{
    const struct reader_files *files = reader->files;
    _cleanup_free_ int *fds = calloc(files->count * 2 + 1, sizeof(int));

    if (fds == NULL)
        return -ENOMEM;
    memcpy(fds, files->fds, files->count * sizeof(int));
    memcpy(fds + files->count, files->direct_fds, files->count * sizeof(int));
    return io_uring_register_files(&reader->ring, fds, (unsigned)files->count * 2);
}

static void set_up_uring(struct reader *reader)
{
    struct iovec buffers[RUN_DEPTH];

    reader->uring_tried = true;
    int r = ring_open(&reader->ring);
    if (r < 0) {
        static atomic_flag told = ATOMIC_FLAG_INIT;
        if (!atomic_flag_test_and_set(&told))
            log_info("io_uring is not available (%s): reading with pread", strerror(-r));
        return;
    }
    reader->uring = true;
    /* Both only save the kernel some work for each read: doing without is fine (an unprivileged
     * user's RLIMIT_MEMLOCK can be too small for the buffers). */
    reader->fixed_files = register_files(reader) == 0;
    for (unsigned i = 0; i < RUN_DEPTH; i++)
        buffers[i] = (struct iovec){reader->runs[i].buffer, reader->run_bytes};
    reader->fixed_buffers = io_uring_register_buffers(&reader->ring, buffers, RUN_DEPTH) == 0;
    if (!reader->fixed_files || !reader->fixed_buffers)
        log_debug("io_uring: %s",
                  !reader->fixed_files ? "files are not registered" : "buffers are not registered");
}

/* The buffers, in huge pages where there are some: two of them are filled with zeros and pinned in
 * a quarter of the time that takes of a thousand small ones. */
static int map_buffers(struct reader *reader, struct error *err)
{
    size_t size = reader->run_bytes * RUN_DEPTH;

    reader->mapping_size = size + HUGE_PAGE;
    reader->mapping = mmap(NULL, reader->mapping_size, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reader->mapping == MAP_FAILED)
        return error_oom(err);
    reader->memory = reader->mapping + (-(uintptr_t)reader->mapping & (HUGE_PAGE - 1));
    (void)madvise(reader->memory, size, MADV_HUGEPAGE);
    return 0;
}

int reader_new(struct hashtree *tree, const struct reader_files *files, unsigned runs_without_uring,
               struct reader **ret, struct error *err)
{
    struct reader *reader = calloc(1, sizeof(*reader));
    int r;

    if (reader == NULL)
        return error_oom(err);
    reader->tree = tree;
    reader->files = files;
    reader->runs_without_uring = runs_without_uring;
    reader->run_bytes = tree_run_bytes(tree);
    r = map_buffers(reader, err);
    if (r < 0) {
        free(reader);
        return r;
    }
    for (unsigned i = RUN_DEPTH; i-- > 0;) {
        struct run *run = &reader->runs[i];
        run->buffer = reader->memory + i * reader->run_bytes;
        run->buffer_index = i;
        reader_put_run(reader, run);
    }
    *ret = reader;
    return 0;
}

void reader_free(struct reader *reader)
{
    reader_drain(reader);
    if (reader->uring) {
        /* The kernel takes a ring apart at leisure. Registered files would stay open until then,
         * and with them the image's locks and the mount that it lies on, after we are gone. */
        if (reader->fixed_files)
            io_uring_unregister_files(&reader->ring);
        ring_close(&reader->ring, reader->in_flight == 0);
    }
    munmap(reader->mapping, reader->mapping_size);
    free(reader);
}

/* Last in, first out: while data comes from the page cache one buffer does, and stays in the cache.
 */
struct run *reader_get_run(struct reader *reader)
{
    struct run *run = reader->free;

    if (run != NULL) {
        reader->free = run->next;
        run->segment = NULL;
        run->pieces_count = 0;
        run->reads = 0;
    }
    return run;
}

void reader_put_run(struct reader *reader, struct run *run)
{
    run->next = reader->free;
    reader->free = run;
}

/* --- Reading --- */

static void run_finished(struct reader *reader, struct run *run)
{
    run->next = reader->finished;
    reader->finished = run;
}

static int read_piece(struct reader *reader, const struct piece *piece, uint32_t done,
                      struct error *err)
{
    const struct image_file *file = image_file(reader->tree->image, piece->file);

    return io_read_at(file->fd, file->path, piece->run->buffer + piece->buffer_offset + done,
                      piece->length - done, piece->host_offset + done, err);
}

static void prepare(struct reader *reader, struct io_uring_sqe *sqe, struct piece *piece)
{
    const struct reader_files *files = reader->files;
    struct run *run = piece->run;
    bool aligned =
        (piece->host_offset | piece->length | piece->buffer_offset) % DIRECT_ALIGNMENT == 0;
    bool direct = aligned && files->direct_fds[piece->file] >= 0;
    uint8_t *to = run->buffer + piece->buffer_offset;
    int fd;

    if (reader->fixed_files)
        fd = (int)(direct ? files->count + piece->file : piece->file);
    else
        fd = direct ? files->direct_fds[piece->file] : files->fds[piece->file];
    if (reader->fixed_buffers)
        io_uring_prep_read_fixed(sqe, fd, to, piece->length, piece->host_offset,
                                 (int)run->buffer_index);
    else
        io_uring_prep_read(sqe, fd, to, piece->length, piece->host_offset);
    if (reader->fixed_files)
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, piece);
}

int reader_start(struct reader *reader, struct run *run, struct error *err)
{
    if (reader->runs_without_uring > 0)
        reader->runs_without_uring--;
    else if (!reader->uring_tried)
        set_up_uring(reader);
    for (unsigned i = 0; i < run->pieces_count; i++) {
        struct piece *piece = &run->pieces[i];
        struct io_uring_sqe *sqe = reader->uring ? io_uring_get_sqe(&reader->ring) : NULL;
        if (sqe == NULL) {
            int r = read_piece(reader, piece, 0, err);
            if (r < 0)
                return r;
            continue;
        }
        prepare(reader, sqe, piece);
        reader->prepared += piece->length;
        run->reads++;
        reader->in_flight++;
    }
    if (run->reads == 0)
        run_finished(reader, run);
    return 0;
}

static int take_completion(struct reader *reader, const struct io_uring_cqe *cqe, struct error *err)
{
    struct piece *piece = io_uring_cqe_get_data(cqe);
    struct run *run = piece->run;
    int r = 0;

    reader->in_flight--;
    run->reads--;
    if (cqe->res < 0 || (uint32_t)cqe->res < piece->length)
        r = read_piece(reader, piece, cqe->res < 0 ? 0 : (uint32_t)cqe->res, err);
    if (r == 0 && run->reads == 0)
        run_finished(reader, run);
    return r;
}

bool reader_gathers(const struct reader *reader)
{
    return reader->prepared > 0 && reader->prepared < reader->run_bytes &&
           reader->finished == NULL && io_uring_cq_ready(&reader->ring) == 0;
}

/* Gives prepared reads to the kernel, which makes those that need no waiting at once. */
static int submit(struct reader *reader, unsigned wait_for, struct error *err)
{
    int r = io_uring_submit_and_wait(&reader->ring, wait_for);

    reader->prepared = 0;
    /* After these the same call can be made again. */
    if (r >= 0 || r == -EINTR || r == -EAGAIN || r == -EBUSY)
        return 0;
    return error_set_errno(err, -r, "io_uring: cannot submit reads");
}

int reader_finished(struct reader *reader, bool wait, struct run **ret, struct error *err)
{
    while (reader->finished == NULL && reader->in_flight > 0) {
        struct io_uring_cqe *cqe = NULL;
        int r = 0;
        bool few = reader->prepared < reader->run_bytes && io_uring_cq_ready(&reader->ring) > 0;
        if (io_uring_sq_ready(&reader->ring) > 0 && !few)
            r = submit(reader, 0, err);
        if (r == 0 && io_uring_peek_cqe(&reader->ring, &cqe) < 0) {
            if (!wait)
                break;
            r = submit(reader, 1, err);
            if (r == 0)
                continue;
        }
        if (r < 0)
            return r;
        r = take_completion(reader, cqe, err);
        io_uring_cqe_seen(&reader->ring, cqe);
        if (r < 0)
            return r;
    }
    struct run *run = reader->finished;
    if (run != NULL)
        reader->finished = run->next;
    *ret = run;
    return 0;
}

void reader_drain(struct reader *reader)
{
    while (reader->in_flight > 0) {
        struct io_uring_cqe *cqe = NULL;
        if (submit(reader, 1, NULL) < 0)
            break; /* nothing was taken by the kernel, and what was is ended with the ring */
        while (io_uring_peek_cqe(&reader->ring, &cqe) == 0) {
            reader->in_flight--;
            io_uring_cqe_seen(&reader->ring, cqe);
        }
    }
}
