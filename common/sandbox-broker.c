/* SPDX-License-Identifier: MIT */
/*
 * The broker: makes system calls on names of files for the confined process, if they are on its
 * list, and tells of all others that are refused.
 *
 * Why there is one: a tree file is written when the work is done, under a name that must be made
 * and replaced then; libfuse opens its device for each thread that it starts, libcryptsetup a file
 * in memory by name, a reader an image's file once more for O_DIRECT. Landlock alone would have to
 * let the process create and remove anything in the image's directory for that, and where there is
 * none a filter could but allow openat(), whose path it cannot see.
 *
 * The confined process may be in anybody's hands. Of what it says only numbers and the path's
 * characters are taken, copied once out of its memory; a name counts only if it equals one on the
 * list, which was written before; and no call is ever let through to be made by the process itself,
 * whose memory could have changed by then.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <seccomp.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/sandbox-internal.h"

enum {
    SUFFIX_MAX = 16,
    TOLD_MAX = 20,
};

/* What a call that is not on the list comes to, which -EACCES of the kernel's is to be told from.
 */
#define REFUSED (-4096)

struct broker {
    const struct sandbox *sandbox;
    unsigned told; /* lines about calls that were refused */
    int notify;
    int memory;      /* the worker's /proc/N/mem */
    int descriptors; /* its /proc/N/fd */
};

/* --- The list --- */

static const struct sandbox_file *find_file(const struct broker *b, const char *path)
{
    for (size_t i = 0; i < b->sandbox->file_count; i++)
        if (strcmp(b->sandbox->files[i].path, path) == 0)
            return &b->sandbox->files[i];
    return NULL;
}

static bool has_right(const struct sandbox_file *file, unsigned right)
{
    return file != NULL && (file->rights & right) != 0;
}

/* The file that may be replaced by `path`, which is to be renamed to it; or NULL. */
static const struct sandbox_file *replaced_by(const struct broker *b, const char *path)
{
    for (size_t i = 0; i < b->sandbox->file_count; i++) {
        const struct sandbox_file *file = &b->sandbox->files[i];
        size_t length = strlen(file->path), n = 0;

        if (!has_right(file, SANDBOX_REPLACE) || strncmp(path, file->path, length) != 0 ||
            path[length] != '.')
            continue;
        while (isalnum((unsigned char)path[length + 1 + n]))
            n++;
        if (n > 0 && n <= SUFFIX_MAX && path[length + 1 + n] == '\0')
            return file;
    }
    return NULL;
}

/* Whether `path` is the directory of a file that may be replaced. */
static bool is_directory_of_replaced(const struct broker *b, const char *path)
{
    for (size_t i = 0; i < b->sandbox->file_count; i++) {
        const struct sandbox_file *file = &b->sandbox->files[i];
        const char *slash = strrchr(file->path, '/');
        size_t length = slash == NULL ? 0 : slash == file->path ? 1 : (size_t)(slash - file->path);

        if (!has_right(file, SANDBOX_REPLACE))
            continue;
        if (slash == NULL ? strcmp(path, ".") == 0
                          : strlen(path) == length && strncmp(path, file->path, length) == 0)
            return true;
    }
    return false;
}

/* --- What the worker's call says --- */

/* A path out of its memory. Returns 0 or -errno. */
static int read_path(const struct broker *b, uint64_t address, char path[static PATH_MAX])
{
    size_t used = 0;

    while (used < PATH_MAX) {
        /* Up to the end of the page, behind which there may be nothing. */
        size_t n = 4096 - (size_t)((address + used) % 4096);
        if (n > PATH_MAX - used)
            n = PATH_MAX - used;
        ssize_t got = pread(b->memory, path + used, n, (off_t)(address + used));
        if (got <= 0)
            return -EFAULT;
        if (memchr(path + used, '\0', (size_t)got) != NULL)
            return 0;
        used += (size_t)got;
    }
    return -ENAMETOOLONG;
}

