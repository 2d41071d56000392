/* SPDX-License-Identifier: MIT */
#include "cli/inside.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

/* --- Operands --- */

/* Where the image's name ends; NULL: the operand is not IMAGE:/PATH. */
static const char *find_colon(const char *operand)
{
    const char *const first = strstr(operand, ":/");
    struct stat st;

    for (const char *colon = first; colon != NULL; colon = strstr(colon + 1, ":/")) {
        _cleanup_free_ char *name = strndup(operand, (size_t)(colon - operand));

        if (name == NULL)
            break;
        if (stat(name, &st) == 0 && !S_ISDIR(st.st_mode))
            return colon;
    }
    return first != operand ? first : NULL;
}

bool inside_is_operand(const char *operand)
{
    return find_colon(operand) != NULL;
}

int inside_check_operands(const char *command, int count, char **operands, struct error *err)
{
    for (int i = 0; i < count; i++)
        if (!inside_is_operand(operands[i]))
            return cli_usage_error(err, "%s: '%s' is not IMAGE:/PATH", command, operands[i]);
    return 0;
}

bool inside_one_image(int count, char **operands)
{
    for (int i = 1; i < count; i++) {
        const size_t length = (size_t)(find_colon(operands[i]) - operands[i]);
        if ((size_t)(find_colon(operands[0]) - operands[0]) != length ||
            memcmp(operands[0], operands[i], length) != 0)
            return false;
    }
    return true;
}

static void close_image(struct inside *inside)
{
    if (inside->fs != NULL)
        file_system_close(inside->fs);
    inside->fs = NULL;
    cli_target_close(&inside->target);
    cleanup_free(&inside->image);
}

void inside_clear(struct inside *inside)
{
    close_image(inside);
    error_clear(&inside->why);
}

int inside_prefix(const struct inside *inside, struct error *err)
{
    const size_t length = strlen(inside->image);

    if (err == NULL)
        return error_prefix(err, "%s", inside->image);
    if (err->message != NULL && strncmp(err->message, inside->image, length) == 0 &&
        err->message[length] == ':')
        return -err->code;
    return error_prefix(err, "%s", inside->image);
}

static int open_image(struct inside *inside, char *image, struct error *err)
{
    struct cli_options options = *inside->options;

    options.confine &= inside->confined;
    int r = cli_target_open(image, &options, NULL, &inside->target, err);
    if (r < 0)
        return r;
    inside->image = strdup(image);
    if (inside->image == NULL)
        return error_oom(err);
    r = file_system_open(inside->target.image, inside->target.partition, &inside->fs, err);
    return r < 0 ? inside_prefix(inside, err) : 0;
}

int inside_open(struct inside *inside, const char *operand, const char **ret_path,
                struct error *err)
{
    const char *const colon = find_colon(operand);
    _cleanup_free_ char *image = NULL;

    if (colon == NULL)
        return cli_usage_error(err, "'%s' is not IMAGE:/PATH", operand);
    *ret_path = colon + 1;
    image = strndup(operand, (size_t)(colon - operand));
    if (image == NULL)
        return error_oom(err);
    if (inside->image != NULL && strcmp(inside->image, image) == 0)
        return 0;
    if (inside->why.code != 0)
        return error_set(err, inside->why.code, "%s", error_message(&inside->why));
    close_image(inside);
    int r = open_image(inside, image, err);
    if (r < 0)
        close_image(inside);
    if (r < 0 && sandbox_active())
        (void)error_set(&inside->why, err->code, "%s", error_message(err));
    return r;
}

int inside_find(struct inside *inside, const char *operand, unsigned flags, struct file_node **ret,
                struct error *err)
{
    const char *path;

    int r = inside_open(inside, operand, &path, err);
    if (r < 0)
        return r;
    r = file_node_find(inside->fs, path, flags, ret, err);
    return r < 0 ? inside_prefix(inside, err) : 0;
}

/* --- Listings --- */

void listing_clear(struct listing *listing)
{
    for (size_t i = 0; i < listing->count; i++)
        free(listing->entries[i].name);
    free(listing->entries);
    *listing = (struct listing){0};
}

