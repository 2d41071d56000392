/* SPDX-License-Identifier: MIT */
#include "image/partition.h"

#include <blkid/blkid.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/log.h"
#include "common/units.h"
#include "image/partition-internal.h"

/*
 * libblkid wants a file. It gets sparse files in memory that hold what it looks at: one of the
 * disk's size for the partition table, and one for each partition's file system (partition-copy.c).
 * What a table says is checked before libblkid sees it (partition-check.c).
 *
 * Only GPT and MBR count. A BSD or Solaris table within an MBR partition is not looked into.
 */

/* libblkid takes no GPT on anything as small as a floppy disk, Linux does. */
enum { GPT_DISK_MIN = 1440 * 1024 + 512 };

static void probe_free(blkid_probe *probe)
{
    if (*probe != NULL)
        blkid_free_probe(*probe);
}
#define _cleanup_probe_ _cleanup_(probe_free)

static void partition_clear(struct partition *partition)
{
    free(partition->type);
    free(partition->label);
    free(partition->uuid);
    free(partition->fs_type);
    free(partition->fs_label);
    free(partition->fs_uuid);
}

void partition_table_free(struct partition_table *table)
{
    if (table == NULL)
        return;
    for (size_t i = 0; i < table->count; i++)
        partition_clear(&table->partitions[i]);
    partition_clear(&table->disk);
    free(table->partitions);
    free(table->type);
    free(table->uuid);
    free(table);
}

/* Copies a string; "" and NULL give NULL. */
static int copy_string(const char *text, char **ret, struct error *err)
{
    char *copy = NULL;

    if (text != NULL && text[0] != '\0') {
        copy = strdup(text);
        if (copy == NULL)
            return error_oom(err);
    }
    *ret = copy;
    return 0;
}

/* A probe over the file in memory, for the partition table or for superblocks. */
static int probe_new(int fd, uint64_t size, bool superblocks, blkid_probe *ret, struct error *err)
{
    _cleanup_probe_ blkid_probe probe = blkid_new_probe();

    if (probe == NULL)
        return error_oom(err);
    if (blkid_probe_set_device(probe, fd, 0, (blkid_loff_t)size) != 0 ||
        blkid_probe_enable_superblocks(probe, superblocks) != 0 ||
        blkid_probe_enable_partitions(probe, !superblocks) != 0)
        return error_set(err, EIO, "libblkid cannot be set up");
    *ret = probe;
    probe = NULL;
    return 0;
}

/* --- File systems --- */

/* Fills fs_type, fs_label and fs_uuid from the copy of the partition's bytes in `fd`. */
static int probe_content(const struct image *image, int fd, struct partition *partition,
                         struct error *err)
{
    _cleanup_probe_ blkid_probe probe = NULL;
    const struct {
        const char *name;
        char **field;
    } values[] = {
        {"TYPE", &partition->fs_type},
        {"LABEL", &partition->fs_label},
        {"UUID", &partition->fs_uuid},
    };

