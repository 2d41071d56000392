/* SPDX-License-Identifier: MIT */
#include "image/ext-internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "common/text.h"

/*
 * Directories are read from their first block to their last: the blocks of a hash tree look like
 * unused entries to that.
 */

/* --- Entries --- */

enum {
    ENTRY_HEADER = 8, /* inode (4 bytes), rec_len (2), name_len, file_type (1 each) */
    REC_LEN_WHOLE = 65535,
};

/* A record length as the file system's block size has it encoded. */
static uint32_t record_length(const struct file_system *fs, const uint8_t *entry)
{
    const uint32_t n = get_le16(entry + 4);

    if (fs->block_size < 65536)
        return n;
    return n == REC_LEN_WHOLE || n == 0 ? fs->block_size : (n & 65532) | (n & 3) << 16;
}

static uint32_t name_length(const struct file_system *fs, const uint8_t *entry)
{
    return ext2fs_has_feature_filetype(fs->ext->super) ? entry[6] : get_le16(entry + 6);
}

static int check_entry(const struct file_system *fs, const uint8_t *entry, size_t room,
                       struct error *err)
{
    if (room < ENTRY_HEADER)
        return error_set(err, EUCLEAN, "%zu bytes are left, too few for an entry", room);
    const uint32_t length = record_length(fs, entry);
    if (length < ENTRY_HEADER || length % 4 != 0 || length > room)
        return error_set(err, EUCLEAN, "rec_len is %" PRIu32 ", of %zu bytes", length, room);
    if (get_le32(entry) == 0)
        return 0;
    const uint32_t name = name_length(fs, entry);
    if (name == 0 || name > FILE_NAME_MAX || ENTRY_HEADER + name > length)
        return error_set(err, EUCLEAN, "name_len is %" PRIu32 ", rec_len %" PRIu32, name, length);
    if (memchr(entry + ENTRY_HEADER, '/', name) != NULL ||
        memchr(entry + ENTRY_HEADER, '\0', name) != NULL)
        return error_set(err, EUCLEAN, "the name has a slash or a NUL");
    if (get_le32(entry) > fs->ext->super->s_inodes_count)
        return error_set(err, EUCLEAN, "there is no inode %" PRIu32, get_le32(entry));
    return 0;
}

/* Whether it is one of the two names that every directory has. */
static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/*
 * All entries of a directory block, or of a part of one that is inline, but for the first `dots`
 * ones, which are "." and "..". What else has these names could never be reached by them.
 */
static int list_bytes(const struct file_system *fs, const uint8_t *bytes, size_t size, size_t dots,
                      file_take *take, void *arg, struct error *err)
{
    char name[FILE_NAME_MAX + 1];
    size_t count = 0;

    for (size_t at = 0; at < size; count++) {
        const uint8_t *entry = bytes + at;
        const size_t start = at;

        int r = check_entry(fs, entry, size - at, err);
        if (r < 0)
            return error_prefix(err, "entry at byte %zu", at);
        at += record_length(fs, entry);
        if (get_le32(entry) == 0)
            continue;
        const uint32_t length = name_length(fs, entry);
        memcpy(name, entry + ENTRY_HEADER, length);
        name[length] = '\0';
        if (is_dots(name) && count < dots)
            continue;
        if (is_dots(name))
            return error_set(err, EUCLEAN, "entry at byte %zu: another one with the name %s", start,
                             name);
        const struct file_entry found = {.name = name, .length = length, .inode = get_le32(entry)};
        r = take(arg, &found, err);
        if (r != 0)
            return r;
    }
    return 0;
}

/* --- Directories --- */

enum {
    INLINE_PARENT = 4, /* bytes in front of the entries: the inode of ".." */
};

/* The entries in i_block and those in the attribute are two lists. */
static int list_inline(struct file_node *node, file_take *take, void *arg, struct error *err)
{
    int r = list_bytes(node->fs, node->inline_data + INLINE_PARENT, EXT_INODE_BLOCK - INLINE_PARENT,
                       0, take, arg, err);
    if (r == 0 && node->inline_size > EXT_INODE_BLOCK)
        r = list_bytes(node->fs, node->inline_data + EXT_INODE_BLOCK,
                       node->inline_size - EXT_INODE_BLOCK, 0, take, arg, err);
    return r;
}

/* `bad` is set when the error is one of the directory's, not of `take`. */
static int list_block(struct file_node *node, uint64_t block, bool first, uint8_t *buffer,
                      file_take *take, void *arg, struct error *err)
{
    struct file_system *fs = node->fs;

    errcode_t code = ext2fs_read_dir_block4(fs->ext, block, buffer, 0, node->info.inode);
    if (code != 0)
        return ext_error(fs, code, err, "reading it");
    return list_bytes(fs, buffer, fs->block_size, first ? 2 : 0, take, arg, err);
}

