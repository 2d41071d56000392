/* SPDX-License-Identifier: MIT */
#pragma once

#include "provision/internal.h"

/* Files on their way into the system: a tar archive that is made here and unpacked there by tar(1),
 * so that trees and guests are the same. */
struct parcel;

/* The archive is a file without a name in the step's folder. *ret is freed with parcel_free().
 */
int parcel_new(struct build *build, struct parcel **ret, struct error *err);
void parcel_free(struct parcel *archive);
DEFINE_CLEANUP(struct parcel, parcel_free);

/* What a file is like there. */
struct parcel_attributes {
    int64_t mode;      /* permissions; -1: 0755 for what may be executed here, else 0644 */
    const char *owner; /* "user:group", names or numbers of the system; NULL: root:root. That of a
                        * directory is also that of all below it. It must outlive the archive. */
};

/* A file of this machine, or a directory with all below it. */
int parcel_path(struct parcel *archive, const char *from, const char *to,
                const struct parcel_attributes *attributes, struct error *err);
/* A file with these bytes. */
int parcel_text(struct parcel *archive, const void *bytes, size_t length, const char *to,
                const struct parcel_attributes *attributes, struct error *err);
/* A symbolic link. */
int parcel_link(struct parcel *archive, const char *target, const char *to,
                const struct parcel_attributes *attributes, struct error *err);

/* Ends the archive and unpacks it in the system. -ENOENT: the system does not know an owner. */
int parcel_send(struct parcel *archive, struct error *err);
