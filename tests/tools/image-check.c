/* SPDX-License-Identifier: MIT */
/*
 * Compares what image/ reads with the raw disk that another program made of the same image:
 *
 *     image-check [options] IMAGE RAW      everything, and random ranges from several threads
 *     image-check [options] IMAGE          only prints the extents
 *
 * Options: --format F, --snapshot S, --password-file F, --force, --threads N, --random N (ranges
 * each thread reads), --seed N, --holes (extents with holes), --hold (only opens the image, says
 * so, and keeps it open until standard input ends).
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "common/io.h"
#include "image/image.h"

enum { CHUNK = 1 << 20 };

struct check {
    struct image *image;
    const uint8_t *raw; /* mapped */
    uint64_t size;
    unsigned ranges;
};

struct worker {
    const struct check *check;
    pthread_t thread;
    uint64_t random;
    int result;
};

static int report(const char *what, uint64_t offset, uint64_t length)
{
    fprintf(stderr, "%s: bytes differ within %" PRIu64 "+%" PRIu64 "\n", what, offset, length);
    return 1;
}

static int report_error(const char *what, const struct error *err)
{
    fprintf(stderr, "%s: %s\n", what, error_message(err));
    return 1;
}

static int check_read(const struct check *check)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_free_ uint8_t *buffer = malloc(CHUNK);

    for (uint64_t offset = 0; offset < check->size; offset += CHUNK) {
        size_t n = (size_t)min_u64(CHUNK, check->size - offset);
        if (image_read(check->image, offset, buffer, n, &err) < 0)
            return report_error("image_read", &err);
        if (memcmp(buffer, check->raw + offset, n) != 0)
            return report("image_read", offset, n);
    }
    return 0;
}

static bool is_zero(const uint8_t *p, uint64_t n)
{
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, (size_t)n - 1) == 0);
}

/* Reads an extent as a user of image_map() would, and compares. */
static int check_extent(const struct check *check, const struct extent *extent, uint8_t *buffer)
{
    _cleanup_error_ struct error err = ERROR_INIT;

    for (uint64_t done = 0; done < extent->length;) {
        size_t n = (size_t)min_u64(CHUNK, extent->length - done);
        uint64_t offset = extent->start + done;
        int r = 0;

        if (extent->kind == EXTENT_ZERO) {
            n = (size_t)(extent->length - done);
            if (!is_zero(check->raw + offset, n))
                return report("zero extent", offset, n);
        } else {
            if (extent->kind == EXTENT_DATA) {
                const struct image_file *file = image_file(check->image, extent->file);
                r = io_read_at(file->fd, file->path, buffer, n, extent->host_offset + done, &err);
            } else {
                r = image_read(check->image, offset, buffer, n, &err);
            }
            if (r < 0)
                return report_error("extent", &err);
            if (memcmp(buffer, check->raw + offset, n) != 0)
                return report(extent_kind_name(extent->kind), offset, n);
        }
        done += n;
    }
    return 0;
}

static int check_map(const struct check *check, unsigned flags)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_free_ uint8_t *buffer = malloc(CHUNK);
    struct image_hole_hint hint = {0};
    struct extent extent;

    for (uint64_t offset = 0; offset < check->size; offset += extent.length) {
        uint64_t length = check->size - offset;
        int r = (flags & IMAGE_MAP_HOLES) != 0
                    ? image_map_hinted(check->image, offset, length, flags, &hint, &extent, &err)
                    : image_map(check->image, offset, length, flags, &extent, &err);
        if (r < 0)
            return report_error("image_map", &err);
        if (extent.start != offset || extent.length == 0 || extent.length > check->size - offset)
            return report("extent's range", offset, extent.length);
        if (check_extent(check, &extent, buffer) != 0)
            return 1;
    }
    return 0;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void *check_random(void *arg)
{
    struct worker *worker = arg;
    const struct check *check = worker->check;
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_free_ uint8_t *buffer = malloc(CHUNK);
    struct extent extent;

    worker->result = 1;
    for (unsigned i = 0; i < check->ranges && check->size > 0; i++) {
        uint64_t offset = next_random(&worker->random) % check->size;
        /* Mostly short, some long. */
        uint64_t longest = (uint64_t)1 << next_random(&worker->random) % 21;
        uint64_t length = 1 + next_random(&worker->random) % longest;

        length = min_u64(length, check->size - offset);
        if (image_read(check->image, offset, buffer, (size_t)length, &err) < 0) {
            report_error("random image_read", &err);
            return NULL;
        }
        if (memcmp(buffer, check->raw + offset, (size_t)length) != 0) {
            report("random image_read", offset, length);
            return NULL;
        }
        unsigned flags = next_random(&worker->random) % 2 != 0 ? IMAGE_MAP_HOLES : 0;
        if (image_map(check->image, offset, length, flags, &extent, &err) < 0) {
            report_error("random image_map", &err);
            return NULL;
        }
        if (extent.start != offset || extent.length == 0 || extent.length > length) {
            report("random extent's range", offset, length);
            return NULL;
        }
        if (check_extent(check, &extent, buffer) != 0)
            return NULL;
    }
    worker->result = 0;
    return NULL;
}

