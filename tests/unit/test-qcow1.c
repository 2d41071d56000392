/* SPDX-License-Identifier: MIT */
/* QCOW version 1: whose bytes they are. What is read of such images is compared with QEMU in
 * tests/functional/legacy-qcow.sh. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "image/qcow1.h"

enum { CLUSTER = 4096, L1 = 512, L2 = CLUSTER, DATA = 2 * CLUSTER, SIZE = 3 * CLUSTER };

/* An image of one cluster, full of `byte`, in a file that has its name until it is unlinked. */
static int make_image(const char *path, uint8_t byte)
{
    static uint8_t bytes[SIZE];
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    memcpy(bytes, "QFI\xfb", 4);
    put_be32(bytes + 4, 1);
    put_be64(bytes + 24, CLUSTER);
    bytes[32] = 12; /* cluster_bits */
    bytes[33] = 9;  /* l2_bits */
    put_be64(bytes + 40, L1);
    put_be64(bytes + L1, L2);
    put_be64(bytes + L2, DATA);
    memset(bytes + DATA, byte, CLUSTER);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, SIZE), SIZE);
    return fd;
}

/* The file that was opened, and locked, is the one that is read, by libqcow as well. */
static void test_one_file(void **state)
{
    (void)state;
    _cleanup_error_ struct error err = ERROR_INIT;
    char path[] = "/tmp/qverity-test-qcow1.XXXXXX";
    uint8_t buffer[CLUSTER];
    struct qcow1 *qcow;

    assert_int_equal(close(mkstemp(path)), 0);
    int fd = make_image(path, 'a');
    assert_int_equal(unlink(path), 0);
    int other = make_image(path, 'b');
    assert_int_equal(qcow1_open(fd, path, NULL, &qcow, &err), 0);
    assert_int_equal(qcow1_read(qcow, 0, buffer, CLUSTER, &err), 0);
    for (size_t i = 0; i < CLUSTER; i++)
        assert_int_equal(buffer[i], 'a');
    qcow1_close(qcow);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC); /* still open */
    close(fd);
    close(other);
    assert_int_equal(unlink(path), 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_file),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
