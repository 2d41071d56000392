/* SPDX-License-Identifier: MIT */
/*
 * `qverity mount`. What can be refused is refused before the fork that makes the daemon. The child
 * mounts; both wait until the mount itself has answered a request; then the child leaves the
 * terminal and the parent returns. What goes wrong until then comes to the parent over a pipe.
 *
 * The image is open, and locked, in the parent already: its locks belong to the open files, not to
 * a process, and are the child's once the parent is gone.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/notify.h"
#include "common/io.h"
#include "common/log.h"
#include "common/units.h"
#include "fs/fs.h"
#include "image/write.h"

#define IDLE_MAX (366u * 86400) /* seconds */

struct mount_context {
    bool foreground;
    const char *overlay;
    const char *root_hash;   /* that data has to have; or NULL */
    const char *hash_device; /* or NULL */
    unsigned idle_seconds;   /* 0: for ever */
    char options[4096];      /* of -o */
};

enum { OPT_FOREGROUND, OPT_OPTIONS, OPT_OVERLAY, OPT_ROOT_HASH, OPT_HASH_DEVICE, OPT_IDLE };

static const struct cli_option mount_own_options[] = {
    [OPT_FOREGROUND] = {"foreground", 'f', NULL, "stay in the foreground, log to stderr"},
    [OPT_OPTIONS] = {"options", 'o', "LIST", "mount options: allow_other, direct_io, …"},
    [OPT_OVERLAY] = {"overlay", 0, "FILE", "let the files be written; changes go to FILE (qcow2)"},
    [OPT_ROOT_HASH] = {"verify-root-hash", 0, "HEX",
                       "check all data against this root hash before it is served"},
    [OPT_HASH_DEVICE] = {"hash-device", 0, "FILE", "with the hashes from this hash device"},
    [OPT_IDLE] = {"idle-timeout", 0, "SECONDS", "unmount when it was not used for so long"},
    {0},
};

static int parse_idle(const char *argument, unsigned *ret, struct error *err)
{
    uint64_t seconds;

    int r = parse_u64(argument, "--idle-timeout", &seconds, err);
    if (r < 0)
        return r;
    if (seconds > IDLE_MAX)
        return error_set(err, EINVAL, "--idle-timeout: '%s' is more than %u", argument, IDLE_MAX);
    *ret = (unsigned)seconds;
    return 0;
}

static int mount_option(size_t index, const char *argument, void *context, struct error *err)
{
    struct mount_context *mount = context;
    size_t used = strlen(mount->options);

    if (index == OPT_FOREGROUND) {
        mount->foreground = true;
        return 0;
    }
    if (index == OPT_OVERLAY) {
        mount->overlay = argument;
        return 0;
    }
    if (index == OPT_ROOT_HASH) {
        mount->root_hash = argument;
        return 0;
    }
    if (index == OPT_HASH_DEVICE) {
        mount->hash_device = argument;
        return 0;
    }
    if (index == OPT_IDLE)
        return parse_idle(argument, &mount->idle_seconds, err);
    int n = snprintf(mount->options + used, sizeof(mount->options) - used, "%s%s",
                     used > 0 ? "," : "", argument);
    if (n < 0 || (size_t)n >= sizeof(mount->options) - used)
        return error_set(err, EINVAL, "-o: more than %zu bytes of mount options",
                         sizeof(mount->options) - 1);
    /* Whether the files may be written is known when all options are. */
    return fs_check_options(argument, true, err);
}

/* --- The process that serves --- */

#define DESCRIPTORS_MAX 256

struct descriptors {
    int fds[DESCRIPTORS_MAX];
    size_t count;
};

/* Descriptors above stderr that are open. */
static void list_descriptors(struct descriptors *ret)
{
    DIR *dir = opendir("/proc/self/fd");
    const struct dirent *entry;

    ret->count = 0;
    if (dir == NULL)
        return;
    while ((entry = readdir(dir)) != NULL && ret->count < DESCRIPTORS_MAX) {
        int fd = atoi(entry->d_name);
        if (fd > STDERR_FILENO && fd != dirfd(dir))
            ret->fds[ret->count++] = fd;
    }
    closedir(dir);
}

struct server {
    const struct cli_options *cli;
    const char *mount_options;
    const char *directory;
    const struct cli_target *target;
    struct hashtree *tree;
    bool verified;
    unsigned idle_seconds;
    int notify; /* of notify_open() */
    int report; /* pipe to the waiting parent; -1 in the foreground */
    const struct descriptors *inherited;
    struct fs *fs;
    struct progress_meter *meter;
};

