/* SPDX-License-Identifier: MIT */
#include "qemuctl/accel.h"

#include <errno.h>
#include <stdint.h>

#include "qemuctl/accel_guest.h"

const char *accel_name(enum accel accel)
{
    return accel == ACCEL_KVM ? "kvm" : "tcg";
}

#define PROBE_MS 2000

/* A KVM that interprets manages about a million turns a second and would take most of a minute; a
 * CPU needs 20 ms, and TCG less than 500. */
#define PROBE_LOOPS UINT32_C(50000000)

#ifdef __x86_64__

#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "qemuctl/clock.h"

/*
 * The child runs the guest and writes a byte to a pipe for each stage that the guest reports. It is
 * the only one that ever enters KVM_RUN: whatever the kernel does there, the parent waits for the
 * pipe with a time limit and then goes on.
 */

/* The child's errors, behind the last stage on the pipe. */
#define PROBE_FAILED 0x80 /* then a byte: which call; then a byte: errno */

static const char *const probe_calls[] = {
    "KVM_GET_API_VERSION",
    "KVM_CREATE_VM",
    "the guest's memory",
    "KVM_SET_TSS_ADDR",
    "KVM_SET_IDENTITY_MAP_ADDR",
    "KVM_CREATE_IRQCHIP",
    "KVM_CREATE_PIT2",
    "KVM_SET_USER_MEMORY_REGION",
    "KVM_CREATE_VCPU",
    "KVM_GET_SUPPORTED_CPUID",
    "KVM_SET_CPUID2",
    "the vCPU's memory",
    "KVM_GET_SREGS",
    "KVM_SET_SREGS",
    "KVM_SET_REGS",
    "KVM_RUN",
    "the guest stopped in a state that is not its own doing: KVM_RUN",
};

enum probe_call {
    CALL_VERSION,
    CALL_CREATE_VM,
    CALL_GUEST_MEMORY,
    CALL_TSS,
    CALL_IDENTITY_MAP,
    CALL_IRQCHIP,
    CALL_PIT,
    CALL_MEMORY_REGION,
    CALL_CREATE_VCPU,
    CALL_SUPPORTED_CPUID,
    CALL_SET_CPUID,
    CALL_VCPU_MEMORY,
    CALL_GET_SREGS,
    CALL_SET_SREGS,
    CALL_SET_REGS,
    CALL_RUN,
    CALL_EXIT,
};

static _Noreturn void child_fail(int out, enum probe_call call)
{
    const uint8_t report[3] = {PROBE_FAILED, (uint8_t)call, (uint8_t)errno};

    (void)!write(out, report, sizeof(report));
    _exit(1);
}

/* The code, page tables that map the first 2 MiB to itself, and an IDT with the timer's gate. */
static void lay_out_memory(uint8_t *memory, uint32_t loops)
{
    const uint64_t handler = ACCEL_GUEST_CODE + (uint64_t)(accel_guest_timer - accel_guest_start);
    uint64_t *idt = (uint64_t *)(memory + ACCEL_GUEST_IDT);

    memcpy(memory + ACCEL_GUEST_CODE, accel_guest_start,
           (size_t)(accel_guest_end - accel_guest_start));
    *(uint32_t *)(memory + ACCEL_GUEST_LOOPS) = loops;
    *(uint64_t *)(memory + ACCEL_GUEST_PML4) = ACCEL_GUEST_PDPT | 0x3;
    *(uint64_t *)(memory + ACCEL_GUEST_PDPT) = ACCEL_GUEST_PD | 0x3;
    *(uint64_t *)(memory + ACCEL_GUEST_PD) = 0x83;
    /* A 64-bit interrupt gate in code segment 0x18; the handler lies below 64 KiB. */
    idt[2 * ACCEL_GUEST_VECTOR] = handler | UINT64_C(0x18) << 16 | UINT64_C(0x8e00) << 32;
}

#define CPUID_ENTRIES 256

/* The child leaves by _exit(): nothing is freed. */
static int create_vcpu(int kvm, int vm, int out)
{
    struct kvm_cpuid2 *cpuid =
        calloc(1, sizeof(*cpuid) + CPUID_ENTRIES * sizeof(cpuid->entries[0]));
    struct kvm_sregs sregs;
    const struct kvm_regs regs = {.rip = ACCEL_GUEST_CODE, .rflags = 0x2};

    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0UL);
    if (vcpu < 0)
        child_fail(out, CALL_CREATE_VCPU);
    /* Without CPUID there is no long mode. */
    if (cpuid == NULL)
        child_fail(out, CALL_SUPPORTED_CPUID);
    cpuid->nent = CPUID_ENTRIES;
    if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
        child_fail(out, CALL_SUPPORTED_CPUID);
    if (ioctl(vcpu, KVM_SET_CPUID2, cpuid) < 0)
        child_fail(out, CALL_SET_CPUID);
    if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
        child_fail(out, CALL_GET_SREGS);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0)
        child_fail(out, CALL_SET_SREGS);
    if (ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
        child_fail(out, CALL_SET_REGS);
    return vcpu;
}

