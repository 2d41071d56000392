/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "common/text.h"

/*
 * image_map() bounds what one call looks at, so extents are put together here once more. Compressed
 * clusters are joined, too: where each of them is helps nobody, and only data has an offset.
 */

struct printer {
    const struct cli_target *target;
    bool json;
    bool any;     /* something was printed */
    char **names; /* of the host files, as they are printed; NULL until needed */
};

static bool continues(const struct extent *extent, const struct extent *next)
{
    return extent->kind == next->kind &&
           (extent->kind != EXTENT_DATA ||
            (extent->file == next->file &&
             extent->host_offset + extent->length == next->host_offset));
}

static const char *file_name(struct printer *printer, size_t file)
{
    char **name = &printer->names[file];

    if (*name == NULL) {
        const char *path = image_file(printer->target->image, file)->path;

        if (!printer->json) {
            *name = text_printable(path);
        } else {
            _cleanup_json_ json_t *text = json_text(path);
            *name = text != NULL ? json_dumps(text, JSON_ENCODE_ANY | json_stdout_flags()) : NULL;
        }
    }
    return *name;
}

static int print_extent(struct printer *printer, const struct extent *extent, struct error *err)
{
    uint64_t start = extent->start - printer->target->partition->start;
    const char *kind = extent_kind_name(extent->kind), *file = NULL;
    bool data = extent->kind == EXTENT_DATA;

    if (data) {
        file = file_name(printer, extent->file);
        if (file == NULL)
            return error_oom(err);
    }
    if (!printer->json) {
        printf("%15" PRIu64 " %15" PRIu64 " %s", start, extent->length, kind);
        if (data)
            printf(" %" PRIu64 " %s", extent->host_offset, file);
        putchar('\n');
    } else {
        /* Written by hand, as it comes: a map can have millions of extents. */
        printf("%s{\"start\": %" PRIu64 ", \"length\": %" PRIu64
               ", \"kind\": \"%s\", \"zero\": %s, ",
               printer->any ? ",\n " : "[", start, extent->length, kind,
               extent->kind == EXTENT_ZERO ? "true" : "false");
        if (data)
            printf("\"offset\": %" PRIu64 ", \"file\": %s}", extent->host_offset, file);
        else
            printf("\"offset\": null}");
    }
    printer->any = true;
    return 0;
}

static int print_map(struct printer *printer, struct error *err)
{
    const struct partition *partition = printer->target->partition;
    uint64_t at = partition->start, end = partition->start + partition->size;
    struct image_hole_hint hint = {0};
    struct extent extent = {0}, next;

    while (at < end) {
        int r = image_map_hinted(printer->target->image, at, end - at, 0, &hint, &next, err);
        if (r < 0)
            return r;
        at += next.length;
        if (extent.length > 0 && continues(&extent, &next)) {
            extent.length += next.length;
            continue;
        }
        if (extent.length > 0) {
            r = print_extent(printer, &extent, err);
            if (r < 0)
                return r;
        }
        if (ferror(stdout))
            return 0; /* main tells */
        extent = next;
    }
    return extent.length > 0 ? print_extent(printer, &extent, err) : 0;
}

static int map_run(const struct cli_options *options, int argc, char **argv, void *context,
                   struct error *err)
{
    _cleanup_target_ struct cli_target target = {0};
    struct printer printer = {.target = &target, .json = options->json};

    (void)argc;
    (void)context;
    int r = cli_target_open(argv[0], options, "disk", &target, err);
    if (r < 0)
        return r;
    size_t files = image_file_count(target.image);
    printer.names = calloc(files, sizeof(*printer.names));
    if (printer.names == NULL)
        return error_oom(err);
    r = print_map(&printer, err);
    if (r >= 0 && printer.json)
        puts(printer.any ? "]" : "[]");
    for (size_t i = 0; i < files; i++)
        free(printer.names[i]);
    free(printer.names);
    return r;
}

const struct cli_command cmd_map = {
    .name = "map",
    .arguments = "IMAGE",
    .summary = "Tells where the bytes of the disk, or of a partition, are",
    .details =
        "A line an extent: where it starts on the disk or partition, its length (both in bytes), "
        "and\n"
        "what it is: 'zero' reads as zeros (not allocated, zero-flagged, or a hole of the host "
        "file),\n"
        "'data' is followed by the offset in a file that holds the bytes and by the file's name,\n"
        "'compressed' are compressed clusters, 'opaque' is what libqcow delivers.",
    .groups = CLI_IMAGE | CLI_PARTITION | CLI_JSON | CLI_SANDBOX | CLI_BYTES,
    .operands_min = 1,
    .operands_max = 1,
    .run = map_run,
};
