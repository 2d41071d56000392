/* SPDX-License-Identifier: MIT */
/*
 * `qverity track`. QEMU's own programs make and remove the bitmaps (docs/change-tracking.md), so
 * that clusters are allocated and freed by those who know best.
 *
 * qemu-img cannot set single bits. So a scratch image of the same size, which lives in memory only,
 * gets two bitmaps, in which qemu-io sets bits by writing zeros; qemu-img merges them into the
 * image's. The bitmap that is named qverity is added last: it says that tracking is on, and what a
 * crash leaves before that is removed by the next try.
 *
 * The programs take no locks on the image. Those are ours, a writer's for as long as it takes, and
 * the programs inherit them. So nobody else can write to it between one step and the next, and a
 * tree file that was current before can be made current again.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "cli/cli.h"
#include "cli/file_text.h"
#include "cli/tool.h"
#include "common/checked.h"
#include "common/log.h"
#include "image/bitmap.h"

enum {
    GRANULARITY = 64 << 10, /* bytes, unless the disk is too large for that */
    GRANULES_MAX = 1 << 28, /* half of what is read: a disk may grow */
    CHECK_ERRORS = 2,       /* exit status of qemu-img check */
    CHECK_LEAKS = 3,        /* nothing worse than these */
    GENERATION_BITS = IMAGE_BITMAP_GENERATION_SIZE * 8,
    WRITES_MAX = GENERATION_BITS + 1,
};

/* The scratch image is the programs' first descriptor, the image with its locks the second: it is
 * the file that was locked, whatever its path has come to mean. */
#define SCRATCH_PATH "file:/proc/self/fd/3"
#define IMAGE_OPTIONS "driver=qcow2,file.driver=file,file.locking=off,file.filename=/proc/self/fd/4"
#define SCRATCH_GENERATION "generation"
#define SCRATCH_CANARIES "canaries"

#define WORD(text) ((char *)(text))
#define RUN(fds, err, ...) tool_run((char *[]){__VA_ARGS__, NULL}, fds, NULL, err)

/* --- The scratch image --- */

struct scratch {
    int fds[TOOL_FDS];    /* its own, and none */
    uint64_t disk_size;   /* bytes */
    uint64_t granularity; /* bytes */
    uint64_t granules;
    uint8_t generation[IMAGE_BITMAP_GENERATION_SIZE];
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
    return tool_run(argv, scratch->fds, NULL, err);
}

/* The generation's bits, and the last one, by which a resized disk is recognized. */
static int set_generation(const struct scratch *scratch, struct error *err)
{
    uint64_t granules[WRITES_MAX];
    size_t count = 0;

    for (unsigned bit = 0; bit < GENERATION_BITS; bit++)
        if ((scratch->generation[bit / 8] >> bit % 8 & 1) != 0)
            granules[count++] = bit;
    granules[count++] = scratch->granules - 1;
    return set_bits(scratch, granules, count, err);
}

static int set_canaries(const struct scratch *scratch, uint64_t cluster_size, struct error *err)
{
    uint64_t canaries[IMAGE_BITMAP_CANARIES];

    image_tracking_canaries(scratch->generation, scratch->granules, cluster_size, canaries);
    return set_bits(scratch, canaries, IMAGE_BITMAP_CANARIES, err);
}

static int add_scratch_bitmap(struct scratch *scratch, const char *name, struct error *err)
{
    return RUN(scratch->fds, err, WORD("qemu-img"), WORD("bitmap"), WORD("--add"), WORD("-g"),
               scratch->granularity_text, WORD("-f"), WORD("qcow2"), WORD(SCRATCH_PATH),
               WORD(name));
}

static void scratch_close(struct scratch *scratch)
{
    cleanup_close(&scratch->fds[0]);
}
DEFINE_CLEANUP_INPLACE(struct scratch, scratch_close);

