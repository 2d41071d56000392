/* SPDX-License-Identifier: MIT */
#include "provision/doc.h"

#include <stdarg.h>
#include <string.h>
#include <yaml.h>

#include "common/io.h"
#include "common/text.h"

#define FILE_MAX (1024 * 1024)
#define DEPTH_MAX 16
#define ITEMS_MAX 4096 /* of a mapping or list */
#define PROBLEMS_MAX 200

/* --- Problems --- */

static bool make_room(struct problems *problems)
{
    const size_t room = problems->count + 1;

    if (problems->count >= PROBLEMS_MAX)
        return false;
    char **lines = realloc(problems->lines, room * sizeof(*lines));
    if (lines != NULL)
        problems->lines = lines;
    unsigned *numbers = realloc(problems->numbers, room * sizeof(*numbers));
    if (numbers != NULL)
        problems->numbers = numbers;
    return lines != NULL && numbers != NULL;
}

void problems_add(struct problems *problems, const char *file, unsigned line, const char *format,
                  ...)
{
    _cleanup_free_ char *whole = NULL;
    va_list args;

    va_start(args, format);
    _cleanup_free_ char *text = text_vformat(format, args);
    va_end(args);
    if (text == NULL || asprintf(&whole, "%s:%u: %s", file, line, text) < 0)
        whole = NULL;
    if (whole == NULL || !make_room(problems)) {
        problems->dropped++;
        return;
    }
    /* Behind those of the same line. */
    size_t place = problems->count++;
    for (; place > 0 && problems->numbers[place - 1] > line; place--) {
        problems->lines[place] = problems->lines[place - 1];
        problems->numbers[place] = problems->numbers[place - 1];
    }
    problems->lines[place] = TAKE_PTR(whole);
    problems->numbers[place] = line;
}

/* --- The tree --- */

void doc_free(struct doc *node)
{
    for (size_t i = 0; i < node->count; i++) {
        if (node->keys != NULL && node->keys[i] != NULL)
            doc_free(node->keys[i]);
        if (node->items[i] != NULL)
            doc_free(node->items[i]);
    }
    free(node->keys);
    free(node->items);
    free(node->text);
    free(node);
}

const struct doc *doc_get(const struct doc *map, const char *key)
{
    for (size_t i = 0; i < map->count && map->kind == DOC_MAP; i++)
        if (strcmp(map->keys[i]->text, key) == 0)
            return map->items[i];
    return NULL;
}

bool doc_is_null(const struct doc *node)
{
    return node->kind == DOC_TEXT && node->plain &&
           (node->text[0] == '\0' || strcmp(node->text, "~") == 0 ||
            strcmp(node->text, "null") == 0);
}

const char *doc_kind_name(const struct doc *node)
{
    static const char *const names[] = {
        [DOC_TEXT] = "a text",
        [DOC_LIST] = "a list",
        [DOC_MAP] = "a mapping",
    };

    return doc_is_null(node) ? "nothing" : names[node->kind];
}

/* --- Reading --- */

struct reader {
    yaml_parser_t parser;
    const char *file;
    struct problems *problems;
    struct error *err;
    bool broken; /* nothing more can be read */
};

static unsigned line_of(yaml_mark_t mark)
{
    return (unsigned)mark.line + 1;
}

static int out_of_memory(struct reader *reader)
{
    reader->broken = true;
    return error_oom(reader->err);
}

/* What libyaml has to say of the place where it stopped. */
static void add_syntax_problem(struct reader *reader)
{
    const yaml_parser_t *parser = &reader->parser;
    unsigned line = line_of(parser->problem_mark);

    reader->broken = true;
    /* The reader's errors (encodings) have an offset only. */
    if (parser->error == YAML_READER_ERROR)
        problems_add(reader->problems, reader->file, line_of(parser->mark), "not YAML: %s",
                     parser->problem != NULL ? parser->problem : "a byte that is no text");
    else
        problems_add(reader->problems, reader->file, line, "not YAML: %s%s%s",
                     parser->problem != NULL ? parser->problem : "syntax error",
                     parser->context != NULL ? ", " : "",
                     parser->context != NULL ? parser->context : "");
}

/* False at the end of what can be read. */
static bool next_event(struct reader *reader, yaml_event_t *event)
{
    if (reader->broken)
        return false;
    if (yaml_parser_parse(&reader->parser, event))
        return true;
    if (reader->parser.error == YAML_MEMORY_ERROR)
        (void)out_of_memory(reader);
    else
        add_syntax_problem(reader);
    return false;
}

