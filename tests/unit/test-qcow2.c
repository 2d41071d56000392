/* SPDX-License-Identifier: MIT */
/* Headers and tables made by hand: every refusal, with its message; and what must be accepted. */
#include "qcow2-maker.h"

#include "image/image.h"

#include <errno.h>
#include <sys/stat.h>

/* --- Headers --- */

enum { CLUSTER = 512, DISK = 1 << 20 }; /* with an L1 table of 32 entries, in cluster 2 */

/* `value` of `width` bytes at `offset`; width 0 ends. */
struct patch {
    uint64_t offset;
    unsigned width;
    uint64_t value;
};

static void apply(struct maker *m, const struct patch *patches, size_t count)
{
    for (size_t i = 0; i < count && patches[i].width != 0; i++) {
        for (unsigned b = 0; b < patches[i].width; b++) {
            assert_true(patches[i].offset + b < m->size);
            m->bytes[patches[i].offset + b] =
                (uint8_t)(patches[i].value >> 8 * (patches[i].width - 1 - b));
        }
    }
}

struct header_case {
    unsigned version;
    size_t file_size; /* 0: whole */
    int code;
    const char *message; /* a part of it */
    struct patch patches[7];
};

/* Text in patches of 8 bytes. */
#define TEXT(a, b, c, d, e, f, g, h)                                                         \
    ((uint64_t)(a) << 56 | (uint64_t)(b) << 48 | (uint64_t)(c) << 40 | (uint64_t)(d) << 32 | \
     (uint64_t)(e) << 24 | (uint64_t)(f) << 16 | (uint64_t)(g) << 8 | (uint64_t)(h))
#define EXTENSION(type, length) ((uint64_t)(type) << 32 | (length))

