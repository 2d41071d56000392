/* SPDX-License-Identifier: MIT */
#include "provision/guest.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "common/io.h"
#include "provision/ssh.h"
#include "qemuctl/clock.h"
#include "qemuctl/qemu.h"
#include "qemuctl/until.h"

#define MIB (UINT64_C(1024) * 1024)
#define GUEST_SSH_PORT 22
/* Between attempts to connect. QEMU accepts connections before the guest does. */
#define RETRY_MS 500
#define SYNC_SECONDS 600
#define QMP_SECONDS 120
#define POWERDOWN_MS 1000

struct guest {
    struct build *build;
    struct qemu *qemu;
    struct until *failure;
    const char *failure_text;
    int console; /* the file */
    unsigned port;
    struct ssh *ssh;
    int64_t deadline; /* of what is waited for; 0: none */
    bool ending;      /* that the guest ends is what is waited for */
    /* To a command of QMP. It is here as it may come when nobody waits for it any more: then
     * freeing QEMU tells that there was none. */
    struct {
        bool awaited, failed;
        char *error;
    } answer;
    struct {
        int fd;
        guest_meanwhile *take;
        void *arg;
    } watched;
};

/* --- QEMU --- */

static void on_console(const void *text, size_t length, void *arg)
{
    struct guest *guest = arg;

    /* A console that cannot be kept does not end a build. */
    (void)io_write(guest->console, "console", text, length, NULL);
    (void)until_feed(guest->failure, text, length);
}

static void on_message(const char *line, void *arg)
{
    const struct guest *guest = arg;

    build_say(guest->build, "QEMU: %s", line);
}

/* A port of this machine that nobody listens at. It could be taken before QEMU does; then QEMU says
 * so and ends. */
static int find_port(unsigned *ret, struct error *err)
{
    _cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        return error_set_errno(err, errno, "no free port for the guest's SSH");
    *ret = ntohs(address.sin_port);
    return 0;
}

static int make_argv(struct guest *guest, const struct guest_options *options, struct argv *ret,
                     struct error *err)
{
    const char *qemu = getenv("QVERITY_QEMU");
    const struct machine_disk disks[] = {
        {.file = options->image, .format = "qcow2", .serial = "qverity-disk"},
        {.file = options->seed, .format = "raw", .serial = "qverity-seed", .readonly = true},
    };
    const struct net_forward forward = {
        .address = NET_ADDRESS_DEFAULT, .host = (uint16_t)guest->port, .guest = GUEST_SSH_PORT};
    const struct machine_options machine = {
        .qemu = qemu != NULL && qemu[0] != '\0' ? qemu : NULL,
        .accel = guest->build->options->accel,
        .memory = options->memory,
        .cpus = options->cpus,
        .firmware = options->firmware,
        .kernel = options->kernel,
        .initrd = options->initrd,
        .append = options->append,
        .disks = disks,
        .disk_count = options->seed != NULL ? 2 : 1,
        .cdrom = options->cdrom,
        .net = {.kind = options->ssh ? NET_USER : NET_QEMU,
                .forwards = &forward,
                .forward_count = options->ssh ? 1 : 0},
    };

    return machine_argv(&machine, ret, err);
}

int guest_start(struct build *build, const struct guest_options *options, struct guest **ret,
                struct error *err)
{
    _cleanup_(guest_free_cleanup) struct guest *guest = calloc(1, sizeof(*guest));
    _cleanup_free_ char *console = step_path(build, "console"), *line = NULL;
    _cleanup_argv_ struct argv argv = ARGV_INIT;

