/* SPDX-License-Identifier: MIT */
#include "provision/disk.h"

#include <fcntl.h>
#include <string.h>

#include "qemuctl/argv.h"

/* What ext4 can do since Linux 3.18; told here so that no mke2fs.conf of this machine decides, in
 * whose place CONFIGURATION is. The journal is small: what is sealed is never written to, and what
 * is set up does not need more. */
#define FEATURES                                                                                   \
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super," \
    "large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
#define CONFIGURATION "[fs_types]\n\text4 = {\n\t\tinode_size = 256\n\t}\n"
#define BLOCK_SIZE 4096
#define BYTES_PER_INODE 16384
#define JOURNAL_MIN 4
#define JOURNAL_MAX 64
#define MIB (UINT64_C(1024) * 1024)

/* --- UUIDs --- */

void recipe_uuid(const struct recipe *recipe, const char *use, uint8_t ret[static 16])
{
    _cleanup_(digest_free_cleanup) struct digest *digest = NULL;
    uint8_t bytes[DIGEST_SIZE] = {0};

    if (digest_new(&digest, NULL) == 0) {
        digest_text(digest, "qverity uuid");
        digest_text(digest, recipe->name);
        digest_text(digest, use);
        (void)digest_end(digest, bytes, NULL);
    }
    memcpy(ret, bytes, 16);
    ret[6] = (uint8_t)((ret[6] & 0x0f) | 0x80); /* version 8: whatever its maker likes */
    ret[8] = (uint8_t)((ret[8] & 0x3f) | 0x80);
}

