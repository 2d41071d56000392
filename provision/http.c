/* SPDX-License-Identifier: MIT */
#include "provision/http.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "common/units.h"

#define TOKEN_BYTES 16
#define CONNECTIONS_MAX 16
#define IDLE_SECONDS 30

struct http {
    struct MHD_Daemon *daemon;
    const struct http_file *files;
    size_t count;
    unsigned port;
    char path[2 * TOKEN_BYTES + 3];
    _Atomic int pid;
    _Atomic unsigned served, refused;
};

/* --- Whose connection it is --- */

/* The inode of the socket at the other end, as /proc/net/tcp has it; 0 if it is not there. */
static uint64_t peer_inode(const struct http *http, const struct sockaddr_in *peer)
{
    _cleanup_fclose_ FILE *file = fopen("/proc/self/net/tcp", "re");
    char line[512];

    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        unsigned local_address, local_port, remote_address, remote_port;
        uint64_t inode;
        if (sscanf(line, " %*u: %8X:%4X %8X:%4X %*X %*X:%*X %*X:%*X %*X %*u %*u %" SCNu64,
                   &local_address, &local_port, &remote_address, &remote_port, &inode) == 5 &&
            local_address == peer->sin_addr.s_addr && local_port == ntohs(peer->sin_port) &&
            remote_port == http->port)
            return inode;
    }
    return 0;
}

static bool has_socket(pid_t pid, uint64_t inode)
{
    char directory[48], wanted[48], target[64];
    bool found = false;

    snprintf(directory, sizeof(directory), "/proc/%d/fd", (int)pid);
    snprintf(wanted, sizeof(wanted), "socket:[%" PRIu64 "]", inode);
    DIR *stream = opendir(directory);
    if (stream == NULL)
        return false;
    for (const struct dirent *entry; !found && (entry = readdir(stream)) != NULL;) {
        ssize_t n = readlinkat(dirfd(stream), entry->d_name, target, sizeof(target) - 1);
        if (n > 0) {
            target[n] = '\0';
            found = strcmp(target, wanted) == 0;
        }
    }
    closedir(stream);
    return found;
}

static bool is_allowed(struct http *http, struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const pid_t pid = atomic_load(&http->pid);

    if (info == NULL || info->client_addr->sa_family != AF_INET || pid <= 0)
        return false;
    const uint64_t inode = peer_inode(http, (const struct sockaddr_in *)info->client_addr);
    return inode != 0 && has_socket(pid, inode);
}

/* --- Answers --- */

static enum MHD_Result answer(struct MHD_Connection *connection, unsigned status, const char *text,
                              size_t length)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(length, (void *)text, MHD_RESPMEM_PERSISTENT);

    if (response == NULL)
        return MHD_NO;
    enum MHD_Result result = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_size, void **context)
{
    static const char nothing[] = "no such file\n";
    struct http *http = arg;
    const size_t prefix = strlen(http->path);

    (void)version;
    (void)upload;
    (void)upload_size;
    (void)context;
    if (!is_allowed(http, connection)) {
        atomic_fetch_add(&http->refused, 1);
        return MHD_NO; /* the connection is closed without a word */
    }
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return answer(connection, MHD_HTTP_METHOD_NOT_ALLOWED, nothing, sizeof(nothing) - 1);
    for (size_t i = 0; strncmp(url, http->path, prefix) == 0 && i < http->count; i++) {
        /* cloud-init adds a slash of its own to the address. */
        if (strcmp(url + prefix + strspn(url + prefix, "/"), http->files[i].name) != 0)
            continue;
        atomic_fetch_add(&http->served, 1);
        return answer(connection, MHD_HTTP_OK, http->files[i].text, http->files[i].length);
    }
    return answer(connection, MHD_HTTP_NOT_FOUND, nothing, sizeof(nothing) - 1);
}

/* --- Life --- */

static int listen_somewhere(struct http *http, int *ret, struct error *err)
{
    _cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(fd, CONNECTIONS_MAX) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        return error_set_errno(err, errno, "no port for the guest's HTTP server");
    http->port = ntohs(address.sin_port);
    *ret = take_fd(&fd);
    return 0;
}

int http_start(const struct http_file *files, size_t count, struct http **ret, struct error *err)
{
    _cleanup_(http_stop_cleanup) struct http *http = calloc(1, sizeof(*http));
    uint8_t token[TOKEN_BYTES];
    _cleanup_close_ int fd = -1;

    if (http == NULL)
        return error_oom(err);
    http->files = files;
    http->count = count;
    if (getrandom(token, sizeof(token), 0) != sizeof(token))
        return error_set_errno(err, errno, "getrandom");
    http->path[0] = '/';
    hex_encode(token, sizeof(token), http->path + 1);
    strcat(http->path, "/");
    int r = listen_somewhere(http, &fd, err);
    if (r < 0)
        return r;
    /* It takes the socket, and closes it even if it then does not start. */
    http->daemon =
        MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL, 0, NULL, NULL, on_request,
                         http, MHD_OPTION_LISTEN_SOCKET, take_fd(&fd), MHD_OPTION_CONNECTION_LIMIT,
                         (unsigned)CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT,
                         (unsigned)IDLE_SECONDS, MHD_OPTION_END);
    if (http->daemon == NULL)
        return error_set(err, EIO, "the guest's HTTP server does not start");
    *ret = TAKE_PTR(http);
    return 0;
}

void http_stop(struct http *http)
{
    if (http->daemon != NULL)
        MHD_stop_daemon(http->daemon);
    free(http);
}

unsigned http_port(const struct http *http)
{
    return http->port;
}

const char *http_path(const struct http *http)
{
    return http->path;
}

void http_allow(struct http *http, pid_t pid)
{
    atomic_store(&http->pid, (int)pid);
}

void http_counts(struct http *http, unsigned *ret_served, unsigned *ret_refused)
{
    *ret_served = atomic_load(&http->served);
    *ret_refused = atomic_load(&http->refused);
}
