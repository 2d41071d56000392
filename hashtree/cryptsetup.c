/* SPDX-License-Identifier: MIT */
#include "hashtree/cryptsetup.h"

#include "common/library.h"

#define SONAME "libcryptsetup.so.12"
LIBRARY_NOTE(SONAME, "cryptsetup", "Superblocks of dm-verity");

struct libcryptsetup libcryptsetup;

int libcryptsetup_load(struct error *err)
{
    static const struct library_function functions[] = {
#define LIBCRYPTSETUP_FUNCTION(function) {#function, &libcryptsetup.function},
        LIBCRYPTSETUP_FUNCTIONS(LIBCRYPTSETUP_FUNCTION)
#undef LIBCRYPTSETUP_FUNCTION
    };
    static struct library library = {
        .soname = SONAME,
        .functions = functions,
        .count = sizeof(functions) / sizeof(functions[0]),
    };

    return library_load(&library, err);
}
