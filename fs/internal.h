/* SPDX-License-Identifier: MIT */
#pragma once

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

/* The interface of libfuse 3.10, the oldest that we build with. */
#define FUSE_USE_VERSION 35
#include <fuse_lowlevel.h>

#include "common/error.h"
#include "fs/fs.h"

/*
 * Private to fs/. How the files share the work:
 *
 *     options.c  -o, and the arguments that libfuse gets
 *     place.c    whether a directory can be mounted on; the mount's read-ahead
 *     detached.c mounts that are in nobody's directory tree
 *     session.c  an fs's life: mounting, serving, the end
 *     workers.c  the threads that take requests
 *     node.c     which files there are, their attributes
 *     ops.c      the FUSE operations
 *     open.c     answers to opens
 *     share.c    parts of a request that idle workers take over
 *     read.c     the bytes of a range of the image, gathered for a reply
 *     verified.c such bytes, checked against a root hash
 *     write.c    the operations that change the image
 *     change.c   changing it
 *     mapped.c   writable files that are mapped into memory
 *     job.c      requests that wait for a build, or for their turn to have hash blocks computed
 *     report.c   what is logged of reads that fail
 *     counters.c what is counted of reads
 *     content.c  root-hash, table, cmdline, params.json, stats.json
 *
 * Threads: workers take requests and answer them (workers.c). Requests that would hold one of them
 * up for long become jobs (job.c). One more thread, the builder, runs full builds, and another
 * one has pages of mapped files dropped. The nodes are made by fs_mount() and constant from then
 * on, except for their atomics and where a lock is named.
 */

/* Largest read that the kernel sends: what FUSE allows with 4 KiB pages. */
#define FS_MAX_READ (1024u * 1024)

/* --- options.c --- */

struct fs_mount_options {
    char *fuse;        /* the -o argument for libfuse, owned */
    unsigned max_read; /* bytes */
    bool direct_io;    /* no page cache for the image's files */
};

/* `source` is shown as the mounted device unless an fsname option says otherwise. */
int fs_options_parse(const char *text, const char *source, bool writable,
                     struct fs_mount_options *ret, struct error *err);

/* --- detached.c --- */

struct fs_detached_options {
    unsigned uid, gid; /* of whoever may open files */
    unsigned max_read; /* bytes */
    bool read_only;
    const char *source; /* shown as the mounted device */
};

/*
 * Makes a FUSE mount without a place. *ret_device is the connection, *ret_root the mount's root
 * directory; both are owned and close-on-exec. On its way the process may enter namespaces of its
 * own, and must have one thread only. Unless it succeeds, nothing has changed, except if the kernel
 * was of two minds. -ENOSYS, -EPERM, -EINVAL… where that cannot be done.
 */
int fs_detached_open(const struct fs_detached_options *options, int *ret_device, int *ret_root,
                     struct error *err);

/* --- counters.c --- */

/* Reads that took less than 1 << i microseconds, from 1 << (i - 1) on; the last one, all that took
 * longer. */
#define LATENCY_BUCKETS 25

struct fs_counters {
    _Atomic uint64_t reads; /* that were answered with bytes */
    _Atomic uint64_t bytes;
    _Atomic uint64_t at_once; /* of the reads: that waited neither for a disk nor for their turn */
    _Atomic uint64_t errors;
    _Atomic uint64_t latency[LATENCY_BUCKETS];
};

/* The read that the calling thread is to answer. A job takes it along to the one that does. */
struct fs_read {
    uint64_t begun_ns; /* monotonic */
    bool waited;
};

/* A read begins, in this thread. */
void fs_read_begin(void);
/* It cannot be answered at once. */
void fs_read_waits(void);
struct fs_read fs_read_get(void);
void fs_read_set(struct fs_read read);

struct fs_node;

/* The read is about to be answered: with that many bytes, or with an error. */
void fs_node_count(struct fs_node *node, uint64_t bytes);
void fs_node_count_error(struct fs_node *node);

/* --- node.c --- */

enum node_kind {
    NODE_ROOT,  /* the directory */
    NODE_RANGE, /* a range of the image */
    NODE_LINK,
    NODE_HASH,
    NODE_TEXT,  /* made once the root hash is known; the length is known before */
    NODE_STATS, /* made anew at each open */
};

enum text_kind { TEXT_ROOT_HASH, TEXT_TABLE, TEXT_CMDLINE, TEXT_PARAMS, TEXT_COUNT };

