/* SPDX-License-Identifier: MIT */
/*
 * Random images, valid and broken, against a naive model: it looks up every sector by itself,
 * straight from the file's bytes and the format's description.
 */
#include "qcow2-maker.h"

#include "image/image.h"

#include <errno.h>
#include <sys/stat.h>

enum { SECTOR = 512 };

/* --- The model --- */

struct model {
    struct maker m;
    unsigned version;
    const uint8_t *base; /* a raw backing file, or NULL */
    uint64_t base_size;
};

struct answer {
    bool wrong; /* to be refused */
    enum extent_kind kind;
    size_t file;
    uint64_t host; /* DATA: of the sector; COMPRESSED: of the data */
};

static struct answer naive_backing(const struct model *model, uint64_t offset)
{
    if (model->base == NULL || offset >= model->base_size)
        return (struct answer){.kind = EXTENT_ZERO};
    return (struct answer){.kind = EXTENT_DATA, .file = 1, .host = offset};
}

static struct answer naive_data(const struct model *model, uint64_t offset, uint64_t host,
                                uint64_t end_of_run)
{
    uint64_t end = end_of_run < model->m.disk_size ? end_of_run : model->m.disk_size;

    if (host + (end - offset) > model->m.size)
        return (struct answer){.wrong = true};
    return (struct answer){.kind = EXTENT_DATA, .host = host};
}

static struct answer naive_extended(const struct model *model, uint64_t offset, uint64_t host,
                                    uint64_t bitmap)
{
    uint64_t cluster_size = (uint64_t)1 << model->m.cluster_bits;
    uint64_t subcluster_size = cluster_size / 32;
    uint64_t cluster = offset / cluster_size * cluster_size;
    unsigned sub = (unsigned)((offset - cluster) / subcluster_size);
    uint64_t end;

    for (unsigned i = 0; i < 32; i++) {
        bool allocated = (bitmap >> i & 1) != 0, zero = (bitmap >> (i + 32) & 1) != 0;
        if (allocated && (zero || host == 0))
            return (struct answer){.wrong = true};
    }
    if ((bitmap >> (sub + 32) & 1) != 0)
        return (struct answer){.kind = EXTENT_ZERO};
    if ((bitmap >> sub & 1) == 0)
        return naive_backing(model, offset);
    for (end = sub; end < 32 && (bitmap >> end & 1) != 0;)
        end++;
    return naive_data(model, offset, host + offset - cluster, cluster + end * subcluster_size);
}

static struct answer naive_at(const struct model *model, uint64_t offset)
{
    const struct maker *m = &model->m;
    uint64_t cluster_size = (uint64_t)1 << m->cluster_bits;
    uint64_t entry_size = m->extended ? 16 : 8;
    uint64_t entries = cluster_size / entry_size;
    uint64_t cluster = offset / cluster_size;
    uint64_t l2 = peek64(m, m->l1_offset + cluster / entries * 8) & 0x00fffffffffffe00;

    if (l2 == 0)
        return naive_backing(model, offset);
    uint64_t entry = peek64(m, l2 + cluster % entries * entry_size);
    uint64_t bitmap = m->extended ? peek64(m, l2 + cluster % entries * 16 + 8) : 0;
    if ((entry >> 62 & 1) != 0) {
        uint64_t host = entry & (((uint64_t)1 << (62 - (m->cluster_bits - 8))) - 1);
        if (bitmap != 0 || host >= (uint64_t)1 << 56 || host >= m->size)
            return (struct answer){.wrong = true};
        return (struct answer){.kind = EXTENT_COMPRESSED, .host = host};
    }
    uint64_t host = entry & 0x00fffffffffffe00;
    if ((entry & 0x3f000000000001fe) != 0 || host % cluster_size != 0)
        return (struct answer){.wrong = true};
    if ((entry & 1) != 0 && (m->extended || model->version < 3))
        return (struct answer){.wrong = true};
    if (m->extended)
        return naive_extended(model, offset, host, bitmap);
    if ((entry & 1) != 0)
        return (struct answer){.kind = EXTENT_ZERO};
    if (host == 0)
        return naive_backing(model, offset);
    return naive_data(model, offset, host + offset % cluster_size, (cluster + 1) * cluster_size);
}

