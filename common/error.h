/* SPDX-License-Identifier: MIT */
#pragma once

#include "common/cleanup.h"

/*
 * What went wrong, gathered on its way up.
 *
 * Functions that can fail for a reason worth telling return 0 or a negative errno value and take a
 * `struct error *`. Whoever finds the fault sets the message; callers put context in front of it
 * ("disk.qcow2: L2 table 3: offset 0x200 is not a multiple of the cluster size"). Only the command
 * line prints it. Every function here accepts a NULL `err` and then keeps only the return value.
 */
struct error {
    int code;      /* positive errno value; 0 means that nothing was set */
    char *message; /* owned; NULL when nothing was set or memory ran out */
};

#define ERROR_INIT ((struct error){0})

void error_clear(struct error *err);
DEFINE_CLEANUP_INPLACE(struct error, error_clear);
#define _cleanup_error_ _cleanup_(error_clear_cleanup)

/* Replaces what `err` holds. `code` is a positive errno value. Returns -code. */
int error_set(struct error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* As error_set(), with ": " and strerror(code) behind the message. Returns -code. */
int error_set_errno(struct error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "FORMAT: " in front of the message that is set. Returns -err->code (-EIO if err is NULL). */
int error_prefix(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Moves `from` into `to`, clearing `from`; for results gathered from threads. */
void error_move(struct error *to, struct error *from);

/* Out of memory: sets a fixed message. Returns -ENOMEM. */
int error_oom(struct error *err);

/* The message, or a text for the code when there is none. Never NULL; valid until err changes.
 * Under a name of its own for the linker: libcom_err, which libext2fs uses, has an error_message(),
 * too. */
const char *error_message(const struct error *err) __asm__("qverity_error_message");
