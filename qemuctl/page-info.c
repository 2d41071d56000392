/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <string.h>

#include "qemuctl/measure-internal.h"

/*
 * SEV-SNP's launch digest. For each page that is put into the guest the secure processor fills a
 * PAGE_INFO structure, whose first field is the digest so far, and takes the structure's SHA-384
 * for the new digest (publication 56860, SNP_LAUNCH_UPDATE, "Layout of the PAGE_INFO Structure"):
 *
 *     00h  DIGEST_CUR  the digest so far; zeros at first
 *     30h  CONTENTS    SHA-384 of the page for NORMAL and VMSA, else zeros
 *     60h  LENGTH      70h, that of this structure
 *     62h  PAGE_TYPE
 *     63h  bit 0: IMI_PAGE, part of an initial migration image
 *     64h  permissions of VMPL 3 to 1; only a VMM that uses VMPLs gives any
 *     68h  GPA
 */
#define PAGE_INFO_SIZE 0x70
#define PAGE_INFO_CONTENTS 0x30
#define PAGE_INFO_LENGTH 0x60
#define PAGE_INFO_TYPE 0x62
#define PAGE_INFO_GPA 0x68

int snp_digest_open(struct snp_digest *snp, struct error *err)
{
    return sha_open(&snp->sha, "SHA384", err);
}

void snp_digest_close(struct snp_digest *snp)
{
    sha_close(&snp->sha);
}

/* `contents` is NULL for zeros. */
static int add_page_info(struct snp_digest *snp, enum page_type type, uint64_t gpa,
                         const uint8_t *contents, struct error *err)
{
    uint8_t info[PAGE_INFO_SIZE] = {0};

    memcpy(info, snp->digest, SHA384_SIZE);
    if (contents != NULL)
        memcpy(info + PAGE_INFO_CONTENTS, contents, SHA384_SIZE);
    put_le16(info + PAGE_INFO_LENGTH, PAGE_INFO_SIZE);
    info[PAGE_INFO_TYPE] = (uint8_t)type;
    put_le64(info + PAGE_INFO_GPA, gpa);
    return sha_of(&snp->sha, info, sizeof(info), snp->digest, err);
}

int snp_digest_add(struct snp_digest *snp, enum page_type type, uint64_t gpa, const uint8_t *data,
                   uint64_t size, struct error *err)
{
    uint8_t contents[SHA384_SIZE];

    assert(type == PAGE_TYPE_NORMAL || type == PAGE_TYPE_VMSA);
    assert(size % PAGE_SIZE == 0);
    for (uint64_t offset = 0; offset < size; offset += PAGE_SIZE) {
        int r = sha_of(&snp->sha, data + offset, PAGE_SIZE, contents, err);
        if (r == 0)
            r = add_page_info(snp, type, gpa + offset, contents, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int snp_digest_add_empty(struct snp_digest *snp, enum page_type type, uint64_t gpa, uint64_t size,
                         struct error *err)
{
    assert(type != PAGE_TYPE_NORMAL && type != PAGE_TYPE_VMSA);
    assert(size % PAGE_SIZE == 0);
    for (uint64_t offset = 0; offset < size; offset += PAGE_SIZE) {
        int r = add_page_info(snp, type, gpa + offset, NULL, err);
        if (r < 0)
            return r;
    }
    return 0;
}

const char *page_type_name(enum page_type type)
{
    static const char *const names[] = {
        [PAGE_TYPE_NORMAL] = "NORMAL",   [PAGE_TYPE_VMSA] = "VMSA",
        [PAGE_TYPE_ZERO] = "ZERO",       [PAGE_TYPE_UNMEASURED] = "UNMEASURED",
        [PAGE_TYPE_SECRETS] = "SECRETS", [PAGE_TYPE_CPUID] = "CPUID",
    };

    return names[type];
}
