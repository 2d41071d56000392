/* SPDX-License-Identifier: MIT */
/* Opening images: probing, names, chains, locks, and files that change. */
#include "qcow2-maker.h"

#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/checked.h"
#include "image/file-times.h"
#include "image/image.h"
#include "image/write.h"

enum { DISK = 1 << 20 };

/* An empty qcow2 image at `path` that names a backing file. */
static void write_overlay(const char *path, const char *backing, const char *format)
{
    struct maker m;

    maker_start(&m, 3, 16, false, DISK);
    if (format != NULL) {
        put32(&m, 112, 0xe2792aca);
        put32(&m, 116, (uint32_t)strlen(format));
        memcpy(m.bytes + 120, format, strlen(format));
    }
    if (backing != NULL) {
        put64(&m, 8, 1000);
        put32(&m, 16, (uint32_t)strlen(backing));
        memcpy(m.bytes + 1000, backing, strlen(backing));
    }
    maker_write(&m, path);
    maker_free(&m);
}

static void expect_refused(const char *path, const struct image_options *options, int code,
                           const char *message)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image *image = NULL;
    int r = image_open(path, options, &image, &err);

    if (r != -code || strstr(error_message(&err), message) == NULL)
        fail_msg("%s: %d (%s), expected %d (%s)", path, r, r < 0 ? error_message(&err) : "opened",
                 -code, message);
}

static struct image *expect_opened(const char *path, const struct image_options *options)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image *image = NULL;

    if (image_open(path, options, &image, &err) < 0)
        fail_msg("%s", error_message(&err));
    return image;
}

static void test_files(void **state)
{
    (void)state;
    assert_int_equal(mkdir("dir", 0700), 0);
    assert_int_equal(mkfifo("fifo", 0600), 0);
    expect_refused("none", NULL, ENOENT, "none: cannot open: No such file or directory");
    expect_refused("dir", NULL, EISDIR, "dir: Is a directory");
    expect_refused("fifo", NULL, EINVAL, "fifo: neither a regular file nor a block device");
    expect_refused("/dev/null", NULL, EINVAL, "/dev/null: neither a regular file nor a block");
    /* A path that is given is a path, whatever it looks like. */
    write_file("nbd:x", "raw", 3);
    image_close(expect_opened("nbd:x", NULL));
}

static void test_probing(void **state)
{
    (void)state;
    static const struct {
        const char *magic;
        size_t offset, length;
        const char *name;
    } foreign[] = {
        {"LUKS\xba\xbe", 0, 6, "a LUKS-encrypted image, which is not supported"},
        {"KDMV", 0, 4, "a VMDK image"},
        {"# Disk DescriptorFile", 0, 21, "a VMDK image"},
        {"\x7f\x10\xda\xbe", 0x40, 4, "a VDI image"},
        {"vhdxfile", 0, 8, "a VHDX image"},
        {"conectix", 0, 8, "a VHD image"},
        {"QED", 0, 4, "a QED image"},
        {"WithouFreSpacExt", 0, 16, "a Parallels image"},
    };
    const struct image_options raw = {.format = "raw"}, qcow2 = {.format = "qcow2"},
                               qcow = {.format = "qcow"}, vdi = {.format = "vdi"};

    for (size_t i = 0; i < sizeof(foreign) / sizeof(foreign[0]); i++) {
        char bytes[1024] = {0};

        memcpy(bytes + foreign[i].offset, foreign[i].magic, foreign[i].length);
        write_file("foreign", bytes, sizeof(bytes));
        expect_refused("foreign", NULL, ENOTSUP, foreign[i].name);
        struct image *image = expect_opened("foreign", &raw);
        assert_int_equal(image_size(image), sizeof(bytes));
        image_close(image);
    }
    expect_refused("foreign", &qcow2, EINVAL, "foreign: not a qcow2 image");
    expect_refused("foreign", &qcow, EINVAL, "foreign: not a QCOW version 1 image");
    expect_refused("foreign", &vdi, ENOTSUP, "foreign: image format 'vdi' is not supported");
    write_overlay("a", NULL, NULL);
    expect_refused("a", &qcow, EINVAL, "a: not a QCOW version 1 image");
    struct image *image = expect_opened("a", &raw);
    assert_string_equal(image_info(image, 0)->format, "raw");
    assert_true(image_size(image) != DISK);
    image_close(image);
    const struct image_options snapshot = {.format = "raw", .snapshot = "s"};
    expect_refused("a", &snapshot, EINVAL, "a: a raw image has no internal snapshots");
}

