/* SPDX-License-Identifier: MIT */
#include "provision/steps.h"

/* In the order of qverity-recipe(5); variants of one kind together. */
const struct step_type *const step_types[] = {
    &step_disk, &step_mmdebstrap, &step_iso,       &step_cloud,   &step_boot,  &step_copy,
    &step_run,  &step_debs,       &step_initramfs, &step_service, &step_fetch, &step_shutdown,
    &step_seal, &step_hash,       &step_manifest,  NULL,
};
