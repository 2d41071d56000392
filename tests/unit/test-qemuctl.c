/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "qemuctl/accel.h"
#include "qemuctl/accel_guest.h"
#include "qemuctl/argv.h"
#include "qemuctl/clock.h"
#include "qemuctl/cmdline.h"
#include "qemuctl/qmp.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* --- Argument lists --- */

static void test_quote(void **state)
{
    (void)state;
    static const struct {
        const char *item, *quoted;
    } cases[] = {
        {"plain", "plain"},
        {"a=b,c-d_e+f/g.h:i@j%k", "a=b,c-d_e+f/g.h:i@j%k"},
        {"", "''"},
        {"a b", "'a b'"},
        {"it's", "'it'\\''s'"},
        {"'", "''\\'''"},
        {"$HOME", "'$HOME'"},
        {"~", "'~'"},
        {"a\nb", "$'a\\012b'"},
        {"\x1b[31m it's \\ gr\xc3\xbc", "$'\\033[31m it\\'s \\\\ gr\\303\\274'"},
        {"\xc2\x9b\x7f", "$'\\302\\233\\177'"},
        {"\xc2\xa0", "'\xc2\xa0'"},
        {"\"x\"", "'\"x\"'"},
        {"#", "'#'"},
        {"gr\xc3\xbc\xc3\x9f", "'gr\xc3\xbc\xc3\x9f'"},
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        _cleanup_argv_ struct argv argv = ARGV_INIT;
        _cleanup_free_ char *line = NULL;
        argv_add(&argv, cases[i].item);
        line = argv_quote(&argv);
        assert_string_equal(line, cases[i].quoted);
    }
}

/* A shell is the judge of the whole: every byte there is, in words of any kind. */
static void check_quote_by_shell(char *(*quote)(const struct argv *argv), const char *shell_name)
{
    _cleanup_argv_ struct argv argv = ARGV_INIT;
    _cleanup_free_ char *line = NULL, *command = NULL, *expected = NULL, *got = NULL;
    char all[256];
    size_t size;

    for (int i = 1; i < 256; i++)
        all[i - 1] = (char)i;
    all[255] = '\0';
    argv_add(&argv, "first");
    argv_add(&argv, all);
    argv_add(&argv, "");
    argv_add(&argv, "-n");
    line = quote(&argv);
    assert_non_null(line);
    assert_true(asprintf(&command, "LC_ALL=C; printf '[%%s]' %s", line) > 0);
    assert_true(asprintf(&expected, "[first][%s][][-n]", all) > 0);
    assert_int_equal(setenv("COMMAND", command, 1), 0);
    assert_int_equal(setenv("NAME", shell_name, 1), 0);
    FILE *shell = popen("exec $NAME -c \"$COMMAND\"", "re");
    assert_non_null(shell);
    size = strlen(expected);
    got = calloc(1, size + 2);
    assert_int_equal(fread(got, 1, size + 1, shell), size);
    assert_int_equal(pclose(shell), 0);
    assert_memory_equal(got, expected, size);
}

static void test_quote_by_shell(void **state)
{
    (void)state;
    check_quote_by_shell(argv_quote, "bash");
    check_quote_by_shell(argv_quote_posix, "sh");
}

static void test_argv_grows(void **state)
{
    (void)state;
    _cleanup_argv_ struct argv argv = ARGV_INIT;
    char text[16];

    for (int i = 0; i < 1000; i++)
        argv_addf(&argv, "%d", i);
    assert_int_equal(argv_check(&argv, NULL), 0);
    assert_int_equal(argv.count, 1000);
    assert_null(argv.items[1000]);
    for (int i = 0; i < 1000; i++) {
        snprintf(text, sizeof(text), "%d", i);
        assert_string_equal(argv.items[i], text);
    }
}

/* --- Kernel command lines --- */

