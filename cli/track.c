/* SPDX-License-Identifier: MIT */
/*
 * `qverity track`. QEMU's own programs make and remove the two bitmaps (docs/change-tracking.md),
 * so that clusters are allocated and freed by those who know best.
 *
 * qemu-img cannot set single bits. So a scratch image of the same size, which lives in memory only,
 * gets two bitmaps, in which qemu-io sets bits by writing zeros; qemu-img merges them into the
 * image's. The generation is added first: the bitmap that is named qverity says that tracking is
 * on, and what a crash leaves before that is removed by the next try.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/wait.h>

#include "cli/cli.h"
#include "common/checked.h"
#include "common/log.h"
#include "image/bitmap.h"

enum {
    GRANULARITY = 64 << 10, /* bytes, unless the disk is too large for that */
    GRANULES_MAX = 1 << 28, /* half of what is read: a disk may grow */
    SCRATCH_FD = 3,         /* of the scratch image in the programs that are run */
    MESSAGE_MAX = 4096,     /* bytes of a program's message that are shown */
    GENERATION_BITS = IMAGE_BITMAP_GENERATION_SIZE * 8,
    WRITES_MAX = GENERATION_BITS + 1,
};

#define SCRATCH_PATH "file:/proc/self/fd/3"
#define SCRATCH_GENERATION "generation"
#define SCRATCH_CANARIES "canaries"

/* --- Running QEMU's programs --- */

/* Reads all that comes, keeping the beginning. */
static void read_message(int fd, char message[static MESSAGE_MAX])
{
    char rest[512];
    size_t length = 0;

    for (;;) {
        bool room = length < MESSAGE_MAX - 1;
        ssize_t n = room ? read(fd, message + length, MESSAGE_MAX - 1 - length)
                         : read(fd, rest, sizeof(rest));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        if (room)
            length += (size_t)n;
    }
    message[length] = '\0';
}

/* One line, without the program's name in front. */
static const char *tidy_message(const char *program, char *message)
{
    size_t length = strlen(program);

    for (char *p = message; *p != '\0'; p++)
        if (*p == '\n')
            *p = p[1] == '\0' ? '\0' : ' ';
    if (strncmp(message, program, length) == 0 && strncmp(message + length, ": ", 2) == 0)
        message += length + 2;
    return message;
}

static int spawn(char *const argv[], int scratch, int message_fd, pid_t *ret, struct error *err)
{
    extern char **environ;
    posix_spawn_file_actions_t actions;
    int r;

    r = posix_spawn_file_actions_init(&actions);
    if (r != 0)
        return error_set_errno(err, r, "%s: cannot run", argv[0]);
    r = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (r == 0)
        r = posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&actions, message_fd, STDERR_FILENO);
    if (r == 0 && scratch >= 0)
        r = posix_spawn_file_actions_adddup2(&actions, scratch, SCRATCH_FD);
    if (r == 0)
        r = posix_spawnp(ret, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (r != 0)
        return error_set_errno(err, r, "%s: cannot run%s", argv[0],
                               r == ENOENT ? " (it comes with QEMU)" : "");
    return 0;
}

/* Runs a program to its end; what it says on stderr is the message of its failure. `scratch` is
 * the scratch image for it, or -1. */
static int run_program(char *const argv[], int scratch, struct error *err)
{
    _cleanup_close_ int read_end = -1, write_end = -1;
    char message[MESSAGE_MAX];
    int fds[2], status;
    pid_t pid;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_set_errno(err, errno, "cannot make a pipe");
    read_end = fds[0];
    write_end = fds[1];
    int r = spawn(argv, scratch, write_end, &pid, err);
    if (r < 0)
        return r;
    cleanup_close(&write_end);
    read_message(read_end, message);
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return error_set_errno(err, errno, "%s: cannot wait for it", argv[0]);
    if (WIFSIGNALED(status))
        return error_set(err, EIO, "%s: ended by signal %d", argv[0], WTERMSIG(status));
    if (WEXITSTATUS(status) != 0)
        return error_set(err, EIO, "%s: %s", argv[0],
                         message[0] != '\0' ? tidy_message(argv[0], message) : "it failed");
    return 0;
}

#define WORD(text) ((char *)(text))
#define RUN(scratch, err, ...) run_program((char *[]){__VA_ARGS__, NULL}, scratch, err)

/* The image's path as options, in which only commas mean anything: a plain name with a colon would
 * be a protocol, one with a dash an option. */
