/* SPDX-License-Identifier: MIT */
/* Firmware that somebody else built: its tables, and launch digests with it in all modes. */
#include <string.h>

#include "common/checked.h"
#include "qemuctl/measure.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/ovmf-maker.h"

enum { PAGES_MAX = 4096 }; /* of sections that are measured here */

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_start();
    return 0;
}

static uint64_t check_sections(const struct ovmf *ovmf)
{
    uint64_t pages = 0;

    for (size_t i = 0; i < ovmf_section_count(ovmf); i++) {
        const struct ovmf_section *section = ovmf_section(ovmf, i);

        if (section->gpa % 4096 != 0 || section->size % 4096 != 0 || section->size == 0 ||
            (uint64_t)section->gpa + section->size > ovmf_gpa(ovmf))
            fuzz_fail("section %zu is %#x bytes at %#x", i, section->size, section->gpa);
        pages += section->size / 4096;
    }
    return pages;
}

static void measure(const struct ovmf *ovmf)
{
    static const struct kernel_hashes kernel = {.kernel = {1}};
    static const uint8_t hash[LAUNCH_DIGEST_MAX] = {2};
    struct error err = ERROR_INIT;
    struct launch_digest digest;

    for (unsigned i = 0; i < 12; i++) {
        const struct measure_input input = {
            .mode = (enum sev_mode)(i % 3),
            .vmm = (enum sev_vmm)(i / 4),
            .ovmf = ovmf,
            .ovmf_hash = i % 3 == SEV_MODE_SNP ? hash : NULL,
            .kernel = i % 2 == 0 ? &kernel : NULL,
            .vcpus = 2,
            .guest_features = 1,
        };
        int r = measure_check_firmware(ovmf, input.mode, input.kernel != NULL, 2, &err);
        if (r < 0)
            fuzz_expect_error(&err, r);
        r = measure_launch(&input, &digest, &err);
        if (r < 0)
            fuzz_expect_error(&err, r);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_INIT;
    struct ovmf *ovmf;

    int r = ovmf_new("firmware", data, size, &ovmf, &err);
    if (r < 0) {
        fuzz_expect_error(&err, r);
        return 0;
    }
    if (check_sections(ovmf) <= PAGES_MAX)
        measure(ovmf);
    ovmf_free(ovmf);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    /* All that counts is at the end, in the last 4 KiB. */
    size_t tail = size < 4096 ? size : 4096;

    if (size < 64 && room >= MADE_SIZE) {
        if (seed % 2 == 0)
            make_amdsev(data);
        else
            make_ovmfx64(data);
        return MADE_SIZE;
    }
    if (seed % 4 == 0 || tail == 0)
        return LLVMFuzzerMutate(data, size, room);
    size_t at = size - tail + (seed >> 2) % tail;
    fuzz_mutate_bytes(NULL, data + at, size - at < 8 ? size - at : 8);
    return size;
}
