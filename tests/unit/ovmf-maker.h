/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdint.h>
#include <string.h>

/*
 * Makes what tests need of an OVMF image: pages with a reset vector's table of GUIDs and SEV
 * metadata, laid out as edk2's AmdSevX64 build has them. Offsets below are from the image's end.
 */
#define MADE_FOOTER 50    /* length of all, 2 bytes; footer's GUID, 16 */
#define MADE_RESET 72     /* entry: AP address 4; length 2; GUID 16 */
#define MADE_HASHES 98    /* entry: address 4, size 4; length 2; GUID 16 */
#define MADE_METADATA 120 /* entry: offset from the end 4; length 2; GUID 16 */
#define MADE_OTHER 142    /* entry of a GUID that nobody knows: 4; 2; 16 */
#define MADE_TABLE_LENGTH (MADE_OTHER - 32)
#define MADE_HEADER 0x554 /* "ASEV", length, version, count; sections behind it */

struct made_section {
    uint32_t gpa, size, type;
};

static inline void made_put(uint8_t *p, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        p[i] = (uint8_t)(value >> (8 * i));
}

/* "96b582de-1fb2-45f7-baea-a366c55a082d": the first three fields are little-endian. */
static inline void made_guid(uint8_t *p, const char *text)
{
    static const uint8_t places[] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
    unsigned digit = 0;

    for (; *text != '\0'; text++) {
        if (*text == '-')
            continue;
        unsigned value = (unsigned)(*text <= '9' ? *text - '0' : *text - 'a' + 10);
        uint8_t *byte = &p[places[digit / 2]];
        *byte = (uint8_t)(*byte << 4 | value);
        digit++;
    }
}

static inline void made_entry(uint8_t *end, unsigned offset, const uint32_t *data, unsigned words,
                              const char *guid)
{
    uint8_t *p = end - offset;

    for (unsigned i = 0; i < words; i++, p += 4)
        made_put(p, data[i], 4);
    made_put(p, words * 4 + 18, 2);
    made_guid(p + 2, guid);
}

/* `image` is zeroed here. */
static inline void make_ovmf(uint8_t *image, size_t size, const struct made_section *sections,
                             uint32_t count, uint32_t hashes_gpa, uint32_t hashes_size,
                             uint32_t ap_eip)
{
    const uint32_t hashes[] = {hashes_gpa, hashes_size}, from_end[] = {MADE_HEADER};
    uint8_t *end = image + size, *p = end - MADE_HEADER;

    memset(image, 0, size);
    made_put(end - MADE_FOOTER, MADE_TABLE_LENGTH, 2);
    made_guid(end - MADE_FOOTER + 2, "96b582de-1fb2-45f7-baea-a366c55a082d");
    made_entry(end, MADE_RESET, &ap_eip, 1, "00f771de-1a7e-4fcb-890e-68c77e2fb44e");
    made_entry(end, MADE_HASHES, hashes, 2, "7255371f-3a3b-4b04-927b-1da6efa8d454");
    made_entry(end, MADE_METADATA, from_end, 1, "dc886566-984a-4798-a75e-5585a7bf67cc");
    made_entry(end, MADE_OTHER, from_end, 1, "00000000-0000-0000-0000-000000000001");
    memcpy(p, "ASEV", 4);
    made_put(p + 4, 16 + 12 * count, 4);
    made_put(p + 8, 1, 4);
    made_put(p + 12, count, 4);
    for (p += 16; count > 0; count--, sections++, p += 12) {
        made_put(p, sections->gpa, 4);
        made_put(p + 4, sections->size, 4);
        made_put(p + 8, sections->type, 4);
    }
}

/* What edk2-stable202405 builds. */
static const struct made_section amdsev_sections[] = {
    {0x800000, 0x9000, 1}, {0x80a000, 0x3000, 1},    {0x80d000, 0x1000, 2}, {0x80e000, 0x1000, 3},
    {0x80f000, 0x1000, 4}, {0x810000, 0x1000, 0x10}, {0x811000, 0xf000, 1},
};
static const struct made_section ovmfx64_sections[] = {
    {0x800000, 0x9000, 1}, {0x80a000, 0x3000, 1}, {0x80d000, 0x1000, 2},
    {0x80e000, 0x1000, 3}, {0x80f000, 0x1000, 4}, {0x810000, 0x10000, 1},
};
#define MADE_AP_EIP 0x80b004
#define MADE_HASHES_GPA 0x810c00

#define MADE_SIZE 8192

/* As AmdSevX64 is built, and OvmfPkgX64, which takes no kernel. */
static inline void make_amdsev(uint8_t image[static MADE_SIZE])
{
    make_ovmf(image, MADE_SIZE, amdsev_sections,
              sizeof(amdsev_sections) / sizeof(amdsev_sections[0]), MADE_HASHES_GPA, 0x400,
              MADE_AP_EIP);
}

static inline void make_ovmfx64(uint8_t image[static MADE_SIZE])
{
    make_ovmf(image, MADE_SIZE, ovmfx64_sections,
              sizeof(ovmfx64_sections) / sizeof(ovmfx64_sections[0]), 0, 0, MADE_AP_EIP);
}
