/* SPDX-License-Identifier: MIT */
#pragma once

#include "common/bytes.h"
#include "qemuctl/measure.h"
#include "qemuctl/sha.h"

/* Private to the files that compute launch digests: ovmf.c, kernel-hashes.c, page-info.c, vmsa.c
 * and measure.c. */

#define PAGE_SIZE UINT32_C(4096)
#define FOUR_GIB (UINT64_C(1) << 32)

/* --- ovmf.c --- */

/* A GUID as it lies in memory: its first three fields are little-endian. */
#define GUID_SIZE 16
struct guid {
    uint8_t bytes[GUID_SIZE];
};
#define GUID(a, b, c, d0, d1, d2, d3, d4, d5, d6, d7)                                        \
    ((struct guid){{(a)&0xff, (a) >> 8 & 0xff, (a) >> 16 & 0xff, (a) >> 24 & 0xff, (b)&0xff, \
                    (b) >> 8 & 0xff, (c)&0xff, (c) >> 8 & 0xff, d0, d1, d2, d3, d4, d5, d6, d7}})

const uint8_t *ovmf_data(const struct ovmf *ovmf);

/* --- kernel-hashes.c --- */

/* QEMU's table with its padding: what SEV and SEV-ES measure, and SEV-SNP in its page. */
#define HASHES_TABLE_SIZE 176
void kernel_hashes_table(const struct kernel_hashes *hashes,
                         uint8_t table[static HASHES_TABLE_SIZE]);

/* --- page-info.c: SEV-SNP's launch digest --- */

/* PAGE_TYPE of SNP_LAUNCH_UPDATE, publication 56860, table "Encodings for the PAGE_TYPE Field". */
enum page_type {
    PAGE_TYPE_NORMAL = 1,
    PAGE_TYPE_VMSA = 2,
    PAGE_TYPE_ZERO = 3,
    PAGE_TYPE_UNMEASURED = 4,
    PAGE_TYPE_SECRETS = 5,
    PAGE_TYPE_CPUID = 6,
};

/* What the secure processor keeps of the pages so far: GCTX.LD. */
struct snp_digest {
    struct sha sha;
    uint8_t digest[SHA384_SIZE]; /* begins as zeros */
};
#define SNP_DIGEST_INIT ((struct snp_digest){0})

int snp_digest_open(struct snp_digest *snp, struct error *err);
void snp_digest_close(struct snp_digest *snp);
DEFINE_CLEANUP_INPLACE(struct snp_digest, snp_digest_close);
#define _cleanup_snp_digest_ _cleanup_(snp_digest_close_cleanup)

/* Adds pages from `gpa` on; `size` is a multiple of PAGE_SIZE. */
int snp_digest_add(struct snp_digest *snp, enum page_type type, uint64_t gpa, const uint8_t *data,
                   uint64_t size, struct error *err);
/* The same for a type whose bytes are not measured. */
int snp_digest_add_empty(struct snp_digest *snp, enum page_type type, uint64_t gpa, uint64_t size,
                         struct error *err);

/* "NORMAL", … */
const char *page_type_name(enum page_type type);

/* --- vmsa.c --- */

/* Where the first vCPU begins: the x86 reset vector. */
#define BSP_EIP UINT32_C(0xfffffff0)

/* The page with the registers that a vCPU starts with at `eip`. */
void vmsa_build(const struct measure_input *input, uint32_t eip, uint8_t vmsa[static VMSA_SIZE]);