static struct doc *doc_new(enum doc_kind kind, yaml_mark_t mark)
{
    struct doc *node = calloc(1, sizeof(*node));

    if (node != NULL) {
        node->kind = kind;
        node->line = line_of(mark);
    }
    return node;
}

/* Takes both; `key` is NULL in a list. */
static bool doc_append(struct doc *node, struct doc *key, struct doc *item)
{
    const size_t size = (node->count + 1) * sizeof(struct doc *);
    struct doc **items = realloc(node->items, size);

    if (items != NULL)
        node->items = items;
    struct doc **keys = key != NULL ? realloc(node->keys, size) : NULL;
    if (keys != NULL)
        node->keys = keys;
    if (items == NULL || (key != NULL && keys == NULL)) {
        if (key != NULL)
            doc_free(key);
        doc_free(item);
        return false;
    }
    if (key != NULL)
        node->keys[node->count] = key;
    node->items[node->count++] = item;
    return true;
}

static int read_doc(struct reader *reader, yaml_event_t *event, unsigned depth, struct doc **ret);

/* Anchors and tags of a node. */
static void refuse_decoration(struct reader *reader, const yaml_char_t *anchor,
                              const yaml_char_t *tag, yaml_mark_t mark)
{
    if (anchor != NULL)
        problems_add(reader->problems, reader->file, line_of(mark),
                     "anchors (&%s) are not for recipes", (const char *)anchor);
    if (tag != NULL)
        problems_add(reader->problems, reader->file, line_of(mark), "tags (%s) are not for recipes",
                     (const char *)tag);
}

static int read_text(struct reader *reader, const yaml_event_t *event, struct doc **ret)
{
    const yaml_char_t *value = event->data.scalar.value;
    const size_t length = event->data.scalar.length;
    _cleanup_(doc_free_cleanup) struct doc *node = doc_new(DOC_TEXT, event->start_mark);

    refuse_decoration(reader, event->data.scalar.anchor, event->data.scalar.tag, event->start_mark);
    if (node == NULL)
        return out_of_memory(reader);
    node->plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    node->text = strndup((const char *)value, length);
    if (node->text == NULL)
        return out_of_memory(reader);
    if (strlen(node->text) != length)
        problems_add(reader->problems, reader->file, node->line, "a NUL character in a text");
    *ret = TAKE_PTR(node);
    return 0;
}

/* A key and its value. A key that was there before is a problem and its value is dropped. */
static int read_pair(struct reader *reader, yaml_event_t *event, unsigned depth, struct doc *map)
{
    _cleanup_(doc_free_cleanup) struct doc *key = NULL, *value = NULL;
    yaml_event_t next;

    int r = read_doc(reader, event, depth, &key);
    if (r < 0 || key == NULL)
        return r;
    if (!next_event(reader, &next))
        return reader->err->code != 0 ? -reader->err->code : 0;
    r = read_doc(reader, &next, depth, &value);
    yaml_event_delete(&next);
    if (r < 0 || value == NULL)
        return r;
    if (key->kind != DOC_TEXT) {
        problems_add(reader->problems, reader->file, key->line, "a key must be a text, not %s",
                     doc_kind_name(key));
        return 0;
    }
    for (size_t i = 0; i < map->count; i++)
        if (strcmp(map->keys[i]->text, key->text) == 0) {
            problems_add(reader->problems, reader->file, key->line,
                         "%s: given twice, first in line %u", key->text, map->keys[i]->line);
            return 0;
        }
    if (!doc_append(map, TAKE_PTR(key), TAKE_PTR(value)))
        return out_of_memory(reader);
    return 0;
}

static int read_item(struct reader *reader, yaml_event_t *event, unsigned depth, struct doc *list)
{
    _cleanup_(doc_free_cleanup) struct doc *item = NULL;

    int r = read_doc(reader, event, depth, &item);
    if (r < 0 || item == NULL)
        return r;
    if (!doc_append(list, NULL, TAKE_PTR(item)))
        return out_of_memory(reader);
    return 0;
}

