/* SPDX-License-Identifier: MIT */
/*
 * Mount options. libfuse knows some, the kernel some, mount(8) and fstab some more that only they
 * look at, and we add ours. All are told apart here, before anything is mounted, so that a
 * mistyped one is an error that names it.
 */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "common/units.h"
#include "fs/internal.h"

/* FUSE never reads less than a page at a time. */
#define MAX_READ_MIN 4096

enum option_kind {
    OPTION_PASS,    /* to libfuse */
    OPTION_IMPLIED, /* always in force */
    OPTION_IGNORED, /* meant for mount(8) or whoever reads fstab */
    OPTION_RO,
    OPTION_RW,
    OPTION_DIRECT_IO,
    OPTION_MAX_READ,
    OPTION_FSNAME,
};

static const struct option_rule {
    const char *name; /* one that ends with '=' takes a value; one with '*' is a prefix */
    enum option_kind kind;
} rules[] = {
    {"allow_other", OPTION_PASS},
    {"allow_root", OPTION_PASS},
    {"auto_unmount", OPTION_PASS},
    {"noexec", OPTION_PASS},
    {"exec", OPTION_PASS},
    {"sync", OPTION_PASS},
    {"async", OPTION_PASS},
    {"dirsync", OPTION_PASS},
    {"atime", OPTION_PASS},
    {"noatime", OPTION_PASS},
    {"diratime", OPTION_PASS},
    {"nodiratime", OPTION_PASS},
    {"relatime", OPTION_PASS},
    {"norelatime", OPTION_PASS},
    {"strictatime", OPTION_PASS},
    {"nostrictatime", OPTION_PASS},
    {"lazytime", OPTION_PASS},
    {"nolazytime", OPTION_PASS},
    {"context=", OPTION_PASS},
    {"fscontext=", OPTION_PASS},
    {"defcontext=", OPTION_PASS},
    {"rootcontext=", OPTION_PASS},
    {"ro", OPTION_RO},
    {"nosuid", OPTION_IMPLIED},
    {"nodev", OPTION_IMPLIED},
    {"default_permissions", OPTION_IMPLIED},
    {"defaults", OPTION_IGNORED},
    {"auto", OPTION_IGNORED},
    {"noauto", OPTION_IGNORED},
    {"user", OPTION_IGNORED},
    {"nouser", OPTION_IGNORED},
    {"users", OPTION_IGNORED},
    {"owner", OPTION_IGNORED},
    {"group", OPTION_IGNORED},
    {"nofail", OPTION_IGNORED},
    {"_netdev", OPTION_IGNORED},
    {"comment=", OPTION_IGNORED},
    {"x-*", OPTION_IGNORED},
    {"X-*", OPTION_IGNORED},
    {"rw", OPTION_RW},
    {"direct_io", OPTION_DIRECT_IO},
    {"max_read=", OPTION_MAX_READ},
    {"fsname=", OPTION_FSNAME},
};

static const struct option_rule *rule_find(const char *option)
{
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        const char *name = rules[i].name;
        size_t length = strlen(name);

        if (name[length - 1] == '='   ? strncmp(option, name, length) == 0
            : name[length - 1] == '*' ? strncmp(option, name, length - 1) == 0
                                      : strcmp(option, name) == 0)
            return &rules[i];
    }
    return NULL;
}

/* Takes the next option off *text, with its backslashes resolved: "a\,b" is one option. NULL at
 * the end or when out of memory, which *ret_oom tells. */
static char *next_option(const char **text, bool *ret_oom)
{
    const char *s = *text;
    char *option, *o;

    if (*s == '\0')
        return NULL;
    o = option = malloc(strlen(s) + 1);
    if (option == NULL) {
        *ret_oom = true;
        return NULL;
    }
    for (; *s != '\0' && *s != ','; s++) {
        if (*s == '\\' && s[1] != '\0')
            s++;
        *o++ = *s;
    }
    *o = '\0';
    *text = *s == ',' ? s + 1 : s;
    return option;
}

