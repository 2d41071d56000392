/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "provision/steps.h"

/* manifest.json: what the image, its kernel and its initrd are, for those who check them. */

#define MANIFEST_NAME "manifest.json"

struct manifest_options {
    char *kernel, *initrd; /* names in the work directory; NULL: vmlinuz, initrd.img if fetched */
    char *append, *ovmf;
};

static const struct field fields[] = {
    {.name = "kernel", .type = FIELD_TEXT, .offset = offsetof(struct manifest_options, kernel)},
    {.name = "initrd", .type = FIELD_TEXT, .offset = offsetof(struct manifest_options, initrd)},
    {.name = "append", .type = FIELD_TEXT, .offset = offsetof(struct manifest_options, append)},
    {.name = "ovmf", .type = FIELD_FILE, .offset = offsetof(struct manifest_options, ovmf)},
    {0},
};

/* The path of a file in the work directory: one that was named must be there. The usual one counts
 * only if this recipe fetches it: what lies there may be another's. */
static int find(const struct build *build, const char *named, const char *usual, char **ret,
                struct error *err)
{
    _cleanup_free_ char *path = build_path(build, named != NULL ? named : usual);

    if (path == NULL)
        return error_oom(err);
    if (named == NULL && !recipe_fetches(build->recipe, usual))
        return 0;
    if (access(path, R_OK) < 0)
        return error_set_errno(err, errno, "%s", path);
    *ret = TAKE_PTR(path);
    return 0;
}

/* What was named and comes from no step of this recipe. */
static int digest_named(const struct build *build, const char *name, struct digest *digest,
                        struct error *err)
{
    _cleanup_free_ char *path = NULL;

    if (name == NULL || recipe_fetches(build->recipe, name))
        return 0;
    path = build_path(build, name);
    return path == NULL ? error_oom(err) : digest_file(digest, path, err);
}

static int inputs(const struct build *build, const struct step *step, struct digest *digest,
                  struct error *err)
{
    const struct manifest_options *options = step->options;

    int r = digest_named(build, options->kernel, digest, err);
    return r < 0 ? r : digest_named(build, options->initrd, digest, err);
}

static int write_manifest(const struct build *build, const json_t *manifest, struct error *err)
{
    _cleanup_free_ char *path = build_path(build, MANIFEST_NAME);
    _cleanup_free_ char *temporary = step_path(build, MANIFEST_NAME);
    _cleanup_free_ char *text = json_dumps(manifest, JSON_INDENT(2));
    _cleanup_close_ int fd = -1;

    if (path == NULL || temporary == NULL || text == NULL)
        return error_oom(err);
    fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot create", temporary);
    int r = io_write(fd, temporary, text, strlen(text), err);
    if (r == 0)
        r = io_write(fd, temporary, "\n", 1, err);
    if (r < 0)
        return r;
    if (fchmod(fd, 0644) < 0 || fsync(fd) < 0)
        return error_set_errno(err, errno, "%s: cannot write to disk", temporary);
    r = io_close_written(take_fd(&fd), temporary, err);
    if (r == 0 && rename(temporary, path) < 0)
        r = error_set_errno(err, errno, "%s: cannot rename to %s", temporary, path);
    return r;
}

/* Names of files are as whoever gets the work directory sees them: the same wherever it was. */
static int shorten_names(const struct build *build, json_t *manifest, struct error *err)
{
    static const char *const keys[] = {"kernel", "initrd"};
    const size_t prefix = strlen(build->work);
    const char *key;
    json_t *value;

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        json_t *file = json_object_get(manifest, keys[i]);
        json_object_foreach (file, key, value) {
            const char *text = json_string_value(value);
            if (text == NULL || strncmp(text, build->work, prefix) != 0 || text[prefix] != '/')
                continue;
            if (json_object_set_new(file, key, json_string(text + prefix + 1)) != 0)
                return error_oom(err);
        }
    }
    return 0;
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct manifest_options *options = step->options;
    _cleanup_free_ char *kernel = NULL, *initrd = NULL;
    struct build_manifest about = {
        .image = build->image, .append = options->append, .ovmf = options->ovmf};
    _cleanup_json_ json_t *manifest = NULL;

    if (build->options->manifest == NULL)
        return error_set(err, ENOTSUP, "this program cannot describe images");
    int r = find(build, options->kernel, "vmlinuz", &kernel, err);
    if (r == 0)
        r = find(build, options->initrd, "initrd.img", &initrd, err);
    if (r < 0)
        return r;
    about.kernel = kernel;
    about.initrd = initrd;
    r = build->options->manifest(&about, &manifest, build->options->handlers.arg, err);
    if (r == 0)
        r = shorten_names(build, manifest, err);
    if (r == 0)
        r = write_manifest(build, manifest, err);
    if (r < 0)
        return r;
    return json_object_set_new(build->result, "outputs", json_pack("[s]", MANIFEST_NAME)) == 0
               ? 0
               : error_oom(err);
}

const struct step_type step_manifest = {
    .kind = "manifest",
    .size = sizeof(struct manifest_options),
    .fields = fields,
    .places = IN(PLACE_IMAGE) | IN(PLACE_SEALED),
    .packs = true,
    .inputs = inputs,
    .run = run,
};
