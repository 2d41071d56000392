/* SPDX-License-Identifier: MIT */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "qemuctl/argv.h"

/* A guest's network card. */

enum net_kind {
    NET_NONE,
    NET_QEMU, /* QEMU's own default: a card of its choice on user-mode networking */
    NET_USER, /* a virtio card on user-mode networking, and ports that are forwarded to it */
};

/* Connections to a port of the host that go to one of the guest. */
struct net_forward {
    bool udp;
    char address[INET_ADDRSTRLEN]; /* of the host, to listen on */
    uint16_t host, guest;          /* ports */
};

struct net_options {
    enum net_kind kind;
    const struct net_forward *forwards; /* with NET_USER only */
    size_t forward_count;
};

/* Listens where only the host itself gets in. */
#define NET_ADDRESS_DEFAULT "127.0.0.1"

/* "tcp:HOST:GUEST" or "tcp:ADDRESS:HOST:GUEST", udp as well; ports are decimal, the address is
 * IPv4. -EINVAL names what is wrong. */
int net_forward_parse(const char *text, struct net_forward *ret, struct error *err);

/* Whether one host could not listen for both. */
bool net_forward_clash(const struct net_forward *a, const struct net_forward *b);

/* Adds QEMU's arguments. */
void net_add(struct argv *argv, const struct net_options *options);
