/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/disk.h"
#include "provision/internal.h"

/* All kinds of steps; each is in step-NAME.c, and stands in the table of steps.c. */
extern const struct step_type step_copy, step_debs, step_fetch, step_hash, step_initramfs,
    step_manifest, step_mmdebstrap, step_run, step_seal, step_service;

/* USER or USER:GROUP, names or numbers. */
bool owner_is_good(const char *owner);
