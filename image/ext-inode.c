/* SPDX-License-Identifier: MIT */
#include "image/ext-internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/checked.h"

/* --- Extra fields of large inodes --- */

/* Whether an inode of the file system has a field that ends at this byte. */
static bool has_extra(const struct file_system *fs, const struct ext2_inode_large *inode,
                      size_t field_end)
{
    return EXT2_INODE_SIZE(fs->ext->super) > EXT2_GOOD_OLD_INODE_SIZE &&
           EXT2_GOOD_OLD_INODE_SIZE + (size_t)inode->i_extra_isize >= field_end;
}

#define HAS_EXTRA(fs, inode, field)                      \
    has_extra(fs, inode,                                 \
              offsetof(struct ext2_inode_large, field) + \
                  sizeof(((struct ext2_inode_large *)0)->field))

/* Seconds are signed 32 bits; `extra` has two more bits of them and 30 bits of nanoseconds. */
static struct timespec make_time(uint32_t seconds, uint32_t extra)
{
    struct timespec t = {
        .tv_sec = (time_t)(int32_t)seconds + ((time_t)(extra & 3) << 32),
        .tv_nsec = extra >> 2,
    };

    if (t.tv_nsec >= 1000000000)
        t.tv_nsec = 0;
    return t;
}

static void take_times(const struct file_system *fs, const struct ext2_inode_large *inode,
                       struct file_info *info)
{
    info->accessed =
        make_time(inode->i_atime, HAS_EXTRA(fs, inode, i_atime_extra) ? inode->i_atime_extra : 0);
    info->modified =
        make_time(inode->i_mtime, HAS_EXTRA(fs, inode, i_mtime_extra) ? inode->i_mtime_extra : 0);
    info->changed =
        make_time(inode->i_ctime, HAS_EXTRA(fs, inode, i_ctime_extra) ? inode->i_ctime_extra : 0);
    if (HAS_EXTRA(fs, inode, i_crtime_extra))
        info->created = make_time(inode->i_crtime, inode->i_crtime_extra);
}

/* --- Inline data --- */

enum {
    XATTR_MAGIC = 0xea020000,
    XATTR_ENTRY = 16, /* bytes of an entry before its name */
    XATTR_INDEX_SYSTEM = 7,
};

/*
 * What does not fit into i_block is the attribute system.data, behind the inode's fields: entries
 * of name_len, name_index (1 byte each), value_offs (2), value_inum, value_size, hash (4 each),
 * name, up to four zero bytes. Offsets count from the first entry.
 */
static int find_inline_rest(const uint8_t *area, size_t room, const uint8_t **ret, size_t *ret_size,
                            struct error *err)
{
    size_t at = 0;

    while (at + 4 <= room && get_le32(area + at) != 0) {
        const uint8_t *entry = area + at;

        if (at + XATTR_ENTRY > room || at + XATTR_ENTRY + entry[0] > room)
            break;
        if (entry[0] == 4 && entry[1] == XATTR_INDEX_SYSTEM &&
            memcmp(entry + XATTR_ENTRY, "data", 4) == 0) {
            const uint32_t offset = get_le16(entry + 2), size = get_le32(entry + 8);

            if (get_le32(entry + 4) != 0 || !range_within(offset, size, room))
                return error_set(err, EUCLEAN,
                                 "inline data: %" PRIu32 " bytes at offset %" PRIu32
                                 " of attributes are not there",
                                 size, offset);
            *ret = area + offset;
            *ret_size = size;
            return 0;
        }
        at += XATTR_ENTRY + ((size_t)entry[0] + 3) / 4 * 4;
    }
    *ret_size = 0;
    return 0;
}

