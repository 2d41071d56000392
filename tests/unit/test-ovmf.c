/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "qemuctl/measure.h"
#include "tests/unit/ovmf-loader.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* --- Firmware --- */

static void test_ovmf(void **state)
{
    (void)state;
    _cleanup_ovmf_ struct ovmf *a = amdsev(), *x = ovmfx64(), *plain = NULL;
    static const uint8_t zeros[4096];
    uint32_t value = 0;

    assert_int_equal(ovmf_size(a), MADE_SIZE);
    assert_int_equal(ovmf_gpa(a), 0xffffe000);
    assert_true(ovmf_has_metadata(a));
    assert_true(ovmf_has_hashes_section(a));
    assert_true(ovmf_has_hashes_table(a, &value));
    assert_int_equal(value, MADE_HASHES_GPA);
    assert_true(ovmf_has_reset_eip(a, &value));
    assert_int_equal(value, MADE_AP_EIP);
    assert_int_equal(ovmf_section_count(a), COUNT(amdsev_sections));
    for (size_t i = 0; i < COUNT(amdsev_sections); i++) {
        assert_int_equal(ovmf_section(a, i)->gpa, amdsev_sections[i].gpa);
        assert_int_equal(ovmf_section(a, i)->size, amdsev_sections[i].size);
        assert_int_equal(ovmf_section(a, i)->type, amdsev_sections[i].type);
    }
    assert_string_equal(ovmf_section_type_name(ovmf_section(a, 5)->type), "SNP_KERNEL_HASHES");
    assert_string_equal(ovmf_section_type_name(77), "unknown");

    assert_true(ovmf_has_metadata(x));
    assert_false(ovmf_has_hashes_section(x));
    assert_false(ovmf_has_hashes_table(x, NULL));

    assert_int_equal(ovmf_new("zeros", zeros, sizeof(zeros), &plain, NULL), 0);
    assert_false(ovmf_has_metadata(plain));
    assert_false(ovmf_has_hashes_table(plain, NULL));
    assert_false(ovmf_has_reset_eip(plain, NULL));
    assert_int_equal(ovmf_section_count(plain), 0);
}

/* A good image with one number changed, `from_end` bytes before its end; and what is said then.
 * Sections are numbered from 0; they begin behind 16 bytes of header. */
#define SECTION(index) (MADE_HEADER - 16 - 12 * (index))

