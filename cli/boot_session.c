/* SPDX-License-Identifier: MIT */
#include "cli/boot.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/signalfd.h>

#include "cli/serve.h"
#include "common/log.h"
#include "qemuctl/clock.h"
#include "qemuctl/qemu.h"

/*
 * Three processes: this one, which watches; the one that serves the mount (serve.c); QEMU. One loop
 * polls all that can happen. The first thing that decides how the session ends is kept as its
 * verdict; from then on the loop only waits for QEMU's end, which qemu_stop() brings about within
 * seconds whatever state QEMU is in.
 *
 * If this process dies, the kernel kills QEMU (qemu.c), and the serving process unmounts and kills
 * what else belongs to QEMU (serve.c).
 */

/* A prompt without a newline counts as a line's end when nothing follows for so long. */
#define PAUSE_MS 100
/* QEMU after SIGKILL, before we go on without it. */
#define KILLED_MS 3000
#define LINGER_MS 2000
#define LAST_WORDS_MAX (1024 * 1024)

enum verdict {
    VERDICT_NONE,
    VERDICT_MATCHED,
    VERDICT_ENDED,  /* the guest, by itself */
    VERDICT_FAILED, /* run.err says why */
};

struct run {
    const struct boot_session *session;
    struct serve *serve;
    struct qemu *qemu;
    struct sink out;
    struct terminal terminal;
    int signals;
    int64_t deadline;       /* of --timeout; 0: none */
    int64_t pause_deadline; /* 0: nothing to wait for */
    int64_t killed_deadline;
    enum verdict verdict;
    bool insisted; /* that a guest must not be waited for */
    struct error err;
};

static void run_clear(struct run *run)
{
    terminal_restore(&run->terminal);
    /* QEMU first: the serving process must outlive whoever reads from it. But if QEMU does not even
     * die of SIGKILL, it waits for a read that the serving process does not answer. */
    if (run->qemu != NULL && qemu_end(run->qemu) == QEMU_RUNNING && run->killed_deadline != 0)
        serve_kill(run->serve);
    if (run->qemu != NULL) {
        qemu_free(run->qemu);
        serve_guard(run->serve, 0);
    }
    if (run->serve != NULL)
        serve_free(run->serve);
    sink_clear(&run->out);
    cleanup_close(&run->signals);
    error_clear(&run->err);
}
DEFINE_CLEANUP_INPLACE(struct run, run_clear);

/* The first verdict stays. Gives up the guest. */
static void decide(struct run *run, enum verdict verdict)
{
    if (run->verdict != VERDICT_NONE)
        return;
    run->verdict = verdict;
    if (run->qemu == NULL)
        return;
    qemu_stop(run->qemu, run->session->powerdown_ms);
    qemu_console_pause(run->qemu, false);
}

/* For a cause in `err`, which is taken. */
static void fail(struct run *run, struct error *err)
{
    if (run->verdict == VERDICT_NONE)
        error_move(&run->err, err);
    error_clear(err);
    decide(run, VERDICT_FAILED);
}

/* --- Signals --- */

static const int handled_signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};

static int open_signals(int *ret, struct error *err)
{
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(handled_signals) / sizeof(handled_signals[0]); i++)
        sigaddset(&set, handled_signals[i]);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return error_set_errno(err, errno, "sigprocmask");
    (void)signal(SIGPIPE, SIG_IGN);
    *ret = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (*ret < 0)
        return error_set_errno(err, errno, "signalfd");
    return 0;
}

/* Each time that somebody insists is the end of one more try to be kind. */
static void interrupted(struct run *run, const char *by)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    if (run->verdict == VERDICT_NONE) {
        error_set(&err, EINTR, run->qemu != NULL ? "%s: the guest was stopped" : "%s: gave up", by);
        fail(run, &err);
        return;
    }
    if (run->qemu == NULL)
        return;
    if (qemu_powering_down(run->qemu)) {
        run->insisted = true;
        qemu_stop(run->qemu, 0);
        run->killed_deadline = clock_ms() + QEMU_STOP_MS + KILLED_MS;
    } else {
        qemu_kill(run->qemu);
        run->killed_deadline = clock_ms() + KILLED_MS;
    }
}

