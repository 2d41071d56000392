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
#include "hashtree/tree-file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <openssl/sha.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "common/io.h"

#define SLOT_SIZE 16384
#define NODES_OFFSET (2 * SLOT_SIZE)
#define BELOW_MAX 64 /* tree files under one another, as images in a chain */

static const uint8_t magic[8] = {'q', 'v', 't', 'r', 'e', 'e', 0x1a, '\n'};

enum { FLAG_LEAN = 1 };

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

/* --- The header's bytes --- */

/* Both directions go through one description of the layout, field after field, little-endian. */
struct codec {
    uint8_t *bytes;
    size_t at;
    bool decode;
};

static void code_bytes(struct codec *c, void *field, size_t size)
{
    assert(c->at + size <= SLOT_SIZE - SHA256_DIGEST_LENGTH);
    if (c->decode)
        memcpy(field, c->bytes + c->at, size);
    else
        memcpy(c->bytes + c->at, field, size);
    c->at += size;
}

static void code_u64(struct codec *c, uint64_t *field)
{
    uint8_t bytes[8];

    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)(*field >> (8 * i));
    code_bytes(c, bytes, sizeof(bytes));
    if (c->decode) {
        *field = 0;
        for (int i = 0; i < 8; i++)
            *field |= (uint64_t)bytes[i] << (8 * i);
    }
}

static uint64_t code_number(struct codec *c, uint64_t value)
{
    code_u64(c, &value);
    return value;
}

static void code_time(struct codec *c, struct timespec *t)
{
    t->tv_sec = (time_t)code_number(c, (uint64_t)t->tv_sec);
    t->tv_nsec = (long)code_number(c, (uint64_t)t->tv_nsec);
}

static void code_text(struct codec *c, char *text, size_t room)
{
    code_bytes(c, text, room);
    if (c->decode)
        text[room - 1] = '\0';
}

static void code_header(struct codec *c, struct tree_header *h)
{
    struct verity_params *p = &h->params;

    h->generation = code_number(c, h->generation);
    h->lean = (code_number(c, h->lean ? FLAG_LEAN : 0) & FLAG_LEAN) != 0;
    code_text(c, p->hash_name, sizeof(p->hash_name));
    p->hash_type = (unsigned)code_number(c, p->hash_type);
    p->data_block_size = (uint32_t)code_number(c, p->data_block_size);
    p->hash_block_size = (uint32_t)code_number(c, p->hash_block_size);
    p->data_blocks = code_number(c, p->data_blocks);
    p->salt_size = (size_t)min_u64(code_number(c, p->salt_size), VERITY_SALT_MAX);
    code_bytes(c, p->salt, sizeof(p->salt));
    h->start = code_number(c, h->start);
    code_bytes(c, h->root, sizeof(h->root));
    h->zero_blocks = code_number(c, h->zero_blocks);
    code_text(c, h->view, sizeof(h->view));
    code_time(c, &h->recorded);
    code_text(c, h->base, sizeof(h->base));
    h->granularity = code_number(c, h->granularity);
    code_bytes(c, h->bitmap_generation, sizeof(h->bitmap_generation));
    h->canary_count = (uint32_t)min_u64(code_number(c, h->canary_count), TREE_FILE_CANARIES_MAX);
    for (size_t i = 0; i < TREE_FILE_CANARIES_MAX; i++)
        code_u64(c, &h->canaries[i]);
    h->file_count = (uint32_t)min_u64(code_number(c, h->file_count), TREE_FILE_FILES_MAX);
    for (size_t i = 0; i < h->file_count; i++) {
        code_u64(c, &h->files[i].device);
        code_u64(c, &h->files[i].inode);
        code_u64(c, &h->files[i].size);
        code_time(c, &h->files[i].mtime);
        code_time(c, &h->files[i].ctime);
    }
    h->recorded_count =
        (uint32_t)min_u64(code_number(c, h->recorded_count), TREE_FILE_RECORDED_MAX);
    for (size_t i = 0; i < h->recorded_count; i++) {
        h->recorded_granules[i].first = (uint32_t)code_number(c, h->recorded_granules[i].first);
        h->recorded_granules[i].end = (uint32_t)code_number(c, h->recorded_granules[i].end);
    }
}

