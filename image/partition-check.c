/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <zlib.h>

#include "common/checked.h"
#include "common/io.h"
#include "common/log.h"
#include "image/partition-internal.h"

/*
 * libblkid leaves out, without a word, GPT partitions that do not lie within the disk and logical
 * partitions that it cannot reach, takes MBR partitions as they are, and computes with 32 bits in
 * MBR tables. So the raw tables are walked here first: what is wrong with them is an error that
 * says so, and libblkid only sees tables that it reads rightly.
 *
 * GPT: UEFI specification 2.10, chapter 5. MBR: entries as the Linux kernel takes them.
 */

enum {
    MBR_ENTRIES = 446,
    MBR_ENTRY_SIZE = 16,
    MBR_SIGNATURE = 510,
    MBR_TYPE_GPT = 0xee,
    GPT_HEADER_SIZE = 92,
    GPT_ENTRY_SIZE = 128,
    GPT_ENTRIES_MAX = 4 << 20, /* bytes; the kernel's limit */
};

struct mbr_entry {
    uint8_t type;
    uint64_t start, count; /* sectors */
};

static struct mbr_entry mbr_entry(const uint8_t *sector, unsigned index)
{
    const uint8_t *p = sector + MBR_ENTRIES + index * MBR_ENTRY_SIZE;

    return (struct mbr_entry){.type = p[4], .start = get_le32(p + 8), .count = get_le32(p + 12)};
}

static bool is_extended(struct mbr_entry entry)
{
    return entry.count != 0 && (entry.type == 0x05 || entry.type == 0x0f || entry.type == 0x85);
}

static bool has_mbr_signature(const uint8_t *sector)
{
    return sector[MBR_SIGNATURE] == 0x55 && sector[MBR_SIGNATURE + 1] == 0xaa;
}

static int outside_disk(const char *what, uint64_t start, uint64_t end, uint64_t disk_size,
                        struct error *err)
{
    return error_set(err, ERANGE,
                     "%s (bytes %" PRIu64 " to %" PRIu64
                     ") does not lie within the disk of %" PRIu64 " bytes",
                     what, start, end, disk_size);
}

/* --- MBR --- */

/* The walk along the chain of a disk's logical partition tables (EBRs). */
struct ebr_walk {
    struct image *image;
    int fd;
    uint64_t seen[PARTITION_COUNT_MAX]; /* sectors of the tables */
    size_t count;
    unsigned number; /* of the next logical partition */
};

/* Checks the partitions of one logical partition table. Entries 2 and 3 mean partitions only if
 * they lie within the table's own range, as the kernel has it. */
static int check_ebr_entries(struct ebr_walk *walk, const uint8_t *sector, uint64_t at,
                             uint64_t count, struct error *err)
{
    uint64_t disk_size = image_size(walk->image);
    char what[64];

    for (unsigned i = 0; i < 4; i++) {
        struct mbr_entry entry = mbr_entry(sector, i);

        if (entry.count == 0 || is_extended(entry) || (i >= 2 && entry.start + entry.count > count))
            continue;
        snprintf(what, sizeof(what), "logical partition %u", walk->number++);
        uint64_t start = at + entry.start, end = start + entry.count;
        if (end * 512 > disk_size)
            return outside_disk(what, start * 512, end * 512, disk_size, err);
        if (end > UINT32_MAX)
            return error_set(err, ERANGE, "%s lies beyond the 2 TiB that an MBR can tell", what);
    }
    return 0;
}

