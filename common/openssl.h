/* SPDX-License-Identifier: MIT */
#pragma once

#include <openssl/err.h>
#include <openssl/evp.h>

#include "common/error.h"

/* For the modules that use OpenSSL. All of it is here, so that `common` needs no OpenSSL. */

/* `code`, a positive errno value, with the reason that OpenSSL has queued, if any. Returns -code.
 */
static inline int openssl_error(struct error *err, int code, const char *what)
{
    unsigned long openssl = ERR_peek_last_error();
    const char *reason = openssl != 0 ? ERR_reason_error_string(openssl) : NULL;

    ERR_clear_error();
    return error_set(err, code, "%s: OpenSSL: %s", what, reason != NULL ? reason : "failed");
}

static inline void md_ctx_free(EVP_MD_CTX *ctx)
{
    EVP_MD_CTX_free(ctx);
}
DEFINE_CLEANUP(EVP_MD_CTX, md_ctx_free);