/* An image of the same size with a bitmap for the generation and one for the canaries. */
static int make_scratch(struct scratch *scratch, uint64_t cluster_size, struct error *err)
{
    _cleanup_close_ int fd = memfd_create("qverity-track", MFD_CLOEXEC);
    int r;

    if (fd < 0)
        return error_set_errno(err, errno, "cannot make a file in memory");
    r = scratch->fds[0] = tool_fd(fd, err);
    if (r < 0)
        return r;
    if (getrandom(scratch->generation, sizeof(scratch->generation), 0) !=
        (ssize_t)sizeof(scratch->generation))
        return error_set_errno(err, errno, "cannot get random numbers");
    /* Its data cluster exists only if a bit in it is set. */
    scratch->generation[0] |= 1;
    snprintf(scratch->granularity_text, sizeof(scratch->granularity_text), "%" PRIu64,
             scratch->granularity);
    snprintf(scratch->size_text, sizeof(scratch->size_text), "%" PRIu64, scratch->disk_size);
    r = RUN(scratch->fds, err, WORD("qemu-img"), WORD("create"), WORD("-q"), WORD("-f"),
            WORD("qcow2"), WORD(SCRATCH_PATH), scratch->size_text);
    if (r == 0)
        r = add_scratch_bitmap(scratch, SCRATCH_GENERATION, err);
    if (r == 0)
        r = set_generation(scratch, err);
    if (r == 0)
        r = RUN(scratch->fds, err, WORD("qemu-img"), WORD("bitmap"), WORD("--disable"), WORD("-f"),
                WORD("qcow2"), WORD(SCRATCH_PATH), WORD(SCRATCH_GENERATION));
    if (r == 0)
        r = add_scratch_bitmap(scratch, SCRATCH_CANARIES, err);
    if (r == 0)
        r = set_canaries(scratch, cluster_size, err);
    return r;
}

/* --- The image's bitmaps --- */

/* In the order in which they are added: what a crash leaves on the way does not say that tracking
 * is on. They are removed in the opposite order. */
enum { GENERATION, WITNESS, BITMAP, BITMAPS };
static const char *const names[BITMAPS] = {
    [GENERATION] = IMAGE_BITMAP_GENERATION_NAME,
    [WITNESS] = IMAGE_BITMAP_WITNESS_NAME,
    [BITMAP] = IMAGE_BITMAP_NAME,
};

struct track {
    bool on;
    const char *path;
    const struct image_options *image_options;
    struct hashtree_file_options keep;
    struct image *image;  /* as it was before: it has the locks */
    int fds[TOOL_FDS];    /* for QEMU's programs */
    uint64_t granularity; /* once it is on */
    bool has[BITMAPS];
    bool works;    /* all are there and as they should be */
    char *why_not; /* a message if one of them is there, and they do not work */
};

static void track_close(struct track *track)
{
    cleanup_close(&track->fds[0]);
    cleanup_close(&track->fds[1]);
    if (track->image != NULL)
        image_close(track->image);
    free(track->why_not);
}
DEFINE_CLEANUP_INPLACE(struct track, track_close);

static int remove_bitmaps(struct track *track, struct error *err)
{
    for (int i = BITMAPS - 1; i >= 0; i--) {
        if (!track->has[i])
            continue;
        int r = RUN(track->fds, err, WORD("qemu-img"), WORD("bitmap"), WORD("--image-opts"),
                    WORD("--remove"), WORD(IMAGE_OPTIONS), WORD(names[i]));
        if (r < 0)
            return r;
        track->has[i] = false;
    }
    return 0;
}

static int add_bitmap(struct track *track, struct scratch *scratch, int which, struct error *err)
{
    char *argv[20];
    size_t n = 0;

    argv[n++] = WORD("qemu-img");
    argv[n++] = WORD("bitmap");
    argv[n++] = WORD("--image-opts");
    argv[n++] = WORD("--add");
    if (which == GENERATION)
        argv[n++] = WORD("--disable");
    argv[n++] = WORD("-g");
    argv[n++] = scratch->granularity_text;
    argv[n++] = WORD("--merge");
    argv[n++] = WORD(which == GENERATION ? SCRATCH_GENERATION : SCRATCH_CANARIES);
    argv[n++] = WORD("-b");
    argv[n++] = WORD(SCRATCH_PATH);
    argv[n++] = WORD("-F");
    argv[n++] = WORD("qcow2");
    argv[n++] = WORD(IMAGE_OPTIONS);
    argv[n++] = WORD(names[which]);
    argv[n] = NULL;
    int r = tool_run(argv, track->fds, NULL, err);
    if (r == 0)
        track->has[which] = true;
    return r;
}

