/* SPDX-License-Identifier: MIT */
#include "provision/steps.h"
#include "provision/work.h"

/*
 * Makes an image of the tree as it is. No recipe has this step: it is put in front of the first one
 * that needs an image and finds a tree.
 */
static int run(struct build *build, struct step *step, struct error *err)
{
    const struct step *disk = recipe_step(build->recipe, step, "disk");
    _cleanup_(source_free_cleanup) struct source *source = NULL;
    _cleanup_free_ char *path = step_path(build, DISK_NAME);
    struct disk_contents contents = {0};
    struct disk_layout layout;

    if (path == NULL)
        return error_oom(err);
    const char *fault = disk_layout(disk->options, &layout);
    if (fault != NULL)
        return error_set(err, EINVAL, "partitions: %s", fault);
    int r = source_open_tree(build->tree, &source, err);
    if (r < 0)
        return r;
    contents.layout = &layout;
    contents.source = source;
    r = disk_make(build, &contents, path, err);
    if (r < 0)
        return r;
    free(build->image);
    build->image = TAKE_PTR(path);
    return 0;
}

const struct step_type step_image = {
    .kind = "image",
    .places = IN(PLACE_TREE),
    .after = PLACE_IMAGE,
    .moves = true,
    .run = run,
};
