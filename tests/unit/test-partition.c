/* SPDX-License-Identifier: MIT */
/*
 * Partition tables that no tool makes, built here byte by byte; and how a partition is chosen.
 * tests/functional/partitions.sh has the tables that tools make.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "common/bytes.h"
#include "common/log.h"
#include "image/partition.h"

#define DISK_SIZE (UINT64_C(8) << 20)
#define SECTORS (DISK_SIZE / 512)

/* --- Building disks --- */

static void put_mbr_entry(uint8_t *sector, unsigned index, uint8_t type, uint32_t start,
                          uint32_t count)
{
    uint8_t *p = sector + 446 + index * 16;

    p[4] = type;
    put_le32(p + 8, start);
    put_le32(p + 12, count);
    sector[510] = 0x55;
    sector[511] = 0xaa;
}

/* What a GPT header says, and one of its entries. */
struct gpt_case {
    uint32_t header_size, entry_count, entry_size;
    uint64_t my_lba, first_usable, last_usable, entries_lba;
    uint64_t first, last; /* of partition 2 */
    unsigned used;        /* that many partitions from 3 on, each a sector */
};

static const struct gpt_case good_gpt = {
    .header_size = 92,
    .entry_count = 128,
    .entry_size = 128,
    .my_lba = 1,
    .first_usable = 34,
    .last_usable = SECTORS - 34,
    .entries_lba = 2,
    .first = 2048,
    .last = 4095,
};

static void put_entry(uint8_t *entry, uint64_t first, uint64_t last)
{
    memset(entry, 0x11, 32); /* type and UUID */
    put_le64(entry + 32, first);
    put_le64(entry + 40, last);
    entry[56] = 'd';
}

static void build_gpt(uint8_t *disk, const struct gpt_case *gpt)
{
    uint8_t *header = disk + 512, *entries = disk + 1024;
    size_t room = 1 << 20; /* more than what is there to be hashed here */

    put_mbr_entry(disk, 0, 0xee, 1, SECTORS - 1);
    put_entry(entries + 128, gpt->first, gpt->last);
    for (unsigned i = 0; i < gpt->used; i++)
        put_entry(entries + 256 + i * 128, 3000 + i, 3000 + i);
    memcpy(header, "EFI PART", 8);
    put_le32(header + 8, 0x10000);
    put_le32(header + 12, gpt->header_size);
    put_le64(header + 24, gpt->my_lba);
    put_le64(header + 32, SECTORS - 1);
    put_le64(header + 40, gpt->first_usable);
    put_le64(header + 48, gpt->last_usable);
    memset(header + 56, 0x22, 16);
    put_le64(header + 72, gpt->entries_lba);
    put_le32(header + 80, gpt->entry_count);
    put_le32(header + 84, gpt->entry_size);
    uint64_t size = (uint64_t)gpt->entry_count * gpt->entry_size;
    put_le32(header + 88, (uint32_t)crc32(0, entries, (uInt)(size < room ? size : room)));
    put_le32(header + 16, 0);
    put_le32(header + 16,
             (uint32_t)crc32(0, header, gpt->header_size < 4096 ? gpt->header_size : 4096));
}

/* Opens a disk of these bytes as a raw image and reads its table. */
static int read_disk(const uint8_t *disk, size_t size, struct partition_table **ret,
                     struct error *err)
{
    _cleanup_close_ int fd = memfd_create("disk", MFD_CLOEXEC);
    _cleanup_image_ struct image *image = NULL;
    const struct image_options options = {.format = "raw"};
    char path[64];

    assert_true(fd >= 0);
    assert_int_equal(write(fd, disk, size), (ssize_t)size);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    assert_int_equal(image_open(path, &options, &image, err), 0);
    return partition_table_read(image, ret, err);
}

