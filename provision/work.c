/* SPDX-License-Identifier: MIT */
#include "provision/work.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/units.h"

#define STATE_VERSION 1
#define STATE_MAX (1024 * 1024)
#define DEPTH_MAX 1000
#define OLD_TREE_NAME TREE_NAME ".old"

/* --- The directory --- */

static int make_directory(const char *path, mode_t mode, struct error *err)
{
    if (mkdir(path, mode) < 0 && errno != EEXIST)
        return error_set_errno(err, errno, "%s: cannot make the directory", path);
    return 0;
}

/*
 * Two locks of the file. The one of fcntl() is this process's alone: who has it, builds. The one of
 * flock() is also had by all processes that got the descriptor from this one, and is free when the
 * last of them is gone: that is waited for, as they may still write into the directory when a build
 * was killed just now. QEMU gets it, and the processes that watch over programs (process.c).
 */
#define DYING_SECONDS 60
#define DYING_POLL_US 10000

static int take_lock(int fd, const char *directory, struct error *err)
{
    struct flock own = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (fcntl(fd, F_SETLK, &own) < 0)
        return errno == EAGAIN || errno == EACCES
                   ? error_set(err, EBUSY, "%s: another build runs in this directory", directory)
                   : error_set_errno(err, errno, "%s/lock: cannot lock", directory);
    for (int i = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; i++) {
        if (errno != EWOULDBLOCK)
            return error_set_errno(err, errno, "%s/lock: cannot lock", directory);
        if (i == DYING_SECONDS * 1000000 / DYING_POLL_US)
            return error_set(err, EBUSY,
                             "%s: processes of a build that was killed still run in this directory",
                             directory);
        usleep(DYING_POLL_US);
    }
    return 0;
}

/* As recipe.c names the folders of steps: 02-install. */
static bool is_folder_name(const char *name)
{
    const size_t digits = strspn(name, "0123456789");

    return digits >= 2 && name[digits] == '-' && name[digits + 1] != '\0' &&
           name[digits + 1 + strspn(name + digits + 1, "abcdefghijklmnopqrstuvwxyz-")] == '\0';
}

/* What is in there is removed when the recipe does not have it any more. So there must be nothing
 * but steps, and nobody else who could have put a link there. */
static int check_steps(const char *steps, struct error *err)
{
    _cleanup_close_ int fd = open(steps, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct dirent **entries;
    struct stat st;
    int r = 0;

    if (fd < 0 && (errno == ELOOP || errno == ENOTDIR))
        return error_set(err, ENOTDIR, "%s: is not a directory", steps);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "%s: cannot open", steps);
    if (st.st_uid != geteuid())
        return error_set(err, EPERM,
                         "%s: belongs to user %u; remove it, or choose another work directory",
                         steps, (unsigned)st.st_uid);
    int count = scandirat(fd, ".", &entries, NULL, alphasort);
    if (count < 0)
        return error_set_errno(err, errno, "%s: cannot read the directory", steps);
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;
        if (r == 0 && name[0] != '.' && !is_folder_name(name))
            r = error_set(err, EEXIST,
                          "%s/%s: is no step of a build; choose another work directory", steps,
                          name);
        free(entries[i]);
    }
    free(entries);
    return r;
}

