/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"
#include "fs/internal.h"
#include "image/write.h"

#define FIXED_NODES 10 /* all but the partitions */

static struct fs_node *add(struct fs_nodes *nodes, enum node_kind kind, uint64_t size)
{
    struct fs_node *node = &nodes->all[nodes->count++];

    node->kind = kind;
    node->size = size;
    return node;
}

static void add_named(struct fs_nodes *nodes, const char *name, enum node_kind kind, uint64_t size)
{
    snprintf(add(nodes, kind, size)->name, sizeof(nodes->all->name), "%s", name);
}

static void add_text(struct fs_nodes *nodes, const char *name, enum text_kind text,
                     const size_t *sizes)
{
    add_named(nodes, name, NODE_TEXT, sizes[text]);
    nodes->all[nodes->count - 1].text = text;
}

/* Returns the node that serves the data partition. */
static const struct fs_node *add_ranges(struct fs_nodes *nodes, const struct fs_options *options)
{
    const struct partition_table *table = options->partitions;
    const struct fs_node *data = NULL;

    add_named(nodes, "disk", NODE_RANGE, image_size(options->image));
    if (options->data == &table->disk)
        data = &nodes->all[nodes->count - 1];
    for (size_t i = 0; i < table->count; i++) {
        const struct partition *partition = &table->partitions[i];

        /* An extended partition has no bytes but those of the partitions in it. */
        if (partition->container && partition != options->data)
            continue;
        struct fs_node *node = add(nodes, NODE_RANGE, partition->size);
        snprintf(node->name, sizeof(node->name), "part%u", partition->number);
        node->start = partition->start;
        if (partition == options->data)
            data = node;
    }
    return data;
}

/* Times of the files are the image's; they belong to whoever mounts. */
static void init_attr(struct fs_nodes *nodes, const struct image *image)
{
    struct stat st;

    nodes->attr = (struct stat){.st_uid = geteuid(), .st_gid = getegid(), .st_blksize = 4096};
    for (size_t i = 0; i < image_file_count(image); i++) {
        if (fstat(image_file(image, i)->fd, &st) < 0)
            continue;
        nodes->image_usage += (uint64_t)st.st_blocks * 512;
        if (i == 0) {
            nodes->attr.st_atim = st.st_mtim;
            nodes->attr.st_mtim = st.st_mtim;
            nodes->attr.st_ctim = st.st_ctim;
        }
    }
}

int fs_nodes_init(const struct fs_options *options, const size_t text_sizes[static TEXT_COUNT],
                  struct fs_nodes *ret, struct error *err)
{
    struct fs_nodes nodes = {.writable = image_writable(options->image)};

    nodes.all = calloc(FIXED_NODES + options->partitions->count, sizeof(*nodes.all));
    if (nodes.all == NULL)
        return error_oom(err);
    init_attr(&nodes, options->image);
    add_named(&nodes, "", NODE_ROOT, 0);
    const struct fs_node *data = add_ranges(&nodes, options);
    assert(data != NULL);
    add_named(&nodes, "data", NODE_LINK, strlen(data->name));
    nodes.all[nodes.count - 1].target = data->name;
    add_named(&nodes, "hash", NODE_HASH, hashtree_geometry(options->tree)->device_size);
    add_text(&nodes, "root-hash", TEXT_ROOT_HASH, text_sizes);
    add_text(&nodes, "table", TEXT_TABLE, text_sizes);
    add_text(&nodes, "cmdline", TEXT_CMDLINE, text_sizes);
    add_text(&nodes, "params.json", TEXT_PARAMS, text_sizes);
    add_named(&nodes, "stats.json", NODE_STATS, 0);
    assert(nodes.count <= FIXED_NODES + options->partitions->count);
    ret->all = nodes.all;
    ret->count = nodes.count;
    ret->attr = nodes.attr;
    ret->image_usage = nodes.image_usage;
    ret->writable = nodes.writable;
    return 0;
}

struct fs_node *fs_node_get(const struct fs_nodes *nodes, fuse_ino_t ino)
{
    if (ino < FUSE_ROOT_ID || ino - FUSE_ROOT_ID >= nodes->count)
        return NULL;
    return &nodes->all[ino - FUSE_ROOT_ID];
}

struct fs_node *fs_node_find(const struct fs_nodes *nodes, const char *name)
{
    for (size_t i = 1; i < nodes->count; i++)
        if (strcmp(nodes->all[i].name, name) == 0)
            return &nodes->all[i];
    return NULL;
}

fuse_ino_t fs_node_ino(const struct fs_nodes *nodes, const struct fs_node *node)
{
    return FUSE_ROOT_ID + (fuse_ino_t)(node - nodes->all);
}

void fs_node_stat(const struct fs_nodes *nodes, const struct fs_node *node, struct stat *ret)
{
    uint64_t usage = node->size;

    *ret = nodes->attr;
    ret->st_ino = fs_node_ino(nodes, node);
    ret->st_size = (off_t)node->size;
    switch (node->kind) {
    case NODE_ROOT:
        ret->st_mode = S_IFDIR | 0555;
        ret->st_nlink = 2;
        return;
    case NODE_LINK:
        ret->st_mode = S_IFLNK | 0777;
        ret->st_nlink = 1;
        return;
    case NODE_RANGE:
        /* Not more than what the image takes: cp and others then ask for holes. But not nothing:
         * tar would not even read the file. */
        usage = min_u64(usage, max_u64(nodes->image_usage, 512));
        break;
    case NODE_HASH:
    case NODE_TEXT:
    case NODE_STATS:
        break;
    }
    int64_t written = atomic_load_explicit(&nodes->written_ns, memory_order_relaxed);
    if (written != 0) {
        ret->st_mtim.tv_sec = written / 1000000000;
        ret->st_mtim.tv_nsec = written % 1000000000;
        ret->st_ctim = ret->st_mtim;
    }
    ret->st_mode = S_IFREG | (nodes->writable && node->kind == NODE_RANGE ? 0644 : 0444);
    ret->st_nlink = 1;
    ret->st_blocks = (blkcnt_t)div_round_up(usage, 512);
}
