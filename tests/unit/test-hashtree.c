/* SPDX-License-Identifier: MIT */
/*
 * The tree against a naive model that hashes every block one after the other, over sparse raw
 * images.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "hashtree/hashtree.h"
#include "hashtree/internal.h"

static char directory[] = "/var/tmp/qverity-hashtree.XXXXXX";
static char image_file_path[sizeof(directory) + 16];
static uint64_t random_state = 42;

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* --- The model --- */

struct model {
    uint8_t *device;
    uint64_t size;
    uint8_t root[VERITY_DIGEST_MAX];
};

static void digest_of(const struct verity_params *p, const uint8_t *block, size_t size,
                      uint8_t *out)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();

    assert_int_equal(EVP_DigestInit_ex(ctx, EVP_get_digestbyname(p->hash_name), NULL), 1);
    if (p->hash_type == 1)
        EVP_DigestUpdate(ctx, p->salt, p->salt_size);
    EVP_DigestUpdate(ctx, block, size);
    if (p->hash_type == 0)
        EVP_DigestUpdate(ctx, p->salt, p->salt_size);
    EVP_DigestFinal_ex(ctx, out, NULL);
    EVP_MD_CTX_free(ctx);
}

static void model_make(const struct verity_params *p, const uint8_t *data, struct model *m)
{
    struct verity_geometry g;
    const uint8_t *below = data;
    uint64_t count = p->data_blocks;
    size_t size = p->data_block_size;

    assert_int_equal(verity_geometry_init(p, &g, NULL), 0);
    m->size = g.device_size;
    m->device = calloc(1, m->size);
    for (unsigned level = 0; level < g.levels; level++) {
        uint8_t *to = m->device + g.level_start[level] * p->hash_block_size;
        for (uint64_t i = 0; i < count; i++)
            digest_of(p, below + i * size, size,
                      to + (i >> g.fanout_bits) * p->hash_block_size +
                          (i & ((1u << g.fanout_bits) - 1)) * g.digest_slot);
        below = to;
        count = g.level_blocks[level];
        size = p->hash_block_size;
    }
    assert_int_equal(count, 1);
    digest_of(p, below, size, m->root);
}

/* --- Images --- */

static void write_image(const uint8_t *data, uint64_t size, uint64_t start)
{
    int fd = open(image_file_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)(start + size + 4096)), 0);
    for (uint64_t at = 0; at < size; at += 4096) {
        static const uint8_t zeros[4096];
        size_t n = (size_t)min_u64(4096, size - at);
        if (memcmp(data + at, zeros, n) != 0)
            assert_int_equal(pwrite(fd, data + at, n, (off_t)(start + at)), n);
    }
    close(fd);
}

enum fill { DENSE, SPARSE, SCATTERED, HEAD, ZEROS };

static uint8_t *make_data(uint64_t size, enum fill fill)
{
    uint8_t *data = calloc(1, size + 8);

    for (uint64_t at = 0; at < size; at += 512) {
        bool here = fill == DENSE || (fill == SPARSE && next_random() % 64 < at / 65536 % 3) ||
                    (fill == SCATTERED && next_random() % 100 == 0) ||
                    (fill == HEAD && at < size / 8);
        for (uint64_t i = at; here && i < min_u64(at + 512, size); i += 8)
            *(uint64_t *)(data + i) = next_random();
    }
    return data;
}

struct fixture {
    struct verity_params params;
    struct model model;
    uint8_t *data;
    struct image *image;
    struct hashtree *tree;
};

static void setup(struct fixture *f, const struct verity_params *params, enum fill fill,
                  const struct hashtree_options *options)
{
    struct error err = ERROR_INIT;
    struct image_options raw = {.format = "raw"};
    uint64_t start = 8192;

    f->params = *params;
    f->data = make_data(params->data_blocks * params->data_block_size, fill);
    model_make(params, f->data, &f->model);
    write_image(f->data, params->data_blocks * params->data_block_size, start);
    if (image_open(image_file_path, &raw, &f->image, &err) < 0)
        fail_msg("%s", error_message(&err));
    if (hashtree_new(f->image, start, params, options, &f->tree, &err) < 0)
        fail_msg("%s", error_message(&err));
}

