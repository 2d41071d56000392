/* SPDX-License-Identifier: MIT */
/*
 * Reading QEMU's persistent dirty bitmaps: header, bitmap directory, the bitmap's table, its data
 * clusters. The header and the directory are read again, although the backend read them when it
 * opened the image: only what is needed here is kept then, and the locks see to it that they are
 * the same.
 *
 * The bits stay as they are in the file, in 64-bit little-endian words. Half a terabyte in granules
 * of 64 KiB makes 1 MiB of them.
 */
#include "image/bitmap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "common/io.h"
#include "image/bitmap-internal.h"
#include "image/internal.h"

enum {
    FIRST_READ = 64 << 10, /* bytes of the first cluster that are read at once */
    AT_REFCOUNT_TABLE_OFFSET = 48,
    AT_REFCOUNT_TABLE_CLUSTERS = 56,
};

/* Bits of a table entry. */
#define ENTRY_OFFSET_MASK UINT64_C(0x00fffffffffffe00)
#define ENTRY_RESERVED_MASK UINT64_C(0xff000000000001fe)

/* --- The image --- */

int image_bitmap_check_image(const struct image *image, struct error *err)
{
    const struct image_info *info = image_info(image, 0);
    const char *path = image_path(image);

    if (strcmp(info->format, "qcow2") != 0)
        return error_set(err, ENOTSUP,
                         "%s: changes are tracked in qcow2 version 3 images only, and this one is "
                         "%s",
                         path, info->format);
    if (info->version != 3)
        return error_set(err, ENOTSUP,
                         "%s: changes are tracked in qcow2 version 3 images only, and this one is "
                         "of version %u (qemu-img amend -o compat=1.1 makes it version 3)",
                         path, info->version);
    if (info->encryption != NULL)
        return error_set(err, ENOTSUP,
                         "%s: the changes of encrypted images are not tracked, and this one is "
                         "%s-encrypted",
                         path, info->encryption);
    if (info->data_file != NULL)
        return error_set(err, ENOTSUP,
                         "%s: its data is in %s, which can be written to without a trace in a "
                         "bitmap",
                         path, info->data_file);
    if (image->at_snapshot)
        return error_set(err, ENOTSUP,
                         "%s: a bitmap tells changes of the disk's current state, not of a "
                         "snapshot",
                         path);
    if (image->writable)
        return error_set(err, ENOTSUP, "%s: it is open for writing, and no bitmap tells of that",
                         path);
    return 0;
}

/* --- The directory --- */

void bitmap_directory_clear(struct bitmap_directory *directory)
{
    for (uint32_t i = 0; directory->bitmaps != NULL && i < directory->extensions.bitmap_count; i++)
        free(directory->bitmaps[i].name);
    free(directory->bitmaps);
    free(directory->bytes);
    qcow2_extensions_clear(&directory->extensions);
    *directory = (struct bitmap_directory){0};
}

/* Why there are no bitmaps, though the image could have some. */
static int no_bitmaps(const uint8_t *cluster, size_t length, const struct qcow2_header *header,
                      uint64_t file_size, struct error *err)
{
    _cleanup_(qcow2_extensions_clear_cleanup) struct qcow2_extensions extensions = {0};
    struct qcow2_header trusting = *header;

    trusting.autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
    if ((header->autoclear & QCOW2_AUTOCLEAR_BITMAPS) == 0 &&
        (qcow2_extensions_parse(cluster, length, &trusting, file_size, &extensions, NULL) < 0 ||
         extensions.has_bitmaps))
        return error_set(err, ESTALE,
                         "its bitmaps are not to be trusted: a program that knows nothing of them "
                         "wrote to the image (autoclear bit 0 is not set)");
    return error_set(err, ENOENT, "it has no bitmaps");
}

static int parse_cluster(const uint8_t *cluster, size_t length, uint64_t file_size,
                         struct bitmap_directory *directory, struct error *err)
{
    int r = qcow2_extensions_parse(cluster, length, &directory->header, file_size,
                                   &directory->extensions, err);

    if (r < 0)
        return r;
    if (!directory->extensions.has_bitmaps)
        return no_bitmaps(cluster, length, &directory->header, file_size, err);
    directory->refcount_table_offset = get_be64(cluster + AT_REFCOUNT_TABLE_OFFSET);
    directory->refcount_table_size = (uint64_t)get_be32(cluster + AT_REFCOUNT_TABLE_CLUSTERS)
                                     << directory->header.cluster_bits;
    return 0;
}

