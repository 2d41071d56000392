/* SPDX-License-Identifier: MIT */
/*
 * Reads all files of an ext file system, over and over, with some of its bytes changed:
 *
 *     files-check FILE SEED COUNT [START LENGTH]
 *
 * changes a few bytes of FILE, a raw file system that the tool may write to, reads everything that
 * can be reached, and puts the bytes back; COUNT times. What is changed is where the file is not
 * zero, and lies in the range if one is given. It fails if a round takes too long, and prints how
 * the rounds ended: how many file systems could not be opened, how many files could be read and how
 * many could not. Crashes are for the sanitizers to tell.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/units.h"
#include "image/files.h"

#define ROUND_SECONDS 60
#define CHANGES_MAX 6
#define DEPTH_MAX 40
#define FILES_MAX 3000 /* of one round: a directory may be reached on many ways */

struct counts {
    uint64_t unopened, good, bad, bytes;
};

struct round {
    struct file_system *fs;
    struct counts *counts;
    unsigned files;
    unsigned depth;
};

static uint64_t random_state;

static uint64_t random_below(uint64_t n)
{
    /* splitmix64 */
    uint64_t z = random_state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (z ^ z >> 31) % n;
}

static void on_alarm(int number)
{
    static const char text[] = "files-check: a round takes too long\n";

    (void)number;
    (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    abort();
}

/* --- A round --- */

static int take_bytes(void *arg, uint64_t offset, const void *bytes, uint64_t length,
                      struct error *err)
{
    struct round *round = arg;
    volatile unsigned char sum = 0;

    (void)offset;
    (void)err;
    for (uint64_t i = 0; bytes != NULL && i < length; i += 512)
        sum = (unsigned char)(sum + ((const unsigned char *)bytes)[i]);
    round->counts->bytes += bytes != NULL ? length : 0;
    return 0;
}

static void count(struct round *round, int r, struct error *err)
{
    if (r < 0 && (err->message == NULL && r != -ENOMEM)) {
        fprintf(stderr, "files-check: an error %d without a message\n", -r);
        abort();
    }
    if (r < 0)
        round->counts->bad++;
    else
        round->counts->good++;
    error_clear(err);
}

static int take_entry(void *arg, const struct file_entry *entry, struct error *err);

static void visit(struct round *round, uint32_t inode)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_free_ char *target = NULL;

    if (round->files++ >= FILES_MAX || round->depth >= DEPTH_MAX)
        return;
    int r = file_node_open(round->fs, inode, &node, &err);
    if (r == 0) {
        round->depth++;
        switch (file_node_info(node)->mode & S_IFMT) {
        case S_IFDIR:
            r = file_node_list(node, take_entry, round, &err);
            break;
        case S_IFLNK:
            r = file_node_read_link(node, &target, &err);
            break;
        case S_IFREG:
            r = file_node_read_all(node, take_bytes, round, &err);
            break;
        default:
            break;
        }
        round->depth--;
    }
    count(round, r, &err);
}

static int take_entry(void *arg, const struct file_entry *entry, struct error *err)
{
    (void)err;
    if (entry->length == 0 || entry->length > FILE_NAME_MAX ||
        strlen(entry->name) != entry->length || strchr(entry->name, '/') != NULL ||
        strcmp(entry->name, ".") == 0 || strcmp(entry->name, "..") == 0) {
        fprintf(stderr, "files-check: a bad name\n");
        abort();
    }
    visit(arg, entry->inode);
    return 0;
}

static void find(struct round *round, const char *path)
{
    _cleanup_(file_node_close_cleanup) struct file_node *node = NULL;
    _cleanup_error_ struct error err = ERROR_INIT;

    count(round, file_node_find(round->fs, path, FILE_FOLLOW, &node, &err), &err);
}

