/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/* The probe's guest and what host and guest must agree on. */

/* The stages that the guest reports by writing the number to ACCEL_GUEST_PORT. */
enum accel_stage {
    ACCEL_STAGE_NONE,
    ACCEL_STAGE_REAL, /* an instruction ran, in real mode */
    ACCEL_STAGE_LONG, /* long mode with paging */
    ACCEL_STAGE_LOOP, /* the loop is done */
    ACCEL_STAGE_DONE, /* a timer interrupt has arrived */
};

#define ACCEL_GUEST_PORT 0xf4

/* Guest physical addresses. */
#define ACCEL_GUEST_CODE 0x1000
#define ACCEL_GUEST_LOOPS 0x2000 /* how many turns the loop makes, 32 bits */
#define ACCEL_GUEST_IDT 0x3000
#define ACCEL_GUEST_PML4 0x4000
#define ACCEL_GUEST_PDPT 0x5000
#define ACCEL_GUEST_PD 0x6000
#define ACCEL_GUEST_STACK 0x8000 /* its top */
#define ACCEL_GUEST_MEMORY 0x10000

/* The interrupt vector of the timer. */
#define ACCEL_GUEST_VECTOR 0x20

/* The code, position dependent at ACCEL_GUEST_CODE; its timer interrupt handler. */
extern const uint8_t accel_guest_start[], accel_guest_timer[], accel_guest_end[];

/* As accel_probe_kvm(), with a loop of `loops` turns and a limit of `limit_ms` milliseconds. */
int accel_probe_kvm_limits(uint32_t loops, int limit_ms, struct error *err);
