/* SPDX-License-Identifier: MIT */
#include <regex.h>
#include <string.h>

#include "common/units.h"
#include "provision/guest.h"
#include "provision/http.h"
#include "provision/iso.h"
#include "provision/steps.h"
#include "provision/template.h"
#include "provision/work.h"

/*
 * `install: iso`: an installer that runs by itself, from its CD, on a blank disk. It gets what it
 * is to do from us by HTTP, as cloud-init's NoCloud or a preseed, and is done when it powers off.
 *
 * The kernel and the initrd come out of the ISO, so that they can be given a command line. The
 * guest has QEMU's own default network: user-mode, where this machine is 10.0.2.2 for it and
 * nothing leads to it.
 */

#define HOST_OF_GUEST "10.0.2.2"
#define URL "@URL@"

struct iso_step {
    char *iso, *kernel, *initrd, *append, *user_data, *meta_data, *vendor_data, *preseed;
    char *failure;
    struct step_machine machine;
    uint64_t timeout;
};

#define TEXT_FIELD(field_name, member)                                                        \
    {                                                                                         \
        .name = (field_name), .type = FIELD_TEXT, .offset = offsetof(struct iso_step, member) \
    }
#define FILE_FIELD(field_name, member)                                                        \
    {                                                                                         \
        .name = (field_name), .type = FIELD_FILE, .offset = offsetof(struct iso_step, member) \
    }

static const struct field fields[] = {
    {.name = "iso",
     .type = FIELD_FILE,
     .offset = offsetof(struct iso_step, iso),
     .flags = FIELD_REQUIRED},
    TEXT_FIELD("kernel", kernel),
    TEXT_FIELD("initrd", initrd),
    TEXT_FIELD("append", append),
    FILE_FIELD("user-data", user_data),
    FILE_FIELD("meta-data", meta_data),
    FILE_FIELD("vendor-data", vendor_data),
    FILE_FIELD("preseed", preseed),
    TEXT_FIELD("failure", failure),
    MACHINE_FIELDS(struct iso_step, machine, 8192 * MACHINE_MIB),
    {.name = "timeout",
     .type = FIELD_SECONDS,
     .offset = offsetof(struct iso_step, timeout),
     .initial = 7200,
     .minimum = 1},
    {0},
};

/* Where installers have them: Ubuntu's live server, Debian's. */
static const char *const kernel_names[] = {"casper/vmlinuz", "install.amd/vmlinuz",
                                           "install/vmlinuz", "live/vmlinuz", NULL};
static const char *const initrd_names[] = {"casper/initrd", "install.amd/initrd.gz",
                                           "install/initrd.gz", "live/initrd.img", NULL};

static const char default_append[] =
    "console=ttyS0 earlyprintk=serial autoinstall ds=nocloud-net;s=" URL;
static const char preseed_append[] =
    "console=ttyS0 auto=true priority=critical url=" URL "preseed.cfg";

static void check(struct checker *checker, struct step *step)
{
    const struct iso_step *options = step->options;
    regex_t regex;

    if (recipe_step(checker->recipe, step, "disk") == NULL)
        checker_problem(checker, step, 0, "a disk step must come before");
    if ((options->user_data == NULL) == (options->preseed == NULL))
        checker_problem(checker, step, 0, "one of user-data and preseed is needed");
    if (options->append != NULL && strstr(options->append, URL) == NULL)
        checker_problem(checker, step, 0,
                        "append: has no " URL ", in whose place the answers' address goes");
    machine_check(checker, step, &options->machine);
    if (options->failure == NULL)
        return;
    if (regcomp(&regex, options->failure, REG_EXTENDED | REG_NOSUB) != 0)
        checker_problem(checker, step, 0, "failure: '%s' is no regular expression",
                        options->failure);
    else
        regfree(&regex);
}

/* --- What the guest is given --- */

#define ANSWERS 4

struct answers {
    char *texts[ANSWERS];
    struct http_file files[ANSWERS];
    size_t count;
};

static void answers_clear(struct answers *answers)
{
    for (size_t i = 0; i < answers->count; i++) {
        explicit_bzero(answers->texts[i], strlen(answers->texts[i]));
        free(answers->texts[i]);
    }
}
DEFINE_CLEANUP_INPLACE(struct answers, answers_clear);

/* `path` NULL: an empty file, which cloud-init asks for all the same. */
static int add_answer(struct build *build, struct answers *answers, const char *name,
                      const char *path, struct error *err)
{
    char *filled;

    int r = template_file(build, path, "", &filled, err);
    if (r < 0)
        return r;
    answers->texts[answers->count] = filled;
    answers->files[answers->count++] =
        (struct http_file){.name = name, .text = filled, .length = strlen(filled)};
    return 0;
}

static int make_answers(struct build *build, const struct iso_step *options,
                        struct answers *answers, struct error *err)
{
    int r;

