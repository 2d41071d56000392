/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "cli/options.h"
#include "common/log.h"
#include "common/sandbox.h"
#include "common/sanitized.h"

static const struct cli_command *find_command(const char *name)
{
    size_t i = 0;

    while (cli_commands[i] != NULL && strcmp(cli_commands[i]->name, name) != 0)
        i++;
    return cli_commands[i];
}

static void print_help(void)
{
    printf(
        "Usage: qverity COMMAND [OPTION…] …\n\n"
        "Shows a disk image, and the dm-verity hash device of its data, as plain files; computes\n"
        "and checks root hashes; boots QEMU on the result; builds images from "
        "recipes.\n\nCommands:\n");
    for (size_t i = 0; cli_commands[i] != NULL; i++)
        printf("  %-10s %s\n", cli_commands[i]->name, cli_commands[i]->summary);
    printf("\n'qverity COMMAND --help' tells a command's arguments and options; --version the "
           "version.\n");
}

static int report(const struct error *err, const struct cli_command *command)
{
    if (err->code != CLI_USAGE_CODE) {
        log_error("%s", error_message(err));
        return CLI_FAILED;
    }
    log_error("%s (see 'qverity %s%s--help')", error_message(err),
              command != NULL ? command->name : "", command != NULL ? " " : "");
    return CLI_USAGE;
}

static void apply_verbosity(const struct cli_options *options)
{
    if (options->quiet)
        log_set_level(LOG_LEVEL_ERROR);
    else if (options->verbose >= 2)
        log_set_level(LOG_LEVEL_DEBUG);
    else if (options->verbose == 1)
        log_set_level(LOG_LEVEL_INFO);
}

/* What was printed counts only once it is written. */
static int flush_stdout(int result)
{
    if (fflush(stdout) == EOF || ferror(stdout)) {
        if (errno != EPIPE)
            log_error("standard output: cannot write: %s", strerror(errno));
        return result == CLI_DONE ? CLI_FAILED : result;
    }
    return result;
}

/* Means another file every time. */
static bool is_descriptor_name(const char *path)
{
    return strcmp(path, "/dev/stdin") == 0 || strncmp(path, "/dev/fd/", 8) == 0 ||
           (strncmp(path, "/proc/", 6) == 0 && strstr(path, "/fd/") != NULL);
}

static int run_command(const struct cli_command *command, int argc, char **argv,
                       struct cli_options *options)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_free_ void *context = NULL;
    _cleanup_free_ char **operands = NULL;
    int count = 0;

    context = calloc(1, command->context_size + 1);
    operands = calloc((size_t)argc + 1, sizeof(*operands));
    if (context == NULL || operands == NULL) {
        error_oom(&err);
        return report(&err, command);
    }
    int r = cli_parse(command, argc, argv, options, context, operands, &count, &err);
    if (r == CLI_PARSE_HELP)
        return flush_stdout(CLI_DONE);
    if (r < 0)
        return report(&err, command);
    apply_verbosity(options);
    options->no_tree |= (command->groups & CLI_KEEP) == 0;
    /* Behind the command's own operands are those of QEMU. */
    for (int i = 0; i < count && i < command->operands_max; i++)
        if (!options->no_tree && options->keep.path == NULL && is_descriptor_name(operands[i])) {
            log_info("%s: no tree file is kept beside a descriptor", operands[i]);
            options->no_tree = true;
        }
    options->confine = (command->groups & CLI_SANDBOX) != 0 && !options->no_sandbox;
    options->hashes = (command->groups & CLI_TREE) != 0;
    options->bytes = (command->groups & CLI_BYTES) != 0;
    r = command->run(options, count, operands, context, &err);
    if (r < 0) {
        /* What went wrong is told once; that stdout could not be written may be the very reason. */
        (void)fflush(stdout);
        return report(&err, command);
    }
    return flush_stdout(r);
}

static int run_mount(const struct cli_command *command, int argc, char **argv, struct error *err)
{
    struct cli_options options = {0};

    (void)err; /* was told */
    return run_command(command, argc, argv, &options);
}

/* Tells the program that has a command which version of us started it, for as long as it takes to
 * find out. */
static const char started_by[] = "QVERITY_STARTED_BY";

/* Becomes the program that has the command, with the same arguments: the one beside this one, as in
 * a build directory, or where it is when both were installed, also if somewhere else than planned.
 */
