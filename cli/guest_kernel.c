/* SPDX-License-Identifier: MIT */
#include "cli/guest_kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/log.h"
#include "common/text.h"
#include "common/version.h"

#define INSIDE "image:"

enum { INHERITED_FD_MIN = 10 }; /* clear of what a child's standard streams become */
/* What the boot protocol of x86 can tell of an initrd's size, and more than QEMU takes. */
#define GUEST_FILE_MAX UINT64_C(0xffffffff)

void guest_file_clear(struct guest_file *file)
{
    free(file->name);
    free(file->path);
    cleanup_close(&file->fd);
    *file = GUEST_FILE_INIT;
}

void guest_kernel_clear(struct guest_kernel *kernel)
{
    free(kernel->kernel);
    free(kernel->initrd);
    free(kernel->version);
    *kernel = (struct guest_kernel){0};
}

bool guest_file_is_inside(const char *value)
{
    return strncmp(value, INSIDE "/", sizeof(INSIDE "/") - 1) == 0;
}

/* --- Versions --- */

/* A copy where what comes before a release is marked with a tilde, as GRUB's version_test_gt does.
 */
static char *mark_prereleases(const char *version)
{
    static const char *const words[] = {"pre", "rc", "test", "git", "old", "trunk"};
    char *copy = strdup(version);

    for (char *p = copy; p != NULL && *p != '\0'; p++) {
        if (*p != '-' && *p != '.' && *p != '_')
            continue;
        for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
            if (strncmp(p + 1, words[i], strlen(words[i])) == 0)
                *p = '~';
    }
    return copy;
}

int guest_kernel_compare(const char *a, const char *b)
{
    _cleanup_free_ char *left = mark_prereleases(a), *right = mark_prereleases(b);

    return version_compare(left != NULL ? left : a, right != NULL ? right : b);
}

static bool ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text), n = strlen(end);

    return length >= n && strcmp(text + length - n, end) == 0;
}

/* The version in a kernel's name; NULL: it is none, or one that is kept for rescue. */
static const char *version_in(const char *name)
{
    static const char *const prefixes[] = {"vmlinuz-", "vmlinux-", "kernel-", "bzImage-"};
    static const char *const backups[] = {".old",    ".bak",     ".orig",   ".sig", ".hmac",
                                          ".sha256", ".rpmsave", ".rpmnew", "~"};
    const char *version = NULL;

    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
            version = name + strlen(prefixes[i]);
    if (version == NULL || version[0] == '\0' || strstr(version, "rescue") != NULL ||
        strstr(version, ".dpkg-") != NULL)
        return NULL;
    for (size_t i = 0; i < sizeof(backups) / sizeof(backups[0]); i++)
        if (ends_with(version, backups[i]))
            return NULL;
    return version;
}

/* --- Finding --- */

struct search {
    struct file_system *fs;
    const struct partition *partition;
    const char *directory; /* that is looked through: "" for the root, or "/boot" */
    struct guest_kernel best;
};

static bool is_file(struct file_system *fs, const char *path)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    return file_node_find(fs, path, FILE_FOLLOW, &node, NULL) == 0 &&
           S_ISREG(file_node_info(node)->mode) && file_node_info(node)->size > 0;
}

static int take_kernel(void *arg, const struct file_entry *entry, struct error *err)
{
    struct search *search = arg;
    const char *version = version_in(entry->name);
    _cleanup_(guest_kernel_clear_cleanup) struct guest_kernel found = {0};

    if (version == NULL ||
        (search->best.version != NULL && guest_kernel_compare(version, search->best.version) <= 0))
        return 0;
    found.partition = search->partition;
    found.version = strdup(version);
    if (asprintf(&found.kernel, "%s/%s", search->directory, entry->name) < 0)
        found.kernel = NULL;
    if (found.kernel == NULL || found.version == NULL)
        return error_oom(err);
    if (!is_file(search->fs, found.kernel))
        return 0;
    guest_kernel_clear(&search->best);
    search->best = found;
    found = (struct guest_kernel){0};
    return 0;
}

/* Looks through a directory, if it is there. */
static int search_directory(struct search *search, const char *directory, struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    search->directory = directory;
    int r = file_node_find(search->fs, directory, FILE_FOLLOW, &node, err);
    if (r == -ENOENT || (r == 0 && !S_ISDIR(file_node_info(node)->mode))) {
        error_clear(err);
        return 0;
    }
    if (r == 0)
        r = file_node_list(node, take_kernel, search, err);
    return r;
}

