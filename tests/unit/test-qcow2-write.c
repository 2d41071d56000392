/* SPDX-License-Identifier: MIT */
/*
 * Writing to overlays against a naive model, an array of bytes: random writes, zeros, flushes and
 * reopening, on disks of odd sizes; several threads at once. What comes out is also read, and
 * checked, by qemu-img, where that is installed.
 */
#include "qcow2-maker.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"
#include "image/image.h"
#include "image/write.h"

enum { KIB = 1024, MIB = 1024 * 1024 };

/* --- Files and programs --- */

static char directory[64];
static bool have_qemu_img;

static int enter_directory(void **state)
{
    (void)state;
    snprintf(directory, sizeof(directory), "/var/tmp/qverity-write.XXXXXX");
    assert_non_null(mkdtemp(directory));
    assert_int_equal(chdir(directory), 0);
    have_qemu_img = system("qemu-img --version >out 2>&1") == 0;
    return 0;
}

static int leave_directory(void **state)
{
    char command[128];

    (void)state;
    assert_int_equal(chdir("/"), 0);
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    return system(command);
}

/* Runs a shell command that must succeed; prints what it said if it does not. */
__attribute__((format(printf, 1, 2))) static void run(const char *format, ...)
{
    char command[1024], logged[1100];
    va_list args;

    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    snprintf(logged, sizeof(logged), "{ %s ; } >out 2>&1", command);
    if (system(logged) != 0) {
        (void)!system("cat out >&2");
        fail_msg("failed: %s", command);
    }
}

static void random_bytes(uint8_t *bytes, size_t length, uint64_t *random)
{
    size_t i = 0;

    for (; i + 8 <= length; i += 8) {
        uint64_t n = random_next(random);

        memcpy(bytes + i, &n, 8);
    }
    for (; i < length; i++)
        bytes[i] = (uint8_t)random_next(random);
}

/* --- One disk and its model --- */

struct disk {
    const char *base;
    struct image *image;
    uint8_t *model;
    uint64_t size;
    uint64_t random;
};

static void disk_open(struct disk *d)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    if (image_open_overlay(d->base, NULL, "overlay.qcow2", &d->image, &err) < 0)
        fail_msg("%s", error_message(&err));
    assert_true(image_writable(d->image));
    assert_int_equal(image_size(d->image), d->size);
}

/* A base with runs of data and of zeros; a disk has whole sectors, a raw file need not. */
static void disk_create(struct disk *d, const char *format, uint64_t size, unsigned cluster_size,
                        uint64_t seed)
{
    *d = (struct disk){.random = seed};
    d->size = (size + 511) & ~(uint64_t)511;
    d->model = calloc(1, d->size + 1);
    for (uint64_t at = 0; at < size;) {
        uint64_t n = min_u64(size - at, random_next(&d->random) % (300 * KIB) + 1);

        if (random_next(&d->random) % 2 == 0)
            random_bytes(d->model + at, n, &d->random);
        at += n;
    }
    (void)unlink("base.qcow2");
    (void)unlink("overlay.qcow2");
    write_file("base.raw", d->model, size);
    d->base = "base.raw";
    if (strcmp(format, "qcow2") == 0) {
        d->base = "base.qcow2";
        run("qemu-img convert -f raw -O qcow2 -o cluster_size=4k base.raw base.qcow2");
    }
    if (cluster_size != 0)
        run("qemu-img create -f qcow2 -F %s -b %s -o cluster_size=%u overlay.qcow2", format,
            d->base, cluster_size);
    disk_open(d);
}

static void compare(struct disk *d, uint64_t offset, size_t length)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    uint8_t *bytes = malloc(length + 1);

    if (image_read(d->image, offset, bytes, length, &err) < 0)
        fail_msg("%s", error_message(&err));
    if (memcmp(bytes, d->model + offset, length) != 0) {
        size_t i = 0;

        while (bytes[i] == d->model[offset + i])
            i++;
        fail_msg("byte %" PRIu64 " is 0x%02x, expected 0x%02x", offset + i, bytes[i],
                 d->model[offset + i]);
    }
    free(bytes);
}

