/* SPDX-License-Identifier: MIT */
/*
 * Workers: the threads that take requests and answer them.
 *
 * libfuse's own loop starts and ends threads as it likes, without an upper limit before 3.12, and
 * may sleep through a signal that comes between its test and its wait. So the loop is our own: a
 * worker is blocked in a read of the FUSE device until there is a request, answers it, and takes
 * the next. To end, workers are cancelled by pthread_cancel(), which can act on them only within
 * that read, or while they are idle.
 *
 * The kernel wakes those who wait in the device one after the other, in turn. Many of them would
 * mean a switch of threads, and cold caches, for each request, where one thread could go on with
 * the next. So only as many workers as there are CPUs have a place at the device; the others are
 * idle. A worker that is about to do something that takes long gives its place to the one that
 * became idle last, so that whatever a disk does, requests that need no disk are answered. Reads of
 * host files find out by themselves, wherever they are made (io_on_wait()).
 * Afterwards it takes a place if there is one that nobody has. Idle workers also help with parts of
 * long requests (share.c).
 *
 * Workers have device descriptors of their own (FUSE_DEV_IOC_CLONE), and so a queue each for the
 * requests that they answer; but not all of them, since most hardly ever leave the stack of those
 * that are idle. libfuse before 3.14 cannot be told to use it; there the workers share one.
 */
#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "fs/internal.h"

enum {
    PLACES_MIN = 2,
    /* Writes wait for the disk when the kernel says so, which cannot be told before. */
    PLACES_MIN_WRITABLE = 4,
    PLACES_MAX = 32,
    /* How many may wait for a disk while all places are taken, or help those that do not. */
    SPARE_WORKERS = 128,
    /* Of these, so many are never called to help. */
    RESERVED_WORKERS = SPARE_WORKERS / 2,
    /* How many of the spare workers have a descriptor of their own, and may compute hash blocks. */
    SPARE_CHANNELS = 32,
};

/* --- Channels --- */

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

int fs_use_channels(struct fuse_session *session, struct error *err)
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

int fs_use_channels(struct fuse_session *session, struct error *err)
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

/* --- Places --- */

static _Thread_local struct fs_worker *this_worker;

struct fs_workers *fs_workers_mine(void)
{
    return this_worker != NULL ? &this_worker->fs->workers : NULL;
}

/* With the lock held, as the next two. */
static void push_idle(struct fs_workers *workers, struct fs_worker *worker)
{
    worker->next_idle = workers->idle;
    workers->idle = worker;
    workers->idle_count++;
}

/* NULL if there is none. */
static struct fs_worker *pop_idle(struct fs_workers *workers)
{
    struct fs_worker *worker = workers->idle;

    if (worker != NULL) {
        workers->idle = worker->next_idle;
        workers->idle_count--;
    }
    return worker;
}

void fs_workers_call(struct fs_workers *workers, unsigned count)
{
    while (count > 0 && workers->helping + 1 < workers->places &&
           workers->idle_count > RESERVED_WORKERS) {
        workers->helping++;
        sem_post(&pop_idle(workers)->wake);
        count--;
    }
}

void fs_worker_slow(void)
{
    struct fs_worker *worker = this_worker, *next;

    fs_read_waits();
    if (worker == NULL || !worker->has_place)
        return;
    struct fs_workers *workers = &worker->fs->workers;
    worker->has_place = false;
    io_on_wait(NULL);
    pthread_mutex_lock(&workers->lock);
    next = pop_idle(workers);
    if (next != NULL)
        next->has_place = true;
    else
        workers->taken--;
    pthread_mutex_unlock(&workers->lock);
    if (next != NULL)
        sem_post(&next->wake);
}

/* Waits until somebody gives this worker a place or calls it for help; here it may be cancelled. */
static void wait_idle(struct fs_worker *worker)
{
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
    while (sem_wait(&worker->wake) < 0)
        ;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
}

/* False: there is none, and the worker has become idle. */
static bool take_place_at_once(struct fs_worker *worker)
{
    struct fs_workers *workers = &worker->fs->workers;

    pthread_mutex_lock(&workers->lock);
    bool taken = workers->taken < workers->places;
    if (taken)
        workers->taken++;
    else
        push_idle(workers, worker);
    worker->has_place = taken;
    pthread_mutex_unlock(&workers->lock);
    return taken;
}

