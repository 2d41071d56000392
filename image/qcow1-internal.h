/* SPDX-License-Identifier: MIT */
#pragma once

#include <libqcow.h>
#include <pthread.h>

#include "image/qcow1.h"

/* What qcow1.c and qcow1-header.c share; qcow1.c tells how it works. */

enum {
    QCOW1_KEY_SIZE = 16,
    QCOW1_L2_SLOTS = 16,
};

struct qcow1 {
    char *path;
    int fd; /* the caller's */
    uint64_t file_size;
    unsigned version;
    bool encrypted;
    bool unaligned; /* there are L2 tables that libqcow would not find */
    char *backing_file;
    uint8_t key[QCOW1_KEY_SIZE];
    uint64_t size;
    unsigned cluster_bits;
    unsigned l2_bits; /* an L2 table has 1 << l2_bits entries */
    size_t l1_count;
    uint64_t *l1; /* offsets of L2 tables, checked; 0: none */

    pthread_mutex_t lock;
    struct {
        uint64_t offset;   /* of the table in the file; 0: nothing here */
        uint64_t *entries; /* big-endian, as in the file */
    } l2[QCOW1_L2_SLOTS];
    libqcow_file_t *handle;            /* NULL until it is needed */
    libqcow_file_t *parent;            /* only if there is a backing file */
    struct qcow1_decrypted *decrypted; /* only if encrypted */
    uint8_t *inflated;                 /* the compressed cluster that was read last */
    uint64_t inflated_entry;           /* its L2 entry; 0: nothing */
};

/* Bits of version 2's and 3's L1 and L2 entries. */
#define QCOW1_OFFSET_MASK UINT64_C(0x00fffffffffffe00)
#define QCOW1_COPIED (UINT64_C(1) << 63)

/* Bytes. */
static inline uint64_t qcow1_l2_table_size(const struct qcow1 *qcow)
{
    return UINT64_C(8) << qcow->l2_bits;
}

/*
 * Fills all that stands before `lock`, except path and fd, from the file: checks the header and the
 * L1 table, and takes the key from `password_file` if the image is encrypted.
 */
int qcow1_load(struct qcow1 *qcow, const char *password_file, struct error *err);
