/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include "common/log.h"
#include "common/units.h"
#include "provision/disk.h"
#include "provision/guest.h"
#include "provision/keys.h"
#include "provision/log.h"
#include "provision/work.h"
#include "qemuctl/clock.h"

/*
 * How a build goes on where another one stopped.
 *
 * Each step has an identity: the digest of all that decides about its result, the identity of the
 * step before included. A step whose folder tells that it was done with that identity is done. The
 * first one that is not is where the build begins; all behind it is forgotten.
 *
 * What the system was like in front of that step is what the last step before it that changed the
 * system has in its folder: a tree, or an overlay of the image. Trees are copies, and so all but
 * those of install and of the newest step are removed again: if the one that is needed is gone, the
 * build begins at an earlier step. Overlays are kept, as each is the backing file of the next.
 *
 * A guest that runs is no state that can be kept. A build that begins between boot and shutdown
 * boots once more, as the boot step says, on an overlay of what was there. So that this is
 * possible, each step that changes a running guest begins with a new overlay, to which QEMU changes
 * over while the guest runs, and ends, as boot does, with a sync in the guest: below each overlay
 * is a disk as after a loss of power at a moment when all that counts was written, which is what a
 * journal is for, and where a boot loader finds it, which reads no journal.
 */

/* Changes when the same recipe comes to mean something else. */
#define ENGINE_VERSION 2

/* --- Identities --- */

static void digest_node(struct digest *digest, const struct doc *node, const char *except)
{
    digest_number(digest, node->kind);
    digest_number(digest, node->count);
    if (node->kind == DOC_TEXT)
        digest_text(digest, node->text);
    for (size_t i = 0; i < node->count; i++) {
        if (node->kind == DOC_MAP && except != NULL && strcmp(node->keys[i]->text, except) == 0)
            continue;
        if (node->kind == DOC_MAP)
            digest_text(digest, node->keys[i]->text);
        digest_node(digest, node->items[i], NULL);
    }
}

/* `before` is the identity of the step in front, or NULL. */
static int identify(const struct build *build, const struct step *step, const uint8_t *before,
                    uint8_t ret[static DIGEST_SIZE], struct error *err)
{
    _cleanup_(digest_free_cleanup) struct digest *digest = NULL;

    int r = digest_new(&digest, err);
    if (r < 0)
        return r;
    digest_text(digest, "qverity step");
    digest_number(digest, ENGINE_VERSION);
    if (before != NULL)
        digest_bytes(digest, before, DIGEST_SIZE);
    digest_text(digest, build->recipe->name);
    digest_number(digest, build->recipe->epoch);
    digest_text(digest, step->type->kind);
    digest_text(digest, step->type->variant);
    if (step->node != NULL)
        digest_node(digest, step->node, "name");
    if (step->type->fields != NULL && step->options != NULL)
        r = fields_digest(step->type->fields, step->options, digest, err);
    if (r == 0 && step->type->inputs != NULL)
        r = step->type->inputs(build, step, digest, err);
    return r < 0 ? r : digest_end(digest, ret, err);
}

static int identify_all(const struct build *build, struct error *err)
{
    const struct recipe *recipe = build->recipe;
    const uint8_t *before = NULL;

    for (size_t i = 0; i < recipe->step_count; i++) {
        int r = identify(build, &recipe->steps[i], before, recipe->steps[i].identity, err);
        if (r < 0)
            return error_prefix(err, "step %u (%s)", recipe->steps[i].number,
                                recipe->steps[i].name);
        before = recipe->steps[i].identity;
    }
    return 0;
}

/* Whether what step i has taken is what it was when the build began: what it was recorded with. */
static int check_identity(const struct build *build, size_t i, struct error *err)
{
    const struct step *steps = build->recipe->steps;
    uint8_t identity[DIGEST_SIZE];

    int r = identify(build, &steps[i], i > 0 ? steps[i - 1].identity : NULL, identity, err);
    if (r < 0)
        return r;
    if (memcmp(identity, steps[i].identity, sizeof(identity)) != 0)
        return error_set(err, ESTALE, "a file that it takes was changed while the build ran");
    return 0;
}

/* --- Which steps are to be done --- */

/* The step that a user means. */
static int find_step(const struct recipe *recipe, const char *option, const char *spec, size_t *ret,
                     struct error *err)
{
    size_t found = 0, count = 0;
    uint64_t number;

