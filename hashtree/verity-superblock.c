/* SPDX-License-Identifier: MIT */
/*
 * The superblock, written and read by libcryptsetup, so that it is veritysetup's to the last byte.
 *
 * libcryptsetup knows devices by their paths only, and aligns and checks as real devices need it.
 * Here it gets memfds instead: one that holds nothing but the superblock at offset 0 (where the
 * superblock lies is not among what it says), and one of zeros as data device, because it insists
 * on having one and refuses the same one twice.
 *
 * It reports errors by a log callback. The last message of a call becomes our error. The library
 * sets up global state in its first call, without a lock of its own: calls are made one at a time.
 */
#include "hashtree/verity.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/io.h"
#include "hashtree/cryptsetup.h"

static pthread_mutex_t library_lock = PTHREAD_MUTEX_INITIALIZER;

static const uint8_t signature[8] = "verity\0";

static void unlock_library(pthread_mutex_t **lock)
{
    if (*lock != NULL)
        pthread_mutex_unlock(*lock);
}

/* The device, and what the library last said about it. */
struct context {
    struct crypt_device *device;
    char message[256];
};

static void context_done(struct context *context)
{
    if (context->device != NULL)
        libcryptsetup.crypt_free(context->device);
    context->device = NULL;
}
DEFINE_CLEANUP_INPLACE(struct context, context_done);

static void keep_message(int level, const char *message, void *arg)
{
    struct context *context = arg;

    if (level != CRYPT_LOG_ERROR)
        return;
    snprintf(context->message, sizeof(context->message), "%s", message);
    size_t length = strcspn(context->message, "\n");
    if (length > 0 && context->message[length - 1] == '.')
        length--;
    context->message[length] = '\0';
    /* It may quote what stands in the superblock. */
    for (size_t i = 0; i < length; i++)
        if (context->message[i] < ' ' || context->message[i] > '~')
            context->message[i] = '?';
}

static void drop_message(int level, const char *message, void *arg)
{
    (void)level;
    (void)message;
    (void)arg;
}

#define FD_PATH_SIZE 32
static const char *fd_path(int fd, char path[static FD_PATH_SIZE])
{
    snprintf(path, FD_PATH_SIZE, "/proc/self/fd/%d", fd);
    return path;
}

static int new_memfd(uint64_t size, int *ret, struct error *err)
{
    _cleanup_close_ int fd = memfd_create("verity-superblock", MFD_CLOEXEC);

    if (fd < 0)
        return error_set_errno(err, errno, "memfd_create");
    if (ftruncate(fd, (off_t)size) < 0)
        return error_set_errno(err, errno, "memfd");
    *ret = take_fd(&fd);
    return 0;
}

static int open_device(struct context *context, int fd, struct error *err)
{
    char path[FD_PATH_SIZE];

    int r = libcryptsetup_load(err);
    if (r < 0)
        return r;
    /* Until there is a device its messages go to the global callback, which by default prints. */
    libcryptsetup.crypt_set_log_callback(NULL, drop_message, NULL);
    r = libcryptsetup.crypt_init(&context->device, fd_path(fd, path));
    if (r < 0)
        return error_set_errno(err, -r, "libcryptsetup: cannot open %s", path);
    libcryptsetup.crypt_set_log_callback(context->device, keep_message, context);
    return 0;
}

static int library_error(const struct context *context, int r, struct error *err)
{
    if (context->message[0] != '\0')
        return error_set(err, -r, "%s", context->message);
    return error_set_errno(err, -r, "libcryptsetup");
}

int verity_superblock_format(const struct verity_params *params, uint8_t *superblock,
                             struct error *err)
{
    _cleanup_(unlock_library) pthread_mutex_t *lock = NULL;
    _cleanup_(context_done_cleanup) struct context context = {0};
    _cleanup_close_ int fd = -1, data_fd = -1;
    char uuid[VERITY_UUID_TEXT_SIZE], data_path[FD_PATH_SIZE];

    int r = new_memfd(params->hash_block_size, &fd, err);
    if (r < 0)
        return r;
    r = new_memfd(params->data_block_size, &data_fd, err);
    if (r < 0)
        return r;
    verity_uuid_format(params->uuid, uuid);

