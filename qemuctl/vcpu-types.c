/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "qemuctl/measure.h"

/*
 * The EPYC models of QEMU up to version 11 (target/i386/cpu.c, builtin_x86_defs). A model's
 * versions change its features, never its signature. EPYC-IBPB is an alias of EPYC-v2.
 */
static const struct vcpu_type {
    const char *name;
    uint8_t family, model, stepping;
} types[] = {
    {"EPYC", 23, 1, 2},           {"EPYC-v1", 23, 1, 2},        {"EPYC-v2", 23, 1, 2},
    {"EPYC-IBPB", 23, 1, 2},      {"EPYC-v3", 23, 1, 2},        {"EPYC-v4", 23, 1, 2},
    {"EPYC-v5", 23, 1, 2},        {"EPYC-Rome", 23, 49, 0},     {"EPYC-Rome-v1", 23, 49, 0},
    {"EPYC-Rome-v2", 23, 49, 0},  {"EPYC-Rome-v3", 23, 49, 0},  {"EPYC-Rome-v4", 23, 49, 0},
    {"EPYC-Rome-v5", 23, 49, 0},  {"EPYC-Milan", 25, 1, 1},     {"EPYC-Milan-v1", 25, 1, 1},
    {"EPYC-Milan-v2", 25, 1, 1},  {"EPYC-Milan-v3", 25, 1, 1},  {"EPYC-Genoa", 25, 17, 0},
    {"EPYC-Genoa-v1", 25, 17, 0}, {"EPYC-Genoa-v2", 25, 17, 0}, {"EPYC-Turin", 26, 0, 0},
    {"EPYC-Turin-v1", 26, 0, 0},  {"EPYC-Turin-v2", 26, 0, 0},
};
#define TYPE_COUNT (sizeof(types) / sizeof(types[0]))

#define FAMILY_MAX (0xf + 0xff)

int vcpu_signature(uint64_t family, uint64_t model, uint64_t stepping, uint32_t *ret,
                   struct error *err)
{
    if (family > FAMILY_MAX)
        return error_set(err, EINVAL, "CPU family %" PRIu64 " is more than %d", family, FAMILY_MAX);
    if (model > 0xff)
        return error_set(err, EINVAL, "CPU model %" PRIu64 " is more than 255", model);
    if (stepping > 0xf)
        return error_set(err, EINVAL, "CPU stepping %" PRIu64 " is more than 15", stepping);

    /* ExtFamily[27:20] ExtModel[19:16] BaseFamily[11:8] BaseModel[7:4] Stepping[3:0] */
    uint32_t base = (uint32_t)(family < 0xf ? family : 0xf);
    uint32_t extended = (uint32_t)family - base;
    *ret = extended << 20 | (uint32_t)(model >> 4) << 16 | base << 8 |
           (uint32_t)(model & 0xf) << 4 | (uint32_t)stepping;
    return 0;
}

int vcpu_type_signature(const char *type, uint32_t *ret, struct error *err)
{
    char names[512] = "";
    size_t length = 0;

    for (size_t i = 0; i < TYPE_COUNT; i++) {
        if (strcmp(types[i].name, type) == 0)
            return vcpu_signature(types[i].family, types[i].model, types[i].stepping, ret, err);
        length += (size_t)snprintf(names + length, sizeof(names) - length, "%s%s",
                                   i == 0 ? "" : " ", types[i].name);
        assert(length < sizeof(names));
    }
    return error_set(err, ENOENT, "'%s' is none of %s", type, names);
}

const char *vcpu_type_name(size_t index)
{
    return index < TYPE_COUNT ? types[index].name : NULL;
}