static int read_first_cluster(const struct image_file *file, struct bitmap_directory *directory,
                              struct error *err)
{
    _cleanup_free_ uint8_t *cluster = NULL;
    size_t room = FIRST_READ;

    for (;;) {
        free(cluster);
        cluster = malloc(room);
        if (cluster == NULL)
            return error_oom(err);
        ssize_t length = io_read_some_at(file->fd, file->path, cluster, room, 0, err);
        if (length < 0)
            return (int)length;
        int r = qcow2_header_parse(cluster, (size_t)length, file->size, &directory->header, err);
        if (r < 0)
            return error_prefix(err, "%s", file->path);
        uint64_t cluster_size = qcow2_cluster_size(&directory->header);
        if (cluster_size > room) {
            room = (size_t)cluster_size;
            continue;
        }
        r = parse_cluster(cluster, (size_t)min_u64((uint64_t)length, cluster_size), file->size,
                          directory, err);
        return r < 0 ? error_prefix(err, "%s", file->path) : 0;
    }
}

int bitmap_directory_read(struct image *image, struct bitmap_directory *ret, struct error *err)
{
    _cleanup_(bitmap_directory_clear_cleanup) struct bitmap_directory directory = {0};
    int r;

    r = image_bitmap_check_image(image, err);
    if (r < 0)
        return r;
    const struct image_file *file = &layer_file(image->layers[0])->file;
    r = read_first_cluster(file, &directory, err);
    if (r < 0)
        return r;
    size_t size = (size_t)directory.extensions.bitmap_directory_size;
    directory.bytes = malloc(size > 0 ? size : 1);
    if (directory.bytes == NULL)
        return error_oom(err);
    r = io_read_at(file->fd, file->path, directory.bytes, size,
                   directory.extensions.bitmap_directory_offset, err);
    if (r < 0)
        return r;
    r = qcow2_bitmaps_parse(directory.bytes, &directory.header, &directory.extensions, file->size,
                            &directory.bitmaps, err);
    if (r < 0)
        return error_prefix(err, "%s", file->path);
    *ret = directory;
    directory = (struct bitmap_directory){0};
    return 0;
}

static int find_bitmap(const struct bitmap_directory *directory, const char *name, size_t *ret,
                       struct error *err)
{
    size_t count = directory->extensions.bitmap_count, found = count;

    for (size_t i = 0; i < count; i++) {
        if (strcmp(directory->bitmaps[i].name, name) != 0)
            continue;
        if (found != count)
            return error_set(err, EINVAL,
                             "two entries of the bitmap directory, %zu and %zu, have "
                             "this name",
                             found, i);
        found = i;
    }
    if (found == count)
        return error_set(err, ENOENT, "there is none of this name");
    *ret = found;
    return 0;
}

/* --- The bits --- */

/* Table entries, big-endian as they are in the file, checked and turned in place. */
static int decode_table(struct image_bitmap_bits *bits, uint64_t cluster_size, uint64_t file_size,
                        struct error *err)
{
    for (size_t i = 0; i < bits->table_entries; i++) {
        uint64_t entry = be64toh(bits->table[i]), offset = entry & ENTRY_OFFSET_MASK;

        if ((entry & ENTRY_RESERVED_MASK) != 0 || (offset != 0 && (entry & BITMAP_ONES) != 0))
            return error_set(err, EINVAL,
                             "bitmap table entry %zu (0x%016" PRIx64 ") has reserved bits set", i,
                             entry);
        if ((offset & (cluster_size - 1)) != 0)
            return error_set(err, EINVAL,
                             "bitmap table entry %zu: the offset 0x%" PRIx64
                             " is not a multiple of the cluster size %" PRIu64,
                             i, offset, cluster_size);
        if (!range_within(offset, cluster_size, file_size))
            return error_set(err, EINVAL,
                             "bitmap table entry %zu: the cluster at offset 0x%" PRIx64
                             " does not lie within the file of %" PRIu64 " bytes",
                             i, offset, file_size);
        bits->table[i] = entry;
    }
    return 0;
}

/* Has the kernel make the memory that is going to be filled at once: page by page it takes longer
 * than all else. Kernels before 5.14 do not know how. */
static void populate(uint8_t *bytes, size_t length)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t start = (uintptr_t)bytes & ~(page - 1);

    (void)madvise((void *)start, (uintptr_t)bytes + length - start, MADV_POPULATE_WRITE);
}

