/* SPDX-License-Identifier: MIT */
#pragma once

#include "cli/cli.h"
#include "image/files.h"

/*
 * The kernel and the initial RAM disk that a guest is booted with, for every command that has
 * --kernel and --initrd: files of the host, or of the image that is booted, "image:/PATH", which
 * are read without mounting it.
 *
 * image:/PATH is a path on the data partition, or else on another partition with an ext file
 * system, where a path that begins with /boot may also lack that (a partition that is mounted
 * there).
 */
struct guest_file {
    char *name; /* for messages: a path of the host, or image:/PATH */
    char *path; /* for a program to open that inherits our descriptors */
    int fd;     /* open for reading; or -1 if it was only looked for */
};

#define GUEST_FILE_INIT ((struct guest_file){.fd = -1})

void guest_file_clear(struct guest_file *file);
DEFINE_CLEANUP_INPLACE(struct guest_file, guest_file_clear);
#define _cleanup_guest_file_ _cleanup_(guest_file_clear_cleanup)

/* Whether a value of --kernel or --initrd means a file of the image. */
bool guest_file_is_inside(const char *value);

enum {
    /* Files of the image are looked for but not copied: `path` is image:/PATH then, and fd -1. */
    GUEST_FILE_LOOK = 1 << 0,
};

/*
 * Opens what --kernel and --initrd say; NULL if they are not given.
 *
 * Without --kernel it is the newest one in /boot of the data partition, or else on another
 * partition with an ext file system, in its /boot or its root: vmlinuz-VERSION by the order of
 * versions, without those that are kept for rescue, then what the links /boot/vmlinuz and /vmlinuz
 * lead to. Without
 * --initrd a kernel out of the image gets the one that has its version, if there is any; a kernel
 * of the host gets none. "none" means no initrd.
 *
 * A file of the image is copied to a sealed file in memory, which is gone with the last process
 * that has its descriptor; that is inherited by what is executed. `target` may be NULL when there
 * is no image; then a file of the host must be given. A file that is not there is left as
 * GUEST_FILE_INIT: the initrd's, when there is none.
 *
 * The files must be GUEST_FILE_INIT. -ENOENT: no kernel is given or found, which the message tells.
 */
int guest_kernel_open(const struct cli_target *target, const char *kernel, const char *initrd,
                      unsigned flags, struct guest_file *ret_kernel, struct guest_file *ret_initrd,
                      struct error *err);

/* --- The parts of it --- */

struct guest_kernel {
    const struct partition *partition;
    char *kernel;  /* path on the partition */
    char *initrd;  /* path on the partition, or NULL */
    char *version; /* "6.1.0-18-amd64", or NULL if its name has none */
};

void guest_kernel_clear(struct guest_kernel *kernel);
DEFINE_CLEANUP_INPLACE(struct guest_kernel, guest_kernel_clear);

/* Finds the newest kernel, as guest_kernel_open() without --kernel. */
int guest_kernel_find(const struct cli_target *target, struct guest_kernel *ret, struct error *err);

/* Less than, equal to or more than 0 as kernel version `a` is older than, the same as or newer than
 * `b`: version_compare(), where 6.8-rc1 and the like come before 6.8. */
int guest_kernel_compare(const char *a, const char *b);
