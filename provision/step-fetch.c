/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/units.h"
#include "provision/steps.h"

/* Files of the system, brought into the work directory. */

struct fetch_item {
    char *from; /* the last part may be a pattern */
    char *to;   /* a name in the work directory; NULL: as it is called there */
};

struct fetch_options {
    struct objects items;
};

static const struct field item_fields[] = {
    {.name = "from",
     .type = FIELD_PATH,
     .offset = offsetof(struct fetch_item, from),
     .flags = FIELD_REQUIRED},
    {.name = "to", .type = FIELD_TEXT, .offset = offsetof(struct fetch_item, to)},
    {0},
};

static const struct field fields[] = {
    {.name = "files",
     .type = FIELD_OBJECTS,
     .offset = offsetof(struct fetch_options, items),
     .flags = FIELD_REQUIRED | FIELD_MAIN,
     .fields = item_fields,
     .size = sizeof(struct fetch_item)},
    {0},
};

/* Names that are the build's own. */
static bool is_taken(const char *name)
{
    static const char *const names[] = {"disk.qcow2", "disk.qcow2.qvtree", "steps",        "lock",
                                        "key",        "host-key",          "manifest.json"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

static const char *name_of(const struct fetch_item *item)
{
    return item->to != NULL ? item->to : strrchr(item->from, '/') + 1;
}

/* The number of the step, up to item `count` of step `last`, that brings a file of this name; or 0.
 */
static unsigned who_fetches(const struct recipe *recipe, const char *name, const struct step *last,
                            size_t count)
{
    for (size_t i = 0; i < recipe->step_count; i++) {
        const struct step *step = &recipe->steps[i];
        const struct fetch_options *options = step->options;
        if (step->type != &step_fetch)
            continue;
        const struct fetch_item *items = options->items.items;
        for (size_t j = 0; j < (step == last ? count : options->items.count); j++)
            if (items[j].from != NULL && strcmp(name_of(&items[j]), name) == 0)
                return step->number;
        if (step == last)
            break;
    }
    return 0;
}

bool recipe_fetches(const struct recipe *recipe, const char *name)
{
    return who_fetches(recipe, name, NULL, 0) != 0;
}

static void check(struct checker *checker, struct step *step)
{
    const struct fetch_options *options = step->options;
    const struct fetch_item *items = options->items.items;

    for (size_t i = 0; i < options->items.count; i++) {
        const unsigned line = options->items.lines[i];
        const char *from = items[i].from, *to = items[i].to;
        if (from == NULL)
            continue;
        const char *slash = strrchr(from, '/');
        if (slash[1] == '\0')
            checker_problem(checker, step, line, "from: '%s' is a directory", from);
        if (strcspn(from, "*?[") < (size_t)(slash - from))
            checker_problem(checker, step, line, "from: '%s': only its last part may be a pattern",
                            from);
        if (to == NULL && slash[strcspn(slash, "*?[")] != '\0')
            checker_problem(checker, step, line, "to: is missing, and '%s' is a pattern", from);
        const char *name = name_of(&items[i]);
        if (strchr(name, '/') != NULL || name[0] == '.' || is_taken(name))
            checker_problem(checker, step, line, "to: '%s' cannot be a file's name there", name);
        const unsigned other = who_fetches(checker->recipe, name, step, i);
        if (other != 0)
            checker_problem(checker, step, line, "to: step %u fetches a file '%s' already", other,
                            name);
    }
}

/* The one path that the pattern means. *ret is owned. */
static int resolve(struct build *build, const char *from, char **ret, struct error *err)
{
    _cleanup_free_ char *directory = strndup(from, (size_t)(strrchr(from, '/') - from));
    _cleanup_free_ char *found = NULL;

    if (directory == NULL)
        return error_oom(err);
    /* -H: the directory itself may be a link. */
    char *const argv[] = {
        (char *)"find",      (char *)"-H",    directory[0] != '\0' ? directory : (char *)"/",
        (char *)"-mindepth", (char *)"1",     (char *)"-maxdepth",
        (char *)"1",         (char *)"-name", strrchr(from, '/') + 1,
        (char *)"-printf",   (char *)"%p\n",  NULL};
    int r = place_capture(build, argv, &found, err);
    if (r < 0)
        return r;
    char *end = strchr(found, '\n');
    if (end == NULL)
        return error_set(err, ENOENT, "%s: there is no such file in the system", from);
    if (end[1] != '\0') {
        for (char *p = found; *p != '\0'; p++)
            *p = *p == '\n' && p[1] != '\0' ? ' ' : *p;
        found[strcspn(found, "\n")] = '\0';
        return error_set(err, EINVAL, "%s: means more than one file: %.200s", from, found);
    }
    *end = '\0';
    *ret = TAKE_PTR(found);
    return 0;
}

/* Copies the file to `path`, which it gets when it is whole. */
static int fetch(struct build *build, const char *from, const char *path, struct error *err)
{
    char *const argv[] = {(char *)"cat", (char *)"--", (char *)from, NULL};
    struct place_command command = {.argv = argv, .input = -1};
    _cleanup_free_ char *temporary = step_path(build, "fetched");
    _cleanup_close_ int fd = -1;

    if (temporary == NULL)
        return error_oom(err);
    fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot create", temporary);
    command.output = fd;
    int r = place_run(build, &command, err);
    if (r < 0)
        return r;
    if (fchmod(fd, 0644) < 0 || fsync(fd) < 0)
        return error_set_errno(err, errno, "%s: cannot write to disk", temporary);
    r = io_close_written(take_fd(&fd), temporary, err);
    if (r == 0 && rename(temporary, path) < 0)
        r = error_set_errno(err, errno, "%s: cannot rename to %s", temporary, path);
    return r;
}

static int fetch_item(struct build *build, const struct fetch_item *item, json_t *outputs,
                      json_t *fetched, struct error *err)
{
    const char *name = name_of(item);
    _cleanup_free_ char *from = NULL, *path = build_path(build, name);
    char size[FORMAT_SIZE_MAX];
    struct stat st;

    if (path == NULL)
        return error_oom(err);
    int r = resolve(build, item->from, &from, err);
    if (r == 0)
        r = fetch(build, from, path, err);
    if (r < 0)
        return r;
    if (stat(path, &st) < 0)
        return error_set_errno(err, errno, "%s", path);
    build_say(build, "%s: %s, %s", from, name, format_size((uint64_t)st.st_size, size));
    if (json_array_append_new(outputs, json_string(name)) != 0 ||
        json_array_append_new(fetched, json_string(path)) != 0)
        return error_oom(err);
    return 0;
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct fetch_options *options = step->options;
    const struct fetch_item *items = options->items.items;
    json_t *outputs = json_array(), *fetched = json_array();
    int r = 0;

    if (json_object_set_new(build->result, "outputs", outputs) != 0 ||
        json_object_set_new(build->result, "fetched", fetched) != 0)
        return error_oom(err);
    for (size_t i = 0; r == 0 && i < options->items.count; i++)
        r = fetch_item(build, &items[i], outputs, fetched, err);
    return r;
}

static int plan(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err)
{
    const struct fetch_options *options = step->options;
    const struct fetch_item *items = options->items.items;
    int r = 0;

    for (size_t i = 0; r == 0 && i < options->items.count; i++)
        r = plan_action(plan, err, "%s to %s/%s", items[i].from, build->work, name_of(&items[i]));
    return r;
}

const struct step_type step_fetch = {
    .kind = "fetch",
    .size = sizeof(struct fetch_options),
    .fields = fields,
    .places = IN(PLACE_TREE) | IN(PLACE_RUNNING),
    .check = check,
    .run = run,
    .plan = plan,
};
