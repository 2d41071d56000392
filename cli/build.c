/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>

#include "cli/cli.h"
#include "cli/guest_append.h"
#include "cli/guest_kernel.h"
#include "cli/manifest.h"
#include "common/io.h"
#include "common/log.h"
#include "common/text.h"
#include "common/units.h"
#include "provision/provision.h"

/* `qverity build`: makes what a recipe describes. */

#define COPY_CHUNK ((ssize_t)1 << 20)

enum accel_choice { CHOOSE_AUTO, CHOOSE_KVM, CHOOSE_TCG };

struct build_context {
    const char *work, *from, *until, *compress;
    enum accel_choice accel;
    bool dry_run, list;
    const struct cli_options *options;
};

static const struct cli_option build_options[] = {
    {"work", 0, "DIR", "work in DIR, and leave the results there (the recipe's name)"},
    {"from", 0, "STEP", "do this step and all behind it again: a number, name or kind"},
    {"until", 0, "STEP", "stop after this step"},
    {"dry-run", 0, NULL, "tell what would be done, and do nothing"},
    {"list", 0, NULL, "list the steps and which of them are done"},
    {"compress", 0, "zlib|zstd|none", "compress the sealed image (what the recipe says)"},
    {"accel", 0, "auto|kvm|tcg", "accelerator for guests; auto tries whether KVM runs one (auto)"},
    {0},
};

enum build_option {
    OPT_WORK,
    OPT_FROM,
    OPT_UNTIL,
    OPT_DRY_RUN,
    OPT_LIST,
    OPT_COMPRESS,
    OPT_ACCEL,
};

static int find_word(const char *argument, const char *option, const char *const *words,
                     size_t *ret, struct error *err)
{
    for (size_t i = 0; words[i] != NULL; i++)
        if (strcmp(argument, words[i]) == 0) {
            *ret = i;
            return 0;
        }
    return cli_usage_error(err, "%s: '%s' is not %s, %s or %s", option, argument, words[0],
                           words[1], words[2]);
}

static int build_option(size_t index, const char *argument, void *context, struct error *err)
{
    static const char *const compressions[] = {"zlib", "zstd", "none", NULL};
    static const char *const accels[] = {"auto", "kvm", "tcg", NULL};
    struct build_context *build = context;
    size_t choice = 0;
    int r = 0;

    switch ((enum build_option)index) {
    case OPT_WORK:
        build->work = argument;
        return 0;
    case OPT_FROM:
        build->from = argument;
        return 0;
    case OPT_UNTIL:
        build->until = argument;
        return 0;
    case OPT_DRY_RUN:
        build->dry_run = true;
        return 0;
    case OPT_LIST:
        build->list = true;
        return 0;
    case OPT_COMPRESS:
        build->compress = argument;
        return find_word(argument, "--compress", compressions, &choice, err);
    case OPT_ACCEL:
        r = find_word(argument, "--accel", accels, &choice, err);
        build->accel = (enum accel_choice)choice;
        return r;
    }
    abort();
}

/* --- Looking on --- */

/* What a recipe, programs and guests say does not move the cursor. */
static void put_line(FILE *out, const char *line)
{
    _cleanup_free_ char *text = text_line(line);

    fputs(text != NULL ? text : "?", out);
    fputc('\n', out);
}

static void on_step(const struct build_step *step, enum build_event event, void *arg)
{
    const struct build_context *build = arg;
    char how[64] = "";

    if (build->options->quiet)
        return;
    if (event == BUILD_STEP_SKIPPED)
        strcpy(how, ": done already");
    else if (event == BUILD_STEP_DONE)
        snprintf(how, sizeof(how), ": %.1f s", step->seconds);
    _cleanup_free_ char *name = text_line(step->name);
    fprintf(stderr, "[%u/%u] %s%s\n", step->number, step->count, name != NULL ? name : "?", how);
}

static void on_output(const char *line, void *arg)
{
    const struct build_context *build = arg;

    if (build->options->quiet)
        return;
    fputs("    ", stderr);
    put_line(stderr, line);
}

/* --- What the image's guest is booted with --- */