static int list_blocks(struct file_node *node, file_take *take, void *arg, struct error *err)
{
    const struct file_system *fs = node->fs;
    const uint64_t count = node->info.size / fs->block_size;
    _cleanup_free_ uint8_t *buffer = malloc(fs->block_size);
    uint64_t seen = 0, block, n;

    if (buffer == NULL)
        return error_oom(err);
    for (uint64_t at = 0; at < count; at += n) {
        int r = ext_map(node, at, count - at, &block, &n, err);
        if (r < 0)
            return r;
        if (block == 0)
            continue;
        seen += n;
        if (seen > fs->blocks)
            return error_set(err, EUCLEAN, "it has more blocks than the file system");
        for (uint64_t i = 0; i < n; i++) {
            r = list_block(node, block + i, at + i == 0, buffer, take, arg, err);
            if (r < 0)
                return error_prefix(err, "directory block %" PRIu64, at + i);
            if (r > 0)
                return r;
        }
    }
    return 0;
}

/* Keeps what the caller's function returns apart from what goes wrong here. */
struct taking {
    file_take *take;
    void *arg;
    int result;
    struct error err;
};

static int take_apart(void *arg, const struct file_entry *entry, struct error *err)
{
    struct taking *taking = arg;

    (void)err;
    taking->result = taking->take(taking->arg, entry, &taking->err);
    return taking->result != 0 ? 1 : 0;
}

int file_node_list(struct file_node *node, file_take *take, void *arg, struct error *err)
{
    struct taking taking = {.take = take, .arg = arg};

    if (!S_ISDIR(node->info.mode))
        return error_set(err, ENOTDIR, "is not a directory");
    if ((node->flags & EXT4_ENCRYPT_FL) != 0)
        return error_set(err, ENOKEY, "the directory is encrypted");
    int r = node->inline_data != NULL ? list_inline(node, take_apart, &taking, err)
                                      : list_blocks(node, take_apart, &taking, err);
    if (r < 0)
        return error_prefix(err, "directory, inode %" PRIu32, node->info.inode);
    if (taking.result < 0)
        error_move(err, &taking.err);
    return taking.result;
}

/* --- Paths --- */

/* The directories from the root to where a path has led so far. Names are owned. */
struct trail {
    struct step {
        uint32_t inode;
        char *name;
    } * steps;
    size_t count, room;
};

static void trail_clear(struct trail *trail)
{
    for (size_t i = 0; i < trail->count; i++)
        free(trail->steps[i].name);
    free(trail->steps);
}

static void trail_pop(struct trail *trail)
{
    if (trail->count > 0)
        free(trail->steps[--trail->count].name);
}

static int trail_push(struct trail *trail, uint32_t inode, const char *name, struct error *err)
{
    _cleanup_free_ char *copy = strdup(name);

    if (copy == NULL)
        return error_oom(err);
    if (trail->count == trail->room) {
        const size_t room = trail->room * 2 + 16;
        struct step *steps = reallocarray(trail->steps, room, sizeof(*steps));
        if (steps == NULL)
            return error_oom(err);
        trail->steps = steps;
        trail->room = room;
    }
    trail->steps[trail->count++] = (struct step){.inode = inode, .name = TAKE_PTR(copy)};
    return 0;
}

static uint32_t trail_inode(const struct trail *trail)
{
    return trail->count > 0 ? trail->steps[trail->count - 1].inode : EXT2_ROOT_INO;
}

/* The path, with one more name behind it unless that is NULL. */
static char *trail_path(const struct trail *trail, const char *name)
{
    size_t length = 2 + (name != NULL ? strlen(name) : 0);
    char *path, *end;

    for (size_t i = 0; i < trail->count; i++)
        length += 1 + strlen(trail->steps[i].name);
    path = end = malloc(length);
    if (path == NULL)
        return NULL;
    for (size_t i = 0; i < trail->count; i++)
        end += sprintf(end, "/%s", trail->steps[i].name);
    if (name != NULL || trail->count == 0)
        sprintf(end, "/%s", name != NULL ? name : "");
    return path;
}

struct search {
    const char *name;
    size_t length;
    uint32_t inode;
};

static int take_name(void *arg, const struct file_entry *entry, struct error *err)
{
    struct search *search = arg;

    (void)err;
    if (entry->length != search->length || memcmp(entry->name, search->name, entry->length) != 0)
        return 0;
    search->inode = entry->inode;
    return 1;
}

/* Where the path leads, as far as it is resolved. */
struct walk {
    struct file_system *fs;
    struct trail trail;
    char *rest; /* what is still to be resolved */
    unsigned links;
};

static void walk_clear(struct walk *walk)
{
    trail_clear(&walk->trail);
    free(walk->rest);
}
DEFINE_CLEANUP_INPLACE(struct walk, walk_clear);