static char *image_options_of(const char *path)
{
    static const char start[] = "driver=qcow2,file.driver=file,file.filename=";
    char *options = malloc(sizeof(start) + 2 * strlen(path));

    if (options == NULL)
        return NULL;
    char *to = stpcpy(options, start);
    for (; *path != '\0'; path++) {
        if (*path == ',')
            *to++ = ',';
        *to++ = *path;
    }
    *to = '\0';
    return options;
}

/* --- The scratch image --- */

struct scratch {
    int fd;
    uint64_t disk_size;   /* bytes */
    uint64_t granularity; /* bytes */
    uint64_t granules;
    char granularity_text[24], size_text[24];
};

/* Sets the bits of `count` granules (at most WRITES_MAX) in all bitmaps that are enabled. */
static int set_bits(const struct scratch *scratch, const uint64_t *granules, size_t count,
                    struct error *err)
{
    char commands[WRITES_MAX][64];
    char *argv[2 * WRITES_MAX + 8];
    size_t argc = 0;

    assert(count <= WRITES_MAX);
    argv[argc++] = WORD("qemu-io");
    argv[argc++] = WORD("-f");
    argv[argc++] = WORD("qcow2");
    for (size_t i = 0; i < count; i++) {
        uint64_t at = granules[i] * scratch->granularity;
        snprintf(commands[i], sizeof(commands[i]), "write -q -z %" PRIu64 " %" PRIu64, at,
                 min_u64(GRANULARITY, scratch->disk_size - at));
        argv[argc++] = WORD("-c");
        argv[argc++] = commands[i];
    }
    argv[argc++] = WORD(SCRATCH_PATH);
    argv[argc] = NULL;
    return run_program(argv, scratch->fd, err);
}

static int random_bytes(void *bytes, size_t length, struct error *err)
{
    if (getrandom(bytes, length, 0) != (ssize_t)length)
        return error_set_errno(err, errno, "cannot get random numbers");
    return 0;
}

/* A random generation, and the last bit, by which a resized disk is recognized. */
static int set_generation(const struct scratch *scratch, struct error *err)
{
    uint8_t generation[IMAGE_BITMAP_GENERATION_SIZE];
    uint64_t granules[WRITES_MAX];
    size_t count = 0;

    int r = random_bytes(generation, sizeof(generation), err);
    if (r < 0)
        return r;
    /* Its data cluster exists only if a bit in it is set. */
    generation[0] |= 1;
    for (unsigned bit = 0; bit < GENERATION_BITS; bit++)
        if ((generation[bit / 8] >> bit % 8 & 1) != 0)
            granules[count++] = bit;
    granules[count++] = scratch->granules - 1;
    return set_bits(scratch, granules, count, err);
}

/*
 * The last granule, and others that have their bits in one cluster of the bitmap, whichever that
 * is: what matters is that they make QEMU allocate clusters, from which `update` chooses canaries
 * of its own.
 */
static int set_canaries(const struct scratch *scratch, uint64_t bits_per_cluster, struct error *err)
{
    uint64_t granules[IMAGE_BITMAP_CANARIES], random[IMAGE_BITMAP_CANARIES];
    uint64_t stretches = scratch->granules / bits_per_cluster;
    size_t count = 0;

    int r = random_bytes(random, sizeof(random), err);
    if (r < 0)
        return r;
    uint64_t first = stretches > 0 ? random[0] % stretches * bits_per_cluster : 0;
    uint64_t length = stretches > 0 ? bits_per_cluster : scratch->granules;
    granules[count++] = scratch->granules - 1;
    while (count < IMAGE_BITMAP_CANARIES) {
        /* Twice the same does no harm here. */
        granules[count] = first + random[count] % length;
        count++;
    }
    return set_bits(scratch, granules, count, err);
}

