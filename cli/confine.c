/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "image/write.h"

/*
 * What a confined command may still open. The images themselves are open; O_DIRECT reads open them
 * once more, which the broker allows for whatever is open already.
 */

struct list {
    struct sandbox_file *files;
    size_t count, room;
    char **names; /* that were made here */
    size_t name_count;
};

static void list_clear(struct list *list)
{
    for (size_t i = 0; i < list->name_count; i++)
        free(list->names[i]);
    free(list->names);
    free(list->files);
}
DEFINE_CLEANUP_INPLACE(struct list, list_clear);

static void add(struct list *list, const char *path, unsigned rights)
{
    assert(list->count < list->room);
    list->files[list->count++] = (struct sandbox_file){path, rights};
}

/* The tree file, which is written anew or in place; and the image's first file, in which a dirty
 * bitmap is reset when the tree file is up to date. */
static int add_image(struct list *list, const struct cli_options *options,
                     const struct image *image, struct error *err)
{
    unsigned rights = SANDBOX_READ;
    char *path;

    if (!options->no_tree)
        rights |= SANDBOX_WRITE | SANDBOX_REPLACE;
    if (options->keep.path != NULL) {
        add(list, options->keep.path, rights);
    } else {
        path = hashtree_file_path(image);
        if (path == NULL)
            return error_oom(err);
        list->names[list->name_count++] = path;
        add(list, path, rights);
    }
    if (!options->no_tree && !image_writable(image))
        add(list, image_file(image, 0)->path, SANDBOX_WRITE);
    return 0;
}

static int fill(struct list *list, const struct cli_options *options, struct image *const *images,
                size_t count, struct error *err)
{
    list->room = 2 * count + options->file_count;
    list->files = calloc(list->room + 1, sizeof(*list->files));
    list->names = calloc(count + 1, sizeof(*list->names));
    if (list->files == NULL || list->names == NULL)
        return error_oom(err);
    for (size_t i = 0; i < options->file_count; i++)
        add(list, options->files[i].path, options->files[i].rights);
    for (size_t i = 0; i < count; i++) {
        int r = add_image(list, options, images[i], err);
        if (r < 0)
            return r;
    }
    return 0;
}

static void prepare_hashing(void *arg)
{
    const struct cli_options *options = arg;

    hashtree_prepare_confined(options->tree.threads, options->verity.hash,
                              (options->any_digest ? HASHTREE_NEEDS_ANY_DIGEST : 0u) |
                                  (options->superblock ? HASHTREE_NEEDS_SUPERBLOCK : 0u));
}

int cli_confine(const struct cli_options *options, struct image *const *images, size_t count,
                const struct cli_mountpoint *mount, struct error *err)
{
    _cleanup_(list_clear_cleanup) struct list list = {0};

    if (!options->confine)
        return 0;
    int r = fill(&list, options, images, count, err);
    if (r < 0)
        return r;
    const struct sandbox sandbox = {
        .files = list.files,
        .file_count = list.count,
        /* Tree files of images below in the chain, and those that tree files name. */
        .magic = HASHTREE_FILE_MAGIC,
        .magic_size = HASHTREE_FILE_MAGIC_SIZE,
        .magic_at = {HASHTREE_FILE_MAGIC_AT_1, HASHTREE_FILE_MAGIC_AT_2},
        .mountpoint = mount != NULL ? mount->path : NULL,
        .daemon = mount != NULL && mount->daemon,
        .prepare = options->hashes ? prepare_hashing : NULL,
        .prepare_arg = (void *)options,
    };
    r = sandbox_enter(&sandbox, err);
    return r < 0 ? r : 0;
}
