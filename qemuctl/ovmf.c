/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/io.h"
#include "qemuctl/measure-internal.h"

/*
 * What an OVMF image tells a VMM. Its last 32 bytes are the reset vector; in front of these lies a
 * table, which is read backwards (edk2, OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm):
 *
 *     … entry 1 … entry 0 | length of all, 2 bytes | footer GUID, 16 bytes | 32 bytes
 *
 *     an entry:  data | length of all of the entry, 2 bytes | GUID, 16 bytes
 *
 * One entry points at the SEV metadata, somewhere in front of the table: a header and descriptors
 * of sections (OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm).
 *
 * Every byte may be wrong. Offsets from the file are checked before they are used; data is only
 * looked at through le16() and le32(), at offsets that were. What a VMM could not launch, or two of
 * them would take for different things, is refused here, so that the rest can do without checks.
 */

#define OVMF_SIZE_MAX (UINT32_C(16) << 20) /* QEMU's max-fw-size: hw/i386/pc.c */
#define RESET_VECTOR_SIZE 32
#define ENTRY_HEADER_SIZE (2 + GUID_SIZE)
#define METADATA_HEADER_SIZE 16
#define METADATA_VERSION 1
#define SECTION_SIZE 12
#define SECTIONS_MAX 256 /* edk2 has 7; a limit keeps looking for overlaps short */

static const struct guid footer_guid =
    GUID(0x96b582de, 0x1fb2, 0x45f7, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d);
static const struct guid metadata_guid =
    GUID(0xdc886566, 0x984a, 0x4798, 0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc);
static const struct guid hashes_guid =
    GUID(0x7255371f, 0x3a3b, 0x4b04, 0x92, 0x7b, 0x1d, 0xa6, 0xef, 0xa8, 0xd4, 0x54);
static const struct guid reset_guid =
    GUID(0x00f771de, 0x1a7e, 0x4fcb, 0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e);

struct ovmf {
    char *name;
    uint8_t *data;
    uint32_t size;
    bool has_metadata;
    size_t section_count;
    struct ovmf_section *sections;
    uint32_t hashes_gpa, hashes_size; /* gpa 0: there is no table */
    uint32_t reset_eip;               /* 0: not told */
};

static uint16_t le16(const struct ovmf *ovmf, uint32_t offset)
{
    return get_le16(ovmf->data + offset);
}

static uint32_t le32(const struct ovmf *ovmf, uint32_t offset)
{
    return get_le32(ovmf->data + offset);
}

static bool guid_at(const struct ovmf *ovmf, uint32_t offset, const struct guid *guid)
{
    return memcmp(ovmf->data + offset, guid->bytes, GUID_SIZE) == 0;
}

/* --- Sections --- */

static bool overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

static int check_section(const struct ovmf *ovmf, size_t index, uint32_t offset, struct error *err)
{
    const struct ovmf_section *section = &ovmf->sections[index];

    if (section->gpa % PAGE_SIZE != 0)
        return error_set(err, EINVAL,
                         "SEV metadata section %zu at offset 0x%x: its address 0x%x is not a "
                         "multiple of 4096",
                         index, offset, section->gpa);
    if (section->size == 0)
        return error_set(err, EINVAL, "SEV metadata section %zu at offset 0x%x: is empty", index,
                         offset);
    if (section->size % PAGE_SIZE != 0)
        return error_set(err, EINVAL,
                         "SEV metadata section %zu at offset 0x%x: its size 0x%x is not a multiple "
                         "of 4096",
                         index, offset, section->size);
    if (!range_within(section->gpa, section->size, FOUR_GIB))
        return error_set(
            err, EINVAL,
            "SEV metadata section %zu at offset 0x%x: 0x%x bytes at address 0x%x reach "
            "beyond 4 GiB",
            index, offset, section->size, section->gpa);
    if (overlap(section->gpa, section->size, ovmf_gpa(ovmf), ovmf->size))
        return error_set(err, EINVAL,
                         "SEV metadata section %zu at offset 0x%x: 0x%x bytes at address 0x%x "
                         "overlap the firmware itself",
                         index, offset, section->size, section->gpa);
    /* The secure processor fills one page; QEMU writes the hashes into one. */
    if ((section->type == OVMF_SECTION_SECRETS || section->type == OVMF_SECTION_CPUID ||
         section->type == OVMF_SECTION_KERNEL_HASHES) &&
        section->size != PAGE_SIZE)
        return error_set(err, EINVAL,
                         "SEV metadata section %zu at offset 0x%x: a section %s of 0x%x bytes, not "
                         "one page",
                         index, offset, ovmf_section_type_name(section->type), section->size);
    for (size_t i = 0; i < index; i++)
        if (overlap(section->gpa, section->size, ovmf->sections[i].gpa, ovmf->sections[i].size))
            return error_set(err, EINVAL,
                             "SEV metadata section %zu at offset 0x%x: 0x%x bytes at address 0x%x "
                             "overlap section %zu",
                             index, offset, section->size, section->gpa, i);
    return 0;
}