    for (size_t i = 0; i < recipe->step_count; i++) {
        const struct step *step = &recipe->steps[i];
        if ((parse_u64(spec, "", &number, NULL) == 0 && number == step->number) ||
            (step->label != NULL && strcmp(step->label, spec) == 0)) {
            *ret = i;
            return 0;
        }
        if (strcmp(step->type->kind, spec) == 0 || strcmp(step->folder, spec) == 0) {
            found = i;
            count++;
        }
    }
    if (count == 0)
        return error_set(err, ENOENT, "%s: '%s' is no step of this recipe (--list)", option, spec);
    if (count > 1)
        return error_set(err, EINVAL, "%s: %zu steps are called '%s'; give the number (--list)",
                         option, count, spec);
    *ret = found;
    return 0;
}

struct plan {
    struct step_state *states; /* of all steps */
    size_t begin, end;         /* the steps from begin up to end are to be done */
};

static void plan_clear(struct plan *plan, size_t count)
{
    for (size_t i = 0; i < count && plan->states != NULL; i++)
        step_state_clear(&plan->states[i]);
    free(plan->states);
}

/* The step that left the system as it is in front of step `i`, or -1 if none did. */
static ssize_t base_of(const struct recipe *recipe, size_t i)
{
    ssize_t base = (ssize_t)i - 1;

    while (base >= 0 && !recipe->steps[base].type->changes && !recipe->steps[base].type->moves)
        base--;
    return base;
}

/* Whether what is needed to begin at step `i` is there. */
static bool can_begin(const struct recipe *recipe, const struct plan *plan, size_t i)
{
    const ssize_t base = base_of(recipe, i);

    if (base < 0)
        return true;
    if (recipe->steps[i].before == PLACE_SEALED)
        return plan->states[base].done;
    return recipe->steps[i].before == PLACE_TREE ? plan->states[base].has_tree
                                                 : plan->states[base].has_disk;
}

static bool is_installed_with_key(const struct step *step)
{
    return step->before == PLACE_IMAGE || step->before == PLACE_RUNNING;
}

static int make_plan(const struct build *build, struct plan *plan, struct error *err)
{
    const struct recipe *recipe = build->recipe;
    const struct build_options *options = build->options;
    size_t from = recipe->step_count, done = 0;
    int r = 0;

    plan->end = recipe->step_count;
    plan->states = calloc(recipe->step_count, sizeof(*plan->states));
    if (plan->states == NULL)
        return error_oom(err);
    if (options->from != NULL)
        r = find_step(recipe, "--from", options->from, &from, err);
    if (r == 0 && options->until != NULL) {
        r = find_step(recipe, "--until", options->until, &plan->end, err);
        plan->end++;
    }
    if (r == 0 && options->from != NULL && options->until != NULL && from >= plan->end)
        r = error_set(err, EINVAL, "--until %s: is before --from %s", options->until,
                      options->from);
    for (size_t i = 0; r == 0 && i < recipe->step_count; i++)
        r = step_state_load(build->work, &recipe->steps[i], &plan->states[i], err);
    if (r < 0)
        return r;
    while (done < recipe->step_count && plan->states[done].done)
        done++;
    plan->begin = done < from ? done : from;
    if (plan->begin >= plan->end)
        return 0;
    /* Without the key there is no way into a system that was installed with it: it goes when the
     * image is sealed. */
    if (keys_needed(recipe) && !keys_exist(build->work))
        while (is_installed_with_key(&recipe->steps[plan->begin]))
            plan->begin--;
    while (plan->begin > 0 && !can_begin(recipe, plan, plan->begin))
        plan->begin--;
    return 0;
}

/* --- Doing a step --- */

int build_interrupted(const struct build *build, struct error *err)
{
    struct pollfd fd = {.fd = build->options->interrupt, .events = POLLIN};

    if (fd.fd >= 0 && poll(&fd, 1, 0) > 0)
        return error_set(err, EINTR, "interrupted");
    return 0;
}

void build_set_tree(struct build *build, char **path)
{
    free(build->tree);
    build->tree = TAKE_PTR(*path);
}

void build_set_image(struct build *build, char **path)
{
    free(build->image);
    build->image = TAKE_PTR(*path);
}

static int copy_tree(struct build *build, struct error *err)
{
    _cleanup_free_ char *path = step_path(build, TREE_NAME);

    if (path == NULL)
        return error_oom(err);
    char *const argv[] = {(char *)"cp", (char *)"-a", (char *)"--reflink=auto",
                          (char *)"--", build->tree,  path,
                          NULL};
    int r = build_exec(build, argv, err);
    if (r < 0)
        return error_prefix(err, "copying the tree");
    build_set_tree(build, &path);
    return 0;
}

