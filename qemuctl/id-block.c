/* SPDX-License-Identifier: MIT */
#include "qemuctl/id-block.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/core_names.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/openssl.h"
#include "common/units.h"
#include "qemuctl/measure-internal.h"

/* --- Layouts --- */

enum {
    BLOCK_LD = 0x00,
    BLOCK_FAMILY_ID = 0x30,
    BLOCK_IMAGE_ID = 0x40,
    BLOCK_VERSION = 0x50,
    BLOCK_GUEST_SVN = 0x54,
    BLOCK_POLICY = 0x58,

    AUTH_ID_KEY_ALGO = 0x000,
    AUTH_AUTHOR_KEY_ALGO = 0x004,
    AUTH_BLOCK_SIG = 0x040,
    AUTH_ID_KEY = 0x240,
    AUTH_ID_KEY_SIG = 0x680,
    AUTH_AUTHOR_KEY = 0x880,
};
#define BLOCK_VERSION_1 1
#define ALGO_ECDSA_P384_SHA384 1

/* Publication 56860, "ECDSA P-384 With SHA-384": numbers are little-endian, with room for 576 bits.
 */
#define NUMBER_SIZE 72
#define SIGNATURE_R 0x00
#define SIGNATURE_S 0x48
#define KEY_CURVE 0x00
#define KEY_QX 0x04
#define KEY_QY 0x4c
#define KEY_SIZE 0x404
#define CURVE_P384 2

static void bn_free(BIGNUM *bn)
{
    libcrypto.BN_free(bn);
}
DEFINE_CLEANUP(BIGNUM, bn_free);

static void pkey_ctx_free(EVP_PKEY_CTX *ctx)
{
    libcrypto.EVP_PKEY_CTX_free(ctx);
}
DEFINE_CLEANUP(EVP_PKEY_CTX, pkey_ctx_free);

static void pkey_free(EVP_PKEY *pkey)
{
    libcrypto.EVP_PKEY_free(pkey);
}
DEFINE_CLEANUP(EVP_PKEY, pkey_free);

static void bio_free(BIO *bio)
{
    libcrypto.BIO_free(bio);
}
DEFINE_CLEANUP(BIO, bio_free);

static void signature_free(ECDSA_SIG *signature)
{
    libcrypto.ECDSA_SIG_free(signature);
}
DEFINE_CLEANUP(ECDSA_SIG, signature_free);

/* --- Keys --- */

#define KEY_FILE_MAX 65536

struct id_key {
    char *name;
    EVP_PKEY *pkey;
};

void id_key_free(struct id_key *key)
{
    libcrypto.EVP_PKEY_free(key->pkey);
    free(key->name);
    free(key);
}

/* Without it OpenSSL asks on the terminal. */
static int refuse_password(char *buffer, int size, int writing, void *encrypted)
{
    (void)buffer;
    (void)size;
    (void)writing;
    *(bool *)encrypted = true;
    return -1;
}

static int decode_key(const char *path, const char *data, size_t size, EVP_PKEY **ret,
                      struct error *err)
{
    _cleanup_(bio_free_cleanup) BIO *bio = libcrypto.BIO_new_mem_buf(data, (int)size);
    const unsigned char *der = (const unsigned char *)data;
    bool encrypted = false;
    EVP_PKEY *pkey;

    if (bio == NULL)
        return error_oom(err);
    pkey = libcrypto.PEM_read_bio_PrivateKey(bio, NULL, refuse_password, &encrypted);
    if (pkey == NULL && !encrypted)
        pkey = libcrypto.d2i_AutoPrivateKey(NULL, &der, (long)size);
    libcrypto.ERR_clear_error();
    if (encrypted)
        return error_set(err, EINVAL,
                         "%s: the key is encrypted; 'openssl pkey' makes a plain one of it", path);
    if (pkey == NULL)
        return error_set(err, EINVAL, "%s: holds no private key, neither PEM nor DER", path);
    *ret = pkey;
    return 0;
}

