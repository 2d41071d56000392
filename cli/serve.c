/* SPDX-License-Identifier: MIT */
#include "cli/serve.h"

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "common/log.h"
#include "fs/fs.h"

/*
 * The child's threads (it has only the first if there is no mount): the first serves; one waits for
 * the parent's end of the socket to close; one computes the root hash if that is wanted. It leaves
 * by _exit(), so that nothing has to be freed under threads that may be stuck in a file on a dead
 * network file system.
 *
 * A report is one packet: a byte that tells the kind, then text. An error has its code in front of
 * the text; that the mount is there comes with a descriptor. What the parent sends is the process
 * group of serve_guard().
 */

#define REPORT_MOUNTED 'M'
#define REPORT_TABLE 'T'
#define REPORT_ERROR 'E'
#define REPORT_MAX 8192

/* Room for one descriptor beside a packet, aligned as it has to be. */
union fd_message {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr header;
};

#define CHILD_STOP_SECONDS 8 /* from the parent's end to the child's, if something is stuck */
#define CHILD_STOP_MS 10000  /* that the parent waits for the child before it kills it */
#define CHILD_KILL_MS 2000   /* and behind that */

struct serve {
    char *directory; /* that the child mounts in if it has to, and makes then; or NULL */
    char *socket_path;
    pid_t pid;
    int socket;
    bool reaped;
    int status;
    bool mounted;
    int root;
    char *table;
};

static void serve_clear(struct serve *serve)
{
    cleanup_close(&serve->socket);
    cleanup_close(&serve->root);
    free(serve->directory);
    free(serve->socket_path);
    free(serve->table);
    free(serve);
}
DEFINE_CLEANUP(struct serve, serve_clear);

/* --- The child --- */

struct child {
    const struct serve_options *options;
    const char *directory;
    int socket;
    int root; /* of the mount */
    struct hashtree *tree;
    pthread_mutex_t lock; /* around fs, once there are threads */
    struct fs *fs;
};

static void report(int socket, char kind, const void *bytes, size_t length)
{
    char packet[REPORT_MAX];

    if (length > sizeof(packet) - 1)
        length = sizeof(packet) - 1;
    packet[0] = kind;
    if (length > 0)
        memcpy(packet + 1, bytes, length);
    /* A parent that is gone is noticed elsewhere. */
    (void)send(socket, packet, length + 1, MSG_NOSIGNAL);
}

static void report_error(int socket, const struct error *err)
{
    char packet[REPORT_MAX / 2];
    const int code = err->code;

    memcpy(packet, &code, sizeof(code));
    int n =
        snprintf(packet + sizeof(code), sizeof(packet) - sizeof(code), "%s", error_message(err));
    size_t length = n < 0 ? 0 : (size_t)n;
    if (length > sizeof(packet) - sizeof(code) - 1)
        length = sizeof(packet) - sizeof(code) - 1;
    report(socket, REPORT_ERROR, packet, sizeof(code) + length);
}

/* Unmounts a directory whose server is dead or will not end; without root by fusermount3. */
static void force_unmount(const char *directory)
{
    char *const argv[] = {(char *)"fusermount3", (char *)"-u",      (char *)"-q",
                          (char *)"-z",          (char *)directory, NULL};
    extern char **environ;
    pid_t pid;

    if (umount2(directory, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
        return;
    if (posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ) == 0)
        (void)waitpid(pid, NULL, 0);
}

/* Only the mount makes a directory of ours busy. */
static void remove_directory(const char *directory)
{
    if (rmdir(directory) < 0 && errno != ENOENT) {
        force_unmount(directory);
        (void)rmdir(directory);
    }
}

static void clean_up(const char *directory, const char *socket_path)
{
    struct stat st;

    if (directory != NULL)
        remove_directory(directory);
    if (socket_path != NULL && lstat(socket_path, &st) == 0 && S_ISSOCK(st.st_mode))
        (void)unlink(socket_path);
}

/* Waits for the parent's end and kills what it left. */
static void outlive_parent(int socket)
{
    pid_t group = 0, message;
    ssize_t n;

    while ((n = recv(socket, &message, sizeof(message), 0)) > 0 || (n < 0 && errno == EINTR))
        if (n == sizeof(message))
            group = message;
    if (group > 0)
        (void)kill(-group, SIGKILL);
}

static void *watch_parent(void *arg)
{
    struct child *child = arg;

    outlive_parent(child->socket);
    hashtree_cancel(child->tree);
    pthread_mutex_lock(&child->lock);
    if (child->fs != NULL)
        fs_stop(child->fs);
    pthread_mutex_unlock(&child->lock);
    (void)sleep(CHILD_STOP_SECONDS);
    clean_up(child->directory, child->options->socket);
    _exit(1);
}

int serve_compute_table(const struct cli_options *options, const struct cli_target *target,
                        struct hashtree *tree, char **ret, struct error *err)
{
    _cleanup_(progress_meter_stop_cleanup) struct progress_meter *meter = NULL;
    uint8_t root[VERITY_DIGEST_MAX];

    int r = cli_tree_meter_start(options, "hashing", tree, &meter, err);
    if (r == 0)
        r = hashtree_root(tree, root, err);
    if (r < 0)
        return r;
    char *table = verity_guest_table(hashtree_params(tree), hashtree_geometry(tree), root,
                                     target->partition->number);
    if (table == NULL)
        return error_oom(err);
    *ret = table;
    return 0;
}

static void *report_table(void *arg)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_free_ char *table = NULL;
    struct child *child = arg;

    int r =
        serve_compute_table(child->options->cli, child->options->target, child->tree, &table, &err);
    if (r < 0)
        report_error(child->socket, &err);
    else
        report(child->socket, REPORT_TABLE, table, strlen(table));
    return NULL;
}

