/* SPDX-License-Identifier: MIT */
#include "common/openssl.h"

#include <pthread.h>
#include <stdbool.h>

#include "common/library.h"

/* The number is that of its interface: 3 since OpenSSL 3.0. */
#define TEXT_OF(number) TEXT(number)
#define TEXT(number) #number
#define SONAME "libcrypto.so." TEXT_OF(OPENSSL_SHLIB_VERSION)
LIBRARY_NOTE(SONAME, "crypto", "Hashes other than SHA-256, and launch digests of SEV guests");

struct libcrypto libcrypto;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool without_config;
static const struct library_function functions[] = {
#define LIBCRYPTO_FUNCTION(function) {#function, &libcrypto.function},
    LIBCRYPTO_FUNCTIONS(LIBCRYPTO_FUNCTION)
#undef LIBCRYPTO_FUNCTION
};
static struct library library = {
    .soname = SONAME,
    .functions = functions,
    .count = sizeof(functions) / sizeof(functions[0]),
};

static void skip_config(void)
{
    (void)libcrypto.OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_NO_ATEXIT, NULL);
}

int libcrypto_load(struct error *err)
{
    pthread_mutex_lock(&lock);
    const bool first = !library.tried;
    int r = library_load(&library, err);
    if (r == 0 && first && without_config)
        skip_config();
    pthread_mutex_unlock(&lock);
    return r;
}

void libcrypto_skip_config(void)
{
    pthread_mutex_lock(&lock);
    without_config = true;
    if (library.tried && library.result == 0)
        skip_config();
    pthread_mutex_unlock(&lock);
}

int libcrypto_error(struct error *err, int code, const char *what)
{
    unsigned long openssl = libcrypto.ERR_peek_last_error();
    const char *reason = openssl != 0 ? libcrypto.ERR_reason_error_string(openssl) : NULL;

    libcrypto.ERR_clear_error();
    return error_set(err, code, "%s: OpenSSL: %s", what, reason != NULL ? reason : "failed");
}