    pthread_mutex_lock(&library_lock);
    lock = &library_lock;
    r = open_device(&context, fd, err);
    if (r < 0)
        return r;
    struct crypt_params_verity verity = {
        .hash_name = params->hash_name,
        .data_device = fd_path(data_fd, data_path),
        /* Not NULL, which would ask for a random salt. */
        .salt = (const char *)params->salt,
        .salt_size = (uint32_t)params->salt_size,
        .hash_type = params->hash_type,
        .data_block_size = params->data_block_size,
        .hash_block_size = params->hash_block_size,
        .data_size = params->data_blocks,
    };
    r = libcryptsetup.crypt_format(context.device, CRYPT_VERITY, NULL, NULL, uuid, NULL, 0,
                                   &verity);
    if (r < 0) {
        library_error(&context, r, err);
        return error_prefix(err, "cannot make the superblock");
    }
    return io_read_at(fd, "superblock", superblock, VERITY_SUPERBLOCK_SIZE, 0, err);
}

static int params_from_library(struct context *context, uint64_t hash_offset,
                               struct verity_params *ret, struct error *err)
{
    struct crypt_params_verity verity = {0};
    struct verity_params params = {.hash_offset = hash_offset, .superblock = true};

    int r = libcryptsetup.crypt_get_verity_info(context->device, &verity);
    if (r < 0)
        return library_error(context, r, err);
    if (strlen(verity.hash_name) >= sizeof(params.hash_name))
        return error_set(err, EINVAL, "the hash algorithm's name has no end");
    strcpy(params.hash_name, verity.hash_name);
    params.hash_type = verity.hash_type;
    params.data_block_size = verity.data_block_size;
    params.hash_block_size = verity.hash_block_size;
    params.data_blocks = verity.data_size;
    if (verity.salt_size > sizeof(params.salt))
        return error_set(err, EINVAL, "salt of %" PRIu32 " bytes", verity.salt_size);
    memcpy(params.salt, verity.salt, verity.salt_size);
    params.salt_size = verity.salt_size;
    r = verity_uuid_parse(libcryptsetup.crypt_get_uuid(context->device), params.uuid, err);
    if (r < 0)
        return r;
    params.uuid_set = true;
    *ret = params;
    return 0;
}

static int load_superblock(const uint8_t *superblock, uint64_t hash_offset,
                           struct verity_params *ret, struct error *err)
{
    _cleanup_(unlock_library) pthread_mutex_t *lock = NULL;
    _cleanup_(context_done_cleanup) struct context context = {0};
    struct crypt_params_verity verity = {0};
    _cleanup_close_ int fd = -1;

    int r = new_memfd(0, &fd, err);
    if (r < 0)
        return r;
    r = io_write_at(fd, "memfd", superblock, VERITY_SUPERBLOCK_SIZE, 0, err);
    if (r < 0)
        return r;

    pthread_mutex_lock(&library_lock);
    lock = &library_lock;
    r = open_device(&context, fd, err);
    if (r < 0)
        return r;
    r = libcryptsetup.crypt_load(context.device, CRYPT_VERITY, &verity);
    if (r < 0)
        return library_error(&context, r, err);
    return params_from_library(&context, hash_offset, ret, err);
}

int verity_superblock_load(const char *path, uint64_t hash_offset, struct verity_params *ret,
                           struct error *err)
{
    uint8_t superblock[VERITY_SUPERBLOCK_SIZE];
    _cleanup_close_ int fd = -1;

    if (hash_offset % VERITY_SUPERBLOCK_SIZE != 0)
        return error_set(err, EINVAL, "--hash-offset %" PRIu64 ": not a multiple of %d",
                         hash_offset, VERITY_SUPERBLOCK_SIZE);
    if (!range_within(hash_offset, sizeof(superblock), INT64_MAX))
        return error_set(err, EOVERFLOW, "--hash-offset %" PRIu64 ": too large", hash_offset);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", path);
    ssize_t n = io_read_some_at(fd, path, superblock, sizeof(superblock), hash_offset, err);
    if (n < 0)
        return (int)n;
    if ((size_t)n < sizeof(superblock))
        return error_set(err, ENODATA,
                         "%s: too short for a dm-verity superblock at offset %" PRIu64, path,
                         hash_offset);
    if (memcmp(superblock, signature, sizeof(signature)) != 0)
        return error_set(err, EINVAL,
                         "%s: no dm-verity superblock at offset %" PRIu64
                         " (--hash-offset says where it is, --no-superblock that there is none)",
                         path, hash_offset);
    int r = load_superblock(superblock, hash_offset, ret, err);
    if (r < 0)
        return error_prefix(err, "%s: superblock at offset %" PRIu64, path, hash_offset);
    return 0;
}
