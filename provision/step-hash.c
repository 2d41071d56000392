/* SPDX-License-Identifier: MIT */
#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "common/units.h"
#include "hashtree/describe.h"
#include "hashtree/hashtree.h"
#include "image/image.h"
#include "image/partition.h"
#include "provision/steps.h"

/* The dm-verity root hash of the image, as `qverity hash` computes it, and its tree file. */

struct hash_options {
    char *partition, *algorithm, *salt;
    uint64_t data_block_size, hash_block_size;
};

static const struct field fields[] = {
    {.name = "partition", .type = FIELD_TEXT, .offset = offsetof(struct hash_options, partition)},
    {.name = "algorithm", .type = FIELD_TEXT, .offset = offsetof(struct hash_options, algorithm)},
    {.name = "salt", .type = FIELD_TEXT, .offset = offsetof(struct hash_options, salt)},
    {.name = "data-block-size",
     .type = FIELD_SIZE,
     .offset = offsetof(struct hash_options, data_block_size),
     .initial = 4096},
    {.name = "hash-block-size",
     .type = FIELD_SIZE,
     .offset = offsetof(struct hash_options, hash_block_size),
     .initial = 4096},
    {0},
};

/* What the options say; the number of data blocks is not known yet. */
static int make_params(const struct hash_options *options, struct verity_params *ret,
                       struct error *err)
{
    struct verity_params params;

    verity_params_init(&params);
    if (options->algorithm != NULL) {
        if (strlen(options->algorithm) >= sizeof(params.hash_name))
            return error_set(err, EINVAL, "algorithm: '%s' is too long", options->algorithm);
        strcpy(params.hash_name, options->algorithm);
    }
    if (options->salt != NULL) {
        int r = strcmp(options->salt, "-") == 0
                    ? (params.salt_size = 0, 0)
                    : hex_decode(options->salt, "salt", params.salt, sizeof(params.salt),
                                 &params.salt_size, err);
        if (r < 0)
            return r;
    }
    params.data_block_size = (uint32_t)options->data_block_size;
    params.hash_block_size = (uint32_t)options->hash_block_size;
    *ret = params;
    return 0;
}

static void check(struct checker *checker, struct step *step)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    const struct hash_options *options = step->options;
    struct verity_geometry geometry;
    struct verity_params params;

    if (options->data_block_size > UINT32_MAX || options->hash_block_size > UINT32_MAX) {
        checker_problem(checker, step, 0, "a block size is too large");
        return;
    }
    int r = make_params(options, &params, &err);
    params.data_blocks = 1;
    if (r == 0)
        r = verity_geometry_init(&params, &geometry, &err);
    if (r < 0)
        checker_problem(checker, step, 0, "%s", error_message(&err));
}

/* A tree file that was complete but not renamed yet when the build was killed:
 * disk.qcow2.qvtree.1234abcd. The build has the work directory's lock, so nobody is about to rename
 * it. */
static int is_unnamed_tree(const struct dirent *entry)
{
    const char *suffix = strstr(entry->d_name, TREE_FILE_SUFFIX ".");

    if (suffix == NULL)
        return 0;
    suffix += strlen(TREE_FILE_SUFFIX ".");
    return strlen(suffix) == 8 && strspn(suffix, "0123456789abcdef") == 8;
}

static int drop_unnamed_trees(const struct build *build, struct error *err)
{
    struct dirent **entries;
    int r = 0;

    int count = scandir(build->work, &entries, is_unnamed_tree, alphasort);
    if (count < 0)
        return error_set_errno(err, errno, "%s: cannot read the directory", build->work);
    for (int i = 0; i < count; i++) {
        _cleanup_free_ char *path = build_path(build, entries[i]->d_name);
        if (r == 0 && path == NULL)
            r = error_oom(err);
        if (r == 0 && unlink(path) < 0)
            r = error_set_errno(err, errno, "%s: cannot be removed", path);
        free(entries[i]);
    }
    free(entries);
    return r;
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct hash_options *options = step->options;
    const struct image_options format = {.format = "qcow2"};
    const struct hashtree_options hashing = {.threads = build->options->threads};
    _cleanup_(partition_table_free_cleanup) struct partition_table *partitions = NULL;
    _cleanup_(hashtree_free_cleanup) struct hashtree *tree = NULL;
    _cleanup_image_ struct image *image = NULL;
    _cleanup_json_ json_t *description = NULL;
    const struct partition *partition;
    struct verity_params params;

    int r = make_params(options, &params, err);
    if (r == 0)
        r = drop_unnamed_trees(build, err);
    if (r == 0)
        r = image_open(build->image, &format, &image, err);
    if (r == 0)
        r = partition_table_read(image, &partitions, err);
    if (r == 0)
        r = partition_find(partitions, options->partition, &partition, err);
    if (r < 0)
        return r;
    params.data_blocks = partition->size / params.data_block_size;
    r = hashtree_new(image, partition->start, &params, &hashing, &tree, err);
    if (r == 0 && build->place == PLACE_SEALED)
        r = hashtree_keep(tree, &(struct hashtree_file_options){0}, err);
    if (r == 0)
        r = hashtree_describe(tree, partition->number, &description, err);
    if (r < 0)
        return r;
    build_say(build, "root hash %s", json_string_value(json_object_get(description, "root_hash")));
    if (json_object_set(build->result, "root_hash", json_object_get(description, "root_hash")) !=
            0 ||
        json_object_set(build->result, "verity", description) != 0)
        return error_oom(err);
    return 0;
}

const struct step_type step_hash = {
    .kind = "hash",
    .size = sizeof(struct hash_options),
    .fields = fields,
    .places = IN(PLACE_IMAGE) | IN(PLACE_SEALED),
    .packs = true,
    .check = check,
    .run = run,
};
