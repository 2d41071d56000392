/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>

#include "common/error.h"
#include "qemuctl/sev.h"

/* What a QEMU can do, asked of that QEMU. */

struct qemu_capabilities {
    unsigned major, minor, micro;
    bool sev_guest;     /* -object sev-guest: SEV and SEV-ES */
    bool sev_snp_guest; /* -object sev-snp-guest */
    bool memfd_private; /* -object memory-backend-memfd-private, of AMD's fork */
};

/*
 * Runs `program` (found as execvp() does) without a machine and asks it over QMP. The answer is
 * kept in $XDG_CACHE_HOME/qverity (~/.cache/qverity) and believed as long as the program's file is
 * the same by path, inode, size and times, if nobody else could have written it. Only an ELF file's
 * answer is kept: what a script runs may change without it. Takes up to 10 seconds.
 */
int qemu_capabilities_get(const char *program, struct qemu_capabilities *ret, struct error *err);

/* The same, without looking into the cache or keeping anything. */
int qemu_capabilities_ask(const char *program, struct qemu_capabilities *ret, struct error *err);

/*
 * Which dialect of SEV-SNP a QEMU speaks. -ENOTSUP if it has none; the message names `program`, its
 * version, and which versions have it.
 */
int qemu_snp_dialect(const char *program, const struct qemu_capabilities *capabilities,
                     enum snp_dialect *ret, struct error *err);

/* -ENOTSUP, likewise, if it cannot start a guest of this mode in this dialect. */
int qemu_check_sev(const char *program, const struct qemu_capabilities *capabilities,
                   enum sev_mode mode, enum snp_dialect dialect, struct error *err);

/*
 * Has `program` look whether the host can start encrypted guests (QMP's query-sev-capabilities,
 * under KVM); -ENOTSUP with its reason if not. Never kept: a setting of the BIOS or a reloaded
 * module changes it. *ret_cbitpos is as sev_host_cbitpos() has it.
 */
int qemu_sev_host(const char *program, unsigned *ret_cbitpos, struct error *err);