/* A kernel without a version in its name, or a link to one that has. */
static int search_link(struct search *search, const char *path, struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    if (search->best.kernel != NULL || !is_file(search->fs, path))
        return 0;
    int r = file_node_find(search->fs, path, FILE_FOLLOW, &node, err);
    if (r < 0)
        return r;
    const char *real = file_node_path(node), *version = version_in(strrchr(real, '/') + 1);
    search->best.partition = search->partition;
    search->best.kernel = strdup(real);
    search->best.version = version != NULL ? strdup(version) : NULL;
    if (search->best.kernel == NULL || (version != NULL && search->best.version == NULL))
        return error_oom(err);
    return 0;
}

/* The initrd that belongs to a kernel: beside it, with its version. */
static int find_initrd(struct file_system *fs, const char *kernel, const char *version, char **ret,
                       struct error *err)
{
    static const char *const versioned[] = {"initrd.img-%s", "initramfs-%s.img", "initrd-%s",
                                            "initramfs-%s", "initrd-%s.img"};
    static const char *const plain[] = {"initrd.img", "initramfs.img", "initrd", "initramfs"};
    const int directory = (int)(strrchr(kernel, '/') + 1 - kernel);
    const char *const *const names = version != NULL ? versioned : plain;
    const size_t count = version != NULL ? sizeof(versioned) / sizeof(versioned[0])
                                         : sizeof(plain) / sizeof(plain[0]);

    for (size_t i = 0; i < count; i++) {
        const char *const hole = strstr(names[i], "%s");
        _cleanup_free_ char *path = NULL;
        int n = hole != NULL ? asprintf(&path, "%.*s%.*s%s%s", directory, kernel,
                                        (int)(hole - names[i]), names[i], version, hole + 2)
                             : asprintf(&path, "%.*s%s", directory, kernel, names[i]);
        if (n < 0) {
            path = NULL;
            return error_oom(err);
        }
        if (is_file(fs, path)) {
            *ret = TAKE_PTR(path);
            return 0;
        }
    }
    *ret = NULL;
    return 0;
}

/* The newest kernel of one file system; ret->kernel stays NULL if there is none. `boot` is a
 * partition that may be mounted as /boot. */
static int search_partition(const struct cli_target *target, const struct partition *partition,
                            bool boot, struct guest_kernel *ret, struct error *err)
{
    _cleanup_(file_system_close_cleanup) struct file_system *fs = NULL;
    struct search search = {.partition = partition};

    int r = file_system_open(target->image, partition, &fs, err);
    if (r < 0)
        return r;
    search.fs = fs;
    r = search_directory(&search, "/boot", err);
    if (r == 0 && boot)
        r = search_directory(&search, "", err);
    if (r == 0)
        r = search_link(&search, "/boot/vmlinuz", err);
    if (r == 0)
        r = search_link(&search, "/vmlinuz", err);
    if (r == 0 && search.best.kernel != NULL)
        r = find_initrd(fs, search.best.kernel, search.best.version, &search.best.initrd, err);
    if (r < 0) {
        guest_kernel_clear(&search.best);
        return r;
    }
    *ret = search.best;
    return 0;
}

/* Whether a partition is one that a kernel may be on, other than the data partition. */
static bool may_be_boot(const struct cli_target *target, const struct partition *partition)
{
    return partition != target->partition && file_system_is_readable(partition);
}

static bool is_newer(const struct guest_kernel *kernel, const struct guest_kernel *than)
{
    if (kernel->version == NULL || than->kernel == NULL)
        return than->kernel == NULL;
    return than->version == NULL || guest_kernel_compare(kernel->version, than->version) > 0;
}

static int search_others(const struct cli_target *target, struct guest_kernel *ret,
                         struct error *err)
{
    _cleanup_(guest_kernel_clear_cleanup) struct guest_kernel best = {0};

    for (size_t i = 0; i < target->partitions->count; i++) {
        _cleanup_(guest_kernel_clear_cleanup) struct guest_kernel found = {0};
        const struct partition *partition = &target->partitions->partitions[i];

        if (!may_be_boot(target, partition))
            continue;
        int r = search_partition(target, partition, true, &found, err);
        if (r < 0)
            return r;
        if (found.kernel != NULL && is_newer(&found, &best)) {
            guest_kernel_clear(&best);
            best = found;
            found = (struct guest_kernel){0};
        }
    }
    *ret = best;
    best = (struct guest_kernel){0};
    return 0;
}

static int not_found(const struct cli_target *target, struct error *err)
{
    const struct partition *data = target->partition;
    char where[64] = "the disk";

    if (data->number != 0)
        snprintf(where, sizeof(where), "partition %u", data->number);
    if (file_system_is_readable(data))
        return error_set(err, ENOENT,
                         "no kernel is given, and /boot of %s has none: use --kernel FILE", where);
    return error_set(err, ENOENT,
                     "no kernel is given, and none is found: %s holds %s, and files can be read on "
                     "ext2, ext3 and ext4 only: use --kernel FILE",
                     where, data->fs_type != NULL ? data->fs_type : "no known file system");
}

