/* SPDX-License-Identifier: MIT */
#include "provision/ssh.h"

#include <poll.h>
#include <string.h>

#include "qemuctl/argv.h"

#define CHUNK 32768
/* A server that sends nothing for so long, while a session begins, is none. An emulated guest may
 * take long over the key exchange. */
#define CONNECT_SECONDS 60

struct ssh {
    struct ssh_options options;
    ssh_session session;
};

static int wait_for(struct ssh *ssh, short events, struct error *err)
{
    const int fd = ssh_get_fd(ssh->session);

    return ssh->options.wait(ssh->options.arg, fd, events, err);
}

static int lost(struct ssh *ssh, const char *what, struct error *err)
{
    return error_set(err, ECONNRESET, "SSH: %s: %s", what, ssh_get_error(ssh->session));
}

void ssh_close(struct ssh *ssh)
{
    if (ssh->session != NULL) {
        ssh_silent_disconnect(ssh->session);
        ssh_free(ssh->session);
    }
    free(ssh);
}

/* --- Beginning --- */

static int set_options(struct ssh *ssh, struct error *err)
{
    const int no = 0, yes = 1;
    const long seconds = CONNECT_SECONDS;
    const unsigned port = ssh->options.port;
    ssh_session session = ssh->session;

    /* Neither the user's configuration nor his known hosts have a say. */
    if (ssh_options_set(session, SSH_OPTIONS_PROCESS_CONFIG, &no) < 0 ||
        ssh_options_set(session, SSH_OPTIONS_HOST, "127.0.0.1") < 0 ||
        ssh_options_set(session, SSH_OPTIONS_PORT, &port) < 0 ||
        ssh_options_set(session, SSH_OPTIONS_USER, ssh->options.user) < 0 ||
        ssh_options_set(session, SSH_OPTIONS_TIMEOUT, &seconds) < 0 ||
        ssh_options_set(session, SSH_OPTIONS_HOSTKEYS, "ssh-ed25519") < 0 ||
        ssh_options_set(session, SSH_OPTIONS_KNOWNHOSTS, "/dev/null") < 0 ||
        ssh_options_set(session, SSH_OPTIONS_GLOBAL_KNOWNHOSTS, "/dev/null") < 0 ||
        ssh_options_set(session, SSH_OPTIONS_NODELAY, &yes) < 0)
        return error_set(err, EIO, "SSH: %s", ssh_get_error(session));
    ssh_set_blocking(session, 0);
    return 0;
}

static int check_host_key(struct ssh *ssh, struct error *err)
{
    ssh_key key = NULL;

    if (ssh_get_server_publickey(ssh->session, &key) != SSH_OK)
        return lost(ssh, "the host key", err);
    const bool same = ssh_key_cmp(key, ssh->options.keys->host, SSH_KEY_CMP_PUBLIC) == 0;
    ssh_key_free(key);
    if (!same)
        return error_set(err, EACCES,
                         "SSH: what answers does not have the host key that was put into the "
                         "system");
    return 0;
}

static int log_in(struct ssh *ssh, struct error *err)
{
    int code;

    while ((code = ssh_userauth_publickey(ssh->session, NULL, ssh->options.keys->client)) ==
           SSH_AUTH_AGAIN) {
        int r = wait_for(ssh, POLLIN, err);
        if (r < 0)
            return r;
    }
    if (code == SSH_AUTH_SUCCESS)
        return 0;
    if (code == SSH_AUTH_ERROR)
        return lost(ssh, "logging in", err);
    return error_set(err, EACCES, "SSH: the guest does not let the user %s in with the build's key",
                     ssh->options.user);
}

