/* SPDX-License-Identifier: MIT */
/*
 * The system calls that a confined process may make: what reading, hashing and serving take, with
 * threads, and what libc does on its own. All others go to the broker, which makes some of them and
 * refuses the rest: nothing that the next version of a library may do is worth being killed for.
 * clone3, whose flags a filter cannot see, fails with ENOSYS, upon which libc takes clone.
 *
 * A system call that is allowed whatever its arguments costs nothing on kernels since 5.11, which
 * remember that.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/sandbox-internal.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Whatever their arguments. */
static const int allowed[] = {
    /* Bytes of what is open. */
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(readv),
    SCMP_SYS(writev),
    SCMP_SYS(pread64),
    SCMP_SYS(pwrite64),
    SCMP_SYS(preadv),
    SCMP_SYS(pwritev),
    SCMP_SYS(preadv2),
    SCMP_SYS(pwritev2),
    SCMP_SYS(lseek),
    SCMP_SYS(splice),
    SCMP_SYS(vmsplice),
    SCMP_SYS(tee),
    SCMP_SYS(sendfile),
    SCMP_SYS(copy_file_range),
    SCMP_SYS(fallocate),
    SCMP_SYS(ftruncate),
    SCMP_SYS(fsync),
    SCMP_SYS(fdatasync),
    SCMP_SYS(sync_file_range),
    SCMP_SYS(fadvise64),
    SCMP_SYS(readahead),
    SCMP_SYS(getdents64),
    SCMP_SYS(io_uring_enter),
    SCMP_SYS(io_uring_register),

    /* What is open. */
    SCMP_SYS(close),
    SCMP_SYS(close_range),
    SCMP_SYS(dup),
    SCMP_SYS(dup2),
    SCMP_SYS(dup3),
    SCMP_SYS(flock),
    SCMP_SYS(fchmod),
    SCMP_SYS(pipe2),
    SCMP_SYS(eventfd2),
    SCMP_SYS(memfd_create),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(select),
    SCMP_SYS(pselect6),
    SCMP_SYS(recvfrom),
    SCMP_SYS(shutdown),

    /* That there are files, and what they are; but no byte of them. */
    SCMP_SYS(fstat),
    SCMP_SYS(stat),
    SCMP_SYS(lstat),
    SCMP_SYS(newfstatat),
    SCMP_SYS(statx),
    SCMP_SYS(statfs),
    SCMP_SYS(fstatfs),
    SCMP_SYS(access),
    SCMP_SYS(faccessat),
    SCMP_SYS(faccessat2),
    SCMP_SYS(readlink),
    SCMP_SYS(readlinkat),
    SCMP_SYS(getcwd),
    SCMP_SYS(chdir),
    SCMP_SYS(umask),

    /* Memory; mapping has rules of its own below. */
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(mincore),
    SCMP_SYS(msync),
    SCMP_SYS(mlock),
    SCMP_SYS(mlock2),
    SCMP_SYS(munlock),
    SCMP_SYS(brk),
    SCMP_SYS(membarrier),

    /* Threads, and ourselves. */
    SCMP_SYS(futex),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(get_robust_list),
    SCMP_SYS(rseq),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(sched_setaffinity),
    SCMP_SYS(sched_getparam),
    SCMP_SYS(sched_getscheduler),
    SCMP_SYS(getcpu),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(getpid),
    SCMP_SYS(getppid),
    SCMP_SYS(gettid),
    SCMP_SYS(getuid),
    SCMP_SYS(geteuid),
    SCMP_SYS(getgid),
    SCMP_SYS(getegid),
    SCMP_SYS(getpgrp),
    SCMP_SYS(getpgid),
    SCMP_SYS(getsid),
    SCMP_SYS(setsid),
    SCMP_SYS(getrlimit),
    SCMP_SYS(getrusage),
    SCMP_SYS(sysinfo),
    SCMP_SYS(uname),
    SCMP_SYS(wait4),
    SCMP_SYS(waitid),

    /* Signals to ourselves, time, chance. */
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigpending),
    SCMP_SYS(rt_sigsuspend),
    SCMP_SYS(rt_sigtimedwait),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(pause),
    SCMP_SYS(alarm),
    SCMP_SYS(setitimer),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(nanosleep),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_getres),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(time),
    SCMP_SYS(getrandom),
};

