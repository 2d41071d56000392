/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "common/io.h"
#include "provision/guest.h"
#include "provision/log.h"
#include "provision/process.h"
#include "qemuctl/argv.h"

/* Where the output of a program goes. */
struct sink {
    struct build *build;
    int output; /* for stdout; -1: the log */
};

static int take_output(const void *bytes, size_t length, bool is_stderr, void *arg,
                       struct error *err)
{
    struct sink *sink = arg;

    if (sink->output >= 0 && !is_stderr)
        return io_write(sink->output, "output", bytes, length, err);
    return log_write(sink->build->log, bytes, length, err);
}

/* "'cp -a x y' exited with 1: no such file". */
static int failed(const struct build *build, char *const *argv, int status, struct error *err)
{
    _cleanup_argv_ struct argv words = ARGV_INIT;
    _cleanup_free_ char *line = NULL;
    char text[PROCESS_STATUS_MAX];
    const char *last = log_last(build->log);

    for (size_t i = 0; argv[i] != NULL; i++)
        argv_add(&words, argv[i]);
    line = argv_check(&words, NULL) == 0 ? argv_quote(&words) : NULL;
    return error_set(err, EIO, "%.200s %s%s%s", line != NULL ? line : argv[0],
                     process_status_text(status, text), last[0] != '\0' ? ": " : "", last);
}

static void log_command(struct build *build, char *const *argv)
{
    _cleanup_argv_ struct argv words = ARGV_INIT;
    _cleanup_free_ char *line = NULL, *whole = NULL;

    for (size_t i = 0; argv[i] != NULL; i++)
        argv_add(&words, argv[i]);
    line = argv_check(&words, NULL) == 0 ? argv_quote(&words) : NULL;
    if (line != NULL && asprintf(&whole, "+ %s\n", line) >= 0)
        log_quietly(build->log, whole);
    log_forget(build->log);
}

/* A text as a file to read from. */
static int text_file(const char *text, int *ret, struct error *err)
{
    _cleanup_close_ int fd = memfd_create("input", MFD_CLOEXEC);

    if (fd < 0)
        return error_set_errno(err, errno, "memfd_create");
    int r = io_write_at(fd, "input", text, strlen(text), 0, err);
    if (r == 0)
        *ret = take_fd(&fd);
    return r;
}

int build_exec_command(struct build *build, const struct build_command *command, struct error *err)
{
    _cleanup_close_ int input = -1;
    struct sink sink = {.build = build, .output = -1};
    struct process_options options = {
        .argv = command->argv,
        .environment = command->environment,
        .timeout = command->timeout,
        .interrupt = build->options->interrupt,
        .output = take_output,
        .arg = &sink,
    };
    int status;

    int r = command->text != NULL ? text_file(command->text, &input, err) : 0;
    if (r < 0)
        return r;
    options.input = input;
    log_command(build, command->argv);
    r = process_run(&options, &status, err);
    if (r == 0 && status != 0)
        r = failed(build, command->argv, status, err);
    return r;
}

int build_exec(struct build *build, char *const *argv, struct error *err)
{
    return build_exec_command(build, &(struct build_command){.argv = argv}, err);
}

/* --- In the system --- */

/* What programs in a tree find in their environment. Nothing of this machine but what the network
 * needs. */
static int tree_environment(const struct build *build, char *const *more, struct argv *ret,
                            struct error *err)
{
    static const char *const passed[] = {"http_proxy", "https_proxy", "ftp_proxy", "no_proxy"};

    argv_add(ret, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    argv_add(ret, "HOME=/root");
    argv_add(ret, "LC_ALL=C.UTF-8");
    argv_add(ret, "TERM=dumb");
    argv_add(ret, "DEBIAN_FRONTEND=noninteractive");
    argv_add(ret, "SYSTEMD_OFFLINE=1");
    argv_addf(ret, "SOURCE_DATE_EPOCH=%llu", (unsigned long long)build->recipe->epoch);
    for (size_t i = 0; i < sizeof(passed) / sizeof(passed[0]); i++)
        if (getenv(passed[i]) != NULL)
            argv_addf(ret, "%s=%s", passed[i], getenv(passed[i]));
    for (size_t i = 0; more != NULL && more[i] != NULL; i++)
        argv_add(ret, more[i]);
    return argv_check(ret, err);
}

static int run_in_tree(struct build *build, const struct place_command *command, struct sink *sink,
                       int *ret_status, struct error *err)
{
    _cleanup_argv_ struct argv environment = ARGV_INIT;
    struct process_options options = {
        .argv = command->argv,
        .root = build->tree,
        /* Of a step that changes nothing it is the tree of another one, which is kept: what a
         * killed build leaves there would stay. */
        .visits = !build->step->type->changes,
        .input = command->input,
        .timeout = command->timeout,
        .interrupt = build->options->interrupt,
        .output = take_output,
        .arg = sink,
    };

    int r = tree_environment(build, command->environment, &environment, err);
    if (r < 0)
        return r;
    options.environment = environment.items;
    return process_run(&options, ret_status, err);
}

int place_run_status(struct build *build, const struct place_command *command, int *ret_status,
                     struct error *err)
{
    struct sink sink = {.build = build, .output = command->output};

    log_command(build, command->argv);
    if (build->guest == NULL)
        return run_in_tree(build, command, &sink, ret_status, err);
    _cleanup_argv_ struct argv environment = ARGV_INIT;
    argv_add(&environment, "DEBIAN_FRONTEND=noninteractive");
    argv_addf(&environment, "SOURCE_DATE_EPOCH=%llu", (unsigned long long)build->recipe->epoch);
    for (size_t i = 0; command->environment != NULL && command->environment[i] != NULL; i++)
        argv_add(&environment, command->environment[i]);
    int r = argv_check(&environment, err);
    if (r < 0)
        return r;
    const struct guest_command guest = {
        .argv = command->argv,
        .environment = environment.items,
        .input = command->input,
        .timeout = command->timeout,
        .output = take_output,
        .arg = &sink,
    };
    return guest_run(build->guest, &guest, ret_status, err);
}

int place_run(struct build *build, const struct place_command *command, struct error *err)
{
    int status;

    int r = place_run_status(build, command, &status, err);
    if (r == 0 && status != 0)
        r = failed(build, command->argv, status, err);
    return r;
}

#define CAPTURE_MAX (1024 * 1024)

int place_capture(struct build *build, char *const *argv, char **ret, struct error *err)
{
    _cleanup_close_ int fd = memfd_create("output", MFD_CLOEXEC);
    _cleanup_free_ char *text = NULL;
    const struct place_command command = {.argv = argv, .input = -1, .output = fd};

    if (fd < 0)
        return error_set_errno(err, errno, "memfd_create");
    int r = place_run(build, &command, err);
    if (r < 0)
        return r;
    const off_t length = lseek(fd, 0, SEEK_END);
    if (length < 0 || length > CAPTURE_MAX)
        return error_set(err, EFBIG, "%s: says more than expected", argv[0]);
    text = calloc(1, (size_t)length + 1);
    if (text == NULL)
        return error_oom(err);
    r = io_read_at(fd, "output", text, (size_t)length, 0, err);
    if (r == 0)
        *ret = TAKE_PTR(text);
    return r;
}
