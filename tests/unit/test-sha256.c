/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <openssl/evp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/checked.h"
#include "hashtree/sha256.h"

/*
 * Every kernel that this CPU has against OpenSSL's one-shot digest of the message put together in
 * one piece. The kernels are tested as plans (sha256.h), so that the plans of lesser CPUs are
 * tested as well: a plan for a set of features runs wherever those are.
 */
#define GUARD 0xa5

struct subject {
    char name[32];
    struct sha256_plan plan;
};

static struct subject subjects[16];
static size_t n_subjects;

/* Bytes to hash, the same in each run. */
#define RANDOM_SIZE ((size_t)2 << 20)
static uint8_t *random_bytes;

static uint32_t random_next(void)
{
    static uint32_t x = 2463534242;

    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return x;
}

static int setup(void **state)
{
    static const char *const names[] = {"avx512", "shani", "avx2"};
    unsigned have = sha256_cpu_features();

    (void)state;
    random_bytes = malloc(RANDOM_SIZE);
    if (random_bytes == NULL)
        return -1;
    for (size_t i = 0; i < RANDOM_SIZE; i++)
        random_bytes[i] = (uint8_t)random_next();

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        /* With what this CPU has, and without the SHA extensions for the leftovers. */
        for (int without = 0; without < 2; without++) {
            unsigned features = without ? have & ~(unsigned)SHA256_CPU_SHANI : have;
            struct subject *s = &subjects[n_subjects];

            if (without && features == have)
                continue;
            if (sha256_choose(names[i], features, &s->plan, NULL) < 0)
                continue;
            snprintf(s->name, sizeof(s->name), "%s%s", names[i], without ? " alone" : "");
            n_subjects++;
        }
    }
    subjects[n_subjects++] =
        (struct subject){"portable", {.steps = {{sha256_portable_1, 1, 1}}, .n_steps = 1}};
    print_message("%zu plans of kernels to test\n", n_subjects);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(random_bytes);
    return 0;
}

/* --- The check --- */

struct job {
    enum hasher_salt where;
    size_t salt_size;
    const uint8_t *salt;
    const uint8_t *blocks;
    size_t block_size;
    size_t count;
    size_t stride;
};

/* The salts of all jobs that do not say otherwise. */
static const uint8_t *salt_bytes(void)
{
    return random_bytes + 12345;
}

/* count * 32 bytes, to be freed. */
static uint8_t *reference(const struct job *job)
{
    uint8_t *message = malloc(job->salt_size + job->block_size + 1);
    uint8_t *digests = malloc(job->count * SHA256_DIGEST + 1);
    bool first = job->where == HASHER_SALT_FIRST;

    assert_non_null(message);
    assert_non_null(digests);
    for (size_t i = 0; i < job->count; i++) {
        memcpy(message + (first ? job->salt_size : 0), job->blocks + i * job->block_size,
               job->block_size);
        if (job->salt_size > 0)
            memcpy(message + (first ? 0 : job->block_size), job->salt, job->salt_size);
        assert_int_equal(EVP_Digest(message, job->salt_size + job->block_size,
                                    digests + i * SHA256_DIGEST, NULL, EVP_sha256(), NULL),
                         1);
    }
    free(message);
    return digests;
}

enum { ALL_RIGHT = -1, TOUCHED_OTHER_BYTES = -2 };

/* The first wrong digest of those that lie at `digests`, `stride` apart with GUARD in between, in
 * front (one byte) and behind (64 bytes); else one of the above. */
