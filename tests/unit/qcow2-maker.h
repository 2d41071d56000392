/* SPDX-License-Identifier: MIT */
#pragma once

#include <endian.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/*
 * qcow2 images made by hand: a buffer that becomes a file. The layout, in clusters: 0 header,
 * 1 refcount table (its contents do not matter for reading), 2 and up the L1 table, then whatever
 * the test allocates.
 */
struct maker {
    uint8_t *bytes;
    size_t size; /* of the file */
    unsigned cluster_bits;
    bool extended;
    uint64_t disk_size;
    uint64_t l1_offset;
    uint64_t l1_entries;
};

static inline void put32(struct maker *m, uint64_t offset, uint32_t n)
{
    assert_true(offset + 4 <= m->size);
    n = htobe32(n);
    memcpy(m->bytes + offset, &n, 4);
}

static inline void put64(struct maker *m, uint64_t offset, uint64_t n)
{
    assert_true(offset + 8 <= m->size);
    n = htobe64(n);
    memcpy(m->bytes + offset, &n, 8);
}

static inline uint64_t peek64(const struct maker *m, uint64_t offset)
{
    uint64_t n;

    assert_true(offset + 8 <= m->size);
    memcpy(&n, m->bytes + offset, 8);
    return be64toh(n);
}

/* A directory of its own for a group of tests, which goes with all that is in it. */
static char maker_directory[] = "/tmp/qverity-test-qcow2.XXXXXX";

static inline int maker_enter(void **state)
{
    (void)state;
    return mkdtemp(maker_directory) == NULL || chdir(maker_directory) < 0 ? -1 : 0;
}

static inline int maker_leave(void **state)
{
    char command[sizeof(maker_directory) + 16];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf %s", maker_directory);
    return chdir("/") < 0 || system(command) != 0 ? -1 : 0;
}

/* Room of `bytes` at the end of the file, from a cluster's start on. Returns its offset. */
static inline uint64_t maker_allocate(struct maker *m, uint64_t bytes)
{
    uint64_t mask = ((uint64_t)1 << m->cluster_bits) - 1;
    uint64_t offset = (m->size + mask) & ~mask;
    uint64_t end = (offset + bytes + mask) & ~mask;

    m->bytes = realloc(m->bytes, end);
    assert_non_null(m->bytes);
    memset(m->bytes + m->size, 0, end - m->size);
    m->size = end;
    return offset;
}

/* An image with an empty L1 table of the right size. */
static inline void maker_start(struct maker *m, unsigned version, unsigned cluster_bits,
                               bool extended, uint64_t disk_size)
{
    uint64_t l2_span_bits = 2 * cluster_bits - (extended ? 4 : 3);

    *m = (struct maker){.cluster_bits = cluster_bits, .extended = extended, .disk_size = disk_size};
    m->l1_entries = (disk_size + ((uint64_t)1 << l2_span_bits) - 1) >> l2_span_bits;
    maker_allocate(m, 1);
    uint64_t refcount_table = maker_allocate(m, 1);
    m->l1_offset = maker_allocate(m, m->l1_entries * 8 + 8);
    put32(m, 0, 0x514649fb);
    put32(m, 4, version);
    put32(m, 20, cluster_bits);
    put64(m, 24, disk_size);
    put32(m, 36, (uint32_t)m->l1_entries);
    put64(m, 40, m->l1_offset);
    put64(m, 48, refcount_table);
    put32(m, 56, 1);
    if (version >= 3) {
        put64(m, 72, extended ? 1 << 4 : 0);
        put32(m, 96, 4);
        put32(m, 100, 112);
    }
}

/* Offset in the file of the L2 entry for the cluster that has `disk_offset`; makes the table. */
static inline uint64_t maker_l2_entry(struct maker *m, uint64_t disk_offset)
{
    unsigned entry_bits = m->extended ? 4 : 3;
    unsigned l2_bits = m->cluster_bits - entry_bits;
    uint64_t cluster = disk_offset >> m->cluster_bits;
    uint64_t l1_entry = m->l1_offset + (cluster >> l2_bits) * 8;
    uint64_t table = peek64(m, l1_entry) & 0x00fffffffffffe00;

    if (table == 0) {
        table = maker_allocate(m, (uint64_t)1 << m->cluster_bits);
        put64(m, l1_entry, table | (uint64_t)1 << 63);
    }
    return table + ((cluster & (((uint64_t)1 << l2_bits) - 1)) << entry_bits);
}

static inline void maker_free(struct maker *m)
{
    free(m->bytes);
    m->bytes = NULL;
}

static inline void write_file(const char *path, const void *bytes, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), size);
    assert_int_equal(close(fd), 0);
}

static inline void maker_write(const struct maker *m, const char *path)
{
    write_file(path, m->bytes, m->size);
}

static inline uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}
