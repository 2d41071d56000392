/* SPDX-License-Identifier: MIT */
#include "qemuctl/capabilities.h"

#include <poll.h>
#include <string.h>

#include "qemuctl/capability_cache.h"
#include "qemuctl/clock.h"
#include "qemuctl/qemu.h"

/*
 * A QEMU that has no machine starts within a tenth of a second, and answers QMP. All questions are
 * sent at once; the last answer that comes ends it.
 */

#define ASK_MS 10000
#define LOST_MS 1000

struct question {
    const char *command;
    json_t *arguments; /* or NULL; taken */
};

struct answers {
    json_t **values; /* as many as questions; NULL for one that was an error */
    char **errors;
    size_t count, come;
    bool lost; /* the connection ended before an answer */
};

static void answers_clear(struct answers *answers)
{
    for (size_t i = 0; i < answers->come; i++) {
        json_decref(answers->values[i]);
        free(answers->errors[i]);
    }
    free(answers->values);
    free(answers->errors);
}
DEFINE_CLEANUP_INPLACE(struct answers, answers_clear);

static void on_answer(json_t *ret, const char *error, void *arg)
{
    struct answers *answers = arg;

    if (ret == NULL && error == NULL) {
        answers->lost = true;
        return;
    }
    /* They come in the order of the questions. */
    answers->values[answers->come] = json_incref(ret);
    answers->errors[answers->come] = error != NULL ? strdup(error) : NULL;
    answers->come++;
}

static void on_console(const void *text, size_t length, void *arg)
{
    (void)text;
    (void)length;
    (void)arg;
}

static int send_questions(struct qemu *qemu, struct question *questions, struct answers *answers,
                          struct error *err)
{
    for (size_t i = 0; i < answers->count; i++) {
        int r = qmp_execute(qemu_qmp(qemu), questions[i].command, TAKE_PTR(questions[i].arguments),
                            on_answer, answers, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int await_answers(struct qemu *qemu, const char *program, const struct answers *answers,
                         struct error *err)
{
    int64_t deadline = clock_ms() + ASK_MS;
    bool lost = false;

    while (answers->come < answers->count) {
        const int64_t left = deadline - clock_ms();
        struct pollfd pollfd = {.fd = qemu_fd(qemu), .events = POLLIN};
        if (left <= 0 && lost)
            return error_set(err, EIO, "%s: ended its QMP connection", program);
        if (left <= 0)
            return error_set(err, ETIMEDOUT, "%s: does not answer within %d seconds", program,
                             ASK_MS / 1000);
        if (poll(&pollfd, 1, (int)left) < 0 && errno != EINTR)
            return error_set_errno(err, errno, "poll");
        int r = qemu_dispatch(qemu, err);
        if (r < 0)
            return error_prefix(err, "%s", program);
        if (qemu_end(qemu) != QEMU_RUNNING)
            return error_set(err, EIO, "%s", qemu_end_text(qemu));
        /* Most likely the process ends as well, and says why. */
        if (answers->lost && !lost) {
            lost = true;
            deadline = clock_ms() + LOST_MS;
        }
    }
    return 0;
}

/* `accel` is an argument of -machine, or NULL. */
static int ask(const char *program, const char *machine, struct question *questions,
               struct answers *answers, struct error *err)
{
    const struct qemu_handlers handlers = {.console = on_console};
    _cleanup_(qemu_free_cleanup) struct qemu *qemu = NULL;
    _cleanup_argv_ struct argv argv = ARGV_INIT;

    answers->values = calloc(answers->count, sizeof(*answers->values));
    answers->errors = calloc(answers->count, sizeof(*answers->errors));
    if (answers->values == NULL || answers->errors == NULL)
        return error_oom(err);
    argv_add(&argv, program);
    argv_add_pair(&argv, "-machine", machine);
    argv_add(&argv, "-nodefaults");
    argv_add(&argv, "-no-user-config");
    argv_add_pair(&argv, "-display", "none");
    argv_add_pair(&argv, "-monitor", "none");
    argv_add_pair(&argv, "-serial", "none");
    int r = argv_check(&argv, err);
    if (r == 0)
        r = qemu_spawn(&argv, -1, &handlers, &qemu, err);
    if (r == 0)
        r = send_questions(qemu, questions, answers, err);
    if (r == 0)
        r = await_answers(qemu, program, answers, err);
    return r;
}

/* --- The program --- */

static bool has_type(const json_t *list, const char *name)
{
    size_t i;
    json_t *item;

    json_array_foreach (list, i, item) {
        const char *type = json_string_value(json_object_get(item, "name"));
        if (type != NULL && strcmp(type, name) == 0)
            return true;
    }
    return false;
}

static bool get_number(const json_t *object, const char *key, unsigned *ret)
{
    const json_t *value = json_object_get(object, key);

    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) > 9999)
        return false;
    *ret = (unsigned)json_integer_value(value);
    return true;
}

int qemu_capabilities_ask(const char *program, struct qemu_capabilities *ret, struct error *err)
{
    struct question questions[] = {
        {"query-version", NULL},
        /* What -object takes, as -object help lists it. */
        {"qom-list-types", json_pack("{s:s, s:b}", "implements", "user-creatable", "abstract", 0)},
    };
    _cleanup_(answers_clear_cleanup) struct answers answers = {.count = 2};
    struct qemu_capabilities found;

    int r = ask(program, "none", questions, &answers, err);
    for (size_t i = 0; i < answers.count; i++)
        json_decref(questions[i].arguments);
    if (r < 0)
        return error_prefix(err, "cannot find out what QEMU can do");
    const json_t *version = json_object_get(answers.values[0], "qemu");
    const json_t *types = answers.values[1];
    if (!get_number(version, "major", &found.major) ||
        !get_number(version, "minor", &found.minor) ||
        !get_number(version, "micro", &found.micro) || !json_is_array(types))
        return error_set(err, EPROTO, "%s: does not tell its version and objects as QEMU does",
                         program);
    found.sev_guest = has_type(types, "sev-guest");
    found.sev_snp_guest = has_type(types, "sev-snp-guest");
    found.memfd_private = has_type(types, "memory-backend-memfd-private");
    *ret = found;
    return 0;
}

int qemu_capabilities_get(const char *program, struct qemu_capabilities *ret, struct error *err)
{
    _cleanup_(capability_cache_close_cleanup) struct capability_cache *cache = NULL;

    capability_cache_open(program, &cache);
    if (cache != NULL && capability_cache_load(cache, ret))
        return 0;
    int r = qemu_capabilities_ask(program, ret, err);
    if (r == 0 && cache != NULL)
        capability_cache_store(cache, ret);
    return r;
}

/* --- SEV --- */

#define SNP_UPSTREAM_MAJOR 9
#define SNP_UPSTREAM_MINOR 1
#define SNP_UPSTREAM_VERSION "9.1"

static int no_snp(const char *program, const struct qemu_capabilities *c, struct error *err)
{
    if (c->major > SNP_UPSTREAM_MAJOR ||
        (c->major == SNP_UPSTREAM_MAJOR && c->minor >= SNP_UPSTREAM_MINOR))
        return error_set(err, ENOTSUP,
                         "%s: QEMU %u.%u.%u cannot start SEV-SNP guests: it was built without "
                         "KVM or SEV, and has no sev-snp-guest",
                         program, c->major, c->minor, c->micro);
    return error_set(err, ENOTSUP,
                     "%s: QEMU %u.%u.%u cannot start SEV-SNP guests: QEMU " SNP_UPSTREAM_VERSION
                     " and later can, and AMD's fork of it",
                     program, c->major, c->minor, c->micro);
}

int qemu_snp_dialect(const char *program, const struct qemu_capabilities *capabilities,
                     enum snp_dialect *ret, struct error *err)
{
    if (!capabilities->sev_snp_guest)
        return no_snp(program, capabilities, err);
    *ret = capabilities->memfd_private ? SNP_AMD_FORK : SNP_UPSTREAM;
    return 0;
}

int qemu_check_sev(const char *program, const struct qemu_capabilities *capabilities,
                   enum sev_mode mode, enum snp_dialect dialect, struct error *err)
{
    const struct qemu_capabilities *c = capabilities;

