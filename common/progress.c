/* SPDX-License-Identifier: MIT */
#include "common/progress.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/units.h"

#define TERMINAL_INTERVAL_MS 200
#define LINE_INTERVAL_MS 5000
#define FIRST_SHOWN_MS 500
#define BAR_WIDTH 30

struct progress_meter {
    const char *what;
    const struct progress *progress;
    bool terminal;
    bool shown;
    bool stop; /* under lock */
    struct timespec start;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t thread;
};

static double seconds_since(const struct timespec *start)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - start->tv_sec) + (double)(now.tv_nsec - start->tv_nsec) / 1e9;
}

static void format_seconds(double seconds, char *buffer, size_t room)
{
    uint64_t s = seconds < 1e9 ? (uint64_t)(seconds + 0.5) : 0;

    if (s >= 3600)
        snprintf(buffer, room, "%" PRIu64 ":%02" PRIu64 ":%02" PRIu64, s / 3600, s / 60 % 60,
                 s % 60);
    else
        snprintf(buffer, room, "%" PRIu64 ":%02" PRIu64, s / 60, s % 60);
}

static void meter_show(struct progress_meter *meter)
{
    uint64_t done = atomic_load_explicit(&meter->progress->done, memory_order_relaxed);
    uint64_t total = atomic_load_explicit(&meter->progress->total, memory_order_relaxed);
    double elapsed = seconds_since(&meter->start);
    double rate = elapsed > 0 ? (double)done / elapsed : 0;
    char done_text[FORMAT_SIZE_MAX], total_text[FORMAT_SIZE_MAX], rate_text[FORMAT_SIZE_MAX];
    char left[32] = "";
    char bar[BAR_WIDTH + 1] = "";

    format_size(done, done_text);
    format_size((uint64_t)rate, rate_text);
    if (total > 0) {
        /* Data that appears while we work can make done the larger one. */
        uint64_t shown = done < total ? done : total;
        if (rate > 0)
            format_seconds((double)(total - shown) / rate, left, sizeof(left));
        size_t filled = (size_t)((double)shown / (double)total * BAR_WIDTH);
        memset(bar, '.', BAR_WIDTH);
        memset(bar, '#', filled);
        format_size(total, total_text);
    }
    if (meter->terminal) {
        if (total > 0)
            fprintf(stderr, "\r\033[K%s [%s] %s of %s, %s/s, %s left", meter->what, bar, done_text,
                    total_text, rate_text, left);
        else
            fprintf(stderr, "\r\033[K%s %s, %s/s", meter->what, done_text, rate_text);
    } else if (total > 0) {
        fprintf(stderr, "%s: %s of %s, %s/s, %s left\n", meter->what, done_text, total_text,
                rate_text, left);
    } else {
        fprintf(stderr, "%s: %s, %s/s\n", meter->what, done_text, rate_text);
    }
    fflush(stderr);
    meter->shown = true;
}

static void add_ms(struct timespec *t, unsigned ms)
{
    t->tv_sec += ms / 1000;
    t->tv_nsec += (long)(ms % 1000) * 1000000;
    if (t->tv_nsec >= 1000000000) {
        t->tv_sec++;
        t->tv_nsec -= 1000000000;
    }
}

static void *meter_thread(void *arg)
{
    struct progress_meter *meter = arg;
    struct timespec next = meter->start;

    add_ms(&next, meter->terminal ? FIRST_SHOWN_MS : LINE_INTERVAL_MS);
    pthread_mutex_lock(&meter->lock);
    while (!meter->stop) {
        if (pthread_cond_timedwait(&meter->wake, &meter->lock, &next) == ETIMEDOUT) {
            meter_show(meter);
            add_ms(&next, meter->terminal ? TERMINAL_INTERVAL_MS : LINE_INTERVAL_MS);
        }
    }
    pthread_mutex_unlock(&meter->lock);
    return NULL;
}

int progress_meter_start(const char *what, const struct progress *progress,
                         struct progress_meter **ret, struct error *err)
{
    struct progress_meter *meter = calloc(1, sizeof(*meter));
    pthread_condattr_t attr;

    if (meter == NULL)
        return error_oom(err);
    meter->what = what;
    meter->progress = progress;
    meter->terminal = isatty(STDERR_FILENO) == 1;
    clock_gettime(CLOCK_MONOTONIC, &meter->start);
    pthread_mutex_init(&meter->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&meter->wake, &attr);
    pthread_condattr_destroy(&attr);
    int r = pthread_create(&meter->thread, NULL, meter_thread, meter);
    if (r != 0) {
        pthread_cond_destroy(&meter->wake);
        pthread_mutex_destroy(&meter->lock);
        free(meter);
        return error_set_errno(err, r, "cannot start a thread");
    }
    *ret = meter;
    return 0;
}

void progress_meter_stop(struct progress_meter *meter)
{
    pthread_mutex_lock(&meter->lock);
    meter->stop = true;
    pthread_cond_signal(&meter->wake);
    pthread_mutex_unlock(&meter->lock);
    pthread_join(meter->thread, NULL);
    if (meter->terminal && meter->shown)
        fputs("\r\033[K", stderr);
    pthread_cond_destroy(&meter->wake);
    pthread_mutex_destroy(&meter->lock);
    free(meter);
}
