/* SPDX-License-Identifier: MIT */
/* Compressed clusters made by hand: every cluster size, where they may lie, and broken streams. */
#include "qcow2-maker.h"

#include "image/image.h"

#include <errno.h>
#include <pthread.h>
#include <sys/stat.h>
#include <zlib.h>
#include <zstd.h>

/* Half of it compresses well, half does not. */
static uint8_t *make_plain(size_t size, uint64_t seed)
{
    uint8_t *plain = malloc(size);

    assert_non_null(plain);
    for (size_t i = 0; i < size; i++)
        plain[i] = i % 256 < 128 ? (uint8_t)random_next(&seed) : (uint8_t)(i >> 8);
    return plain;
}

static size_t deflate_with(int window_bits, int flush, const uint8_t *plain, size_t size,
                           uint8_t *out, size_t room)
{
    z_stream z = {0};

    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, -window_bits, 9, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (uint8_t *)plain;
    z.avail_in = (uInt)size;
    z.next_out = out;
    z.avail_out = (uInt)room;
    assert_int_equal(deflate(&z, flush), flush == Z_FINISH ? Z_STREAM_END : Z_OK);
    size_t length = z.total_out;
    deflateEnd(&z);
    return length;
}

static size_t deflate_raw(const uint8_t *plain, size_t size, uint8_t *out, size_t room)
{
    return deflate_with(12, Z_FINISH, plain, size, out, room);
}

/* Complete up to the last byte, but not ended. */
static size_t deflate_unended(const uint8_t *plain, size_t size, uint8_t *out, size_t room)
{
    return deflate_with(12, Z_SYNC_FLUSH, plain, size, out, room);
}

static uint64_t descriptor(unsigned cluster_bits, uint64_t offset, uint64_t length)
{
    uint64_t sectors = (offset + length - 1) / 512 - offset / 512;

    return (uint64_t)1 << 62 | sectors << (62 - (cluster_bits - 8)) | offset;
}

/* An image of one and a half clusters, both compressed: the second up to the very end of the file,
 * whose size is no multiple of anything. */
static void make_image(struct maker *m, unsigned cluster_bits, bool extended, bool zstd,
                       uint8_t **ret_plain)
{
    size_t size = (size_t)1 << cluster_bits, room = 2 * size + 1024;
    uint8_t *out = malloc(room), *plain = make_plain(2 * size, cluster_bits);
    uint64_t offsets[2], lengths[2];

    maker_start(m, 3, cluster_bits, extended, size + (size > 512 ? size / 2 : 512));
    if (zstd) {
        put64(m, 72, 8 | (extended ? 16 : 0));
        m->bytes[104] = 1;
    }
    uint64_t entries[2] = {maker_l2_entry(m, 0), maker_l2_entry(m, size)};
    uint64_t at = maker_allocate(m, 5 * size + 4096) + 77;
    for (unsigned i = 0; i < 2; i++) {
        lengths[i] = zstd ? ZSTD_compress(out, room, plain + i * size, size, 3)
                          : deflate_raw(plain + i * size, size, out, room);
        assert_true(lengths[i] < room);
        offsets[i] = at;
        memcpy(m->bytes + at, out, lengths[i]);
        at += lengths[i];
        put64(m, entries[i], descriptor(cluster_bits, offsets[i], lengths[i]));
    }
    m->size = at;
    free(out);
    *ret_plain = plain;
}

static void test_cluster_sizes(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 3 * 13; i++) {
        unsigned bits = 9 + i / 3;
        bool zstd = i % 3 == 1, extended = i % 3 == 2 && bits >= 14;
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_image_ struct image *image = NULL;
        uint64_t random = i + 1;
        struct extent extent;
        struct maker m;
        uint8_t *plain;

        make_image(&m, bits, extended, zstd, &plain);
        maker_write(&m, "a");
        assert_int_equal(image_open("a", NULL, &image, &err), 0);
        size_t size = (size_t)image_size(image), cluster_size = (size_t)1 << bits;
        uint8_t *buffer = malloc(size);
        assert_non_null(buffer);

        assert_int_equal(image_map(image, 3, size - 3, 0, &extent, &err), 0);
        assert_int_equal(extent.kind, EXTENT_COMPRESSED);
        assert_int_equal(extent.length, cluster_size - 3);
        assert_int_equal(image_map(image, cluster_size, size - cluster_size, 0, &extent, &err), 0);
        assert_int_equal(extent.kind, EXTENT_COMPRESSED);
        assert_int_equal(extent.length, size - cluster_size);
        for (unsigned k = 0; k < 200; k++) {
            size_t offset = k == 0 ? 0 : (size_t)random_next(&random) % size;
            size_t length = k == 0 ? size : 1 + (size_t)random_next(&random) % (size - offset);
            if (image_read(image, offset, buffer, length, &err) < 0)
                fail_msg("%u bits, zstd %d: %s", bits, zstd, error_message(&err));
            assert_memory_equal(buffer, plain + offset, length);
        }
        free(buffer);
        free(plain);
        maker_free(&m);
    }
}