static void test_chain(void **state)
{
    (void)state;
    char name[16], backing[16];

    write_overlay("self", "self", "qcow2");
    expect_refused("self", NULL, ELOOP, "self: backing file: self: the chain of backing files");
    write_overlay("x", "y", "qcow2");
    write_overlay("y", "./x", "qcow2");
    expect_refused("x", NULL, ELOOP, "y: backing file: ./x: the chain of backing files comes back");
    assert_int_equal(link("x", "x2"), 0);
    write_overlay("y", "x2", "qcow2");
    expect_refused("x", NULL, ELOOP, "comes back to this file");

    write_file("c0", "base", 4);
    for (unsigned i = 1; i <= 64; i++) {
        snprintf(name, sizeof(name), "c%u", i);
        snprintf(backing, sizeof(backing), "c%u", i - 1);
        write_overlay(name, backing, i == 1 ? "raw" : NULL);
    }
    struct image *image = expect_opened("c63", NULL);
    assert_non_null(image_info(image, 63));
    assert_string_equal(image_info(image, 63)->format, "raw");
    assert_null(image_info(image, 64));
    assert_int_equal(image_file_count(image), 64);
    image_close(image);
    expect_refused("c64", NULL, ELOOP, "c1: the chain of backing files is deeper than 64 images");

    /* What the header says of the format counts, not what the file looks like. */
    write_overlay("inner", NULL, NULL);
    write_overlay("as-raw", "inner", "raw");
    image = expect_opened("as-raw", NULL);
    assert_string_equal(image_info(image, 1)->format, "raw");
    assert_string_equal(image_info(image, 0)->backing_file, "inner");
    assert_string_equal(image_info(image, 0)->backing_format, "raw");
    image_close(image);

    assert_int_equal(mkdir("sub", 0700), 0);
    write_overlay("sub/over", "../inner", "qcow2");
    image = expect_opened("sub/over", NULL);
    assert_string_equal(image_info(image, 1)->path, "sub/../inner");
    image_close(image);
    write_overlay("sub/over", "inner", "qcow2");
    expect_refused("sub/over", NULL, ENOENT, "sub/over: backing file: sub/inner: cannot open");
}

static void write_data_file_image(const char *path, const char *data_file)
{
    struct maker m;

    maker_start(&m, 3, 16, false, DISK);
    put64(&m, 72, 4);
    put32(&m, 112, 0x44415441);
    put32(&m, 116, (uint32_t)strlen(data_file));
    memcpy(m.bytes + 120, data_file, strlen(data_file));
    put64(&m, maker_l2_entry(&m, 0), (uint64_t)1 << 63);
    put64(&m, maker_l2_entry(&m, 1 << 16), (uint64_t)1 << 63 | 2 << 16);
    put64(&m, maker_l2_entry(&m, 2 << 16), (uint64_t)1 << 62);
    put64(&m, maker_l2_entry(&m, 3 << 16), (uint64_t)1 << 63 | 3 << 16);
    put64(&m, maker_l2_entry(&m, 4 << 16), 4 << 16 | 1);
    maker_write(&m, path);
    maker_free(&m);
}