static const struct header_case header_cases[] = {
    /* Size and version. */
    {3, 6, EINVAL, "the file of 6 bytes ends within the image's header", {{0}}},
    {3, 60, EINVAL, "the file of 60 bytes ends within the qcow2 header", {{0}}},
    {3, 100, EINVAL, "the file of 100 bytes ends within the qcow2 header", {{0}}},
    {3, 0, ENOTSUP, "qcow2 version 4 is not supported", {{4, 4, 4}}},
    {3, 0, ENOTSUP, "qcow2 version 0 is not supported", {{4, 4, 0}}},
    /* Fixed fields. */
    {3, 0, EINVAL, "cluster_bits is 8, and must be 9 to 21", {{20, 4, 8}}},
    {3, 0, EINVAL, "cluster_bits is 22, and must be 9 to 21", {{20, 4, 22}}},
    {2, 0, EINVAL, "cluster_bits is 4294967295", {{20, 4, UINT32_MAX}}},
    {3, 0, EFBIG, "the disk size of 9223372036854775808 bytes", {{24, 8, (uint64_t)1 << 63}}},
    {3, 0, ENOTSUP, "LUKS encryption is not supported", {{32, 4, 2}}},
    {3, 0, ENOTSUP, "encryption method 3 is not known", {{32, 4, 3}}},
    {3, 0, EINVAL, "refcount_order is 7, and must be at most 6", {{96, 4, 7}}},
    {3, 0, EINVAL, "header_length is 96, and must be at least 104", {{100, 4, 96}}},
    {3, 0, EINVAL, "header_length is 108, which is no multiple of 8", {{100, 4, 108}}},
    {3, 0, EINVAL, "header_length is 520, more than a cluster of 512", {{100, 4, 520}}},
    {3, 0, EINVAL, "header_length is 4294967288", {{100, 4, 0xfffffff8}}},
    /* Tables. */
    {3,
     0,
     EFBIG,
     "active L1 table has 33554440 bytes, more than the limit of 33554432",
     {{36, 4, 4194305}}},
    {3,
     0,
     EINVAL,
     "active L1 table has 31 entries, and a disk of 1048576 bytes needs 32",
     {{36, 4, 31}}},
    {3,
     0,
     EINVAL,
     "active L1 table's offset 0x401 is not a multiple of the cluster size 512",
     {{40, 8, 0x401}}},
    {3,
     0,
     EINVAL,
     "active L1 table at offset 0x100000, 256 bytes, does not lie within the file",
     {{40, 8, 0x100000}}},
    {3, 0, EINVAL, "active L1 table at offset 0xfffffffffffffe00", {{40, 8, 0xfffffffffffffe00}}},
    {3, 0, EINVAL, "active L1 table's offset is 0, where the header is", {{40, 8, 0}}},
    {3,
     1100,
     EINVAL,
     "active L1 table at offset 0x400, 256 bytes, does not lie within the file "
     "of 1100 bytes",
     {{0}}},
    /* The disk has the same sectors, but QEMU wants an L1 entry for the odd byte, too. */
    {3,
     0,
     EINVAL,
     "active L1 table has 32 entries, and a disk of 1048577 bytes needs 33",
     {{24, 8, DISK + 1}}},
    {3, 0, EINVAL, "refcount table has no clusters", {{56, 4, 0}}},
    {3,
     0,
     EINVAL,
     "refcount table has 8389120 bytes, more than the limit of 8388608",
     {{56, 4, 16385}}},
    {3, 0, EINVAL, "refcount table's offset 0x210 is not a multiple", {{48, 8, 0x210}}},
    {3, 0, EINVAL, "refcount table at offset 0x2000, 512 bytes, does not lie", {{48, 8, 0x2000}}},
    {3,
     0,
     EINVAL,
     "L1 entry 0 (0x0100000000000400) has reserved bits set",
     {{0x400, 8, 0x0100000000000400}}},
    {3, 0, EINVAL, "L1 entry 31 (0x0000000000000401) has reserved bits set", {{0x4f8, 8, 0x401}}},
    {3,
     0,
     EINVAL,
     "L1 entry 1: the L2 table at offset 0x600000 does not lie within the file",
     {{0x408, 8, 0x600000}}},
    {3,
     0,
     EINVAL,
     "L1 entry 1: the L2 table at offset 0x600 does not lie within the file of",
     {{0x408, 8, 0x600}}},
    {3, 0, EINVAL, "bitmaps extension has 8 bytes, not 24", {{112, 4, 0x23852875}, {116, 4, 8}}},
    {3, 0, EINVAL, "header extension at offset 112 is cut off at offset 116", {{8, 8, 116}}},
    /* Features. */
    {3, 0, EINVAL, "marked corrupt", {{72, 8, 2}}},
    {3,
     0,
     ENOTSUP,
     "incompatible features that are not known here: bit 5, bit 63",
     {{72, 8, 0x8000000000000020}}},
    {3,
     0,
     ENOTSUP,
     "not known here: bit 5 (wings), bit 7",
     {{72, 8, 0xa0},
      {112, 8, EXTENSION(0x6803f857, 48)},
      {120, 8, TEXT(0, 5, 'w', 'i', 'n', 'g', 's', 0)}}},
    {3,
     0,
     ENOTSUP,
     "not known here: bit 5 (a?b)",
     {{72, 8, 0x20},
      {112, 8, EXTENSION(0x6803f857, 48)},
      {120, 8, TEXT(0, 5, 'a', 0x1b, 'b', 0, 0, 0)}}},
    {3, 0, EINVAL, "feature bit is set, and the compression type is not", {{72, 8, 8}}},
    {3, 0, EINVAL, "the compression type is 1, and its feature bit is not set", {{104, 1, 1}}},
    {3, 0, ENOTSUP, "compression type 2 is not known", {{72, 8, 8}, {104, 1, 2}}},
    {3,
     0,
     EINVAL,
     "feature bit is set, and the compression type is not",
     {{72, 8, 8}, {100, 4, 104}}},
    {3, 0, EINVAL, "cluster_bits is 9, and must be at least 14 with extended", {{72, 8, 16}}},
    {3, 0, EINVAL, "the external data file's name is missing", {{72, 8, 4}}},
    {3, 0, EINVAL, "the external data file is marked raw, and there is none", {{88, 8, 2}}},
    {3, 0, EINVAL, "backing file's name at offset 16 lies within the header", {{8, 8, 16}}},
    {3, 0, EINVAL, "backing file's name at offset 513, 0 bytes", {{8, 8, 513}}},
    {3, 0, EINVAL, "snapshot table's offset 0x1 is not a multiple", {{64, 8, 1}}},
    /* Extensions and names. */
    {3,
     0,
     EINVAL,
     "header extension 0x12345678 at offset 112 has 4096 bytes, and there is room",
     {{112, 8, EXTENSION(0x12345678, 4096)}}},
    {3, 0, EINVAL, "has 4294967295 bytes", {{112, 8, EXTENSION(0x12345678, UINT32_MAX)}}},
    {3,
     0,
     EINVAL,
     "header extension 0x12345678 at offset 112 has 9 bytes, and there is room for 8",
     {{112, 8, EXTENSION(0x12345678, 9)}, {8, 8, 128}, {16, 4, 1}}},
    {3,
     0,
     EINVAL,
     "backing file's format has 64 bytes, more than the limit of 63",
     {{112, 8, EXTENSION(0xe2792aca, 64)}}},
    {3,
     0,
     ENOTSUP,
     "image format 'vmdk' is not supported",
     {{112, 8, EXTENSION(0xe2792aca, 4)},
      {120, 8, TEXT('v', 'm', 'd', 'k', 0, 0, 0, 0)},
      {8, 8, 200},
      {16, 4, 4},
      {200, 8, TEXT('b', 'a', 's', 'e', 0, 0, 0, 0)}}},
    {3,
     0,
     EINVAL,
     "not a qcow2 image",
     {{112, 8, EXTENSION(0xe2792aca, 5)},
      {120, 8, TEXT('q', 'c', 'o', 'w', '2', 0, 0, 0)},
      {8, 8, 200},
      {16, 4, 4},
      {200, 8, TEXT('b', 'a', 's', 'e', 0, 0, 0, 0)}}},
    {3,
     0,
     EINVAL,
     "backing file's name has 1024 bytes, more than the limit of 1023",
     {{8, 8, 200}, {16, 4, 1024}}},
    {3,
     0,
     EINVAL,
     "backing file's name at offset 400, 200 bytes, does not lie within the first",
     {{8, 8, 400}, {16, 4, 200}}},
    {3,
     0,
     EINVAL,
     "backing file's name at offset 18446744073709551615",
     {{8, 8, UINT64_MAX}, {16, 4, 4}}},
    {3,
     0,
     EINVAL,
     "backing file's name at offset 80 lies within the header",
     {{8, 8, 80}, {16, 4, 4}}},
    {3,
     0,
     EINVAL,
     "backing file's name holds a NUL byte",
     {{8, 8, 200}, {16, 4, 4}, {200, 8, TEXT('a', 0, 'b', 'c', 0, 0, 0, 0)}}},
    {3,
     0,
     ENOTSUP,
     "the protocol 'nbd:' is not supported",
     {{8, 8, 200}, {16, 4, 8}, {200, 8, TEXT('n', 'b', 'd', ':', 'x', ':', '1', '0')}}},
    {3,
     0,
     ENOTSUP,
     "the protocol 'json:' is not supported",
     {{8, 8, 200}, {16, 4, 7}, {200, 8, TEXT('j', 's', 'o', 'n', ':', '{', '}', 0)}}},
    {2,
     0,
     ENOTSUP,
     "the protocol 'file:' is not supported: an image's files must be plain local",
     {{8, 8, 200}, {16, 4, 6}, {200, 8, TEXT('f', 'i', 'l', 'e', ':', 'a', 0, 0)}}},
    {3,
     0,
     ENOENT,
     "backing file: none: cannot open: No such file or directory",
     {{8, 8, 200}, {16, 4, 4}, {200, 8, TEXT('n', 'o', 'n', 'e', 0, 0, 0, 0)}}},
    {3,
     0,
     ENOTSUP,
     "data file: data file 'nbd:x': the protocol 'nbd:' is not supported",
     {{72, 8, 4},
      {112, 8, EXTENSION(0x44415441, 5)},
      {120, 8, TEXT('n', 'b', 'd', ':', 'x', 0, 0, 0)}}},
    {3,
     0,
     EINVAL,
     "a raw external data file and a backing file exclude each other",
     {{72, 8, 4},
      {88, 8, 2},
      {112, 8, EXTENSION(0x44415441, 4)},
      {120, 8, TEXT('b', 'a', 's', 'e', 0, 0, 0, 0)},
      {8, 8, 200},
      {16, 4, 4},
      {200, 8, TEXT('b', 'a', 's', 'e', 0, 0, 0, 0)}}},
    {3,
     0,
     ENOTSUP,
     "encryption with an external data file is not supported",
     {{72, 8, 4},
      {32, 4, 1},
      {112, 8, EXTENSION(0x44415441, 4)},
      {120, 8, TEXT('b', 'a', 's', 'e', 0, 0, 0, 0)}}},
    /* Where the tables of snapshots and bitmaps are. */
    {3,
     0,
     EINVAL,
     "65537 snapshots are more than the limit of 65536",
     {{60, 4, 65537}, {64, 8, 512}}},
    {3, 0, EINVAL, "snapshot table's offset 0x201 is not a multiple", {{60, 4, 1}, {64, 8, 0x201}}},
    {3,
     0,
     EINVAL,
     "snapshot table at offset 0x2000, 1 bytes, does not lie within the file",
     {{60, 4, 1}, {64, 8, 0x2000}}},
    {3, 0, EINVAL, "snapshot table's offset is 0", {{60, 4, 1}}},
    {3,
     0,
     EINVAL,
     "there is an extension for LUKS encryption, and the encryption method is 0",
     {{112, 8, EXTENSION(0x0537be77, 16)}}},
    {3,
     0,
     EINVAL,
     "the bitmaps extension has 8 bytes, not 24",
     {{88, 8, 1}, {112, 8, EXTENSION(0x23852875, 8)}}},
    {3,
     0,
     EINVAL,
     "0 bitmaps are not within 1 to 65535",
     {{88, 8, 1}, {112, 8, EXTENSION(0x23852875, 24)}}},
    {3,
     0,
     EINVAL,
     "65536 bitmaps are not within 1 to 65535",
     {{88, 8, 1}, {112, 8, EXTENSION(0x23852875, 24)}, {120, 4, 65536}}},
    {3,
     0,
     EINVAL,
     "the bitmaps extension's reserved field is not 0",
     {{88, 8, 1}, {112, 8, EXTENSION(0x23852875, 24)}, {120, 8, EXTENSION(1, 1)}}},
    {3,
     0,
     EINVAL,
     "bitmap directory has 67108865 bytes, more than the limit of 67108864",
     {{88, 8, 1}, {112, 8, EXTENSION(0x23852875, 24)}, {120, 4, 1}, {128, 8, 67108865}}},
    {3,
     0,
     EINVAL,
     "bitmap directory's offset 0x1 is not a multiple",
     {{88, 8, 1}, {112, 8, EXTENSION(0x23852875, 24)}, {120, 4, 1}, {128, 8, 32}, {136, 8, 1}}},
    {3,
     0,
     EINVAL,
     "bitmap directory at offset 0x2000, 32 bytes, does not lie within the file",
     {{88, 8, 1},
      {112, 8, EXTENSION(0x23852875, 24)},
      {120, 4, 1},
      {128, 8, 32},
      {136, 8, 0x2000}}},
};

