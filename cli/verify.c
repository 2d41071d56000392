/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/cli.h"
#include "cli/file_text.h"
#include "common/checked.h"
#include "common/io.h"
#include "common/log.h"
#include "common/units.h"

#define PLACES_MAX 100
/* Room for a digest in hex, and what an editor puts behind it. */
#define ROOT_HASH_FILE_MAX 4096

enum { VERIFY_ROOT_HASH, VERIFY_ROOT_HASH_FILE, VERIFY_HASH_DEVICE };

static const struct cli_option verify_options[] = {
    [VERIFY_ROOT_HASH] = {"root-hash", 0, "HEX", "the root hash that must come out"},
    [VERIFY_ROOT_HASH_FILE] = {"root-hash-file", 0, "FILE", "read it from FILE"},
    [VERIFY_HASH_DEVICE] = {"hash-device", 0, "FILE",
                            "check this hash device, too; its superblock has the parameters"},
    {0},
};

struct verify_context {
    const char *root_hash;
    const char *root_hash_file;
    const char *hash_device;
};

static int verify_option(size_t index, const char *argument, void *arg, struct error *err)
{
    struct verify_context *context = arg;

    (void)err;
    switch (index) {
    case VERIFY_ROOT_HASH:
        context->root_hash = argument;
        return 0;
    case VERIFY_ROOT_HASH_FILE:
        context->root_hash_file = argument;
        return 0;
    case VERIFY_HASH_DEVICE:
        context->hash_device = argument;
        return 0;
    }
    abort();
}

/* --- What is to be checked --- */

struct job {
    struct cli_target target;
    struct verity_params params;
    struct verity_geometry geometry;
    struct hashtree *tree;
    uint8_t root[VERITY_DIGEST_MAX];
    size_t root_size;
    const char *hash_device; /* its path; NULL without one */
    int hash_fd;
};

static void job_done(struct job *job)
{
    if (job->tree != NULL)
        hashtree_free(job->tree);
    cli_target_close(&job->target);
    cleanup_close(&job->hash_fd);
}
DEFINE_CLEANUP_INPLACE(struct job, job_done);

static int parse_root(const char *text, struct job *job, struct error *err)
{
    int r = hex_decode(text, "--root-hash", job->root, sizeof(job->root), &job->root_size, err);
    if (r < 0)
        return cli_usage_error(err, "%s", error_message(err));
    return 0;
}

static int read_root(const struct verify_context *context, struct job *job, struct error *err)
{
    _cleanup_free_ char *text = NULL;

    if ((context->root_hash != NULL) == (context->root_hash_file != NULL))
        return cli_usage_error(err, "either --root-hash or --root-hash-file is needed");
    if (context->root_hash != NULL)
        return parse_root(context->root_hash, job, err);
    int r = io_read_file(context->root_hash_file, ROOT_HASH_FILE_MAX, &text, NULL, err);
    if (r < 0)
        return r;
    text[strcspn(text, " \t\r\n")] = '\0';
    r = hex_decode(text, "root hash", job->root, sizeof(job->root), &job->root_size, err);
    return r < 0 ? error_prefix(err, "%s", context->root_hash_file) : 0;
}

static int check_root_size(const struct verify_context *context, const struct job *job,
                           struct error *err)
{
    if (job->root_size == job->geometry.digest_size)
        return 0;
    if (context->root_hash == NULL)
        return error_set(err, EINVAL, "%s: root hash of %zu bytes, but those of %s have %zu",
                         context->root_hash_file, job->root_size, job->params.hash_name,
                         job->geometry.digest_size);
    return cli_usage_error(err, "--root-hash: %zu bytes, but root hashes of %s have %zu",
                           job->root_size, job->params.hash_name, job->geometry.digest_size);
}

static int load_params(const struct cli_options *options, struct job *job, struct error *err)
{
    int r = cli_hash_device_params(options, &job->target, job->hash_device, &job->params, err);

    if (r < 0)
        return r;
    /* Nothing vouches for a superblock: who could change it could leave data out. */
    uint64_t room = job->target.partition->size / job->params.data_block_size;
    if (job->params.data_blocks < room && !options->verity.data_blocks_set)
        log_warning("%s: the superblock covers %" PRIu64 " of the %" PRIu64
                    " data blocks that there is room for; only those are checked",
                    job->hash_device, job->params.data_blocks, room);
    return verity_geometry_init(&job->params, &job->geometry, err);
}