static int add_bitmaps(struct track *track, struct scratch *scratch, struct error *err)
{
    _cleanup_error_ struct error remove_err = ERROR_INIT;
    int r = 0;

    track->fds[0] = tool_fd(scratch->fds[0], err);
    if (track->fds[0] < 0)
        return track->fds[0];
    for (int i = 0; r == 0 && i < BITMAPS; i++)
        r = add_bitmap(track, scratch, i, err);
    if (r < 0 && remove_bitmaps(track, &remove_err) < 0)
        log_warning("%s: not all bitmaps could be removed again: %s", track->path,
                    error_message(&remove_err));
    return r;
}

/* What the image is, and what bitmaps it has. */
static int inspect(struct track *track, struct error *err)
{
    _cleanup_(image_tracking_free_cleanup) struct image_tracking *tracking = NULL;
    _cleanup_error_ struct error bitmap_err = ERROR_INIT;

    int r = image_open(track->path, track->image_options, &track->image, err);
    if (r == 0)
        r = image_bitmap_check_image(track->image, err);
    if (r < 0)
        return r;
    const struct image_info *info = image_info(track->image, 0);
    bool any = false;
    for (size_t i = 0; i < info->bitmap_count; i++)
        for (size_t n = 0; n < BITMAPS; n++)
            if (strcmp(info->bitmaps[i].name, names[n]) == 0)
                any = track->has[n] = true;
    if (!any)
        return 0;
    track->works = image_tracking_load(track->image, &tracking, &bitmap_err) == 0;
    if (track->works) {
        track->granularity = image_bitmap_granularity(image_tracking_bits(tracking));
        return 0;
    }
    track->why_not = strdup(error_message(&bitmap_err));
    return track->why_not == NULL ? error_oom(err) : 0;
}

/* --- Changing the image --- */

/* QEMU puts new clusters where the refcounts say that nothing is. If they are wrong, it overwrites
 * what the disk holds. (By its path, from which the backing file's is found.) */
static int check_image(struct track *track, struct error *err)
{
    _cleanup_free_ char *options = tool_image_options(track->path);
    int status = -1;

    if (options == NULL)
        return error_oom(err);
    int r = tool_run((char *[]){WORD("qemu-img"), WORD("check"), WORD("-q"), WORD("--image-opts"),
                                options, NULL},
                     track->fds, &status, err);
    if (r < 0 && status == CHECK_LEAKS)
        return 0;
    if (r < 0 && status == CHECK_ERRORS)
        return error_set(err, EIO,
                         "qemu-img check finds errors in it; 'qemu-img check -r all' repairs them");
    return r;
}

static int turn_on(struct track *track, struct scratch *scratch, struct error *err)
{
    if (track->why_not != NULL)
        log_warning("%s; tracking starts anew", track->why_not);
    int r = remove_bitmaps(track, err);
    if (r == 0)
        r = add_bitmaps(track, scratch, err);
    track->granularity = scratch->granularity;
    return r;
}

/* With the image locked for us. A tree file stays current, if there is one that is. */
static int change_locked(struct track *track, struct scratch *scratch, struct error *err)
{
    _cleanup_(hashtree_carry_free_cleanup) struct hashtree_carry *carry = NULL;
    _cleanup_image_ struct image *after = NULL;
    _cleanup_error_ struct error carry_err = ERROR_INIT;
    bool carried = false;

    int r = hashtree_carry_begin(track->image, &track->keep, &carry, err);
    if (r < 0)
        return r;
    if (track->on || carry != NULL) {
        _cleanup_error_ struct error check_err = ERROR_INIT;
        r = check_image(track, &check_err);
        if (r < 0 && track->on) {
            error_move(err, &check_err);
            return error_prefix(err, "%s", track->path);
        }
        if (r < 0 && carry != NULL)
            hashtree_carry_free(TAKE_PTR(carry));
    }
    r = track->on ? turn_on(track, scratch, err) : remove_bitmaps(track, err);
    image_release(track->image);
    if (r < 0)
        error_prefix(err, "%s", track->path);
    if (carry == NULL)
        return r;
    /* Whatever became of it, the disk holds what it did. */
    int carry_r = image_open(track->path, track->image_options, &after, &carry_err);
    if (carry_r == 0)
        carry_r = hashtree_carry_end(carry, after, &track->keep, &carried, &carry_err);
    if (carry_r < 0)
        log_warning("the next update will have to read everything: %s", error_message(&carry_err));
    return r;
}

