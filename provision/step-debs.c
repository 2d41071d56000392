/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "provision/parcel.h"
#include "provision/steps.h"
#include "qemuctl/argv.h"

/* Packages of this machine, installed in the system with dpkg: a kernel's, for example. */

#define DIRECTORY "/var/tmp/qverity-debs"

struct debs_options {
    struct texts files;
    uint64_t timeout;
};

static const struct field fields[] = {
    {.name = "files",
     .type = FIELD_FILES,
     .offset = offsetof(struct debs_options, files),
     .flags = FIELD_REQUIRED | FIELD_MAIN},
    {.name = "timeout",
     .type = FIELD_SECONDS,
     .offset = offsetof(struct debs_options, timeout),
     .initial = 3600,
     .minimum = 1},
    {0},
};

static void check(struct checker *checker, struct step *step)
{
    const struct debs_options *options = step->options;

    for (size_t i = 0; i < options->files.count; i++) {
        const size_t length = strlen(options->files.items[i]);
        if (length < 4 || strcmp(options->files.items[i] + length - 4, ".deb") != 0)
            checker_problem(checker, step, 0, "%s: is no package (.deb)", options->files.items[i]);
    }
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct parcel_attributes attributes = {.mode = 0644};
    const struct debs_options *options = step->options;
    _cleanup_(parcel_free_cleanup) struct parcel *archive = NULL;
    _cleanup_argv_ struct argv dpkg = ARGV_INIT;
    char *const environment[] = {(char *)INITRD_NO, NULL};
    char *const clean[] = {(char *)"rm", (char *)"-rf", (char *)"--", (char *)DIRECTORY, NULL};

    argv_add(&dpkg, "dpkg");
    argv_add(&dpkg, "--install");
    int r = parcel_new(build, &archive, err);
    for (size_t i = 0; r == 0 && i < options->files.count; i++) {
        _cleanup_free_ char *to = NULL;
        if (asprintf(&to, DIRECTORY "/%s", strrchr(options->files.items[i], '/') + 1) < 0)
            return error_oom(err);
        r = parcel_path(archive, options->files.items[i], to, &attributes, err);
        argv_add(&dpkg, to);
    }
    if (r == 0)
        r = parcel_send(archive, err);
    if (r == 0)
        r = argv_check(&dpkg, err);
    if (r == 0)
        r = place_run(build,
                      &(struct place_command){.argv = dpkg.items,
                                              .environment = initramfs_follows(build->recipe, step)
                                                                 ? environment
                                                                 : NULL,
                                              .input = -1,
                                              .output = -1,
                                              .timeout = options->timeout},
                      err);
    if (r == 0)
        r = place_run(build, &(struct place_command){.argv = clean, .input = -1, .output = -1},
                      err);
    return r;
}

static int inputs(const struct build *build, const struct step *step, struct digest *digest,
                  struct error *err)
{
    (void)err;
    digest_number(digest, initramfs_follows(build->recipe, step));
    return 0;
}

static int plan(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err)
{
    const struct debs_options *options = step->options;
    int r = 0;

    (void)build;
    for (size_t i = 0; r == 0 && i < options->files.count; i++)
        r = plan_action(plan, err, "dpkg --install %s", options->files.items[i]);
    return r;
}

const struct step_type step_debs = {
    .kind = "debs",
    .size = sizeof(struct debs_options),
    .fields = fields,
    .places = IN(PLACE_TREE) | IN(PLACE_RUNNING),
    .changes = true,
    .check = check,
    .inputs = inputs,
    .run = run,
    .plan = plan,
};
