/* SPDX-License-Identifier: MIT */
#pragma once

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Arithmetic on numbers that come from files or users. The checked_ functions return false, and
 * leave *ret alone, when the result does not fit.
 */
static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t sum;

    if (__builtin_add_overflow(a, b, &sum))
        return false;
    *ret = sum;
    return true;
}

static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t product;

    if (__builtin_mul_overflow(a, b, &product))
        return false;
    *ret = product;
    return true;
}

/* Whether [offset, offset + length) lies within [0, limit). */
static inline bool range_within(uint64_t offset, uint64_t length, uint64_t limit)
{
    return offset <= limit && length <= limit - offset;
}

static inline bool is_power_of_two(uint64_t n)
{
    return n != 0 && (n & (n - 1)) == 0;
}

/* n / d, rounded up; cannot overflow. */
static inline uint64_t div_round_up(uint64_t n, uint64_t d)
{
    assert(d != 0);
    return n / d + (n % d != 0);
}

static inline uint64_t align_down(uint64_t n, uint64_t alignment)
{
    assert(is_power_of_two(alignment));
    return n & ~(alignment - 1);
}

/* False if the result does not fit. */
static inline bool checked_align_up(uint64_t n, uint64_t alignment, uint64_t *ret)
{
    assert(is_power_of_two(alignment));
    uint64_t sum;

    if (!checked_add(n, alignment - 1, &sum))
        return false;
    *ret = align_down(sum, alignment);
    return true;
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}