static void test_data_file(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;
    struct extent extent;
    struct image *image;
    char bytes[70000];

    memset(bytes, 'd', sizeof(bytes));
    assert_true(mkdir("data", 0700) == 0);
    write_data_file_image("data/image", "bytes");
    expect_refused("data/image", NULL, ENOENT, "data/image: data file: data/bytes: cannot open");
    write_file("data/bytes", bytes, sizeof(bytes));
    image = expect_opened("data/image", NULL);
    assert_string_equal(image_info(image, 0)->data_file, "data/bytes");

    /* Host offset 0 is a place like any other. */
    assert_int_equal(image_map(image, 0, DISK, 0, &extent, &err), 0);
    assert_int_equal(extent.kind, EXTENT_DATA);
    assert_int_equal(extent.file, 1);
    assert_int_equal(extent.host_offset, 0);
    assert_int_equal(extent.length, 1 << 16);
    assert_int_equal(image_map(image, 1 << 16, 1, 0, &extent, &err), -EIO);
    assert_non_null(strstr(error_message(&err), "points to offset 0x20000 of the external data "
                                                "file, which must be 0x10000"));
    assert_int_equal(image_map(image, 2 << 16, 1, 0, &extent, &err), -EIO);
    assert_non_null(strstr(error_message(&err), "is a compressed cluster, which an image with"));
    assert_int_equal(image_map(image, 3 << 16, 1, 0, &extent, &err), -EIO);
    assert_non_null(strstr(error_message(&err), "disk offset 0x30000 at host offset 0x30000 lies "
                                                "beyond the end of the data file of 70000 bytes"));
    assert_int_equal(image_map(image, 4 << 16, 1, 0, &extent, &err), 0);
    assert_int_equal(extent.kind, EXTENT_ZERO);
    image_close(image);

    /* The working directory's file is meant as well: the same is fine, another one is not. */
    assert_int_equal(link("data/bytes", "bytes"), 0);
    image_close(expect_opened("data/image", NULL));
    assert_int_equal(unlink("bytes"), 0);
    write_file("bytes", bytes, sizeof(bytes));
    expect_refused("data/image", NULL, ENOTUNIQ, "data file 'bytes' may be the one in the working");
    assert_int_equal(rename("bytes", "data/bytes"), 0);
}

/* --- Locks --- */

static int set_lock(int fd, short type, off_t byte)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return fcntl(fd, F_OFD_SETLK, &lock);
}

static bool is_locked(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    assert_int_equal(fcntl(fd, F_OFD_GETLK, &lock), 0);
    return lock.l_type != F_UNLCK;
}

/* Who waits for a lock sleeps here: no time goes by, and the lock may be released meanwhile. */
static struct {
    bool on, opening; /* who opens has no locks meanwhile that keep others from anything */
    unsigned count;
    unsigned release_at; /* when it was called so often */
    int fd;
    off_t byte;
} sleeps;

__attribute__((visibility("default"))) int nanosleep(const struct timespec *wanted,
                                                     struct timespec *left)
{
    /* Others wait for the clock that files have. */
    if (!sleeps.on || wanted->tv_nsec != 10000000)
        return (int)syscall(SYS_nanosleep, wanted, left);
    for (unsigned i = 0; sleeps.opening && i < 4; i++)
        assert_false(is_locked(sleeps.fd, 100 + i) || is_locked(sleeps.fd, 200 + i));
    if (++sleeps.count == sleeps.release_at)
        assert_int_equal(set_lock(sleeps.fd, F_UNLCK, sleeps.byte), 0);
    return 0;
}

/* `fd` holds the byte until somebody sleeps for the n-th time. */
static void start_sleeps(int fd, off_t byte, unsigned n)
{
    memset(&sleeps, 0, sizeof(sleeps));
    for (off_t i = 100; i < 204; i++)
        assert_int_equal(set_lock(fd, F_UNLCK, i), 0);
    assert_int_equal(set_lock(fd, F_RDLCK, byte), 0);
    sleeps.on = true;
    sleeps.release_at = n;
    sleeps.fd = fd;
    sleeps.byte = byte;
}