static void teardown(struct fixture *f)
{
    hashtree_free(f->tree);
    image_close(f->image);
    free(f->model.device);
    free(f->data);
}

static void check_root(struct fixture *f)
{
    uint8_t root[VERITY_DIGEST_MAX];

    assert_int_equal(hashtree_root(f->tree, root, NULL), 0);
    assert_memory_equal(root, f->model.root, hashtree_geometry(f->tree)->digest_size);
}

/* Random ranges, then all of it. */
static void check_read(struct fixture *f, unsigned ranges)
{
    uint8_t *buffer = malloc(f->model.size);

    for (unsigned i = 0; i <= ranges; i++) {
        uint64_t offset = i == ranges ? 0 : next_random() % f->model.size;
        uint64_t length =
            i == ranges ? f->model.size : min_u64(next_random() % 20000, f->model.size - offset);
        assert_int_equal(hashtree_read(f->tree, offset, buffer, length, NULL), 0);
        if (memcmp(buffer, f->model.device + offset, length) != 0)
            fail_msg("range at %llu, %llu bytes", (unsigned long long)offset,
                     (unsigned long long)length);
    }
    free(buffer);
}

static int write_device(struct fixture *f)
{
    int fd = memfd_create("device", MFD_CLOEXEC);
    struct error err = ERROR_INIT;

    assert_true(fd >= 0);
    if (hashtree_write(f->tree, fd, "device", &err) < 0)
        fail_msg("%s", error_message(&err));
    return fd;
}

static void check_write(struct fixture *f)
{
    int fd = write_device(f);
    uint8_t *buffer = malloc(f->model.size + 1);

    assert_int_equal(pread(fd, buffer, f->model.size + 1, 0), f->model.size);
    assert_memory_equal(buffer, f->model.device, f->model.size);
    free(buffer);
    close(fd);
}

static struct verity_params make_params(const char *hash, unsigned type, uint32_t data_block_size,
                                        uint32_t hash_block_size, size_t salt, uint64_t blocks)
{
    struct verity_params p;

    verity_params_init(&p);
    strcpy(p.hash_name, hash);
    p.hash_type = type;
    p.data_block_size = data_block_size;
    p.hash_block_size = hash_block_size;
    p.salt_size = salt;
    for (size_t i = 0; i < salt; i++)
        p.salt[i] = (uint8_t)(i * 7 + 1);
    p.superblock = false;
    p.data_blocks = blocks;
    return p;
}

/* --- Tests --- */

static void test_geometries(void **state)
{
    (void)state;
    static const struct {
        const char *hash;
        unsigned type;
        uint32_t data_block_size, hash_block_size;
        size_t salt;
    } shapes[] = {
        {"sha256", 1, 4096, 4096, 32},  {"sha256", 0, 4096, 4096, 32},
        {"sha1", 0, 512, 512, 0},       {"sha1", 1, 512, 512, 1},
        {"sha512", 1, 512, 512, 256},   {"sha512", 0, 1024, 512, 7},
        {"sha256", 1, 512, 4096, 32},   {"sha256", 1, 4096, 512, 32},
        {"sha256", 1, 65536, 65536, 8},
    };
    static const uint64_t counts[] = {1, 2, 7, 127, 128, 129, 1500};
    static const enum fill fills[] = {DENSE, SPARSE, SCATTERED, ZEROS};

    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
        for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++)
            for (size_t i = 0; i < 4; i++) {
                struct verity_params p =
                    make_params(shapes[s].hash, shapes[s].type, shapes[s].data_block_size,
                                shapes[s].hash_block_size, shapes[s].salt, counts[c]);
                struct hashtree_options options = {.threads = 1 + (unsigned)(i + c) % 3};
                struct fixture f;
                if (p.data_block_size * p.data_blocks > 16u << 20)
                    continue;
                setup(&f, &p, fills[i], &options);
                if (i % 2 == 0 && f.model.size > 0)
                    check_read(&f, 10); /* before there is a root */
                check_root(&f);
                if (f.model.size > 0) {
                    check_read(&f, 10);
                    check_write(&f);
                }
                teardown(&f);
            }
}

