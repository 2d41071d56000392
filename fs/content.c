/* SPDX-License-Identifier: MIT */
/*
 * The files whose content is text. That of most depends on the root hash, but not their length,
 * which stat has to tell before: it is that of the same text for another root.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "common/units.h"
#include "fs/internal.h"
#include "hashtree/describe.h"

void fs_texts_clear(struct fs_texts *texts)
{
    for (size_t i = 0; i < TEXT_COUNT; i++)
        free(texts->text[i]);
    *texts = (struct fs_texts){0};
}

/* With a newline behind it; takes `text`, which may be NULL for want of memory. */
static char *line(char *text)
{
    char *ended = NULL;

    if (text != NULL && asprintf(&ended, "%s\n", text) < 0)
        ended = NULL;
    free(text);
    return ended;
}

static int make_texts(const struct fs_options *options, const uint8_t *root,
                      const uint8_t uuid[static 16], struct fs_texts *ret, struct error *err)
{
    const struct verity_params *params = hashtree_params(options->tree);
    const struct verity_geometry *geometry = hashtree_geometry(options->tree);
    unsigned partition = options->data->number;
    _cleanup_(fs_texts_clear_cleanup) struct fs_texts texts = {0};
    _cleanup_free_ char *table = NULL;
    _cleanup_json_ json_t *json = NULL;
    char hex[2 * VERITY_DIGEST_MAX + 1];

    int r = verity_describe(params, geometry, root, uuid, partition, &json, err);
    if (r < 0)
        return r;
    table = verity_guest_table(params, geometry, root, partition);
    if (table == NULL)
        return error_oom(err);
    hex_encode(root, geometry->digest_size, hex);
    texts.text[TEXT_ROOT_HASH] = line(strdup(hex));
    texts.text[TEXT_TABLE] = line(strdup(table));
    texts.text[TEXT_CMDLINE] = line(verity_dm_mod_create(table));
    texts.text[TEXT_PARAMS] = line(json_dumps(json, JSON_INDENT(2)));
    for (size_t i = 0; i < TEXT_COUNT; i++)
        if (texts.text[i] == NULL)
            return error_oom(err);
    *ret = texts;
    texts = (struct fs_texts){0};
    return 0;
}

int fs_texts_sizes(const struct fs_options *options, size_t ret[static TEXT_COUNT],
                   struct error *err)
{
    static const uint8_t root[VERITY_DIGEST_MAX], uuid[16];
    _cleanup_(fs_texts_clear_cleanup) struct fs_texts texts = {0};

    int r = make_texts(options, root, uuid, &texts, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < TEXT_COUNT; i++)
        ret[i] = strlen(texts.text[i]);
    return 0;
}

int fs_texts_make(const struct fs_options *options, struct fs_texts *ret, struct error *err)
{
    const struct verity_params *params = hashtree_params(options->tree);
    uint8_t root[VERITY_DIGEST_MAX], uuid[16] = {0};

    int r = hashtree_root(options->tree, root, err);
    if (r < 0)
        return r;
    if (params->uuid_set)
        memcpy(uuid, params->uuid, sizeof(uuid));
    else if (params->superblock)
        verity_derive_uuid(params, root, hashtree_geometry(options->tree)->digest_size, uuid);
    return make_texts(options, root, uuid, ret, err);
}

/* --- stats.json --- */

static int put_number(json_t *object, const char *key, uint64_t value, struct error *err)
{
    return json_put(object, key, json_integer((json_int_t)value), err);
}

static uint64_t get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* {"8": 3, …}: 3 reads that took less than 8 microseconds, and not less than 4. */
static int latency_json(const struct fs_counters *counters, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *object = json_object();
    char limit[24];

    if (object == NULL)
        return error_oom(err);
    for (unsigned i = 0; i < LATENCY_BUCKETS; i++) {
        uint64_t count = get(&counters->latency[i]);

        if (count == 0)
            continue;
        if (i + 1 < LATENCY_BUCKETS)
            snprintf(limit, sizeof(limit), "%" PRIu64, UINT64_C(1) << i);
        else
            strcpy(limit, "more");
        int r = put_number(object, limit, count, err);
        if (r < 0)
            return r;
    }
    *ret = TAKE_PTR(object);
    return 0;
}

