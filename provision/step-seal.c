/* SPDX-License-Identifier: MIT */
#include <string.h>
#include <sys/stat.h>

#include "common/units.h"
#include "provision/keys.h"
#include "provision/reseal.h"
#include "provision/seal.h"
#include "provision/steps.h"
#include "provision/work.h"

/* The system becomes what is shipped: without what belongs to the build, in a new image. */

enum compression { COMPRESSION_NONE, COMPRESSION_ZLIB, COMPRESSION_ZSTD };

struct seal_options {
    int compress; /* enum compression */
    struct texts remove, keep;
};

static const char *const compressions[] = {"none", "zlib", "zstd", NULL};

static const struct field fields[] = {
    {.name = "compress",
     .type = FIELD_CHOICE,
     .offset = offsetof(struct seal_options, compress),
     .choices = compressions},
    {.name = "remove", .type = FIELD_TEXTS, .offset = offsetof(struct seal_options, remove)},
    {.name = "keep", .type = FIELD_TEXTS, .offset = offsetof(struct seal_options, keep)},
    {0},
};

static void check_patterns(struct checker *checker, const struct step *step, const char *key,
                           const struct texts *patterns)
{
    for (size_t i = 0; i < patterns->count; i++)
        if (patterns->items[i][0] != '/')
            checker_problem(checker, step, 0, "%s: '%s' is not absolute", key, patterns->items[i]);
}

static void check(struct checker *checker, struct step *step)
{
    const struct seal_options *options = step->options;

    check_patterns(checker, step, "remove", &options->remove);
    check_patterns(checker, step, "keep", &options->keep);
}

/* What the command line says comes first. */
static const char *compression(const struct build *build, const struct seal_options *options)
{
    const char *given = build->options->compress;

    if (given != NULL)
        return strcmp(given, "none") == 0 ? NULL : given;
    return options->compress == COMPRESSION_NONE ? NULL : compressions[options->compress];
}

static int inputs(const struct build *build, const struct step *step, struct digest *digest,
                  struct error *err)
{
    (void)err;
    digest_text(digest, compression(build, step->options));
    return 0;
}

static int seal_tree(struct build *build, struct step *step, const struct filter *filter,
                     const char *path, uint64_t *ret_before, struct error *err)
{
    const struct step *disk = recipe_step(build->recipe, step, "disk");
    _cleanup_(source_free_cleanup) struct source *source = NULL;
    struct disk_layout layout;
    uint64_t files;

    const char *fault = disk_layout(disk->options, &layout);
    if (fault != NULL)
        return error_set(err, EINVAL, "partitions: %s", fault);
    int r = source_open_tree(build->tree, &source, err);
    if (r == 0)
        r = source_count(&(struct copy_options){.source = source}, &files, ret_before, err);
    if (r < 0)
        return r;
    const struct disk_contents contents = {
        .layout = &layout,
        .source = source,
        .filter = filter,
        .compress = compression(build, step->options),
    };
    return disk_make(build, &contents, path, err);
}

static int put_report(struct build *build, const struct sealer *sealer, const char *path,
                      uint64_t before, struct error *err)
{
    char from[FORMAT_SIZE_MAX], to[FORMAT_SIZE_MAX];
    json_t *removed = sealer_report(sealer);
    const json_t *line;
    struct stat st;
    size_t i;

    if (removed == NULL)
        return error_oom(err);
    if (stat(path, &st) < 0) {
        json_decref(removed);
        return error_set_errno(err, errno, "%s", path);
    }
    json_array_foreach (removed, i, line)
        build_say(build, "removed %s: %lld files, %s",
                  json_string_value(json_object_get(line, "what")),
                  (long long)json_integer_value(json_object_get(line, "files")),
                  format_size((uint64_t)json_integer_value(json_object_get(line, "bytes")), from));
    build_say(build, "%s before, %s now", format_size(before, from),
              format_size((uint64_t)st.st_size, to));
    json_t *more =
        json_pack("{s:s, s:o, s:I, s:I, s:[s]}", "image", path, "removed", removed, "bytes_before",
                  (json_int_t)before, "bytes", (json_int_t)st.st_size, "outputs", DISK_NAME);
    if (more == NULL)
        return error_oom(err);
    int r = json_object_update(build->result, more) == 0 ? 0 : error_oom(err);
    json_decref(more);
    return r;
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct seal_options *options = step->options;
    const struct seal_rules rules = {
        .epoch = (uint32_t)build->recipe->epoch,
        .remove = &options->remove,
        .keep = &options->keep,
    };
    _cleanup_(sealer_free_cleanup) struct sealer *sealer = NULL;
    _cleanup_free_ char *path = build_path(build, DISK_NAME);
    _cleanup_free_ char *new = step_path(build, "sealed.qcow2");
    const struct keys none = {0}, *keys = &none;
    uint64_t before = 0;

    if (path == NULL || new == NULL)
        return error_oom(err);
    int r = keys_exist(build->work) ? keys_get(build, &keys, err) : 0;
    if (r == 0)
        r = sealer_new(&rules, keys->secrets, keys->secret_count, &sealer, err);
    if (r == 0)
        r = build->place == PLACE_TREE
                ? seal_tree(build, step, sealer_filter(sealer), new, &before, err)
                : reseal(build, sealer_filter(sealer), compression(build, options), new, &before,
                         err);
    /* Not a word of them, not even where no file is. */
    if (r == 0)
        r = seal_search(new, keys->secrets, keys->secret_count, err);
    /* It takes the name, and maybe the place of another one, when it is on disk. */
    if (r == 0)
        r = sync_path(new, err);
    if (r == 0 && rename(new, path) < 0)
        r = error_set_errno(err, errno, "%s: cannot rename to %s", new, path);
    if (r == 0)
        r = put_report(build, sealer, path, before, err);
    if (r < 0)
        return r;
    build_set_image(build, &path);
    return 0;
}

static int plan(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err)
{
    const char *compress = compression(build, step->options);

    return plan_action(plan, err, "%s/" DISK_NAME "%s%s", build->work,
                       compress != NULL ? ", compressed with " : "",
                       compress != NULL ? compress : "");
}

const struct step_type step_seal = {
    .kind = "seal",
    .size = sizeof(struct seal_options),
    .fields = fields,
    .places = IN(PLACE_TREE) | IN(PLACE_IMAGE),
    .after = PLACE_SEALED,
    .moves = true,
    .check = check,
    .inputs = inputs,
    .run = run,
    .plan = plan,
};