static void run_round(const char *path, uint64_t size, struct counts *counts)
{
    const struct image_options options = {.format = "raw"};
    const struct partition partition = {.size = size, .fs_type = (char *)"ext4"};
    _cleanup_image_ struct image *image = NULL;
    _cleanup_(file_system_close_cleanup) struct file_system *fs = NULL;
    _cleanup_error_ struct error err = ERROR_INIT;
    struct round round = {.counts = counts};

    if (image_open(path, &options, &image, &err) < 0) {
        fprintf(stderr, "files-check: %s\n", error_message(&err));
        exit(1);
    }
    if (file_system_open(image, &partition, &fs, &err) < 0) {
        counts->unopened++;
        if (getenv("FILES_CHECK_VERBOSE") != NULL)
            fprintf(stderr, "%s\n", error_message(&err));
        return;
    }
    round.fs = fs;
    visit(&round, 2);
    find(&round, "/links/loop/x");
    find(&round, "/links/up/../dir/./file");
}

/* --- Changing --- */

struct change {
    uint64_t offset;
    unsigned char old;
};

/* Somewhere in the range where the file is not zero. */
static uint64_t choose(const unsigned char *bytes, uint64_t start, uint64_t length)
{
    uint64_t at = start + random_below(length);

    for (int i = 0; i < 4096 && bytes[at] == 0; i++)
        at = start + random_below(length);
    return at;
}

static unsigned char change_byte(unsigned char old)
{
    static const unsigned char values[] = {0, 1, 0x7f, 0x80, 0xff};

    switch (random_below(4)) {
    case 0:
        return (unsigned char)(old ^ (1U << random_below(8)));
    case 1:
        return values[random_below(sizeof(values))];
    case 2:
        return (unsigned char)(old + (random_below(2) != 0 ? 1 : -1));
    default:
        return (unsigned char)random_below(256);
    }
}

static void write_byte(int fd, uint64_t offset, unsigned char byte)
{
    if (pwrite(fd, &byte, 1, (off_t)offset) != 1) {
        perror("files-check: pwrite");
        exit(1);
    }
}

static uint64_t number(const char *text)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    uint64_t n;

    if (parse_size(text, "number", &n, &err) < 0) {
        fprintf(stderr, "files-check: %s\n", error_message(&err));
        exit(2);
    }
    return n;
}

int main(int argc, char **argv)
{
    struct counts counts = {0};
    struct stat st;

    if (argc != 4 && argc != 6) {
        fprintf(stderr, "usage: files-check FILE SEED COUNT [START LENGTH]\n");
        return 2;
    }
    log_set_level(LOG_LEVEL_ERROR);
    (void)signal(SIGALRM, on_alarm);
    int fd = open(argv[1], O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        perror(argv[1]);
        return 1;
    }
    const uint64_t size = (uint64_t)st.st_size, rounds = number(argv[3]);
    const uint64_t start = argc == 6 ? number(argv[4]) : 0,
                   length = argc == 6 ? number(argv[5]) : size;
    unsigned char *bytes = malloc(size);
    random_state = number(argv[2]);
    if (bytes == NULL || length == 0 || length > size || start > size - length ||
        pread(fd, bytes, size, 0) != (ssize_t)size) {
        fprintf(stderr, "files-check: cannot read %s\n", argv[1]);
        return 1;
    }
    for (uint64_t i = 0; i < rounds; i++) {
        struct change changes[CHANGES_MAX];
        const size_t n = 1 + random_below(CHANGES_MAX);

        for (size_t j = 0; j < n; j++) {
            changes[j].offset = choose(bytes, start, length);
            changes[j].old = bytes[changes[j].offset];
            write_byte(fd, changes[j].offset, change_byte(changes[j].old));
        }
        (void)alarm(ROUND_SECONDS);
        run_round(argv[1], size, &counts);
        (void)alarm(0);
        for (size_t j = n; j-- > 0;)
            write_byte(fd, changes[j].offset, changes[j].old);
    }
    free(bytes);
    printf("%" PRIu64 " not opened, %" PRIu64 " files read, %" PRIu64 " not, %" PRIu64 " bytes\n",
           counts.unopened, counts.good, counts.bad, counts.bytes);
    return 0;
}