static int copy_file(const struct guest_file *file, const char *folder, const char *name,
                     char **ret_path, struct error *err)
{
    _cleanup_free_ char *path = NULL, *buffer = malloc(COPY_CHUNK);
    _cleanup_close_ int fd = -1;
    uint64_t offset = 0;
    ssize_t n;
    int r = 0;

    if (buffer == NULL || asprintf(&path, "%s/%s", folder, name) < 0)
        return error_oom(err);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot create", path);
    do {
        n = io_read_some_at(file->fd, file->name, buffer, COPY_CHUNK, offset, err);
        if (n > 0)
            r = io_write(fd, path, buffer, (size_t)n, err);
        if (n < 0 || r < 0)
            return n < 0 ? (int)n : r;
        offset += (uint64_t)n;
    } while (n == COPY_CHUNK);
    r = io_close_written(take_fd(&fd), path, err);
    if (r == 0)
        *ret_path = TAKE_PTR(path);
    return r;
}

/* The kernel panics when its timer does not tick in time, which an emulated one on a busy machine
 * may fail to do. Nobody measures the command line of a guest that is set up. */
#define NO_TIMER_CHECK " no_timer_check"

static int find_boot(const char *image, const char *folder, struct build_boot *ret, void *arg,
                     struct error *err)
{
    const struct cli_options options = {.image = {.format = "qcow2"}};
    _cleanup_target_ struct cli_target target = {0};
    _cleanup_guest_file_ struct guest_file kernel = GUEST_FILE_INIT, initrd = GUEST_FILE_INIT;
    _cleanup_(build_boot_clear_cleanup) struct build_boot boot = {0};
    _cleanup_free_ char *line = NULL;
    struct guest_append append = {.writable = true, .ssh = true, .no_verity = true};

    (void)arg;
    int r = cli_target_open(image, &options, NULL, &target, err);
    if (r == 0)
        r = guest_kernel_open(&target, NULL, NULL, 0, &kernel, &initrd, err);
    if (r == 0)
        r = copy_file(&kernel, folder, "kernel", &boot.kernel, err);
    if (r == 0 && initrd.fd >= 0)
        r = copy_file(&initrd, folder, "initrd", &boot.initrd, err);
    if (r < 0)
        return r;
    append.partition = target.partition->number;
    r = guest_append_make(&append, NULL, &line, err);
    if (r == 0 && asprintf(&boot.append, "%s" NO_TIMER_CHECK, line) < 0) {
        boot.append = NULL;
        r = error_oom(err);
    }
    if (r < 0)
        return r;
    *ret = boot;
    boot = (struct build_boot){0};
    return 0;
}

static int make_manifest(const struct build_manifest *about, json_t **ret, void *arg,
                         struct error *err)
{
    const struct manifest_files files = {
        .image = about->image,
        .kernel = about->kernel,
        .initrd = about->initrd,
        .append = about->append,
        .ovmf = about->ovmf,
    };

    (void)arg;
    return manifest_describe(&files, ret, err);
}

/* --- Plans --- */

static int print_plan_json(const struct plan_step *steps, size_t count, struct error *err)
{
    _cleanup_json_ json_t *json = json_pack("{s:[]}", "steps");
    int r = json != NULL ? 0 : error_oom(err);

    for (size_t i = 0; r == 0 && i < count; i++) {
        json_t *actions = json_array();
        for (size_t j = 0; j < steps[i].action_count; j++)
            if (json_array_append_new(actions, json_text(steps[i].actions[j])) != 0)
                r = error_oom(err);
        json_t *step =
            json_pack("{s:i, s:i, s:o, s:b, s:b, s:o}", "number", (int)steps[i].number, "line",
                      (int)steps[i].line, "name", json_text(steps[i].name), "done", steps[i].done,
                      "will_run", steps[i].will_run, "actions", actions);
        if (r == 0 &&
            (step == NULL || json_array_append_new(json_object_get(json, "steps"), step) != 0))
            r = error_oom(err);
    }
    return r < 0 ? r : json_print(json, err);
}

static void print_plan(const struct build_context *build, const struct plan_step *steps,
                       size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct plan_step *step = &steps[i];
        if (build->list) {
            printf("%3u  %-8s ", step->number,
                   step->done       ? "done"
                   : step->will_run ? "to do"
                                    : "later");
            put_line(stdout, step->name);
            continue;
        }
        if (!step->will_run)
            continue;
        printf("%3u  ", step->number);
        put_line(stdout, step->name);
        for (size_t j = 0; j < step->action_count; j++) {
            fputs("       ", stdout);
            put_line(stdout, step->actions[j]);
        }
    }
}

