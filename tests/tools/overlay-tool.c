/* SPDX-License-Identifier: MIT */
/*
 * Writes to an overlay under bad conditions:
 *
 *     overlay-tool [options] open BASE OVERLAY
 *         opens it, says so, keeps it open until standard input ends, and closes it
 *     overlay-tool [options] random BASE OVERLAY MODEL
 *         random writes, zeros, flushes; MODEL is the raw disk as it is, and gets what comes of it.
 *         An operation may fail for want of space or by a fault. Tells how many failed.
 *     overlay-tool [options] crash BASE OVERLAY LOG
 *         writes and flushes in several threads until it is killed. What thread N does is logged
 *         in LOG.N, before it does it.
 *     overlay-tool [options] verify MODEL RAW LOG
 *         checks that RAW, what OVERLAY has after such an end, is MODEL and all that was flushed,
 *         and nothing but that and what was under way. Removes the logs.
 *     overlay-tool [options] sequential BASE OVERLAY
 *         writes the whole disk in steps of 1 MiB, flushes, and tells MB/s.
 *
 * Options: --format F (of BASE), --seed N, --count N (operations), --threads N, --faults N (one of
 * N calls that write fails, having written a part), --die N (at the Nth call that changes the
 * file), --power-loss FILE (with --die: FILE gets what a disk might have then: all that was
 * synchronized, and of what was not some blocks and not others).
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/io.h"
#include "image/image.h"
#include "image/write.h"

enum { KIB = 1024, MIB = 1024 * KIB, STRIPE = 40000, THREADS_MAX = 16 };

static struct {
    const char *format, *power_loss;
    uint64_t seed;
    unsigned count, threads, faults;
    int die;
} options = {.count = 1000, .threads = 1, .seed = 1};

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "overlay-tool: %s: %s\n", what, why);
    exit(1);
}

/* --- What happens to the overlay below the writer --- */

/* Calls on this descriptor are counted, fail, and end the program. */
static int watched = -1;
static atomic_int calls;
static uint64_t fault_random = 88172645463325252u;

/* What the disk has for sure, and what was written since. For one thread. */
static uint8_t *durable;
static size_t durable_size;
static struct change {
    uint64_t offset;
    size_t length;
    uint8_t *bytes;
} * changes;
static size_t change_count;

static void durable_apply(const struct change *c, size_t first, size_t length)
{
    size_t end = c->offset + first + length;

    if (end > durable_size) {
        durable = realloc(durable, end);
        memset(durable + durable_size, 0, end - durable_size);
        durable_size = end;
    }
    memcpy(durable + c->offset + first, c->bytes + first, length);
}

static void durable_start(int fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        die("overlay", strerror(errno));
    durable_size = (size_t)st.st_size;
    durable = malloc(durable_size);
    if (pread(fd, durable, durable_size, 0) != st.st_size)
        die("overlay", "cannot read it");
}

static void durable_change(const void *bytes, size_t length, uint64_t offset)
{
    if (options.power_loss == NULL)
        return;
    changes = realloc(changes, (change_count + 1) * sizeof(*changes));
    struct change *c = &changes[change_count++];
    *c = (struct change){offset, length, calloc(1, length)};
    if (bytes != NULL)
        memcpy(c->bytes, bytes, length);
}

static void durable_synchronize(void)
{
    for (size_t i = 0; i < change_count; i++) {
        durable_apply(&changes[i], 0, changes[i].length);
        free(changes[i].bytes);
    }
    change_count = 0;
}

