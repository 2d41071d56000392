/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/disk.h"

/*
 * Makes `path`, a qcow2 image, of the build's image: the same partition table, and in each
 * partition that holds ext2, ext3 or ext4 a new file system of the same name with the same files;
 * in the data partition only those that `filter` lets through. Of other partitions, what is in use:
 * of FAT its clusters that have an owner, of swap its header, and all that nobody can look into.
 * What lies between partitions is not copied.
 */
int reseal(struct build *build, const struct filter *filter, const char *compress, const char *path,
           uint64_t *ret_before, struct error *err);
