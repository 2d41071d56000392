/* SPDX-License-Identifier: MIT */
/*
 * An fs's life: the caller of fs_serve() sleeps on a semaphore until a worker finds the filesystem
 * unmounted or fs_stop() is called.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "fs/internal.h"
#include "image/write.h"

/* How long the end waits for a thread that reads from a file. */
#define END_SECONDS 10

/* --- Mounting --- */

/* What libfuse and fusermount3 have to say, for the error. Set only by fs_mount(), when there are
 * no threads. */
static int libfuse_messages = -1;

__attribute__((format(printf, 2, 0))) static void log_libfuse(enum fuse_log_level level,
                                                              const char *format, va_list args)
{
    _cleanup_free_ char *text = NULL;

    if (libfuse_messages >= 0) {
        vdprintf(libfuse_messages, format, args);
        return;
    }
    if (vasprintf(&text, format, args) < 0) {
        text = NULL;
        return;
    }
    text[strcspn(text, "\n")] = '\0';
    log_line(level <= FUSE_LOG_ERR       ? LOG_LEVEL_ERROR
             : level <= FUSE_LOG_WARNING ? LOG_LEVEL_WARNING
                                         : LOG_LEVEL_DEBUG,
             "%s", text);
}

/* The messages in one line, without the programs' names in front. */
static void read_messages(int fd, char *text, size_t room)
{
    static const char *const prefixes[] = {"fuse: ", "fusermount3: ", "fusermount: "};
    char raw[1024];
    size_t used = 0;

    ssize_t n = pread(fd, raw, sizeof(raw) - 1, 0);
    raw[n > 0 ? n : 0] = '\0';
    text[0] = '\0';
    char *rest = raw;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;) {
        for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
            if (strncmp(line, prefixes[i], strlen(prefixes[i])) == 0)
                line += strlen(prefixes[i]);
        if (*line == '\0')
            continue;
        int written = snprintf(text + used, room - used, "%s%s", used > 0 ? "; " : "", line);
        if (written < 0 || (size_t)written >= room - used)
            break;
        used += (size_t)written;
    }
    if (text[0] == '\0')
        snprintf(text, room, "FUSE failed without a reason");
}

/* Mounts with stderr, which fusermount3 writes to, and libfuse's messages going to a memory file.
 */
static int mount_session(struct fs *fs, const char *mount_point, struct error *err)
{
    char *argv[] = {(char *)"qverity", (char *)"-o", fs->mount.fuse, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, argv);
    _cleanup_close_ int messages = memfd_create("messages", MFD_CLOEXEC);
    _cleanup_close_ int real_stderr = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    char text[1024];

    if (messages < 0)
        return error_set_errno(err, errno, "cannot create a memory file");
    fuse_set_log_func(log_libfuse);
    libfuse_messages = messages;
    if (real_stderr >= 0)
        dup2(messages, STDERR_FILENO);
    fs->session = fuse_session_new(&args, &fs_ops, sizeof(fs_ops), fs);
    fs->mounted = fs->session != NULL && fuse_session_mount(fs->session, mount_point) == 0;
    if (real_stderr >= 0)
        dup2(real_stderr, STDERR_FILENO);
    libfuse_messages = -1;
    fuse_opt_free_args(&args);
    if (fs->mounted)
        return 0;
    read_messages(messages, text, sizeof(text));
    return error_set(err, EIO, "%s: cannot mount: %s", mount_point, text);
}

