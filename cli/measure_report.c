/* SPDX-License-Identifier: MIT */
#include "cli/measure.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <strings.h>

#include "common/text.h"
#include "common/units.h"

/*
 * Launch digests that differ tell nothing about why. So everything that goes into one can be shown,
 * and for SEV-SNP the digest after each step: the first line that differs between two reports is
 * the input that does.
 */

#define HEX_MAX (2 * LAUNCH_DIGEST_MAX + 1)
#define LABEL "%-16s "

/* --- Options --- */

static const char *const mode_names[] = {
    [SEV_MODE_SEV] = "sev",
    [SEV_MODE_SEV_ES] = "seves",
    [SEV_MODE_SNP] = "snp",
};

static const char *const vmm_names[] = {
    [SEV_VMM_QEMU] = "qemu",
    [SEV_VMM_EC2] = "ec2",
    [SEV_VMM_GCE] = "gce",
};

int measure_parse_mode(const char *argument, enum sev_mode *ret, struct error *err)
{
    for (size_t i = 0; i < sizeof(mode_names) / sizeof(mode_names[0]); i++)
        if (strcmp(argument, mode_names[i]) == 0) {
            *ret = (enum sev_mode)i;
            return 0;
        }
    return error_set(err, EINVAL, "--mode: '%s' is no mode", argument);
}

const char *measure_mode_name(enum sev_mode mode)
{
    return mode_names[mode];
}

int measure_parse_vmm(const char *argument, enum sev_vmm *ret, struct error *err)
{
    for (size_t i = 0; i < sizeof(vmm_names) / sizeof(vmm_names[0]); i++)
        if (strcasecmp(argument, vmm_names[i]) == 0) {
            *ret = (enum sev_vmm)i;
            return 0;
        }
    return error_set(err, EINVAL, "--vmm: '%s' is not qemu, ec2 or gce", argument);
}

const char *measure_vmm_name(enum sev_vmm vmm)
{
    return vmm_names[vmm];
}

int measure_parse_vcpus(const char *argument, const char *what, unsigned *ret, struct error *err)
{
    uint64_t value;

    int r = parse_u64(argument, what, &value, err);
    if (r < 0)
        return r;
    if (value < 1 || value > MEASURE_VCPUS_MAX)
        return error_set(err, EINVAL, "%s: '%s' is not between 1 and %d", what, argument,
                         MEASURE_VCPUS_MAX);
    *ret = (unsigned)value;
    return 0;
}

uint64_t measure_features(enum sev_mode mode, bool given, uint64_t features)
{
    if (mode != SEV_MODE_SNP)
        return 0;
    return given ? features : SEV_FEATURE_SNP;
}

/* --- JSON --- */

int measure_put_hex(json_t *object, const char *key, const uint8_t *bytes, size_t size,
                    struct error *err)
{
    char text[HEX_MAX];

    assert(size <= LAUNCH_DIGEST_MAX);
    hex_encode(bytes, size, text);
    return json_put(object, key, json_string(text), err);
}

json_t *measure_file_json(const char *file, const uint8_t sha256[static 32])
{
    _cleanup_json_ json_t *object = json_object();

    if (object == NULL || json_put(object, "file", json_text(file), NULL) < 0 ||
        measure_put_hex(object, "sha256", sha256, 32, NULL) < 0)
        return NULL;
    return TAKE_PTR(object);
}