    int r = probe_new(fd, partition->size, true, &probe, err);
    if (r < 0)
        return r;
    if (blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_LABEL |
                                                     BLKID_SUBLKS_UUID) != 0)
        return error_set(err, EIO, "libblkid cannot be set up");
    int found = blkid_do_safeprobe(probe);
    if (found == -2)
        log_warning(
            "%s: partition %u has signatures of more than one file system: taken as unknown",
            image_path(image), partition->number);
    else if (found < 0)
        log_warning("%s: libblkid fails on the content of partition %u: taken as unknown",
                    image_path(image), partition->number);
    if (found != 0)
        return 0;
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        const char *text;

        if (blkid_probe_lookup_value(probe, values[i].name, &text, NULL) != 0)
            continue;
        r = copy_string(text, values[i].field, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_content(struct image *image, struct partition *partition, struct error *err)
{
    _cleanup_close_ int fd = -1;

    if (partition->container)
        return 0;
    int r = partition_copy(image, partition->start, partition->size, &fd, err);
    if (r < 0)
        return r;
    return probe_content(image, fd, partition, err);
}

/* --- The table --- */

/* Whether libblkid takes the MBR for a partition table, rather than for a boot sector. */
static int is_mbr_table(int fd, uint64_t size, bool *ret, struct error *err)
{
    _cleanup_probe_ blkid_probe probe = NULL;
    char dos[] = "dos", *types[] = {dos, NULL};

    int r = probe_new(fd, size, false, &probe, err);
    if (r < 0)
        return r;
    /* Without details, libblkid does not follow logical partitions. */
    if (blkid_probe_filter_partitions_type(probe, BLKID_FLTR_ONLYIN, types) != 0)
        return error_set(err, EIO, "libblkid cannot be set up");
    int found = blkid_do_probe(probe);
    if (found < 0)
        return error_set(err, EIO, "libblkid fails on the partition table");
    *ret = found == 0;
    return 0;
}

static int add_partition(struct partition_table *table, blkid_partition found, uint64_t disk_size,
                         struct error *err)
{
    struct partition *partition = &table->partitions[table->count];
    const char *type = blkid_partition_get_type_string(found);
    uint64_t start = (uint64_t)blkid_partition_get_start(found);
    uint64_t count = (uint64_t)blkid_partition_get_size(found);
    char mbr_type[8];

    *partition = (struct partition){.number = (unsigned)blkid_partition_get_partno(found)};
    table->count++;
    if (!checked_mul(start, 512, &partition->start) || !checked_mul(count, 512, &partition->size) ||
        partition->size == 0 || !range_within(partition->start, partition->size, disk_size))
        return error_set(err, ERANGE,
                         "partition %u (%" PRIu64 " sectors from sector %" PRIu64
                         ") does not lie within the disk of %" PRIu64 " bytes",
                         partition->number, count, start, disk_size);
    if (type == NULL && blkid_partition_get_type(found) != 0) {
        snprintf(mbr_type, sizeof(mbr_type), "0x%02x",
                 (unsigned)blkid_partition_get_type(found) & 0xff);
        type = mbr_type;
    }
    partition->container = blkid_partition_is_extended(found) != 0;
    int r = copy_string(type, &partition->type, err);
    if (r >= 0)
        r = copy_string(blkid_partition_get_name(found), &partition->label, err);
    if (r >= 0)
        r = copy_string(blkid_partition_get_uuid(found), &partition->uuid, err);
    return r;
}

static int compare_numbers(const void *a, const void *b)
{
    const struct partition *left = a, *right = b;

    return left->number < right->number ? -1 : left->number > right->number;
}

/* Fills the table with what libblkid finds in the copy of the disk. */
static int probe_table(struct partition_table *table, int fd, uint64_t disk_size, bool gpt,
                       struct error *err)
{
    _cleanup_probe_ blkid_probe probe = NULL;
    char name[] = "gpt", dos[] = "dos", *types[] = {gpt ? name : dos, NULL};

    if (gpt && disk_size < GPT_DISK_MIN && ftruncate(fd, GPT_DISK_MIN) < 0)
        return error_set_errno(err, errno, "cannot enlarge a file in memory");
    int r = probe_new(fd, gpt ? max_u64(disk_size, GPT_DISK_MIN) : disk_size, false, &probe, err);
    if (r < 0)
        return r;
    if (blkid_probe_set_sectorsize(probe, table->sector_size) != 0 ||
        blkid_probe_set_partitions_flags(probe, BLKID_PARTS_ENTRY_DETAILS) != 0 ||
        blkid_probe_filter_partitions_type(probe, BLKID_FLTR_ONLYIN, types) != 0)
        return error_set(err, EIO, "libblkid cannot be set up");
    blkid_partlist list = blkid_probe_get_partitions(probe);
    blkid_parttable found = list != NULL ? blkid_partlist_get_table(list) : NULL;
    if (found == NULL)
        return error_set(err, EIO, "libblkid does not find the %s partition table that is there",
                         gpt ? "GPT" : "MBR");
    r = copy_string(blkid_parttable_get_type(found), &table->type, err);
    if (r >= 0)
        r = copy_string(blkid_parttable_get_id(found), &table->uuid, err);
    if (r < 0)
        return r;
    int count = blkid_partlist_numof_partitions(list);
    if (count > 2 * PARTITION_COUNT_MAX)
        return error_set(err, E2BIG, "%d partitions are too many", count);
    table->partitions = calloc((size_t)count + 1, sizeof(*table->partitions));
    if (table->partitions == NULL)
        return error_oom(err);
    for (int i = 0; i < count; i++) {
        blkid_partition partition = blkid_partlist_get_partition(list, i);

        /* One of a table within a partition. */
        if (blkid_parttable_get_parent(blkid_partition_get_table(partition)) != NULL)
            continue;
        r = add_partition(table, partition, disk_size, err);
        if (r < 0)
            return r;
    }
    qsort(table->partitions, table->count, sizeof(*table->partitions), compare_numbers);
    return 0;
}

/* Finds the table on the disk whose copy is `fd`. */
static int find_table(struct image *image, struct partition_table *table, int fd, struct error *err)
{
    uint64_t size = image_size(image);
    unsigned gpt_sector_size;
    bool mbr = false;

    int r = partition_check_gpt(image, fd, &gpt_sector_size, err);
    if (r < 0)
        return r;
    table->sector_size = gpt_sector_size != 0 ? gpt_sector_size : 512;
    if (gpt_sector_size != 0)
        return probe_table(table, fd, size, true, err);
    r = is_mbr_table(fd, size, &mbr, err);
    if (r < 0 || !mbr)
        return r;
    r = partition_check_mbr(image, fd, err);
    if (r < 0)
        return r;
    r = probe_table(table, fd, size, false, err);
    if (r < 0 || table->count > 0)
        return r;
    /* A boot sector has the same signature. Without any partition, it is a table only if there is
     * no file system. */
    r = probe_content(image, fd, &table->disk, err);
    if (r >= 0 && table->disk.fs_type != NULL) {
        free(table->type);
        free(table->uuid);
        table->type = table->uuid = NULL;
    }
    return r;
}

bool partition_table_is_wrong(int result)
{
    return result == -ERANGE || result == -EINVAL || result == -ELOOP || result == -E2BIG;
}

int partition_table_none(const struct image *image, struct partition_table **ret, struct error *err)
{
    struct partition_table *table = calloc(1, sizeof(*table));

    if (table == NULL)
        return error_oom(err);
    table->sector_size = 512;
    table->disk.size = image_size(image);
    *ret = table;
    return 0;
}

static int read_table(struct image *image, struct partition_table *table, struct error *err)
{
    _cleanup_close_ int fd = -1;

    if (table->disk.size == 0)
        return 0;
    int r = partition_copy(image, 0, table->disk.size, &fd, err);
    if (r >= 0)
        r = find_table(image, table, fd, err);
    if (r >= 0 && table->type == NULL && table->disk.fs_type == NULL)
        r = probe_content(image, fd, &table->disk, err);
    for (size_t i = 0; i < table->count && r >= 0; i++)
        r = read_content(image, &table->partitions[i], err);
    return r;
}

/* Puts the image's path in front of an error. One of reading tells a file already. */
static int name_image(const struct image *image, int r, struct error *err)
{
    const char *path = image_path(image);
    size_t length = strlen(path);

    if (err == NULL || (err->message != NULL && strncmp(err->message, path, length) == 0 &&
                        err->message[length] == ':'))
        return r;
    return error_prefix(err, "%s", path);
}

int partition_table_read(struct image *image, struct partition_table **ret, struct error *err)
{
    _cleanup_(partition_table_free_cleanup) struct partition_table *table = NULL;

    int r = partition_table_none(image, &table, err);
    if (r < 0)
        return r;
    /* A few pieces, far apart. */
    image_read_ahead(image, false);
    r = read_table(image, table, err);
    image_read_ahead(image, true);
    if (r < 0)
        return name_image(image, r, err);
    *ret = TAKE_PTR(table);
    return 0;
}

/* --- Choosing --- */

/* File systems that a Linux system can have its data on, as libblkid names them. */
static bool is_linux_filesystem(const char *fs_type)
{
    static const char *const names[] = {
        "bcachefs", "btrfs",    "cramfs", "erofs",    "ext2",      "ext3",   "ext4",
        "ext4dev",  "f2fs",     "gfs2",   "jfs",      "minix",     "nilfs2", "ocfs2",
        "reiser4",  "reiserfs", "romfs",  "squashfs", "squashfs3", "ubifs",  "xfs",
    };

    for (size_t i = 0; fs_type != NULL && i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(fs_type, names[i]) == 0)
            return true;
    return false;
}

/* "1 (vfat, 64 MiB), 2 (ext4, 3.5 GiB)" into a buffer that may be too small. */
static const char *list_partitions(const struct partition_table *table, char *buffer, size_t room)
{
    size_t length = 0;
    char size[FORMAT_SIZE_MAX];

    buffer[0] = '\0';
    for (size_t i = 0; i < table->count; i++) {
        const struct partition *p = &table->partitions[i];
        const char *content = p->container         ? "extended"
                              : p->fs_type != NULL ? p->fs_type
                                                   : "unknown content";
        int n = snprintf(buffer + length, room - length, "%s%u (%s, %s)", i > 0 ? ", " : "",
                         p->number, content, format_size(p->size, size));
        if (n < 0 || (size_t)n >= room - length) {
            memcpy(buffer + room - 4, "...", 4);
            break;
        }
        length += (size_t)n;
    }
    return buffer;
}

static int not_found(const struct partition_table *table, const char *what, struct error *err)
{
    char list[512];

    if (table->type == NULL)
        return error_set(err, ENOENT, "%s: the disk has no partition table, only 'disk' is there",
                         what);
    if (table->count == 0)
        return error_set(err, ENOENT, "%s: the partition table is empty, only 'disk' is there",
                         what);
    return error_set(err, ENOENT, "%s: there are %s", what,
                     list_partitions(table, list, sizeof(list)));
}

static int find_data_partition(const struct partition_table *table, const struct partition **ret,
                               struct error *err)
{
    const struct partition *largest = NULL;

    if (table->type == NULL) {
        *ret = &table->disk;
        return 0;
    }
    for (size_t i = 0; i < table->count; i++) {
        const struct partition *p = &table->partitions[i];

        if (is_linux_filesystem(p->fs_type) && (largest == NULL || p->size > largest->size))
            largest = p;
    }
    if (largest == NULL)
        return not_found(table, "no partition holds a Linux file system (choose one with -p)", err);
    *ret = largest;
    return 0;
}

static bool has_name(const struct partition *partition, const char *name)
{
    return (partition->label != NULL && strcmp(partition->label, name) == 0) ||
           (partition->fs_label != NULL && strcmp(partition->fs_label, name) == 0) ||
           (partition->uuid != NULL && strcasecmp(partition->uuid, name) == 0) ||
           (partition->fs_uuid != NULL && strcasecmp(partition->fs_uuid, name) == 0);
}

int partition_find(const struct partition_table *table, const char *spec,
                   const struct partition **ret, struct error *err)
{
    const struct partition *found = NULL;
    uint64_t number;

    if (spec == NULL)
        return find_data_partition(table, ret, err);
    if (strcmp(spec, "disk") == 0) {
        *ret = &table->disk;
        return 0;
    }
    if (strspn(spec, "0123456789") == strlen(spec) && parse_u64(spec, "-p", &number, NULL) == 0) {
        for (size_t i = 0; i < table->count; i++) {
            if (table->partitions[i].number == number) {
                *ret = &table->partitions[i];
                return 0;
            }
        }
    }
    if (has_name(&table->disk, spec))
        found = &table->disk;
    for (size_t i = 0; i < table->count; i++) {
        if (!has_name(&table->partitions[i], spec))
            continue;
        if (found != NULL)
            return error_set(err, ENOTUNIQ,
                             "'%s' means partition %u as well as %u: choose by number", spec,
                             found->number, table->partitions[i].number);
        found = &table->partitions[i];
    }
    if (found == NULL) {
        _cleanup_free_ char *what = NULL;

        if (asprintf(&what, "no partition '%s'", spec) < 0) {
            what = NULL;
            return error_oom(err);
        }
        return not_found(table, what, err);
    }
    *ret = found;
    return 0;
}
