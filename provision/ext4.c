/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* com_err's function of this name is not ours. */
#define error_message com_err_message
#include <ext2fs/ext2fs.h>
#undef error_message

#include "provision/ext4.h"

/*
 * libext2fs makes inodes, allocates blocks and keeps the bitmaps and checksums. Directories are
 * made here: their entries are gathered in memory and written in one go when all are known, packed
 * from the first block on. Adding them one by one would read every block again for each, and leave
 * gaps.
 */

#define LOST_AND_FOUND 11

struct entry {
    uint32_t inode;
    uint8_t type;
    uint8_t length;
    char name[EXT2_NAME_LEN];
};

/* An open directory. They are closed innermost first, so that they form a stack. */
struct directory {
    uint32_t inode, parent;
    uint32_t subdirectories;
    struct entry *entries;
    size_t count, room;
};

struct ext4 {
    ext2_filsys fs;
    char *path;
    uint32_t now;
    struct directory *open;
    size_t open_count, open_room;
    ext2_file_t file; /* between begin and end */
    uint32_t file_inode;
    char *file_path;
};

static const char *library_message(errcode_t code)
{
    const struct error_table *table = &et_ext2_error_table;

    if (code >= table->base && code < table->base + table->n_msgs)
        return table->msgs[code - table->base];
    return "unknown error of libext2fs";
}

static int fail(struct error *err, errcode_t code, const char *path, const char *what)
{
    if (code == EXT2_ET_BLOCK_ALLOC_FAIL || code == EXT2_ET_INODE_ALLOC_FAIL ||
        code == EXT2_ET_FILE_TOO_BIG)
        return error_set(err, ENOSPC,
                         "%s: the file system is too small for it (no more %s): the disk must be "
                         "larger",
                         path, code == EXT2_ET_INODE_ALLOC_FAIL ? "inodes" : "blocks");
    if (code == EXT2_ET_NO_MEMORY)
        return error_oom(err);
    if (code < EXT2_ET_BASE)
        return error_set_errno(err, (int)code, "%s: %s", path, what);
    return error_set(err, EIO, "%s: %s: %s", path, what, library_message(code));
}

/* --- Open directories --- */

static struct directory *find_open(struct ext4 *ext4, uint32_t inode)
{
    for (size_t i = ext4->open_count; i > 0; i--)
        if (ext4->open[i - 1].inode == inode)
            return &ext4->open[i - 1];
    /* The caller has not opened it: a mistake of ours. */
    abort();
}

static int push_directory(struct ext4 *ext4, uint32_t inode, uint32_t parent, struct error *err)
{
    if (ext4->open_count == ext4->open_room) {
        size_t room = ext4->open_room + 16;
        struct directory *open = realloc(ext4->open, room * sizeof(*open));
        if (open == NULL)
            return error_oom(err);
        ext4->open = open;
        ext4->open_room = room;
    }
    ext4->open[ext4->open_count++] = (struct directory){.inode = inode, .parent = parent};
    return 0;
}

static uint8_t entry_type(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return EXT2_FT_REG_FILE;
    case S_IFDIR:
        return EXT2_FT_DIR;
    case S_IFCHR:
        return EXT2_FT_CHRDEV;
    case S_IFBLK:
        return EXT2_FT_BLKDEV;
    case S_IFIFO:
        return EXT2_FT_FIFO;
    case S_IFSOCK:
        return EXT2_FT_SOCK;
    case S_IFLNK:
        return EXT2_FT_SYMLINK;
    default:
        return EXT2_FT_UNKNOWN;
    }
}

static int add_entry(struct directory *directory, const char *name, uint32_t inode, uint8_t type,
                     const char *path, struct error *err)
{
    const size_t length = strlen(name);

    if (length == 0 || length > EXT2_NAME_LEN)
        return error_set(err, ENAMETOOLONG, "%s: its name is too long", path);
    if (directory->count == directory->room) {
        size_t room = directory->room * 2 + 16;
        struct entry *entries = realloc(directory->entries, room * sizeof(*entries));
        if (entries == NULL)
            return error_oom(err);
        directory->entries = entries;
        directory->room = room;
    }
    struct entry *entry = &directory->entries[directory->count++];
    *entry = (struct entry){.inode = inode, .type = type, .length = (uint8_t)length};
    memcpy(entry->name, name, length);
    return 0;
}