/* Sends the mount's root along: from then on it is there as long as the parent wants it. */
static void on_ready(void *arg)
{
    struct child *child = arg;
    char kind = REPORT_MOUNTED;
    struct iovec packet = {.iov_base = &kind, .iov_len = 1};
    union fd_message control = {0};
    struct msghdr message = {.msg_iov = &packet,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control.bytes)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(child->root));
    memcpy(CMSG_DATA(header), &child->root, sizeof(child->root));
    (void)sendmsg(child->socket, &message, MSG_NOSIGNAL);
    cleanup_close(&child->root);
}

static int mount_directory(struct child *child, const struct fs_options *options, struct error *err)
{
    const char *const directory = child->directory;

    if (mkdir(directory, 0700) < 0)
        return error_set_errno(err, errno, "%s: cannot make a directory for the mount", directory);
    int r = fs_mount(options, directory, &child->fs, err);
    if (r < 0)
        return r;
    child->root = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (child->root < 0)
        return error_set_errno(err, errno, "%s", directory);
    return 0;
}

static int child_mount(struct child *child, const struct fs_options *options, struct error *err)
{
    _cleanup_error_ struct error why = ERROR_INIT;

    int r = fs_mount_detached(options, &child->fs, &child->root, &why);
    if (r == 0)
        return 0;
    log_info("%s; mounting at %s", error_message(&why), child->directory);
    return mount_directory(child, options, err);
}

static int start_thread(void *(*function)(void *), struct child *child, struct error *err)
{
    pthread_t thread;

    int code = pthread_create(&thread, NULL, function, child);
    if (code != 0)
        return error_set_errno(err, code, "cannot start a thread");
    (void)pthread_detach(thread);
    return 0;
}

static int child_serve(struct child *child, struct error *err)
{
    const struct cli_target *target = child->options->target;

    int r = cli_tree_new(child->options->cli, target, &child->tree, err);
    if (r < 0)
        return r;
    const struct fs_options options = {
        .image = target->image,
        .partitions = target->partitions,
        .data = target->partition,
        .tree = child->tree,
        .ready = on_ready,
        .arg = child,
    };
    r = child_mount(child, &options, err);
    if (r < 0)
        return r;
    r = start_thread(watch_parent, child, err);
    if (r == 0 && child->options->table)
        r = start_thread(report_table, child, err);
    if (r == 0)
        r = fs_serve(child->fs, err);
    if (r != FS_ABANDONED) {
        pthread_mutex_lock(&child->lock);
        struct fs *fs = TAKE_PTR(child->fs);
        pthread_mutex_unlock(&child->lock);
        fs_free(fs);
    }
    return r < 0 ? r : 0;
}

static _Noreturn void run_child(const struct serve_options *options, const char *directory,
                                int socket)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct child child = {.options = options,
                          .directory = directory,
                          .socket = socket,
                          .root = -1,
                          .lock = PTHREAD_MUTEX_INITIALIZER};
    sigset_t none;

    (void)setsid();
    (void)prctl(PR_SET_NAME, "qverity-serve");
    /* The parent handles its signals in ways of its own; stdout is the guest's console, whose end
     * its reader waits for. */
    (void)signal(SIGPIPE, SIG_IGN);
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        (void)dup2(null, STDIN_FILENO);
        (void)dup2(null, STDOUT_FILENO);
    }
    int r = 0;
    if (options->target != NULL) {
        r = child_serve(&child, &err);
    } else {
        report(socket, REPORT_MOUNTED, NULL, 0);
        outlive_parent(socket);
    }
    if (r < 0)
        report_error(socket, &err);
    clean_up(directory, options->socket);
    _exit(r < 0 ? 1 : 0);
}

/* --- The parent --- */

/* A name for a directory to mount in, should one be needed: in the user's runtime directory, else
 * root's, else /tmp. Named here, so that both processes know what to remove. */
static int name_directory(char **ret, struct error *err)
{
    const char *const parents[] = {getenv("XDG_RUNTIME_DIR"), "/run", "/tmp"};
    uint64_t random;

    if (getrandom(&random, sizeof(random), 0) != sizeof(random))
        return error_set_errno(err, errno, "getrandom");
    for (size_t i = 0; i < sizeof(parents) / sizeof(parents[0]); i++) {
        _cleanup_free_ char *real = NULL;
        if (parents[i] == NULL || parents[i][0] != '/')
            continue;
        real = realpath(parents[i], NULL);
        if (real == NULL || access(real, W_OK | X_OK) < 0)
            continue;
        char *path;
        if (asprintf(&path, "%s/qverity-boot.%016" PRIx64, real, random) < 0)
            return error_oom(err);
        *ret = path;
        return 0;
    }
    return error_set_errno(err, errno, "cannot make a directory for the mount in /run or /tmp");
}