/* --- Broken ones --- */

enum { BITS = 12, CLUSTER = 1 << BITS };

/* One cluster of `length` given bytes; reads it, in parts if `part`, and gives the message. */
static int read_stream(bool zstd, const uint8_t *stream, size_t length, uint64_t sectors, bool part,
                       uint8_t *buffer, struct error *err)
{
    _cleanup_image_ struct image *image = NULL;
    struct maker m;
    int r;

    maker_start(&m, 3, BITS, false, CLUSTER);
    if (zstd) {
        put64(&m, 72, 8);
        m.bytes[104] = 1;
    }
    uint64_t entry = maker_l2_entry(&m, 0);
    uint64_t at = maker_allocate(&m, length);
    memcpy(m.bytes + at, stream, length);
    put64(&m, entry, descriptor(BITS, at, sectors * 512));
    m.size = at + length;
    maker_write(&m, "a");
    r = image_open("a", NULL, &image, err);
    for (size_t done = 0; r == 0 && done < CLUSTER; done += part ? CLUSTER / 2 : CLUSTER)
        r = image_read(image, done, buffer + done, part ? CLUSTER / 2 : CLUSTER, err);
    maker_free(&m);
    return r;
}

/* NULL for `message`: reads as `plain`. */
static void expect(const char *name, bool zstd, const uint8_t *stream, size_t length,
                   uint64_t sectors, const uint8_t *plain, const char *message)
{
    for (unsigned part = 0; part < 2; part++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        uint8_t buffer[CLUSTER];
        int r = read_stream(zstd, stream, length, sectors, part != 0, buffer, &err);

        if (message == NULL) {
            if (r < 0)
                fail_msg("%s: %s", name, error_message(&err));
            assert_memory_equal(buffer, plain, CLUSTER);
        } else if (r != -EIO || strstr(error_message(&err), message) == NULL ||
                   strstr(error_message(&err), "compressed cluster at offset 0x") == NULL) {
            fail_msg("%s: %d (%s), expected %s", name, r, r < 0 ? error_message(&err) : "read",
                     message);
        }
    }
}

static void test_zlib_streams(void **state)
{
    (void)state;
    uint8_t *plain = make_plain(2 * CLUSTER, 5), stream[4 * CLUSTER];
    size_t n;

    n = deflate_raw(plain, CLUSTER, stream, sizeof(stream));
    expect("whole", false, stream, n, (n + 511) / 512, plain, NULL);
    memset(stream + n, 0xff, 600);
    expect("something behind it", false, stream, n + 600, (n + 600) / 512, plain, NULL);
    expect("too few sectors", false, stream, n, n / 1024, plain, "zlib: the data end after");
    expect("the file ends too early", false, stream, n / 2, (n + 511) / 512, plain,
           "zlib: the data end after");
    stream[0] = 7;
    expect("bad block", false, stream, n, (n + 511) / 512, plain, "zlib: invalid block type");
    n = deflate_raw(plain, CLUSTER - 1, stream, sizeof(stream));
    expect("too short", false, stream, n, (n + 511) / 512, plain,
           "zlib: the stream ends after 4095 of 4096 bytes");
    n = deflate_raw(plain, 2 * CLUSTER, stream, sizeof(stream));
    expect("longer than a cluster", false, stream, n, (n + 511) / 512, plain, NULL);

    /* What QEMU takes as well: the cluster is full, and the stream's end is missing. */
    n = deflate_unended(plain, CLUSTER, stream, sizeof(stream));
    assert_true(n % 512 != 0);
    expect("no end", false, stream, n, (n + 511) / 512, plain, NULL);
    n = deflate_unended(plain, CLUSTER - 1, stream, sizeof(stream));
    expect("neither end nor last byte", false, stream, n, (n + 511) / 512, plain,
           "zlib: the data end after 4095 of 4096 bytes");
    free(plain);
}