/* Goes along the chain that starts with an extended partition. */
static int walk_ebrs(struct ebr_walk *walk, struct mbr_entry extended, struct error *err)
{
    uint64_t at = extended.start, count = extended.count;
    uint8_t sector[512];
    unsigned i;

    for (;;) {
        if (!range_within(at * 512, 512, image_size(walk->image)))
            return error_set(err, ERANGE,
                             "the table of logical partition %u, at byte %" PRIu64
                             ", does not lie within the disk of %" PRIu64 " bytes",
                             walk->number, at * 512, image_size(walk->image));
        for (size_t k = 0; k < walk->count; k++)
            if (walk->seen[k] == at)
                return error_set(
                    err, ELOOP, "the tables of the logical partitions form a loop at byte %" PRIu64,
                    at * 512);
        if (walk->count == PARTITION_COUNT_MAX)
            return error_set(err, E2BIG, "more than %d tables of logical partitions",
                             PARTITION_COUNT_MAX);
        walk->seen[walk->count++] = at;
        int r = partition_copy_more(walk->image, 0, walk->fd, at * 512, 512, err);
        if (r >= 0)
            r = image_read(walk->image, at * 512, sector, sizeof(sector), err);
        if (r < 0)
            return r;
        /* An extended partition that nothing was ever put in has no table. */
        if (!has_mbr_signature(sector))
            return 0;
        r = check_ebr_entries(walk, sector, at, count, err);
        if (r < 0)
            return r;
        for (i = 0; i < 4 && !is_extended(mbr_entry(sector, i)); i++)
            ;
        if (i == 4)
            return 0;
        at = extended.start + mbr_entry(sector, i).start;
        count = mbr_entry(sector, i).count;
    }
}