static int check_key(const char *path, EVP_PKEY *pkey, struct error *err)
{
    _cleanup_(pkey_ctx_free_cleanup) EVP_PKEY_CTX *ctx = libcrypto.EVP_PKEY_CTX_new(pkey, NULL);
    char group[80] = "";

    if (ctx == NULL)
        return error_oom(err);
    if (libcrypto.EVP_PKEY_get_base_id(pkey) != EVP_PKEY_EC)
        return error_set(err, EINVAL,
                         "%s: not an EC key; 'openssl ecparam -genkey -name secp384r1 "
                         "-noout' makes one",
                         path);
    if (libcrypto.EVP_PKEY_get_group_name(pkey, group, sizeof(group), NULL) != 1 ||
        libcrypto.OBJ_txt2nid(group) != NID_secp384r1)
        return error_set(err, EINVAL, "%s: its curve is %s, not P-384 (secp384r1)", path,
                         group[0] != '\0' ? group : "without a name");
    if (libcrypto.EVP_PKEY_check(ctx) != 1) {
        libcrypto.ERR_clear_error();
        return error_set(err, EINVAL, "%s: its private and public parts do not belong together",
                         path);
    }
    return 0;
}

int id_key_load(const char *path, struct id_key **ret, struct error *err)
{
    _cleanup_(pkey_free_cleanup) EVP_PKEY *pkey = NULL;
    _cleanup_id_key_ struct id_key *key = NULL;
    char *data = NULL;
    size_t size = 0;

    int r = libcrypto_load(err);
    if (r == 0)
        r = io_read_file(path, KEY_FILE_MAX, &data, &size, err);
    if (r == 0)
        r = decode_key(path, data, size, &pkey, err);
    if (data != NULL)
        libcrypto.OPENSSL_cleanse(data, size);
    free(data);
    if (r == 0)
        r = check_key(path, pkey, err);
    if (r < 0)
        return r;
    key = calloc(1, sizeof(*key));
    if (key == NULL || (key->name = strdup(path)) == NULL)
        return error_oom(err);
    key->pkey = TAKE_PTR(pkey);
    *ret = TAKE_PTR(key);
    return 0;
}

static int put_number(uint8_t *p, const struct id_key *key, const BIGNUM *number, struct error *err)
{
    if (number == NULL || libcrypto.BN_bn2lebinpad(number, p, NUMBER_SIZE) != NUMBER_SIZE)
        return libcrypto_error(err, EIO, key->name);
    return 0;
}

/* `p` is zeroed. */
static int put_public_key(uint8_t p[static KEY_SIZE], const struct id_key *key, struct error *err)
{
    _cleanup_(bn_free_cleanup) BIGNUM *x = NULL, *y = NULL;

    if (libcrypto.EVP_PKEY_get_bn_param(key->pkey, OSSL_PKEY_PARAM_EC_PUB_X, &x) != 1 ||
        libcrypto.EVP_PKEY_get_bn_param(key->pkey, OSSL_PKEY_PARAM_EC_PUB_Y, &y) != 1)
        return libcrypto_error(err, EIO, key->name);
    put_le32(p + KEY_CURVE, CURVE_P384);
    int r = put_number(p + KEY_QX, key, x, err);
    return r < 0 ? r : put_number(p + KEY_QY, key, y, err);
}

int id_key_digest(const struct id_key *key, uint8_t digest[static ID_KEY_DIGEST_SIZE],
                  struct error *err)
{
    _cleanup_sha_ struct sha sha = SHA_INIT;
    uint8_t bytes[KEY_SIZE] = {0};

    int r = put_public_key(bytes, key, err);
    if (r == 0)
        r = sha_open(&sha, "SHA384", err);
    return r < 0 ? r : sha_of(&sha, bytes, sizeof(bytes), digest, err);
}

/* --- The block --- */

#define SIGNATURE_DER_MAX 256 /* two numbers of 49 bytes, three headers */

/* Signs bytes; `p` is zeroed. */
static int put_signature(uint8_t *p, const struct id_key *key, const uint8_t *bytes, size_t size,
                         struct error *err)
{
    _cleanup_(md_ctx_free_cleanup) EVP_MD_CTX *ctx = libcrypto.EVP_MD_CTX_new();
    _cleanup_(signature_free_cleanup) ECDSA_SIG *signature = NULL;
    uint8_t der[SIGNATURE_DER_MAX];
    const unsigned char *q = der;
    size_t der_size = sizeof(der);