/* `inode` is all of the inode, `size` bytes. */
static int take_inline(struct file_node *node, const uint8_t *inode, size_t size, struct error *err)
{
    const struct ext2_inode_large *fields = (const void *)inode;
    const uint8_t *rest = NULL;
    size_t rest_size = 0;

    if (!ext2fs_has_feature_inline_data(node->fs->ext->super))
        return error_set(err, EUCLEAN, "it has inline data, the file system has not");
    if (size > EXT2_GOOD_OLD_INODE_SIZE) {
        size_t at = EXT2_GOOD_OLD_INODE_SIZE + (size_t)fields->i_extra_isize;

        if (at % 4 != 0 || at > size)
            return error_set(err, EUCLEAN, "i_extra_isize is %u", fields->i_extra_isize);
        if (at + 4 <= size && get_le32(inode + at) == XATTR_MAGIC) {
            int r = find_inline_rest(inode + at + 4, size - at - 4, &rest, &rest_size, err);
            if (r < 0)
                return r;
        }
    }
    node->inline_data = malloc(EXT_INODE_BLOCK + rest_size);
    if (node->inline_data == NULL)
        return error_oom(err);
    memcpy(node->inline_data, node->block, EXT_INODE_BLOCK);
    if (rest_size > 0)
        memcpy(node->inline_data + EXT_INODE_BLOCK, rest, rest_size);
    node->inline_size = EXT_INODE_BLOCK + rest_size;
    return 0;
}

/* --- Opening --- */

/* As the kernel's old and new encodings of i_block[0] and [1]. */
static void take_device(struct file_node *node)
{
    const uint32_t old = get_le32(node->block), new = get_le32(node->block + 4);

    if (!S_ISBLK(node->info.mode) && !S_ISCHR(node->info.mode))
        return;
    node->info.device_major = old != 0 ? old >> 8 & 0xff : new >> 8 & 0xfff;
    node->info.device_minor = old != 0 ? old & 0xff : (new & 0xff) | (new >> 12 & 0xfff00);
}

static uint64_t inode_size(const struct file_system *fs, const struct ext2_inode_large *inode)
{
    uint64_t size = inode->i_size;

    /* For other types the upper half has been something else. */
    if (S_ISREG(inode->i_mode) ||
        (S_ISDIR(inode->i_mode) && ext2fs_has_feature_largedir(fs->ext->super)))
        size |= (uint64_t)inode->i_size_high << 32;
    return size;
}

/* i_blocks, in bytes. */
static uint64_t allocated_bytes(const struct file_system *fs, const struct ext2_inode_large *inode)
{
    uint64_t blocks = inode->i_blocks;

    if (ext2fs_has_feature_huge_file(fs->ext->super)) {
        blocks |= (uint64_t)inode->osd2.linux2.l_i_blocks_hi << 32;
        if ((inode->i_flags & EXT4_HUGE_FILE_FL) != 0)
            return blocks * fs->block_size;
    }
    return blocks * 512;
}

static uint64_t allocation_unit(const struct file_system *fs)
{
    const struct ext2_super_block *super = fs->ext->super;

    return ext2fs_has_feature_bigalloc(fs->ext->super) ? EXT2_CLUSTER_SIZE(super) : fs->block_size;
}

/* Whether i_block is a symbolic link's target itself: if the link has no blocks but, perhaps, one
 * of attributes. */
static bool is_fast_link(const struct file_node *node, const struct ext2_inode_large *inode)
{
    const uint64_t attributes = inode->i_file_acl != 0 ? allocation_unit(node->fs) : 0;

    return S_ISLNK(node->info.mode) && (node->flags & EXT4_INLINE_DATA_FL) == 0 &&
           node->info.size < EXT_INODE_BLOCK && node->info.allocated <= attributes;
}

