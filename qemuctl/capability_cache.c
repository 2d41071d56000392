/* SPDX-License-Identifier: MIT */
#include "qemuctl/capability_cache.h"

#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "qemuctl/program.h"

/*
 * One file for each program, named by a hash of its path. It tells the whole path and what stat()
 * said of the program; if any of that is not as it is now, or anything else in the file is not as
 * we write it, the program is asked again. So a file that is damaged or out of date costs time
 * only.
 *
 * What another user could have written is not read: directory and file must be ours, and writable
 * by nobody else.
 */

#define FORMAT_VERSION 1
#define FILE_MAX 8192

struct capability_cache {
    char *program; /* absolute, without symbolic links */
    struct stat stat;
    int directory;
    char name[32];
};

void capability_cache_close(struct capability_cache *cache)
{
    cleanup_close(&cache->directory);
    free(cache->program);
    free(cache);
}

/* --- Finding the program --- */

/* Owned, or NULL. */
static char *find_program(const char *program)
{
    _cleanup_free_ char *path = NULL;

    return program_find(program, &path, NULL) == 0 ? realpath(path, NULL) : NULL;
}

/* Whether it is a program itself, and not a script that runs one. */
static bool is_elf(const char *path, struct stat *ret_stat)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    char magic[4];

    return fd >= 0 && fstat(fd, ret_stat) == 0 && S_ISREG(ret_stat->st_mode) &&
           read(fd, magic, sizeof(magic)) == sizeof(magic) && memcmp(magic, "\177ELF", 4) == 0;
}

/* --- The directory --- */

static bool is_ours_alone(const struct stat *st)
{
    return st->st_uid == geteuid() && (st->st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

/* Opens the cache's directory, which is made if it is missing. Returns -1 if it cannot be used. */
static int open_directory(void)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char parent[PATH_MAX], path[PATH_MAX + sizeof("/qverity")];
    struct stat st;
    int n;

    if (cache != NULL && cache[0] == '/')
        n = snprintf(parent, sizeof(parent), "%s", cache);
    else if (home != NULL && home[0] == '/')
        n = snprintf(parent, sizeof(parent), "%s/.cache", home);
    else
        return -1;
    if (n < 0 || (size_t)n >= sizeof(parent))
        return -1;
    (void)mkdir(parent, 0700);
    snprintf(path, sizeof(path), "%s/qverity", parent);
    (void)mkdir(path, 0700);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0 && (fstat(fd, &st) < 0 || !is_ours_alone(&st)))
        cleanup_close(&fd);
    return fd;
}

/* FNV-1a: names need not be hard to guess, as the file tells the path. */
static uint64_t hash_path(const char *path)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (; *path != '\0'; path++)
        hash = (hash ^ (unsigned char)*path) * UINT64_C(0x100000001b3);
    return hash;
}

void capability_cache_open(const char *program, struct capability_cache **ret)
{
    _cleanup_(capability_cache_close_cleanup) struct capability_cache *cache =
        calloc(1, sizeof(*cache));

    if (cache == NULL)
        return;
    cache->directory = -1;
    cache->program = find_program(program);
    if (cache->program == NULL || !is_elf(cache->program, &cache->stat))
        return;
    cache->directory = open_directory();
    if (cache->directory < 0)
        return;
    snprintf(cache->name, sizeof(cache->name), "qemu-%016llx.json",
             (unsigned long long)hash_path(cache->program));
    *ret = TAKE_PTR(cache);
}

/* --- The file --- */

static json_int_t nanoseconds(const struct timespec *time)
{
    return (json_int_t)time->tv_sec * 1000000000 + time->tv_nsec;
}

