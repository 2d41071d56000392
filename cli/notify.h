/* SPDX-License-Identifier: MIT */
#pragma once

/*
 * sd_notify(3)'s protocol: a datagram to the socket that $NOTIFY_SOCKET names. libsystemd would be
 * a large library for one sendmsg().
 */

/* Opens the socket; the descriptor is the caller's. -1 if nobody wants to be told. */
int notify_open(void);

/* `state` as in "READY=1". Whoever does not listen is not told. */
void notify_send(int fd, const char *state);