int partition_check_mbr(struct image *image, int fd, struct error *err)
{
    _cleanup_free_ struct ebr_walk *walk = NULL;
    uint8_t sector[512];
    char what[32];

    int r = image_read(image, 0, sector, sizeof(sector), err);
    if (r < 0)
        return r;
    walk = calloc(1, sizeof(*walk));
    if (walk == NULL)
        return error_oom(err);
    walk->image = image;
    walk->fd = fd;
    walk->number = 5;
    for (unsigned i = 0; i < 4; i++) {
        struct mbr_entry entry = mbr_entry(sector, i);

        snprintf(what, sizeof(what), "partition %u", i + 1);
        if (entry.count != 0 && (entry.start + entry.count) * 512 > image_size(image))
            return outside_disk(what, entry.start * 512, (entry.start + entry.count) * 512,
                                image_size(image), err);
        r = is_extended(entry) ? walk_ebrs(walk, entry, err) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

/* --- GPT --- */

struct gpt {
    const char *fault;                  /* why it is not valid; NULL: it is */
    bool oversized;                     /* the fault is that it is made for a larger disk */
    uint64_t first_usable, last_usable; /* sectors */
    uint64_t entries_offset;            /* bytes */
    size_t count;
    uint8_t *entries; /* owned; NULL if they were not read */
};

static void gpt_clear(struct gpt *gpt)
{
    free(gpt->entries);
    *gpt = (struct gpt){0};
}
DEFINE_CLEANUP_INPLACE(struct gpt, gpt_clear);

/* What is wrong with a header that stands at sector `lba`, entries aside; NULL: nothing. */
static const char *gpt_header_fault(const uint8_t *header, uint64_t lba, unsigned sector_size,
                                    uint64_t sectors, struct gpt *gpt)
{
    static const uint8_t zeros[4];
    uint32_t size = get_le32(header + 12), entry_size = get_le32(header + 84);
    uint64_t count = get_le32(header + 80), entries = get_le64(header + 72);

    if (memcmp(header, "EFI PART", 8) != 0)
        return "no signature";
    if (size < GPT_HEADER_SIZE || size > sector_size)
        return "wrong header size";
    /* The checksum is made with its own field set to zeros. */
    uLong crc = crc32(crc32(0, header, 16), zeros, 4);
    if (crc32(crc, header + 20, size - 20) != get_le32(header + 16))
        return "wrong checksum";
    if (get_le64(header + 24) != lba)
        return "wrong sector number";
    if (entry_size != GPT_ENTRY_SIZE)
        return "size of an entry is not 128";
    if (count == 0 || count * entry_size > GPT_ENTRIES_MAX)
        return "number of entries is 0 or too large";
    if (!checked_mul(entries, sector_size, &gpt->entries_offset) ||
        !range_within(gpt->entries_offset, count * entry_size, sectors * sector_size))
        return "entries are not within the disk";
    gpt->count = (size_t)count;
    gpt->first_usable = get_le64(header + 40);
    gpt->last_usable = get_le64(header + 48);
    if (gpt->last_usable < gpt->first_usable)
        return "last usable sector is before the first";
    if (gpt->first_usable < lba && lba < gpt->last_usable)
        return "the header is among the usable sectors";
    gpt->oversized = gpt->last_usable >= sectors;
    return NULL;
}

/* Reads and checks the header at sector `lba`, and its entries. */
static int gpt_read(struct image *image, uint64_t lba, unsigned sector_size, struct gpt *ret,
                    struct error *err)
{
    _cleanup_(gpt_clear_cleanup) struct gpt gpt = {0};
    uint64_t sectors = image_size(image) / sector_size;
    uint8_t header[4096];

    if (lba >= sectors) {
        ret->fault = "it would be outside of the disk";
        return 0;
    }
    int r = image_read(image, lba * sector_size, header, sector_size, err);
    if (r < 0)
        return r;
    gpt.fault = gpt_header_fault(header, lba, sector_size, sectors, &gpt);
    if (gpt.fault == NULL) {
        gpt.entries = malloc(gpt.count * GPT_ENTRY_SIZE);
        if (gpt.entries == NULL)
            return error_oom(err);
        r = image_read(image, gpt.entries_offset, gpt.entries, gpt.count * GPT_ENTRY_SIZE, err);
        if (r < 0)
            return r;
        if (crc32_z(0, gpt.entries, gpt.count * GPT_ENTRY_SIZE) != get_le32(header + 88))
            gpt.fault = "wrong checksum of the entries";
    }
    /* Only now: whether it is intact matters more. */
    if (gpt.fault == NULL && gpt.oversized)
        gpt.fault = "last usable sector is outside of the disk";
    else
        gpt.oversized = false;
    *ret = gpt;
    gpt.entries = NULL;
    return 0;
}

/* Checks that all partitions lie where the header and the disk have room for them. */
static int gpt_check_entries(const struct gpt *gpt, unsigned sector_size, uint64_t disk_size,
                             struct error *err)
{
    static const uint8_t unused[16];
    uint64_t sectors = disk_size / sector_size;
    unsigned used = 0;
    char what[32];

    for (size_t i = 0; i < gpt->count; i++) {
        const uint8_t *entry = gpt->entries + i * GPT_ENTRY_SIZE;
        uint64_t first = get_le64(entry + 32), last = get_le64(entry + 40);

        if (memcmp(entry, unused, sizeof(unused)) == 0)
            continue;
        snprintf(what, sizeof(what), "partition %zu", i + 1);
        if (++used > PARTITION_COUNT_MAX)
            return error_set(err, E2BIG, "more than %d partitions", PARTITION_COUNT_MAX);
        if (last < first)
            return error_set(err, EINVAL,
                             "%s ends (sector %" PRIu64 ") before it starts (sector %" PRIu64 ")",
                             what, last, first);
        if (last >= sectors) {
            uint64_t start = UINT64_MAX, end = UINT64_MAX; /* where bytes do not fit */

            (void)checked_mul(first, sector_size, &start);
            if (last < UINT64_MAX)
                (void)checked_mul(last + 1, sector_size, &end);
            return outside_disk(what, start, end, disk_size, err);
        }
        if (!gpt->oversized && (first < gpt->first_usable || last > gpt->last_usable))
            return error_set(
                err, EINVAL,
                "%s (sectors %" PRIu64 " to %" PRIu64
                ") does not lie within the sectors that the GPT has for partitions (%" PRIu64
                " to %" PRIu64 ")",
                what, first, last, gpt->first_usable, gpt->last_usable);
    }
    return 0;
}

/* Takes the primary header out of the copy, so that libblkid uses the backup as we do. */
static int hide_primary(int fd, unsigned sector_size, struct error *err)
{
    static const uint8_t zeros[8];

    return io_write_at(fd, "memory file", zeros, sizeof(zeros), sector_size, err);
}

static int check_gpt(struct image *image, int fd, unsigned sector_size, struct error *err)
{
    _cleanup_(gpt_clear_cleanup) struct gpt primary = {0};
    _cleanup_(gpt_clear_cleanup) struct gpt backup = {0};
    uint64_t size = image_size(image), last = size / sector_size - 1;
    const struct gpt *gpt = &primary;

    int r = gpt_read(image, 1, sector_size, &primary, err);
    if (r >= 0)
        r = gpt_read(image, last, sector_size, &backup, err);
    if (r < 0)
        return r;
    if (primary.fault != NULL && backup.fault == NULL) {
        log_warning("%s: the GPT's primary header is damaged (%s); using the backup at its end",
                    image_path(image), primary.fault);
        gpt = &backup;
        r = hide_primary(fd, sector_size, err);
        if (r < 0)
            return r;
    } else if (primary.fault != NULL) {
        /* A table that is whole, but for a larger disk: better to name what is missing. */
        if (primary.oversized)
            r = gpt_check_entries(&primary, sector_size, size, err);
        if (r < 0)
            return r;
        return error_set(
            err, EINVAL,
            "the GPT is damaged: primary header at byte %u: %s; backup at byte %" PRIu64 ": %s",
            sector_size, primary.fault, last * sector_size, backup.fault);
    }
    r = gpt_check_entries(gpt, sector_size, size, err);
    if (r < 0)
        return r;
    return partition_copy_more(image, 0, fd, gpt->entries_offset, gpt->count * GPT_ENTRY_SIZE, err);
}

/* Whether the bytes at `offset` start as a GPT header does. */
static int has_gpt_signature(struct image *image, uint64_t offset, bool *ret, struct error *err)
{
    uint8_t bytes[8];

    *ret = false;
    if (!range_within(offset, sizeof(bytes), image_size(image)))
        return 0;
    int r = image_read(image, offset, bytes, sizeof(bytes), err);
    if (r >= 0)
        *ret = memcmp(bytes, "EFI PART", 8) == 0;
    return r;
}

int partition_check_gpt(struct image *image, int fd, unsigned *ret_sector_size, struct error *err)
{
    bool mentioned = false, announced = false, at_512, at_4096, at_end;
    uint64_t size = image_size(image);
    uint8_t sector[512];

    *ret_sector_size = 0;
    if (size < 2 * sizeof(sector))
        return 0;
    int r = image_read(image, 0, sector, sizeof(sector), err);
    if (r >= 0)
        r = has_gpt_signature(image, 512, &at_512, err);
    if (r >= 0)
        r = has_gpt_signature(image, 4096, &at_4096, err);
    if (r >= 0)
        r = has_gpt_signature(image, align_down(size, 512) - 512, &at_end, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < 4 && has_mbr_signature(sector); i++) {
        struct mbr_entry entry = mbr_entry(sector, i);

        mentioned |= entry.type == MBR_TYPE_GPT;
        announced |= entry.type == MBR_TYPE_GPT && entry.start == 1;
    }
    if (!mentioned && (at_512 || at_4096))
        log_warning("%s: there is a GPT without a protective MBR, which Linux ignores",
                    image_path(image));
    /* A type byte alone may be part of a file system's boot code. */
    if (!mentioned || (!announced && !at_512 && !at_4096 && !at_end))
        return 0;
    *ret_sector_size = !at_512 && at_4096 && size >= 2 * 4096 ? 4096 : 512;
    return check_gpt(image, fd, *ret_sector_size, err);
}
