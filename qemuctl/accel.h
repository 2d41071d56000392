/* SPDX-License-Identifier: MIT */
#pragma once

#include "common/error.h"

/*
 * Which accelerator a guest gets.
 *
 * /dev/kvm can be there, answer every ioctl, and still not run a guest: under a hypervisor whose
 * KVM interprets kernel code (PVM without virtualization hardware) or that loses interrupts, a
 * guest's kernel hangs or needs hours to boot. So nothing but a guest that has run counts.
 */
enum accel { ACCEL_KVM, ACCEL_TCG };

/* "kvm", "tcg": as QEMU names them. */
const char *accel_name(enum accel accel);

/*
 * Runs a tiny guest on KVM: real mode, protected mode, long mode with paging, a loop of
 * many turns in ring 0, a timer interrupt that wakes it from hlt. Returns 0 if it got through all
 * of that within 2 seconds, else a negative errno value with the reason in `err`:
 * -ENOENT (no /dev/kvm), -EACCES, -ETIMEDOUT with how far it got, -EIO, -EOPNOTSUPP (not x86-64).
 *
 * The guest runs in a child process. Returns in time whatever that does: a child that not even
 * SIGKILL ends is left behind. Nothing is cached, a probe takes milliseconds where KVM works. Call
 * it from a process that has no other threads.
 */
int accel_probe_kvm(struct error *err);