int guest_kernel_find(const struct cli_target *target, struct guest_kernel *ret, struct error *err)
{
    _cleanup_(guest_kernel_clear_cleanup) struct guest_kernel found = {0};
    int r = 0;

    if (file_system_is_readable(target->partition))
        r = search_partition(target, target->partition, false, &found, err);
    if (r == 0 && found.kernel == NULL)
        r = search_others(target, &found, err);
    if (r < 0)
        error_prefix(err, "no kernel is given (--kernel FILE), and looking for one");
    else if (found.kernel == NULL)
        r = not_found(target, err);
    if (r < 0)
        return error_prefix(err, "%s", image_path(target->image));
    *ret = found;
    found = (struct guest_kernel){0};
    return 0;
}

/* --- Opening --- */

static int take_bytes(void *arg, uint64_t offset, const void *bytes, uint64_t length,
                      struct error *err)
{
    const int *fd = arg;

    /* Holes are left out. */
    return bytes == NULL ? 0 : io_write_at(*fd, "memory file", bytes, (size_t)length, offset, err);
}

/* Copies a file to one in memory that nobody can change any more. */
static int copy_to_memory(struct file_node *node, const char *name, int *ret, struct error *err)
{
    const struct file_info *info = file_node_info(node);
    _cleanup_close_ int fd = -1, high = -1;

    if (info->size > GUEST_FILE_MAX)
        return error_set(err, EFBIG, "%" PRIu64 " bytes are too many", info->size);
    fd = memfd_create(name, MFD_ALLOW_SEALING | MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)info->size) < 0)
        return error_set_errno(err, errno, "cannot create a file in memory");
    int r = file_node_read_all(node, take_bytes, &fd, err);
    if (r < 0)
        return r;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
        return error_set_errno(err, errno, "cannot seal a file in memory");
    high = fcntl(fd, F_DUPFD, INHERITED_FD_MIN);
    if (high < 0)
        return error_set_errno(err, errno, "cannot duplicate a descriptor");
    *ret = take_fd(&high);
    return 0;
}

/* A file of an open file system. `path` is told as image:/PATH. */
static int open_found(struct file_system *fs, const char *path, unsigned flags, const char *option,
                      struct guest_file *ret, struct error *err)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
    _cleanup_guest_file_ struct guest_file file = GUEST_FILE_INIT;

    int r = file_node_find(fs, path, FILE_FOLLOW, &node, err);
    if (r < 0)
        return r;
    if (!S_ISREG(file_node_info(node)->mode))
        return error_set(err, EINVAL, "%s: not a regular file", path);
    if (asprintf(&file.name, INSIDE "%s", path) < 0) {
        file.name = NULL;
        return error_oom(err);
    }
    if ((flags & GUEST_FILE_LOOK) != 0) {
        file.path = strdup(file.name);
    } else {
        r = copy_to_memory(node, option + strspn(option, "-"), &file.fd, err);
        if (r < 0)
            return error_prefix(err, "%s", path);
        if (asprintf(&file.path, "/proc/self/fd/%d", file.fd) < 0)
            file.path = NULL;
    }
    if (file.path == NULL)
        return error_oom(err);
    *ret = file;
    file = GUEST_FILE_INIT;
    return 0;
}

static int open_on(const struct cli_target *target, const struct partition *partition,
                   const char *path, unsigned flags, const char *option, struct guest_file *ret,
                   struct error *err)
{
    _cleanup_(file_system_close_cleanup) struct file_system *fs = NULL;

    int r = file_system_open(target->image, partition, &fs, err);
    return r < 0 ? r : open_found(fs, path, flags, option, ret, err);
}

/* The partition that image:/PATH is on, and the path there, which points into `path`. */
static int locate(const struct cli_target *target, const char *path,
                  const struct partition **ret_partition, const char **ret_path, struct error *err)
{
    static const char boot[] = "/boot/";
    const char *const short_path =
        strncmp(path, boot, sizeof(boot) - 1) == 0 ? path + sizeof(boot) - 2 : NULL;
    _cleanup_(file_system_close_cleanup) struct file_system *data = NULL;
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    int r = file_system_open(target->image, target->partition, &data, err);
    if (r == 0)
        r = file_node_find(data, path, FILE_FOLLOW, &node, err);
    if (r == 0 || (r != -ENOENT && r != -EMEDIUMTYPE)) {
        *ret_partition = target->partition;
        *ret_path = path;
        return r;
    }
    for (size_t i = 0; i < target->partitions->count; i++) {
        const struct partition *partition = &target->partitions->partitions[i];
        _cleanup_(file_system_close_cleanup) struct file_system *fs = NULL;

        if (!may_be_boot(target, partition) ||
            file_system_open(target->image, partition, &fs, NULL) < 0)
            continue;
        const char *found = is_file(fs, path)                               ? path
                            : short_path != NULL && is_file(fs, short_path) ? short_path
                                                                            : NULL;
        if (found != NULL) {
            error_clear(err);
            *ret_partition = partition;
            *ret_path = found;
            return 0;
        }
    }
    return r;
}

