/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdio.h>

#include "cli/cli.h"
#include "qemuctl/measure.h"

/* What the commands have in common that compute launch digests: the options about vCPUs and the
 * VMM, and the report of all that went into a digest. */

/* --- Options --- */

int measure_parse_mode(const char *argument, enum sev_mode *ret, struct error *err);
const char *measure_mode_name(enum sev_mode mode);

/* As of --vmm; upper case, too. */
int measure_parse_vmm(const char *argument, enum sev_vmm *ret, struct error *err);
const char *measure_vmm_name(enum sev_vmm vmm);

/* 1 to MEASURE_VCPUS_MAX. */
int measure_parse_vcpus(const char *argument, const char *what, unsigned *ret, struct error *err);

/* The SEV features of a guest's VMSAs: as they were given, or what KVM has. sev-snp-measure never
 * puts any into SEV-ES's. */
uint64_t measure_features(enum sev_mode mode, bool given, uint64_t features);

/* --- The report --- */

/* What a digest was computed from, as it was given. */
struct measure_report {
    const struct measure_input *input;
    const char *kernel, *initrd, *append; /* initrd and append may be NULL */
    const char *vcpu_type;                /* NULL if a number was given */
};

/* Opens the report: as lines of text on `out`, and as members of `object`; either may be NULL. */
int measure_report_inputs(const struct measure_report *report, FILE *out, json_t *object,
                          struct error *err);

/* One step: a line, with the digest so far if `digests`; and an object in `array`. */
int measure_report_step(const struct measure_step *step, FILE *out, bool digests, json_t *array,
                        struct error *err);

/* A file's digest as {"file": …, "sha256": …}. New reference, or NULL when out of memory. */
json_t *measure_file_json(const char *file, const uint8_t sha256[static 32]);

/* Sets `key` to hex digits. */
int measure_put_hex(json_t *object, const char *key, const uint8_t *bytes, size_t size,
                    struct error *err);
