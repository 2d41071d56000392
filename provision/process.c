/* SPDX-License-Identifier: MIT */
#include "provision/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "provision/root.h"
#include "qemuctl/clock.h"

/*
 * As root there are two processes: the first one of a new PID namespace, which prepares the mounts,
 * waits for the program and reaps what the program leaves, and the program. When the first one
 * ends, the kernel kills the rest of the namespace. Both have to be told apart from a fork(): the
 * clone system call makes them.
 *
 * When this process dies, the first one is told by a signal, kills all others, and ends when they
 * are gone. It is not killed itself: as it has no other program, it holds the descriptors of this
 * process, the work directory's lock among them, and by that lock the next build waits for the end
 * of whatever may still write into the directory.
 *
 * The end is learnt from a pipe that only those processes hold and into which the status is
 * written; it closes when they are gone, whichever way.
 */

struct pipes {
    int out[2], err[2];
    int report[2]; /* a struct report; closed when it is over */
    int hold[2];   /* closed by us: go, or, if nothing was written, die */
};

struct report {
    int code;   /* errno if the program could not be run */
    int status; /* of waitpid() */
    char what[48];
};

static void pipes_clear(struct pipes *pipes)
{
    int *const fds[] = {pipes->out, pipes->err, pipes->report, pipes->hold};

    for (size_t i = 0; i < 4; i++) {
        cleanup_close(&fds[i][0]);
        cleanup_close(&fds[i][1]);
    }
}

static int pipes_open(struct pipes *pipes, struct error *err)
{
    int *const fds[] = {pipes->out, pipes->err, pipes->report, pipes->hold};

    for (size_t i = 0; i < 4; i++)
        fds[i][0] = fds[i][1] = -1;
    for (size_t i = 0; i < 4; i++)
        if (pipe2(fds[i], O_CLOEXEC) < 0)
            return error_set_errno(err, errno, "pipe");
    return 0;
}

/* --- In the child --- */

static _Noreturn void child_fail(const struct pipes *pipes, const char *what)
{
    struct report report = {.code = errno};

    (void)stpncpy(report.what, what, sizeof(report.what) - 1);
    (void)!write(pipes->report[1], &report, sizeof(report));
    _exit(127);
}

static _Noreturn void exec_program(const struct process_options *options, const struct pipes *pipes,
                                   int input)
{
    const int sources[3] = {input, pipes->out[1], pipes->err[1]};
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigset_t none;

    sigemptyset(&action.sa_mask);
    for (int i = 1; i < NSIG; i++)
        (void)sigaction(i, &action, NULL);
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    for (int i = 0; i < 3; i++)
        if (dup2(sources[i], i) < 0)
            child_fail(pipes, "dup2");
    /* Also those that QEMU gets. */
    (void)close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
    /* Also for the search of the program: PATH may be another one. */
    if (options->environment != NULL)
        environ = (char **)options->environment;
    execvp(options->argv[0], options->argv);
    child_fail(pipes, options->argv[0]);
}

/* Waits until the parent says go. When the parent dies, `signal` comes. */
static void await_go(const struct pipes *pipes, int signal)
{
    char go;

    if (prctl(PR_SET_PDEATHSIG, signal) < 0 || read(pipes->hold[0], &go, 1) != 1)
        _exit(127);
}

/* Nobody else sends it to whole process groups. */
#define ORPHANED SIGUSR2
static volatile sig_atomic_t orphaned;

static void kill_all(int signal)
{
    const int code = errno;

    (void)signal;
    orphaned = true;
    (void)kill(-1, SIGKILL);
    errno = code;
}

static void expect_orphaned(void)
{
    struct sigaction action = {.sa_handler = kill_all};
    sigset_t set;

    sigemptyset(&action.sa_mask);
    (void)sigaction(ORPHANED, &action, NULL);
    sigemptyset(&set);
    sigaddset(&set, ORPHANED);
    (void)sigprocmask(SIG_UNBLOCK, &set, NULL);
}

/* The first process of the namespace. */
static _Noreturn void supervise(const struct process_options *options, const struct pipes *pipes,
                                int input)
{
    struct report report = {0};
    struct root_state root = ROOT_STATE_INIT;
    const char *failed = NULL;
    pid_t program, pid;

    expect_orphaned();
    await_go(pipes, ORPHANED);
    if (mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) < 0)
        child_fail(pipes, "cannot make mounts private");
    if (options->root != NULL) {
        if (root_enter(options->root, options->visits, &root, &failed) < 0)
            child_fail(pipes, failed);
    } else if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0) {
        child_fail(pipes, "cannot mount /proc");
    }
    program = fork();
    if (program < 0)
        child_fail(pipes, "fork");
    if (program == 0) {
        (void)setsid();
        exec_program(options, pipes, input);
    }
    if (orphaned)
        (void)kill(-1, SIGKILL);
    /* Theirs alone: what the program leaves running must not keep us from seeing the end. */
    close(pipes->out[1]);
    close(pipes->err[1]);
    do
        pid = waitpid(-1, &report.status, 0);
    while (pid != program && (pid >= 0 || errno == EINTR));
    (void)kill(-1, SIGKILL);
    while (waitpid(-1, NULL, 0) >= 0 || errno == EINTR)
        ;
    root_leave(&root);
    (void)!write(pipes->report[1], &report, sizeof(report));
    _exit(0);
}

/* Without namespaces. */
static _Noreturn void run_plain(const struct process_options *options, const struct pipes *pipes,
                                int input)
{
    await_go(pipes, SIGKILL);
    (void)setsid();
    exec_program(options, pipes, input);
}

/* --- In the parent --- */

static pid_t clone_child(bool contained)
{
    if (!contained)
        return fork();
    return (pid_t)syscall(SYS_clone, CLONE_NEWPID | CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0);
}