static int make_overlay(struct build *build, struct error *err)
{
    _cleanup_free_ char *path = step_path(build, DISK_NAME);

    if (path == NULL)
        return error_oom(err);
    int r = disk_overlay(build, build->image, "qcow2", 0, path, err);
    if (r < 0)
        return error_prefix(err, "making an overlay");
    build_set_image(build, &path);
    return 0;
}

/* The guest goes on as the step's own overlay. */
static int move_guest(struct build *build, struct error *err)
{
    _cleanup_free_ char *path = step_path(build, DISK_NAME);

    if (path == NULL)
        return error_oom(err);
    int r = guest_change_disk(build->guest, path, err);
    if (r < 0)
        return error_prefix(err, "making an overlay");
    build_set_image(build, &path);
    return 0;
}

/* A guest that must run for this step, and does not as the build begins here. */
static int boot_again(struct build *build, const struct step *step, struct error *err)
{
    const struct step *boot = recipe_step(build->recipe, step, "boot");

    build_say(build, "booting once more");
    int r = make_overlay(build, err);
    if (r < 0)
        return r;
    build->place = PLACE_IMAGE;
    r = boot->type->run(build, (struct step *)boot, err);
    if (r < 0)
        return error_prefix(err, "booting once more");
    build->place = PLACE_RUNNING;
    return 0;
}

static int prepare(struct build *build, const struct step *step, struct error *err)
{
    _cleanup_free_ char *log = NULL;

    if (asprintf(&build->directory, "%s/steps/%s", build->work, step->folder) < 0) {
        build->directory = NULL;
        return error_oom(err);
    }
    int r = remove_all(build->directory, err);
    if (r < 0)
        return r;
    if (mkdir(build->directory, 0700) < 0)
        return error_set_errno(err, errno, "%s: cannot make the directory", build->directory);
    log = step_path(build, "log");
    build->result = json_object();
    if (log == NULL || build->result == NULL)
        return error_oom(err);
    r = log_open(log, &build->options->handlers, &build->log, err);
    if (r < 0)
        return r;
    if (build->place == PLACE_RUNNING && build->guest == NULL)
        return boot_again(build, step, err);
    if (!step->type->changes)
        return 0;
    switch (build->place) {
    case PLACE_TREE:
        return copy_tree(build, err);
    case PLACE_IMAGE:
        return make_overlay(build, err);
    case PLACE_RUNNING:
        return move_guest(build, err);
    default:
        return 0;
    }
}

/* Installing it again would take long. */
static bool keeps_tree(const struct step *step)
{
    return strcmp(step->type->kind, "install") == 0;
}

/* The tree that this step's is a copy of. */
static void drop_old_tree(struct build *build, size_t i)
{
    const ssize_t base = base_of(build->recipe, i);
    const struct step *steps = build->recipe->steps;

    if (base >= 0 && steps[i].type->changes && !keeps_tree(&steps[base]))
        (void)work_drop_tree(build, &steps[base], NULL);
}

/* The trees that a build which was killed did not come to drop, or not to the end. */
static int drop_old_trees(const struct build *build, const struct plan *plan, struct error *err)
{
    const struct recipe *recipe = build->recipe;
    bool newest = true;
    int r = 0;

    for (size_t i = plan->begin; r == 0 && i-- > 0;) {
        const struct step *step = &recipe->steps[i];
        if (plan->states[i].has_tree && !newest && !keeps_tree(step))
            r = work_drop_tree(build, step, err);
        else
            r = work_finish_drop(build, step, err);
        newest = newest && !plan->states[i].has_tree;
    }
    return r;
}

static void forget_step(struct build *build)
{
    log_close(build->log);
    build->log = NULL;
    cleanup_free(&build->directory);
    json_decref(build->result);
    build->result = NULL;
    build->step = NULL;
}

static void tell(const struct build *build, const struct step *step, enum build_event event,
                 double seconds)
{
    const struct build_handlers *handlers = &build->options->handlers;
    _cleanup_free_ char *log = NULL;
    const struct build_step info = {
        .number = step->number,
        .count = (unsigned)build->recipe->step_count,
        .name = step->name,
        .line = step->node != NULL ? step->node->line : 0,
        .seconds = seconds,
        .log = asprintf(&log, "%s/steps/%s/log", build->work, step->folder) < 0 ? NULL : log,
    };

    if (handlers->step != NULL)
        handlers->step(&info, event, handlers->arg);
}