    if (mode != SEV_MODE_SNP) {
        if (!c->sev_guest)
            return error_set(err, ENOTSUP, "%s: QEMU %u.%u.%u was built without SEV", program,
                             c->major, c->minor, c->micro);
        return 0;
    }
    if (!c->sev_snp_guest)
        return no_snp(program, c, err);
    if (dialect == SNP_AMD_FORK && !c->memfd_private)
        return error_set(err, ENOTSUP,
                         "%s: QEMU %u.%u.%u is not AMD's fork with memory-backend-memfd-private",
                         program, c->major, c->minor, c->micro);
    if (dialect == SNP_UPSTREAM && c->memfd_private)
        return error_set(err, ENOTSUP,
                         "%s: QEMU %u.%u.%u is AMD's fork, which does not know the arguments of "
                         "QEMU " SNP_UPSTREAM_VERSION,
                         program, c->major, c->minor, c->micro);
    return 0;
}

int qemu_sev_host(const char *program, unsigned *ret_cbitpos, struct error *err)
{
    struct question questions[] = {{"query-sev-capabilities", NULL}};
    _cleanup_(answers_clear_cleanup) struct answers answers = {.count = 1};
    unsigned cbitpos;

    int r = ask(program, "none,accel=kvm", questions, &answers, err);
    if (r < 0)
        return error_prefix(err, "cannot find out whether the host has SEV");
    if (answers.values[0] == NULL)
        return error_set(err, ENOTSUP, "the host cannot start encrypted guests: %s says: %s",
                         program, answers.errors[0] != NULL ? answers.errors[0] : "no");
    if (!get_number(answers.values[0], "cbitpos", &cbitpos) || cbitpos > 63)
        return error_set(err, EPROTO, "%s: query-sev-capabilities: no cbitpos", program);
    *ret_cbitpos = cbitpos;
    return 0;
}