static void take_signals(struct run *run)
{
    struct signalfd_siginfo info;
    char name[32];

    while (read(run->signals, &info, sizeof(info)) == sizeof(info)) {
        const char *abbreviation = sigabbrev_np((int)info.ssi_signo);
        snprintf(name, sizeof(name), "SIG%s", abbreviation != NULL ? abbreviation : "?");
        interrupted(run, name);
    }
}

/* --- The console --- */

static bool console_waits(const struct run *run)
{
    return sink_waits(&run->out) || sink_waits(run->session->console);
}

/* A sink that cannot be written is given up, so that the rest of the session does not try again. */
static void write_console(struct run *run, struct sink *sink, const void *text, size_t length)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    int r = text != NULL ? sink_write(sink, text, length, &err) : sink_flush(sink, &err);
    if (r < 0) {
        sink->waiting_length = 0;
        fail(run, &err);
    }
}

/* What a guest says while it powers down. A reader that is slow must not hold that up. */
static void last_words(struct run *run, const void *text, size_t length)
{
    struct sink *const sinks[] = {&run->out, run->session->console};

    if (run->session->powerdown_ms == 0)
        return;
    for (size_t i = 0; i < sizeof(sinks) / sizeof(sinks[0]); i++)
        if (sinks[i]->waiting_length < LAST_WORDS_MAX)
            write_console(run, sinks[i], text, length);
}

static void on_console(const void *text, size_t length, void *arg)
{
    struct run *run = arg;

    if (run->verdict != VERDICT_NONE) {
        last_words(run, text, length);
        return;
    }
    write_console(run, &run->out, text, length);
    write_console(run, run->session->console, text, length);
    run->pause_deadline = clock_ms() + PAUSE_MS;
    if (until_feed(run->session->until, text, length))
        decide(run, VERDICT_MATCHED);
    else if (console_waits(run))
        qemu_console_pause(run->qemu, true);
}

static void on_message(const char *line, void *arg)
{
    (void)arg;
    log_info("QEMU: %s", line);
}

static void flush_console(struct run *run)
{
    write_console(run, &run->out, NULL, 0);
    write_console(run, run->session->console, NULL, 0);
    if (!console_waits(run) && run->qemu != NULL)
        qemu_console_pause(run->qemu, false);
}

static void take_keys(struct run *run)
{
    char keys[256], translated[256];
    bool stop = false;

    ssize_t n = read(run->terminal.fd, keys, sizeof(keys));
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n <= 0) {
        terminal_restore(&run->terminal);
        return;
    }
    size_t length = terminal_translate(&run->terminal, keys, (size_t)n, translated, &stop);
    /* What a guest does not read is lost, as on a serial line. */
    (void)qemu_console_write(run->qemu, translated, length);
    if (stop)
        interrupted(run, "Ctrl-C");
}

/* --- Time --- */

static bool passed(int64_t deadline, int64_t now)
{
    return deadline != 0 && now >= deadline;
}

static void time_out(struct run *run)
{
    const struct boot_session *session = run->session;
    _cleanup_error_ struct error err = ERROR_INIT;

    if (session->until_text != NULL)
        error_set(&err, ETIMEDOUT,
                  "timeout: no line of the console matched '%s' within %u seconds; the last was: "
                  "%.200s",
                  session->until_text, session->timeout, until_line(session->until));
    else
        error_set(&err, ETIMEDOUT, "timeout: the guest still ran after %u seconds",
                  session->timeout);
    fail(run, &err);
}