static int become(const char *program, char **argv, struct error *err)
{
    static const char *const places[] = {"", QVERITY_LIBEXECDIR_FROM_BIN "/", NULL};
    char self[PATH_MAX], path[2 * PATH_MAX];

    if (getenv(started_by) != NULL)
        return error_set(err, ELOOP, "%s: is this program, and has none of its commands", program);
    if (setenv(started_by, QVERITY_VERSION, 1) < 0)
        return error_oom(err);
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self));
    const char *name = n > 0 && n < (ssize_t)sizeof(self) ? memrchr(self, '/', (size_t)n) : NULL;
    for (size_t i = 0; name != NULL && places[i] != NULL; i++) {
        snprintf(path, sizeof(path), "%.*s%s%s", (int)(name + 1 - self), self, places[i], program);
        execv(path, argv);
        if (errno != ENOENT)
            return error_set_errno(err, errno, "%s: cannot be started", path);
    }
    snprintf(path, sizeof(path), QVERITY_LIBEXECDIR "/%s", program);
    execv(path, argv);
    if (errno != ENOENT)
        return error_set_errno(err, errno, "%s: cannot be started", path);
    return error_set(err, ENOENT, "not installed: %s is neither beside this program nor in %s",
                     program, QVERITY_LIBEXECDIR);
}

/* The other side of it. */
static int check_starter(struct error *err)
{
    const char *version = getenv(started_by);

    if (version == NULL)
        return 0;
    if (strcmp(version, QVERITY_VERSION) != 0)
        return error_set(err, EINVAL, "this is version %s of the program, started by %s",
                         QVERITY_VERSION, version);
    (void)unsetenv(started_by);
    return 0;
}

/* Descriptors 0 to 2 that are closed would be given to the files that we open next, and what is
 * printed would go into those. In their place comes something that can be neither read from nor
 * written to. */
static int occupy_standard_descriptors(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDONLY);
        if (fd < 0)
            return -errno;
    } while (fd <= STDERR_FILENO);
    close(fd);
    return 0;
}

/* -q and -v, alone or together, as they are taken behind the command. */
static bool take_letters(const char *argument, struct cli_options *options)
{
    const char *letters = argument + 1;

    if (letters[0] == '\0' || letters[strspn(letters, "qv")] != '\0')
        return false;
    options->quiet |= strchr(letters, 'q') != NULL;
    for (; *letters != '\0'; letters++)
        options->verbose += *letters == 'v';
    return true;
}

static int run(int argc, char **argv)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct cli_options options = {0};
    bool json = false;
    int i;

    if (occupy_standard_descriptors() < 0)
        return CLI_FAILED;
    /* A limit of file sizes (RLIMIT_FSIZE) is then an error of the write, EFBIG. */
    (void)signal(SIGXFSZ, SIG_IGN);

    if (argc > 0 && cli_is_mount_helper(argc, argv)) {
        int r = cli_mount_helper(argc, argv, run_mount, &err);
        return r < 0 ? report(&err, &cmd_mount) : r;
    }
    for (i = 1; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help();
            return flush_stdout(CLI_DONE);
        } else if (strcmp(argv[i], "--version") == 0) {
            printf("qverity %s\n", QVERITY_VERSION);
            return flush_stdout(CLI_DONE);
        } else if (strcmp(argv[i], "--json") == 0) {
            options.json = json = true;
        } else if (strcmp(argv[i], "--quiet") == 0) {
            options.quiet = true;
        } else if (strcmp(argv[i], "--verbose") == 0) {
            options.verbose++;
        } else if (!take_letters(argv[i], &options)) {
            cli_usage_error(&err, "unknown option '%s'", argv[i]);
            return report(&err, NULL);
        }
    }
    if (i >= argc) {
        cli_usage_error(&err, "a command is missing");
        return report(&err, NULL);
    }
    const struct cli_command *command = find_command(argv[i]);
    if (command == NULL) {
        cli_usage_error(&err, "'%s' is no command", argv[i]);
        return report(&err, NULL);
    }
    if (command->program != NULL) {
        become(command->program, argv, &err);
        return report(&err, command);
    }
    if (check_starter(&err) < 0)
        return report(&err, command);
    if (json && (command->groups & CLI_JSON) == 0) {
        cli_usage_error(&err, "%s: unknown option '--json'", command->name);
        return report(&err, command);
    }
    return run_command(command, argc - i, argv + i, &options);
}

int main(int argc, char **argv)
{
    int status = run(argc, argv);

    sandbox_leave();
    if (SANITIZED)
        return status;
    /* Nobody needs what libraries put in order now; it takes as long as some commands. */
    (void)fflush(NULL);
    _exit(status);
}
