/* SPDX-License-Identifier: MIT */
#include "provision/keys.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "provision/steps.h"

#define CLIENT_NAME "key"
#define HOST_NAME "host-key"
#define KEY_MAX 8192
#define ED25519_SIZE 32

bool keys_needed(const struct recipe *recipe)
{
    return recipe_step(recipe, NULL, "boot") != NULL;
}

bool keys_exist(const char *work)
{
    _cleanup_free_ char *client = NULL, *host = NULL;

    return asprintf(&client, "%s/" CLIENT_NAME, work) >= 0 &&
           asprintf(&host, "%s/" HOST_NAME, work) >= 0 && access(client, R_OK) == 0 &&
           access(host, R_OK) == 0;
}

void keys_free(struct keys *keys)
{
    SSH_KEY_FREE(keys->client);
    SSH_KEY_FREE(keys->host);
    for (size_t i = 0; i < keys->secret_count; i++) {
        explicit_bzero(keys->secret_bytes[i], keys->secrets[i].length);
        free(keys->secret_bytes[i]);
    }
    if (keys->host_private != NULL)
        explicit_bzero(keys->host_private, strlen(keys->host_private));
    free(keys->host_private);
    free(keys->host_public);
    free(keys->client_public);
    free(keys);
}

/* --- Making --- */

static int write_key(const struct build *build, const char *name, ssh_key key, struct error *err)
{
    _cleanup_free_ char *path = build_path(build, name);
    _cleanup_close_ int fd = -1;
    char *text = NULL;

    if (path == NULL)
        return error_oom(err);
    if (ssh_pki_export_privkey_base64(key, NULL, NULL, NULL, &text) != SSH_OK)
        return error_set(err, EIO, "%s: cannot make a key", path);
    /* Never readable by others, not for a moment. */
    (void)unlink(path);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    int r = fd < 0 ? error_set_errno(err, errno, "%s: cannot create", path)
                   : io_write(fd, path, text, strlen(text), err);
    if (r == 0 && fsync(fd) < 0)
        r = error_set_errno(err, errno, "%s: cannot write to disk", path);
    explicit_bzero(text, strlen(text));
    ssh_string_free_char(text);
    return r;
}

int keys_make(struct build *build, struct error *err)
{
    static const char *const names[] = {CLIENT_NAME, HOST_NAME};
    int r = 0;

    if (build->keys != NULL)
        keys_free(build->keys);
    build->keys = NULL;
    for (size_t i = 0; r == 0 && i < 2; i++) {
        ssh_key key = NULL;
        if (ssh_pki_generate(SSH_KEYTYPE_ED25519, 0, &key) != SSH_OK)
            return error_set(err, EIO, "cannot generate an SSH key");
        r = write_key(build, names[i], key, err);
        ssh_key_free(key);
    }
    return r;
}

/* --- What they look like in files --- */

static int add_secret(struct keys *keys, const char *name, const void *bytes, size_t length,
                      struct error *err)
{
    char *copy = malloc(length);

    if (copy == NULL)
        return error_oom(err);
    memcpy(copy, bytes, length);
    keys->secret_bytes[keys->secret_count] = copy;
    keys->secrets[keys->secret_count++] =
        (struct secret){.name = name, .bytes = copy, .length = length};
    return 0;
}

/* The last bytes of a public key's text, which are the key's own. */
static int add_public(struct keys *keys, const char *name, const char *base64, struct error *err)
{
    const size_t length = strlen(base64), own = 40;

    if (length < own)
        return error_set(err, EINVAL, "%s is too short", name);
    return add_secret(keys, name, base64 + length - own, own, err);
}

/* A stretch of a private key's text from the character `at` of its base64 on, where the seed is:
 * what is of it in one line. */
static int add_text(struct keys *keys, const char *name, const char *text, size_t at,
                    struct error *err)
{
    const size_t least = 16, most = 30;
    const char *line = strchr(text, '\n');
    size_t width = line != NULL ? strcspn(line + 1, "\n") : 0;

    if (width < 2 * least)
        return 0;
    for (; at >= width && line != NULL; at -= width)
        line = strchr(line + 1, '\n');
    if (line != NULL && width - at < least) {
        line = strchr(line + 1, '\n');
        at = 0;
    }
    if (line == NULL || strcspn(line + 1, "\n") < at + least)
        return 0;
    size_t length = strcspn(line + 1, "\n") - at;
    return add_secret(keys, name, line + 1 + at, length < most ? length : most, err);
}

