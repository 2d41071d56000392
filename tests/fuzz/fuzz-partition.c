/* SPDX-License-Identifier: MIT */
/*
 * Partition tables, and what partitions hold. Input: a byte that chooses the disk's size, then HEAD
 * bytes for its beginning, TAIL bytes for its end, and what is left for 1 MiB behind the beginning,
 * where the first partition mostly is. Mutations are given right checksums, most of the time.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "common/checked.h"
#include "image/image.h"
#include "image/partition.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/mutate.h"

enum { HEAD = 34 * 512, TAIL = 33 * 512, CONTENT_AT = 1 << 20 };

static int disk;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_start();
    disk = open("disk.raw", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (disk < 0)
        fuzz_fail("cannot create disk.raw");
    return 0;
}

static uint64_t disk_size(uint8_t choice)
{
    static const uint64_t sizes[] = {4 << 20, 64 << 20,      1 << 20,           40 << 10,
                                     1474560, 4 << 20 | 512, UINT64_C(3) << 40, UINT64_C(1) << 52};

    return sizes[choice % (sizeof(sizes) / sizeof(sizes[0]))];
}

static void put(const uint8_t *data, size_t size, uint64_t at, uint64_t end)
{
    if (at < end && size > 0 && pwrite(disk, data, (size_t)min_u64(size, end - at), (off_t)at) < 0)
        fuzz_fail("cannot write disk.raw");
}

static void make_disk(const uint8_t *data, size_t size)
{
    uint64_t bytes = disk_size(size > 0 ? data[0] : 0);
    size_t head = (size_t)min_u64(size - (size > 0), HEAD);

    if (ftruncate(disk, 0) < 0 || ftruncate(disk, (off_t)bytes) < 0)
        fuzz_fail("cannot set the size of disk.raw");
    if (size == 0)
        return;
    put(data + 1, head, 0, bytes);
    size_t at = 1 + head, tail = (size_t)min_u64(size - at, TAIL);
    put(data + at, tail, bytes - TAIL, bytes);
    at += tail;
    put(data + at, size - at, CONTENT_AT, bytes);
}

static void check_table(const struct image *image, const struct partition_table *table)
{
    static const char *const specs[] = {NULL, "disk", "1", "root", "5"};
    const struct partition *found;
    struct error err = ERROR_INIT;

    for (size_t i = 0; i < table->count; i++) {
        const struct partition *p = &table->partitions[i];

        if (p->number == 0 || p->size == 0 || !range_within(p->start, p->size, image_size(image)))
            fuzz_fail("partition %u does not lie within the disk", p->number);
        if (i > 0 && p->number <= table->partitions[i - 1].number)
            fuzz_fail("partition %u comes twice", p->number);
    }
    for (size_t i = 0; i < sizeof(specs) / sizeof(specs[0]); i++) {
        int r = partition_find(table, specs[i], &found, &err);
        if (r < 0)
            fuzz_expect_error(&err, r);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct image_options options = {.format = "raw"};
    struct error err = ERROR_INIT;
    struct partition_table *table;
    struct image *image;

    make_disk(data, size);
    if (image_open("disk.raw", &options, &image, &err) < 0)
        fuzz_fail("%s", error_message(&err));
    int r = partition_table_read(image, &table, &err);
    if (r < 0) {
        fuzz_expect_error(&err, r);
    } else {
        check_table(image, table);
        partition_table_free(table);
    }
    image_close(image);
    return 0;
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put32(uint8_t *p, uint32_t n)
{
    for (unsigned i = 0; i < 4; i++)
        p[i] = (uint8_t)(n >> (8 * i));
}

/* Gives a GPT header right checksums, its entries' as far as these are here. */
static void sum_gpt(uint8_t *header, const uint8_t *entries, size_t room)
{
    uint32_t count = get32(header + 80), size = get32(header + 12);

    if (memcmp(header, "EFI PART", 8) != 0 || size < 92 || size > 512)
        return;
    if ((uint64_t)count * 128 <= room)
        put32(header + 88, (uint32_t)crc32(0, entries, count * 128));
    put32(header + 16, 0);
    put32(header + 16, (uint32_t)crc32(0, header, size));
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    struct mutator m = {.random = mutator_seed(seed)};

    if (mutator_below(&m, 3) == 0 && size > 1 + 512) {
        /* One field of the MBR, a header, or one of the first entries. */
        static const uint16_t places[] = {446, 462, 512, 512, 1024, 1152};
        size_t at = 1 + places[mutator_below(&m, 6)] + (size_t)mutator_below(&m, 128);
        if (at + 8 < size)
            fuzz_mutate_bytes(&m, data + at, 1 + (size_t)mutator_below(&m, 8));
    } else {
        size = LLVMFuzzerMutate(data, size, room);
    }
    if (size >= 1 + HEAD + TAIL && mutator_below(&m, 4) != 0) {
        sum_gpt(data + 1 + 512, data + 1 + 1024, HEAD - 1024);
        sum_gpt(data + 1 + HEAD + TAIL - 512, data + 1 + HEAD, TAIL - 512);
    }
    return size;
}
