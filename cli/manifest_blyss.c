/* SPDX-License-Identifier: MIT */
#include "cli/manifest_blyss.h"

#include <errno.h>
#include <string.h>

#include "common/units.h"

#define PROTOCOL "0.0.1"

int manifest_blyss_check(const struct verity_params *params, struct error *err)
{
    struct verity_params defaults;
    const char *what = NULL;

    verity_params_init(&defaults);
    if (strcmp(params->hash_name, defaults.hash_name) != 0)
        what = "--hash";
    else if (params->hash_type != defaults.hash_type)
        what = "--format-version";
    else if (params->data_block_size != defaults.data_block_size)
        what = "--data-block-size";
    else if (params->hash_block_size != defaults.hash_block_size)
        what = "--hash-block-size";
    else if (params->salt_size != defaults.salt_size ||
             memcmp(params->salt, defaults.salt, params->salt_size) != 0)
        what = "--salt";
    else if (params->hash_offset != 0 || !params->superblock)
        what = "where the hash area begins";
    if (what != NULL)
        return error_set(err, EINVAL,
                         "--as blyss: cannot tell of %s, and so takes the default only", what);
    return 0;
}

/* --- Out of the command line --- */

/* The next word, as next_arg() of the kernel cuts it, with its quotes; NULL at the end. */
static const char *next_word(const char *p, size_t *ret_length)
{
    bool quoted = false;
    size_t n = 0;

    while (*p == ' ' || *p == '\t' || *p == '\n')
        p++;
    while (p[n] != '\0' && (quoted || strchr(" \t\n", p[n]) == NULL))
        quoted ^= p[n++] == '"';
    *ret_length = n;
    return n == 0 ? NULL : p;
}

/* The value of a parameter, without the quotes around it; the last one counts. NULL: not there. The
 * caller's to free. */
static char *parameter(const char *line, const char *name)
{
    const size_t name_length = strlen(name);
    char *value = NULL;
    size_t length;

    for (const char *p = line; (p = next_word(p, &length)) != NULL; p += length) {
        const char *start = p;
        size_t left = length;
        if (left > 1 && start[0] == '"') { /* "name=a b" */
            start++;
            left -= start[left - 2] == '"' ? 2 : 1;
        }
        if (left <= name_length || strncmp(start, name, name_length) != 0 ||
            start[name_length] != '=')
            continue;
        start += name_length + 1;
        left -= name_length + 1;
        if (left > 1 && start[0] == '"') { /* name="a b" */
            start++;
            left -= start[left - 2] == '"' ? 2 : 1;
        }
        free(value);
        value = strndup(start, left);
    }
    return value;
}

/* The next word of a shell's, cut out of *rest: quotes can only be single ones, as the whole stands
 * in double ones. NULL at the end. */
static char *shell_word(char **rest)
{
    char *p = *rest, *start, *out;
    bool quoted = false;

    while (*p == ' ' || *p == '\t')
        p++;
    if (*p == '\0')
        return NULL;
    for (start = out = p; *p != '\0' && (quoted || (*p != ' ' && *p != '\t')); p++) {
        if (*p == '\'')
            quoted = !quoted;
        else
            *out++ = *p;
    }
    *rest = *p != '\0' ? p + 1 : p;
    *out = '\0';
    return start;
}

/*
 * The image in a parameter that holds arguments of `docker run`: the first word that is no option,
 * where --env has an argument of its own; without its digest. Null if there is none.
 */
static json_t *docker_image(const char *line, const char *name)
{
    _cleanup_free_ char *value = parameter(line, name);
    char *rest = value, *word;

    while (rest != NULL && (word = shell_word(&rest)) != NULL) {
        if (strcmp(word, "--env") == 0 || strcmp(word, "-e") == 0)
            (void)shell_word(&rest);
        else if (word[0] != '\0' && word[0] != '-')
            return json_stringn(word, strcspn(word, "@"));
    }
    return json_null();
}

/* What stands in front of boot's own parameters: the verifier expects it there. */
static json_t *security(const char *line)
{
    const char *end = strstr(line, "fsck.mode=skip");
    size_t length = end != NULL ? (size_t)(end - line) : 0;

    while (length > 0 && line[length - 1] == ' ')
        length--;
    return json_stringn(line, length);
}

/* vmlinuz-VERSION, or the whole name. */
static json_t *firmware_name(const char *kernel)
{
    const char *slash = strrchr(kernel, '/'), *name = slash != NULL ? slash + 1 : kernel;
    const char *version = strncmp(name, "vmlinuz-", 8) == 0 ? name + 8 : name;

    return json_text(version);
}

/* --- The object --- */

static json_t *hex(const uint8_t *bytes, size_t size)
{
    char text[2 * VERITY_DIGEST_MAX + 1];

    hex_encode(bytes, size, text);
    return json_string(text);
}

static json_t *disk(const struct manifest_blyss *blyss)
{
    const uint64_t size = blyss->params->data_blocks * blyss->params->data_block_size;

    return json_pack("{s:s, s:o, s:I}", "type", "dm_verity", "hash", hex(blyss->root, 32), "size",
                     (json_int_t)size);
}

static json_t *firmware(const struct manifest_blyss *blyss)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "name", firmware_name(blyss->kernel_name), "disk",
                     disk(blyss), "ovmf", hex(blyss->ovmf, 32), "kernel",
                     hex(blyss->hashes->kernel, 32), "initrd",
                     blyss->initrd ? hex(blyss->hashes->initrd, 32) : json_null());
}

int manifest_blyss_json(const struct manifest_blyss *blyss, json_t **ret, struct error *err)
{
    const char *author = blyss->author != NULL ? blyss->author : "";
    _cleanup_json_ json_t *exact = json_string(blyss->append);

    if (exact == NULL)
        return error_set(err, EILSEQ, "--as blyss: the command line is not UTF-8");
    json_t *object = json_pack("{s:s, s:o, s:{s:o, s:o, s:o, s:o, s:o}}", "version", PROTOCOL,
                               "author", json_text(author), "requirements", "application",
                               docker_image(blyss->append, "blyss_docker_img"), "ui",
                               docker_image(blyss->append, "blyss_ui_docker_img"), "shim",
                               docker_image(blyss->append, "blyss_shim_docker_img"), "firmware",
                               firmware(blyss), "security", security(blyss->append));

    if (object == NULL)
        return error_oom(err);
    *ret = object;
    return 0;
}
