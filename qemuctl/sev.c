/* SPDX-License-Identifier: MIT */
#include "qemuctl/sev.h"

#include <assert.h>
#include <inttypes.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "common/openssl.h"

/* Bits of policies. */
#define SEV_POLICY_NODBG UINT64_C(0x1)
#define SEV_POLICY_ES UINT64_C(0x4)
#define SNP_POLICY_RESERVED_ONE (UINT64_C(1) << 17)

/* Bits of physical addresses that a guest loses to encryption. */
#define REDUCED_PHYS_BITS 1

const char *sev_mode_name(enum sev_mode mode)
{
    static const char *const names[] = {
        [SEV_MODE_SEV] = "SEV", [SEV_MODE_SEV_ES] = "SEV-ES", [SEV_MODE_SNP] = "SEV-SNP"};

    return names[mode];
}

/* --- Policies --- */

uint64_t sev_policy_default(enum sev_mode mode)
{
    switch (mode) {
    case SEV_MODE_SEV:
        return SEV_POLICY_NODBG;
    case SEV_MODE_SEV_ES:
        return SEV_POLICY_NODBG | SEV_POLICY_ES;
    case SEV_MODE_SNP:
        return SNP_POLICY_DEFAULT;
    }
    abort();
}

int sev_policy_check(enum sev_mode mode, uint64_t policy, struct error *err)
{
    const bool es = (policy & SEV_POLICY_ES) != 0;

    if (mode == SEV_MODE_SNP) {
        if ((policy & SNP_POLICY_RESERVED_ONE) == 0)
            return error_set(err, EINVAL,
                             "0x%" PRIx64 " is no policy of SEV-SNP: bit 17 (0x20000) must be set",
                             policy);
        return 0;
    }
    if (policy > UINT32_MAX)
        return error_set(err, EINVAL, "0x%" PRIx64 " is no policy of SEV: it has 32 bits", policy);
    if (mode == SEV_MODE_SEV_ES && !es)
        return error_set(err, EINVAL, "0x%" PRIx64 " does not ask for SEV-ES: bit 2 (0x4) is clear",
                         policy);
    if (mode == SEV_MODE_SEV && es)
        return error_set(err, EINVAL, "0x%" PRIx64 " asks for SEV-ES: bit 2 (0x4) is set", policy);
    return 0;
}

/* --- Arguments --- */

static bool is_fork(const struct sev_options *sev)
{
    return sev->dialect == SNP_AMD_FORK;
}

const char *sev_machine(const struct sev_options *sev)
{
    if (sev == NULL || is_fork(sev))
        return "q35";
    if (sev->mode == SEV_MODE_SNP)
        return "q35,confidential-guest-support=sev0,memory-backend=ram1,vmport=off";
    return "q35,confidential-guest-support=sev0,vmport=off";
}

/* Upstream's SEV-SNP loads it by -bios only; everything else finds a table of kernel hashes in
 * firmware that is in flash memory, whatever its version. */
bool sev_firmware_in_flash(const struct sev_options *sev)
{
    return sev->mode != SEV_MODE_SNP || is_fork(sev);
}

static int put_base64(FILE *out, const char *key, const uint8_t *bytes, size_t size,
                      struct error *err)
{
    _cleanup_free_ char *text = NULL;

    if (bytes == NULL)
        return 0;
    int r = libcrypto_load(err);
    if (r < 0)
        return r;
    text = malloc((size + 2) / 3 * 4 + 1);
    if (text == NULL)
        return error_oom(err);
    libcrypto.EVP_EncodeBlock((unsigned char *)text, bytes, (int)size);
    fprintf(out, ",%s=%s", key, text);
    return 0;
}

static int put_snp_guest(FILE *out, const struct sev_options *sev, struct error *err)
{
    fprintf(out, "sev-snp-guest,id=sev0,cbitpos=%u,reduced-phys-bits=%d", sev->cbitpos,
            REDUCED_PHYS_BITS);
    if (is_fork(sev))
        fputs(",discard=none", out);
    if (!is_fork(sev) || sev->policy_set)
        fprintf(out, ",policy=0x%" PRIx64, sev->policy);
    fputs(",kernel-hashes=on", out);
    int r = put_base64(out, "host-data", sev->host_data, SEV_HOST_DATA_SIZE, err);
    if (r == 0)
        r = put_base64(out, "id-block", sev->id_block, ID_BLOCK_SIZE, err);
    if (r == 0)
        r = put_base64(out, "id-auth", sev->id_auth, ID_AUTH_SIZE, err);
    if (r == 0 && sev->id_auth != NULL && id_auth_has_author(sev->id_auth))
        fprintf(out, ",%s=on", is_fork(sev) ? "auth-key-enabled" : "author-key-enabled");
    return r;
}

static int put_guest(FILE *out, const struct sev_options *sev, struct error *err)
{
    if (sev->mode == SEV_MODE_SNP)
        return put_snp_guest(out, sev, err);
    fprintf(out, "sev-guest,id=sev0,policy=0x%" PRIx64 ",cbitpos=%u,reduced-phys-bits=%d%s",
            sev->policy, sev->cbitpos, REDUCED_PHYS_BITS, sev->kernel ? ",kernel-hashes=on" : "");
    return 0;
}

static int add_guest(struct argv *argv, const struct sev_options *sev, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    size_t length;

    FILE *out = open_memstream(&text, &length);
    if (out == NULL)
        return error_oom(err);
    int r = put_guest(out, sev, err);
    if (fclose(out) != 0 && r == 0)
        r = error_oom(err);
    if (r == 0)
        argv_add_pair(argv, "-object", text);
    return r;
}

int sev_add(struct argv *argv, const struct sev_options *sev, uint64_t memory, struct error *err)
{
    assert((sev->id_block == NULL) == (sev->id_auth == NULL));
    if (is_fork(sev))
        argv_add_pair(argv, "-machine", "memory-encryption=sev0,vmport=off");
    if (sev->mode == SEV_MODE_SNP) {
        argv_add(argv, "-object");
        if (is_fork(sev))
            argv_addf(argv, "memory-backend-memfd-private,id=ram1,size=%" PRIu64 "M,share=true",
                      memory);
        else
            argv_addf(argv,
                      "memory-backend-memfd,id=ram1,size=%" PRIu64 "M,share=true,prealloc=false",
                      memory);
    }
    int r = add_guest(argv, sev, err);
    if (r == 0 && sev->mode == SEV_MODE_SNP && is_fork(sev))
        argv_add_pair(argv, "-machine", "memory-backend=ram1,kvm-type=protected");
    return r;
}

/* --- The host --- */

bool sev_host_cbitpos(unsigned *ret)
{
#ifdef __x86_64__
    unsigned eax, ebx, ecx, edx;

    if ((unsigned)__get_cpuid_max(0x80000000, NULL) < 0x8000001f)
        return false;
    __cpuid(0x8000001f, eax, ebx, ecx, edx);
    /* Bit 1: SEV. */
    if ((eax & 2) == 0)
        return false;
    *ret = ebx & 0x3f;
    return true;
#else
    (void)ret;
    return false;
#endif
}
