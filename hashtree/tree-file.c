/* SPDX-License-Identifier: MIT */
/*
 * Nodes lie in the file where they lie in the hash device, behind a head of two header slots; a
 * node that is not kept is a hole. So a node's place needs no index, an update writes just the
 * nodes that changed, and the file takes the space of what it holds.
 *
 * A new file is written beside the old one and renamed over it. An update writes nodes into the
 * file as it is, then the header into the slot that is not in use. Readers in between, and after a
 * crash, find nodes that do not have the digest their parent holds, and do without them. What has
 * no parent, the header, has a checksum.
 */
#include "hashtree/tree-header.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "common/io.h"
#include "hashtree/hasher.h"

#define NODES_OFFSET (2 * SLOT_SIZE)
#define GRANULES_PAGE 4096 /* bytes: the lists of both slots take turns */
#define BELOW_MAX 64       /* tree files under one another, as images in a chain */
#define FILE_MODE 0644

struct tree_file {
    int fd;
    char *path;
    struct tree_header header;
    struct verity_geometry geometry;
    struct tree_file *below;
};

struct tree_writer {
    int fd;
    char *path;
    char
        *temporary; /* NULL while it has no name, once it has the right one, or updating in place */
    bool nameless;  /* made by O_TMPFILE, and not named yet */
    struct verity_geometry geometry;
    bool lean;
    uint64_t generation;
};

/* --- Reading --- */

static int read_header(int fd, const char *path, struct tree_header *ret, struct error *err)
{
    _cleanup_free_ uint8_t *slot = malloc(SLOT_SIZE);
    const char *why = NULL;
    bool found = false;

    if (slot == NULL)
        return error_oom(err);
    for (unsigned i = 0; i < 2; i++) {
        struct tree_header header;
        ssize_t n = io_read_some_at(fd, path, slot, SLOT_SIZE, (uint64_t)i * SLOT_SIZE, err);
        if (n < 0)
            return (int)n;
        memset(slot + n, 0, SLOT_SIZE - (size_t)n);
        const char *slot_why = tree_header_decode(slot, &header);
        if (why == NULL)
            why = slot_why;
        if (slot_why == NULL && (!found || header.generation > ret->generation)) {
            *ret = header;
            found = true;
        }
    }
    return found ? 0 : error_set(err, EINVAL, "%s: %s", path, why);
}

/* Who can write a header chooses the root hash that is printed: that must be nobody but the user
 * whose root hash it is, or root. (An ACL's largest permissions stand where the group's do.) */
