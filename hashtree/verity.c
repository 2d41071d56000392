/* SPDX-License-Identifier: MIT */
#include "hashtree/verity.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/units.h"
#include "hashtree/hasher.h"

#define BLOCK_SIZE_MIN 512u
#define BLOCK_SIZE_MAX (512u * 1024)
#define SECTOR_SIZE 512u

void verity_params_init(struct verity_params *params)
{
    *params = (struct verity_params){
        .hash_name = "sha256",
        .hash_type = 1,
        .data_block_size = 4096,
        .hash_block_size = 4096,
        .salt_size = 32,
        .superblock = true,
    };
}

/* --- Geometry --- */

static int check_block_size(const char *option, uint32_t size, struct error *err)
{
    if (!is_power_of_two(size) || size < BLOCK_SIZE_MIN || size > BLOCK_SIZE_MAX)
        return error_set(err, EINVAL, "%s %" PRIu32 ": not a power of two from %u to %u", option,
                         size, BLOCK_SIZE_MIN, BLOCK_SIZE_MAX);
    return 0;
}

static int find_digest_size(const char *name, size_t *ret, struct error *err)
{
    size_t size;

    int r = hasher_find_digest(name, &size, err);
    if (r == -EINVAL)
        return error_set(err, EINVAL, "--hash: there is no digest '%s'", name);
    if (r < 0)
        return error_prefix(err, "--hash %s", name);
    if (size > VERITY_DIGEST_MAX)
        return error_set(err, EINVAL, "--hash %s: its digest has %zu bytes, more than %d", name,
                         size, VERITY_DIGEST_MAX);
    *ret = size;
    return 0;
}

static int check_params(const struct verity_params *params, struct error *err)
{
    uint64_t bytes;
    int r;

    if (params->hash_type > 1)
        return error_set(err, EINVAL, "--format-version %u: neither 0 nor 1", params->hash_type);
    r = check_block_size("--data-block-size", params->data_block_size, err);
    if (r < 0)
        return r;
    r = check_block_size("--hash-block-size", params->hash_block_size, err);
    if (r < 0)
        return r;
    if (params->salt_size > VERITY_SALT_MAX)
        return error_set(err, EINVAL, "--salt: %zu bytes, but %d at most are allowed",
                         params->salt_size, VERITY_SALT_MAX);
    if (params->data_blocks == 0)
        return error_set(err, EINVAL, "--data-blocks 0: there must be one data block at least");
    if (!checked_mul(params->data_blocks, params->data_block_size, &bytes) || bytes > INT64_MAX)
        return error_set(err, EOVERFLOW,
                         "--data-blocks %" PRIu64 ": too large with data blocks of %" PRIu32
                         " bytes",
                         params->data_blocks, params->data_block_size);
    if (params->hash_offset > INT64_MAX)
        return error_set(err, EOVERFLOW, "--hash-offset %" PRIu64 ": too large",
                         params->hash_offset);
    if (params->superblock && params->hash_offset % VERITY_SUPERBLOCK_SIZE != 0)
        return error_set(err, EINVAL, "--hash-offset %" PRIu64 ": not a multiple of %d",
                         params->hash_offset, VERITY_SUPERBLOCK_SIZE);
    /* dm-verity counts the tree's start in hash blocks. veritysetup rounds down here and overwrites
     * what lies before the offset. */
    if (!params->superblock && params->hash_offset % params->hash_block_size != 0)
        return error_set(err, EINVAL,
                         "--hash-offset %" PRIu64 ": without a superblock it must be a multiple of "
                         "the hash block size, %" PRIu32,
                         params->hash_offset, params->hash_block_size);
    return 0;
}

static size_t power_of_two_up(size_t n)
{
    size_t power = 1;

    while (power < n)
        power *= 2;
    return power;
}

static unsigned log2_down(size_t n)
{
    unsigned bits = 0;

    while (n >> (bits + 1) != 0)
        bits++;
    return bits;
}

