/* SPDX-License-Identifier: MIT */
#include "qemuctl/program.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int copy(const char *path, char **ret, struct error *err)
{
    *ret = strdup(path);
    return *ret != NULL ? 0 : error_oom(err);
}

int program_find(const char *program, char **ret, struct error *err)
{
    const char *path = getenv("PATH");
    _cleanup_free_ char *directories = strdup(path != NULL ? path : "/bin:/usr/bin");
    int code = ENOENT;

    if (strchr(program, '/') != NULL)
        return copy(program, ret, err);
    if (directories == NULL)
        return error_oom(err);
    char *rest = directories;
    for (const char *directory; (directory = strsep(&rest, ":")) != NULL;) {
        char candidate[PATH_MAX];
        struct stat st;

        int n = snprintf(candidate, sizeof(candidate), "%s/%s",
                         directory[0] != '\0' ? directory : ".", program);
        if (n < 0 || (size_t)n >= sizeof(candidate) || stat(candidate, &st) < 0 ||
            !S_ISREG(st.st_mode))
            continue;
        if (access(candidate, X_OK) == 0)
            return copy(candidate, ret, err);
        code = errno;
    }
    return error_set_errno(err, code, "%s: cannot run", program);
}