/* A lock that is there for a moment only is waited for. */
static void test_waiting(void **state)
{
    (void)state;
    static const unsigned releases[] = {1, 50};
    struct error err = ERROR_INIT;
    struct image *image;
    int fd, lock;

    write_overlay("top", NULL, NULL);
    fd = open("top", O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    for (size_t i = 0; i < sizeof(releases) / sizeof(releases[0]); i++) {
        start_sleeps(fd, 101, releases[i]);
        sleeps.opening = true;
        assert_int_equal(image_open("top", NULL, &image, &err), 0);
        assert_int_equal(sleeps.count, releases[i]);
        assert_int_equal(err.code, 0);
        assert_true(is_locked(fd, 201) && is_locked(fd, 203));

        /* To write: another reader. */
        start_sleeps(fd, 201, releases[i]);
        assert_int_equal(image_hold(image, &lock, &err), 0);
        assert_int_equal(sleeps.count, releases[i]);
        assert_int_equal(err.code, 0);
        image_release(image);

        start_sleeps(fd, 201, 0);
        assert_int_equal(image_hold(image, &lock, &err), -EBUSY);
        /* Not all processes give up at once. */
        assert_in_range(sleeps.count, 50, 99);
        assert_non_null(strstr(error_message(&err), "top: in use: another process reads it"));
        error_clear(&err);
        image_close(image);
    }

    start_sleeps(fd, 101, 0);
    assert_int_equal(image_open("top", NULL, &image, &err), -EBUSY);
    assert_int_equal(sleeps.count, 50);
    assert_non_null(strstr(error_message(&err), "top: in use: another process"));
    error_clear(&err);
    sleeps.on = false;
    (void)close(fd);
}

static void test_locks(void **state)
{
    (void)state;
    /* What others may hold, as QEMU numbers it, and what that means for us. */
    static const struct {
        off_t byte;
        short type;
        const char *message; /* NULL: no matter */
    } cases[] = {
        {100, F_RDLCK, NULL},                       /* reads */
        {101, F_RDLCK, "has it open for writing"},  /* writes */
        {102, F_RDLCK, NULL},                       /* writes what is there already */
        {103, F_RDLCK, "may resize it"},            /* resizes */
        {200, F_RDLCK, "lets nobody else read it"}, /* lets nobody read */
        {201, F_RDLCK, NULL},                       /* lets nobody write */
        {203, F_RDLCK, NULL},                       /* lets nobody resize */
        {100, F_WRLCK, "another process has locked it"},
        {99, F_WRLCK, NULL},
    };

    write_overlay("top", "bottom", "qcow2");
    write_overlay("bottom", NULL, NULL);
    for (unsigned f = 0; f < 2; f++) {
        const char *path = f == 0 ? "top" : "bottom";
        int fd = open(path, O_RDWR | O_CLOEXEC);
        assert_true(fd >= 0);
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            assert_int_equal(set_lock(fd, cases[i].type, cases[i].byte), 0);
            if (cases[i].message != NULL) {
                expect_refused("top", NULL, EBUSY, cases[i].message);
                expect_refused("top", NULL, EBUSY, path);
            } else {
                image_close(expect_opened("top", NULL));
            }
            assert_int_equal(set_lock(fd, F_UNLCK, cases[i].byte), 0);
        }

        /* Two readers, and what QEMU sees of them. */
        struct image *first = expect_opened("top", NULL), *second = expect_opened("top", NULL);
        static const bool expected[] = {true, false, false, false};
        static const bool unshared[] = {false, true, false, true};
        image_close(first);
        for (unsigned i = 0; i < 4; i++) {
            assert_int_equal(is_locked(fd, 100 + i), expected[i]);
            assert_int_equal(is_locked(fd, 200 + i), unshared[i]);
        }
        image_close(second);
        for (unsigned i = 0; i < 4; i++)
            assert_false(is_locked(fd, 100 + i) || is_locked(fd, 200 + i));
        assert_int_equal(close(fd), 0);
    }
}

/* --- Holes, and files that become shorter --- */

