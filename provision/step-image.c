/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "provision/keys.h"
#include "provision/parcel.h"
#include "provision/steps.h"
#include "provision/work.h"

#define KEY_DIRECTORY "/root/.ssh"

/* The tree that the image is made of lets us in, and says who it is. */
static int put_keys(struct build *build, struct error *err)
{
    _cleanup_(parcel_free_cleanup) struct parcel *parcel = NULL;
    const struct keys *keys;
    char *const test[] = {(char *)"test", (char *)"-x", (char *)"/usr/sbin/sshd", NULL};
    char *const mkdir[] = {(char *)"mkdir", (char *)"-p",          (char *)"-m",
                           (char *)"700",   (char *)KEY_DIRECTORY, NULL};
    struct place_command command = {.argv = test, .input = -1, .output = -1};
    int status;

    int r = place_run_status(build, &command, &status, err);
    if (r == 0 && status != 0)
        r = error_set(err, ENOENT,
                      "there is no SSH server in the system, which a boot step needs (the package "
                      "openssh-server)");
    command.argv = mkdir;
    if (r == 0)
        r = place_run(build, &command, err);
    if (r == 0)
        r = keys_make(build, err);
    if (r == 0)
        r = keys_get(build, &keys, err);
    if (r == 0)
        r = parcel_new(build, &parcel, err);
    if (r < 0)
        return r;
    const struct {
        const char *to, *text;
        int64_t mode;
    } files[] = {
        {KEY_DIRECTORY "/authorized_keys", keys->client_public, 0600},
        {"/etc/ssh/ssh_host_ed25519_key", keys->host_private, 0600},
        {"/etc/ssh/ssh_host_ed25519_key.pub", keys->host_public, 0644},
    };
    for (size_t i = 0; r == 0 && i < sizeof(files) / sizeof(files[0]); i++) {
        const struct parcel_attributes attributes = {.mode = files[i].mode};
        _cleanup_free_ char *line = NULL;
        if (asprintf(&line, "%s\n", files[i].text) < 0)
            return error_oom(err);
        r = parcel_text(parcel, line, strlen(line), files[i].to, &attributes, err);
    }
    return r < 0 ? r : parcel_send(parcel, err);
}

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
    int r = keys_needed(build->recipe) ? put_keys(build, err) : 0;
    if (r == 0)
        r = source_open_tree(build->tree, &source, err);
    if (r < 0)
        return r;
    contents.layout = &layout;
    contents.source = source;
    r = disk_make(build, &contents, path, err);
    if (r < 0)
        return r;
    source_free_cleanup(&source);
    r = remove_all(build->tree, err);
    if (r < 0)
        return r;
    build_set_image(build, &path);
    return 0;
}

const struct step_type step_image = {
    .kind = "image",
    .places = IN(PLACE_TREE),
    .after = PLACE_IMAGE,
    .moves = true,
    .changes = true,
    .run = run,
};
