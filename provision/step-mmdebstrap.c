/* SPDX-License-Identifier: MIT */
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "provision/process.h"
#include "provision/steps.h"
#include "provision/work.h"
#include "qemuctl/argv.h"

/*
 * `install: mmdebstrap`: a Debian or Ubuntu in a tree of this machine, without a guest. Release and
 * mirrors are those that apt uses here unless the recipe says others: on a user's machine these are
 * the ones that answer.
 *
 * mmdebstrap needs root for the files' owners, and leaves a directory. The packages' own output,
 * its log, is the step's.
 */

#define OS_RELEASE "/etc/os-release"
#define OS_RELEASE_MAX 65536

struct mmdebstrap_options {
    char *suite, *variant, *kernel;
    struct texts mirrors, components, packages, exclude;
    uint64_t timeout;
};

#define DEFAULT_TIMEOUT 3600

static const struct field fields[] = {
    {.name = "suite", .type = FIELD_TEXT, .offset = offsetof(struct mmdebstrap_options, suite)},
    {.name = "variant", .type = FIELD_TEXT, .offset = offsetof(struct mmdebstrap_options, variant)},
    {.name = "kernel", .type = FIELD_TEXT, .offset = offsetof(struct mmdebstrap_options, kernel)},
    {.name = "mirrors",
     .type = FIELD_TEXTS,
     .offset = offsetof(struct mmdebstrap_options, mirrors)},
    {.name = "components",
     .type = FIELD_TEXTS,
     .offset = offsetof(struct mmdebstrap_options, components)},
    {.name = "packages",
     .type = FIELD_TEXTS,
     .offset = offsetof(struct mmdebstrap_options, packages)},
    {.name = "exclude",
     .type = FIELD_TEXTS,
     .offset = offsetof(struct mmdebstrap_options, exclude)},
    {.name = "timeout",
     .type = FIELD_SECONDS,
     .offset = offsetof(struct mmdebstrap_options, timeout),
     .initial = DEFAULT_TIMEOUT,
     .minimum = 1},
    {0},
};

/* --- Checks --- */

static bool only(const char *text, const char *characters)
{
    return text[0] != '\0' && text[0] != '-' && text[strspn(text, characters)] == '\0';
}

#define LOWER "abcdefghijklmnopqrstuvwxyz"
#define UPPER "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define DIGITS "0123456789"

static void check_words(struct checker *checker, const struct step *step, const char *key,
                        const struct texts *texts, const char *characters)
{
    for (size_t i = 0; i < texts->count; i++)
        if (!only(texts->items[i], characters))
            checker_problem(checker, step, 0, "%s: '%s' cannot be one", key, texts->items[i]);
}

static void check(struct checker *checker, struct step *step)
{
    const struct mmdebstrap_options *options = step->options;

    if (recipe_step(checker->recipe, step, "disk") == NULL)
        checker_problem(checker, step, 0, "a disk step must come before");
    if (options->suite != NULL && !only(options->suite, LOWER UPPER DIGITS "-./"))
        checker_problem(checker, step, 0, "suite: '%s' cannot be one", options->suite);
    if (options->variant != NULL && !only(options->variant, LOWER "-"))
        checker_problem(checker, step, 0, "variant: '%s' cannot be one", options->variant);
    if (options->kernel != NULL && !only(options->kernel, LOWER DIGITS "+-."))
        checker_problem(checker, step, 0, "kernel: '%s' cannot be a package", options->kernel);
    check_words(checker, step, "packages", &options->packages, LOWER DIGITS "+-.:/=~" UPPER);
    check_words(checker, step, "components", &options->components, LOWER DIGITS "-");
    for (size_t i = 0; i < options->exclude.count; i++)
        if (options->exclude.items[i][0] != '/')
            checker_problem(checker, step, 0, "exclude: '%s' is not absolute",
                            options->exclude.items[i]);
    for (size_t i = 0; i < options->mirrors.count; i++)
        if (strstr(options->mirrors.items[i], "://") == NULL &&
            strncmp(options->mirrors.items[i], "deb ", 4) != 0)
            checker_problem(checker, step, 0,
                            "mirrors: '%s' is neither a URI nor a line of sources.list",
                            options->mirrors.items[i]);
}

/* --- The release of this machine --- */

struct release {
    char *id, *codename, *name;
};

static void release_clear(struct release *release)
{
    free(release->id);
    free(release->codename);
    free(release->name);
}
DEFINE_CLEANUP_INPLACE(struct release, release_clear);

/* A value of /etc/os-release, without its quotes. */
static void take_value(const char *line, const char *key, char **ret)
{
    const size_t length = strlen(key);

    if (strncmp(line, key, length) != 0 || line[length] != '=' || *ret != NULL)
        return;
    const char *value = line + length + 1;
    size_t end = strlen(value);
    if (end >= 2 && (value[0] == '"' || value[0] == '\'') && value[end - 1] == value[0]) {
        value++;
        end -= 2;
    }
    *ret = strndup(value, end);
}

