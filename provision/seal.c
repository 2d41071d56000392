/* SPDX-License-Identifier: MIT */
#include "provision/seal.h"

#include <ctype.h>
#include <fnmatch.h>
#include <string.h>
#include <sys/stat.h>

#include "common/units.h"
#include "provision/secrets.h"

/* What becomes of a file. */
enum treatment {
    REMOVE, /* it, or what is in it if it is a directory whose pattern ends in a slash and a star */
    EMPTY,
    SET_DATES, /* of passwords */
    DROP_SWAP, /* lines of fstab about files that go */
    DROP_KEYS, /* lines with the build's key; the file goes if nothing is left */
};

enum category {
    CATEGORY_IDENTITY,
    CATEGORY_KEYS,
    CATEGORY_SEED,
    CATEGORY_LOGS,
    CATEGORY_PACKAGES,
    CATEGORY_HISTORY,
    CATEGORY_CLOUD,
    CATEGORY_LEASES,
    CATEGORY_TEMPORARY,
    CATEGORY_BACKUPS,
    CATEGORY_SWAP,
    CATEGORY_DATES,
    CATEGORY_RECIPE,
    CATEGORY_COUNT,
};

static const char *const category_names[CATEGORY_COUNT] = {
    [CATEGORY_IDENTITY] = "machine id",
    [CATEGORY_KEYS] = "SSH keys",
    [CATEGORY_SEED] = "random seed",
    [CATEGORY_LOGS] = "logs",
    [CATEGORY_PACKAGES] = "package lists and caches",
    [CATEGORY_HISTORY] = "shell history and caches of users",
    [CATEGORY_CLOUD] = "cloud-init and installer state",
    [CATEGORY_LEASES] = "leases and name servers",
    [CATEGORY_TEMPORARY] = "temporary files",
    [CATEGORY_BACKUPS] = "backup copies",
    [CATEGORY_SWAP] = "swap files",
    [CATEGORY_DATES] = "dates of passwords",
    [CATEGORY_RECIPE] = "what the recipe says",
};

/*
 * Patterns as fnmatch() has them with FNM_PATHNAME; one that ends in a slash and two stars is all
 * that is below a directory, one that begins with two stars and a slash is a path's end. The first
 * one that fits decides.
 */