static int read_words(const struct image_file *file, struct image_bitmap_bits *bits,
                      struct error *err)
{
    for (size_t i = 0; i < bits->table_entries; i++) {
        uint8_t *bytes = (uint8_t *)bits->words + i * (bits->cluster_bits / 8);
        size_t length = bitmap_entry_bytes(bits, i);

        if (bits->table[i] == BITMAP_ONES) {
            memset(bytes, 0xff, length);
        } else if (bits->table[i] != BITMAP_ZEROS) {
            populate(bytes, length);
            int r = io_read_at(file->fd, file->path, bytes, length, bits->table[i], err);
            if (r < 0)
                return r;
        }
    }
    if (bits->count % BITMAP_WORD_BITS != 0)
        bits->words[bits->word_count - 1] &=
            htole64(((uint64_t)1 << bits->count % BITMAP_WORD_BITS) - 1);
    bits->set_count = 0;
    for (size_t i = 0; i < bits->table_entries; i++) {
        size_t start = i * (size_t)(bits->cluster_bits / BITMAP_WORD_BITS);
        size_t length = div_round_up(bitmap_entry_bytes(bits, i), sizeof(*bits->words));
        if (bits->table[i] != BITMAP_ZEROS)
            bits->set_count += bitmap_count_set(bits->words + start, length);
    }
    return 0;
}

static int load_bits(const struct image_file *file, const struct bitmap_directory *directory,
                     const struct qcow2_bitmap_place *place, struct image_bitmap_bits *bits,
                     struct error *err)
{
    uint64_t cluster_size = qcow2_cluster_size(&directory->header);
    uint64_t bytes = div_round_up(bits->count, 8);
    uint64_t entries = div_round_up(bytes, cluster_size);
    int r;

    if (bytes > BITMAP_BYTES_MAX)
        return error_set(err, EFBIG,
                         "%" PRIu64 " bits take %" PRIu64
                         " bytes of memory, more than the limit of %d; a larger granularity takes "
                         "less",
                         bits->count, bytes, BITMAP_BYTES_MAX);
    if (place->table_entries != entries)
        return error_set(err, EINVAL,
                         "the bitmap table has %" PRIu32 " entries, and %" PRIu64
                         " bits in clusters of %" PRIu64 " bytes need %" PRIu64,
                         place->table_entries, bits->count, cluster_size, entries);
    bits->table_offset = place->table_offset;
    bits->table_entries = (size_t)entries;
    bits->cluster_bits = cluster_size * 8;
    bits->word_count = (size_t)div_round_up(bits->count, BITMAP_WORD_BITS);
    bits->table = malloc(bits->table_entries * sizeof(*bits->table) + 1);
    /* What is clear is never touched, and costs no memory. */
    bits->words = calloc(bits->word_count + 1, sizeof(*bits->words));
    if (bits->table == NULL || bits->words == NULL)
        return error_oom(err);
    r = io_read_at(file->fd, file->path, bits->table, bits->table_entries * sizeof(*bits->table),
                   bits->table_offset, err);
    if (r == 0)
        r = decode_table(bits, cluster_size, file->size, err);
    if (r == 0)
        r = read_words(file, bits, err);
    return r;
}

/*
 * The last bit of the generation is set when the bitmap is made, and nothing that is written to the
 * disk changes it, because the bitmap is disabled. But QEMU drops it when the disk becomes smaller,
 * and what the disk loses then and gets back, as zeros, when it becomes larger again is told by no
 * bitmap.
 */
static int check_generation(const struct image_bitmap_bits *bits, struct error *err)
{
    if (bits->count < IMAGE_BITMAP_GRANULES_MIN)
        return error_set(err, EINVAL, "it has %" PRIu64 " bits, and must have %d at least",
                         bits->count, IMAGE_BITMAP_GRANULES_MIN);
    if (!bitmap_bit(bits->words, bits->count - 1))
        return error_set(err, ESTALE, "its last bit is not set: the disk was resized");
    return 0;
}

