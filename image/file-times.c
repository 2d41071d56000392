/* SPDX-License-Identifier: MIT */
/*
 * Linux takes the times of local files from its coarse clock, which moves once a tick (1 to 10 ms;
 * recent kernels take a finer one if somebody looked at the time before, but never an earlier time
 * than the coarse clock's). That clock can be read. As soon as it shows more than a file's ctime,
 * the next write will. Comparing with any other clock, and a guess of how far the two may be apart,
 * would go wrong on a virtual machine whose timekeeping CPU is not given the time to tick.
 */
#include "image/file-times.h"

#include <linux/magic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/vfs.h>
#include <time.h>

#define WAIT_MAX_NS INT64_C(20000000)
#define SECOND_NS INT64_C(1000000000)

/* Not in every linux/magic.h. */
#define XFS_MAGIC 0x58465342
#define ZFS_MAGIC 0x2fc12fc1
#define BCACHEFS_MAGIC 0xca451a4e

enum file_clock file_clock(int fd)
{
    /* Only those that are known to keep a ctime of their own, that survives in memory and on disk.
     * File systems that are images with times from long ago are not here: two such images can hold
     * different files with the same times. */
    static const struct {
        uint32_t magic;
        enum file_clock clock;
    } known[] = {
        {EXT4_SUPER_MAGIC, FILE_CLOCK_OURS}, /* ext2, ext3, ext4 */
        {XFS_MAGIC, FILE_CLOCK_OURS},
        {BTRFS_SUPER_MAGIC, FILE_CLOCK_OURS},
        {F2FS_SUPER_MAGIC, FILE_CLOCK_OURS},
        {TMPFS_MAGIC, FILE_CLOCK_OURS},
        {RAMFS_MAGIC, FILE_CLOCK_OURS},
        {OVERLAYFS_SUPER_MAGIC, FILE_CLOCK_OURS},
        {BCACHEFS_MAGIC, FILE_CLOCK_OURS},
        {ZFS_MAGIC, FILE_CLOCK_OTHER}, /* it rounds in its own way */
        {NFS_SUPER_MAGIC, FILE_CLOCK_OTHER},
        {V9FS_MAGIC, FILE_CLOCK_OTHER},
    };
    struct statfs fs;

    if (fstatfs(fd, &fs) < 0)
        return FILE_CLOCK_NONE;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if ((uint32_t)fs.f_type == known[i].magic)
            return known[i].clock;
    return FILE_CLOCK_NONE;
}

/* The steps in which a file system may round times, judged by one of them: 10 ns if that ends in a
 * zero, and so on. Without a fraction they may be the 2 s of the coarsest. */
static int64_t rounding(const struct timespec *time)
{
    int64_t step = 1;

    if (time->tv_nsec == 0)
        return 2 * SECOND_NS;
    while (time->tv_nsec % (step * 10) == 0)
        step *= 10;
    return step;
}

static void sleep_ns(int64_t ns)
{
    (void)nanosleep(&(struct timespec){ns / SECOND_NS, (long)(ns % SECOND_NS)}, NULL);
}

bool file_times_settle(enum file_clock clock, const struct stat *st)
{
    const int64_t step = rounding(&st->st_ctim);
    struct timespec now;

    if (clock == FILE_CLOCK_OTHER) {
        /* That clock cannot be read, but its steps are no longer either. */
        if (step >= WAIT_MAX_NS)
            return false;
        sleep_ns(WAIT_MAX_NS);
        return true;
    }
    for (;;) {
        clock_gettime(CLOCK_REALTIME_COARSE, &now);
        /* Nothing is multiplied that could overflow. */
        if (st->st_ctim.tv_sec > now.tv_sec + 1)
            return false;
        if (st->st_ctim.tv_sec < now.tv_sec - 10)
            return true;
        int64_t left = (st->st_ctim.tv_sec - now.tv_sec) * SECOND_NS +
                       (st->st_ctim.tv_nsec - now.tv_nsec) + step;
        if (left <= 0)
            return true;
        if (left > WAIT_MAX_NS)
            return false;
        sleep_ns(left);
    }
}
