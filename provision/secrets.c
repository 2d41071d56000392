/* SPDX-License-Identifier: MIT */
#include "provision/secrets.h"

#include <inttypes.h>
#include <string.h>

#include "image/image.h"

/* The last bytes of what came before, and the first ones of what comes now, are looked at together:
 * a secret may lie across. */
struct search {
    const struct secret *secrets;
    size_t count;
    size_t kept;
    uint8_t seam[2 * SEALER_SECRET_MAX];
};

int search_new(const struct secret *secrets, size_t count, struct search **ret, struct error *err)
{
    struct search *search = calloc(1, sizeof(*search));

    if (search == NULL)
        return error_oom(err);
    search->secrets = secrets;
    search->count = count;
    *ret = search;
    return 0;
}

void search_free(struct search *search)
{
    free(search);
}

void search_restart(struct search *search)
{
    search->kept = 0;
}

static const struct secret *find(const struct search *search, const void *bytes, size_t length)
{
    for (size_t i = 0; i < search->count; i++)
        if (memmem(bytes, length, search->secrets[i].bytes, search->secrets[i].length) != NULL)
            return &search->secrets[i];
    return NULL;
}

const struct secret *search_feed(struct search *search, const void *bytes, size_t length)
{
    const size_t head = length < SEALER_SECRET_MAX ? length : SEALER_SECRET_MAX;

    memcpy(search->seam + search->kept, bytes, head);
    const struct secret *found = find(search, search->seam, search->kept + head);
    if (found == NULL && length > head)
        found = find(search, bytes, length);
    /* What is kept for the next time. */
    if (length >= SEALER_SECRET_MAX) {
        memcpy(search->seam, (const uint8_t *)bytes + length - SEALER_SECRET_MAX,
               SEALER_SECRET_MAX);
        search->kept = SEALER_SECRET_MAX;
    } else {
        size_t all = search->kept + length;
        size_t keep = all < SEALER_SECRET_MAX ? all : SEALER_SECRET_MAX;
        memmove(search->seam, search->seam + all - keep, keep);
        search->kept = keep;
    }
    return found;
}

/* --- In an image --- */

#define CHUNK ((size_t)1 << 20)

static int search_extent(struct image *image, struct search *search, const struct extent *extent,
                         uint8_t *chunk, struct error *err)
{
    for (uint64_t done = 0; done < extent->length;) {
        const size_t piece =
            extent->length - done < CHUNK ? (size_t)(extent->length - done) : CHUNK;
        const uint64_t offset = extent->start + done;
        int r = image_read(image, offset, chunk, piece, err);
        if (r < 0)
            return r;
        const struct secret *found = search_feed(search, chunk, piece);
        if (found != NULL)
            return error_set(err, EUCLEAN, "%s: holds %s at or before offset %" PRIu64,
                             image_path(image), found->name, offset + piece);
        done += piece;
    }
    return 0;
}

int seal_search(const char *path, const struct secret *secrets, size_t secret_count,
                struct error *err)
{
    const struct image_options options = {.format = "qcow2"};
    _cleanup_(search_free_cleanup) struct search *search = NULL;
    _cleanup_image_ struct image *image = NULL;
    _cleanup_free_ uint8_t *chunk = malloc(CHUNK);
    struct extent extent;

    if (chunk == NULL)
        return error_oom(err);
    int r = search_new(secrets, secret_count, &search, err);
    if (r == 0)
        r = image_open(path, &options, &image, err);
    for (uint64_t offset = 0; r == 0 && secret_count > 0 && offset < image_size(image);
         offset = extent.start + extent.length) {
        r = image_map(image, offset, image_size(image) - offset, IMAGE_MAP_HOLES, &extent, err);
        if (r < 0)
            break;
        /* No secret has so many zeros in it that it could lie across them. */
        if (extent.kind == EXTENT_ZERO)
            search_restart(search);
        else
            r = search_extent(image, search, &extent, chunk, err);
    }
    return r;
}