struct fs_node {
    char name[24];
    enum node_kind kind;
    uint64_t size;       /* bytes, as stat shows it */
    uint64_t start;      /* RANGE: bytes of the image before it */
    const char *target;  /* LINK: name of another node */
    enum text_kind text; /* TEXT */

    struct fs_counters counters;

    unsigned opened;     /* how often; under fs->mapped.lock, and only in a writable mount */
    _Atomic bool mapped; /* the kernel may have pages of it; set to false under that lock */
};

struct fs_nodes {
    struct fs_node *all; /* inode number FUSE_ROOT_ID + i is all[i] */
    size_t count;
    struct stat attr;     /* what all have in common */
    uint64_t image_usage; /* bytes that the image's files take on their file systems */
    bool writable;
    _Atomic int64_t written_ns; /* since the epoch: the last write; 0: there was none */
};

/* `ret` must be zeroed. */
int fs_nodes_init(const struct fs_options *options, const size_t text_sizes[static TEXT_COUNT],
                  struct fs_nodes *ret, struct error *err);

/* NULL if there is no such node. */
struct fs_node *fs_node_get(const struct fs_nodes *nodes, fuse_ino_t ino);
struct fs_node *fs_node_find(const struct fs_nodes *nodes, const char *name);
fuse_ino_t fs_node_ino(const struct fs_nodes *nodes, const struct fs_node *node);
void fs_node_stat(const struct fs_nodes *nodes, const struct fs_node *node, struct stat *ret);

/* --- content.c --- */

/* The texts that depend on the root hash, each owned and NUL-terminated. */
struct fs_texts {
    char *text[TEXT_COUNT];
};
void fs_texts_clear(struct fs_texts *texts);
DEFINE_CLEANUP_INPLACE(struct fs_texts, fs_texts_clear);

/* The texts' lengths, known without the root. */
int fs_texts_sizes(const struct fs_options *options, size_t ret[static TEXT_COUNT],
                   struct error *err);

/* Makes the texts, all of one root, which is computed. */
int fs_texts_make(const struct fs_options *options, struct fs_texts *ret, struct error *err);

/* stats.json as it is now; owned. */
int fs_stats_make(const struct fs_options *options, const struct fs_nodes *nodes, bool building,
                  char **ret, struct error *err);

/* --- read.c --- */

#define GATHER_MAX 64

/* Bytes that lie in several places; valid until the thread gathers again. */
struct fs_gather {
    struct iovec iov[GATHER_MAX];
    int count;
    uint8_t *buffer; /* has room for each byte of the range in its place; where there are zeros it
                      * may hold anything */
};

/* The bytes of [offset, offset + length) of the image, which must lie within it. */
int fs_gather_image(struct image *image, uint64_t offset, size_t length, struct fs_gather *ret,
                    struct error *err);

/* Whether an entry stands for zeros, which are not in the buffer. */
bool fs_gather_is_zeros(const struct iovec *iov);

/* A buffer of the calling thread; what it held before is lost. NULL when out of memory. */
uint8_t *fs_buffer(size_t length);

/* Frees the calling thread's buffer. */
void fs_buffer_free(void);

/* lseek's SEEK_DATA and SEEK_HOLE in a range of the image; -ENXIO as lseek has it. */
int fs_seek_image(struct image *image, uint64_t start, uint64_t size, uint64_t offset, int whence,
                  bool (*give_up)(void *arg), void *arg, uint64_t *ret, struct error *err);

/* --- verified.c --- */

/* As fs_gather_image(), of a tree with a root hash that was given. What has not the right digest is
 * logged for `node` and counted, and -EIO without an error being set. */
int fs_gather_verified(struct fs *fs, struct fs_node *node, uint64_t offset, size_t length,
                       struct fs_gather *ret, struct error *err);

/* --- job.c --- */

struct fs_job;

struct fs_jobs {
    pthread_mutex_t lock;
    pthread_cond_t wake;    /* the builder */
    struct fs_job *waiting; /* for the root, first come first; all under lock */
    uint64_t tickets;       /* how many have waited for the root */
    struct fs_job *lane;    /* hash reads whose turn has not come, first come first */
    unsigned lane_running;  /* threads that compute hash blocks for a request */
    unsigned lane_max;      /* how many may */
    bool stopping;          /* no new jobs */
    struct timespec failed; /* when the last build failed; 0 if it did not */
    pthread_t builder;
    bool builder_started;
    _Atomic bool building;
    /* Set before texts_ready, then constant; or, in a mount that is written to, the builder's as of
     * its last build. */
    struct fs_texts texts;
    _Atomic bool texts_ready;
};