/* What the file must say of the program. New reference, or NULL. */
static json_t *describe_program(const struct capability_cache *cache)
{
    return json_pack("{s:i, s:o, s:I, s:I, s:I, s:I, s:I}", "format", FORMAT_VERSION, "path",
                     json_text(cache->program), "device", (json_int_t)cache->stat.st_dev, "inode",
                     (json_int_t)cache->stat.st_ino, "size", (json_int_t)cache->stat.st_size,
                     "mtime", nanoseconds(&cache->stat.st_mtim), "ctime",
                     nanoseconds(&cache->stat.st_ctim));
}

static json_t *read_file(const struct capability_cache *cache)
{
    _cleanup_close_ int fd = -1;
    char text[FILE_MAX];
    struct stat st;

    fd = openat(cache->directory, cache->name,
                O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || !is_ours_alone(&st))
        return NULL;
    ssize_t n = io_read_some_at(fd, cache->name, text, sizeof(text), 0, NULL);
    return n <= 0 || n == sizeof(text) ? NULL
                                       : json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, NULL);
}

bool capability_cache_load(const struct capability_cache *cache, struct qemu_capabilities *ret)
{
    _cleanup_json_ json_t *file = read_file(cache);
    _cleanup_json_ json_t *expected = describe_program(cache);
    int major, minor, micro, sev, snp, private;

    if (file == NULL || !json_equal(json_object_get(file, "program"), expected) ||
        json_unpack_ex(file, NULL, JSON_STRICT, "{s:o, s:[iii!], s:b, s:b, s:b}", "program",
                       &(json_t *){NULL}, "version", &major, &minor, &micro, "sev-guest", &sev,
                       "sev-snp-guest", &snp, "memory-backend-memfd-private", &private) != 0 ||
        major < 0 || minor < 0 || micro < 0)
        return false;
    *ret = (struct qemu_capabilities){
        .major = (unsigned)major,
        .minor = (unsigned)minor,
        .micro = (unsigned)micro,
        .sev_guest = sev,
        .sev_snp_guest = snp,
        .memfd_private = private,
    };
    return true;
}

static int write_file(const struct capability_cache *cache, const char *text, struct error *err)
{
    char temporary[sizeof(cache->name) + 32];
    _cleanup_close_ int fd = -1;

    snprintf(temporary, sizeof(temporary), ".%s.%d", cache->name, (int)getpid());
    (void)unlinkat(cache->directory, temporary, 0);
    fd = openat(cache->directory, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set_errno(err, errno, "%s", temporary);
    int r = io_write(fd, temporary, text, strlen(text), err);
    if (r == 0)
        r = io_close_written(take_fd(&fd), temporary, err);
    /* Not synced: after a loss of power there may be an empty file, which is not believed. */
    if (r == 0 && renameat(cache->directory, temporary, cache->directory, cache->name) < 0)
        r = error_set_errno(err, errno, "%s", cache->name);
    if (r < 0)
        (void)unlinkat(cache->directory, temporary, 0);
    return r;
}

void capability_cache_store(const struct capability_cache *cache,
                            const struct qemu_capabilities *capabilities)
{
    const struct qemu_capabilities *c = capabilities;
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_json_ json_t *file = NULL;
    _cleanup_free_ char *text = NULL;
    struct stat now;

    /* Replaced while it was asked: nobody knows which of the two has answered. */
    if (stat(cache->program, &now) < 0 || now.st_ino != cache->stat.st_ino ||
        nanoseconds(&now.st_ctim) != nanoseconds(&cache->stat.st_ctim))
        return;
    file = json_pack("{s:o, s:[iii], s:b, s:b, s:b}", "program", describe_program(cache), "version",
                     (int)c->major, (int)c->minor, (int)c->micro, "sev-guest", (int)c->sev_guest,
                     "sev-snp-guest", (int)c->sev_snp_guest, "memory-backend-memfd-private",
                     (int)c->memfd_private);
    if (file != NULL)
        text = json_dumps(file, JSON_INDENT(2));
    if (text != NULL && write_file(cache, text, &err) < 0)
        log_debug("what QEMU can do is not kept: %s", error_message(&err));
}