static void test_holes(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;
    struct extent extent;
    uint8_t byte;

    write_file("holes", "x", 1);
    assert_int_equal(truncate("holes", 10 << 20), 0);
    struct image *image = expect_opened("holes", NULL);
    assert_int_equal(image_map(image, 0, 10 << 20, 0, &extent, &err), 0);
    assert_int_equal(extent.kind, EXTENT_DATA);
    assert_int_equal(extent.length, 10 << 20);
    assert_int_equal(image_map(image, 0, 10 << 20, IMAGE_MAP_HOLES, &extent, &err), 0);
    assert_int_equal(extent.kind, EXTENT_DATA);
    uint64_t hole = extent.length;
    /* A file system without holes says that all is data. */
    if (hole < 10 << 20) {
        assert_int_equal(image_map(image, hole, (10 << 20) - hole, IMAGE_MAP_HOLES, &extent, &err),
                         0);
        assert_int_equal(extent.kind, EXTENT_ZERO);
        assert_int_equal(extent.length, (10 << 20) - hole);
    }

    assert_int_equal(truncate("holes", 5 << 20), 0);
    assert_int_equal(image_read(image, 6 << 20, &byte, 1, &err), -ENODATA);
    assert_non_null(strstr(error_message(&err), "holes: the file ends "));
    assert_int_equal(image_map(image, 6 << 20, 1 << 20, IMAGE_MAP_HOLES, &extent, &err), -ENODATA);
    assert_non_null(strstr(error_message(&err), "holes: the file became shorter"));
    assert_int_equal(image_check_sizes(image, &err), -ENODATA);
    assert_non_null(strstr(error_message(&err), "holes: the file became shorter"));
    assert_non_null(strstr(error_message(&err), "5242880"));
    image_close(image);
}

/* With a hint or without one, in whatever steps: the map is the same. */
static void test_hole_hints(void **state)
{
    (void)state;
    static const uint64_t size = 16 << 20, steps[] = {16 << 20, 1 << 20, 192 << 10, 4096};
    struct extent expected, extent;

    write_file("striped", "", 0);
    assert_int_equal(truncate("striped", (off_t)size), 0);
    int fd = open("striped", O_WRONLY | O_CLOEXEC);
    for (off_t at = 0; at < (off_t)size; at += 768 << 10)
        assert_int_equal(pwrite(fd, "data", 4, at), 4);
    assert_int_equal(close(fd), 0);
    struct image *image = expect_opened("striped", NULL);
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        struct image_hole_hint hint = {0};
        for (uint64_t at = 0; at < size; at += extent.length) {
            uint64_t length = min_u64(steps[i], size - at);
            assert_int_equal(image_map(image, at, length, IMAGE_MAP_HOLES, &expected, NULL), 0);
            assert_int_equal(image_map_hinted(image, at, length, 0, &hint, &extent, NULL), 0);
            assert_int_equal(extent.kind, expected.kind);
            assert_int_equal(extent.length, expected.length);
        }
        /* A hint from elsewhere does no harm. */
        for (uint64_t n = 1; n < 1000; n++) {
            uint64_t at = n * 0x9e3779b97f4a7c15u % size;
            uint64_t length = min_u64(steps[i], size - at);
            assert_int_equal(image_map(image, at, length, IMAGE_MAP_HOLES, &expected, NULL), 0);
            assert_int_equal(image_map_hinted(image, at, length, 0, &hint, &extent, NULL), 0);
            assert_int_equal(extent.kind, expected.kind);
            assert_int_equal(extent.length, expected.length);
        }
    }
    assert_int_equal(image_check_sizes(image, NULL), 0);
    image_close(image);
}

/* Chains of random overlays: what is decided above some depth, against what is said of each sector.
 */