/* `expected` is part of the message, or NULL: no error. */
static void check_disk(const char *name, const uint8_t *disk, size_t size, const char *expected,
                       struct partition_table **ret)
{
    _cleanup_(partition_table_free_cleanup) struct partition_table *table = NULL;
    _cleanup_error_ struct error err = ERROR_INIT;

    int r = read_disk(disk, size, &table, &err);
    if (expected == NULL && r < 0)
        fail_msg("%s: %s", name, error_message(&err));
    if (expected != NULL && r == 0)
        fail_msg("%s: taken, with %zu partitions", name, table->count);
    if (expected != NULL && strstr(error_message(&err), expected) == NULL)
        fail_msg("%s: '%s' instead of '%s'", name, error_message(&err), expected);
    if (ret != NULL)
        *ret = TAKE_PTR(table);
}

/* --- GPT --- */

static void test_gpt(void **state)
{
    (void)state;
    _cleanup_(partition_table_free_cleanup) struct partition_table *table = NULL;
    _cleanup_free_ uint8_t *disk = calloc(1, DISK_SIZE);

    build_gpt(disk, &good_gpt);
    check_disk("good", disk, DISK_SIZE, NULL, &table);
    assert_string_equal(table->type, "gpt");
    assert_int_equal(table->sector_size, 512);
    assert_int_equal(table->count, 1);
    assert_int_equal(table->partitions[0].number, 2);
    assert_int_equal(table->partitions[0].start, 2048 * 512);
    assert_int_equal(table->partitions[0].size, 2048 * 512);
    assert_string_equal(table->partitions[0].label, "d");
    assert_string_equal(table->partitions[0].type, "11111111-1111-1111-1111-111111111111");
    assert_null(table->partitions[0].fs_type);
    assert_string_equal(table->uuid, "22222222-2222-2222-2222-222222222222");
}

static void test_gpt_faults(void **state)
{
    (void)state;
#define CASE(expected, ...)                                                                   \
    {                                                                                         \
#__VA_ARGS__, expected,                                                               \
        {                                                                                     \
            .header_size = 92, .entry_count = 128, .entry_size = 128, .my_lba = 1,            \
            .first_usable = 34, .last_usable = SECTORS - 34, .entries_lba = 2, .first = 2048, \
            .last = 4095, __VA_ARGS__                                                         \
        }                                                                                     \
    }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init"
#ifdef __clang__
#pragma clang diagnostic ignored "-Winitializer-overrides"
#endif
    static const struct {
        const char *name, *expected;
        struct gpt_case gpt;
    } cases[] = {
        CASE("wrong header size", .header_size = 91),
        CASE("wrong header size", .header_size = 513),
        CASE("wrong header size", .header_size = UINT32_MAX),
        CASE("wrong sector number", .my_lba = 2),
        CASE("size of an entry is not 128", .entry_size = 256),
        CASE("number of entries is 0 or too large", .entry_count = 0),
        CASE("number of entries is 0 or too large", .entry_count = 32769),
        CASE("number of entries is 0 or too large", .entry_count = UINT32_MAX),
        CASE("entries are not within the disk", .entries_lba = SECTORS - 31),
        CASE("entries are not within the disk", .entries_lba = UINT64_MAX),
        CASE("entries are not within the disk", .entries_lba = UINT64_C(1) << 55),
        CASE("wrong checksum of the entries", .entries_lba = 3),
        CASE("last usable sector is before the first", .first_usable = 100, .last_usable = 99),
        CASE("the header is among the usable sectors", .first_usable = 0),
        CASE("last usable sector is outside of the disk", .last_usable = SECTORS),
        CASE("partition 2 (bytes 1048576 to 8389120) does not lie within the disk of 8388608 bytes",
             .last = SECTORS, .last_usable = SECTORS),
        CASE("partition 2 (bytes 1048576 to 8389120) does not lie within the disk of 8388608 bytes",
             .last = SECTORS),
        CASE("partition 2 (bytes 1048576 to 18446744073709551615) does not lie within the disk",
             .last = UINT64_MAX),
        CASE("partition 2 (bytes 18446744073709551615 to 18446744073709551615) does not lie",
             .first = UINT64_MAX, .last = UINT64_MAX),
        CASE("partition 2 ends (sector 2047) before it starts (sector 2048)", .last = 2047),
        CASE("partition 2 (sectors 33 to 4095) does not lie within the sectors that the GPT has",
             .first = 33),
        CASE("does not lie within the sectors that the GPT has for partitions (34 to 4094)",
             .last_usable = 4094),
        CASE("more than 256 partitions", .entry_count = 400, .first_usable = 200, .used = 300),
    };
#pragma GCC diagnostic pop

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_free_ uint8_t *disk = calloc(1, DISK_SIZE);

        build_gpt(disk, &cases[i].gpt);
        check_disk(cases[i].name, disk, DISK_SIZE, cases[i].expected, NULL);
    }
}

