/* SPDX-License-Identifier: MIT */
#include "common/version.h"

#include <stdbool.h>
#include <string.h>

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_letter(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

/* A character's rank where there is no number; the end of one's text, and a digit, count as 0. */
static int rank(char c)
{
    if (c == '~')
        return -1;
    if (c == '\0' || is_digit(c))
        return 0;
    return is_letter(c) ? (unsigned char)c : (unsigned char)c + 256;
}

/* Steps over the number at *p, and its leading zeros. Returns how many digits count. */
static size_t number(const char **p)
{
    size_t n = 0;

    while (**p == '0')
        (*p)++;
    while (is_digit((*p)[n]))
        n++;
    return n;
}

int version_compare(const char *a, const char *b)
{
    while (*a != '\0' || *b != '\0') {
        while ((*a != '\0' && !is_digit(*a)) || (*b != '\0' && !is_digit(*b))) {
            if (rank(*a) != rank(*b))
                return rank(*a) < rank(*b) ? -1 : 1;
            a++;
            b++;
        }
        const size_t left = number(&a), right = number(&b);
        if (left != right)
            return left < right ? -1 : 1;
        const int order = memcmp(a, b, left);
        if (order != 0)
            return order < 0 ? -1 : 1;
        a += left;
        b += right;
    }
    return 0;
}
