/* SPDX-License-Identifier: MIT */
/*
 * Header extensions and the backing file's name: what stands in the first cluster between the
 * header and the cluster's end.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/log.h"
#include "image/qcow2-format.h"

enum {
    EXTENSION_END = 0,
    EXTENSION_ENCRYPTION = 0x0537be77,
    EXTENSION_FEATURE_NAMES = 0x6803f857,
    EXTENSION_BITMAPS = 0x23852875,
    EXTENSION_DATA_FILE = 0x44415441,
};
#define EXTENSION_BACKING_FORMAT 0xe2792acau

enum { FEATURE_NAME_ENTRY = 48, FEATURE_NAME_LENGTH = 46, BITMAPS_EXTENSION_LENGTH = 24 };

struct extension {
    uint32_t type;
    uint32_t length;
    const uint8_t *data;
};

/*
 * The extension at *offset, and *offset moved behind it. Returns 1, 0 at the end of the extensions,
 * or -errno. They reach up to `end`.
 */
static int next_extension(const uint8_t *cluster, size_t end, size_t *offset, struct extension *ret,
                          struct error *err)
{
    size_t at = *offset;

    if (at >= end)
        return 0;
    if (end - at < 8)
        return error_set(err, EINVAL, "the header extension at offset %zu is cut off at offset %zu",
                         at, end);
    ret->type = get_be32(cluster + at);
    ret->length = get_be32(cluster + at + 4);
    ret->data = cluster + at + 8;
    if (ret->length > end - at - 8)
        return error_set(err, EINVAL,
                         "the header extension 0x%08" PRIx32 " at offset %zu has %" PRIu32
                         " bytes, and there is room for %zu",
                         ret->type, at, ret->length, end - at - 8);
    if (ret->type == EXTENSION_END)
        return 0;
    *offset = at + 8 + (((size_t)ret->length + 7) & ~(size_t)7);
    return 1;
}

/* Where the extensions end at the latest. */
static size_t extensions_end(const struct qcow2_header *header, size_t length)
{
    return header->backing_file_offset != 0 ? (size_t)min_u64(header->backing_file_offset, length)
                                            : length;
}

/* --- Features that are not known --- */

/* Bytes of a name table up to the first that is NUL; what could upset a terminal becomes '?'. */
static void copy_feature_name(const uint8_t *name, char ret[static FEATURE_NAME_LENGTH + 1])
{
    size_t i;

    for (i = 0; i < FEATURE_NAME_LENGTH && name[i] != '\0'; i++)
        ret[i] = name[i] >= 0x20 && name[i] < 0x7f ? (char)name[i] : '?';
    ret[i] = '\0';
}

/* The name of an incompatible feature as the image itself has it; empty if it does not. */
static void find_feature_name(const uint8_t *cluster, size_t end, size_t offset, unsigned bit,
                              char ret[static FEATURE_NAME_LENGTH + 1])
{
    struct extension extension;

    ret[0] = '\0';
    while (next_extension(cluster, end, &offset, &extension, NULL) > 0) {
        if (extension.type != EXTENSION_FEATURE_NAMES)
            continue;
        for (uint32_t i = 0; i + FEATURE_NAME_ENTRY <= extension.length; i += FEATURE_NAME_ENTRY) {
            if (extension.data[i] == 0 && extension.data[i + 1] == bit) {
                copy_feature_name(extension.data + i + 2, ret);
                return;
            }
        }
    }
}

static int refuse_unknown_features(const uint8_t *cluster, size_t length,
                                   const struct qcow2_header *header, struct error *err)
{
    uint64_t unknown = header->incompatible & ~(uint64_t)QCOW2_INCOMPATIBLE_KNOWN;
    _cleanup_free_ char *list = NULL;

    if (unknown == 0)
        return 0;
    for (unsigned bit = 0; bit < 64; bit++) {
        char name[FEATURE_NAME_LENGTH + 1];
        char *longer;

        if ((unknown >> bit & 1) == 0)
            continue;
        find_feature_name(cluster, extensions_end(header, length), header->header_length, bit,
                          name);
        if (asprintf(&longer, "%s%sbit %u%s%s%s", list != NULL ? list : "",
                     list != NULL ? ", " : "", bit, name[0] != '\0' ? " (" : "", name,
                     name[0] != '\0' ? ")" : "") < 0)
            return error_oom(err);
        free(list);
        list = longer;
    }
    return error_set(err, ENOTSUP, "it uses incompatible features that are not known here: %s",
                     list);
}

/* --- Names --- */

/* A name out of `length` bytes, as a string of its own. NULs at its end are no part of it. */
static int copy_name(const char *what, const uint8_t *bytes, size_t length, size_t limit,
                     char **ret, struct error *err)
{
    if (length > limit)
        return error_set(err, EINVAL, "the %s has %zu bytes, more than the limit of %zu", what,
                         length, limit);
    size_t end = strnlen((const char *)bytes, length);
    for (size_t i = end; i < length; i++) {
        if (bytes[i] != '\0')
            return error_set(err, EINVAL, "the %s holds a NUL byte", what);
    }
    char *name = strndup((const char *)bytes, end);
    if (name == NULL)
        return error_oom(err);
    free(*ret);
    *ret = name;
    return 0;
}