/* All but the mount. */
static int fs_new(const struct fs_options *options, struct fs **ret, struct error *err)
{
    _cleanup_(fs_free_cleanup) struct fs *fs = calloc(1, sizeof(*fs));
    size_t sizes[TEXT_COUNT];

    if (fs == NULL)
        return error_oom(err);
    fs->options = *options;
    fs->root = -1;
    fs_mapped_init(&fs->mapped);
    pthread_mutex_init(&fs->snapshots_lock, NULL);
    sem_init(&fs->wake, 0, 0);
    fs->writable = image_writable(options->image);
    int r = fs_workers_init(fs, err);
    fs_jobs_init(&fs->jobs, fs_workers_for_hashing(&fs->workers));
    if (r < 0)
        return r;
    r = fs_options_parse(options->mount_options, image_path(options->image), fs->writable,
                         &fs->mount, err);
    if (r < 0)
        return r;
    r = fs_texts_sizes(options, sizes, err);
    if (r < 0)
        return r;
    r = fs_nodes_init(options, sizes, &fs->nodes, err);
    if (r == 0 && fs->writable)
        r = hashtree_changing(options->tree, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(fs);
    return 0;
}

int fs_mount(const struct fs_options *options, const char *directory, struct fs **ret,
             struct error *err)
{
    _cleanup_(fs_free_cleanup) struct fs *fs = NULL;

    int r = fs_new(options, &fs, err);
    if (r < 0)
        return r;
    fs->directory = strdup(directory);
    if (fs->directory == NULL)
        return error_oom(err);
    r = mount_session(fs, fs->directory, err);
    if (r == 0)
        r = fs_use_channels(fs->session, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(fs);
    return 0;
}

int fs_mount_detached(const struct fs_options *options, struct fs **ret, int *ret_root,
                      struct error *err)
{
    _cleanup_(fs_free_cleanup) struct fs *fs = NULL;
    _cleanup_close_ int device = -1, root = -1;
    char mount_point[32];

    assert(options->mount_options == NULL);
    int r = fs_new(options, &fs, err);
    if (r < 0)
        return r;
    const struct fs_detached_options detached = {
        .uid = geteuid(),
        .gid = getegid(),
        .max_read = fs->mount.max_read,
        .read_only = !fs->writable,
        .source = image_path(options->image),
    };
    r = fs_detached_open(&detached, &device, &fs->root, err);
    if (r < 0)
        return error_prefix(err, "cannot mount without a directory");
    /* By this name libfuse knows a connection that is mounted; it owns it from then on. */
    snprintf(mount_point, sizeof(mount_point), "/dev/fd/%d", device);
    if (asprintf(&fs->directory, "/proc/self/fd/%d", fs->root) < 0) {
        fs->directory = NULL;
        return error_oom(err);
    }
    root = fcntl(fs->root, F_DUPFD_CLOEXEC, 3);
    if (root < 0)
        return error_set_errno(err, errno, "fcntl");
    r = mount_session(fs, mount_point, err);
    if (r < 0)
        return r;
    (void)take_fd(&device);
    r = fs_use_channels(fs->session, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(fs);
    *ret_root = take_fd(&root);
    return 0;
}

/* Also ends whatever waits for an answer. */
static void unmount(struct fs *fs)
{
    if (fs->mounted)
        fuse_session_unmount(fs->session);
    fs->mounted = false;
    if (fs->root < 0)
        return;
    /* Others may have the mount: it is the connection that has to go. */
    cleanup_close(&fs->root);
    if (fs->session != NULL && !fs->abandoned) {
        fuse_session_destroy(fs->session);
        fs->session = NULL;
    }
}

void fs_free(struct fs *fs)
{
    if (fs->abandoned)
        return;
    unmount(fs);
    if (fs->session != NULL)
        fuse_session_destroy(fs->session);
    fs_workers_destroy(fs);
    fs_jobs_destroy(&fs->jobs);
    fs_mapped_destroy(&fs->mapped);
    fs_snapshots_free(fs);
    pthread_mutex_destroy(&fs->snapshots_lock);
    sem_destroy(&fs->wake);
    free(fs->nodes.all);
    free(fs->mount.fuse);
    free(fs->directory);
    free(fs);
}

/* --- Serving --- */

/* Waits for an answer from the mount itself, and then says that there are answers. */
static void *prober_run(void *arg)
{
    struct fs *fs = arg;
    struct stat st;

    if (stat(fs->directory, &st) < 0 || atomic_load(&fs->stop))
        return NULL;
    fs_raise_readahead(st.st_dev);
    if (fs->options.ready != NULL)
        fs->options.ready(fs->options.arg);
    return NULL;
}

static int start_threads(struct fs *fs, struct error *err)
{
    int r = fs_workers_start(fs, err);

    if (r < 0)
        return r;
    r = fs_thread_start(&fs->prober, prober_run, fs);
    fs->prober_started = r == 0;
    return r != 0 ? error_set_errno(err, r, "cannot start a thread") : 0;
}

/* Waits for all threads but the prober, which may need the unmounting to end. */
static void join_threads(struct fs *fs)
{
    struct timespec deadline;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += END_SECONDS;
    fs->abandoned = !fs_mapped_stop(fs, &deadline);
    fuse_session_exit(fs->session);
    fs->abandoned |= !fs_workers_end(fs, &deadline);
    if (fs->jobs.builder_started && pthread_timedjoin_np(fs->jobs.builder, NULL, &deadline) != 0)
        fs->abandoned = true;
}

static void end(struct fs *fs)
{
    atomic_store(&fs->stop, true);
    fs_jobs_stop(fs);
    hashtree_cancel(fs->options.tree);
    join_threads(fs);
    if (fs->abandoned)
        log_error("%s: a read of the image does not return; ending without it",
                  image_path(fs->options.image));
    else
        fs_workers_close(fs);
    unmount(fs);
    if (fs->prober_started && !fs->abandoned)
        pthread_join(fs->prober, NULL);
}

/* So many times in the idle time somebody looks whether there were requests. */
#define IDLE_LOOKS 4

/* Waits until serving has to end. A directory that somebody works in is no reason to stay. */
static void wait_for_end(struct fs *fs)
{
    uint64_t step_ms = (uint64_t)fs->options.idle_seconds * 1000 / IDLE_LOOKS;
    unsigned quiet = 0;

    while (!atomic_load(&fs->stop) && quiet < IDLE_LOOKS) {
        struct timespec until;

        if (fs->options.idle_seconds == 0) {
            sem_wait(&fs->wake);
            continue;
        }
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += (time_t)(step_ms / 1000);
        until.tv_nsec += (long)(step_ms % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
        if (sem_clockwait(&fs->wake, CLOCK_MONOTONIC, &until) == 0 || errno != ETIMEDOUT)
            continue;
        bool asked = atomic_exchange(&fs->asked, false);
        quiet = asked || atomic_load(&fs->open_files) > 0 ? 0 : quiet + 1;
    }
}

int fs_serve(struct fs *fs, struct error *err)
{
    int r = start_threads(fs, err);

    if (r == 0)
        wait_for_end(fs);
    end(fs);
    if (r < 0)
        return r;
    return fs->abandoned ? FS_ABANDONED : 0;
}

void fs_stop(struct fs *fs)
{
    fs_wake_to_end(fs);
}
