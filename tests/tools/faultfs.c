/* SPDX-License-Identifier: MIT */
/*
 * A file system of one file, "image", that passes reads on to SOURCE and fails them on order: what
 * a broken disk does below an image.
 *
 *     faultfs SOURCE FAULTS DIRECTORY
 *
 * stays in the foreground until it is unmounted. FAULTS is a file of lines that is read again at
 * each read: "eio OFFSET LENGTH" fails reads that touch the range, "short OFFSET LENGTH" delivers
 * only half of the bytes asked for, "delay OFFSET LENGTH MS" waits first, "hold OFFSET LENGTH"
 * waits until no such line is left, or it has to end; for each read that begins to wait for that, a
 * byte is added to the file FAULTS.held. Reads go past the page cache, so that each one comes here.
 */
#define FUSE_USE_VERSION 31

#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <fuse_lowlevel.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int source = -1;
static int held = -1; /* FAULTS.held */
static const char *faults_path;

static int fault_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
    (void)fi;
    if (fstat(source, st) < 0)
        return -errno;
    if (strcmp(path, "/image") == 0) {
        /* No holes: every byte is read. */
        st->st_blocks = (st->st_size + 511) / 512;
        return 0;
    }
    if (strcmp(path, "/") != 0)
        return -ENOENT;
    memset(st, 0, sizeof(*st));
    st->st_mode = S_IFDIR | 0755;
    st->st_nlink = 2;
    return 0;
}

static int fault_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
                         struct fuse_file_info *fi, enum fuse_readdir_flags flags)
{
    (void)path, (void)offset, (void)fi, (void)flags;
    fill(buffer, ".", NULL, 0, 0);
    fill(buffer, "..", NULL, 0, 0);
    fill(buffer, "image", NULL, 0, 0);
    return 0;
}

static int fault_open(const char *path, struct fuse_file_info *fi)
{
    (void)path;
    fi->direct_io = 1;
    return 0;
}

/* Applies what FAULTS says of this range; *size may become smaller. *ret_hold: it is to wait. */
static int apply_faults(uint64_t offset, size_t *size, bool *ret_hold)
{
    FILE *faults = fopen(faults_path, "re");
    char line[128], kind[16];
    int result = 0;

    *ret_hold = false;
    if (faults == NULL)
        return 0;
    while (result == 0 && fgets(line, sizeof(line), faults) != NULL) {
        uint64_t start, length;
        unsigned ms = 0;
        if (sscanf(line, "%15s %" SCNu64 " %" SCNu64 " %u", kind, &start, &length, &ms) < 3)
            continue;
        if (offset >= start + length || offset + *size <= start)
            continue;
        if (strcmp(kind, "eio") == 0)
            result = -EIO;
        else if (strcmp(kind, "short") == 0)
            *size = *size > 1 ? *size / 2 : *size;
        else if (strcmp(kind, "hold") == 0)
            *ret_hold = true;
        else if (strcmp(kind, "delay") == 0)
            nanosleep(&(struct timespec){ms / 1000, (long)(ms % 1000) * 1000000}, NULL);
    }
    fclose(faults);
    return result;
}

static int fault_read(const char *path, char *buffer, size_t size, off_t offset,
                      struct fuse_file_info *fi)
{
    (void)path, (void)fi;
    struct fuse_session *session = fuse_get_session(fuse_get_context()->fuse);
    bool hold, told = false;
    int r;

    while ((r = apply_faults((uint64_t)offset, &size, &hold)) == 0 && hold &&
           !fuse_session_exited(session)) {
        if (!told && write(held, ".", 1) == 1)
            told = true;
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
    if (r < 0)
        return r;
    ssize_t n = pread(source, buffer, size, offset);
    return n < 0 ? -errno : (int)n;
}

int main(int argc, char **argv)
{
    static const struct fuse_operations operations = {
        .getattr = fault_getattr,
        .readdir = fault_readdir,
        .open = fault_open,
        .read = fault_read,
    };
    char foreground[] = "-f";
#if FUSE_VERSION >= 312
    /* Many may wait for a delayed read. */
    char name[] = "-ofsname=faultfs,max_threads=100";
#else
    char name[] = "-ofsname=faultfs";
#endif
    char *fuse_argv[] = {argv[0], foreground, name, NULL, NULL};

    if (argc != 4) {
        fprintf(stderr, "usage: faultfs SOURCE FAULTS DIRECTORY\n");
        return 2;
    }
    source = open(argv[1], O_RDONLY | O_CLOEXEC);
    if (source < 0) {
        perror(argv[1]);
        return 1;
    }
    faults_path = argv[2];
    char held_path[4096];
    snprintf(held_path, sizeof(held_path), "%s.held", faults_path);
    held = open(held_path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (held < 0) {
        perror(held_path);
        return 1;
    }
    fuse_argv[3] = argv[3];
    return fuse_main(4, fuse_argv, &operations, NULL);
}
