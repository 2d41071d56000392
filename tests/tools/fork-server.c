/* SPDX-License-Identifier: MIT */
/*
 * Starts a program once and lets it run many times. Preloaded, and with FORK_SERVER naming the
 * descriptor of a socket (SOCK_SEQPACKET), it stays at the point where all libraries are there and
 * initialized, a sanitizer's runtime too, and nothing of the program itself has run. Each request
 * is a fork of that; the fork goes on into the program. For programs of which it takes longer to
 * start them than to run them. tests/fuzz/differential.py uses it.
 *
 *     request   three descriptors (SCM_RIGHTS), which become 0, 1 and 2, and in the packet a number
 *               of 32 bits, after how many milliseconds the program is killed, and its arguments,
 *               argv[0] included, each with a null byte at its end
 *     answer    struct answer, when the program has ended
 *
 * One request at a time. The program is killed as well if the socket is closed meanwhile, and then
 * the server ends.
 */
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ARGUMENTS_MAX = 64, PACKET_MAX = 16 << 10 };

struct request {
    int fds[3];
    uint32_t milliseconds;
    int argc;
    char *argv[ARGUMENTS_MAX + 1]; /* in `packet` */
    char packet[PACKET_MAX];
};

struct answer {
    int32_t status; /* of wait() */
    uint32_t timed_out;
    uint64_t cpu;    /* microseconds */
    uint64_t memory; /* KiB at most */
};

typedef int main_function(int, char **, char **);
typedef int start_function(main_function *, int, char **, main_function *, void (*)(void),
                           void (*)(void), void *);

/* Called by a program's first instructions; glibc's own calls main(). No header has it. */
int __libc_start_main(main_function *function, int argc, char **argv, main_function *init,
                      void (*fini)(void), void (*rtld_fini)(void), void *stack_end);

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "fork-server: %s: %s\n", what, strerror(errno));
    _exit(127);
}

/* Whether there is one. */
static bool receive(int socket, struct request *request)
{
    union {
        char bytes[CMSG_SPACE(sizeof(request->fds))];
        struct cmsghdr align;
    } control;
    struct iovec parts[] = {{&request->milliseconds, sizeof(request->milliseconds)},
                            {request->packet, sizeof(request->packet)}};
    struct msghdr message = {.msg_iov = parts,
                             .msg_iovlen = 2,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};

    ssize_t n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (n == 0 || (n < 0 && errno == ECONNRESET))
        return false;
    const struct cmsghdr *header = n < 0 ? NULL : CMSG_FIRSTHDR(&message);
    errno = n < 0 ? errno : EPROTO;
    if (header == NULL || header->cmsg_len != CMSG_LEN(sizeof(request->fds)) ||
        (size_t)n <= sizeof(request->milliseconds) ||
        (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
        die("request");
    memcpy(request->fds, CMSG_DATA(header), sizeof(request->fds));
    char *end = request->packet + ((size_t)n - sizeof(request->milliseconds));
    if (end[-1] != '\0')
        die("request");
    request->argc = 0;
    for (char *word = request->packet; word < end; word += strlen(word) + 1) {
        if (request->argc == ARGUMENTS_MAX)
            die("request");
        request->argv[request->argc++] = word;
    }
    request->argv[request->argc] = NULL;
    return true;
}

/* Waits until the child ends, or its time does, or nobody waits any more. */
static void answer(int socket, pid_t child, uint32_t milliseconds)
{
    struct answer answer = {0};
    struct rusage usage;
    int pidfd = (int)syscall(SYS_pidfd_open, child, 0);
    struct pollfd polled[] = {{.fd = pidfd, .events = POLLIN}, {.fd = socket, .events = POLLIN}};

    if (pidfd < 0)
        die("pidfd_open");
    /* Whatever comes on the socket now is that it is closed. */
    int r = poll(polled, 2, (int)milliseconds);
    if (r < 0)
        die("poll");
    if (polled[0].revents == 0) {
        answer.timed_out = r == 0;
        (void)kill(child, SIGKILL);
    }
    (void)close(pidfd);
    if (wait4(child, &answer.status, 0, &usage) != child)
        die("wait4");
    answer.cpu = (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
                 (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    answer.memory = (uint64_t)usage.ru_maxrss;
    if (send(socket, &answer, sizeof(answer), MSG_NOSIGNAL) != (ssize_t)sizeof(answer))
        _exit(0);
}

/* Returns in the child, with what it shall run. */
static void serve(int socket, struct request *request)
{
    while (receive(socket, request)) {
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (child == 0) {
            (void)close(socket);
            /* Numbers above 2: the server has 0 to 2. */
            for (int i = 0; i < 3; i++)
                if (dup2(request->fds[i], i) < 0)
                    die("dup2");
            for (int i = 0; i < 3; i++)
                (void)close(request->fds[i]);
            return;
        }
        for (int i = 0; i < 3; i++)
            (void)close(request->fds[i]);
        answer(socket, child, request->milliseconds);
    }
    _exit(0);
}

__attribute__((visibility("default"))) int
__libc_start_main(main_function *function, int argc, char **argv, main_function *init,
                  void (*fini)(void), void (*rtld_fini)(void), void *stack_end)
{
    static struct request request;
    start_function *start = (start_function *)dlsym(RTLD_NEXT, "__libc_start_main");
    const char *number = getenv("FORK_SERVER");

    if (start == NULL)
        die("__libc_start_main");
    if (number != NULL) {
        int socket = atoi(number);

        /* What the program starts is started as ever. */
        (void)unsetenv("FORK_SERVER");
        (void)unsetenv("LD_PRELOAD");
        serve(socket, &request);
        argc = request.argc;
        argv = request.argv;
    }
    return start(function, argc, argv, init, fini, rtld_fini, stack_end);
}