static void test_cmdline_append(void **state)
{
    (void)state;
    static const struct {
        const char *base, *line; /* NULL: refused, with `code` */
        int code;
    } cases[] = {
        {"", "p.q=\"a b\"", 0},
        {"  ", "p.q=\"a b\"", 0},
        {"ro", "ro p.q=\"a b\"", 0},
        {" ro\tquiet \n", "ro\tquiet p.q=\"a b\"", 0},
        {"--", "p.q=\"a b\" --", 0},
        {"-- init args", "p.q=\"a b\" -- init args", 0},
        {"ro -- init \"args", "ro p.q=\"a b\" -- init \"args", 0},
        {"ro --x y--", "ro --x y-- p.q=\"a b\"", 0},
        {"x=\"a -- b\" -- c", "x=\"a -- b\" p.q=\"a b\" -- c", 0},
        {"\"x=a b\" ro", "\"x=a b\" ro p.q=\"a b\"", 0},
        {"xp.q=1 p.qx=2 p.q.r=3", "xp.q=1 p.qx=2 p.q.r=3 p.q=\"a b\"", 0},
        {"x=\"p.q=1 \"", "x=\"p.q=1 \" p.q=\"a b\"", 0},
        {"x -- p.q=1", "x p.q=\"a b\" -- p.q=1", 0},
        {"x=\"a", NULL, -EINVAL},
        {"x=a\" -- b", NULL, -EINVAL},
        {"p.q=1", NULL, -EEXIST},
        {"ro \"p.q=1 2\" x", NULL, -EEXIST},
        {"ro p.q", NULL, -EEXIST},
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        _cleanup_free_ char *line = NULL;
        int r = cmdline_append(cases[i].base, "test", "p.q=\"a b\"", &line, NULL);
        if (r != cases[i].code || (line == NULL) != (cases[i].line == NULL) ||
            (line != NULL && strcmp(line, cases[i].line) != 0))
            fail_msg("'%s': %d, '%s'", cases[i].base, r, line);
    }

    _cleanup_free_ char *line = NULL;
    assert_int_equal(cmdline_append("dm_mod.create=x", "test", "dm-mod.create=y", &line, NULL),
                     -EEXIST);
}

static void test_cmdline_check(void **state)
{
    (void)state;
    char line[CMDLINE_SIZE_MAX + 1];

    memset(line, 'x', sizeof(line));
    line[CMDLINE_SIZE_MAX] = '\0';
    assert_int_equal(cmdline_check(line, NULL), -E2BIG);
    line[CMDLINE_SIZE_MAX - 1] = '\0';
    assert_int_equal(cmdline_check(line, NULL), 0);
    assert_int_equal(cmdline_check("", NULL), 0);
}

/* --- QMP --- */

struct heard {
    char text[1024];
};

static void hear(struct heard *heard, const char *what, const char *more)
{
    size_t length = strlen(heard->text);

    snprintf(heard->text + length, sizeof(heard->text) - length, "%s %s;", what, more);
}

static void on_event(const char *name, const json_t *data, void *arg)
{
    const char *reason = json_string_value(json_object_get(data, "reason"));

    hear(arg, name, reason != NULL ? reason : "-");
}