/* Lays the levels out behind hash_start: the highest first, level 0 last. */
static int place_levels(struct verity_geometry *geometry, uint64_t data_blocks, struct error *err)
{
    uint64_t end = geometry->hash_start;
    uint64_t size;

    for (uint64_t n = data_blocks; n > 1; geometry->levels++) {
        n = div_round_up(n, UINT64_C(1) << geometry->fanout_bits);
        geometry->level_blocks[geometry->levels] = n;
    }
    for (unsigned level = geometry->levels; level-- > 0;) {
        geometry->level_start[level] = end;
        if (!checked_add(end, geometry->level_blocks[level], &end))
            return error_set(err, EOVERFLOW, "--hash-offset: the hash area is too large");
    }
    if (!checked_mul(end, geometry->hash_block_size, &size) || size > INT64_MAX)
        return error_set(err, EOVERFLOW, "--hash-offset: the hash area is too large");
    geometry->device_size = size;
    return 0;
}

int verity_geometry_init(const struct verity_params *params, struct verity_geometry *ret,
                         struct error *err)
{
    struct verity_geometry geometry = {.hash_block_size = params->hash_block_size};
    uint64_t start = params->hash_offset;

    int r = check_params(params, err);
    if (r < 0)
        return r;
    r = find_digest_size(params->hash_name, &geometry.digest_size, err);
    if (r < 0)
        return r;
    /* Type 0 packs the digests, but like type 1 it puts only a power of two of them in a block. */
    geometry.fanout_bits = log2_down(params->hash_block_size / geometry.digest_size);
    geometry.digest_slot =
        params->hash_type == 0 ? geometry.digest_size : power_of_two_up(geometry.digest_size);
    if (params->superblock)
        start += VERITY_SUPERBLOCK_SIZE;
    geometry.hash_start = div_round_up(start, params->hash_block_size);
    r = place_levels(&geometry, params->data_blocks, err);
    if (r < 0)
        return r;
    /* A single data block and no superblock: nothing is written anywhere. */
    if (geometry.levels == 0 && !params->superblock)
        geometry.device_size = 0;
    *ret = geometry;
    return 0;
}

void verity_geometry_span(const struct verity_geometry *geometry, uint64_t data_blocks,
                          unsigned level, uint64_t index, uint64_t *ret_first, uint64_t *ret_end)
{
    unsigned shift = geometry->fanout_bits * (level + 1);

    assert(level < geometry->levels && index < geometry->level_blocks[level]);
    if (shift >= 64) {
        *ret_first = 0;
        *ret_end = data_blocks;
        return;
    }
    *ret_first = index << shift;
    /* Not (index + 1) << shift: that may overflow for the last node. */
    *ret_end = *ret_first + min_u64(data_blocks - *ret_first, UINT64_C(1) << shift);
}

/* --- Table --- */

/* "-" for no bytes, else hex. `text` has room for 2 * VERITY_SALT_MAX + 1. */
static void format_salt(const struct verity_params *params, char *text)
{
    if (params->salt_size == 0)
        strcpy(text, "-");
    else
        hex_encode(params->salt, params->salt_size, text);
}

char *verity_table(const struct verity_params *params, const struct verity_geometry *geometry,
                   const uint8_t *root, const char *data_device, const char *hash_device,
                   const char *optional)
{
    char salt[2 * VERITY_SALT_MAX + 1], digest[2 * VERITY_DIGEST_MAX + 1];
    char *table;

    format_salt(params, salt);
    hex_encode(root, geometry->digest_size, digest);
    if (asprintf(&table,
                 "0 %" PRIu64 " verity %u %s %s %" PRIu32 " %" PRIu32 " %" PRIu64 " %" PRIu64
                 " %s %s %s%s%s",
                 params->data_blocks * (params->data_block_size / SECTOR_SIZE), params->hash_type,
                 data_device, hash_device, params->data_block_size, params->hash_block_size,
                 params->data_blocks, geometry->hash_start, params->hash_name, digest, salt,
                 optional != NULL ? " " : "", optional != NULL ? optional : "") < 0)
        return NULL;
    return table;
}

