/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

/*
 * How far long work has come. The work counts bytes with relaxed atomics from any thread; whoever
 * wants to see (a meter on the terminal, stats.json) reads them at any time. Work functions accept
 * NULL where nobody looks.
 */
struct progress {
    _Atomic uint64_t done;  /* bytes */
    _Atomic uint64_t total; /* bytes; 0 while unknown */
};

static inline void progress_add(struct progress *progress, uint64_t bytes)
{
    if (progress != NULL)
        atomic_fetch_add_explicit(&progress->done, bytes, memory_order_relaxed);
}

static inline void progress_set_total(struct progress *progress, uint64_t bytes)
{
    if (progress != NULL)
        atomic_store_explicit(&progress->total, bytes, memory_order_relaxed);
}

/*
 * A thread that shows a progress on stderr: a bar with bytes, rate and time left when stderr is a
 * terminal, else a line every few seconds. Shows nothing for work shorter than half a second.
 */
struct progress_meter;

/* `what` ("hashing") and `progress` must outlive the meter. */
int progress_meter_start(const char *what, const struct progress *progress,
                         struct progress_meter **ret, struct error *err);

/* Removes the bar and frees the meter. */
void progress_meter_stop(struct progress_meter *meter);
DEFINE_CLEANUP(struct progress_meter, progress_meter_stop);
