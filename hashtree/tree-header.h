/* SPDX-License-Identifier: MIT */
#pragma once

#include "hashtree/tree-file.h"

/* The bytes of a tree file's header (docs/tree-file.md). */

#define SLOT_SIZE 16384
#define TREE_MAGIC_SIZE 8
extern const uint8_t tree_magic[TREE_MAGIC_SIZE];

void tree_header_encode(const struct tree_header *header, uint8_t slot[static SLOT_SIZE]);

/* Why the slot is not one, or NULL. */
const char *tree_header_decode(uint8_t slot[static SLOT_SIZE], struct tree_header *ret);
