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
        {"raw", 3 * MIB + 1536, 0, 1000},
        {"qcow2", 5 * MIB + 512, 0, 1000},
        {"qcow2", 20 * MIB, 0, 500},
        {"raw", 3 * MIB + 1536, 4096, 500},
        {"qcow2", 2 * MIB + 512, 512, 300},
        {"qcow2", 9 * MIB, 2 * MIB, 300},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        random_operations(cases[i].format, cases[i].size, cases[i].cluster_size, cases[i].count);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
    };

    return cmocka_run_group_tests(tests, enter_directory, leave_directory);
}