static const struct hostile {
    unsigned from_end;
    uint64_t value;
    unsigned bytes;
    const char *message; /* behind "made: "; NULL: it is taken */
} hostile[] = {
    /* The table's length, and entries' */
    {MADE_FOOTER, 0, 2,
     "OVMF table at offset 0x1fce: its length 0 is less than that of its footer"},
    {MADE_FOOTER, 17, 2,
     "OVMF table at offset 0x1fce: its length 17 is less than that of its footer"},
    {MADE_FOOTER, 18, 2, NULL}, /* an empty table */
    {MADE_FOOTER, 35, 2, NULL}, /* less than an entry */
    {MADE_FOOTER, 36, 2,
     "OVMF table: entry that ends at offset 0x1fce: its length 22 reaches beyond the table, which "
     "begins at 0x1fbc"},
    {MADE_FOOTER, 0x1fe0, 2,
     "OVMF table: entry that ends at offset 0x1f72: its length 0 is less "
     "than that of its header"},
    {MADE_FOOTER, 0x1fe1, 2,
     "OVMF table at offset 0x1fce: its length 8161 reaches beyond the file's start"},
    {MADE_FOOTER, 0xffff, 2,
     "OVMF table at offset 0x1fce: its length 65535 reaches beyond the file's start"},
    {MADE_FOOTER - 2, 0, 1, NULL}, /* another footer: no table */
    {MADE_RESET - 4, 0, 2,
     "OVMF table: entry that ends at offset 0x1fce: its length 0 is less than that of its header"},
    {MADE_RESET - 4, 17, 2,
     "OVMF table: entry that ends at offset 0x1fce: its length 17 is less than that of its header"},
    {MADE_RESET - 4, 0xffff, 2,
     "OVMF table: entry that ends at offset 0x1fce: its length 65535 reaches beyond the table, "
     "which begins at 0x1f72"},
    {MADE_RESET - 4, 21, 2,
     "OVMF table: entry at offset 0x1fb9: 3 bytes for the SEV-ES reset block are less than 4"},
    {MADE_HASHES - 8, 25, 2,
     "OVMF table: entry at offset 0x1f9f: 7 bytes for the hash table are "
     "less than 8"},
    {MADE_METADATA - 4, 18, 2,
     "OVMF table: entry at offset 0x1f8c: 0 bytes for the SEV metadata are less than 4"},

    /* Where the hash table is */
    {MADE_HASHES, 0, 4,
     "SEV metadata has a section for kernel hashes at address 0x810000, but the "
     "OVMF table does not tell where the hash table is"},
    {MADE_HASHES, 0x811000, 4,
     "the hash table at address 0x811000 is not in the SEV metadata's "
     "page for kernel hashes at 0x810000"},
    {MADE_HASHES, 0x80fff0, 4,
     "the hash table at address 0x80fff0 is not in the SEV metadata's "
     "page for kernel hashes at 0x810000"},
    {MADE_HASHES, 0x810f51, 4,
     "the hash table at address 0x810f51 is not in the SEV metadata's "
     "page for kernel hashes at 0x810000"},
    {MADE_HASHES, 0x810f50, 4, NULL},
    {MADE_HASHES, 0xfffffff0, 4,
     "OVMF table: hash table of 0x400 bytes at address 0xfffffff0: reaches beyond 4 GiB"},
    {MADE_HASHES - 4, 175, 4,
     "OVMF table: hash table of 0xaf bytes at address 0x810c00: QEMU's takes 0xb0"},
    {MADE_HASHES - 4, 176, 4, NULL},

    /* Where the metadata is, and its header */
    {MADE_METADATA, 0, 4,
     "SEV metadata 0x0 bytes before the end of the file: does not lie in the "
     "file, which has 0x2000"},
    {MADE_METADATA, 15, 4,
     "SEV metadata 0xf bytes before the end of the file: does not lie in the "
     "file, which has 0x2000"},
    {MADE_METADATA, 0x2001, 4,
     "SEV metadata 0x2001 bytes before the end of the file: does not lie in the file, which has "
     "0x2000"},
    {MADE_METADATA, 0xffffffff, 4,
     "SEV metadata 0xffffffff bytes before the end of the file: does not lie in the file, which "
     "has 0x2000"},
    {MADE_METADATA, 0x2000, 4, "SEV metadata at offset 0x0: has not the signature 'ASEV'"},
    {MADE_HEADER, 0, 1, "SEV metadata at offset 0x1aac: has not the signature 'ASEV'"},
    {MADE_HEADER - 4, 0, 4,
     "SEV metadata at offset 0x1aac: its length 0 is less than that of its header"},
    {MADE_HEADER - 4, 15, 4,
     "SEV metadata at offset 0x1aac: its length 15 is less than that of its header"},
    {MADE_HEADER - 4, MADE_HEADER + 1, 4,
     "SEV metadata at offset 0x1aac: its length 0x555 reaches beyond the file"},
    {MADE_HEADER - 4, 0xffffffff, 4,
     "SEV metadata at offset 0x1aac: its length 0xffffffff reaches beyond the file"},
    {MADE_HEADER - 8, 2, 4, "SEV metadata at offset 0x1aac: version 2 is not known (1 is)"},
    {MADE_HEADER - 8, 0, 4, "SEV metadata at offset 0x1aac: version 0 is not known (1 is)"},
    {MADE_HEADER - 12, 8, 4,
     "SEV metadata at offset 0x1aac: 8 sections do not fit into its length 0x64"},
    {MADE_HEADER - 12, 0xffffffff, 4,
     "SEV metadata at offset 0x1aac: 4294967295 sections do not fit into its length 0x64"},
    {MADE_HEADER - 12, 0, 4, NULL},
    {MADE_HEADER - 12, 6, 4, NULL},

    /* Sections */
    {SECTION(0), 0x800001, 4,
     "SEV metadata section 0 at offset 0x1abc: its address 0x800001 is not "
     "a multiple of 4096"},
    {SECTION(0) - 4, 0, 4, "SEV metadata section 0 at offset 0x1abc: is empty"},
    {SECTION(0) - 4, 0x9001, 4,
     "SEV metadata section 0 at offset 0x1abc: its size 0x9001 is not a multiple of 4096"},
    {SECTION(0) - 4, 0xff801000, 4,
     "SEV metadata section 0 at offset 0x1abc: 0xff801000 bytes at "
     "address 0x800000 reach beyond 4 GiB"},
    {SECTION(0) - 4, 0xff800000, 4,
     "SEV metadata section 0 at offset 0x1abc: 0xff800000 bytes at "
     "address 0x800000 overlap the firmware itself"},
    {SECTION(0), 0xfffff000, 4,
     "SEV metadata section 0 at offset 0x1abc: 0x9000 bytes at address "
     "0xfffff000 reach beyond 4 GiB"},
    {SECTION(0), 0xffff5000, 4, NULL}, /* right below the firmware */
    {SECTION(0), 0xffff6000, 4,
     "SEV metadata section 0 at offset 0x1abc: 0x9000 bytes at address "
     "0xffff6000 overlap the firmware itself"},
    {SECTION(1), 0x808000, 4,
     "SEV metadata section 1 at offset 0x1ac8: 0x3000 bytes at address "
     "0x808000 overlap section 0"},
    {SECTION(6), 0x80d000, 4,
     "SEV metadata section 6 at offset 0x1b04: 0xf000 bytes at address "
     "0x80d000 overlap section 2"},
    {SECTION(2) - 4, 0x2000, 4,
     "SEV metadata section 2 at offset 0x1ad4: a section SNP_SECRETS of "
     "0x2000 bytes, not one page"},
    {SECTION(3) - 4, 0x2000, 4,
     "SEV metadata section 3 at offset 0x1ae0: a section CPUID of 0x2000 bytes, not one page"},
    {SECTION(5) - 4, 0x2000, 4,
     "SEV metadata section 5 at offset 0x1af8: a section "
     "SNP_KERNEL_HASHES of 0x2000 bytes, not one page"},
    {SECTION(4) - 8, 0x10, 4, "SEV metadata: sections 4 and 5 are both for kernel hashes"},
    {SECTION(4) - 8, 0x77, 4, NULL}, /* only who measures it must know it */
};

