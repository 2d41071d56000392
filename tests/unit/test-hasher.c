/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hashtree/hasher.h"
#include "hashtree/sha256.h"

/*
 * Hashers against OpenSSL's one-shot digest of the message put together in one piece. What the
 * SHA-256 kernels do with sizes, counts and alignments is test-sha256.c's.
 */
#define KERNEL_VARIABLE "QVERITY_HASH_KERNEL"
#define GUARD 0xa5

enum { SALT_SIZE = 77, DATA_SIZE = 64 << 10 };
static uint8_t salt[SALT_SIZE];
static uint8_t data[DATA_SIZE];

static int setup(void **state)
{
    uint32_t x = 1;

    (void)state;
    for (size_t i = 0; i < DATA_SIZE; i++)
        data[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
    for (size_t i = 0; i < SALT_SIZE; i++)
        salt[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
    return 0;
}

static struct hasher *hasher_of(const char *digest, enum hasher_salt where)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct hasher *hasher = NULL;

    if (hasher_new(digest, where, salt, SALT_SIZE, &hasher, &err) < 0)
        fail_msg("%s", error_message(&err));
    return hasher;
}

/* Whether the hasher gives the digests that OpenSSL does for the blocks at `data`, and leaves the
 * bytes between them alone. */
static bool hashes_right(const struct hasher *hasher, const char *openssl_name,
                         enum hasher_salt where, size_t block_size, size_t count)
{
    size_t size = hasher_digest_size(hasher), stride = size + 5;
    uint8_t *message = malloc(SALT_SIZE + block_size), *got = malloc(stride * count + 1);
    bool first = where == HASHER_SALT_FIRST;
    bool right = message != NULL && got != NULL;

    if (right) {
        memset(got, GUARD, stride * count);
        memcpy(message + (first ? 0 : block_size), salt, SALT_SIZE);
        right = hasher_hash_blocks(hasher, data, block_size, count, got, stride, NULL) == 0;
    }
    for (size_t i = 0; right && i < count; i++) {
        uint8_t expected[EVP_MAX_MD_SIZE + 5];
        size_t expected_size = 0;

        memset(expected, GUARD, sizeof(expected));
        memcpy(message + (first ? SALT_SIZE : 0), data + i * block_size, block_size);
        right = EVP_Q_digest(NULL, openssl_name, NULL, message, SALT_SIZE + block_size, expected,
                             &expected_size) == 1 &&
                expected_size == size && memcmp(got + i * stride, expected, stride) == 0;
    }
    free(message);
    free(got);
    return right;
}

/* --- Kernels --- */

/* What the environment said before, for the suite may run with a kernel forced. */
static char *forced_before;

static int save_kernel(void **state)
{
    const char *value = getenv(KERNEL_VARIABLE);

    (void)state;
    forced_before = value != NULL ? strdup(value) : NULL;
    return 0;
}

static int restore_kernel(void **state)
{
    (void)state;
    if (forced_before != NULL)
        setenv(KERNEL_VARIABLE, forced_before, 1);
    else
        unsetenv(KERNEL_VARIABLE);
    free(forced_before);
    return 0;
}

static void test_forced(void **state)
{
    static const char *const names[] = {"avx512", "shani", "avx2", "openssl"};
    unsigned features = sha256_cpu_features();

    (void)state;
    for (size_t i = 0; i < 8; i++) {
        _cleanup_(hasher_free_cleanup) struct hasher *hasher = NULL;
        enum hasher_salt where = i % 2 == 0 ? HASHER_SALT_FIRST : HASHER_SALT_LAST;
        const char *name = names[i / 2];
        struct sha256_plan plan;

        setenv(KERNEL_VARIABLE, name, 1);
        if (sha256_choose(name, features, &plan, NULL) < 0) {
            assert_int_equal(hasher_new("sha256", where, salt, SALT_SIZE, &hasher, NULL), -EINVAL);
            assert_null(hasher);
            continue;
        }
        hasher = hasher_of("sha256", where);
        assert_string_equal(hasher_kernel(hasher), name);
        for (size_t count = 0; count < 40; count++)
            assert_true(hashes_right(hasher, "SHA256", where, 1000, count));
    }
}

static void test_unknown_kernel(void **state)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct hasher *hasher = NULL;

    (void)state;
    setenv(KERNEL_VARIABLE, "sse2", 1);
    assert_int_equal(hasher_new("sha256", HASHER_SALT_FIRST, NULL, 0, &hasher, &err), -EINVAL);
    assert_null(hasher);
    assert_non_null(strstr(error_message(&err), KERNEL_VARIABLE ": hash kernel 'sse2' is not one"));
    /* Also where no kernel would be used. */
    assert_int_equal(hasher_new("sha512", HASHER_SALT_FIRST, NULL, 0, &hasher, &err), -EINVAL);
    /* Empty is as if it were not set. */
    setenv(KERNEL_VARIABLE, "", 1);
    assert_int_equal(hasher_new("sha256", HASHER_SALT_FIRST, NULL, 0, &hasher, &err), 0);
    hasher_free(hasher);
}

/* --- Digests --- */