/* QEMU inflates with a window of 4 KiB, but at once, so that it takes matches from farther back. */
static void test_far_matches(void **state)
{
    (void)state;
    enum { FAR_BITS = 16, SIZE = 1 << FAR_BITS, PERIOD = 30000 };
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = NULL;
    uint8_t *plain = malloc(SIZE), *stream = malloc(2 * SIZE), *buffer = malloc(SIZE);
    uint64_t random = 3;
    struct maker m;

    for (size_t i = 0; i < SIZE; i++)
        plain[i] = i < PERIOD ? (uint8_t)random_next(&random) : plain[i - PERIOD];
    size_t n = deflate_with(15, Z_FINISH, plain, SIZE, stream, 2 * SIZE);
    assert_true(n < PERIOD + 4096);
    maker_start(&m, 3, FAR_BITS, false, SIZE);
    uint64_t entry = maker_l2_entry(&m, 0);
    uint64_t at = maker_allocate(&m, n);
    memcpy(m.bytes + at, stream, n);
    put64(&m, entry, descriptor(FAR_BITS, at, n));
    maker_write(&m, "a");
    assert_int_equal(image_open("a", NULL, &image, &err), 0);
    assert_int_equal(image_read(image, 0, buffer, SIZE, &err), 0);
    assert_memory_equal(buffer, plain, SIZE);
    maker_free(&m);
    free(plain);
    free(stream);
    free(buffer);
}

static void test_zstd_streams(void **state)
{
    (void)state;
    uint8_t *plain = make_plain(2 * CLUSTER, 6), stream[4 * CLUSTER];
    size_t room = sizeof(stream), n;

    n = ZSTD_compress(stream, room, plain, CLUSTER, 1);
    expect("whole", true, stream, n, (n + 511) / 512, plain, NULL);
    memset(stream + n, 0xff, 600);
    expect("something behind it", true, stream, n + 600, (n + 600) / 512, plain, NULL);
    expect("too few sectors", true, stream, n, n / 1024, plain, "zstd: Src size is incorrect");
    stream[n / 2] ^= 0x55;
    stream[0] ^= 1;
    expect("bad magic", true, stream, n, (n + 511) / 512, plain, "zstd: Unknown frame descriptor");

    n = ZSTD_compress(stream, room, plain, 1000, 1);
    n += ZSTD_compress(stream + n, room - n, plain + 1000, CLUSTER - 1000, 1);
    expect("two frames", true, stream, n, (n + 511) / 512, plain, NULL);
    n = ZSTD_compress(stream, room, plain, CLUSTER - 1, 1);
    expect("too short", true, stream, n, (n + 511) / 512, plain, "after 4095 of 4096 bytes");
    n = ZSTD_compress(stream, room, plain, CLUSTER + 1, 1);
    expect("longer than a cluster", true, stream, n, (n + 511) / 512, plain,
           "zstd: Destination buffer is too small");

    /* A skippable frame, and then one that asks for a window of 2^31 bytes. */
    static const uint8_t skippable[] = {0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4};
    static const uint8_t huge_window[] = {0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3};
    memcpy(stream, skippable, sizeof(skippable));
    n = sizeof(skippable);
    memcpy(stream + n, huge_window, sizeof(huge_window));
    n += sizeof(huge_window);
    uint32_t block = 1 | 0 << 1 | CLUSTER << 3; /* last, raw */
    stream[n++] = (uint8_t)block;
    stream[n++] = (uint8_t)(block >> 8);
    stream[n++] = (uint8_t)(block >> 16);
    memcpy(stream + n, plain, CLUSTER);
    n += CLUSTER;
    expect("skippable frame, huge window", true, stream, n, (n + 511) / 512, plain, NULL);
    free(plain);
}

