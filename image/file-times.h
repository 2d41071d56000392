/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <sys/stat.h>

/*
 * Whether a change of a file shows in its times. The ctime is what counts: every write sets it to
 * the time of the file system's clock, and no program can set it to anything else. But that clock
 * moves in steps, and a write within the same step as the one before leaves the same ctime.
 */
enum file_clock {
    FILE_CLOCK_NONE,  /* ctimes are not kept, or not known to be (FAT, FUSE, SMB) */
    FILE_CLOCK_OURS,  /* this kernel's coarse clock, or finer */
    FILE_CLOCK_OTHER, /* another machine's */
};

/* The clock of the file system that `fd` is on. */
enum file_clock file_clock(int fd);

/*
 * Waits, 20 ms at most, until every write from then on gives the file another ctime than `st` has;
 * most files are old enough for that at once. False if that takes longer. `st` must have been
 * taken before. Not for FILE_CLOCK_NONE.
 */
bool file_times_settle(enum file_clock clock, const struct stat *st);