static int prepare(const struct cli_options *options, const struct verify_context *context,
                   const char *image, struct job *job, struct error *err)
{
    /* A salt made up now can verify nothing. */
    if (options->verity.salt != NULL && strcmp(options->verity.salt, "random") == 0)
        return cli_usage_error(err, "--salt random: verifying needs the salt that was used");
    int r = read_root(context, job, err);
    if (r < 0)
        return r;
    struct cli_options with_files = *options;
    if (job->hash_device != NULL) {
        with_files.superblock = true;
        with_files.files[with_files.file_count++] =
            (struct sandbox_file){job->hash_device, SANDBOX_READ};
    }
    r = cli_target_open(image, &with_files, NULL, &job->target, err);
    if (r < 0)
        return r;
    if (job->hash_device != NULL && !options->verity.no_superblock) {
        r = load_params(options, job, err);
    } else {
        r = cli_verity_params(options, &job->target, &job->params, err);
        if (r == 0)
            r = verity_geometry_init(&job->params, &job->geometry, err);
    }
    if (r < 0)
        return r;
    r = check_root_size(context, job, err);
    if (r < 0)
        return r;
    if (job->hash_device != NULL) {
        r = cli_hash_device_open(job->hash_device, &job->geometry, &job->hash_fd, err);
        if (r < 0)
            return r;
    }
    return hashtree_new(job->target.image, job->target.partition->start, &job->params,
                        &options->tree, &job->tree, err);
}

/* --- What is wrong --- */

/* In the order in which they are told. */
enum place_kind { PLACE_SUPERBLOCK, PLACE_ROOT, PLACE_NODE, PLACE_DATA };

struct place {
    enum place_kind kind;
    unsigned level;
    uint64_t index;
    uint64_t offset;
};

/* The first places in their order, of however many there are. */
struct places {
    uint64_t count; /* of all */
    size_t kept;
    struct place place[PLACES_MAX];
};

static bool place_before(const struct place *a, const struct place *b)
{
    return a->kind != b->kind ? a->kind < b->kind : a->offset < b->offset;
}

static void add_place(struct places *places, const struct place *place)
{
    size_t i = places->kept;

    places->count++;
    if (places->kept == PLACES_MAX) {
        if (!place_before(place, &places->place[PLACES_MAX - 1]))
            return;
        i--;
    } else {
        places->kept++;
    }
    while (i > 0 && place_before(place, &places->place[i - 1])) {
        places->place[i] = places->place[i - 1];
        i--;
    }
    places->place[i] = *place;
}

static void add_fault(const struct hashtree_fault *fault, void *arg)
{
    static const enum place_kind kinds[] = {
        [HASHTREE_FAULT_ROOT] = PLACE_ROOT,
        [HASHTREE_FAULT_NODE] = PLACE_NODE,
        [HASHTREE_FAULT_DATA] = PLACE_DATA,
    };

    add_place(arg, &(struct place){.kind = kinds[fault->kind],
                                   .level = fault->level,
                                   .index = fault->index,
                                   .offset = fault->offset});
}

/* The bytes of a superblock that mean nothing are zeros; libcryptsetup, reading it, does not care,
 * but nobody but a fault or a forger writes anything else there. */
static int check_superblock(const struct job *job, struct places *places, struct error *err)
{
    uint8_t expected[VERITY_SUPERBLOCK_SIZE], found[VERITY_SUPERBLOCK_SIZE];

    int r = verity_superblock_format(&job->params, expected, err);
    if (r < 0)
        return r;
    r = io_read_at(job->hash_fd, job->hash_device, found, sizeof(found), job->params.hash_offset,
                   err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < sizeof(found); i++)
        if (found[i] != expected[i])
            add_place(places, &(struct place){.kind = PLACE_SUPERBLOCK,
                                              .index = i,
                                              .offset = job->params.hash_offset + i});
    return 0;
}

static int check(const struct cli_options *options, struct job *job, struct places *places,
                 struct error *err)
{
    _cleanup_(progress_meter_stop_cleanup) struct progress_meter *meter = NULL;
    uint64_t faults;
    int r = 0;

    if (job->hash_device != NULL && job->params.superblock)
        r = check_superblock(job, places, err);
    if (r < 0)
        return r;
    uint64_t before = places->count;
    r = cli_tree_meter_start(options, "verifying", job->tree, &meter, err);
    if (r < 0)
        return r;
    r = hashtree_verify(job->tree, job->root, job->hash_fd, job->hash_device, add_fault, places,
                        &faults, err);
    assert(r < 0 || places->count - before == faults);
    return r;
}

/* --- Telling --- */

static void print_place(const struct job *job, const struct place *place)
{
    file_print_name(place->kind != PLACE_DATA && job->hash_device != NULL
                        ? job->hash_device
                        : image_path(job->target.image));
    switch (place->kind) {
    case PLACE_SUPERBLOCK:
        printf(": superblock: byte %" PRIu64 ", which has no meaning, is not zero (offset %" PRIu64
               ")\n",
               place->index, place->offset);
        return;
    case PLACE_ROOT:
        puts(": does not have the root hash");
        return;
    case PLACE_NODE:
        printf(": level %u, block %" PRIu64 ": not what the level above says (offset %" PRIu64
               ")\n",
               place->level, place->index, place->offset);
        return;
    case PLACE_DATA:
        printf(": data block %" PRIu64 ": not what level 0 says (offset %" PRIu64
               " of the partition)\n",
               place->index, place->offset);
        return;
    }
    abort();
}