static _Noreturn void child_run(int kvm, uint32_t loops, int out)
{
    const struct kvm_pit_config pit = {0};
    uint64_t identity_map = UINT64_C(0xfffbc000);

    if (ioctl(kvm, KVM_GET_API_VERSION, 0UL) != KVM_API_VERSION)
        child_fail(out, CALL_VERSION);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0UL);
    if (vm < 0)
        child_fail(out, CALL_CREATE_VM);
    uint8_t *memory =
        mmap(NULL, ACCEL_GUEST_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        child_fail(out, CALL_GUEST_MEMORY);
    lay_out_memory(memory, loops);

    /* Intel CPUs need both to run real mode; anywhere below 4 GiB outside the guest's memory. */
    if (ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) < 0)
        child_fail(out, CALL_IDENTITY_MAP);
    if (ioctl(vm, KVM_SET_TSS_ADDR, (unsigned long)identity_map + 0x1000) < 0)
        child_fail(out, CALL_TSS);
    if (ioctl(vm, KVM_CREATE_IRQCHIP, 0UL) < 0)
        child_fail(out, CALL_IRQCHIP);
    if (ioctl(vm, KVM_CREATE_PIT2, &pit) < 0)
        child_fail(out, CALL_PIT);
    const struct kvm_userspace_memory_region region = {
        .memory_size = ACCEL_GUEST_MEMORY,
        .userspace_addr = (uintptr_t)memory,
    };
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        child_fail(out, CALL_MEMORY_REGION);

    int vcpu = create_vcpu(kvm, vm, out);
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0UL);
    struct kvm_run *run = MAP_FAILED;
    if (size > 0)
        run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED)
        child_fail(out, CALL_VCPU_MEMORY);

    for (;;) {
        if (ioctl(vcpu, KVM_RUN, 0UL) < 0) {
            if (errno == EINTR)
                continue;
            child_fail(out, CALL_RUN);
        }
        if (run->exit_reason != KVM_EXIT_IO || run->io.port != ACCEL_GUEST_PORT) {
            errno = (int)run->exit_reason;
            child_fail(out, CALL_EXIT);
        }
        const uint8_t stage = *((uint8_t *)run + run->io.data_offset);
        (void)!write(out, &stage, 1);
        if (stage == ACCEL_STAGE_DONE)
            _exit(0);
    }
}

static int stage_error(enum accel_stage stage, int limit_ms, struct error *err)
{
    static const char *const stuck[] = {
        [ACCEL_STAGE_NONE] = "did not run a single instruction",
        [ACCEL_STAGE_REAL] = "ran in real mode and did not reach long mode",
        [ACCEL_STAGE_LONG] =
            "reached long mode and is too slow there: the host seems to interpret it",
        [ACCEL_STAGE_LOOP] = "reached long mode and got no timer interrupt",
    };

    return error_set(err, ETIMEDOUT, "/dev/kvm: in %d ms a test guest %s", limit_ms, stuck[stage]);
}

/* Reads the child's reports until it is done or the time is up. */
static int follow(int in, int limit_ms, struct error *err)
{
    const int64_t deadline = clock_ms() + limit_ms;
    enum accel_stage stage = ACCEL_STAGE_NONE;
    uint8_t report[16];
    size_t failed = 0;

    for (;;) {
        const int64_t left = deadline - clock_ms();
        struct pollfd pollfd = {.fd = in, .events = POLLIN};
        if (left <= 0)
            return stage_error(stage, limit_ms, err);
        int n = poll(&pollfd, 1, (int)left);
        if (n < 0 && errno != EINTR)
            return error_set_errno(err, errno, "poll");
        if (n <= 0)
            continue;
        ssize_t length = read(in, report, sizeof(report));
        if (length < 0 && errno == EINTR)
            continue;
        if (length <= 0)
            return error_set(err, EIO, "/dev/kvm: the process that ran a test guest has died");
        for (ssize_t i = 0; i < length; i++) {
            if (report[i] == PROBE_FAILED && length - i >= 3) {
                failed = report[i + 1];
                if (failed == CALL_EXIT)
                    return error_set(err, EIO, "/dev/kvm: a test guest stopped with exit reason %d",
                                     report[i + 2]);
                if (failed < sizeof(probe_calls) / sizeof(probe_calls[0]))
                    return error_set_errno(err, report[i + 2] != 0 ? report[i + 2] : EIO,
                                           "/dev/kvm: %s", probe_calls[failed]);
            }
            if (report[i] > stage && report[i] <= ACCEL_STAGE_DONE)
                stage = report[i];
        }
        if (stage == ACCEL_STAGE_DONE)
            return 0;
    }
}

/* Ends the child without ever waiting for it longer than half a second. */
static void reap(pid_t pid)
{
    const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};

    (void)kill(pid, SIGKILL);
    for (int i = 0; i < 100; i++) {
        if (waitpid(pid, NULL, WNOHANG) != 0)
            return;
        (void)nanosleep(&pause, NULL);
    }
}

int accel_probe_kvm_limits(uint32_t loops, int limit_ms, struct error *err)
{
    _cleanup_close_ int kvm = -1, in = -1, out = -1;
    int pipes[2];

    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0)
        return error_set_errno(err, errno, "/dev/kvm");
    if (pipe2(pipes, O_CLOEXEC) < 0)
        return error_set_errno(err, errno, "pipe");
    in = pipes[0];
    out = pipes[1];

    const pid_t parent = getpid();
    pid_t pid = fork();
    if (pid < 0)
        return error_set_errno(err, errno, "fork");
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        child_run(kvm, loops, out);
    }
    cleanup_close(&out);
    int r = follow(in, limit_ms, err);
    reap(pid);
    return r;
}

#else

int accel_probe_kvm_limits(uint32_t loops, int limit_ms, struct error *err)
{
    (void)loops;
    (void)limit_ms;
    return error_set(err, EOPNOTSUPP, "KVM: the guests are x86-64 and this machine is not");
}

#endif

int accel_probe_kvm(struct error *err)
{
    return accel_probe_kvm_limits(PROBE_LOOPS, PROBE_MS, err);
}
