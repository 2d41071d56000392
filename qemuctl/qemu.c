/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>

#include "qemuctl/clock.h"
#include "qemuctl/qemu_internal.h"

/*
 * How it works: an epoll descriptor gathers the console pipe, stderr, the QMP socket, a pidfd and a
 * timer for the stages of a stop. QMP goes over a socket pair that QEMU inherits: there is no path
 * that somebody could find or that could be left behind, and no moment at which it is not there
 * yet.
 *
 * Why the guest ended is what QEMU's SHUTDOWN event says; the process's exit status tells only
 * failures. The event is written before QEMU exits, so when the pidfd says that it has, whatever is
 * in the pipes and the socket is taken first.
 */

#define REAP_MS 3000 /* that qemu_free() waits behind SIGKILL */

/* When its guest has ended, QEMU does, too, unless it has -no-shutdown, or hangs. It is told to
 * quit, which does no harm in any case; but it may be writing what it has of an image, which takes
 * what the disk takes. */
#define ENDING_MS 2000
#define ENDING_QUIT_MS 300000

/* --- The end --- */

/* Whether the process is gone. What it may have left in its process group (helpers, or the QEMU
 * proper if the program is a script that did not exec it) goes with it; while the process is a
 * zombie, nobody else can get its number. */
static bool try_reap(struct qemu *qemu)
{
    siginfo_t info = {0};

    if (qemu->reaped || qemu->pid <= 0)
        return true;
    if (waitid(P_PID, (id_t)qemu->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0) {
        if (info.si_pid == 0)
            return false;
        (void)kill(-qemu->pid, SIGKILL);
        (void)waitpid(qemu->pid, &qemu->status, 0);
    }
    qemu->reaped = true;
    return true;
}

void qemu_free(struct qemu *qemu)
{
    const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};

    if (!try_reap(qemu)) {
        const int64_t deadline = clock_ms() + REAP_MS;
        (void)kill(-qemu->pid, SIGKILL);
        while (!try_reap(qemu) && clock_ms() < deadline)
            (void)nanosleep(&pause, NULL);
    }
    if (qemu->qmp != NULL)
        qmp_free(qemu->qmp);
    cleanup_close(&qemu->pidfd);
    cleanup_close(&qemu->timer);
    cleanup_close(&qemu->epoll);
    cleanup_close(&qemu->console_in);
    cleanup_close(&qemu->console_out);
    cleanup_close(&qemu->messages);
    free(qemu->end_text);
    free(qemu->program);
    free(qemu);
}

/* What QEMU said on stderr, on one line: its errors, or else everything. Owned. */
static char *stderr_summary(const struct qemu *qemu)
{
    _cleanup_free_ char *text = NULL;
    size_t length;

    for (int with_warnings = 0; with_warnings < 2; with_warnings++) {
        _cleanup_free_ char *copy = strdup(qemu->kept);
        char *rest = NULL;
        FILE *out = open_memstream(&text, &length);
        if (copy == NULL || out == NULL) {
            if (out != NULL)
                fclose(out);
            return NULL;
        }
        for (char *line = strtok_r(copy, "\n", &rest); line != NULL;
             line = strtok_r(NULL, "\n", &rest))
            if (with_warnings || strstr(line, "warning: ") == NULL)
                fprintf(out, "%s%s", ftell(out) > 0 ? "; " : "", line);
        if (fclose(out) != 0)
            return NULL;
        if (length > 0)
            return TAKE_PTR(text);
        cleanup_free(&text);
    }
    return NULL;
}

static void describe_failure(struct qemu *qemu)
{
    _cleanup_free_ char *said = stderr_summary(qemu);
    char how[64];

    if (WIFSIGNALED(qemu->status))
        snprintf(how, sizeof(how), "was ended by signal %d", WTERMSIG(qemu->status));
    else
        snprintf(how, sizeof(how), "ended with exit status %d", WEXITSTATUS(qemu->status));
    if (asprintf(&qemu->end_text, "%s %s%s%s", qemu->program, how, said != NULL ? ": " : "",
                 said != NULL ? said : "") < 0)
        qemu->end_text = NULL;
}

static void conclude(struct qemu *qemu)
{
    const bool clean = WIFEXITED(qemu->status) && WEXITSTATUS(qemu->status) == 0;

    if (qemu->asked)
        qemu->end = qemu->shutdown == QEMU_POWERED_OFF ? QEMU_POWERED_OFF : QEMU_STOPPED;
    else if (qemu->shutdown != QEMU_RUNNING && (clean || qemu->shutdown == QEMU_PANICKED))
        qemu->end = qemu->shutdown;
    else
        qemu->end = QEMU_FAILED;
    if (qemu->end == QEMU_FAILED)
        describe_failure(qemu);
}

enum qemu_end qemu_end(const struct qemu *qemu)
{
    return qemu->end;
}