    if (options->preseed != NULL)
        return add_answer(build, answers, "preseed.cfg", options->preseed, err);
    r = add_answer(build, answers, "user-data", options->user_data, err);
    if (r == 0)
        r = add_answer(build, answers, "meta-data", options->meta_data, err);
    if (r == 0)
        r = add_answer(build, answers, "vendor-data", options->vendor_data, err);
    return r;
}

/* The command line, with the answers' address where it belongs. */
static int make_append(const struct iso_step *options, const struct http *http, char **ret,
                       struct error *err)
{
    const char *text = options->append != NULL    ? options->append
                       : options->preseed != NULL ? preseed_append
                                                  : default_append;
    const char *place = strstr(text, URL);

    if (asprintf(ret, "%.*shttp://" HOST_OF_GUEST ":%u%s%s", (int)(place - text), text,
                 http_port(http), http_path(http), place + strlen(URL)) < 0)
        return error_oom(err);
    return 0;
}

/* --- Installing --- */

static int make_disk(struct build *build, const struct step *step, const char *path,
                     struct error *err)
{
    const struct disk_options *disk = recipe_step(build->recipe, step, "disk")->options;
    char size[24];

    snprintf(size, sizeof(size), "%llu", (unsigned long long)disk->size);
    char *const argv[] = {(char *)"qemu-img",
                          (char *)"create",
                          (char *)"-q",
                          (char *)"-f",
                          (char *)"qcow2",
                          (char *)"-o",
                          (char *)(disk->preallocation == PREALLOCATION_METADATA
                                       ? "preallocation=metadata"
                                       : "preallocation=off"),
                          (char *)path,
                          size,
                          NULL};
    return build_exec(build, argv, err);
}

static int extract(const struct iso_step *options, const char *kernel, const char *initrd,
                   struct error *err)
{
    const char *const own_kernel[] = {options->kernel, NULL};
    const char *const own_initrd[] = {options->initrd, NULL};
    const struct iso_file files[] = {
        {"kernel", options->kernel != NULL ? own_kernel : kernel_names, kernel},
        {"initrd", options->initrd != NULL ? own_initrd : initrd_names, initrd},
    };

    return iso_extract(options->iso, files, 2, err);
}

static int run_installer(struct build *build, const struct iso_step *options, const char *disk,
                         const char *kernel, const char *initrd, struct error *err)
{
    _cleanup_(answers_clear_cleanup) struct answers answers = {0};
    _cleanup_(http_stop_cleanup) struct http *http = NULL;
    _cleanup_(guest_free_cleanup) struct guest *guest = NULL;
    _cleanup_free_ char *append = NULL;
    unsigned served, refused;

    int r = make_answers(build, options, &answers, err);
    if (r == 0)
        r = http_start(answers.files, answers.count, &http, err);
    if (r == 0)
        r = make_append(options, http, &append, err);
    if (r < 0)
        return r;
    struct guest_options machine = {
        .image = disk,
        .kernel = kernel,
        .initrd = initrd,
        .append = append,
        .cdrom = options->iso,
        .failure = options->failure,
    };
    machine_apply(&options->machine, &machine);
    r = guest_start(build, &machine, &guest, err);
    if (r < 0)
        return r;
    http_allow(http, guest_pid(guest));
    r = guest_await_end(guest, options->timeout, err);
    http_counts(http, &served, &refused);
    build_say(build, "%u requests of the installer were answered, %u of others refused", served,
              refused);
    if (r == -ETIMEDOUT)
        return error_prefix(err, "the installer did not power off within %llu seconds",
                            (unsigned long long)options->timeout);
    if (r == 0 && served == 0)
        return error_set(err, EIO,
                         "the installer powered off and never asked for its answers (see the "
                         "console)");
    return r;
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct iso_step *options = step->options;
    _cleanup_free_ char *disk = step_path(build, DISK_NAME), *kernel = step_path(build, "kernel"),
                        *initrd = step_path(build, "initrd");

    if (disk == NULL || kernel == NULL || initrd == NULL)
        return error_oom(err);
    int r = extract(options, kernel, initrd, err);
    if (r == 0)
        r = make_disk(build, step, disk, err);
    if (r == 0)
        r = keys_make(build, err);
    if (r == 0)
        r = run_installer(build, options, disk, kernel, initrd, err);
    if (r < 0)
        return r;
    build_set_image(build, &disk);
    return 0;
}

static int plan(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err)
{
    const struct iso_step *options = step->options;
    char memory[FORMAT_SIZE_MAX];

    (void)build;
    return plan_action(plan, err, "a guest with %s of memory boots %s with the answers of %s",
                       format_size(options->machine.memory, memory), options->iso,
                       options->preseed != NULL ? options->preseed : options->user_data);
}

const struct step_type step_iso = {
    .kind = "install",
    .variant = "iso",
    .size = sizeof(struct iso_step),
    .fields = fields,
    .places = IN(PLACE_BLANK),
    .after = PLACE_IMAGE,
    .moves = true,
    .check = check,
    .run = run,
    .plan = plan,
};