static const struct rule {
    const char *pattern;
    enum treatment treatment;
    enum category category;
} rules[] = {
    /* Empty, it is made anew at each boot, and that is not taken for a first one. */
    {"/etc/machine-id", EMPTY, CATEGORY_IDENTITY},
    {"/var/lib/dbus/machine-id", REMOVE, CATEGORY_IDENTITY},
    {"/etc/udev/rules.d/70-persistent-net.rules", REMOVE, CATEGORY_IDENTITY},

    {"/etc/ssh/ssh_host_*", REMOVE, CATEGORY_KEYS},
    {"**/.ssh/authorized_keys*", DROP_KEYS, CATEGORY_KEYS},
    {"**/.ssh/known_hosts*", REMOVE, CATEGORY_KEYS},

    {"/var/lib/systemd/random-seed", REMOVE, CATEGORY_SEED},
    {"/var/lib/systemd/credential.secret", REMOVE, CATEGORY_SEED},
    {"/var/lib/urandom/random-seed", REMOVE, CATEGORY_SEED},
    {"/boot/efi/loader/random-seed", REMOVE, CATEGORY_SEED},

    /* Directories stay: services expect theirs. */
    {"/var/log/journal/*", REMOVE, CATEGORY_LOGS},
    {"/var/log/installer", REMOVE, CATEGORY_CLOUD},
    {"/var/log/**", REMOVE, CATEGORY_LOGS},
    {"/var/crash/**", REMOVE, CATEGORY_LOGS},
    {"/var/lib/systemd/coredump/**", REMOVE, CATEGORY_LOGS},

    {"/var/lib/apt/lists/**", REMOVE, CATEGORY_PACKAGES},
    {"/var/cache/apt/**", REMOVE, CATEGORY_PACKAGES},
    {"/var/cache/debconf/*-old", REMOVE, CATEGORY_PACKAGES},
    {"/var/cache/ldconfig/aux-cache", REMOVE, CATEGORY_PACKAGES},
    {"/var/cache/man/**", REMOVE, CATEGORY_PACKAGES},
    {"/var/lib/dpkg/*-old", REMOVE, CATEGORY_PACKAGES},
    {"/var/lib/dpkg/lock*", REMOVE, CATEGORY_PACKAGES},
    {"/var/lib/apt/daily_lock", REMOVE, CATEGORY_PACKAGES},
    {"/var/lib/apt/periodic/**", REMOVE, CATEGORY_PACKAGES},
    {"/var/lib/apt/extended_states.bak", REMOVE, CATEGORY_PACKAGES},

    /* Wherever a user's home is. */
    {"**/.*_history", REMOVE, CATEGORY_HISTORY},
    {"**/.local/share/fish/fish_history", REMOVE, CATEGORY_HISTORY},
    {"**/.local/share/nano/search_history", REMOVE, CATEGORY_HISTORY},
    {"**/.local/share/nano/filepos_history", REMOVE, CATEGORY_HISTORY},
    {"**/.local/state/*/*_history", REMOVE, CATEGORY_HISTORY},
    {"**/.lesshst", REMOVE, CATEGORY_HISTORY},
    {"**/.viminfo", REMOVE, CATEGORY_HISTORY},
    {"**/.wget-hsts", REMOVE, CATEGORY_HISTORY},
    {"/root/.cache/**", REMOVE, CATEGORY_HISTORY},
    {"/home/*/.cache/**", REMOVE, CATEGORY_HISTORY},
    {"/home/*/.sudo_as_admin_successful", REMOVE, CATEGORY_HISTORY},
    {"/var/lib/sudo/**", REMOVE, CATEGORY_HISTORY},

    {"/var/lib/cloud/**", REMOVE, CATEGORY_CLOUD},
    {"/etc/cloud/cloud.cfg.d/*-installer.cfg", REMOVE, CATEGORY_CLOUD},
    {"/autoinstall.yaml", REMOVE, CATEGORY_CLOUD},

    {"/var/lib/dhcp/**", REMOVE, CATEGORY_LEASES},
    {"/var/lib/dhcpcd/**", REMOVE, CATEGORY_LEASES},
    {"/var/lib/NetworkManager/*.lease", REMOVE, CATEGORY_LEASES},
    {"/var/lib/NetworkManager/timestamps", REMOVE, CATEGORY_LEASES},
    {"/var/lib/NetworkManager/secret_key", REMOVE, CATEGORY_LEASES},
    {"/etc/resolv.conf", EMPTY, CATEGORY_LEASES},
    {"/var/lib/systemd/timesync/clock", REMOVE, CATEGORY_LEASES},

    {"/tmp/**", REMOVE, CATEGORY_TEMPORARY},
    {"/var/tmp/**", REMOVE, CATEGORY_TEMPORARY},
    {"/run/**", REMOVE, CATEGORY_TEMPORARY},
    {"/proc/**", REMOVE, CATEGORY_TEMPORARY},
    {"/sys/**", REMOVE, CATEGORY_TEMPORARY},

    {"/etc/passwd-", REMOVE, CATEGORY_BACKUPS},
    {"/etc/group-", REMOVE, CATEGORY_BACKUPS},
    {"/etc/shadow-", REMOVE, CATEGORY_BACKUPS},
    {"/etc/gshadow-", REMOVE, CATEGORY_BACKUPS},
    {"/etc/subuid-", REMOVE, CATEGORY_BACKUPS},
    {"/etc/subgid-", REMOVE, CATEGORY_BACKUPS},
    {"/etc/.pwd.lock", REMOVE, CATEGORY_BACKUPS},
    {"/var/backups/**", REMOVE, CATEGORY_BACKUPS},

    {"/swap.img", REMOVE, CATEGORY_SWAP},
    {"/swapfile", REMOVE, CATEGORY_SWAP},
    {"/etc/fstab", DROP_SWAP, CATEGORY_SWAP},

    {"/etc/shadow", SET_DATES, CATEGORY_DATES},
};