static int change(struct track *track, struct error *err)
{
    _cleanup_(scratch_close_cleanup) struct scratch scratch = {
        .fds = {-1, -1},
        .disk_size = image_size(track->image),
        .granularity = GRANULARITY,
    };
    int lock_fd, r = 0;

    while (div_round_up(scratch.disk_size, scratch.granularity) > GRANULES_MAX)
        scratch.granularity *= 2;
    scratch.granules = div_round_up(scratch.disk_size, scratch.granularity);
    if (track->on && scratch.granules < IMAGE_BITMAP_GRANULES_MIN)
        return error_set(
            err, EINVAL,
            "%s: a disk of %" PRIu64 " bytes is too small to be worth tracking; it must "
            "have %d MiB at least",
            track->path, scratch.disk_size, IMAGE_BITMAP_GRANULES_MIN * (GRANULARITY >> 10) >> 10);
    if (track->on)
        r = make_scratch(&scratch, image_info(track->image, 0)->cluster_size, err);
    if (r < 0)
        return error_prefix(err, "%s", track->path);
    r = image_hold(track->image, &lock_fd, err);
    if (r < 0)
        return r;
    r = track->fds[1] = tool_fd(lock_fd, err);
    if (r >= 0)
        r = change_locked(track, &scratch, err);
    image_release(track->image);
    return r;
}

static int print_state(const struct cli_options *options, const struct track *track, bool already,
                       struct error *err)
{
    if (!options->json) {
        file_print_name(track->path);
        printf(": change tracking is %s%s", track->on ? "on" : "off", already ? " already" : "");
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

enum { TRACK_TREE };

static const struct cli_option track_options[] = {
    [TRACK_TREE] = {"tree", 0, "FILE", "the tree file to keep current (IMAGE.qvtree)"},
    {0},
};

struct track_context {
    const char *tree;
};

static int track_option(size_t index, const char *argument, void *arg, struct error *err)
{
    struct track_context *context = arg;

    (void)err;
    switch (index) {
    case TRACK_TREE:
        context->tree = argument;
        return 0;
    }
    abort();
}

static int track_run(const struct cli_options *options, int argc, char **argv, void *arg,
                     struct error *err)
{
    const struct track_context *context = arg;
    _cleanup_(track_close_cleanup) struct track track = {
        .path = argv[0],
        .image_options = &options->image,
        .keep = {.path = context->tree},
        .fds = {-1, -1},
    };

    (void)argc;
    if (strcmp(argv[1], "on") == 0)
        track.on = true;
    else if (strcmp(argv[1], "off") != 0)
        return cli_usage_error(err, "track: '%s' is neither on nor off", argv[1]);
    int r = inspect(&track, err);
    if (r < 0)
        return r;
    bool already = track.on ? track.works : !track.has[0] && !track.has[1] && !track.has[2];
    if (!already)
        r = change(&track, err);
    if (r < 0)
        return r;
    return print_state(options, &track, already, err);
}

const struct cli_command cmd_track = {
    .name = "track",
    .arguments = "IMAGE on|off",
    .summary = "Starts or stops change tracking",
    .details =
        "Adds persistent dirty bitmaps to a qcow2 version 3 image, or removes them: 'qverity' "
        "and\n"
        "'qverity-witness', in which QEMU records which parts of the disk are written, and\n"
        "'qverity-generation', by which the last tree file is recognized. Changes count "
        "from the next\n"
        "'qverity hash' or 'update' on, or from now on if the tree file is current, which it "
        "stays.\n"
        "Needs qemu-img and qemu-io, and nobody else may have the image open.",
    .groups = CLI_JSON,
    .options = track_options,
    .operands_min = 2,
    .operands_max = 2,
    .option = track_option,
    .context_size = sizeof(struct track_context),
    .run = track_run,
};
