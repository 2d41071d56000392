/* SPDX-License-Identifier: MIT */
#include "common/units.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"

/* strtoull() alone takes blanks, a sign, and octal. */
static int parse_digits(const char *text, const char *what, uint64_t *ret, const char **ret_end,
                        struct error *err)
{
    int base = 10;
    const char *digits = text;
    char *end;

    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
        base = 16;
        digits += 2;
    }
    if (!isxdigit((unsigned char)digits[0]) || (base == 10 && !isdigit((unsigned char)digits[0])))
        return error_set(err, EINVAL, "%s: '%s' is not a number", what, text);
    errno = 0;
    unsigned long long value = strtoull(digits, &end, base);
    if (errno == ERANGE)
        return error_set(err, ERANGE, "%s: '%s' is too large", what, text);
    *ret = value;
    *ret_end = end;
    return 0;
}

int parse_u64(const char *text, const char *what, uint64_t *ret, struct error *err)
{
    uint64_t value;
    const char *end;

    int r = parse_digits(text, what, &value, &end, err);
    if (r < 0)
        return r;
    if (*end != '\0')
        return error_set(err, EINVAL, "%s: '%s' is not a number", what, text);
    *ret = value;
    return 0;
}

int parse_size(const char *text, const char *what, uint64_t *ret, struct error *err)
{
    static const char suffixes[] = "KMGTPE";
    uint64_t value;
    const char *end;

    int r = parse_digits(text, what, &value, &end, err);
    if (r < 0)
        return r;
    if (*end != '\0') {
        const char *suffix = strchr(suffixes, toupper((unsigned char)*end));
        if (suffix == NULL || end[1] != '\0')
            return error_set(err, EINVAL,
                             "%s: '%s' is not a size (a number, then none or one of K M G T P E)",
                             what, text);
        if (!checked_mul(value, UINT64_C(1) << (10 * (suffix - suffixes + 1)), &value))
            return error_set(err, ERANGE, "%s: '%s' is too large", what, text);
    }
    *ret = value;
    return 0;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int hex_decode(const char *text, const char *what, uint8_t *bytes, size_t room, size_t *ret_length,
               struct error *err)
{
    size_t digits = strlen(text);

    for (size_t i = 0; i < digits; i++)
        if (hex_digit(text[i]) < 0)
            return error_set(err, EINVAL, "%s: character %zu is not a hex digit", what, i + 1);
    if (digits % 2 != 0)
        return error_set(err, EINVAL, "%s: %zu hex digits, an odd number", what, digits);
    if (digits / 2 > room)
        return error_set(err, EINVAL, "%s: %zu bytes, but %zu at most are allowed", what,
                         digits / 2, room);
    for (size_t i = 0; i < digits / 2; i++)
        bytes[i] = (uint8_t)(hex_digit(text[2 * i]) << 4 | hex_digit(text[2 * i + 1]));
    *ret_length = digits / 2;
    return 0;
}

void hex_encode(const uint8_t *bytes, size_t length, char *text)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < length; i++) {
        text[2 * i] = digits[bytes[i] >> 4];
        text[2 * i + 1] = digits[bytes[i] & 15];
    }
    text[2 * length] = '\0';
}

const char *format_size(uint64_t bytes, char buffer[static FORMAT_SIZE_MAX])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1024 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024;
        unit++;
    }
    snprintf(buffer, FORMAT_SIZE_MAX, unit == 0 || value >= 100 ? "%.0f %s" : "%.1f %s", value,
             units[unit]);
    return buffer;
}