static void test_header_refused(void **state)
{
    (void)state;
    write_file("base", "some raw bytes", 14);
    for (size_t i = 0; i < sizeof(header_cases) / sizeof(header_cases[0]); i++) {
        const struct header_case *c = &header_cases[i];
        _cleanup_error_ struct error err = ERROR_INIT;
        struct image *image = NULL;
        struct maker m;

        maker_start(&m, c->version, 9, false, DISK);
        apply(&m, c->patches, sizeof(c->patches) / sizeof(c->patches[0]));
        write_file("a", m.bytes, c->file_size != 0 ? c->file_size : m.size);
        int r = image_open("a", NULL, &image, &err);
        if (r != -c->code || strstr(error_message(&err), c->message) == NULL ||
            strncmp(error_message(&err), "a: ", 3) != 0)
            fail_msg("case %zu: %d (%s), expected %d (%s)", i, r,
                     r < 0 ? error_message(&err) : "opened", -c->code, c->message);
        assert_null(image);
        maker_free(&m);
    }
}

/* Odd, and right. */
static void test_header_accepted(void **state)
{
    (void)state;
    static const struct {
        unsigned version;
        struct patch patches[6];
    } cases[] = {
        {2, {{0}}},
        {3, {{0}}},
        {3, {{100, 4, 104}}},
        {3, {{100, 4, 512}}},
        {3, {{72, 8, 1}}},                               /* dirty */
        {3, {{72, 8, 8}, {104, 1, 1}}},                  /* zstd */
        {3, {{80, 8, UINT64_MAX}, {88, 8, 0xfffffffc}}}, /* unknown compatible and autoclear */
        {3, {{96, 4, 0}}},                               /* refcounts of one bit */
        {3, {{112, 8, EXTENSION(0x12345678, 392 - 8)}}}, /* unknown, up to the cluster's end */
        {3, {{112, 8, EXTENSION(0x12345678, 391 - 8)}}},
        {3, {{8, 8, 200}}},       /* an empty backing name is none */
        {3, {{24, 8, DISK - 1}}}, /* whole sectors count */
        {2, {{8, 8, 200}, {16, 4, 5}, {200, 8, TEXT('b', 'a', 's', 'e', 0, 'x', 0, 0)}}},
        {3, {{112, 8, EXTENSION(0x23852875, 24)}}}, /* bitmaps that are not valid */
    };

    write_file("base", "some raw bytes", 14);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_image_ struct image *image = NULL;
        struct maker m;

        maker_start(&m, cases[i].version, 9, false, DISK);
        apply(&m, cases[i].patches, 6);
        maker_write(&m, "a");
        if (image_open("a", NULL, &image, &err) < 0)
            fail_msg("case %zu: %s", i, error_message(&err));
        assert_true(image_size(image) == DISK || image_size(image) == DISK - 512);
        maker_free(&m);
    }
}

