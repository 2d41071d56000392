/* SPDX-License-Identifier: MIT */
/*
 * A hole in the parser of compressed data, to be preloaded: the first time that something is
 * inflated, code of an attacker runs in its place. It tries what such code would, and tells on
 * standard error how that went; then all goes on as if nothing had happened.
 * tests/functional/sandbox.sh runs it.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <libdeflate.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void tell(const char *what, long result)
{
    if (result >= 0)
        dprintf(STDERR_FILENO, "hole: %s: done\n", what);
    else
        dprintf(STDERR_FILENO, "hole: %s: refused: %s\n", what, strerror(errno));
}

static void try_files(void)
{
    int fd;

    tell("read /etc/passwd", open("/etc/passwd", O_RDONLY | O_CLOEXEC));
    tell("read it by another name", open("/proc/self/root/etc/passwd", O_RDONLY | O_CLOEXEC));
    tell("read it by the old system call", syscall(SYS_open, "/etc/passwd", O_RDONLY));
    tell("list a directory", open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    tell("read a file beside the image", open("victim", O_RDONLY | O_CLOEXEC));
    tell("write to it", open("victim", O_WRONLY | O_CLOEXEC));
    tell("truncate it", truncate("victim", 0));
    tell("change its mode", chmod("victim", 0777));
    tell("create a file", open("evil", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    tell("create a directory", mkdir("evil-directory", 0700));
    tell("create a link", symlink("/etc/passwd", "evil-link"));
    tell("rename a file", rename("victim", "evil-name"));
    tell("remove a file", unlink("victim"));
    /* What tree files are made of: a file without a name, for which there are only certain ones. */
    fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0) {
        char name[64];

        snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
        tell("name a file", linkat(AT_FDCWD, name, AT_FDCWD, "evil-tmpfile", AT_SYMLINK_FOLLOW));
    }
}

static void try_processes(void)
{
    static char *const argv[] = {(char *)"true", NULL};
    struct iovec local = {&(char){0}, 1}, remote = {(void *)0x400000, 1};
    char path[64];

    /* Of a program that is not there, so that this one goes on. */
    errno = 0;
    int r = execve("/nonexistent/program", argv, NULL);
    tell("run a program", errno == ENOENT ? 0 : r);
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    tell("fork", child);
    if (child > 0)
        waitpid(child, NULL, 0);
    tell("signal another process", kill(getppid(), 0));
    /* Whatever is at that address. */
    r = (int)process_vm_readv(getppid(), &local, 1, &remote, 1, 0);
    tell("read another process", r < 0 && errno == EFAULT ? 0 : r);
    snprintf(path, sizeof(path), "/proc/%d/environ", (int)getppid());
    tell("read its environment", open(path, O_RDONLY | O_CLOEXEC));
    tell("trace", ptrace(PTRACE_SEIZE, getppid(), 0, 0));
    tell("make a user namespace", unshare(CLONE_NEWUSER));
}

static void try_network(void)
{
    struct sockaddr_un unix_address = {.sun_family = AF_UNIX, .sun_path = "socket"};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(1)};
    int fd;

    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    tell("make a Unix socket", fd);
    if (fd >= 0)
        tell("connect it", connect(fd, (struct sockaddr *)&unix_address, sizeof(unix_address)));
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    tell("make a TCP socket", fd);
    if (fd >= 0) {
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int r = connect(fd, (struct sockaddr *)&address, sizeof(address));
        tell("connect it", r < 0 && errno == ECONNREFUSED ? 0 : r);
    }
}

static void try_kernel(void)
{
    char parameters[120] = {0};
    void *p;

    tell("set up io_uring", syscall(SYS_io_uring_setup, 1, parameters));
    tell("mount", mount("none", "/nonexistent", "tmpfs", 0, NULL) < 0 && errno == ENOENT ? 0 : -1);
    tell("unmount", umount2("/nonexistent", 0) < 0 && errno == ENOENT ? 0 : -1);
    p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    tell("make code", p == MAP_FAILED ? -1 : 0);
    p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    tell("make memory code", mprotect(p, 4096, PROT_READ | PROT_EXEC));
    tell("become another user", setuid(65534));
}

typedef enum libdeflate_result (*decompress_fn)(struct libdeflate_decompressor *, const void *,
                                                size_t, void *, size_t, size_t *, size_t *);

enum libdeflate_result libdeflate_deflate_decompress_ex(struct libdeflate_decompressor *d,
                                                        const void *in, size_t in_size, void *out,
                                                        size_t out_size, size_t *used, size_t *made)
{
    static decompress_fn real;
    static atomic_flag tried = ATOMIC_FLAG_INIT;

    if (real == NULL)
        real = (decompress_fn)dlsym(RTLD_NEXT, "libdeflate_deflate_decompress_ex");
    if (!atomic_flag_test_and_set(&tried)) {
        try_files();
        try_processes();
        try_network();
        try_kernel();
        dprintf(STDERR_FILENO, "hole: end\n");
    }
    return real(d, in, in_size, out, out_size, used, made);
}
