/* SPDX-License-Identifier: MIT */
#include "common/sandbox.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/sandbox-internal.h"
#include "common/sanitized.h"

static bool active;

/* Of a confined process. */
static pid_t broker_pid;
static int broker_socket;

bool sandbox_active(void)
{
    return active;
}

/* --- Landlock --- */

/* Of the kernel's interface up to version 6, which a build machine's headers need not know. */
struct ruleset {
    uint64_t fs;     /* version 1 */
    uint64_t net;    /* 4 */
    uint64_t scoped; /* 6 */
};

/*
 * No right to any file, to TCP, or to abstract sockets and processes of others. Kernels without
 * Landlock leave that to the filter alone. Returns 0 or -errno.
 */
static int enter_landlock(void)
{
    static const unsigned fs_rights[] = {0, 13, 14, 15, 15, 16}; /* of versions 1 to 5 */
    struct ruleset rules = {0};
    size_t size = sizeof(rules.fs);

    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version < 1) {
        log_info("confinement: the kernel has no Landlock: %s",
                 version < 0 ? strerror(errno) : "version 0");
        return 0;
    }
    rules.fs = (UINT64_C(1) << fs_rights[version < 5 ? version : 5]) - 1;
    if (version >= 4) {
        rules.net = 3;
        size = 2 * sizeof(uint64_t);
    }
    if (version >= 6) {
        rules.scoped = 3;
        size = 3 * sizeof(uint64_t);
    }
    _cleanup_close_ int fd = (int)syscall(SYS_landlock_create_ruleset, &rules, size, 0);
    if (fd < 0 || syscall(SYS_landlock_restrict_self, fd, 0) < 0)
        return -errno;
    return 0;
}

/* --- Capabilities --- */

/* All but the one to pin memory, which io_uring's buffers take. */
static int drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    const uint32_t kept = 1u << CAP_IPC_LOCK;

    if (syscall(SYS_capget, &header, data) < 0)
        return -errno;
    /* Up to the last one there is, or none without the right to. */
    for (unsigned long capability = 0; capability <= 63; capability++)
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            break;
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    data[0].effective &= kept;
    data[0].permitted &= kept;
    data[0].inheritable = 0;
    data[1] = (struct __user_cap_data_struct){0};
    return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

/* --- The broker --- */

/* What it tells of a step: 0, or the errno value by which that failed; EPIPE: it has ended. */
static int hear_broker(int socket)
{
    unsigned char byte;

    return recv(socket, &byte, 1, 0) == 1 ? byte : EPIPE;
}

/* Starts it. Returns its process id; *ret_socket is ours. */
static pid_t start_broker(const struct sandbox *sandbox, int *ret_socket, struct error *err)
{
    _cleanup_close_ int ours = -1;
    pid_t worker = getpid();
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return error_set_errno(err, errno, "socketpair");
    ours = fds[0];
    pid_t broker = fork();
    if (broker == 0) {
        (void)close(ours);
        sandbox_broker_run(sandbox, worker, fds[1]);
    }
    int saved_errno = errno;
    (void)close(fds[1]);
    if (broker < 0)
        return error_set_errno(err, saved_errno, "fork");
    /* Where Yama lets only ancestors look into a process. It hears of it when it may. */
    (void)prctl(PR_SET_PTRACER, broker, 0, 0, 0);
    (void)send(ours, "", 1, MSG_NOSIGNAL);
    *ret_socket = take_fd(&ours);
    return broker;
}

/* Waits until it can read our memory. Returns 1, or 0 where nobody may. */
static int await_broker(int socket, struct error *err)
{
    int code = hear_broker(socket);

    /* ENOENT: there is no /proc. */
    if (code == EACCES || code == EPERM || code == ENOENT) {
        log_info("not confined: another process cannot read this one's memory");
        return 0;
    }
    return code != 0 ? error_set_errno(err, code, "confinement: the broker") : 1;
}

/* --- All of it --- */

/* What would be loaded, or opened, when it is first needed. */
static void prepare(const struct sandbox *sandbox)
{
    /* pthread_cancel(), which ends a mount's workers, loads it. It is never unloaded. */
    if (sandbox->mountpoint != NULL)
        (void)dlopen("libgcc_s.so.1", RTLD_NOW);
    /* Local time is told in the system log. */
    tzset();
}