/* For the signal handler; set while those signals may come. */
static struct fs *_Atomic signalled_fs;

static void on_signal(int number)
{
    struct fs *fs = signalled_fs;

    (void)number;
    if (fs != NULL)
        fs_stop(fs);
}

static void ending_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP);
}

static void handle_signals(bool foreground)
{
    struct sigaction end = {.sa_handler = on_signal}, ignore = {.sa_handler = SIG_IGN}, old;

    sigaction(SIGPIPE, &ignore, NULL);
    sigaction(SIGINT, &end, NULL);
    sigaction(SIGTERM, &end, NULL);
    /* The terminal that closes ends what runs in its foreground, unless nohup says otherwise. */
    sigaction(SIGHUP, NULL, &old);
    sigaction(SIGHUP, foreground && old.sa_handler != SIG_IGN ? &end : &ignore, NULL);
}

/* A daemon keeps no terminal, no directory, and no descriptor of whoever started it, who may wait
 * for the end of a pipe. */
static void leave_terminal(const struct descriptors *inherited)
{
    _cleanup_close_ int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    for (size_t i = 0; i < inherited->count; i++)
        (void)close(inherited->fds[i]);

    (void)setsid();
    if (chdir("/") < 0)
        log_warning("cannot change to /: %s", strerror(errno));
    log_to_syslog();
    if (null >= 0) {
        (void)dup2(null, STDIN_FILENO);
        (void)dup2(null, STDOUT_FILENO);
        (void)dup2(null, STDERR_FILENO);
    }
}

/* Also of a daemon, for `Type=notify` with `NotifyAccess=all`. */
static void tell_ready(const struct server *server)
{
    char state[64];

    snprintf(state, sizeof(state), "READY=1\nMAINPID=%ld", (long)getpid());
    notify_send(server->notify, state);
}

static void on_ready(void *arg)
{
    struct server *server = arg;

    tell_ready(server);
    if (server->report < 0)
        return;
    leave_terminal(server->inherited);
    const int code = 0;
    if (io_write(server->report, "parent", &code, sizeof(code), NULL) < 0)
        fs_stop(server->fs); /* was ended while it waited */
    cleanup_close(&server->report);
}

static void on_build_started(const struct progress *progress, void *arg)
{
    struct server *server = arg;

    if (server->report < 0 &&
        cli_meter_start(server->cli, "hashing", progress, &server->meter, NULL) < 0)
        server->meter = NULL;
}

static void on_build_ended(void *arg)
{
    struct server *server = arg;

    if (server->meter != NULL)
        progress_meter_stop(TAKE_PTR(server->meter));
}

/* Everything acknowledged becomes durable before the process ends. */
static int flush(struct image *image, struct error *err)
{
    _cleanup_error_ struct error flush_err = ERROR_INIT;

    if (!image_writable(image))
        return 0;
    int r = image_flush(image, &flush_err);
    if (r < 0) {
        log_error("%s", error_message(&flush_err));
        if (err->code == 0)
            error_move(err, &flush_err);
    }
    return r;
}

#define ABANDONED_FLUSH_SECONDS 10

/* Ends the process while a thread hangs; the overlay may hang as well. */
static _Noreturn void leave_abandoned(struct image *image)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    alarm(ABANDONED_FLUSH_SECONDS);
    _exit(flush(image, &err) < 0 ? CLI_FAILED : CLI_DONE);
}

static int serve(struct server *server, bool foreground, struct error *err)
{
    _cleanup_(fs_free_cleanup) struct fs *fs = NULL;
    const struct cli_target *target = server->target;
    sigset_t signals;

    /* From the mounting on, a signal must not end us before we can unmount. */
    ending_signals(&signals);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    handle_signals(foreground);
    const struct fs_options options = {
        .image = target->image,
        .partitions = target->partitions,
        .data = target->partition,
        .tree = server->tree,
        .verified = server->verified,
        .idle_seconds = server->idle_seconds,
        .mount_options = server->mount_options,
        .ready = on_ready,
        .build_started = foreground && !server->cli->quiet ? on_build_started : NULL,
        .build_ended = foreground ? on_build_ended : NULL,
        .arg = server,
    };
    int r = fs_mount(&options, server->directory, &fs, err);
    if (r < 0)
        return r;
    const struct cli_mountpoint mount = {server->directory, .daemon = !foreground};
    r = cli_confine(server->cli, &(struct image *){target->image}, 1, &mount, err);
    if (r < 0)
        return r;
    server->fs = fs;
    signalled_fs = fs;
    sigprocmask(SIG_UNBLOCK, &signals, NULL);
    r = fs_serve(fs, err);
    notify_send(server->notify, "STOPPING=1");
    sigprocmask(SIG_BLOCK, &signals, NULL);
    signalled_fs = NULL;
    if (r == FS_ABANDONED)
        leave_abandoned(target->image); /* a thread still uses all of this */
    int flushed = flush(target->image, err);
    return r < 0 ? r : flushed;
}