static int check_entry(const struct image_bitmap *bitmap, const struct qcow2_bitmap_place *place,
                       bool generation, struct error *err)
{
    if (bitmap->in_use)
        return error_set(err, ESTALE,
                         "it is marked in use: a program that had the image open did not end "
                         "cleanly, so changes may be missing in it");
    if (place->extra_data)
        return error_set(err, ENOTSUP, "it has extra data that is not understood");
    if (!generation && !bitmap->automatic)
        return error_set(err, ESTALE, "it is disabled, so changes are missing in it");
    if (generation && bitmap->automatic)
        return error_set(err, ESTALE, "it is enabled, and must not be");
    return 0;
}

static int load_entry(struct image *image, const struct bitmap_directory *directory,
                      const char *name, struct image_bitmap_bits *bits, struct error *err)
{
    bool generation = strcmp(name, IMAGE_BITMAP_GENERATION_NAME) == 0;
    struct qcow2_bitmap_place place;
    size_t index;
    int r;

    r = find_bitmap(directory, name, &index, err);
    if (r < 0)
        return r;
    const struct image_bitmap *bitmap = &directory->bitmaps[index];
    qcow2_bitmap_find_place(directory->bytes, index, &place);
    r = check_entry(bitmap, &place, generation, err);
    if (r < 0)
        return r;
    bits->granularity = bitmap->granularity;
    bits->count = div_round_up(image_size(image), bitmap->granularity);
    r = load_bits(&layer_file(image->layers[0])->file, directory, &place, bits, err);
    if (r == 0 && generation)
        r = check_generation(bits, err);
    return r;
}

int bitmap_load(struct image *image, const struct bitmap_directory *directory, const char *name,
                struct image_bitmap_bits **ret, struct error *err)
{
    _cleanup_(image_bitmap_free_cleanup) struct image_bitmap_bits *bits = NULL;

    bits = calloc(1, sizeof(*bits));
    if (bits == NULL)
        return error_oom(err);
    int r = load_entry(image, directory, name, bits, err);
    if (r < 0)
        return error_prefix(err, "%s: bitmap '%s'", image_path(image), name);
    *ret = TAKE_PTR(bits);
    return 0;
}

int image_bitmap_load(struct image *image, const char *name, struct image_bitmap_bits **ret,
                      struct error *err)
{
    _cleanup_(bitmap_directory_clear_cleanup) struct bitmap_directory directory = {0};
    int r = bitmap_directory_read(image, &directory, err);

    if (r < 0)
        return r;
    return bitmap_load(image, &directory, name, ret, err);
}

void image_bitmap_free(struct image_bitmap_bits *bits)
{
    if (bits == NULL)
        return;
    free(bits->table);
    free(bits->words);
    free(bits);
}

uint64_t image_bitmap_granularity(const struct image_bitmap_bits *bits)
{
    return bits->granularity;
}

uint64_t image_bitmap_set_count(const struct image_bitmap_bits *bits)
{
    return bits->set_count;
}

uint64_t image_bitmap_count(const struct image_bitmap_bits *bits)
{
    return bits->count;
}

/* The first bit at `from` or behind it that is set, or clear; bits->count if there is none. */
static uint64_t find_bit(const struct image_bitmap_bits *bits, uint64_t from, bool set)
{
    uint64_t flip = set ? 0 : UINT64_MAX;
    size_t word = (size_t)(from / BITMAP_WORD_BITS);

    if (from >= bits->count)
        return bits->count;
    uint64_t here = (le64toh(bits->words[word]) ^ flip) & UINT64_MAX << from % BITMAP_WORD_BITS;
    while (here == 0) {
        if (++word == bits->word_count)
            return bits->count;
        here = le64toh(bits->words[word]) ^ flip;
    }
    return min_u64(bits->count,
                   (uint64_t)word * BITMAP_WORD_BITS + (uint64_t)__builtin_ctzll(here));
}

bool image_bitmap_next(const struct image_bitmap_bits *bits, uint64_t offset, uint64_t *ret_start,
                       uint64_t *ret_end)
{
    uint64_t first = find_bit(bits, offset / bits->granularity, true);

    if (first == bits->count)
        return false;
    *ret_start = max_u64(offset, first * bits->granularity);
    *ret_end = find_bit(bits, first, false) * bits->granularity;
    return true;
}

void image_bitmap_generation(const struct image_bitmap_bits *bits,
                             uint8_t generation[static IMAGE_BITMAP_GENERATION_SIZE])
{
    assert(bits->word_count * sizeof(*bits->words) >= IMAGE_BITMAP_GENERATION_SIZE);
    memcpy(generation, bits->words, IMAGE_BITMAP_GENERATION_SIZE);
}