static void test_hostile(void **state)
{
    (void)state;
    static uint8_t image[MADE_SIZE];

    for (size_t i = 0; i < COUNT(hostile); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_ovmf_ struct ovmf *ovmf = NULL;
        const struct hostile *h = &hostile[i];
        make_amdsev(image);
        made_put(image + MADE_SIZE - h->from_end, h->value, h->bytes);
        int r = ovmf_new("made", image, MADE_SIZE, &ovmf, &err);
        if ((r == 0) != (h->message == NULL))
            fail_msg("case %zu: %d, %s", i, r, r < 0 ? error_message(&err) : "taken");
        if (r == 0)
            continue;
        assert_null(ovmf);
        assert_int_equal(r, -EINVAL);
        assert_memory_equal(error_message(&err), "made: ", 6);
        if (strcmp(error_message(&err) + 6, h->message) != 0)
            fail_msg("case %zu: %s", i, error_message(&err));
    }
}

static void test_duplicates(void **state)
{
    (void)state;
    static const struct {
        const char *guid, *message;
    } cases[] = {
        {"00f771de-1a7e-4fcb-890e-68c77e2fb44e", "made: OVMF table: entries at offsets 0x1fb8 and "
                                                 "0x1f72 are both for the SEV-ES reset block"},
        {"dc886566-984a-4798-a75e-5585a7bf67cc",
         "made: OVMF table: entries at offsets 0x1f88 and 0x1f72 are both for the SEV metadata"},
        {"7255371f-3a3b-4b04-927b-1da6efa8d454",
         "made: OVMF table: entries at offsets 0x1f9e and 0x1f72 are both for the hash table"},
    };
    static uint8_t image[MADE_SIZE];

    for (size_t i = 0; i < COUNT(cases); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct ovmf *ovmf = NULL;
        make_amdsev(image);
        made_guid(image + MADE_SIZE - MADE_OTHER + 6, cases[i].guid);
        assert_int_equal(ovmf_new("made", image, MADE_SIZE, &ovmf, &err), -EINVAL);
        assert_string_equal(error_message(&err), cases[i].message);
    }
}

