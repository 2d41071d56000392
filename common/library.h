/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdalign.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/*
 * Libraries that are loaded when they are first needed, since to load them is most of what a short
 * command would do. Each has a header that declares a struct of pointers to those of its functions
 * that are called, under their own names, and a function that fills it.
 */

struct library_function {
    const char *name;
    void *pointer; /* to the pointer to the function, which is set */
};

struct library {
    const char *soname; /* as in "libcrypto.so.3" */
    const struct library_function *functions;
    size_t count;
    /* Of library_load(): */
    bool tried;
    int result;
    char *why_not; /* NULL: out of memory */
};

/*
 * Loads a library for as long as the process lives, and sets the pointers to its functions. Returns
 * 0, or -ELIBACC or -ENOSYS if it or one of the functions is not there, and the same every time: a
 * confined process is told what was the matter before. Not to be called by two threads at once.
 */
int library_load(struct library *library, struct error *err);

/*
 * Tells packagers of a library that is not among those that the program is linked with: ELF dlopen
 * metadata, a note of the format that systemd.io/ELF_DLOPEN_METADATA specifies.
 */
#define LIBRARY_NOTE(soname, feature, description)                                            \
    __attribute__((used, section(".note.dlopen"))) alignas(uint32_t) static const struct {    \
        uint32_t name_size, text_size, type;                                                  \
        char name[sizeof("FDO")];                                                             \
        alignas(uint32_t) char text[sizeof(LIBRARY_NOTE_TEXT(soname, feature, description))]; \
    } library_note = {sizeof("FDO"), sizeof(LIBRARY_NOTE_TEXT(soname, feature, description)), \
                      0x407c0c0a, "FDO", LIBRARY_NOTE_TEXT(soname, feature, description)}
#define LIBRARY_NOTE_TEXT(soname, feature, description)            \
    "[{\"feature\":\"" feature "\",\"description\":\"" description \
    "\",\"priority\":\"required\",\"soname\":[\"" soname "\"]}]"
