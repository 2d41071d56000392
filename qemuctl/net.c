/* SPDX-License-Identifier: MIT */
#include "qemuctl/net.h"

#include <arpa/inet.h>
#include <string.h>

#include "common/units.h"

static int parse_port(const char *text, const char *forward, uint16_t *ret, struct error *err)
{
    uint64_t value;

    if (parse_u64(text, "port", &value, err) < 0)
        return error_prefix(err, "'%s'", forward);
    if (value < 1 || value > UINT16_MAX)
        return error_set(err, EINVAL, "'%s': port '%s' is not between 1 and %d", forward, text,
                         UINT16_MAX);
    *ret = (uint16_t)value;
    return 0;
}

int net_forward_parse(const char *text, struct net_forward *ret, struct error *err)
{
    _cleanup_free_ char *copy = strdup(text);
    struct net_forward forward = {.address = NET_ADDRESS_DEFAULT};
    struct in_addr address;
    char *fields[4];
    size_t count = 0;

    if (copy == NULL)
        return error_oom(err);
    char *rest = copy;
    for (char *field; count < 4 && (field = strsep(&rest, ":")) != NULL;)
        fields[count++] = field;
    if (count < 3 || rest != NULL)
        return error_set(err, EINVAL, "'%s' is not tcp:HOST:GUEST or tcp:ADDRESS:HOST:GUEST", text);
    forward.udp = strcmp(fields[0], "udp") == 0;
    if (!forward.udp && strcmp(fields[0], "tcp") != 0)
        return error_set(err, EINVAL, "'%s': '%s' is not tcp or udp", text, fields[0]);
    if (count == 4) {
        if (inet_pton(AF_INET, fields[1], &address) != 1)
            return error_set(err, EINVAL, "'%s': '%s' is not an IPv4 address", text, fields[1]);
        (void)inet_ntop(AF_INET, &address, forward.address, sizeof(forward.address));
    }
    int r = parse_port(fields[count - 2], text, &forward.host, err);
    if (r == 0)
        r = parse_port(fields[count - 1], text, &forward.guest, err);
    if (r < 0)
        return r;
    *ret = forward;
    return 0;
}

bool net_forward_clash(const struct net_forward *a, const struct net_forward *b)
{
    static const char any[] = "0.0.0.0";

    return a->udp == b->udp && a->host == b->host &&
           (strcmp(a->address, b->address) == 0 || strcmp(a->address, any) == 0 ||
            strcmp(b->address, any) == 0);
}

static void add_user(struct argv *argv, const struct net_options *options)
{
    _cleanup_free_ char *netdev = NULL;
    size_t length;

    FILE *out = open_memstream(&netdev, &length);
    if (out == NULL) {
        argv->oom = true;
        return;
    }
    fputs("user,id=vmnic", out);
    for (size_t i = 0; i < options->forward_count; i++) {
        const struct net_forward *forward = &options->forwards[i];
        fprintf(out, ",hostfwd=%s:%s:%u-:%u", forward->udp ? "udp" : "tcp", forward->address,
                forward->host, forward->guest);
    }
    if (fclose(out) != 0) {
        argv->oom = true;
        return;
    }
    argv_add_pair(argv, "-netdev", netdev);
    /* The option ROM is only for booting from the network, and would be one more thing to trust. */
    argv_add_pair(argv, "-device",
                  "virtio-net-pci,disable-legacy=on,iommu_platform=true,netdev=vmnic,romfile=");
}

void net_add(struct argv *argv, const struct net_options *options)
{
    switch (options->kind) {
    case NET_NONE:
        argv_add_pair(argv, "-nic", "none");
        return;
    case NET_QEMU:
        return;
    case NET_USER:
        add_user(argv, options);
        return;
    }
    abort();
}