static void test_sizes(void **state)
{
    (void)state;
    static const struct {
        size_t size;
        int result;
        const char *message;
    } cases[] = {
        {0, -EINVAL, "made: is empty"},
        {1, -EINVAL, "made: its size 1 is not a multiple of 4096: no OVMF image"},
        {4095, -EINVAL, "made: its size 4095 is not a multiple of 4096: no OVMF image"},
        {4096, 0, NULL},
        {16 << 20, 0, NULL},
        {(16 << 20) + 1, -EFBIG, "made: is larger than 16 MiB, which no VMM takes for firmware"},
    };
    _cleanup_free_ uint8_t *image = calloc(1, (16 << 20) + 1);

    assert_non_null(image);
    for (size_t i = 0; i < COUNT(cases); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_ovmf_ struct ovmf *ovmf = NULL;
        assert_int_equal(ovmf_new("made", image, cases[i].size, &ovmf, &err), cases[i].result);
        if (cases[i].message != NULL)
            assert_string_equal(error_message(&err), cases[i].message);
    }
}

/* More sections than are taken; they need a larger image. */
static void test_many_sections(void **state)
{
    (void)state;
    static struct made_section sections[257];
    static uint8_t image[MADE_SIZE];
    _cleanup_error_ struct error err = ERROR_INIT;

    for (uint32_t i = 0; i < COUNT(sections); i++)
        sections[i] = (struct made_section){0x800000 + 0x1000 * i, 0x1000, 1};
    for (uint32_t count = 256; count <= 257; count++) {
        _cleanup_ovmf_ struct ovmf *ovmf = NULL;
        uint8_t *header = image + 16;
        make_ovmf(image, MADE_SIZE, NULL, 0, 0, 0, MADE_AP_EIP);
        memcpy(header, "ASEV", 4);
        made_put(header + 4, 16 + 12 * count, 4);
        made_put(header + 8, 1, 4);
        made_put(header + 12, count, 4);
        memcpy(header + 16, sections, 12 * count);
        made_put(image + MADE_SIZE - MADE_METADATA, MADE_SIZE - 16, 4);
        int r = ovmf_new("made", image, MADE_SIZE, &ovmf, &err);
        assert_int_equal(r, count == 256 ? 0 : -EINVAL);
    }
    assert_string_equal(error_message(&err),
                        "made: SEV metadata at offset 0x10: 257 sections are more than 256");
}

/* Whatever the bytes are: an answer, and, when it is taken, one that can be measured or is refused
 * for a reason. */
static void test_random_damage(void **state)
{
    (void)state;
    static uint8_t image[MADE_SIZE];
    static const unsigned places[] = {MADE_FOOTER, MADE_OTHER, MADE_HEADER};
    unsigned taken = 0;

    srandom(1);
    for (unsigned round = 0; round < 20000; round++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_ovmf_ struct ovmf *ovmf = NULL;
        make_amdsev(image);
        for (unsigned i = 0; i <= round % 3; i++) {
            unsigned near = places[(unsigned)random() % COUNT(places)];
            uint8_t *p = image + MADE_SIZE - near + (unsigned)random() % (near < 200 ? 18 : 100);
            unsigned value = random() % 2 == 0 ? (unsigned)random() : *p ^ 1U << random() % 8;
            *p = value & 0xff;
        }
        if (ovmf_new("made", image, MADE_SIZE, &ovmf, &err) < 0) {
            assert_memory_equal(error_message(&err), "made: ", 6);
            continue;
        }
        taken++;
        struct launch_digest digest;
        /* SEV-SNP's takes time in proportion to sections' sizes, which may be gigabytes. */
        struct measure_input input = {.mode = SEV_MODE_SEV_ES, .ovmf = ovmf, .vcpus = 2};
        int r = measure_launch(&input, &digest, &err);
        assert_true(r == 0 || (r == -EINVAL && strncmp(error_message(&err), "made: ", 6) == 0));
    }
    assert_true(taken > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ovmf),          cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_duplicates),    cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_many_sections), cmocka_unit_test(test_random_damage),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