struct sealer {
    const struct seal_rules *rules;
    const struct secret *secrets;
    size_t secret_count;
    struct filter filter;
    struct search *search; /* in the file that is being copied */
    uint64_t looked_at;    /* its inode */
    struct {
        uint64_t files, bytes;
    } removed[CATEGORY_COUNT];
};

/* --- Which rule --- */

/* Whether `path` is below the directory of a pattern like "/var/log/ **" (without the blank). */
static bool below(const char *pattern, const char *path)
{
    _cleanup_free_ char *directory = strndup(pattern, strlen(pattern) - 3);
    int depth = 0;

    if (directory == NULL)
        return true; /* rather too much than too little */
    for (const char *p = directory; *p != '\0'; p++)
        depth += *p == '/';
    /* As many parts of the path as the pattern has. */
    const char *end = path;
    for (int i = 0; i < depth && end != NULL; i++)
        end = strchr(end + 1, '/');
    if (end == NULL)
        return false;
    _cleanup_free_ char *head = strndup(path, (size_t)(end - path));
    return head == NULL || fnmatch(directory, head, FNM_PATHNAME) == 0;
}

/* Whether the end of `path`, of as many parts as it has, fits a pattern. */
static bool ends(const char *pattern, const char *path)
{
    const char *end = path + strlen(path);
    int parts = 1;

    for (const char *p = pattern; *p != '\0'; p++)
        parts += *p == '/';
    while (end > path && parts > 0)
        parts -= *--end == '/';
    return parts == 0 && fnmatch(pattern, end + 1, FNM_PATHNAME | FNM_PERIOD) == 0;
}

static bool is_deep(const char *pattern)
{
    const size_t length = strlen(pattern);

    return length > 3 && strcmp(pattern + length - 3, "/**") == 0;
}

static bool fits(const char *pattern, const char *path)
{
    return strncmp(pattern, "**/", 3) == 0 ? ends(pattern + 3, path)
           : is_deep(pattern)              ? below(pattern, path)
                                           : fnmatch(pattern, path, FNM_PATHNAME | FNM_PERIOD) == 0;
}

static bool any_fits(const struct texts *patterns, const char *path)
{
    for (size_t i = 0; patterns != NULL && i < patterns->count; i++)
        if (fits(patterns->items[i], path))
            return true;
    return false;
}

/* That of the path alone. */
static const struct rule *rule_of(const struct sealer *sealer, const char *path, bool is_directory)
{
    static const struct rule recipe = {"", REMOVE, CATEGORY_RECIPE};

    if (any_fits(sealer->rules->keep, path))
        return NULL;
    if (any_fits(sealer->rules->remove, path))
        return &recipe;
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        if (!fits(rules[i].pattern, path))
            continue;
        /* Of what is below a directory, logs and lists keep their directories. */
        if (is_directory && is_deep(rules[i].pattern) &&
            (rules[i].category == CATEGORY_LOGS || rules[i].category == CATEGORY_PACKAGES))
            return NULL;
        return &rules[i];
    }
    return NULL;
}

static bool keeps_anything(const struct sealer *sealer)
{
    return sealer->rules->keep != NULL && sealer->rules->keep->count > 0;
}

static const struct rule *find_rule(const struct sealer *sealer, const struct source_node *node)
{
    const struct rule *rule = rule_of(sealer, node->path, S_ISDIR(node->attributes.mode));

    /* Below a directory that is removed as a whole nobody asks, unless something there may stay. */
    if ((rule != NULL && rule->treatment == REMOVE) || !keeps_anything(sealer) ||
        any_fits(sealer->rules->keep, node->path))
        return rule;
    _cleanup_free_ char *above = strdup(node->path);
    for (char *slash; above != NULL && (slash = strrchr(above, '/')) != NULL && slash != above;) {
        *slash = '\0';
        const struct rule *whole = rule_of(sealer, above, true);
        if (whole != NULL && whole->treatment == REMOVE)
            return whole;
    }
    return rule;
}

