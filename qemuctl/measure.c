/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>

#include "qemuctl/measure-internal.h"

/*
 * What VMMs measure, in their order (QEMU's: sev_encrypt_flash(), snp_populate_metadata_pages(),
 * KVM_SEV_SNP_LAUNCH_FINISH; for SEV-ES, KVM_SEV_LAUNCH_UPDATE_VMSA).
 */

/* The guest physical address of a VMSA. No guest memory is there: KVM (INITIAL_VMSA_GPA) takes the
 * last page of the 48 bits that every CPU with SEV-SNP has. */
#define VMSA_GPA UINT64_C(0xfffffffff000)

/* --- Steps that both kinds of digest have --- */

static int report(const struct measure_input *input, const struct measure_step *step,
                  struct error *err)
{
    return input->step != NULL ? input->step(input->arg, step, err) : 0;
}

/* What goes into a digest: `snp` for SEV-SNP, else `sha` (SHA-256 of all). */
struct measure {
    const struct measure_input *input;
    struct snp_digest snp;
    struct sha sha;
};

static void measure_close(struct measure *measure)
{
    snp_digest_close(&measure->snp);
    sha_close(&measure->sha);
}
DEFINE_CLEANUP_INPLACE(struct measure, measure_close);

static bool is_snp(const struct measure *measure)
{
    return measure->input->mode == SEV_MODE_SNP;
}

/* Tells of a step whose bytes have just gone in; `data` is NULL for what has no SHA-256. */
static int report_bytes(struct measure *measure, struct measure_step *step, const uint8_t *data,
                        struct error *err)
{
    if (measure->input->step == NULL)
        return 0;
    step->snp = is_snp(measure);
    if (step->snp)
        memcpy(step->digest, measure->snp.digest, SHA384_SIZE);
    if (data != NULL) {
        int r = sha256_of(data, step->size, step->sha256, err);
        if (r < 0)
            return r;
    }
    return report(measure->input, step, err);
}

static int measure_firmware(struct measure *measure, struct error *err)
{
    const struct ovmf *ovmf = measure->input->ovmf;
    struct measure_step step = {
        .kind = MEASURE_FIRMWARE,
        .gpa = ovmf_gpa(ovmf),
        .size = ovmf_size(ovmf),
        .page_type = is_snp(measure) ? page_type_name(PAGE_TYPE_NORMAL) : NULL,
    };
    int r;

    if (measure->input->ovmf_hash != NULL) {
        memcpy(measure->snp.digest, measure->input->ovmf_hash, SHA384_SIZE);
        step = (struct measure_step){.kind = MEASURE_FIRMWARE_HASH};
        return report_bytes(measure, &step, NULL, err);
    }
    if (is_snp(measure))
        r = snp_digest_add(&measure->snp, PAGE_TYPE_NORMAL, step.gpa, ovmf_data(ovmf), step.size,
                           err);
    else
        r = sha_add(&measure->sha, ovmf_data(ovmf), step.size, err);
    return r < 0 ? r : report_bytes(measure, &step, ovmf_data(ovmf), err);
}

static int measure_vmsa(struct measure *measure, unsigned cpu, const uint8_t *vmsa, uint32_t eip,
                        struct error *err)
{
    struct measure_step step = {
        .kind = MEASURE_VMSA,
        .index = cpu,
        .gpa = is_snp(measure) ? VMSA_GPA : 0,
        .size = VMSA_SIZE,
        .page_type = is_snp(measure) ? page_type_name(PAGE_TYPE_VMSA) : NULL,
        .vmsa = vmsa,
        .eip = eip,
    };
    int r;

    if (is_snp(measure))
        r = snp_digest_add(&measure->snp, PAGE_TYPE_VMSA, VMSA_GPA, vmsa, VMSA_SIZE, err);
    else
        r = sha_add(&measure->sha, vmsa, VMSA_SIZE, err);
    return r < 0 ? r : report_bytes(measure, &step, vmsa, err);
}

