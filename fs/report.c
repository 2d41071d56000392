/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <time.h>

#include "common/log.h"
#include "fs/internal.h"

/*
 * A reader that copies what is left of a cut image meets an error at every page. So many lines go
 * to the log, one more every second, and the rest is only counted.
 */
#define LOG_BURST 100

struct log_limit {
    pthread_mutex_t lock;
    unsigned used;       /* of the burst */
    time_t refilled;     /* monotonic seconds */
    uint64_t suppressed; /* since the last line */
};

/* Whether a line may be written; *ret_suppressed tells how many were not. */
static bool log_permitted(struct log_limit *limit, uint64_t *ret_suppressed)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    pthread_mutex_lock(&limit->lock);
    uint64_t refill = (uint64_t)(now.tv_sec - limit->refilled);
    limit->refilled = now.tv_sec;
    limit->used = refill < limit->used ? limit->used - (unsigned)refill : 0;
    bool permitted = limit->used < LOG_BURST;
    *ret_suppressed = limit->suppressed;
    limit->used += permitted;
    limit->suppressed = permitted ? 0 : limit->suppressed + 1;
    pthread_mutex_unlock(&limit->lock);
    return permitted;
}

void fs_log_fault(const struct fs_node *node, const struct error *err)
{
    static struct log_limit limit = {.lock = PTHREAD_MUTEX_INITIALIZER};
    uint64_t suppressed;

    if (!log_permitted(&limit, &suppressed))
        return;
    if (suppressed > 0)
        log_error("%" PRIu64 " errors were not logged", suppressed);
    log_error("%s: %s", node->name, error_message(err));
}

void fs_log_error(struct fs_node *node, const struct error *err)
{
    fs_node_count_error(node);
    fs_log_fault(node, err);
}