/* On terminals, block devices, regular files, and /dev/fuse. */
static const unsigned ioctls[] = {
    TCGETS, TIOCGWINSZ, FIONREAD, FIOCLEX, FUSE_DEV_IOC_CLONE, 0x80081272 /* BLKGETSIZE64 */,
};

/* None that makes the kernel send signals, as F_SETOWN and F_SETSIG do. */
static const unsigned fcntls[] = {
    F_DUPFD,      F_DUPFD_CLOEXEC, F_GETFD,     F_SETFD,     F_GETFL,     F_SETFL,
    F_GETLK,      F_SETLK,         F_SETLKW,    F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW,
    F_GETPIPE_SZ, F_SETPIPE_SZ,    F_ADD_SEALS, F_GET_SEALS,
};

static const unsigned prctls[] = {PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_SET_PDEATHSIG,
                                  PR_CAPBSET_READ};

/* Where the low half of argument `n` is one of `values`. */
static int allow_values(scmp_filter_ctx filter, int call, unsigned n, const unsigned *values,
                        size_t count)
{
    int r = 0;

    for (size_t i = 0; i < count && r == 0; i++)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 1,
                             SCMP_CMP(n, SCMP_CMP_MASKED_EQ, UINT32_MAX, values[i]));
    return r;
}

static int add_rules(scmp_filter_ctx filter)
{
    const struct {
        int call;
        struct scmp_arg_cmp condition;
    } conditional[] = {
        /* What is code now is all the code there will be. */
        {SCMP_SYS(mmap), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)},
        {SCMP_SYS(mprotect), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)},
        /* Threads, and no processes. */
        {SCMP_SYS(clone), SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD)},
        {SCMP_SYS(tgkill), SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid(), 0)},
        {SCMP_SYS(kill), SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid(), 0)},
        /* To whom the socket is connected, and nobody else. */
        {SCMP_SYS(sendto), SCMP_A4(SCMP_CMP_EQ, 0, 0)},
        /* To read limits, not to set them. */
        {SCMP_SYS(prlimit64), SCMP_A2(SCMP_CMP_EQ, 0, 0)},
    };
    int r = 0;

    for (size_t i = 0; i < COUNT(allowed) && r == 0; i++)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    for (size_t i = 0; i < COUNT(conditional) && r == 0; i++)
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, conditional[i].call, 1,
                             conditional[i].condition);
    if (r == 0)
        r = allow_values(filter, SCMP_SYS(ioctl), 1, ioctls, COUNT(ioctls));
    if (r == 0)
        r = allow_values(filter, SCMP_SYS(fcntl), 1, fcntls, COUNT(fcntls));
    if (r == 0)
        r = allow_values(filter, SCMP_SYS(prctl), 0, prctls, COUNT(prctls));
    if (r == 0)
        r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    return r;
}

/* What libseccomp writes to a file. */
static int read_program(int fd, struct sock_fprog *ret)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return -errno;
    size_t size = (size_t)st.st_size, count = size / sizeof(struct sock_filter);
    if (count == 0 || count > BPF_MAXINSNS || size % sizeof(struct sock_filter) != 0)
        return -EPROTO;
    _cleanup_free_ struct sock_filter *instructions = malloc(size);
    if (instructions == NULL)
        return -ENOMEM;
    ssize_t n = pread(fd, instructions, size, 0);
    if (n != (ssize_t)size)
        return n < 0 ? -errno : -EPROTO;
    *ret = (struct sock_fprog){.len = (unsigned short)count, .filter = TAKE_PTR(instructions)};
    return 0;
}

int sandbox_make_filter(struct sock_fprog *ret)
{
    _cleanup_close_ int fd = memfd_create("filter", MFD_CLOEXEC);
    scmp_filter_ctx filter;

    if (fd < 0)
        return -errno;
    filter = seccomp_init(SCMP_ACT_NOTIFY);
    if (filter == NULL)
        return -ENOMEM;
    /* A binary tree instead of a list, for kernels that remember nothing. */
    (void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    int r = add_rules(filter);
    if (r == 0)
        r = seccomp_export_bpf(filter, fd);
    seccomp_release(filter);
    return r == 0 ? read_program(fd, ret) : r;
}

int sandbox_load_filter(const struct sock_fprog *filter, int *ret)
{
    int fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
                          filter);

    if (fd < 0)
        return -errno;
    *ret = fd;
    return 0;
}