    if (ctx == NULL)
        return error_oom(err);
    if (libcrypto.EVP_DigestSignInit_ex(ctx, NULL, "SHA384", NULL, NULL, key->pkey, NULL) != 1 ||
        libcrypto.EVP_DigestSign(ctx, der, &der_size, bytes, size) != 1 ||
        (signature = libcrypto.d2i_ECDSA_SIG(NULL, &q, (long)der_size)) == NULL)
        return libcrypto_error(err, EIO, key->name);
    int r = put_number(p + SIGNATURE_R, key, libcrypto.ECDSA_SIG_get0_r(signature), err);
    return r < 0 ? r : put_number(p + SIGNATURE_S, key, libcrypto.ECDSA_SIG_get0_s(signature), err);
}

static void put_block(uint8_t p[static ID_BLOCK_SIZE], const struct id_block *block)
{
    memset(p, 0, ID_BLOCK_SIZE);
    memcpy(p + BLOCK_LD, block->digest->bytes, SHA384_SIZE);
    memcpy(p + BLOCK_FAMILY_ID, block->family_id, sizeof(block->family_id));
    memcpy(p + BLOCK_IMAGE_ID, block->image_id, sizeof(block->image_id));
    put_le32(p + BLOCK_VERSION, BLOCK_VERSION_1);
    put_le32(p + BLOCK_GUEST_SVN, block->guest_svn);
    put_le64(p + BLOCK_POLICY, block->policy);
}

int id_block_make(const struct id_block *block, const struct id_key *key,
                  const struct id_key *author, uint8_t id_block[static ID_BLOCK_SIZE],
                  uint8_t id_auth[static ID_AUTH_SIZE], struct error *err)
{
    uint8_t bytes[ID_BLOCK_SIZE], auth[ID_AUTH_SIZE] = {0};

    assert(block->digest->size == SHA384_SIZE);
    put_block(bytes, block);
    put_le32(auth + AUTH_ID_KEY_ALGO, ALGO_ECDSA_P384_SHA384);
    int r = put_signature(auth + AUTH_BLOCK_SIG, key, bytes, sizeof(bytes), err);
    if (r == 0)
        r = put_public_key(auth + AUTH_ID_KEY, key, err);
    if (r == 0 && author != NULL) {
        put_le32(auth + AUTH_AUTHOR_KEY_ALGO, ALGO_ECDSA_P384_SHA384);
        r = put_signature(auth + AUTH_ID_KEY_SIG, author, auth + AUTH_ID_KEY, KEY_SIZE, err);
        if (r == 0)
            r = put_public_key(auth + AUTH_AUTHOR_KEY, author, err);
    }
    if (r < 0)
        return r;
    memcpy(id_block, bytes, sizeof(bytes));
    memcpy(id_auth, auth, sizeof(auth));
    return 0;
}

/* By the key itself: there are programs that fill in its algorithm in any case. */
bool id_auth_has_author(const uint8_t id_auth[static ID_AUTH_SIZE])
{
    for (size_t i = 0; i < KEY_SIZE; i++)
        if (id_auth[AUTH_AUTHOR_KEY + i] != 0)
            return true;
    return false;
}

/* --- Checking a block --- */

#define COORDINATE_SIZE 48

static BIGNUM *get_number(const uint8_t *p)
{
    return libcrypto.BN_lebin2bn(p, NUMBER_SIZE, NULL);
}

static int get_public_key(const uint8_t *p, EVP_PKEY **ret, struct error *err)
{
    _cleanup_(pkey_ctx_free_cleanup) EVP_PKEY_CTX *ctx =
        libcrypto.EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
    _cleanup_(bn_free_cleanup) BIGNUM *x = get_number(p + KEY_QX), *y = get_number(p + KEY_QY);
    uint8_t point[1 + 2 * COORDINATE_SIZE] = {POINT_CONVERSION_UNCOMPRESSED};
    char group[] = SN_secp384r1;
    OSSL_PARAM params[] = {
        libcrypto.OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, group, 0),
        libcrypto.OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, point, sizeof(point)),
        libcrypto.OSSL_PARAM_construct_end(),
    };

    if (ctx == NULL || x == NULL || y == NULL)
        return error_oom(err);
    if (get_le32(p + KEY_CURVE) != CURVE_P384)
        return error_set(err, EBADMSG, "its curve has the number %u, not %d (P-384)",
                         get_le32(p + KEY_CURVE), CURVE_P384);
    if (libcrypto.BN_bn2binpad(x, point + 1, COORDINATE_SIZE) < 0 ||
        libcrypto.BN_bn2binpad(y, point + 1 + COORDINATE_SIZE, COORDINATE_SIZE) < 0 ||
        libcrypto.EVP_PKEY_fromdata_init(ctx) != 1 ||
        libcrypto.EVP_PKEY_fromdata(ctx, ret, EVP_PKEY_PUBLIC_KEY, params) != 1) {
        libcrypto.ERR_clear_error();
        return error_set(err, EBADMSG, "is no point of P-384");
    }
    return 0;
}

