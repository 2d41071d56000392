/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/keys.h"

/*
 * Fills in what a recipe cannot know: @AUTHORIZED_KEY@, @HOST_KEY@ and @HOST_PRIVATE_KEY@ become
 * the build's keys, @EPOCH@ the recipe's. Of a value with several lines, all get the blanks that
 * stand in front of the first one, as YAML wants it. *ret is owned.
 */
int template_fill(const char *text, const struct keys *keys, uint64_t epoch, char **ret,
                  struct error *err);

/* The same of a file of the recipe, or, if `path` is NULL, of the text `usual`, with the build's
 * keys. */
int template_file(struct build *build, const char *path, const char *usual, char **ret,
                  struct error *err);