/* What image_map() says must be what the model has. */
static void compare_map(struct disk *d)
{
    for (uint64_t at = 0; at < d->size;) {
        struct extent extent;

        assert_int_equal(image_map(d->image, at, d->size - at, 0, &extent, NULL), 0);
        if (extent.kind == EXTENT_ZERO) {
            for (uint64_t i = 0; i < extent.length; i++)
                assert_int_equal(d->model[at + i], 0);
        } else {
            uint8_t *bytes = malloc(extent.length);
            int fd = image_file(d->image, extent.file)->fd;
            /* The last sector of a raw file may not be all there. */
            ssize_t n = pread(fd, bytes, extent.length, (off_t)extent.host_offset);

            assert_int_equal(extent.kind, EXTENT_DATA);
            assert_int_equal(n, extent.length);
            assert_memory_equal(bytes, d->model + at, extent.length);
            free(bytes);
        }
        at += extent.length;
    }
}

/* The overlay as others see it. */
static void check_with_qemu(struct disk *d)
{
    struct stat st;

    if (!have_qemu_img)
        return;
    run("qemu-img check overlay.qcow2");
    run("! grep -q Leaked out");
    run("qemu-img convert -O raw overlay.qcow2 overlay.raw");
    assert_int_equal(stat("overlay.raw", &st), 0);
    assert_int_equal(st.st_size, d->size);
    write_file("model.raw", d->model, d->size);
    run("cmp overlay.raw model.raw");
}

static void disk_close(struct disk *d)
{
    image_close(d->image);
    d->image = NULL;
    check_with_qemu(d);
}

static void disk_reopen(struct disk *d)
{
    disk_close(d);
    disk_open(d);
}

/* --- Random operations --- */

static uint64_t random_offset(struct disk *d)
{
    uint64_t offset = random_next(&d->random) % d->size;

    switch (random_next(&d->random) % 4) {
    case 0:
        return offset & ~(uint64_t)(64 * KIB - 1);
    case 1:
        return offset & ~(uint64_t)511;
    default:
        return offset;
    }
}

static uint64_t random_length(struct disk *d, uint64_t offset)
{
    static const uint64_t most[] = {16, 4 * KIB, 64 * KIB, 300 * KIB, 4 * MIB};
    uint64_t length = random_next(&d->random) % most[random_next(&d->random) % 5] + 1;

    if (random_next(&d->random) % 3 == 0)
        length = (length + 64 * KIB - 1) & ~(uint64_t)(64 * KIB - 1);
    return min_u64(length, d->size - offset);
}

static void one_operation(struct disk *d)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    uint64_t offset = random_offset(d), length = random_length(d, offset);
    unsigned what = (unsigned)(random_next(&d->random) % 100);
    int r = 0;

    if (what < 50) {
        random_bytes(d->model + offset, length, &d->random);
        r = image_write(d->image, offset, d->model + offset, length, &err);
    } else if (what < 75) {
        memset(d->model + offset, 0, length);
        r = image_write_zeros(d->image, offset, length, &err);
    } else if (what < 80) {
        r = image_flush(d->image, &err);
    }
    if (r < 0)
        fail_msg("%s", error_message(&err));
    compare(d, offset, length);
}

static void random_operations(const char *format, uint64_t size, unsigned cluster_size,
                              unsigned count)
{
    struct disk d;

    if (!have_qemu_img && (cluster_size != 0 || strcmp(format, "qcow2") == 0))
        return;
    disk_create(&d, format, size, cluster_size, size * 2 + cluster_size + 1);
    for (unsigned i = 0; i < count; i++) {
        one_operation(&d);
        if (i % 100 == 99) {
            compare(&d, 0, d.size);
            compare_map(&d);
        }
        if (i % 250 == 249)
            disk_reopen(&d);
    }
    disk_close(&d);
    free(d.model);
}

