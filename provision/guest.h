/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/internal.h"
#include "qemuctl/machine.h"

/*
 * A guest that a build runs: a QEMU on the build's image, its console in the step's folder, and SSH
 * into it.
 *
 * Nothing runs beside the build: every function here that waits looks after QEMU meanwhile, takes
 * what the console says, and ends with an error that says so once the guest has ended, its kernel
 * has panicked, or the build is interrupted. QEMU dies with this process.
 */
struct guest;

struct guest_options {
    const char *image; /* qcow2, written to */
    uint64_t memory;   /* bytes */
    unsigned cpus;
    struct machine_firmware firmware;
    const char *kernel, *initrd, *append; /* each or NULL */
    const char *cdrom;                    /* or NULL */
    const char *seed;                     /* a raw image that is the second disk; or NULL */
    bool ssh;            /* a port of this machine leads to the guest's SSH; else it
                          * has QEMU's default network, where we are 10.0.2.2 */
    const char *failure; /* an expression: a line of the console that matches means
                          * that it failed; or NULL */
};

/* Starts it. *ret is freed with guest_free(), which kills a QEMU that still runs. */
int guest_start(struct build *build, const struct guest_options *options, struct guest **ret,
                struct error *err);
void guest_free(struct guest *guest);
DEFINE_CLEANUP(struct guest, guest_free);

/* QEMU's process id: whose connections are the guest's. */
pid_t guest_pid(const struct guest *guest);

/* What the waiting functions do meanwhile; `fd` is -1 if nothing is to be polled. */
typedef int guest_meanwhile(void *arg, struct error *err);
/* A descriptor to poll while waiting, and what to do when it is readable. */
void guest_watch(struct guest *guest, int fd, guest_meanwhile *take, void *arg);

/* Waits until the guest has powered off by itself. `seconds`: no longer; 0: for any time. */
int guest_await_end(struct guest *guest, uint64_t seconds, struct error *err);

/* Waits until SSH answers with the build's host key, and logs in as `user`, who must be root or may
 * become root with sudo without a password. */
int guest_connect(struct guest *guest, const char *user, uint64_t seconds, struct error *err);

/* --- Once it is connected --- */

struct guest_command {
    char *const *argv;        /* ended by NULL */
    char *const *environment; /* more variables, "NAME=VALUE"; or NULL */
    int input;                /* stdin, read from where it stands; -1: none */
    uint64_t timeout;         /* seconds; 0: none */
    int (*output)(const void *bytes, size_t length, bool is_stderr, void *arg, struct error *err);
    void *arg;
};

/* Runs a program as root. *ret_status as process_run() has it. */
int guest_run(struct guest *guest, const struct guest_command *command, int *ret_status,
              struct error *err);

/* From now on the guest writes to a new overlay at `path`, of the image it has. */
int guest_change_disk(struct guest *guest, const char *path, struct error *err);

/* Makes all that was written in the guest durable on its disk. */
int guest_sync(struct build *build, struct error *err);

/* Has the guest power off, and waits for that. */
int guest_shutdown(struct guest *guest, uint64_t seconds, struct error *err);
