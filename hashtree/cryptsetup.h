/* SPDX-License-Identifier: MIT */
#pragma once

#include <libcryptsetup.h>

#include "common/error.h"

/* libcryptsetup, loaded when it is first needed (common/library.h), with which come eight more:
 * call libcryptsetup_load(), then libcryptsetup.crypt_init() and so on. */
#define LIBCRYPTSETUP_FUNCTIONS(F) \
    F(crypt_format)                \
    F(crypt_free)                  \
    F(crypt_get_uuid)              \
    F(crypt_get_verity_info)       \
    F(crypt_init)                  \
    F(crypt_load)                  \
    F(crypt_set_log_callback)

struct libcryptsetup {
#define LIBCRYPTSETUP_MEMBER(function) __typeof__(&function) function;
    LIBCRYPTSETUP_FUNCTIONS(LIBCRYPTSETUP_MEMBER)
#undef LIBCRYPTSETUP_MEMBER
};

extern struct libcryptsetup libcryptsetup;

/* Loads it, unless it is there already. Not to be called by two threads at once. Returns 0 or an
 * error of library_load(). */
int libcryptsetup_load(struct error *err);
