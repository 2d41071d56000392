/* SPDX-License-Identifier: MIT */
#include "provision/digest.h"

#include <dirent.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/stat.h>

#define CHUNK (256 * 1024)
#define DEPTH_MAX 64

struct digest {
    EVP_MD_CTX *context;
    bool failed;
};

enum kind {
    KIND_BYTES,
    KIND_TEXT,
    KIND_NOTHING,
    KIND_NUMBER,
    KIND_FILE,
    KIND_LINK,
    KIND_DIRECTORY
};

int digest_new(struct digest **ret, struct error *err)
{
    _cleanup_(digest_free_cleanup) struct digest *digest = calloc(1, sizeof(*digest));

    if (digest == NULL)
        return error_oom(err);
    digest->context = EVP_MD_CTX_new();
    if (digest->context == NULL || EVP_DigestInit_ex(digest->context, EVP_sha256(), NULL) != 1)
        return error_oom(err);
    *ret = TAKE_PTR(digest);
    return 0;
}

void digest_free(struct digest *digest)
{
    EVP_MD_CTX_free(digest->context);
    free(digest);
}

static void add(struct digest *digest, const void *bytes, size_t length)
{
    if (EVP_DigestUpdate(digest->context, bytes, length) != 1)
        digest->failed = true;
}

static void add_header(struct digest *digest, enum kind kind, uint64_t number)
{
    uint8_t header[9] = {(uint8_t)kind};

    for (size_t i = 0; i < 8; i++)
        header[1 + i] = (uint8_t)(number >> (8 * i));
    add(digest, header, sizeof(header));
}

void digest_bytes(struct digest *digest, const void *bytes, size_t length)
{
    add_header(digest, KIND_BYTES, length);
    add(digest, bytes, length);
}

void digest_text(struct digest *digest, const char *text)
{
    add_header(digest, text != NULL ? KIND_TEXT : KIND_NOTHING, text != NULL ? strlen(text) : 0);
    if (text != NULL)
        add(digest, text, strlen(text));
}

void digest_number(struct digest *digest, uint64_t number)
{
    add_header(digest, KIND_NUMBER, number);
}

/* The bytes come before their number, which is known only then. */
static int add_contents(struct digest *digest, int fd, const char *path, struct error *err)
{
    _cleanup_free_ char *buffer = malloc(CHUNK);
    uint64_t length = 0;
    ssize_t n;

    if (buffer == NULL)
        return error_oom(err);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    do {
        n = read(fd, buffer, CHUNK);
        if (n < 0 && errno != EINTR)
            return error_set_errno(err, errno, "%s: cannot read", path);
        if (n > 0) {
            add(digest, buffer, (size_t)n);
            length += (uint64_t)n;
        }
    } while (n != 0);
    add_header(digest, KIND_FILE, length);
    return 0;
}

static int add_at(struct digest *digest, int directory, const char *name, const char *path,
                  unsigned depth, struct error *err);

static int compare_names(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_entry(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

static int add_directory(struct digest *digest, int fd, const char *path, unsigned depth,
                         struct error *err)
{
    struct dirent **entries;
    int r = 0;

    if (depth >= DEPTH_MAX)
        return error_set(err, ELOOP, "%s: directories are nested too deep", path);
    int count = scandirat(fd, ".", &entries, is_entry, compare_names);
    if (count < 0)
        return error_set_errno(err, errno, "%s: cannot read the directory", path);
    for (int i = 0; i < count; i++) {
        _cleanup_free_ char *below = NULL;
        if (r == 0 && asprintf(&below, "%s/%s", path, entries[i]->d_name) < 0)
            r = error_oom(err);
        if (r == 0) {
            digest_text(digest, entries[i]->d_name);
            r = add_at(digest, fd, entries[i]->d_name, below, depth + 1, err);
        }
        free(entries[i]);
    }
    free(entries);
    add_header(digest, KIND_DIRECTORY, (uint64_t)count);
    return r;
}

static int add_link(struct digest *digest, int directory, const char *name, const char *path,
                    struct error *err)
{
    char target[4096];

    ssize_t n = readlinkat(directory, name, target, sizeof(target));
    if (n < 0)
        return error_set_errno(err, errno, "%s: cannot read the link", path);
    add_header(digest, KIND_LINK, (uint64_t)n);
    add(digest, target, (size_t)n);
    return 0;
}

/* Below the name that was given links are links. */
static int add_at(struct digest *digest, int directory, const char *name, const char *path,
                  unsigned depth, struct error *err)
{
    _cleanup_close_ int fd =
        openat(directory, name,
               O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (depth > 0 ? O_NOFOLLOW : 0));
    struct stat st;

    if (fd < 0 && errno == ELOOP && depth > 0)
        return add_link(digest, directory, name, path, err);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "%s: cannot open", path);
    if (S_ISDIR(st.st_mode))
        return add_directory(digest, fd, path, depth, err);
    if (!S_ISREG(st.st_mode))
        return error_set(err, EINVAL, "%s: neither a file nor a directory", path);
    digest_number(digest, (st.st_mode & 0111) != 0);
    return add_contents(digest, fd, path, err);
}

int digest_file(struct digest *digest, const char *path, struct error *err)
{
    return add_at(digest, AT_FDCWD, path, path, 0, err);
}

int digest_end(struct digest *digest, uint8_t ret[static DIGEST_SIZE], struct error *err)
{
    unsigned length = 0;

    if (digest->failed || EVP_DigestFinal_ex(digest->context, ret, &length) != 1 ||
        length != DIGEST_SIZE)
        return error_oom(err);
    return 0;
}
