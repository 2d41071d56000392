/* SPDX-License-Identifier: MIT */
#pragma once

#include "cli/cli.h"
#include "image/files.h"

/*
 * Operands that name files in images, IMAGE:/PATH, of the commands ls, cat, stat and cp.
 *
 * IMAGE ends at the first ":/" in front of which stands the name of something that exists and is no
 * directory; so both the image's name and the path may have a colon. If there is none, it ends at
 * the first ":/".
 */
struct inside {
    const struct cli_options *options;
    bool confined; /* after the image is open, if the command has CLI_SANDBOX: there is but one */
    char *image;   /* that is open; NULL: none */
    struct error why; /* the image could not be opened, and confined as we are will not be again */
    struct cli_target target;
    struct file_system *fs;
};

void inside_clear(struct inside *inside);
DEFINE_CLEANUP_INPLACE(struct inside, inside_clear);
#define _cleanup_inside_ _cleanup_(inside_clear_cleanup)

/* Whether an operand has the form IMAGE:/PATH. */
bool inside_is_operand(const char *operand);

/* A usage error unless all operands have that form. `command` is for the message. */
int inside_check_operands(const char *command, int count, char **operands, struct error *err);

/* Whether all operands name files of the same image. */
bool inside_one_image(int count, char **operands);

/*
 * Opens the operand's image, unless the one before was the same, and the file system that its path
 * is on. *ret_path points into `operand`. Errors name the image.
 */
int inside_open(struct inside *inside, const char *operand, const char **ret_path,
                struct error *err);

/* inside_open(), and finds the file. Its node must be closed before the next operand is opened. */
int inside_find(struct inside *inside, const char *operand, unsigned flags, struct file_node **ret,
                struct error *err);

/* Puts the image's name in front of an error, unless it is there. Returns -err->code. */
int inside_prefix(const struct inside *inside, struct error *err);

/* --- Walking through directories --- */

/* The entries of a directory, in the order of their names' bytes. */
struct listing {
    struct listing_entry {
        char *name;
        uint32_t inode;
    } * entries;
    size_t count, room;
};

void listing_clear(struct listing *listing);
DEFINE_CLEANUP_INPLACE(struct listing, listing_clear);
#define _cleanup_listing_ _cleanup_(listing_clear_cleanup)

/* -E2BIG: more than LISTING_MAX. */
enum { LISTING_MAX = 1 << 24 };
int listing_read(struct file_node *directory, struct listing *ret, struct error *err);

/* How deep directories are walked into; a damaged file system can have them without end. */
enum { INSIDE_DEPTH_MAX = 1000 };

/* Directories that a walk has seen: in a file system that is in order there is one way to each. */
struct inode_set {
    uint32_t *slots; /* 0: free */
    size_t count, room;
};

void inode_set_clear(struct inode_set *set);
DEFINE_CLEANUP_INPLACE(struct inode_set, inode_set_clear);

/* -EEXIST, without a message: it was in the set before. */
int inode_set_add(struct inode_set *set, uint32_t inode, struct error *err);

/* A path that grows and shrinks by names. */
struct path {
    char *text;
    size_t length, room;
};

void path_clear(struct path *path);
DEFINE_CLEANUP_INPLACE(struct path, path_clear);
#define _cleanup_path_ _cleanup_(path_clear_cleanup)

/* Slashes at the end of `text` are left out, but for one that is all of it. */
int path_set(struct path *path, const char *text, struct error *err);

/* Adds a name, with a slash in front. *ret_length is for path_cut(), which takes it away again. */
int path_add(struct path *path, const char *name, size_t *ret_length, struct error *err);
void path_cut(struct path *path, size_t length);
