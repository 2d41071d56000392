/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/disk.h"
#include "provision/guest.h"
#include "provision/internal.h"

/* All kinds of steps; each is in step-NAME.c, and stands in the table of steps.c. */
extern const struct step_type step_boot, step_cloud, step_copy, step_iso, step_debs, step_fetch,
    step_hash, step_initramfs, step_manifest, step_mmdebstrap, step_run, step_seal, step_service,
    step_shutdown;

/* In the folder of `install: cloud-image`: what the first boot has as second disk. */
#define SEED_NAME "seed.iso"

/* What steps that run a guest say of its machine: the keys are those of MACHINE_FIELDS(). */
struct step_machine {
    char *ovmf, *code, *vars; /* files, or NULL */
    uint64_t memory, cpus;    /* bytes, number */
};

#define MACHINE_MIB (UINT64_C(1024) * 1024)
/* Of a structure that has a struct step_machine as its `member`. */
/* clang-format off */
#define MACHINE_FIELDS(structure, member, memory_size)                                            \
    {.name = "ovmf", .type = FIELD_FILE, .offset = offsetof(structure, member.ovmf)},             \
    {.name = "ovmf-code", .type = FIELD_FILE, .offset = offsetof(structure, member.code)},        \
    {.name = "ovmf-vars", .type = FIELD_FILE, .offset = offsetof(structure, member.vars)},        \
    {.name = "memory", .type = FIELD_SIZE, .offset = offsetof(structure, member.memory),          \
     .initial = (memory_size), .minimum = 16 * MACHINE_MIB},                                      \
    {.name = "cpus", .type = FIELD_COUNT, .offset = offsetof(structure, member.cpus),             \
     .initial = 2, .minimum = 1, .maximum = 4096}
/* clang-format on */

/* Checks what the table cannot say. */
void machine_check(struct checker *checker, const struct step *step,
                   const struct step_machine *machine);

/* Copies it to what a guest is started with. */
void machine_apply(const struct step_machine *machine, struct guest_options *guest);

/* Whether a fetch step brings a file of this name into the work directory. */
bool recipe_fetches(const struct recipe *recipe, const char *name);

/* Whether a step behind makes the initramfs before anything is booted, so that the kernel's package
 * need not: then it is installed with INITRD_NO in its environment. Never in a guest. */
bool initramfs_follows(const struct recipe *recipe, const struct step *step);
#define INITRD_NO "INITRD=No"

/* USER or USER:GROUP, names or numbers. */
bool owner_is_good(const char *owner);
