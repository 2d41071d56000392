/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "common/error.h"

/*
 * The launch digest of a confidential guest: what the AMD secure processor measures before the
 * guest's first instruction, computed from the files and numbers that the guest is made of.
 *
 *   SEV-SNP  SHA-384 chained over PAGE_INFO structures, one for each 4 KiB page that the VMM puts
 *            in ("SEV Secure Nested Paging Firmware ABI Specification", publication 56860,
 *            SNP_LAUNCH_UPDATE): the firmware's pages, the pages that the firmware's SEV metadata
 *            asks for, and a VMSA (initial registers) for each vCPU.
 *   SEV-ES   SHA-256 over firmware, table of kernel hashes, and VMSAs ("Secure Encrypted
 *            Virtualization API", publication 55766, LAUNCH_UPDATE_DATA and LAUNCH_UPDATE_VMSA).
 *   SEV      SHA-256 over firmware and table of kernel hashes.
 *
 * The order in which a VMM does this is no specification's; it is QEMU's (target/i386/sev.c), with
 * the differences of EC2's and GCE's VMMs.
 */

#define LAUNCH_DIGEST_MAX 48
#define VMSA_SIZE 4096
#define MEASURE_VCPUS_MAX 4096 /* KVM's limit on x86, and that of QEMU's q35 */

/* --- Firmware --- */

/*
 * An OVMF image: the bytes of an .fd file, which a VMM maps so that they end at 4 GiB, with what
 * its table of GUIDs (edk2, OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm) tells a VMM.
 */
struct ovmf;

/* What the firmware wants to find in a range of its memory: edk2's
 * OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm. */
enum ovmf_section_type {
    OVMF_SECTION_SEC_MEM = 0x1,        /* memory that is used before the firmware can accept any */
    OVMF_SECTION_SECRETS = 0x2,        /* the secrets page, filled by the secure processor */
    OVMF_SECTION_CPUID = 0x3,          /* the CPUID page, likewise */
    OVMF_SECTION_SVSM_CAA = 0x4,       /* calling area of an SVSM */
    OVMF_SECTION_KERNEL_HASHES = 0x10, /* the page that the table of kernel hashes is in */
};

struct ovmf_section {
    uint32_t gpa;  /* guest physical address, a multiple of 4096 */
    uint32_t size; /* bytes, a multiple of 4096, not 0; sections do not overlap */
    uint32_t type; /* enum ovmf_section_type, or one that is not known here */
};

/*
 * Reads an OVMF image of at most 16 MiB (QEMU's limit). An image without a table, or without SEV
 * metadata in it, is fine; a damaged table is -EINVAL, and the message tells the field and where
 * in the file it is. ovmf_new() copies `data`; `name` is for messages.
 */
int ovmf_load(const char *path, struct ovmf **ret, struct error *err);
int ovmf_new(const char *name, const void *data, size_t size, struct ovmf **ret, struct error *err);
void ovmf_free(struct ovmf *ovmf);
DEFINE_CLEANUP(struct ovmf, ovmf_free);
#define _cleanup_ovmf_ _cleanup_(ovmf_free_cleanup)

const char *ovmf_name(const struct ovmf *ovmf);
uint64_t ovmf_size(const struct ovmf *ovmf); /* bytes */
uint64_t ovmf_gpa(const struct ovmf *ovmf);  /* where it begins in the guest: 4 GiB - size */

/* Whether it has SEV metadata: it was built for SEV-SNP. */
bool ovmf_has_metadata(const struct ovmf *ovmf);
/* Its sections, in the order that they are measured in; pointers are valid as long as `ovmf`. */
size_t ovmf_section_count(const struct ovmf *ovmf);
const struct ovmf_section *ovmf_section(const struct ovmf *ovmf, size_t index);
/* "SNP_SEC_MEM", "CPUID", …: edk2's names; "unknown" for others. */
const char *ovmf_section_type_name(uint32_t type);

/* Whether it looks for hashes of kernel, initrd and command line in a table that the VMM measures:
 * what SEV and SEV-ES need for a kernel. *ret_gpa, which may be NULL, is where. */
bool ovmf_has_hashes_table(const struct ovmf *ovmf, uint32_t *ret_gpa);
/* Whether the page of that table is among its sections: what SEV-SNP needs besides. */
bool ovmf_has_hashes_section(const struct ovmf *ovmf);
/* Whether it tells where vCPUs other than the first begin; *ret_eip may be NULL. */
bool ovmf_has_reset_eip(const struct ovmf *ovmf, uint32_t *ret_eip);

/* The launch digest of the firmware's pages alone, with which that of SEV-SNP begins:
 * sev-snp-measure's snp:ovmf-hash. */
int ovmf_snp_hash(const struct ovmf *ovmf, uint8_t hash[static LAUNCH_DIGEST_MAX],
                  struct error *err);

/* SHA-256 of the file. */
int ovmf_sha256(const struct ovmf *ovmf, uint8_t hash[static 32], struct error *err);

/* --- Kernel --- */

/* SHA-256 each, as QEMU puts them into the table for the firmware. */
struct kernel_hashes {
    uint8_t kernel[32];
    uint8_t initrd[32];  /* of no bytes if there is none */
    uint8_t cmdline[32]; /* with its NUL */
};

