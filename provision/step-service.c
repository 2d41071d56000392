/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "provision/parcel.h"
#include "provision/steps.h"
#include "qemuctl/argv.h"

/* systemd units: new ones put in place and enabled, others enabled, disabled or masked. */

#define UNIT_DIRECTORY "/etc/systemd/system"

struct service_options {
    struct texts units; /* files */
    bool start;         /* at boot: the new ones are enabled */
    struct texts enable, disable, mask;
    char *target;
};

static const struct field fields[] = {
    {.name = "units",
     .type = FIELD_FILES,
     .offset = offsetof(struct service_options, units),
     .flags = FIELD_MAIN},
    {.name = "start",
     .type = FIELD_BOOL,
     .offset = offsetof(struct service_options, start),
     .initial = true},
    {.name = "enable", .type = FIELD_TEXTS, .offset = offsetof(struct service_options, enable)},
    {.name = "disable", .type = FIELD_TEXTS, .offset = offsetof(struct service_options, disable)},
    {.name = "mask", .type = FIELD_TEXTS, .offset = offsetof(struct service_options, mask)},
    {.name = "target", .type = FIELD_TEXT, .offset = offsetof(struct service_options, target)},
    {0},
};

static const char *const suffixes[] = {".service", ".socket", ".timer", ".target",   ".mount",
                                       ".path",    ".slice",  ".swap",  ".automount"};

/* What systemd takes for a unit's name. */
static bool good_unit(const char *name)
{
    const size_t length = strlen(name);

    if (name[0] == '-' ||
        name[strspn(
            name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@")] != '\0')
        return false;
    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        const size_t suffix = strlen(suffixes[i]);
        if (length > suffix && strcmp(name + length - suffix, suffixes[i]) == 0)
            return true;
    }
    return false;
}

static const char *base_name(const char *path)
{
    return strrchr(path, '/') + 1;
}

static void check_units(struct checker *checker, const struct step *step, const char *key,
                        const struct texts *units)
{
    for (size_t i = 0; i < units->count; i++)
        if (!good_unit(units->items[i]))
            checker_problem(checker, step, 0, "%s: '%s' is no unit's name (as NAME.service)", key,
                            units->items[i]);
}

static void check(struct checker *checker, struct step *step)
{
    const struct service_options *options = step->options;
    const size_t count = options->units.count + options->enable.count + options->disable.count +
                         options->mask.count + (options->target != NULL);

    for (size_t i = 0; i < options->units.count; i++)
        if (!good_unit(base_name(options->units.items[i])))
            checker_problem(checker, step, 0, "units: '%s' is no unit's name (as NAME.service)",
                            base_name(options->units.items[i]));
    check_units(checker, step, "enable", &options->enable);
    check_units(checker, step, "disable", &options->disable);
    check_units(checker, step, "mask", &options->mask);
    if (options->target != NULL && !good_unit(options->target))
        checker_problem(checker, step, 0, "target: '%s' is no unit's name (as NAME.target)",
                        options->target);
    if (count == 0)
        checker_problem(checker, step, 0,
                        "nothing to do: one of units, enable, disable, mask, "
                        "target is missing");
}

static int put_units(struct build *build, const struct texts *units, struct error *err)
{
    const struct parcel_attributes attributes = {.mode = 0644};
    _cleanup_(parcel_free_cleanup) struct parcel *archive = NULL;

    int r = parcel_new(build, &archive, err);
    for (size_t i = 0; r == 0 && i < units->count; i++) {
        _cleanup_free_ char *to = NULL;
        if (asprintf(&to, UNIT_DIRECTORY "/%s", base_name(units->items[i])) < 0)
            return error_oom(err);
        r = parcel_path(archive, units->items[i], to, &attributes, err);
    }
    return r < 0 ? r : parcel_send(archive, err);
}

/* systemctl VERB UNIT…, if there are any. */
static int systemctl(struct build *build, const char *verb, const struct texts *units,
                     struct error *err)
{
    _cleanup_argv_ struct argv argv = ARGV_INIT;

    if (units->count == 0)
        return 0;
    argv_add(&argv, "systemctl");
    argv_add(&argv, verb);
    for (size_t i = 0; i < units->count; i++)
        argv_add(&argv, strchr(units->items[i], '/') != NULL ? base_name(units->items[i])
                                                             : units->items[i]);
    int r = argv_check(&argv, err);
    if (r < 0)
        return r;
    return place_run(build, &(struct place_command){.argv = argv.items, .input = -1, .output = -1},
                     err);
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct service_options *options = step->options;
    char *targets[] = {options->target, NULL};
    const struct texts target = {.items = targets, .count = options->target != NULL};
    int r = 0;

    if (options->units.count > 0)
        r = put_units(build, &options->units, err);
    /* A guest's systemd has to learn of new files. */
    if (r == 0 && options->units.count > 0 && build->guest != NULL)
        r = place_run(
            build,
            &(struct place_command){
                .argv = (char *const[]){(char *)"systemctl", (char *)"daemon-reload", NULL},
                .input = -1,
                .output = -1},
            err);
    if (r == 0 && options->start)
        r = systemctl(build, "enable", &options->units, err);
    if (r == 0)
        r = systemctl(build, "enable", &options->enable, err);
    if (r == 0)
        r = systemctl(build, "disable", &options->disable, err);
    if (r == 0)
        r = systemctl(build, "mask", &options->mask, err);
    if (r == 0)
        r = systemctl(build, "set-default", &target, err);
    return r;
}

static int plan(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err)
{
    const struct service_options *options = step->options;
    int r = 0;

    (void)build;
    for (size_t i = 0; r == 0 && i < options->units.count; i++)
        r = plan_action(plan, err, "%s to " UNIT_DIRECTORY "%s", options->units.items[i],
                        options->start ? ", enabled" : "");
    for (size_t i = 0; r == 0 && i < options->enable.count; i++)
        r = plan_action(plan, err, "enable %s", options->enable.items[i]);
    for (size_t i = 0; r == 0 && i < options->disable.count; i++)
        r = plan_action(plan, err, "disable %s", options->disable.items[i]);
    for (size_t i = 0; r == 0 && i < options->mask.count; i++)
        r = plan_action(plan, err, "mask %s", options->mask.items[i]);
    return r;
}

const struct step_type step_service = {
    .kind = "service",
    .size = sizeof(struct service_options),
    .fields = fields,
    .places = IN(PLACE_TREE) | IN(PLACE_RUNNING),
    .changes = true,
    .check = check,
    .run = run,
    .plan = plan,
};
