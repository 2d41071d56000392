/* SPDX-License-Identifier: MIT */
/*
 * Runs a command and kills it in front of a system call that changes names or files, or that waits
 * for a program it has started: the Nth of these. The command's own process is meant, with its
 * threads; of what it starts, nothing is counted.
 *
 *     kill-at N COMMAND [ARGUMENT…]
 *
 * exits with 137 if it was killed, else as the command does; its last line on stderr tells the
 * number of calls. With N = 0 it only counts.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static bool counts(const struct __ptrace_syscall_info *info)
{
    const uint64_t *args = info->entry.args;

    /* Not pwrite(): a file system that is being made is written by very many that are all alike. */
    switch (info->entry.nr) {
    case SYS_openat:
        return (args[2] & (O_CREAT | O_TRUNC)) != 0;
    case SYS_write:
        return args[0] > STDERR_FILENO;
#ifdef SYS_open /* not where the kernel is newer than these */
    case SYS_open:
        return (args[1] & (O_CREAT | O_TRUNC)) != 0;
    case SYS_mkdir:
    case SYS_rmdir:
    case SYS_unlink:
    case SYS_rename:
    case SYS_link:
    case SYS_poll:
#endif
    case SYS_mkdirat:
    case SYS_unlinkat:
    case SYS_renameat2:
    case SYS_linkat:
    case SYS_ppoll:
    case SYS_ftruncate:
    case SYS_fchmod:
    case SYS_fsync:
    case SYS_syncfs:
    case SYS_exit_group:
        return true;
    default:
        return false;
    }
}

static _Noreturn void run(char **argv)
{
    if (ptrace(PTRACE_TRACEME, 0, 0, 0) < 0 || raise(SIGSTOP) != 0)
        _exit(126);
    execvp(argv[0], argv);
    fprintf(stderr, "kill-at: %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

int main(int argc, char **argv)
{
    const unsigned long at = argc > 2 ? strtoul(argv[1], NULL, 10) : 0;
    unsigned long count = 0;
    int status;

    if (argc < 3) {
        fprintf(stderr, "usage: %s N COMMAND [ARGUMENT…]\n", argv[0]);
        return 2;
    }
    const pid_t pid = fork();
    if (pid == 0)
        run(argv + 2);
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status) ||
        ptrace(PTRACE_SETOPTIONS, pid, 0,
               PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC |
                   PTRACE_O_EXITKILL) < 0 ||
        ptrace(PTRACE_SYSCALL, pid, 0, 0) < 0) {
        fprintf(stderr, "kill-at: cannot trace: %s\n", strerror(errno));
        return 126;
    }
    for (;;) {
        struct __ptrace_syscall_info info;
        int signal = 0;

        const pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0)
            return 126;
        if (!WIFSTOPPED(status)) {
            if (thread != pid)
                continue;
            break;
        }
        if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
            if (ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof(info), &info) > 0 &&
                info.op == PTRACE_SYSCALL_INFO_ENTRY && counts(&info) && ++count == at)
                (void)kill(pid, SIGKILL);
        } else if (status >> 16 == 0 && WSTOPSIG(status) != SIGSTOP) {
            signal = WSTOPSIG(status);
        }
        (void)ptrace(PTRACE_SYSCALL, thread, 0, signal);
    }
    fprintf(stderr, "%lu calls\n", count);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