/* A type byte of 0xee alone is no GPT: file systems have boot code there. */
static void test_no_gpt(void **state)
{
    (void)state;
    _cleanup_(partition_table_free_cleanup) struct partition_table *table = NULL;
    _cleanup_free_ uint8_t *disk = calloc(1, DISK_SIZE);

    put_mbr_entry(disk, 1, 0xee, 77, 0);
    check_disk("0xee", disk, DISK_SIZE, NULL, &table);
    assert_null(table->type);
    put_mbr_entry(disk, 1, 0xee, 1, 100);
    check_disk("announced", disk, DISK_SIZE, "the GPT is damaged", NULL);
}

static void test_small_disks(void **state)
{
    (void)state;
    uint8_t disk[4096] = {0};

    put_mbr_entry(disk, 0, 0xee, 1, 100);
    check_disk("1 sector", disk, 512, NULL, NULL);
    for (size_t size = 1024; size <= sizeof(disk); size += 512)
        check_disk("few sectors", disk, size, "the GPT is damaged", NULL);
    put_mbr_entry(disk, 0, 0x83, 1, 100);
    check_disk("few sectors", disk, 4096, "partition 1 (bytes 512 to 51712)", NULL);
    check_disk("1 sector", disk, 512, NULL, NULL);
}

/* --- MBR --- */

/* A chain of `count` tables of logical partitions, one sector each, a sector apart. */
static void build_chain(uint8_t *disk, unsigned count)
{
    put_mbr_entry(disk, 0, 0x0f, 100, 10000);
    for (unsigned i = 0; i < count; i++) {
        uint8_t *sector = disk + (100 + 2 * i) * 512;

        put_mbr_entry(sector, 0, 0x83, 1, 1);
        if (i + 1 < count)
            put_mbr_entry(sector, 1, 0x05, 2 * (i + 1), 2);
    }
}

static void test_logical(void **state)
{
    (void)state;
    _cleanup_(partition_table_free_cleanup) struct partition_table *table = NULL;
    _cleanup_free_ uint8_t *disk = calloc(1, DISK_SIZE);

    build_chain(disk, 200);
    check_disk("200", disk, DISK_SIZE, NULL, &table);
    assert_int_equal(table->count, 201);
    assert_true(table->partitions[0].container);
    for (unsigned i = 1; i < 201; i++) {
        assert_int_equal(table->partitions[i].number, 4 + i);
        assert_int_equal(table->partitions[i].start, (101 + 2 * (i - 1)) * 512);
        assert_false(table->partitions[i].container);
    }
    build_chain(disk, 257);
    check_disk("257", disk, DISK_SIZE, "more than 256 tables of logical partitions", NULL);
    /* The last points back to the first, and to itself. */
    build_chain(disk, 200);
    put_mbr_entry(disk + (100 + 2 * 199) * 512, 1, 0x05, 0, 2);
    check_disk("loop", disk, DISK_SIZE, "form a loop at byte 51200", NULL);
    put_mbr_entry(disk + (100 + 2 * 199) * 512, 1, 0x05, 2 * 199, 2);
    check_disk("loop", disk, DISK_SIZE, "form a loop at byte 254976", NULL);
    put_mbr_entry(disk + (100 + 2 * 199) * 512, 1, 0x05, UINT32_MAX, 2);
    check_disk("outside", disk, DISK_SIZE, "the table of logical partition 205, at byte", NULL);
}

