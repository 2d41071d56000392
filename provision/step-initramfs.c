/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "provision/embedded.h"
#include "provision/parcel.h"
#include "provision/steps.h"

/*
 * The initramfs of every kernel in the system, made with initramfs-tools: which modules are in it,
 * how it is compressed, and the scripts that set up dm-verity as the kernel's command line says.
 */

#define DIRECTORY "/etc/initramfs-tools"

struct initramfs_options {
    bool verity;
    int policy; /* a place in `policies` */
    char *compress;
    uint64_t level;
    struct texts modules;
    uint64_t timeout;
};

#define LEVEL_UNSET UINT64_MAX

static const char *const policies[] = {"default", "most", "dep", "list", "netboot", NULL};

static const struct field fields[] = {
    {.name = "verity",
     .type = FIELD_BOOL,
     .offset = offsetof(struct initramfs_options, verity),
     .initial = true},
    {.name = "policy",
     .type = FIELD_CHOICE,
     .offset = offsetof(struct initramfs_options, policy),
     .choices = policies},
    {.name = "compress",
     .type = FIELD_TEXT,
     .offset = offsetof(struct initramfs_options, compress)},
    {.name = "level",
     .type = FIELD_COUNT,
     .offset = offsetof(struct initramfs_options, level),
     .initial = LEVEL_UNSET},
    {.name = "modules", .type = FIELD_TEXTS, .offset = offsetof(struct initramfs_options, modules)},
    {.name = "timeout",
     .type = FIELD_SECONDS,
     .offset = offsetof(struct initramfs_options, timeout),
     .initial = 3600,
     .minimum = 1},
    {0},
};

