/* SPDX-License-Identifier: MIT */
#include "cli/notify.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"

int notify_open(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *name = getenv("NOTIFY_SOCKET");
    _cleanup_close_ int fd = -1;

    if (name == NULL || (name[0] != '/' && name[0] != '@') || name[1] == '\0')
        return -1;
    size_t length = strlen(name);
    if (length >= sizeof(address.sun_path)) {
        log_warning("$NOTIFY_SOCKET: longer than a socket's name can be");
        return -1;
    }
    memcpy(address.sun_path, name, length);
    if (name[0] == '@') /* in the abstract namespace, whose names end with their length */
        address.sun_path[0] = '\0';
    socklen_t size =
        (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (name[0] == '/' ? 1 : 0));
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, size) < 0) {
        log_warning("$NOTIFY_SOCKET (%s): %s", name, strerror(errno));
        return -1;
    }
    return take_fd(&fd);
}

void notify_send(int fd, const char *state)
{
    if (fd >= 0 && send(fd, state, strlen(state), MSG_NOSIGNAL) < 0)
        log_debug("$NOTIFY_SOCKET: %s", strerror(errno));
}
