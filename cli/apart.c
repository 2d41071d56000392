/* SPDX-License-Identifier: MIT */
/*
 * What is done to an image by a confined process, for one that cannot be confined yet. The child is
 * a copy of this process, with the image open; it says in JSON through a pipe what it found, or
 * what went wrong.
 *
 * The child may be in anybody's hands: nothing that it says counts for more than what the image
 * itself could say.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/cli.h"
#include "common/io.h"
#include "common/sandbox.h"

#define REPORT_MAX ((size_t)4 << 20) /* bytes */

/* --- The child --- */

static json_t *work(const struct cli_apart *apart, struct error *err)
{
    json_t *result = NULL;

    int r = cli_confine(apart->options, &(struct image *){apart->image}, 1, NULL, err);
    if (r == 0)
        r = apart->run(apart->arg, &result, err);
    if (r < 0)
        return json_pack("{s:i, s:o}", "code", err->code, "error", json_text(error_message(err)));
    return json_pack("{s:o}", "result", result);
}

static _Noreturn void run_child(const struct cli_apart *apart, pid_t parent, int pipe)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    /* Without the parent nobody wants to know. */
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (getppid() != parent)
        _exit(1);
    json_t *json = work(apart, &err);
    char *text = json != NULL ? json_dumps(json, JSON_COMPACT) : NULL;
    bool told = text != NULL && io_write(pipe, "pipe", text, strlen(text), NULL) == 0;
    sandbox_leave();
    _exit(told ? 0 : 1);
}

/* --- The parent --- */

static int read_report(const struct cli_apart *apart, int fd, char *text, size_t *ret,
                       struct error *err)
{
    size_t used = 0;

    while (used < REPORT_MAX) {
        ssize_t n = read(fd, text + used, REPORT_MAX - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(err, errno, "pipe");
        if (n == 0) {
            *ret = used;
            return 0;
        }
        used += (size_t)n;
    }
    return error_set(err, EPROTO, "the process that %s told too much", apart->what);
}

static bool code_is_good(json_int_t code)
{
    return (code > 0 && code < 4096) || code == HASHTREE_WRONG_ROOT;
}

static int take_report(const struct cli_apart *apart, const char *text, size_t length, json_t **ret,
                       struct error *err)
{
    _cleanup_json_ json_t *json = json_loadb(text, length, 0, NULL);
    const char *message = json_string_value(json_object_get(json, "error"));
    json_int_t code = json_integer_value(json_object_get(json, "code"));
    json_t *result = json_object_get(json, "result");

    if (message != NULL)
        return error_set(err, code_is_good(code) ? (int)code : EIO, "%s", message);
    if (result == NULL)
        return error_set(err, EIO, "the process that %s ended without a word", apart->what);
    *ret = json_incref(result);
    return 0;
}

int cli_run_apart(const struct cli_apart *apart, json_t **ret, struct error *err)
{
    _cleanup_free_ char *text = malloc(REPORT_MAX);
    _cleanup_close_ int report = -1;
    const pid_t parent = getpid();
    size_t length = 0;
    int fds[2];

    if (text == NULL)
        return error_oom(err);
    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_set_errno(err, errno, "cannot make a pipe");
    report = fds[0];
    (void)fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        (void)close(report);
        run_child(apart, parent, fds[1]);
    }
    int saved_errno = errno;
    (void)close(fds[1]);
    if (child < 0)
        return error_set_errno(err, saved_errno, "cannot fork");
    int r = read_report(apart, report, text, &length, err);
    cleanup_close(&report);
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    return r < 0 ? r : take_report(apart, text, length, ret, err);
}
