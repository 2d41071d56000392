/* SPDX-License-Identifier: MIT */
#pragma once

#include <stddef.h>
#include <stdint.h>

/*
 * What the fuzz targets share. A target is a program of libFuzzer; it works in a directory of its
 * own in memory, which goes when the program ends.
 */

/* libFuzzer's. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);

/* Enters the directory, and keeps the program's log lines to itself. */
void fuzz_start(void);

/* Puts the bytes into a file of the directory, in place of what it held. */
void fuzz_write(const char *name, const void *bytes, size_t size);

/* A file that is always the same: `size` bytes of a pattern without zeros. */
void fuzz_write_pattern(const char *name, size_t size);

/* The program under test broke a promise: says so and aborts. */
void fuzz_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

struct error;
/* An error was returned, so it must tell something. Clears it. */
void fuzz_expect_error(struct error *err, int r);

struct mutator;
/* LLVMFuzzerMutate() for struct mutator. */
void fuzz_mutate_bytes(struct mutator *m, uint8_t *bytes, size_t size);