/* Several segments, shared nodes above them, and more levels than one. */
static void test_large(void **state)
{
    (void)state;
    static const struct {
        uint32_t data_block_size, hash_block_size;
        uint64_t blocks;
    } shapes[] = {{4096, 4096, 20000}, {512, 512, 70001}, {512, 4096, 131073}};
    static const enum fill fills[] = {DENSE, SPARSE, SCATTERED, ZEROS};

    for (size_t s = 0; s < 3; s++)
        for (size_t i = 0; i < 4; i++) {
            struct verity_params p = make_params("sha256", 1, shapes[s].data_block_size,
                                                 shapes[s].hash_block_size, 32, shapes[s].blocks);
            /* So small a cache that kept levels are dropped. */
            struct hashtree_options options = {.threads = 2, .cache_size = s == 1 ? 4096 : 0};
            struct fixture f;
            setup(&f, &p, fills[i], &options);
            check_read(&f, 20);
            check_root(&f);
            check_write(&f);
            teardown(&f);
        }
}

static void test_figures(void **state)
{
    (void)state;
    struct verity_params p = make_params("sha256", 1, 4096, 4096, 32, 5000);
    struct hashtree_stats stats;
    struct fixture f;
    uint64_t zeros = 0;

    setup(&f, &p, SCATTERED, NULL);
    static const uint8_t zero_block[4096];
    for (uint64_t i = 0; i < p.data_blocks; i++)
        zeros += memcmp(f.data + i * 4096, zero_block, 4096) == 0;
    assert_true(zeros > 0);
    assert_false(hashtree_root_known(f.tree));
    check_root(&f);
    assert_true(hashtree_root_known(f.tree));
    hashtree_stats(f.tree, &stats);
    assert_int_equal(stats.zero_blocks, zeros);
    /* Holes were neither read nor hashed. */
    assert_true(stats.data_bytes_hashed <= (p.data_blocks - zeros) * 4096 * 2);
    assert_true(stats.data_bytes_hashed >= (p.data_blocks - zeros) * 4096);
    teardown(&f);
}

static void *read_everything(void *arg)
{
    struct fixture *f = arg;
    uint8_t *buffer = malloc(f->model.size);

    for (int i = 0; i < 3; i++) {
        memset(buffer, 0xee, f->model.size);
        if (hashtree_read(f->tree, 0, buffer, f->model.size, NULL) < 0 ||
            memcmp(buffer, f->model.device, f->model.size) != 0) {
            free(buffer);
            return f;
        }
    }
    free(buffer);
    return NULL;
}

static void test_concurrent_readers(void **state)
{
    (void)state;
    struct verity_params p = make_params("sha256", 1, 4096, 4096, 32, 3000);
    struct hashtree_options options = {.threads = 2, .cache_size = 100000};
    struct fixture f;
    pthread_t threads[4];

    setup(&f, &p, DENSE, &options);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_everything, &f), 0);
    for (int i = 0; i < 4; i++) {
        void *bad;
        pthread_join(threads[i], &bad);
        assert_null(bad);
    }
    teardown(&f);
}

struct found {
    uint64_t count;
    struct hashtree_fault fault;
};

static void record(const struct hashtree_fault *fault, void *arg)
{
    struct found *found = arg;

    found->count++;
    found->fault = *fault;
}

static void flip(int fd, uint64_t offset)
{
    uint8_t byte;

    assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
}

static struct found verify(struct fixture *f, const uint8_t *root, int fd)
{
    struct found found = {0};
    uint64_t faults = 99;

    assert_int_equal(hashtree_verify(f->tree, root, fd, "device", record, &found, &faults, NULL),
                     0);
    assert_int_equal(faults, found.count);
    return found;
}

