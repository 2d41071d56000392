/* SPDX-License-Identifier: MIT */
#pragma once

#include <libssh/libssh.h>

#include "provision/internal.h"
#include "provision/seal.h"

/*
 * The SSH keys of a build: one that lets us into its guests, and the guests' host key, so that what
 * answers is known to be the guest. Both are Ed25519, made for the build, and kept in the work
 * directory, readable by its owner alone, until the image is sealed. They never are on a command
 * line.
 */
struct keys {
    ssh_key client, host;
    char *client_public; /* a line of authorized_keys, without newline */
    char *host_public;   /* as it is in ssh_host_ed25519_key.pub, without newline */
    char *host_private;  /* as it is in ssh_host_ed25519_key */
    /* What must be in no image that is sealed: the keys in all forms that they have in files. */
    struct secret secrets[SEALER_SECRETS_MAX];
    size_t secret_count;
    char *secret_bytes[SEALER_SECRETS_MAX];
};

/* Whether a step of the recipe needs them. */
bool keys_needed(const struct recipe *recipe);

/* Whether they are in the work directory. */
bool keys_exist(const char *work);

/* Makes new keys, in the place of those that are there. For steps that put them into a system. */
int keys_make(struct build *build, struct error *err);

/* The build's keys; -ENOENT if it has none. They belong to the build. */
int keys_get(struct build *build, const struct keys **ret, struct error *err);

void keys_free(struct keys *keys);
DEFINE_CLEANUP(struct keys, keys_free);

/* Removes them from the work directory. */
int keys_forget(struct build *build, struct error *err);