static int inputs_json(const struct measure_report *report, const uint8_t ovmf_sha256[static 32],
                       json_t *object, struct error *err)
{
    const struct measure_input *input = report->input;
    const struct kernel_hashes *kernel = input->kernel;
    json_t *ovmf = measure_file_json(ovmf_name(input->ovmf), ovmf_sha256);

    int r = json_put(object, "ovmf", ovmf, err);
    if (r == 0)
        r = json_put(ovmf, "size", json_integer((json_int_t)ovmf_size(input->ovmf)), err);
    if (r == 0)
        r = json_put(ovmf, "gpa", json_integer((json_int_t)ovmf_gpa(input->ovmf)), err);
    if (r == 0 && input->ovmf_hash != NULL)
        r = measure_put_hex(object, "ovmf_hash", input->ovmf_hash, LAUNCH_DIGEST_MAX, err);
    if (r == 0)
        r = json_put(
            object, "kernel",
            kernel != NULL ? measure_file_json(report->kernel, kernel->kernel) : json_null(), err);
    if (r == 0)
        r = json_put(
            object, "initrd",
            kernel != NULL ? measure_file_json(report->initrd, kernel->initrd) : json_null(), err);
    if (r == 0)
        r = json_put_text(object, "append", "append_hex",
                          kernel == NULL           ? NULL
                          : report->append != NULL ? report->append
                                                   : "",
                          err);
    if (r == 0 && kernel != NULL)
        r = measure_put_hex(object, "append_sha256", kernel->cmdline, 32, err);
    if (r < 0 || input->mode == SEV_MODE_SEV)
        return r;
    r = json_put(object, "vcpus", json_integer(input->vcpus), err);
    if (r == 0 && input->vmm == SEV_VMM_QEMU)
        r = json_put(object, "vcpu_type", json_text(report->vcpu_type), err);
    if (r == 0 && input->vmm == SEV_VMM_QEMU)
        r = json_put(object, "vcpu_signature", json_integer(input->vcpu_signature), err);
    if (r == 0)
        r = json_put(object, "guest_features", json_integer((json_int_t)input->guest_features),
                     err);
    return r;
}

static int step_json(const struct measure_step *step, json_t *array, struct error *err)
{
    static const char *const names[] = {
        [MEASURE_FIRMWARE] = "firmware",
        [MEASURE_FIRMWARE_HASH] = "firmware_hash",
        [MEASURE_KERNEL_HASHES] = "kernel_hashes",
        [MEASURE_SECTION] = "section",
        [MEASURE_VMSA] = "vmsa",
    };
    json_t *object = json_object();

    if (object == NULL || json_array_append_new(array, object) != 0)
        return error_oom(err);
    int r = json_put(object, "step", json_string(names[step->kind]), err);
    if (r == 0 && (step->kind == MEASURE_SECTION || step->kind == MEASURE_VMSA))
        r = json_put(object, step->kind == MEASURE_VMSA ? "vcpu" : "index",
                     json_integer(step->index), err);
    if (r == 0 && step->kind == MEASURE_SECTION)
        r = json_put(object, "type", json_string(ovmf_section_type_name(step->type)), err);
    if (r == 0 && step->kind == MEASURE_VMSA)
        r = json_put(object, "eip", json_integer(step->eip), err);
    if (r == 0 && step->gpa != 0)
        r = json_put(object, "gpa", json_integer((json_int_t)step->gpa), err);
    if (r == 0 && step->kind != MEASURE_FIRMWARE_HASH)
        r = json_put(object, "size", json_integer((json_int_t)step->size), err);
    if (r == 0 && step->page_type != NULL)
        r = json_put(object, "page_type", json_string(step->page_type), err);
    if (r == 0 && step->kind != MEASURE_SECTION && step->kind != MEASURE_FIRMWARE_HASH)
        r = measure_put_hex(object, "sha256", step->sha256, 32, err);
    if (r == 0 && step->snp)
        r = measure_put_hex(object, "digest", step->digest, LAUNCH_DIGEST_MAX, err);
    return r;
}

/* --- Text --- */

static void print_hex(FILE *out, const char *label, const uint8_t *bytes, size_t size)
{
    char text[HEX_MAX];

    hex_encode(bytes, size, text);
    fprintf(out, LABEL "%s\n", label, text);
}

static int print_name(FILE *out, const char *label, const char *name, struct error *err)
{
    _cleanup_free_ char *text = text_printable(name);

    if (text == NULL)
        return error_oom(err);
    fprintf(out, LABEL "%s\n", label, text);
    return 0;
}

