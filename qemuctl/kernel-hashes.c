/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "qemuctl/measure-internal.h"

/*
 * The table with which QEMU tells the firmware the hashes of kernel, initrd and command line, which
 * themselves come over fw_cfg and are not measured (QEMU, target/i386/sev.c, SevHashTable; edk2,
 * OvmfPkg/AmdSev/BlobVerifierLibSevHashes). Each part is a GUID, the length of the part with this
 * header, and contents; the table is a part whose contents are parts. It is padded with zeros to a
 * multiple of 16 bytes, what LAUNCH_UPDATE_DATA takes.
 */
#define HASHES_HEADER_SIZE (GUID_SIZE + 2)
#define HASHES_ENTRY_SIZE (HASHES_HEADER_SIZE + SHA256_SIZE)
#define HASHES_SIZE (HASHES_HEADER_SIZE + 3 * HASHES_ENTRY_SIZE)

/* QEMU keeps the sizes of kernel and initrd in 32 bits. */
#define FILE_SIZE_MAX UINT64_C(0xffffffff)

static const struct guid table_guid =
    GUID(0x9438d606, 0x4f22, 0x4cc9, 0xb4, 0x79, 0xa7, 0x93, 0xd4, 0x11, 0xfd, 0x21);
static const struct guid cmdline_guid =
    GUID(0x97d02dd8, 0xbd20, 0x4c94, 0xaa, 0x78, 0xe7, 0x71, 0x4d, 0x36, 0xab, 0x2a);
static const struct guid initrd_guid =
    GUID(0x44baf731, 0x3a2f, 0x4bd7, 0x9a, 0xf1, 0x41, 0xe2, 0x91, 0x69, 0x78, 0x1d);
static const struct guid kernel_guid =
    GUID(0x4de79437, 0xabd2, 0x427f, 0xb8, 0x35, 0xd5, 0xb1, 0x72, 0xd2, 0x04, 0x5b);

static void put_header(uint8_t *p, const struct guid *guid, uint16_t length)
{
    memcpy(p, guid->bytes, GUID_SIZE);
    put_le16(p + GUID_SIZE, length);
}

void kernel_hashes_table(const struct kernel_hashes *hashes,
                         uint8_t table[static HASHES_TABLE_SIZE])
{
    const struct {
        const struct guid *guid;
        const uint8_t *hash;
    } entries[] = {
        {&cmdline_guid, hashes->cmdline},
        {&initrd_guid, hashes->initrd},
        {&kernel_guid, hashes->kernel},
    };
    uint8_t *p = table;

    static_assert((HASHES_SIZE + 15) / 16 * 16 == HASHES_TABLE_SIZE, "padded to 16 bytes");
    memset(table, 0, HASHES_TABLE_SIZE);
    put_header(p, &table_guid, HASHES_SIZE);
    p += HASHES_HEADER_SIZE;
    for (size_t i = 0; i < 3; i++, p += HASHES_ENTRY_SIZE) {
        put_header(p, entries[i].guid, HASHES_ENTRY_SIZE);
        memcpy(p + HASHES_HEADER_SIZE, entries[i].hash, SHA256_SIZE);
    }
}

/* Pipes, too, which have no offsets. */
static ssize_t read_next(int fd, void *buffer, size_t room, uint64_t offset)
{
    ssize_t n;

    do {
        n = pread(fd, buffer, room, (off_t)offset);
        if (n < 0 && errno == ESPIPE)
            n = read(fd, buffer, room);
    } while (n < 0 && errno == EINTR);
    return n;
}

static int hash_fd(struct sha *sha, int fd, const char *name, uint8_t hash[static SHA256_SIZE],
                   struct error *err)
{
    _cleanup_free_ uint8_t *buffer = NULL;
    const size_t room = 1 << 20;
    uint64_t total = 0;

    buffer = malloc(room);
    if (buffer == NULL)
        return error_oom(err);
    int r = sha_begin(sha, err);
    while (r == 0) {
        ssize_t n = read_next(fd, buffer, room, total);
        if (n < 0)
            return error_set_errno(err, errno, "%s: cannot read", name);
        if (n == 0)
            return sha_end(sha, hash, err);
        total += (uint64_t)n;
        if (total > FILE_SIZE_MAX)
            return error_set(err, EFBIG, "%s: has 4 GiB or more, which QEMU does not load", name);
        r = sha_add(sha, buffer, (size_t)n, err);
    }
    return r;
}

int kernel_hashes_from_fds(int kernel, const char *kernel_name, int initrd, const char *initrd_name,
                           const char *append, struct kernel_hashes *ret, struct error *err)
{
    const char *line = append != NULL ? append : "";
    _cleanup_sha_ struct sha sha = SHA_INIT;
    struct kernel_hashes hashes;

    int r = sha_open(&sha, "SHA256", err);
    if (r == 0)
        r = hash_fd(&sha, kernel, kernel_name, hashes.kernel, err);
    if (r == 0 && initrd >= 0)
        r = hash_fd(&sha, initrd, initrd_name, hashes.initrd, err);
    else if (r == 0)
        r = sha_of(&sha, "", 0, hashes.initrd, err);
    if (r == 0)
        r = sha_of(&sha, line, strlen(line) + 1, hashes.cmdline, err);
    if (r == 0)
        *ret = hashes;
    return r;
}

static int open_file(const char *path, int *ret, struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", path);
    *ret = fd;
    return 0;
}

int kernel_hashes_from_files(const char *kernel, const char *initrd, const char *append,
                             struct kernel_hashes *ret, struct error *err)
{
    _cleanup_close_ int kernel_fd = -1, initrd_fd = -1;

    int r = open_file(kernel, &kernel_fd, err);
    if (r == 0 && initrd != NULL)
        r = open_file(initrd, &initrd_fd, err);
    if (r < 0)
        return r;
    return kernel_hashes_from_fds(kernel_fd, kernel, initrd_fd, initrd, append, ret, err);
}