/* Of a private key's text: the key's bytes, and a stretch of the text that has them. */
static int add_private(struct keys *keys, const char *name, const char *text,
                       const char *public_base64, struct error *err)
{
    _cleanup_free_ char *base64 = calloc(1, strlen(text) + 4);
    _cleanup_free_ uint8_t *bytes = calloc(1, strlen(text) + 4);
    uint8_t public[256];
    size_t length = 0;

    if (base64 == NULL || bytes == NULL)
        return error_oom(err);
    const char *body = strchr(text, '\n');
    for (; body != NULL && *body != '\0' && *body != '-'; body++)
        if (*body != '\n')
            base64[length++] = *body;
    int n = EVP_DecodeBlock(bytes, (const unsigned char *)base64, (int)length);
    int m = strlen(public_base64) < sizeof(public)
                ? EVP_DecodeBlock(public, (const unsigned char *)public_base64,
                                  (int)strlen(public_base64))
                : -1;
    /* What the padding stands for is not there. */
    for (size_t i = strlen(public_base64); m > 0 && i > 0 && public_base64[i - 1] == '='; i--)
        m--;
    if (n < 0 || m < ED25519_SIZE)
        return error_set(err, EINVAL, "%s is not as expected", name);
    const uint8_t *point = public + m - ED25519_SIZE, *last = NULL;
    for (const uint8_t *p = bytes;
         (p = memmem(p, (size_t)(bytes + n - p), point, ED25519_SIZE)) != NULL; p++)
        last = p;
    /* OpenSSH writes the seed and then, once more, the public key. */
    if (last == NULL || last - bytes < ED25519_SIZE)
        return error_set(err, EINVAL, "%s is not as expected", name);
    int r = add_secret(keys, name, last - ED25519_SIZE, ED25519_SIZE, err);
    return r < 0 ? r
                 : add_text(keys, name, text, (size_t)(last - ED25519_SIZE - bytes) * 4 / 3, err);
}

static int load_key(const struct build *build, const char *name, char **ret_text, ssh_key *ret,
                    char **ret_public, struct error *err)
{
    _cleanup_free_ char *path = build_path(build, name);

    if (path == NULL)
        return error_oom(err);
    int r = io_read_file(path, KEY_MAX, ret_text, NULL, err);
    if (r < 0)
        return r;
    if (ssh_pki_import_privkey_base64(*ret_text, NULL, NULL, NULL, ret) != SSH_OK ||
        ssh_pki_export_pubkey_base64(*ret, ret_public) != SSH_OK)
        return error_set(err, EINVAL, "%s: is no SSH key", path);
    return 0;
}

static int load(const struct build *build, struct keys *keys, struct error *err)
{
    _cleanup_free_ char *client_private = NULL;
    char *client = NULL, *host = NULL;

    int r = load_key(build, CLIENT_NAME, &client_private, &keys->client, &client, err);
    if (r == 0)
        r = load_key(build, HOST_NAME, &keys->host_private, &keys->host, &host, err);
    if (r == 0 && (asprintf(&keys->client_public, "ssh-ed25519 %s qverity-build", client) < 0 ||
                   asprintf(&keys->host_public, "ssh-ed25519 %s qverity-build", host) < 0))
        r = error_oom(err);
    if (r == 0)
        r = add_public(keys, "the build's SSH key", client, err);
    if (r == 0)
        r = add_private(keys, "the build's private SSH key", client_private, client, err);
    if (r == 0)
        r = add_public(keys, "the build's SSH host key", host, err);
    if (r == 0)
        r = add_private(keys, "the build's private SSH host key", keys->host_private, host, err);
    ssh_string_free_char(client);
    ssh_string_free_char(host);
    return r;
}

int keys_get(struct build *build, const struct keys **ret, struct error *err)
{
    _cleanup_(keys_free_cleanup) struct keys *keys = NULL;

    if (build->keys == NULL) {
        if (!keys_exist(build->work))
            return error_set(err, ENOENT, "the build's SSH keys are gone; use --from install");
        keys = calloc(1, sizeof(*keys));
        int r = keys != NULL ? load(build, keys, err) : error_oom(err);
        if (r < 0)
            return r;
        build->keys = TAKE_PTR(keys);
    }
    *ret = build->keys;
    return 0;
}

int keys_forget(struct build *build, struct error *err)
{
    static const char *const names[] = {CLIENT_NAME, HOST_NAME};

    for (size_t i = 0; i < 2; i++) {
        _cleanup_free_ char *path = build_path(build, names[i]);
        if (path == NULL)
            return error_oom(err);
        if (unlink(path) < 0 && errno != ENOENT)
            return error_set_errno(err, errno, "%s: cannot remove", path);
    }
    /* cloud-init's seed has them, too. */
    const struct step *install = recipe_step(build->recipe, NULL, "install");
    _cleanup_free_ char *seed = NULL;
    if (asprintf(&seed, "%s/steps/%s/" SEED_NAME, build->work, install->folder) < 0)
        return error_oom(err);
    if (unlink(seed) < 0 && errno != ENOENT)
        return error_set_errno(err, errno, "%s: cannot remove", seed);
    return 0;
}