static long first_wrong(const uint8_t *digests, const uint8_t *expected, size_t count,
                        size_t stride)
{
    for (size_t i = 0; i < count; i++)
        if (memcmp(digests + i * stride, expected + i * SHA256_DIGEST, SHA256_DIGEST) != 0)
            return (long)i;
    if (digests[-1] != GUARD)
        return TOUCHED_OTHER_BYTES;
    for (size_t i = 0; i < count; i++)
        for (size_t k = SHA256_DIGEST; k < stride; k++)
            if (digests[i * stride + k] != GUARD)
                return TOUCHED_OTHER_BYTES;
    for (size_t k = 0; k < 64; k++)
        if (digests[count * stride + k] != GUARD)
            return TOUCHED_OTHER_BYTES;
    return ALL_RIGHT;
}

/* Hashes by a plan. The few blocks at the end that it leaves to OpenSSL are left out. */
static long check_plan(const struct sha256_plan *plan, const struct job *job,
                       const uint8_t *expected, size_t digest_alignment)
{
    size_t size = job->count * job->stride + 192;
    uint8_t *buffer = aligned_alloc(64, size / 64 * 64 + 64);
    struct sha256_salt salt;

    assert_non_null(buffer);
    memset(buffer, GUARD, size);
    uint8_t *digests = buffer + 64 + digest_alignment;
    sha256_salt_init(plan, job->where, job->salt, job->salt_size, &salt);
    size_t done = sha256_hash_blocks(plan, &salt, job->blocks, job->block_size, job->count, digests,
                                     job->stride);

    assert_true(done <= job->count);
    assert_true(job->count - done < plan->steps[plan->n_steps - 1].worth);
    long wrong = first_wrong(digests, expected, done, job->stride);
    free(buffer);
    return wrong;
}

static void check(const struct job *job)
{
    uint8_t *expected = reference(job);

    for (size_t i = 0; i < n_subjects; i++) {
        long wrong = check_plan(&subjects[i].plan, job, expected, random_next() % 64);

        if (wrong != ALL_RIGHT)
            fail_msg("%s: digest %ld of %zu wrong: block size %zu, salt %zu bytes %s, stride %zu",
                     subjects[i].name, wrong, job->count, job->block_size, job->salt_size,
                     job->where == HASHER_SALT_FIRST ? "first" : "last", job->stride);
    }
    free(expected);
}

/* Both orders, at a random place. */
static void check_at_random(size_t block_size, size_t salt_size, size_t count, size_t stride)
{
    size_t room = RANDOM_SIZE - block_size * count;

    for (int where = 0; where < 2; where++) {
        struct job job = {
            .where = where == 0 ? HASHER_SALT_FIRST : HASHER_SALT_LAST,
            .salt_size = salt_size,
            .salt = salt_bytes() + random_next() % 64,
            .blocks = random_bytes + random_next() % (room > 0 ? room : 1),
            .block_size = block_size,
            .count = count,
            .stride = stride,
        };
        check(&job);
    }
}

/* --- Sizes, counts, alignments --- */

static void test_block_sizes(void **state)
{
    static const size_t salts[] = {0, 1, 31, 32, 33, 54, 55, 56, 63, 64, 65, 119, 128, 255, 256};
    size_t n_salts = sizeof(salts) / sizeof(salts[0]);

    (void)state;
    for (size_t block_size = 1; block_size <= 300; block_size++) {
        /* Every salt of the list with every fourth size, and each size with some. */
        for (size_t i = block_size % 4; i < n_salts; i += 4)
            check_at_random(block_size, salts[i], 23, 32);
        check_at_random(block_size, random_next() % 257, 20, 64);
    }
    for (size_t block_size = 512; block_size <= 65536; block_size *= 2)
        for (size_t i = 0; i<n_salts; i += block_size> 4096 ? 3 : 1)
            check_at_random(block_size, salts[i], 19, 32);
}

static void test_salt_sizes(void **state)
{
    static const size_t sizes[] = {1, 40, 64, 100, 512};

    (void)state;
    for (size_t salt_size = 0; salt_size <= SHA256_SALT_MAX; salt_size++) {
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
            check_at_random(sizes[i], salt_size, 17, 32);
        if (salt_size % 8 == 0)
            check_at_random(4096, salt_size, 17, 32);
    }
}

