/* SPDX-License-Identifier: MIT */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/json.h"
#include "common/progress.h"
#include "common/sandbox.h"
#include "hashtree/hashtree.h"
#include "image/image.h"
#include "image/partition.h"

/*
 * The command line: main.c picks the command, one file per command runs it, options.c parses what
 * the commands share. This folder is the only place that prints to stdout and that decides exit
 * codes.
 */
enum cli_exit {
    CLI_DONE = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,
    CLI_WRONG = 3, /* checked and found wrong */
};

/* Groups of options that commands share. */
enum cli_group {
    CLI_IMAGE = 1 << 0,     /* --format --snapshot --password-file --force */
    CLI_PARTITION = 1 << 1, /* -p */
    CLI_VERITY = 1 << 2,    /* veritysetup's: --hash --salt … */
    CLI_TREE = 1 << 3,      /* --threads --direct --cache */
    CLI_JSON = 1 << 4,      /* --json */
    CLI_KEEP = 1 << 5,      /* --tree --no-tree --lean --rescan */
    CLI_SANDBOX = 1 << 6,   /* --no-sandbox */
    CLI_BYTES = 1 << 7,     /* none: partitions are taken for their bytes, whatever these mean */
};

#define CLI_FILES_MAX 2   /* files that a command opens besides images */
#define CLI_TARGETS_MAX 2 /* images that a command opens */

/* One option of a command; the same table makes the parser and --help. */
struct cli_option {
    const char *name;     /* without the dashes */
    char short_name;      /* or 0 */
    const char *argument; /* its name in --help, "FILE"; NULL: the option takes none */
    const char *help;
};

/* What the shared options said. */
struct cli_options {
    bool json;
    bool quiet;
    unsigned verbose;  /* how often -v was given */
    int behind_dashes; /* how many of the operands stood behind "--" */
    struct image_options image;
    const char *overlay;   /* the image is opened for writing to this file; or NULL */
    const char *partition; /* -p; NULL when not given */
    /* Verity options as given; cli_verity_params() puts them over the defaults. */
    struct {
        const char *hash, *salt, *uuid;
        uint64_t format_version, data_block_size, hash_block_size, data_blocks, hash_offset;
        bool format_version_set, data_block_size_set, hash_block_size_set, data_blocks_set,
            hash_offset_set, no_superblock;
    } verity;
    struct hashtree_options tree;
    struct hashtree_file_options keep;
    bool no_tree;    /* also for commands without CLI_KEEP */
    bool bytes;      /* the command has CLI_BYTES */
    bool hashes;     /* the command has CLI_TREE */
    bool any_digest; /* and reads what may name any, */
    bool superblock; /* or makes or reads superblocks */

    /* Confinement. Files that the command opens when it is confined are its to add. */
    bool no_sandbox;
    bool confine;     /* the command has CLI_SANDBOX, and --no-sandbox was not given */
    bool probe_apart; /* cli_target_open() confines only who looks for partitions */
    struct sandbox_file files[CLI_FILES_MAX];
    size_t file_count;
};

struct cli_command {
    const char *name;
    const char *arguments; /* for the usage line: "IMAGE OFFSET LENGTH" */
    const char *summary;   /* one line, for `qverity --help` */
    const char *program;   /* of ours that has the command, then all below is unset; or NULL */
    const char *details;   /* paragraphs for `qverity COMMAND --help`, or NULL */
    unsigned groups;       /* enum cli_group */
    const struct cli_option *options; /* its own, ended by a NULL name; or NULL */
    bool takes_rest; /* any number of operands may stand behind "--", not counted here: */
    int operands_min, operands_max; /* operands_max < 0: any number */
    /* Takes one of its own options: `index` into options. NULL if it has none. A failure is a usage
     * error. */
    int (*option)(size_t index, const char *argument, void *context, struct error *err);
    /* Allocated zeroed for option() and run(), of this size. */
    size_t context_size;
    /* Does the work. Returns 0 or a cli_exit value (then err need not be set), or a negative errno
     * value with err set: main prints it and exits with 1. */
    int (*run)(const struct cli_options *options, int argc, char **argv, void *context,
               struct error *err);
};

/* The commands that a program has, in the order of `qverity --help`, ended by NULL (commands.c,
 * commands_build.c). */
extern const struct cli_command *const cli_commands[];

extern const struct cli_command cmd_boot, cmd_build, cmd_cat, cmd_cp, cmd_diff, cmd_hash, cmd_info,
    cmd_ls, cmd_manifest, cmd_map, cmd_measure, cmd_mount, cmd_read, cmd_stat, cmd_track,
    cmd_update, cmd_verify;

#define CLI_BUILD_NAME "build"
#define CLI_BUILD_SUMMARY "Builds an image from a recipe"

/* --- What commands have in common --- */

/* The code of an error that is a usage error; no errno value. */
#define CLI_USAGE_CODE 10000

/* Sets a usage error: main prints it with a hint at --help and exits with 2. Returns
 * -CLI_USAGE_CODE. */