/* A kernel that panicked and stays there. Somebody at the terminal may want to look at it. */
static void check_halted(struct run *run)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    bool halted;

    const char *panic = until_panic(run->session->until, &halted);
    if (!halted || run->terminal.fd >= 0)
        return;
    error_set(&err, EIO, "the guest's kernel panicked: %.200s", panic);
    fail(run, &err);
}

static void take_time(struct run *run)
{
    const int64_t now = clock_ms();

    if (run->verdict != VERDICT_NONE)
        return;
    if (passed(run->pause_deadline, now)) {
        run->pause_deadline = 0;
        if (until_pause(run->session->until))
            decide(run, VERDICT_MATCHED);
        else
            check_halted(run);
    }
    if (run->verdict == VERDICT_NONE && passed(run->deadline, now))
        time_out(run);
}

static int poll_timeout(const struct run *run)
{
    const int64_t deadlines[] = {run->deadline, run->pause_deadline};
    int64_t first = INT64_MAX;

    if (run->verdict != VERDICT_NONE)
        return 1000;
    for (size_t i = 0; i < sizeof(deadlines) / sizeof(deadlines[0]); i++)
        if (deadlines[i] != 0 && deadlines[i] < first)
            first = deadlines[i];
    if (first == INT64_MAX)
        return -1;
    int64_t left = first - clock_ms();
    return left < 0 ? 0 : left > 1000000 ? 1000000 : (int)left;
}

/* --- The loop --- */

enum { FD_SIGNALS, FD_SERVE, FD_QEMU, FD_KEYS, FD_OUT, FD_FILE, FD_COUNT };

/* Waits for something and takes it. */
static void step(struct run *run)
{
    const struct sink *file = run->session->console;
    const bool qemu_runs = run->qemu != NULL && qemu_end(run->qemu) == QEMU_RUNNING;
    const bool keys = run->terminal.fd >= 0 && qemu_runs;
    const bool watch_serve = run->serve != NULL && run->verdict == VERDICT_NONE;
    struct pollfd fds[FD_COUNT] = {
        [FD_SIGNALS] = {.fd = run->signals, .events = POLLIN},
        [FD_SERVE] = {.fd = watch_serve ? serve_fd(run->serve) : -1, .events = POLLIN},
        [FD_QEMU] = {.fd = qemu_runs ? qemu_fd(run->qemu) : -1, .events = POLLIN},
        [FD_KEYS] = {.fd = keys ? run->terminal.fd : -1, .events = POLLIN},
        [FD_OUT] = {.fd = sink_waits(&run->out) ? run->out.fd : -1, .events = POLLOUT},
        [FD_FILE] = {.fd = sink_waits(file) ? file->fd : -1, .events = POLLOUT},
    };
    _cleanup_error_ struct error err = ERROR_INIT;

    if (poll(fds, FD_COUNT, poll_timeout(run)) < 0 && errno != EINTR) {
        error_set_errno(&err, errno, "poll");
        fail(run, &err);
    }
    if (fds[FD_SIGNALS].revents != 0)
        take_signals(run);
    if (fds[FD_SERVE].revents != 0 && serve_dispatch(run->serve, &err) < 0) {
        fail(run, &err);
        /* The guest's disks are gone: there is no point in asking it for anything. */
        if (run->qemu != NULL && run->session->target != NULL)
            qemu_kill(run->qemu);
    }
    if (fds[FD_KEYS].revents != 0)
        take_keys(run);
    if (fds[FD_OUT].revents != 0 || fds[FD_FILE].revents != 0)
        flush_console(run);
    if (fds[FD_QEMU].revents != 0 && qemu_dispatch(run->qemu, &err) < 0) {
        log_info("%s", error_message(&err));
        error_clear(&err);
    }
    take_time(run);
}

/* Whether QEMU is gone, or must be taken for gone. */
static bool over(struct run *run)
{
    if (qemu_end(run->qemu) != QEMU_RUNNING)
        return true;
    if (run->verdict == VERDICT_NONE)
        return false;
    if (run->killed_deadline == 0)
        run->killed_deadline = clock_ms() + run->session->powerdown_ms + QEMU_STOP_MS + KILLED_MS;
    return clock_ms() >= run->killed_deadline;
}

