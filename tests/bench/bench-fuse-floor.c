/* SPDX-License-Identifier: MIT */
/*
 * A FUSE server that does nothing: each read is answered with the same bytes of memory, by as many
 * threads as there are CPUs, each on a descriptor of its own, without libfuse in between. What a
 * server of real data takes beyond this is its own; what this takes is FUSE's.
 *
 *     bench-fuse-floor BYTES DIRECTORY
 *
 * serves DIRECTORY/disk of BYTES until it is unmounted.
 */
#define FUSE_USE_VERSION 35
#include <fuse_lowlevel.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define READ_MAX (1024 * 1024)
#define FILE_INO 2

static uint8_t bytes[READ_MAX];
static struct fuse_session *session;
static uint64_t size;

static void fill(fuse_ino_t ino, struct stat *st)
{
    *st = (struct stat){.st_ino = ino, .st_nlink = 1, .st_mode = S_IFDIR | 0555};
    if (ino == FILE_INO) {
        st->st_mode = S_IFREG | 0444;
        st->st_size = (off_t)size;
    }
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    conn->max_read = READ_MAX;
    conn->max_write = READ_MAX;
    conn->max_background = 64;
    conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.ino = FILE_INO, .attr_timeout = 1e9, .entry_timeout = 1e9};

    if (parent != FUSE_ROOT_ID || strcmp(name, "disk") != 0) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    fill(FILE_INO, &entry.attr);
    fuse_reply_entry(req, &entry);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st;

    (void)fi;
    fill(ino, &st);
    fuse_reply_attr(req, &st, 1e9);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    fuse_reply_open(req, fi);
}

static _Thread_local int channel;

static ssize_t channel_read(int fd, void *buffer, size_t length, void *userdata)
{
    (void)fd, (void)userdata;
    return read(channel, buffer, length);
}

static ssize_t channel_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    (void)fd, (void)userdata;
    return writev(channel, iov, count);
}

static void *serve(void *arg)
{
    struct fuse_buf buf = {.mem = malloc(READ_MAX + 4096)};

    channel = (int)(intptr_t)arg;
    for (;;) {
        ssize_t n = read(channel, buf.mem, READ_MAX + 4096);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        const struct fuse_in_header *in = buf.mem;
        if (in->opcode != FUSE_READ) {
            buf.size = (size_t)n;
            fuse_session_process_buf(session, &buf);
            continue;
        }
        const struct fuse_read_in *read_in = (const void *)(in + 1);
        struct fuse_out_header out = {.unique = in->unique};
        struct iovec iov[2] = {{&out, sizeof(out)}, {bytes, read_in->size}};
        out.len = (uint32_t)(sizeof(out) + read_in->size);
        if (writev(channel, iov, 2) < 0)
            break;
    }
    free(buf.mem);
    return NULL;
}

static int clone_channel(void)
{
    uint32_t fd = (uint32_t)fuse_session_fd(session);
    int clone = open("/dev/fuse", O_RDWR | O_CLOEXEC);

    if (clone < 0 || ioctl(clone, FUSE_DEV_IOC_CLONE, &fd) < 0) {
        perror("/dev/fuse");
        exit(1);
    }
    return clone;
}

int main(int argc, char **argv)
{
    static const struct fuse_lowlevel_ops ops = {
        .init = op_init, .lookup = op_lookup, .getattr = op_getattr, .open = op_open};
    static const struct fuse_custom_io io = {.read = channel_read, .writev = channel_writev};
    char *fuse_argv[] = {argv[0], (char *)"-omax_read=1048576,fsname=floor", NULL};
    struct fuse_args args = FUSE_ARGS_INIT(2, fuse_argv);
    pthread_t threads[64];
    cpu_set_t set;

    if (argc != 3) {
        fprintf(stderr, "usage: bench-fuse-floor BYTES DIRECTORY\n");
        return 2;
    }
    size = strtoull(argv[1], NULL, 10);
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 7);
    session = fuse_session_new(&args, &ops, sizeof(ops), NULL);
    if (session == NULL || fuse_session_mount(session, argv[2]) < 0 ||
        fuse_session_custom_io(session, &io, fuse_session_fd(session)) < 0)
        return 1;
    sched_getaffinity(0, sizeof(set), &set);
    int count = CPU_COUNT(&set) < 64 ? CPU_COUNT(&set) : 64;
    for (int i = 0; i < count; i++) {
        int fd = i == 0 ? fuse_session_fd(session) : clone_channel();
        if (pthread_create(&threads[i], NULL, serve, (void *)(intptr_t)fd) != 0)
            return 1;
    }
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return 0;
}