static int read_release(struct release *ret, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    char *state = NULL;

    int r = io_read_file(OS_RELEASE, OS_RELEASE_MAX, &text, NULL, err);
    if (r < 0)
        return r;
    for (char *line = strtok_r(text, "\n", &state); line != NULL;
         line = strtok_r(NULL, "\n", &state)) {
        take_value(line, "ID", &ret->id);
        take_value(line, "VERSION_CODENAME", &ret->codename);
        take_value(line, "PRETTY_NAME", &ret->name);
    }
    return 0;
}

/* What is known of a distribution. */
struct distribution {
    const char *id, *keyring, *components, *kernel;
};

static const struct distribution distributions[] = {
    {"debian", "/usr/share/keyrings/debian-archive-keyring.gpg", "main", "linux-image-cloud-amd64"},
    {"ubuntu", "/usr/share/keyrings/ubuntu-archive-keyring.gpg", "main universe",
     "linux-image-virtual"},
};

static int find_distribution(const struct release *release, const struct distribution **ret,
                             struct error *err)
{
    for (size_t i = 0; i < sizeof(distributions) / sizeof(distributions[0]); i++)
        if (release->id != NULL && strcmp(release->id, distributions[i].id) == 0) {
            *ret = &distributions[i];
            return 0;
        }
    return error_set(err, ENOTSUP, "this needs Debian or Ubuntu, not %s",
                     release->name != NULL ? release->name : "an unknown system");
}

/* --- Where packages come from --- */

struct gathering {
    char *text;
    size_t length;
    FILE *file;
};

static int gather(const void *bytes, size_t length, bool is_stderr, void *arg, struct error *err)
{
    struct gathering *gathering = arg;

    if (!is_stderr && fwrite(bytes, 1, length, gathering->file) != length)
        return error_oom(err);
    return 0;
}

/* What a program of this machine says on stdout. *ret is owned. */
static int capture(struct build *build, char *const *argv, char **ret, struct error *err)
{
    struct gathering gathering = {0};
    const struct process_options options = {
        .argv = argv,
        .input = -1,
        .interrupt = build->options->interrupt,
        .output = gather,
        .arg = &gathering,
    };
    int status;

    gathering.file = open_memstream(&gathering.text, &gathering.length);
    if (gathering.file == NULL)
        return error_oom(err);
    int r = process_run(&options, &status, err);
    if (fclose(gathering.file) != 0 && r == 0)
        r = error_oom(err);
    if (r == 0 && status != 0)
        r = error_set(err, EIO, "%s exited with %d", argv[0], status);
    if (r < 0) {
        free(gathering.text);
        return r;
    }
    *ret = gathering.text;
    return 0;
}

static bool has_word(const char *words, const char *word)
{
    const size_t length = strlen(word);

    for (const char *p = words; (p = strstr(p, word)) != NULL; p += length)
        if ((p == words || p[-1] == ' ') && (p[length] == ' ' || p[length] == '\0'))
            return true;
    return false;
}

struct source_options {
    const struct distribution *distribution;
    const char *suite;
    char *components; /* owned */
};

/* sources.list lines for the suite, its updates and its security fixes, from what apt has here. */
static int sources_of_apt(struct build *build, const struct source_options *options, char **ret,
                          struct error *err)
{
    char *const argv[] = {(char *)"apt-get",
                          (char *)"indextargets",
                          (char *)"--format",
                          (char *)"$(COMPONENT) $(REPO_URI) $(RELEASE)",
                          (char *)"Created-By: Packages",
                          NULL};
    const char *keyring = options->distribution->keyring;
    _cleanup_free_ char *all = NULL, *list = NULL;
    const size_t suite = strlen(options->suite);
    char *state = NULL;
    size_t length;

    int r = capture(build, argv, &all, err);
    if (r < 0)
        return r;
    FILE *file = open_memstream(&list, &length);
    if (file == NULL)
        return error_oom(err);
    for (char *line = strtok_r(all, "\n", &state); line != NULL;
         line = strtok_r(NULL, "\n", &state)) {
        char *inner = NULL;
        const char *component = strtok_r(line, " ", &inner), *uri = strtok_r(NULL, " ", &inner),
                   *release = strtok_r(NULL, " ", &inner);
        if (release == NULL || !has_word(options->components, component) ||
            strncmp(release, options->suite, suite) != 0 ||
            (release[suite] != '\0' && strcmp(release + suite, "-updates") != 0 &&
             strcmp(release + suite, "-security") != 0))
            continue;
        fprintf(file, "deb %s%s%s%s %s %s\n", access(keyring, R_OK) == 0 ? "[signed-by=" : "",
                access(keyring, R_OK) == 0 ? keyring : "", access(keyring, R_OK) == 0 ? "] " : "",
                uri, release, component);
    }
    if (fclose(file) != 0)
        return error_oom(err);
    *ret = TAKE_PTR(list);
    return 0;
}