static int counters_json(const struct fs_counters *counters, json_t *file, struct error *err)
{
    json_t *latency = NULL;
    int r;

    if ((r = put_number(file, "reads", get(&counters->reads), err)) < 0 ||
        (r = put_number(file, "bytes", get(&counters->bytes), err)) < 0 ||
        (r = put_number(file, "at_once", get(&counters->at_once), err)) < 0 ||
        (r = put_number(file, "errors", get(&counters->errors), err)) < 0 ||
        (r = latency_json(counters, &latency, err)) < 0 ||
        (r = json_put(file, "latency_us", latency, err)) < 0)
        return r;
    return 0;
}

static int files_json(const struct fs_nodes *nodes, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *files = json_object();
    int r;

    if (files == NULL)
        return error_oom(err);
    for (size_t i = 0; i < nodes->count; i++) {
        struct fs_node *node = &nodes->all[i];
        json_t *file;

        if (node->kind == NODE_ROOT || node->kind == NODE_LINK)
            continue;
        file = json_object();
        r = json_put(files, node->name, file, err);
        if (r == 0)
            r = counters_json(&node->counters, file, err);
        if (r < 0)
            return r;
    }
    *ret = TAKE_PTR(files);
    return 0;
}

static int build_json(struct hashtree *tree, bool building, json_t **ret, struct error *err)
{
    const struct progress *progress = hashtree_progress(tree);
    _cleanup_json_ json_t *build = json_object();
    int r;

    if (build == NULL)
        return error_oom(err);
    if ((r = json_put(build, "running", json_boolean(building), err)) < 0 ||
        (r = json_put(build, "root_known", json_boolean(hashtree_root_known(tree)), err)) < 0 ||
        (r = put_number(build, "done", atomic_load_explicit(&progress->done, memory_order_relaxed),
                        err)) < 0 ||
        (r = put_number(build, "total",
                        atomic_load_explicit(&progress->total, memory_order_relaxed), err)) < 0)
        return r;
    *ret = TAKE_PTR(build);
    return 0;
}

static int hashtree_json(struct hashtree *tree, json_t **ret, struct error *err)
{
    struct hashtree_stats stats;
    _cleanup_json_ json_t *object = json_object();
    int r;

    if (object == NULL)
        return error_oom(err);
    hashtree_stats(tree, &stats);
    if ((r = put_number(object, "data_bytes_hashed", stats.data_bytes_hashed, err)) < 0 ||
        (r = put_number(object, "zero_blocks", stats.zero_blocks, err)) < 0 ||
        (r = put_number(object, "nodes_computed", stats.nodes_computed, err)) < 0 ||
        (r = put_number(object, "nodes_kept", stats.nodes_kept, err)) < 0 ||
        (r = json_put(object, "build_seconds", json_real(stats.build_seconds), err)) < 0)
        return r;
    *ret = TAKE_PTR(object);
    return 0;
}

/* Null in a mount that checks nothing. */
static int verified_json(const struct hashtree *tree, json_t **ret, struct error *err)
{
    uint64_t checked, faults;

    if (!hashtree_trusted(tree, &checked, &faults)) {
        *ret = json_null();
        return 0;
    }
    *ret = json_pack("{s:I, s:I}", "blocks_checked", (json_int_t)checked, "faults",
                     (json_int_t)faults);
    return *ret != NULL ? 0 : error_oom(err);
}

int fs_stats_make(const struct fs_options *options, const struct fs_nodes *nodes, bool building,
                  char **ret, struct error *err)
{
    _cleanup_json_ json_t *object = json_object();
    json_t *files = NULL, *build = NULL, *tree = NULL, *verified = NULL;
    int r;

    if (object == NULL)
        return error_oom(err);
    if ((r = files_json(nodes, &files, err)) < 0 ||
        (r = json_put(object, "files", files, err)) < 0 ||
        (r = hashtree_json(options->tree, &tree, err)) < 0 ||
        (r = json_put(object, "hashtree", tree, err)) < 0 ||
        (r = build_json(options->tree, building, &build, err)) < 0 ||
        (r = json_put(object, "build", build, err)) < 0 ||
        (r = verified_json(options->tree, &verified, err)) < 0 ||
        (r = json_put(object, "verified", verified, err)) < 0)
        return r;
    char *text = line(json_dumps(object, JSON_INDENT(2)));
    if (text == NULL)
        return error_oom(err);
    *ret = text;
    return 0;
}