static int make_scratch(struct scratch *scratch, uint64_t bits_per_cluster, struct error *err)
{
    int r;

    scratch->fd = memfd_create("qverity-track", MFD_CLOEXEC);
    if (scratch->fd < 0)
        return error_set_errno(err, errno, "cannot make a file in memory");
    snprintf(scratch->granularity_text, sizeof(scratch->granularity_text), "%" PRIu64,
             scratch->granularity);
    snprintf(scratch->size_text, sizeof(scratch->size_text), "%" PRIu64, scratch->disk_size);
    r = RUN(scratch->fd, err, WORD("qemu-img"), WORD("create"), WORD("-q"), WORD("-f"),
            WORD("qcow2"), WORD(SCRATCH_PATH), scratch->size_text);
    if (r == 0)
        r = RUN(scratch->fd, err, WORD("qemu-img"), WORD("bitmap"), WORD("--add"), WORD("-g"),
                scratch->granularity_text, WORD("-f"), WORD("qcow2"), WORD(SCRATCH_PATH),
                WORD(SCRATCH_GENERATION));
    if (r == 0)
        r = set_generation(scratch, err);
    if (r == 0)
        r = RUN(scratch->fd, err, WORD("qemu-img"), WORD("bitmap"), WORD("--disable"), WORD("-f"),
                WORD("qcow2"), WORD(SCRATCH_PATH), WORD(SCRATCH_GENERATION));
    if (r == 0)
        r = RUN(scratch->fd, err, WORD("qemu-img"), WORD("bitmap"), WORD("--add"), WORD("-g"),
                scratch->granularity_text, WORD("-f"), WORD("qcow2"), WORD(SCRATCH_PATH),
                WORD(SCRATCH_CANARIES));
    if (r == 0)
        r = set_canaries(scratch, bits_per_cluster, err);
    return r;
}

/* --- The image's bitmaps --- */

struct track {
    bool on;
    const char *path;
    char *options; /* the image for QEMU's programs */
    uint64_t disk_size;
    uint64_t cluster_size;
    uint64_t granularity; /* once it is on */
    bool has_bitmap, has_generation;
    bool works;    /* both are there and as they should be */
    char *why_not; /* a message if one of them is there, and it does not work */
};

static int remove_bitmap(const struct track *track, const char *name, struct error *err)
{
    return RUN(-1, err, WORD("qemu-img"), WORD("bitmap"), WORD("--image-opts"), WORD("--remove"),
               track->options, WORD(name));
}

static int remove_bitmaps(const struct track *track, struct error *err)
{
    int r = 0;

    /* In this order, so that a crash in between leaves no bitmap that says that tracking is on. */
    if (track->has_bitmap)
        r = remove_bitmap(track, IMAGE_BITMAP_NAME, err);
    if (r == 0 && track->has_generation)
        r = remove_bitmap(track, IMAGE_BITMAP_GENERATION_NAME, err);
    return r;
}

static int add_bitmaps(const struct track *track, struct scratch *scratch, struct error *err)
{
    int r;

    r = RUN(scratch->fd, err, WORD("qemu-img"), WORD("bitmap"), WORD("--image-opts"), WORD("--add"),
            WORD("--disable"), WORD("-g"), scratch->granularity_text, WORD("--merge"),
            WORD(SCRATCH_GENERATION), WORD("-b"), WORD(SCRATCH_PATH), WORD("-F"), WORD("qcow2"),
            track->options, WORD(IMAGE_BITMAP_GENERATION_NAME));
    if (r < 0)
        return r;
    r = RUN(scratch->fd, err, WORD("qemu-img"), WORD("bitmap"), WORD("--image-opts"), WORD("--add"),
            WORD("-g"), scratch->granularity_text, WORD("--merge"), WORD(SCRATCH_CANARIES),
            WORD("-b"), WORD(SCRATCH_PATH), WORD("-F"), WORD("qcow2"), track->options,
            WORD(IMAGE_BITMAP_NAME));
    if (r < 0 && remove_bitmap(track, IMAGE_BITMAP_GENERATION_NAME, NULL) < 0)
        log_warning("%s: bitmap '%s' could not be removed again", track->path,
                    IMAGE_BITMAP_GENERATION_NAME);
    return r;
}

/* Whether `update` could make use of the bitmaps that are there. */
static int check_bitmaps(struct image *image, struct track *track, struct error *err)
{
    _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *bits = NULL, *generation = NULL;
    uint64_t canaries[IMAGE_BITMAP_CANARIES];

    int r = image_bitmap_load(image, IMAGE_BITMAP_NAME, &bits, err);
    if (r == 0)
        r = image_bitmap_load(image, IMAGE_BITMAP_GENERATION_NAME, &generation, err);
    if (r == 0)
        r = image_bitmap_choose_canaries(bits, canaries, IMAGE_BITMAP_CANARIES, err);
    if (r == 0)
        track->granularity = image_bitmap_granularity(bits);
    return r;
}