/* `lane_max`: hash reads that are computed at a time. */
void fs_jobs_init(struct fs_jobs *jobs, unsigned lane_max);
void fs_jobs_destroy(struct fs_jobs *jobs);

/* Answers an open of `node`, a NODE_TEXT, when its text is there. */
void fs_job_open(struct fs *fs, fuse_req_t req, struct fs_node *node,
                 const struct fuse_file_info *fi);

/* Answers a read of the hash device; the range lies within it. */
void fs_job_read_hash(struct fs *fs, fuse_req_t req, struct fs_node *node, uint64_t offset,
                      size_t length);

/* Answers all jobs that have not begun with ENOTCONN, and all that come from now on. */
void fs_jobs_stop(struct fs *fs);

/* Whether computing that range of the hash device may take so long that it is left to the builder
 * as long as the root is not known. */
bool fs_hash_needs_build(const struct verity_params *params, const struct verity_geometry *geometry,
                         uint64_t offset, uint64_t length);

/* --- report.c --- */

/* Counts that `node` could not be read, and logs why unless it happens all the time. */
void fs_log_error(struct fs_node *node, const struct error *err);
/* Only logs. */
void fs_log_fault(const struct fs_node *node, const struct error *err);

/* --- change.c --- */

/* A request that changes the image, or flushes it. */
struct fs_change {
    enum { CHANGE_WRITE, CHANGE_ZERO, CHANGE_FLUSH } what;
    fuse_req_t req;
    struct fs_node *node;
    uint64_t offset;     /* of the image; CHANGE_FLUSH: 0 */
    uint64_t length;     /* CHANGE_FLUSH: 0 */
    const uint8_t *data; /* CHANGE_WRITE */
    bool from_page;      /* CHANGE_WRITE: not by write(), but from a page of a mapping */
};

/* Returns 0 or the errno value to be answered. */
int fs_change_apply(struct fs *fs, const struct fs_change *change);
void fs_change_answer(const struct fs_change *change, int code);

/* --- write.c --- */

void fs_op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
                 struct fuse_file_info *fi);
void fs_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t size,
                     struct fuse_file_info *fi);
void fs_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void fs_op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                   struct fuse_file_info *fi);

/* --- mapped.c --- */

struct fs_drop;

struct fs_mapped {
    pthread_mutex_t lock;
    pthread_cond_t wake;   /* the dropper */
    pthread_cond_t idle;   /* there is nothing to be dropped */
    struct fs_drop *drops; /* first come first; all under lock */
    struct fs_drop **end;
    bool busy;
    bool stopping;
    bool started;
    pthread_t dropper;
};

void fs_mapped_init(struct fs_mapped *mapped);
void fs_mapped_destroy(struct fs_mapped *mapped);

/* To be told of each open, release and read of a file of the image or of the hash device. Of a read
 * before the image is read. */
void fs_mapped_open(struct fs *fs, struct fs_node *node);
void fs_mapped_release(struct fs *fs, struct fs_node *node);
void fs_mapped_read(struct fs *fs, struct fs_node *node, const struct fuse_file_info *fi);

/* Does and answers what the request asks for, and sees to it that no mapped file shows old bytes of
 * the range when it is answered; unless the bytes come from such a file, for which a later fsync()
 * does that. */
void fs_mapped_change(struct fs *fs, const struct fs_change *change);

/* Lets the dropper finish; workers must still be there. False if that takes until the deadline
 * (CLOCK_REALTIME). */
bool fs_mapped_stop(struct fs *fs, const struct timespec *deadline);

/* --- ops.c --- */

extern const struct fuse_lowlevel_ops fs_ops;

/* --- open.c --- */

/* stats.json, or a text of a mount that is written to, as it was when it was opened. */
struct fs_snapshot {
    struct fs_snapshot *newer, *older;
    char *text;
    size_t length;
};

void fs_snapshot_free(struct fs *fs, struct fs_snapshot *snapshot);

/* Those that are open when the filesystem is unmounted by force get no release. */
void fs_snapshots_free(struct fs *fs);

/* Answers an open of `node` for reading `text`, which it takes, as it is now. */
void fs_reply_open_text(fuse_req_t req, struct fs_node *node, char *text,
                        const struct fuse_file_info *fi);

/* Answers an open of a file that needs no snapshot. */
void fs_reply_open(fuse_req_t req, struct fs_node *node, const struct fuse_file_info *fi);

/* --- place.c --- */