/* --- Inodes --- */

static void fill_inode(struct ext2_inode_large *inode, const struct ext4_attributes *attributes)
{
    *inode = (struct ext2_inode_large){
        .i_mode = (uint16_t)attributes->mode,
        .i_uid = (uint16_t)attributes->uid,
        .i_gid = (uint16_t)attributes->gid,
        .i_atime = attributes->mtime,
        .i_ctime = attributes->mtime,
        .i_mtime = attributes->mtime,
        .i_crtime = attributes->mtime,
        .i_links_count = 1,
        .i_extra_isize = sizeof(struct ext2_inode_large) - EXT2_GOOD_OLD_INODE_SIZE,
    };
    inode->osd2.linux2.l_i_uid_high = (uint16_t)(attributes->uid >> 16);
    inode->osd2.linux2.l_i_gid_high = (uint16_t)(attributes->gid >> 16);
}

/* An inode whose blocks an extent tree tells, so far an empty one. */
static void begin_extents(struct ext2_inode_large *inode)
{
    const struct ext3_extent_header header = {
        .eh_magic = ext2fs_cpu_to_le16(EXT3_EXT_MAGIC),
        .eh_max = ext2fs_cpu_to_le16((sizeof(inode->i_block) - sizeof(header)) /
                                     sizeof(struct ext3_extent)),
    };

    inode->i_flags |= EXT4_EXTENTS_FL;
    memcpy(inode->i_block, &header, sizeof(header));
}

static errcode_t write_inode(struct ext4 *ext4, uint32_t number, struct ext2_inode_large *inode)
{
    return ext2fs_write_inode_full(ext4->fs, number, (struct ext2_inode *)inode, sizeof(*inode));
}

static errcode_t read_inode(struct ext4 *ext4, uint32_t number, struct ext2_inode_large *inode)
{
    return ext2fs_read_inode_full(ext4->fs, number, (struct ext2_inode *)inode, sizeof(*inode));
}

/* Takes a new inode and writes it. */
static int new_inode(struct ext4 *ext4, uint32_t parent, struct ext2_inode_large *inode,
                     const char *path, uint32_t *ret, struct error *err)
{
    ext2_ino_t number;

    errcode_t code = ext2fs_new_inode(ext4->fs, parent, inode->i_mode, NULL, &number);
    if (code != 0)
        return fail(err, code, path, "cannot make an inode");
    ext2fs_inode_alloc_stats2(ext4->fs, number, +1, S_ISDIR(inode->i_mode));
    /* What mke2fs left there may be more than the inode that is written. */
    code = write_inode(ext4, number, inode);
    if (code != 0)
        return fail(err, code, path, "cannot write the inode");
    *ret = number;
    return 0;
}

static int add(struct ext4 *ext4, uint32_t parent, const char *name, struct ext2_inode_large *inode,
               const char *path, uint32_t *ret, struct error *err)
{
    int r = new_inode(ext4, parent, inode, path, ret, err);
    if (r < 0)
        return r;
    return add_entry(find_open(ext4, parent), name, *ret, entry_type(inode->i_mode), path, err);
}

int ext4_add_directory(struct ext4 *ext4, uint32_t parent, const char *name,
                       const struct ext4_attributes *attributes, const char *path,
                       uint32_t *ret_inode, struct error *err)
{
    struct ext2_inode_large inode;

    /* mke2fs made it; it is only told what it is like. */
    if (parent == EXT4_ROOT && strcmp(name, "lost+found") == 0) {
        errcode_t code = read_inode(ext4, LOST_AND_FOUND, &inode);
        if (code != 0)
            return fail(err, code, path, "cannot read the inode");
        *ret_inode = LOST_AND_FOUND;
        return push_directory(ext4, LOST_AND_FOUND, parent, err);
    }
    fill_inode(&inode, attributes);
    begin_extents(&inode);
    inode.i_links_count = 2;
    find_open(ext4, parent)->subdirectories++;
    int r = add(ext4, parent, name, &inode, path, ret_inode, err);
    return r < 0 ? r : push_directory(ext4, *ret_inode, parent, err);
}

