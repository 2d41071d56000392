/* SPDX-License-Identifier: MIT */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/*
 * Variables that clean up after themselves when their scope ends. A cleanup keeps errno, and
 * ownership leaves a variable by TAKE_PTR() or take_fd().
 */
#define _cleanup_(function) __attribute__((cleanup(function)))

/* For `type *` variables freed by `function(type *)`, which must accept no NULL here. */
#define DEFINE_CLEANUP(type, function)              \
    static inline void function##_cleanup(type **p) \
    {                                               \
        if (*p != NULL) {                           \
            int saved_errno = errno;                \
            function(*p);                           \
            *p = NULL;                              \
            errno = saved_errno;                    \
        }                                           \
    }                                               \
    struct cleanup_semicolon

/* For variables of `type` itself, emptied by `function(type *)`. */
#define DEFINE_CLEANUP_INPLACE(type, function)     \
    static inline void function##_cleanup(type *p) \
    {                                              \
        int saved_errno = errno;                   \
        function(p);                               \
        errno = saved_errno;                       \
    }                                              \
    struct cleanup_semicolon

static inline void cleanup_free(void *p)
{
    void **pp = p;
    int saved_errno = errno;

    free(*pp);
    *pp = NULL;
    errno = saved_errno;
}

static inline void cleanup_close(int *fd)
{
    if (*fd >= 0) {
        int saved_errno = errno;

        /* Only for descriptors that were read from: what was written is closed with a check. */
        (void)close(*fd);
        *fd = -1;
        errno = saved_errno;
    }
}

DEFINE_CLEANUP(FILE, fclose);

#define _cleanup_free_ _cleanup_(cleanup_free)
#define _cleanup_close_ _cleanup_(cleanup_close)
#define _cleanup_fclose_ _cleanup_(fclose_cleanup)

#define TAKE_PTR(p)                    \
    ({                                 \
        __typeof__(p) take_ptr_ = (p); \
        (p) = NULL;                    \
        take_ptr_;                     \
    })

static inline int take_fd(int *fd)
{
    int taken = *fd;

    *fd = -1;
    return taken;
}