static int check_threads(const struct check *check, unsigned threads, uint64_t seed)
{
    struct worker workers[64] = {0};
    int result = 0;

    for (unsigned i = 0; i < threads; i++) {
        workers[i].check = check;
        workers[i].random = (seed + i + 1) * 0x9e3779b97f4a7c15u | 1;
        if (pthread_create(&workers[i].thread, NULL, check_random, &workers[i]) != 0)
            return 1;
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(workers[i].thread, NULL);
        result |= workers[i].result;
    }
    return result;
}

static int print_extents(struct image *image, unsigned flags)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct extent extent;

    for (uint64_t offset = 0; offset < image_size(image); offset += extent.length) {
        if (image_map(image, offset, image_size(image) - offset, flags, &extent, &err) < 0)
            return report_error("image_map", &err);
        printf("%" PRIu64 " %" PRIu64 " %s", extent.start, extent.length,
               extent_kind_name(extent.kind));
        if (extent.kind == EXTENT_DATA || extent.kind == EXTENT_COMPRESSED)
            printf(" %zu %" PRIu64, extent.file, extent.host_offset);
        printf("\n");
    }
    return 0;
}

static int compare(struct check *check, const char *path, unsigned threads, uint64_t seed)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    check->size = image_size(check->image);
    if ((uint64_t)st.st_size != check->size) {
        fprintf(stderr, "size: %" PRIu64 " bytes, not %" PRIu64 "\n", check->size,
                (uint64_t)st.st_size);
        return 1;
    }
    if (check->size == 0)
        return 0;
    void *raw = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (raw == MAP_FAILED) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    check->raw = raw;
    int result = check_read(check) != 0 || check_map(check, 0) != 0 ||
                 check_map(check, IMAGE_MAP_HOLES) != 0 || check_threads(check, threads, seed) != 0;
    munmap(raw, (size_t)st.st_size);
    return result;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"format", required_argument, NULL, 'f'},
        {"snapshot", required_argument, NULL, 's'},
        {"password-file", required_argument, NULL, 'p'},
        {"force", no_argument, NULL, 'F'},
        {"threads", required_argument, NULL, 't'},
        {"random", required_argument, NULL, 'r'},
        {"seed", required_argument, NULL, 'S'},
        {"holes", no_argument, NULL, 'h'},
        {"hold", no_argument, NULL, 'H'},
        {NULL, 0, NULL, 0},
    };
    struct image_options image_options = {0};
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = NULL;
    struct check check = {.ranges = 200};
    unsigned threads = 4, flags = 0;
    bool hold = false;
    uint64_t seed = 1;
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
        switch (c) {
        case 'f':
            image_options.format = optarg;
            break;
        case 's':
            image_options.snapshot = optarg;
            break;
        case 'p':
            image_options.password_file = optarg;
            break;
        case 'F':
            image_options.force = true;
            break;
        case 't':
            threads = (unsigned)strtoul(optarg, NULL, 10) % 65;
            break;
        case 'r':
            check.ranges = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'S':
            seed = strtoul(optarg, NULL, 10);
            break;
        case 'h':
            flags = IMAGE_MAP_HOLES;
            break;
        case 'H':
            hold = true;
            break;
        default:
            return 2;
        }
    }
    if (argc - optind < 1 || argc - optind > 2)
        return 2;
    if (image_open(argv[optind], &image_options, &image, &err) < 0)
        return report_error("image_open", &err);
    if (hold) {
        puts("open");
        fflush(stdout);
        while (getchar() != EOF)
            ;
        return 0;
    }
    if (argc - optind == 1)
        return print_extents(image, flags);
    check.image = image;
    return compare(&check, argv[optind + 1], threads, seed);
}
