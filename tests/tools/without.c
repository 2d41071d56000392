/* SPDX-License-Identifier: MIT */
/*
 * Runs a command that a system call is refused to, as a container's seccomp filter does, or a
 * kernel that does not have it:
 *
 *     without-uring COMMAND [ARGUMENT…]
 *     without-fsopen COMMAND [ARGUMENT…]
 *     without-landlock COMMAND [ARGUMENT…]
 *     without-notifications COMMAND [ARGUMENT…]      filters whose calls are handed to somebody
 *     without-seccomp COMMAND [ARGUMENT…]            seccomp(2), but not what prctl(2) does of it
 *     without-threads COMMAND [ARGUMENT…]            clone3(2), by which the C library starts them
 *
 * SYSCALL is refused with ERRNO where the second of its arguments, flags, has any bit of FLAGS;
 * without FLAGS, always.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef ERRNO
#define ERRNO EPERM
#endif
#ifdef FLAGS
/* The half of 32 bits that has them, on machines whose numbers begin with their low byte. */
#define TEST                                                                    \
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])), \
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, FLAGS, 0, 1)
enum { TEST_LENGTH = 2 };
#else
#define TEST BPF_STMT(BPF_LD | BPF_W | BPF_IMM, 0)
enum { TEST_LENGTH = 1 };
#endif

int main(int argc, char **argv)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYSCALL, 0, TEST_LENGTH + 1),
        TEST,
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ERRNO),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};

    if (argc < 2) {
        fprintf(stderr, "usage: %s COMMAND [ARGUMENT…]\n", argv[0]);
        return 2;
    }
    /* Without no_new_privs where we may: setuid helpers (fusermount3) must keep working. */
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0 &&
        (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)) {
        fprintf(stderr, "%s: cannot install the filter: %s\n", argv[0], strerror(errno));
        return 1;
    }
    execvp(argv[1], argv + 1);
    fprintf(stderr, "%s: %s: %s\n", argv[0], argv[1], strerror(errno));
    return 127;
}