static void lose_power(void)
{
    uint64_t random = options.seed * 7919 + (uint64_t)options.die;
    int fd;

    for (size_t i = 0; i < change_count; i++) {
        for (size_t at = 0; at < changes[i].length; at += 4 * KIB) {
            if (random_next(&random) % 2 == 0)
                durable_apply(&changes[i], at, min_u64(4 * KIB, changes[i].length - at));
        }
    }
    fd = open(options.power_loss, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    for (size_t done = 0; done < durable_size;) {
        ssize_t n = syscall(SYS_write, fd, durable + done, durable_size - done);
        if (n < 0)
            die(options.power_loss, strerror(errno));
        done += (size_t)n;
    }
    close(fd);
}

static void count_call(void)
{
    if (options.die > 0 && atomic_fetch_add(&calls, 1) + 1 == options.die) {
        if (options.power_loss != NULL)
            lose_power();
        raise(SIGKILL);
    }
}

/* Whether a call fails. */
static bool strikes(void)
{
    return options.faults != 0 && random_next(&fault_random) % options.faults == 0;
}

/* These take the place of the C library's for all that is linked here. */
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
    if (fd == watched) {
        count_call();
        if (strikes()) {
            (void)syscall(SYS_pwrite64, fd, bytes, length / 2, offset);
            errno = random_next(&fault_random) % 2 == 0 ? ENOSPC : EIO;
            return -1;
        }
        durable_change(bytes, length, (uint64_t)offset);
    }
    return syscall(SYS_pwrite64, fd, bytes, length, offset);
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    ssize_t done = 0;

    for (int i = 0; i < count; i++) {
        ssize_t n =
            iov[i].iov_len > 0 ? pwrite(fd, iov[i].iov_base, iov[i].iov_len, offset + done) : 0;
        if (n < 0)
            return -1;
        done += n;
        if ((size_t)n < iov[i].iov_len)
            break;
    }
    return done;
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    if (fd == watched) {
        count_call();
        durable_change(NULL, (size_t)length, (uint64_t)offset);
    }
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

int fdatasync(int fd)
{
    if (fd == watched) {
        count_call();
        durable_synchronize();
        if (options.power_loss != NULL)
            return 0;
    }
    return (int)syscall(SYS_fdatasync, fd);
}

/* --- The overlay --- */

static struct image *open_overlay(const char *base, const char *overlay)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    const struct image_options image_options = {.format = options.format};
    struct image *image;

    if (image_open_overlay(base, &image_options, overlay, &image, &err) < 0)
        die("cannot open", error_message(&err));
    watched = image_file(image, 0)->fd;
    if (options.power_loss != NULL)
        durable_start(watched);
    return image;
}

static uint8_t *load(const char *path, uint64_t *ret_size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        die(path, strerror(errno));
    uint8_t *bytes = calloc(1, (size_t)st.st_size + 1);
    for (off_t done = 0; done < st.st_size;) {
        ssize_t n = pread(fd, bytes + done, (size_t)(st.st_size - done), done);
        if (n <= 0)
            die(path, "cannot read it");
        done += n;
    }
    close(fd);
    *ret_size = (uint64_t)st.st_size;
    return bytes;
}

/* --- random --- */

static int run_random(char **names)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image *image = open_overlay(names[0], names[1]);
    uint64_t size, random = options.seed * 2654435761u + 1;
    _cleanup_free_ uint8_t *model = load(names[2], &size), *buffer = malloc(2 * MIB);
    unsigned failed = 0, lost = 0;

    if (size != image_size(image))
        die(names[2], "not the size of the disk");
    for (unsigned i = 0; i < options.count; i++) {
        uint64_t offset = random_next(&random) % size;
        size_t length = random_next(&random) % (random_next(&random) % 4 == 0 ? MIB : 8 * KIB) + 1;
        unsigned what = (unsigned)(random_next(&random) % 100);
        int r = 0;

        if (random_next(&random) % 2 == 0)
            offset &= ~(uint64_t)(64 * KIB - 1);
        length = min_u64(length, size - offset);
        error_clear(&err);
        if (what < 60) {
            for (size_t k = 0; k < length; k++)
                buffer[k] = (uint8_t)random_next(&random);
            r = image_write(image, offset, buffer, length, &err);
        } else if (what < 90) {
            length = min_u64(length * 4, min_u64(size - offset, 2 * MIB));
            memset(buffer, 0, length);
            r = image_write_zeros(image, offset, length, &err);
        } else {
            length = 0;
            r = image_flush(image, &err);
        }
        if (r < 0 && r != -ENOSPC && !(r == -EIO && options.faults != 0))
            die("unexpected error", error_message(&err));
        if (r < 0 && length > 0) {
            /* Each byte is the old or the new one; what it is, is what it must stay. */
            uint8_t *now = malloc(length);

            if (image_read(image, offset, now, length, &err) < 0)
                die("reading", error_message(&err));
            for (size_t k = 0; k < length; k++)
                lost += now[k] != model[offset + k] && now[k] != buffer[k];
            memcpy(model + offset, now, length);
            free(now);
        } else {
            memcpy(model + offset, buffer, length);
        }
        failed += r < 0;
    }
    _cleanup_free_ uint8_t *all = malloc(size);
    if (image_read(image, 0, all, size, &err) < 0)
        die("reading", error_message(&err));
    for (uint64_t i = 0; i < size; i++)
        lost += all[i] != model[i];
    options.faults = 0;
    int r = image_flush(image, &err);
    if (r < 0 && r != -ENOSPC)
        die("flushing", error_message(&err));
    watched = r < 0 ? watched : -1;
    image_close(image);
    FILE *f = fopen(names[2], "w");
    if (f == NULL || fwrite(model, 1, size, f) != size || fclose(f) != 0)
        die(names[2], strerror(errno));
    printf("%u failed, %u bytes wrong%s\n", failed, lost, r < 0 ? ", not flushed" : "");
    return lost == 0 ? 0 : 1;
}

