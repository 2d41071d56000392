/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdint.h>

#include "common/json.h"
#include "hashtree/hashtree.h"

/*
 * What tells all about a tree, as `hash --json` and params.json have it: root_hash, salt, uuid
 * (null without a superblock), hash_algorithm, hash_type, data_blocks, data_block_size,
 * hash_block_size, hash_start_block, hash_device_size (bytes), table, dm_mod_create. For other
 * values of `root` and `uuid` the text is of the same length.
 *
 * `root` is geometry->digest_size bytes; `partition` as verity_guest_table() has it. *ret is a new
 * reference.
 */
int verity_describe(const struct verity_params *params, const struct verity_geometry *geometry,
                    const uint8_t *root, const uint8_t uuid[static 16], unsigned partition,
                    json_t **ret, struct error *err);

/* The same of a tree. Computes the root. */
int hashtree_describe(struct hashtree *tree, unsigned partition, json_t **ret, struct error *err);