static void test_next_above(void **state)
{
    enum { SIZE = 4 << 20, LAYERS = 4, SECTOR = 512 };
    char name[16] = "above0", below[16];
    uint64_t random = 88172645463325252;
    struct extent extent;

    (void)state;
    write_file(name, "", 0);
    assert_int_equal(truncate(name, SIZE), 0);
    for (unsigned layer = 1; layer <= LAYERS; layer++) {
        struct image *over = NULL;
        strcpy(below, name);
        snprintf(name, sizeof(name), "above%u", layer);
        assert_int_equal(image_open_overlay(below, NULL, name, &over, NULL), 0);
        for (unsigned n = 0; n < 8; n++) {
            uint64_t at = random_next(&random) % SIZE;
            uint64_t length = min_u64(SIZE - at, random_next(&random) % 300000 + 1);
            if (n % 2 == 0)
                assert_int_equal(image_write(over, at, "something", min_u64(length, 9), NULL), 0);
            else
                assert_int_equal(image_write_zeros(over, at, length, NULL), 0);
        }
        assert_int_equal(image_flush(over, NULL), 0);
        image_close(over);
    }
    struct image *image = expect_opened(name, NULL);
    uint64_t ranges = 0;
    for (unsigned depth = 0; depth <= LAYERS; depth++) {
        bool found[SIZE / SECTOR] = {false};
        uint64_t start, end = 0;
        for (uint64_t at = 0; at < SIZE; at = end, ranges++) {
            assert_int_equal(image_next_above(image, depth, at, &start, &end, NULL), 0);
            if (start == UINT64_MAX)
                break;
            assert_true(start >= at && end > start && end <= SIZE);
            memset(found + start / SECTOR, true, (end - start) / SECTOR);
        }
        for (uint64_t at = 0; at < SIZE; at += SECTOR) {
            assert_int_equal(image_map(image, at, SECTOR, 0, &extent, NULL), 0);
            assert_int_equal(found[at / SECTOR], extent.depth < depth);
        }
        assert_int_equal(image_next_above(image, depth, 100001, &start, &end, NULL), 0);
        assert_true(start == UINT64_MAX || start >= 100001);
    }
    assert_true(ranges > 20);
    image_close(image);
}

static bool same_ctime(const struct stat *a, const struct stat *b)
{
    return a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* A write after file_times_settle() always shows. */
static void test_file_times(void **state)
{
    struct stat before, after;

    (void)state;
    int fd = open("times", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    enum file_clock clock = file_clock(fd);
    for (int i = 0; clock != FILE_CLOCK_NONE && i < 200; i++) {
        assert_int_equal(pwrite(fd, &i, sizeof(i), 0), sizeof(i));
        assert_int_equal(fstat(fd, &before), 0);
        assert_true(file_times_settle(clock, &before));
        assert_int_equal(pwrite(fd, &i, sizeof(i), 0), sizeof(i));
        assert_int_equal(fstat(fd, &after), 0);
        assert_false(same_ctime(&before, &after));
    }
    close(fd);

    struct image *image = NULL;
    assert_int_equal(image_open("times", NULL, &image, NULL), 0);
    assert_int_equal(image_file(image, 0)->settled, clock == FILE_CLOCK_OURS);
    image_close(image);

    /* Times that can only be waited for longer than anybody would: of tomorrow, of a clock without
     * fractions. Those that are long past take no time at all. */
    clock_gettime(CLOCK_REALTIME, &before.st_ctim);
    before.st_ctim.tv_sec += 86400;
    assert_false(file_times_settle(FILE_CLOCK_OURS, &before));
    before.st_ctim.tv_sec -= 86400;
    before.st_ctim.tv_nsec = 0;
    assert_false(file_times_settle(FILE_CLOCK_OURS, &before));
    assert_false(file_times_settle(FILE_CLOCK_OTHER, &before));
    before.st_ctim.tv_sec -= 3;
    assert_true(file_times_settle(FILE_CLOCK_OURS, &before));
    before.st_ctim.tv_sec = INT32_MIN;
    assert_true(file_times_settle(FILE_CLOCK_OURS, &before));

    fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    assert_int_equal(file_clock(fd), FILE_CLOCK_NONE);
    close(fd);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files),      cmocka_unit_test(test_probing),
        cmocka_unit_test(test_chain),      cmocka_unit_test(test_data_file),
        cmocka_unit_test(test_locks),      cmocka_unit_test(test_waiting),
        cmocka_unit_test(test_holes),      cmocka_unit_test(test_hole_hints),
        cmocka_unit_test(test_file_times), cmocka_unit_test(test_next_above),
    };

    return cmocka_run_group_tests(tests, maker_enter, maker_leave);
}
