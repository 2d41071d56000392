/* SPDX-License-Identifier: MIT */
#include "cli/file_text.h"

#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/text.h"
#include "common/units.h"

/* --- Text --- */

static const struct type {
    mode_t type;
    char letter;
    const char *name;
} types[] = {
    {S_IFREG, '-', "regular file"},  {S_IFDIR, 'd', "directory"},
    {S_IFLNK, 'l', "symbolic link"}, {S_IFCHR, 'c', "character device"},
    {S_IFBLK, 'b', "block device"},  {S_IFIFO, 'p', "fifo"},
    {S_IFSOCK, 's', "socket"},       {0, '?', "unknown"},
};

static const struct type *find_type(mode_t mode)
{
    const struct type *type = types;

    while (type->type != 0 && type->type != (mode & S_IFMT))
        type++;
    return type;
}

const char *file_type_name(mode_t mode)
{
    return find_type(mode)->name;
}

void file_mode_text(mode_t mode, char text[static FILE_MODE_LENGTH])
{
    static const char letters[] = "rwxrwxrwx";

    text[0] = find_type(mode)->letter;
    for (int i = 0; i < 9; i++)
        text[1 + i] = (mode & (0400U >> i)) != 0 ? letters[i] : '-';
    if ((mode & S_ISUID) != 0)
        text[3] = (mode & S_IXUSR) != 0 ? 's' : 'S';
    if ((mode & S_ISGID) != 0)
        text[6] = (mode & S_IXGRP) != 0 ? 's' : 'S';
    if ((mode & S_ISVTX) != 0)
        text[9] = (mode & S_IXOTH) != 0 ? 't' : 'T';
    text[10] = '\0';
}

void file_time_text(const struct timespec *time, bool precise, char text[static FILE_TIME_LENGTH])
{
    char zone[8], seconds[32];
    struct tm tm;

    if (localtime_r(&time->tv_sec, &tm) == NULL) {
        snprintf(text, FILE_TIME_LENGTH, "%" PRId64, (int64_t)time->tv_sec);
    } else if (!precise) {
        strftime(text, FILE_TIME_LENGTH, "%F %H:%M", &tm);
    } else {
        strftime(seconds, sizeof(seconds), "%F %T", &tm);
        strftime(zone, sizeof(zone), "%z", &tm);
        snprintf(text, FILE_TIME_LENGTH, "%s.%09ld %s", seconds, (long)time->tv_nsec, zone);
    }
}

void file_print_name(const char *name)
{
    static int terminal = -1;
    _cleanup_free_ char *printable = NULL;

    if (terminal < 0)
        terminal = isatty(STDOUT_FILENO);
    if (terminal != 0)
        printable = text_printable(name);
    fputs(terminal != 0 ? (printable != NULL ? printable : "?") : name, stdout);
}

/* --- JSON --- */

void file_json_begin(struct file_json *out)
{
    out->any = false;
    fputs("{\"entries\": [", stdout);
}

void file_json_end(struct file_json *out)
{
    puts(out->any ? "\n]}" : "]}");
}

static int put_time(json_t *object, const char *key, const char *nanoseconds_key,
                    const struct timespec *time, struct error *err)
{
    int r = json_put(object, key, json_integer(time->tv_sec), err);

    if (r == 0)
        r = json_put(object, nanoseconds_key, json_integer(time->tv_nsec), err);
    return r;
}

static int put_numbers(json_t *object, const struct file_info *info, struct error *err)
{
    const struct {
        const char *key;
        uint64_t value;
    } numbers[] = {
        {"inode", info->inode},
        {"mode", info->mode},
        {"uid", info->uid},
        {"gid", info->gid},
        {"links", info->links},
        {"size", info->size},
        {"allocated", info->allocated},
    };
    const bool device = S_ISBLK(info->mode) || S_ISCHR(info->mode);
    int r = 0;

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]) && r == 0; i++)
        r = json_put(object, numbers[i].key, json_integer((json_int_t)numbers[i].value), err);
    if (r == 0 && device)
        r = json_put(object, "major", json_integer(info->device_major), err);
    if (r == 0 && device)
        r = json_put(object, "minor", json_integer(info->device_minor), err);
    return r;
}

static int fill(json_t *object, const char *image, const char *path, const struct file_info *info,
                const char *target, struct error *err)
{
    char permissions[8];

    snprintf(permissions, sizeof(permissions), "%04o", (unsigned)info->mode & 07777);
    int r = json_put_text(object, "image", "image_hex", image, err);
    if (r == 0)
        r = json_put_text(object, "path", "path_hex", path, err);
    if (r == 0)
        r = json_put(object, "type", json_string(file_type_name(info->mode)), err);
    if (r == 0)
        r = json_put(object, "permissions", json_string(permissions), err);
    if (r == 0)
        r = put_numbers(object, info, err);
    if (r == 0)
        r = put_time(object, "mtime", "mtime_nsec", &info->modified, err);
    if (r == 0)
        r = put_time(object, "atime", "atime_nsec", &info->accessed, err);
    if (r == 0)
        r = put_time(object, "ctime", "ctime_nsec", &info->changed, err);
    if (r == 0 && info->created.tv_sec != 0)
        r = put_time(object, "crtime", "crtime_nsec", &info->created, err);
    if (r == 0 && target != NULL)
        r = json_put_text(object, "target", "target_hex", target, err);
    return r;
}

int file_json_print(struct file_json *out, const char *image, const char *path,
                    const struct file_info *info, const char *target, struct error *err)
{
    _cleanup_json_ json_t *object = json_object();

    if (object == NULL)
        return error_oom(err);
    int r = fill(object, image, path, info, target, err);
    if (r < 0)
        return r;
    fputs(out->any ? ",\n " : "\n ", stdout);
    out->any = true;
    /* That it could not be written, main tells. */
    (void)json_dumpf(object, stdout, JSON_COMPACT | json_stdout_flags());
    return 0;
}