/* The number of the worker's descriptor that has this name, "/proc/self/fd/NUMBER" or another; or
 * -1. In the broker the same name would be one of its own. */
static int own_descriptor(const char *path)
{
    static const char *const standard[] = {"/dev/stdin", "/dev/stdout", "/dev/stderr"};
    static const char *const prefixes[] = {"/proc/self/fd/", "/dev/fd/"};

    for (int i = 0; i < 3; i++)
        if (strcmp(path, standard[i]) == 0)
            return i;
    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        const size_t length = strlen(prefixes[i]);
        const char *digits = path + length;
        if (strncmp(path, prefixes[i], length) == 0 && *digits != '\0' && strlen(digits) <= 9 &&
            strspn(digits, "0123456789") == strlen(digits))
            return atoi(digits);
    }
    return -1;
}

/* --- openat --- */

#define OPEN_FLAGS                                                                              \
    (O_ACCMODE | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_CREAT | O_EXCL | O_DIRECT | O_NOFOLLOW | \
     O_TMPFILE | O_LARGEFILE | O_DIRECTORY)

/* Something that the process has open already, once more, for no more than it has it. What is
 * `listed` it was told to open by this name. */
static int open_again(const struct broker *b, int fd, bool listed, int flags)
{
    int access = flags & O_ACCMODE;
    struct stat st, link;
    char name[16];

    snprintf(name, sizeof(name), "%d", fd);
    /* The link's mode tells what the descriptor is open for. */
    if (fstatat(b->descriptors, name, &st, 0) < 0 ||
        fstatat(b->descriptors, name, &link, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    if (listed && (flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
        return -EEXIST;
    if ((flags & (O_CREAT | O_TMPFILE)) != 0 ||
        (!listed && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
        return REFUSED;
    if ((access != O_WRONLY && (link.st_mode & S_IRUSR) == 0) ||
        (access != O_RDONLY && (link.st_mode & S_IWUSR) == 0))
        return listed ? -EACCES : REFUSED;
    int opened = openat(b->descriptors, name, flags | O_CLOEXEC);
    return opened < 0 ? -errno : opened;
}

/* What libc and this program look at on their own. */
static bool is_public(const struct broker *b, const char *path, int access)
{
    static const char *const read_only[] = {"/dev/urandom", "/proc/meminfo",
                                            "/proc/sys/vm/overcommit_memory",
                                            "/sys/devices/system/cpu/online"};
    unsigned minor;
    char end;

    for (size_t i = 0; i < sizeof(read_only) / sizeof(read_only[0]); i++)
        if (access == O_RDONLY && strcmp(path, read_only[i]) == 0)
            return true;
    if (strcmp(path, "/dev/null") == 0)
        return true;
    /* The mount: its descriptor is cloned, and its read-ahead is raised. */
    if (b->sandbox->mountpoint == NULL)
        return false;
    return strcmp(path, "/dev/fuse") == 0 ||
           (access == O_WRONLY &&
            sscanf(path, "/sys/class/bdi/0:%u/read_ahead_kb%c", &minor, &end) == 1);
}

static bool may_open(const struct broker *b, const char *path, int flags)
{
    const struct sandbox_file *file = find_file(b, path);
    int access = flags & O_ACCMODE;

    if ((flags & O_TMPFILE) == O_TMPFILE)
        return is_directory_of_replaced(b, path);
    if ((flags & O_CREAT) != 0)
        return has_right(file, SANDBOX_CREATE) ||
               ((flags & O_EXCL) != 0 && replaced_by(b, path) != NULL);
    if (access == O_RDONLY && (flags & O_DIRECTORY) != 0 && is_directory_of_replaced(b, path))
        return true;
    return has_right(file, access == O_RDONLY ? SANDBOX_READ : SANDBOX_WRITE) ||
           is_public(b, path, access);
}

/* For reading, if it is a regular file with the magic text. */
static int open_by_magic(const struct broker *b, const char *path, int flags)
{
    const struct sandbox *s = b->sandbox;
    _cleanup_close_ int fd = -1;
    char bytes[16];
    struct stat st;

    if (s->magic == NULL || s->magic_size > sizeof(bytes) || (flags & O_ACCMODE) != O_RDONLY ||
        (flags & (O_CREAT | O_TMPFILE)) != 0)
        return REFUSED;
    /* O_NONBLOCK: never to wait for the other end of a FIFO. */
    fd = open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return REFUSED;
    for (size_t i = 0; i < 2; i++)
        if (pread(fd, bytes, s->magic_size, (off_t)s->magic_at[i]) == (ssize_t)s->magic_size &&
            memcmp(bytes, s->magic, s->magic_size) == 0)
            return take_fd(&fd);
    return REFUSED;
}

static int broker_open(const struct broker *b, const char *path, int flags, mode_t mode)
{
    int fd = own_descriptor(path);

    if ((flags & ~OPEN_FLAGS) != 0)
        return REFUSED;
    if (fd >= 0)
        return open_again(b, fd, find_file(b, path) != NULL, flags);
    if (!may_open(b, path, flags))
        return open_by_magic(b, path, flags);
    fd = open(path, flags | O_CLOEXEC, mode & 0777);
    return fd < 0 ? -errno : fd;
}

/* --- The others --- */

/* Gives a file without a name, which the process made, the name of one that will replace another.
 */
static int broker_link(const struct broker *b, const char *from, const char *to)
{
    int fd = own_descriptor(from);
    char name[16];
    struct stat st;

    if (fd < 0 || replaced_by(b, to) == NULL)
        return REFUSED;
    snprintf(name, sizeof(name), "%d", fd);
    if (fstatat(b->descriptors, name, &st, 0) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || st.st_nlink != 0)
        return REFUSED;
    return linkat(b->descriptors, name, AT_FDCWD, to, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

static int broker_rename(const struct broker *b, const char *from, const char *to)
{
    const struct sandbox_file *file = replaced_by(b, from);

    if (file == NULL || strcmp(file->path, to) != 0)
        return REFUSED;
    return rename(from, to) < 0 ? -errno : 0;
}

static int broker_unlink(const struct broker *b, const char *path)
{
    if (replaced_by(b, path) == NULL && !has_right(find_file(b, path), SANDBOX_CREATE))
        return REFUSED;
    return unlink(path) < 0 ? -errno : 0;
}

/* By the system call, or without the right to make it, by fusermount3. */
static int unmount(const struct broker *b, bool lazily)
{
    char *argv[] = {
        (char *)"fusermount3",        (char *)"-u", (char *)"-q", (char *)b->sandbox->mountpoint,
        lazily ? (char *)"-z" : NULL, NULL};
    extern char **environ;
    int status;
    pid_t pid;

    if (umount2(b->sandbox->mountpoint, UMOUNT_NOFOLLOW | (lazily ? MNT_DETACH : 0)) == 0)
        return 0;
    if (errno != EPERM)
        return -errno;
    int code = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
    if (code != 0)
        return -code;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -errno;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EBUSY;
}

static int broker_unmount(const struct broker *b, const char *path, bool lazily)
{
    if (b->sandbox->mountpoint == NULL || strcmp(path, b->sandbox->mountpoint) != 0)
        return REFUSED;
    return unmount(b, lazily);
}

/* --- Serving --- */

static bool here(uint64_t fd)
{
    return (int)fd == AT_FDCWD;
}

/* Makes the call. Returns its result, a descriptor of ours if *ret_fd is set, or -errno. */
static int make_call(const struct broker *b, const struct seccomp_data *call, bool *ret_fd)
{
    char one[PATH_MAX], two[PATH_MAX];
    const __u64 *a = call->args;
    int r;

    switch (call->nr) {
    case SYS_openat:
        r = read_path(b, a[1], one);
        *ret_fd = r == 0;
        /* A relative path starts where the process was when it was confined. */
        if (r == 0 && !here(a[0]) && one[0] != '/')
            return REFUSED;
        return r < 0 ? r : broker_open(b, one, (int)a[2], (mode_t)a[3]);
    case SYS_linkat:
        r = read_path(b, a[1], one);
        if (r == 0)
            r = read_path(b, a[3], two);
        if (r == 0 && (!here(a[0]) || !here(a[2]) || (int)a[4] != AT_SYMLINK_FOLLOW))
            r = REFUSED;
        return r < 0 ? r : broker_link(b, one, two);
    case SYS_rename:
        r = read_path(b, a[0], one);
        if (r == 0)
            r = read_path(b, a[1], two);
        return r < 0 ? r : broker_rename(b, one, two);
    case SYS_renameat:
    case SYS_renameat2:
        r = read_path(b, a[1], one);
        if (r == 0)
            r = read_path(b, a[3], two);
        if (r == 0 && (!here(a[0]) || !here(a[2]) || (call->nr == SYS_renameat2 && a[4] != 0)))
            r = REFUSED;
        return r < 0 ? r : broker_rename(b, one, two);
    case SYS_unlink:
        r = read_path(b, a[0], one);
        return r < 0 ? r : broker_unlink(b, one);
    case SYS_unlinkat:
        r = read_path(b, a[1], one);
        if (r == 0 && (!here(a[0]) || a[2] != 0))
            r = REFUSED;
        return r < 0 ? r : broker_unlink(b, one);
    case SYS_umount2:
        r = read_path(b, a[0], one);
        return r < 0 ? r : broker_unmount(b, one, (a[1] & MNT_DETACH) != 0);
    }
    return REFUSED;
}

/* Puts our descriptor into the process, as the result of its call. */
static int answer_with_fd(const struct broker *b, uint64_t id, int fd, int flags)
{
    struct seccomp_notif_addfd add = {
        .id = id,
        .flags = SECCOMP_ADDFD_FLAG_SEND,
        .srcfd = (uint32_t)fd,
        .newfd_flags = (uint32_t)(flags & O_CLOEXEC),
    };

    return ioctl(b->notify, SECCOMP_IOCTL_NOTIF_ADDFD, &add) < 0 ? -errno : 0;
}

/* It is either an attack or a fault of ours. */
static void tell_refused(struct broker *b, const struct seccomp_data *call)
{
    _cleanup_free_ char *name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, call->nr);
    char path[PATH_MAX] = "";

    if (b->told >= TOLD_MAX)
        return;
    b->told++;
    if (call->nr == SYS_openat && read_path(b, call->args[1], path) < 0)
        path[0] = '\0';
    log_warning("confinement: %s was refused%s%s%s", name != NULL ? name : "a system call",
                path[0] != '\0' ? ": " : "", path,
                b->told == TOLD_MAX ? "; no more of this will be told" : "");
}

static void serve_one(struct broker *b, struct seccomp_notif *request,
                      struct seccomp_notif_resp *response)
{
    bool is_fd = false;

    memset(request, 0, sizeof(*request));
    /* The thread that called may be gone by now. */
    if (ioctl(b->notify, SECCOMP_IOCTL_NOTIF_RECV, request) < 0)
        return;
    int r = make_call(b, &request->data, &is_fd);
    if (r >= 0 && is_fd) {
        _cleanup_close_ int fd = r;

        r = answer_with_fd(b, request->id, fd, (int)request->data.args[2]);
        if (r == 0 || r == -ENOENT)
            return;
    }
    if (r == REFUSED) {
        tell_refused(b, &request->data);
        r = request->data.nr == SYS_openat ? -EACCES : -EPERM;
    }
    memset(response, 0, sizeof(*response));
    response->id = request->id;
    response->error = r < 0 ? r : 0;
    response->val = r < 0 ? 0 : r;
    (void)ioctl(b->notify, SECCOMP_IOCTL_NOTIF_SEND, response);
}

static void serve(struct broker *b, int socket)
{
    struct pollfd polled[] = {{.fd = b->notify, .events = POLLIN},
                              {.fd = socket, .events = POLLIN}};
    struct seccomp_notif_resp *response;
    struct seccomp_notif *request;

    if (seccomp_notify_alloc(&request, &response) != 0)
        return;
    for (;;) {
        if (poll(polled, 2, -1) < 0 && errno != EINTR)
            return;
        if ((polled[0].revents & POLLIN) != 0)
            serve_one(b, request, response);
        else if (polled[0].revents != 0 || polled[1].revents != 0)
            return; /* the worker has ended */
    }
}

/* --- Beginning and end --- */

/* That a step was done, or the errno value by which it failed. */
static bool tell_worker(int socket, int code)
{
    const unsigned char byte = (unsigned char)code;

    return send(socket, &byte, 1, MSG_NOSIGNAL) == 1;
}

/* That we may look into it. Returns 0 or -errno. */
static int await_worker(int socket)
{
    char byte;

    return recv(socket, &byte, 1, 0) == 1 ? 0 : -EPIPE;
}

/* A copy of the filter's descriptor, whose number the worker tells; or -errno. */
static int receive_filter(pid_t worker, int socket)
{
    _cleanup_close_ int pidfd = -1;
    int number;

    if (recv(socket, &number, sizeof(number), 0) != (ssize_t)sizeof(number))
        return -EPIPE;
    pidfd = (int)syscall(SYS_pidfd_open, worker, 0);
    int fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
    return fd < 0 ? -errno : fd;
}

/* Keeps nothing open that the worker has: locks, pipes whose end somebody waits for; but standard
 * error, unless it is a daemon. Returns 0 or -errno. */
static int keep_only(const struct sandbox *sandbox, int *socket)
{
    enum { KEPT = 3 };

    /* First, so that there is room for what is opened now. */
    if (*socket != KEPT && dup3(*socket, KEPT, O_CLOEXEC) < 0)
        return -errno;
    *socket = KEPT;
    (void)syscall(SYS_close_range, KEPT + 1, ~0u, 0);
    _cleanup_close_ int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0)
        return -errno;
    if (sandbox->daemon) {
        log_to_syslog();
        if (dup2(null, STDERR_FILENO) < 0)
            return -errno;
    }
    return 0;
}

static void leave_directory(const struct sandbox *sandbox)
{
    for (size_t i = 0; i < sandbox->file_count; i++)
        if (sandbox->files[i].path[0] != '/')
            return;
    if (chdir("/") < 0)
        return;
}

/* Returns 0 or -errno. */
static int open_worker(struct broker *b, pid_t worker)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/mem", (int)worker);
    b->memory = open(path, O_RDONLY | O_CLOEXEC);
    if (b->memory < 0)
        return -errno;
    snprintf(path, sizeof(path), "/proc/%d/fd", (int)worker);
    b->descriptors = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return b->descriptors >= 0 ? 0 : -errno;
}

_Noreturn void sandbox_broker_run(const struct sandbox *sandbox, pid_t worker, int socket)
{
    struct broker b = {.sandbox = sandbox, .notify = -1};

    (void)prctl(PR_SET_NAME, "qverity-broker");
    /* Signals are for the worker, which ends us by its end. */
    (void)setsid();
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGTERM, SIG_IGN);
    (void)signal(SIGHUP, SIG_IGN);
    (void)signal(SIGPIPE, SIG_IGN);
    int r = keep_only(sandbox, &socket);
    leave_directory(sandbox);
    if (r == 0)
        r = await_worker(socket);
    if (r == 0)
        r = open_worker(&b, worker);
    if (!tell_worker(socket, -r) || r < 0)
        _exit(1);
    b.notify = receive_filter(worker, socket);
    if (!tell_worker(socket, b.notify < 0 ? -b.notify : 0) || b.notify < 0)
        _exit(1);
    serve(&b, socket);
    _exit(0);
}