const char *qemu_end_text(const struct qemu *qemu)
{
    static const char *const texts[] = {
        [QEMU_RUNNING] = "the guest runs",
        [QEMU_POWERED_OFF] = "the guest powered off",
        [QEMU_RESET] = "the guest reset itself",
        [QEMU_PANICKED] = "the guest panicked",
        [QEMU_STOPPED] = "the guest was stopped",
        [QEMU_QUIT] = "QEMU was told to end",
        [QEMU_FAILED] = "QEMU failed",
    };

    return qemu->end_text != NULL ? qemu->end_text : texts[qemu->end];
}

/* --- Dispatching --- */

static void set_timer(struct qemu *qemu, unsigned ms)
{
    const struct itimerspec when = {
        .it_value = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000}};

    (void)timerfd_settime(qemu->timer, 0, &when, NULL);
}

void qemu_on_event(const char *name, const json_t *data, void *arg)
{
    static const struct {
        const char *reason;
        enum qemu_end end;
    } reasons[] = {
        {"guest-shutdown", QEMU_POWERED_OFF}, {"guest-reset", QEMU_RESET},
        {"guest-panic", QEMU_PANICKED},       {"host-qmp-quit", QEMU_QUIT},
        {"host-signal", QEMU_QUIT},           {"host-ui", QEMU_QUIT},
        {"subsystem-reset", QEMU_RESET},      {"host-qmp-system-reset", QEMU_QUIT},
    };
    struct qemu *qemu = arg;

    if (strcmp(name, "GUEST_PANICKED") == 0) {
        qemu->shutdown = QEMU_PANICKED;
        return;
    }
    if (strcmp(name, "SHUTDOWN") != 0)
        return;
    if (qemu->stop == STOP_NONE) {
        qemu->stop = STOP_ENDING;
        set_timer(qemu, ENDING_MS);
    }
    if (qemu->shutdown != QEMU_RUNNING)
        return;
    const char *reason = json_string_value(json_object_get(data, "reason"));
    qemu->shutdown = QEMU_FAILED;
    for (size_t i = 0; reason != NULL && i < sizeof(reasons) / sizeof(reasons[0]); i++)
        if (strcmp(reason, reasons[i].reason) == 0)
            qemu->shutdown = reasons[i].end;
}

static void unwatch_and_close(struct qemu *qemu, int *fd)
{
    (void)epoll_ctl(qemu->epoll, EPOLL_CTL_DEL, *fd, NULL);
    cleanup_close(fd);
}

/* At most a few chunks at once, so that a flood cannot keep the owner from its other work. */
static void read_console(struct qemu *qemu)
{
    char chunk[16384];

    for (int i = 0; i < 4 && qemu->console_out >= 0 && !qemu->paused; i++) {
        ssize_t n = read(qemu->console_out, chunk, sizeof(chunk));
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            unwatch_and_close(qemu, &qemu->console_out);
            return;
        }
        qemu->handlers.console(chunk, (size_t)n, qemu->handlers.arg);
    }
}

/* Hands complete lines of stderr to the owner, and keeps the last STDERR_KEPT bytes. */
static void keep_messages(struct qemu *qemu, const char *chunk, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (qemu->kept_length == STDERR_KEPT) {
            size_t drop = qemu->line_start > 0 ? qemu->line_start : STDERR_KEPT / 2;
            memmove(qemu->kept, qemu->kept + drop, STDERR_KEPT - drop);
            qemu->kept_length -= drop;
            qemu->line_start -= drop < qemu->line_start ? drop : qemu->line_start;
        }
        char c = chunk[i] == '\0' || chunk[i] == '\r' ? ' ' : chunk[i];
        qemu->kept[qemu->kept_length++] = c;
        if (c != '\n')
            continue;
        qemu->kept[qemu->kept_length - 1] = '\0';
        if (qemu->handlers.message != NULL)
            qemu->handlers.message(qemu->kept + qemu->line_start, qemu->handlers.arg);
        qemu->kept[qemu->kept_length - 1] = '\n';
        qemu->line_start = qemu->kept_length;
    }
    qemu->kept[qemu->kept_length] = '\0';
}

static void read_messages(struct qemu *qemu)
{
    char chunk[4096];

    for (int i = 0; i < 4 && qemu->messages >= 0; i++) {
        ssize_t n = read(qemu->messages, chunk, sizeof(chunk));
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            unwatch_and_close(qemu, &qemu->messages);
            return;
        }
        keep_messages(qemu, chunk, (size_t)n);
    }
}

static int dispatch_qmp(struct qemu *qemu, struct error *err)
{
    const int fd = qmp_fd(qemu->qmp);

    if (fd < 0)
        return 0;
    int r = qmp_dispatch(qemu->qmp, err);
    if (qmp_fd(qemu->qmp) < 0)
        return r; /* closed, and so gone from the epoll set */
    uint32_t events = EPOLLIN | (qmp_wants_write(qemu->qmp) ? EPOLLOUT : 0);
    if (events != qemu->qmp_events) {
        struct epoll_event event = {.events = events, .data.fd = fd};
        (void)epoll_ctl(qemu->epoll, EPOLL_CTL_MOD, fd, &event);
        qemu->qmp_events = events;
    }
    return r;
}

