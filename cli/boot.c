/* SPDX-License-Identifier: MIT */
#include "cli/boot.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/guest_kernel.h"
#include "cli/serve.h"
#include "common/log.h"
#include "common/units.h"
#include "qemuctl/cmdline.h"

/*
 * `qverity boot`: mounts the image and boots QEMU on the mount's disk and hash device, read-only,
 * with a kernel command line that has the guest verify what it reads.
 */

#define MIB (UINT64_C(1024) * 1024)
#define CPUS_MAX 4096

enum accel_choice { CHOOSE_AUTO, CHOOSE_KVM, CHOOSE_TCG };

struct boot {
    const char *kernel, *initrd, *append, *bios, *cpu, *until, *console, *qmp;
    uint64_t memory;
    unsigned cpus, timeout;
    enum accel_choice accel_choice;
    bool no_verity, dm_init, no_dm_init, dry_run;

    const struct cli_target *target;
    enum accel accel;
    char *const *extra;
    size_t extra_count;
    char *directory; /* where the image is mounted */
};

static const struct cli_option boot_options[] = {
    {"kernel", 0, "FILE", "the kernel to boot, or image:/PATH (the newest in the image)"},
    {"initrd", 0, "FILE", "its initial RAM disk, image:/PATH or none (the kernel's own)"},
    {"append", 0, "STRING", "the kernel command line, in place of the default one"},
    {"memory", 0, "SIZE", "the guest's memory (2G)"},
    {"cpus", 0, "COUNT", "virtual CPUs (2)"},
    {"cpu", 0, "MODEL", "CPU model of QEMU (host with KVM, else max)"},
    {"accel", 0, "auto|kvm|tcg", "accelerator; auto tries whether KVM runs a guest (auto)"},
    {"bios", 0, "FILE", "firmware image"},
    {"no-verity", 0, NULL, "only the disk: no hash device, no dm-verity"},
    {"dm-init", 0, NULL, "put dm-mod.create= on the command line (default)"},
    {"no-dm-init", 0, NULL, "do not: the command line or the guest sets dm-verity up"},
    {"until", 0, "REGEX", "stop the guest once its console shows this; done then"},
    {"timeout", 0, "SECONDS", "stop the guest after this time; failed then"},
    {"console", 0, "FILE", "write the console to FILE as well"},
    {"qmp", 0, "SOCKET", "let QEMU listen for QMP at this path"},
    {"dry-run", 0, NULL, "print QEMU's command line and run nothing"},
    {0},
};

enum boot_option {
    OPT_KERNEL,
    OPT_INITRD,
    OPT_APPEND,
    OPT_MEMORY,
    OPT_CPUS,
    OPT_CPU,
    OPT_ACCEL,
    OPT_BIOS,
    OPT_NO_VERITY,
    OPT_DM_INIT,
    OPT_NO_DM_INIT,
    OPT_UNTIL,
    OPT_TIMEOUT,
    OPT_CONSOLE,
    OPT_QMP,
    OPT_DRY_RUN,
};

static int parse_count(const char *argument, const char *what, uint64_t max, unsigned *ret,
                       struct error *err)
{
    uint64_t value;

    int r = parse_u64(argument, what, &value, err);
    if (r < 0)
        return r;
    if (value < 1 || value > max)
        return cli_usage_error(err, "%s: '%s' is not between 1 and %llu", what, argument,
                               (unsigned long long)max);
    *ret = (unsigned)value;
    return 0;
}

static int parse_memory(const char *argument, uint64_t *ret, struct error *err)
{
    uint64_t value;

    int r = parse_size(argument, "--memory", &value, err);
    if (r < 0)
        return r;
    if (value == 0 || value % MIB != 0)
        return cli_usage_error(err, "--memory: '%s' is not a multiple of 1M", argument);
    *ret = value;
    return 0;
}

static int parse_accel(const char *argument, enum accel_choice *ret, struct error *err)
{
    static const char *const names[] = {"auto", "kvm", "tcg"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(argument, names[i]) == 0) {
            *ret = (enum accel_choice)i;
            return 0;
        }
    return cli_usage_error(err, "--accel: '%s' is not auto, kvm or tcg", argument);
}

