/* SPDX-License-Identifier: MIT */
/* The reset of change tracking, of which every state is judged that a crash can leave behind. */
#include "bitmap-maker.h"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

/* --- Writes, as the reset makes them --- */

enum { WRITES_MAX = 64 };

static struct {
    bool on;
    unsigned count, syncs;
    bool sync_fails;
    unsigned locked; /* syncs at which nobody else could open the file */
    struct {
        unsigned syncs; /* that came before */
        uint64_t offset;
        size_t length;
        uint8_t *bytes;
    } writes[WRITES_MAX];
} recorded;

/* In the place of libc's. */
__attribute__((visibility("default"))) ssize_t pwrite64(int fd, const void *bytes, size_t length,
                                                        off64_t offset)
{
    if (recorded.on) {
        assert_true(recorded.count < WRITES_MAX);
        recorded.writes[recorded.count].syncs = recorded.syncs;
        recorded.writes[recorded.count].offset = (uint64_t)offset;
        recorded.writes[recorded.count].length = length;
        recorded.writes[recorded.count].bytes = memcpy(malloc(length), bytes, length);
        recorded.count++;
    }
    return syscall(SYS_pwrite64, fd, bytes, length, offset);
}

/* Who is kept from opening the image need not wait. */
__attribute__((visibility("default"))) int nanosleep(const struct timespec *wanted,
                                                     struct timespec *left)
{
    return recorded.on ? 0 : (int)syscall(SYS_nanosleep, wanted, left);
}

__attribute__((visibility("default"))) int fdatasync(int fd)
{
    struct image *other = NULL;

    (void)fd;
    recorded.syncs++;
    if (image_open("a", NULL, &other, NULL) == -EBUSY)
        recorded.locked++;
    else
        image_close(other);
    if (recorded.sync_fails) {
        errno = EIO;
        return -1;
    }
    return 0;
}

static void record(void)
{
    for (unsigned i = 0; i < recorded.count; i++)
        free(recorded.writes[i].bytes);
    memset(&recorded, 0, sizeof(recorded));
    recorded.on = true;
}

/* --- Reset --- */

static bool has_bit(const struct image_bitmap_bits *bits, uint64_t bit)
{
    uint64_t start, end;

    return image_bitmap_next(bits, bit * GRANULARITY, &start, &end) && start == bit * GRANULARITY;
}

/* What may be believed of the image file `a`: under the old generation all bits, under the new one
 * all canaries. Returns whether it is the new one. */
static bool judge(const bool *model)
{
    _cleanup_image_ struct image *image = NULL;
    _cleanup_(image_tracking_free_cleanup) struct image_tracking *tracking = NULL;

    assert_int_equal(image_open("a", NULL, &image, NULL), 0);
    if (image_tracking_load(image, &tracking, NULL) < 0) {
        /* The old generation is not turned down: nothing was taken from it. */
        _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *bits = NULL;
        uint8_t bytes[IMAGE_BITMAP_GENERATION_SIZE];
        assert_int_equal(image_bitmap_load(image, IMAGE_BITMAP_GENERATION_NAME, &bits, NULL), 0);
        image_bitmap_generation(bits, bytes);
        assert_memory_not_equal(bytes, old_generation, sizeof(bytes));
        return false;
    }
    const uint8_t *bytes = image_tracking_generation(tracking);
    if (memcmp(bytes, old_generation, sizeof(old_generation)) == 0)
        for (uint64_t bit = 0; bit < GRANULES; bit++)
            assert_true(!model[bit] || has_bit(image_tracking_bits(tracking), bit));
    return memcmp(bytes, new_generation, sizeof(new_generation)) == 0;
}

static void reset(const struct made *i, int code, const char *message)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = open_made(i);

    record();
    int r = image_tracking_reset(image, new_generation, &err);
    recorded.on = false;
    if (r != -code || (code != 0 && strstr(error_message(&err), message) == NULL))
        fail_msg("%d, %s; expected %d, %s", r, error_message(&err), -code, message);
    /* The locks are a reader's again. */
    struct image *other = NULL;
    assert_int_equal(image_open("a", NULL, &other, NULL), 0);
    image_close(other);
}

