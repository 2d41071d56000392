/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

/*
 * A few texts for one guest over HTTP: on 127.0.0.1, at a port that is free, below a path that
 * nobody can guess. That path is on QEMU's command line, which everybody on this machine can read,
 * and so it is not enough: only connections of the process that http_allow() names are answered, as
 * the kernel tells whose sockets they are.
 *
 * A thread of its own answers.
 */
struct http;

struct http_file {
    const char *name; /* "user-data" */
    const char *text;
    size_t length;
};

/* `files` and their texts must outlive it. *ret is freed with http_stop(). */
int http_start(const struct http_file *files, size_t count, struct http **ret, struct error *err);
void http_stop(struct http *http);
DEFINE_CLEANUP(struct http, http_stop);

unsigned http_port(const struct http *http);
/* "/0123…/": with slashes around. */
const char *http_path(const struct http *http);

/* Whose connections are answered from now on; before, nobody's. */
void http_allow(struct http *http, pid_t pid);

/* How many requests were answered with a file, and how many connections were of others. */
void http_counts(struct http *http, unsigned *ret_served, unsigned *ret_refused);
