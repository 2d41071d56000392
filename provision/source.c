/* SPDX-License-Identifier: MIT */
#include "provision/source.h"

#include <search.h>
#include <string.h>
#include <sys/stat.h>

#define DEPTH_MAX 200
/* Files that are replaced are texts of a system's configuration. */
#define REPLACED_MAX (16 * 1024 * 1024)

/* A file with several names that was copied. */
struct known {
    uint64_t id;
    uint32_t inode;
};

struct copy {
    const struct copy_options *options;
    void *known; /* a tree of tsearch() */
    uint64_t files, bytes;
    bool only_count;
};

static int compare_known(const void *a, const void *b)
{
    const struct known *x = a, *y = b;

    return x->id < y->id ? -1 : x->id > y->id;
}

/* --- A directory's entries, sorted --- */

struct listing {
    struct source_node *nodes; /* names and paths are owned */
    size_t count, room;
    const char *parent; /* path */
};

static void listing_clear(struct listing *listing)
{
    for (size_t i = 0; i < listing->count; i++)
        free((char *)listing->nodes[i].path);
    free(listing->nodes);
}
DEFINE_CLEANUP_INPLACE(struct listing, listing_clear);

static int take_entry(void *arg, const struct source_node *entry, struct error *err)
{
    struct listing *listing = arg;
    const char *slash = strcmp(listing->parent, "/") == 0 ? "" : "/";
    char *path;

    if (listing->count == listing->room) {
        size_t room = listing->room * 2 + 16;
        struct source_node *nodes = realloc(listing->nodes, room * sizeof(*nodes));
        if (nodes == NULL)
            return error_oom(err);
        listing->nodes = nodes;
        listing->room = room;
    }
    if (asprintf(&path, "%s%s%s", listing->parent, slash, entry->name) < 0)
        return error_oom(err);
    struct source_node *node = &listing->nodes[listing->count++];
    *node = *entry;
    node->path = path;
    node->name = strrchr(path, '/') + 1;
    return 0;
}

static int compare_nodes(const void *a, const void *b)
{
    return strcmp(((const struct source_node *)a)->name, ((const struct source_node *)b)->name);
}

static int list_sorted(struct copy *copy, const struct source_node *directory, struct listing *ret,
                       struct error *err)
{
    struct source *source = copy->options->source;

    ret->parent = directory->path;
    int r = source->ops->list(source, directory, take_entry, ret, err);
    if (r < 0)
        return r;
    if (ret->count > 0)
        qsort(ret->nodes, ret->count, sizeof(*ret->nodes), compare_nodes);
    for (size_t i = 1; i < ret->count; i++)
        if (strcmp(ret->nodes[i - 1].name, ret->nodes[i].name) == 0)
            return error_set(err, EUCLEAN, "%s: is in its directory twice", ret->nodes[i].path);
    return 0;
}

/* --- What belongs to a file --- */

struct attribute {
    char *name;
    void *value;
    size_t length;
};

struct attributes {
    struct attribute *items;
    size_t count;
};

static void attributes_clear(struct attributes *attributes)
{
    for (size_t i = 0; i < attributes->count; i++) {
        free(attributes->items[i].name);
        free(attributes->items[i].value);
    }
    free(attributes->items);
}
DEFINE_CLEANUP_INPLACE(struct attributes, attributes_clear);

static int take_xattr(void *arg, const char *name, const void *value, size_t length,
                      struct error *err)
{
    struct attributes *attributes = arg;
    struct attribute *items = realloc(attributes->items, (attributes->count + 1) * sizeof(*items));

    if (items == NULL)
        return error_oom(err);
    attributes->items = items;
    struct attribute *item = &items[attributes->count];
    *item = (struct attribute){.name = strdup(name), .value = malloc(length + 1), .length = length};
    if (item->name == NULL || item->value == NULL) {
        free(item->name);
        free(item->value);
        return error_oom(err);
    }
    memcpy(item->value, value, length);
    attributes->count++;
    return 0;
}

