/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/units.h"
#include "qemuctl/measure.h"
#include "tests/unit/ovmf-loader.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* --- Digests --- */

/*
 * Digests that sev-snp-measure publishes in its tests for these two builds of edk2. With the hash
 * of the firmware's own pages given, all else that goes in are the sections, the reset address and
 * the place of the table, which the made images have in common with the real ones.
 */
#define AMDSEV_HASH                                                                                \
    "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d46" \
    "6b74"
#define OVMFX64_HASH                                                                               \
    "b91e6fec73d2bcc57ad5fd400a426ce02731c22ea92bc894ce675e7c9921a822977d6cf025b85f8ef4f264bff883" \
    "9d20"

static void test_published(void **state)
{
    (void)state;
    static const struct {
        bool ovmfx64;
        enum sev_vmm vmm;
        unsigned vcpus;
        uint64_t features;
        const char *append; /* with /dev/null for kernel and initrd; NULL: no kernel */
        const char *digest;
    } cases[] = {
        {0, SEV_VMM_QEMU, 1, 0x21, "",
         "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98"
         "a"
         "7ef198"},
        {0, SEV_VMM_QEMU, 1, 0x1, "",
         "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa38"
         "5"
         "2819b5"},
        {0, SEV_VMM_QEMU, 1, 0x21, "console=ttyS0 loglevel=7",
         "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d"
         "0"
         "228977"},
        {0, SEV_VMM_QEMU, 1, 0x1, "console=ttyS0 loglevel=7",
         "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363"
         "b"
         "4b08fa"},
        {0, SEV_VMM_QEMU, 4, 0x21, "",
         "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414"
         "a"
         "631942"},
        {0, SEV_VMM_QEMU, 4, 0x1, "",
         "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e2"
         "3"
         "046ad5"},
        {0, SEV_VMM_QEMU, 1, 0x21, NULL,
         "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22ad"
         "b"
         "cd0e2b"},
        {0, SEV_VMM_QEMU, 1, 0x1, NULL,
         "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c"
         "5"
         "df632d"},
        {0, SEV_VMM_EC2, 1, 0x21, "",
         "0ce9ccc06bab55eebe8abc234f3df6514883977a68a591b71052498ab52b2f1aa415db338033946ef93aa8278"
         "c"
         "0d67fb"},
        {0, SEV_VMM_EC2, 1, 0x1, "",
         "0883bd0eeb716e65b7b977a321c278d1e51b33b5c655fab985443bbcc65c086b9c15e8a0bd8811050dec7e249"
         "6"
         "4e5056"},
        {0, SEV_VMM_GCE, 1, 0x1, "",
         "5da7106cf14cf46b1725ebab123eb9e53bd46a1e9f400cd0c08e7827b04b688ea8b4e403c8404efed4397ea5d"
         "5"
         "d0722e"},
        {0, SEV_VMM_GCE, 4, 0x1, "",
         "5c5debf100fc339f90276e761ee1f1658d08922c3b20e2a2e6c7a6c3370b2452a15a00eae11886a93d6fd1e7a"
         "b"
         "81e29d"},
        {1, SEV_VMM_QEMU, 1, 0x21, NULL,
         "28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8"
         "a"
         "64c385"},
        {1, SEV_VMM_QEMU, 1, 0x1, NULL,
         "da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a"
         "3"
         "0b4005"},
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        _cleanup_ovmf_ struct ovmf *ovmf = cases[i].ovmfx64 ? ovmfx64() : amdsev();
        uint8_t hash[LAUNCH_DIGEST_MAX];
        struct kernel_hashes kernel;
        struct launch_digest digest;
        char text[2 * LAUNCH_DIGEST_MAX + 1];
        size_t size;

        assert_int_equal(hex_decode(cases[i].ovmfx64 ? OVMFX64_HASH : AMDSEV_HASH, "hash", hash,
                                    sizeof(hash), &size, NULL),
                         0);
        assert_int_equal(
            kernel_hashes_from_files("/dev/null", "/dev/null", cases[i].append, &kernel, NULL), 0);
        struct measure_input input = {
            .mode = SEV_MODE_SNP,
            .vmm = cases[i].vmm,
            .ovmf = ovmf,
            .ovmf_hash = hash,
            .kernel = cases[i].append != NULL ? &kernel : NULL,
            .vcpus = cases[i].vcpus,
            .guest_features = cases[i].features,
        };
        assert_int_equal(vcpu_type_signature("EPYC-v4", &input.vcpu_signature, NULL), 0);
        assert_int_equal(measure_launch(&input, &digest, NULL), 0);
        assert_int_equal(digest.size, 48);
        hex_encode(digest.bytes, digest.size, text);
        if (strcmp(text, cases[i].digest) != 0)
            fail_msg("case %zu: %s", i, text);
    }
}