static int do_step(struct build *build, size_t i, double *ret_seconds, struct error *err)
{
    struct step *step = &build->recipe->steps[i];
    const int64_t begun = clock_ms();

    build->step = step;
    int r = build_interrupted(build, err);
    if (r == 0)
        r = prepare(build, step, err);
    if (r == 0)
        r = step->type->run(build, step, err);
    if (r == 0 && build->guest != NULL && step->type->changes)
        r = guest_sync(build, err);
    if (r == 0)
        r = check_identity(build, i, err);
    if (r < 0)
        return r;
    if (step->type->moves)
        build->place = step->type->after;
    *ret_seconds = (double)(clock_ms() - begun) / 1000;
    r = step_state_save(build, step, *ret_seconds, err);
    if (r < 0)
        return r;
    drop_old_tree(build, i);
    return step->type->after == PLACE_SEALED && step->type->moves ? keys_forget(build, err) : 0;
}

/* Says which step failed, where it stands, and where its log is. */
static int explain(const struct build *build, const struct step *step, struct error *err)
{
    _cleanup_free_ char *where = NULL;
    const char *path = build->recipe->path;

    if (err == NULL)
        return -EIO;
    if (step->node != NULL ? asprintf(&where, "%s:%u", path, step->node->line) < 0
                           : asprintf(&where, "%s", path) < 0)
        return error_oom(err);
    error_prefix(err, "%s: step %u (%s)", where, step->number, step->name);
    if (build->log == NULL)
        return -err->code;
    return error_set(err, err->code, "%s (log: %s/log)", error_message(err), build->directory);
}

/* --- All of it --- */

/* Adds what a step has reported to the report of all. */
static int add_report(json_t *report, const struct step *step, const json_t *result, double seconds,
                      bool skipped, struct error *err)
{
    _cleanup_json_ json_t *copy = json_deep_copy(result);
    json_t *line = json_pack("{s:i, s:s, s:f, s:b}", "number", (int)step->number, "name",
                             step->name, "seconds", seconds, "skipped", skipped);

    if (line == NULL || json_array_append_new(json_object_get(report, "steps"), line) != 0)
        return error_oom(err);
    json_object_del(copy, "outputs");
    /* Lists are those of all steps. */
    json_t *fetched = json_object_get(copy, "fetched"), *all = json_object_get(report, "fetched");
    if (fetched != NULL && all != NULL && json_array_extend(all, fetched) != 0)
        return error_oom(err);
    if (fetched != NULL && all != NULL)
        json_object_del(copy, "fetched");
    return copy == NULL || json_object_update(report, copy) == 0 ? 0 : error_oom(err);
}

/* The system is as it was in front of step `i`. */
static int restore(struct build *build, size_t i, struct error *err)
{
    const struct recipe *recipe = build->recipe;
    const ssize_t base = base_of(recipe, i);
    _cleanup_free_ char *path = NULL;

    build->place = recipe->steps[i].before;
    /* A disk that is not yet partitioned is no state of the engine's, but still there. */
    if (base < 0)
        return 0;
    if (asprintf(&path, "%s/steps/%s/%s", build->work, recipe->steps[base].folder,
                 build->place == PLACE_TREE ? TREE_NAME : DISK_NAME) < 0)
        return error_oom(err);
    if (build->place == PLACE_SEALED) {
        free(path);
        path = build_path(build, DISK_NAME);
        if (path == NULL)
            return error_oom(err);
    }
    if (build->place == PLACE_TREE)
        build_set_tree(build, &path);
    else
        build_set_image(build, &path);
    return 0;
}

static int do_steps(struct build *build, const struct plan *plan, json_t *report, struct error *err)
{
    const struct recipe *recipe = build->recipe;
    double seconds;

    for (size_t i = 0; i < plan->begin && i < plan->end; i++) {
        tell(build, &recipe->steps[i], BUILD_STEP_SKIPPED, plan->states[i].seconds);
        int r = add_report(report, &recipe->steps[i], plan->states[i].result,
                           plan->states[i].seconds, true, err);
        if (r < 0)
            return r;
    }
    /* A build may have been killed when it had just been sealed. */
    const struct step *seal = recipe_step(recipe, NULL, "seal");
    if (seal != NULL && plan->begin >= seal->number) {
        int r = keys_forget(build, err);
        if (r < 0)
            return r;
    }
    int r = drop_old_trees(build, plan, err);
    if (r < 0 || plan->begin >= plan->end)
        return r;
    r = work_forget(build, recipe->steps[plan->begin].number, err);
    if (r == 0)
        r = restore(build, plan->begin, err);
    for (size_t i = plan->begin; r == 0 && i < plan->end; i++) {
        tell(build, &recipe->steps[i], BUILD_STEP_STARTED, 0);
        r = do_step(build, i, &seconds, err);
        if (r < 0)
            (void)explain(build, &recipe->steps[i], err);
        else
            r = add_report(report, &recipe->steps[i], build->result, seconds, false, err);
        forget_step(build);
        if (r == 0)
            tell(build, &recipe->steps[i], BUILD_STEP_DONE, seconds);
    }
    return r;
}

