/* SPDX-License-Identifier: MIT */
#include "provision/fields.h"

#include <fcntl.h>
#include <glob.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "common/text.h"
#include "common/units.h"

/* What is being read: a field's value. */
struct value {
    const struct field_place *place;
    const struct field *field;
    const struct doc *node;
    struct error *err;
};

static void problem(const struct value *value, const struct doc *node, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void problem(const struct value *value, const struct doc *node, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    _cleanup_free_ char *text = text_vformat(format, args);
    va_end(args);
    problems_add(value->place->problems, value->place->file, node->line, "%s: %s: %s",
                 value->place->what, value->field->name, text != NULL ? text : format);
}

/* A text that is there; else a problem and NULL. */
static const char *text_of(const struct value *value, const struct doc *node)
{
    if (node->kind != DOC_TEXT || doc_is_null(node)) {
        problem(value, node, "must be a text, not %s", doc_kind_name(node));
        return NULL;
    }
    return node->text;
}

static const char *line_of_text(const struct value *value, const struct doc *node)
{
    const char *text = text_of(value, node);

    if (text == NULL)
        return NULL;
    if (text[0] == '\0') {
        problem(value, node, "must not be empty");
        return NULL;
    }
    if (strpbrk(text, "\n\r") != NULL) {
        problem(value, node, "must be one line");
        return NULL;
    }
    return text;
}

/* --- Numbers and choices --- */

static int read_choice(const struct value *value, int *out)
{
    _cleanup_free_ char *all = NULL;
    const char *text = text_of(value, value->node);

    if (text == NULL)
        return 0;
    for (int i = 0; value->field->choices[i] != NULL; i++) {
        _cleanup_free_ char *before = TAKE_PTR(all);
        if (strcmp(text, value->field->choices[i]) == 0) {
            *out = i;
            return 0;
        }
        if (asprintf(&all, "%s%s%s", before != NULL ? before : "", before != NULL ? ", " : "",
                     value->field->choices[i]) < 0) {
            all = NULL;
            return error_oom(value->err);
        }
    }
    problem(value, value->node, "'%s' is none of: %s", text, all);
    return 0;
}

static int read_bool(const struct value *value, bool *out)
{
    static const char *const words[] = {"no", "yes", "false", "true", "off", "on"};
    const char *text = text_of(value, value->node);

    if (text == NULL)
        return 0;
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(text, words[i]) == 0) {
            *out = i % 2 == 1;
            return 0;
        }
    problem(value, value->node, "'%s' is neither yes nor no", text);
    return 0;
}

static int parse_seconds(const char *text, uint64_t *ret, struct error *err)
{
    static const struct {
        char suffix;
        uint64_t factor;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}};
    _cleanup_free_ char *digits = strdup(text);
    uint64_t factor = 1;

    if (digits == NULL)
        return error_oom(err);
    size_t length = strlen(digits);
    for (size_t i = 0; i < 3 && length > 0; i++)
        if (digits[length - 1] == units[i].suffix) {
            factor = units[i].factor;
            digits[length - 1] = '\0';
            break;
        }
    int r = parse_u64(digits, "time", ret, NULL);
    if (r < 0 || !checked_mul(*ret, factor, ret))
        return error_set(err, EINVAL, "'%s' is not a time (a number, then none or one of s m h)",
                         text);
    return 0;
}

static int parse_mode(const char *text, uint64_t *ret, struct error *err)
{
    char *end;

    unsigned long mode = strtoul(text, &end, 8);
    if (text[0] < '0' || text[0] > '7' || *end != '\0' || mode > 07777)
        return error_set(err, EINVAL, "'%s' is not a file's mode (octal, as 0644)", text);
    *ret = mode;
    return 0;
}

static int parse_number(const struct field *field, const char *text, uint64_t *ret,
                        struct error *err)
{
    switch (field->type) {
    case FIELD_SIZE:
        return parse_size(text, "size", ret, err);
    case FIELD_SECONDS:
        return parse_seconds(text, ret, err);
    case FIELD_MODE:
        return parse_mode(text, ret, err);
    default:
        return parse_u64(text, "number", ret, err);
    }
}

static int read_number(const struct value *value, uint64_t *out)
{
    const struct field *field = value->field;
    _cleanup_error_ struct error err = ERROR_INIT;
    const char *text = text_of(value, value->node);
    uint64_t number;

    if (text == NULL)
        return 0;
    if (parse_number(field, text, &number, &err) < 0)
        problem(value, value->node, "%s", error_message(&err));
    else if (number < field->minimum)
        problem(value, value->node, "'%s' is less than %llu", text,
                (unsigned long long)field->minimum);
    else if (field->maximum != 0 && number > field->maximum)
        problem(value, value->node, "'%s' is more than %llu", text,
                (unsigned long long)field->maximum);
    else
        *out = number;
    return 0;
}