static int take_entry(void *arg, const struct file_entry *entry, struct error *err)
{
    struct listing *listing = arg;

    if (listing->count == listing->room) {
        const size_t room = listing->room * 2 + 64;
        struct listing_entry *entries;

        if (listing->count >= LISTING_MAX)
            return error_set(err, E2BIG, "a directory with more than %d entries", LISTING_MAX);
        entries = reallocarray(listing->entries, room, sizeof(*entries));
        if (entries == NULL)
            return error_oom(err);
        listing->entries = entries;
        listing->room = room;
    }
    char *name = strdup(entry->name);
    if (name == NULL)
        return error_oom(err);
    listing->entries[listing->count++] =
        (struct listing_entry){.name = name, .inode = entry->inode};
    return 0;
}

static int compare_entries(const void *a, const void *b)
{
    const struct listing_entry *left = a, *right = b;

    return strcmp(left->name, right->name);
}

int listing_read(struct file_node *directory, struct listing *ret, struct error *err)
{
    _cleanup_listing_ struct listing listing = {0};

    int r = file_node_list(directory, take_entry, &listing, err);
    if (r < 0)
        return r;
    if (listing.count > 0)
        qsort(listing.entries, listing.count, sizeof(*listing.entries), compare_entries);
    *ret = listing;
    listing = (struct listing){0};
    return 0;
}

/* --- Inodes --- */

void inode_set_clear(struct inode_set *set)
{
    free(set->slots);
    *set = (struct inode_set){0};
}

/* The slot that holds the inode, or the free one where it belongs. There is always a free one. */
static uint32_t *find_slot(const struct inode_set *set, uint32_t inode)
{
    size_t i = (inode * UINT64_C(0x9e3779b97f4a7c15) >> 32) & (set->room - 1);

    while (set->slots[i] != 0 && set->slots[i] != inode)
        i = (i + 1) & (set->room - 1);
    return &set->slots[i];
}

static int grow(struct inode_set *set, struct error *err)
{
    struct inode_set larger = {.room = set->room == 0 ? 64 : set->room * 2, .count = set->count};

    larger.slots = calloc(larger.room, sizeof(*larger.slots));
    if (larger.slots == NULL)
        return error_oom(err);
    for (size_t i = 0; i < set->room; i++)
        if (set->slots[i] != 0)
            *find_slot(&larger, set->slots[i]) = set->slots[i];
    free(set->slots);
    *set = larger;
    return 0;
}

int inode_set_add(struct inode_set *set, uint32_t inode, struct error *err)
{
    if (set->count * 2 >= set->room) {
        int r = grow(set, err);
        if (r < 0)
            return r;
    }
    uint32_t *slot = find_slot(set, inode);
    if (*slot != 0)
        return -EEXIST;
    *slot = inode;
    set->count++;
    return 0;
}

/* --- Paths --- */

void path_clear(struct path *path)
{
    free(path->text);
    *path = (struct path){0};
}

static int path_append(struct path *path, const char *text, size_t length, struct error *err)
{
    if (path->length + length + 1 > path->room) {
        const size_t room = (path->length + length + 1) * 2;
        char *larger = realloc(path->text, room);

        if (larger == NULL)
            return error_oom(err);
        path->text = larger;
        path->room = room;
    }
    memcpy(path->text + path->length, text, length);
    path->length += length;
    path->text[path->length] = '\0';
    return 0;
}

int path_set(struct path *path, const char *text, struct error *err)
{
    size_t length = strlen(text);

    while (length > 1 && text[length - 1] == '/')
        length--;
    path->length = 0;
    return path_append(path, text, length, err);
}

int path_add(struct path *path, const char *name, size_t *ret_length, struct error *err)
{
    const size_t before = path->length;
    int r = 0;

    if (before > 0 && path->text[before - 1] != '/')
        r = path_append(path, "/", 1, err);
    if (r == 0)
        r = path_append(path, name, strlen(name), err);
    if (r < 0) {
        path_cut(path, before);
        return r;
    }
    *ret_length = before;
    return 0;
}

void path_cut(struct path *path, size_t length)
{
    if (path->text != NULL)
        path->text[length] = '\0';
    path->length = length;
}