/* The guest's last words may wait for a slow reader: for any time if it ended by itself, else for
 * LINGER_MS. */
static void drain(struct run *run)
{
    const int64_t deadline = clock_ms() + LINGER_MS;

    while (console_waits(run) && (run->verdict == VERDICT_NONE || clock_ms() < deadline))
        step(run);
}

/* The guest ended by itself. */
static void conclude(struct run *run)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    const struct boot_session *session = run->session;
    const enum qemu_end end = qemu_end(run->qemu);
    bool halted;

    if (run->verdict == VERDICT_NONE && until_pause(session->until))
        decide(run, VERDICT_MATCHED);
    if (run->verdict != VERDICT_NONE)
        return;
    const char *panic = until_panic(session->until, &halted);
    if (end == QEMU_POWERED_OFF && session->until_text == NULL) {
        decide(run, VERDICT_ENDED);
        return;
    }
    if (panic != NULL && (end == QEMU_RESET || end == QEMU_PANICKED || end == QEMU_POWERED_OFF))
        error_set(&err, EIO, "the guest's kernel panicked: %.200s", panic);
    else
        error_set(&err, EIO, "%s", qemu_end_text(run->qemu));
    if (session->until_text != NULL && end != QEMU_FAILED)
        error_set(&err, EIO, "%s; no line of its console had matched '%s'", error_message(&err),
                  session->until_text);
    fail(run, &err);
}

static int run_guest(struct run *run, struct error *err)
{
    const struct boot_session *session = run->session;
    const struct qemu_handlers handlers = {
        .console = on_console, .message = on_message, .arg = run};
    _cleanup_argv_ struct argv argv = ARGV_INIT;

    int r = session->make_argv(session->arg, serve_table(run->serve), &argv, err);
    if (r < 0)
        return r;
    r = qemu_spawn(&argv, serve_root(run->serve), &handlers, &run->qemu, err);
    if (r < 0)
        return r;
    serve_guard(run->serve, qemu_pid(run->qemu));
    serve_close_root(run->serve);
    if (session->timeout != 0)
        run->deadline = clock_ms() + (int64_t)session->timeout * 1000;
    if (session->until_text == NULL)
        terminal_open(&run->terminal, STDIN_FILENO);
    while (!over(run))
        step(run);
    drain(run);
    if (run->verdict == VERDICT_NONE)
        conclude(run);
    else if (session->powerdown_ms != 0 && !run->insisted && qemu_end(run->qemu) == QEMU_STOPPED)
        log_warning("the guest did not power down within %u seconds and was cut off",
                    session->powerdown_ms / 1000);
    return 0;
}

int boot_session_run(const struct boot_session *session, struct error *err)
{
    _cleanup_(run_clear_cleanup) struct run run = {
        .session = session, .out = SINK_INIT, .terminal = TERMINAL_INIT, .signals = -1};
    const struct serve_options serve = {
        .cli = session->cli,
        .target = session->target,
        .socket = session->socket,
        .table = session->verity,
    };

    int r = open_signals(&run.signals, err);
    if (r == 0)
        r = sink_open_stdout(&run.out, "standard output", err);
    if (r == 0)
        r = serve_start(&serve, &run.serve, err);
    if (r < 0)
        return r;
    while (run.verdict == VERDICT_NONE &&
           !(serve_mounted(run.serve) && (!session->verity || serve_table(run.serve) != NULL)))
        step(&run);
    if (run.verdict == VERDICT_NONE) {
        r = run_guest(&run, err);
        if (r < 0)
            return r;
    }
    terminal_restore(&run.terminal);
    if (run.verdict == VERDICT_FAILED) {
        error_move(err, &run.err);
        return -err->code;
    }
    return sink_close(session->console, err);
}
