/* SPDX-License-Identifier: MIT */
#include "cli/boot.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/guest_append.h"
#include "cli/guest_kernel.h"
#include "cli/serve.h"
#include "common/log.h"
#include "qemuctl/qemu.h"

/*
 * `qverity boot`: mounts the image and boots QEMU on the mount's disk and hash device, read-only,
 * with a kernel command line that has the guest verify what it reads. With --writable nothing is
 * mounted: QEMU opens the image itself.
 */

struct boot {
    struct boot_options options; /* first: boot_option() gets the context */
    const struct cli_target *target;
    enum accel accel;
    struct boot_sev *sev; /* or NULL */
    unsigned partition;   /* the number of the data partition, 0: the whole disk */
    char *image;          /* --writable: the image's absolute path */
    const char *format;   /* and its format */
};

/* --- Command lines --- */

/* `table` is dm-verity's, or NULL without verity. *ret is NULL without a kernel. */
static int make_append(const struct boot *boot, const char *table, char **ret, struct error *err)
{
    const struct boot_options *o = &boot->options;
    const struct guest_append append = {
        .given = o->append,
        .writable = o->writable,
        .ssh = o->ssh,
        .no_verity = o->no_verity,
        .no_dm_init = o->no_dm_init,
        .partition = boot->partition,
    };

    if (o->kernel == NULL) {
        *ret = NULL;
        return 0;
    }
    return guest_append_make(&append, table, ret, err);
}

static const char *qemu_program(void)
{
    const char *qemu = getenv("QVERITY_QEMU");

    return qemu != NULL && qemu[0] != '\0' ? qemu : MACHINE_QEMU_DEFAULT;
}

/* Firmware in one image: -bios, but flash memory for a QEMU or a kind of guest that wants it so. */
static bool firmware_in_flash(const struct boot *boot)
{
    if (boot->sev != NULL)
        return sev_firmware_in_flash(boot_sev_arguments(boot->sev));
    return boot->options.sev.dialect == BOOT_DIALECT_FORK;
}

static void fill_machine(const struct boot *boot, struct machine_options *ret)
{
    const struct boot_options *o = &boot->options;

    *ret = (struct machine_options){
        .qemu = qemu_program(),
        .accel = boot->accel,
        .cpu = o->cpu,
        .memory = o->memory,
        .cpus = o->cpus,
        .firmware = {.bios = o->bios,
                     .bios_in_flash = firmware_in_flash(boot),
                     .code = o->ovmf_code,
                     .vars = o->ovmf_vars},
        .kernel = o->kernel,
        .initrd = o->initrd,
        .cdrom = o->cdrom,
        .net = {.kind = o->net, .forwards = o->forwards, .forward_count = o->forward_count},
        .vfio = o->vfio,
        .vfio_count = o->vfio_count,
        .qmp_socket = o->qmp,
        .extra = o->extra,
        .extra_count = o->extra_count,
    };
}

static int make_argv(void *arg, const char *table, struct argv *ret, struct error *err)
{
    const struct boot *boot = arg;
    _cleanup_free_ char *append = NULL;
    struct machine_options machine;

    int r = make_append(boot, table, &append, err);
    if (r < 0)
        return r;
    const struct machine_disk disks[] = {
        {.file = QEMU_INHERITED "/disk",
         .format = "raw",
         .serial = "qverity-disk",
         .readonly = true},
        {.file = QEMU_INHERITED "/hash",
         .format = "raw",
         .serial = "qverity-hash",
         .readonly = true},
    };
    const struct machine_disk writable = {
        .file = boot->image, .format = boot->format, .serial = "qverity-disk"};
    fill_machine(boot, &machine);
    if (boot->sev != NULL) {
        r = boot_sev_launch(boot->sev, table, append, &machine.sev, err);
        if (r < 0)
            return r;
    }
    machine.append = append;
    machine.disks = boot->image != NULL ? &writable : disks;
    machine.disk_count = boot->options.no_verity ? 1 : 2;
    return machine_argv(&machine, ret, err);
}

/* --- Checks before anything takes time --- */

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
    if (!boot->options.no_verity) {
        table = verity_guest_table(&params, &geometry, root, boot->partition);
        if (table == NULL)
            return error_oom(err);
    }
    return make_append(boot, table, &append, err);
}