/* --- crash and verify --- */

enum record_kind { RECORD_WRITE, RECORD_ZERO, RECORD_FLUSHED };

struct record {
    uint64_t kind, seed, offset, length;
};

static uint8_t byte_of(const struct record *record, uint64_t offset)
{
    if (record->kind == RECORD_ZERO)
        return 0;
    return (uint8_t)((offset * 0x9e3779b97f4a7c15u + record->seed * 0xff51afd7ed558ccdu) >> 56);
}

static int open_log(const char *log, unsigned number, int flags)
{
    char *path = NULL;

    if (asprintf(&path, "%s.%u", log, number) < 0)
        die(log, "out of memory");
    int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0)
        die(path, strerror(errno));
    if ((flags & O_CREAT) == 0)
        unlink(path);
    free(path);
    return fd;
}

struct crasher {
    struct image *image;
    unsigned number;
    int log;
};

static void append(int log, const struct record *record)
{
    if (write(log, record, sizeof(*record)) != sizeof(*record))
        die("log", strerror(errno));
}

/* Each thread has every n-th stripe for itself, so that each cluster is several threads'. */
static void *crasher_run(void *argument)
{
    const struct crasher *c = argument;
    _cleanup_error_ struct error err = ERROR_INIT;
    uint64_t random = options.seed * 1000003 + c->number + 1, size = image_size(c->image);
    uint8_t *buffer = malloc(STRIPE);

    for (;;) {
        struct record record = {.seed = random_next(&random)};
        uint64_t stripes = size / STRIPE / options.threads;
        uint64_t stripe = random_next(&random) % stripes * options.threads + c->number;
        uint64_t within = random_next(&random) % STRIPE;
        int r;

        /* One thread may go beyond a stripe, and so zero whole clusters. */
        record.offset = stripe * STRIPE + within;
        record.length = random_next(&random) % (STRIPE - within) + 1;
        record.kind = random_next(&random) % 4 == 0 ? RECORD_ZERO : RECORD_WRITE;
        if (record.kind == RECORD_ZERO && options.threads == 1)
            record.length = min_u64(random_next(&random) % (300 * KIB) + 1, size - record.offset);
        append(c->log, &record);
        if (record.kind == RECORD_ZERO) {
            r = image_write_zeros(c->image, record.offset, record.length, &err);
        } else {
            for (uint64_t i = 0; i < record.length; i++)
                buffer[i] = byte_of(&record, record.offset + i);
            r = image_write(c->image, record.offset, buffer, record.length, &err);
        }
        if (r == 0 && random_next(&random) % 8 == 0) {
            r = image_flush(c->image, &err);
            record.kind = RECORD_FLUSHED;
            if (r == 0)
                append(c->log, &record);
        }
        if (r < 0)
            die("writing", error_message(&err));
    }
    return NULL;
}

static int run_crash(char **names)
{
    struct image *image = open_overlay(names[0], names[1]);
    struct crasher crashers[THREADS_MAX];
    pthread_t thread;

    /* All logs are there before the first thread writes. */
    for (unsigned i = 0; i < options.threads; i++)
        crashers[i] = (struct crasher){image, i, open_log(names[2], i, O_RDWR | O_CREAT | O_TRUNC)};
    for (unsigned i = 1; i < options.threads; i++)
        pthread_create(&thread, NULL, crasher_run, &crashers[i]);
    crasher_run(&crashers[0]);
    return 0;
}