int serve_start(const struct serve_options *options, struct serve **ret, struct error *err)
{
    _cleanup_(serve_clear_cleanup) struct serve *serve = calloc(1, sizeof(*serve));
    _cleanup_close_ int theirs = -1;
    int fds[2], r = 0;

    if (serve == NULL)
        return error_oom(err);
    serve->socket = serve->root = -1;
    if (options->socket != NULL && (serve->socket_path = strdup(options->socket)) == NULL)
        return error_oom(err);
    if (options->target != NULL)
        r = name_directory(&serve->directory, err);
    if (r < 0)
        return r;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return error_set_errno(err, errno, "socketpair");
    serve->socket = fds[0];
    theirs = fds[1];
    (void)fflush(stdout);
    serve->pid = fork();
    if (serve->pid < 0)
        return error_set_errno(err, errno, "fork");
    if (serve->pid == 0) {
        cleanup_close(&serve->socket);
        run_child(options, serve->directory, theirs);
    }
    *ret = TAKE_PTR(serve);
    return 0;
}

static bool reap_within(struct serve *serve, int ms)
{
    const struct timespec pause = {.tv_nsec = 2 * 1000 * 1000};

    for (int waited = 0; !serve->reaped; waited += 2) {
        if (waitpid(serve->pid, &serve->status, WNOHANG) != 0)
            serve->reaped = true;
        else if (waited >= ms)
            return false;
        else
            (void)nanosleep(&pause, NULL);
    }
    return true;
}

void serve_guard(struct serve *serve, pid_t group)
{
    /* A child that is gone is noticed elsewhere. */
    (void)send(serve->socket, &group, sizeof(group), MSG_NOSIGNAL | MSG_DONTWAIT);
}

void serve_kill(struct serve *serve)
{
    if (!serve->reaped)
        (void)kill(serve->pid, SIGKILL);
    (void)reap_within(serve, CHILD_KILL_MS);
}

void serve_free(struct serve *serve)
{
    cleanup_close(&serve->socket);
    cleanup_close(&serve->root);
    if (!reap_within(serve, CHILD_STOP_MS))
        serve_kill(serve);
    clean_up(serve->directory, serve->socket_path);
    serve_clear(serve);
}

int serve_fd(const struct serve *serve)
{
    return serve->socket;
}

static int take_report(struct serve *serve, char *packet, size_t length, struct error *err)
{
    int code;

    switch (packet[0]) {
    case REPORT_MOUNTED:
        serve->mounted = true;
        return 0;
    case REPORT_TABLE:
        free(serve->table);
        serve->table = strndup(packet + 1, length - 1);
        return serve->table == NULL ? error_oom(err) : 0;
    case REPORT_ERROR:
        if (length < 1 + sizeof(code))
            break;
        memcpy(&code, packet + 1, sizeof(code));
        return error_set(err, code > 0 ? code : EIO, "%.*s", (int)(length - 1 - sizeof(code)),
                         packet + 1 + sizeof(code));
    }
    return error_set(err, EPROTO, "the process that serves the disk sent what it should not");
}

static int child_gone(struct serve *serve, struct error *err)
{
    const char *does = serve->directory != NULL ? "serves the disk" : "cleans up behind this one";

    if (!reap_within(serve, 500))
        return error_set(err, EIO, "the process that %s hangs", does);
    if (WIFSIGNALED(serve->status))
        return error_set(err, EIO, "the process that %s was ended by signal %d", does,
                         WTERMSIG(serve->status));
    if (serve->directory == NULL)
        return error_set(err, EIO, "the process that %s has ended", does);
    return error_set(err, EIO, "%s was unmounted by somebody else", serve->directory);
}

/* As recv(); a descriptor that comes along becomes serve->root. */
static ssize_t receive(struct serve *serve, char *packet, size_t room)
{
    struct iovec iov = {.iov_base = packet, .iov_len = room};
    union fd_message control = {0};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control.bytes)};

    ssize_t n = recvmsg(serve->socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    const struct cmsghdr *header = n >= 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof(serve->root))) {
        cleanup_close(&serve->root);
        memcpy(&serve->root, CMSG_DATA(header), sizeof(serve->root));
    }
    return n;
}

int serve_dispatch(struct serve *serve, struct error *err)
{
    char packet[REPORT_MAX];

    for (;;) {
        ssize_t n = receive(serve, packet, sizeof(packet));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n <= 0)
            return child_gone(serve, err);
        int r = take_report(serve, packet, (size_t)n, err);
        if (r < 0)
            return r;
    }
}

bool serve_mounted(const struct serve *serve)
{
    return serve->mounted;
}

int serve_root(const struct serve *serve)
{
    return serve->root;
}

void serve_close_root(struct serve *serve)
{
    cleanup_close(&serve->root);
}

const char *serve_table(const struct serve *serve)
{
    return serve->table;
}