static int get_signature(const uint8_t *p, unsigned char **ret_der, size_t *ret_size,
                         struct error *err)
{
    _cleanup_(signature_free_cleanup) ECDSA_SIG *signature = libcrypto.ECDSA_SIG_new();
    _cleanup_(bn_free_cleanup) BIGNUM *r = get_number(p + SIGNATURE_R);
    _cleanup_(bn_free_cleanup) BIGNUM *s = get_number(p + SIGNATURE_S);

    if (signature == NULL || r == NULL || s == NULL ||
        libcrypto.ECDSA_SIG_set0(signature, TAKE_PTR(r), TAKE_PTR(s)) != 1)
        return error_oom(err);
    *ret_der = NULL;
    const int size = libcrypto.i2d_ECDSA_SIG(signature, ret_der);
    if (size < 0)
        return error_oom(err);
    *ret_size = (size_t)size;
    return 0;
}

/* Whether the key at `key` made the signature at `signature` of these bytes. */
static int check_signature(const uint8_t *key, const uint8_t *signature, uint32_t algorithm,
                           const uint8_t *bytes, size_t size, struct error *err)
{
    _cleanup_(md_ctx_free_cleanup) EVP_MD_CTX *ctx = libcrypto.EVP_MD_CTX_new();
    _cleanup_(pkey_free_cleanup) EVP_PKEY *pkey = NULL;
    unsigned char *der;
    size_t der_size;

    if (algorithm != ALGO_ECDSA_P384_SHA384)
        return error_set(err, EBADMSG, "its algorithm has the number %u, not %d (ECDSA P-384)",
                         algorithm, ALGO_ECDSA_P384_SHA384);
    int r = get_public_key(key, &pkey, err);
    if (r == 0)
        r = get_signature(signature, &der, &der_size, err);
    if (r < 0)
        return r;
    const bool good =
        ctx != NULL &&
        libcrypto.EVP_DigestVerifyInit_ex(ctx, NULL, "SHA384", NULL, NULL, pkey, NULL) == 1 &&
        libcrypto.EVP_DigestVerify(ctx, der, der_size, bytes, size) == 1;
    libcrypto.CRYPTO_free(der, __FILE__, __LINE__);
    libcrypto.ERR_clear_error();
    return good ? 0 : error_set(err, EBADMSG, "its signature is not right");
}

static int check_signatures(const uint8_t *block, const uint8_t *auth, struct error *err)
{
    int r = check_signature(auth + AUTH_ID_KEY, auth + AUTH_BLOCK_SIG,
                            get_le32(auth + AUTH_ID_KEY_ALGO), block, ID_BLOCK_SIZE, err);

    if (r < 0) {
        (void)error_prefix(err, "the ID key");
        return r;
    }
    if (!id_auth_has_author(auth))
        return 0;
    r = check_signature(auth + AUTH_AUTHOR_KEY, auth + AUTH_ID_KEY_SIG,
                        get_le32(auth + AUTH_AUTHOR_KEY_ALGO), auth + AUTH_ID_KEY, KEY_SIZE, err);
    if (r < 0)
        (void)error_prefix(err, "the author key");
    return r;
}

int id_block_check(const uint8_t id_block[static ID_BLOCK_SIZE],
                   const uint8_t id_auth[static ID_AUTH_SIZE], const struct launch_digest *digest,
                   uint64_t policy, struct error *err)
{
    char theirs[2 * SHA384_SIZE + 1];

    if (get_le32(id_block + BLOCK_VERSION) != BLOCK_VERSION_1)
        return error_set(err, EINVAL, "the ID block has version %u, not %d",
                         get_le32(id_block + BLOCK_VERSION), BLOCK_VERSION_1);
    if (get_le64(id_block + BLOCK_POLICY) != policy)
        return error_set(err, EINVAL,
                         "the ID block is for the policy 0x%" PRIx64 ", and the guest's is "
                         "0x%" PRIx64,
                         get_le64(id_block + BLOCK_POLICY), policy);
    if (digest != NULL && memcmp(id_block + BLOCK_LD, digest->bytes, SHA384_SIZE) != 0) {
        hex_encode(id_block + BLOCK_LD, SHA384_SIZE, theirs);
        return error_set(err, EINVAL, "the ID block is for a guest with the launch digest %s",
                         theirs);
    }
    int r = libcrypto_load(err);
    return r < 0 ? r : check_signatures(id_block, id_auth, err);
}

