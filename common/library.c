/* SPDX-License-Identifier: MIT */
#include "common/library.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

static int load(const struct library *library, struct error *err)
{
    /* With all that it needs at once: a confined process can load no more of it. */
    void *handle = dlopen(library->soname, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

    if (handle == NULL)
        return error_set(err, ELIBACC, "cannot load a library: %s", dlerror());
    for (size_t i = 0; i < library->count; i++) {
        void *function = dlsym(handle, library->functions[i].name);

        if (function == NULL)
            return error_set(err, ENOSYS, "the library %s has no function %s", library->soname,
                             library->functions[i].name);
        memcpy(library->functions[i].pointer, &function, sizeof(function));
    }
    return 0;
}

int library_load(struct library *library, struct error *err)
{
    _cleanup_error_ struct error failure = ERROR_INIT;

    if (!library->tried) {
        library->tried = true;
        library->result = load(library, &failure);
        if (library->result < 0)
            library->why_not = strdup(error_message(&failure));
    }
    if (library->result < 0 && library->why_not == NULL)
        return error_oom(err);
    return library->result < 0 ? error_set(err, -library->result, "%s", library->why_not) : 0;
}
