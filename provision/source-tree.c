/* SPDX-License-Identifier: MIT */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "provision/source.h"

#define CHUNK ((size_t)1 << 20)
#define NAMES_MAX 65536
#define VALUE_MAX 65536

struct tree_source {
    struct source source;
    char *path;
    int root;
    dev_t device;
    char *chunk;
};

static struct tree_source *tree_of(struct source *source)
{
    return (struct tree_source *)source;
}

/* Paths of nodes begin with a slash. */
static const char *relative(const struct source_node *node)
{
    return node->path[1] == '\0' ? "." : node->path + 1;
}

static void fill(const struct stat *st, struct source_node *node)
{
    node->attributes = (struct ext4_attributes){
        .mode = st->st_mode,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .mtime = st->st_mtime < 0                    ? 0
                 : st->st_mtime > (time_t)UINT32_MAX ? UINT32_MAX
                                                     : (uint32_t)st->st_mtime,
        .device = st->st_rdev,
    };
    node->id = st->st_ino;
    node->links = (uint32_t)st->st_nlink;
    node->size = S_ISREG(st->st_mode) ? (uint64_t)st->st_size : 0;
}

static int tree_root(struct source *source, struct source_node *ret, struct error *err)
{
    struct tree_source *tree = tree_of(source);
    struct stat st;

    if (fstat(tree->root, &st) < 0)
        return error_set_errno(err, errno, "%s", tree->path);
    fill(&st, ret);
    return 0;
}

static int tree_list(struct source *source, const struct source_node *directory,
                     int (*take)(void *arg, const struct source_node *entry, struct error *err),
                     void *arg, struct error *err)
{
    struct tree_source *tree = tree_of(source);
    int r = 0;

    int fd =
        openat(tree->root, relative(directory), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *stream = fd >= 0 ? fdopendir(fd) : NULL;
    if (stream == NULL) {
        int code = errno;
        if (fd >= 0)
            close(fd);
        return error_set_errno(err, code, "%s: cannot open the directory", directory->path);
    }
    for (;;) {
        struct source_node node = {0};
        struct stat st;
        errno = 0;
        const struct dirent *entry = readdir(stream);
        if (entry == NULL) {
            if (errno != 0)
                r = error_set_errno(err, errno, "%s: cannot read the directory", directory->path);
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (fstatat(dirfd(stream), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
            r = error_set_errno(err, errno, "%s/%s", directory->path, entry->d_name);
            break;
        }
        if (st.st_dev != tree->device) {
            r = error_set(err, EXDEV, "%s/%s: something is mounted there", directory->path,
                          entry->d_name);
            break;
        }
        fill(&st, &node);
        node.name = entry->d_name;
        r = take(arg, &node, err);
        if (r < 0)
            break;
    }
    closedir(stream);
    return r;
}

static int tree_link(struct source *source, const struct source_node *node, char **ret,
                     struct error *err)
{
    char target[4097];

    ssize_t n = readlinkat(tree_of(source)->root, relative(node), target, sizeof(target) - 1);
    if (n < 0)
        return error_set_errno(err, errno, "%s: cannot read the link", node->path);
    target[n] = '\0';
    *ret = strdup(target);
    return *ret != NULL ? 0 : error_oom(err);
}

static int open_file(struct tree_source *tree, const struct source_node *node, struct error *err)
{
    int fd = openat(tree->root, relative(node), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY);

    return fd >= 0 ? fd : error_set_errno(err, errno, "%s: cannot open", node->path);
}

static int tree_read(struct source *source, const struct source_node *node, source_take_bytes *take,
                     void *arg, struct error *err)
{
    struct tree_source *tree = tree_of(source);
    _cleanup_close_ int fd = open_file(tree, node, err);
    uint64_t offset = 0;

    if (fd < 0)
        return fd;
    for (;;) {
        ssize_t n = read(fd, tree->chunk, CHUNK);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(err, errno, "%s: cannot read", node->path);
        if (n == 0)
            return 0;
        int r = take(arg, offset, tree->chunk, (size_t)n, err);
        if (r < 0)
            return r;
        offset += (uint64_t)n;
    }
}

/* There is no lgetxattr() relative to a directory: /proc gives a descriptor a path. */
static int tree_xattrs(struct source *source, const struct source_node *node,
                       source_take_xattr *take, void *arg, struct error *err)
{
    struct tree_source *tree = tree_of(source);
    _cleanup_free_ char *path = NULL, *names = NULL, *value = NULL;

    if (asprintf(&path, "%s/%s", tree->path, relative(node)) < 0)
        return error_oom(err);
    ssize_t length = llistxattr(path, NULL, 0);
    if (length == 0 || (length < 0 && errno == ENOTSUP))
        return 0;
    names = malloc(NAMES_MAX);
    value = malloc(VALUE_MAX);
    if (names == NULL || value == NULL)
        return error_oom(err);
    length = llistxattr(path, names, NAMES_MAX);
    if (length < 0)
        return error_set_errno(err, errno, "%s: cannot list its attributes", node->path);
    for (const char *name = names; name < names + length; name += strlen(name) + 1) {
        /* A label of this machine's SELinux is none of the system's. */
        if (strcmp(name, "security.selinux") == 0)
            continue;
        ssize_t size = lgetxattr(path, name, value, VALUE_MAX);
        if (size < 0)
            return error_set_errno(err, errno, "%s: cannot read the attribute %s", node->path,
                                   name);
        int r = take(arg, name, value, (size_t)size, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static void tree_free(struct source *source)
{
    struct tree_source *tree = tree_of(source);

    cleanup_close(&tree->root);
    free(tree->chunk);
    free(tree->path);
    free(tree);
}

static const struct source_ops tree_ops = {
    .root = tree_root,
    .list = tree_list,
    .link = tree_link,
    .read = tree_read,
    .xattrs = tree_xattrs,
    .free = tree_free,
};

int source_open_tree(const char *path, struct source **ret, struct error *err)
{
    struct tree_source *tree = calloc(1, sizeof(*tree));
    struct stat st;

    if (tree == NULL)
        return error_oom(err);
    tree->source.ops = &tree_ops;
    tree->path = strdup(path);
    tree->chunk = malloc(CHUNK);
    tree->root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = 0;
    if (tree->path == NULL || tree->chunk == NULL)
        r = error_oom(err);
    else if (tree->root < 0 || fstat(tree->root, &st) < 0)
        r = error_set_errno(err, errno, "%s: cannot open the tree", path);
    if (r < 0) {
        tree_free(&tree->source);
        return r;
    }
    tree->device = st.st_dev;
    *ret = &tree->source;
    return 0;
}
