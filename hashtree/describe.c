/* SPDX-License-Identifier: MIT */
#include "hashtree/describe.h"

#include <assert.h>

#include "common/units.h"

static int put_number(json_t *object, const char *key, uint64_t value, struct error *err)
{
    return json_put(object, key, json_integer((json_int_t)value), err);
}

static int put_hex(json_t *object, const char *key, const uint8_t *bytes, size_t length,
                   struct error *err)
{
    char hex[2 * VERITY_SALT_MAX + 1];

    assert(length <= VERITY_SALT_MAX);
    hex_encode(bytes, length, hex);
    return json_put(object, key, json_string(hex), err);
}

static int put_uuid(json_t *object, const struct verity_params *params,
                    const uint8_t uuid[static 16], struct error *err)
{
    char text[VERITY_UUID_TEXT_SIZE];

    verity_uuid_format(uuid, text);
    return json_put(object, "uuid", params->superblock ? json_string(text) : json_null(), err);
}

static int put_table(json_t *object, const struct verity_params *params,
                     const struct verity_geometry *geometry, const uint8_t *root,
                     unsigned partition, struct error *err)
{
    _cleanup_free_ char *table = NULL, *create = NULL;

    table = verity_guest_table(params, geometry, root, partition);
    create = table != NULL ? verity_dm_mod_create(table) : NULL;
    if (create == NULL)
        return error_oom(err);
    int r = json_put(object, "table", json_string(table), err);
    return r < 0 ? r : json_put(object, "dm_mod_create", json_string(create), err);
}

int verity_describe(const struct verity_params *params, const struct verity_geometry *geometry,
                    const uint8_t *root, const uint8_t uuid[static 16], unsigned partition,
                    json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *object = json_object();
    int r;

    if (object == NULL)
        return error_oom(err);
    if ((r = put_hex(object, "root_hash", root, geometry->digest_size, err)) < 0 ||
        (r = put_hex(object, "salt", params->salt, params->salt_size, err)) < 0 ||
        (r = put_uuid(object, params, uuid, err)) < 0 ||
        (r = json_put(object, "hash_algorithm", json_string(params->hash_name), err)) < 0 ||
        (r = put_number(object, "hash_type", params->hash_type, err)) < 0 ||
        (r = put_number(object, "data_blocks", params->data_blocks, err)) < 0 ||
        (r = put_number(object, "data_block_size", params->data_block_size, err)) < 0 ||
        (r = put_number(object, "hash_block_size", params->hash_block_size, err)) < 0 ||
        (r = put_number(object, "hash_start_block", geometry->hash_start, err)) < 0 ||
        (r = put_number(object, "hash_device_size", geometry->device_size, err)) < 0 ||
        (r = put_table(object, params, geometry, root, partition, err)) < 0)
        return r;
    *ret = TAKE_PTR(object);
    return 0;
}

int hashtree_describe(struct hashtree *tree, unsigned partition, json_t **ret, struct error *err)
{
    uint8_t root[VERITY_DIGEST_MAX];
    uint8_t uuid[16] = {0};

    int r = hashtree_root(tree, root, err);
    if (r < 0)
        return r;
    if (hashtree_params(tree)->superblock) {
        r = hashtree_uuid(tree, uuid, err);
        if (r < 0)
            return r;
    }
    return verity_describe(hashtree_params(tree), hashtree_geometry(tree), root, uuid, partition,
                           ret, err);
}