/* --- Texts and paths --- */

static int set_text(const struct value *value, const char *text, char **out)
{
    free(*out);
    *out = strdup(text);
    return *out != NULL ? 0 : error_oom(value->err);
}

const char *guest_path_fault(const char *path)
{
    if (path[0] != '/')
        return "is not absolute";
    if (path[1] == '\0')
        return "is the root directory";
    if (strlen(path) >= 4096)
        return "is too long";
    for (const char *p = path; *p != '\0';) {
        const char *end = strchrnul(p + 1, '/');
        const size_t length = (size_t)(end - p) - 1;
        if (length == 0 && *end != '\0')
            return "has an empty part";
        if ((length == 1 && p[1] == '.') || (length == 2 && p[1] == '.' && p[2] == '.'))
            return "has . or .. in it";
        if (length > 255)
            return "has a part that is too long";
        p = end;
    }
    return NULL;
}

static int read_path(const struct value *value, const struct doc *node, char **out)
{
    const char *text = line_of_text(value, node);

    if (text == NULL)
        return 0;
    const char *fault = guest_path_fault(text);
    if (fault != NULL) {
        problem(value, node, "'%s' %s", text, fault);
        return 0;
    }
    return set_text(value, text, out);
}

/* Relative to the recipe. Owned, or NULL when out of memory. */
static char *absolute(const struct value *value, const char *path)
{
    char *whole;

    if (path[0] == '/')
        return strdup(path);
    return asprintf(&whole, "%s/%s", value->place->directory, path) < 0 ? NULL : whole;
}

static void check_file(const struct value *value, const struct doc *node, const char *path)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    const bool may_be_directory = (value->field->flags & FIELD_DIRECTORY) != 0;
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        problem(value, node, "%s: %s", path, strerror(errno));
    else if (S_ISDIR(st.st_mode) && !may_be_directory)
        problem(value, node, "%s: is a directory", path);
    else if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        problem(value, node, "%s: is not a file", path);
}

static int read_file(const struct value *value, const struct doc *node, char **out)
{
    const char *text = line_of_text(value, node);
    _cleanup_free_ char *path = NULL;

    if (text == NULL)
        return 0;
    path = absolute(value, text);
    if (path == NULL)
        return error_oom(value->err);
    /* One that is wrong is kept, too: it was given. */
    check_file(value, node, path);
    return set_text(value, path, out);
}

/* --- Lists --- */

static void texts_clear(struct texts *texts)
{
    for (size_t i = 0; i < texts->count; i++)
        free(texts->items[i]);
    free(texts->items);
    *texts = (struct texts){0};
}
DEFINE_CLEANUP_INPLACE(struct texts, texts_clear);

static int texts_add(struct texts *texts, const char *text, struct error *err)
{
    char **items = realloc(texts->items, (texts->count + 2) * sizeof(*items));

    if (items == NULL)
        return error_oom(err);
    texts->items = items;
    items[texts->count] = strdup(text);
    if (items[texts->count] == NULL)
        return error_oom(err);
    items[++texts->count] = NULL;
    return 0;
}

/* The files that a pattern means, sorted; the pattern itself if there are none. */
static int add_files(const struct value *value, const struct doc *node, struct texts *texts)
{
    const char *text = line_of_text(value, node);
    _cleanup_free_ char *pattern = NULL;
    glob_t found = {0};
    int r = 0;

    if (text == NULL)
        return 0;
    pattern = absolute(value, text);
    if (pattern == NULL)
        return error_oom(value->err);
    int code = glob(pattern, GLOB_ERR, NULL, &found);
    if (code == GLOB_NOSPACE) {
        r = error_oom(value->err);
    } else if (code != 0) {
        problem(value, node, "%s: no such file", pattern);
        r = texts_add(texts, pattern, value->err);
    }
    for (size_t i = 0; r == 0 && code == 0 && i < found.gl_pathc; i++) {
        check_file(value, node, found.gl_pathv[i]);
        r = texts_add(texts, found.gl_pathv[i], value->err);
    }
    globfree(&found);
    return r;
}

static int add_text(const struct value *value, const struct doc *node, struct texts *texts)
{
    _cleanup_free_ char *path = NULL;
    const char *text;
    int r;

    switch (value->field->type) {
    case FIELD_FILES:
        return add_files(value, node, texts);
    case FIELD_PATHS:
        r = read_path(value, node, &path);
        return r < 0 || path == NULL ? r : texts_add(texts, path, value->err);
    default:
        text = line_of_text(value, node);
        return text == NULL ? 0 : texts_add(texts, text, value->err);
    }
}

