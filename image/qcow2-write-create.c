/* SPDX-License-Identifier: MIT */
/*
 * Making an overlay: header, refcount table, one refcount block, and an L1 table for the whole
 * disk. It is written under another name, and gets its own only when it is complete and on disk.
 *
 * The name of the backing file that the header has: if both are in one directory, the file's name
 * alone, so that the two can be moved together (QEMU takes it from the overlay's directory, as
 * image_resolve_name() does); else the absolute path. Either with symbolic links resolved.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "common/io.h"
#include "image/internal.h"
#include "image/qcow2-format.h"
#include "image/qcow2-writer.h"

enum {
    NEW_CLUSTER_BITS = 16,
    NEW_CLUSTER_SIZE = 1 << NEW_CLUSTER_BITS,
    NEW_L2_BITS = NEW_CLUSTER_BITS - 3,
    HEADER_LENGTH = 112,
    REFCOUNT_ORDER = 4,
    REFCOUNT_TABLE_CLUSTER = 1,
    REFCOUNT_BLOCK_CLUSTER = 2,
    L1_CLUSTER = 3,
};
#define EXTENSION_BACKING_FORMAT 0xe2792acau

/* --- Names --- */

/* The directory of a file that need not exist, without symbolic links. */
static int directory_of(const char *path, char **ret, struct error *err)
{
    _cleanup_free_ char *copy = strdup(path);

    if (copy == NULL)
        return error_oom(err);
    char *directory = realpath(dirname(copy), NULL);
    if (directory == NULL)
        return error_set_errno(err, errno, "%s: cannot resolve the directory", path);
    *ret = directory;
    return 0;
}

static int backing_name(const char *overlay_path, const char *base_path, char **ret,
                        struct error *err)
{
    _cleanup_free_ char *base = realpath(base_path, NULL), *here = NULL;
    int r;

    if (base == NULL)
        return error_set_errno(err, errno, "%s: cannot resolve the path", base_path);
    r = directory_of(overlay_path, &here, err);
    if (r < 0)
        return r;
    const char *slash = strrchr(base, '/');
    size_t length = (size_t)(slash - base);
    bool beside = length == 0 ? strcmp(here, "/") == 0
                              : strlen(here) == length && strncmp(here, base, length) == 0;
    /* QEMU would take what is before a colon for a protocol, unless a slash comes first. */
    char *name = strdup(beside && strchr(slash, ':') == NULL ? slash + 1 : base);
    if (name == NULL)
        return error_oom(err);
    if (strlen(name) > QCOW2_NAME_MAX) {
        free(name);
        return error_set(err, ENAMETOOLONG,
                         "%s: the path of the backing file has more than %d bytes", overlay_path,
                         QCOW2_NAME_MAX);
    }
    *ret = name;
    return 0;
}

/* --- Contents --- */

static void fill_header(uint8_t *cluster, const struct image *base, const char *backing)
{
    const char *format = image_info(base, 0)->format;
    size_t format_length = strlen(format);
    uint64_t l1_entries = div_round_up(image_size(base), (uint64_t)NEW_CLUSTER_SIZE << NEW_L2_BITS);
    uint8_t *extension = cluster + HEADER_LENGTH;
    /* The extensions end with eight bytes of zeros. */
    size_t name_offset = HEADER_LENGTH + 8 + ((format_length + 7) & ~(size_t)7) + 8;

    put_be32(cluster, QCOW2_MAGIC);
    put_be32(cluster + 4, 3);
    put_be64(cluster + 8, name_offset);
    put_be32(cluster + 16, (uint32_t)strlen(backing));
    put_be32(cluster + 20, NEW_CLUSTER_BITS);
    put_be64(cluster + 24, image_size(base));
    put_be32(cluster + 36, (uint32_t)l1_entries);
    put_be64(cluster + 40, (uint64_t)L1_CLUSTER << NEW_CLUSTER_BITS);
    put_be64(cluster + 48, (uint64_t)REFCOUNT_TABLE_CLUSTER << NEW_CLUSTER_BITS);
    put_be32(cluster + 56, 1);
    put_be32(cluster + 96, REFCOUNT_ORDER);
    put_be32(cluster + 100, HEADER_LENGTH);

    put_be32(extension, EXTENSION_BACKING_FORMAT);
    put_be32(extension + 4, (uint32_t)format_length);
    memcpy(extension + 8, format, format_length);
    memcpy(cluster + name_offset, backing, strlen(backing));
}

static int write_contents(int fd, const char *path, const struct image *base, const char *backing,
                          struct error *err)
{
    uint64_t l1_bytes =
        8 * div_round_up(image_size(base), (uint64_t)NEW_CLUSTER_SIZE << NEW_L2_BITS);
    uint64_t clusters = L1_CLUSTER + max_u64(div_round_up(l1_bytes, NEW_CLUSTER_SIZE), 1);
    _cleanup_free_ uint8_t *bytes = NULL;

    if (l1_bytes > QCOW2_L1_BYTES_MAX)
        return error_set(err, EFBIG, "%s: a disk of %" PRIu64 " bytes is too large for an overlay",
                         path, image_size(base));
    bytes = calloc((size_t)clusters, NEW_CLUSTER_SIZE);
    if (bytes == NULL)
        return error_oom(err);
    fill_header(bytes, base, backing);
    put_be64(bytes + REFCOUNT_TABLE_CLUSTER * NEW_CLUSTER_SIZE,
             (uint64_t)REFCOUNT_BLOCK_CLUSTER << NEW_CLUSTER_BITS);
    for (uint64_t i = 0; i < clusters; i++)
        bytes[REFCOUNT_BLOCK_CLUSTER * NEW_CLUSTER_SIZE + 2 * i + 1] = 1;
    return io_write_at(fd, path, bytes, (size_t)(clusters << NEW_CLUSTER_BITS), 0, err);
}

/* --- The file --- */

static int sync_directory(const char *path, struct error *err)
{
    _cleanup_free_ char *directory = NULL;
    _cleanup_close_ int fd = -1;
    int r = directory_of(path, &directory, err);

    if (r < 0)
        return r;
    fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", directory);
    /* EINVAL: a file system on which directories cannot be synchronized. */
    if (fsync(fd) < 0 && errno != EINVAL)
        return error_set_errno(err, errno, "%s: cannot synchronize", directory);
    return 0;
}

/* Gives the file its name, if there is none of that name. */
static int move_in_place(const char *temporary, const char *path, struct error *err)
{
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno == EINVAL || errno == ENOSYS) {
        /* A file system that does not know the flag. */
        if (link(temporary, path) == 0) {
            (void)unlink(temporary);
            return 0;
        }
    }
    return error_set_errno(err, errno, "%s: cannot create", path);
}

int qcow2_overlay_create(const char *path, const struct image *base, struct error *err)
{
    _cleanup_free_ char *backing = NULL, *temporary = NULL;
    _cleanup_close_ int fd = -1;
    int r;

    r = backing_name(path, image_path(base), &backing, err);
    if (r < 0)
        return r;
    if (asprintf(&temporary, "%s.new-%ld", path, (long)getpid()) < 0) {
        temporary = NULL;
        return error_oom(err);
    }
    fd = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot create", temporary);
    r = write_contents(fd, temporary, base, backing, err);
    if (r == 0 && fsync(fd) < 0)
        r = error_set_errno(err, errno, "%s: cannot synchronize", temporary);
    if (r == 0)
        r = io_close_written(take_fd(&fd), temporary, err);
    if (r == 0)
        r = move_in_place(temporary, path, err);
    if (r < 0) {
        (void)unlink(temporary);
        return r;
    }
    return sync_directory(path, err);
}
