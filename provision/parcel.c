/* SPDX-License-Identifier: MIT */
#include "provision/parcel.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define CHUNK (256 * 1024)
#define DEPTH_MAX 64

#define OWNERS_MAX 256

struct parcel {
    struct build *build;
    const char *owners[OWNERS_MAX]; /* that are to be there; a few, each once */
    size_t owner_count;
    struct archive *archive;
    int fd;
    char *chunk;
};

static int fail(struct parcel *out, const char *path, struct error *err)
{
    const int code = archive_errno(out->archive);
    const char *text = archive_error_string(out->archive);

    return error_set(err, code > 0 ? code : EIO, "%s: cannot put it into an archive: %s", path,
                     text != NULL ? text : "unknown error");
}

int parcel_new(struct build *build, struct parcel **ret, struct error *err)
{
    _cleanup_(parcel_free_cleanup) struct parcel *out = calloc(1, sizeof(*out));

    if (out == NULL)
        return error_oom(err);
    out->fd = -1;
    out->build = build;
    out->chunk = malloc(CHUNK);
    out->archive = archive_write_new();
    if (out->chunk == NULL || out->archive == NULL)
        return error_oom(err);
    out->fd = open(build->directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (out->fd < 0)
        return error_set_errno(err, errno, "%s: cannot make a temporary file", build->directory);
    if (archive_write_set_format_gnutar(out->archive) != ARCHIVE_OK ||
        archive_write_open_fd(out->archive, out->fd) != ARCHIVE_OK)
        return fail(out, "the archive", err);
    *ret = TAKE_PTR(out);
    return 0;
}

void parcel_free(struct parcel *out)
{
    if (out->archive != NULL)
        archive_write_free(out->archive);
    cleanup_close(&out->fd);
    free(out->chunk);
    free(out);
}

/* Names and numbers alike: tar takes names first, and numbers for what the system does not know. */
static int set_owner(struct archive_entry *entry, const char *owner, struct error *err)
{
    _cleanup_free_ char *user = strdup(owner != NULL ? owner : "0:0");

    if (user == NULL)
        return error_oom(err);
    char *group = strchr(user, ':');
    if (group != NULL)
        *group++ = '\0';
    else
        group = user;
    archive_entry_set_uid(entry, 0);
    archive_entry_set_gid(entry, 0);
    if (user[strspn(user, "0123456789")] == '\0')
        archive_entry_set_uid(entry, atoll(user));
    else
        archive_entry_set_uname(entry, user);
    if (group[strspn(group, "0123456789")] == '\0')
        archive_entry_set_gid(entry, atoll(group));
    else
        archive_entry_set_gname(entry, group);
    return 0;
}

static int remember_owner(struct parcel *out, const char *owner, struct error *err)
{
    if (owner == NULL)
        return 0;
    for (size_t i = 0; i < out->owner_count; i++)
        if (strcmp(out->owners[i], owner) == 0)
            return 0;
    if (out->owner_count == OWNERS_MAX)
        return error_set(err, E2BIG, "more than %d different owners", OWNERS_MAX);
    out->owners[out->owner_count++] = owner;
    return 0;
}

/* tar makes files of a name that the system does not know root's. */
static int check_owners(struct parcel *out, struct error *err)
{
    static const char script[] = "known() {\n"
                                 "    case $2 in *[!0-9]*) ;; *) return 0 ;; esac\n"
                                 "    getent \"$1\" \"$2\" >/dev/null 2>&1 && return 0\n"
                                 "    while IFS=: read -r name rest; do [ \"$name\" != \"$2\" ] || "
                                 "return 0; done <\"/etc/$1\"\n"
                                 "    return 1\n"
                                 "}\n"
                                 "for owner; do\n"
                                 "    known passwd \"${owner%:*}\" || echo \"user '${owner%:*}'\"\n"
                                 "    known group \"${owner#*:}\" || echo \"group '${owner#*:}'\"\n"
                                 "done\n";
    char *argv[OWNERS_MAX + 5] = {(char *)"sh", (char *)"-c", (char *)script, (char *)"sh"};
    _cleanup_free_ char *missing = NULL;

    if (out->owner_count == 0)
        return 0;
    for (size_t i = 0; i < out->owner_count; i++)
        argv[4 + i] = (char *)out->owners[i];
    int r = place_capture(out->build, argv, &missing, err);
    if (r < 0)
        return r;
    missing[strcspn(missing, "\n")] = '\0';
    if (missing[0] != '\0')
        return error_set(err, ENOENT, "owner: there is no %s in the system", missing);
    return 0;
}

/* Writes an entry's header; its times are the recipe's. */
static int begin(struct parcel *out, const char *to, mode_t type, int64_t mode,
                 const struct parcel_attributes *attributes, const char *target, uint64_t size,
                 struct error *err)
{
    struct archive_entry *entry = archive_entry_new();

    if (entry == NULL)
        return error_oom(err);
    archive_entry_set_pathname(entry, to + 1);
    archive_entry_set_filetype(entry, type);
    archive_entry_set_perm(entry, (mode_t)mode);
    archive_entry_set_size(entry, (int64_t)size);
    archive_entry_set_mtime(entry, (time_t)out->build->recipe->epoch, 0);
    if (target != NULL)
        archive_entry_set_symlink(entry, target);
    int r = set_owner(entry, attributes->owner, err);
    if (r == 0)
        r = remember_owner(out, attributes->owner, err);
    if (r == 0 && archive_write_header(out->archive, entry) != ARCHIVE_OK)
        r = fail(out, to, err);
    archive_entry_free(entry);
    return r;
}

static int put(struct parcel *out, const char *path, const void *bytes, size_t length,
               struct error *err)
{
    if (length > 0 && archive_write_data(out->archive, bytes, length) != (la_ssize_t)length)
        return fail(out, path, err);
    return 0;
}

int parcel_text(struct parcel *out, const void *bytes, size_t length, const char *to,
                const struct parcel_attributes *attributes, struct error *err)
{
    int r = begin(out, to, AE_IFREG, attributes->mode >= 0 ? attributes->mode : 0644, attributes,
                  NULL, length, err);

    return r < 0 ? r : put(out, to, bytes, length, err);
}

int parcel_link(struct parcel *out, const char *target, const char *to,
                const struct parcel_attributes *attributes, struct error *err)
{
    return begin(out, to, AE_IFLNK, 0777, attributes, target, 0, err);
}

static int add_file(struct parcel *out, int fd, const struct stat *st, const char *from,
                    const char *to, const struct parcel_attributes *attributes, struct error *err)
{
    const int64_t mode = attributes->mode >= 0  ? attributes->mode
                         : (st->st_mode & 0111) ? 0755
                                                : 0644;
    uint64_t left = (uint64_t)st->st_size;

    int r = begin(out, to, AE_IFREG, mode, attributes, NULL, left, err);
    while (r == 0 && left > 0) {
        ssize_t n = read(fd, out->chunk, left < CHUNK ? left : CHUNK);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(err, errno, "%s: cannot read", from);
        if (n == 0)
            return error_set(err, EIO, "%s: became shorter while it was read", from);
        r = put(out, from, out->chunk, (size_t)n, err);
        left -= (uint64_t)n;
    }
    return r;
}

static int add_path(struct parcel *out, int directory, const char *name, const char *from,
                    const char *to, const struct parcel_attributes *attributes, unsigned depth,
                    struct error *err);

static int is_entry(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

static int compare_names(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* A directory and, sorted, what is in it. Its mode is of no concern to the files'. */
static int add_directory(struct parcel *out, int fd, const char *from, const char *to,
                         const struct parcel_attributes *attributes, unsigned depth,
                         struct error *err)
{
    struct dirent **entries;

    if (depth > DEPTH_MAX)
        return error_set(err, ELOOP, "%s: directories are nested too deep", from);
    int r = begin(out, to, AE_IFDIR, 0755, attributes, NULL, 0, err);
    if (r < 0)
        return r;
    int count = scandirat(fd, ".", &entries, is_entry, compare_names);
    if (count < 0)
        return error_set_errno(err, errno, "%s: cannot read the directory", from);
    for (int i = 0; i < count; i++) {
        _cleanup_free_ char *below = NULL, *there = NULL;
        const char *name = entries[i]->d_name;
        if (r == 0 &&
            (asprintf(&below, "%s/%s", from, name) < 0 || asprintf(&there, "%s/%s", to, name) < 0))
            r = error_oom(err);
        if (r == 0)
            r = add_path(out, fd, name, below, there, attributes, depth + 1, err);
        free(entries[i]);
    }
    free(entries);
    return r;
}

static int add_path(struct parcel *out, int directory, const char *name, const char *from,
                    const char *to, const struct parcel_attributes *attributes, unsigned depth,
                    struct error *err)
{
    _cleanup_close_ int fd =
        openat(directory, name,
               O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (depth > 0 ? O_NOFOLLOW : 0));
    struct stat st;

    if (fd < 0 && errno == ELOOP && depth > 0) {
        char target[4097];
        ssize_t n = readlinkat(directory, name, target, sizeof(target) - 1);
        if (n < 0)
            return error_set_errno(err, errno, "%s: cannot read the link", from);
        target[n] = '\0';
        return parcel_link(out, target, to, attributes, err);
    }
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "%s: cannot open", from);
    if (S_ISDIR(st.st_mode))
        return add_directory(out, fd, from, to, attributes, depth, err);
    if (!S_ISREG(st.st_mode))
        return error_set(err, EINVAL, "%s: neither a file, a directory nor a link", from);
    return add_file(out, fd, &st, from, to, attributes, err);
}

int parcel_path(struct parcel *out, const char *from, const char *to,
                const struct parcel_attributes *attributes, struct error *err)
{
    return add_path(out, AT_FDCWD, from, from, to, attributes, 0, err);
}

int parcel_send(struct parcel *out, struct error *err)
{
    /* What is there keeps its owners and modes, and a link to a directory stays one. */
    char *const argv[] = {(char *)"tar",
                          (char *)"-x",
                          (char *)"-p",
                          (char *)"-C",
                          (char *)"/",
                          (char *)"--no-overwrite-dir",
                          (char *)"--keep-directory-symlink",
                          (char *)"-f",
                          (char *)"-",
                          NULL};
    const struct place_command command = {.argv = argv, .input = out->fd, .output = -1};

    if (archive_write_close(out->archive) != ARCHIVE_OK)
        return fail(out, "the archive", err);
    if (lseek(out->fd, 0, SEEK_SET) < 0)
        return error_set_errno(err, errno, "lseek");
    int r = check_owners(out, err);
    return r < 0 ? r : place_run(out->build, &command, err);
}