static int boot_option(size_t index, const char *argument, void *context, struct error *err)
{
    struct boot *boot = context;

    switch ((enum boot_option)index) {
    case OPT_KERNEL:
        boot->kernel = argument;
        return 0;
    case OPT_INITRD:
        boot->initrd = argument;
        return 0;
    case OPT_APPEND:
        boot->append = argument;
        return 0;
    case OPT_MEMORY:
        return parse_memory(argument, &boot->memory, err);
    case OPT_CPUS:
        return parse_count(argument, "--cpus", CPUS_MAX, &boot->cpus, err);
    case OPT_CPU:
        boot->cpu = argument;
        return 0;
    case OPT_ACCEL:
        return parse_accel(argument, &boot->accel_choice, err);
    case OPT_BIOS:
        boot->bios = argument;
        return 0;
    case OPT_NO_VERITY:
        boot->no_verity = true;
        return 0;
    case OPT_DM_INIT:
        boot->dm_init = true;
        boot->no_dm_init = false;
        return 0;
    case OPT_NO_DM_INIT:
        boot->no_dm_init = true;
        boot->dm_init = false;
        return 0;
    case OPT_UNTIL:
        boot->until = argument;
        return 0;
    case OPT_TIMEOUT:
        return parse_count(argument, "--timeout", INT_MAX, &boot->timeout, err);
    case OPT_CONSOLE:
        boot->console = argument;
        return 0;
    case OPT_QMP:
        boot->qmp = argument;
        return 0;
    case OPT_DRY_RUN:
        boot->dry_run = true;
        return 0;
    }
    abort();
}

/* --- Command lines --- */

/* The default command line; behind it comes dm-mod.create. */
static char *default_append(const struct boot *boot)
{
    const unsigned number = boot->target->partition->number;
    char root[32] = "/dev/dm-0";
    char *line;

    if (boot->no_verity && number != 0)
        snprintf(root, sizeof(root), "/dev/sda%u", number);
    else if (boot->no_verity)
        snprintf(root, sizeof(root), "/dev/sda");
    if (asprintf(&line,
                 "systemd.mask=ssh.service fsck.mode=skip ro console=ttyS0 overlayroot=tmpfs "
                 "root=%s rootflags=noload",
                 root) < 0)
        return NULL;
    return line;
}

/* `table` is dm-verity's, or NULL without verity. */
static int make_append(const struct boot *boot, const char *table, char **ret, struct error *err)
{
    _cleanup_free_ char *line = boot->append != NULL ? strdup(boot->append) : default_append(boot);

    if (line == NULL)
        return error_oom(err);
    if (table != NULL && !boot->no_dm_init) {
        _cleanup_free_ char *create = verity_dm_mod_create(table);
        _cleanup_free_ char *longer = NULL;
        if (create == NULL)
            return error_oom(err);
        int r = cmdline_append(line, "--append", create, &longer, err);
        if (r == -EEXIST)
            return cli_usage_error(err, "%s; leave it out, or use --no-dm-init",
                                   error_message(err));
        if (r < 0)
            return r;
        free(line);
        line = TAKE_PTR(longer);
    }
    int r = cmdline_check(line, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(line);
    return 0;
}

static int make_argv(void *arg, const char *table, struct argv *ret, struct error *err)
{
    const struct boot *boot = arg;
    _cleanup_free_ char *append = NULL, *disk = NULL, *hash = NULL;
    const char *qemu = getenv("QVERITY_QEMU");

    int r = make_append(boot, table, &append, err);
    if (r < 0)
        return r;
    if (asprintf(&disk, "%s/disk", boot->directory) < 0 ||
        asprintf(&hash, "%s/hash", boot->directory) < 0)
        return error_oom(err);
    const struct machine_disk disks[] = {
        {.file = disk, .serial = "qverity-disk", .readonly = true},
        {.file = hash, .serial = "qverity-hash", .readonly = true},
    };
    const struct machine_options machine = {
        .qemu = qemu != NULL && qemu[0] != '\0' ? qemu : NULL,
        .accel = boot->accel,
        .cpu = boot->cpu,
        .memory = boot->memory,
        .cpus = boot->cpus,
        .bios = boot->bios,
        .kernel = boot->kernel,
        .initrd = boot->initrd,
        .append = append,
        .disks = disks,
        .disk_count = boot->no_verity ? 1 : 2,
        .qmp_socket = boot->qmp,
        .extra = boot->extra,
        .extra_count = boot->extra_count,
    };
    return machine_argv(&machine, ret, err);
}

/* --- Checks before anything takes time --- */

static int check_readable(const char *option, const char *path, struct error *err)
{
    _cleanup_close_ int fd = -1;
    struct stat st;

    if (path == NULL)
        return 0;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "%s %s", option, path);
    if (S_ISDIR(st.st_mode))
        return error_set_errno(err, EISDIR, "%s %s", option, path);
    return 0;
}

/* QEMU deletes whatever is at the path where it is to listen. */
static int check_socket(const char *path, struct error *err)
{
    struct stat st;

    if (path == NULL || lstat(path, &st) < 0 || S_ISSOCK(st.st_mode))
        return 0;
    return error_set(err, EEXIST, "--qmp %s: exists and is not a socket", path);
}

