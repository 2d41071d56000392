/* SPDX-License-Identifier: MIT */
/*
 * The life of a QEMU process. The process is this program itself: run with an argument list that
 * qemu_spawn() makes, it plays a QEMU whose manners the first argument names.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "qemuctl/clock.h"
#include "qemuctl/qemu.h"

/* --- The QEMU that is played --- */

static void say(int qmp, const char *text)
{
    (void)!write(qmp, text, strlen(text));
}

static void fake_shutdown(int qmp, const char *reason)
{
    char event[128];

    snprintf(event, sizeof(event), "{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"%s\"}}\r\n",
             reason);
    say(qmp, event);
    _exit(0);
}

static int fake_qemu(const char *manners, const char *chardev)
{
    const bool deaf = strcmp(manners, "deaf") == 0, stubborn = strcmp(manners, "stubborn") == 0;
    char line[256];

    const int qmp = atoi(strstr(chardev, "fd=") + 3);
    if (strcmp(manners, "orphan") == 0) {
        /* Somebody else keeps the pipes open. */
        if (fork() == 0) {
            (void)sleep(3);
            _exit(0);
        }
        fputs("bye", stdout);
        fflush(stdout);
        _exit(3);
    }
    if (strcmp(manners, "talker") == 0) {
        static const char text[60000];
        (void)!write(STDOUT_FILENO, text, sizeof(text));
        _exit(3);
    }
    if (strcmp(manners, "closed") == 0) {
        (void)close(STDOUT_FILENO);
        (void)close(STDERR_FILENO);
    }
    if (stubborn)
        (void)signal(SIGTERM, SIG_IGN);
    if (strcmp(manners, "mute") == 0) {
        (void)pause();
        _exit(9);
    }
    say(qmp, "{\"QMP\":{\"version\":{}}}\r\n");
    FILE *in = fdopen(qmp, "r");
    while (in != NULL && fgets(line, sizeof(line), in) != NULL) {
        say(qmp, "{\"return\":{}}\r\n");
        if (strstr(line, "qmp_capabilities") != NULL)
            (void)!write(STDOUT_FILENO, "up", 2);
        if (strstr(line, "system_powerdown") != NULL && !deaf && !stubborn)
            fake_shutdown(qmp, "guest-shutdown");
        if (strstr(line, "quit") != NULL && !stubborn)
            fake_shutdown(qmp, "host-qmp-quit");
    }
    return 0;
}

/* --- Its owner --- */

struct owner {
    struct qemu *qemu;
    bool slow; /* pauses after each piece */
    size_t received;
    char console[64];
};

static void on_console(const void *text, size_t length, void *arg)
{
    struct owner *owner = arg;
    size_t have = strlen(owner->console);

    owner->received += length;
    if (owner->slow) {
        qemu_console_pause(owner->qemu, true);
        return;
    }

    assert_true(have + length < sizeof(owner->console));
    memcpy(owner->console + have, text, length);
}

static void owner_spawn(struct owner *owner, const char *manners)
{
    const struct qemu_handlers handlers = {.console = on_console, .arg = owner};
    _cleanup_argv_ struct argv argv = ARGV_INIT;

    memset(owner, 0, sizeof(*owner));
    argv_add(&argv, "/proc/self/exe");
    argv_add(&argv, manners);
    assert_int_equal(qemu_spawn(&argv, -1, &handlers, &owner->qemu, NULL), 0);
}

/* Dispatches until the console has said `until`, or, if that is NULL, until the end. */
static int64_t owner_wait(struct owner *owner, const char *until)
{
    const int64_t start = clock_ms();

    while (until != NULL ? strstr(owner->console, until) == NULL
                         : qemu_end(owner->qemu) == QEMU_RUNNING) {
        struct pollfd pollfd = {.fd = qemu_fd(owner->qemu), .events = POLLIN};
        assert_int_equal(poll(&pollfd, 1, 20000), 1);
        assert_int_equal(qemu_dispatch(owner->qemu, NULL), 0);
    }
    return clock_ms() - start;
}