static void encode_slot(const struct tree_header *header, uint8_t slot[static SLOT_SIZE])
{
    struct tree_header copy = *header;
    struct codec c = {.bytes = slot};
    uint8_t head[sizeof(magic)];

    memset(slot, 0, SLOT_SIZE);
    memcpy(head, magic, sizeof(magic));
    code_bytes(&c, head, sizeof(head));
    code_number(&c, TREE_FILE_VERSION);
    code_header(&c, &copy);
    SHA256(slot, SLOT_SIZE - SHA256_DIGEST_LENGTH, slot + SLOT_SIZE - SHA256_DIGEST_LENGTH);
}

/* Why the slot is not one, or NULL. */
static const char *decode_slot(uint8_t slot[static SLOT_SIZE], struct tree_header *ret)
{
    struct codec c = {.bytes = slot, .decode = true};
    uint8_t head[sizeof(magic)], checksum[SHA256_DIGEST_LENGTH];

    code_bytes(&c, head, sizeof(head));
    if (memcmp(head, magic, sizeof(magic)) != 0)
        return "not a tree file";
    if (code_number(&c, 0) != TREE_FILE_VERSION)
        return "a version of tree file that this program does not know";
    SHA256(slot, SLOT_SIZE - SHA256_DIGEST_LENGTH, checksum);
    if (memcmp(checksum, slot + SLOT_SIZE - SHA256_DIGEST_LENGTH, sizeof(checksum)) != 0)
        return "its header is damaged";
    memset(ret, 0, sizeof(*ret));
    code_header(&c, ret);
    return NULL;
}

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
        const char *slot_why = decode_slot(slot, &header);
        if (why == NULL)
            why = slot_why;
        if (slot_why == NULL && (!found || header.generation > ret->generation)) {
            *ret = header;
            found = true;
        }
    }
    return found ? 0 : error_set(err, EINVAL, "%s: %s", path, why);
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

static int open_at_depth(const char *path, unsigned depth, struct tree_file **ret,
                         struct error *err)
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
    file->path = strdup(path);
    if (file->path == NULL)
        return error_oom(err);
    int r = read_header(file->fd, path, &file->header, err);
    if (r < 0)
        return r;
    r = verity_geometry_init(&file->header.params, &file->geometry, err);
    if (r < 0)
        return error_prefix(err, "%s", path);
    if (file->header.base[0] != '\0' && depth < BELOW_MAX) {
        _cleanup_free_ char *below = path_below(path, file->header.base);
        if (below == NULL)
            return error_oom(err);
        /* Without it more is computed anew, that is all. */
        (void)open_at_depth(below, depth + 1, &file->below, NULL);
        if (file->below != NULL &&
            !verity_same_tree(&file->below->header.params, &file->header.params)) {
            tree_file_close(file->below);
            file->below = NULL;
        }
    }
    *ret = TAKE_PTR(file);
    return 0;
}

int tree_file_open(const char *path, struct tree_file **ret, struct error *err)
{
    return open_at_depth(path, 0, ret, err);
}

bool tree_file_replaceable(const char *path)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    uint8_t head[sizeof(magic)];
    struct stat st;

    if (fd < 0)
        return errno == ENOENT;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    for (unsigned i = 0; i < 2; i++) {
        ssize_t n = io_read_some_at(fd, path, head, sizeof(head), (uint64_t)i * SLOT_SIZE, NULL);
        if (n == (ssize_t)sizeof(head) && memcmp(head, magic, sizeof(magic)) == 0)
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
 * a name of its own. What others may read of the image they may read here: umask decides. */
static int create_file(struct tree_writer *writer, struct error *err)
{
    _cleanup_free_ char *directory = directory_of(writer->path);

    if (directory == NULL)
        return error_oom(err);
    writer->fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
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
    (void)fchmod(writer->fd, 0666 & ~mask);
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
    encode_slot(&numbered, slot);
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
