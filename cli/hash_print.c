/* SPDX-License-Identifier: MIT */
#include <inttypes.h>

#include "cli/cli.h"
#include "cli/file_text.h"
#include "common/text.h"
#include "common/units.h"

/* Reasons tell names of files and bitmaps. */
static void print_reason(const char *what, const char *reason)
{
    _cleanup_free_ char *text = text_line(reason);

    printf("%s%s%s\n", what, reason[0] != '\0' ? ": " : "", text != NULL ? text : "?");
}

static void print_method(struct hashtree *tree)
{
    const char *why_not;
    bool tracking = hashtree_tracking(tree, &why_not);

    printf("Method:          \t");
    print_reason(hashtree_method_name(hashtree_method(tree)), hashtree_reason(tree));
    printf("Tracking:        \t");
    print_reason(tracking ? "on" : "off", why_not);
}

/* The lines of `veritysetup format`, the root hash last. */
static int print_text(const char *name, struct hashtree *tree, bool method, struct error *err)
{
    const struct verity_params *params = hashtree_params(tree);
    const struct verity_geometry *geometry = hashtree_geometry(tree);
    char root_hex[2 * VERITY_DIGEST_MAX + 1], salt[2 * VERITY_SALT_MAX + 1] = "-";
    char uuid_text[VERITY_UUID_TEXT_SIZE] = "";
    uint8_t root[VERITY_DIGEST_MAX], uuid[16];
    uint64_t hash_blocks = 0;

    int r = hashtree_root(tree, root, err);
    if (r < 0)
        return r;
    if (params->superblock) {
        r = hashtree_uuid(tree, uuid, err);
        if (r < 0)
            return r;
        verity_uuid_format(uuid, uuid_text);
    }
    for (unsigned level = 0; level < geometry->levels; level++)
        hash_blocks += geometry->level_blocks[level];
    hex_encode(root, geometry->digest_size, root_hex);
    if (params->salt_size > 0)
        hex_encode(params->salt, params->salt_size, salt);
    printf("VERITY header information for ");
    file_print_name(name);
    putchar('\n');
    printf("UUID:            \t%s\n", uuid_text);
    printf("Hash type:       \t%u\n", params->hash_type);
    printf("Data blocks:     \t%" PRIu64 "\n", params->data_blocks);
    printf("Data block size: \t%" PRIu32 "\n", params->data_block_size);
    printf("Hash blocks:     \t%" PRIu64 "\n", hash_blocks);
    printf("Hash block size: \t%" PRIu32 "\n", params->hash_block_size);
    printf("Hash algorithm:  \t%s\n", params->hash_name);
    printf("Salt:            \t%s\n", salt);
    printf("Hash device size: \t%" PRIu64 " [bytes]\n", geometry->device_size);
    if (method)
        print_method(tree);
    printf("Root hash:      \t%s\n", root_hex);
    return 0;
}

/* Text, or null if there is none. */
static json_t *text_or_null(const char *text)
{
    return text[0] != '\0' ? json_text(text) : json_null();
}

/* What update tells besides. */
static int put_method(json_t *json, struct hashtree *tree, struct error *err)
{
    const char *why_not;
    bool tracking = hashtree_tracking(tree, &why_not);

    int r = json_put(json, "reason", text_or_null(hashtree_reason(tree)), err);
    if (r == 0)
        r = json_put(json, "tracking", json_string(tracking ? "on" : "off"), err);
    if (r == 0)
        r = json_put(json, "tracking_reason", text_or_null(why_not), err);
    return r;
}

int cli_hash_print(const struct cli_options *options, const struct cli_target *target,
                   const char *written, struct hashtree *tree, bool method, struct error *err)
{
    _cleanup_json_ json_t *json = NULL;

    if (!options->json)
        return print_text(written != NULL ? written : image_path(target->image), tree, method, err);
    int r = cli_hash_json(target, tree, &json, err);
    if (r == 0 && method)
        r = put_method(json, tree, err);
    return r < 0 ? r : json_print(json, err);
}