static uint64_t count_hash_blocks(const struct verity_geometry *geometry)
{
    uint64_t blocks = 0;

    for (unsigned level = 0; level < geometry->levels; level++)
        blocks += geometry->level_blocks[level];
    return blocks;
}

static void print_text(const struct job *job, const struct places *places)
{
    for (size_t i = 0; i < places->kept; i++)
        print_place(job, &places->place[i]);
    if (places->count > places->kept)
        printf("(the first %zu of them)\n", places->kept);
    if (places->count > 0)
        printf("Wrong: %" PRIu64 " place%s\n", places->count, places->count == 1 ? "" : "s");
    else if (job->hash_device != NULL)
        printf("Verified: %" PRIu64 " data blocks and %" PRIu64 " hash blocks\n",
               job->params.data_blocks, count_hash_blocks(&job->geometry));
    else
        printf("Verified: %" PRIu64 " data blocks\n", job->params.data_blocks);
}

static json_t *place_json(const struct place *place)
{
    static const char *const kinds[] = {
        [PLACE_SUPERBLOCK] = "superblock",
        [PLACE_ROOT] = "root",
        [PLACE_NODE] = "hash_block",
        [PLACE_DATA] = "data_block",
    };
    json_int_t index = (json_int_t)place->index, offset = (json_int_t)place->offset;

    switch (place->kind) {
    case PLACE_SUPERBLOCK:
        return json_pack("{s:s, s:I}", "kind", kinds[place->kind], "offset", offset);
    case PLACE_ROOT:
        return json_pack("{s:s}", "kind", kinds[place->kind]);
    case PLACE_NODE:
        return json_pack("{s:s, s:I, s:I, s:I}", "kind", kinds[place->kind], "level",
                         (json_int_t)place->level, "index", index, "offset", offset);
    case PLACE_DATA:
        return json_pack("{s:s, s:I, s:I}", "kind", kinds[place->kind], "index", index, "offset",
                         offset);
    }
    abort();
}

static int print_json(const struct job *job, const struct places *places, struct error *err)
{
    _cleanup_json_ json_t *list = json_array();
    _cleanup_json_ json_t *object = NULL;
    char root[2 * VERITY_DIGEST_MAX + 1];
    struct hashtree_stats stats;

    for (size_t i = 0; i < places->kept; i++)
        if (json_array_append_new(list, place_json(&places->place[i])) != 0)
            return error_oom(err);
    hex_encode(job->root, job->root_size, root);
    hashtree_stats(job->tree, &stats);
    object = json_pack("{s:b, s:s, s:I, s:I, s:I, s:I, s:O}", "verified", places->count == 0,
                       "root_hash", root, "data_blocks", (json_int_t)job->params.data_blocks,
                       "hash_blocks",
                       job->hash_device != NULL ? (json_int_t)count_hash_blocks(&job->geometry) : 0,
                       "data_bytes_hashed", (json_int_t)stats.data_bytes_hashed, "wrong",
                       (json_int_t)places->count, "places", list);
    if (object == NULL)
        return error_oom(err);
    return json_print(object, err);
}

static int verify_run(const struct cli_options *options, int argc, char **argv, void *arg,
                      struct error *err)
{
    const struct verify_context *context = arg;
    _cleanup_(job_done_cleanup) struct job job = {
        .hash_device = context->hash_device,
        .hash_fd = -1,
    };
    struct places places = {0};

    (void)argc;
    int r = prepare(options, context, argv[0], &job, err);
    if (r < 0)
        return r;
    r = check(options, &job, &places, err);
    if (r < 0)
        return r;
    if (options->json) {
        r = print_json(&job, &places, err);
        if (r < 0)
            return r;
    } else {
        print_text(&job, &places);
    }
    return places.count == 0 ? CLI_DONE : CLI_WRONG;
}

const struct cli_command cmd_verify = {
    .name = "verify",
    .arguments = "IMAGE",
    .summary = "Checks an image, and a hash device, against a root hash",
    .details = "Reads all of the data partition of IMAGE, or of the one that -p tells, and checks\n"
               "it against the root hash. With --hash-device every block of that is checked, too,\n"
               "and what is wrong is told by its place. Exits with 3 if anything is wrong.",
    .groups =
        CLI_IMAGE | CLI_PARTITION | CLI_VERITY | CLI_TREE | CLI_JSON | CLI_SANDBOX | CLI_BYTES,
    .options = verify_options,
    .operands_min = 1,
    .operands_max = 1,
    .option = verify_option,
    .context_size = sizeof(struct verify_context),
    .run = verify_run,
};
