/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/guest.h"
#include "provision/keys.h"

/* An SSH session with a guest, by libssh, without ever blocking: `wait` is called where there is
 * nothing to do but to wait. */
struct ssh;

struct ssh_options {
    unsigned port; /* of 127.0.0.1 */
    const char *user;
    const struct keys *keys;
    /* Returns when the descriptor may have something (POLLIN, POLLOUT), or a little later; an error
     * ends what is under way. */
    int (*wait)(void *arg, int fd, short events, struct error *err);
    void *arg;
};

/* *ret is freed with ssh_close(). -EAGAIN: nothing answers yet. -EACCES: something answers that
 * does not have the host key, or does not let us in. */
int ssh_open(const struct ssh_options *options, struct ssh **ret, struct error *err);
void ssh_close(struct ssh *ssh);
DEFINE_CLEANUP(struct ssh, ssh_close);

/* Runs a program as root; the command's timeout is not looked at. */
int ssh_run(struct ssh *ssh, const struct guest_command *command, int *ret_status,
            struct error *err);