static void test_corrupt_forced(void **state)
{
    (void)state;
    const struct image_options options = {.force = true};
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = NULL;
    struct maker m;

    maker_start(&m, 3, 16, false, DISK);
    put64(&m, 72, 2);
    maker_write(&m, "a");
    assert_int_equal(image_open("a", &options, &image, &err), 0);
    assert_true(image_info(image, 0)->corrupt);
    maker_free(&m);
}

/* A disk of four L2 tables, in descending order in the file, and what happens if two are one. */
static void test_shared_l2(void **state)
{
    (void)state;
    const uint64_t span = (uint64_t)1 << (2 * 16 - 3);
    const struct image_options force = {.force = true};
    struct maker m;

    maker_start(&m, 3, 16, false, 4 * span);
    for (uint64_t i = 4; i-- > 0;)
        (void)maker_l2_entry(&m, i * span);
    maker_write(&m, "a");
    _cleanup_image_ struct image *image = NULL;
    assert_int_equal(image_open("a", NULL, &image, NULL), 0);

    for (unsigned from = 0; from < 4; from++) {
        for (unsigned to = from + 1; to < 4; to++) {
            _cleanup_error_ struct error err = ERROR_INIT;
            _cleanup_image_ struct image *shared = NULL;
            uint64_t own = peek64(&m, m.l1_offset + 8 * to);
            char entries[40];

            put64(&m, m.l1_offset + 8 * to, peek64(&m, m.l1_offset + 8 * from));
            maker_write(&m, "a");
            assert_int_equal(image_open("a", NULL, &shared, &err), -EINVAL);
            snprintf(entries, sizeof(entries), "L1 entries %u and %u share", from, to);
            assert_non_null(strstr(error_message(&err), entries));
            assert_int_equal(image_open("a", &force, &shared, &err), 0);
            put64(&m, m.l1_offset + 8 * to, own);
        }
    }
    maker_free(&m);
}