static void build_clear(struct build *build)
{
    if (build->guest != NULL)
        guest_free(build->guest);
    forget_step(build);
    if (build->keys != NULL)
        keys_free(build->keys);
    free(build->work);
    free(build->tree);
    free(build->image);
}
DEFINE_CLEANUP_INPLACE(struct build, build_clear);

/* A guest that --until left running: what it wrote is in its overlay, so that it can be stopped. */
static int stop_guest(struct build *build, struct error *err)
{
    if (build->guest == NULL)
        return 0;
    int r = guest_sync(build, err);
    guest_free(build->guest);
    build->guest = NULL;
    return r;
}

int recipe_build(const struct recipe *recipe, const struct build_options *options,
                 json_t **ret_report, struct error *err)
{
    _cleanup_(build_clear_cleanup) struct build build = {.recipe = recipe, .options = options};
    _cleanup_close_ int lock = -1;
    _cleanup_json_ json_t *report = NULL;
    struct plan plan = {0};

    int r = work_open(options->work, &build.work, &lock, err);
    if (r < 0)
        return r;
    report = json_pack("{s:s, s:s, s:[]}", "recipe", recipe->name, "work", build.work, "steps");
    if (report == NULL)
        return error_oom(err);
    r = identify_all(&build, err);
    if (r == 0)
        r = make_plan(&build, &plan, err);
    if (r == 0)
        r = do_steps(&build, &plan, report, err);
    plan_clear(&plan, recipe->step_count);
    if (r == 0)
        r = stop_guest(&build, err);
    if (r < 0)
        return r;
    *ret_report = TAKE_PTR(report);
    return 0;
}

void build_boot_clear(struct build_boot *boot)
{
    free(boot->kernel);
    free(boot->initrd);
    free(boot->append);
    *boot = (struct build_boot){0};
}

/* --- Looking ahead --- */

int plan_action(struct plan_step *plan, struct error *err, const char *format, ...)
{
    char **actions = realloc(plan->actions, (plan->action_count + 1) * sizeof(*actions));
    va_list args;

    if (actions == NULL)
        return error_oom(err);
    plan->actions = actions;
    va_start(args, format);
    int n = vasprintf(&actions[plan->action_count], format, args);
    va_end(args);
    if (n < 0)
        return error_oom(err);
    plan->action_count++;
    return 0;
}

void recipe_plan_free(struct plan_step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(steps[i].name);
        for (size_t j = 0; j < steps[i].action_count; j++)
            free(steps[i].actions[j]);
        free(steps[i].actions);
    }
    free(steps);
}

static int look_ahead(const struct build *build, const struct plan *plan, struct plan_step *steps,
                      struct error *err)
{
    const struct recipe *recipe = build->recipe;

    for (size_t i = 0; i < recipe->step_count; i++) {
        const struct step *step = &recipe->steps[i];
        steps[i].number = step->number;
        steps[i].line = step->node != NULL ? step->node->line : 0;
        steps[i].done = i < plan->begin && plan->states[i].done;
        steps[i].will_run = i >= plan->begin && i < plan->end;
        steps[i].name = strdup(step->name);
        if (steps[i].name == NULL)
            return error_oom(err);
        int r = step->type->plan != NULL ? step->type->plan(build, step, &steps[i], err) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

int recipe_plan(const struct recipe *recipe, const struct build_options *options,
                struct plan_step **ret, size_t *ret_count, struct error *err)
{
    _cleanup_(build_clear_cleanup) struct build build = {.recipe = recipe, .options = options};
    struct plan plan = {0};
    struct plan_step *steps = calloc(recipe->step_count, sizeof(*steps));

    build.work = realpath(options->work, NULL);
    if (build.work == NULL)
        build.work = strdup(options->work);
    int r = steps != NULL && build.work != NULL ? 0 : error_oom(err);
    if (r == 0)
        r = identify_all(&build, err);
    if (r == 0)
        r = make_plan(&build, &plan, err);
    if (r == 0)
        r = look_ahead(&build, &plan, steps, err);
    plan_clear(&plan, recipe->step_count);
    if (r < 0) {
        if (steps != NULL)
            recipe_plan_free(steps, recipe->step_count);
        return r;
    }
    *ret = steps;
    *ret_count = recipe->step_count;
    return 0;
}