static int parse_backing_file(const uint8_t *cluster, size_t length,
                              const struct qcow2_header *header, struct qcow2_extensions *ret,
                              struct error *err)
{
    if (header->backing_file_offset == 0)
        return 0;
    if (header->backing_file_size > QCOW2_NAME_MAX)
        return error_set(err, EINVAL,
                         "the backing file's name has %" PRIu32 " bytes, more than the limit of %d",
                         header->backing_file_size, QCOW2_NAME_MAX);
    if (header->backing_file_offset < header->header_length)
        return error_set(err, EINVAL,
                         "the backing file's name at offset %" PRIu64
                         " lies within the header of %" PRIu32 " bytes",
                         header->backing_file_offset, header->header_length);
    if (!range_within(header->backing_file_offset, header->backing_file_size, length))
        return error_set(err, EINVAL,
                         "the backing file's name at offset %" PRIu64 ", %" PRIu32
                         " bytes, does not lie within the first cluster of %zu bytes",
                         header->backing_file_offset, header->backing_file_size, length);
    if (header->backing_file_size == 0)
        return 0;
    return copy_name("backing file's name", cluster + header->backing_file_offset,
                     header->backing_file_size, QCOW2_NAME_MAX, &ret->backing_file, err);
}

/* --- Bitmaps --- */

static int parse_bitmaps(const struct extension *extension, const struct qcow2_header *header,
                         uint64_t file_size, struct qcow2_extensions *ret, struct error *err)
{
    if (extension->length != BITMAPS_EXTENSION_LENGTH)
        return error_set(err, EINVAL, "the bitmaps extension has %" PRIu32 " bytes, not %d",
                         extension->length, BITMAPS_EXTENSION_LENGTH);
    if ((header->autoclear & QCOW2_AUTOCLEAR_BITMAPS) == 0) {
        /* Somebody who knows nothing of bitmaps wrote to the image. */
        log_debug("the bitmaps extension is not valid, so it is left out");
        return 0;
    }

    uint32_t count = get_be32(extension->data);
    uint32_t reserved = get_be32(extension->data + 4);
    uint64_t size = get_be64(extension->data + 8);
    uint64_t offset = get_be64(extension->data + 16);
    if (count == 0 || count > QCOW2_BITMAPS_MAX)
        return error_set(err, EINVAL, "%" PRIu32 " bitmaps are not within 1 to %d", count,
                         QCOW2_BITMAPS_MAX);
    if (reserved != 0)
        return error_set(err, EINVAL, "the bitmaps extension's reserved field is not 0");
    if (size > QCOW2_BITMAP_DIRECTORY_MAX)
        return error_set(err, EINVAL,
                         "the bitmap directory has %" PRIu64 " bytes, more than the limit of %d",
                         size, QCOW2_BITMAP_DIRECTORY_MAX);
    if ((offset & (qcow2_cluster_size(header) - 1)) != 0)
        return error_set(err, EINVAL,
                         "the bitmap directory's offset 0x%" PRIx64
                         " is not a multiple of the cluster size %" PRIu64,
                         offset, qcow2_cluster_size(header));
    if (offset == 0 || !range_within(offset, size, file_size))
        return error_set(err, EINVAL,
                         "the bitmap directory at offset 0x%" PRIx64 ", %" PRIu64
                         " bytes, does not lie within the file of %" PRIu64 " bytes",
                         offset, size, file_size);
    ret->has_bitmaps = true;
    ret->bitmap_count = count;
    ret->bitmap_directory_size = size;
    ret->bitmap_directory_offset = offset;
    return 0;
}

/* --- All of it --- */

static int parse_extension(const struct extension *extension, const struct qcow2_header *header,
                           uint64_t file_size, struct qcow2_extensions *ret, struct error *err)
{
    switch (extension->type) {
    case EXTENSION_BACKING_FORMAT:
        return copy_name("backing file's format", extension->data, extension->length,
                         QCOW2_FORMAT_NAME_MAX, &ret->backing_format, err);
    case EXTENSION_DATA_FILE:
        return copy_name("data file's name", extension->data, extension->length, QCOW2_NAME_MAX,
                         &ret->data_file, err);
    case EXTENSION_BITMAPS:
        if (ret->has_bitmaps)
            return error_set(err, EINVAL, "there are two bitmaps extensions");
        return parse_bitmaps(extension, header, file_size, ret, err);
    case EXTENSION_ENCRYPTION:
        /* It must be there if, and only if, the method needs it. */
        if (header->encryption != QCOW2_ENCRYPTION_LUKS)
            return error_set(err, EINVAL,
                             "there is an extension for LUKS encryption, and the encryption method "
                             "is %u",
                             (unsigned)header->encryption);
        return 0;
    default:
        return 0;
    }
}

int qcow2_extensions_parse(const uint8_t *cluster, size_t length, const struct qcow2_header *header,
                           uint64_t file_size, struct qcow2_extensions *ret, struct error *err)
{
    _cleanup_(qcow2_extensions_clear_cleanup) struct qcow2_extensions extensions = {0};
    size_t end = extensions_end(header, length), offset = header->header_length;
    struct extension extension;
    int r;

    r = refuse_unknown_features(cluster, length, header, err);
    if (r < 0)
        return r;
    /* First, for the extensions end where it begins. */
    r = parse_backing_file(cluster, length, header, &extensions, err);
    if (r < 0)
        return r;
    while ((r = next_extension(cluster, end, &offset, &extension, err)) > 0) {
        r = parse_extension(&extension, header, file_size, &extensions, err);
        if (r < 0)
            return r;
    }
    if (r < 0)
        return r;
    *ret = extensions;
    extensions = (struct qcow2_extensions){0};
    return 0;
}

void qcow2_extensions_clear(struct qcow2_extensions *extensions)
{
    free(extensions->backing_file);
    free(extensions->backing_format);
    free(extensions->data_file);
    *extensions = (struct qcow2_extensions){0};
}
