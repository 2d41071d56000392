/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/* Decimal or 0x hexadecimal, nothing around it. `what` names the value in the message. */
int parse_u64(const char *text, const char *what, uint64_t *ret, struct error *err);

/* As parse_u64(), with an optional suffix k, K, M, G, T, P or E: powers of 1024, as QEMU's. */
int parse_size(const char *text, const char *what, uint64_t *ret, struct error *err);

/* Hex digits of either case into bytes. The number of digits must be even and give at most `room`
 * bytes; *ret_length gets how many. */
int hex_decode(const char *text, const char *what, uint8_t *bytes, size_t room, size_t *ret_length,
               struct error *err);

/* Writes 2 * length lower-case digits and a NUL to `text`. */
void hex_encode(const uint8_t *bytes, size_t length, char *text);

#define FORMAT_SIZE_MAX 16
/* "512 B", "4.0 KiB", "499 GiB". Returns `buffer`. */
const char *format_size(uint64_t bytes, char buffer[static FORMAT_SIZE_MAX]);