/* The console is written from the file's start on: what the guest is made of must not be that file.
 */
static int check_console(const struct boot *boot, struct error *err)
{
    const char *const name = boot->options.console;
    const char *inputs[BOOT_FILES_MAX];
    const struct image *image = boot->target->image;
    struct stat console, st;

    if (name == NULL || boot->options.dry_run || stat(name, &console) < 0)
        return 0;
    boot_options_files(&boot->options, inputs);
    for (size_t i = 0; inputs[i] != NULL; i++)
        if (stat(inputs[i], &st) == 0 && st.st_dev == console.st_dev && st.st_ino == console.st_ino)
            return error_set(err, EINVAL, "%s: --console would overwrite %s", name, inputs[i]);
    for (size_t i = 0; i < image_file_count(image); i++) {
        const struct image_file *file = image_file(image, i);
        if (file->stat.st_dev == console.st_dev && file->stat.st_ino == console.st_ino)
            return error_set(err, EINVAL, "%s: --console would overwrite %s, which the image is in",
                             name, file->path);
    }
    return 0;
}

static int choose_accel(struct boot *boot, struct error *err)
{
    const struct boot_options *o = &boot->options;
    _cleanup_error_ struct error why = ERROR_INIT;

    /* What a dry run prints for an encrypted guest is for a host that can have one. */
    boot->accel = o->accel == BOOT_ACCEL_TCG ? ACCEL_TCG : ACCEL_KVM;
    if (o->accel != BOOT_ACCEL_AUTO || (o->sev.on && o->dry_run))
        return 0;
    int r = accel_probe_kvm(&why);
    if (r == 0)
        return 0;
    if (o->sev.on)
        return error_set(err, -r, "%s needs KVM: %s", sev_mode_name(o->sev.mode),
                         error_message(&why));
    boot->accel = ACCEL_TCG;
    if (r == -ENOENT)
        log_info("no KVM, QEMU emulates the guest's CPU: %s", error_message(&why));
    else
        log_warning("no KVM, QEMU emulates the guest's CPU: %s", error_message(&why));
    return 0;
}

/* --- Running --- */