static void test_random(void **state)
{
    static const struct {
        const char *format;
        uint64_t size;
        unsigned cluster_size; /* 0: the overlay is made here */
        unsigned count;
    } cases[] = {
        {"raw", 512, 0, 100},
        {"raw", 64 * KIB, 0, 200},
        {"raw", 64 * KIB + 700, 0, 300},
        {"raw", 3 * MIB + 1536, 0, 700},
        {"qcow2", 5 * MIB + 512, 0, 500},
        {"qcow2", 20 * MIB, 0, 500},
        {"raw", 3 * MIB + 1536, 4096, 500},
        {"qcow2", 2 * MIB + 512, 512, 300},
        {"qcow2", 9 * MIB, 2 * MIB, 300},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        random_operations(cases[i].format, cases[i].size, cases[i].cluster_size, cases[i].count);
}

/* --- The file's tables --- */

static void write_at(struct disk *d, uint64_t offset, const void *bytes, size_t length)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    if (image_write(d->image, offset, bytes, length, &err) < 0)
        fail_msg("%s", error_message(&err));
}

static unsigned refcount_table_clusters(void)
{
    uint8_t header[60];
    int fd = open("overlay.qcow2", O_RDONLY | O_CLOEXEC);

    assert_int_equal(pread(fd, header, sizeof(header), 0), sizeof(header));
    close(fd);
    return (unsigned)header[58] << 8 | header[59];
}

/* The refcount table of 512-byte clusters is full with 8 MiB, and moves. */
static void test_refcount_table_grows(void **state)
{
    struct disk d;

    (void)state;
    if (!have_qemu_img)
        skip();
    disk_create(&d, "raw", 20 * MIB, 512, 5);
    assert_int_equal(refcount_table_clusters(), 1);
    for (unsigned round = 0; round < 2; round++) {
        random_bytes(d.model, d.size, &d.random);
        for (uint64_t at = 0; at < d.size; at += MIB) {
            write_at(&d, at, d.model + at, MIB);
            if (at % (5 * MIB) == 0)
                assert_int_equal(image_flush(d.image, NULL), 0);
        }
        compare(&d, 0, d.size);
        disk_reopen(&d);
        compare(&d, 0, d.size);
        memset(d.model + MIB, 0, 10 * MIB);
        assert_int_equal(image_write_zeros(d.image, MIB, 10 * MIB, NULL), 0);
        compare(&d, 0, d.size);
    }
    disk_close(&d);
    assert_true(refcount_table_clusters() >= 4);
    free(d.model);
}

/* More L2 tables than are kept in memory, clean or dirty. */
static void test_many_tables(void **state)
{
    enum { TABLES = 1100 };
    const uint64_t span = (uint64_t)512 * MIB;
    struct disk d = {.base = "base.raw", .size = TABLES * span};

    (void)state;
    (void)unlink("overlay.qcow2");
    write_file("base.raw", "", 0);
    assert_int_equal(truncate("base.raw", (off_t)d.size), 0);
    disk_open(&d);
    for (unsigned i = 0; i < TABLES; i++)
        write_at(&d, i * span + i * 4096, &i, sizeof(i));
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < TABLES; i++) {
            unsigned n;

            assert_int_equal(image_read(d.image, i * span + i * 4096, &n, sizeof(n), NULL), 0);
            assert_int_equal(n, i);
        }
        image_close(d.image);
        if (have_qemu_img)
            run("qemu-img check overlay.qcow2");
        disk_open(&d);
    }
    image_close(d.image);
    (void)unlink("overlay.qcow2");
}