static int show_plan(const struct build_context *build, const struct recipe *recipe,
                     const struct build_options *options, struct error *err)
{
    struct plan_step *steps;
    size_t count;

    int r = recipe_plan(recipe, options, &steps, &count, err);
    if (r < 0)
        return r;
    if (build->options->json)
        r = print_plan_json(steps, count, err);
    else
        print_plan(build, steps, count);
    recipe_plan_free(steps, count);
    return r;
}

/* --- Building --- */

static void print_report(const json_t *report)
{
    const json_t *path;
    size_t i;

    if (json_object_get(report, "image") != NULL)
        printf("Image:      %s\n", json_string_value(json_object_get(report, "image")));
    json_array_foreach (json_object_get(report, "fetched"), i, path)
        printf("Fetched:    %s\n", json_string_value(path));
    if (json_object_get(report, "root_hash") != NULL)
        printf("Root hash:  %s\n", json_string_value(json_object_get(report, "root_hash")));
}

/* Signals end the build between two things that it does, and it cleans up. */
static int open_signals(int *ret, struct error *err)
{
    static const int handled[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(handled) / sizeof(handled[0]); i++)
        sigaddset(&set, handled[i]);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return error_set_errno(err, errno, "sigprocmask");
    (void)signal(SIGPIPE, SIG_IGN);
    *ret = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return *ret >= 0 ? 0 : error_set_errno(err, errno, "signalfd");
}

static enum accel choose_accel(const struct build_context *build)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    if (build->accel != CHOOSE_AUTO)
        return build->accel == CHOOSE_KVM ? ACCEL_KVM : ACCEL_TCG;
    int r = accel_probe_kvm(&err);
    if (r < 0)
        log_info("no KVM, QEMU emulates the guest's CPU: %s", error_message(&err));
    return r == 0 ? ACCEL_KVM : ACCEL_TCG;
}

static int do_build(const struct build_context *build, const struct recipe *recipe,
                    struct build_options *options, struct error *err)
{
    _cleanup_json_ json_t *report = NULL;
    _cleanup_close_ int signals = -1;

    int r = open_signals(&signals, err);
    if (r < 0)
        return r;
    options->interrupt = signals;
    options->accel = choose_accel(build);
    r = recipe_build(recipe, options, &report, err);
    if (r < 0)
        return r;
    if (build->options->json)
        return json_print(report, err);
    print_report(report);
    return 0;
}

static int build_run(const struct cli_options *options, int argc, char **argv, void *context,
                     struct error *err)
{
    _cleanup_problems_ struct problems problems = PROBLEMS_INIT;
    _cleanup_(recipe_free_cleanup) struct recipe *recipe = NULL;
    struct build_context *build = context;
    struct build_options to_do = {
        .from = build->from,
        .until = build->until,
        .compress = build->compress,
        .interrupt = -1,
        .threads = options->tree.threads,
        .manifest = make_manifest,
        .find_boot = find_boot,
        .handlers = {.step = on_step, .output = on_output, .arg = build},
    };

    (void)argc;
    build->options = options;
    int r = recipe_load(argv[0], &problems, &recipe, err);
    for (size_t i = 0; i < problems.count; i++)
        log_error("%s", problems.lines[i]);
    if (r < 0)
        return r;
    to_do.work = build->work != NULL ? build->work : recipe_name(recipe);
    if (build->dry_run || build->list)
        return show_plan(build, recipe, &to_do, err);
    return do_build(build, recipe, &to_do, err);
}

const struct cli_command cmd_build = {
    .name = CLI_BUILD_NAME,
    .arguments = "RECIPE",
    .summary = CLI_BUILD_SUMMARY,
    .details =
        "Does the steps of RECIPE, a YAML file (qverity-recipe(5)), in the work directory. Steps\n"
        "that were done with the same inputs are not done again, and a build that failed or was\n"
        "killed goes on at the step where it ended. The sealed image, the files that were fetched\n"
        "and manifest.json are in the work directory; each step's log is below it in steps/.",
    .groups = CLI_JSON,
    .options = build_options,
    .operands_min = 1,
    .operands_max = 1,
    .option = build_option,
    .context_size = sizeof(struct build_context),
    .run = build_run,
};