struct running {
    const struct process_options *options;
    struct pipes pipes;
    pid_t pid;
    bool contained;
    int64_t deadline;
};

/* Ends what still runs and reaps. */
static void running_clear(struct running *running)
{
    if (running->pid > 0) {
        (void)kill(running->contained ? running->pid : -running->pid, SIGKILL);
        (void)kill(running->pid, SIGKILL);
        while (waitpid(running->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    pipes_clear(&running->pipes);
}
DEFINE_CLEANUP_INPLACE(struct running, running_clear);

static int start(struct running *running, struct error *err)
{
    const struct process_options *options = running->options;
    _cleanup_close_ int null = -1;

    int r = pipes_open(&running->pipes, err);
    if (r < 0)
        return r;
    null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null < 0)
        return error_set_errno(err, errno, "/dev/null");
    const int input = options->input >= 0 ? options->input : null;
    /* What waits in stdio's buffers would be written by both. */
    (void)fflush(NULL);
    running->pid = clone_child(running->contained);
    if (running->pid < 0)
        return error_set_errno(err, errno, "cannot start a process for %s", options->argv[0]);
    if (running->pid == 0) {
        close(running->pipes.hold[1]);
        if (running->contained)
            supervise(options, &running->pipes, input);
        run_plain(options, &running->pipes, input);
    }
    cleanup_close(&running->pipes.out[1]);
    cleanup_close(&running->pipes.err[1]);
    cleanup_close(&running->pipes.report[1]);
    if (write(running->pipes.hold[1], "g", 1) != 1)
        return error_set_errno(err, errno, "cannot start a process for %s", options->argv[0]);
    return 0;
}

/* Takes what there is; closes the descriptor at its end. */
static int take_output(struct running *running, int *fd, bool is_stderr, struct error *err)
{
    char buffer[65536];

    ssize_t n = read(*fd, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR)
        return 0;
    if (n <= 0) {
        cleanup_close(fd);
        return 0;
    }
    return running->options->output(buffer, (size_t)n, is_stderr, running->options->arg, err);
}

/* Reads until both outputs have ended. */
static int watch(struct running *running, struct error *err)
{
    const struct process_options *options = running->options;
    struct pipes *pipes = &running->pipes;

    while (pipes->out[0] >= 0 || pipes->err[0] >= 0) {
        struct pollfd fds[] = {
            {.fd = pipes->out[0], .events = POLLIN},
            {.fd = pipes->err[0], .events = POLLIN},
            {.fd = options->interrupt, .events = POLLIN},
        };
        int64_t left = running->deadline != 0 ? running->deadline - clock_ms() : -1;
        if (running->deadline != 0 && left <= 0)
            return error_set(err, ETIMEDOUT, "%s: still ran after %llu seconds", options->argv[0],
                             (unsigned long long)options->timeout);
        if (poll(fds, 3, left > 1000000 ? 1000000 : (int)left) < 0 && errno != EINTR)
            return error_set_errno(err, errno, "poll");
        if (fds[2].revents != 0)
            return error_set(err, EINTR, "interrupted");
        int r = fds[0].revents != 0 ? take_output(running, &pipes->out[0], false, err) : 0;
        if (r == 0 && fds[1].revents != 0)
            r = take_output(running, &pipes->err[0], true, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int shell_status(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Waits for the end, still within the time, and says how it was. */
static int conclude(struct running *running, int *ret_status, struct error *err)
{
    const struct process_options *options = running->options;
    struct report report = {0};
    struct pollfd fds[] = {
        {.fd = running->pipes.report[0], .events = POLLIN},
        {.fd = options->interrupt, .events = POLLIN},
    };
    int64_t left = running->deadline != 0 ? running->deadline - clock_ms() : -1;
    int status = 0;

    if (left < 0 && running->deadline != 0)
        left = 0;
    while (poll(fds, 2, left > 1000000 ? 1000000 : (int)left) < 0 && errno == EINTR)
        ;
    if (fds[1].revents != 0)
        return error_set(err, EINTR, "interrupted");
    if (fds[0].revents == 0)
        return error_set(err, ETIMEDOUT, "%s: still ran after %llu seconds", options->argv[0],
                         (unsigned long long)options->timeout);
    const ssize_t n = read(running->pipes.report[0], &report, sizeof(report));
    while (waitpid(running->pid, &status, 0) < 0 && errno == EINTR)
        ;
    running->pid = 0;
    if (n == sizeof(report) && report.code != 0)
        return error_set_errno(err, report.code, "%s: cannot be run", report.what);
    if (running->contained && n != sizeof(report))
        return error_set(err, EIO, "%s: its supervisor was killed", options->argv[0]);
    *ret_status = shell_status(running->contained ? report.status : status);
    return 0;
}

int process_run(const struct process_options *options, int *ret_status, struct error *err)
{
    _cleanup_(running_clear_cleanup) struct running running = {
        .options = options,
        .contained = geteuid() == 0,
        .deadline = options->timeout != 0 ? clock_ms() + (int64_t)options->timeout * 1000 : 0,
    };

    int r = start(&running, err);
    if (r == 0)
        r = watch(&running, err);
    if (r == 0)
        r = conclude(&running, ret_status, err);
    return r;
}

const char *process_status_text(int status, char buffer[static PROCESS_STATUS_MAX])
{
    const char *name = status > 128 ? sigabbrev_np(status - 128) : NULL;

    if (name != NULL)
        snprintf(buffer, PROCESS_STATUS_MAX, "was killed by SIG%s", name);
    else
        snprintf(buffer, PROCESS_STATUS_MAX, "exited with %d", status);
    return buffer;
}