int work_open(const char *path, char **ret_path, int *ret_lock, struct error *err)
{
    _cleanup_free_ char *real = NULL, *lock_path = NULL, *steps = NULL;
    _cleanup_close_ int lock = -1;

    int r = make_directory(path, 0777, err);
    if (r < 0)
        return r;
    real = realpath(path, NULL);
    if (real == NULL)
        return error_set_errno(err, errno, "%s", path);
    if (asprintf(&lock_path, "%s/lock", real) < 0 || asprintf(&steps, "%s/steps", real) < 0)
        return error_oom(err);
    /* Without O_CLOEXEC: QEMU is to have it, too. */
    lock = open(lock_path, O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
    if (lock < 0)
        return error_set_errno(err, errno, "%s: cannot open", lock_path);
    r = take_lock(lock, real, err);
    if (r < 0)
        return r;
    /* What is in there holds the system before it is sealed, secrets included. */
    r = make_directory(steps, 0700, err);
    if (r == 0)
        r = check_steps(steps, err);
    if (r < 0)
        return r;
    *ret_path = TAKE_PTR(real);
    *ret_lock = take_fd(&lock);
    return 0;
}

char *build_path(const struct build *build, const char *name)
{
    char *path;

    return asprintf(&path, "%s/%s", build->work, name) < 0 ? NULL : path;
}

char *step_path(const struct build *build, const char *name)
{
    char *path;

    return asprintf(&path, "%s/%s", build->directory, name) < 0 ? NULL : path;
}

/* --- Removing --- */

static int remove_at(int directory, const char *name, dev_t device, unsigned depth,
                     struct error *err)
{
    struct stat st;

    if (fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : error_set_errno(err, errno, "%s: cannot look at", name);
    if (st.st_dev != device)
        return error_set(err, EXDEV, "%s: something is mounted there", name);
    if (!S_ISDIR(st.st_mode)) {
        if (unlinkat(directory, name, 0) < 0 && errno != ENOENT)
            return error_set_errno(err, errno, "%s: cannot remove", name);
        return 0;
    }
    if (depth >= DEPTH_MAX)
        return error_set(err, ELOOP, "%s: directories are nested too deep", name);

    int fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *stream = fd >= 0 ? fdopendir(fd) : NULL;
    if (stream == NULL) {
        int code = errno;
        if (fd >= 0)
            close(fd);
        return error_set_errno(err, code, "%s: cannot open", name);
    }
    int r = 0;
    for (const struct dirent *entry; r == 0 && (entry = readdir(stream)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            r = remove_at(dirfd(stream), entry->d_name, device, depth + 1, err);
    closedir(stream);
    if (r < 0)
        return r;
    if (unlinkat(directory, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
        return error_set_errno(err, errno, "%s: cannot remove", name);
    return 0;
}

int remove_all(const char *path, struct error *err)
{
    struct stat st;

    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : error_set_errno(err, errno, "%s: cannot look at", path);
    int r = remove_at(AT_FDCWD, path, st.st_dev, 0, err);
    return r < 0 ? error_prefix(err, "removing %s", path) : 0;
}

static bool is_step_folder(const struct recipe *recipe, const char *name, unsigned below)
{
    for (size_t i = 0; i < recipe->step_count; i++)
        if (recipe->steps[i].number < below && strcmp(recipe->steps[i].folder, name) == 0)
            return true;
    return false;
}

/* The step is not done from here on, though its folder may be removed in part only, if this process
 * is killed or the machine goes down. */
static int forget_state(const char *folder, struct error *err)
{
    _cleanup_free_ char *state = NULL;

    if (asprintf(&state, "%s/state.json", folder) < 0)
        return error_oom(err);
    if (unlink(state) == 0)
        return sync_path(folder, err);
    if (errno != ENOENT && errno != ENOTDIR)
        return error_set_errno(err, errno, "%s: cannot remove", state);
    return 0;
}

int work_drop_tree(const struct build *build, const struct step *step, struct error *err)
{
    _cleanup_free_ char *tree = NULL, *old = NULL;

    if (asprintf(&tree, "%s/steps/%s/" TREE_NAME, build->work, step->folder) < 0 ||
        asprintf(&old, "%s/steps/%s/" OLD_TREE_NAME, build->work, step->folder) < 0)
        return error_oom(err);
    int r = work_finish_drop(build, step, err);
    if (r < 0)
        return r;
    /* Nothing is ever made of a tree that is there in part. */
    if (rename(tree, old) < 0)
        return errno == ENOENT ? 0 : error_set_errno(err, errno, "%s: cannot rename", tree);
    return remove_all(old, err);
}

int work_finish_drop(const struct build *build, const struct step *step, struct error *err)
{
    _cleanup_free_ char *old = NULL;

    if (asprintf(&old, "%s/steps/%s/" OLD_TREE_NAME, build->work, step->folder) < 0)
        return error_oom(err);
    return remove_all(old, err);
}

static int remove_folder(const char *steps, const char *name, struct error *err)
{
    _cleanup_free_ char *folder = NULL;

    if (asprintf(&folder, "%s/%s", steps, name) < 0)
        return error_oom(err);
    int r = forget_state(folder, err);
    return r < 0 ? r : remove_all(folder, err);
}

int work_forget(const struct build *build, unsigned from, struct error *err)
{
    _cleanup_free_ char *steps = build_path(build, "steps");
    struct dirent **entries;
    int r = 0;

    if (steps == NULL)
        return error_oom(err);
    int count = scandir(steps, &entries, NULL, alphasort);
    if (count < 0)
        return error_set_errno(err, errno, "%s: cannot read the directory", steps);
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;
        if (r == 0 && name[0] != '.' && !is_step_folder(build->recipe, name, from))
            r = remove_folder(steps, name, err);
        free(entries[i]);
    }
    free(entries);
    return r;
}

/* --- State --- */

void step_state_clear(struct step_state *state)
{
    json_decref(state->result);
    *state = (struct step_state){0};
}

/* Which boot of this machine this is, in `ret`; false if that cannot be told. */
#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define BOOT_ID_SIZE UUID_TEXT_SIZE
static bool boot_id(char ret[static BOOT_ID_SIZE])
{
    _cleanup_free_ char *text = NULL;

    if (io_read_file(BOOT_ID, 256, &text, NULL, NULL) < 0)
        return false;
    text[strcspn(text, "\n")] = '\0';
    return text[0] != '\0' && strlen(text) < BOOT_ID_SIZE && strcpy(ret, text) != NULL;
}

/* Whether what counts only until this machine goes down still does. */
static bool is_of_this_boot(const json_t *recorded)
{
    char now[BOOT_ID_SIZE];

    return recorded == NULL || (json_is_string(recorded) && boot_id(now) &&
                                strcmp(json_string_value(recorded), now) == 0);
}

/* What tells that a file is as it was. */
static json_t *describe_output(const char *work, const char *name)
{
    _cleanup_free_ char *path = NULL;
    struct stat st;

    if (asprintf(&path, "%s/%s", work, name) < 0 || stat(path, &st) < 0)
        return NULL;
    return json_pack("{s:s, s:I, s:I, s:I, s:I}", "name", name, "size", (json_int_t)st.st_size,
                     "inode", (json_int_t)st.st_ino, "mtime", (json_int_t)st.st_mtim.tv_sec, "nsec",
                     (json_int_t)st.st_mtim.tv_nsec);
}

static bool outputs_unchanged(const char *work, const json_t *outputs)
{
    const json_t *output;
    size_t i;

    json_array_foreach (outputs, i, output) {
        const char *name = json_string_value(json_object_get(output, "name"));
        _cleanup_json_ json_t *now = name != NULL ? describe_output(work, name) : NULL;
        if (now == NULL || !json_equal(now, output))
            return false;
    }
    return true;
}

static bool exists(const char *folder, const char *name)
{
    _cleanup_free_ char *path = NULL;

    return asprintf(&path, "%s/%s", folder, name) >= 0 && access(path, F_OK) == 0;
}

int step_state_load(const char *work, const struct step *step, struct step_state *ret,
                    struct error *err)
{
    _cleanup_free_ char *folder = NULL, *path = NULL, *text = NULL;
    _cleanup_json_ json_t *json = NULL;
    char identity[2 * DIGEST_SIZE + 1];

    *ret = (struct step_state){0};
    if (asprintf(&folder, "%s/steps/%s", work, step->folder) < 0 ||
        asprintf(&path, "%s/state.json", folder) < 0)
        return error_oom(err);
    if (io_read_file(path, STATE_MAX, &text, NULL, NULL) < 0)
        return 0;
    json = json_loads(text, 0, NULL);
    hex_encode(step->identity, DIGEST_SIZE, identity);
    const char *recorded = json_string_value(json_object_get(json, "identity"));
    if (json_integer_value(json_object_get(json, "version")) != STATE_VERSION || recorded == NULL ||
        strcmp(recorded, identity) != 0 ||
        !outputs_unchanged(work, json_object_get(json, "outputs")))
        return 0;
    ret->done = true;
    ret->seconds = json_number_value(json_object_get(json, "seconds"));
    ret->result = json_incref(json_object_get(json, "result"));
    ret->has_tree = json_is_true(json_object_get(json, TREE_NAME)) && exists(folder, TREE_NAME) &&
                    is_of_this_boot(json_object_get(json, "boot"));
    ret->has_disk = json_is_true(json_object_get(json, "disk")) && exists(folder, DISK_NAME);
    return 0;
}

int sync_path(const char *path, struct error *err)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

    if (fd < 0 || fsync(fd) < 0)
        return error_set_errno(err, errno, "%s: cannot write to disk", path);
    return 0;
}

static int write_state(const char *folder, const json_t *json, struct error *err)
{
    _cleanup_free_ char *path = NULL, *temporary = NULL, *text = json_dumps(json, JSON_INDENT(2));
    _cleanup_close_ int fd = -1;

    if (text == NULL || asprintf(&path, "%s/state.json", folder) < 0 ||
        asprintf(&temporary, "%s/state.new", folder) < 0)
        return error_oom(err);
    fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot create", temporary);
    int r = io_write(fd, temporary, text, strlen(text), err);
    if (r < 0)
        return r;
    if (fsync(fd) < 0)
        return error_set_errno(err, errno, "%s: cannot write to disk", temporary);
    r = io_close_written(take_fd(&fd), temporary, err);
    if (r < 0)
        return r;
    if (rename(temporary, path) < 0)
        return error_set_errno(err, errno, "%s: cannot rename to state.json", temporary);
    return sync_path(folder, err);
}

/* The result's names become what tells that the files are as they are now. */
static json_t *describe_outputs(const struct build *build)
{
    json_t *outputs = json_array();
    const json_t *name;
    size_t i;

    json_array_foreach (json_object_get(build->result, "outputs"), i, name) {
        json_t *output = describe_output(build->work, json_string_value(name));
        if (output == NULL || json_array_append_new(outputs, output) != 0) {
            json_decref(outputs);
            return NULL;
        }
    }
    return outputs;
}

static int sync_filesystem(const char *path, struct error *err)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || syncfs(fd) < 0)
        return error_set_errno(err, errno, "%s: cannot write to disk", path);
    return 0;
}

/* A tree is thousands of files. What an installation took minutes for is written to disk; a tree
 * that was made of it in seconds is rather made again if the machine went down meanwhile: then
 * *ret_boot says until when it counts. */
static int sync_tree(const struct build *build, const struct step *step, json_t **ret_boot,
                     struct error *err)
{
    _cleanup_free_ char *tree = step_path(build, TREE_NAME);
    char boot[BOOT_ID_SIZE];

    if (tree == NULL)
        return error_oom(err);
    if (strcmp(step->type->kind, "install") == 0 || !boot_id(boot))
        return sync_filesystem(tree, err);
    *ret_boot = json_string(boot);
    return *ret_boot != NULL ? 0 : error_oom(err);
}

/* What the step has put into the work directory, and its names there. */
static int sync_outputs(const struct build *build, struct error *err)
{
    const json_t *outputs = json_object_get(build->result, "outputs"), *name;
    size_t i;

    if (json_array_size(outputs) == 0)
        return 0;
    json_array_foreach (outputs, i, name) {
        _cleanup_free_ char *path = build_path(build, json_string_value(name));
        int r = path != NULL ? sync_path(path, err) : error_oom(err);
        if (r < 0)
            return r;
    }
    return sync_path(build->work, err);
}

int step_state_save(const struct build *build, const struct step *step, double seconds,
                    struct error *err)
{
    _cleanup_free_ char *disk = step_path(build, DISK_NAME);
    _cleanup_json_ json_t *json = NULL, *boot = NULL;
    char identity[2 * DIGEST_SIZE + 1];
    const bool has_tree = exists(build->directory, TREE_NAME);
    const bool has_disk = exists(build->directory, DISK_NAME);

    if (disk == NULL)
        return error_oom(err);
    int r = has_disk ? sync_path(disk, err) : 0;
    if (r == 0 && has_tree)
        r = sync_tree(build, step, &boot, err);
    if (r == 0)
        r = sync_outputs(build, err);
    if (r < 0)
        return r;
    json_t *outputs = describe_outputs(build);
    if (outputs == NULL)
        return error_oom(err);
    hex_encode(step->identity, DIGEST_SIZE, identity);
    json =
        json_pack("{s:i, s:s, s:s, s:f, s:b, s:b, s:o, s:O, s:O*}", "version", STATE_VERSION,
                  "step", step->name, "identity", identity, "seconds", seconds, TREE_NAME, has_tree,
                  "disk", has_disk, "outputs", outputs, "result", build->result, "boot", boot);
    if (json == NULL)
        return error_oom(err);
    return write_state(build->directory, json, err);
}
