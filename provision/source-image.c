/* SPDX-License-Identifier: MIT */
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "image/files.h"
#include "provision/source.h"

#define SUPERBLOCK_AT 1024
#define SUPERBLOCK_SIZE 1024
#define ROOT_INODE 2

/* Offsets in the superblock, and bits of s_feature_incompat (Documentation/filesystems/ext4). */
#define AT_INCOMPAT 0x60
#define AT_UUID 0x68
#define AT_LABEL 0x78
#define AT_HASH_SEED 0xec
#define INCOMPAT_RECOVER 0x4
#define INCOMPAT_ENCRYPT 0x10000
#define INCOMPAT_CASEFOLD 0x20000

struct image_source {
    struct source source;
    struct file_system *fs;
};

static struct image_source *image_of(struct source *source)
{
    return (struct image_source *)source;
}

static void fill(const struct file_info *info, struct source_node *node)
{
    const int64_t mtime = info->modified.tv_sec;

    node->attributes = (struct ext4_attributes){
        .mode = info->mode,
        .uid = info->uid,
        .gid = info->gid,
        .mtime = mtime < 0                     ? 0
                 : mtime > (int64_t)UINT32_MAX ? UINT32_MAX
                                               : (uint32_t)mtime,
        .device = makedev(info->device_major, info->device_minor),
    };
    node->id = info->inode;
    node->links = info->links;
    node->size = S_ISREG(info->mode) ? info->size : 0;
}

static int open_node(struct source *source, uint64_t id, const char *path, struct file_node **ret,
                     struct error *err)
{
    int r = file_node_open(image_of(source)->fs, (uint32_t)id, ret, err);

    return r < 0 ? error_prefix(err, "%s", path) : 0;
}

static int image_root(struct source *source, struct source_node *ret, struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    int r = open_node(source, ROOT_INODE, "/", &node, err);
    if (r == 0)
        fill(file_node_info(node), ret);
    return r;
}

struct listing {
    struct source *source;
    const struct source_node *directory;
    int (*take)(void *arg, const struct source_node *entry, struct error *err);
    void *arg;
};

static int take_entry(void *arg, const struct file_entry *entry, struct error *err)
{
    const struct listing *listing = arg;
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
    _cleanup_free_ char *name = strndup(entry->name, entry->length);
    struct source_node found = {0};

    if (name == NULL)
        return error_oom(err);
    int r = open_node(listing->source, entry->inode, name, &node, err);
    if (r < 0)
        return error_prefix(err, "%s", listing->directory->path);
    fill(file_node_info(node), &found);
    found.name = name;
    return listing->take(listing->arg, &found, err);
}

static int image_list(struct source *source, const struct source_node *directory,
                      int (*take)(void *arg, const struct source_node *entry, struct error *err),
                      void *arg, struct error *err)
{
    struct listing listing = {.source = source, .directory = directory, .take = take, .arg = arg};
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    int r = open_node(source, directory->id, directory->path, &node, err);
    return r < 0 ? r : file_node_list(node, take_entry, &listing, err);
}

static int image_link(struct source *source, const struct source_node *link, char **ret,
                      struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    int r = open_node(source, link->id, link->path, &node, err);
    return r < 0 ? r : file_node_read_link(node, ret, err);
}

struct reading {
    source_take_bytes *take;
    void *arg;
};

/* Holes are left out: what is not written is one. */
static int take_piece(void *arg, uint64_t offset, const void *bytes, uint64_t length,
                      struct error *err)
{
    const struct reading *reading = arg;

    return bytes == NULL ? 0 : reading->take(reading->arg, offset, bytes, (size_t)length, err);
}

static int image_read_file(struct source *source, const struct source_node *file,
                           source_take_bytes *take, void *arg, struct error *err)
{
    struct reading reading = {.take = take, .arg = arg};
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    int r = open_node(source, file->id, file->path, &node, err);
    return r < 0 ? r : file_node_read_all(node, take_piece, &reading, err);
}

static int image_xattrs(struct source *source, const struct source_node *file,
                        source_take_xattr *take, void *arg, struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    int r = open_node(source, file->id, file->path, &node, err);
    return r < 0 ? r : file_node_xattrs(node, take, arg, err);
}

static void image_free(struct source *source)
{
    file_system_close(image_of(source)->fs);
    free(image_of(source));
}

static const struct source_ops image_ops = {
    .root = image_root,
    .list = image_list,
    .link = image_link,
    .read = image_read_file,
    .xattrs = image_xattrs,
    .free = image_free,
};

/* --- The superblock --- */

static int read_superblock(struct image *image, const struct partition *partition,
                           uint8_t bytes[static SUPERBLOCK_SIZE], struct error *err)
{
    if (partition->size < SUPERBLOCK_AT + SUPERBLOCK_SIZE)
        return error_set(err, EUCLEAN, "partition %u is too small for a file system",
                         partition->number);
    return image_read(image, partition->start + SUPERBLOCK_AT, bytes, SUPERBLOCK_SIZE, err);
}

int source_identify(struct image *image, const struct partition *partition,
                    struct source_identity *ret, struct error *err)
{
    uint8_t bytes[SUPERBLOCK_SIZE];

    int r = read_superblock(image, partition, bytes, err);
    if (r < 0)
        return r;
    memcpy(ret->uuid, bytes + AT_UUID, sizeof(ret->uuid));
    memcpy(ret->hash_seed, bytes + AT_HASH_SEED, sizeof(ret->hash_seed));
    memcpy(ret->label, bytes + AT_LABEL, sizeof(ret->label) - 1);
    ret->label[sizeof(ret->label) - 1] = '\0';
    return 0;
}

static int check_features(struct image *image, const struct partition *partition, struct error *err)
{
    uint8_t bytes[SUPERBLOCK_SIZE];
    uint32_t incompat = 0;

    int r = read_superblock(image, partition, bytes, err);
    if (r < 0)
        return r;
    for (int i = 3; i >= 0; i--)
        incompat = incompat << 8 | bytes[AT_INCOMPAT + i];
    if ((incompat & INCOMPAT_RECOVER) != 0)
        return error_set(err, EUCLEAN,
                         "partition %u: its file system was not unmounted cleanly, and so its "
                         "journal has what its blocks do not",
                         partition->number);
    if ((incompat & (INCOMPAT_ENCRYPT | INCOMPAT_CASEFOLD)) != 0)
        return error_set(err, ENOTSUP,
                         "partition %u: its file system may have encrypted or case-folded "
                         "directories, which cannot be copied",
                         partition->number);
    return 0;
}

int source_open_image(struct image *image, const struct partition *partition, struct source **ret,
                      struct error *err)
{
    _cleanup_free_ struct image_source *source = calloc(1, sizeof(*source));

    if (source == NULL)
        return error_oom(err);
    source->source = (struct source){.ops = &image_ops, .raw_xattrs = true};
    int r = check_features(image, partition, err);
    if (r == 0)
        r = file_system_open(image, partition, &source->fs, err);
    if (r < 0)
        return r;
    *ret = &TAKE_PTR(source)->source;
    return 0;
}