static int read_collection(struct reader *reader, const yaml_event_t *start, unsigned depth,
                           struct doc **ret)
{
    const bool map = start->type == YAML_MAPPING_START_EVENT;
    const yaml_event_type_t end = map ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT;
    _cleanup_(doc_free_cleanup) struct doc *node =
        doc_new(map ? DOC_MAP : DOC_LIST, start->start_mark);
    yaml_event_t event;
    int r = 0;

    if (node == NULL)
        return out_of_memory(reader);
    if (depth >= DEPTH_MAX) {
        reader->broken = true;
        problems_add(reader->problems, reader->file, node->line, "nested more than %d deep",
                     DEPTH_MAX);
        return 0;
    }
    for (bool ended = false; !ended && r == 0;) {
        if (!next_event(reader, &event))
            return reader->err->code != 0 ? -reader->err->code : 0;
        ended = event.type == end;
        if (!ended && node->count == ITEMS_MAX) {
            reader->broken = ended = true;
            problems_add(reader->problems, reader->file, node->line, "more than %d %s", ITEMS_MAX,
                         map ? "keys" : "items");
        }
        if (!ended)
            r = map ? read_pair(reader, &event, depth + 1, node)
                    : read_item(reader, &event, depth + 1, node);
        yaml_event_delete(&event);
    }
    if (r == 0 && !reader->broken)
        *ret = TAKE_PTR(node);
    return r;
}

/* The node that begins with `event`; NULL if nothing can be known of it. */
static int read_doc(struct reader *reader, yaml_event_t *event, unsigned depth, struct doc **ret)
{
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return read_text(reader, event, ret);
    case YAML_SEQUENCE_START_EVENT:
        refuse_decoration(reader, event->data.sequence_start.anchor, event->data.sequence_start.tag,
                          event->start_mark);
        return read_collection(reader, event, depth, ret);
    case YAML_MAPPING_START_EVENT:
        refuse_decoration(reader, event->data.mapping_start.anchor, event->data.mapping_start.tag,
                          event->start_mark);
        return read_collection(reader, event, depth, ret);
    case YAML_ALIAS_EVENT:
        problems_add(reader->problems, reader->file, line_of(event->start_mark),
                     "aliases (*%s) are not for recipes", (const char *)event->data.alias.anchor);
        /* In its place, so that keys and values stay pairs. */
        *ret = doc_new(DOC_TEXT, event->start_mark);
        if (*ret != NULL)
            (*ret)->text = strdup("");
        return *ret != NULL && (*ret)->text != NULL ? 0 : out_of_memory(reader);
    default:
        abort(); /* libyaml gives no other event here */
    }
}

static int read_stream(struct reader *reader, struct doc **ret)
{
    _cleanup_(doc_free_cleanup) struct doc *root = NULL;
    yaml_event_t event;
    unsigned documents = 0;
    bool ended = false;
    int r = 0;

    while (!ended && r == 0 && next_event(reader, &event)) {
        switch (event.type) {
        case YAML_STREAM_START_EVENT:
        case YAML_DOCUMENT_END_EVENT:
            break;
        case YAML_DOCUMENT_START_EVENT:
            if (++documents == 2) {
                problems_add(reader->problems, reader->file, line_of(event.start_mark),
                             "a second document; a recipe is one");
                reader->broken = true;
            }
            break;
        case YAML_STREAM_END_EVENT:
            ended = true;
            break;
        default:
            r = read_doc(reader, &event, 0, &root);
        }
        yaml_event_delete(&event);
    }
    if (r == 0 && reader->err->code != 0)
        r = -reader->err->code;
    if (r < 0)
        return r;
    if (root == NULL && !reader->broken)
        problems_add(reader->problems, reader->file, 1, "the file is empty");
    *ret = reader->broken ? NULL : TAKE_PTR(root);
    return 0;
}

int doc_parse(const char *text, size_t length, const char *file, struct problems *problems,
              struct doc **ret, struct error *err)
{
    _cleanup_error_ struct error own = ERROR_INIT;
    struct reader reader = {.file = file, .problems = problems, .err = &own};

    if (!yaml_parser_initialize(&reader.parser))
        return error_oom(err);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text, length);
    int r = read_stream(&reader, ret);
    yaml_parser_delete(&reader.parser);
    if (r < 0)
        error_move(err, &own);
    return r;
}

int doc_read(const char *file, struct problems *problems, struct doc **ret, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    size_t length;

    int r = io_read_file(file, FILE_MAX, &text, &length, err);
    if (r < 0)
        return r;
    return doc_parse(text, length, file, problems, ret, err);
}