/* --- The parent --- */

/* In the child: serves, and tells the parent what went wrong before it was ready. */
static int run_daemon(struct server *server)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    log_open_syslog();
    int r = serve(server, false, &err);
    if (r == 0)
        return CLI_DONE;
    if (server->report >= 0) {
        const int code = err.code;
        const char *message = error_message(&err);
        if (io_write(server->report, "parent", &code, sizeof(code), NULL) == 0)
            io_write(server->report, "parent", message, strlen(message), NULL);
    }
    return CLI_FAILED;
}

/* All that the child writes until it closes the pipe. Returns how many bytes. */
static size_t read_report(int report, char *buffer, size_t room)
{
    size_t used = 0;

    while (used < room) {
        ssize_t n = read(report, buffer + used, room - used);
        if (n > 0)
            used += (size_t)n;
        else if (n == 0 || errno != EINTR)
            break;
    }
    return used;
}

/* Waits until the child is ready, or tells why it is not. */
static int wait_ready(pid_t child, int report, struct error *err)
{
    char buffer[4096];
    int code, status;

    size_t length = read_report(report, buffer, sizeof(buffer));
    if (length >= sizeof(code)) {
        memcpy(&code, buffer, sizeof(code));
        if (code == 0)
            return 0;
        return error_set(err, code, "%.*s", (int)(length - sizeof(code)), buffer + sizeof(code));
    }
    if (waitpid(child, &status, 0) == child && WIFSIGNALED(status))
        return error_set(err, EIO, "the process that serves the mount was ended by signal %d (%s)",
                         WTERMSIG(status), strsignal(WTERMSIG(status)));
    return error_set(err, EIO, "the process that serves the mount ended before it was ready");
}

static int start_daemon(struct server *server, struct error *err)
{
    _cleanup_close_ int report = -1;
    int fds[2];

    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_set_errno(err, errno, "cannot make a pipe");
    report = fds[0];
    server->report = fds[1];
    (void)fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        cleanup_close(&report);
        int r = run_daemon(server);
        cleanup_close(&server->report);
        return r;
    }
    int saved_errno = errno;
    cleanup_close(&server->report);
    if (child < 0)
        return error_set_errno(err, saved_errno, "cannot fork");
    return wait_ready(child, report, err);
}

/* The daemon changes its directory, and its log is read elsewhere. Symbolic links stay: a backing
 * file is looked for beside the name that was given. */
static int absolute_path(const char *path, char **ret, struct error *err)
{
    _cleanup_free_ char *directory = NULL;

    if (path[0] != '/') {
        directory = getcwd(NULL, 0);
        if (directory == NULL)
            return error_set_errno(err, errno, "cannot tell the current directory");
    }
    if (asprintf(ret, "%s%s%s", directory != NULL ? directory : "", directory != NULL ? "/" : "",
                 path) < 0)
        return error_oom(err);
    return 0;
}

/* The image and its tree, by names that stay right in the daemon. */
static int open_target(const char *path, const struct mount_context *mount,
                       struct cli_options *options, struct cli_target *target, char **ret_tree_path,
                       int *ret_hash_fd, struct hashtree **ret_tree, struct error *err)
{
    _cleanup_free_ char *image = NULL, *overlay = NULL;

    int r = absolute_path(path, &image, err);
    if (r == 0 && options->keep.path != NULL) {
        r = absolute_path(options->keep.path, ret_tree_path, err);
        options->keep.path = *ret_tree_path;
    }
    if (r == 0 && options->overlay != NULL)
        r = absolute_path(options->overlay, &overlay, err);
    if (r < 0)
        return r;
    struct cli_options apart = *options;
    apart.overlay = overlay;
    /* There is still a filesystem to be mounted. */
    apart.probe_apart = true;
    r = cli_target_open(image, &apart, NULL, target, err);
    if (r < 0)
        return r;
    if (mount->root_hash == NULL)
        return cli_tree_new(options, target, ret_tree, err);
    return cli_tree_trusted(options, target, mount->root_hash, mount->hash_device, ret_hash_fd,
                            ret_tree, err);
}