int cli_usage_error(struct error *err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* An image that was opened with its partitions, and the partition that was chosen. */
struct cli_target {
    struct image *image;
    struct partition_table *partitions;
    const struct partition *partition;
};
void cli_target_close(struct cli_target *target);
DEFINE_CLEANUP_INPLACE(struct cli_target, cli_target_close);
#define _cleanup_target_ _cleanup_(cli_target_close_cleanup)

/* Opens IMAGE as the options say. The partition is -p's, else `fallback`: "disk", or NULL for the
 * data partition. */
int cli_target_open(const char *path, const struct cli_options *options, const char *fallback,
                    struct cli_target *ret, struct error *err);

/* The same for `count` images, all of which are open before anything of them is looked into. */
int cli_targets_open(char *const *paths, size_t count, const struct cli_options *options,
                     const char *fallback, struct cli_target *ret, struct error *err);

struct cli_mountpoint {
    const char *path;
    bool daemon; /* the process is to be one */
};

/*
 * Confines the process to what is open, the tree files of the images, and options->files, unless
 * --no-sandbox was given. `mount` is a FUSE mount that the process serves, or NULL.
 * cli_target_open() does so for commands with CLI_SANDBOX, before it looks for partitions.
 */
int cli_confine(const struct cli_options *options, struct image *const *images, size_t count,
                const struct cli_mountpoint *mount, struct error *err);

/* What another process, which is confined, does for one that cannot be yet. */
struct cli_apart {
    const char *what; /* it does: "looks for partitions" */
    const struct cli_options *options;
    struct image *image; /* that the other process may read */
    /* Returns 0 and a new reference, or an error. */
    int (*run)(void *arg, json_t **ret, struct error *err);
    void *arg;
};

/*
 * Forks, and returns what run() does in the child; *ret, a new reference, is to be taken for
 * something that anybody could have said. Its error codes are errno values and
 * HASHTREE_WRONG_ROOT. To be called while there are no threads. The child ends with this process.
 */
int cli_run_apart(const struct cli_apart *apart, json_t **ret, struct error *err);

/* partition_table_read() in a confined process, for one that cannot be confined yet. */
int cli_probe(const struct cli_options *options, struct image *image, struct partition_table **ret,
              struct error *err);

/* The verity parameters that the options ask for over the target's partition: defaults, --salt -
 * and random, --data-blocks checked against the partition. */
int cli_verity_params(const struct cli_options *options, const struct cli_target *target,
                      struct verity_params *ret, struct error *err);

/* Only what the options say over the defaults; data_blocks is 0 unless given. Values are parsed but
 * not yet checked: verity_geometry_init() does that. */
int cli_verity_given(const struct cli_options *options, struct verity_params *ret,
                     struct error *err);

/* An error, with both figures, if the data blocks do not fit into the target's partition. The block
 * size must be a good one. */
int cli_check_data_blocks(const struct cli_target *target, const struct verity_params *params,
                          struct error *err);

/* The parameters that the superblock of the hash device at `path` has, at --hash-offset. An error
 * if an option that was given says something else, or if the target's partition is too small. */
int cli_hash_device_params(const struct cli_options *options, const struct cli_target *target,
                           const char *path, struct verity_params *ret, struct error *err);

/* Opens a hash device, which must be as large as the geometry says; *ret is the caller's. */
int cli_hash_device_open(const char *path, const struct verity_geometry *geometry, int *ret,
                         struct error *err);

/* A tree over the target's partition; for a command with CLI_KEEP, one that is kept in a tree file.
 */
int cli_tree_new(const struct cli_options *options, const struct cli_target *target,
                 struct hashtree **ret, struct error *err);

/*
 * Such a tree that believes nothing but a root hash (in hex), and, if `hash_device` is not NULL,
 * what that hash device has below it; then there is no tree file. Without one, all data is read by
 * another process, unless a tree file is current. *ret_fd, which has to be closed after the tree
 * was freed, is what the nodes are read from, or -1. -HASHTREE_WRONG_ROOT as hashtree_trust().
 */
int cli_tree_trusted(const struct cli_options *options, const struct cli_target *target,
                     const char *root_hash, const char *hash_device, int *ret_fd,
                     struct hashtree **ret, struct error *err);

/* Starts a meter unless -q was given; then *ret is NULL, which progress_meter_stop_cleanup takes.
 */
int cli_meter_start(const struct cli_options *options, const char *what,
                    const struct progress *progress, struct progress_meter **ret,
                    struct error *err);
/* The same for what builds a tree. Only a progress that is shown is counted for. */
int cli_tree_meter_start(const struct cli_options *options, const char *what, struct hashtree *tree,
                         struct progress_meter **ret, struct error *err);

/* The object that `hash --json` prints (shared with update and params.json's reader): parameters,
 * root hash, table, dm_mod_create, method, counts. Computes the root. New reference. */
int cli_hash_json(const struct cli_target *target, struct hashtree *tree, json_t **ret,
                  struct error *err);

/* Prints the result of hashing: veritysetup's lines or JSON. `written` is the file that the hash
 * device was written to, or NULL; with `method`, how the root was found and whether changes are
 * tracked is told as well.
 */
int cli_hash_print(const struct cli_options *options, const struct cli_target *target,
                   const char *written, struct hashtree *tree, bool method, struct error *err);