static void test_counts(void **state)
{
    static const size_t sizes[] = {17, 64, 512, 4096};

    (void)state;
    for (size_t count = 0; count <= 50; count++) {
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            check_at_random(sizes[i], 0, count, 32);
            check_at_random(sizes[i], 32, count, 32 + random_next() % 40);
        }
    }
}

static void test_alignments(void **state)
{
    static const size_t sizes[] = {100, 512, 4096};

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (size_t alignment = 0; alignment < 64; alignment++) {
            struct job job = {
                .where = HASHER_SALT_FIRST,
                .salt_size = 32,
                .salt = salt_bytes(),
                .blocks = (uint8_t *)align_down((uintptr_t)random_bytes + 4096, 4096) + alignment,
                .block_size = sizes[i],
                .count = 23,
                .stride = 32,
            };
            uint8_t *expected = reference(&job);
            for (size_t k = 0; k < n_subjects; k++)
                for (size_t digests = 0; digests < 64; digests += i == 0 ? 1 : 13)
                    assert_int_equal(check_plan(&subjects[k].plan, &job, expected, digests),
                                     ALL_RIGHT);
            free(expected);
        }
    }
}

/* `size` bytes of memory that may be used, between pages that may not. */
static uint8_t *fenced_map(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *map = mmap(NULL, size + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(map != MAP_FAILED);
    assert_int_equal(mprotect(map + page, size, PROT_READ | PROT_WRITE), 0);
    return map + page;
}

static void fenced_unmap(uint8_t *map, size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    assert_int_equal(munmap(map - page, size + 2 * page), 0);
}

/* Blocks and digests at the very beginning and end of a mapping: nothing outside is touched. */
static void test_fences(void **state)
{
    static const size_t sizes[] = {1, 32, 63, 64, 65, 96, 128, 160, 191, 512, 4096, 8192};
    static const size_t salts[] = {0, 1, 16, 32, 48, 63, 64, 96, 256};
    static const size_t counts[] = {1, 2, 3, 4, 7, 15, 16, 17, 31, 37};
    size_t size = (size_t)1 << 20;
    uint8_t *data = fenced_map(size), *out = fenced_map(65536);

    (void)state;
    memcpy(data, random_bytes, size);
    for (size_t i = 0; i < 12 * 9 * 10 * 2; i++) {
        size_t block_size = sizes[i % 12], count = counts[i / 12 % 10];
        struct job job = {
            .where = i % 2 == 0 ? HASHER_SALT_FIRST : HASHER_SALT_LAST,
            .salt_size = salts[i / 120 % 9],
            .salt = salt_bytes(),
            .block_size = block_size,
            .count = count,
            .stride = 32,
        };
        for (int at_end = 0; at_end < 2; at_end++) {
            job.blocks = at_end ? data + size - count * block_size : data;
            uint8_t *digests = at_end ? out + 65536 - count * 32 : out;
            uint8_t *expected = reference(&job);

            for (size_t k = 0; k < n_subjects; k++) {
                struct sha256_salt salt;

                memset(out, 0, 65536);
                sha256_salt_init(&subjects[k].plan, job.where, job.salt, job.salt_size, &salt);
                size_t done = sha256_hash_blocks(&subjects[k].plan, &salt, job.blocks, block_size,
                                                 count, digests, 32);
                assert_memory_equal(digests, expected, done * 32);
            }
            free(expected);
        }
    }
    fenced_unmap(data, size);
    fenced_unmap(out, 65536);
}

/* Kernels alone, on messages of whole chunks up to the end of a mapping: a kernel that loads ahead
 * must not do so behind the last chunk of the last run. */
static void test_kernel_fences(void **state)
{
    size_t size = 65536;
    uint8_t *data = fenced_map(size), *fenced_out = fenced_map(4096);

    (void)state;
    memcpy(data, random_bytes, size);
    for (size_t i = 0; i < n_subjects; i++) {
        for (unsigned s = 0; s < subjects[i].plan.n_steps; s++) {
            const struct sha256_step *step = &subjects[i].plan.steps[s];

            for (size_t chunks = 2; chunks < 8; chunks++) {
                const uint8_t *first[SHA256_LANES_MAX], *second[SHA256_LANES_MAX];
                uint8_t *out[SHA256_LANES_MAX], again[SHA256_LANES_MAX][SHA256_DIGEST];
                /* The same bytes in one run and in two, all lanes but the first at the end. */
                struct sha256_run one = {first, chunks, 0};
                struct sha256_run two[2] = {{first, 1, 0}, {second, chunks - 1, 0}};

                for (unsigned l = 0; l < step->lanes; l++) {
                    first[l] = l == 0 ? data : data + size - chunks * SHA256_CHUNK;
                    second[l] = first[l] + SHA256_CHUNK;
                    out[l] = fenced_out + 4096 - (step->lanes - l) * SHA256_DIGEST;
                }
                step->compress(sha256_initial, &one, 1, out);
                memcpy(again, out[0], step->lanes * SHA256_DIGEST);
                step->compress(sha256_initial, two, 2, out);
                assert_memory_equal(again, out[0], step->lanes * SHA256_DIGEST);
            }
        }
    }
    fenced_unmap(data, size);
    fenced_unmap(fenced_out, 4096);
}

/* --- Published vectors --- */

/* FIPS 180-4's examples (NIST, "SHA256.pdf" and "SHA2_Additional.pdf"). */
static void test_vectors(void **state)
{
    static const struct {
        const char *message;
        size_t repeat;
        const char *digest;
    } vectors[] = {
        {"", 1,
         "\xe3\xb0\xc4\x42\x98\xfc\x1c\x14\x9a\xfb\xf4\xc8\x99\x6f\xb9\x24"
         "\x27\xae\x41\xe4\x64\x9b\x93\x4c\xa4\x95\x99\x1b\x78\x52\xb8\x55"},
        {"abc", 1,
         "\xba\x78\x16\xbf\x8f\x01\xcf\xea\x41\x41\x40\xde\x5d\xae\x22\x23"
         "\xb0\x03\x61\xa3\x96\x17\x7a\x9c\xb4\x10\xff\x61\xf2\x00\x15\xad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
         "\x24\x8d\x6a\x61\xd2\x06\x38\xb8\xe5\xc0\x26\x93\x0c\x3e\x60\x39"
         "\xa3\x3c\xe4\x59\x64\xff\x21\x67\xf6\xec\xed\xd4\x19\xdb\x06\xc1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmno"
         "ijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
         1,
         "\xcf\x5b\x16\xa7\x78\xaf\x83\x80\x03\x6c\xe5\x9e\x7b\x04\x92\x37"
         "\x0b\x24\x9b\x11\xe8\xf0\x7a\x51\xaf\xac\x45\x03\x7a\xfe\xe9\xd1"},
        {"a", 1000000,
         "\xcd\xc7\x6e\x5c\x99\x14\xfb\x92\x81\xa1\xc7\xe2\x84\xd7\x3e\x67"
         "\xf1\x80\x9a\x48\xa4\x97\x20\x0e\x04\x6d\x39\xcc\xc7\x11\x2c\xd0"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
        size_t length = strlen(vectors[i].message), size = length * vectors[i].repeat;
        size_t count = size < 1000 ? 23 : 16;
        uint8_t *blocks = malloc(size * count + 1), *expected = malloc(32 * count);

        assert_non_null(blocks);
        assert_non_null(expected);
        for (size_t k = 0; k < count * vectors[i].repeat; k++)
            memcpy(blocks + k * length, vectors[i].message, length);
        for (size_t k = 0; k < count; k++)
            memcpy(expected + 32 * k, vectors[i].digest, 32);
        for (size_t k = 0; k < n_subjects; k++) {
            /* The message as the block, and its first half as the salt. */
            struct job job = {HASHER_SALT_FIRST, 0, NULL, blocks, size, count, 32};
            assert_int_equal(check_plan(&subjects[k].plan, &job, expected, 0), ALL_RIGHT);

            job = (struct job){HASHER_SALT_FIRST, length / 2, blocks, NULL, 0, 1, 32};
            if (vectors[i].repeat == 1) {
                job.block_size = length - length / 2;
                job.blocks = blocks + length / 2;
                assert_int_equal(check_plan(&subjects[k].plan, &job, expected, 0), ALL_RIGHT);
            }
        }
        free(blocks);
        free(expected);
    }
}

/* --- The check can fail --- */

static sha256_compress *planted_in;
static unsigned planted_lane, planted_lanes;
static enum { FLIPPED_BIT, SHIFTED_DATA, LONG_DIGEST } planted;

static void faulty_compress(const uint32_t start[static 8], const struct sha256_run *runs,
                            size_t n_runs, uint8_t *const *digests)
{
    struct sha256_run bad_runs[3];
    const uint8_t *bad_data[SHA256_LANES_MAX];

    assert_true(n_runs <= 3);
    memcpy(bad_runs, runs, n_runs * sizeof(*runs));
    if (planted == SHIFTED_DATA) {
        /* The lane reads the last run, the padding and what is before it, off by one byte. */
        memcpy(bad_data, runs[n_runs - 1].data, planted_lanes * sizeof(bad_data[0]));
        bad_data[planted_lane]--;
        bad_runs[n_runs - 1].data = bad_data;
    }
    planted_in(start, bad_runs, n_runs, digests);
    if (planted == FLIPPED_BIT)
        digests[planted_lane][random_next() % 32] ^= (uint8_t)(1 << random_next() % 8);
    if (planted == LONG_DIGEST)
        digests[planted_lane][32] = 0;
}

static void test_planted_faults(void **state)
{
    struct job job = {HASHER_SALT_FIRST, 32, salt_bytes(), random_bytes, 512, 0, 40};

    (void)state;
    for (size_t i = 0; i < n_subjects; i++) {
        for (unsigned s = 0; s < subjects[i].plan.n_steps; s++) {
            const struct sha256_step *step = &subjects[i].plan.steps[s];
            struct sha256_plan plan = {"faulty", {{faulty_compress, step->lanes, 1}}, 1};

            planted_in = step->compress;
            planted_lanes = step->lanes;
            job.count = step->lanes;
            uint8_t *expected = reference(&job);
            for (planted_lane = 0; planted_lane < step->lanes; planted_lane++) {
                planted = FLIPPED_BIT;
                assert_int_equal(check_plan(&plan, &job, expected, 0), planted_lane);
                planted = SHIFTED_DATA;
                assert_int_equal(check_plan(&plan, &job, expected, 0), planted_lane);
                planted = LONG_DIGEST;
                assert_int_equal(check_plan(&plan, &job, expected, 0), TOUCHED_OTHER_BYTES);
            }
            free(expected);
        }
    }
}

/* --- Choice --- */

static void test_choice(void **state)
{
    static const struct {
        const char *name;
        unsigned features;
        const char *chosen; /* or NULL and */
        const char *message;
    } cases[] = {
        {NULL, 0, "openssl", NULL},
        {NULL, SHA256_CPU_AVX2, "avx2", NULL},
        {NULL, SHA256_CPU_AVX2 | SHA256_CPU_SHANI, "shani", NULL},
        {NULL, SHA256_CPU_AVX2 | SHA256_CPU_AVX512, "avx512", NULL},
        {NULL, SHA256_CPU_AVX2 | SHA256_CPU_SHANI | SHA256_CPU_AVX512, "avx512", NULL},
        {NULL, SHA256_CPU_SHANI | SHA256_CPU_AVX512 | SHA256_CPU_HALVES, "shani", NULL},
        {NULL, SHA256_CPU_AVX512 | SHA256_CPU_HALVES, "avx512", NULL},
        {"avx512", SHA256_CPU_SHANI | SHA256_CPU_AVX512 | SHA256_CPU_HALVES, "avx512", NULL},
        {"openssl", SHA256_CPU_AVX2 | SHA256_CPU_SHANI, "openssl", NULL},
        {"avx2", SHA256_CPU_AVX2 | SHA256_CPU_SHANI, "avx2", NULL},
        {"avx512", SHA256_CPU_AVX2 | SHA256_CPU_SHANI, NULL,
         "hash kernel 'avx512': this CPU cannot run it; it can run: shani, avx2, openssl"},
        {"shani", 0, NULL, "hash kernel 'shani': this CPU cannot run it; it can run: openssl"},
        {"AVX2", SHA256_CPU_AVX2, NULL,
         "hash kernel 'AVX2' is not one of avx512, shani, avx2, openssl; this CPU can run: "
         "avx2, openssl"},
        {"", 0, NULL,
         "hash kernel '' is not one of avx512, shani, avx2, openssl; this CPU can run: openssl"},
    };

    (void)state;
#if !defined(__x86_64__)
    skip();
#endif
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct sha256_plan plan = {.name = "untouched"};
        int r = sha256_choose(cases[i].name, cases[i].features, &plan, &err);

        if (cases[i].chosen != NULL) {
            assert_int_equal(r, 0);
            assert_string_equal(plan.name, cases[i].chosen);
        } else {
            assert_int_equal(r, -EINVAL);
            assert_string_equal(error_message(&err), cases[i].message);
            assert_string_equal(plan.name, "untouched");
        }
    }
}

/* A forced kernel really is the one whose instructions run. */
static void test_forced_steps(void **state)
{
    (void)state;
#if defined(__x86_64__)
    unsigned all = SHA256_CPU_AVX2 | SHA256_CPU_SHANI | SHA256_CPU_AVX512;
    struct sha256_plan plan;

    assert_int_equal(sha256_choose("avx512", all, &plan, NULL), 0);
    assert_int_equal(plan.n_steps, 4);
    assert_ptr_equal(plan.steps[0].compress, sha256_avx512_16);
    assert_ptr_equal(plan.steps[1].compress, sha256_shani_4);
    assert_int_equal(sha256_choose("avx512", SHA256_CPU_AVX512, &plan, NULL), 0);
    assert_int_equal(plan.n_steps, 1);
    assert_ptr_equal(plan.steps[0].compress, sha256_avx512_16);
    assert_int_equal(sha256_choose("shani", all, &plan, NULL), 0);
    assert_int_equal(plan.n_steps, 3);
    assert_ptr_equal(plan.steps[0].compress, sha256_shani_4);
    assert_ptr_equal(plan.steps[1].compress, sha256_shani_2);
    assert_ptr_equal(plan.steps[2].compress, sha256_shani_1);
    assert_int_equal(sha256_choose("avx2", all, &plan, NULL), 0);
    assert_int_equal(plan.n_steps, 1);
    assert_ptr_equal(plan.steps[0].compress, sha256_avx2_8);
    assert_int_equal(sha256_choose("openssl", all, &plan, NULL), 0);
    assert_int_equal(plan.n_steps, 0);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),      cmocka_unit_test(test_forced_steps),
        cmocka_unit_test(test_vectors),     cmocka_unit_test(test_planted_faults),
        cmocka_unit_test(test_block_sizes), cmocka_unit_test(test_salt_sizes),
        cmocka_unit_test(test_counts),      cmocka_unit_test(test_alignments),
        cmocka_unit_test(test_fences),      cmocka_unit_test(test_kernel_fences),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
