/* SPDX-License-Identifier: MIT */
#include "image/ext-internal.h"

/* Extended attributes, as libext2fs reads them: it checks that names and values lie within the
 * inode or the block that has them. */

struct taking {
    file_take_xattr *take;
    void *arg;
    struct error *err;
    int result;
};

static int take_one(char *name, char *value, size_t length, void *arg)
{
    struct taking *taking = arg;

    taking->result = taking->take(taking->arg, name, value, length, taking->err);
    return taking->result != 0 ? XATTR_ABORT : 0;
}

int file_node_xattrs(struct file_node *node, file_take_xattr *take, void *arg, struct error *err)
{
    struct taking taking = {.take = take, .arg = arg, .err = err};
    const uint32_t inode = node->info.inode;
    struct ext2_xattr_handle *handle;
    unsigned raw = XATTR_HANDLE_FLAG_RAW;

    errcode_t code = ext2fs_xattrs_open(node->fs->ext, inode, &handle);
    if (code == EXT2_ET_MISSING_EA_FEATURE)
        return 0;
    if (code != 0)
        return ext_error(node->fs, code, err, "inode %u: its attributes", inode);
    code = ext2fs_xattrs_flags(handle, &raw, NULL);
    if (code == 0)
        code = ext2fs_xattrs_read(handle);
    if (code == 0)
        code = ext2fs_xattrs_iterate(handle, take_one, &taking);
    (void)ext2fs_xattrs_close(&handle);
    if (taking.result != 0)
        return taking.result;
    return code != 0 ? ext_error(node->fs, code, err, "inode %u: its attributes", inode) : 0;
}