static uint64_t file_usage(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* Discarding gives space back, and costs nothing where there is nothing. */
static void test_space(void **state)
{
    struct disk d = {.base = "base.raw", .size = (uint64_t)1 << 40};
    uint8_t *bytes = malloc(64 * MIB);

    (void)state;
    (void)unlink("overlay.qcow2");
    if (!have_qemu_img)
        skip();
    run("qemu-img create -f qcow2 base.qcow2 1T");
    d.base = "base.qcow2";
    disk_open(&d);
    assert_int_equal(image_write_zeros(d.image, 0, d.size, NULL), 0);
    assert_int_equal(image_flush(d.image, NULL), 0);
    assert_true(file_usage("overlay.qcow2") <= MIB);

    memset(bytes, 1, 64 * MIB);
    write_at(&d, 1000, bytes, 64 * MIB);
    assert_int_equal(image_flush(d.image, NULL), 0);
    assert_true(file_usage("overlay.qcow2") >= 64 * MIB);
    assert_int_equal(image_write_zeros(d.image, 0, d.size, NULL), 0);
    assert_int_equal(image_flush(d.image, NULL), 0);
    assert_true(file_usage("overlay.qcow2") <= MIB);
    image_close(d.image);
    run("qemu-img check overlay.qcow2");
    free(bytes);
}

/* What was known of the host file's holes is no longer so after a write. */
static void test_hole_hint(void **state)
{
    struct image_hole_hint hint = {0};
    struct extent extent;
    uint8_t bytes[4096];
    struct disk d;

    (void)state;
    memset(bytes, 1, sizeof(bytes));
    disk_create(&d, "raw", MIB, 0, 5);
    for (uint64_t at = 0; at < MIB; at += 64 * KIB) {
        write_at(&d, at, bytes, sizeof(bytes));
        memcpy(d.model + at, bytes, sizeof(bytes));
    }
    assert_int_equal(image_map(d.image, 0, 64 * KIB, 0, &extent, NULL), 0);
    assert_int_equal(extent.kind, EXTENT_DATA);
    image_close(d.image);
    run("fallocate --punch-hole --offset %" PRIu64 " --length %u overlay.qcow2", extent.host_offset,
        64 * KIB);
    memset(d.model, 0, 64 * KIB);
    disk_open(&d);

    assert_int_equal(image_map_hinted(d.image, 0, 64 * KIB, 0, &hint, &extent, NULL), 0);
    assert_int_equal(extent.kind, EXTENT_ZERO);
    assert_int_equal(extent.length, 64 * KIB);
    write_at(&d, 0, bytes, sizeof(bytes));
    memcpy(d.model, bytes, sizeof(bytes));
    assert_int_equal(image_map_hinted(d.image, 0, 64 * KIB, 0, &hint, &extent, NULL), 0);
    assert_int_equal(extent.kind, EXTENT_DATA);
    disk_close(&d);
    free(d.model);
}

/* --- Threads --- */

enum { THREADS = 4, STRIPE = 40000, SHARED = 8 * MIB };

/* The first half of the disk is in stripes, so that clusters are several threads'; each cluster of
 * the second half is one thread's, which also zeroes it. */
struct worker {
    struct disk disk; /* the model is shared, each byte one thread's */
    unsigned number, operations;
    pthread_t thread;
    bool failed;
};

static bool worker_step(struct worker *w)
{
    struct disk *d = &w->disk;
    uint64_t n = random_next(&d->random), unit, start;
    uint8_t *bytes;
    int r = 0;

    if (random_next(&d->random) % 2 == 0) {
        unit = STRIPE;
        start = n % (SHARED / STRIPE / THREADS) * THREADS * STRIPE + w->number * (uint64_t)STRIPE;
    } else {
        unit = 64 * KIB;
        start = SHARED + n % (SHARED / unit / THREADS) * THREADS * unit + w->number * unit;
    }
    uint64_t offset = start + random_next(&d->random) % unit;
    uint64_t length = random_next(&d->random) % (start + unit - offset) + 1;
    unsigned what = (unsigned)(random_next(&d->random) % 10);
    if (what == 0) {
        offset = start;
        length = unit;
    }
    if (what < 3) {
        memset(d->model + offset, 0, length);
        r = image_write_zeros(d->image, offset, length, NULL);
    } else if (what < 8) {
        random_bytes(d->model + offset, length, &d->random);
        r = image_write(d->image, offset, d->model + offset, length, NULL);
    } else if (what == 8 && n % 8 == 0) {
        r = image_flush(d->image, NULL);
    }
    bytes = malloc(unit);
    bool same = r == 0 && image_read(d->image, start, bytes, unit, NULL) == 0 &&
                memcmp(bytes, d->model + start, unit) == 0;
    free(bytes);
    return same;
}

static void *worker_run(void *argument)
{
    struct worker *w = argument;

    for (unsigned i = 0; i < w->operations && !w->failed; i++)
        w->failed = !worker_step(w);
    return NULL;
}

/* Reads everything over and over, as somebody who maps first; whatever it gets, it gets it. */
static void *reader_run(void *argument)
{
    struct worker *w = argument;
    uint8_t *bytes = malloc(4 * MIB);

    for (unsigned i = 0; i < w->operations / 20; i++) {
        for (uint64_t at = 0; at < w->disk.size;) {
            struct extent extent;

            if (image_map(w->disk.image, at, min_u64(4 * MIB, w->disk.size - at), 0, &extent,
                          NULL) < 0 ||
                (extent.kind == EXTENT_DATA &&
                 pread(image_file(w->disk.image, extent.file)->fd, bytes, extent.length,
                       (off_t)extent.host_offset) != (ssize_t)extent.length)) {
                w->failed = true;
                break;
            }
            at += extent.length;
        }
    }
    free(bytes);
    return NULL;
}

static void test_threads(void **state)
{
    struct worker workers[THREADS + 1];
    struct disk d;

    (void)state;
    disk_create(&d, "raw", 2 * SHARED, 0, 99);
    for (unsigned i = 0; i <= THREADS; i++) {
        workers[i] = (struct worker){.disk = d, .number = i, .operations = 400};
        workers[i].disk.random += i;
        assert_int_equal(pthread_create(&workers[i].thread, NULL,
                                        i < THREADS ? worker_run : reader_run, &workers[i]),
                         0);
    }
    for (unsigned i = 0; i <= THREADS; i++) {
        assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
        assert_false(workers[i].failed);
    }
    compare(&d, 0, d.size);
    disk_reopen(&d);
    compare(&d, 0, d.size);
    disk_close(&d);
    free(d.model);
}

/* All threads come to the same new cluster at the same moment, each for a part of it. */
struct neighbour {
    struct disk *disk;
    pthread_barrier_t *barrier;
    unsigned number;
    pthread_t thread;
};

static void *neighbour_run(void *argument)
{
    const struct neighbour *n = argument;
    struct disk *d = n->disk;
    const size_t part = 64 * KIB / THREADS;

    for (uint64_t at = n->number * part; at < d->size; at += 64 * KIB) {
        pthread_barrier_wait(n->barrier);
        (void)image_write(d->image, at, d->model + at, part, NULL);
    }
    return NULL;
}

static void test_same_cluster(void **state)
{
    struct neighbour neighbours[THREADS];
    pthread_barrier_t barrier;
    struct disk d;

    (void)state;
    disk_create(&d, "raw", 16 * MIB, 0, 7);
    random_bytes(d.model, d.size, &d.random);
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (unsigned i = 0; i < THREADS; i++) {
        neighbours[i] = (struct neighbour){.disk = &d, .barrier = &barrier, .number = i};
        pthread_create(&neighbours[i].thread, NULL, neighbour_run, &neighbours[i]);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(neighbours[i].thread, NULL);
    pthread_barrier_destroy(&barrier);
    compare(&d, 0, d.size);
    disk_close(&d);
    free(d.model);
}

/* --- Others on the same file --- */

static void test_locks(void **state)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image *other;
    struct disk d;

    (void)state;
    disk_create(&d, "raw", MIB, 0, 3);
    assert_int_equal(image_open_overlay(d.base, NULL, "overlay.qcow2", &other, &err), -EBUSY);
    assert_non_null(strstr(error_message(&err), "in use"));
    error_clear(&err);
    assert_int_equal(image_open("overlay.qcow2", NULL, &other, &err), -EBUSY);
    /* The base can be read. */
    assert_int_equal(image_open(d.base, NULL, &other, NULL), 0);
    assert_false(image_writable(other));
    image_close(other);
    if (have_qemu_img) {
        run("! qemu-img info overlay.qcow2");
        run("! qemu-io -f qcow2 -c 'write 0 512' overlay.qcow2");
        run("! qemu-io -f raw -c 'write 0 512' base.raw");
    }
    disk_close(&d);
    free(d.model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),       cmocka_unit_test(test_refcount_table_grows),
        cmocka_unit_test(test_many_tables),  cmocka_unit_test(test_space),
        cmocka_unit_test(test_hole_hint),    cmocka_unit_test(test_threads),
        cmocka_unit_test(test_same_cluster), cmocka_unit_test(test_locks),
    };

    return cmocka_run_group_tests(tests, enter_directory, leave_directory);
}