    if (guest == NULL || console == NULL)
        return error_oom(err);
    guest->build = build;
    guest->watched.fd = -1;
    guest->failure_text = options->failure;
    guest->console = open(console, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (guest->console < 0)
        return error_set_errno(err, errno, "%s: cannot create", console);
    int r = until_new(options->failure, &guest->failure, err);
    if (r == 0 && options->ssh)
        r = find_port(&guest->port, err);
    if (r == 0)
        r = make_argv(guest, options, &argv, err);
    if (r < 0)
        return r;
    line = argv_quote(&argv);
    if (line != NULL)
        build_say(build, "+ %s", line);
    const struct qemu_handlers handlers = {
        .console = on_console, .message = on_message, .arg = guest};
    r = qemu_spawn(&argv, -1, &handlers, &guest->qemu, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(guest);
    return 0;
}

void guest_free(struct guest *guest)
{
    if (guest->ssh != NULL)
        ssh_close(guest->ssh);
    if (guest->qemu != NULL)
        qemu_free(guest->qemu);
    if (guest->failure != NULL)
        until_free(guest->failure);
    cleanup_close(&guest->console);
    free(guest->answer.error);
    free(guest);
}

pid_t guest_pid(const struct guest *guest)
{
    return qemu_pid(guest->qemu);
}

void guest_watch(struct guest *guest, int fd, guest_meanwhile *take, void *arg)
{
    guest->watched.fd = fd;
    guest->watched.take = take;
    guest->watched.arg = arg;
}

/* --- Waiting --- */

static void set_deadline(struct guest *guest, uint64_t seconds)
{
    guest->deadline = seconds != 0 ? clock_ms() + (int64_t)seconds * 1000 : 0;
}

/* Why a guest that should run does not, or will not do any more. */
static int check(struct guest *guest, struct error *err)
{
    const enum qemu_end end = qemu_end(guest->qemu);
    bool halted;

    if (guest->failure_text != NULL && until_pause(guest->failure))
        return error_set(err, EIO, "the guest's console shows a failure: %.200s",
                         until_line(guest->failure));
    const char *panic = until_panic(guest->failure, &halted);
    if (panic != NULL && (halted || end != QEMU_RUNNING))
        return error_set(err, EIO, "the guest's kernel panicked: %.200s", panic);
    if (end == QEMU_RUNNING || (guest->ending && end == QEMU_POWERED_OFF))
        return 0;
    return error_set(err, EIO, "%s; the last line of its console: %.200s",
                     qemu_end_text(guest->qemu), until_line(guest->failure));
}

/* Waits for `fd` (or -1), the guest, or `ms`, and takes what has come. */
static int step(struct guest *guest, int fd, short events, int ms, struct error *err)
{
    const bool runs = qemu_end(guest->qemu) == QEMU_RUNNING;
    struct pollfd fds[] = {
        {.fd = runs ? qemu_fd(guest->qemu) : -1, .events = POLLIN},
        {.fd = fd, .events = events},
        {.fd = guest->watched.fd, .events = POLLIN},
        {.fd = guest->build->options->interrupt, .events = POLLIN},
    };
    const int64_t left = guest->deadline != 0 ? guest->deadline - clock_ms() : ms;

    if (guest->deadline != 0 && left <= 0)
        return error_set(err, ETIMEDOUT, "timeout; the last line of the guest's console: %.200s",
                         until_line(guest->failure));
    if (poll(fds, 4, left < ms ? (int)left : ms) < 0 && errno != EINTR)
        return error_set_errno(err, errno, "poll");
    if (fds[3].revents != 0)
        return error_set(err, EINTR, "interrupted");
    int r = fds[0].revents != 0 ? qemu_dispatch(guest->qemu, err) : 0;
    if (r == 0 && fds[2].revents != 0 && guest->watched.take != NULL)
        r = guest->watched.take(guest->watched.arg, err);
    return r < 0 ? r : check(guest, err);
}

/* For SSH: the socket is looked at anyway after a while, as libssh may have read ahead. */
static int ssh_wait(void *arg, int fd, short events, struct error *err)
{
    return step(arg, fd, events, 100, err);
}

int guest_await_end(struct guest *guest, uint64_t seconds, struct error *err)
{
    int r = 0;

    set_deadline(guest, seconds);
    guest->ending = true;
    while (r == 0 && qemu_end(guest->qemu) == QEMU_RUNNING)
        r = step(guest, -1, 0, 1000, err);
    guest->deadline = 0;
    return r;
}

static int pause_for(struct guest *guest, int ms, struct error *err)
{
    const int64_t until = clock_ms() + ms;
    int r = 0;

    while (r == 0 && clock_ms() < until)
        r = step(guest, -1, 0, (int)(until - clock_ms()) + 1, err);
    return r;
}

int guest_connect(struct guest *guest, const char *user, uint64_t seconds, struct error *err)
{
    struct ssh_options options = {
        .port = guest->port, .user = user, .wait = ssh_wait, .arg = guest};
    const int64_t begun = clock_ms();

    int r = keys_get(guest->build, &options.keys, err);
    if (r < 0)
        return r;
    set_deadline(guest, seconds);
    for (;;) {
        _cleanup_error_ struct error attempt = ERROR_INIT;
        r = ssh_open(&options, &guest->ssh, &attempt);
        /* A server that is only coming up may hang up in the middle. */
        if (r == -EAGAIN || r == -ECONNRESET) {
            r = pause_for(guest, RETRY_MS, err);
            if (r == 0)
                continue;
        } else if (r < 0) {
            error_move(err, &attempt);
        }
        break;
    }
    guest->deadline = 0;
    if (r == -ETIMEDOUT)
        return error_prefix(err, "SSH did not answer within %llu seconds",
                            (unsigned long long)seconds);
    if (r == 0)
        build_say(guest->build, "SSH answers after %.1f s", (double)(clock_ms() - begun) / 1000);
    return r;
}

/* --- In the guest --- */

int guest_run(struct guest *guest, const struct guest_command *command, int *ret_status,
              struct error *err)
{
    set_deadline(guest, command->timeout);
    int r = ssh_run(guest->ssh, command, ret_status, err);
    guest->deadline = 0;
    if (r == -ETIMEDOUT)
        return error_set(err, ETIMEDOUT, "%s: still ran after %llu seconds", command->argv[0],
                         (unsigned long long)command->timeout);
    return r;
}

static int ignore(const void *bytes, size_t length, bool is_stderr, void *arg, struct error *err)
{
    (void)bytes;
    (void)length;
    (void)is_stderr;
    (void)arg;
    (void)err;
    return 0;
}

static int run_quietly(struct guest *guest, char *const *argv, uint64_t seconds, int *ret_status,
                       struct error *err)
{
    const struct guest_command command = {
        .argv = argv, .input = -1, .timeout = seconds, .output = ignore};

    return guest_run(guest, &command, ret_status, err);
}

/*
 * After a sync, what was written is on the disk, but maybe in a journal, which the next kernel
 * reads and a boot loader does not. To freeze a file system has the kernel write all of it to its
 * place. Where that cannot be done, it is as after a loss of power.
 */
static const char sync_script[] =
    "sync || exit\n"
    "command -v fsfreeze >/dev/null || exit 0\n"
    "for dir in / /boot; do fsfreeze --freeze $dir && fsfreeze --unfreeze $dir; done\n"
    "exit 0";

int guest_sync(struct build *build, struct error *err)
{
    char *const argv[] = {(char *)"sh", (char *)"-c", (char *)sync_script, NULL};
    int status;

    int r = run_quietly(build->guest, argv, SYNC_SECONDS, &status, err);
    if (r == 0 && status != 0)
        r = error_set(err, EIO, "sync failed in the guest");
    return r;
}

static void on_answer(json_t *ret, const char *error, void *arg)
{
    struct guest *guest = arg;

    guest->answer.awaited = false;
    guest->answer.failed = ret == NULL;
    free(guest->answer.error);
    guest->answer.error = error != NULL ? strdup(error) : NULL;
}

/* Has QEMU do something, and waits for its answer. `arguments` is taken. */
static int execute(struct guest *guest, const char *command, json_t *arguments, struct error *err)
{
    if (arguments == NULL)
        return error_oom(err);
    int r = qmp_execute(qemu_qmp(guest->qemu), command, arguments, on_answer, guest, err);
    if (r < 0)
        return r;
    guest->answer.awaited = true;
    set_deadline(guest, QMP_SECONDS);
    /* Dispatching sends what is queued. */
    r = qemu_dispatch(guest->qemu, err);
    /* A connection that ended is the first that is seen of a QEMU that did, which has its reasons.
     */
    while (r == 0 &&
           (guest->answer.awaited || (guest->answer.failed && guest->answer.error == NULL)))
        r = step(guest, -1, 0, 1000, err);
    guest->deadline = 0;
    if (r == 0 && guest->answer.failed)
        r = error_set(err, EIO, "QEMU: %s: %s", command, guest->answer.error);
    return r;
}

int guest_change_disk(struct guest *guest, const char *path, struct error *err)
{
    int r = execute(
        guest, "blockdev-snapshot-sync",
        json_pack("{s:s, s:s, s:s}", "device", "disk0", "snapshot-file", path, "format", "qcow2"),
        err);

    return r < 0 ? error_prefix(err, "%s", path) : 0;
}

int guest_shutdown(struct guest *guest, uint64_t seconds, struct error *err)
{
    char *const argv[] = {(char *)"systemctl", (char *)"--no-block", (char *)"poweroff", NULL};
    int status;

    guest->ending = true;
    int r = run_quietly(guest, argv, SYNC_SECONDS, &status, err);
    if (r == 0 && status != 0)
        r = error_set(err, EIO, "systemctl poweroff failed in the guest");
    /* The guest may be gone before it has answered. */
    if (r == -ECONNRESET || (r < 0 && qemu_end(guest->qemu) == QEMU_POWERED_OFF)) {
        error_clear(err);
        r = 0;
    }
    if (r == 0)
        r = guest_await_end(guest, seconds, err);
    return r == -ETIMEDOUT ? error_prefix(err, "the guest did not power off within %llu seconds",
                                          (unsigned long long)seconds)
                           : r;
}
