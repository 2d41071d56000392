/* SPDX-License-Identifier: MIT */
#pragma once

#include <endian.h>
#include <stdint.h>
#include <string.h>

/* Big-endian numbers at any address, as all of qcow2's are. */
static inline uint16_t get_be16(const void *p)
{
    uint16_t n;

    memcpy(&n, p, sizeof(n));
    return be16toh(n);
}

static inline uint32_t get_be32(const void *p)
{
    uint32_t n;

    memcpy(&n, p, sizeof(n));
    return be32toh(n);
}

static inline uint64_t get_be64(const void *p)
{
    uint64_t n;

    memcpy(&n, p, sizeof(n));
    return be64toh(n);
}

/* Little-endian numbers at any address, as partition tables and ext4 have them. */
static inline uint16_t get_le16(const void *p)
{
    uint16_t n;

    memcpy(&n, p, sizeof(n));
    return le16toh(n);
}

static inline uint32_t get_le32(const void *p)
{
    uint32_t n;

    memcpy(&n, p, sizeof(n));
    return le32toh(n);
}

static inline uint64_t get_le64(const void *p)
{
    uint64_t n;

    memcpy(&n, p, sizeof(n));
    return le64toh(n);
}
