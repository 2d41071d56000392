/* SPDX-License-Identifier: MIT */
#include "image/ext-internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/log.h"
#include "common/text.h"

/*
 * Opening a file system. What the superblock says is checked before the library sees it: the
 * library allocates and divides by it.
 */

enum {
    SUPERBLOCK_AT = 1024, /* bytes into the partition */
    SUPERBLOCK_LENGTH = 1024,
    BLOCK_BITS_MAX = 16,
    INODE_SIZE_MIN = 128,
    CLUSTER_BITS_MAX = 29,
    DESCRIPTOR_MIN = 32,
    DESCRIPTOR_MIN_64BIT = 64,
    DESCRIPTOR_MAX = 1024,
    /* All group descriptors are kept in memory. It is enough for 500 TiB of a usual file system. */
    DESCRIPTORS_MAX = 256 << 20,
    GROUP_BLOCKS_MIN = 8,
};

/* --- Reading --- */

static int read_range(struct file_system *fs, uint64_t offset, size_t length, void *buffer,
                      struct error *err)
{
    if (!range_within(offset, length, fs->size))
        return error_set(err, EUCLEAN,
                         "%zu bytes at offset %" PRIu64 " are beyond the end of the partition",
                         length, offset);
    return image_read(fs->image, fs->start + offset, buffer, length, err);
}

bool ext_blocks_valid(const struct file_system *fs, uint64_t first, uint64_t count)
{
    return first > fs->ext->super->s_first_data_block && range_within(first, count, fs->blocks);
}

int ext_read_block(struct file_system *fs, uint64_t block, void *buffer, struct error *err)
{
    if (!ext_blocks_valid(fs, block, 1))
        return error_set(err, EUCLEAN, "there is no block %" PRIu64, block);
    return read_range(fs, block * fs->block_size, fs->block_size, buffer, err);
}

/* --- The library's io manager --- */

static struct struct_io_manager io_manager_of_image;

/* For io_open(), which has no argument to be told by. */
static _Thread_local struct file_system *opening;

static errcode_t io_open(const char *name, int flags, io_channel *ret)
{
    io_channel channel;

    (void)flags;
    channel = calloc(1, sizeof(*channel));
    if (channel == NULL)
        return ENOMEM;
    channel->name = strdup(name);
    if (channel->name == NULL) {
        free(channel);
        return ENOMEM;
    }
    channel->magic = EXT2_ET_MAGIC_IO_CHANNEL;
    channel->manager = &io_manager_of_image;
    channel->block_size = 1024;
    channel->refcount = 1;
    channel->private_data = opening;
    *ret = channel;
    return 0;
}

static errcode_t io_close(io_channel channel)
{
    if (--channel->refcount > 0)
        return 0;
    free(channel->name);
    free(channel);
    return 0;
}

static errcode_t io_set_block_size(io_channel channel, int size)
{
    channel->block_size = size;
    return 0;
}

/* `count` is of blocks or, if it is negative, of bytes. */
static errcode_t io_read64(io_channel channel, unsigned long long block, int count, void *buffer)
{
    struct file_system *fs = channel->private_data;
    uint64_t size = (uint64_t)channel->block_size, offset;
    uint64_t length = count < 0 ? (uint64_t) - (int64_t)count : (uint64_t)count * size;

    if (!checked_mul(block, size, &offset))
        return EXT2_ET_BAD_BLOCK_NUM;
    error_clear(&fs->io_error);
    return read_range(fs, offset, (size_t)length, buffer, &fs->io_error) < 0 ? EIO : 0;
}

static errcode_t io_read(io_channel channel, unsigned long block, int count, void *buffer)
{
    return io_read64(channel, block, count, buffer);
}

static errcode_t io_write64(io_channel channel, unsigned long long block, int count,
                            const void *buffer)
{
    (void)channel;
    (void)block;
    (void)count;
    (void)buffer;
    return EXT2_ET_RO_FILSYS;
}

static errcode_t io_write(io_channel channel, unsigned long block, int count, const void *buffer)
{
    return io_write64(channel, block, count, buffer);
}

static errcode_t io_flush(io_channel channel)
{
    (void)channel;
    return 0;
}

static struct struct_io_manager io_manager_of_image = {
    .magic = EXT2_ET_MAGIC_IO_MANAGER,
    .name = "qverity image",
    .open = io_open,
    .close = io_close,
    .set_blksize = io_set_block_size,
    .read_blk = io_read,
    .read_blk64 = io_read64,
    .write_blk = io_write,
    .write_blk64 = io_write64,
    .flush = io_flush,
};

/* --- Errors --- */

static const char *library_message(errcode_t code)
{
    const struct error_table *table = &et_ext2_error_table;

    if (code >= table->base && code < table->base + table->n_msgs)
        return table->msgs[code - table->base];
    return code > 0 && code < 4096 ? strerror((int)code) : "unknown error of libext2fs";
}

