/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "provision/iso.h"
#include "provision/steps.h"
#include "provision/template.h"
#include "provision/work.h"

/*
 * `install: cloud-image`: a system that is installed already, in an image that cloud-init sets up
 * at its first boot. It learns what to do from a second disk, the NoCloud seed: an ISO with the
 * label CIDATA, which the first `boot` attaches.
 */

struct cloud_step {
    char *image, *user_data, *meta_data;
    int format;
};

static const char *const formats[] = {"qcow2", "raw", NULL};

static const struct field fields[] = {
    {.name = "image",
     .type = FIELD_FILE,
     .offset = offsetof(struct cloud_step, image),
     .flags = FIELD_REQUIRED},
    {.name = "format",
     .type = FIELD_CHOICE,
     .offset = offsetof(struct cloud_step, format),
     .choices = formats},
    {.name = "user-data", .type = FIELD_FILE, .offset = offsetof(struct cloud_step, user_data)},
    {.name = "meta-data", .type = FIELD_FILE, .offset = offsetof(struct cloud_step, meta_data)},
    {0},
};

/* Lets the build in, and nobody else. */
static const char default_user_data[] = "#cloud-config\n"
                                        "users:\n"
                                        "  - name: guest\n"
                                        "    shell: /bin/bash\n"
                                        "    groups: [adm, sudo]\n"
                                        "    sudo: 'ALL=(ALL) NOPASSWD:ALL'\n"
                                        "    ssh_authorized_keys:\n"
                                        "      - @AUTHORIZED_KEY@\n"
                                        "ssh_deletekeys: true\n"
                                        "ssh_keys:\n"
                                        "  ed25519_private: |\n"
                                        "    @HOST_PRIVATE_KEY@\n"
                                        "  ed25519_public: @HOST_KEY@\n";
/* cloud-init remembers the instance: what it did once for it is not done again. */
static const char default_meta_data[] = "instance-id: qverity-build\n";

static int make_seed(struct build *build, const struct cloud_step *options, struct error *err)
{
    _cleanup_free_ char *path = step_path(build, SEED_NAME), *user = NULL, *meta = NULL;

    if (path == NULL)
        return error_oom(err);
    int r = keys_make(build, err);
    if (r == 0)
        r = template_file(build, options->user_data, default_user_data, &user, err);
    if (r == 0)
        r = template_file(build, options->meta_data, default_meta_data, &meta, err);
    if (r < 0)
        return r;
    const struct iso_text texts[] = {{"user-data", user}, {"meta-data", meta}};
    r = iso_write(path, "CIDATA", texts, 2, err);
    return r < 0 ? r : sync_path(path, err);
}

/* The image that was given is never written to. */
static int make_disk(struct build *build, const struct step *step, const char *path,
                     struct error *err)
{
    const struct cloud_step *options = step->options;
    const struct step *disk = recipe_step(build->recipe, step, "disk");
    const struct disk_options *given = disk != NULL ? disk->options : NULL;

    return disk_overlay(build, options->image, formats[options->format],
                        given != NULL ? given->size : 0, path, err);
}

static int run(struct build *build, struct step *step, struct error *err)
{
    _cleanup_free_ char *disk = step_path(build, DISK_NAME);

    if (disk == NULL)
        return error_oom(err);
    int r = make_disk(build, step, disk, err);
    if (r == 0)
        r = make_seed(build, step->options, err);
    if (r < 0)
        return r;
    build_set_image(build, &disk);
    return 0;
}

static int plan(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err)
{
    const struct cloud_step *options = step->options;

    (void)build;
    return plan_action(plan, err, "an overlay of %s, and a seed for cloud-init", options->image);
}

const struct step_type step_cloud = {
    .kind = "install",
    .variant = "cloud-image",
    .size = sizeof(struct cloud_step),
    .fields = fields,
    .places = IN(PLACE_BLANK),
    .after = PLACE_IMAGE,
    .moves = true,
    .run = run,
    .plan = plan,
};