/* A target that does not fit into the inode takes a block. */
int ext4_add_link(struct ext4 *ext4, uint32_t parent, const char *name,
                  const struct ext4_attributes *attributes, const char *target, const char *path,
                  uint32_t *ret_inode, struct error *err)
{
    const size_t length = strlen(target);
    struct ext2_inode_large inode;
    blk64_t block = 0;

    fill_inode(&inode, attributes);
    if (length == 0 || length >= ext4->fs->blocksize)
        return error_set(err, ENAMETOOLONG, "%s: a link to %zu bytes", path, length);
    inode.i_size = (uint32_t)length;
    if (length < sizeof(inode.i_block)) {
        memcpy(inode.i_block, target, length);
        return add(ext4, parent, name, &inode, path, ret_inode, err);
    }
    begin_extents(&inode);
    int r = add(ext4, parent, name, &inode, path, ret_inode, err);
    if (r < 0)
        return r;
    _cleanup_free_ char *buffer = calloc(1, ext4->fs->blocksize);
    if (buffer == NULL)
        return error_oom(err);
    memcpy(buffer, target, length);
    errcode_t code = ext2fs_bmap2(ext4->fs, *ret_inode, (struct ext2_inode *)&inode, NULL,
                                  BMAP_ALLOC, 0, NULL, &block);
    if (code == 0)
        code = io_channel_write_blk64(ext4->fs->io, block, 1, buffer);
    if (code == 0)
        code = write_inode(ext4, *ret_inode, &inode);
    return code != 0 ? fail(err, code, path, "cannot write the link") : 0;
}

/* The encoding of Linux: old numbers in the first word, new ones in the second. */
static void set_device(struct ext2_inode_large *inode, dev_t device)
{
    const unsigned high = major(device), low = minor(device);

    if (high < 256 && low < 256)
        inode->i_block[0] = high << 8 | low;
    else
        inode->i_block[1] = (low & 0xff) | high << 8 | (low & ~0xffU) << 12;
}

int ext4_add_special(struct ext4 *ext4, uint32_t parent, const char *name,
                     const struct ext4_attributes *attributes, const char *path,
                     uint32_t *ret_inode, struct error *err)
{
    struct ext2_inode_large inode;

    fill_inode(&inode, attributes);
    if (S_ISCHR(attributes->mode) || S_ISBLK(attributes->mode))
        set_device(&inode, attributes->device);
    return add(ext4, parent, name, &inode, path, ret_inode, err);
}

int ext4_add_name(struct ext4 *ext4, uint32_t parent, const char *name, uint32_t number,
                  const char *path, struct error *err)
{
    struct ext2_inode_large inode;

    errcode_t code = read_inode(ext4, number, &inode);
    if (code == 0 && inode.i_links_count >= EXT2_LINK_MAX)
        return error_set(err, EMLINK, "%s: the file has too many names", path);
    if (code == 0) {
        inode.i_links_count++;
        code = write_inode(ext4, number, &inode);
    }
    if (code != 0)
        return fail(err, code, path, "cannot add a name");
    return add_entry(find_open(ext4, parent), name, number, entry_type(inode.i_mode), path, err);
}

int ext4_set_root(struct ext4 *ext4, const struct ext4_attributes *attributes, struct error *err)
{
    struct ext2_inode_large inode;

    /* Its block was made for mke2fs's entries. */
    errcode_t code = ext2fs_punch(ext4->fs, EXT4_ROOT, NULL, NULL, 0, ~0ULL);
    if (code != 0)
        return fail(err, code, "/", "cannot empty the root directory");
    fill_inode(&inode, attributes);
    begin_extents(&inode);
    inode.i_links_count = 3;
    code = write_inode(ext4, EXT4_ROOT, &inode);
    if (code != 0)
        return fail(err, code, "/", "cannot write the inode");
    int r = push_directory(ext4, EXT4_ROOT, EXT4_ROOT, err);
    if (r < 0)
        return r;
    find_open(ext4, EXT4_ROOT)->subdirectories = 1;
    return add_entry(find_open(ext4, EXT4_ROOT), "lost+found", LOST_AND_FOUND, EXT2_FT_DIR, "/",
                     err);
}