struct options_state {
    char *fuse;
    char *fsname;
    uint64_t max_read;
    bool direct_io;
    bool writable; /* the image is */
    bool read_only;
};

static void options_state_clear(struct options_state *state)
{
    free(state->fuse);
    free(state->fsname);
}
DEFINE_CLEANUP_INPLACE(struct options_state, options_state_clear);

/* Appends an option, its commas and backslashes escaped. */
static int add_fuse(struct options_state *state, const char *option, struct error *err)
{
    return fuse_opt_add_opt_escaped(&state->fuse, option) == 0 ? 0 : error_oom(err);
}

static int apply_option(struct options_state *state, const char *option, struct error *err)
{
    const struct option_rule *rule = rule_find(option);
    const char *value = strchr(option, '=');

    value = value != NULL ? value + 1 : "";
    if (rule == NULL)
        return error_set(err, EINVAL, "unknown mount option '%s'", option);
    switch (rule->kind) {
    case OPTION_PASS:
        return add_fuse(state, option, err);
    case OPTION_IMPLIED:
    case OPTION_IGNORED:
        return 0;
    case OPTION_RO:
        state->read_only = true;
        return 0;
    case OPTION_RW:
        if (!state->writable)
            return error_set(err, EINVAL, "mount option '%s': the files are read-only", option);
        state->read_only = false;
        return 0;
    case OPTION_DIRECT_IO:
        state->direct_io = true;
        return 0;
    case OPTION_MAX_READ: {
        int r = parse_u64(value, "mount option max_read", &state->max_read, err);
        if (r < 0)
            return r;
        if (state->max_read < MAX_READ_MIN || state->max_read > FS_MAX_READ)
            return error_set(err, EINVAL, "mount option '%s': must be from %u to %u", option,
                             MAX_READ_MIN, FS_MAX_READ);
        return 0;
    }
    case OPTION_FSNAME: {
        char *copy = strdup(value);
        if (copy == NULL)
            return error_oom(err);
        free(state->fsname);
        state->fsname = copy;
        return 0;
    }
    }
    assert(false);
    return -EINVAL;
}

int fs_options_parse(const char *text, const char *source, bool writable,
                     struct fs_mount_options *ret, struct error *err)
{
    _cleanup_(options_state_clear_cleanup) struct options_state state = {
        .max_read = FS_MAX_READ, .writable = writable, .read_only = !writable};
    _cleanup_free_ char *max_read = NULL, *fsname = NULL;
    bool oom = false;
    int r;

    for (const char *rest = text != NULL ? text : "";;) {
        _cleanup_free_ char *option = next_option(&rest, &oom);
        if (option == NULL)
            break;
        r = *option == '\0' ? 0 : apply_option(&state, option, err);
        if (r < 0)
            return r;
    }
    if (oom || asprintf(&max_read, "max_read=%u", (unsigned)state.max_read) < 0 ||
        asprintf(&fsname, "fsname=%s", state.fsname != NULL ? state.fsname : source) < 0)
        return error_oom(err);
    const char *const always[] = {state.read_only ? "ro" : "rw",
                                  "nosuid",
                                  "nodev",
                                  "default_permissions",
                                  max_read,
                                  fsname,
                                  "subtype=qverity"};
    for (size_t i = 0; i < sizeof(always) / sizeof(always[0]); i++) {
        r = add_fuse(&state, always[i], err);
        if (r < 0)
            return r;
    }
    ret->fuse = TAKE_PTR(state.fuse);
    ret->max_read = (unsigned)state.max_read;
    ret->direct_io = state.direct_io;
    return 0;
}

int fs_check_options(const char *mount_options, bool writable, struct error *err)
{
    struct fs_mount_options parsed;

    int r = fs_options_parse(mount_options, "", writable, &parsed, err);
    if (r < 0)
        return r;
    free(parsed.fuse);
    return 0;
}