/* --- Snapshots --- */

/* Appends an entry at *at, and moves it. */
static void put_snapshot(struct maker *m, uint64_t *at, uint64_t l1_offset, uint32_t l1_entries,
                         const char *id, const char *name, uint32_t extra, uint64_t disk_size)
{
    uint64_t e = *at;

    put64(m, e, l1_offset);
    put32(m, e + 8, l1_entries);
    put32(m, e + 12, (uint32_t)strlen(id) << 16 | (uint32_t)strlen(name));
    put32(m, e + 16, 1700000000);
    put32(m, e + 32, 7);
    put32(m, e + 36, extra);
    if (extra >= 8)
        put64(m, e + 40, 12345);
    if (extra >= 16)
        put64(m, e + 48, disk_size);
    memcpy(m->bytes + e + 40 + extra, id, strlen(id));
    memcpy(m->bytes + e + 40 + extra + strlen(id), name, strlen(name));
    *at = (e + 40 + extra + strlen(id) + strlen(name) + 7) & ~(uint64_t)7;
}

static void test_snapshots(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image *image = NULL;
    struct maker m;

    maker_start(&m, 2, 9, false, DISK);
    uint64_t table = maker_allocate(&m, 2048), at = table;
    /* Version 2's first form, then one more field, then all, then fields that are not known. */
    put_snapshot(&m, &at, m.l1_offset, 32, "1", "2", 0, 0);
    put_snapshot(&m, &at, m.l1_offset, 32, "2", "second", 8, 0);
    put_snapshot(&m, &at, m.l1_offset, 32, "3", "", 16, DISK / 2);
    put_snapshot(&m, &at, m.l1_offset, 32, "4", "fourth", 1024, DISK);
    put_snapshot(&m, &at, m.l1_offset, 31, "5", "small", 16, DISK);
    put_snapshot(&m, &at, 0x100000, 32, "6", "outside", 16, DISK);
    put32(&m, 60, 6);
    put64(&m, 64, table);
    maker_write(&m, "a");

    assert_int_equal(image_open("a", NULL, &image, &err), 0);
    const struct image_info *info = image_info(image, 0);
    assert_int_equal(info->snapshot_count, 6);
    assert_string_equal(info->snapshots[0].name, "2");
    assert_int_equal(info->snapshots[0].vm_state_size, 7);
    assert_int_equal(info->snapshots[0].disk_size, DISK);
    assert_int_equal(info->snapshots[0].date, 1700000000);
    assert_int_equal(info->snapshots[1].vm_state_size, 12345);
    assert_int_equal(info->snapshots[1].disk_size, DISK);
    assert_int_equal(info->snapshots[2].disk_size, DISK / 2);
    assert_string_equal(info->snapshots[2].name, "");
    assert_string_equal(info->snapshots[3].name, "fourth");
    image_close(image);

    static const struct {
        const char *wanted, *message; /* NULL: opens */
        uint64_t size;
    } cases[] = {
        {"1", NULL, DISK},
        {"2", NULL, DISK}, /* the id, not the name of "1" */
        {"3", NULL, DISK / 2},
        {"fourth", NULL, DISK},
        {"small", "snapshot 'small': the snapshot's L1 table has 31 entries", 0},
        {"6", "snapshot's L1 table at offset 0x100000", 0},
        {"seventh", "there is no snapshot with the id or name 'seventh'", 0},
        {"", NULL, DISK / 2}, /* it has no other name */
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct image_options options = {.snapshot = cases[i].wanted};
        int r = image_open("a", &options, &image, &err);

        if (cases[i].message != NULL) {
            assert_true(r < 0);
            assert_non_null(strstr(error_message(&err), cases[i].message));
            error_clear(&err);
        } else {
            assert_int_equal(r, 0);
            assert_int_equal(image_size(image), cases[i].size);
            image_close(image);
        }
    }

    /* Extra data that are too large; a table that the file does not have. */
    put32(&m, table + 36, 1025);
    maker_write(&m, "a");
    assert_int_equal(image_open("a", NULL, &image, &err), -EINVAL);
    assert_non_null(strstr(error_message(&err),
                           "snapshot table entry 0: 1025 bytes of extra data are more than"));
    put32(&m, table + 36, 0);
    write_file("a", m.bytes, table + 41);
    assert_int_equal(image_open("a", NULL, &image, &err), -EINVAL);
    assert_non_null(strstr(error_message(&err), "snapshot table entry 0: it reaches behind"));
    put32(&m, 60, 65536);
    maker_write(&m, "a");
    assert_int_equal(image_open("a", NULL, &image, &err), -EINVAL);
    assert_non_null(strstr(error_message(&err), "it reaches behind the end of the file"));
    maker_free(&m);
}