static int measure_vmsas(struct measure *measure, struct error *err)
{
    const struct measure_input *input = measure->input;
    uint8_t bsp[VMSA_SIZE], ap[VMSA_SIZE];
    uint32_t ap_eip = 0;

    vmsa_build(input, BSP_EIP, bsp);
    if (ovmf_has_reset_eip(input->ovmf, &ap_eip))
        vmsa_build(input, ap_eip, ap);
    for (unsigned i = 0; i < input->vcpus; i++) {
        int r = measure_vmsa(measure, i, i == 0 ? bsp : ap, i == 0 ? BSP_EIP : ap_eip, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* --- SEV-SNP's sections --- */

static int section_page_type(const struct measure_input *input, const struct ovmf_section *section,
                             size_t index, enum page_type *ret, struct error *err)
{
    switch (section->type) {
    case OVMF_SECTION_SEC_MEM:
        *ret = input->vmm == SEV_VMM_GCE ? PAGE_TYPE_UNMEASURED : PAGE_TYPE_ZERO;
        return 0;
    case OVMF_SECTION_SECRETS:
        *ret = PAGE_TYPE_SECRETS;
        return 0;
    case OVMF_SECTION_CPUID:
        *ret = PAGE_TYPE_CPUID;
        return 0;
    case OVMF_SECTION_SVSM_CAA:
        *ret = PAGE_TYPE_ZERO;
        return 0;
    case OVMF_SECTION_KERNEL_HASHES:
        *ret = input->kernel != NULL ? PAGE_TYPE_NORMAL : PAGE_TYPE_ZERO;
        return 0;
    default:
        return error_set(err, EINVAL,
                         "%s: SEV metadata section %zu (0x%x bytes at address 0x%x) is of type "
                         "0x%x: not known how that is measured",
                         ovmf_name(input->ovmf), index, section->size, section->gpa, section->type);
    }
}

/* The table lies in the page where the firmware looks for it, zeros around it. */
static int add_hashes_page(struct measure *measure, const struct ovmf_section *section,
                           struct error *err)
{
    const struct measure_input *input = measure->input;
    uint8_t page[PAGE_SIZE] = {0};
    uint32_t gpa = section->gpa;

    (void)ovmf_has_hashes_table(input->ovmf, &gpa);
    kernel_hashes_table(input->kernel, page + (gpa - section->gpa));
    return snp_digest_add(&measure->snp, PAGE_TYPE_NORMAL, section->gpa, page, PAGE_SIZE, err);
}

static int measure_section(struct measure *measure, size_t index, struct error *err)
{
    const struct ovmf_section *section = ovmf_section(measure->input->ovmf, index);
    enum page_type type;

    int r = section_page_type(measure->input, section, index, &type, err);
    if (r < 0)
        return r;
    struct measure_step step = {
        .kind = MEASURE_SECTION,
        .index = (unsigned)index,
        .gpa = section->gpa,
        .size = section->size,
        .type = section->type,
        .page_type = page_type_name(type),
    };
    if (type == PAGE_TYPE_NORMAL)
        r = add_hashes_page(measure, section, err);
    else
        r = snp_digest_add_empty(&measure->snp, type, section->gpa, section->size, err);
    return r < 0 ? r : report_bytes(measure, &step, NULL, err);
}

static int measure_sections(struct measure *measure, struct error *err)
{
    const struct ovmf *ovmf = measure->input->ovmf;
    /* EC2 puts the CPUID page in when all others are. */
    const bool cpuid_last = measure->input->vmm == SEV_VMM_EC2;

    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < ovmf_section_count(ovmf); i++) {
            bool last = cpuid_last && ovmf_section(ovmf, i)->type == OVMF_SECTION_CPUID;
            if (last != (pass == 1))
                continue;
            int r = measure_section(measure, i, err);
            if (r < 0)
                return r;
        }
    return 0;
}

/* SEV and SEV-ES encrypt, and so measure, no more than the table. */
static int measure_hashes_table(struct measure *measure, struct error *err)
{
    const struct measure_input *input = measure->input;
    uint8_t table[HASHES_TABLE_SIZE];
    uint32_t gpa = 0;

    if (input->kernel == NULL)
        return 0;
    (void)ovmf_has_hashes_table(input->ovmf, &gpa);
    struct measure_step step = {.kind = MEASURE_KERNEL_HASHES, .gpa = gpa, .size = sizeof(table)};
    kernel_hashes_table(input->kernel, table);
    int r = sha_add(&measure->sha, table, sizeof(table), err);
    return r < 0 ? r : report_bytes(measure, &step, table, err);
}

/* --- All of it --- */

static int check_input(const struct measure_input *input, struct error *err)
{
    unsigned vcpus = input->mode == SEV_MODE_SEV ? 1 : input->vcpus;

    if (vcpus < 1 || vcpus > MEASURE_VCPUS_MAX)
        return error_set(err, EINVAL, "%u vCPUs are not between 1 and %d", vcpus,
                         MEASURE_VCPUS_MAX);
    if (input->ovmf_hash != NULL && input->mode != SEV_MODE_SNP)
        return error_set(err, EINVAL, "a hash in place of the firmware is for SEV-SNP only");
    return measure_check_firmware(input->ovmf, input->mode, input->kernel != NULL, vcpus, err);
}

static int measure_all(struct measure *measure, struct error *err)
{
    const enum sev_mode mode = measure->input->mode;

    int r = measure_firmware(measure, err);
    if (r == 0)
        r = mode == SEV_MODE_SNP ? measure_sections(measure, err)
                                 : measure_hashes_table(measure, err);
    if (r == 0 && mode != SEV_MODE_SEV)
        r = measure_vmsas(measure, err);
    return r;
}

int measure_launch(const struct measure_input *input, struct launch_digest *ret, struct error *err)
{
    _cleanup_(measure_close_cleanup) struct measure measure = {.input = input};
    struct launch_digest digest = {.size = SHA256_SIZE};

    int r = check_input(input, err);
    if (r < 0)
        return r;
    if (input->mode == SEV_MODE_SNP) {
        r = snp_digest_open(&measure.snp, err);
    } else {
        r = sha_open(&measure.sha, "SHA256", err);
        if (r == 0)
            r = sha_begin(&measure.sha, err);
    }
    if (r == 0)
        r = measure_all(&measure, err);
    if (r < 0)
        return r;
    if (input->mode == SEV_MODE_SNP) {
        digest.size = SHA384_SIZE;
        memcpy(digest.bytes, measure.snp.digest, SHA384_SIZE);
    } else {
        r = sha_end(&measure.sha, digest.bytes, err);
        if (r < 0)
            return r;
    }
    *ret = digest;
    return 0;
}

int ovmf_snp_hash(const struct ovmf *ovmf, uint8_t hash[static LAUNCH_DIGEST_MAX],
                  struct error *err)
{
    _cleanup_snp_digest_ struct snp_digest snp = SNP_DIGEST_INIT;

    int r = snp_digest_open(&snp, err);
    if (r == 0)
        r = snp_digest_add(&snp, PAGE_TYPE_NORMAL, ovmf_gpa(ovmf), ovmf_data(ovmf), ovmf_size(ovmf),
                           err);
    if (r == 0)
        memcpy(hash, snp.digest, SHA384_SIZE);
    return r;
}
