/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "common/checked.h"
#include "common/io.h"
#include "image/partition-internal.h"

/*
 * What libblkid is given to look at. Nearly all that it looks for stands at fixed places:
 *
 *  - at the beginning: the farthest are UDF with 4 KiB blocks (1 MiB) and VMFS (2 MiB);
 *  - at the end: RAID metadata (Promise's up to 3087 sectors, 1.5 MiB, before it), two of ZFS's
 *    labels (512 KiB), the backup GPT.
 *
 * FAT32 and NTFS name places anywhere, without which a label, or the whole file system, is missed:
 * FAT32 keeps its label in the root directory, and NTFS its proof that it is NTFS in the MFT.
 * Labels of exFAT, HFS+ and UDF that stand elsewhere are not found.
 */
enum {
    COPY_START = (2 << 20) + (64 << 10), /* bytes */
    COPY_END = 2 << 20,
    COPY_PIECE = 256 << 10,
    FAT_CHAIN_MAX = 100, /* clusters that libblkid follows */
    FAT_COPY_MAX = 1 << 20,
    NTFS_COPY = 64 << 10, /* the first records of the MFT */
};

int partition_copy_more(struct image *image, uint64_t start, int fd, uint64_t offset,
                        uint64_t length, struct error *err)
{
    _cleanup_free_ uint8_t *buffer = NULL;
    struct extent extent;

    buffer = malloc(COPY_PIECE);
    if (buffer == NULL)
        return error_oom(err);
    while (length > 0) {
        int r = image_map(image, start + offset, length, IMAGE_MAP_HOLES, &extent, err);
        if (r < 0)
            return r;
        uint64_t n = extent.length;
        if (extent.kind != EXTENT_ZERO) {
            n = min_u64(n, COPY_PIECE);
            r = image_read(image, start + offset, buffer, (size_t)n, err);
            if (r >= 0)
                r = io_write_at(fd, "memory file", buffer, (size_t)n, offset, err);
            if (r < 0)
                return r;
        }
        offset += n;
        length -= n;
    }
    return 0;
}

/* As partition_copy_more(), of a range that a file system names: cut to what there is. */
static int copy_named(struct image *image, uint64_t start, uint64_t size, int fd, uint64_t offset,
                      uint64_t length, struct error *err)
{
    if (offset >= size)
        return 0;
    return partition_copy_more(image, start, fd, offset, min_u64(length, size - offset), err);
}

/* Field offsets of the boot sector that FAT and NTFS have in common. */
enum {
    BOOT_SECTOR_SIZE = 11,
    BOOT_CLUSTER_SECTORS = 13,
    FAT_RESERVED = 14,
    FAT_COUNT = 16,
    FAT_LENGTH_16 = 22,
    FAT_LENGTH_32 = 36,
    FAT_ROOT_CLUSTER = 44,
    NTFS_MAGIC = 3,
    NTFS_MFT_CLUSTER = 48,
};

/* FAT32's root directory is a chain of clusters. */
static int copy_fat32_root(struct image *image, uint64_t start, uint64_t size, int fd,
                           const uint8_t *boot, struct error *err)
{
    uint64_t sector = get_le16(boot + BOOT_SECTOR_SIZE);
    uint64_t cluster_size = boot[BOOT_CLUSTER_SECTORS] * sector;
    uint64_t fat = get_le16(boot + FAT_RESERVED) * sector;
    uint64_t data = fat + boot[FAT_COUNT] * sector * get_le32(boot + FAT_LENGTH_32);
    uint32_t cluster = get_le32(boot + FAT_ROOT_CLUSTER);

    if (sector < 512 || sector > 4096 || !is_power_of_two(sector) || cluster_size == 0)
        return 0;
    for (uint64_t i = 0; i < FAT_CHAIN_MAX && i * cluster_size < FAT_COPY_MAX; i++) {
        uint8_t entry[4];
        uint64_t entry_at = fat + UINT64_C(4) * cluster;

        if (cluster < 2 || cluster >= 0x0ffffff0 || !range_within(entry_at, sizeof(entry), size))
            return 0;
        int r = copy_named(image, start, size, fd, data + (cluster - 2) * cluster_size,
                           cluster_size, err);
        if (r >= 0)
            r = copy_named(image, start, size, fd, entry_at, sizeof(entry), err);
        if (r >= 0)
            r = image_read(image, start + entry_at, entry, sizeof(entry), err);
        if (r < 0)
            return r;
        cluster = get_le32(entry) & 0x0fffffff;
    }
    return 0;
}

static int copy_ntfs_mft(struct image *image, uint64_t start, uint64_t size, int fd,
                         const uint8_t *boot, struct error *err)
{
    uint64_t sector = get_le16(boot + BOOT_SECTOR_SIZE), offset;
    unsigned per_cluster = boot[BOOT_CLUSTER_SECTORS];

    /* From 0x80 on the negative of a power of two. */
    if (per_cluster > 0x80)
        per_cluster = 1U << ((256 - per_cluster) & 31);
    if (!checked_mul(get_le64(boot + NTFS_MFT_CLUSTER), sector * per_cluster, &offset))
        return 0;
    return copy_named(image, start, size, fd, offset, NTFS_COPY, err);
}

static int copy_what_is_named(struct image *image, uint64_t start, uint64_t size, int fd,
                              struct error *err)
{
    uint8_t boot[512];

    if (size < sizeof(boot))
        return 0;
    int r = image_read(image, start, boot, sizeof(boot), err);
    if (r < 0 || boot[510] != 0x55 || boot[511] != 0xaa)
        return r;
    if (memcmp(boot + NTFS_MAGIC, "NTFS    ", 8) == 0)
        return copy_ntfs_mft(image, start, size, fd, boot, err);
    if (get_le16(boot + FAT_LENGTH_16) == 0 && get_le32(boot + FAT_LENGTH_32) != 0)
        return copy_fat32_root(image, start, size, fd, boot, err);
    return 0;
}

int partition_copy(struct image *image, uint64_t start, uint64_t size, int *ret_fd,
                   struct error *err)
{
    _cleanup_close_ int fd = -1;

    fd = memfd_create("qverity-probe", MFD_CLOEXEC);
    if (fd < 0)
        return error_set_errno(err, errno, "cannot create a file in memory");
    int code = ftruncate(fd, (off_t)size) < 0 ? errno : 0;
    if (code == EFBIG)
        /* It holds for files in memory, too, and for their holes. */
        return error_set(err, EFBIG,
                         "partitions cannot be looked for on a disk of %" PRIu64 " bytes with a "
                         "smaller limit of file sizes (ulimit -f): raise it, or choose -p disk",
                         size);
    if (code != 0)
        return error_set_errno(err, code, "cannot make a sparse file of %" PRIu64 " bytes", size);
    uint64_t head = min_u64(size, COPY_START), tail = min_u64(size - head, COPY_END);
    int r = partition_copy_more(image, start, fd, 0, head, err);
    if (r >= 0)
        r = partition_copy_more(image, start, fd, size - tail, tail, err);
    if (r >= 0)
        r = copy_what_is_named(image, start, size, fd, err);
    if (r < 0)
        return r;
    *ret_fd = take_fd(&fd);
    return 0;
}