/* The hash of the firmware's pages is where its digest begins. */
static void test_firmware_hash(void **state)
{
    (void)state;
    _cleanup_ovmf_ struct ovmf *ovmf = amdsev();
    uint8_t hash[LAUNCH_DIGEST_MAX];
    struct launch_digest whole, continued;
    struct measure_input input = {
        .mode = SEV_MODE_SNP, .ovmf = ovmf, .vcpus = 3, .guest_features = 1};

    assert_int_equal(measure_launch(&input, &whole, NULL), 0);
    assert_int_equal(ovmf_snp_hash(ovmf, hash, NULL), 0);
    input.ovmf_hash = hash;
    assert_int_equal(measure_launch(&input, &continued, NULL), 0);
    assert_memory_equal(whole.bytes, continued.bytes, 48);
    hash[47] ^= 1;
    assert_int_equal(measure_launch(&input, &continued, NULL), 0);
    assert_memory_not_equal(whole.bytes, continued.bytes, 48);
}

struct steps {
    unsigned count, fail_at;
    struct measure_step steps[32];
    uint64_t rip[32]; /* of VMSAs */
};

static int take_step(void *arg, const struct measure_step *step, struct error *err)
{
    struct steps *steps = arg;

    if (steps->count == steps->fail_at)
        return error_set(err, ENOSPC, "enough");
    assert_true(steps->count < COUNT(steps->steps));
    if (step->kind == MEASURE_VMSA)
        memcpy(&steps->rip[steps->count], step->vmsa + 0x178, 8);
    steps->steps[steps->count++] = *step;
    return 0;
}

static void test_steps(void **state)
{
    (void)state;
    static const struct {
        enum sev_mode mode;
        enum sev_vmm vmm;
        const char *kinds;    /* F firmware, H hashes, S section, V VMSA */
        const char *sections; /* their indices in the order that they are measured in */
    } cases[] = {
        {SEV_MODE_SNP, SEV_VMM_QEMU, "FSSSSSSSVVV", "0123456"},
        {SEV_MODE_SNP, SEV_VMM_EC2, "FSSSSSSSVVV", "0124563"},
        {SEV_MODE_SEV_ES, SEV_VMM_QEMU, "FHVVV", ""},
        {SEV_MODE_SEV, SEV_VMM_QEMU, "FH", ""},
    };
    static const char letters[] = {[MEASURE_FIRMWARE] = 'F',
                                   [MEASURE_FIRMWARE_HASH] = 'f',
                                   [MEASURE_KERNEL_HASHES] = 'H',
                                   [MEASURE_SECTION] = 'S',
                                   [MEASURE_VMSA] = 'V'};
    _cleanup_ovmf_ struct ovmf *ovmf = amdsev();
    struct kernel_hashes kernel;
    struct launch_digest digest;

    assert_int_equal(kernel_hashes_from_files("/dev/null", NULL, NULL, &kernel, NULL), 0);
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct steps steps = {.fail_at = UINT32_MAX};
        char kinds[33] = "", sections[33] = "";
        unsigned vmsas = 0, section_count = 0;
        const struct measure_input input = {.mode = cases[i].mode,
                                            .vmm = cases[i].vmm,
                                            .ovmf = ovmf,
                                            .kernel = &kernel,
                                            .vcpus = 3,
                                            .step = take_step,
                                            .arg = &steps};
        assert_int_equal(measure_launch(&input, &digest, NULL), 0);
        for (unsigned j = 0; j < steps.count; j++) {
            const struct measure_step *step = &steps.steps[j];
            kinds[j] = letters[step->kind];
            if (step->kind == MEASURE_SECTION)
                sections[section_count++] = (char)('0' + step->index);
            if (step->kind != MEASURE_VMSA)
                continue;
            assert_int_equal(step->index, vmsas);
            assert_int_equal(step->eip, vmsas == 0 ? 0xfffffff0 : MADE_AP_EIP);
            assert_int_equal(steps.rip[j], vmsas == 0 ? 0xfff0 : MADE_AP_EIP & 0xffff);
            vmsas++;
        }
        assert_string_equal(kinds, cases[i].kinds);
        assert_string_equal(sections, cases[i].sections);
        if (cases[i].mode == SEV_MODE_SNP)
            assert_memory_equal(steps.steps[steps.count - 1].digest, digest.bytes, 48);
    }

    /* An error of the one who listens ends it. */
    _cleanup_error_ struct error err = ERROR_INIT;
    struct steps steps = {.fail_at = 2};
    const struct measure_input input = {.mode = SEV_MODE_SEV_ES,
                                        .ovmf = ovmf,
                                        .kernel = &kernel,
                                        .vcpus = 3,
                                        .step = take_step,
                                        .arg = &steps};
    assert_int_equal(measure_launch(&input, &digest, &err), -ENOSPC);
    assert_string_equal(error_message(&err), "enough");
}