/* --- Choosing --- */

#define TEXT(s) ((char *)(uintptr_t)(s))

static void test_find(void **state)
{
    (void)state;
    static struct partition partitions[] = {
        {.number = 1,
         .size = 100,
         .label = TEXT("efi"),
         .uuid = TEXT("ab-01"),
         .fs_type = TEXT("vfat")},
        {.number = 2, .size = 700, .label = TEXT("both"), .fs_type = TEXT("LVM2_member")},
        {.number = 5,
         .size = 300,
         .label = TEXT("root"),
         .fs_type = TEXT("xfs"),
         .fs_label = TEXT("both")},
        {.number = 6,
         .size = 300,
         .label = TEXT("1"),
         .fs_type = TEXT("ext4"),
         .fs_uuid = TEXT("AB-CD")},
        {.number = 7,
         .size = 200,
         .label = TEXT("disk"),
         .fs_type = TEXT("btrfs"),
         .fs_label = TEXT("9")},
    };
    static const struct partition_table table = {
        .type = TEXT("gpt"), .count = 5, .partitions = partitions, .disk = {.size = 10000}};
    static const struct {
        const char *spec;
        int result;
        unsigned number;
    } cases[] = {
        {NULL, 0, 5},
        {"disk", 0, 0},
        {"1", 0, 1},
        {"7", 0, 7},
        {"007", 0, 7},
        {"9", 0, 7},
        {"efi", 0, 1},
        {"AB-01", 0, 1},
        {"root", 0, 5},
        {"ab-cd", 0, 6},
        {"both", -ENOTUNIQ, 0},
        {"3", -ENOENT, 0},
        {"0", -ENOENT, 0},
        {"", -ENOENT, 0},
        {"EFI", -ENOENT, 0},
        {"-1", -ENOENT, 0},
        {"18446744073709551617", -ENOENT, 0},
        {"1 ", -ENOENT, 0},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        const struct partition *found = NULL;

        int r = partition_find(&table, cases[i].spec, &found, &err);
        if (r != cases[i].result || (r == 0 && found->number != cases[i].number))
            fail_msg("'%s': %d, %s", cases[i].spec, r, r < 0 ? error_message(&err) : "other");
    }
}

static void test_find_nothing(void **state)
{
    (void)state;
    static struct partition partition = {
        .number = 3, .size = 1 << 20, .fs_type = TEXT("swap"), .label = TEXT("x")};
    static const struct partition_table none = {.disk = {.size = 512, .fs_label = TEXT("me")}};
    static const struct partition_table one = {
        .type = TEXT("dos"), .count = 1, .partitions = &partition};
    _cleanup_error_ struct error err = ERROR_INIT;
    const struct partition *found = NULL;

    assert_int_equal(partition_find(&none, NULL, &found, &err), 0);
    assert_ptr_equal(found, &none.disk);
    assert_int_equal(partition_find(&none, "me", &found, &err), 0);
    assert_ptr_equal(found, &none.disk);
    assert_int_equal(partition_find(&one, NULL, &found, &err), -ENOENT);
    assert_string_equal(error_message(&err), "no partition holds a Linux file system (choose one "
                                             "with -p): there are 3 (swap, 1.0 MiB)");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt),          cmocka_unit_test(test_gpt_faults),
        cmocka_unit_test(test_no_gpt),       cmocka_unit_test(test_small_disks),
        cmocka_unit_test(test_logical),      cmocka_unit_test(test_find),
        cmocka_unit_test(test_find_nothing),
    };

    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
