/* SPDX-License-Identifier: MIT */
#pragma once

#include <openssl/bn.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/objects.h>
#include <openssl/pem.h>
#include <openssl/provider.h>

#include "common/error.h"

/*
 * OpenSSL's libcrypto, loaded when it is first needed (common/library.h): call libcrypto_load(),
 * then libcrypto.EVP_MD_fetch() and so on.
 */
#define LIBCRYPTO_FUNCTIONS(F)           \
    F(BIO_free)                          \
    F(BIO_new_mem_buf)                   \
    F(BN_bn2binpad)                      \
    F(BN_bn2lebinpad)                    \
    F(BN_free)                           \
    F(BN_lebin2bn)                       \
    F(CRYPTO_free)                       \
    F(ECDSA_SIG_free)                    \
    F(ECDSA_SIG_get0_r)                  \
    F(ECDSA_SIG_get0_s)                  \
    F(ECDSA_SIG_new)                     \
    F(ECDSA_SIG_set0)                    \
    F(ERR_clear_error)                   \
    F(ERR_peek_last_error)               \
    F(ERR_reason_error_string)           \
    F(EVP_DecodeBlock)                   \
    F(EVP_DigestFinal_ex)                \
    F(EVP_DigestInit_ex2)                \
    F(EVP_DigestSign)                    \
    F(EVP_DigestSignInit_ex)             \
    F(EVP_DigestUpdate)                  \
    F(EVP_DigestVerify)                  \
    F(EVP_DigestVerifyInit_ex)           \
    F(EVP_EncodeBlock)                   \
    F(EVP_MD_CTX_copy_ex)                \
    F(EVP_MD_CTX_free)                   \
    F(EVP_MD_CTX_new)                    \
    F(EVP_MD_fetch)                      \
    F(EVP_MD_free)                       \
    F(EVP_MD_get0_name)                  \
    F(EVP_MD_get_flags)                  \
    F(EVP_MD_get_size)                   \
    F(EVP_MD_is_a)                       \
    F(EVP_PKEY_CTX_free)                 \
    F(EVP_PKEY_CTX_new)                  \
    F(EVP_PKEY_CTX_new_from_name)        \
    F(EVP_PKEY_check)                    \
    F(EVP_PKEY_free)                     \
    F(EVP_PKEY_fromdata)                 \
    F(EVP_PKEY_fromdata_init)            \
    F(EVP_PKEY_get_base_id)              \
    F(EVP_PKEY_get_bn_param)             \
    F(EVP_PKEY_get_group_name)           \
    F(OBJ_txt2nid)                       \
    F(OPENSSL_cleanse)                   \
    F(OPENSSL_init_crypto)               \
    F(OSSL_LIB_CTX_free)                 \
    F(OSSL_LIB_CTX_new)                  \
    F(OSSL_PARAM_construct_end)          \
    F(OSSL_PARAM_construct_octet_string) \
    F(OSSL_PARAM_construct_utf8_string)  \
    F(OSSL_PROVIDER_load)                \
    F(OSSL_PROVIDER_try_load)            \
    F(PEM_read_bio_PrivateKey)           \
    F(d2i_AutoPrivateKey)                \
    F(d2i_ECDSA_SIG)                     \
    F(i2d_ECDSA_SIG)

struct libcrypto {
#define LIBCRYPTO_MEMBER(function) __typeof__(&function) function;
    LIBCRYPTO_FUNCTIONS(LIBCRYPTO_MEMBER)
#undef LIBCRYPTO_MEMBER
};

extern struct libcrypto libcrypto;

/* Loads it, unless it is there already. May be called from any thread. Returns 0 or an error of
 * library_load(). */
int libcrypto_load(struct error *err);

/* Has its configuration file, and what that could name, left alone: a confined process, which this
 * one is going to be, needs nothing of it and cannot read it. */
void libcrypto_skip_config(void);

/* `code`, a positive errno value, with the reason that OpenSSL has queued, if any. Returns -code.
 */
int libcrypto_error(struct error *err, int code, const char *what);

static inline void md_ctx_free(EVP_MD_CTX *ctx)
{
    libcrypto.EVP_MD_CTX_free(ctx);
}
DEFINE_CLEANUP(EVP_MD_CTX, md_ctx_free);
