/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "common/units.h"
#include "provision/guest.h"
#include "provision/keys.h"
#include "provision/steps.h"

/*
 * A guest on the image that is set up. By default the disk boots as a machine would boot it; with
 * `kernel` QEMU starts one itself: the newest of the image, or a file.
 */

struct boot_step {
    char *kernel; /* "new": the newest one of the image; else a file; NULL: the disk boots */
    char *initrd, *append, *user;
    struct step_machine machine;
    uint64_t timeout;
};

static const struct field fields[] = {
    {.name = "kernel", .type = FIELD_TEXT, .offset = offsetof(struct boot_step, kernel)},
    {.name = "initrd", .type = FIELD_FILE, .offset = offsetof(struct boot_step, initrd)},
    {.name = "append", .type = FIELD_TEXT, .offset = offsetof(struct boot_step, append)},
    MACHINE_FIELDS(struct boot_step, machine, 2048 * MACHINE_MIB),
    {.name = "user", .type = FIELD_TEXT, .offset = offsetof(struct boot_step, user)},
    {.name = "timeout",
     .type = FIELD_SECONDS,
     .offset = offsetof(struct boot_step, timeout),
     .initial = 600,
     .minimum = 1},
    {0},
};

void machine_check(struct checker *checker, const struct step *step,
                   const struct step_machine *machine)
{
    if (machine->memory % MACHINE_MIB != 0)
        checker_problem(checker, step, 0, "memory: is no multiple of 1M");
    if (machine->vars != NULL && machine->code == NULL)
        checker_problem(checker, step, 0, "ovmf-vars: needs ovmf-code");
    if (machine->ovmf != NULL && machine->code != NULL)
        checker_problem(checker, step, 0, "ovmf and ovmf-code: only one of them");
}

void machine_apply(const struct step_machine *machine, struct guest_options *guest)
{
    guest->memory = machine->memory;
    guest->cpus = (unsigned)machine->cpus;
    guest->firmware = (struct machine_firmware){
        .bios = machine->ovmf, .code = machine->code, .vars = machine->vars};
}

static bool is_new(const struct boot_step *options)
{
    return options->kernel != NULL && strcmp(options->kernel, "new") == 0;
}

/* Where a kernel of this machine is: as the recipe says, from the recipe's folder on. Owned; NULL:
 * out of memory. */
static char *kernel_path(const struct recipe *recipe, const struct boot_step *options)
{
    char *path;

    if (options->kernel[0] == '/')
        return strdup(options->kernel);
    return asprintf(&path, "%s/%s", recipe->directory, options->kernel) < 0 ? NULL : path;
}

static void check_kernel(struct checker *checker, const struct step *step)
{
    _cleanup_free_ char *path = kernel_path(checker->recipe, step->options);
    struct stat st;

    if (path != NULL && stat(path, &st) < 0)
        checker_problem(checker, step, 0, "kernel: %s: %s", path, strerror(errno));
    else if (path != NULL && !S_ISREG(st.st_mode))
        checker_problem(checker, step, 0, "kernel: %s: is no file", path);
}

static void check(struct checker *checker, struct step *step)
{
    const struct boot_step *options = step->options;

    machine_check(checker, step, &options->machine);
    if (options->kernel != NULL && !is_new(options))
        check_kernel(checker, step);
    if (options->kernel == NULL && (options->initrd != NULL || options->append != NULL))
        checker_problem(checker, step, 0, "%s: needs kernel",
                        options->initrd != NULL ? "initrd" : "append");
    if (options->kernel != NULL && !is_new(options) && options->append == NULL)
        checker_problem(checker, step, 0,
                        "append: is missing: a kernel of this machine does not "
                        "know its root");
    if (is_new(options) && options->initrd != NULL)
        checker_problem(checker, step, 0, "initrd: the image's kernel has its own");
    if (options->user != NULL && !owner_is_good(options->user))
        checker_problem(checker, step, 0, "user: '%s' cannot be one", options->user);
}

/* Who is let in: what the installation says, unless this step does. */
static const char *user_of(const struct build *build, const struct boot_step *options)
{
    const struct step *install = recipe_step(build->recipe, NULL, "install");

    if (options->user != NULL)
        return options->user;
    return strcmp(install->type->variant, "mmdebstrap") == 0 ? "root" : "guest";
}

