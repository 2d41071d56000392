/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "common/units.h"
#include "qemuctl/measure-internal.h"

/*
 * What has to hold before a confidential guest is started. Without it the launch fails late, in the
 * middle of a guest's start or with an error of the secure processor, or, worse, succeeds and
 * attests nothing of what it runs.
 */

#define NEEDS_AMDSEV                                                                            \
    "OvmfPkg/AmdSev/AmdSevX64.dsc of edk2 (edk2-stable202405 or later for SEV-SNP) builds one " \
    "that has it"

static bool has_section(const struct ovmf *ovmf, uint32_t type)
{
    for (size_t i = 0; i < ovmf_section_count(ovmf); i++)
        if (ovmf_section(ovmf, i)->type == type)
            return true;
    return false;
}

static int check_snp(const struct ovmf *ovmf, bool kernel, struct error *err)
{
    static const uint32_t needed[] = {OVMF_SECTION_SECRETS, OVMF_SECTION_CPUID};

    if (!ovmf_has_metadata(ovmf))
        return error_set(err, EINVAL,
                         "%s: has no SEV metadata, and so cannot be started with SEV-SNP: "
                         "OvmfPkgX64.dsc and AmdSev/AmdSevX64.dsc of edk2-stable202202 or later "
                         "build firmware that has it",
                         ovmf_name(ovmf));
    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
        if (!has_section(ovmf, needed[i]))
            return error_set(err, EINVAL,
                             "%s: its SEV metadata has no section %s, which SEV-SNP needs",
                             ovmf_name(ovmf), ovmf_section_type_name(needed[i]));
    if (kernel && !ovmf_has_hashes_section(ovmf))
        return error_set(err, EINVAL,
                         "%s: has no section for kernel hashes, and so does not check the kernel "
                         "that it is given: " NEEDS_AMDSEV,
                         ovmf_name(ovmf));
    return 0;
}

int measure_check_firmware(const struct ovmf *ovmf, enum sev_mode mode, bool kernel, unsigned vcpus,
                           struct error *err)
{
    if (mode == SEV_MODE_SNP) {
        int r = check_snp(ovmf, kernel, err);
        if (r < 0)
            return r;
    } else if (kernel && !ovmf_has_hashes_table(ovmf, NULL)) {
        return error_set(
            err, EINVAL,
            "%s: has no table for kernel hashes, and so does not check the kernel that "
            "it is given: " NEEDS_AMDSEV,
            ovmf_name(ovmf));
    }
    if (mode != SEV_MODE_SEV && vcpus > 1 && !ovmf_has_reset_eip(ovmf, NULL))
        return error_set(err, EINVAL,
                         "%s: has no SEV-ES reset block, and so does not tell where vCPUs other "
                         "than the first begin",
                         ovmf_name(ovmf));
    return 0;
}

/* Whether `word` stands in `text`, with no hex digit on either side of it. */
static bool has_hex_word(const char *text, const char *word)
{
    const size_t length = strlen(word);

    for (const char *p = strcasestr(text, word); p != NULL; p = strcasestr(p + 1, word))
        if ((p == text || !isxdigit((unsigned char)p[-1])) && !isxdigit((unsigned char)p[length]))
            return true;
    return false;
}

int measure_check_root_hash(const uint8_t *root, size_t size, const char *append,
                            const uint8_t *host_data, struct error *err)
{
    char text[2 * 64 + 1];

    assert(size > 0 && size <= 64);
    hex_encode(root, size, text);
    if (append != NULL && has_hex_word(append, text))
        return 0;
    if (host_data != NULL && size == 32 && memcmp(root, host_data, size) == 0)
        return 0;
    return error_set(err, EINVAL,
                     "the root hash %s is neither on the measured command line nor the host data: "
                     "what the guest attests would not tell which disk it has",
                     text);
}