static int open_host(const char *option, const char *path, struct guest_file *ret,
                     struct error *err)
{
    _cleanup_guest_file_ struct guest_file file = GUEST_FILE_INIT;
    struct stat st;

    file.fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (file.fd < 0 || fstat(file.fd, &st) < 0)
        return error_set_errno(err, errno, "%s %s", option, path);
    if (S_ISDIR(st.st_mode))
        return error_set_errno(err, EISDIR, "%s %s", option, path);
    file.name = strdup(path);
    file.path = strdup(path);
    if (file.name == NULL || file.path == NULL)
        return error_oom(err);
    *ret = file;
    file = GUEST_FILE_INIT;
    return 0;
}

/* What an option says; `ret_found` tells where a file of the image is. */
static int open_given(const struct cli_target *target, const char *option, const char *value,
                      unsigned flags, struct guest_kernel *ret_found, struct guest_file *ret,
                      struct error *err)
{
    const struct partition *partition;
    const char *path;

    if (!guest_file_is_inside(value) || target == NULL)
        return open_host(option, value, ret, err);
    int r = locate(target, value + sizeof(INSIDE) - 1, &partition, &path, err);
    if (r == 0)
        r = open_on(target, partition, path, flags, option, ret, err);
    if (r < 0)
        return error_prefix(err, "%s: %s", option, image_path(target->image));
    if (ret_found != NULL) {
        ret_found->partition = partition;
        ret_found->kernel = strdup(path);
        if (ret_found->kernel == NULL)
            return error_oom(err);
    }
    return 0;
}

/* The initrd of a kernel that --kernel image:/PATH names. */
static int add_initrd(const struct cli_target *target, struct guest_kernel *kernel,
                      struct error *err)
{
    _cleanup_(file_system_close_cleanup) struct file_system *fs = NULL;
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;

    int r = file_system_open(target->image, kernel->partition, &fs, err);
    if (r == 0)
        r = file_node_find(fs, kernel->kernel, FILE_FOLLOW, &node, err);
    if (r < 0)
        return r;
    const char *real = file_node_path(node);
    return find_initrd(fs, real, version_in(strrchr(real, '/') + 1), &kernel->initrd, err);
}

static int open_kernel(const struct cli_target *target, const char *value, unsigned flags,
                       struct guest_kernel *found, struct guest_file *ret, struct error *err)
{
    int r;

    if (value != NULL) {
        r = open_given(target, "--kernel", value, flags, found, ret, err);
        return r < 0 || found->kernel == NULL ? r : add_initrd(target, found, err);
    }
    if (target == NULL)
        return error_set(err, ENOENT, "no kernel is given: use --kernel FILE");
    r = guest_kernel_find(target, found, err);
    if (r < 0)
        return r;
    r = open_on(target, found->partition, found->kernel, flags, "--kernel", ret, err);
    return r < 0 ? error_prefix(err, "%s", image_path(target->image)) : 0;
}

int guest_kernel_open(const struct cli_target *target, const char *kernel, const char *initrd,
                      unsigned flags, struct guest_file *ret_kernel, struct guest_file *ret_initrd,
                      struct error *err)
{
    _cleanup_guest_file_ struct guest_file kernel_file = GUEST_FILE_INIT;
    _cleanup_guest_file_ struct guest_file initrd_file = GUEST_FILE_INIT;
    _cleanup_(guest_kernel_clear_cleanup) struct guest_kernel found = {0};

    int r = open_kernel(target, kernel, flags, &found, &kernel_file, err);
    if (r < 0)
        return r;
    if (initrd == NULL && found.initrd != NULL) {
        r = open_on(target, found.partition, found.initrd, flags, "--initrd", &initrd_file, err);
        if (r < 0)
            error_prefix(err, "%s", image_path(target->image));
    } else if (initrd != NULL && strcmp(initrd, "none") != 0) {
        r = open_given(target, "--initrd", initrd, flags, NULL, &initrd_file, err);
    }
    if (r < 0)
        return r;
    if (found.kernel != NULL)
        log_info("kernel %s, initrd %s, from partition %u of the image", kernel_file.name,
                 initrd_file.name != NULL ? initrd_file.name : "none", found.partition->number);
    *ret_kernel = kernel_file;
    *ret_initrd = initrd_file;
    kernel_file = initrd_file = GUEST_FILE_INIT;
    return 0;
}
