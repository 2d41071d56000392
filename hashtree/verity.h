/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/*
 * dm-verity's on-disk format: its parameters, where what lies in a hash device, the superblock, and
 * the device-mapper table. After Documentation/admin-guide/device-mapper/verity.rst of the kernel
 * and what `veritysetup format` of cryptsetup writes, which is equalled byte for byte.
 *
 * Words: the data device is cut into data blocks. Level 0 are the hash blocks that hold the digests
 * of data blocks, level 1 those that hold the digests of level 0's blocks, and so on; the highest
 * level is one block, whose digest is the root hash. With a single data block there is no level and
 * the root hash is that block's digest.
 */
#define VERITY_SALT_MAX 256
#define VERITY_DIGEST_MAX 64
#define VERITY_LEVELS_MAX 63
#define VERITY_SUPERBLOCK_SIZE 512

struct verity_params {
    char hash_name[32];       /* as it was given: OpenSSL takes either case, the kernel lower */
    unsigned hash_type;       /* 1: salt in front, digests padded to a power of two;
                               * 0 (Chrome OS): salt behind, digests packed */
    uint32_t data_block_size; /* bytes, a power of two from 512 to 512 KiB */
    uint32_t hash_block_size; /* bytes, likewise */
    uint64_t data_blocks;
    uint64_t hash_offset; /* bytes: where the superblock (or, without one, the tree) begins; a
                           * multiple of 512 (or, without one, of hash_block_size) */
    uint8_t salt[VERITY_SALT_MAX];
    size_t salt_size;
    bool superblock;
    bool uuid_set;    /* false: the UUID is derived from root hash and parameters */
    uint8_t uuid[16]; /* of the superblock */
};

/* The defaults of the command line: sha256, type 1, 4096, 4096, salt of 32 zero bytes, superblock,
 * derived UUID; data_blocks 0. */
void verity_params_init(struct verity_params *params);

/* Whether trees of equal data would be equal: all that matters but where they lie. */
bool verity_same_tree(const struct verity_params *a, const struct verity_params *b);

struct verity_geometry {
    unsigned levels;
    size_t digest_size;   /* bytes */
    size_t digest_slot;   /* bytes that a digest takes in a hash block */
    unsigned fanout_bits; /* digests in a hash block: 1 << fanout_bits */
    uint32_t hash_block_size;
    uint64_t hash_start; /* hash block where the tree begins: the table line's hash_start_block */
    uint64_t level_start[VERITY_LEVELS_MAX]; /* hash block, counted from the hash device's start */
    uint64_t level_blocks[VERITY_LEVELS_MAX];
    uint64_t device_size; /* bytes of the hash device, up to the end of level 0, or of the hash
                           * block that the superblock is in; 0 if there is neither */
};

/*
 * Checks the parameters and computes the geometry. Errors say which option is at fault, by
 * veritysetup's name for it. The digest must be one that veritysetup takes.
 */
int verity_geometry_init(const struct verity_params *params, struct verity_geometry *ret,
                         struct error *err);

/* The data blocks below hash block `index` of `level`: first and, exclusive, end. */
void verity_geometry_span(const struct verity_geometry *geometry, uint64_t data_blocks,
                          unsigned level, uint64_t index, uint64_t *ret_first, uint64_t *ret_end);

/*
 * The UUID for the superblock when none was given: version 8 of RFC 9562, over a SHA-256 of root
 * hash and parameters (verity.c tells which), so that the same bytes always give the same hash
 * device.
 */
void verity_derive_uuid(const struct verity_params *params, const uint8_t *root, size_t root_size,
                        uint8_t uuid[static 16]);

/* The superblock as libcryptsetup writes it, VERITY_SUPERBLOCK_SIZE bytes; what lies behind it up
 * to the tree are zeros. params->uuid must be set. */
int verity_superblock_format(const struct verity_params *params, uint8_t *superblock,
                             struct error *err);

/* Reads the superblock of the hash device at `path`, byte offset `hash_offset`, through
 * libcryptsetup. Fills *ret whole (salt, block sizes, UUID, …). */
int verity_superblock_load(const char *path, uint64_t hash_offset, struct verity_params *ret,
                           struct error *err);

/*
 * The device-mapper target line for these devices, as in
 * "0 1046369920 verity 1 /dev/sda2 /dev/sdb 4096 4096 130796240 1 sha256 ROOT SALT".
 * `optional` is NULL or the optional arguments with their count ("1 panic_on_corruption").
 * Returns an owned string, NULL when out of memory.
 */
char *verity_table(const struct verity_params *params, const struct verity_geometry *geometry,
                   const uint8_t *root, const char *data_device, const char *hash_device,
                   const char *optional);

/*
 * The table for the guest that `qverity boot` starts, where the disk is hda and the hash device
 * hdb: data on /dev/sdaN for partition N, on /dev/sda for 0, hashes on /dev/sdb, and
 * panic_on_corruption, so that a guest does not go on with data that was tampered with. Returns an
 * owned string, NULL when out of memory.
 */
char *verity_guest_table(const struct verity_params *params, const struct verity_geometry *geometry,
                         const uint8_t *root, unsigned partition);

/* dm-init's `dm-mod.create="dmverity,,0,ro,TABLE"` (Documentation/admin-guide/device-mapper/
 * dm-init.rst). Returns an owned string, NULL when out of memory. */
char *verity_dm_mod_create(const char *table);

/* "12345678-1234-…" and a NUL. */
#define VERITY_UUID_TEXT_SIZE 37
void verity_uuid_format(const uint8_t uuid[static 16], char text[static VERITY_UUID_TEXT_SIZE]);
int verity_uuid_parse(const char *text, uint8_t uuid[static 16], struct error *err);