static void test_verify(void **state)
{
    (void)state;
    struct verity_params p = make_params("sha256", 1, 512, 512, 32, 5000);
    struct verity_geometry g;
    struct fixture f;

    verity_geometry_init(&p, &g, NULL);
    setup(&f, &p, SPARSE, NULL);
    int fd = write_device(&f);
    assert_int_equal(verify(&f, f.model.root, fd).count, 0);
    assert_int_equal(verify(&f, f.model.root, -1).count, 0);

    /* One byte anywhere in the device is one fault, in the block it is in. */
    for (int i = 0; i < 60; i++) {
        uint64_t offset = next_random() % f.model.size, block = offset / 512;
        unsigned level = 0;
        while (block < g.level_start[level])
            level++;
        flip(fd, offset);
        struct found found = verify(&f, f.model.root, fd);
        flip(fd, offset);
        assert_int_equal(found.count, 1);
        assert_int_equal(found.fault.kind,
                         level + 1 == g.levels ? HASHTREE_FAULT_ROOT : HASHTREE_FAULT_NODE);
        assert_int_equal(found.fault.level, level);
        assert_int_equal(found.fault.offset, block * 512);
    }

    /* A wrong root hash. */
    f.model.root[3] ^= 1;
    struct found found = verify(&f, f.model.root, fd);
    assert_int_equal(found.count, 1);
    assert_int_equal(found.fault.kind, HASHTREE_FAULT_ROOT);
    found = verify(&f, f.model.root, -1);
    assert_int_equal(found.count, 1);
    f.model.root[3] ^= 1;
    teardown(&f);

    /* Data that changed under a device that did not. */
    uint64_t changed = 4321;
    random_state = 42;
    setup(&f, &p, SPARSE, NULL);
    int before = write_device(&f);
    uint8_t root[VERITY_DIGEST_MAX];
    memcpy(root, f.model.root, sizeof(root));
    hashtree_free(f.tree);
    image_close(f.image);
    int image_fd = open(image_file_path, O_RDWR | O_CLOEXEC);
    flip(image_fd, 8192 + changed * 512 + 100);
    close(image_fd);
    struct image_options raw = {.format = "raw"};
    assert_int_equal(image_open(image_file_path, &raw, &f.image, NULL), 0);
    assert_int_equal(hashtree_new(f.image, 8192, &p, NULL, &f.tree, NULL), 0);
    found = verify(&f, root, before);
    assert_int_equal(found.count, 1);
    assert_int_equal(found.fault.kind, HASHTREE_FAULT_DATA);
    assert_int_equal(found.fault.index, changed);
    teardown(&f);
    close(fd);
    close(before);
}

/* A file that became shorter is an error that names it, never a root hash. */
static void test_truncated(void **state)
{
    (void)state;
    struct verity_params p = make_params("sha256", 1, 4096, 4096, 32, 3000);
    _cleanup_error_ struct error err = ERROR_INIT;
    struct hashtree_options options = {.threads = 1};
    uint8_t root[VERITY_DIGEST_MAX], block[4096];
    struct fixture f;

    setup(&f, &p, DENSE, &options);
    assert_int_equal(truncate(image_file_path, 8192 + 2000 * 4096), 0);
    assert_true(hashtree_root(f.tree, root, &err) < 0);
    assert_non_null(strstr(error_message(&err), image_file_path));
    assert_non_null(strstr(error_message(&err), "8200192"));
    assert_false(hashtree_root_known(f.tree));
    uint64_t end = hashtree_geometry(f.tree)->device_size;
    assert_true(hashtree_read(f.tree, end - 4096, block, 4096, NULL) < 0);
    /* What is there can still be had. */
    uint64_t level0 = hashtree_geometry(f.tree)->level_start[0] * 4096;
    assert_int_equal(hashtree_read(f.tree, level0, block, 4096, NULL), 0);
    assert_memory_equal(block, f.model.device + level0, 4096);
    teardown(&f);
}

static int cut_off(void *arg, unsigned level, uint64_t first, uint64_t count, const uint8_t *blocks,
                   struct error *err)
{
    const struct hashtree *tree = arg;

    (void)first, (void)count, (void)blocks, (void)err;
    if (level == tree->geometry.levels - 1)
        assert_int_equal(truncate(image_file_path, 8192 + 2000 * 4096), 0);
    return 0;
}