static int print_kernel(const struct measure_report *report, FILE *out, struct error *err)
{
    const struct kernel_hashes *kernel = report->input->kernel;

    if (kernel == NULL)
        return print_name(out, "Kernel:", "none", err);
    int r = print_name(out, "Kernel:", report->kernel, err);
    print_hex(out, "  SHA-256:", kernel->kernel, 32);
    if (r == 0)
        r = print_name(out, "Initrd:", report->initrd != NULL ? report->initrd : "none", err);
    print_hex(out, "  SHA-256:", kernel->initrd, 32);
    if (r == 0)
        r = print_name(out, "Command line:", report->append != NULL ? report->append : "", err);
    print_hex(out, "  SHA-256:", kernel->cmdline, 32);
    return r;
}

static void print_vcpus(const struct measure_report *report, FILE *out)
{
    const struct measure_input *input = report->input;

    if (input->mode == SEV_MODE_SEV)
        return;
    fprintf(out, LABEL "%u", "vCPUs:", input->vcpus);
    if (input->vmm == SEV_VMM_QEMU)
        fprintf(out, ", signature 0x%08" PRIx32, input->vcpu_signature);
    if (input->vmm == SEV_VMM_QEMU && report->vcpu_type != NULL)
        fprintf(out, " (%s)", report->vcpu_type);
    fprintf(out, ", SEV features 0x%" PRIx64 "\n", input->guest_features);
}

static int print_inputs(const struct measure_report *report, const uint8_t ovmf_sha256[static 32],
                        FILE *out, struct error *err)
{
    const struct measure_input *input = report->input;

    fprintf(out, LABEL "%s, as %s measures\n", "Mode:", measure_mode_name(input->mode),
            measure_vmm_name(input->vmm));
    int r = print_name(out, "OVMF:", ovmf_name(input->ovmf), err);
    if (r < 0)
        return r;
    fprintf(out, LABEL "0x%" PRIx64 " bytes at 0x%" PRIx64 "\n", "", ovmf_size(input->ovmf),
            ovmf_gpa(input->ovmf));
    print_hex(out, "  SHA-256:", ovmf_sha256, 32);
    r = print_kernel(report, out, err);
    print_vcpus(report, out);
    return r;
}

static void print_step(const struct measure_step *step, FILE *out, bool digests)
{
    char label[40], hash[HEX_MAX];

    hex_encode(step->sha256, 32, hash);
    switch (step->kind) {
    case MEASURE_FIRMWARE:
        if (step->snp)
            print_hex(out, "OVMF hash:", step->digest, LAUNCH_DIGEST_MAX);
        return;
    case MEASURE_FIRMWARE_HASH:
        print_hex(out, "OVMF hash given:", step->digest, LAUNCH_DIGEST_MAX);
        return;
    case MEASURE_KERNEL_HASHES:
        fprintf(out, LABEL "0x%" PRIx64 " bytes at 0x%" PRIx64 ", SHA-256 %s\n",
                "Hash table:", step->size, step->gpa, hash);
        return;
    case MEASURE_SECTION:
        snprintf(label, sizeof(label), "Section %u:", step->index);
        fprintf(out, LABEL "%-17s 0x%08" PRIx64 ", 0x%" PRIx64 " bytes, measured as %s\n", label,
                ovmf_section_type_name(step->type), step->gpa, step->size, step->page_type);
        break;
    case MEASURE_VMSA:
        snprintf(label, sizeof(label), "VMSA %u:", step->index);
        fprintf(out, LABEL "begins at 0x%08" PRIx32 ", SHA-256 %s\n", label, step->eip, hash);
        break;
    }
    if (digests && step->snp)
        print_hex(out, "  digest then:", step->digest, LAUNCH_DIGEST_MAX);
}

/* --- Both --- */

int measure_report_inputs(const struct measure_report *report, FILE *out, json_t *object,
                          struct error *err)
{
    uint8_t ovmf_hash[32];

    if (out == NULL && object == NULL)
        return 0;
    int r = ovmf_sha256(report->input->ovmf, ovmf_hash, err);
    if (r == 0 && out != NULL)
        r = print_inputs(report, ovmf_hash, out, err);
    if (r == 0 && object != NULL)
        r = inputs_json(report, ovmf_hash, object, err);
    return r;
}

int measure_report_step(const struct measure_step *step, FILE *out, bool digests, json_t *array,
                        struct error *err)
{
    if (out != NULL)
        print_step(step, out, digests);
    return array != NULL ? step_json(step, array, err) : 0;
}