static void test_bad_input(void **state)
{
    (void)state;
    static const uint8_t hash[LAUNCH_DIGEST_MAX];
    _cleanup_ovmf_ struct ovmf *ovmf = amdsev();
    static const struct {
        enum sev_mode mode;
        unsigned vcpus;
        const uint8_t *hash;
        const char *message;
    } cases[] = {
        {SEV_MODE_SNP, 0, NULL, "0 vCPUs are not between 1 and 4096"},
        {SEV_MODE_SEV_ES, 4097, NULL, "4097 vCPUs are not between 1 and 4096"},
        {SEV_MODE_SEV_ES, 1, hash, "a hash in place of the firmware is for SEV-SNP only"},
        {SEV_MODE_SEV, 0, hash, "a hash in place of the firmware is for SEV-SNP only"},
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct launch_digest digest = {.size = 1};
        const struct measure_input input = {.mode = cases[i].mode,
                                            .ovmf = ovmf,
                                            .vcpus = cases[i].vcpus,
                                            .ovmf_hash = cases[i].hash};
        assert_int_equal(measure_launch(&input, &digest, &err), -EINVAL);
        assert_string_equal(error_message(&err), cases[i].message);
        assert_int_equal(digest.size, 1);
    }
}

/* --- Kernel hashes --- */

