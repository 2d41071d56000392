/* SPDX-License-Identifier: MIT */
/*
 * A mutation of a qcow2 image:
 *
 *     qcow2-mutate SEED FROM TO
 *
 * The same SEED (a number) makes the same TO of the same FROM.
 */
#include <stdio.h>
#include <stdlib.h>

#include "tests/fuzz/mutate.h"

enum { GROW_MAX = 4 << 20 };

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: qcow2-mutate SEED FROM TO\n");
        return 2;
    }
    FILE *from = fopen(argv[2], "rb");
    if (from == NULL || fseek(from, 0, SEEK_END) != 0) {
        perror(argv[2]);
        return 1;
    }
    size_t size = (size_t)ftell(from);
    struct mutator m = {.bytes = calloc(1, size + GROW_MAX),
                        .size = size,
                        .room = size + GROW_MAX,
                        .random = mutator_seed(strtoull(argv[1], NULL, 0)),
                        .mutate_bytes = mutate_bytes_simply};
    rewind(from);
    if (m.bytes == NULL || fread(m.bytes, 1, size, from) != size || fclose(from) != 0) {
        perror(argv[2]);
        return 1;
    }
    qcow2_mutate(&m);
    FILE *to = fopen(argv[3], "wb");
    if (to == NULL || fwrite(m.bytes, 1, m.size, to) != m.size || fclose(to) != 0) {
        perror(argv[3]);
        return 1;
    }
    free(m.bytes);
    return 0;
}