/* Applies what was flushed to the model; *ret has what came after that. */
static size_t replay(int log, uint8_t *model, struct record **ret)
{
    struct record *records = NULL, record;
    size_t count = 0, flushed = 0;

    while (read(log, &record, sizeof(record)) == sizeof(record)) {
        if (record.kind != RECORD_FLUSHED) {
            records = realloc(records, (count + 1) * sizeof(record));
            records[count++] = record;
            continue;
        }
        for (; flushed < count; flushed++) {
            const struct record *r = &records[flushed];
            for (uint64_t i = 0; i < r->length; i++)
                model[r->offset + i] = byte_of(r, r->offset + i);
        }
    }
    close(log);
    // A writer that was killed before its first write has no records at all.
    if (flushed > 0)
        memmove(records, records + flushed, (count - flushed) * sizeof(record));
    *ret = records;
    return count - flushed;
}

static bool may_be(uint8_t byte, uint64_t offset, struct record **records, const size_t *counts)
{
    for (unsigned t = 0; t < options.threads; t++) {
        for (size_t i = 0; i < counts[t]; i++) {
            const struct record *r = &records[t][i];
            if (offset >= r->offset && offset - r->offset < r->length && byte_of(r, offset) == byte)
                return true;
        }
    }
    return false;
}

static int run_verify(char **names)
{
    uint64_t size, raw_size, wrong = 0, first = 0;
    _cleanup_free_ uint8_t *model = load(names[0], &size), *raw = load(names[1], &raw_size);
    struct record *records[THREADS_MAX];
    size_t counts[THREADS_MAX];

    if (size != raw_size)
        die(names[1], "not the size of the disk");
    for (unsigned t = 0; t < options.threads; t++)
        counts[t] = replay(open_log(names[2], t, O_RDONLY), model, &records[t]);
    for (uint64_t i = size; i-- > 0;) {
        if (raw[i] != model[i] && !may_be(raw[i], i, records, counts)) {
            wrong++;
            first = i;
        }
    }
    for (unsigned t = 0; t < options.threads; t++)
        free(records[t]);
    if (wrong == 0)
        return 0;
    fprintf(stderr, "%" PRIu64 " bytes are wrong, the first at %" PRIu64 "\n", wrong, first);
    return 1;
}

/* --- The others --- */

static int run_open(char **names)
{
    struct image *image = open_overlay(names[0], names[1]);

    puts("open");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    image_close(image);
    return 0;
}

static int run_sequential(char **names)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image *image = open_overlay(names[0], names[1]);
    _cleanup_free_ uint8_t *buffer = malloc(MIB);
    struct timespec start, end;

    memset(buffer, 0x5a, MIB);
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (uint64_t at = 0; at < image_size(image); at += MIB) {
        if (image_write(image, at, buffer, min_u64(MIB, image_size(image) - at), &err) < 0)
            die("writing", error_message(&err));
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (image_flush(image, &err) < 0)
        die("flushing", error_message(&err));
    double seconds =
        (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
    printf("%.0f MB/s\n", (double)image_size(image) / 1e6 / seconds);
    image_close(image);
    return 0;
}

static uint64_t number(const char *text)
{
    char *end;
    uint64_t n = strtoull(text, &end, 10);

    if (*text == '\0' || *end != '\0')
        die(text, "not a number");
    return n;
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"format", required_argument, NULL, 'f'},     {"seed", required_argument, NULL, 's'},
        {"count", required_argument, NULL, 'c'},      {"threads", required_argument, NULL, 't'},
        {"faults", required_argument, NULL, 'F'},     {"die", required_argument, NULL, 'd'},
        {"power-loss", required_argument, NULL, 'p'}, {0},
    };
    static const struct {
        const char *name;
        int names;
        int (*run)(char **names);
    } commands[] = {
        {"open", 2, run_open},     {"random", 3, run_random},         {"crash", 3, run_crash},
        {"verify", 3, run_verify}, {"sequential", 2, run_sequential},
    };
    int c;

    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (c == 'f')
            options.format = optarg;
        else if (c == 's')
            options.seed = number(optarg);
        else if (c == 'c')
            options.count = (unsigned)number(optarg);
        else if (c == 't')
            options.threads = (unsigned)min_u64(number(optarg), THREADS_MAX);
        else if (c == 'F')
            options.faults = (unsigned)number(optarg);
        else if (c == 'd')
            options.die = (int)number(optarg);
        else if (c == 'p')
            options.power_loss = optarg;
        else
            return 2;
    }
    fault_random += options.seed;
    for (size_t i = 0; optind < argc && i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(argv[optind], commands[i].name) == 0 && argc - optind - 1 == commands[i].names)
            return commands[i].run(argv + optind + 1);
    }
    die("usage", "see the top of overlay-tool.c");
}