static void on_reply(json_t *ret, const char *error, void *arg)
{
    _cleanup_free_ char *text =
        ret != NULL ? json_dumps(ret, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;

    hear(arg, error != NULL ? "error" : "reply", error != NULL ? error : text != NULL ? text : "-");
}

struct qmp_pair {
    struct qmp *qmp;
    int peer;
    struct heard heard;
};

static void pair_open(struct qmp_pair *pair)
{
    int fds[2];

    memset(pair, 0, sizeof(*pair));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    pair->peer = fds[1];
    const struct qmp_handlers handlers = {.event = on_event, .arg = &pair->heard};
    assert_int_equal(qmp_new(fds[0], &handlers, &pair->qmp, NULL), 0);
}

static void pair_close(struct qmp_pair *pair)
{
    qmp_free(pair->qmp);
    if (pair->peer >= 0)
        close(pair->peer);
}

static int pair_say(struct qmp_pair *pair, const char *text)
{
    assert_int_equal(write(pair->peer, text, strlen(text)), strlen(text));
    return qmp_dispatch(pair->qmp, NULL);
}

static void pair_expect(struct qmp_pair *pair, const char *text)
{
    char got[1024];

    ssize_t n = recv(pair->peer, got, sizeof(got) - 1, MSG_DONTWAIT);
    got[n < 0 ? 0 : n] = '\0';
    assert_string_equal(got, text);
}

static void test_qmp(void **state)
{
    (void)state;
    static const char script[] =
        "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"
        "{\"return\": {}}\r\n"
        "{\"timestamp\": {}, \"event\": \"RESUME\"}\r\n"
        "{\"return\": {\"status\": \"running\"}}\r\n"
        "{\"timestamp\": {}, \"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\n"
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"it does not\"}}\n";
    static const char heard[] = "RESUME -;reply {\"status\":\"running\"};SHUTDOWN guest-reset;"
                                "error it does not;";

    /* In pieces of every size. */
    for (size_t piece = 1; piece < sizeof(script); piece += piece < 8 ? 1 : 37) {
        struct qmp_pair pair;
        pair_open(&pair);
        assert_false(qmp_ready(pair.qmp));
        /* Queued before the greeting, in order. */
        assert_int_equal(qmp_execute(pair.qmp, "query-status", NULL, on_reply, &pair.heard, NULL),
                         0);
        assert_int_equal(qmp_execute(pair.qmp, "device_add", json_pack("{s:s}", "driver", "x"),
                                     on_reply, &pair.heard, NULL),
                         0);
        for (size_t i = 0; i < sizeof(script) - 1; i += piece) {
            char chunk[sizeof(script)] = "";
            size_t length = sizeof(script) - 1 - i < piece ? sizeof(script) - 1 - i : piece;
            memcpy(chunk, script + i, length);
            assert_int_equal(pair_say(&pair, chunk), 0);
        }
        assert_true(qmp_ready(pair.qmp));
        assert_string_equal(pair.heard.text, heard);
        pair_expect(&pair, "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n"
                           "{\"execute\":\"device_add\",\"arguments\":{\"driver\":\"x\"}}\n");
        pair_close(&pair);
    }
}

static void test_qmp_ends(void **state)
{
    (void)state;
    struct qmp_pair pair;

    pair_open(&pair);
    assert_int_equal(qmp_execute(pair.qmp, "stop", NULL, on_reply, &pair.heard, NULL), 0);
    close(pair.peer);
    pair.peer = -1;
    assert_int_equal(qmp_dispatch(pair.qmp, NULL), 0);
    assert_int_equal(qmp_fd(pair.qmp), -1);
    assert_string_equal(pair.heard.text, "reply -;");
    assert_int_equal(qmp_execute(pair.qmp, "stop", NULL, on_reply, &pair.heard, NULL), -ENOTCONN);
    assert_int_equal(qmp_dispatch(pair.qmp, NULL), 0);
    pair_close(&pair);
}

static void test_qmp_garbage(void **state)
{
    (void)state;
    static const char *const garbage[] = {
        "hello\n",
        "[]\n",
        "{\"return\": {}}\n",
        "{\"QMP\": {}\n",
        "{\"QMP\": {}}\n{\"return\": {}}\n{\"return\": {}}\n",
        "{\"QMP\": {}}\n{\"error\": {\"desc\": \"no\"}}\n",
        "{\"QMP\": {}}\n{}\n",
        "{\"QMP\": {}}\n{\"return\": {}}\n\xff\xfe\n",
    };

    for (size_t i = 0; i < COUNT(garbage); i++) {
        struct qmp_pair pair;
        pair_open(&pair);
        if (pair_say(&pair, garbage[i]) != -EPROTO)
            fail_msg("'%s' is no protocol error", garbage[i]);
        assert_int_equal(qmp_fd(pair.qmp), -1);
        pair_close(&pair);
    }
}

/* --- KVM --- */

/* What the probe's guest does at all, on a KVM of any speed. */
static void test_accel_guest(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;

    if (access("/dev/kvm", R_OK | W_OK) != 0)
        skip();
    int r = accel_probe_kvm_limits(100, 5000, &err);
    if (r != 0)
        fail_msg("%s", error_message(&err));
}

/* A guest that takes longer than the limit is given up in time, and its process is gone. */
static void test_accel_limit(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;
    const int64_t start = clock_ms();

    if (access("/dev/kvm", R_OK | W_OK) != 0)
        skip();
    assert_int_equal(accel_probe_kvm_limits(UINT32_MAX, 300, &err), -ETIMEDOUT);
    assert_non_null(strstr(error_message(&err), "long mode"));
    assert_in_range(clock_ms() - start, 300, 5000);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quote),         cmocka_unit_test(test_quote_by_shell),
        cmocka_unit_test(test_argv_grows),    cmocka_unit_test(test_cmdline_append),
        cmocka_unit_test(test_cmdline_check), cmocka_unit_test(test_qmp),
        cmocka_unit_test(test_qmp_ends),      cmocka_unit_test(test_qmp_garbage),
        cmocka_unit_test(test_accel_guest),   cmocka_unit_test(test_accel_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
