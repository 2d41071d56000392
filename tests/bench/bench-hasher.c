/* SPDX-License-Identifier: MIT */
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/error.h"
#include "hashtree/hasher.h"

/*
 * How fast each SHA-256 kernel that this CPU has hashes 4 KiB blocks with a salt of 32 bytes, on
 * one core, against OpenSSL's EVP used the natural way: copy a context that has taken the salt,
 * update, final. Three working sets: one that stays in the second-level cache, as in the pipeline;
 * one that comes from memory; and a single block, as when one hash block is asked for.
 *
 * All ways take turns in short slices, so that what else the machine does hits them alike; the
 * ratio is of the best slices, and that of the medians stands beside it. With --json, all slices'
 * rates are printed, in their order.
 */
enum { BLOCK = 4096, SALT = 32, DIGEST = 32, SLICES = 41 };
#define SLICE_BYTES ((size_t)24 << 20)
#define LARGEST ((size_t)64 << 20)

struct contender {
    const char *name;
    struct hasher *hasher; /* NULL: EVP */
    double rate[SLICES];   /* bytes per second */
};

struct working_set {
    const char *name, *title;
    size_t size; /* bytes */
    size_t blocks_per_call;
};

static const struct working_set sets[] = {
    {"cache", "512 KiB, in the cache", (size_t)512 << 10, 128},
    {"memory", "64 MiB, from memory", LARGEST, 128},
    {"single", "single blocks, in the cache", (size_t)64 << 10, 1},
};

static const uint8_t salt[SALT];

static void fail(const char *what)
{
    fprintf(stderr, "bench-hasher: %s\n", what);
    exit(EXIT_FAILURE);
}

/* Of this thread, so that being descheduled does not count. */
static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void evp_hash(const uint8_t *blocks, size_t count, uint8_t *digests)
{
    static EVP_MD_CTX *salted, *ctx;

    if (ctx == NULL) {
        salted = EVP_MD_CTX_new();
        ctx = EVP_MD_CTX_new();
        if (salted == NULL || ctx == NULL || !EVP_DigestInit_ex2(salted, EVP_sha256(), NULL) ||
            !EVP_DigestUpdate(salted, salt, SALT))
            fail("EVP");
    }
    for (size_t i = 0; i < count; i++)
        if (!EVP_MD_CTX_copy_ex(ctx, salted) || !EVP_DigestUpdate(ctx, blocks + i * BLOCK, BLOCK) ||
            !EVP_DigestFinal_ex(ctx, digests + i * DIGEST, NULL))
            fail("EVP");
}

static void hash(const struct contender *c, const uint8_t *blocks, size_t count, uint8_t *digests)
{
    struct error err = ERROR_INIT;

    if (c->hasher == NULL)
        evp_hash(blocks, count, digests);
    else if (hasher_hash_blocks(c->hasher, blocks, BLOCK, count, digests, DIGEST, &err) < 0)
        fail(error_message(&err));
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void measure(struct contender *c, unsigned n, const uint8_t *data,
                    const struct working_set *set)
{
    size_t count = set->size / BLOCK;
    size_t repeat = SLICE_BYTES / set->size > 0 ? SLICE_BYTES / set->size : 1;
    uint8_t *digests = malloc(count * DIGEST), *expected = malloc(count * DIGEST);

    if (digests == NULL || expected == NULL)
        fail("out of memory");
    evp_hash(data, count, expected);
    for (int slice = 0; slice < SLICES; slice++) {
        for (unsigned k = 0; k < n; k++) {
            double start = now();
            for (size_t r = 0; r < repeat; r++)
                for (size_t i = 0; i < count; i += set->blocks_per_call)
                    hash(&c[k], data + i * BLOCK, set->blocks_per_call, digests + i * DIGEST);
            c[k].rate[slice] = (double)(repeat * set->size) / (now() - start);
            if (memcmp(digests, expected, count * DIGEST) != 0)
                fail("a kernel's digests differ from OpenSSL's");
        }
    }
    free(digests);
    free(expected);
}

static void print_table(struct contender *c, unsigned n, const struct working_set *set)
{
    printf("%s\n  %-12s %10s %10s %8s %8s\n", set->title, "kernel", "best GB/s", "median", "ratio",
           "median");
    for (unsigned k = 0; k < n; k++)
        qsort(c[k].rate, SLICES, sizeof(double), compare);
    for (unsigned k = 0; k < n; k++)
        printf("  %-12s %10.2f %10.2f %7.2fx %7.2fx\n", c[k].name, c[k].rate[SLICES - 1] * 1e-9,
               c[k].rate[SLICES / 2] * 1e-9, c[k].rate[SLICES - 1] / c[0].rate[SLICES - 1],
               c[k].rate[SLICES / 2] / c[0].rate[SLICES / 2]);
    printf("\n");
}

static void print_json(const struct contender *c, unsigned n, const char *name)
{
    printf("\"%s\": {", name);
    for (unsigned k = 0; k < n; k++) {
        printf("%s\n  \"%s\": [", k > 0 ? "," : "", c[k].name);
        for (int slice = 0; slice < SLICES; slice++)
            printf("%s%.0f", slice > 0 ? ", " : "", c[k].rate[slice]);
        printf("]");
    }
    printf("\n }");
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"avx512", "shani", "avx2", "openssl"};
    struct contender contenders[5] = {{.name = "EVP"}};
    unsigned n = 1;
    bool json = argc > 1 && strcmp(argv[1], "--json") == 0;
    uint8_t *data = aligned_alloc(BLOCK, LARGEST);
    uint32_t random = 1;

    if (data == NULL)
        fail("out of memory");
    for (size_t i = 0; i < LARGEST; i++) {
        random = random * 1664525 + 1013904223;
        data[i] = (uint8_t)(random >> 24);
    }
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct error err = ERROR_INIT;

        setenv("QVERITY_HASH_KERNEL", names[i], 1);
        contenders[n].name = names[i];
        if (hasher_new("sha256", HASHER_SALT_FIRST, salt, SALT, &contenders[n].hasher, &err) < 0)
            fprintf(stderr, "%s\n", error_message(&err));
        else
            n++;
        error_clear(&err);
    }

    if (json)
        printf("{\"slices\": %d, \"rates\": {\n ", SLICES);
    for (unsigned i = 0; i < sizeof(sets) / sizeof(sets[0]); i++) {
        measure(contenders, n, data, &sets[i]);
        if (json) {
            printf("%s", i > 0 ? ",\n " : "");
            print_json(contenders, n, sets[i].name);
        } else {
            print_table(contenders, n, &sets[i]);
        }
    }
    if (json)
        printf("\n}}\n");

    for (unsigned i = 0; i < n; i++)
        hasher_free(contenders[i].hasher);
    free(data);
    return EXIT_SUCCESS;
}