/* Whether something that the recipe keeps could be below the directory. */
static bool leads_to_kept(const struct sealer *sealer, const char *directory)
{
    const struct texts *keep = sealer->rules->keep;
    int depth = 0;

    for (const char *p = directory; *p != '\0'; p++)
        depth += *p == '/';
    for (size_t i = 0; keep != NULL && i < keep->count; i++) {
        const char *end = keep->items[i];
        for (int j = 0; j < depth && end != NULL; j++)
            end = strchr(end + 1, '/');
        if (end == NULL)
            continue;
        _cleanup_free_ char *head = strndup(keep->items[i], (size_t)(end - keep->items[i]));
        if (head == NULL || fnmatch(head, directory, FNM_PATHNAME | FNM_PERIOD) == 0)
            return true;
    }
    return false;
}

/* --- The filter --- */

static void count(struct sealer *sealer, enum category category, uint64_t bytes)
{
    sealer->removed[category].files++;
    sealer->removed[category].bytes += bytes;
}

static int judge(void *arg, const struct source_node *node, enum filter_verdict *ret,
                 struct error *err)
{
    struct sealer *sealer = arg;
    const struct rule *rule = find_rule(sealer, node);
    const bool is_file = S_ISREG(node->attributes.mode);

    (void)err;
    *ret = FILTER_KEEP;
    if (rule == NULL)
        return 0;
    if (rule->treatment == REMOVE)
        *ret = S_ISDIR(node->attributes.mode) && leads_to_kept(sealer, node->path) ? FILTER_SIFT
                                                                                   : FILTER_DROP;
    else if (is_file)
        *ret = FILTER_REPLACE;
    return 0;
}

static void dropped(void *arg, const struct source_node *top, const struct source_node *node)
{
    struct sealer *sealer = arg;
    const struct rule *rule = find_rule(sealer, top);

    count(sealer, rule->category, node->size);
}

/* The day that is the third value of each line. */
static void set_dates(const struct sealer *sealer, const char *text, FILE *file)
{
    const unsigned day = sealer->rules->epoch / 86400;

    while (*text != '\0') {
        const char *end = strchrnul(text, '\n');
        const char *second = memchr(text, ':', (size_t)(end - text));
        const char *third =
            second != NULL ? memchr(second + 1, ':', (size_t)(end - second - 1)) : NULL;
        const char *fourth =
            third != NULL ? memchr(third + 1, ':', (size_t)(end - third - 1)) : NULL;
        /* 0 means that the password must be changed, and nothing that it need not. */
        if (fourth != NULL && isdigit((unsigned char)third[1]) && atoll(third + 1) > 0)
            fprintf(file, "%.*s:%u%.*s", (int)(third - text), text, day, (int)(end - fourth),
                    fourth);
        else
            fwrite(text, 1, (size_t)(end - text), file);
        if (*end == '\n')
            fputc('\n', file);
        text = *end == '\n' ? end + 1 : end;
    }
}

/* fstab without swap files that are removed. */
static void drop_swap(struct sealer *sealer, const char *text, FILE *file)
{
    while (*text != '\0') {
        const char *end = strchrnul(text, '\n');
        const size_t length = (size_t)(end - text) + (*end == '\n');
        _cleanup_free_ char *line = strndup(text, length);
        char source[4096], target[4096], type[64];
        if (line != NULL && sscanf(line, "%4095s %4095s %63s", source, target, type) == 3 &&
            strcmp(type, "swap") == 0 &&
            (strcmp(source, "/swap.img") == 0 || strcmp(source, "/swapfile") == 0))
            count(sealer, CATEGORY_SWAP, length);
        else
            fwrite(text, 1, length, file);
        text += length;
    }
}