/* A command line that will be too long is told before the root hash is computed. */
static int check_append(const struct cli_options *options, const struct boot *boot,
                        struct error *err)
{
    _cleanup_free_ char *table = NULL, *append = NULL;
    const uint8_t root[VERITY_DIGEST_MAX] = {0};
    struct verity_geometry geometry;
    struct verity_params params;

    int r = cli_verity_params(options, boot->target, &params, err);
    if (r == 0)
        r = verity_geometry_init(&params, &geometry, err);
    if (r < 0)
        return r;
    if (!boot->no_verity) {
        table = verity_guest_table(&params, &geometry, root, boot->target->partition->number);
        if (table == NULL)
            return error_oom(err);
    }
    return make_append(boot, table, &append, err);
}

static int check_options(const struct boot *boot, struct error *err)
{
    if (boot->no_verity && boot->dm_init)
        return cli_usage_error(err, "boot: --dm-init and --no-verity exclude each other");
    /* It would get away from us. */
    for (size_t i = 0; i < boot->extra_count; i++)
        if (strcmp(boot->extra[i], "-daemonize") == 0 || strcmp(boot->extra[i], "--daemonize") == 0)
            return cli_usage_error(err, "boot: QEMU cannot be run with -daemonize here");
    int r = check_readable("--bios", boot->bios, err);
    if (r == 0)
        r = check_socket(boot->qmp, err);
    return r;
}

static void choose_accel(struct boot *boot)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    if (boot->accel_choice != CHOOSE_AUTO) {
        boot->accel = boot->accel_choice == CHOOSE_KVM ? ACCEL_KVM : ACCEL_TCG;
        return;
    }
    int r = accel_probe_kvm(&err);
    boot->accel = r == 0 ? ACCEL_KVM : ACCEL_TCG;
    if (r == -ENOENT)
        log_info("no KVM, QEMU emulates the guest's CPU: %s", error_message(&err));
    else if (r < 0)
        log_warning("no KVM, QEMU emulates the guest's CPU: %s", error_message(&err));
}

/* --- Running --- */

/* Where directories for mounts are made: the user's runtime directory, else root's, else /tmp. */
static const char *const *directory_parents(void)
{
    static const char *parents[4];
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    size_t n = 0;

    if (runtime != NULL && runtime[0] == '/')
        parents[n++] = runtime;
    parents[n++] = "/run";
    parents[n++] = "/tmp";
    parents[n] = NULL;
    return parents;
}

#define DIRECTORY_TEMPLATE "qverity-boot.XXXXXX"

/* The directory is only made if `make` is set; else *ret is the template. */
static int choose_directory(bool make, char **ret, struct error *err)
{
    const char *const *parents = directory_parents();
    int code = 0;

    for (size_t i = 0; parents[i] != NULL; i++) {
        _cleanup_free_ char *path = NULL, *real = realpath(parents[i], NULL);
        if (real == NULL || access(real, W_OK | X_OK) < 0) {
            code = errno;
            continue;
        }
        if (asprintf(&path, "%s/%s", strcmp(real, "/") == 0 ? "" : real, DIRECTORY_TEMPLATE) < 0)
            return error_oom(err);
        if (make && mkdtemp(path) == NULL) {
            code = errno;
            continue;
        }
        *ret = TAKE_PTR(path);
        return 0;
    }
    return error_set_errno(err, code, "cannot make a directory for the mount in /run or /tmp");
}

static int print_argv(const struct cli_options *options, struct boot *boot, struct error *err)
{
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    _cleanup_free_ char *table = NULL, *line = NULL;
    _cleanup_argv_ struct argv argv = ARGV_INIT;
    int r;

    if (!boot->no_verity) {
        r = cli_tree_new(options, boot->target, &tree, err);
        if (r == 0)
            r = serve_compute_table(options, boot->target, tree, &table, err);
        if (r < 0)
            return r;
    }
    r = make_argv(boot, table, &argv, err);
    if (r < 0)
        return r;
    line = argv_quote(&argv);
    if (line == NULL)
        return error_oom(err);
    puts(line);
    return 0;
}

/* The console is written from the file's start on: what the guest is made of must not be that file.
 */
static int check_console(const struct boot *boot, struct error *err)
{
    const char *const inputs[] = {boot->kernel, boot->initrd, boot->bios};
    const struct image *image = boot->target->image;
    struct stat console, st;

    if (stat(boot->console, &console) < 0)
        return 0;
    for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]); i++)
        if (inputs[i] != NULL && stat(inputs[i], &st) == 0 && st.st_dev == console.st_dev &&
            st.st_ino == console.st_ino)
            return error_set(err, EINVAL, "%s: --console would overwrite %s", boot->console,
                             inputs[i]);
    for (size_t i = 0; i < image_file_count(image); i++) {
        const struct image_file *file = image_file(image, i);
        if (file->stat.st_dev == console.st_dev && file->stat.st_ino == console.st_ino)
            return error_set(err, EINVAL, "%s: --console would overwrite %s, which the image is in",
                             boot->console, file->path);
    }
    return 0;
}