static void test_reset(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 521288629546311;
    struct made i;

    (void)state;
    make_tracked(&i, model, &random);
    reset(&i, 0, NULL);
    assert_int_equal(recorded.syncs, 1);
    assert_int_equal(recorded.locked, 1);
    assert_true(judge(model));

    _cleanup_image_ struct image *image = NULL;
    _cleanup_(image_tracking_free_cleanup) struct image_tracking *tracking = NULL;
    assert_int_equal(image_open("a", NULL, &image, NULL), 0);
    assert_int_equal(image_tracking_load(image, &tracking, NULL), 0);
    assert_true(image_tracking_clean(tracking));

    /* Nothing but the bitmaps' clusters changed. */
    uint8_t *after = malloc(i.m.size);
    int fd = open("a", O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, after, i.m.size, 0), i.m.size);
    close(fd);
    for (unsigned e = 0; e < ENTRIES; e++) {
        memset(i.m.bytes + i.cluster[BITS][e], 0, CLUSTER);
        memset(after + i.cluster[BITS][e], 0, CLUSTER);
        memset(i.m.bytes + i.cluster[WITNESS][e], 0, CLUSTER);
        memset(after + i.cluster[WITNESS][e], 0, CLUSTER);
    }
    memcpy(i.m.bytes + i.cluster[1][0], new_generation, sizeof(new_generation));
    assert_memory_equal(after, i.m.bytes, i.m.size);
    free(after);
    maker_free(&i.m);
}

/*
 * A crash: all writes before some sync are there; of those behind it, each 16 bytes are or are not.
 * (Disks write sectors whole; nothing here depends on it but for the generation.)
 */
static void test_crashes(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 362436069123456;
    unsigned seen_new = 0, seen_others = 0;

    (void)state;
    for (unsigned round = 0; round < 600; round++) {
        struct made i;
        make_tracked(&i, model, &random);
        reset(&i, 0, NULL);
        unsigned synced = (unsigned)(random_next(&random) % (recorded.syncs + 1));
        for (unsigned n = 0; n < recorded.count; n++) {
            if (recorded.writes[n].syncs > synced)
                continue;
            for (size_t at = 0; at < recorded.writes[n].length; at += 16)
                if (recorded.writes[n].syncs < synced || random_next(&random) % 2 == 0)
                    memcpy(i.m.bytes + recorded.writes[n].offset + at,
                           recorded.writes[n].bytes + at,
                           min_u64(16, recorded.writes[n].length - at));
        }
        maker_write(&i.m, "a");
        if (judge(model))
            seen_new++;
        else
            seen_others++;
        maker_free(&i.m);
    }
    assert_true(seen_new > 100 && seen_others > 100);
}

static void test_sync_error(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 7777777;
    struct made i;

    (void)state;
    make_tracked(&i, model, &random);
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = open_made(&i);
    record();
    recorded.sync_fails = true;
    assert_int_equal(image_tracking_reset(image, new_generation, &err), -EIO);
    recorded.on = recorded.sync_fails = false;
    assert_non_null(strstr(error_message(&err), "a: cannot sync"));
    assert_int_equal(recorded.syncs, 1);
    /* Nothing was cleared. */
    _cleanup_(image_tracking_free_cleanup) struct image_tracking *tracking = NULL;
    assert_int_equal(image_tracking_load(image, &tracking, NULL), 0);
    for (uint64_t bit = 0; bit < GRANULES; bit++)
        assert_true(!model[bit] || has_bit(image_tracking_bits(tracking), bit));
    maker_free(&i.m);
}

/* What is refused must not have been written to. */
static void refused_reset(struct made *i, int code, const char *message)
{
    reset(i, code, message);
    assert_int_equal(recorded.count, 0);
    maker_free(&i->m);
}