static int compare_attributes(const void *a, const void *b)
{
    return strcmp(((const struct attribute *)a)->name, ((const struct attribute *)b)->name);
}

static int copy_xattrs(struct copy *copy, const struct source_node *node, uint32_t inode,
                       struct error *err)
{
    _cleanup_(attributes_clear_cleanup) struct attributes attributes = {0};
    struct source *source = copy->options->source;

    int r = source->ops->xattrs(source, node, take_xattr, &attributes, err);
    if (r == 0 && attributes.count > 0)
        qsort(attributes.items, attributes.count, sizeof(*attributes.items), compare_attributes);
    for (size_t i = 0; r == 0 && i < attributes.count; i++)
        r = ext4_set_xattr(copy->options->ext4, inode, attributes.items[i].name,
                           attributes.items[i].value, attributes.items[i].length,
                           source->raw_xattrs, node->path, err);
    return r;
}

static struct ext4_attributes attributes_of(const struct copy *copy, const struct source_node *node)
{
    struct ext4_attributes attributes = node->attributes;

    if (attributes.mtime > copy->options->epoch)
        attributes.mtime = copy->options->epoch;
    return attributes;
}

/* --- Regular files --- */

struct writing {
    struct copy *copy;
    const struct source_node *node;
};

static int take_bytes(void *arg, uint64_t offset, const void *bytes, size_t length,
                      struct error *err)
{
    const struct writing *writing = arg;
    const struct copy_options *options = writing->copy->options;
    const struct filter *filter = options->filter;

    if (filter != NULL && filter->look != NULL) {
        int r = filter->look(filter->arg, writing->node, offset, bytes, length, err);
        if (r < 0)
            return r;
    }
    return ext4_write_file(options->ext4, offset, bytes, length, err);
}

struct text {
    char *bytes;
    size_t size;
};

static int take_text(void *arg, uint64_t offset, const void *bytes, size_t length,
                     struct error *err)
{
    struct text *text = arg;

    if (offset + length > text->size)
        return error_set(err, EIO, "became longer while it was read");
    memcpy(text->bytes + offset, bytes, length);
    return 0;
}

static int write_replaced(struct copy *copy, const struct source_node *node, uint64_t *ret_size,
                          struct error *err)
{
    struct source *source = copy->options->source;
    const struct filter *filter = copy->options->filter;
    _cleanup_free_ char *old = NULL, *new = NULL;
    size_t length = 0;

    if (node->size > REPLACED_MAX)
        return error_set(err, EFBIG, "%s: larger than expected of such a file", node->path);
    old = calloc(1, node->size + 1);
    if (old == NULL)
        return error_oom(err);
    struct text text = {.bytes = old, .size = node->size};
    int r = source->ops->read(source, node, take_text, &text, err);
    if (r == 0)
        r = filter->replace(filter->arg, node, old, node->size, &new, &length, err);
    if (r < 0)
        return r;
    *ret_size = length;
    struct writing writing = {.copy = copy, .node = node};
    return take_bytes(&writing, 0, new, length, err);
}

static int copy_file(struct copy *copy, uint32_t parent, const struct source_node *node,
                     enum filter_verdict verdict, uint32_t *ret_inode, struct error *err)
{
    const struct ext4_attributes attributes = attributes_of(copy, node);
    struct source *source = copy->options->source;
    struct ext4 *ext4 = copy->options->ext4;
    struct writing writing = {.copy = copy, .node = node};
    uint64_t size = node->size;

    int r = ext4_begin_file(ext4, parent, node->name, &attributes, node->path, ret_inode, err);
    if (r == 0)
        r = copy_xattrs(copy, node, *ret_inode, err);
    if (r == 0)
        r = verdict == FILTER_REPLACE ? write_replaced(copy, node, &size, err)
                                      : source->ops->read(source, node, take_bytes, &writing, err);
    return r < 0 ? r : ext4_end_file(ext4, size, err);
}

/* --- All kinds --- */

