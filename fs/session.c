/* SPDX-License-Identifier: MIT */
/*
 * An fs's life.
 *
 * libfuse's own loop starts and ends threads as it likes, without an upper limit before 3.12, and
 * may sleep through a signal that comes between its test and its wait. So the loop is our own:
 * a fixed number of workers, each blocked in a read of the FUSE device until there is a request,
 * and the caller of fs_serve() asleep on a semaphore until a worker finds the filesystem unmounted
 * or fs_stop() is called. To end, workers are cancelled by pthread_cancel(), which can act on them
 * only within that read.
 *
 * Each worker has a device descriptor of its own (FUSE_DEV_IOC_CLONE), and so a queue of its own
 * for the requests that it answers. libfuse before 3.14 cannot be told to use it; there the workers
 * share one.
 */
#include <assert.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "fs/internal.h"
#include "image/write.h"

#define WORKERS_MIN 8
#define WORKERS_MAX 32

/* How long the end waits for a thread that reads from a file. */
#define END_SECONDS 10

/* --- Threads and channels --- */

static _Thread_local int thread_channel = -1;

int fs_channel(void)
{
    return thread_channel;
}

void fs_set_channel(int fd)
{
    thread_channel = fd;
}

int fs_thread_start(pthread_t *thread, void *(*run)(void *), void *arg)
{
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return r;
}

#ifdef HAVE_FUSE_CUSTOM_IO

static ssize_t channel_read(int fd, void *buffer, size_t size, void *userdata)
{
    (void)fd;
    (void)userdata;
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
    ssize_t n = read(thread_channel, buffer, size);
    int saved_errno = errno;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    errno = saved_errno;
    return n;
}

/*
 * The answer to INIT. Files that bypass the page cache can be mapped shared only where the kernel
 * is told that we keep the mappings right (Linux 6.6; unknown flags are ignored). libfuse knows the
 * flag from 3.16 on.
 */
static _Thread_local bool answering_init;

void fs_allow_shared_mappings(struct fuse_conn_info *conn)
{
#ifdef FUSE_CAP_DIRECT_IO_ALLOW_MMAP
    conn->want |= conn->capable & FUSE_CAP_DIRECT_IO_ALLOW_MMAP;
#else
    (void)conn;
    answering_init = true;
#endif
}

#define INIT_DIRECT_IO_ALLOW_MMAP2 (1u << 4) /* in flags2 */

static ssize_t channel_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    struct fuse_init_out *init = count == 2 ? iov[1].iov_base : NULL;

    (void)fd;
    (void)userdata;
    if (answering_init && init != NULL && iov[1].iov_len == sizeof(*init)) {
        init->flags |= FUSE_INIT_EXT;
        init->flags2 |= INIT_DIRECT_IO_ALLOW_MMAP2;
    }
    answering_init = false;
    return writev(thread_channel, iov, count);
}

static int use_channels(struct fuse_session *session, struct error *err)
{
    static const struct fuse_custom_io io = {.read = channel_read, .writev = channel_writev};

    int r = fuse_session_custom_io(session, &io, fuse_session_fd(session));
    return r < 0 ? error_set_errno(err, -r, "cannot set up libfuse") : 0;
}

static int receive(struct fuse_session *session, struct fuse_buf *buf)
{
    return fuse_session_receive_buf(session, buf);
}

/* Another descriptor for the connection, or -1. */
static int clone_channel(int session_fd)
{
    _cleanup_close_ int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    uint32_t source = (uint32_t)session_fd;

    if (fd < 0 || ioctl(fd, FUSE_DEV_IOC_CLONE, &source) < 0) {
        log_debug("/dev/fuse: cannot clone the descriptor: %s", strerror(errno));
        return -1;
    }
    return take_fd(&fd);
}

#else

static int use_channels(struct fuse_session *session, struct error *err)
{
    (void)session;
    (void)err;
    return 0;
}

void fs_allow_shared_mappings(struct fuse_conn_info *conn)
{
    (void)conn;
}

static int receive(struct fuse_session *session, struct fuse_buf *buf)
{
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
    int r = fuse_session_receive_buf(session, buf);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    return r;
}

static int clone_channel(int session_fd)
{
    (void)session_fd;
    return -1;
}

#endif

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

