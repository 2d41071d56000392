/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "common/error.h"
#include "qemuctl/measure.h"

/*
 * The ID block of a SEV-SNP guest and what authenticates it: with both, the secure processor starts
 * a guest only if its launch digest is the expected one, and the guest's attestation reports tell
 * whose keys signed that ("SEV Secure Nested Paging Firmware ABI Specification", publication 56860,
 * SNP_LAUNCH_FINISH: "Structure of the ID Block" and "ID Authentication Information Structure").
 */
#define ID_BLOCK_SIZE 96
#define ID_AUTH_SIZE 4096
#define ID_KEY_DIGEST_SIZE 48

/* The guest policy that has nothing but the bit that must be set, and SMT allowed. */
#define SNP_POLICY_DEFAULT UINT64_C(0x30000)

/* A private key: ECDSA on the curve P-384, which is all that the specification knows. */
struct id_key;

/* Reads a key, PEM or DER, that is not encrypted. -EINVAL: it is another kind of key. */
int id_key_load(const char *path, struct id_key **ret, struct error *err);
void id_key_free(struct id_key *key);
DEFINE_CLEANUP(struct id_key, id_key_free);
#define _cleanup_id_key_ _cleanup_(id_key_free_cleanup)

/* SHA-384 of the public key in the secure processor's format: ID_KEY_DIGEST or AUTHOR_KEY_DIGEST of
 * attestation reports. */
int id_key_digest(const struct id_key *key, uint8_t digest[static ID_KEY_DIGEST_SIZE],
                  struct error *err);

struct id_block {
    const struct launch_digest *digest;  /* of SEV-SNP */
    uint8_t family_id[16], image_id[16]; /* of the guest's owner; the processor only reports them */
    uint32_t guest_svn;
    uint64_t policy; /* that the guest is started with */
};

/*
 * Makes the block, and its authentication by `key`; `author`, which may be NULL, signs `key`'s
 * public part. Signatures are different each time. Without an author, QEMU's author-key-enabled
 * must be off.
 */
int id_block_make(const struct id_block *block, const struct id_key *key,
                  const struct id_key *author, uint8_t id_block[static ID_BLOCK_SIZE],
                  uint8_t id_auth[static ID_AUTH_SIZE], struct error *err);

/*
 * Whether the secure processor will start a guest with this digest and policy, given the block and
 * its authentication: -EINVAL if they are for another one, -EBADMSG if a signature does not hold.
 * Without a digest (NULL) only the rest is checked.
 */
int id_block_check(const uint8_t id_block[static ID_BLOCK_SIZE],
                   const uint8_t id_auth[static ID_AUTH_SIZE], const struct launch_digest *digest,
                   uint64_t policy, struct error *err);

struct id_block_file {
    const char *path;
    const uint8_t *bytes;
    size_t size; /* bytes */
};
#define ID_BLOCK_FILES_MAX 2

/*
 * Writes files, ID_BLOCK_FILES_MAX at most, as QEMU takes them: a line of Base64. All or none: if
 * one cannot be opened, the others stay as they were, and if one cannot be written, none holds
 * anything, for they are of no use without each other.
 */
int id_block_write(const struct id_block_file *files, size_t count, struct error *err);

/* Reads such a file of exactly `size` bytes, or one that holds the bytes themselves. */
int id_block_read(const char *path, size_t size, uint8_t *ret, struct error *err);

/* Whether the authentication holds an author's key, as QEMU's author-key-enabled has to say. */
bool id_auth_has_author(const uint8_t id_auth[static ID_AUTH_SIZE]);