/* `count` was checked against the bytes there are from `offset` on. */
static int read_sections(struct ovmf *ovmf, uint32_t offset, uint32_t count, struct error *err)
{
    ovmf->sections = calloc(count + 1, sizeof(*ovmf->sections));
    if (ovmf->sections == NULL)
        return error_oom(err);
    for (uint32_t i = 0; i < count; i++, offset += SECTION_SIZE) {
        ovmf->sections[i] = (struct ovmf_section){
            .gpa = le32(ovmf, offset),
            .size = le32(ovmf, offset + 4),
            .type = le32(ovmf, offset + 8),
        };
        int r = check_section(ovmf, i, offset, err);
        if (r < 0)
            return r;
    }
    ovmf->section_count = count;
    ovmf->has_metadata = true;
    return 0;
}

/* `from_end` is what the table says: how far in front of the file's end the metadata begins. */
static int read_metadata(struct ovmf *ovmf, uint32_t from_end, struct error *err)
{
    if (from_end > ovmf->size || from_end < METADATA_HEADER_SIZE)
        return error_set(err, EINVAL,
                         "SEV metadata 0x%x bytes before the end of the file: does not lie in the "
                         "file, which has 0x%x",
                         from_end, ovmf->size);

    const uint32_t offset = ovmf->size - from_end;
    if (memcmp(ovmf->data + offset, "ASEV", 4) != 0)
        return error_set(err, EINVAL, "SEV metadata at offset 0x%x: has not the signature 'ASEV'",
                         offset);
    const uint32_t length = le32(ovmf, offset + 4), version = le32(ovmf, offset + 8),
                   count = le32(ovmf, offset + 12);
    if (length < METADATA_HEADER_SIZE)
        return error_set(err, EINVAL,
                         "SEV metadata at offset 0x%x: its length %" PRIu32
                         " is less than that of its header",
                         offset, length);
    if (length > from_end)
        return error_set(err, EINVAL,
                         "SEV metadata at offset 0x%x: its length 0x%x reaches beyond the file",
                         offset, length);
    if (version != METADATA_VERSION)
        return error_set(err, EINVAL,
                         "SEV metadata at offset 0x%x: version %" PRIu32 " is not known (1 is)",
                         offset, version);
    if (count > (length - METADATA_HEADER_SIZE) / SECTION_SIZE)
        return error_set(err, EINVAL,
                         "SEV metadata at offset 0x%x: %" PRIu32
                         " sections do not fit into its length 0x%x",
                         offset, count, length);
    if (count > SECTIONS_MAX)
        return error_set(err, EINVAL,
                         "SEV metadata at offset 0x%x: %" PRIu32 " sections are more than %d",
                         offset, count, SECTIONS_MAX);
    return read_sections(ovmf, offset + METADATA_HEADER_SIZE, count, err);
}

/* --- The table of GUIDs --- */

struct entry {
    uint32_t offset, size; /* of its data */
    bool found;
};

/* What the entries are for, where they are found; QEMU takes a second one of the same GUID for
 * nothing, other programs take it instead. */
struct entries {
    struct entry metadata, hashes, reset;
};

static int note_entry(const struct ovmf *ovmf, struct entries *entries, uint32_t start,
                      uint32_t size, struct error *err)
{
    static const char *const names[] = {"SEV metadata", "hash table", "SEV-ES reset block"};
    const struct guid *const guids[] = {&metadata_guid, &hashes_guid, &reset_guid};
    struct entry *const slots[] = {&entries->metadata, &entries->hashes, &entries->reset};
    static const uint32_t least[] = {4, 8, 4};

    for (size_t i = 0; i < 3; i++) {
        if (!guid_at(ovmf, start + size + 2, guids[i]))
            continue;
        if (slots[i]->found)
            return error_set(err, EINVAL,
                             "OVMF table: entries at offsets 0x%x and 0x%x are both for the %s",
                             slots[i]->offset, start, names[i]);
        if (size < least[i])
            return error_set(err, EINVAL,
                             "OVMF table: entry at offset 0x%x: %" PRIu32
                             " bytes for the %s are less than %" PRIu32,
                             start, size, names[i], least[i]);
        *slots[i] = (struct entry){.offset = start, .size = size, .found = true};
    }
    return 0;
}