int ext_error(struct file_system *fs, errcode_t code, struct error *err, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    _cleanup_free_ char *what = text_vformat(format, args);
    va_end(args);
    if (what == NULL || code == ENOMEM || code == EXT2_ET_NO_MEMORY)
        return error_oom(err);
    if (code == EIO && fs->io_error.code != 0) {
        if (err == NULL)
            return -fs->io_error.code;
        error_move(err, &fs->io_error);
        return error_prefix(err, "%s", what);
    }
    return error_set(err, EUCLEAN, "%s: %s", what, library_message(code));
}

/* --- The superblock --- */

static int check_geometry(const struct file_system *fs, const struct ext2_super_block *super,
                          struct error *err)
{
    const bool wide = (super->s_feature_incompat & EXT4_FEATURE_INCOMPAT_64BIT) != 0;
    const uint32_t bits = super->s_log_block_size;
    const uint64_t first = super->s_first_data_block;
    uint64_t blocks = super->s_blocks_count, length, descriptor = DESCRIPTOR_MIN;

    if (bits > BLOCK_BITS_MAX - EXT2_MIN_BLOCK_LOG_SIZE)
        return error_set(err, EUCLEAN, "superblock: s_log_block_size is %" PRIu32, bits);
    if ((super->s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_BIGALLOC) != 0 &&
        (super->s_log_cluster_size < bits ||
         super->s_log_cluster_size > CLUSTER_BITS_MAX - EXT2_MIN_BLOCK_LOG_SIZE))
        return error_set(err, EUCLEAN, "superblock: s_log_cluster_size is %" PRIu32,
                         super->s_log_cluster_size);
    const uint64_t block_size = UINT64_C(1) << (bits + EXT2_MIN_BLOCK_LOG_SIZE);
    if (wide)
        blocks |= (uint64_t)super->s_blocks_count_hi << 32;
    if (!checked_mul(blocks, block_size, &length) || length > fs->size)
        return error_set(err, EUCLEAN,
                         "superblock: %" PRIu64 " blocks of %" PRIu64
                         " bytes are more than the partition of %" PRIu64 " bytes holds",
                         blocks, block_size, fs->size);
    if (first >= blocks)
        return error_set(err, EUCLEAN,
                         "superblock: the first data block is %" PRIu64 ", there are %" PRIu64,
                         first, blocks);
    if (super->s_blocks_per_group < GROUP_BLOCKS_MIN || super->s_inodes_per_group == 0)
        return error_set(err, EUCLEAN,
                         "superblock: %" PRIu32 " blocks and %" PRIu32 " inodes in a group",
                         super->s_blocks_per_group, super->s_inodes_per_group);
    if (wide)
        descriptor = super->s_desc_size;
    if (!is_power_of_two(descriptor) || descriptor > DESCRIPTOR_MAX ||
        descriptor < (wide ? DESCRIPTOR_MIN_64BIT : DESCRIPTOR_MIN))
        return error_set(err, EUCLEAN, "superblock: s_desc_size is %" PRIu64, descriptor);
    const uint64_t groups = div_round_up(blocks - first, super->s_blocks_per_group);
    if (groups > DESCRIPTORS_MAX / descriptor)
        return error_set(err, EFBIG, "%" PRIu64 " block groups are more than are read here",
                         groups);
    if (super->s_inodes_count > groups * super->s_inodes_per_group)
        return error_set(err, EUCLEAN,
                         "superblock: %" PRIu32 " inodes, but %" PRIu64 " groups of %" PRIu32,
                         super->s_inodes_count, groups, super->s_inodes_per_group);
    return 0;
}

static int check_inodes(const struct ext2_super_block *super, struct error *err)
{
    const uint32_t size =
        super->s_rev_level == EXT2_GOOD_OLD_REV ? INODE_SIZE_MIN : super->s_inode_size;

    if (!is_power_of_two(size) || size < INODE_SIZE_MIN ||
        size > UINT32_C(1024) << super->s_log_block_size)
        return error_set(err, EUCLEAN, "superblock: s_inode_size is %" PRIu32, size);
    if (super->s_inodes_count < EXT2_ROOT_INO)
        return error_set(err, EUCLEAN, "superblock: %" PRIu32 " inodes", super->s_inodes_count);
    return 0;
}

static int check_features(const struct ext2_super_block *super, struct error *err)
{
    const uint32_t unknown = super->s_feature_incompat & ~(uint32_t)EXT2_LIB_FEATURE_INCOMPAT_SUPP;

    if (super->s_rev_level > EXT2_MAX_SUPP_REV)
        return error_set(err, ENOTSUP, "superblock: revision %" PRIu32 " is not known",
                         super->s_rev_level);
    if (unknown != 0)
        return error_set(err, ENOTSUP,
                         "superblock: libext2fs does not know all features (s_feature_incompat has "
                         "0x%" PRIx32 ")",
                         unknown);
    if ((super->s_feature_incompat & EXT3_FEATURE_INCOMPAT_JOURNAL_DEV) != 0)
        return error_set(err, EMEDIUMTYPE, "this is the journal of an ext4 file system elsewhere");
    return 0;
}

