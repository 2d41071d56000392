/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/disk.h"
#include "provision/internal.h"

/* All kinds of steps; each is in step-NAME.c, and stands in the table of steps.c. */
extern const struct step_type step_boot, step_cloud, step_copy, step_iso, step_debs, step_fetch,
    step_hash, step_initramfs, step_manifest, step_mmdebstrap, step_run, step_seal, step_service,
    step_shutdown;

/* In the folder of `install: cloud-image`: what the first boot has as second disk. */
#define SEED_NAME "seed.iso"

/* What the step `boot` says. */
struct boot_step {
    char *kernel; /* "new": the newest one of the image; else a file; NULL: the disk boots */
    char *initrd, *append, *ovmf, *code, *vars, *user;
    uint64_t memory, cpus, timeout;
};

/* USER or USER:GROUP, names or numbers. */
bool owner_is_good(const char *owner);