/* Hashes the files; `initrd` and `append` may be NULL. Each file may have up to 4 GiB. */
int kernel_hashes_from_files(const char *kernel, const char *initrd, const char *append,
                             struct kernel_hashes *ret, struct error *err);

/* The same of files that are open, from their start on if they have one; `initrd` may be -1. The
 * names are for messages. */
int kernel_hashes_from_fds(int kernel, const char *kernel_name, int initrd, const char *initrd_name,
                           const char *append, struct kernel_hashes *ret, struct error *err);

/* --- vCPUs --- */

/* CPUID Fn0000_0001_EAX for a family (up to 0x10e), model (up to 0xff) and stepping (up to 0xf):
 * APM vol. 3, appendix E.3.2. It is in RDX when an x86 CPU comes out of reset. */
int vcpu_signature(uint64_t family, uint64_t model, uint64_t stepping, uint32_t *ret,
                   struct error *err);

/* The signature of one of QEMU's EPYC models ("EPYC-v4"; as in QEMU, case matters). -ENOENT, with
 * a message that tells all names, for any other. */
int vcpu_type_signature(const char *type, uint32_t *ret, struct error *err);

/* The names, in QEMU's order; NULL behind the last. */
const char *vcpu_type_name(size_t index);

/* --- The digest --- */

enum sev_mode { SEV_MODE_SEV, SEV_MODE_SEV_ES, SEV_MODE_SNP };

enum sev_vmm {
    SEV_VMM_QEMU,
    SEV_VMM_EC2, /* Amazon's; without kernel hashes in practice */
    SEV_VMM_GCE, /* Google's */
};

/* SEV_FEATURES of a VMSA (APM vol. 2, appendix B) that a VMM may turn on. */
#define SEV_FEATURE_SNP UINT64_C(0x1)
#define SEV_FEATURE_DEBUG_SWAP UINT64_C(0x20)

/* One thing that went into a digest, for reports. */
struct measure_step {
    enum measure_step_kind {
        MEASURE_FIRMWARE,      /* all of the firmware; not when its hash was given */
        MEASURE_FIRMWARE_HASH, /* the hash that was given in its place */
        MEASURE_KERNEL_HASHES, /* SEV and SEV-ES: the table alone */
        MEASURE_SECTION,       /* SEV-SNP: a section of the firmware's metadata */
        MEASURE_VMSA,
    } kind;
    unsigned index;        /* SECTION: which; VMSA: of which vCPU */
    uint64_t gpa;          /* FIRMWARE, SECTION */
    uint64_t size;         /* bytes */
    uint32_t type;         /* SECTION */
    const char *page_type; /* SEV-SNP: PAGE_TYPE that it is measured as: "NORMAL", … */
    const uint8_t *vmsa;   /* VMSA: its VMSA_SIZE bytes; valid during the call */
    uint32_t eip;          /* VMSA: where the vCPU begins */
    uint8_t sha256[32];    /* of the bytes; not of SECTIONs */
    bool snp;              /* whether this is SEV-SNP: */
    uint8_t digest[LAUNCH_DIGEST_MAX]; /* the launch digest so far */
};

struct measure_input {
    enum sev_mode mode;
    enum sev_vmm vmm;
    const struct ovmf *ovmf;
    const uint8_t *ovmf_hash; /* SEV-SNP: LAUNCH_DIGEST_MAX bytes in place of ovmf_snp_hash(ovmf),
                               * whose metadata alone is used then; or NULL */
    const struct kernel_hashes
        *kernel;             /* NULL: none is given to the VMM, or without kernel-hashes */
    unsigned vcpus;          /* 1 to MEASURE_VCPUS_MAX; not for SEV */
    uint32_t vcpu_signature; /* QEMU */
    uint64_t guest_features; /* SEV_FEATURES of the VMSAs; not for SEV. As they are: 1 is
                              * what KVM has for SEV-SNP, 0 for SEV-ES */

    /* NULL, or called for each step, in order. What it returns, if negative, ends the work. */
    int (*step)(void *arg, const struct measure_step *step, struct error *err);
    void *arg;
};

struct launch_digest {
    uint8_t bytes[LAUNCH_DIGEST_MAX];
    size_t size; /* 48 for SEV-SNP, 32 for SEV and SEV-ES */
};

/* Computes the launch digest. -EINVAL if the firmware lacks what the mode needs (see
 * measure_check_firmware()) or a number is out of its range. */
int measure_launch(const struct measure_input *input, struct launch_digest *ret, struct error *err);

/* --- Before a launch --- */

/*
 * Whether a guest of this mode can start with this firmware: for SEV-SNP it must have SEV
 * metadata, and a section for kernel hashes if there is a kernel; for SEV and SEV-ES with a kernel
 * a table of hashes; for SEV-ES and SEV-SNP with several vCPUs a reset address. -EINVAL tells
 * which is missing and which build of edk2 has it.
 */
int measure_check_firmware(const struct ovmf *ovmf, enum sev_mode mode, bool kernel, unsigned vcpus,
                           struct error *err);

/*
 * Whether what is attested stands for the disk: the root hash (`size` bytes) is in the measured
 * command line `append` (hex, a word of its own; NULL: there is none) or is the guest's host data
 * (32 bytes, or NULL: none). -EINVAL if it is in neither.
 */
int measure_check_root_hash(const uint8_t *root, size_t size, const char *append,
                            const uint8_t *host_data, struct error *err);
