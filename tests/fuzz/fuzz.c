/* SPDX-License-Identifier: MIT */
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "common/log.h"
#include "tests/fuzz/mutate.h"

static char directory[256];
static pid_t owner;

void fuzz_fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("fuzz: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    (void)remove(path);
    return 0;
}

static void remove_directory(void)
{
    if (getpid() == owner)
        (void)nftw(directory, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

void fuzz_start(void)
{
    const char *parent = getenv("QVERITY_FUZZ_DIR");

    snprintf(directory, sizeof(directory), "%s/qverity-fuzz.XXXXXX",
             parent != NULL ? parent : "/dev/shm");
    if (mkdtemp(directory) == NULL || chdir(directory) < 0)
        fuzz_fail("no directory %s", directory);
    owner = getpid();
    /* A crash runs no handlers: what it leaves goes with the directory above. */
    atexit(remove_directory);
    log_set_level(LOG_LEVEL_ERROR);
}

void fuzz_write(const char *name, const void *bytes, size_t size)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || write(fd, bytes, size) != (ssize_t)size || close(fd) < 0)
        fuzz_fail("cannot write %s", name);
}

void fuzz_write_pattern(const char *name, size_t size)
{
    uint8_t *bytes = malloc(size);

    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(1 + (i / 512 + i) % 255);
    fuzz_write(name, bytes, size);
    free(bytes);
}

void fuzz_expect_error(struct error *err, int r)
{
    if (r >= 0)
        fuzz_fail("%d is no error", r);
    if (err->code != -r || err->message == NULL || err->message[0] == '\0')
        fuzz_fail("result %d, error %d: %s", r, err->code,
                  err->message != NULL ? err->message : "(no message)");
    error_clear(err);
}

void fuzz_mutate_bytes(struct mutator *m, uint8_t *bytes, size_t size)
{
    (void)m;
    (void)LLVMFuzzerMutate(bytes, size, size);
}
