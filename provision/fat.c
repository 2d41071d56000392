/* SPDX-License-Identifier: MIT */
#include "provision/fat.h"

#include <stdbool.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"

/* After Microsoft's "FAT: General Overview of On-Disk Format" and ECMA-107. */

#define BOOT_SIZE 512
#define TABLE_MAX (256u << 20)

struct fat {
    struct image *image;
    const struct partition *partition;
    uint64_t cluster_size, data, clusters; /* bytes, bytes from the start, number */
    unsigned bits;                         /* of an entry: 12, 16 or 32 */
    uint8_t *table;
    size_t table_size;
};

static int not_fat(const struct partition *partition, const char *what, struct error *err)
{
    return error_set(err, EMEDIUMTYPE, "partition %u: no FAT file system: %s", partition->number,
                     what);
}

/* Sizes and places, from the boot sector. */
static int read_boot(struct fat *fat, uint64_t *ret_table, struct error *err)
{
    uint8_t boot[BOOT_SIZE];

    if (fat->partition->size < BOOT_SIZE)
        return not_fat(fat->partition, "too small", err);
    int r = image_read(fat->image, fat->partition->start, boot, BOOT_SIZE, err);
    if (r < 0)
        return r;
    const uint64_t sector = get_le16(boot + 11), per_cluster = boot[13];
    const uint64_t reserved = get_le16(boot + 14), tables = boot[16];
    const uint64_t root_entries = get_le16(boot + 17);
    const uint64_t sectors = get_le16(boot + 19) != 0 ? get_le16(boot + 19) : get_le32(boot + 32);
    const uint64_t table = get_le16(boot + 22) != 0 ? get_le16(boot + 22) : get_le32(boot + 36);

    if (boot[510] != 0x55 || boot[511] != 0xaa)
        return not_fat(fat->partition, "no signature", err);
    if (!is_power_of_two(sector) || sector < 512 || sector > 4096 ||
        !is_power_of_two(per_cluster) || reserved == 0 || tables == 0 || tables > 4 || table == 0)
        return not_fat(fat->partition, "the boot sector makes no sense", err);
    const uint64_t root = div_round_up(root_entries * 32, sector);
    const uint64_t before = reserved + tables * table + root;
    if (before >= sectors || sectors > fat->partition->size / sector || table * sector > TABLE_MAX)
        return not_fat(fat->partition, "it is larger than the partition", err);
    fat->cluster_size = per_cluster * sector;
    fat->data = before * sector;
    fat->clusters = (sectors - before) / per_cluster;
    /* By the specification the number of clusters decides between 16 and 32, too. Linux and
     * dosfstools look at where the table's length stands, and make FAT32 with fewer clusters. */
    fat->bits = get_le16(boot + 22) == 0 ? 32 : fat->clusters < 4085 ? 12 : 16;
    fat->table_size = (size_t)(table * sector);
    if ((fat->clusters + 2) * fat->bits > (uint64_t)fat->table_size * 8)
        return not_fat(fat->partition, "its table is too short", err);
    *ret_table = reserved * sector;
    return 0;
}

static bool is_used(const struct fat *fat, uint64_t cluster)
{
    const size_t at = (size_t)(cluster * fat->bits / 8);

    switch (fat->bits) {
    case 12:
        return ((get_le16(fat->table + at) >> (cluster % 2 * 4)) & 0xfff) != 0;
    case 16:
        return get_le16(fat->table + at) != 0;
    default:
        return (get_le32(fat->table + at) & 0x0fffffff) != 0;
    }
}

int fat_used(struct image *image, const struct partition *partition,
             int (*keep)(void *arg, uint64_t start, uint64_t length, struct error *err), void *arg,
             struct error *err)
{
    struct fat fat = {.image = image, .partition = partition};
    _cleanup_free_ uint8_t *table = NULL;
    uint64_t table_at;

    int r = read_boot(&fat, &table_at, err);
    if (r < 0)
        return r;
    table = malloc(fat.table_size + 4);
    if (table == NULL)
        return error_oom(err);
    fat.table = table;
    r = image_read(image, partition->start + table_at, table, fat.table_size, err);
    if (r == 0)
        r = keep(arg, 0, fat.data, err);
    for (uint64_t i = 0; r == 0 && i < fat.clusters;) {
        uint64_t end = i;
        while (end < fat.clusters && is_used(&fat, end + 2))
            end++;
        if (end > i)
            r = keep(arg, fat.data + i * fat.cluster_size, (end - i) * fat.cluster_size, err);
        i = end + 1;
    }
    return r;
}
