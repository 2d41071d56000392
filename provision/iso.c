/* SPDX-License-Identifier: MIT */
#include "provision/iso.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"

#define BLOCK_SIZE 65536
#define FILES_MAX 8

static void reader_free(struct archive *archive)
{
    archive_read_free(archive);
}
DEFINE_CLEANUP(struct archive, reader_free);

static void writer_free(struct archive *archive)
{
    archive_write_free(archive);
}
DEFINE_CLEANUP(struct archive, writer_free);

static int fail(struct archive *archive, const char *path, struct error *err)
{
    const char *text = archive_error_string(archive);
    const int code = archive_errno(archive);

    return error_set(err, code > 0 ? code : EIO, "%s: %s", path,
                     text != NULL ? text : "unknown error of libarchive");
}

/* --- Reading --- */

/* The place of `name` among the names that would do; -1 if it is none. */
static int rank_of(const struct iso_file *file, const char *name)
{
    while (name[0] == '/' || (name[0] == '.' && name[1] == '/'))
        name++;
    for (int i = 0; file->names[i] != NULL; i++)
        if (strcasecmp(file->names[i], name) == 0)
            return i;
    return -1;
}

static int save(struct archive *archive, const char *iso, const char *to, struct error *err)
{
    _cleanup_close_ int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    const void *bytes;
    size_t length;
    int64_t offset;
    int code, r = 0;

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot create", to);
    while (r == 0 &&
           (code = archive_read_data_block(archive, &bytes, &length, &offset)) == ARCHIVE_OK)
        r = io_write_at(fd, to, bytes, length, (uint64_t)offset, err);
    if (r == 0 && code != ARCHIVE_EOF)
        r = fail(archive, iso, err);
    return r < 0 ? r : io_close_written(take_fd(&fd), to, err);
}

static int missing(const char *iso, const struct iso_file *file, struct error *err)
{
    _cleanup_free_ char *names = NULL;

    for (size_t i = 0; file->names[i] != NULL; i++) {
        _cleanup_free_ char *before = TAKE_PTR(names);
        if (asprintf(&names, "%s%s%s", before != NULL ? before : "", before != NULL ? ", " : "",
                     file->names[i]) < 0)
            return error_oom(err);
    }
    return error_set(err, ENOENT, "%s: has no %s (looked for: %s)", iso, file->what, names);
}

int iso_extract(const char *iso, const struct iso_file *files, size_t count, struct error *err)
{
    _cleanup_(reader_free_cleanup) struct archive *archive = archive_read_new();
    struct archive_entry *entry;
    int best[FILES_MAX], code, r = 0;

    if (archive == NULL || count > FILES_MAX)
        return error_oom(err);
    for (size_t i = 0; i < count; i++)
        best[i] = -1;
    if (archive_read_support_format_iso9660(archive) != ARCHIVE_OK ||
        archive_read_open_filename(archive, iso, BLOCK_SIZE) != ARCHIVE_OK)
        return fail(archive, iso, err);
    while (r == 0 && (code = archive_read_next_header(archive, &entry)) >= ARCHIVE_WARN &&
           code != ARCHIVE_EOF) {
        const char *name = archive_entry_pathname(entry);
        for (size_t i = 0; r == 0 && name != NULL && i < count; i++) {
            const int rank = rank_of(&files[i], name);
            if (rank < 0 || archive_entry_filetype(entry) != AE_IFREG ||
                (best[i] >= 0 && best[i] <= rank))
                continue;
            best[i] = rank;
            r = save(archive, iso, files[i].to, err);
            break;
        }
    }
    if (r == 0 && code != ARCHIVE_EOF)
        return fail(archive, iso, err);
    for (size_t i = 0; r == 0 && i < count; i++)
        if (best[i] < 0)
            r = missing(iso, &files[i], err);
    return r;
}

/* --- Writing --- */

static int add_text(struct archive *archive, const char *path, const struct iso_text *text,
                    struct error *err)
{
    struct archive_entry *entry = archive_entry_new();
    const size_t length = strlen(text->text);
    int r = 0;

    if (entry == NULL)
        return error_oom(err);
    archive_entry_set_pathname(entry, text->name);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0444);
    archive_entry_set_size(entry, (int64_t)length);
    if (archive_write_header(archive, entry) != ARCHIVE_OK ||
        (length > 0 && archive_write_data(archive, text->text, length) != (la_ssize_t)length))
        r = fail(archive, path, err);
    archive_entry_free(entry);
    return r;
}

int iso_write(const char *path, const char *volume, const struct iso_text *texts, size_t count,
              struct error *err)
{
    _cleanup_(writer_free_cleanup) struct archive *archive = archive_write_new();
    _cleanup_close_ int fd =
        open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    int r = 0;

    if (archive == NULL)
        return error_oom(err);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot create", path);
    if (archive_write_set_format_iso9660(archive) != ARCHIVE_OK ||
        archive_write_set_format_option(archive, "iso9660", "volume-id", volume) != ARCHIVE_OK ||
        archive_write_open_fd(archive, fd) != ARCHIVE_OK)
        return fail(archive, path, err);
    for (size_t i = 0; r == 0 && i < count; i++)
        r = add_text(archive, path, &texts[i], err);
    if (r == 0 && archive_write_close(archive) != ARCHIVE_OK)
        r = fail(archive, path, err);
    return r;
}
