/* SPDX-License-Identifier: MIT */
/*
 * io_uring rings for confined processes.
 *
 * A ring makes system calls that no seccomp filter sees: a process that may set one up can open
 * files and sockets through it. So rings are made before the process is confined, and told for good
 * that they can read, and nothing else; afterwards the filter lets nobody make another. Readers
 * take these, and give them back as they found them.
 */
#include <errno.h>
#include <liburing.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/openssl.h"
#include "common/sandbox.h"
#include "hashtree/internal.h"

#define RINGS_MAX 64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct io_uring rings[RINGS_MAX];
static unsigned count; /* of those that nobody has */

static int restrict_to_reading(const struct io_uring *ring)
{
    struct io_uring_restriction rules[] = {
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READ},
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READ_FIXED},
        {.opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED, .sqe_flags = IOSQE_FIXED_FILE},
        {.opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = IORING_REGISTER_BUFFERS},
        {.opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = IORING_UNREGISTER_BUFFERS},
        {.opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = IORING_REGISTER_FILES},
        {.opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = IORING_UNREGISTER_FILES},
    };

    /* liburing 2.3 of Debian 12 declares functions for these and does not export them. */
    if (syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_RESTRICTIONS, rules,
                sizeof(rules) / sizeof(rules[0])) < 0 ||
        syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
        return -errno;
    return 0;
}

static void make_rings(unsigned threads)
{
    for (; count < threads && count < RINGS_MAX; count++) {
        struct io_uring_params params = {.flags = IORING_SETUP_R_DISABLED};
        struct io_uring *ring = &rings[count];

        if (io_uring_queue_init_params(RING_ENTRIES, ring, &params) < 0)
            return;
        if (restrict_to_reading(ring) < 0) {
            io_uring_queue_exit(ring);
            return;
        }
    }
}

/* They are loaded from files, and load providers of digests from others. */
static void load_libraries(const char *digest, unsigned needs)
{
    _cleanup_(hasher_free_cleanup) struct hasher *hasher = NULL;
    struct verity_params params;
    uint8_t bytes[VERITY_SUPERBLOCK_SIZE];
    size_t size;

    libcrypto_skip_config();
    verity_params_init(&params);
    if (digest == NULL)
        digest = params.hash_name;
    (void)hasher_find_digest(digest, &size, NULL);
    (void)hasher_new(digest, HASHER_SALT_FIRST, NULL, 0, &hasher, NULL);
    sha256_checksum(bytes, 0, bytes);
    /* This one comes from the provider that is loaded last. */
    if (needs != 0)
        (void)hasher_find_digest("whirlpool", &size, NULL);
    if ((needs & HASHTREE_NEEDS_SUPERBLOCK) == 0)
        return;
    params.data_blocks = 1;
    (void)verity_superblock_format(&params, bytes, NULL);
}

void hashtree_prepare_confined(unsigned threads, const char *digest, unsigned needs)
{
    make_rings(threads != 0 ? threads : usable_cpus());
    load_libraries(digest, needs);
}

int ring_open(struct io_uring *ret)
{
    int r = -EPERM;

    if (!sandbox_active())
        return io_uring_queue_init(RING_ENTRIES, ret, 0);
    pthread_mutex_lock(&lock);
    if (count > 0) {
        *ret = rings[--count];
        r = 0;
    }
    pthread_mutex_unlock(&lock);
    return r;
}

void ring_close(struct io_uring *ring, bool idle)
{
    if (!sandbox_active() || !idle) {
        io_uring_queue_exit(ring);
        return;
    }
    (void)io_uring_unregister_buffers(ring);
    pthread_mutex_lock(&lock);
    rings[count++] = *ring;
    pthread_mutex_unlock(&lock);
}