/* --- Attributes --- */

int ext4_set_xattr(struct ext4 *ext4, uint32_t inode, const char *name, const void *value,
                   size_t length, bool raw, const char *path, struct error *err)
{
    struct ext2_xattr_handle *handle;
    unsigned flags = raw ? XATTR_HANDLE_FLAG_RAW : 0;

    errcode_t code = ext2fs_xattrs_open(ext4->fs, inode, &handle);
    if (code != 0)
        return fail(err, code, path, "cannot set attributes");
    code = ext2fs_xattrs_flags(handle, &flags, NULL);
    if (code == 0)
        code = ext2fs_xattrs_read(handle);
    if (code == 0)
        code = ext2fs_xattr_set(handle, name, value, length);
    errcode_t closed = ext2fs_xattrs_close(&handle);
    if (code == 0)
        code = closed;
    return code != 0 ? fail(err, code, path, name) : 0;
}

/* --- Regular files --- */

int ext4_begin_file(struct ext4 *ext4, uint32_t parent, const char *name,
                    const struct ext4_attributes *attributes, const char *path, uint32_t *ret_inode,
                    struct error *err)
{
    struct ext2_inode_large inode;

    assert(ext4->file_path == NULL);
    fill_inode(&inode, attributes);
    begin_extents(&inode);
    int r = add(ext4, parent, name, &inode, path, ret_inode, err);
    if (r < 0)
        return r;
    ext4->file_inode = *ret_inode;
    ext4->file_path = strdup(path);
    return ext4->file_path != NULL ? 0 : error_oom(err);
}

static bool is_zero(const void *bytes, size_t length)
{
    const char *p = bytes;

    return length == 0 || (p[0] == 0 && memcmp(p, p + 1, length - 1) == 0);
}

static int write_run(struct ext4 *ext4, uint64_t offset, const char *bytes, size_t length,
                     struct error *err)
{
    errcode_t code = 0;

    if (ext4->file == NULL)
        code = ext2fs_file_open(ext4->fs, ext4->file_inode, EXT2_FILE_WRITE, &ext4->file);
    if (code == 0)
        code = ext2fs_file_llseek(ext4->file, offset, EXT2_SEEK_SET, NULL);
    while (code == 0 && length > 0) {
        const unsigned chunk = length > 1 << 20 ? 1 << 20 : (unsigned)length;
        unsigned written = 0;
        code = ext2fs_file_write(ext4->file, bytes, chunk, &written);
        bytes += written;
        length -= written;
    }
    return code != 0 ? fail(err, code, ext4->file_path, "cannot write the file") : 0;
}

/* Only blocks that hold something else than zeros are written. */
int ext4_write_file(struct ext4 *ext4, uint64_t offset, const void *bytes, size_t length,
                    struct error *err)
{
    const size_t block = ext4->fs->blocksize;
    const char *p = bytes;
    size_t begin = 0, done = 0;
    int r = 0;

    while (r == 0 && done < length) {
        size_t piece = block - (offset + done) % block;
        if (piece > length - done)
            piece = length - done;
        if (is_zero(p + done, piece)) {
            if (begin < done)
                r = write_run(ext4, offset + begin, p + begin, done - begin, err);
            begin = done + piece;
        }
        done += piece;
    }
    if (r == 0 && begin < done)
        r = write_run(ext4, offset + begin, p + begin, done - begin, err);
    return r;
}

int ext4_end_file(struct ext4 *ext4, uint64_t size, struct error *err)
{
    struct ext2_inode_large inode;
    errcode_t code = 0;
    int r = 0;

    if (ext4->file != NULL)
        code = ext2fs_file_close(ext4->file);
    ext4->file = NULL;
    /* The size as it is told: the last blocks may be holes. And libext2fs touches the times. */
    if (code == 0)
        code = read_inode(ext4, ext4->file_inode, &inode);
    if (code == 0)
        code = ext2fs_inode_size_set(ext4->fs, (struct ext2_inode *)&inode, (ext2_off64_t)size);
    inode.i_mtime = inode.i_ctime = inode.i_atime = inode.i_crtime;
    if (code == 0)
        code = write_inode(ext4, ext4->file_inode, &inode);
    if (code != 0)
        r = fail(err, code, ext4->file_path, "cannot write the file");
    cleanup_free(&ext4->file_path);
    return r;
}

