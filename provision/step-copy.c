/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "common/units.h"
#include "provision/parcel.h"
#include "provision/steps.h"

/* Files of this machine, texts of the recipe, and links, put into the system. */

struct copy_item {
    char *from, *content, *link; /* one of them */
    char *to;
    uint64_t mode; /* MODE_KEEP: as it is here */
    char *owner;
};

struct copy_step {
    struct objects items;
};

#define MODE_KEEP UINT64_MAX

static const struct field item_fields[] = {
    {.name = "from",
     .type = FIELD_FILE,
     .offset = offsetof(struct copy_item, from),
     .flags = FIELD_DIRECTORY},
    {.name = "content", .type = FIELD_CONTENT, .offset = offsetof(struct copy_item, content)},
    {.name = "link", .type = FIELD_TEXT, .offset = offsetof(struct copy_item, link)},
    {.name = "to",
     .type = FIELD_PATH,
     .offset = offsetof(struct copy_item, to),
     .flags = FIELD_REQUIRED},
    {.name = "mode",
     .type = FIELD_MODE,
     .offset = offsetof(struct copy_item, mode),
     .initial = MODE_KEEP},
    {.name = "owner", .type = FIELD_TEXT, .offset = offsetof(struct copy_item, owner)},
    {0},
};

static const struct field fields[] = {
    {.name = "files",
     .type = FIELD_OBJECTS,
     .offset = offsetof(struct copy_step, items),
     .flags = FIELD_REQUIRED | FIELD_MAIN,
     .fields = item_fields,
     .size = sizeof(struct copy_item)},
    {0},
};

/* A name, or a number that is one of a user or group: the highest stands for none. */
static bool number_is_good(const char *part, size_t length)
{
    _cleanup_free_ char *text = strndup(part, length);
    uint64_t number;

    return text == NULL || text[strspn(text, "0123456789")] != '\0' ||
           (parse_u64(text, "", &number, NULL) == 0 && number < UINT32_MAX);
}

bool owner_is_good(const char *owner)
{
    const char *colon = strchr(owner, ':');

    if (!number_is_good(owner, strcspn(owner, ":")) ||
        (colon != NULL && !number_is_good(colon + 1, strlen(colon + 1))))
        return false;

    return owner[strspn(owner,
                        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:")] ==
               '\0' &&
           owner[0] != ':' &&
           (colon == NULL || (colon[1] != '\0' && strchr(colon + 1, ':') == NULL));
}

static void check(struct checker *checker, struct step *step)
{
    const struct copy_step *options = step->options;
    const struct copy_item *items = options->items.items;

    for (size_t i = 0; i < options->items.count; i++) {
        const struct copy_item *item = &items[i];
        const unsigned line = options->items.lines[i];
        const int given = (item->from != NULL) + (item->content != NULL) + (item->link != NULL);
        if (given > 1)
            checker_problem(checker, step, line, "from, content, link: only one of them");
        if (given == 0)
            checker_problem(checker, step, line, "one of from, content, link is missing");
        if (item->link != NULL && item->mode != MODE_KEEP)
            checker_problem(checker, step, line, "mode: a link has none");
        if (item->to != NULL && item->from == NULL && item->to[strlen(item->to) - 1] == '/')
            checker_problem(checker, step, line, "to: '%s' is a directory", item->to);
        if (item->owner != NULL && !owner_is_good(item->owner))
            checker_problem(checker, step, line, "owner: '%s' is not USER or USER:GROUP",
                            item->owner);
    }
}

static int add(struct parcel *archive, const struct copy_item *item, struct error *err)
{
    const struct parcel_attributes attributes = {
        .mode = item->mode == MODE_KEEP ? -1 : (int64_t)item->mode, .owner = item->owner};
    _cleanup_free_ char *inside = NULL;

    if (item->link != NULL)
        return parcel_link(archive, item->link, item->to, &attributes, err);
    if (item->content != NULL)
        return parcel_text(archive, item->content, strlen(item->content), item->to, &attributes,
                           err);
    if (item->to[strlen(item->to) - 1] != '/')
        return parcel_path(archive, item->from, item->to, &attributes, err);
    if (asprintf(&inside, "%s%s", item->to, strrchr(item->from, '/') + 1) < 0)
        return error_oom(err);
    return parcel_path(archive, item->from, inside, &attributes, err);
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct copy_step *options = step->options;
    const struct copy_item *items = options->items.items;
    _cleanup_(parcel_free_cleanup) struct parcel *archive = NULL;

    int r = parcel_new(build, &archive, err);
    for (size_t i = 0; r == 0 && i < options->items.count; i++) {
        build_say(build, "%s", items[i].to);
        r = add(archive, &items[i], err);
    }
    return r < 0 ? r : parcel_send(archive, err);
}

static int plan(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err)
{
    const struct copy_step *options = step->options;
    const struct copy_item *items = options->items.items;
    int r = 0;

    (void)build;
    for (size_t i = 0; r == 0 && i < options->items.count; i++)
        r = plan_action(plan, err, "%s to %s",
                        items[i].from != NULL   ? items[i].from
                        : items[i].link != NULL ? "a link"
                                                : "a text",
                        items[i].to);
    return r;
}

const struct step_type step_copy = {
    .kind = "copy",
    .size = sizeof(struct copy_step),
    .fields = fields,
    .places = IN(PLACE_TREE) | IN(PLACE_RUNNING),
    .changes = true,
    .check = check,
    .run = run,
    .plan = plan,
};