/* Sets the read-ahead of the mount with this device number, where we may; else says why not in
 * the debug log. */
void fs_raise_readahead(dev_t device);

/* --- workers.c --- */

struct fs_worker {
    struct fs *fs;
    pthread_t thread;
    bool started;
    int channel;                 /* its descriptor of the FUSE connection */
    struct fuse_buf buf;         /* the request */
    bool has_place;              /* at the device; the worker's own, but set when it is idle */
    sem_t wake;                  /* posted when it is given one, or is called to help */
    struct fs_worker *next_idle; /* under lock */
};

struct fs_workers {
    struct fs_worker *all;
    unsigned count;
    unsigned places; /* how many may take requests */
    pthread_mutex_t lock;
    unsigned taken;         /* under lock, as what follows */
    struct fs_worker *idle; /* last come first */
    unsigned idle_count;
    unsigned helping;        /* workers that were called to help and need not wait for anything */
    struct fs_share *shares; /* that have parts which nobody has begun */
};

/* How many hash reads may be computed at a time: so few that whatever those wait for, others are
 * there who do not. */
unsigned fs_workers_for_hashing(const struct fs_workers *workers);

int fs_workers_init(struct fs *fs, struct error *err);
void fs_workers_destroy(struct fs *fs);
int fs_workers_start(struct fs *fs, struct error *err);
/* False if one did not end until the deadline (CLOCK_REALTIME). */
bool fs_workers_end(struct fs *fs, const struct timespec *deadline);
/* Closes their descriptors. */
void fs_workers_close(struct fs *fs);

/* To be called where a request may take long: lets another worker take requests until this one has
 * been answered. In other threads it does nothing. Reads call it by themselves (io_on_wait()). */
void fs_worker_slow(void);

/* Those that the calling thread is one of; NULL in other threads. */
struct fs_workers *fs_workers_mine(void);

/* Has up to `count` idle workers call fs_share_help(). With the lock held. */
void fs_workers_call(struct fs_workers *workers, unsigned count);

/* A thread with all signals blocked. Returns what pthread_create() does. */
int fs_thread_start(pthread_t *thread, void *(*run)(void *), void *arg);

/*
 * The descriptor on which the calling thread takes requests and answers them. The kernel accepts a
 * reply only where it handed out the request, so a job notes it and sets it again for its reply.
 */
int fs_channel(void);
void fs_set_channel(int fd);

/* In the answer to INIT: that files with direct_io may be mapped shared (mapped.c). */
void fs_allow_shared_mappings(struct fuse_conn_info *conn);

/* Leads libfuse's reads and writes to the channels. */
int fs_use_channels(struct fuse_session *session, struct error *err);

/* --- share.c --- */

/* Does one part of a request, in any thread. Returns 0, or a negative errno value and sets `err`.
 */
typedef int (*fs_part_fn)(void *arg, size_t index, struct error *err);

/* Does the parts 0 to `count` - 1, in this thread and up to `helpers` others. Returns when all are
 * done, or one has failed and none is being done: what the first of those that failed returned. */
int fs_share(unsigned helpers, size_t count, fs_part_fn part, void *arg, struct error *err);

/* What an idle worker does that was called. */
void fs_share_help(struct fs_workers *workers);

/* --- session.c --- */

struct fs {
    struct fs_options options;
    struct fs_mount_options mount;
    struct fs_nodes nodes;
    struct fs_jobs jobs;
    struct fs_mapped mapped;
    pthread_mutex_t snapshots_lock;
    struct fs_snapshot *snapshots; /* open files of stats.json; under the lock */
    char *directory;               /* where it can be looked at */
    int root;                      /* of a mount without a place: its root directory; else -1 */
    struct fuse_session *session;
    bool mounted;

    struct fs_workers workers;
    pthread_t prober; /* tells when requests are answered */
    bool prober_started;
    _Atomic bool asked;          /* a request came since somebody set this to false */
    _Atomic unsigned open_files; /* opens without a release */
    sem_t wake;                  /* posted when serving has to end */
    _Atomic bool stop;           /* serving has to end */
    bool abandoned;
    bool writable; /* the image has an overlay that takes writes */
};

static inline bool fs_node_writable(const struct fs *fs, const struct fs_node *node)
{
    return fs->writable && node->kind == NODE_RANGE;
}

/* Has fs_serve() end. Safe in signal handlers. */
static inline void fs_wake_to_end(struct fs *fs)
{
    atomic_store(&fs->stop, true);
    sem_post(&fs->wake);
}
