/* SPDX-License-Identifier: MIT */
/*
 * `qverity mount` as mount(8) calls it, by the name of mount.qverity for `mount -t qverity`, or,
 * for `mount -t fuse.qverity`, through mount.fuse3(8) as `qverity IMAGE DIRECTORY -o LIST`. There
 * are no options but those in the list, so that those of `qverity mount` may stand in it:
 *
 *     /srv/disk.qcow2 /mnt qverity ro,nofail,partition=2,idle-timeout=600 0 0
 */
#include <string.h>

#include "cli/cli.h"
#include "cli/options.h"
#include "common/log.h"

/* What main makes of these, whatever a list says. */
static const char *const not_in_lists[] = {"foreground", "options", "json", "help"};

/* Longest list of options, as mount.c has it. */
#define LIST_MAX 4096
/* Of `qverity mount` in all lists. */
#define OWN_MAX 256

struct translation {
    char **argv; /* of `qverity mount` */
    int argc;
    char rest[LIST_MAX]; /* of the list: mount options */
    char *own[OWN_MAX];
    int own_count;
    const char *operands[2];
    int operand_count;
    bool fake;
    bool verbose;
};

bool cli_is_mount_helper(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/');
    const char *name = slash != NULL ? slash + 1 : argv[0];

    return strncmp(name, "mount.", strlen("mount.")) == 0 ||
           (argc >= 3 && argv[1][0] != '-' && strchr(argv[1], '/') != NULL);
}

static bool is_own(const char *item)
{
    size_t length = strcspn(item, "=");

    for (size_t i = 0; i < sizeof(not_in_lists) / sizeof(not_in_lists[0]); i++)
        if (strlen(not_in_lists[i]) == length && strncmp(item, not_in_lists[i], length) == 0)
            return false;
    return cli_has_option(&cmd_mount, item, length);
}

/* What mount(8) and mount.fuse3(8) add by themselves unless they were told the contrary. There are
 * no devices or programs, and what there is to write to is --overlay's. */
static bool is_implied(const char *item)
{
    return strcmp(item, "rw") == 0 || strcmp(item, "dev") == 0 || strcmp(item, "suid") == 0;
}

/* The next item's end: a comma that no backslash stands before, or the end. */
static size_t item_length(const char *list)
{
    size_t n = 0;

    while (list[n] != '\0' && list[n] != ',')
        n += list[n] == '\\' && list[n + 1] != '\0' ? 2 : 1;
    return n;
}

static int take_list(struct translation *t, const char *list, struct error *err)
{
    if (strlen(t->rest) + strlen(list) + 2 > sizeof(t->rest))
        return cli_usage_error(err, "-o: more than %zu bytes of mount options",
                               sizeof(t->rest) - 1);
    for (const char *item = list; *item != '\0';) {
        size_t length = item_length(item);
        _cleanup_free_ char *copy = strndup(item, length);

        if (copy == NULL)
            return error_oom(err);
        item += length + (item[length] == ',' ? 1 : 0);
        if (*copy == '\0' || is_implied(copy))
            continue;
        if (!is_own(copy)) {
            if (t->rest[0] != '\0')
                strcat(t->rest, ",");
            strcat(t->rest, copy);
            continue;
        }
        if ((size_t)t->own_count == sizeof(t->own) / sizeof(t->own[0]))
            return cli_usage_error(err, "-o: more than %d options", t->own_count);
        char *option;
        if (asprintf(&option, "--%s", copy) < 0)
            return error_oom(err);
        t->own[t->own_count++] = option;
    }
    return 0;
}

static int take_word(struct translation *t, int argc, char **argv, int *i, struct error *err)
{
    const char *word = argv[*i];

    if (word[0] != '-' || word[1] == '\0') {
        if (t->operand_count == 2)
            return cli_usage_error(err, "too many arguments: '%s'", word);
        t->operands[t->operand_count++] = word;
        return 0;
    }
    for (const char *c = word + 1; *c != '\0'; c++) {
        const char *argument = c[1] != '\0' ? c + 1 : *i + 1 < argc ? argv[*i + 1] : NULL;

        switch (*c) {
        case 'f':
            t->fake = true;
            continue;
        case 'v':
            t->verbose = true;
            continue;
        case 'n': /* no /etc/mtab */
        case 's': /* be sloppy */
            continue;
        case 'r':
        case 'w': {
            int r = take_list(t, *c == 'r' ? "ro" : "rw", err);
            if (r < 0)
                return r;
            continue;
        }
        case 'o':
        case 't':
            break;
        default:
            return cli_usage_error(err, "unknown option '-%c'", *c);
        }
        if (argument == NULL)
            return cli_usage_error(err, "option '-%c' needs an argument", *c);
        if (c[1] == '\0')
            ++*i;
        return *c == 'o' ? take_list(t, argument, err) : 0;
    }
    return 0;
}

static void translation_free(struct translation *t)
{
    for (int i = 0; i < t->own_count; i++)
        free(t->own[i]);
    free(t->argv);
    free(t);
}
DEFINE_CLEANUP(struct translation, translation_free);

int cli_mount_helper(int argc, char **argv,
                     int (*run)(const struct cli_command *command, int argc, char **argv,
                                struct error *err),
                     struct error *err)
{
    _cleanup_(translation_free_cleanup) struct translation *t = calloc(1, sizeof(*t));

    if (t == NULL)
        return error_oom(err);
    for (int i = 1; i < argc; i++) {
        int r = take_word(t, argc, argv, &i, err);
        if (r < 0)
            return r;
    }
    if (t->operand_count < 2)
        return cli_usage_error(err, "arguments are missing: %s IMAGE DIRECTORY [-o LIST]", argv[0]);
    if (t->fake)
        return CLI_DONE;
    t->argv = calloc((size_t)t->own_count + 8, sizeof(*t->argv));
    if (t->argv == NULL)
        return error_oom(err);
    t->argv[t->argc++] = (char *)"mount";
    for (int i = 0; i < t->own_count; i++)
        t->argv[t->argc++] = t->own[i];
    if (t->verbose)
        t->argv[t->argc++] = (char *)"-v";
    if (t->rest[0] != '\0') {
        t->argv[t->argc++] = (char *)"-o";
        t->argv[t->argc++] = t->rest;
    }
    t->argv[t->argc++] = (char *)"--";
    t->argv[t->argc++] = (char *)t->operands[0];
    t->argv[t->argc++] = (char *)t->operands[1];
    return run(&cmd_mount, t->argc, t->argv, err);
}