static void owner_free(struct owner *owner)
{
    qemu_free(owner->qemu);
    /* Reaped. */
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

#define NOW 4000 /* milliseconds, on a busy machine */

static void test_stop(void **state)
{
    (void)state;
    static const struct {
        const char *manners;
        unsigned powerdown_ms;
        enum qemu_end end;
        int64_t least, most;
    } cases[] = {
        {"obedient", 10000, QEMU_POWERED_OFF, 0, NOW},
        {"obedient", 0, QEMU_STOPPED, 0, NOW},
        {"deaf", 500, QEMU_STOPPED, 500, 500 + NOW},
        {"closed", 0, QEMU_STOPPED, 0, NOW},
        {"stubborn", 300, QEMU_STOPPED, 300 + QEMU_STOP_MS, 300 + QEMU_STOP_MS + NOW},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct owner owner;
        owner_spawn(&owner, cases[i].manners);
        if (strcmp(cases[i].manners, "closed") != 0)
            owner_wait(&owner, "up");
        qemu_stop(owner.qemu, cases[i].powerdown_ms);
        int64_t took = owner_wait(&owner, NULL);
        if (qemu_end(owner.qemu) != cases[i].end || took < cases[i].least || took > cases[i].most)
            fail_msg("%s: %s, after %lld ms", cases[i].manners, qemu_end_text(owner.qemu),
                     (long long)took);
        owner_free(&owner);
    }
}

/* A command that comes before the greeting is not lost; without a greeting there is SIGTERM. */
static void test_stop_early(void **state)
{
    (void)state;
    struct owner owner;

    owner_spawn(&owner, "obedient");
    qemu_stop(owner.qemu, 10000);
    assert_in_range(owner_wait(&owner, NULL), 0, NOW);
    assert_int_equal(qemu_end(owner.qemu), QEMU_POWERED_OFF);
    owner_free(&owner);

    owner_spawn(&owner, "mute");
    qemu_stop(owner.qemu, 200);
    assert_in_range(owner_wait(&owner, NULL), 200, 200 + NOW);
    assert_int_equal(qemu_end(owner.qemu), QEMU_STOPPED);
    owner_free(&owner);
}

/* A second stop shortens the first, and never the other way round. */
static void test_stop_again(void **state)
{
    (void)state;
    struct owner owner;

    owner_spawn(&owner, "deaf");
    owner_wait(&owner, "up");
    qemu_stop(owner.qemu, 60000);
    qemu_stop(owner.qemu, 60000);
    qemu_stop(owner.qemu, 0);
    qemu_stop(owner.qemu, 60000);
    assert_in_range(owner_wait(&owner, NULL), 0, NOW);
    owner_free(&owner);

    owner_spawn(&owner, "stubborn");
    owner_wait(&owner, "up");
    qemu_stop(owner.qemu, 60000);
    qemu_kill(owner.qemu);
    assert_in_range(owner_wait(&owner, NULL), 0, NOW);
    assert_int_equal(qemu_end(owner.qemu), QEMU_STOPPED);
    owner_free(&owner);
}

static void test_free_kills(void **state)
{
    (void)state;
    struct owner owner;
    const int64_t start = clock_ms();

    owner_spawn(&owner, "stubborn");
    owner_free(&owner);
    assert_in_range(clock_ms() - start, 0, NOW);
}

/* The end is the process's, whoever holds its pipes; what it said last is not lost. */
static void test_orphan(void **state)
{
    (void)state;
    struct owner owner;

    owner_spawn(&owner, "orphan");
    assert_in_range(owner_wait(&owner, NULL), 0, NOW);
    assert_int_equal(qemu_end(owner.qemu), QEMU_FAILED);
    assert_string_equal(qemu_end_text(owner.qemu), "/proc/self/exe ended with exit status 3");
    assert_string_equal(owner.console, "bye");
    owner_free(&owner);
}

static void test_pause(void **state)
{
    (void)state;
    struct owner owner;

    owner_spawn(&owner, "obedient");
    qemu_console_pause(owner.qemu, true);
    for (int i = 0; i < 10; i++) {
        struct pollfd pollfd = {.fd = qemu_fd(owner.qemu), .events = POLLIN};
        (void)poll(&pollfd, 1, 50);
        assert_int_equal(qemu_dispatch(owner.qemu, NULL), 0);
    }
    assert_string_equal(owner.console, "");
    qemu_console_pause(owner.qemu, false);
    owner_wait(&owner, "up");
    owner_free(&owner);
}

/* Nothing that was said is lost with an owner that pauses when the end comes. */
static void test_pause_at_end(void **state)
{
    (void)state;
    struct owner owner;

    owner_spawn(&owner, "talker");
    owner.slow = true;
    owner_wait(&owner, NULL);
    assert_int_equal(owner.received, 60000);
    owner_free(&owner);
}

static void test_no_program(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_argv_ struct argv argv = ARGV_INIT;
    const struct qemu_handlers handlers = {.console = on_console};
    struct qemu *qemu = NULL;

    argv_add(&argv, "/nonexistent/qemu");
    assert_int_equal(qemu_spawn(&argv, -1, &handlers, &qemu, &err), -ENOENT);
    assert_string_equal(error_message(&err),
                        "/nonexistent/qemu: cannot run: No such file or directory");
    assert_null(qemu);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop),       cmocka_unit_test(test_stop_early),
        cmocka_unit_test(test_stop_again), cmocka_unit_test(test_free_kills),
        cmocka_unit_test(test_orphan),     cmocka_unit_test(test_pause),
        cmocka_unit_test(test_no_program), cmocka_unit_test(test_pause_at_end),
    };

    if (argc > 3)
        return fake_qemu(argv[1], argv[3]);
    (void)signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