/* What the image is, and what bitmaps it has. */
static int inspect(struct track *track, const struct cli_options *options, struct error *err)
{
    _cleanup_image_ struct image *image = NULL;
    _cleanup_error_ struct error bitmap_err = ERROR_INIT;

    int r = image_open(track->path, &options->image, &image, err);
    if (r == 0)
        r = image_bitmap_check_image(image, err);
    if (r < 0)
        return r;
    const struct image_info *info = image_info(image, 0);
    track->disk_size = image_size(image);
    track->cluster_size = info->cluster_size;
    for (size_t i = 0; i < info->bitmap_count; i++) {
        track->has_bitmap |= strcmp(info->bitmaps[i].name, IMAGE_BITMAP_NAME) == 0;
        track->has_generation |= strcmp(info->bitmaps[i].name, IMAGE_BITMAP_GENERATION_NAME) == 0;
    }
    if (!track->has_bitmap && !track->has_generation)
        return 0;
    track->works = check_bitmaps(image, track, &bitmap_err) == 0;
    if (!track->works) {
        track->why_not = strdup(error_message(&bitmap_err));
        if (track->why_not == NULL)
            return error_oom(err);
    }
    return 0;
}

static int turn_on(struct track *track, struct error *err)
{
    struct scratch scratch = {
        .fd = -1,
        .disk_size = track->disk_size,
        .granularity = GRANULARITY,
    };
    int r;

    while (div_round_up(scratch.disk_size, scratch.granularity) > GRANULES_MAX)
        scratch.granularity *= 2;
    scratch.granules = div_round_up(scratch.disk_size, scratch.granularity);
    if (scratch.granules < IMAGE_BITMAP_GRANULES_MIN)
        return error_set(err, EINVAL,
                         "a disk of %" PRIu64 " bytes is too small to be worth tracking; it must "
                         "have %d MiB at least",
                         track->disk_size, IMAGE_BITMAP_GRANULES_MIN * (GRANULARITY >> 10) >> 10);
    if (track->why_not != NULL)
        log_warning("%s; tracking starts anew", track->why_not);
    r = make_scratch(&scratch, track->cluster_size * 8, err);
    if (r == 0)
        r = remove_bitmaps(track, err);
    if (r == 0)
        r = add_bitmaps(track, &scratch, err);
    cleanup_close(&scratch.fd);
    track->granularity = scratch.granularity;
    return r;
}

static int print_state(const struct cli_options *options, const struct track *track, bool already,
                       struct error *err)
{
    if (!options->json) {
        printf("%s: change tracking is %s%s", track->path, track->on ? "on" : "off",
               already ? " already" : "");
        if (track->on)
            printf(", in granules of %" PRIu64 " bytes", track->granularity);
        putchar('\n');
        return 0;
    }
    _cleanup_json_ json_t *json = json_object();
    if (json == NULL)
        return error_oom(err);
    int r = json_put(json, "tracking", json_boolean(track->on), err);
    if (r == 0)
        r = json_put(json, "granularity",
                     track->on ? json_integer((json_int_t)track->granularity) : json_null(), err);
    return r < 0 ? r : json_print(json, err);
}

static int track_image(const struct cli_options *options, struct track *track, struct error *err)
{
    bool already;
    int r;

    track->options = image_options_of(track->path);
    if (track->options == NULL)
        return error_oom(err);
    r = inspect(track, options, err);
    if (r < 0)
        return r;
    already = track->on ? track->works : !track->has_bitmap && !track->has_generation;
    if (!already)
        r = track->on ? turn_on(track, err) : remove_bitmaps(track, err);
    if (r < 0)
        return error_prefix(err, "%s", track->path);
    return print_state(options, track, already, err);
}

static int track_run(const struct cli_options *options, int argc, char **argv, void *context,
                     struct error *err)
{
    struct track track = {.path = argv[0]};

    (void)argc;
    (void)context;
    if (strcmp(argv[1], "on") == 0)
        track.on = true;
    else if (strcmp(argv[1], "off") != 0)
        return cli_usage_error(err, "track: '%s' is neither on nor off", argv[1]);
    int r = track_image(options, &track, err);
    free(track.options);
    free(track.why_not);
    return r;
}

const struct cli_command cmd_track = {
    .name = "track",
    .arguments = "IMAGE on|off",
    .summary = "Starts or stops change tracking",
    .details = "Adds two persistent dirty bitmaps to a qcow2 version 3 image, or removes them: "
               "'qverity', in\n"
               "which QEMU records which parts of the disk are written, and 'qverity-generation', "
               "by which\n"
               "'qverity update' recognizes its own last state of it. Changes count from the next "
               "update on:\n"
               "the update after that reads only what was written in between. Needs qemu-img and "
               "qemu-io,\n"
               "and nobody else may have the image open.",
    .groups = CLI_JSON,
    .operands_min = 2,
    .operands_max = 2,
    .run = track_run,
};