static int check_together(const struct mount_context *mount, struct error *err)
{
    _cleanup_error_ struct error option_err = ERROR_INIT;

    if (mount->hash_device != NULL && mount->root_hash == NULL)
        return cli_usage_error(err, "--hash-device needs --verify-root-hash");
    if (mount->overlay != NULL && mount->root_hash != NULL)
        return cli_usage_error(err, "--verify-root-hash: data that is written has another one, so "
                                    "--overlay cannot be given");
    if (fs_check_options(mount->options, mount->overlay != NULL, &option_err) < 0)
        return cli_usage_error(err, "%s", error_message(&option_err));
    return 0;
}

static int mount_run(const struct cli_options *options, int argc, char **argv, void *context,
                     struct error *err)
{
    const struct mount_context *mount = context;
    struct cli_options absolute = *options;
    _cleanup_free_ char *directory = NULL, *tree_path = NULL;
    _cleanup_target_ struct cli_target target = {0};
    _cleanup_close_ int hash_fd = -1, notify = -1;
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    struct descriptors inherited;

    (void)argc;
    list_descriptors(&inherited);
    int r = check_together(mount, err);
    if (r < 0)
        return r;
    absolute.overlay = mount->overlay;
    r = open_target(argv[0], mount, &absolute, &target, &tree_path, &hash_fd, &tree, err);
    if (r == -HASHTREE_WRONG_ROOT) {
        log_error("%s", error_message(err));
        return CLI_WRONG;
    }
    if (r < 0)
        return r;
    r = fs_check_directory(argv[1], &directory, err);
    if (r < 0)
        return r;
    absolute.superblock = true;
    notify = notify_open();
    struct server server = {
        .cli = &absolute,
        .mount_options = mount->options,
        .directory = directory,
        .target = &target,
        .tree = tree,
        .verified = mount->root_hash != NULL,
        .idle_seconds = mount->idle_seconds,
        .notify = notify,
        .report = -1,
        .inherited = &inherited,
    };
    if (mount->foreground)
        return serve(&server, true, err);
    return start_daemon(&server, err);
}

const struct cli_command cmd_mount = {
    .name = "mount",
    .arguments = "IMAGE DIRECTORY",
    .summary = "Serves an image's disk, partitions and hash device as files",
    .details =
        "Mounts a filesystem on DIRECTORY, which must be empty, and returns when its files can be\n"
        "read: disk, part1 and so on, data (a link to the data partition), hash (the dm-verity\n"
        "hash device of data), root-hash, table, cmdline, params.json and stats.json. The root\n"
        "hash is computed when one of the files that tell it is opened. 'fusermount3 -u "
        "DIRECTORY'\n"
        "unmounts.\n"
        "\n"
        "All files are read-only, unless --overlay is given: then disk, the partitions and data "
        "can\n"
        "be written to, and the others follow. IMAGE stays as it is: what is written goes to a\n"
        "qcow2 file on top of it, which is made if it is missing and else goes on to be used.\n"
        "\n"
        "With --verify-root-hash, each block of the data partition is checked before it is "
        "served:\n"
        "what has not the right digest is an I/O error for who reads it, and a line in the log. "
        "The\n"
        "hashes are those of the hash device; without one, all data is read once, unless the tree\n"
        "file is current, and it is an error (exit 3) if it has not this root hash.\n"
        "\n"
        "Mount options: allow_other, allow_root, auto_unmount, direct_io (no page cache for the\n"
        "files), max_read=BYTES, fsname=NAME, noexec, noatime and others of mount(8) that make\n"
        "sense here.",
    .groups = CLI_IMAGE | CLI_PARTITION | CLI_VERITY | CLI_TREE | CLI_KEEP | CLI_SANDBOX,
    .options = mount_own_options,
    .operands_min = 2,
    .operands_max = 2,
    .option = mount_option,
    .context_size = sizeof(struct mount_context),
    .run = mount_run,
};