static int read_texts(const struct value *value, struct texts *out)
{
    const struct doc *node = value->node;
    int r = 0;

    if (node->kind == DOC_TEXT && !doc_is_null(node))
        return add_text(value, node, out);
    if (node->kind != DOC_LIST) {
        problem(value, node, "must be a text or a list of them, not %s", doc_kind_name(node));
        return 0;
    }
    for (size_t i = 0; r == 0 && i < node->count; i++)
        r = add_text(value, node->items[i], out);
    return r;
}

/* One command: what is run, and its arguments, which may be empty or have several lines. */
static int read_command(const struct value *value, const struct doc *node, struct commands *out)
{
    _cleanup_(texts_clear_cleanup) struct texts words = {0};

    for (size_t i = 0; i < node->count; i++) {
        const struct doc *item = node->items[i];
        if (item->kind != DOC_TEXT) {
            problem(value, item, "a word of a command must be a text, not %s", doc_kind_name(item));
            return 0;
        }
        int r = texts_add(&words, item->text, value->err);
        if (r < 0)
            return r;
    }
    if (words.count == 0 || words.items[0][0] == '\0') {
        problem(value, node, "a command without a program");
        return 0;
    }
    struct texts *items = realloc(out->items, (out->count + 1) * sizeof(*items));
    if (items == NULL)
        return error_oom(value->err);
    out->items = items;
    out->items[out->count++] = words;
    words = (struct texts){0};
    return 0;
}

static int read_commands(const struct value *value, struct commands *out)
{
    const struct doc *node = value->node;
    size_t lists = 0;
    int r = 0;

    if (node->kind != DOC_LIST) {
        problem(value, node,
                "must be a command, [program, argument, …], or a list of commands, not %s%s",
                doc_kind_name(node),
                node->kind == DOC_TEXT && !doc_is_null(node) ? ": no shell reads it" : "");
        return 0;
    }
    for (size_t i = 0; i < node->count; i++)
        lists += node->items[i]->kind == DOC_LIST;
    if (lists == 0)
        return read_command(value, node, out);
    for (size_t i = 0; r == 0 && i < node->count; i++) {
        if (node->items[i]->kind == DOC_LIST)
            r = read_command(value, node->items[i], out);
        else
            problem(value, node->items[i], "a word among commands; a command is a list");
    }
    return r;
}

/* --- Objects --- */

static int read_object(const struct value *value, const struct doc *node, void *out)
{
    const struct field_input input = {
        .keys = (const struct doc *const *)node->keys,
        .items = (const struct doc *const *)node->items,
        .count = node->count,
        .line = node->line,
    };

    return fields_read(value->place, value->field->fields, &input, out, value->err);
}

static int read_objects(const struct value *value, struct objects *out)
{
    const struct doc *node = value->node;
    const struct doc *const *items = (const struct doc *const *)node->items;
    size_t count = node->count;
    int r = 0;

    if (node->kind == DOC_MAP) {
        items = &value->node;
        count = 1;
    } else if (node->kind != DOC_LIST) {
        problem(value, node, "must be a mapping or a list of them, not %s", doc_kind_name(node));
        return 0;
    }
    out->items = calloc(count + 1, value->field->size);
    out->lines = calloc(count + 1, sizeof(*out->lines));
    if (out->items == NULL || out->lines == NULL)
        return error_oom(value->err);
    for (size_t i = 0; r == 0 && i < count; i++) {
        if (items[i]->kind != DOC_MAP) {
            problem(value, items[i], "must be a mapping, not %s", doc_kind_name(items[i]));
            continue;
        }
        out->lines[out->count] = items[i]->line;
        void *object = (char *)out->items + out->count++ * value->field->size;
        r = read_object(value, items[i], object);
    }
    return r;
}

/* --- Tables --- */

static int read_value(const struct value *value, void *out)
{
    switch (value->field->type) {
    case FIELD_TEXT: {
        const char *text = line_of_text(value, value->node);
        return text != NULL ? set_text(value, text, out) : 0;
    }
    case FIELD_CONTENT: {
        const char *text = text_of(value, value->node);
        return text != NULL ? set_text(value, text, out) : 0;
    }
    case FIELD_CHOICE:
        return read_choice(value, out);
    case FIELD_BOOL:
        return read_bool(value, out);
    case FIELD_SIZE:
    case FIELD_COUNT:
    case FIELD_SECONDS:
    case FIELD_MODE:
        return read_number(value, out);
    case FIELD_PATH:
        return read_path(value, value->node, out);
    case FIELD_FILE:
        return read_file(value, value->node, out);
    case FIELD_TEXTS:
    case FIELD_FILES:
    case FIELD_PATHS:
        return read_texts(value, out);
    case FIELD_COMMANDS:
        return read_commands(value, out);
    case FIELD_OBJECTS:
        return read_objects(value, out);
    }
    abort();
}