static int copy_link(struct copy *copy, uint32_t parent, const struct source_node *node,
                     uint32_t *ret_inode, struct error *err)
{
    const struct ext4_attributes attributes = attributes_of(copy, node);
    struct source *source = copy->options->source;
    _cleanup_free_ char *target = NULL;

    int r = source->ops->link(source, node, &target, err);
    if (r == 0)
        r = ext4_add_link(copy->options->ext4, parent, node->name, &attributes, target, node->path,
                          ret_inode, err);
    return r;
}

static int copy_special(struct copy *copy, uint32_t parent, const struct source_node *node,
                        uint32_t *ret_inode, struct error *err)
{
    const struct ext4_attributes attributes = attributes_of(copy, node);

    return ext4_add_special(copy->options->ext4, parent, node->name, &attributes, node->path,
                            ret_inode, err);
}

/* Whether the file has another name that was copied: then that gets this one. */
static int copy_known(struct copy *copy, uint32_t parent, const struct source_node *node,
                      bool *ret_copied, struct error *err)
{
    const struct known key = {.id = node->id};
    struct known *const *found = tfind(&key, &copy->known, compare_known);

    *ret_copied = found != NULL;
    if (found == NULL || copy->only_count)
        return 0;
    return ext4_add_name(copy->options->ext4, parent, node->name, (*found)->inode, node->path, err);
}

static int remember(struct copy *copy, const struct source_node *node, uint32_t inode,
                    struct error *err)
{
    struct known *known = malloc(sizeof(*known));

    if (known == NULL)
        return error_oom(err);
    *known = (struct known){.id = node->id, .inode = inode};
    if (tsearch(known, &copy->known, compare_known) == NULL) {
        free(known);
        return error_oom(err);
    }
    return 0;
}

static int copy_directory(struct copy *copy, uint32_t inode, const struct source_node *node,
                          unsigned depth, struct error *err);

/* Tells the filter of all that is left out. */
static int drop(struct copy *copy, const struct source_node *top, const struct source_node *node,
                unsigned depth, struct error *err)
{
    const struct filter *filter = copy->options->filter;
    _cleanup_(listing_clear_cleanup) struct listing listing = {0};
    int r = 0;

    if (copy->only_count || filter->dropped == NULL)
        return 0;
    if (depth > DEPTH_MAX)
        return error_set(err, ELOOP, "%s: directories are nested too deep", node->path);
    if (!S_ISDIR(node->attributes.mode)) {
        filter->dropped(filter->arg, top, node);
        return 0;
    }
    r = list_sorted(copy, node, &listing, err);
    for (size_t i = 0; r == 0 && i < listing.count; i++)
        r = drop(copy, top, &listing.nodes[i], depth + 1, err);
    return r;
}

/* Whether anything in the directory is kept. */
static int holds_kept(struct copy *copy, const struct source_node *directory, unsigned depth,
                      bool *ret, struct error *err)
{
    const struct filter *filter = copy->options->filter;
    _cleanup_(listing_clear_cleanup) struct listing listing = {0};
    enum filter_verdict verdict;
    bool found = false;

    if (depth > DEPTH_MAX)
        return error_set(err, ELOOP, "%s: directories are nested too deep", directory->path);
    int r = list_sorted(copy, directory, &listing, err);
    for (size_t i = 0; r == 0 && !found && i < listing.count; i++) {
        r = filter->judge(filter->arg, &listing.nodes[i], &verdict, err);
        if (r == 0 && verdict == FILTER_SIFT)
            r = holds_kept(copy, &listing.nodes[i], depth + 1, &found, err);
        else if (r == 0)
            found = verdict != FILTER_DROP;
    }
    if (r == 0)
        *ret = found;
    return r;
}

