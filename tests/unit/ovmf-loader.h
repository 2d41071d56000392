/* SPDX-License-Identifier: MIT */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "qemuctl/measure.h"
#include "tests/unit/ovmf-maker.h"

/* Images of ovmf-maker.h, taken for a firmware. */

static inline struct ovmf *load_made(void (*make)(uint8_t image[static MADE_SIZE]))
{
    static uint8_t image[MADE_SIZE];
    struct ovmf *ovmf = NULL;

    make(image);
    assert_int_equal(ovmf_new("made", image, MADE_SIZE, &ovmf, NULL), 0);
    return ovmf;
}

static inline struct ovmf *amdsev(void)
{
    return load_made(make_amdsev);
}

static inline struct ovmf *ovmfx64(void)
{
    return load_made(make_ovmfx64);
}