static void set_initial(const struct field *field, void *out)
{
    switch (field->type) {
    case FIELD_CHOICE:
        *(int *)out = (int)field->initial;
        break;
    case FIELD_BOOL:
        *(bool *)out = field->initial != 0;
        break;
    case FIELD_SIZE:
    case FIELD_COUNT:
    case FIELD_SECONDS:
    case FIELD_MODE:
        *(uint64_t *)out = field->initial;
        break;
    default:
        break;
    }
}

static const struct field *find_field(const struct field *fields, const char *name)
{
    for (; fields->name != NULL; fields++)
        if (strcmp(fields->name, name) == 0)
            return fields;
    return NULL;
}

static int unknown_key(const struct field_place *place, const struct field *fields,
                       const struct doc *key, struct error *err)
{
    _cleanup_free_ char *all = NULL;

    for (const struct field *field = fields; field->name != NULL; field++) {
        _cleanup_free_ char *before = TAKE_PTR(all);
        if (asprintf(&all, "%s%s%s", before != NULL ? before : "", before != NULL ? ", " : "",
                     field->name) < 0) {
            all = NULL;
            return error_oom(err);
        }
    }
    problems_add(place->problems, place->file, key->line, "%s: %s: unknown key (there %s: %s)",
                 place->what, key->text,
                 all == NULL                ? "is"
                 : strchr(all, ',') != NULL ? "are"
                                            : "is",
                 all != NULL ? all : "none");
    return 0;
}

int fields_read(const struct field_place *place, const struct field *fields,
                const struct field_input *input, void *out, struct error *err)
{
    int r = 0;

    for (const struct field *field = fields; field->name != NULL; field++)
        set_initial(field, (char *)out + field->offset);
    for (size_t i = 0; r == 0 && i < input->count; i++) {
        const struct field *field = find_field(fields, input->keys[i]->text);
        if (field == NULL) {
            r = unknown_key(place, fields, input->keys[i], err);
            continue;
        }
        const struct value value = {
            .place = place, .field = field, .node = input->items[i], .err = err};
        r = read_value(&value, (char *)out + field->offset);
    }
    for (const struct field *field = fields; r == 0 && field->name != NULL; field++) {
        bool given = false;
        for (size_t i = 0; i < input->count; i++)
            given |= strcmp(input->keys[i]->text, field->name) == 0;
        if (!given && (field->flags & FIELD_REQUIRED) != 0)
            problems_add(place->problems, place->file, input->line, "%s: %s: is missing",
                         place->what, field->name);
    }
    return r;
}

void fields_clear(const struct field *fields, void *out)
{
    for (const struct field *field = fields; field->name != NULL; field++) {
        void *value = (char *)out + field->offset;
        struct commands *commands = value;
        struct objects *objects = value;
        switch (field->type) {
        case FIELD_TEXT:
        case FIELD_CONTENT:
        case FIELD_PATH:
        case FIELD_FILE:
            free(*(char **)value);
            *(char **)value = NULL;
            break;
        case FIELD_TEXTS:
        case FIELD_FILES:
        case FIELD_PATHS:
            texts_clear(value);
            break;
        case FIELD_COMMANDS:
            for (size_t i = 0; i < commands->count; i++)
                texts_clear(&commands->items[i]);
            free(commands->items);
            *commands = (struct commands){0};
            break;
        case FIELD_OBJECTS:
            for (size_t i = 0; i < objects->count; i++)
                fields_clear(field->fields, (char *)objects->items + i * field->size);
            free(objects->items);
            free(objects->lines);
            *objects = (struct objects){0};
            break;
        default:
            break;
        }
    }
}

int fields_digest(const struct field *fields, const void *in, struct digest *digest,
                  struct error *err)
{
    int r = 0;

    for (const struct field *field = fields; r == 0 && field->name != NULL; field++) {
        const void *value = (const char *)in + field->offset;
        const struct texts *texts = value;
        const struct objects *objects = value;
        if (field->type == FIELD_FILE && *(char *const *)value != NULL)
            r = digest_file(digest, *(char *const *)value, err);
        for (size_t i = 0; r == 0 && field->type == FIELD_FILES && i < texts->count; i++) {
            digest_text(digest, strrchr(texts->items[i], '/') + 1);
            r = digest_file(digest, texts->items[i], err);
        }
        for (size_t i = 0; r == 0 && field->type == FIELD_OBJECTS && i < objects->count; i++)
            r = fields_digest(field->fields, (const char *)objects->items + i * field->size, digest,
                              err);
    }
    return r;
}

const struct field *fields_main(const struct field *fields)
{
    for (; fields->name != NULL; fields++)
        if ((fields->flags & FIELD_MAIN) != 0)
            return fields;
    return NULL;
}