/* Finds the entries of the table that ends at `end`, in front of the length of all. */
static int read_entries(const struct ovmf *ovmf, uint32_t start, uint32_t end,
                        struct entries *entries, struct error *err)
{
    /* Less than an entry's header at the end is padding to a VMM. */
    while (end - start >= ENTRY_HEADER_SIZE) {
        const uint32_t header = end - ENTRY_HEADER_SIZE, length = le16(ovmf, header);
        if (length < ENTRY_HEADER_SIZE)
            return error_set(err, EINVAL,
                             "OVMF table: entry that ends at offset 0x%x: its length %" PRIu32
                             " is less than that of its header",
                             end, length);
        if (length > end - start)
            return error_set(err, EINVAL,
                             "OVMF table: entry that ends at offset 0x%x: its length %" PRIu32
                             " reaches beyond the table, which begins at 0x%x",
                             end, length, start);
        int r = note_entry(ovmf, entries, end - length, length - ENTRY_HEADER_SIZE, err);
        if (r < 0)
            return r;
        end -= length;
    }
    return 0;
}

static int read_hashes_entry(struct ovmf *ovmf, const struct entry *entry, struct error *err)
{
    const uint32_t gpa = le32(ovmf, entry->offset), size = le32(ovmf, entry->offset + 4);

    /* So do builds for general use say that they do not look for hashes. */
    if (gpa == 0)
        return 0;
    if (size < HASHES_TABLE_SIZE)
        return error_set(err, EINVAL,
                         "OVMF table: hash table of 0x%x bytes at address 0x%x: QEMU's takes 0x%x",
                         size, gpa, HASHES_TABLE_SIZE);
    if (!range_within(gpa, size, FOUR_GIB))
        return error_set(err, EINVAL,
                         "OVMF table: hash table of 0x%x bytes at address 0x%x: reaches beyond "
                         "4 GiB",
                         size, gpa);
    ovmf->hashes_gpa = gpa;
    ovmf->hashes_size = size;
    return 0;
}

static int read_table(struct ovmf *ovmf, struct error *err)
{
    struct entries entries = {0};
    const uint32_t footer = ovmf->size - RESET_VECTOR_SIZE - ENTRY_HEADER_SIZE;
    int r;

    if (!guid_at(ovmf, footer + 2, &footer_guid))
        return 0;
    const uint32_t length = le16(ovmf, footer);
    if (length < ENTRY_HEADER_SIZE)
        return error_set(err, EINVAL,
                         "OVMF table at offset 0x%x: its length %" PRIu32
                         " is less than that of its footer",
                         footer, length);
    if (length - ENTRY_HEADER_SIZE > footer)
        return error_set(err, EINVAL,
                         "OVMF table at offset 0x%x: its length %" PRIu32
                         " reaches beyond the file's start",
                         footer, length);
    r = read_entries(ovmf, footer + ENTRY_HEADER_SIZE - length, footer, &entries, err);
    if (r == 0 && entries.reset.found)
        ovmf->reset_eip = le32(ovmf, entries.reset.offset);
    if (r == 0 && entries.hashes.found)
        r = read_hashes_entry(ovmf, &entries.hashes, err);
    if (r == 0 && entries.metadata.found)
        r = read_metadata(ovmf, le32(ovmf, entries.metadata.offset), err);
    return r;
}

/* The firmware reads the table at its own address; QEMU writes it into the section's page. */
static int check_hashes(const struct ovmf *ovmf, struct error *err)
{
    const struct ovmf_section *section = NULL;

    for (size_t i = 0; i < ovmf->section_count; i++) {
        if (ovmf->sections[i].type != OVMF_SECTION_KERNEL_HASHES)
            continue;
        if (section != NULL)
            return error_set(err, EINVAL,
                             "SEV metadata: sections %zu and %zu are both for kernel hashes",
                             (size_t)(section - ovmf->sections), i);
        section = &ovmf->sections[i];
    }
    if (section == NULL)
        return 0;
    if (ovmf->hashes_gpa == 0)
        return error_set(
            err, EINVAL,
            "SEV metadata has a section for kernel hashes at address 0x%x, but the OVMF "
            "table does not tell where the hash table is",
            section->gpa);
    if (ovmf->hashes_gpa < section->gpa ||
        !range_within(ovmf->hashes_gpa - section->gpa, HASHES_TABLE_SIZE, section->size))
        return error_set(err, EINVAL,
                         "the hash table at address 0x%x is not in the SEV metadata's page for "
                         "kernel hashes at 0x%x",
                         ovmf->hashes_gpa, section->gpa);
    return 0;
}