/* The recipe's own mirrors. */
static int sources_of_recipe(const struct texts *mirrors, const struct source_options *options,
                             char **ret, struct error *err)
{
    _cleanup_free_ char *list = NULL;
    size_t length;

    FILE *file = open_memstream(&list, &length);
    if (file == NULL)
        return error_oom(err);
    for (size_t i = 0; i < mirrors->count; i++)
        if (strncmp(mirrors->items[i], "deb ", 4) == 0)
            fprintf(file, "%s\n", mirrors->items[i]);
        else
            fprintf(file, "deb %s %s %s\n", mirrors->items[i], options->suite, options->components);
    if (fclose(file) != 0)
        return error_oom(err);
    *ret = TAKE_PTR(list);
    return 0;
}

static int find_sources(struct build *build, const struct mmdebstrap_options *step,
                        const struct source_options *options, char **ret, struct error *err)
{
    char *const update[] = {(char *)"apt-get", (char *)"-q",
                            (char *)"-o",      (char *)"APT::Update::Error-Mode=any",
                            (char *)"-o",      (char *)"Acquire::http::Timeout=20",
                            (char *)"update",  NULL};

    if (step->mirrors.count > 0)
        return sources_of_recipe(&step->mirrors, options, ret, err);
    int r = sources_of_apt(build, options, ret, err);
    if (r < 0 || (*ret)[0] != '\0')
        return r;
    /* apt tells nothing of mirrors whose lists it has not fetched. */
    cleanup_free(ret);
    r = build_exec(build, update, err);
    if (r < 0)
        return error_prefix(err, "apt-get update failed, without whose lists apt names no mirror");
    r = sources_of_apt(build, options, ret, err);
    if (r == 0 && (*ret)[0] == '\0')
        return error_set(err, ENOENT, "apt has no mirror of %s here (apt-get indextargets)",
                         options->suite);
    return r;
}

/* --- mmdebstrap --- */

static char *join(const struct texts *texts, const char *first)
{
    char *all = NULL;
    size_t length;

    FILE *file = open_memstream(&all, &length);
    if (file == NULL)
        return NULL;
    if (first != NULL)
        fputs(first, file);
    for (size_t i = 0; i < texts->count; i++)
        fprintf(file, "%s%s", i > 0 || first != NULL ? "," : "", texts->items[i]);
    if (fclose(file) != 0) {
        free(all);
        return NULL;
    }
    return all;
}

static int make_argv(struct build *build, const struct mmdebstrap_options *options,
                     const struct source_options *sources, const char *tree, struct argv *argv,
                     struct error *err)
{
    char *const proxy_argv[] = {(char *)"apt-config",
                                (char *)"dump",
                                (char *)"--format",
                                (char *)"%v",
                                (char *)"Acquire::http::Proxy",
                                NULL};
    const char *kernel = options->kernel == NULL                ? sources->distribution->kernel
                         : strcmp(options->kernel, "none") == 0 ? NULL
                                                                : options->kernel;
    _cleanup_free_ char *proxy = NULL, *packages = join(&options->packages, kernel);

    if (packages == NULL)
        return error_oom(err);
    int r = capture(build, proxy_argv, &proxy, err);
    if (r < 0)
        return r;
    argv_add(argv, "mmdebstrap");
    argv_add(argv, "--quiet");
    argv_add(argv, "--mode=root");
    argv_add(argv, "--format=directory");
    argv_addf(argv, "--variant=%s", options->variant != NULL ? options->variant : "minbase");
    if (packages[0] != '\0')
        argv_addf(argv, "--include=%s", packages);
    argv_add(argv, "--aptopt=Acquire::Retries \"2\"");
    argv_add(argv, "--aptopt=Acquire::http::Timeout \"20\"");
    if (proxy[0] != '\0')
        argv_addf(argv, "--aptopt=Acquire::http::Proxy \"%s\"", proxy);
    argv_add(argv, "--dpkgopt=force-unsafe-io");
    for (size_t i = 0; i < options->exclude.count; i++)
        argv_addf(argv, "--dpkgopt=path-exclude=%s", options->exclude.items[i]);
    argv_add(argv, sources->suite);
    argv_add(argv, tree);
    argv_add(argv, "-");
    return argv_check(argv, err);
}