/* Whether the sector at `offset` may be of one extent with the one before it. */
static bool same_extent(const struct model *model, uint64_t offset, const struct answer *before,
                        const struct answer *here)
{
    if (before->wrong || here->wrong || before->kind != here->kind)
        return false;
    if (here->kind == EXTENT_DATA)
        return here->file == before->file && here->host == before->host + SECTOR;
    if (here->kind == EXTENT_COMPRESSED)
        return offset % ((uint64_t)1 << model->m.cluster_bits) != 0;
    return true;
}

/* --- Comparing --- */

/* One map call against the model; says what is wrong in `text`. */
static bool compare_map(const struct model *model, struct image *image, uint64_t offset,
                        uint64_t length, uint64_t *ret_length, char *text, size_t room)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct answer answer = naive_at(model, offset / SECTOR * SECTOR), next;
    struct extent extent;
    uint64_t end;

    int r = image_map(image, offset, length, 0, &extent, &err);
    if (answer.wrong != (r < 0)) {
        snprintf(text, room, "at %lu: %s", (unsigned long)offset,
                 r < 0 ? error_message(&err) : "a wrong entry is accepted");
        return false;
    }
    *ret_length = SECTOR - offset % SECTOR;
    if (r < 0)
        return true;
    /* As far as the model goes on in the same way. */
    uint64_t in_sector = offset % SECTOR;
    uint64_t at = offset - in_sector;
    uint64_t first_host = answer.host;
    struct answer before = answer;
    for (end = at + SECTOR; end < offset + length; end += SECTOR) {
        next = naive_at(model, end);
        if (!same_extent(model, end, &before, &next))
            break;
        before = next;
    }
    uint64_t expected = (end < offset + length ? end : offset + length) - offset;
    uint64_t host = answer.kind == EXTENT_DATA         ? first_host + in_sector
                    : answer.kind == EXTENT_COMPRESSED ? first_host
                                                       : 0;
    bool has_host = answer.kind == EXTENT_DATA || answer.kind == EXTENT_COMPRESSED;
    if (extent.kind != answer.kind || extent.start != offset || extent.length != expected ||
        (has_host && (extent.host_offset != host || extent.file != answer.file))) {
        snprintf(text, room, "at %lu+%lu: %s %lu at %lu of %zu, expected %s %lu at %lu of %zu",
                 (unsigned long)offset, (unsigned long)length, extent_kind_name(extent.kind),
                 (unsigned long)extent.length, (unsigned long)extent.host_offset, extent.file,
                 extent_kind_name(answer.kind), (unsigned long)expected, (unsigned long)host,
                 answer.file);
        return false;
    }
    *ret_length = extent.length;
    return true;
}

/* The bytes of one sector, which is not compressed. */
static bool compare_sector(const struct model *model, struct image *image, uint64_t offset,
                           char *text, size_t room)
{
    static const uint8_t zeros[SECTOR];
    _cleanup_error_ struct error err = ERROR_INIT;
    struct answer answer = naive_at(model, offset);
    uint8_t sector[SECTOR];
    const uint8_t *expected = zeros;

    if (!answer.wrong && answer.kind == EXTENT_COMPRESSED)
        return true;
    int r = image_read(image, offset, sector, SECTOR, &err);
    if (!answer.wrong && answer.kind == EXTENT_DATA)
        expected = answer.file == 0 ? model->m.bytes + answer.host : model->base + answer.host;
    if (answer.wrong != (r < 0) || (r == 0 && memcmp(sector, expected, SECTOR) != 0)) {
        snprintf(text, room, "sector at %lu: %s", (unsigned long)offset,
                 r < 0 ? error_message(&err) : "wrong bytes");
        return false;
    }
    return true;
}

static bool compare(const struct model *model, uint64_t seed, char *text, size_t room)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    _cleanup_image_ struct image *image = NULL;
    uint64_t size = model->m.disk_size, length;

    if (image_open("a", NULL, &image, &err) < 0) {
        snprintf(text, room, "%s", error_message(&err));
        return false;
    }
    for (uint64_t offset = 0; offset < size; offset += length) {
        if (!compare_map(model, image, offset, size - offset, &length, text, room))
            return false;
    }
    for (unsigned i = 0; i < 2000; i++) {
        uint64_t offset = random_next(&seed) % size;
        uint64_t longest = size - offset;
        uint64_t wanted = 1 + random_next(&seed) % (i % 2 == 0 ? longest : 2000);
        if (!compare_map(model, image, offset, wanted < longest ? wanted : longest, &length, text,
                         room) ||
            !compare_sector(model, image, random_next(&seed) % (size / SECTOR) * SECTOR, text,
                            room))
            return false;
    }
    return true;
}