/* --- Files --- */

static size_t base64_size(size_t size)
{
    return (size + 2) / 3 * 4;
}

struct output {
    int fd;
    bool created; /* by us */
    bool regular;
};

/* What is there is not cut yet. */
static int open_output(const char *path, struct output *ret, struct error *err)
{
    const int flags = O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY;
    _cleanup_close_ int fd = open(path, flags | O_EXCL, 0666);
    const bool created = fd >= 0;
    struct stat st;

    if (fd < 0 && errno == EEXIST)
        fd = open(path, flags, 0666);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "%s: cannot open for writing", path);
    *ret = (struct output){.fd = take_fd(&fd), .created = created, .regular = S_ISREG(st.st_mode)};
    return 0;
}

static int write_output(struct output *output, const struct id_block_file *file, struct error *err)
{
    _cleanup_free_ char *text = malloc(base64_size(file->size) + 2);

    if (text == NULL)
        return error_oom(err);
    int r = libcrypto_load(err);
    if (r < 0)
        return r;
    size_t length =
        (size_t)libcrypto.EVP_EncodeBlock((unsigned char *)text, file->bytes, (int)file->size);
    text[length++] = '\n';
    if (output->regular && ftruncate(output->fd, 0) < 0)
        return error_set_errno(err, errno, "%s: cannot write", file->path);
    return io_write(output->fd, file->path, text, length, err);
}

/* Leaves nothing that could be taken for an ID block. */
static void take_back(struct output *output, const char *path, bool written)
{
    if (output->created)
        (void)unlink(path);
    else if (written && output->regular)
        (void)!ftruncate(output->fd, 0);
}

int id_block_write(const struct id_block_file *files, size_t count, struct error *err)
{
    struct output outputs[ID_BLOCK_FILES_MAX];
    size_t opened = 0, written = 0;
    int r = 0;

    assert(count <= ID_BLOCK_FILES_MAX);
    for (; opened < count && r == 0; opened += r == 0)
        r = open_output(files[opened].path, &outputs[opened], err);
    for (; written < count && r == 0; written++)
        r = write_output(&outputs[written], &files[written], err);
    for (size_t i = 0; i < opened; i++) {
        if (r < 0)
            take_back(&outputs[i], files[i].path, i < written);
        /* What was told already stays. */
        int closed = io_close_written(outputs[i].fd, files[i].path, r == 0 ? err : NULL);
        r = r < 0 ? r : closed;
    }
    return r;
}

/* libcrypto.EVP_DecodeBlock() takes white space around the text, and gives bytes for padding, too.
 */
static bool decode_base64(const char *text, size_t length, size_t size, uint8_t *ret)
{
    while (length > 0 && strchr(" \t\r\n", text[length - 1]) != NULL)
        length--;
    if (length != base64_size(size))
        return false;

    size_t padding = base64_size(size) / 4 * 3 - size;
    for (size_t i = 0; i < length; i++)
        if ((text[i] == '=') != (i >= length - padding))
            return false;
    _cleanup_free_ uint8_t *bytes = malloc(length);
    if (bytes == NULL || libcrypto.EVP_DecodeBlock(bytes, (const unsigned char *)text,
                                                   (int)length) != (int)(size + padding)) {
        libcrypto.ERR_clear_error();
        return false;
    }
    memcpy(ret, bytes, size);
    return true;
}

int id_block_read(const char *path, size_t size, uint8_t *ret, struct error *err)
{
    _cleanup_free_ char *data = NULL;
    size_t length;

    int r = io_read_file(path, base64_size(size) + 4096, &data, &length, err);
    if (r < 0)
        return r;
    if (length == size) {
        memcpy(ret, data, size);
        return 0;
    }
    r = libcrypto_load(err);
    if (r < 0)
        return r;
    if (!decode_base64(data, length, size, ret))
        return error_set(err, EINVAL, "%s: holds neither %zu bytes nor those in Base64", path,
                         size);
    return 0;
}