/* --- Writing directories --- */

struct packer {
    struct ext4 *ext4;
    const char *path;
    struct ext2_inode_large inode;
    uint32_t number;
    char *buffer; /* the block being filled */
    size_t used;
    size_t last; /* where the last entry begins */
    size_t end;  /* where entries must end: a checksum may stand behind them */
    blk64_t count;
};

/* The last entry reaches to the block's end. */
static int flush_block(struct packer *packer, struct error *err)
{
    ext2_filsys fs = packer->ext4->fs;
    blk64_t block = 0;

    struct ext2_dir_entry *last = (struct ext2_dir_entry *)(packer->buffer + packer->last);
    errcode_t code = ext2fs_set_rec_len(fs, (unsigned)(packer->end - packer->last), last);
    if (code == 0 && packer->end < fs->blocksize)
        ext2fs_initialize_dirent_tail(fs, EXT2_DIRENT_TAIL(packer->buffer, fs->blocksize));
    if (code == 0)
        code = ext2fs_bmap2(fs, packer->number, (struct ext2_inode *)&packer->inode, NULL,
                            BMAP_ALLOC, packer->count, NULL, &block);
    if (code == 0)
        code = ext2fs_write_dir_block4(fs, block, packer->buffer, 0, packer->number);
    if (code != 0)
        return fail(err, code, packer->path, "cannot write the directory");
    memset(packer->buffer, 0, fs->blocksize);
    packer->used = packer->last = 0;
    packer->count++;
    return 0;
}

static int pack(struct packer *packer, const char *name, size_t length, uint32_t inode,
                uint8_t type, struct error *err)
{
    const size_t size = EXT2_DIR_REC_LEN((uint8_t)length);

    if (packer->used + size > packer->end) {
        int r = flush_block(packer, err);
        if (r < 0)
            return r;
    }
    struct ext2_dir_entry *entry = (struct ext2_dir_entry *)(packer->buffer + packer->used);
    entry->inode = inode;
    ext2fs_dirent_set_name_len(entry, (int)length);
    ext2fs_dirent_set_file_type(entry, type);
    memcpy(entry->name, name, length);
    (void)ext2fs_set_rec_len(packer->ext4->fs, (unsigned)size, entry);
    packer->last = packer->used;
    packer->used += size;
    return 0;
}

static int write_directory(struct ext4 *ext4, const struct directory *directory, const char *path,
                           struct error *err)
{
    ext2_filsys fs = ext4->fs;
    const bool checksums = ext2fs_has_feature_metadata_csum(fs->super);
    _cleanup_free_ char *buffer = calloc(1, fs->blocksize);
    struct packer packer = {
        .ext4 = ext4,
        .path = path,
        .number = directory->inode,
        .buffer = buffer,
        .end = fs->blocksize - (checksums ? sizeof(struct ext2_dir_entry_tail) : 0),
    };

    if (buffer == NULL)
        return error_oom(err);
    errcode_t code = read_inode(ext4, directory->inode, &packer.inode);
    if (code != 0)
        return fail(err, code, path, "cannot read the inode");
    int r = pack(&packer, ".", 1, directory->inode, EXT2_FT_DIR, err);
    if (r == 0)
        r = pack(&packer, "..", 2, directory->parent, EXT2_FT_DIR, err);
    for (size_t i = 0; r == 0 && i < directory->count; i++) {
        const struct entry *entry = &directory->entries[i];
        r = pack(&packer, entry->name, entry->length, entry->inode, entry->type, err);
    }
    if (r == 0)
        r = flush_block(&packer, err);
    if (r < 0)
        return r;
    packer.inode.i_links_count = directory->subdirectories + 2 >= EXT2_LINK_MAX
                                     ? 1
                                     : (uint16_t)(directory->subdirectories + 2);
    code = ext2fs_inode_size_set(fs, (struct ext2_inode *)&packer.inode,
                                 (ext2_off64_t)(packer.count * fs->blocksize));
    packer.inode.i_mtime = packer.inode.i_ctime = packer.inode.i_atime = packer.inode.i_crtime;
    if (code == 0)
        code = write_inode(ext4, directory->inode, &packer.inode);
    return code != 0 ? fail(err, code, path, "cannot write the inode") : 0;
}