static void tell_to_quit(struct qemu *qemu)
{
    set_timer(qemu, qemu->asked ? QEMU_STOP_MS : ENDING_QUIT_MS);
    qemu->stop = STOP_QUIT;
    /* The answer that makes it ready may be here already. */
    (void)dispatch_qmp(qemu, NULL);
    if (qmp_ready(qemu->qmp) && qmp_execute(qemu->qmp, "quit", NULL, NULL, NULL, NULL) == 0) {
        (void)dispatch_qmp(qemu, NULL);
        return;
    }
    /* A QEMU that has not come to speak yet. */
    (void)kill(-qemu->pid, SIGTERM);
}

static void kill_now(struct qemu *qemu)
{
    qemu->stop = STOP_KILL;
    set_timer(qemu, 0);
    if (!try_reap(qemu))
        (void)kill(-qemu->pid, SIGKILL);
}

void qemu_kill(struct qemu *qemu)
{
    if (qemu->end != QEMU_RUNNING)
        return;
    qemu->asked = true;
    kill_now(qemu);
}

/* The guest is off already, and QEMU shall be, too: it gets no more time than a guest would. */
static void hurry(struct qemu *qemu, unsigned powerdown_ms)
{
    if (qemu->stop == STOP_ENDING)
        tell_to_quit(qemu);
    set_timer(qemu, powerdown_ms > QEMU_STOP_MS ? powerdown_ms : QEMU_STOP_MS);
}

void qemu_stop(struct qemu *qemu, unsigned powerdown_ms)
{
    const bool ending = qemu->stop == STOP_ENDING || (qemu->stop == STOP_QUIT && !qemu->asked);

    if (qemu->end != QEMU_RUNNING || qemu->reaped || (qemu->stop >= STOP_QUIT && !ending))
        return;
    qemu->asked = true;
    if (ending) {
        hurry(qemu, powerdown_ms);
        return;
    }
    if (powerdown_ms == 0) {
        tell_to_quit(qemu);
        return;
    }
    if (qemu->stop != STOP_NONE)
        return;
    qemu->stop = STOP_POWERDOWN;
    set_timer(qemu, powerdown_ms);
    if (qmp_execute(qemu->qmp, "system_powerdown", NULL, NULL, NULL, NULL) < 0)
        tell_to_quit(qemu);
    else
        (void)dispatch_qmp(qemu, NULL);
}

bool qemu_powering_down(const struct qemu *qemu)
{
    return qemu->end == QEMU_RUNNING && qemu->stop == STOP_POWERDOWN;
}

static void next_stage(struct qemu *qemu)
{
    uint64_t expirations;

    if (read(qemu->timer, &expirations, sizeof(expirations)) != sizeof(expirations))
        return;
    if (qemu->stop == STOP_POWERDOWN || qemu->stop == STOP_ENDING)
        tell_to_quit(qemu);
    else if (qemu->stop == STOP_QUIT)
        kill_now(qemu);
}

/* The process has ended: takes what it left in the pipes. */
static int finish(struct qemu *qemu, struct error *err)
{
    int r = dispatch_qmp(qemu, err);

    /* What fits into pipes, and no more: a child of QEMU may hold the other end and go on writing.
     * There is no later for an owner that pauses. */
    for (int i = 0; i < 64 && (qemu->console_out >= 0 || qemu->messages >= 0); i++) {
        qemu->paused = false;
        read_console(qemu);
        read_messages(qemu);
    }
    conclude(qemu);
    return r;
}

int qemu_dispatch(struct qemu *qemu, struct error *err)
{
    if (qemu->end != QEMU_RUNNING)
        return 0;
    /* Reading what has nothing costs a system call each; that is simpler than telling apart. */
    next_stage(qemu);
    read_console(qemu);
    read_messages(qemu);
    if (try_reap(qemu))
        return finish(qemu, err);
    return dispatch_qmp(qemu, err);
}

/* --- Console and QMP --- */

void qemu_console_pause(struct qemu *qemu, bool paused)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = qemu->console_out};

    if (qemu->paused == paused)
        return;
    qemu->paused = paused;
    /* Taken out of the set, as a hang-up would be reported even with no events asked for. */
    if (qemu->console_out >= 0)
        (void)epoll_ctl(qemu->epoll, paused ? EPOLL_CTL_DEL : EPOLL_CTL_ADD, qemu->console_out,
                        &event);
}

size_t qemu_console_write(struct qemu *qemu, const void *bytes, size_t length)
{
    if (qemu->console_in < 0)
        return 0;
    ssize_t n = write(qemu->console_in, bytes, length);
    return n > 0 ? (size_t)n : 0;
}

struct qmp *qemu_qmp(struct qemu *qemu)
{
    return qemu->qmp;
}

pid_t qemu_pid(const struct qemu *qemu)
{
    return qemu->pid;
}

int qemu_fd(const struct qemu *qemu)
{
    return qemu->epoll;
}