static int check_inode(const struct file_node *node, struct error *err)
{
    switch (node->info.mode & S_IFMT) {
    case S_IFREG:
    case S_IFDIR:
    case S_IFLNK:
    case S_IFBLK:
    case S_IFCHR:
    case S_IFIFO:
    case S_IFSOCK:
        break;
    default:
        return error_set(err, EUCLEAN, "i_mode is 0%o", (unsigned)node->info.mode);
    }
    if (node->info.links == 0)
        return error_set(err, EUCLEAN, "it is deleted, but a directory names it");
    if (S_ISLNK(node->info.mode) && (node->info.size == 0 || node->info.size > EXT_LINK_MAX))
        return error_set(err, EUCLEAN, "the target of the symbolic link has %" PRIu64 " bytes",
                         node->info.size);
    if ((S_ISREG(node->info.mode) || S_ISDIR(node->info.mode)) &&
        div_round_up(node->info.size, node->fs->block_size) > ext_map_limit(node))
        return error_set(err, EUCLEAN, "i_size is %" PRIu64 ", more than a file can have",
                         node->info.size);
    return 0;
}

static int take_inode(struct file_node *node, const uint8_t *bytes, size_t size, struct error *err)
{
    const struct ext2_inode_large *inode = (const void *)bytes;
    struct file_info *info = &node->info;
    int r;

    info->mode = inode->i_mode;
    info->uid = inode->i_uid | (uint32_t)inode->osd2.linux2.l_i_uid_high << 16;
    info->gid = inode->i_gid | (uint32_t)inode->osd2.linux2.l_i_gid_high << 16;
    info->links = inode->i_links_count;
    info->size = inode_size(node->fs, inode);
    info->allocated = allocated_bytes(node->fs, inode);
    take_times(node->fs, inode, info);
    node->flags = inode->i_flags;
    memcpy(node->block, inode->i_block, sizeof(node->block));
    node->fast_link = is_fast_link(node, inode);
    take_device(node);
    if ((node->flags & EXT4_INLINE_DATA_FL) != 0) {
        r = take_inline(node, bytes, size, err);
        if (r < 0)
            return r;
    }
    return check_inode(node, err);
}

static int read_inode(struct file_node *node, struct error *err)
{
    struct file_system *fs = node->fs;
    const uint32_t number = node->info.inode;
    const size_t size = EXT2_INODE_SIZE(fs->ext->super);
    _cleanup_free_ uint8_t *bytes = NULL;

    if (number == 0 || number > fs->ext->super->s_inodes_count ||
        (number != EXT2_ROOT_INO && number < EXT2_FIRST_INODE(fs->ext->super)))
        return error_set(err, EUCLEAN, "no file can have this number");
    const dgrp_t group = ext2fs_group_of_ino(fs->ext, number);
    if (!ext2fs_group_desc_csum_verify(fs->ext, group))
        return error_set(err, EUCLEAN,
                         "the checksum of the descriptor of group %" PRIu32 " is wrong", group);
    bytes =
        calloc(1, size > sizeof(struct ext2_inode_large) ? size : sizeof(struct ext2_inode_large));
    if (bytes == NULL)
        return error_oom(err);
    errcode_t code =
        ext2fs_read_inode_full(fs->ext, number, (struct ext2_inode *)(void *)bytes, (int)size);
    if (code != 0)
        return ext_error(fs, code, err, "reading it");
    return take_inode(node, bytes, size, err);
}

void file_node_close(struct file_node *node)
{
    for (size_t i = 0; i < EXT_DEPTH_MAX; i++)
        free(node->levels[i].bytes);
    free(node->inline_data);
    free(node->path);
    free(node);
}

int file_node_open(struct file_system *fs, uint32_t inode, struct file_node **ret,
                   struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = calloc(1, sizeof(*node));

    if (node == NULL)
        return error_oom(err);
    node->fs = fs;
    node->info.inode = inode;
    int r = read_inode(node, err);
    if (r < 0)
        return error_prefix(err, "inode %" PRIu32, inode);
    *ret = TAKE_PTR(node);
    return 0;
}

const struct file_info *file_node_info(const struct file_node *node)
{
    return &node->info;
}

const char *file_node_path(const struct file_node *node)
{
    return node->path;
}