/* --- Bitmaps --- */

static void start_bitmaps(struct maker *m, uint64_t *ret_directory)
{
    maker_start(m, 3, 9, false, DISK);
    uint64_t table = maker_allocate(m, 512);
    uint64_t d = *ret_directory = maker_allocate(m, 512);

    put64(m, 88, 1);
    put64(m, 112, EXTENSION(0x23852875, 24));
    put32(m, 120, 2);
    put64(m, 128, 64); /* bytes of the directory */
    put64(m, 136, d);
    put64(m, d, table);
    put32(m, d + 8, 1);
    put32(m, d + 12, 2); /* auto */
    put32(m, d + 16, 1 << 24 | 16 << 16 | 5);
    memcpy(m->bytes + d + 24, "first", 5);
    put64(m, d + 32, table);
    put32(m, d + 40, 64);
    put32(m, d + 44, 1); /* in use */
    put32(m, d + 48, 1 << 24 | 9 << 16 | 1);
    m->bytes[d + 56] = 'b';
}

static void test_bitmaps(void **state)
{
    (void)state;
    /* Offsets from the directory's start. */
    static const struct {
        struct patch patch;
        const char *message;
    } cases[] = {
        {{0, 8, 0x601}, "entry 0: the bitmap table's offset 0x601 is not a multiple"},
        {{32, 8, 0}, "entry 1: the bitmap table at offset 0x0"},
        {{40, 4, 4096}, "entry 1: the bitmap table at offset 0x600, 32768 bytes, does not lie"},
        {{8, 4, 0}, "entry 0: the bitmap table at offset 0x600, 0 bytes"},
        {{12, 4, 8}, "entry 0: the flags 0x8 have reserved bits set"},
        {{16, 1, 2}, "entry 0: bitmap type 2 is not known"},
        {{17, 1, 8}, "entry 0: granularity_bits is 8, and must be 9 to 31"},
        {{17, 1, 32}, "entry 0: granularity_bits is 32"},
        {{18, 2, 0}, "entry 0: its name has 0 bytes, not 1 to 1023"},
        {{18, 2, 41}, "entry 0: it reaches behind the directory's end at 64"},
        {{20, 4, UINT32_MAX}, "entry 0: it reaches behind the directory's end"},
        {{18, 2, 30}, "entry 1: it reaches behind the directory's end"},
        {{50, 2, 9}, "entry 1: it reaches behind the directory's end"},
    };
    _cleanup_error_ struct error err = ERROR_INIT;
    struct image *image = NULL;
    struct maker m;
    uint64_t d;

    start_bitmaps(&m, &d);
    maker_write(&m, "a");
    assert_int_equal(image_open("a", NULL, &image, &err), 0);
    const struct image_info *info = image_info(image, 0);
    assert_int_equal(info->bitmap_count, 2);
    assert_string_equal(info->bitmaps[0].name, "first");
    assert_int_equal(info->bitmaps[0].granularity, 65536);
    assert_true(info->bitmaps[0].automatic && !info->bitmaps[0].in_use);
    assert_string_equal(info->bitmaps[1].name, "b");
    assert_true(!info->bitmaps[1].automatic && info->bitmaps[1].in_use);
    image_close(image);

    put32(&m, 120, 1);
    maker_write(&m, "a");
    assert_int_equal(image_open("a", NULL, &image, &err), -EINVAL);
    assert_non_null(
        strstr(error_message(&err), "directory has 64 bytes, and its 1 entries take 32"));
    maker_free(&m);

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct patch patch = cases[i].patch;

        start_bitmaps(&m, &d);
        patch.offset += d;
        apply(&m, &patch, 1);
        maker_write(&m, "a");
        int r = image_open("a", NULL, &image, &err);
        if (r >= 0 || strstr(error_message(&err), cases[i].message) == NULL)
            fail_msg("case %zu: %s", i, r < 0 ? error_message(&err) : "opened");
        maker_free(&m);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header_refused), cmocka_unit_test(test_header_accepted),
        cmocka_unit_test(test_corrupt_forced), cmocka_unit_test(test_shared_l2),
        cmocka_unit_test(test_snapshots),      cmocka_unit_test(test_bitmaps),
    };

    return cmocka_run_group_tests(tests, maker_enter, maker_leave);
}
