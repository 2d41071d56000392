/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>

#include "qemuctl/capabilities.h"

/* Private to capabilities.c: answers of QEMUs that were asked before. */
struct capability_cache;

/* *ret is NULL where nothing can be kept for this program. It is freed with
 * capability_cache_close(). */
void capability_cache_open(const char *program, struct capability_cache **ret);
void capability_cache_close(struct capability_cache *cache);
DEFINE_CLEANUP(struct capability_cache, capability_cache_close);

/* Whether there is an answer of this very file. */
bool capability_cache_load(const struct capability_cache *cache, struct qemu_capabilities *ret);

/* Keeps an answer, if that can be done. */
void capability_cache_store(const struct capability_cache *cache,
                            const struct qemu_capabilities *capabilities);
