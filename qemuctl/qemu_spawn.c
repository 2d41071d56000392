/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#include "qemuctl/program.h"
#include "qemuctl/qemu_internal.h"

/* How a QEMU process begins: its pipes, its QMP connection, fork and exec. */

struct child_fds {
    int in, out, err, inherited, qmp, failure;
};

static _Noreturn void child_fail(int failure)
{
    const int code = errno;

    (void)!write(failure, &code, sizeof(code));
    _exit(127);
}

/* In the child: only what is safe after a fork. */
static _Noreturn void child_exec(const char *path, char *const *argv, struct child_fds fds,
                                 pid_t parent)
{
    static const int targets[4] = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, QEMU_INHERITED_FD};
    int sources[4] = {fds.in, fds.out, fds.err, fds.inherited};
    const int count = fds.inherited >= 0 ? 4 : 3;
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigset_t none;

    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        child_fail(fds.failure);
    /* The parent may have died before that. */
    if (getppid() != parent)
        _exit(127);
    (void)setsid();
    for (int i = 0; i < count; i++) {
        /* Out of the way of the targets first. */
        sources[i] = fcntl(sources[i], F_DUPFD_CLOEXEC, 10);
        if (sources[i] < 0)
            child_fail(fds.failure);
    }
    for (int i = 0; i < count; i++)
        if (dup2(sources[i], targets[i]) < 0)
            child_fail(fds.failure);
    if (fcntl(fds.qmp, F_SETFD, 0) < 0)
        child_fail(fds.failure);
    sigemptyset(&action.sa_mask);
    for (int i = 1; i < NSIG; i++)
        (void)sigaction(i, &action, NULL);
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    execv(path, argv);
    child_fail(fds.failure);
}

/* A pipe whose ends stay clear of the standard descriptors, even if some of those are closed. */
static int make_pipe(int *ret_read, int *ret_write, struct error *err)
{
    _cleanup_close_ int reader = -1, writer = -1;
    int fds[2];

    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_set_errno(err, errno, "pipe");
    reader = fds[0];
    writer = fds[1];
    *ret_read = fcntl(reader, F_DUPFD_CLOEXEC, 10);
    if (*ret_read < 0)
        return error_set_errno(err, errno, "pipe");
    *ret_write = fcntl(writer, F_DUPFD_CLOEXEC, 10);
    if (*ret_write < 0)
        return error_set_errno(err, errno, "pipe");
    return 0;
}

static int fork_child(struct qemu *qemu, const struct argv *argv, struct child_fds *fds,
                      struct error *err)
{
    _cleanup_argv_ struct argv all = ARGV_INIT;
    _cleanup_free_ char *path = NULL;
    _cleanup_close_ int failure_in = -1, failure_out = -1;
    int code = 0;
    ssize_t n;

    for (size_t i = 0; i < argv->count; i++)
        argv_add(&all, argv->items[i]);
    argv_add(&all, "-chardev");
    argv_addf(&all, "socket,id=qverity,fd=%d", fds->qmp);
    argv_add(&all, "-mon");
    argv_add(&all, "chardev=qverity,mode=control");
    int r = argv_check(&all, err);
    if (r == 0)
        r = program_find(argv->items[0], &path, err);
    if (r == 0)
        r = make_pipe(&failure_in, &failure_out, err);
    if (r < 0)
        return r;
    fds->failure = failure_out;

    const pid_t parent = getpid();
    qemu->pid = fork();
    if (qemu->pid < 0) {
        qemu->pid = 0;
        return error_set_errno(err, errno, "fork");
    }
    if (qemu->pid == 0)
        child_exec(path, all.items, *fds, parent);
    cleanup_close(&failure_out);
    do
        n = read(failure_in, &code, sizeof(code));
    while (n < 0 && errno == EINTR);
    if (n == sizeof(code))
        return error_set_errno(err, code, "%s: cannot run", argv->items[0]);
    return 0;
}

static int watch(struct qemu *qemu, int fd, uint32_t events, struct error *err)
{
    struct epoll_event event = {.events = events, .data.fd = fd};

    if (epoll_ctl(qemu->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        return error_set_errno(err, errno, "epoll_ctl");
    return 0;
}

static int set_nonblocking(int fd, struct error *err)
{
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
        return error_set_errno(err, errno, "fcntl");
    return 0;
}

static int make_qmp(struct qemu *qemu, int *ret_child, struct error *err)
{
    const struct qmp_handlers handlers = {.event = qemu_on_event, .arg = qemu};
    _cleanup_close_ int theirs = -1;
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return error_set_errno(err, errno, "socketpair");
    theirs = fds[1];
    int r = qmp_new(fds[0], &handlers, &qemu->qmp, err);
    if (r < 0)
        return r;
    *ret_child = fcntl(theirs, F_DUPFD_CLOEXEC, 10);
    if (*ret_child < 0)
        return error_set_errno(err, errno, "fcntl");
    return 0;
}

static int watch_all(struct qemu *qemu, struct error *err)
{
    int r = 0;

    qemu->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (qemu->epoll < 0)
        return error_set_errno(err, errno, "epoll_create1");
    qemu->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (qemu->timer < 0)
        return error_set_errno(err, errno, "timerfd_create");
    qemu->pidfd = (int)syscall(SYS_pidfd_open, qemu->pid, 0);
    if (qemu->pidfd < 0)
        return error_set_errno(err, errno, "pidfd_open");
    const int pipes[] = {qemu->console_in, qemu->console_out, qemu->messages};
    for (size_t i = 0; i < 3 && r == 0; i++)
        r = set_nonblocking(pipes[i], err);
    qemu->qmp_events = EPOLLIN;
    const int readers[] = {qemu->console_out, qemu->messages, qmp_fd(qemu->qmp), qemu->timer,
                           qemu->pidfd};
    for (size_t i = 0; i < 5 && r == 0; i++)
        r = watch(qemu, readers[i], EPOLLIN, err);
    return r;
}

int qemu_spawn(const struct argv *argv, int inherited, const struct qemu_handlers *handlers,
               struct qemu **ret, struct error *err)
{
    _cleanup_(qemu_free_cleanup) struct qemu *qemu = NULL;
    _cleanup_close_ int child_in = -1, child_out = -1, child_err = -1, child_qmp = -1;

    qemu = calloc(1, sizeof(*qemu));
    if (qemu == NULL)
        return error_oom(err);
    qemu->epoll = qemu->pidfd = qemu->timer = -1;
    qemu->console_in = qemu->console_out = qemu->messages = -1;
    qemu->handlers = *handlers;
    qemu->program = strdup(argv->items[0]);
    if (qemu->program == NULL)
        return error_oom(err);
    int r = make_pipe(&child_in, &qemu->console_in, err);
    if (r == 0)
        r = make_pipe(&qemu->console_out, &child_out, err);
    if (r == 0)
        r = make_pipe(&qemu->messages, &child_err, err);
    if (r == 0)
        r = make_qmp(qemu, &child_qmp, err);
    if (r < 0)
        return r;
    struct child_fds fds = {.in = child_in,
                            .out = child_out,
                            .err = child_err,
                            .inherited = inherited,
                            .qmp = child_qmp};
    r = fork_child(qemu, argv, &fds, err);
    if (r == 0)
        r = watch_all(qemu, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(qemu);
    return 0;
}