static void test_kernel_hashes(void **state)
{
    (void)state;
    char path[] = "/tmp/qverity-test-measure.XXXXXX";
    struct kernel_hashes a, b, untouched = {.kernel = {1}};
    _cleanup_error_ struct error err = ERROR_INIT;
    char text[65];
    int fd = mkstemp(path), pipes[2];

    assert_true(fd >= 0);
    assert_int_equal(write(fd, "kernel", 6), 6);
    assert_int_equal(kernel_hashes_from_files(path, NULL, "x", &a, NULL), 0);
    hex_encode(a.kernel, 32, text);
    assert_string_equal(text, "6923dd1bc0460082c5d55a831908c24a282860b7f1cd6c2b79cf1bc8857c639c");
    hex_encode(a.initrd, 32, text);
    assert_string_equal(text, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    hex_encode(a.cmdline, 32, text);
    assert_string_equal(text, "14f825b2bbc32dd8d196367fa8776873069c12a8954d8da7513aa7704ddd09eb");

    /* An open file is read from its start; a pipe as it comes. */
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(write(pipes[1], "kernel", 6), 6);
    assert_int_equal(close(pipes[1]), 0);
    assert_int_equal(kernel_hashes_from_fds(fd, "k", pipes[0], "i", "x", &b, NULL), 0);
    assert_memory_equal(a.kernel, b.kernel, 32);
    assert_memory_equal(b.kernel, b.initrd, 32);
    close(pipes[0]);
    close(fd);
    assert_int_equal(unlink(path), 0);

    assert_int_equal(kernel_hashes_from_files("/nonexistent/k", NULL, NULL, &untouched, &err),
                     -ENOENT);
    assert_string_equal(error_message(&err),
                        "/nonexistent/k: cannot open: No such file or directory");
    assert_int_equal(kernel_hashes_from_files("/dev/null", "/", NULL, &untouched, &err), -EISDIR);
    assert_string_equal(error_message(&err), "/: cannot read: Is a directory");
    assert_int_equal(untouched.kernel[0], 1);
}

/* --- vCPUs --- */

static void test_vcpu_signatures(void **state)
{
    (void)state;
    static const struct {
        uint64_t family, model, stepping;
        uint32_t signature; /* 0: refused */
        const char *message;
    } cases[] = {
        {23, 1, 2, 0x00800f12, NULL},
        {23, 49, 0, 0x00830f10, NULL},
        {25, 1, 1, 0x00a00f11, NULL},
        {25, 17, 0, 0x00a10f10, NULL},
        {26, 2, 1, 0x00b00f21, NULL},
        {6, 0x8f, 8, 0x000806f8, NULL}, /* not only AMD's */
        {15, 255, 15, 0x000f0fff, NULL},
        {270, 255, 15, 0x0fff0fff, NULL},
        {271, 0, 0, 0, "CPU family 271 is more than 270"},
        {UINT64_MAX, 0, 0, 0, "CPU family 18446744073709551615 is more than 270"},
        {23, 256, 0, 0, "CPU model 256 is more than 255"},
        {23, 0, 16, 0, "CPU stepping 16 is more than 15"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        uint32_t signature = 0;
        int r =
            vcpu_signature(cases[i].family, cases[i].model, cases[i].stepping, &signature, &err);
        assert_int_equal(signature, cases[i].signature);
        assert_int_equal(r, cases[i].message == NULL ? 0 : -EINVAL);
        if (cases[i].message != NULL)
            assert_string_equal(error_message(&err), cases[i].message);
    }
}

static void test_vcpu_types(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t signature;
    } cases[] = {
        {"EPYC", 0x800f12},          {"EPYC-v1", 0x800f12},       {"EPYC-v2", 0x800f12},
        {"EPYC-IBPB", 0x800f12},     {"EPYC-v3", 0x800f12},       {"EPYC-v4", 0x800f12},
        {"EPYC-v5", 0x800f12},       {"EPYC-Rome", 0x830f10},     {"EPYC-Rome-v1", 0x830f10},
        {"EPYC-Rome-v2", 0x830f10},  {"EPYC-Rome-v3", 0x830f10},  {"EPYC-Rome-v4", 0x830f10},
        {"EPYC-Rome-v5", 0x830f10},  {"EPYC-Milan", 0xa00f11},    {"EPYC-Milan-v1", 0xa00f11},
        {"EPYC-Milan-v2", 0xa00f11}, {"EPYC-Milan-v3", 0xa00f11}, {"EPYC-Genoa", 0xa10f10},
        {"EPYC-Genoa-v1", 0xa10f10}, {"EPYC-Genoa-v2", 0xa10f10}, {"EPYC-Turin", 0xb00f00},
        {"EPYC-Turin-v1", 0xb00f00}, {"EPYC-Turin-v2", 0xb00f00},
    };
    static const char *const unknown[] = {"", "epyc-v4", "EPYC-v9", "EPYC-v4 ", "host"};
    size_t count = 0;

    for (size_t i = 0; i < COUNT(cases); i++) {
        uint32_t signature = 0;
        assert_int_equal(vcpu_type_signature(cases[i].name, &signature, NULL), 0);
        assert_int_equal(signature, cases[i].signature);
    }
    while (vcpu_type_name(count) != NULL)
        count++;
    assert_int_equal(count, COUNT(cases));
    for (size_t i = 0; i < COUNT(unknown); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        uint32_t signature;
        assert_int_equal(vcpu_type_signature(unknown[i], &signature, &err), -ENOENT);
        assert_non_null(strstr(error_message(&err), "is none of EPYC EPYC-v1 "));
        assert_non_null(strstr(error_message(&err), " EPYC-Turin-v2"));
    }
}

/* --- Before a launch --- */

static void test_check_firmware(void **state)
{
    (void)state;
    static uint8_t image[MADE_SIZE];
    static const struct made_section without_cpuid[] = {{0x80d000, 0x1000, 2}},
                                     without_secrets[] = {{0x80e000, 0x1000, 3}},
                                     unknown[] = {{0x80d000, 0x1000, 2},
                                                  {0x80e000, 0x1000, 3},
                                                  {0x80f000, 0x2000, 0x77}};
    static const struct {
        enum { AMDSEV, X64, PLAIN, NO_CPUID, NO_SECRETS, NO_RESET, UNKNOWN } firmware;
        enum sev_mode mode;
        bool kernel;
        unsigned vcpus;
        const char *message; /* begins with this behind "made: "; NULL: good */
    } cases[] = {
        {AMDSEV, SEV_MODE_SNP, true, 4, NULL},
        {AMDSEV, SEV_MODE_SEV_ES, true, 4, NULL},
        {AMDSEV, SEV_MODE_SEV, true, 4, NULL},
        {X64, SEV_MODE_SNP, false, 4, NULL},
        {X64, SEV_MODE_SNP, true, 1,
         "has no section for kernel hashes, and so does not check the "
         "kernel that it is given: OvmfPkg/AmdSev/AmdSevX64.dsc of edk2"},
        {X64, SEV_MODE_SEV, true, 1,
         "has no table for kernel hashes, and so does not check the "
         "kernel that it is given: OvmfPkg/AmdSev/AmdSevX64.dsc of edk2"},
        {X64, SEV_MODE_SEV_ES, true, 1, "has no table for kernel hashes"},
        {X64, SEV_MODE_SEV_ES, false, 1, NULL},
        {PLAIN, SEV_MODE_SNP, false, 1,
         "has no SEV metadata, and so cannot be started with SEV-SNP"},
        {PLAIN, SEV_MODE_SEV, false, 1, NULL},
        {PLAIN, SEV_MODE_SEV_ES, false, 1, NULL},
        {PLAIN, SEV_MODE_SEV_ES, false, 2, "has no SEV-ES reset block"},
        {NO_RESET, SEV_MODE_SNP, true, 1, NULL},
        {NO_RESET, SEV_MODE_SNP, true, 2, "has no SEV-ES reset block"},
        {NO_CPUID, SEV_MODE_SNP, false, 1, "its SEV metadata has no section CPUID"},
        {NO_SECRETS, SEV_MODE_SNP, false, 1, "its SEV metadata has no section SNP_SECRETS"},
        {UNKNOWN, SEV_MODE_SEV_ES, false, 1, NULL},
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        _cleanup_error_ struct error err = ERROR_INIT, launch_err = ERROR_INIT;
        _cleanup_ovmf_ struct ovmf *ovmf = NULL;
        struct kernel_hashes kernel = {0};
        struct launch_digest digest;
        switch (cases[i].firmware) {
        case PLAIN:
            memset(image, 0, MADE_SIZE);
            break;
        case NO_CPUID:
            make_ovmf(image, MADE_SIZE, without_cpuid, 1, 0, 0, MADE_AP_EIP);
            break;
        case NO_SECRETS:
            make_ovmf(image, MADE_SIZE, without_secrets, 1, 0, 0, MADE_AP_EIP);
            break;
        case UNKNOWN:
            make_ovmf(image, MADE_SIZE, unknown, 3, 0, 0, MADE_AP_EIP);
            break;
        case X64:
            make_ovmfx64(image);
            break;
        default:
            make_ovmf(image, MADE_SIZE, amdsev_sections, COUNT(amdsev_sections), MADE_HASHES_GPA,
                      0x400, cases[i].firmware == NO_RESET ? 0 : MADE_AP_EIP);
        }
        assert_int_equal(ovmf_new("made", image, MADE_SIZE, &ovmf, NULL), 0);
        int r = measure_check_firmware(ovmf, cases[i].mode, cases[i].kernel, cases[i].vcpus, &err);
        assert_int_equal(r, cases[i].message == NULL ? 0 : -EINVAL);
        if (r < 0 &&
            strncmp(error_message(&err) + 6, cases[i].message, strlen(cases[i].message)) != 0)
            fail_msg("case %zu: %s", i, error_message(&err));

        /* What cannot start has no digest either. */
        const struct measure_input input = {.mode = cases[i].mode,
                                            .ovmf = ovmf,
                                            .kernel = cases[i].kernel ? &kernel : NULL,
                                            .vcpus = cases[i].vcpus};
        assert_int_equal(measure_launch(&input, &digest, &launch_err), r);
        if (r < 0)
            assert_string_equal(error_message(&launch_err), error_message(&err));
    }

    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_ovmf_ struct ovmf *ovmf = NULL;
    struct launch_digest digest;
    make_ovmf(image, MADE_SIZE, unknown, 3, 0, 0, MADE_AP_EIP);
    assert_int_equal(ovmf_new("made", image, MADE_SIZE, &ovmf, NULL), 0);
    const struct measure_input input = {.mode = SEV_MODE_SNP, .ovmf = ovmf, .vcpus = 1};
    assert_int_equal(measure_launch(&input, &digest, &err), -EINVAL);
    assert_string_equal(
        error_message(&err),
        "made: SEV metadata section 2 (0x2000 bytes at address 0x80f000) is of type "
        "0x77: not known how that is measured");
}

static void test_check_root_hash(void **state)
{
    (void)state;
    uint8_t root[32], other[32] = {0};
    char text[65];
    char line[400];

    for (unsigned i = 0; i < 32; i++)
        root[i] = (uint8_t)(0xa0 + i);
    hex_encode(root, 32, text);
    const struct {
        const char *before, *behind;
        bool good;
    } cases[] = {
        {"", "", true},          {"verity sha256 ", " 00\"", true},
        {"roothash=", "", true}, {"0", "", false},
        {"", "f", false},        {"0", "0 00", false},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        snprintf(line, sizeof(line), "%s%s%s", cases[i].before, text, cases[i].behind);
        int r = measure_check_root_hash(root, 32, line, NULL, NULL);
        assert_int_equal(r, cases[i].good ? 0 : -EINVAL);
        /* Digits of either case say the same. */
        for (char *p = line; *p != '\0'; p++)
            *p = (char)(*p >= 'a' && *p <= 'f' ? *p - 'a' + 'A' : *p);
        assert_int_equal(measure_check_root_hash(root, 32, line, NULL, NULL), r);
    }
    /* Once as a part of something else, then alone. */
    snprintf(line, sizeof(line), "a%s %s", text, text);
    assert_int_equal(measure_check_root_hash(root, 32, line, NULL, NULL), 0);

    assert_int_equal(measure_check_root_hash(root, 32, NULL, root, NULL), 0);
    assert_int_equal(measure_check_root_hash(root, 20, NULL, root, NULL), -EINVAL);
    _cleanup_error_ struct error err = ERROR_INIT;
    assert_int_equal(measure_check_root_hash(root, 32, "ro", other, &err), -EINVAL);
    assert_non_null(strstr(error_message(&err), text));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published),       cmocka_unit_test(test_firmware_hash),
        cmocka_unit_test(test_steps),           cmocka_unit_test(test_bad_input),
        cmocka_unit_test(test_kernel_hashes),   cmocka_unit_test(test_vcpu_signatures),
        cmocka_unit_test(test_vcpu_types),      cmocka_unit_test(test_check_firmware),
        cmocka_unit_test(test_check_root_hash),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