static void test_reset_refusals(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 1234567;
    struct made i;
    static const struct {
        unsigned which, entry;
        uint64_t value;
        int code;
        const char *message;
    } cases[] = {
        {0, 0, 0, ENOTSUP, "bitmap 'qverity' has no clusters of its own"},
        {0, 1, 0, ENOTSUP, "bitmap 'qverity' has no clusters of its own"},
        {0, 1, 1, ENOTSUP, "bitmap 'qverity' has no clusters of its own"},
        {2, 0, 0, ENOTSUP, "bitmap 'qverity-witness' has no clusters of its own"},
        {2, 2, 1, ENOTSUP, "bitmap 'qverity-witness' has no clusters of its own"},
        {2, 2, 0x400, EINVAL, "the bitmap cluster at offset 0x400 overlaps the L1 table"},
        {1, 0, 0, ENOTSUP, "bitmap 'qverity-generation' has no clusters of its own"},
        {1, 0, 1, ENOTSUP, "bitmap 'qverity-generation' has no clusters of its own"},
        {1, 2, 0, ESTALE, "the disk was resized"},
        {0, 0, 0x200, EINVAL, "the bitmap cluster at offset 0x200 overlaps the refcount table"},
        {0, 0, 0x400, EINVAL, "the bitmap cluster at offset 0x400 overlaps the L1 table"},
    };

    (void)state;
    for (size_t n = 0; n < sizeof(cases) / sizeof(cases[0]); n++) {
        make_tracked(&i, model, &random);
        put64(&i.m, i.table[cases[n].which] + cases[n].entry * 8, cases[n].value);
        refused_reset(&i, cases[n].code, cases[n].message);
    }
    make_tracked(&i, model, &random);
    put64(&i.m, i.table[0] + 8, i.directory);
    refused_reset(&i, EINVAL, "overlaps the bitmap directory");
    make_tracked(&i, model, &random);
    put64(&i.m, i.table[0], i.table[1]);
    refused_reset(&i, EINVAL, "overlaps a bitmap table");
    make_tracked(&i, model, &random);
    put64(&i.m, i.table[0], i.table[2]);
    refused_reset(&i, EINVAL, "overlaps a bitmap table");
    make_tracked(&i, model, &random);
    put64(&i.m, i.table[0], i.cluster[2][1]);
    refused_reset(&i, EINVAL, "two bitmap table entries have the cluster");
    make_tracked(&i, model, &random);
    put64(&i.m, i.table[0], i.cluster[1][0]);
    refused_reset(&i, EINVAL, "two bitmap table entries have the cluster");
    make_tracked(&i, model, &random);
    put32(&i.m, i.entry[0] + 12, 3);
    refused_reset(&i, ESTALE, "marked in use");
}

static void test_locks(void **state)
{
    static bool model[GRANULES];
    uint64_t random = 99;
    struct made i;

    (void)state;
    make_tracked(&i, model, &random);
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = open_made(&i), *reader = NULL;
    assert_int_equal(image_open("a", NULL, &reader, NULL), 0);
    record();
    assert_int_equal(image_tracking_reset(image, new_generation, &err), -EBUSY);
    assert_non_null(strstr(error_message(&err), "a: in use: another process reads it"));
    assert_int_equal(recorded.count, 0);
    image_close(TAKE_PTR(reader));
    assert_int_equal(image_tracking_reset(image, new_generation, NULL), 0);

    /* Another file of this name is not written to. */
    assert_int_equal(rename("a", "b"), 0);
    maker_write(&i.m, "a");
    assert_int_equal(image_tracking_reset(image, new_generation, &err), -ESTALE);
    assert_non_null(strstr(error_message(&err), "another file took its place"));
    assert_false(judge(model));
    recorded.on = false;
    maker_free(&i.m);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reset),      cmocka_unit_test(test_crashes),
        cmocka_unit_test(test_sync_error), cmocka_unit_test(test_reset_refusals),
        cmocka_unit_test(test_locks),
    };

    return cmocka_run_group_tests(tests, maker_enter, maker_leave);
}