void uuid_text(const uint8_t uuid[static 16], char ret[static UUID_TEXT_SIZE])
{
    char *p = ret;

    for (size_t i = 0; i < 16; i++)
        p += sprintf(p, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
}

/* --- Partition table and EFI --- */

static const char *type_guid(enum partition_type type)
{
    static const char *const guids[] = {
        [PARTITION_EFI] = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
        [PARTITION_ROOT] = "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
    };

    return guids[type];
}

static int make_table(struct build *build, const struct disk_layout *layout, const char *raw,
                      struct error *err)
{
    _cleanup_free_ char *script = NULL;
    char use[32], text[UUID_TEXT_SIZE];
    uint8_t uuid[16];
    size_t length;

    _cleanup_fclose_ FILE *file = open_memstream(&script, &length);
    if (file == NULL)
        return error_oom(err);
    recipe_uuid(build->recipe, "disk", uuid);
    uuid_text(uuid, text);
    fprintf(file, "label: gpt\nlabel-id: %s\nfirst-lba: 2048\nunit: sectors\n", text);
    for (size_t i = 0; i < layout->count; i++) {
        const struct disk_partition *partition = &layout->partitions[i];
        snprintf(use, sizeof(use), "partition %zu", i + 1);
        recipe_uuid(build->recipe, use, uuid);
        uuid_text(uuid, text);
        fprintf(file, "start=%llu, size=%llu, type=%s, uuid=%s, name=\"%s\"\n",
                (unsigned long long)partition->start / 512,
                (unsigned long long)partition->size / 512, type_guid(partition->type), text,
                partition->label);
    }
    if (fflush(file) != 0)
        return error_oom(err);
    char *const argv[] = {(char *)"sfdisk",           (char *)"--quiet", (char *)"--no-reread",
                          (char *)"--no-tell-kernel", (char *)raw,       NULL};
    return build_exec_command(build, &(struct build_command){.argv = argv, .text = script}, err);
}

static int make_efi(struct build *build, const struct disk_partition *partition, const char *raw,
                    struct error *err)
{
    _cleanup_argv_ struct argv argv = ARGV_INIT;

    argv_add(&argv, "mkfs.vfat");
    argv_add(&argv, "--invariant");
    argv_add(&argv, "-F");
    argv_add(&argv, "32");
    argv_add(&argv, "-s");
    argv_add(&argv, "1");
    argv_add(&argv, "-n");
    argv_add(&argv, "EFI");
    argv_addf(&argv, "--offset=%llu", (unsigned long long)partition->start / 512);
    argv_add(&argv, raw);
    argv_addf(&argv, "%llu", (unsigned long long)partition->size / 1024);
    int r = argv_check(&argv, err);
    return r < 0 ? r : build_exec(build, argv.items, err);
}

/* --- File systems --- */

static int make_filesystem(struct build *build, const struct disk_filesystem *filesystem,
                           uint64_t files, struct error *err)
{
    _cleanup_argv_ struct argv argv = ARGV_INIT, environment = ARGV_INIT;
    char uuid[UUID_TEXT_SIZE], seed[UUID_TEXT_SIZE];
    const unsigned long long epoch = (unsigned long long)build->recipe->epoch;
    uint64_t journal = filesystem->size / MIB / 128, inodes = filesystem->size / BYTES_PER_INODE;

    uuid_text(filesystem->uuid, uuid);
    uuid_text(filesystem->hash_seed, seed);
    journal = journal < JOURNAL_MIN ? JOURNAL_MIN : journal > JOURNAL_MAX ? JOURNAL_MAX : journal;
    /* Some of them for whoever sets the system up in a guest. */
    if (inodes < files + files / 4 + 64)
        inodes = files + files / 4 + 64;
    argv_add(&argv, "mke2fs");
    argv_add(&argv, "-q");
    argv_add(&argv, "-F");
    argv_add(&argv, "-t");
    argv_add(&argv, "ext4");
    argv_add(&argv, "-O");
    argv_add(&argv, FEATURES);
    argv_add(&argv, "-b");
    argv_addf(&argv, "%d", BLOCK_SIZE);
    argv_add(&argv, "-I");
    argv_add(&argv, "256");
    argv_add(&argv, "-m");
    argv_add(&argv, "0");
    argv_add(&argv, "-o");
    argv_add(&argv, "Linux");
    argv_add(&argv, "-J");
    argv_addf(&argv, "size=%llu", (unsigned long long)journal);
    argv_add(&argv, "-N");
    argv_addf(&argv, "%llu", (unsigned long long)inodes);
    argv_add(&argv, "-U");
    argv_add(&argv, uuid);
    if (filesystem->label != NULL) {
        argv_add(&argv, "-L");
        argv_add(&argv, filesystem->label);
    }
    argv_add(&argv, "-E");
    argv_addf(&argv,
              "hash_seed=%s,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,offset=%llu",
              seed, (unsigned long long)filesystem->offset);
    argv_add(&argv, filesystem->path);
    argv_addf(&argv, "%lluk", (unsigned long long)filesystem->size / 1024);

    argv_addf(&environment, "PATH=%s",
              getenv("PATH") != NULL ? getenv("PATH") : "/usr/sbin:/usr/bin:/sbin:/bin");
    argv_add(&environment, "LC_ALL=C");
    argv_add(&environment, "MKE2FS_CONFIG=/dev/stdin");
    argv_addf(&environment, "E2FSPROGS_FAKE_TIME=%llu", epoch);
    argv_addf(&environment, "SOURCE_DATE_EPOCH=%llu", epoch);
    int r = argv_check(&argv, err);
    if (r == 0)
        r = argv_check(&environment, err);
    if (r < 0)
        return r;
    const struct build_command command = {
        .argv = argv.items, .environment = environment.items, .text = CONFIGURATION};
    return build_exec_command(build, &command, err);
}

/* Another program's opinion of what was written. */
static int check_filesystem(struct build *build, const struct disk_filesystem *filesystem,
                            struct error *err)
{
    _cleanup_free_ char *name = NULL;

    if (asprintf(&name, "%s?offset=%llu", filesystem->path,
                 (unsigned long long)filesystem->offset) < 0)
        return error_oom(err);
    char *const argv[] = {(char *)"e2fsck", (char *)"-f", (char *)"-n", name, NULL};
    int r = build_exec(build, argv, err);
    return r < 0 ? error_prefix(err, "the new file system is not whole") : 0;
}

static int interrupted(void *arg, struct error *err)
{
    return build_interrupted(arg, err);
}

int disk_fill(struct build *build, const struct disk_filesystem *filesystem, struct source *source,
              const struct filter *filter, struct error *err)
{
    _cleanup_(ext4_free_cleanup) struct ext4 *ext4 = NULL;
    struct copy_options options = {
        .source = source,
        .filter = filter,
        .epoch = (uint32_t)build->recipe->epoch,
        .interrupted = interrupted,
        .arg = build,
    };
    uint64_t files, bytes;

    int r = source_count(&options, &files, &bytes, err);
    if (r == 0)
        r = make_filesystem(build, filesystem, files, err);
    if (r == 0)
        r = ext4_open(filesystem->path, filesystem->offset, options.epoch, &ext4, err);
    if (r < 0)
        return r;
    options.ext4 = ext4;
    r = source_copy(&options, &files, err);
    if (r == 0)
        r = ext4_finish(ext4, err);
    if (r < 0)
        return r;
    build_say(build, "%llu files", (unsigned long long)files);
    return check_filesystem(build, filesystem, err);
}

/* --- Images --- */

int disk_overlay(struct build *build, const char *base, const char *base_format, uint64_t size,
                 const char *path, struct error *err)
{
    _cleanup_argv_ struct argv argv = ARGV_INIT;

    argv_add(&argv, "qemu-img");
    argv_add(&argv, "create");
    argv_add(&argv, "-q");
    argv_add(&argv, "-f");
    argv_add(&argv, "qcow2");
    argv_add(&argv, "-b");
    argv_add(&argv, base);
    argv_add(&argv, "-F");
    argv_add(&argv, base_format);
    argv_add(&argv, path);
    if (size != 0)
        argv_addf(&argv, "%llu", (unsigned long long)size);
    int r = argv_check(&argv, err);
    return r < 0 ? r : build_exec(build, argv.items, err);
}

int disk_convert(struct build *build, const char *raw, const char *compress, const char *path,
                 struct error *err)
{
    _cleanup_argv_ struct argv argv = ARGV_INIT;
    _cleanup_free_ char *temporary = NULL;

    if (asprintf(&temporary, "%s.new", path) < 0)
        return error_oom(err);
    argv_add(&argv, "qemu-img");
    argv_add(&argv, "convert");
    argv_add(&argv, "-q");
    argv_add(&argv, "-f");
    argv_add(&argv, "raw");
    argv_add(&argv, "-O");
    argv_add(&argv, "qcow2");
    if (compress != NULL) {
        argv_add(&argv, "-c");
        argv_add(&argv, "-o");
        argv_addf(&argv, "compression_type=%s", compress);
    }
    argv_add(&argv, raw);
    argv_add(&argv, temporary);
    int r = argv_check(&argv, err);
    if (r == 0)
        r = build_exec(build, argv.items, err);
    if (r == 0 && rename(temporary, path) < 0)
        r = error_set_errno(err, errno, "%s: cannot rename", temporary);
    (void)unlink(r < 0 ? temporary : raw);
    return r;
}

static int make_blank(const char *path, uint64_t size, struct error *err)
{
    _cleanup_close_ int fd =
        open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot create", path);
    if (ftruncate(fd, (off_t)size) < 0)
        return error_set_errno(err, errno, "%s: cannot make it %llu bytes long", path,
                               (unsigned long long)size);
    return 0;
}

int disk_make(struct build *build, const struct disk_contents *contents, const char *path,
              struct error *err)
{
    const struct disk_layout *layout = contents->layout;
    const struct disk_partition *root = &layout->partitions[layout->root];
    _cleanup_free_ char *raw = step_path(build, "disk.raw");
    uint8_t uuid[16], seed[16];

    if (raw == NULL)
        return error_oom(err);
    recipe_uuid(build->recipe, "root file system", uuid);
    recipe_uuid(build->recipe, "hash seed", seed);
    const struct disk_filesystem filesystem = {
        .path = raw,
        .offset = root->start,
        .size = root->size,
        .uuid = uuid,
        .hash_seed = seed,
        .label = root->label,
    };
    int r = make_blank(raw, layout->size, err);
    if (r == 0)
        r = make_table(build, layout, raw, err);
    for (size_t i = 0; r == 0 && i < layout->count; i++)
        if (layout->partitions[i].type == PARTITION_EFI)
            r = make_efi(build, &layout->partitions[i], raw, err);
    if (r == 0)
        r = disk_fill(build, &filesystem, contents->source, contents->filter, err);
    if (r == 0)
        r = disk_convert(build, raw, contents->compress, path, err);
    return r;
}
