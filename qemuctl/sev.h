/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "qemuctl/argv.h"
#include "qemuctl/id-block.h"
#include "qemuctl/measure.h"

/* Guests whose memory the CPU encrypts: what QEMU has to be told for them. */

/* QEMU got SEV-SNP in version 9.1. Before that there was AMD's fork of it, which has other names.
 */
enum snp_dialect { SNP_UPSTREAM, SNP_AMD_FORK };

#define SEV_HOST_DATA_SIZE 32

struct sev_options {
    enum sev_mode mode;
    enum snp_dialect dialect;
    unsigned cbitpos;         /* the bit of a guest page table entry that says "encrypted" */
    uint64_t policy;          /* sev_policy_check() knows what it may be */
    bool policy_set;          /* else it is the mode's default, which AMD's fork has by itself */
    bool kernel;              /* there is one: the guest's firmware shall get its hashes */
    const uint8_t *host_data; /* SEV-SNP: SEV_HOST_DATA_SIZE bytes, or NULL */
    const uint8_t *id_block;  /* SEV-SNP: ID_BLOCK_SIZE bytes, or NULL */
    const uint8_t *id_auth;   /* with id_block: ID_AUTH_SIZE bytes */
};

/* "SEV", "SEV-ES", "SEV-SNP". */
const char *sev_mode_name(enum sev_mode mode);

/* The most restrictive policy that any guest can have. */
uint64_t sev_policy_default(enum sev_mode mode);

/* -EINVAL if no guest of the mode can have the policy ("SEV Secure Nested Paging Firmware ABI
 * Specification", publication 56860, "Guest Policy"; "Secure Encrypted Virtualization API",
 * publication 55766, "Guest Policy Structure"). */
int sev_policy_check(enum sev_mode mode, uint64_t policy, struct error *err);

/* The value of the first -machine option. `sev` may be NULL. */
const char *sev_machine(const struct sev_options *sev);

/* Whether firmware in one image must be in flash memory, rather than loaded by -bios. */
bool sev_firmware_in_flash(const struct sev_options *sev);

/* Adds all other arguments; `memory` is in MiB. */
int sev_add(struct argv *argv, const struct sev_options *sev, uint64_t memory, struct error *err);

/* --- The host --- */

/* cbitpos, from CPUID Fn8000_001F_EBX[5:0] (APM vol. 3, appendix E.4.17). False if this CPU has no
 * SEV, or does not let its guest, which we are, know. */
bool sev_host_cbitpos(unsigned *ret);

/* What it is on all EPYC CPUs so far. */
#define SEV_CBITPOS_USUAL 51
