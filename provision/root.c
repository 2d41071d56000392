/* SPDX-License-Identifier: MIT */
#include "provision/root.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Headers older than the kernels that we run on. */
#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif
#ifndef MOVE_MOUNT_F_EMPTY_PATH
#define MOVE_MOUNT_F_EMPTY_PATH 4
#endif

#define RESOLV_CONF "/etc/resolv.conf"
#define POLICY "/usr/sbin/policy-rc.d"

/* All paths are looked up after chroot(), so that no link in the tree leads out of it. */
static int make_devices(const char **ret_failed)
{
    static const struct {
        const char *path;
        unsigned minor;
    } nodes[] = {
        {"/dev/null", 3},   {"/dev/zero", 5},    {"/dev/full", 7},
        {"/dev/random", 8}, {"/dev/urandom", 9},
    };
    static const struct {
        const char *path, *target;
    } links[] = {
        {"/dev/fd", "/proc/self/fd"},       {"/dev/stdin", "/proc/self/fd/0"},
        {"/dev/stdout", "/proc/self/fd/1"}, {"/dev/stderr", "/proc/self/fd/2"},
        {"/dev/ptmx", "pts/ptmx"},
    };

    *ret_failed = "cannot make /dev in the tree";
    if (mount("dev", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=64m") < 0)
        return -1;
    (void)umask(0);
    for (size_t i = 0; i < sizeof(nodes) / sizeof(nodes[0]); i++)
        if (mknod(nodes[i].path, S_IFCHR | 0666, makedev(1, nodes[i].minor)) < 0)
            return -1;
    if (mknod("/dev/tty", S_IFCHR | 0666, makedev(5, 0)) < 0)
        return -1;
    for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++)
        if (symlink(links[i].target, links[i].path) < 0)
            return -1;
    if (mkdir("/dev/pts", 0755) < 0 || mkdir("/dev/shm", 01777) < 0 ||
        mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
              "newinstance,ptmxmode=0666,mode=620") < 0 ||
        mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777") < 0)
        return -1;
    (void)umask(022);
    *ret_failed = NULL;
    return 0;
}

/* Shows `servers` (a detached mount of the host's file) in place of the tree's. A link, as
 * systemd-resolved makes it, is left alone: what it leads to is not there. */
static void show_resolv_conf(int servers, struct root_state *state)
{
    struct stat st;

    if (servers < 0)
        return;
    if (lstat(RESOLV_CONF, &st) < 0) {
        int fd = open(RESOLV_CONF, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0)
            return;
        close(fd);
        state->made_resolv_conf = true;
    } else if (!S_ISREG(st.st_mode)) {
        return;
    }
    (void)syscall(SYS_move_mount, servers, "", AT_FDCWD, RESOLV_CONF, MOVE_MOUNT_F_EMPTY_PATH);
}

/* invoke-rc.d(8) asks this program whether a service may be started. */
static void forbid_services(struct root_state *state)
{
    static const char script[] = "#!/bin/sh\nexit 101\n";

    int fd = open(POLICY, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
    if (fd < 0)
        return;
    state->made_policy = write(fd, script, sizeof(script) - 1) == sizeof(script) - 1;
    close(fd);
}

int root_enter(const char *path, bool visits, struct root_state *ret, const char **ret_failed)
{
    int servers = (int)syscall(SYS_open_tree, AT_FDCWD, RESOLV_CONF, OPEN_TREE_CLONE);

    *ret_failed = "cannot enter the tree";
    if (chdir(path) < 0 || chroot(".") < 0 || chdir("/") < 0)
        return -1;
    *ret_failed = "cannot mount /proc in the tree";
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        return -1;
    *ret_failed = "cannot mount /sys in the tree";
    if (mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, NULL) < 0)
        return -1;
    if (make_devices(ret_failed) < 0)
        return -1;
    if (!visits) {
        show_resolv_conf(servers, ret);
        forbid_services(ret);
    }
    if (servers >= 0)
        close(servers);
    return 0;
}

void root_leave(const struct root_state *state)
{
    if (state->made_resolv_conf) {
        (void)umount2(RESOLV_CONF, MNT_DETACH);
        (void)unlink(RESOLV_CONF);
    }
    if (state->made_policy)
        (void)unlink(POLICY);
}