/* An error about a name in the directory that was reached. */
static int name_error(const struct walk *walk, const char *name, int r, struct error *err)
{
    _cleanup_free_ char *path = trail_path(&walk->trail, name);
    _cleanup_free_ char *text = path != NULL ? text_printable(path) : NULL;

    if (text == NULL)
        return error_oom(err);
    if (err == NULL || err->code != -r)
        return error_set_errno(err, -r, "%s", text);
    return error_prefix(err, "%s", text);
}

/* The entry `name` of the directory that was reached. */
static int find_entry(struct walk *walk, const char *name, struct file_node **ret,
                      struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *directory = NULL;
    struct search search = {.name = name, .length = strlen(name)};

    int r = file_node_open(walk->fs, trail_inode(&walk->trail), &directory, err);
    if (r == 0)
        r = file_node_list(directory, take_name, &search, err);
    if (r < 0)
        return r;
    if (r == 0)
        return -ENOENT;
    return file_node_open(walk->fs, search.inode, ret, err);
}

/* Puts a link's target in front of what is left of the path, `rest`. */
static int follow(struct walk *walk, struct file_node *link, const char *rest, struct error *err)
{
    _cleanup_free_ char *target = NULL;
    char *path;

    if (++walk->links > FILE_LINKS_MAX)
        return -ELOOP;
    int r = file_node_read_link(link, &target, err);
    if (r < 0)
        return r;
    if (target[0] == '/')
        while (walk->trail.count > 0)
            trail_pop(&walk->trail);
    /* What is left begins with a slash, or is nothing. */
    if (asprintf(&path, "%s%s", target, rest) < 0)
        return error_oom(err);
    free(walk->rest);
    walk->rest = path;
    return 0;
}

static int open_reached(struct walk *walk, struct file_node **ret, struct error *err)
{
    return file_node_open(walk->fs, trail_inode(&walk->trail), ret, err);
}

/* Takes one component. *ret is set when the path's end is reached by it and it is no directory that
 * the trail has. */
static int step(struct walk *walk, const char *name, const char *rest, unsigned flags,
                struct file_node **ret, struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
    const bool last = rest[0] == '\0';

    int r = find_entry(walk, name, &node, err);
    if (r < 0)
        return name_error(walk, name, r, err);
    const mode_t mode = node->info.mode;
    if (S_ISLNK(mode) && (!last || (flags & FILE_FOLLOW) != 0)) {
        r = follow(walk, node, rest, err);
        return r < 0 ? name_error(walk, name, r, err) : 1;
    }
    if (S_ISDIR(mode))
        return trail_push(&walk->trail, node->info.inode, name, err);
    if (!last)
        return name_error(walk, name, -ENOTDIR, err);
    node->path = trail_path(&walk->trail, name);
    if (node->path == NULL)
        return error_oom(err);
    *ret = TAKE_PTR(node);
    return 0;
}

static int resolve(struct walk *walk, unsigned flags, struct file_node **ret, struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
    char name[FILE_NAME_MAX + 1];
    const char *at = walk->rest;

    while (node == NULL) {
        at += strspn(at, "/");
        const size_t length = strcspn(at, "/");
        if (length == 0)
            break;
        if (length > FILE_NAME_MAX)
            return error_set_errno(err, ENAMETOOLONG, "a name of %zu bytes", length);
        memcpy(name, at, length);
        name[length] = '\0';
        at += length;
        if (strcmp(name, ".") == 0)
            continue;
        if (strcmp(name, "..") == 0) {
            trail_pop(&walk->trail);
            continue;
        }
        int r = step(walk, name, at, flags, &node, err);
        if (r < 0)
            return r;
        if (r > 0)
            at = walk->rest;
    }
    if (node == NULL) {
        int r = open_reached(walk, &node, err);
        if (r < 0)
            return r;
        node->path = trail_path(&walk->trail, NULL);
        if (node->path == NULL)
            return error_oom(err);
        if (!S_ISDIR(node->info.mode))
            return error_set(err, EUCLEAN, "%s: it was a directory before", node->path);
    }
    *ret = TAKE_PTR(node);
    return 0;
}

int file_node_find(struct file_system *fs, const char *path, unsigned flags, struct file_node **ret,
                   struct error *err)
{
    _cleanup_(walk_clear_cleanup) struct walk walk = {.fs = fs, .rest = strdup(path)};

    if (walk.rest == NULL)
        return error_oom(err);
    int r = resolve(&walk, flags, ret, err);
    /* The message has the path that was reached. */
    if (r < 0 && err != NULL && walk.links > 0 && r != -ELOOP) {
        _cleanup_free_ char *text = text_printable(path);

        return text != NULL ? error_prefix(err, "%s", text) : error_oom(err);
    }
    return r;
}
