/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "image/internal.h"

/* Formats that QEMU recognizes and that are not read here: taking one for raw would show a guest
 * the container instead of the disk in it. */
static const struct {
    const char *name;
    size_t offset, length;
    const char *magic;
} foreign_formats[] = {
    {"LUKS-encrypted", 0, 6, "LUKS\xba\xbe"},
    {"VMDK", 0, 4, "KDMV"},
    {"VMDK", 0, 4, "COWD"},
    {"VMDK", 0, 21, "# Disk DescriptorFile"},
    {"VDI", 0x40, 4, "\x7f\x10\xda\xbe"},
    {"VHDX", 0, 8, "vhdxfile"},
    {"VHD", 0, 8, "conectix"},
    {"QED", 0, 4, "QED\0"},
    {"Parallels", 0, 16, "WithoutFreeSpace"},
    {"Parallels", 0, 16, "WithouFreSpacExt"},
};

static bool is_foreign(size_t i, const uint8_t *start, size_t length)
{
    size_t end = foreign_formats[i].offset + foreign_formats[i].length;

    return length >= end && memcmp(start + foreign_formats[i].offset, foreign_formats[i].magic,
                                   foreign_formats[i].length) == 0;
}

static const char qcow_magic[4] = "QFI\xfb";

/* The version in a header that has the magic; *ret stays as it is if there is none. */
static int qcow_version(const uint8_t *start, size_t length, bool *ret_qcow, unsigned *ret_version,
                        struct error *err)
{
    if (length < 4 || memcmp(start, qcow_magic, 4) != 0) {
        *ret_qcow = false;
        return 0;
    }
    if (length < 8)
        return error_set(err, EINVAL, "the file of %zu bytes ends within the image's header",
                         length);
    *ret_qcow = true;
    *ret_version = get_be32(start + 4);
    return 0;
}

int image_format_find(const char *name, const uint8_t *start, size_t length, enum image_format *ret,
                      struct error *err)
{
    unsigned version = 0;
    bool qcow;
    int r;

    /* The names of QEMU's protocols stand for the bytes as they are. */
    if (name != NULL && (strcmp(name, "raw") == 0 || strcmp(name, "file") == 0 ||
                         strcmp(name, "host_device") == 0)) {
        *ret = FORMAT_RAW;
        return 0;
    }
    r = qcow_version(start, length, &qcow, &version, err);
    if (r < 0)
        return r;
    if (name == NULL) {
        for (size_t i = 0; i < sizeof(foreign_formats) / sizeof(foreign_formats[0]); i++) {
            if (is_foreign(i, start, length))
                return error_set(err, ENOTSUP,
                                 "a %s image, which is not supported (format raw would read the "
                                 "file as it is)",
                                 foreign_formats[i].name);
        }
        *ret = !qcow ? FORMAT_RAW : version == 1 ? FORMAT_QCOW1 : FORMAT_QCOW2;
        return 0;
    }
    if (strcmp(name, "qcow") == 0) {
        if (!qcow || version != 1)
            return error_set(err, EINVAL, "not a QCOW version 1 image");
        *ret = FORMAT_QCOW1;
        return 0;
    }
    if (strcmp(name, "qcow2") == 0) {
        if (!qcow || version == 1)
            return error_set(err, EINVAL, "not a qcow2 image");
        *ret = FORMAT_QCOW2;
        return 0;
    }
    return error_set(err, ENOTSUP, "image format '%s' is not supported", name);
}

static int refuse_protocol(const char *what, const char *name, struct error *err)
{
    size_t end = strcspn(name, ":/");

    /* Where a colon comes before any slash, QEMU sees a protocol. */
    if (name[end] != ':')
        return 0;
    return error_set(err, ENOTSUP,
                     "%s '%s': the protocol '%.*s:' is not supported: an image's files must be "
                     "plain local paths",
                     what, name, (int)end, name);
}

static int name_in_directory_of(const char *image_path, const char *name, char **ret,
                                struct error *err)
{
    const char *slash = strrchr(image_path, '/');
    char *path;

    if (name[0] == '/' || slash == NULL)
        path = strdup(name);
    else if (asprintf(&path, "%.*s%s", (int)(slash - image_path + 1), image_path, name) < 0)
        path = NULL;
    if (path == NULL)
        return error_oom(err);
    *ret = path;
    return 0;
}

int image_resolve_name(const char *image_path, const char *what, const char *name, char **ret,
                       struct error *err)
{
    int r = refuse_protocol(what, name, err);

    if (r < 0)
        return r;
    return name_in_directory_of(image_path, name, ret, err);
}

int image_resolve_data_file(const char *image_path, const char *name, char **ret, struct error *err)
{
    _cleanup_free_ char *path = NULL;
    struct stat here, there;
    int r;

    r = image_resolve_name(image_path, "data file", name, &path, err);
    if (r < 0)
        return r;
    if (stat(name, &here) == 0) {
        if (stat(path, &there) == 0 && (here.st_dev != there.st_dev || here.st_ino != there.st_ino))
            return error_set(err, ENOTUNIQ,
                             "data file '%s' may be the one in the working directory, as QEMU "
                             "takes it, or %s: remove or rename the wrong one",
                             name, path);
        free(path);
        path = strdup(name);
        if (path == NULL)
            return error_oom(err);
    }
    *ret = TAKE_PTR(path);
    return 0;
}
