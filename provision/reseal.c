/* SPDX-License-Identifier: MIT */
#include "provision/reseal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "common/checked.h"
#include "common/io.h"
#include "image/files.h"
#include "image/image.h"
#include "image/partition.h"
#include "provision/fat.h"

#define CHUNK ((size_t)1 << 20)
/* Behind the partitions: the backup of a GPT, 33 sectors. */
#define TAIL (UINT64_C(1024) * 1024)
#define SWAP_HEADER 4096

struct resealing {
    struct build *build;
    struct image *image;
    const struct partition_table *table;
    const struct partition *data; /* the partition that the filter is for */
    const struct filter *filter;
    const char *raw; /* path */
    int fd;
    uint8_t *chunk;
    uint64_t base; /* of the partition that is copied */
};

/* Copies bytes of the image's data to the same place. */
static int copy_range(struct resealing *resealing, uint64_t start, uint64_t length,
                      struct error *err)
{
    struct extent extent;
    int r = 0;

    for (uint64_t done = 0; r == 0 && done < length; done += extent.length) {
        r = image_map(resealing->image, start + done, length - done, IMAGE_MAP_HOLES, &extent, err);
        for (uint64_t at = 0; r == 0 && extent.kind != EXTENT_ZERO && at < extent.length;) {
            const size_t piece = (size_t)min_u64(extent.length - at, CHUNK);
            r = build_interrupted(resealing->build, err);
            if (r == 0)
                r = image_read(resealing->image, extent.start + at, resealing->chunk, piece, err);
            if (r == 0)
                r = io_write_at(resealing->fd, resealing->raw, resealing->chunk, piece,
                                extent.start + at, err);
            at += piece;
        }
    }
    return r;
}

static int keep_range(void *arg, uint64_t start, uint64_t length, struct error *err)
{
    struct resealing *resealing = arg;

    return copy_range(resealing, resealing->base + start, length, err);
}

/* A partition that is no ext. */
static int copy_partition(struct resealing *resealing, const struct partition *partition,
                          struct error *err)
{
    const char *type = partition->fs_type;

    resealing->base = partition->start;
    if (type != NULL && strcmp(type, "swap") == 0)
        return copy_range(resealing, partition->start, min_u64(partition->size, SWAP_HEADER), err);
    if (type != NULL && strcmp(type, "vfat") == 0) {
        _cleanup_error_ struct error own = ERROR_INIT;
        int r = fat_used(resealing->image, partition, keep_range, resealing, &own);
        if (r != -EMEDIUMTYPE) {
            error_move(err, &own);
            return r;
        }
    }
    build_say(resealing->build, "partition %u (%s) is copied as it is", partition->number,
              type != NULL ? type : "unknown contents");
    return copy_range(resealing, partition->start, partition->size, err);
}

static int rebuild_partition(struct resealing *resealing, const struct partition *partition,
                             struct error *err)
{
    _cleanup_(source_free_cleanup) struct source *source = NULL;
    struct source_identity identity;

    int r = source_identify(resealing->image, partition, &identity, err);
    if (r == 0)
        r = source_open_image(resealing->image, partition, &source, err);
    if (r < 0)
        return r;
    const struct disk_filesystem filesystem = {
        .path = resealing->raw,
        .offset = partition->start,
        .size = partition->size,
        .uuid = identity.uuid,
        .hash_seed = identity.hash_seed,
        .label = identity.label[0] != '\0' ? identity.label : NULL,
    };
    return disk_fill(resealing->build, &filesystem, source,
                     partition == resealing->data ? resealing->filter : NULL, err);
}

/* The table is in front of the partitions and, for a GPT, behind them. */
static int copy_table(struct resealing *resealing, struct error *err)
{
    const struct partition_table *table = resealing->table;
    const uint64_t size = image_size(resealing->image);
    uint64_t first = size, last = 0;

    if (table->type == NULL)
        return 0;
    for (size_t i = 0; i < table->count; i++) {
        if (table->partitions[i].container)
            return error_set(err, ENOTSUP,
                             "the image has an extended partition, which cannot be sealed: use a "
                             "GPT");
        first = min_u64(first, table->partitions[i].start);
        last = max_u64(last, table->partitions[i].start + table->partitions[i].size);
    }
    int r = copy_range(resealing, 0, first, err);
    const uint64_t tail = max_u64(last, size - min_u64(size, TAIL));
    return r < 0 || tail >= size ? r : copy_range(resealing, tail, size - tail, err);
}

static int copy_all(struct resealing *resealing, struct error *err)
{
    const struct partition_table *table = resealing->table;
    const struct partition *partitions = table->type != NULL ? table->partitions : &table->disk;
    const size_t count = table->type != NULL ? table->count : 1;

    int r = copy_table(resealing, err);
    /* All that is written here first: mke2fs and e2fsck open the file for themselves. */
    for (size_t i = 0; r == 0 && i < count; i++)
        if (!file_system_is_readable(&partitions[i]))
            r = copy_partition(resealing, &partitions[i], err);
    for (size_t i = 0; r == 0 && i < count; i++)
        if (file_system_is_readable(&partitions[i]))
            r = rebuild_partition(resealing, &partitions[i], err);
    return r;
}

static uint64_t disk_usage(const struct image *image)
{
    const struct image_info *info;
    uint64_t bytes = 0;

    for (unsigned depth = 0; (info = image_info(image, depth)) != NULL; depth++)
        bytes += info->disk_usage;
    return bytes;
}

int reseal(struct build *build, const struct filter *filter, const char *compress, const char *path,
           uint64_t *ret_before, struct error *err)
{
    const struct image_options format = {.format = "qcow2"};
    _cleanup_image_ struct image *image = NULL;
    _cleanup_(partition_table_free_cleanup) struct partition_table *table = NULL;
    _cleanup_free_ char *raw = step_path(build, "disk.raw");
    _cleanup_free_ uint8_t *chunk = malloc(CHUNK);
    _cleanup_close_ int fd = -1;
    struct resealing resealing = {.build = build, .filter = filter, .raw = raw, .chunk = chunk};

    if (raw == NULL || chunk == NULL)
        return error_oom(err);
    int r = image_open(build->image, &format, &image, err);
    if (r == 0)
        r = partition_table_read(image, &table, err);
    if (r == 0)
        r = partition_find(table, NULL, &resealing.data, err);
    if (r < 0)
        return r;
    if (!file_system_is_readable(resealing.data))
        return error_set(
            err, ENOTSUP, "partition %u: only ext2, ext3 and ext4 can be sealed, not %s",
            resealing.data->number,
            resealing.data->fs_type != NULL ? resealing.data->fs_type : "what is there");
    fd = open(raw, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)image_size(image)) < 0)
        return error_set_errno(err, errno, "%s: cannot create", raw);
    resealing.image = image;
    resealing.table = table;
    resealing.fd = fd;
    r = copy_all(&resealing, err);
    if (r == 0)
        r = disk_convert(build, raw, compress, path, err);
    if (r < 0)
        return r;
    *ret_before = disk_usage(image);
    return 0;
}