static int copy_node(struct copy *copy, uint32_t parent, const struct source_node *node,
                     unsigned depth, struct error *err)
{
    const struct copy_options *options = copy->options;
    const mode_t type = node->attributes.mode & S_IFMT;
    enum filter_verdict verdict = FILTER_KEEP;
    bool copied = false, kept = true;
    uint32_t inode = 0;
    int r = 0;

    if (options->interrupted != NULL)
        r = options->interrupted(options->arg, err);
    if (r == 0 && options->filter != NULL)
        r = options->filter->judge(options->filter->arg, node, &verdict, err);
    if (r == 0 && verdict == FILTER_SIFT)
        r = holds_kept(copy, node, depth, &kept, err);
    if (r < 0)
        return r;
    if (verdict == FILTER_DROP || !kept)
        return drop(copy, node, node, depth, err);
    if (type != S_IFDIR && node->links > 1)
        r = copy_known(copy, parent, node, &copied, err);
    if (r < 0 || copied)
        return r;
    copy->files++;
    copy->bytes += node->size;
    if (copy->only_count && type != S_IFDIR)
        return node->links > 1 ? remember(copy, node, 0, err) : 0;
    if (type == S_IFDIR) {
        const struct ext4_attributes attributes = attributes_of(copy, node);
        if (!copy->only_count)
            r = ext4_add_directory(options->ext4, parent, node->name, &attributes, node->path,
                                   &inode, err);
        return r < 0 ? r : copy_directory(copy, inode, node, depth + 1, err);
    }
    if (type == S_IFREG)
        r = copy_file(copy, parent, node, verdict, &inode, err);
    else if (type == S_IFLNK)
        r = copy_link(copy, parent, node, &inode, err);
    else
        r = copy_special(copy, parent, node, &inode, err);
    if (r == 0 && type != S_IFREG)
        r = copy_xattrs(copy, node, inode, err);
    return r == 0 && node->links > 1 ? remember(copy, node, inode, err) : r;
}

/* What is in a directory, and then the directory itself. */
static int copy_directory(struct copy *copy, uint32_t inode, const struct source_node *node,
                          unsigned depth, struct error *err)
{
    _cleanup_(listing_clear_cleanup) struct listing listing = {0};
    const bool is_lost_and_found = strcmp(node->path, "/lost+found") == 0;
    int r = 0;

    if (depth > DEPTH_MAX)
        return error_set(err, ELOOP, "%s: directories are nested too deep", node->path);
    /* What fsck puts there has no place in a new file system. */
    if (!is_lost_and_found)
        r = list_sorted(copy, node, &listing, err);
    if (r == 0 && !copy->only_count)
        r = copy_xattrs(copy, node, inode, err);
    for (size_t i = 0; r == 0 && i < listing.count; i++)
        r = copy_node(copy, inode, &listing.nodes[i], depth, err);
    if (r == 0 && !copy->only_count)
        r = ext4_close_directory(copy->options->ext4, inode, node->path, err);
    return r;
}

static int copy_all(struct copy *copy, struct error *err)
{
    struct source *source = copy->options->source;
    struct source_node root = {.path = "/", .name = ""};

    int r = source->ops->root(source, &root, err);
    if (r < 0)
        return r;
    if (!S_ISDIR(root.attributes.mode))
        return error_set(err, ENOTDIR, "the system's root is no directory");
    const struct ext4_attributes attributes = attributes_of(copy, &root);
    if (!copy->only_count)
        r = ext4_set_root(copy->options->ext4, &attributes, err);
    return r < 0 ? r : copy_directory(copy, EXT4_ROOT, &root, 0, err);
}

int source_copy(const struct copy_options *options, uint64_t *ret_files, struct error *err)
{
    struct copy copy = {.options = options};

    int r = copy_all(&copy, err);
    tdestroy(copy.known, free);
    if (r == 0)
        *ret_files = copy.files;
    return r;
}

int source_count(const struct copy_options *options, uint64_t *ret_files, uint64_t *ret_bytes,
                 struct error *err)
{
    struct copy copy = {.options = options, .only_count = true};

    int r = copy_all(&copy, err);
    tdestroy(copy.known, free);
    if (r < 0)
        return r;
    *ret_files = copy.files;
    *ret_bytes = copy.bytes;
    return 0;
}