static int ignore(void *arg, unsigned level, uint64_t first, uint64_t count, struct error *err)
{
    (void)arg, (void)level, (void)first, (void)count, (void)err;
    return 0;
}

/* The same when all was mapped and read, and only a hole is cut off. */
static void test_truncated_hole(void **state)
{
    (void)state;
    struct verity_params p = make_params("sha256", 1, 4096, 4096, 32, 3000);
    _cleanup_error_ struct error err = ERROR_INIT;
    struct hashtree_options options = {.threads = 1};
    struct fixture f;

    setup(&f, &p, HEAD, &options);
    struct node_sink sink = {.nodes = cut_off, .constants = ignore, .arg = f.tree};
    assert_int_equal(hashtree_build(f.tree, &sink, &err), -ENODATA);
    assert_non_null(strstr(error_message(&err), image_file_path));
    assert_non_null(strstr(error_message(&err), "8200192"));
    assert_false(hashtree_root_known(f.tree));
    teardown(&f);
}

static void test_cancel(void **state)
{
    (void)state;
    struct verity_params p = make_params("sha256", 1, 4096, 4096, 32, 3000);
    uint8_t root[VERITY_DIGEST_MAX];
    struct fixture f;

    setup(&f, &p, DENSE, NULL);
    hashtree_cancel(f.tree);
    assert_int_equal(hashtree_root(f.tree, root, NULL), -ECANCELED);
    teardown(&f);
}

/* --- Changes --- */

static void change_data(struct fixture *f, int fd)
{
    static uint8_t bytes[40000];
    uint64_t size = f->params.data_blocks * f->params.data_block_size;
    uint64_t offset = next_random() % size;
    uint64_t length = min_u64(1 + next_random() % sizeof(bytes), size - offset);
    uint64_t fill = next_random() % 4;

    for (uint64_t i = 0; i < length; i++)
        bytes[i] = fill == 0 ? 0 : (uint8_t)next_random();
    memcpy(f->data + offset, bytes, length);
    assert_int_equal(pwrite(fd, bytes, length, (off_t)(8192 + offset)), length);
    hashtree_changed(f->tree, 8192 + offset, length);
}

/* The image changes under the tree, which is told; everything it says is of the new data. */
static void test_changes(void **state)
{
    (void)state;
    static const struct {
        uint32_t data_block_size, hash_block_size;
        uint64_t blocks;
        enum fill fill;
        uint64_t cache;
    } shapes[] = {{4096, 4096, 3000, SPARSE, 0},
                  {512, 512, 20000, DENSE, 0},
                  {512, 512, 20000, SPARSE, 4096},
                  {4096, 512, 700, ZEROS, 0},
                  {512, 65536, 9000, SCATTERED, 0}};

    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        struct verity_params p = make_params("sha256", 1, shapes[s].data_block_size,
                                             shapes[s].hash_block_size, 32, shapes[s].blocks);
        struct hashtree_options options = {.threads = 2, .cache_size = shapes[s].cache};
        struct fixture f;
        setup(&f, &p, shapes[s].fill, &options);
        assert_int_equal(hashtree_changing(f.tree, NULL), 0);
        int fd = open(image_file_path, O_WRONLY | O_CLOEXEC);
        for (int round = 0; round < 12; round++) {
            for (uint64_t n = next_random() % 4; n > 0; n--)
                change_data(&f, fd);
            free(f.model.device);
            model_make(&p, f.data, &f.model);
            if (round % 3 == 1)
                check_read(&f, 5); /* asks for nodes before the root */
            check_root(&f);
            check_read(&f, 5);
        }
        struct hashtree_stats stats;
        hashtree_stats(f.tree, &stats);
        close(fd);
        teardown(&f);
    }
}

/* --- Tree files --- */

static enum hashtree_method keep_and_check(struct fixture *f, bool rescan, bool lean)
{
    struct hashtree_file_options options = {.lean = lean, .rescan = rescan};
    struct error err = ERROR_INIT;

