/* SPDX-License-Identifier: MIT */
/* What is counted of reads, for stats.json. A read's time runs from its coming to its answer. */
#include <time.h>

#include "fs/internal.h"

static _Thread_local struct fs_read current;

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void fs_read_begin(void)
{
    current = (struct fs_read){.begun_ns = now_ns()};
}

void fs_read_waits(void)
{
    current.waited = true;
}

struct fs_read fs_read_get(void)
{
    return current;
}

void fs_read_set(struct fs_read read)
{
    current = read;
}

static void add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

void fs_node_count(struct fs_node *node, uint64_t bytes)
{
    struct fs_counters *counters = &node->counters;
    uint64_t us = (now_ns() - current.begun_ns) / 1000;
    unsigned bucket = us == 0 ? 0 : 64 - (unsigned)__builtin_clzll(us);

    add(&counters->reads, 1);
    add(&counters->bytes, bytes);
    if (!current.waited)
        add(&counters->at_once, 1);
    add(&counters->latency[bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1], 1);
}

void fs_node_count_error(struct fs_node *node)
{
    add(&node->counters.errors, 1);
}
