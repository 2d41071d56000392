/* SPDX-License-Identifier: MIT */
/*
 * A mount without a place. The kernel's mount API (fsopen(2), Linux 5.2) makes a mount that is in
 * nobody's directory tree: there is a descriptor of its root directory, and the mount goes when the
 * last process that has this descriptor, or a file that was opened through it, is gone. So nothing
 * can be left behind, whatever dies first.
 *
 * That takes CAP_SYS_ADMIN where the process has its mounts. Who lacks it may get it in a user
 * namespace of its own, with a mount namespace; there each user is called what he is called
 * outside, and others may open files through the descriptor as they could in a mount by
 * fusermount3. /dev/fuse has to be opened, and its descriptors cloned, in the same user namespace
 * as the mount is made in; so the process stays there. But in it, fusermount3 could not do
 * anything: before the process goes in, a child of it tries whether it will come to a mount there
 * (AppArmor and seccomp filters forbid this or that of it).
 */
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "fs/internal.h"

/* fsconfig() takes strings of up to this length with the NUL. */
#define CONFIG_STRING_MAX 256

static int config(int fs, unsigned command, const char *key, const char *value)
{
    return (int)syscall(SYS_fsconfig, fs, command, key, value, 0);
}

static int config_number(int fs, const char *key, unsigned value)
{
    char text[16];

    snprintf(text, sizeof(text), "%u", value);
    return config(fs, FSCONFIG_SET_STRING, key, text);
}

/* Mounts with the privileges that there are. */
static int mount_here(const struct fs_detached_options *options, int *ret_device, int *ret_root,
                      struct error *err)
{
    _cleanup_close_ int device = -1, context = -1;
    char source[CONFIG_STRING_MAX];

    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return error_set_errno(err, errno, "/dev/fuse");
    context = (int)syscall(SYS_fsopen, "fuse", FSOPEN_CLOEXEC);
    if (context < 0)
        return error_set_errno(err, errno, "fsopen");
    /* Shown in lists of mounts, which this one is in none of. */
    snprintf(source, sizeof(source), "%s", options->source);
    if (config_number(context, "fd", (unsigned)device) < 0 ||
        config(context, FSCONFIG_SET_STRING, "rootmode", "40000") < 0 ||
        config_number(context, "user_id", options->uid) < 0 ||
        config_number(context, "group_id", options->gid) < 0 ||
        config_number(context, "max_read", options->max_read) < 0 ||
        config(context, FSCONFIG_SET_FLAG, "default_permissions", NULL) < 0 ||
        config(context, FSCONFIG_SET_STRING, "subtype", "qverity") < 0 ||
        config(context, FSCONFIG_SET_STRING, "source", source) < 0 ||
        (options->read_only && config(context, FSCONFIG_SET_FLAG, "ro", NULL) < 0) ||
        config(context, FSCONFIG_CMD_CREATE, NULL, NULL) < 0)
        return error_set_errno(err, errno, "fsconfig");
    const unsigned attributes =
        MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (options->read_only ? MOUNT_ATTR_RDONLY : 0);
    int root = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes);
    if (root < 0)
        return error_set_errno(err, errno, "fsmount");
    *ret_device = take_fd(&device);
    *ret_root = root;
    return 0;
}

static int write_text(const char *path, const char *text, struct error *err)
{
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", path);
    return io_write(fd, path, text, strlen(text), err);
}

static int enter_namespaces(const struct fs_detached_options *options, struct error *err)
{
    char users[32], groups[32];

    snprintf(users, sizeof(users), "%u %u 1", options->uid, options->uid);
    snprintf(groups, sizeof(groups), "%u %u 1", options->gid, options->gid);
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
        return error_set_errno(err, errno, "unshare");
    /* Without it nobody but root may map groups (user_namespaces(7)). */
    int r = write_text("/proc/self/setgroups", "deny", err);
    if (r == 0)
        r = write_text("/proc/self/uid_map", users, err);
    if (r == 0)
        r = write_text("/proc/self/gid_map", groups, err);
    return r;
}

static int enter_and_mount(const struct fs_detached_options *options, int *ret_device,
                           int *ret_root, struct error *err)
{
    int r = enter_namespaces(options, err);

    return r < 0 ? error_prefix(err, "in a user namespace")
                 : mount_here(options, ret_device, ret_root, err);
}

/* The answer is the child's exit status: an errno value. */
static int try_in_child(const struct fs_detached_options *options, struct error *err)
{
    int device, root, status;

    pid_t pid = fork();
    if (pid < 0)
        return error_set_errno(err, errno, "fork");
    if (pid == 0) {
        int r = enter_and_mount(options, &device, &root, NULL);
        _exit(-r > 255 ? EIO : -r);
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return error_set_errno(err, errno, "waitpid");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return error_set_errno(err, WIFEXITED(status) ? WEXITSTATUS(status) : EIO,
                               "in a user namespace");
    return 0;
}

int fs_detached_open(const struct fs_detached_options *options, int *ret_device, int *ret_root,
                     struct error *err)
{
    int r = mount_here(options, ret_device, ret_root, err);

    if (r != -EPERM)
        return r;
    r = try_in_child(options, err);
    if (r < 0)
        return r;
    error_clear(err);
    return enter_and_mount(options, ret_device, ret_root, err);
}