    hashtree_free(f->tree);
    image_close(f->image);
    if (image_open(image_file_path, &(struct image_options){.format = "raw"}, &f->image, &err) <
            0 ||
        hashtree_new(f->image, 8192, &f->params, NULL, &f->tree, &err) < 0 ||
        hashtree_keep(f->tree, &options, &err) < 0)
        fail_msg("%s", error_message(&err));
    check_root(f);
    return hashtree_method(f->tree);
}

static void test_tree_file(void **state)
{
    (void)state;
    struct verity_params p = make_params("sha256", 1, 512, 512, 32, 9000);
    char path[sizeof(image_file_path) + 16];
    struct hashtree_stats stats;
    struct fixture f;

    snprintf(path, sizeof(path), "%s" TREE_FILE_SUFFIX, image_file_path);
    setup(&f, &p, SPARSE, NULL);
    for (int lean = 0; lean < 2; lean++) {
        assert_int_equal(keep_and_check(&f, true, lean), HASHTREE_FULL);
        assert_int_equal(keep_and_check(&f, false, lean), HASHTREE_UNCHANGED);
        hashtree_stats(f.tree, &stats);
        assert_int_equal(stats.data_bytes_hashed, 0);
        check_read(&f, 30);
        hashtree_stats(f.tree, &stats);
        assert_int_equal(stats.data_bytes_hashed == 0, !lean);
    }

    /* One bit wrong anywhere in it: never a wrong root, never a wrong node. */
    assert_int_equal(keep_and_check(&f, true, false), HASHTREE_FULL);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    uint64_t size = (uint64_t)lseek(fd, 0, SEEK_END);
    for (int i = 0; i < 24; i++) {
        uint64_t offset = next_random() % (i < 8 ? 32768 : size);
        flip(fd, offset);
        keep_and_check(&f, false, false);
        check_read(&f, 3);
        close(fd);
        fd = open(path, O_RDWR | O_CLOEXEC);
        assert_int_equal(keep_and_check(&f, true, false), HASHTREE_FULL);
        close(fd);
        fd = open(path, O_RDWR | O_CLOEXEC);
    }
    /* Cut short anywhere. */
    for (int i = 0; i < 5; i++) {
        assert_int_equal(ftruncate(fd, (off_t)(next_random() % size)), 0);
        keep_and_check(&f, false, false);
        check_read(&f, 3);
        keep_and_check(&f, true, false);
        close(fd);
        fd = open(path, O_RDWR | O_CLOEXEC);
    }
    close(fd);

    /* Written to with the old times put back: ctime tells. */
    struct stat st;
    int image_fd = open(image_file_path, O_RDWR | O_CLOEXEC);
    assert_int_equal(fstat(image_fd, &st), 0);
    f.data[5000] ^= 1;
    assert_int_equal(pwrite(image_fd, f.data + 5000, 1, 8192 + 5000), 1);
    assert_int_equal(futimens(image_fd, (struct timespec[]){st.st_atim, st.st_mtim}), 0);
    close(image_fd);
    free(f.model.device);
    model_make(&p, f.data, &f.model);
    assert_int_equal(keep_and_check(&f, false, false), HASHTREE_FULL);

    /* Other parameters: not the same tree. */
    f.params.salt[0] ^= 1;
    free(f.model.device);
    model_make(&f.params, f.data, &f.model);
    assert_int_equal(keep_and_check(&f, false, false), HASHTREE_FULL);
    assert_int_equal(keep_and_check(&f, false, false), HASHTREE_UNCHANGED);
    teardown(&f);
    unlink(path);
}

static int make_directory(void **state)
{
    (void)state;
    if (mkdtemp(directory) == NULL)
        return -1;
    snprintf(image_file_path, sizeof(image_file_path), "%s/image", directory);
    return 0;
}

static int remove_directory(void **state)
{
    (void)state;
    unlink(image_file_path);
    return rmdir(directory);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_geometries),     cmocka_unit_test(test_large),
        cmocka_unit_test(test_figures),        cmocka_unit_test(test_concurrent_readers),
        cmocka_unit_test(test_verify),         cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_truncated_hole), cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_changes),        cmocka_unit_test(test_tree_file),
    };

    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