/* --- Making images --- */

/* Random runs of subclusters, allocated where there is a host cluster. */
static uint64_t random_bitmap(uint64_t *random, bool allocated)
{
    uint64_t bitmap = 0;

    for (unsigned i = 0; i < 32;) {
        unsigned run = 1 + (unsigned)(random_next(random) % 12);
        unsigned kind = (unsigned)(random_next(random) % 3);
        for (; run > 0 && i < 32; run--, i++) {
            if (kind == 1)
                bitmap |= (uint64_t)1 << (i + 32);
            else if (kind == 2 && allocated)
                bitmap |= (uint64_t)1 << i;
        }
    }
    return random_next(random) % 4 == 0 && allocated ? UINT32_MAX : bitmap;
}

static uint64_t break_entry(const struct model *model, uint64_t *random, uint64_t entry)
{
    uint64_t cluster_size = (uint64_t)1 << model->m.cluster_bits;

    switch (random_next(random) % 5) {
    case 0:
        return entry | (uint64_t)1 << (1 + random_next(random) % 8);
    case 1:
        return entry | (uint64_t)1 << (56 + random_next(random) % 6);
    case 2:
        return (uint64_t)1 << 63 | (model->m.size + cluster_size * (random_next(random) % 2));
    case 3:
        return (uint64_t)1 << 63 | (cluster_size + SECTOR);
    default:
        return entry ^ (uint64_t)1 << (random_next(random) % 64);
    }
}

struct shape {
    unsigned version, cluster_bits;
    bool extended;
    uint64_t disk_size;
    uint64_t base_size; /* 0: none */
    bool broken;
};

static void fill_tables(struct model *model, const struct shape *shape, uint64_t *random)
{
    struct maker *m = &model->m;
    uint64_t cluster_size = (uint64_t)1 << m->cluster_bits;
    uint64_t clusters = (m->disk_size + cluster_size - 1) / cluster_size;
    uint64_t data_clusters = 300;

    for (uint64_t i = 0; i < clusters; i++) {
        if (random_next(random) % 200 < 198 || i < 10)
            maker_l2_entry(m, i * cluster_size);
    }
    uint64_t data = maker_allocate(m, data_clusters * cluster_size);
    for (uint64_t i = data; i < m->size; i += 8)
        put64(m, i, random_next(random));

    uint64_t host = data, kind = 0;
    for (uint64_t i = 0; i < clusters; i++) {
        uint64_t entry = 0, bitmap = 0;
        uint64_t l2_bits = m->cluster_bits - (m->extended ? 4 : 3);
        /* Some tables are left out. */
        if (peek64(m, m->l1_offset + (i >> l2_bits) * 8) == 0)
            continue;
        if (random_next(random) % 3 == 0) {
            kind = random_next(random) % 8;
            host = data + random_next(random) % data_clusters * cluster_size;
        }
        if (kind <= 3)
            entry = (random_next(random) % 2) << 63 | host;
        else if (kind == 4 && shape->version >= 3 && !m->extended)
            entry = 1 | (random_next(random) % 2 == 0 ? host : 0);
        else if (kind == 5)
            entry = (uint64_t)1 << 62 | (data + random_next(random) % 10000);
        if (m->extended && kind != 5)
            bitmap = random_bitmap(random, entry != 0);
        host += cluster_size;
        if (host >= m->size)
            host = data;
        if (shape->broken && random_next(random) % 40 == 0) {
            entry = break_entry(model, random, entry);
            if (m->extended && random_next(random) % 2 == 0)
                bitmap ^= (uint64_t)1 << random_next(random) % 64;
        }
        uint64_t at = maker_l2_entry(m, i * cluster_size);
        put64(m, at, entry);
        if (m->extended)
            put64(m, at + 8, bitmap);
    }
    /* The file ends within its last cluster. */
    m->size -= cluster_size / 2 + SECTOR;
}

