/* SPDX-License-Identifier: MIT */
#pragma once

#include <endian.h>
#include <stdint.h>
#include <string.h>

/* Numbers in files, at any address: get_be16(p) to get_le64(p), put_be16(p, n) to put_le64(p, n).
 */
#define DEFINE_BYTES(order, bits)                                   \
    static inline uint##bits##_t get_##order##bits(const void *p)   \
    {                                                               \
        uint##bits##_t n;                                           \
                                                                    \
        memcpy(&n, p, sizeof(n));                                   \
        return order##bits##toh(n);                                 \
    }                                                               \
    static inline void put_##order##bits(void *p, uint##bits##_t n) \
    {                                                               \
        n = hto##order##bits(n);                                    \
        memcpy(p, &n, sizeof(n));                                   \
    }                                                               \
    struct bytes_semicolon

DEFINE_BYTES(be, 16);
DEFINE_BYTES(be, 32);
DEFINE_BYTES(be, 64);
DEFINE_BYTES(le, 16);
DEFINE_BYTES(le, 32);
DEFINE_BYTES(le, 64);
