/* SPDX-License-Identifier: MIT */
#include <limits.h>
#include <stdarg.h>
#include <string.h>

#include "common/text.h"
#include "common/units.h"
#include "provision/internal.h"

/* 14 November 2023: any time would do that is the same for everybody. */
#define EPOCH_DEFAULT 1700000000

#define STEPS_MAX 200
#define NAME_MAX_LENGTH 64

/* --- Problems --- */

void problems_clear(struct problems *problems)
{
    for (size_t i = 0; i < problems->count; i++)
        free(problems->lines[i]);
    free(problems->lines);
    free(problems->numbers);
    *problems = PROBLEMS_INIT;
}

void checker_problem(struct checker *checker, const struct step *step, unsigned line,
                     const char *format, ...)
{
    va_list args;

    va_start(args, format);
    _cleanup_free_ char *text = text_vformat(format, args);
    va_end(args);
    if (line == 0)
        line = step->node != NULL ? step->node->line : 1;
    problems_add(checker->problems, checker->recipe->path, line, "step %u, %s: %s", step->number,
                 step->type->kind, text != NULL ? text : format);
}

static void recipe_problem(struct checker *checker, const struct doc *node, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void recipe_problem(struct checker *checker, const struct doc *node, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    _cleanup_free_ char *text = text_vformat(format, args);
    va_end(args);
    problems_add(checker->problems, checker->recipe->path, node->line, "%s",
                 text != NULL ? text : format);
}

static void no_memory(struct checker *checker)
{
    checker->result = error_oom(checker->err);
}

/* --- What a recipe has beside steps --- */

struct head {
    char *name;
    uint64_t epoch;
};

static const struct field head_fields[] = {
    {.name = "name",
     .type = FIELD_TEXT,
     .offset = offsetof(struct head, name),
     .flags = FIELD_REQUIRED},
    {.name = "epoch",
     .type = FIELD_COUNT,
     .offset = offsetof(struct head, epoch),
     .initial = EPOCH_DEFAULT,
     .maximum = 0xffffffff},
    {0},
};

/* What may be a directory's name. */
static bool good_name(const char *name)
{
    if (strlen(name) > NAME_MAX_LENGTH || name[0] == '.' || name[0] == '-')
        return false;
    return name[strspn(
               name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")] == '\0';
}

/* As reproducible-builds.org has it: who runs a build may say its time. */
static int read_epoch(struct recipe *recipe, struct error *err)
{
    const char *text = getenv("SOURCE_DATE_EPOCH");
    uint64_t epoch;

    if (text == NULL || text[0] == '\0')
        return 0;
    int r = parse_u64(text, "SOURCE_DATE_EPOCH", &epoch, err);
    if (r < 0)
        return r;
    if (epoch > 0xffffffff)
        return error_set(err, ERANGE, "SOURCE_DATE_EPOCH: '%s' is too large", text);
    recipe->epoch = epoch;
    return 0;
}

/* All keys but `steps`. */
static void read_head(struct checker *checker)
{
    struct recipe *recipe = checker->recipe;
    const struct doc *root = recipe->root;
    const struct field_place place = {.file = recipe->path,
                                      .directory = recipe->directory,
                                      .what = "recipe",
                                      .problems = checker->problems};
    _cleanup_free_ const struct doc **keys = calloc(root->count + 1, sizeof(*keys));
    _cleanup_free_ const struct doc **items = calloc(root->count + 1, sizeof(*items));
    struct field_input input = {.keys = keys, .items = items, .line = root->line};
    struct head head = {0};

    if (keys == NULL || items == NULL) {
        no_memory(checker);
        return;
    }
    for (size_t i = 0; i < root->count; i++)
        if (strcmp(root->keys[i]->text, "steps") != 0) {
            keys[input.count] = root->keys[i];
            items[input.count++] = root->items[i];
        }
    if (fields_read(&place, head_fields, &input, &head, checker->err) < 0)
        checker->result = -ENOMEM;
    if (head.name != NULL && !good_name(head.name))
        recipe_problem(checker, doc_get(root, "name"),
                       "recipe: name: '%s' must have only letters, digits and . _ -, up to %d",
                       head.name, NAME_MAX_LENGTH);
    recipe->name = TAKE_PTR(head.name);
    recipe->epoch = head.epoch;
    fields_clear(head_fields, &head);
}

/* --- A step --- */

/* Keys that every step takes beside those of its kind. */
static bool is_common_key(const char *key)
{
    return strcmp(key, "name") == 0;
}

static bool is_kind(const char *key)
{
    for (size_t i = 0; step_types[i] != NULL; i++)
        if (strcmp(step_types[i]->kind, key) == 0)
            return true;
    return false;
}

static char *list_kinds(void)
{
    char *all = NULL;

    for (size_t i = 0; step_types[i] != NULL; i++) {
        _cleanup_free_ char *before = TAKE_PTR(all);
        if (i > 0 && strcmp(step_types[i]->kind, step_types[i - 1]->kind) == 0) {
            all = TAKE_PTR(before);
            continue;
        }
        if (asprintf(&all, "%s%s%s", before != NULL ? before : "", before != NULL ? ", " : "",
                     step_types[i]->kind) < 0)
            return NULL;
    }
    return all;
}

/* The kind's key in a step's mapping: its place, or -1 after a problem. */
static ssize_t find_kind(struct checker *checker, const struct doc *node)
{
    _cleanup_free_ char *all = NULL;
    ssize_t found = -1;

    for (size_t i = 0; i < node->count; i++) {
        if (!is_kind(node->keys[i]->text))
            continue;
        if (found >= 0) {
            recipe_problem(checker, node->keys[i], "a step is one of %s and %s, not both",
                           node->keys[found]->text, node->keys[i]->text);
            return -1;
        }
        found = (ssize_t)i;
    }
    if (found >= 0)
        return found;
    all = list_kinds();
    if (node->count > 0)
        recipe_problem(checker, node, "'%s' is no kind of step; there are: %s", node->keys[0]->text,
                       all != NULL ? all : "?");
    else
        recipe_problem(checker, node, "an empty step");
    return -1;
}

/* The type of a kind whose key has the value `value` (NULL: none). */
static const struct step_type *find_type(struct checker *checker, const struct doc *key,
                                         const struct doc *value)
{
    _cleanup_free_ char *all = NULL;
    const char *variant = value != NULL && value->kind == DOC_TEXT ? value->text : NULL;

    for (size_t i = 0; step_types[i] != NULL; i++) {
        _cleanup_free_ char *before = NULL;
        if (strcmp(step_types[i]->kind, key->text) != 0)
            continue;
        if (step_types[i]->variant == NULL ||
            (variant != NULL && strcmp(step_types[i]->variant, variant) == 0))
            return step_types[i];
        before = TAKE_PTR(all);
        if (asprintf(&all, "%s%s%s", before != NULL ? before : "", before != NULL ? ", " : "",
                     step_types[i]->variant) < 0)
            all = NULL;
    }
    recipe_problem(checker, key, "%s: must be one of: %s", key->text, all != NULL ? all : "?");
    return NULL;
}

/* The first words of what it does, on a line. */
static char *make_name(const struct step *step, const struct doc *value)
{
    const struct doc *words = value;
    char *name;
    size_t used;

    if (step->label != NULL)
        return strdup(step->label);
    name = calloc(1, 128);
    if (name == NULL)
        return NULL;
    used = (size_t)snprintf(name, 128, "%s", step->type->kind);
    if (words != NULL && words->kind == DOC_LIST && words->count > 0 &&
        words->items[0]->kind == DOC_LIST)
        words = words->items[0];
    if (words == NULL || words->kind == DOC_MAP || doc_is_null(words) ||
        (words->kind == DOC_LIST && (words->count == 0 || words->items[0]->kind != DOC_TEXT)))
        return name;
    used += (size_t)snprintf(name + used, 128 - used, ":");
    for (size_t i = 0; i < (words->kind == DOC_TEXT ? 1 : words->count) && used < 60; i++) {
        const struct doc *word = words->kind == DOC_TEXT ? words : words->items[i];
        if (word->kind != DOC_TEXT || word->text[0] == '\0')
            break;
        size_t length = strcspn(word->text, "\n\r\t");
        if (length > 40) {
            length = 40;
            /* Not in the middle of a character: not in front of a byte that continues one. */
            while (length > 0 && (word->text[length] & 0xc0) == 0x80)
                length--;
        }
        used += (size_t)snprintf(name + used, 128 - used, " %.*s", (int)length, word->text);
    }
    return name;
}

/* Gathers the keys of a step: those beside the kind's, and those in its value if that is a mapping.
 */
static void gather(const struct doc *node, size_t kind, const struct step *step,
                   const struct doc **keys, const struct doc **items, size_t *count,
                   struct doc *main_key)
{
    const struct doc *value = node->items[kind];
    const struct field *fields = step->type->fields;
    const struct field *main_field = fields != NULL ? fields_main(fields) : NULL;
    const bool is_object =
        main_field != NULL && main_field->type == FIELD_OBJECTS && value->kind == DOC_MAP;

    for (size_t i = 0; i < node->count; i++)
        if (i != kind && !is_common_key(node->keys[i]->text)) {
            keys[*count] = node->keys[i];
            items[(*count)++] = node->items[i];
        }
    if (value->kind == DOC_MAP && !is_object && step->type->variant == NULL) {
        for (size_t i = 0; i < value->count; i++) {
            keys[*count] = value->keys[i];
            items[(*count)++] = value->items[i];
        }
    } else if (main_field != NULL && !doc_is_null(value)) {
        *main_key = (struct doc){
            .kind = DOC_TEXT, .line = node->keys[kind]->line, .text = (char *)main_field->name};
        keys[*count] = main_key;
        items[(*count)++] = value;
    }
}

static void refuse_twice(struct checker *checker, const struct step *step, const struct doc **keys,
                         size_t count)
{
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < i; j++)
            if (strcmp(keys[i]->text, keys[j]->text) == 0)
                checker_problem(checker, step, keys[i]->line, "%s: given twice", keys[i]->text);
}

static const struct field no_fields[] = {{0}};

static void read_options(struct checker *checker, struct step *step, size_t kind)
{
    const struct doc *node = step->node, *value = node->items[kind];
    const size_t room = node->count + value->count + 1;
    const struct field *fields = step->type->fields != NULL ? step->type->fields : no_fields;
    char what[64];
    const struct field_place place = {.file = checker->recipe->path,
                                      .directory = checker->recipe->directory,
                                      .what = what,
                                      .problems = checker->problems};
    _cleanup_free_ const struct doc **keys = calloc(room, sizeof(*keys));
    _cleanup_free_ const struct doc **items = calloc(room, sizeof(*items));
    struct field_input input = {.keys = keys, .items = items, .line = node->keys[kind]->line};
    struct doc main_key;

    step->options = calloc(1, step->type->size + 1);
    if (keys == NULL || items == NULL || step->options == NULL) {
        no_memory(checker);
        return;
    }
    snprintf(what, sizeof(what), "step %u, %s", step->number, step->type->kind);
    gather(node, kind, step, keys, items, &input.count, &main_key);
    refuse_twice(checker, step, keys, input.count);
    if (value->kind != DOC_MAP && !doc_is_null(value) && step->type->variant == NULL &&
        fields_main(fields) == NULL)
        checker_problem(checker, step, value->line, "takes keys, not %s", doc_kind_name(value));
    if (fields_read(&place, fields, &input, step->options, checker->err) < 0)
        checker->result = -ENOMEM;
}

static void read_label(struct checker *checker, struct step *step)
{
    const struct doc *name = doc_get(step->node, "name");

    if (name == NULL)
        return;
    if (name->kind != DOC_TEXT || name->text[0] == '\0' || strpbrk(name->text, "\n\r") != NULL) {
        recipe_problem(checker, name, "step %u: name: must be a text of one line", step->number);
        return;
    }
    step->label = strdup(name->text);
    if (step->label == NULL)
        no_memory(checker);
}

static void step_clear(struct step *step)
{
    if (step->options != NULL && step->type->fields != NULL)
        fields_clear(step->type->fields, step->options);
    free(step->options);
    free(step->label);
    free(step->name);
    free(step->folder);
}

/* A bare word is a step without keys: it becomes a mapping. */
static struct doc *wrap_word(struct doc *word)
{
    struct doc *map = calloc(1, sizeof(*map)), *value = calloc(1, sizeof(*value));
    struct doc **keys = calloc(1, sizeof(*keys)), **items = calloc(1, sizeof(*items));

    if (value != NULL)
        value->text = strdup("");
    if (map == NULL || value == NULL || value->text == NULL || keys == NULL || items == NULL) {
        free(map);
        if (value != NULL)
            free(value->text);
        free(value);
        free(keys);
        free(items);
        return NULL;
    }
    *value = (struct doc){.kind = DOC_TEXT, .line = word->line, .plain = true, .text = value->text};
    keys[0] = word;
    items[0] = value;
    *map =
        (struct doc){.kind = DOC_MAP, .line = word->line, .count = 1, .keys = keys, .items = items};
    return map;
}

/* What kind of step it is, so that the order of all is known before anything is told of their keys:
 * the numbers are those of that order. Whether that much of `step` was filled in. */
static bool read_kind(struct checker *checker, struct doc **node, struct step *step)
{
    if ((*node)->kind == DOC_TEXT && !doc_is_null(*node)) {
        struct doc *map = wrap_word(*node);
        if (map == NULL) {
            no_memory(checker);
            return false;
        }
        *node = map;
    }
    if ((*node)->kind != DOC_MAP) {
        recipe_problem(checker, *node, "a step must be a mapping or a word, not %s",
                       doc_kind_name(*node));
        return false;
    }
    ssize_t kind = find_kind(checker, *node);
    if (kind < 0)
        return false;
    step->node = *node;
    step->type = find_type(checker, (*node)->keys[kind], (*node)->items[kind]);
    step->kind_key = (size_t)kind;
    return step->type != NULL;
}

static void read_step(struct checker *checker, struct step *step)
{
    read_label(checker, step);
    read_options(checker, step, step->kind_key);
    step->name = make_name(step, step->node->items[step->kind_key]);
    if (step->name == NULL)
        no_memory(checker);
}

/* --- The order of steps --- */

static const char *const place_texts[PLACE_COUNT] = {
    [PLACE_BLANK] = "there is no system yet: an install step must come before",
    [PLACE_TREE] = "the system is a tree and not an image yet",
    [PLACE_IMAGE] = "no guest runs here: a boot step must come before",
    [PLACE_RUNNING] = "the guest still runs here: a shutdown step must come before",
    [PLACE_SEALED] = "the image is sealed already and must not change",
};

/* Puts the step that makes an image in front of step `i`. */
static void insert_image_step(struct checker *checker, size_t i)
{
    struct recipe *recipe = checker->recipe;

    memmove(&recipe->steps[i + 1], &recipe->steps[i],
            (recipe->step_count - i) * sizeof(*recipe->steps));
    recipe->step_count++;
    recipe->steps[i] = (struct step){.type = &step_image, .name = strdup("image")};
    if (recipe->steps[i].name == NULL)
        no_memory(checker);
}

static void check_order(struct checker *checker)
{
    struct recipe *recipe = checker->recipe;
    enum place place = PLACE_BLANK;

    for (size_t i = 0; i < recipe->step_count && checker->result == 0; i++) {
        struct step *step = &recipe->steps[i];
        if (place == PLACE_TREE && step->type->packs) {
            insert_image_step(checker, i);
            step = &recipe->steps[i];
        }
        step->number = (unsigned)i + 1;
        step->before = place;
        if ((step->type->places & IN(place)) == 0) {
            const bool twice = step->type->moves && step->type->after == place;
            if (twice && strcmp(step->type->kind, "boot") == 0)
                checker_problem(checker, step, 0, "a guest runs already");
            else if (strcmp(step->type->kind, "install") == 0)
                checker_problem(checker, step, 0, "the system is installed already");
            else if (strcmp(step->type->kind, "disk") == 0)
                checker_problem(checker, step, 0, "must come before install");
            else if (place == PLACE_TREE && strcmp(step->type->kind, "shutdown") == 0)
                checker_problem(checker, step, 0, "%s", place_texts[PLACE_IMAGE]);
            else
                checker_problem(checker, step, 0, "%s", place_texts[place]);
        }
        if (step->type->moves)
            place = step->type->after;
    }
    if (place == PLACE_RUNNING && recipe->step_count > 0)
        checker_problem(checker, &recipe->steps[recipe->step_count - 1], 0,
                        "the recipe ends while the guest runs: a shutdown step must come at the "
                        "end");
}

const struct step *recipe_step(const struct recipe *recipe, const struct step *step,
                               const char *kind)
{
    const struct step *found = NULL;

    for (size_t i = 0; i < recipe->step_count && &recipe->steps[i] != step; i++)
        if (strcmp(recipe->steps[i].type->kind, kind) == 0)
            found = &recipe->steps[i];
    return found;
}

static void check_labels(struct checker *checker)
{
    const struct recipe *recipe = checker->recipe;

    for (size_t i = 0; i < recipe->step_count; i++)
        for (size_t j = 0; j < i && recipe->steps[i].label != NULL; j++)
            if (recipe->steps[j].label != NULL &&
                strcmp(recipe->steps[i].label, recipe->steps[j].label) == 0)
                checker_problem(checker, &recipe->steps[i], 0, "name: '%s' is step %u's already",
                                recipe->steps[i].label, recipe->steps[j].number);
}

static void read_steps(struct checker *checker)
{
    struct recipe *recipe = checker->recipe;
    const struct doc *steps = doc_get(recipe->root, "steps");

    if (steps == NULL) {
        recipe_problem(checker, recipe->root, "recipe: steps: is missing");
        return;
    }
    if (steps->kind != DOC_LIST || steps->count == 0) {
        recipe_problem(checker, steps, "recipe: steps: must be a list of steps, not %s",
                       steps->kind == DOC_LIST ? "an empty one" : doc_kind_name(steps));
        return;
    }
    if (steps->count > STEPS_MAX) {
        recipe_problem(checker, steps, "recipe: steps: more than %d", STEPS_MAX);
        return;
    }
    /* Each may need another in front of it. */
    recipe->steps = calloc(2 * steps->count, sizeof(*recipe->steps));
    if (recipe->steps == NULL) {
        no_memory(checker);
        return;
    }
    bool whole = true;
    for (size_t i = 0; i < steps->count && checker->result == 0; i++) {
        struct step step = {.number = (unsigned)i + 1};
        if (read_kind(checker, &steps->items[i], &step))
            recipe->steps[recipe->step_count++] = step;
        else
            whole = false;
    }
    /* With steps that nobody knows, the order of the others says nothing. */
    if (whole)
        check_order(checker);
    for (size_t i = 0; i < recipe->step_count && checker->result == 0; i++)
        if (recipe->steps[i].node != NULL)
            read_step(checker, &recipe->steps[i]);
    check_labels(checker);
    if (whole && recipe_step(recipe, NULL, "install") == NULL)
        recipe_problem(checker, recipe->root, "recipe: steps: there is no install step");
}

static void finish_steps(struct checker *checker)
{
    struct recipe *recipe = checker->recipe;

    for (size_t i = 0; i < recipe->step_count && checker->result == 0; i++) {
        struct step *step = &recipe->steps[i];
        if (asprintf(&step->folder, "%02u-%s", step->number, step->type->kind) < 0) {
            step->folder = NULL;
            no_memory(checker);
        }
        if (step->type->check != NULL)
            step->type->check(checker, step);
    }
}

/* --- All of it --- */

void recipe_free(struct recipe *recipe)
{
    for (size_t i = 0; i < recipe->step_count; i++)
        step_clear(&recipe->steps[i]);
    free(recipe->steps);
    if (recipe->root != NULL)
        doc_free(recipe->root);
    free(recipe->path);
    free(recipe->directory);
    free(recipe->name);
    free(recipe);
}

const char *recipe_name(const struct recipe *recipe)
{
    return recipe->name;
}

static int set_paths(struct recipe *recipe, const char *path, struct error *err)
{
    _cleanup_free_ char *real = realpath(path, NULL);

    if (real == NULL)
        return error_set_errno(err, errno, "%s", path);
    *strrchr(real, '/') = '\0';
    recipe->directory = strdup(real[0] != '\0' ? real : "/");
    recipe->path = strdup(path);
    return recipe->directory != NULL && recipe->path != NULL ? 0 : error_oom(err);
}

static int refuse(const struct recipe *recipe, const struct problems *problems, struct error *err)
{
    const size_t count = problems->count + problems->dropped;

    if (count == 0)
        return 0;
    return error_set(err, EINVAL, "%s: %zu mistake%s in the recipe; nothing was done", recipe->path,
                     count, count == 1 ? "" : "s");
}

int recipe_load(const char *path, struct problems *problems, struct recipe **ret, struct error *err)
{
    _cleanup_(recipe_free_cleanup) struct recipe *recipe = calloc(1, sizeof(*recipe));
    struct checker checker = {.recipe = recipe, .problems = problems, .err = err};

    if (recipe == NULL)
        return error_oom(err);
    int r = set_paths(recipe, path, err);
    if (r == 0)
        r = doc_read(path, problems, &recipe->root, err);
    if (r < 0)
        return r;
    if (recipe->root == NULL)
        return refuse(recipe, problems, err);
    if (recipe->root->kind != DOC_MAP) {
        recipe_problem(&checker, recipe->root, "recipe: must be a mapping, not %s",
                       doc_kind_name(recipe->root));
        return refuse(recipe, problems, err);
    }
    read_head(&checker);
    if (checker.result == 0)
        read_steps(&checker);
    if (checker.result == 0)
        finish_steps(&checker);
    r = checker.result;
    if (r == 0)
        r = refuse(recipe, problems, err);
    if (r == 0)
        r = read_epoch(recipe, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(recipe);
    return 0;
}
