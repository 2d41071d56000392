/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "qemuctl/measure-internal.h"

/*
 * A VMSA: the page that a vCPU's registers are in, encrypted. The offsets are those of APM vol. 2
 * (publication 24593), appendix B, table "VMSA Layout, State Save Area for SEV-ES"; the values are
 * the state of an x86 CPU after reset (APM vol. 2, "Processor Initialization State"), with what KVM
 * sets besides (arch/x86/kvm/svm: EFER.SVME, CR4.MCE) and where VMMs go other ways.
 */
enum {
    VMSA_ES = 0x000,
    VMSA_CS = 0x010,
    VMSA_SS = 0x020,
    VMSA_DS = 0x030,
    VMSA_FS = 0x040,
    VMSA_GS = 0x050,
    VMSA_GDTR = 0x060,
    VMSA_LDTR = 0x070,
    VMSA_IDTR = 0x080,
    VMSA_TR = 0x090,
    VMSA_EFER = 0x0d0,
    VMSA_CR4 = 0x148,
    VMSA_CR0 = 0x158,
    VMSA_DR7 = 0x160,
    VMSA_DR6 = 0x168,
    VMSA_RFLAGS = 0x170,
    VMSA_RIP = 0x178,
    VMSA_G_PAT = 0x268,
    VMSA_RDX = 0x310,
    VMSA_SEV_FEATURES = 0x3b0,
    VMSA_XCR0 = 0x3e8,
    VMSA_MXCSR = 0x408,
    VMSA_X87_FCW = 0x410,
};

/* In segment attributes: present, and no system segment. */
enum {
    SEGMENT_DATA = 0x92,    /* writable */
    SEGMENT_CODE = 0x9a,    /* readable */
    SEGMENT_LDT = 0x82,     /* a system segment */
    SEGMENT_TSS16 = 0x83,   /* a busy 16-bit TSS */
    SEGMENT_TSS = 0x8b,     /* a busy 32-bit or 64-bit TSS */
    SEGMENT_ACCESSED = 0x1, /* of data and code */
};

/* What VMMs set up in different ways. */
struct vmm_state {
    uint16_t cs_attributes, ss_attributes, tr_attributes;
    uint64_t rdx, g_pat;
    uint32_t mxcsr;
    uint16_t x87_fcw;
};

#define PAT_RESET UINT64_C(0x0007040600070406) /* APM vol. 2, "PAT Register" */
#define MXCSR_RESET 0x1f80
#define X87_FCW_RESET 0x37f

static struct vmm_state vmm_state(const struct measure_input *input, uint32_t eip)
{
    struct vmm_state state = {
        .cs_attributes = SEGMENT_CODE | SEGMENT_ACCESSED,
        .ss_attributes = SEGMENT_DATA | SEGMENT_ACCESSED,
        .tr_attributes = SEGMENT_TSS,
        .g_pat = PAT_RESET,
    };

    switch (input->vmm) {
    case SEV_VMM_QEMU:
        /* The FPU's state is in VMSAs since the KVM of Linux 6.10. */
        state.rdx = input->vcpu_signature;
        state.mxcsr = MXCSR_RESET;
        state.x87_fcw = X87_FCW_RESET;
        break;
    case SEV_VMM_EC2:
        /* RDX was 0 on guests that were started before the spring of 2026. */
        if (eip == BSP_EIP)
            state.cs_attributes = SEGMENT_CODE;
        state.ss_attributes = SEGMENT_DATA;
        state.tr_attributes = SEGMENT_TSS16;
        state.rdx = 0x600;
        break;
    case SEV_VMM_GCE:
        /* github.com/google/gce-tcb-verifier, sev/ld_from_ovmf.go. */
        state.g_pat = 0x70106;
        state.rdx = 0x600;
        break;
    }
    return state;
}

static void put_segment(uint8_t *p, uint16_t selector, uint16_t attributes, uint64_t base)
{
    put_le16(p, selector);
    put_le16(p + 2, attributes);
    put_le32(p + 4, 0xffff); /* limit */
    put_le64(p + 8, base);
}

void vmsa_build(const struct measure_input *input, uint32_t eip, uint8_t vmsa[static VMSA_SIZE])
{
    const struct vmm_state state = vmm_state(input, eip);
    const uint16_t data = SEGMENT_DATA | SEGMENT_ACCESSED;

    memset(vmsa, 0, VMSA_SIZE);
    put_segment(vmsa + VMSA_ES, 0, data, 0);
    put_segment(vmsa + VMSA_CS, 0xf000, state.cs_attributes, eip & 0xffff0000);
    put_segment(vmsa + VMSA_SS, 0, state.ss_attributes, 0);
    put_segment(vmsa + VMSA_DS, 0, data, 0);
    put_segment(vmsa + VMSA_FS, 0, data, 0);
    put_segment(vmsa + VMSA_GS, 0, data, 0);
    put_segment(vmsa + VMSA_GDTR, 0, 0, 0);
    put_segment(vmsa + VMSA_LDTR, 0, SEGMENT_LDT, 0);
    put_segment(vmsa + VMSA_IDTR, 0, 0, 0);
    put_segment(vmsa + VMSA_TR, 0, state.tr_attributes, 0);
    put_le64(vmsa + VMSA_EFER, 0x1000); /* SVME */
    put_le64(vmsa + VMSA_CR4, 0x40);    /* MCE */
    put_le64(vmsa + VMSA_CR0, 0x10);    /* ET */
    put_le64(vmsa + VMSA_DR7, 0x400);
    put_le64(vmsa + VMSA_DR6, 0xffff0ff0);
    put_le64(vmsa + VMSA_RFLAGS, 0x2);
    put_le64(vmsa + VMSA_RIP, eip & 0xffff);
    put_le64(vmsa + VMSA_G_PAT, state.g_pat);
    put_le64(vmsa + VMSA_RDX, state.rdx);
    put_le64(vmsa + VMSA_SEV_FEATURES, input->guest_features);
    put_le64(vmsa + VMSA_XCR0, 0x1); /* x87 */
    put_le32(vmsa + VMSA_MXCSR, state.mxcsr);
    put_le16(vmsa + VMSA_X87_FCW, state.x87_fcw);
}