static int boot_guest(const struct cli_options *options, struct boot *boot, struct error *err)
{
    _cleanup_sink_ struct sink console = SINK_INIT;
    _cleanup_(until_free_cleanup) struct until *until = NULL;
    struct boot_session session = {
        .cli = options,
        .target = boot->target,
        .verity = !boot->no_verity,
        .timeout = boot->timeout,
        .until_text = boot->until,
        .socket = boot->qmp,
        .console = &console,
        .make_argv = make_argv,
        .arg = boot,
    };

    int r = until_new(boot->until, &until, err);
    if (r < 0)
        return cli_usage_error(err, "--until: %s", error_message(err));
    session.until = until;
    if (boot->dry_run) {
        r = choose_directory(false, &boot->directory, err);
        return r < 0 ? r : print_argv(options, boot, err);
    }
    if (boot->console != NULL) {
        r = check_console(boot, err);
        if (r == 0)
            r = sink_open_file(&console, boot->console, err);
        if (r < 0)
            return r;
    }
    r = choose_directory(true, &boot->directory, err);
    if (r < 0)
        return r;
    session.directory = boot->directory;
    r = boot_session_run(&session, err);
    /* Gone already, unless the session could not begin. */
    (void)rmdir(boot->directory);
    return r;
}

/* The child processes get other files as 0, 1 and 2: an image must not be opened there. What was
 * closed gives errors still. */
static int fill_standard_fds(struct error *err)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 &&
            open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
            return error_set_errno(err, errno, "/dev/null");
    return 0;
}

static int boot_run(const struct cli_options *options, int argc, char **argv, void *context,
                    struct error *err)
{
    _cleanup_target_ struct cli_target target = {0};
    _cleanup_guest_file_ struct guest_file kernel = GUEST_FILE_INIT, initrd = GUEST_FILE_INIT;
    struct boot *boot = context;

    int r = fill_standard_fds(err);
    if (r < 0)
        return r;
    boot->memory = boot->memory != 0 ? boot->memory : 2048 * MIB;
    boot->cpus = boot->cpus != 0 ? boot->cpus : 2;
    boot->extra = argv + argc - options->behind_dashes;
    boot->extra_count = (size_t)options->behind_dashes;
    r = check_options(boot, err);
    if (r == 0)
        r = cli_target_open(argv[0], options, NULL, &target, err);
    if (r < 0)
        return r;
    boot->target = &target;
    r = guest_kernel_open(&target, boot->kernel, boot->initrd, boot->dry_run ? GUEST_FILE_LOOK : 0,
                          &kernel, &initrd, err);
    if (r < 0)
        return r;
    boot->kernel = kernel.path;
    boot->initrd = initrd.path;
    r = check_append(options, boot, err);
    if (r < 0)
        return r;
    choose_accel(boot);
    r = boot_guest(options, boot, err);
    cleanup_free(&boot->directory);
    return r;
}

const struct cli_command cmd_boot = {
    .name = "boot",
    .arguments = "IMAGE [-- QEMU ARGS]",
    .summary = "boot QEMU on an image and its hash device",
    .details =
        "Serves the image from a private directory and boots a guest on it, read-only: the disk "
        "is\n"
        "hda, the dm-verity hash device of the data partition is hdb, and dm-mod.create= on the\n"
        "kernel command line has the guest verify all that it reads. --append replaces the "
        "default\n"
        "command line; dm-mod.create= is added to it unless --no-dm-init is given. Kernel and "
        "initrd\n"
        "are by default the newest in /boot of the image, which need not be mounted for that.\n\n"
        "stdout is the guest's console. With a terminal and without --until it takes keys: Ctrl-C\n"
        "or Ctrl-A x stops the guest, Ctrl-A c sends Ctrl-C, Ctrl-A a sends Ctrl-A. Done means\n"
        "that the guest powered off or, with --until, that a line of the console matched; lines\n"
        "are matched without escape sequences, the last one also while it is not complete.\n"
        "The program that runs is qemu-system-x86_64, or $QVERITY_QEMU.",
    .groups = CLI_IMAGE | CLI_PARTITION | CLI_VERITY | CLI_TREE | CLI_KEEP,
    .options = boot_options,
    .takes_rest = true,
    .operands_min = 1,
    .operands_max = 1,
    .option = boot_option,
    .context_size = sizeof(struct boot),
    .run = boot_run,
};
