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