static void test_descriptors(void **state)
{
    (void)state;
    static const struct {
        unsigned bits;
        uint64_t entry;
        const char *message;
    } cases[] = {
        {9, (uint64_t)1 << 62 | (uint64_t)1 << 56, "uses reserved bits"},
        {12, (uint64_t)1 << 62 | (uint64_t)1 << 57, "uses reserved bits"},
        {13, (uint64_t)1 << 62 | (uint64_t)1 << 56, "uses reserved bits"},
        {14, (uint64_t)1 << 62 | (uint64_t)1 << 55, "beyond the end of the file"},
        {9, (uint64_t)1 << 62 | 1 << 20, "offset 0x100000 lies beyond the end of the file"},
        {16, (uint64_t)1 << 62 | 1 << 20, "offset 0x100000 lies beyond the end of the file"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_image_ struct image *image = NULL;
        struct extent extent;
        struct maker m;

        maker_start(&m, 3, cases[i].bits, false, 1 << 16);
        put64(&m, maker_l2_entry(&m, 512), cases[i].entry);
        maker_write(&m, "a");
        assert_int_equal(image_open("a", NULL, &image, &err), 0);
        assert_int_equal(image_map(image, 512, 512, 0, &extent, &err), -EIO);
        if (strstr(error_message(&err), cases[i].message) == NULL)
            fail_msg("case %zu: %s", i, error_message(&err));
        maker_free(&m);
    }
}

/* --- The cache --- */

/* Two layers with other clusters at the same place of their files. */
static void test_layers(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = NULL;
    uint8_t *plain = make_plain(2 * CLUSTER, 11), part[100];

    for (unsigned i = 0; i < 2; i++) {
        /* A stored block, so that both have the same length. */
        uint8_t stream[5 + CLUSTER] = {1, CLUSTER & 0xff, CLUSTER >> 8, (uint8_t) ~(CLUSTER & 0xff),
                                       (uint8_t) ~(CLUSTER >> 8)};
        struct maker m;

        memcpy(stream + 5, plain + i * CLUSTER, CLUSTER);
        maker_start(&m, 3, BITS, false, 2 * CLUSTER);
        if (i == 0) {
            put64(&m, 8, 1000);
            put32(&m, 16, 4);
            memcpy(m.bytes + 1000, "base", 4);
        }
        uint64_t entry = maker_l2_entry(&m, i * CLUSTER);
        uint64_t at = maker_allocate(&m, sizeof(stream));
        memcpy(m.bytes + at, stream, sizeof(stream));
        put64(&m, entry, descriptor(BITS, at, sizeof(stream)));
        maker_write(&m, i == 0 ? "a" : "base");
        maker_free(&m);
    }
    assert_int_equal(image_open("a", NULL, &image, &err), 0);
    for (unsigned i = 0; i < 4; i++) {
        size_t offset = i % 2 * CLUSTER + i * 100;
        assert_int_equal(image_read(image, offset, part, sizeof(part), &err), 0);
        assert_memory_equal(part, plain + offset, sizeof(part));
    }
    unlink("base");
    free(plain);
}

/* --- Many readers at once --- */

enum { THREADS = 8, MANY_CLUSTERS = 300 };

struct readers {
    struct image *image;
    const uint8_t *plain;
    _Atomic unsigned errors, wrong;
};

static void *read_parts(void *arg)
{
    struct readers *readers = arg;
    uint64_t random = (uint64_t)(uintptr_t)&random | 1;
    uint8_t buffer[CLUSTER];

    for (unsigned i = 0; i < 4000; i++) {
        uint64_t cluster = random_next(&random) % MANY_CLUSTERS;
        size_t first = (size_t)random_next(&random) % CLUSTER;
        size_t length = 1 + (size_t)random_next(&random) % (CLUSTER - first);
        if (i % 8 == 0) {
            first = 0;
            length = CLUSTER;
        }
        if (image_read(readers->image, cluster * CLUSTER + first, buffer, length, NULL) < 0) {
            if (cluster % 10 != 9)
                readers->errors++;
        } else if (cluster % 10 == 9 ||
                   memcmp(buffer, readers->plain + cluster * CLUSTER + first, length) != 0) {
            readers->wrong++;
        }
    }
    return NULL;
}

/* Every tenth cluster is broken; all others must be right for all. */
static void test_threads(void **state)
{
    (void)state;
    uint8_t *plain = make_plain(MANY_CLUSTERS * CLUSTER, 9), stream[2 * CLUSTER];
    struct readers readers = {.plain = plain};
    _cleanup_error_ struct error err = ERROR_INIT;
    pthread_t threads[THREADS];
    struct maker m;

    maker_start(&m, 3, BITS, false, MANY_CLUSTERS * CLUSTER);
    maker_l2_entry(&m, 0);
    for (unsigned i = 0; i < MANY_CLUSTERS; i++) {
        size_t n = deflate_raw(plain + i * CLUSTER, CLUSTER, stream, sizeof(stream));
        uint64_t at = maker_allocate(&m, n);
        memcpy(m.bytes + at, stream, n);
        if (i % 10 == 9)
            m.bytes[at] = 7;
        put64(&m, maker_l2_entry(&m, i * CLUSTER), descriptor(BITS, at, n));
    }
    maker_write(&m, "a");
    assert_int_equal(image_open("a", NULL, &readers.image, &err), 0);
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_parts, &readers), 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(readers.errors, 0);
    assert_int_equal(readers.wrong, 0);
    image_close(readers.image);
    maker_free(&m);
    free(plain);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cluster_sizes), cmocka_unit_test(test_zlib_streams),
        cmocka_unit_test(test_far_matches),   cmocka_unit_test(test_zstd_streams),
        cmocka_unit_test(test_descriptors),   cmocka_unit_test(test_layers),
        cmocka_unit_test(test_threads),
    };

    return cmocka_run_group_tests(tests, maker_enter, maker_leave);
}