/* Kernel, initrd and command line of the image, in the step's folder. */
static int find_kernel(struct build *build, struct guest_options *guest, struct build_boot *boot,
                       struct error *err)
{
    if (build->options->find_boot == NULL)
        return error_set(err, ENOTSUP, "this program cannot look for kernels in images");
    int r = build->options->find_boot(build->image, build->directory, boot,
                                      build->options->handlers.arg, err);
    if (r < 0)
        return r;
    guest->kernel = boot->kernel;
    guest->initrd = boot->initrd;
    if (guest->append == NULL)
        guest->append = boot->append;
    return 0;
}

/* What cloud-init is told: of an image that has it. *ret is owned, or NULL. */
static int find_seed(const struct build *build, char **ret, struct error *err)
{
    const struct step *install = recipe_step(build->recipe, NULL, "install");
    _cleanup_free_ char *path = NULL;

    if (asprintf(&path, "%s/steps/%s/" SEED_NAME, build->work, install->folder) < 0)
        return error_oom(err);
    *ret = access(path, R_OK) == 0 ? TAKE_PTR(path) : NULL;
    return 0;
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct boot_step *options = step->options;
    _cleanup_(build_boot_clear_cleanup) struct build_boot boot = {0};
    struct guest_options guest = {
        .image = build->image,
        .initrd = options->initrd,
        .append = options->append,
        .ssh = true,
    };
    _cleanup_free_ char *kernel = NULL, *seed = NULL;

    int r = find_seed(build, &seed, err);
    if (r < 0)
        return r;
    machine_apply(&options->machine, &guest);
    guest.seed = seed;
    if (is_new(options)) {
        r = find_kernel(build, &guest, &boot, err);
    } else if (options->kernel != NULL) {
        if (options->kernel[0] == '/')
            kernel = strdup(options->kernel);
        else if (asprintf(&kernel, "%s/%s", build->recipe->directory, options->kernel) < 0)
            kernel = NULL;
        if (kernel == NULL)
            return error_oom(err);
        guest.kernel = kernel;
    }
    if (r == 0)
        r = guest_start(build, &guest, &build->guest, err);
    if (r == 0)
        r = guest_connect(build->guest, user_of(build, options), options->timeout, err);
    return r;
}

static int inputs(const struct build *build, const struct step *step, struct digest *digest,
                  struct error *err)
{
    const struct boot_step *options = step->options;
    _cleanup_free_ char *path = NULL;

    if (options->kernel == NULL || is_new(options))
        return 0;
    path = kernel_path(build->recipe, options);
    return path == NULL ? error_oom(err) : digest_file(digest, path, err);
}

static int plan(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err)
{
    const struct boot_step *options = step->options;
    char memory[FORMAT_SIZE_MAX];

    return plan_action(plan, err, "a guest with %s of memory, %s, then SSH as %s",
                       format_size(options->machine.memory, memory),
                       is_new(options)           ? "on the newest kernel of the image"
                       : options->kernel != NULL ? options->kernel
                                                 : "from its disk",
                       user_of(build, options));
}

const struct step_type step_boot = {
    .kind = "boot",
    .size = sizeof(struct boot_step),
    .fields = fields,
    .places = IN(PLACE_IMAGE),
    .after = PLACE_RUNNING,
    .moves = true,
    .changes = true,
    .packs = true,
    .check = check,
    .inputs = inputs,
    .run = run,
    .plan = plan,
};

/* --- shutdown --- */

struct shutdown_step {
    uint64_t timeout;
};

static const struct field shutdown_fields[] = {
    {.name = "timeout",
     .type = FIELD_SECONDS,
     .offset = offsetof(struct shutdown_step, timeout),
     .initial = 300,
     .minimum = 1},
    {0},
};

static int run_shutdown(struct build *build, struct step *step, struct error *err)
{
    const struct shutdown_step *options = step->options;

    int r = guest_shutdown(build->guest, options->timeout, err);
    if (r < 0)
        return r;
    guest_free(build->guest);
    build->guest = NULL;
    return 0;
}

const struct step_type step_shutdown = {
    .kind = "shutdown",
    .size = sizeof(struct shutdown_step),
    .fields = shutdown_fields,
    .places = IN(PLACE_RUNNING),
    .after = PLACE_IMAGE,
    .moves = true,
    .changes = true,
    .run = run_shutdown,
};