/* From the first step on there is no way back. */
static int confine(int socket, const struct sock_fprog *filter, struct error *err)
{
    _cleanup_close_ int notify = -1;

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return error_set_errno(err, errno, "confinement: no_new_privs");
    int r = enter_landlock();
    if (r < 0)
        return error_set_errno(err, -r, "confinement: Landlock");
    r = drop_capabilities();
    if (r < 0)
        return error_set_errno(err, -r, "confinement: capabilities");
    r = sandbox_load_filter(filter, &notify);
    if (r < 0)
        return error_set_errno(err, -r, "confinement: seccomp");
    int code = send(socket, &notify, sizeof(notify), MSG_NOSIGNAL) == (ssize_t)sizeof(notify)
                   ? hear_broker(socket)
                   : EPIPE;
    if (code != 0)
        return error_set_errno(err, code, "confinement: the broker");
    return 0;
}

/* Whether the kernel knows filters whose calls are handed over, and descriptors in answer. */
static bool kernel_knows(void)
{
    struct utsname name;
    unsigned version, sub;

    /* SECCOMP_ADDFD_FLAG_SEND is there since 5.14. */
    if (uname(&name) < 0 || sscanf(name.release, "%u.%u", &version, &sub) != 2 ||
        (version == 5 && sub < 14) || version < 5)
        return false;
    /* Without a filter, what else would be possible is a bad address. */
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, NULL) <
               0 &&
           errno == EFAULT;
}

static void filter_clear(struct sock_fprog *filter)
{
    free(filter->filter);
}
DEFINE_CLEANUP_INPLACE(struct sock_fprog, filter_clear);

enum { TRIAL_STACK = 256 << 10 }; /* bytes */

struct trial {
    const struct sock_fprog *filter;
    int result; /* 0 or -errno */
};

static void *try_filter(void *arg)
{
    struct trial *trial = arg;
    int notify;

    trial->result = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0
                        ? -errno
                        : sandbox_load_filter(trial->filter, &notify);
    if (trial->result == 0)
        (void)close(notify);
    return NULL;
}

/*
 * Loads the filter in a thread, which it concerns alone, and which ends. There are containers'
 * filters that forbid it, and processes whose calls are handed to somebody already. Returns 1, or 0
 * if it can never be loaded here; -errno if there is too little of something: then to go on without
 * would leave to a limit what is confined.
 */
static int try_in_thread(const struct sock_fprog *filter)
{
    struct trial trial = {.filter = filter};
    pthread_attr_t attributes;
    pthread_t thread;

    if (pthread_attr_init(&attributes) != 0)
        return -ENOMEM;
    (void)pthread_attr_setstacksize(&attributes, TRIAL_STACK);
    int r = pthread_create(&thread, &attributes, try_filter, &trial);
    (void)pthread_attr_destroy(&attributes);
    if (r != 0)
        return -r;
    (void)pthread_join(thread, NULL);
    switch (-trial.result) {
    case 0:
        return 1;
    case EACCES:
    case EBUSY:
    case EINVAL:
    case ENOSYS:
    case EPERM:
        return 0;
    default:
        return trial.result;
    }
}

/* All that can still fail and leave the process as it was. Returns 1, or 0 if it cannot be
 * confined.
 */
static int get_ready(const struct sandbox *sandbox, int socket, struct sock_fprog *filter,
                     struct error *err)
{
    prepare(sandbox);
    if (sandbox->prepare != NULL)
        sandbox->prepare(sandbox->prepare_arg);
    int r = sandbox_make_filter(filter);
    if (r == 0)
        r = try_in_thread(filter);
    if (r < 0)
        return error_set_errno(err, -r, "confinement: seccomp");
    if (r == 0) {
        log_info("not confined: no seccomp notifications here");
        return 0;
    }
    return await_broker(socket, err);
}

int sandbox_enter(const struct sandbox *sandbox, struct error *err)
{
    _cleanup_(filter_clear_cleanup) struct sock_fprog filter = {0};
    _cleanup_close_ int socket = -1;

    if (SANITIZED) {
        log_debug("not confined: built with a sanitizer");
        return 0;
    }
    if (!kernel_knows()) {
        log_info("not confined: no seccomp notifications here");
        return 0;
    }
    pid_t broker = start_broker(sandbox, &socket, err);
    if (broker < 0)
        return (int)broker;
    int r = get_ready(sandbox, socket, &filter, err);
    if (r <= 0) {
        cleanup_close(&socket);
        (void)waitpid(broker, NULL, 0);
        return r;
    }
    r = confine(socket, &filter, err);
    if (r < 0)
        return r;
    /* That it is closed, also when we are killed, tells the broker. */
    broker_socket = take_fd(&socket);
    broker_pid = broker;
    active = true;
    return 1;
}

void sandbox_leave(void)
{
    if (!active)
        return;
    cleanup_close(&broker_socket);
    while (waitpid(broker_pid, NULL, 0) < 0 && errno == EINTR)
        ;
}