static unsigned default_workers(void)
{
    cpu_set_t set;
    unsigned cpus = 1;

    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        cpus = (unsigned)CPU_COUNT(&set);
    return cpus * 2 < WORKERS_MIN ? WORKERS_MIN : cpus * 2 > WORKERS_MAX ? WORKERS_MAX : cpus * 2;
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
    fs->worker_count = options->threads != 0 ? options->threads : default_workers();
    fs_jobs_init(&fs->jobs, fs->worker_count);
    fs_mapped_init(&fs->mapped);
    pthread_mutex_init(&fs->snapshots_lock, NULL);
    sem_init(&fs->wake, 0, 0);
    fs->writable = image_writable(options->image);
    int r = fs_options_parse(options->mount_options, image_path(options->image), fs->writable,
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
    fs->workers = calloc(fs->worker_count, sizeof(*fs->workers));
    if (fs->workers == NULL)
        return error_oom(err);
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
        r = use_channels(fs->session, err);
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
    r = use_channels(fs->session, err);
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
    fs_jobs_destroy(&fs->jobs);
    fs_mapped_destroy(&fs->mapped);
    fs_snapshots_free(fs);
    pthread_mutex_destroy(&fs->snapshots_lock);
    sem_destroy(&fs->wake);
    free(fs->nodes.all);
    free(fs->mount.fuse);
    free(fs->workers);
    free(fs->directory);
    free(fs);
}

/* --- Serving --- */

static void worker_end(void *arg)
{
    struct fs_worker *worker = arg;

    free(worker->buf.mem);
    worker->buf.mem = NULL;
    fs_buffer_free();
    fs_stop(worker->fs);
}

static void *worker_run(void *arg)
{
    struct fs_worker *worker = arg;
    struct fuse_session *session = worker->fs->session;

    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    thread_channel = worker->channel;
    pthread_cleanup_push(worker_end, worker);
    while (!fuse_session_exited(session)) {
        int r = receive(session, &worker->buf);
        if (r == -EINTR)
            continue;
        if (r <= 0)
            break;
        fuse_session_process_buf(session, &worker->buf);
    }
    pthread_cleanup_pop(1);
    return NULL;
}

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
    int session_fd = fuse_session_fd(fs->session);
    int r = 0;

    for (unsigned i = 0; i < fs->worker_count; i++)
        fs->workers[i] = (struct fs_worker){.fs = fs, .channel = session_fd};
    for (unsigned i = 0; i < fs->worker_count && r == 0; i++) {
        struct fs_worker *worker = &fs->workers[i];
        int clone = i > 0 ? clone_channel(session_fd) : -1;

        if (clone >= 0)
            worker->channel = clone;
        r = fs_thread_start(&worker->thread, worker_run, worker);
        worker->started = r == 0;
    }
    if (r == 0) {
        r = fs_thread_start(&fs->prober, prober_run, fs);
        fs->prober_started = r == 0;
    }
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
    for (unsigned i = 0; i < fs->worker_count; i++)
        if (fs->workers[i].started)
            pthread_cancel(fs->workers[i].thread);
    for (unsigned i = 0; i < fs->worker_count; i++)
        if (fs->workers[i].started &&
            pthread_timedjoin_np(fs->workers[i].thread, NULL, &deadline) != 0)
            fs->abandoned = true;
    if (fs->jobs.builder_started && pthread_timedjoin_np(fs->jobs.builder, NULL, &deadline) != 0)
        fs->abandoned = true;
}

static void end(struct fs *fs)
{
    int session_fd = fuse_session_fd(fs->session);

    atomic_store(&fs->stop, true);
    fs_jobs_stop(fs);
    hashtree_cancel(fs->options.tree);
    join_threads(fs);
    if (fs->abandoned)
        log_error("%s: a read of the image does not return; ending without it",
                  image_path(fs->options.image));
    for (unsigned i = 0; i < fs->worker_count && !fs->abandoned; i++)
        if (fs->workers[i].channel != session_fd)
            close(fs->workers[i].channel);
    unmount(fs);
    if (fs->prober_started && !fs->abandoned)
        pthread_join(fs->prober, NULL);
}

int fs_serve(struct fs *fs, struct error *err)
{
    int r = start_threads(fs, err);

    while (r == 0 && !atomic_load(&fs->stop))
        sem_wait(&fs->wake);
    end(fs);
    if (r < 0)
        return r;
    return fs->abandoned ? FS_ABANDONED : 0;
}

void fs_stop(struct fs *fs)
{
    atomic_store(&fs->stop, true);
    sem_post(&fs->wake);
}