/* Says that it is the network if it is. */
static int explain(struct build *build, const char *list, struct error *err)
{
    static const char *const signs[] = {"Could not connect", "Could not resolve",
                                        "Temporary failure", "Connection timed out",
                                        "Unable to connect"};
    _cleanup_free_ char *path = step_path(build, "log"), *log = NULL;

    if (path == NULL || io_read_file(path, 64 << 20, &log, NULL, NULL) < 0)
        return -err->code;
    for (size_t i = 0; i < sizeof(signs) / sizeof(signs[0]); i++) {
        if (strstr(log, signs[i]) == NULL)
            continue;
        _cleanup_free_ char *first = strndup(list, strcspn(list, "\n"));
        return error_set(err, err->code, "a mirror does not answer (%s): %s",
                         first != NULL ? first : "?", error_message(err));
    }
    return -err->code;
}

/* What mmdebstrap took from this machine so that the network works there. */
static void remove_traces(const char *tree)
{
    static const char *const names[] = {"/etc/resolv.conf", "/etc/hostname"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        _cleanup_free_ char *path = NULL;
        if (asprintf(&path, "%s%s", tree, names[i]) >= 0)
            (void)unlink(path);
    }
}

static int install(struct build *build, struct step *step, const struct source_options *sources,
                   const char *tree, struct error *err)
{
    const struct mmdebstrap_options *options = step->options;
    _cleanup_argv_ struct argv argv = ARGV_INIT, environment = ARGV_INIT;
    _cleanup_free_ char *list = NULL;

    int r = find_sources(build, options, sources, &list, err);
    if (r == 0)
        r = make_argv(build, options, sources, tree, &argv, err);
    if (r < 0)
        return r;
    for (char **variable = environ; *variable != NULL; variable++)
        if (strncmp(*variable, "LC_", 3) != 0 && strncmp(*variable, "LANG", 4) != 0)
            argv_add(&environment, *variable);
    argv_add(&environment, "LC_ALL=C.UTF-8");
    argv_addf(&environment, "SOURCE_DATE_EPOCH=%llu", (unsigned long long)build->recipe->epoch);
    if (initramfs_follows(build->recipe, step))
        argv_add(&environment, INITRD_NO);
    r = argv_check(&environment, err);
    if (r < 0)
        return r;
    build_say(build, "from %s", list);
    const struct build_command command = {
        .argv = argv.items,
        .environment = environment.items,
        .text = list,
        .timeout = options->timeout,
    };
    r = build_exec_command(build, &command, err);
    return r < 0 ? explain(build, list, err) : 0;
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct mmdebstrap_options *options = step->options;
    _cleanup_(release_clear_cleanup) struct release release = {0};
    _cleanup_free_ char *tree = step_path(build, TREE_NAME);
    struct source_options sources = {0};

    if (tree == NULL)
        return error_oom(err);
    if (geteuid() != 0)
        return error_set(err, EPERM, "installing into a tree needs root, for the files' owners");
    int r = read_release(&release, err);
    if (r == 0)
        r = find_distribution(&release, &sources.distribution, err);
    if (r < 0)
        return r;
    sources.suite = options->suite != NULL ? options->suite : release.codename;
    if (sources.suite == NULL)
        return error_set(err, ENOENT, OS_RELEASE ": does not name the release");
    _cleanup_free_ char *components = options->components.count > 0
                                          ? join(&options->components, NULL)
                                          : strdup(sources.distribution->components);
    if (components == NULL)
        return error_oom(err);
    for (char *p = components; *p != '\0'; p++)
        if (*p == ',')
            *p = ' ';
    sources.components = components;
    r = install(build, step, &sources, tree, err);
    if (r < 0)
        return r;
    remove_traces(tree);
    free(build->tree);
    build->tree = TAKE_PTR(tree);
    return 0;
}

static int inputs(const struct build *build, const struct step *step, struct digest *digest,
                  struct error *err)
{
    digest_number(digest, initramfs_follows(build->recipe, step));
    return digest_file(digest, OS_RELEASE, err);
}

static int plan(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err)
{
    const struct mmdebstrap_options *options = step->options;
    _cleanup_free_ char *packages = join(&options->packages, options->kernel);

    (void)build;
    if (packages == NULL)
        return error_oom(err);
    return plan_action(plan, err, "mmdebstrap, %s, with %s",
                       options->suite != NULL ? options->suite : "this machine's release",
                       packages[0] != '\0' ? packages : "nothing more");
}

const struct step_type step_mmdebstrap = {
    .kind = "install",
    .variant = "mmdebstrap",
    .size = sizeof(struct mmdebstrap_options),
    .fields = fields,
    .places = IN(PLACE_BLANK),
    .after = PLACE_TREE,
    .moves = true,
    .check = check,
    .inputs = inputs,
    .run = run,
    .plan = plan,
};