static void take_place(struct fs_worker *worker)
{
    while (!take_place_at_once(worker)) {
        wait_idle(worker);
        if (worker->has_place)
            break;
        fs_share_help(&worker->fs->workers);
    }
    io_on_wait(fs_worker_slow);
}

/* --- A worker --- */

static void worker_end(void *arg)
{
    struct fs_worker *worker = arg;

    free(worker->buf.mem);
    worker->buf.mem = NULL;
    fs_buffer_free();
    fs_wake_to_end(worker->fs);
}

static void *worker_run(void *arg)
{
    struct fs_worker *worker = arg;
    struct fuse_session *session = worker->fs->session;

    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    thread_channel = worker->channel;
    this_worker = worker;
    pthread_cleanup_push(worker_end, worker);
    while (!fuse_session_exited(session)) {
        if (!worker->has_place)
            take_place(worker);
        int r = receive(session, &worker->buf);
        if (r == -EINTR)
            continue;
        if (r <= 0)
            break;
        if (!atomic_load_explicit(&worker->fs->asked, memory_order_relaxed))
            atomic_store_explicit(&worker->fs->asked, true, memory_order_relaxed);
        fuse_session_process_buf(session, &worker->buf);
    }
    pthread_cleanup_pop(1);
    return NULL;
}

/* --- All of them --- */

static unsigned default_places(bool writable)
{
    unsigned least = writable ? PLACES_MIN_WRITABLE : PLACES_MIN;
    cpu_set_t set;
    unsigned cpus = 1;

    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        cpus = (unsigned)CPU_COUNT(&set);
    return cpus < least ? least : cpus > PLACES_MAX ? PLACES_MAX : cpus;
}

unsigned fs_workers_for_hashing(const struct fs_workers *workers)
{
    return (workers->places + SPARE_CHANNELS) / 2;
}

int fs_workers_init(struct fs *fs, struct error *err)
{
    struct fs_workers *workers = &fs->workers;

    pthread_mutex_init(&workers->lock, NULL);
    workers->places = fs->options.threads != 0 ? fs->options.threads : default_places(fs->writable);
    workers->count = workers->places + SPARE_WORKERS;
    workers->all = calloc(workers->count, sizeof(*workers->all));
    if (workers->all == NULL)
        return error_oom(err);
    for (unsigned i = 0; i < workers->count; i++) {
        struct fs_worker *worker = &workers->all[i];

        *worker = (struct fs_worker){.fs = fs, .channel = -1};
        sem_init(&worker->wake, 0, 0);
    }
    return 0;
}

void fs_workers_destroy(struct fs *fs)
{
    struct fs_workers *workers = &fs->workers;

    for (unsigned i = 0; workers->all != NULL && i < workers->count; i++)
        sem_destroy(&workers->all[i].wake);
    free(workers->all);
    pthread_mutex_destroy(&workers->lock);
}

int fs_workers_start(struct fs *fs, struct error *err)
{
    struct fs_workers *workers = &fs->workers;
    int session_fd = fuse_session_fd(fs->session);

    for (unsigned i = 0; i < workers->count; i++) {
        struct fs_worker *worker = &workers->all[i];
        bool own = i > 0 && i < workers->places + SPARE_CHANNELS;
        int clone = own ? clone_channel(session_fd) : -1;

        worker->channel = clone >= 0 ? clone : session_fd;
        int r = fs_thread_start(&worker->thread, worker_run, worker);
        if (r != 0)
            return error_set_errno(err, r, "cannot start a thread");
        worker->started = true;
    }
    return 0;
}

bool fs_workers_end(struct fs *fs, const struct timespec *deadline)
{
    struct fs_workers *workers = &fs->workers;
    bool all = true;

    for (unsigned i = 0; i < workers->count; i++)
        if (workers->all[i].started)
            pthread_cancel(workers->all[i].thread);
    for (unsigned i = 0; i < workers->count; i++)
        if (workers->all[i].started &&
            pthread_timedjoin_np(workers->all[i].thread, NULL, deadline) != 0)
            all = false;
    return all;
}

void fs_workers_close(struct fs *fs)
{
    struct fs_workers *workers = &fs->workers;

    for (unsigned i = 0; i < workers->count; i++)
        if (workers->all[i].channel != fuse_session_fd(fs->session))
            cleanup_close(&workers->all[i].channel);
}