int ext4_close_directory(struct ext4 *ext4, uint32_t inode, const char *path, struct error *err)
{
    struct directory *directory = &ext4->open[ext4->open_count - 1];
    int r = 0;

    assert(ext4->open_count > 0 && directory->inode == inode);
    /* mke2fs's has room for what fsck finds, which nobody shall put there. */
    if (inode != LOST_AND_FOUND)
        r = write_directory(ext4, directory, path, err);
    free(directory->entries);
    ext4->open_count--;
    return r;
}

/* --- Beginning and end --- */

int ext4_open(const char *path, uint64_t offset, uint32_t now, struct ext4 **ret, struct error *err)
{
    _cleanup_(ext4_free_cleanup) struct ext4 *ext4 = calloc(1, sizeof(*ext4));
    char options[48];

    if (ext4 == NULL)
        return error_oom(err);
    ext4->now = now;
    ext4->path = strdup(path);
    if (ext4->path == NULL)
        return error_oom(err);
    snprintf(options, sizeof(options), "offset=%llu", (unsigned long long)offset);
    errcode_t code = ext2fs_open2(path, options, EXT2_FLAG_RW | EXT2_FLAG_64BITS, 0, 0,
                                  unix_io_manager, &ext4->fs);
    if (code != 0)
        return fail(err, code, path, "cannot open the new file system");
    ext4->fs->now = (time_t)now;
    code = ext2fs_read_bitmaps(ext4->fs);
    if (code != 0)
        return fail(err, code, path, "cannot read the bitmaps");
    ext4->fs->super->s_state &= (uint16_t)~EXT2_VALID_FS;
    *ret = TAKE_PTR(ext4);
    return 0;
}

void ext4_free(struct ext4 *ext4)
{
    if (ext4->file != NULL)
        (void)ext2fs_file_close(ext4->file);
    if (ext4->fs != NULL)
        ext2fs_free(ext4->fs);
    for (size_t i = 0; i < ext4->open_count; i++)
        free(ext4->open[i].entries);
    free(ext4->open);
    free(ext4->file_path);
    free(ext4->path);
    free(ext4);
}

/* The times of what mke2fs made by itself: journal, resize inode, lost+found. */
static errcode_t set_reserved_times(struct ext4 *ext4)
{
    struct ext2_inode_large inode;

    for (uint32_t number = 1; number <= LOST_AND_FOUND; number++) {
        errcode_t code = read_inode(ext4, number, &inode);
        if (code != 0)
            return code;
        if (number == EXT4_ROOT || inode.i_links_count == 0)
            continue;
        inode.i_atime = inode.i_ctime = inode.i_mtime = inode.i_crtime = ext4->now;
        inode.i_atime_extra = inode.i_ctime_extra = inode.i_mtime_extra = inode.i_crtime_extra = 0;
        code = write_inode(ext4, number, &inode);
        if (code != 0)
            return code;
    }
    return 0;
}

int ext4_finish(struct ext4 *ext4, struct error *err)
{
    struct ext2_super_block *super = ext4->fs->super;

    assert(ext4->open_count == 0 && ext4->file_path == NULL);
    errcode_t code = set_reserved_times(ext4);
    if (code != 0)
        return fail(err, code, ext4->path, "cannot write an inode");
    super->s_state |= EXT2_VALID_FS;
    super->s_mkfs_time = super->s_lastcheck = super->s_wtime = ext4->now;
    super->s_mtime = 0;
    super->s_kbytes_written = 0;
    code = ext2fs_close_free(&ext4->fs);
    return code != 0 ? fail(err, code, ext4->path, "cannot write the file system") : 0;
}