/* --- Life --- */

static int check_size(size_t size, struct error *err)
{
    if (size == 0)
        return error_set(err, EINVAL, "is empty");
    if (size > OVMF_SIZE_MAX)
        return error_set(err, EFBIG, "is larger than 16 MiB, which no VMM takes for firmware");
    if (size % PAGE_SIZE != 0)
        return error_set(err, EINVAL, "its size %zu is not a multiple of 4096: no OVMF image",
                         size);
    return 0;
}

int ovmf_new(const char *name, const void *data, size_t size, struct ovmf **ret, struct error *err)
{
    _cleanup_ovmf_ struct ovmf *ovmf = calloc(1, sizeof(*ovmf));

    int r = check_size(size, err);
    if (r < 0)
        return error_prefix(err, "%s", name);
    if (ovmf == NULL || (ovmf->name = strdup(name)) == NULL || (ovmf->data = malloc(size)) == NULL)
        return error_oom(err);
    memcpy(ovmf->data, data, size);
    ovmf->size = (uint32_t)size;
    r = read_table(ovmf, err);
    if (r == 0)
        r = check_hashes(ovmf, err);
    if (r < 0)
        return error_prefix(err, "%s", name);
    *ret = TAKE_PTR(ovmf);
    return 0;
}

int ovmf_load(const char *path, struct ovmf **ret, struct error *err)
{
    _cleanup_free_ char *data = NULL;
    size_t size;

    int r = io_read_file(path, OVMF_SIZE_MAX, &data, &size, err);
    return r < 0 ? r : ovmf_new(path, data, size, ret, err);
}

void ovmf_free(struct ovmf *ovmf)
{
    if (ovmf == NULL)
        return;
    free(ovmf->sections);
    free(ovmf->data);
    free(ovmf->name);
    free(ovmf);
}

/* --- What it tells --- */

const char *ovmf_name(const struct ovmf *ovmf)
{
    return ovmf->name;
}

const uint8_t *ovmf_data(const struct ovmf *ovmf)
{
    return ovmf->data;
}

uint64_t ovmf_size(const struct ovmf *ovmf)
{
    return ovmf->size;
}

uint64_t ovmf_gpa(const struct ovmf *ovmf)
{
    return FOUR_GIB - ovmf->size;
}

bool ovmf_has_metadata(const struct ovmf *ovmf)
{
    return ovmf->has_metadata;
}

size_t ovmf_section_count(const struct ovmf *ovmf)
{
    return ovmf->section_count;
}

const struct ovmf_section *ovmf_section(const struct ovmf *ovmf, size_t index)
{
    assert(index < ovmf->section_count);
    return &ovmf->sections[index];
}

const char *ovmf_section_type_name(uint32_t type)
{
    switch (type) {
    case OVMF_SECTION_SEC_MEM:
        return "SNP_SEC_MEM";
    case OVMF_SECTION_SECRETS:
        return "SNP_SECRETS";
    case OVMF_SECTION_CPUID:
        return "CPUID";
    case OVMF_SECTION_SVSM_CAA:
        return "SVSM_CAA";
    case OVMF_SECTION_KERNEL_HASHES:
        return "SNP_KERNEL_HASHES";
    default:
        return "unknown";
    }
}

static bool has_section(const struct ovmf *ovmf, uint32_t type)
{
    for (size_t i = 0; i < ovmf->section_count; i++)
        if (ovmf->sections[i].type == type)
            return true;
    return false;
}

bool ovmf_has_hashes_table(const struct ovmf *ovmf, uint32_t *ret_gpa)
{
    if (ovmf->hashes_gpa == 0)
        return false;
    if (ret_gpa != NULL)
        *ret_gpa = ovmf->hashes_gpa;
    return true;
}

bool ovmf_has_hashes_section(const struct ovmf *ovmf)
{
    return has_section(ovmf, OVMF_SECTION_KERNEL_HASHES);
}

bool ovmf_has_reset_eip(const struct ovmf *ovmf, uint32_t *ret_eip)
{
    if (ovmf->reset_eip == 0)
        return false;
    if (ret_eip != NULL)
        *ret_eip = ovmf->reset_eip;
    return true;
}

int ovmf_sha256(const struct ovmf *ovmf, uint8_t hash[static 32], struct error *err)
{
    return sha256_of(ovmf->data, ovmf->size, hash, err);
}
