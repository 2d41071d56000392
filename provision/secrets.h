/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/seal.h"

/* A search for secrets in bytes that come in pieces. */
struct search;

int search_new(const struct secret *secrets, size_t count, struct search **ret, struct error *err);
void search_free(struct search *search);
DEFINE_CLEANUP(struct search, search_free);

/* What comes now does not follow what came before. */
void search_restart(struct search *search);

/* The first secret that the bytes, with those before them, hold; or NULL. */
const struct secret *search_feed(struct search *search, const void *bytes, size_t length);
