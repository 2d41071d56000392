/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "provision/steps.h"
#include "qemuctl/argv.h"

/* Commands in the system, as root. */

struct run_options {
    struct commands commands;
    struct texts environment;
    uint64_t timeout;
};

static const struct field fields[] = {
    {.name = "commands",
     .type = FIELD_COMMANDS,
     .offset = offsetof(struct run_options, commands),
     .flags = FIELD_REQUIRED | FIELD_MAIN},
    {.name = "environment",
     .type = FIELD_TEXTS,
     .offset = offsetof(struct run_options, environment)},
    {.name = "timeout",
     .type = FIELD_SECONDS,
     .offset = offsetof(struct run_options, timeout),
     .minimum = 1,
     .maximum = 7 * 24 * 3600},
    {0},
};

static void check(struct checker *checker, struct step *step)
{
    const struct run_options *options = step->options;

    for (size_t i = 0; i < options->environment.count; i++) {
        const char *variable = options->environment.items[i];
        const size_t name =
            strspn(variable, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
        if (name == 0 || variable[name] != '=')
            checker_problem(checker, step, 0, "environment: '%s' is not NAME=VALUE", variable);
    }
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct run_options *options = step->options;
    int r = 0;

    for (size_t i = 0; r == 0 && i < options->commands.count; i++) {
        const struct place_command command = {
            .argv = options->commands.items[i].items,
            .environment = options->environment.items,
            .input = -1,
            .output = -1,
            .timeout = options->timeout,
        };
        r = place_run(build, &command, err);
    }
    return r;
}

static int plan(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err)
{
    const struct run_options *options = step->options;
    int r = 0;

    (void)build;
    for (size_t i = 0; r == 0 && i < options->commands.count; i++) {
        _cleanup_argv_ struct argv argv = ARGV_INIT;
        for (size_t j = 0; j < options->commands.items[i].count; j++)
            argv_add(&argv, options->commands.items[i].items[j]);
        _cleanup_free_ char *line = argv_check(&argv, NULL) == 0 ? argv_quote(&argv) : NULL;
        r = line != NULL ? plan_action(plan, err, "%s", line) : error_oom(err);
    }
    return r;
}

const struct step_type step_run = {
    .kind = "run",
    .size = sizeof(struct run_options),
    .fields = fields,
    .places = IN(PLACE_TREE) | IN(PLACE_RUNNING),
    .changes = true,
    .check = check,
    .run = run,
    .plan = plan,
};
