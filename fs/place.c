/* SPDX-License-Identifier: MIT */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "fs/internal.h"

/*
 * Read-ahead of the mount, KiB. Several of the largest requests, so that several threads work for
 * one sequential reader.
 */
#define READAHEAD_KIB 4096

#define FUSE_TYPE "fuse.qverity"

/* --- The directory --- */

/* mountinfo writes blank, tab, newline and backslash as \ooo. Resolves them in place. */
static void unescape(char *text)
{
    char *to = text;

    for (const char *from = text; *from != '\0'; to++) {
        unsigned value;
        if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' &&
            from[2] <= '7' && from[3] >= '0' && from[3] <= '7') {
            value = (unsigned)((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0'));
            *to = (char)value;
            from += 4;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
}

/*
 * What is mounted topmost on `path`: its type and source, owned, or NULL where nothing is. After
 * proc(5): "36 35 98:0 /root /mount-point options optional… - type source super-options".
 */
static int find_mount(const char *path, char **ret_type, char **ret_source, struct error *err)
{
    _cleanup_fclose_ FILE *file = fopen("/proc/self/mountinfo", "re");
    _cleanup_free_ char *line = NULL, *type = NULL, *source = NULL;
    size_t room = 0;

    if (file == NULL)
        return error_set_errno(err, errno, "/proc/self/mountinfo: cannot open");
    while (getline(&line, &room, file) >= 0) {
        _cleanup_free_ char *point = NULL, *t = NULL, *s = NULL;
        const char *rest = strstr(line, " - ");

        if (rest == NULL || sscanf(line, "%*s %*s %*s %*s %ms", &point) != 1 ||
            sscanf(rest, " - %ms %ms", &t, &s) != 2)
            continue;
        unescape(point);
        if (strcmp(point, path) != 0)
            continue;
        /* A later line is mounted above an earlier one. */
        free(type);
        free(source);
        type = TAKE_PTR(t);
        source = TAKE_PTR(s);
        unescape(source);
    }
    *ret_type = TAKE_PTR(type);
    *ret_source = TAKE_PTR(source);
    return 0;
}

static int check_unmounted(const char *path, struct error *err)
{
    _cleanup_free_ char *type = NULL, *source = NULL;
    struct statvfs st;

    int r = find_mount(path, &type, &source, err);
    if (r < 0)
        return r;
    if (type == NULL || strncmp(type, "fuse", 4) != 0)
        return 0;
    /* Attributes may be cached even of a dead mount; these are not. */
    if (statvfs(path, &st) < 0 && (errno == ENOTCONN || errno == ECONNABORTED))
        return error_set(err, EBUSY,
                         "%s: a dead %s mount of '%s' is here; 'fusermount3 -u %s' removes it",
                         path, type, source, path);
    if (strcmp(type, FUSE_TYPE) == 0)
        return error_set(err, EBUSY, "%s: '%s' is mounted here already", path, source);
    return 0;
}

static int check_empty(const char *path, struct error *err)
{
    DIR *dir = opendir(path);
    const struct dirent *entry;

    if (dir == NULL)
        return error_set_errno(err, errno, "%s: cannot open the directory", path);
    do {
        errno = 0;
        entry = readdir(dir);
    } while (entry != NULL &&
             (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0));
    int r = 0;
    if (entry != NULL)
        r = error_set(err, ENOTEMPTY, "%s: the directory is not empty", path);
    else if (errno != 0)
        r = error_set_errno(err, errno, "%s: cannot read the directory", path);
    closedir(dir);
    return r;
}

static int check_fuse(struct error *err)
{
    _cleanup_close_ int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

    if (fd >= 0)
        return 0;
    if (errno == ENOENT || errno == ENXIO || errno == ENODEV)
        return error_set(err, errno,
                         "/dev/fuse: there is no FUSE here; load it with 'modprobe fuse', or give "
                         "this container the device");
    return error_set_errno(err, errno, "/dev/fuse: cannot open for reading and writing");
}

/* realpath() of the directory. Its last component may be a dead mount, whose lstat() fails. */
static int resolve(const char *directory, char **ret, struct error *err)
{
    _cleanup_free_ char *copy = NULL, *parent = NULL;

    *ret = realpath(directory, NULL);
    if (*ret != NULL)
        return 0;
    if (errno != ENOTCONN && errno != ECONNABORTED)
        return error_set_errno(err, errno, "%s: cannot mount there", directory);
    copy = strdup(directory);
    if (copy == NULL)
        return error_oom(err);
    for (size_t n = strlen(copy); n > 1 && copy[n - 1] == '/'; n--)
        copy[n - 1] = '\0';
    char *slash = strrchr(copy, '/');
    const char *name = slash != NULL ? slash + 1 : copy;
    if (slash != NULL)
        *slash = '\0';
    parent = realpath(slash == NULL ? "." : slash == copy ? "/" : copy, NULL);
    if (parent == NULL)
        return error_set_errno(err, errno, "%s: cannot mount there", directory);
    if (asprintf(ret, "%s/%s", strcmp(parent, "/") == 0 ? "" : parent, name) < 0) {
        *ret = NULL;
        return error_oom(err);
    }
    return 0;
}

int fs_check_directory(const char *directory, char **ret, struct error *err)
{
    _cleanup_free_ char *path = NULL;
    struct stat st;

    int r = resolve(directory, &path, err);
    if (r < 0)
        return r;
    r = check_unmounted(path, err);
    if (r < 0)
        return r;
    if (stat(path, &st) < 0)
        return error_set_errno(err, errno, "%s: cannot mount there", path);
    if (!S_ISDIR(st.st_mode))
        return error_set(err, ENOTDIR, "%s: not a directory", path);
    r = check_empty(path, err);
    if (r < 0)
        return r;
    r = check_fuse(err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(path);
    return 0;
}

/* --- Read-ahead --- */

void fs_raise_readahead(dev_t device)
{
    char path[64], value[16];
    _cleanup_close_ int fd = -1;

    snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", major(device),
             minor(device));
    int n = snprintf(value, sizeof(value), "%d\n", READAHEAD_KIB);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, value, (size_t)n) != n)
        log_debug("%s: cannot raise the read-ahead: %s", path, strerror(errno));
}