static bool holds_secret(const struct sealer *sealer, const char *text, size_t length)
{
    for (size_t i = 0; i < sealer->secret_count; i++)
        if (memmem(text, length, sealer->secrets[i].bytes, sealer->secrets[i].length) != NULL)
            return true;
    return false;
}

static void drop_keys(struct sealer *sealer, const char *text, FILE *file)
{
    while (*text != '\0') {
        const char *end = strchrnul(text, '\n');
        const size_t length = (size_t)(end - text) + (*end == '\n');
        if (holds_secret(sealer, text, length))
            count(sealer, CATEGORY_KEYS, length);
        else
            fwrite(text, 1, length, file);
        text += length;
    }
}

static int replace(void *arg, const struct source_node *node, const char *text, size_t length,
                   char **ret, size_t *ret_length, struct error *err)
{
    struct sealer *sealer = arg;
    const struct rule *rule = find_rule(sealer, node);
    char *new = NULL;

    FILE *file = open_memstream(&new, ret_length);
    if (file == NULL)
        return error_oom(err);
    switch (rule->treatment) {
    case SET_DATES:
        set_dates(sealer, text, file);
        break;
    case DROP_SWAP:
        drop_swap(sealer, text, file);
        break;
    case DROP_KEYS:
        drop_keys(sealer, text, file);
        break;
    default:
        break;
    }
    if (fclose(file) != 0) {
        free(new);
        return error_oom(err);
    }
    if (rule->treatment == EMPTY && length > 0)
        count(sealer, rule->category, length);
    if (rule->treatment == SET_DATES && (*ret_length != length || memcmp(new, text, length) != 0))
        count(sealer, rule->category, 0);
    *ret = new;
    return 0;
}

/* A file that nobody thought of and that holds a key. */
static int look(void *arg, const struct source_node *node, uint64_t offset, const void *bytes,
                size_t length, struct error *err)
{
    struct sealer *sealer = arg;

    if (offset == 0 || sealer->looked_at != node->id) {
        search_restart(sealer->search);
        sealer->looked_at = node->id;
    }
    const struct secret *found = search_feed(sealer->search, bytes, length);
    if (found != NULL)
        return error_set(err, EUCLEAN,
                         "%s: holds %s; name it in the step's remove if it is not needed",
                         node->path, found->name);
    return 0;
}

/* --- All of it --- */

int sealer_new(const struct seal_rules *seal_rules, const struct secret *secrets,
               size_t secret_count, struct sealer **ret, struct error *err)
{
    _cleanup_(sealer_free_cleanup) struct sealer *sealer = calloc(1, sizeof(*sealer));

    if (sealer == NULL)
        return error_oom(err);
    sealer->rules = seal_rules;
    sealer->secrets = secrets;
    sealer->secret_count = secret_count;
    sealer->filter = (struct filter){
        .judge = judge, .replace = replace, .look = look, .dropped = dropped, .arg = sealer};
    int r = search_new(secrets, secret_count, &sealer->search, err);
    if (r == 0)
        *ret = TAKE_PTR(sealer);
    return r;
}

void sealer_free(struct sealer *sealer)
{
    if (sealer->search != NULL)
        search_free(sealer->search);
    free(sealer);
}

const struct filter *sealer_filter(const struct sealer *sealer)
{
    return &sealer->filter;
}

json_t *sealer_report(const struct sealer *sealer)
{
    json_t *report = json_array();

    for (size_t i = 0; i < CATEGORY_COUNT; i++) {
        if (sealer->removed[i].files == 0)
            continue;
        json_t *line = json_pack("{s:s, s:I, s:I}", "what", category_names[i], "files",
                                 (json_int_t)sealer->removed[i].files, "bytes",
                                 (json_int_t)sealer->removed[i].bytes);
        if (line == NULL || json_array_append_new(report, line) != 0) {
            json_decref(report);
            return NULL;
        }
    }
    return report;
}