static bool is_word(const char *text)
{
    return text[strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")] ==
           '\0';
}

static void check(struct checker *checker, struct step *step)
{
    const struct initramfs_options *options = step->options;

    for (size_t i = 0; i < options->modules.count; i++)
        if (!is_word(options->modules.items[i]))
            checker_problem(checker, step, 0, "modules: '%s' is no module's name",
                            options->modules.items[i]);
    if (options->compress != NULL && !is_word(options->compress))
        checker_problem(checker, step, 0, "compress: '%s' is no program's name", options->compress);
    if (options->level != LEVEL_UNSET && options->compress == NULL)
        checker_problem(checker, step, 0, "level: needs compress");
}

/* Where the files that the program brings along go. */
static const struct {
    const char *name, *to;
} places[] = {
    {"hook", DIRECTORY "/hooks/qverity"},
    {"local-top", DIRECTORY "/scripts/local-top/qverity"},
    {"no-random-seed", DIRECTORY "/hooks/zz-qverity"},
};

static int add_scripts(struct parcel *archive, struct error *err)
{
    const struct parcel_attributes attributes = {.mode = 0755};
    int r = 0;

    for (const struct embedded_file *file = embedded_files; r == 0 && file->name != NULL; file++)
        for (size_t i = 0; r == 0 && i < sizeof(places) / sizeof(places[0]); i++)
            if (strcmp(file->name, places[i].name) == 0)
                r = parcel_text(archive, file->bytes, file->length, places[i].to, &attributes, err);
    return r;
}

/* A file of conf.d, which initramfs.conf gives way to. */
static int add_configuration(struct parcel *archive, const struct initramfs_options *options,
                             struct error *err)
{
    const struct parcel_attributes attributes = {.mode = 0644};
    _cleanup_free_ char *text = NULL;
    size_t length;

    FILE *file = open_memstream(&text, &length);
    if (file == NULL)
        return error_oom(err);
    if (options->policy != 0)
        fprintf(file, "MODULES=%s\n", policies[options->policy]);
    if (options->compress != NULL)
        fprintf(file, "COMPRESS=%s\n", options->compress);
    if (options->level != LEVEL_UNSET)
        fprintf(file, "COMPRESSLEVEL=%llu\n", (unsigned long long)options->level);
    if (fclose(file) != 0)
        return error_oom(err);
    return parcel_text(archive, text, length, DIRECTORY "/conf.d/qverity", &attributes, err);
}

static int add_modules(struct parcel *archive, const struct texts *modules, struct error *err)
{
    const struct parcel_attributes attributes = {.mode = 0644};
    _cleanup_free_ char *text = NULL;
    size_t length;

    if (modules->count == 0)
        return 0;
    FILE *file = open_memstream(&text, &length);
    if (file == NULL)
        return error_oom(err);
    for (size_t i = 0; i < modules->count; i++)
        fprintf(file, "%s\n", modules->items[i]);
    if (fclose(file) != 0)
        return error_oom(err);
    return parcel_text(archive, text, length, DIRECTORY "/modules", &attributes, err);
}

static int put_files(struct build *build, const struct initramfs_options *options,
                     struct error *err)
{
    _cleanup_(parcel_free_cleanup) struct parcel *archive = NULL;

    int r = parcel_new(build, &archive, err);
    if (r == 0 && options->verity)
        r = add_scripts(archive, err);
    if (r == 0)
        r = add_configuration(archive, options, err);
    if (r == 0)
        r = add_modules(archive, &options->modules, err);
    return r < 0 ? r : parcel_send(archive, err);
}

/* Makes the initramfs of one kernel, or makes it anew. */
static int make(struct build *build, const struct initramfs_options *options, const char *version,
                struct error *err)
{
    _cleanup_free_ char *path = NULL, *epoch = NULL;
    int status;

    if (asprintf(&path, "/boot/initrd.img-%s", version) < 0)
        return error_oom(err);
    if (asprintf(&epoch, "SOURCE_DATE_EPOCH=%llu", (unsigned long long)build->recipe->epoch) < 0) {
        epoch = NULL;
        return error_oom(err);
    }
    char *const test[] = {(char *)"test", (char *)"-e", path, NULL};
    char *const environment[] = {epoch, NULL};
    struct place_command command = {.argv = test, .input = -1, .output = -1};
    int r = place_run_status(build, &command, &status, err);
    if (r < 0)
        return r;
    char *const argv[] = {(char *)"update-initramfs", (char *)(status == 0 ? "-u" : "-c"),
                          (char *)"-k", (char *)version, NULL};
    command.argv = argv;
    command.environment = environment;
    command.timeout = options->timeout;
    return place_run(build, &command, err);
}

bool initramfs_follows(const struct recipe *recipe, const struct step *step)
{
    /* A build that goes on behind this step boots the guest as it is now. */
    if (step->before == PLACE_RUNNING)
        return false;
    for (size_t i = step->number; i < recipe->step_count; i++) {
        if (strcmp(recipe->steps[i].type->kind, step_initramfs.kind) == 0)
            return true;
        if (recipe->steps[i].type->moves)
            break;
    }
    return false;
}

/* Boot loaders follow links that are made when a kernel is installed, those of initrds only if
 * there is an initrd already: wherever a kernel has a link, its initrd gets one. */
static int make_links(struct build *build, struct error *err)
{
    static const char script[] =
        "for link in /vmlinuz /vmlinuz.old /boot/vmlinuz /boot/vmlinuz.old; do\n"
        "    kernel=$(readlink $link) || continue\n"
        "    initrd=${kernel%vmlinuz-*}initrd.img-${kernel##*vmlinuz-}\n"
        "    case $initrd in /*) path=$initrd ;; *) path=${link%/*}/$initrd ;; esac\n"
        "    [ ! -e \"$path\" ] || ln -sfn \"$initrd\" "
        "${link%vmlinuz*}initrd.img${link##*vmlinuz}\n"
        "done\n";
    char *const argv[] = {(char *)"sh", (char *)"-c", (char *)script, NULL};

    return place_run(build, &(struct place_command){.argv = argv, .input = -1, .output = -1}, err);
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct initramfs_options *options = step->options;
    char *const find[] = {(char *)"find",    (char *)"/lib/modules", (char *)"-mindepth",
                          (char *)"1",       (char *)"-maxdepth",    (char *)"1",
                          (char *)"-printf", (char *)"%f\n",         NULL};
    _cleanup_free_ char *versions = NULL;
    char *state = NULL;
    size_t count = 0;

    int r = put_files(build, options, err);
    if (r == 0)
        r = place_capture(build, find, &versions, err);
    if (r < 0)
        return r;
    for (char *version = strtok_r(versions, "\n", &state); version != NULL && r == 0;
         version = strtok_r(NULL, "\n", &state)) {
        r = make(build, options, version, err);
        count++;
    }
    if (r == 0 && count == 0)
        r = error_set(err, ENOENT, "there is no kernel in the system (/lib/modules is empty)");
    return r < 0 ? r : make_links(build, err);
}

static int inputs(const struct build *build, const struct step *step, struct digest *digest,
                  struct error *err)
{
    (void)build;
    (void)step;
    (void)err;
    for (const struct embedded_file *file = embedded_files; file->name != NULL; file++)
        digest_bytes(digest, file->bytes, file->length);
    return 0;
}

static int plan(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err)
{
    const struct initramfs_options *options = step->options;

    (void)build;
    return plan_action(plan, err, "update-initramfs for each kernel%s",
                       options->verity ? ", with the scripts for dm-verity" : "");
}

const struct step_type step_initramfs = {
    .kind = "initramfs",
    .size = sizeof(struct initramfs_options),
    .fields = fields,
    .places = IN(PLACE_TREE) | IN(PLACE_RUNNING),
    .changes = true,
    .check = check,
    .inputs = inputs,
    .run = run,
    .plan = plan,
};