static int print_argv(const struct cli_options *options, struct boot *boot, struct error *err)
{
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    _cleanup_free_ char *table = NULL, *line = NULL;
    _cleanup_argv_ struct argv argv = ARGV_INIT;
    int r;

    if (!boot->options.no_verity) {
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

static int boot_guest(const struct cli_options *options, struct boot *boot, struct error *err)
{
    const struct boot_options *o = &boot->options;
    _cleanup_sink_ struct sink console = SINK_INIT;
    _cleanup_(until_free_cleanup) struct until *until = NULL;
    struct boot_session session = {
        .cli = options,
        .target = boot->target,
        .verity = !o->no_verity,
        .timeout = o->timeout,
        .powerdown_ms = o->powerdown * 1000,
        .until_text = o->until,
        .socket = o->qmp,
        .console = &console,
        .make_argv = make_argv,
        .arg = boot,
    };
    int r = until_new(o->until, &until, err);
    if (r < 0)
        return cli_usage_error(err, "--until: %s", error_message(err));
    session.until = until;
    if (o->dry_run)
        return print_argv(options, boot, err);
    if (o->console != NULL) {
        r = sink_open_file(&console, o->console, err);
        if (r < 0)
            return r;
    }
    return boot_session_run(&session, err);
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

/* QEMU gets the image, whose locks it takes itself: ours go. What its header names was looked at
 * when it was opened. */
static int hand_over_image(const struct cli_options *options, struct boot *boot,
                           struct cli_target *target, struct error *err)
{
    const struct image_info *info = image_info(target->image, 0);
    const char *path = image_path(target->image);

    if (info->encryption != NULL)
        return error_set(err, ENOTSUP, "%s: --writable: the image is encrypted", path);
    /* A guest that writes a header of some format there would decide what is opened next time. */
    if (strcmp(info->format, "raw") == 0 && options->image.format == NULL)
        return error_set(err, EINVAL,
                         "%s: --writable: no known format; give --format raw if it is a raw disk",
                         path);
    boot->format = strcmp(info->format, "qcow2") == 0 ? "qcow2"
                   : strcmp(info->format, "raw") == 0 ? "raw"
                                                      : "qcow";
    boot->image = realpath(path, NULL);
    if (boot->image == NULL)
        return error_set_errno(err, errno, "%s", path);
    cli_target_close(target);
    boot->target = NULL;
    return 0;
}

static int boot_target(const struct cli_options *options, struct boot *boot,
                       struct cli_target *target, struct error *err)
{
    _cleanup_guest_file_ struct guest_file kernel = GUEST_FILE_INIT, initrd = GUEST_FILE_INIT;
    struct boot_options *o = &boot->options;
    int r = 0;

    boot->target = target;
    boot->partition = target->partition->number;
    if (!o->no_kernel)
        r = guest_kernel_open(target, o->kernel, o->initrd, o->dry_run ? GUEST_FILE_LOOK : 0,
                              &kernel, &initrd, err);
    o->kernel = kernel.path;
    o->initrd = initrd.path;
    if (r == 0)
        r = check_append(options, boot, err);
    if (r == 0)
        r = check_console(boot, err);
    if (r == 0 && o->writable)
        r = hand_over_image(options, boot, target, err);
    if (r == 0 && o->sev.on)
        r = boot_sev_prepare(options, o, qemu_program(), &kernel, &initrd, &boot->sev, err);
    if (r == 0)
        r = choose_accel(boot, err);
    if (r == 0 && o->sev.on)
        r = boot_sev_host(boot->sev, err);
    if (r == 0)
        r = boot_guest(options, boot, err);
    if (boot->sev != NULL)
        boot_sev_free(TAKE_PTR(boot->sev));
    return r;
}

static int boot_run(const struct cli_options *options, int argc, char **argv, void *context,
                    struct error *err)
{
    _cleanup_target_ struct cli_target target = {0};
    struct boot *boot = context;

    int r = fill_standard_fds(err);
    if (r < 0)
        return r;
    boot->options.extra = argv + argc - options->behind_dashes;
    boot->options.extra_count = (size_t)options->behind_dashes;
    r = boot_options_complete(options, &boot->options, err);
    if (r == 0)
        r = cli_target_open(argv[0], options, NULL, &target, err);
    if (r == 0)
        r = boot_target(options, boot, &target, err);
    cleanup_free(&boot->image);
    return r;
}

const struct cli_command cmd_boot = {
    .name = "boot",
    .arguments = "IMAGE [-- QEMU ARGS]",
    .summary = "Boots QEMU on an image and its hash device",
    .details =
        "Mounts the image where nobody else sees it and boots a guest on it, read-only: the disk "
        "is\n"
        "hda, the dm-verity hash device of the data partition is hdb, and dm-mod.create= on the\n"
        "kernel command line has the guest verify all that it reads. --append replaces the "
        "default\n"
        "command line; dm-mod.create= is added to it unless --no-dm-init is given. --writable\n"
        "boots on the image itself instead, to set it up. Kernel and initrd are by default the\n"
        "newest in /boot of the image, which need not be mounted for that.\n\n"
        "stdout is the guest's console. With a terminal and without --until it takes keys: Ctrl-C\n"
        "or Ctrl-A x stops the guest, Ctrl-A c sends Ctrl-C, Ctrl-A a sends Ctrl-A. Done means\n"
        "that the guest powered off or, with --until, that a line of the console matched; lines\n"
        "are matched without escape sequences, the last one also while it is not complete.\n"
        "--snp, --sev-es and --sev encrypt the guest's memory; its launch digest is told before "
        "it\n"
        "starts. There is no network unless --network, --ssh-port, --forward or --writable is "
        "given.\n"
        "The program that runs is qemu-system-x86_64, or $QVERITY_QEMU.",
    .groups = CLI_IMAGE | CLI_PARTITION | CLI_VERITY | CLI_TREE | CLI_KEEP,
    .options = boot_option_table,
    .takes_rest = true,
    .operands_min = 1,
    .operands_max = 1,
    .option = boot_option,
    .context_size = sizeof(struct boot),
    .run = boot_run,
};
