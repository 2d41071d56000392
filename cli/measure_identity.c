/* SPDX-License-Identifier: MIT */
#include "cli/measure_identity.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/measure.h"
#include "common/units.h"

/* --- Options --- */

static int parse_policy(const char *argument, uint64_t *ret, struct error *err)
{
    uint64_t policy;

    int r = parse_u64(argument, "--policy", &policy, err);
    if (r < 0)
        return r;
    /* POLICY of publication 56860: a reserved bit that must be one. */
    if ((policy & UINT64_C(1) << 17) == 0)
        return error_set(err, EINVAL, "--policy: '%s' lacks bit 17 (0x20000), which must be set",
                         argument);
    *ret = policy;
    return 0;
}

static int parse_svn(const char *argument, uint32_t *ret, struct error *err)
{
    uint64_t value;

    int r = parse_u64(argument, "--guest-svn", &value, err);
    if (r < 0)
        return r;
    if (value > UINT32_MAX)
        return error_set(err, EINVAL, "--guest-svn: '%s' is too large", argument);
    *ret = (uint32_t)value;
    return 0;
}

static int parse_id(const char *argument, const char *what, uint8_t id[static 16],
                    struct error *err)
{
    size_t size;

    if (strlen(argument) == 16) {
        memcpy(id, argument, 16);
        return 0;
    }
    if (strlen(argument) != 32)
        return error_set(err, EINVAL, "%s: '%s' is neither 32 hex digits nor 16 characters", what,
                         argument);
    return hex_decode(argument, what, id, 16, &size, err);
}

int measure_identity_option(enum measure_identity_option option, const char *argument,
                            struct measure_identity *identity, struct error *err)
{
    identity->set = true;
    switch (option) {
    case IDENTITY_ID_KEY:
        identity->id_key = argument;
        return 0;
    case IDENTITY_AUTHOR_KEY:
        identity->author_key = argument;
        return 0;
    case IDENTITY_ID_BLOCK:
        identity->id_block = argument;
        return 0;
    case IDENTITY_ID_AUTH:
        identity->id_auth = argument;
        return 0;
    case IDENTITY_POLICY:
        return parse_policy(argument, &identity->policy, err);
    case IDENTITY_FAMILY_ID:
        return parse_id(argument, "--family-id", identity->family_id, err);
    case IDENTITY_IMAGE_ID:
        return parse_id(argument, "--image-id", identity->image_id, err);
    case IDENTITY_GUEST_SVN:
        return parse_svn(argument, &identity->guest_svn, err);
    }
    abort();
}

int measure_identity_check(const struct measure_identity *identity, enum sev_mode mode,
                           struct error *err)
{
    if (!identity->set)
        return 0;
    if (mode != SEV_MODE_SNP)
        return cli_usage_error(err, "measure: ID blocks are for --mode snp");
    if (identity->id_key == NULL || identity->id_block == NULL || identity->id_auth == NULL)
        return cli_usage_error(err, "measure: an ID block takes --id-key, --id-block and "
                                    "--id-auth");
    if (strcmp(identity->id_block, identity->id_auth) == 0)
        return cli_usage_error(err, "measure: --id-block and --id-auth are one file");
    return 0;
}

/* --- Keys --- */

void measure_identity_keys_clear(struct measure_identity_keys *keys)
{
    if (keys->key != NULL)
        id_key_free(keys->key);
    if (keys->author != NULL)
        id_key_free(keys->author);
    *keys = (struct measure_identity_keys){0};
}

/* What we write must not be what we read. */
static int check_output(const char *output, const char *input, struct error *err)
{
    struct stat out, in;

    if (input != NULL && stat(output, &out) == 0 && S_ISREG(out.st_mode) && stat(input, &in) == 0 &&
        in.st_dev == out.st_dev && in.st_ino == out.st_ino)
        return error_set(err, EEXIST, "%s: would overwrite %s", output, input);
    return 0;
}

static int check_outputs(const struct measure_identity *identity, const char *input,
                         struct error *err)
{
    int r = check_output(identity->id_block, input, err);

    return r < 0 ? r : check_output(identity->id_auth, input, err);
}

int measure_identity_load(const struct measure_identity *identity, const char *const *inputs,
                          size_t count, struct measure_identity_keys *ret, struct error *err)
{
    if (identity->id_key == NULL)
        return 0;
    int r = check_outputs(identity, identity->id_key, err);
    if (r == 0)
        r = check_outputs(identity, identity->author_key, err);
    for (size_t i = 0; r == 0 && i < count; i++)
        r = check_outputs(identity, inputs[i], err);
    if (r == 0)
        r = id_key_load(identity->id_key, &ret->key, err);
    if (r == 0 && identity->author_key != NULL)
        r = id_key_load(identity->author_key, &ret->author, err);
    return r;
}

/* --- The block --- */

static int report_block(const struct id_block *block, json_t *object, struct error *err)
{
    int r = json_put(object, "policy", json_integer((json_int_t)block->policy), err);

    if (r == 0)
        r = json_put(object, "guest_svn", json_integer(block->guest_svn), err);
    if (r == 0)
        r = measure_put_hex(object, "family_id", block->family_id, sizeof(block->family_id), err);
    if (r == 0)
        r = measure_put_hex(object, "image_id", block->image_id, sizeof(block->image_id), err);
    return r;
}

/* What a verifier looks for in a report. */
static int report_key(const struct id_key *key, const char *label, const char *member, FILE *out,
                      json_t *object, struct error *err)
{
    uint8_t digest[ID_KEY_DIGEST_SIZE];
    char text[2 * ID_KEY_DIGEST_SIZE + 1];

    if (key == NULL)
        return 0;
    int r = id_key_digest(key, digest, err);
    if (r < 0)
        return r;
    hex_encode(digest, sizeof(digest), text);
    if (out != NULL)
        fprintf(out, "%-16s %s\n", label, text);
    return object != NULL ? json_put(object, member, json_string(text), err) : 0;
}

int measure_identity_make(const struct measure_identity *identity,
                          const struct measure_identity_keys *keys,
                          const struct launch_digest *digest, FILE *out, json_t *object,
                          struct error *err)
{
    uint8_t bytes[ID_BLOCK_SIZE], auth[ID_AUTH_SIZE];
    struct id_block block = {
        .digest = digest,
        .guest_svn = identity->guest_svn,
        .policy = identity->policy != 0 ? identity->policy : SNP_POLICY_DEFAULT,
    };

    if (keys->key == NULL)
        return 0;
    memcpy(block.family_id, identity->family_id, sizeof(block.family_id));
    memcpy(block.image_id, identity->image_id, sizeof(block.image_id));
    int r = id_block_make(&block, keys->key, keys->author, bytes, auth, err);
    if (r == 0 && object != NULL)
        r = report_block(&block, object, err);
    if (r == 0)
        r = report_key(keys->key, "ID key:", "id_key_digest", out, object, err);
    if (r == 0)
        r = report_key(keys->author, "Author key:", "author_key_digest", out, object, err);
    const struct id_block_file files[] = {{identity->id_block, bytes, sizeof(bytes)},
                                          {identity->id_auth, auth, sizeof(auth)}};
    return r < 0 ? r : id_block_write(files, 2, err);
}