/* Digests that are none of ours, and the names that veritysetup takes for them. */
static void test_digests(void **state)
{
    static const struct {
        const char *name, *openssl;
        size_t size;
    } digests[] = {
        {"sha1", "SHA1", 20},
        {"sha224", "SHA224", 28},
        {"SHA256", "SHA256", 32},
        {"sha384", "SHA384", 48},
        {"sha512", "SHA512", 64},
        {"sha3-224", "SHA3-224", 28},
        {"sha3-256", "SHA3-256", 32},
        {"sha3-384", "SHA3-384", 48},
        {"sha3-512", "SHA3-512", 64},
        {"ripemd160", "RIPEMD160", 20},
        {"blake2b-512", "BLAKE2B-512", 64},
        {"blake2s-256", "BLAKE2S-256", 32},
        {"sm3", "SM3", 32},
        {"md5", "MD5", 16},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(digests) / sizeof(digests[0]); i++) {
        for (int last = 0; last < 2; last++) {
            enum hasher_salt where = last ? HASHER_SALT_LAST : HASHER_SALT_FIRST;
            _cleanup_(hasher_free_cleanup) struct hasher *hasher =
                hasher_of(digests[i].name, where);
            size_t size = 0;

            assert_int_equal(hasher_find_digest(digests[i].name, &size, NULL), 0);
            assert_int_equal(size, digests[i].size);
            assert_int_equal(hasher_digest_size(hasher), size);
            if (strcmp(digests[i].name, "SHA256") != 0)
                assert_string_equal(hasher_kernel(hasher), "openssl");
            assert_true(hashes_right(hasher, digests[i].openssl, where, 700, 5));
        }
    }
}

/* From the legacy provider, which the test process itself has not loaded: ISO/IEC 10118-3's vector
 * for "abc". Left out where the distribution leaves that provider out. */
static void test_legacy_digest(void **state)
{
    static const uint8_t expected[64] =
        "\x4e\x24\x48\xa4\xc6\xf4\x86\xbb\x16\xb6\x56\x2c\x73\xb4\x02\x0b"
        "\xf3\x04\x3e\x3a\x73\x1b\xce\x72\x1a\xe1\xb3\x03\xd9\x7e\x6d\x4c"
        "\x71\x81\xee\xbd\xb6\xc5\x7e\x27\x7d\x0e\x34\x95\x71\x14\xcb\xd6"
        "\xc7\x97\xfc\x9d\x95\xd8\xb5\x82\xd2\x25\x29\x20\x76\xd4\xee\xf5";
    _cleanup_(hasher_free_cleanup) struct hasher *hasher = NULL;
    uint8_t got[64];

    (void)state;
    if (hasher_new("whirlpool", HASHER_SALT_FIRST, (const uint8_t *)"a", 1, &hasher, NULL) < 0)
        skip();
    assert_int_equal(hasher_hash_blocks(hasher, (const uint8_t *)"bc", 2, 1, got, 64, NULL), 0);
    assert_memory_equal(got, expected, 64);
}

static void test_bad_digests(void **state)
{
    static const struct {
        const char *name, *message;
    } cases[] = {
        {"sha257", "hash algorithm 'sha257' is not known to OpenSSL"},
        {"", "hash algorithm '' is not known to OpenSSL"},
        {"shake128", "hash algorithm 'shake128' has no digest of fixed size"},
        {"null", "hash algorithm 'null' has a digest of 0 bytes, not 1 to 64"},
    };
    uint8_t long_salt[SHA256_SALT_MAX + 1] = {0};
    struct hasher *hasher = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        size_t size = 1234;

        assert_int_equal(hasher_new(cases[i].name, HASHER_SALT_FIRST, NULL, 0, &hasher, &err),
                         -EINVAL);
        assert_string_equal(error_message(&err), cases[i].message);
        error_clear(&err);
        assert_int_equal(hasher_find_digest(cases[i].name, &size, &err), -EINVAL);
        assert_string_equal(error_message(&err), cases[i].message);
        assert_int_equal(size, 1234);
    }
    assert_int_equal(
        hasher_new("sha256", HASHER_SALT_FIRST, long_salt, sizeof(long_salt), &hasher, NULL),
        -EINVAL);
    assert_null(hasher);
}

/* --- Threads --- */

struct worker {
    pthread_t thread;
    const struct hasher *hasher;
    size_t count;
    bool right;
};

static void *work(void *arg)
{
    struct worker *w = arg;

    w->right = true;
    for (int i = 0; i < 5; i++)
        w->right = w->right && hashes_right(w->hasher, "SHA256", HASHER_SALT_FIRST, 512, w->count);
    return NULL;
}

/* One hasher, many threads; also for ThreadSanitizer. */
static void test_threads(void **state)
{
    static const char *const kernels[] = {NULL, "openssl"};

    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct worker workers[8];

        if (kernels[k] != NULL)
            setenv(KERNEL_VARIABLE, kernels[k], 1);
        _cleanup_(hasher_free_cleanup) struct hasher *hasher =
            hasher_of("sha256", HASHER_SALT_FIRST);
        for (size_t i = 0; i < 8; i++) {
            workers[i] = (struct worker){.hasher = hasher, .count = 86 + 2 * i};
            assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
        }
        for (size_t i = 0; i < 8; i++) {
            assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
            assert_true(workers[i].right);
        }
    }
}

/* Every length around the chunks of SHA-256, at odd addresses. */
static void test_checksum(void **state)
{
    uint8_t bytes[1200], digest[SHA256_CHECKSUM_SIZE], expected[SHA256_CHECKSUM_SIZE];

    (void)state;
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 7 + i / 251);
    for (size_t size = 0; size + 3 < sizeof(bytes); size++) {
        const uint8_t *at = bytes + size % 3;
        assert_int_equal(EVP_Q_digest(NULL, "SHA256", NULL, at, size, expected, NULL), 1);
        sha256_checksum(at, size, digest);
        assert_memory_equal(digest, expected, sizeof(digest));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_forced, save_kernel, restore_kernel),
        cmocka_unit_test_setup_teardown(test_unknown_kernel, save_kernel, restore_kernel),
        cmocka_unit_test(test_digests),
        cmocka_unit_test(test_legacy_digest),
        cmocka_unit_test(test_bad_digests),
        cmocka_unit_test_setup_teardown(test_threads, save_kernel, restore_kernel),
        cmocka_unit_test(test_checksum),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