static uint8_t *make_image(struct model *model, const struct shape *shape, uint64_t *random)
{
    uint8_t *base = NULL;

    *model = (struct model){.version = shape->version};
    maker_start(&model->m, shape->version, shape->cluster_bits, shape->extended, shape->disk_size);
    if (shape->base_size != 0) {
        base = malloc(shape->base_size);
        assert_non_null(base);
        for (uint64_t i = 0; i < shape->base_size; i++)
            base[i] = (uint8_t)(random_next(random) | 1);
        write_file("base", base, shape->base_size);
        model->base = base;
        model->base_size = shape->base_size;
        put64(&model->m, 8, 200);
        put32(&model->m, 16, 4);
        memcpy(model->m.bytes + 200, "base", 4);
    }
    fill_tables(model, shape, random);
    maker_write(&model->m, "a");
    return base;
}

static const struct shape shapes[] = {
    {3, 9, false, 1 << 20, 0, false},
    {2, 9, false, 1 << 20, 0, false},
    {3, 9, false, (1 << 20) + 512, 300 * 1024, false},
    {3, 9, false, 300 * 1024, 1 << 20, false},
    {3, 12, false, (8 << 20) - 1024, 5 << 20, false},
    {3, 12, false, 8 << 20, 0, true},
    {3, 16, false, (64 << 20) - 4096, 0, false},
    {3, 14, true, (20 << 20) + 1024, 0, false},
    {3, 14, true, 20 << 20, 7 << 20, false},
    {3, 14, true, (20 << 20) + 512, 30 << 20, true},
    {3, 16, true, (20 << 20) + 512, 3 << 20, false},
    {3, 9, false, 1 << 20, 0, true},
    {2, 9, false, 1 << 20, 100 * 1024, true},
};

static void test_model(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        for (uint64_t seed = 1; seed <= 4; seed++) {
            uint64_t random = (seed + i * 100) * 0x9e3779b97f4a7c15u;
            struct model model;
            char text[500];

            uint8_t *base = make_image(&model, &shapes[i], &random);
            if (!compare(&model, random, text, sizeof(text)))
                fail_msg("shape %zu, seed %lu: %s", i, (unsigned long)seed, text);
            maker_free(&model.m);
            free(base);
        }
    }
}

/* The comparison finds one changed entry, wherever it is. */
static void test_planted_fault(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        uint64_t random = (i + 1) * 0x9e3779b97f4a7c15u;
        struct model model;
        char text[500];
        unsigned planted = 0;

        uint8_t *base = make_image(&model, &shapes[i], &random);
        struct maker *m = &model.m;
        while (planted < 3) {
            uint64_t offset = random_next(&random) % m->disk_size / SECTOR * SECTOR;
            struct answer before = naive_at(&model, offset), after;
            uint64_t l2_bits = m->cluster_bits - (m->extended ? 4 : 3);
            if (peek64(m, m->l1_offset + (offset >> (m->cluster_bits + l2_bits)) * 8) == 0)
                continue;
            uint64_t at = maker_l2_entry(m, offset);
            unsigned byte = (unsigned)(random_next(&random) % (m->extended ? 16 : 8));
            m->bytes[at + byte] ^= 1;
            after = naive_at(&model, offset);
            /* Bits that do not matter for this sector may matter for others or not at all. */
            if (before.wrong != after.wrong || before.kind != after.kind ||
                before.host != after.host) {
                assert_false(compare(&model, random, text, sizeof(text)));
                planted++;
            }
            m->bytes[at + byte] ^= 1;
        }
        assert_true(compare(&model, random, text, sizeof(text)));
        maker_free(m);
        free(base);
    }
}

/* An image that has nothing is mapped in few steps. */
static void test_empty(void **state)
{
    (void)state;
    static const struct {
        unsigned cluster_bits;
        uint64_t disk_size;
    } cases[] = {{16, (uint64_t)499 << 30}, {9, (uint64_t)100 << 30}, {21, (uint64_t)1 << 50}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        _cleanup_image_ struct image *image = NULL;
        struct extent extent;
        struct maker m;

        maker_start(&m, 3, cases[i].cluster_bits, false, cases[i].disk_size);
        maker_write(&m, "a");
        assert_int_equal(image_open("a", NULL, &image, &err), 0);
        assert_int_equal(image_map(image, 0, cases[i].disk_size, 0, &extent, &err), 0);
        assert_int_equal(extent.kind, EXTENT_ZERO);
        assert_int_equal(extent.length, cases[i].disk_size);
        maker_free(&m);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_planted_fault),
        cmocka_unit_test(test_empty),
    };

    return cmocka_run_group_tests(tests, maker_enter, maker_leave);
}