int ssh_open(const struct ssh_options *options, struct ssh **ret, struct error *err)
{
    _cleanup_(ssh_close_cleanup) struct ssh *ssh = calloc(1, sizeof(*ssh));
    int code, r;

    if (ssh == NULL)
        return error_oom(err);
    ssh->options = *options;
    ssh->session = ssh_new();
    if (ssh->session == NULL)
        return error_oom(err);
    r = set_options(ssh, err);
    if (r < 0)
        return r;
    while ((code = ssh_connect(ssh->session)) == SSH_AGAIN) {
        r = wait_for(ssh, POLLIN, err);
        if (r < 0)
            return r;
    }
    if (code != SSH_OK)
        return error_set(err, EAGAIN, "SSH: %s", ssh_get_error(ssh->session));
    r = check_host_key(ssh, err);
    if (r == 0)
        r = log_in(ssh, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(ssh);
    return 0;
}

/* --- Running --- */

struct running {
    struct ssh *ssh;
    const struct guest_command *command;
    ssh_channel channel;
    char *pending; /* of the input: read, not yet sent */
    size_t pending_length, pending_sent;
    bool input_ended;
    char buffer[CHUNK];
};

static void running_clear(struct running *running)
{
    if (running->channel != NULL)
        ssh_channel_free(running->channel);
    free(running->pending);
}
DEFINE_CLEANUP_INPLACE(struct running, running_clear);

/* SSH takes a line for the user's shell. sudo starts the program without one. */
static int command_line(const struct ssh *ssh, const struct guest_command *command, char **ret,
                        struct error *err)
{
    _cleanup_argv_ struct argv argv = ARGV_INIT;

    if (strcmp(ssh->options.user, "root") != 0) {
        argv_add(&argv, "sudo");
        argv_add(&argv, "-n");
        argv_add(&argv, "--");
    }
    argv_add(&argv, "env");
    argv_add(&argv, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    for (size_t i = 0; command->environment != NULL && command->environment[i] != NULL; i++)
        argv_add(&argv, command->environment[i]);
    for (size_t i = 0; command->argv[i] != NULL; i++)
        argv_add(&argv, command->argv[i]);
    int r = argv_check(&argv, err);
    if (r < 0)
        return r;
    *ret = argv_quote_posix(&argv);
    return *ret != NULL ? 0 : error_oom(err);
}

static int begin(struct running *running, struct error *err)
{
    struct ssh *ssh = running->ssh;
    _cleanup_free_ char *line = NULL;
    int code;

    int r = command_line(ssh, running->command, &line, err);
    if (r < 0)
        return r;
    running->channel = ssh_channel_new(ssh->session);
    if (running->channel == NULL)
        return lost(ssh, "a new channel", err);
    while ((code = ssh_channel_open_session(running->channel)) == SSH_AGAIN) {
        r = wait_for(ssh, POLLIN, err);
        if (r < 0)
            return r;
    }
    while (code == SSH_OK &&
           (code = ssh_channel_request_exec(running->channel, line)) == SSH_AGAIN) {
        r = wait_for(ssh, POLLIN, err);
        if (r < 0)
            return r;
        code = SSH_OK;
    }
    return code == SSH_OK ? 0 : lost(ssh, running->command->argv[0], err);
}

/* Takes what has come. *ret_some tells whether anything has. */
static int take_output(struct running *running, bool *ret_some, struct error *err)
{
    const struct guest_command *command = running->command;

    *ret_some = false;
    for (int is_stderr = 0; is_stderr < 2; is_stderr++) {
        int n = ssh_channel_read_nonblocking(running->channel, running->buffer, CHUNK, is_stderr);
        if (n == SSH_ERROR)
            return lost(running->ssh, command->argv[0], err);
        if (n <= 0)
            continue;
        *ret_some = true;
        int r = command->output(running->buffer, (size_t)n, is_stderr, command->arg, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Sends as much of the input as the guest has room for. */
static int send_input(struct running *running, bool *ret_some, struct error *err)
{
    const int input = running->command->input;

    *ret_some = false;
    if (running->input_ended)
        return 0;
    if (running->pending_sent == running->pending_length) {
        ssize_t n = input >= 0 ? read(input, running->pending, CHUNK) : 0;
        if (n < 0)
            return error_set_errno(err, errno, "cannot read what is to be sent");
        running->pending_length = (size_t)n;
        running->pending_sent = 0;
        if (n == 0) {
            running->input_ended = true;
            if (ssh_channel_send_eof(running->channel) == SSH_ERROR)
                return lost(running->ssh, running->command->argv[0], err);
            return 0;
        }
    }
    uint32_t room = ssh_channel_window_size(running->channel);
    size_t length = running->pending_length - running->pending_sent;
    if (room == 0)
        return 0;
    int n = ssh_channel_write(running->channel, running->pending + running->pending_sent,
                              (uint32_t)(length < room ? length : room));
    if (n == SSH_ERROR)
        return lost(running->ssh, running->command->argv[0], err);
    running->pending_sent += n > 0 ? (size_t)n : 0;
    *ret_some = n > 0;
    return 0;
}

/* Until the program has ended and all that it wrote has come. */
static int pump(struct running *running, struct error *err)
{
    bool took, sent;

    for (;;) {
        int r = take_output(running, &took, err);
        if (r == 0)
            r = send_input(running, &sent, err);
        if (r < 0)
            return r;
        if (took || sent)
            continue;
        if (ssh_channel_is_eof(running->channel) || ssh_channel_is_closed(running->channel))
            return 0;
        if (!ssh_is_connected(running->ssh->session))
            return lost(running->ssh, running->command->argv[0], err);
        r = wait_for(running->ssh, POLLIN, err);
        if (r < 0)
            return r;
    }
}

/* The status comes behind the end of the output; a program that was killed has none. */
static int conclude(struct running *running, int *ret_status, struct error *err)
{
    bool took;

    while (ssh_channel_get_exit_status(running->channel) < 0 &&
           !ssh_channel_is_closed(running->channel)) {
        int r = wait_for(running->ssh, POLLIN, err);
        if (r == 0)
            r = take_output(running, &took, err);
        if (r < 0)
            return r;
    }
    int status = ssh_channel_get_exit_status(running->channel);
    if (status < 0)
        return error_set(err, EIO, "%s: ended without a status (a signal, or the connection)",
                         running->command->argv[0]);
    *ret_status = status;
    return 0;
}

int ssh_run(struct ssh *ssh, const struct guest_command *command, int *ret_status,
            struct error *err)
{
    _cleanup_(running_clear_cleanup) struct running running = {.ssh = ssh, .command = command};

    running.pending = malloc(CHUNK);
    if (running.pending == NULL)
        return error_oom(err);
    int r = begin(&running, err);
    if (r == 0)
        r = pump(&running, err);
    if (r == 0)
        r = conclude(&running, ret_status, err);
    return r;
}