char *verity_guest_table(const struct verity_params *params, const struct verity_geometry *geometry,
                         const uint8_t *root, unsigned partition)
{
    char data_device[32] = "/dev/sda";

    if (partition != 0)
        snprintf(data_device, sizeof(data_device), "/dev/sda%u", partition);
    return verity_table(params, geometry, root, data_device, "/dev/sdb", "1 panic_on_corruption");
}

char *verity_dm_mod_create(const char *table)
{
    char *text;

    if (asprintf(&text, "dm-mod.create=\"dmverity,,0,ro,%s\"", table) < 0)
        return NULL;
    return text;
}

/* --- UUID --- */

/*
 * The first 16 bytes of the SHA-256 of this text, version and variant put in as RFC 9562 has them
 * for version 8:
 *
 *     qverity-uuid-1 HASH TYPE DATA_BLOCK_SIZE HASH_BLOCK_SIZE DATA_BLOCKS SALT ROOT
 *
 * with single blanks between, no newline at the end, numbers in decimal, salt ("-" if there is
 * none) and root hash in lower-case hex: all that the superblock says, and the root hash. Where the
 * superblock lies makes no difference.
 */
void verity_derive_uuid(const struct verity_params *params, const uint8_t *root, size_t root_size,
                        uint8_t uuid[static 16])
{
    char salt[2 * VERITY_SALT_MAX + 1], digest[2 * VERITY_DIGEST_MAX + 1];
    char text[sizeof(params->hash_name) + sizeof(salt) + sizeof(digest) + 128];
    uint8_t sum[SHA256_CHECKSUM_SIZE];

    assert(root_size <= VERITY_DIGEST_MAX);
    format_salt(params, salt);
    hex_encode(root, root_size, digest);
    int length = snprintf(text, sizeof(text),
                          "qverity-uuid-1 %s %u %" PRIu32 " %" PRIu32 " %" PRIu64 " %s %s",
                          params->hash_name, params->hash_type, params->data_block_size,
                          params->hash_block_size, params->data_blocks, salt, digest);
    assert(length > 0 && (size_t)length < sizeof(text));
    sha256_checksum(text, (size_t)length, sum);
    memcpy(uuid, sum, 16);
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x80);
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

/* Whether a dash stands in front of byte i of a UUID's text. */
static bool dash_before(size_t i)
{
    return i == 4 || i == 6 || i == 8 || i == 10;
}

void verity_uuid_format(const uint8_t uuid[static 16], char text[static VERITY_UUID_TEXT_SIZE])
{
    for (size_t i = 0; i < 16; i++) {
        if (dash_before(i))
            *text++ = '-';
        hex_encode(&uuid[i], 1, text);
        text += 2;
    }
}

int verity_uuid_parse(const char *text, uint8_t uuid[static 16], struct error *err)
{
    const char *p = text;
    uint8_t bytes[16];
    size_t length;

    for (size_t i = 0; i < 16; i++) {
        if (dash_before(i) && *p++ != '-')
            goto invalid;
        if (!isxdigit((unsigned char)p[0]) || !isxdigit((unsigned char)p[1]))
            goto invalid;
        if (hex_decode((char[]){p[0], p[1], '\0'}, "UUID", &bytes[i], 1, &length, NULL) < 0)
            goto invalid;
        p += 2;
    }
    if (*p != '\0')
        goto invalid;
    memcpy(uuid, bytes, sizeof(bytes));
    return 0;
invalid:
    return error_set(err, EINVAL,
                     "--uuid '%s': not of the form 01234567-89ab-cdef-0123-456789abcdef", text);
}

bool verity_same_tree(const struct verity_params *a, const struct verity_params *b)
{
    return strcmp(a->hash_name, b->hash_name) == 0 && a->hash_type == b->hash_type &&
           a->data_block_size == b->data_block_size && a->hash_block_size == b->hash_block_size &&
           a->data_blocks == b->data_blocks && a->salt_size == b->salt_size &&
           memcmp(a->salt, b->salt, a->salt_size) == 0;
}