static int check_owner(const char *path, const struct stat *st, struct error *err)
{
    if (st->st_uid != geteuid() && st->st_uid != 0)
        return error_set(err, EPERM, "%s: it belongs to user %u, so it is not believed", path,
                         (unsigned)st->st_uid);
    if ((st->st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return error_set(err, EPERM,
                         "%s: others than its owner can write to it (mode %04o), so it is not "
                         "believed",
                         path, (unsigned)st->st_mode & 07777);
    return 0;
}

/* A tree file's base is named relative to the directory that it is in. */
static char *path_below(const char *path, const char *base)
{
    const char *slash = strrchr(path, '/');
    char *joined;

    if (base[0] == '/' || slash == NULL)
        return strdup(base);
    if (asprintf(&joined, "%.*s%s", (int)(slash - path + 1), path, base) < 0)
        return NULL;
    return joined;
}

static int open_at_depth(const char *path, const char *digest, unsigned depth,
                         struct tree_file **ret, struct error *err)
{
    _cleanup_tree_file_ struct tree_file *file = calloc(1, sizeof(*file));
    struct stat st;

    if (file == NULL)
        return error_oom(err);
    file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (file->fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", path);
    if (fstat(file->fd, &st) < 0)
        return error_set_errno(err, errno, "%s: cannot stat", path);
    if (!S_ISREG(st.st_mode))
        return error_set(err, EINVAL, "%s: not a regular file", path);
    /* Of the files below only nodes are taken, which prove themselves. */
    int r = depth == 0 ? check_owner(path, &st, err) : 0;
    if (r < 0)
        return r;
    file->path = strdup(path);
    if (file->path == NULL)
        return error_oom(err);
    r = read_header(file->fd, path, &file->header, err);
    if (r < 0)
        return r;
    if (digest != NULL && strcmp(file->header.params.hash_name, digest) != 0)
        return error_set(err, ESTALE, "%s: the tree file is of another digest", path);
    r = verity_geometry_init(&file->header.params, &file->geometry, err);
    if (r < 0)
        return error_prefix(err, "%s", path);
    if (file->header.base[0] != '\0' && depth < BELOW_MAX) {
        _cleanup_free_ char *below = path_below(path, file->header.base);
        if (below == NULL)
            return error_oom(err);
        /* Without it more is computed anew, that is all. */
        (void)open_at_depth(below, file->header.params.hash_name, depth + 1, &file->below, NULL);
        if (file->below != NULL &&
            !verity_same_tree(&file->below->header.params, &file->header.params)) {
            tree_file_close(file->below);
            file->below = NULL;
        }
    }
    *ret = TAKE_PTR(file);
    return 0;
}

int tree_file_open(const char *path, const char *digest, struct tree_file **ret, struct error *err)
{
    return open_at_depth(path, digest, 0, ret, err);
}

bool tree_file_replaceable(const char *path)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    uint8_t head[TREE_MAGIC_SIZE];
    struct stat st;

    if (fd < 0)
        return errno == ENOENT;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    for (unsigned i = 0; i < 2; i++) {
        ssize_t n = io_read_some_at(fd, path, head, sizeof(head), (uint64_t)i * SLOT_SIZE, NULL);
        if (n == (ssize_t)sizeof(head) && memcmp(head, tree_magic, TREE_MAGIC_SIZE) == 0)
            return true;
    }
    return st.st_size == 0;
}

void tree_file_close(struct tree_file *file)
{
    if (file->below != NULL)
        tree_file_close(file->below);
    cleanup_close(&file->fd);
    free(file->path);
    free(file);
}

const struct tree_header *tree_file_header(const struct tree_file *file)
{
    return &file->header;
}

const char *tree_file_path(const struct tree_file *file)
{
    return file->path;
}

struct tree_file *tree_file_below(const struct tree_file *file)
{
    return file->below;
}

uint64_t tree_file_usage(const struct tree_file *file)
{
    struct stat st;

    return fstat(file->fd, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

static uint64_t node_offset(const struct verity_geometry *g, unsigned level, uint64_t index)
{
    return NODES_OFFSET + (g->level_start[level] - g->hash_start + index) * g->hash_block_size;
}

bool tree_file_read(const struct tree_file *file, unsigned level, uint64_t index, uint8_t *block)
{
    const struct verity_geometry *g = &file->geometry;

    if ((level == 0 && file->header.lean) || level >= g->levels || index >= g->level_blocks[level])
        return false;
    ssize_t n = io_read_some_at(file->fd, file->path, block, g->hash_block_size,
                                node_offset(g, level, index), NULL);
    return n == (ssize_t)g->hash_block_size;
}

/* --- Granules --- */

/* Lists of granules begin behind the last node that is kept, and are cut into pages, those of the
 * two header slots by turns: a list can grow, and the file does not look larger than it is. */
static uint64_t granules_offset(const struct verity_geometry *g, bool lean, uint64_t generation,
                                uint64_t page)
{
    uint64_t nodes = 0;

    for (unsigned level = lean ? 1 : 0; level < g->levels; level++)
        nodes += g->level_blocks[level];
    uint64_t end = NODES_OFFSET + nodes * g->hash_block_size;
    return div_round_up(end, GRANULES_PAGE) * GRANULES_PAGE +
           (2 * page + generation % 2) * GRANULES_PAGE;
}

static size_t granules_bytes(uint64_t count)
{
    return (size_t)count * sizeof(struct tree_file_granules);
}

/* Between the host's numbers and the file's little-endian ones, either way. */
static void swap_granules(struct tree_file_granules *granules, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        granules[i].first = htole32(granules[i].first);
        granules[i].end = htole32(granules[i].end);
    }
}

int tree_file_granules(const struct tree_file *file, struct tree_file_granules **ret,
                       struct error *err)
{
    const struct tree_header *header = &file->header;
    _cleanup_free_ struct tree_file_granules *granules = NULL;
    uint8_t digest[TREE_FILE_DIGEST_SIZE];

    if (header->granules_count > TREE_FILE_GRANULES_MAX)
        return error_set(err, EINVAL, "%s: %" PRIu64 " ranges of granules are too many", file->path,
                         header->granules_count);
    size_t size = granules_bytes(header->granules_count);
    granules = malloc(size + 1);
    if (granules == NULL)
        return error_oom(err);
    for (size_t at = 0; at < size; at += GRANULES_PAGE) {
        size_t length = min_u64(size - at, GRANULES_PAGE);
        uint64_t offset =
            granules_offset(&file->geometry, header->lean, header->generation, at / GRANULES_PAGE);
        int r = io_read_at(file->fd, file->path, (uint8_t *)granules + at, length, offset, err);
        if (r < 0)
            return r;
    }
    sha256_checksum(granules, size, digest);
    if (size > 0 && memcmp(digest, header->granules_digest, sizeof(digest)) != 0)
        return error_set(err, EINVAL, "%s: its list of granules is damaged", file->path);
    swap_granules(granules, header->granules_count);
    *ret = TAKE_PTR(granules);
    return 0;
}

/* --- Writing --- */

static int writer_new(const struct tree_header *header, const char *path, struct tree_writer **ret,
                      struct error *err)
{
    struct tree_writer *writer = calloc(1, sizeof(*writer));

    if (writer == NULL)
        return error_oom(err);
    writer->fd = -1;
    writer->lean = header->lean;
    writer->path = strdup(path);
    if (writer->path == NULL) {
        free(writer);
        return error_oom(err);
    }
    *ret = writer;
    return verity_geometry_init(&header->params, &writer->geometry, err);
}

/* The directory that `path` is in. */
static char *directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (slash == NULL)
        return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

/* A file without a name, which nothing leaves behind; where the file system has none such, one with
 * a name of its own. What others may read of the image they may read here: umask decides. Nobody
 * else may write, whatever umask says, or it would not be believed. */
static int create_file(struct tree_writer *writer, struct error *err)
{
    _cleanup_free_ char *directory = directory_of(writer->path);

    if (directory == NULL)
        return error_oom(err);
    writer->fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, FILE_MODE);
    if (writer->fd >= 0) {
        writer->nameless = true;
        return 0;
    }
    if (asprintf(&writer->temporary, "%s.XXXXXX", writer->path) < 0) {
        writer->temporary = NULL;
        return error_oom(err);
    }
    writer->fd = mkostemp(writer->temporary, O_CLOEXEC);
    if (writer->fd < 0) {
        int r = error_set_errno(err, errno, "%s: cannot create", writer->temporary);
        free(TAKE_PTR(writer->temporary));
        return r;
    }
    mode_t mask = umask(0);
    umask(mask);
    (void)fchmod(writer->fd, FILE_MODE & ~mask);
    return 0;
}

/* Gives a nameless file a name, from which it can be renamed: linkat() does not replace a file. */
static int name_file(struct tree_writer *writer, struct error *err)
{
    char self[64];
    uint32_t number;

    if (getrandom(&number, sizeof(number), 0) != sizeof(number) ||
        asprintf(&writer->temporary, "%s.%08" PRIx32, writer->path, number) < 0) {
        writer->temporary = NULL;
        return error_oom(err);
    }
    snprintf(self, sizeof(self), "/proc/self/fd/%d", writer->fd);
    if (linkat(AT_FDCWD, self, AT_FDCWD, writer->temporary, AT_SYMLINK_FOLLOW) < 0) {
        int r = error_set_errno(err, errno, "%s: cannot create", writer->temporary);
        free(TAKE_PTR(writer->temporary));
        return r;
    }
    writer->nameless = false;
    return 0;
}

int tree_writer_new(const char *path, const struct tree_header *header, struct tree_writer **ret,
                    struct error *err)
{
    _cleanup_(tree_writer_free_cleanup) struct tree_writer *writer = NULL;

    int r = writer_new(header, path, &writer, err);
    if (r < 0)
        return r;
    r = create_file(writer, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(writer);
    return 0;
}

int tree_writer_update(const struct tree_file *file, const struct tree_header *header,
                       struct tree_writer **ret, struct error *err)
{
    _cleanup_(tree_writer_free_cleanup) struct tree_writer *writer = NULL;
    struct stat ours, current;

    int r = writer_new(header, file->path, &writer, err);
    if (r < 0)
        return r;
    writer->fd = open(file->path, O_RDWR | O_CLOEXEC | O_NOCTTY);
    if (writer->fd < 0)
        return error_set_errno(err, errno, "%s: cannot open for writing", file->path);
    if (flock(writer->fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK
                   ? error_set(err, EBUSY, "%s: another process is updating it", file->path)
                   : error_set_errno(err, errno, "%s: cannot lock", file->path);
    struct tree_header now;
    r = read_header(writer->fd, file->path, &now, err);
    if (r < 0)
        return r;
    if (fstat(file->fd, &ours) < 0 || fstat(writer->fd, &current) < 0 ||
        ours.st_ino != current.st_ino || ours.st_dev != current.st_dev ||
        now.generation != file->header.generation)
        return error_set(err, EBUSY, "%s: another process has replaced it", file->path);
    writer->generation = now.generation;
    *ret = TAKE_PTR(writer);
    return 0;
}

void tree_writer_free(struct tree_writer *writer)
{
    if (writer->temporary != NULL)
        (void)unlink(writer->temporary);
    cleanup_close(&writer->fd);
    free(writer->temporary);
    free(writer->path);
    free(writer);
}

int tree_writer_nodes(struct tree_writer *writer, unsigned level, uint64_t first, uint64_t count,
                      const uint8_t *blocks, struct error *err)
{
    const struct verity_geometry *g = &writer->geometry;

    if (level == 0 && writer->lean)
        return 0;
    return io_write_at(writer->fd, writer->path, blocks, count * g->hash_block_size,
                       node_offset(g, level, first), err);
}

int tree_writer_granules(struct tree_writer *writer, const struct tree_file_granules *granules,
                         uint64_t count, struct tree_header *header, struct error *err)
{
    size_t size = granules_bytes(count);
    _cleanup_free_ struct tree_file_granules *swapped = malloc(size + 1);

    assert(count <= TREE_FILE_GRANULES_MAX);
    if (swapped == NULL)
        return error_oom(err);
    if (size > 0)
        memcpy(swapped, granules, size);
    swap_granules(swapped, count);
    for (size_t at = 0; at < size; at += GRANULES_PAGE) {
        size_t length = min_u64(size - at, GRANULES_PAGE);
        uint64_t offset = granules_offset(&writer->geometry, writer->lean, writer->generation + 1,
                                          at / GRANULES_PAGE);
        int r = io_write_at(writer->fd, writer->path, (const uint8_t *)swapped + at, length, offset,
                            err);
        if (r < 0)
            return r;
    }
    header->granules_count = count;
    sha256_checksum(swapped, size, header->granules_digest);
    return 0;
}

static int sync_directory(const char *path, struct error *err)
{
    _cleanup_free_ char *directory = directory_of(path);
    _cleanup_close_ int fd = -1;

    if (directory == NULL)
        return error_oom(err);
    fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return error_set_errno(err, errno, "%s: cannot sync its directory", path);
    return 0;
}

int tree_writer_commit(struct tree_writer *writer, const struct tree_header *header, bool durable,
                       struct error *err)
{
    _cleanup_free_ uint8_t *slot = malloc(SLOT_SIZE);
    struct tree_header numbered = *header;

    if (slot == NULL)
        return error_oom(err);
    /* In what order nodes and header reach the disk does not matter: nodes that do not is all that
     * a crash can leave, and those are not believed. */
    numbered.generation = ++writer->generation;
    tree_header_encode(&numbered, slot);
    int r = io_write_at(writer->fd, writer->path, slot, SLOT_SIZE,
                        numbered.generation % 2 * SLOT_SIZE, err);
    if (r < 0)
        return r;
    if (durable && fdatasync(writer->fd) < 0)
        return error_set_errno(err, errno, "%s: cannot sync", writer->path);
    if (writer->nameless) {
        r = name_file(writer, err);
        if (r < 0)
            return r;
    }
    if (writer->temporary != NULL) {
        if (rename(writer->temporary, writer->path) < 0)
            return error_set_errno(err, errno, "%s: cannot be renamed to %s", writer->temporary,
                                   writer->path);
        free(TAKE_PTR(writer->temporary));
        if (durable)
            return sync_directory(writer->path, err);
    }
    return 0;
}
