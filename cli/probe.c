/* SPDX-License-Identifier: MIT */
/*
 * The partition table of an image, found out by a process that is confined (apart.c), for one that
 * cannot be yet: it still has to mount something. What it says is taken for what the image itself
 * could say: strings of any kind, and ranges, which are checked to lie within the disk.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "cli/cli.h"
#include "common/checked.h"
#include "common/units.h"

#define PARTITIONS_MAX 1024

/* --- The child --- */

/* In hex: a label need not be UTF-8, and shall come out as it was. */
static json_t *pack_text(const char *text)
{
    if (text == NULL)
        return json_null();
    size_t length = strlen(text);
    _cleanup_free_ char *hex = malloc(2 * length + 1);
    if (hex == NULL)
        return NULL;
    hex_encode((const uint8_t *)text, length, hex);
    return json_string(hex);
}

static json_t *pack_partition(const struct partition *p)
{
    return json_pack("{s:i, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:b}", "number", (int)p->number,
                     "start", (json_int_t)p->start, "size", (json_int_t)p->size, "type",
                     pack_text(p->type), "label", pack_text(p->label), "uuid", pack_text(p->uuid),
                     "fs_type", pack_text(p->fs_type), "fs_label", pack_text(p->fs_label),
                     "fs_uuid", pack_text(p->fs_uuid), "container", (int)p->container);
}

static json_t *pack_table(const struct partition_table *table)
{
    _cleanup_json_ json_t *partitions = json_array();

    for (size_t i = 0; partitions != NULL && i < table->count; i++)
        if (json_array_append_new(partitions, pack_partition(&table->partitions[i])) < 0)
            return NULL;
    return json_pack("{s:o, s:o, s:i, s:o, s:O}", "type", pack_text(table->type), "uuid",
                     pack_text(table->uuid), "sector_size", (int)table->sector_size, "disk",
                     pack_partition(&table->disk), "partitions", partitions);
}

static int probe(void *arg, json_t **ret, struct error *err)
{
    _cleanup_(partition_table_free_cleanup) struct partition_table *table = NULL;

    int r = partition_table_read(arg, &table, err);
    if (r < 0)
        return r;
    *ret = pack_table(table);
    return *ret == NULL ? error_oom(err) : 0;
}

/* --- The parent --- */

/* A string of the report, or NULL if there is none. */
static int unpack_text(const json_t *object, const char *key, char **ret, struct error *err)
{
    const char *hex = json_string_value(json_object_get(object, key));
    size_t length, room = hex != NULL ? strlen(hex) / 2 : 0;

    if (hex == NULL)
        return 0;
    _cleanup_free_ char *text = calloc(1, room + 1);
    if (text == NULL)
        return error_oom(err);
    int r = hex_decode(hex, key, (uint8_t *)text, room, &length, err);
    if (r == 0)
        *ret = TAKE_PTR(text);
    return r;
}

static int unpack_partition(const json_t *object, uint64_t disk_size, struct partition *ret,
                            struct error *err)
{
    const struct {
        const char *key;
        char **field;
    } texts[] = {
        {"type", &ret->type},       {"label", &ret->label},       {"uuid", &ret->uuid},
        {"fs_type", &ret->fs_type}, {"fs_label", &ret->fs_label}, {"fs_uuid", &ret->fs_uuid},
    };
    json_int_t number = json_integer_value(json_object_get(object, "number"));
    json_int_t start = json_integer_value(json_object_get(object, "start"));
    json_int_t size = json_integer_value(json_object_get(object, "size"));

    if (number < 0 || number > INT32_MAX || start < 0 || size < 0 ||
        !range_within((uint64_t)start, (uint64_t)size, disk_size))
        return error_set(err, EPROTO, "the process that looks for partitions told nonsense");
    ret->number = (unsigned)number;
    ret->start = (uint64_t)start;
    ret->size = (uint64_t)size;
    ret->container = json_is_true(json_object_get(object, "container"));
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        int r = unpack_text(object, texts[i].key, texts[i].field, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int unpack_table(const json_t *json, uint64_t disk_size, struct partition_table *ret,
                        struct error *err)
{
    const json_t *partitions = json_object_get(json, "partitions");
    size_t count = json_array_size(partitions);

    int r = unpack_text(json, "type", &ret->type, err);
    if (r == 0)
        r = unpack_text(json, "uuid", &ret->uuid, err);
    if (r == 0)
        r = unpack_partition(json_object_get(json, "disk"), disk_size, &ret->disk, err);
    if (r < 0)
        return r;
    ret->sector_size = (unsigned)json_integer_value(json_object_get(json, "sector_size"));
    if (count > PARTITIONS_MAX || (ret->sector_size != 512 && ret->sector_size != 4096) ||
        ret->disk.start != 0 || ret->disk.size != disk_size)
        return error_set(err, EPROTO, "the process that looks for partitions told nonsense");
    ret->partitions = calloc(count + 1, sizeof(*ret->partitions));
    if (ret->partitions == NULL)
        return error_oom(err);
    for (size_t i = 0; i < count && r == 0; i++) {
        ret->count = i + 1;
        r = unpack_partition(json_array_get(partitions, i), disk_size, &ret->partitions[i], err);
    }
    return r;
}

int cli_probe(const struct cli_options *options, struct image *image, struct partition_table **ret,
              struct error *err)
{
    _cleanup_(partition_table_free_cleanup) struct partition_table *table = NULL;
    _cleanup_json_ json_t *report = NULL;
    struct cli_options reading = *options;

    if (!options->confine)
        return partition_table_read(image, ret, err);
    /* It writes no tree file, and hashes nothing. */
    reading.no_tree = true;
    reading.hashes = false;
    const struct cli_apart apart = {
        .what = "looks for partitions",
        .options = &reading,
        .image = image,
        .run = probe,
        .arg = image,
    };
    int r = cli_run_apart(&apart, &report, err);
    if (r < 0)
        return r;
    table = calloc(1, sizeof(*table));
    if (table == NULL)
        return error_oom(err);
    r = unpack_table(report, image_size(image), table, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(table);
    return 0;
}