static int check_superblock(struct file_system *fs, struct error *err)
{
    struct ext2_super_block super;

    _Static_assert(sizeof(super) == SUPERBLOCK_LENGTH, "ext4's superblock");
    int r = read_range(fs, SUPERBLOCK_AT, sizeof(super), &super, err);
    if (r < 0)
        return r;
    if (super.s_magic != EXT2_SUPER_MAGIC)
        return error_set(err, EUCLEAN, "superblock: the magic number is 0x%04x", super.s_magic);
    r = check_features(&super, err);
    if (r == 0)
        r = check_geometry(fs, &super, err);
    if (r == 0)
        r = check_inodes(&super, err);
    if (r == 0 && (super.s_feature_incompat & EXT3_FEATURE_INCOMPAT_RECOVER) != 0)
        log_warning("%s: the file system was not unmounted cleanly: what is in its journal only is "
                    "not seen",
                    image_path(fs->image));
    return r;
}

/* --- Opening --- */

bool file_system_is_readable(const struct partition *partition)
{
    static const char *const names[] = {"ext2", "ext3", "ext4", "ext4dev"};

    for (size_t i = 0; partition->fs_type != NULL && i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(partition->fs_type, names[i]) == 0)
            return true;
    return false;
}

/* What else there is, in words that a user knows. */
static int check_type(struct file_system *fs, const struct partition *partition, const char *where,
                      struct error *err)
{
    static const struct {
        const char *type, *text;
    } names[] = {
        {"crypto_LUKS", "is encrypted with LUKS"},
        {"BitLocker", "is encrypted with BitLocker"},
        {"LVM2_member", "is a physical volume of LVM"},
        {"linux_raid_member", "is a part of a RAID"},
        {"swap", "is swap space"},
        {"jbd", "is the journal of an ext4 file system elsewhere"},
    };
    const char *const only = "files can be read on ext2, ext3 and ext4 only";
    uint8_t magic[2];

    if (file_system_is_readable(partition))
        return 0;
    if (partition->container)
        return error_set(err, EMEDIUMTYPE, "%s is an extended partition: %s", where, only);
    for (size_t i = 0; partition->fs_type != NULL && i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(partition->fs_type, names[i].type) == 0)
            return error_set(err, EMEDIUMTYPE, "%s %s: %s", where, names[i].text, only);
    if (partition->fs_type != NULL)
        return error_set(err, EMEDIUMTYPE, "%s holds %s: %s", where, partition->fs_type, only);
    /* libblkid does not tell of one that left another's signature in its place. */
    if (partition->size >= SUPERBLOCK_AT + SUPERBLOCK_LENGTH) {
        int r = read_range(fs, SUPERBLOCK_AT + 56, sizeof(magic), magic, err);
        if (r < 0 || get_le16(magic) == EXT2_SUPER_MAGIC)
            return r;
    }
    return error_set(err, EMEDIUMTYPE, "%s holds no file system that is known: %s", where, only);
}

static int open_library(struct file_system *fs, struct error *err)
{
    opening = fs;
    errcode_t code =
        ext2fs_open2("image", NULL, EXT2_FLAG_64BITS, 0, 0, &io_manager_of_image, &fs->ext);
    opening = NULL;
    if (code != 0) {
        fs->ext = NULL;
        return ext_error(fs, code, err, "superblock and group descriptors");
    }
    fs->block_size = fs->ext->blocksize;
    fs->blocks = ext2fs_blocks_count(fs->ext->super);
    return 0;
}

void file_system_close(struct file_system *fs)
{
    /* Not ext2fs_close(): there is nothing to write. */
    if (fs->ext != NULL)
        ext2fs_free(fs->ext);
    error_clear(&fs->io_error);
    free(fs->piece);
    free(fs);
}

static int open_in(struct file_system *fs, const struct partition *partition, const char *where,
                   struct error *err)
{
    int r = check_type(fs, partition, where, err);
    if (r < 0)
        return r;
    r = check_superblock(fs, err);
    if (r == 0)
        r = open_library(fs, err);
    return r < 0 ? error_prefix(err, "file system of %s", where) : 0;
}

int file_system_open(struct image *image, const struct partition *partition,
                     struct file_system **ret, struct error *err)
{
    _cleanup_(file_system_close_cleanup) struct file_system *fs = calloc(1, sizeof(*fs));
    char where[32] = "the disk";

    if (fs == NULL)
        return error_oom(err);
    fs->image = image;
    fs->start = partition->start;
    fs->size = partition->size;
    if (partition->number != 0)
        snprintf(where, sizeof(where), "partition %u", partition->number);
    int r = open_in(fs, partition, where, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(fs);
    return 0;
}
