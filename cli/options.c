/* SPDX-License-Identifier: MIT */
/*
 * Parsing of a command's options. One table tells the options that commands share, a command's own
 * table the rest; both make the getopt_long() arrays and the text of --help.
 */
#include "cli/options.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "common/log.h"
#include "common/text.h"
#include "common/units.h"

#define OPTIONS_MAX 96
#define SHARED_BASE 1000
#define OWN_BASE 2000

enum shared_id {
    OPT_FORMAT,
    OPT_SNAPSHOT,
    OPT_PASSWORD_FILE,
    OPT_FORCE,
    OPT_PARTITION,
    OPT_HASH,
    OPT_FORMAT_VERSION,
    OPT_DATA_BLOCK_SIZE,
    OPT_HASH_BLOCK_SIZE,
    OPT_DATA_BLOCKS,
    OPT_HASH_OFFSET,
    OPT_SALT,
    OPT_UUID,
    OPT_NO_SUPERBLOCK,
    OPT_THREADS,
    OPT_DIRECT,
    OPT_CACHE,
    OPT_TREE,
    OPT_NO_TREE,
    OPT_LEAN,
    OPT_RESCAN,
    OPT_NO_SANDBOX,
    OPT_JSON,
    OPT_QUIET,
    OPT_VERBOSE,
    OPT_HELP,
};

static const struct shared_option {
    unsigned group; /* 0: every command has it */
    enum shared_id id;
    struct cli_option option;
} shared_options[] = {
    {CLI_IMAGE, OPT_FORMAT, {"format", 0, "FORMAT", "image format: qcow2, qcow or raw (probed)"}},
    {CLI_IMAGE, OPT_SNAPSHOT, {"snapshot", 0, "NAME", "read an internal snapshot, by id or name"}},
    {CLI_IMAGE,
     OPT_PASSWORD_FILE,
     {"password-file", 0, "FILE", "open an encrypted image with the first line of FILE"}},
    {CLI_IMAGE,
     OPT_FORCE,
     {"force", 0, NULL, "read an image that is marked corrupt, or shares L2 tables"}},
    {CLI_PARTITION,
     OPT_PARTITION,
     {"partition", 'p', "PARTITION", "a number, label or UUID, or 'disk' for all of it"}},
    {CLI_VERITY, OPT_HASH, {"hash", 0, "NAME", "hash algorithm (sha256)"}},
    {CLI_VERITY,
     OPT_FORMAT_VERSION,
     {"format-version", 0, "0|1", "hash type: 1 is normal, 0 is Chrome OS's (1)"}},
    {CLI_VERITY, OPT_DATA_BLOCK_SIZE, {"data-block-size", 0, "BYTES", "data block size (4096)"}},
    {CLI_VERITY, OPT_HASH_BLOCK_SIZE, {"hash-block-size", 0, "BYTES", "hash block size (4096)"}},
    {CLI_VERITY, OPT_DATA_BLOCKS, {"data-blocks", 0, "COUNT", "data blocks (the whole partition)"}},
    {CLI_VERITY,
     OPT_HASH_OFFSET,
     {"hash-offset", 0, "BYTES", "where the hash area begins in the hash device (0)"}},
    {CLI_VERITY, OPT_SALT, {"salt", 0, "HEX|-|random", "the salt; - for none (32 zero bytes)"}},
    {CLI_VERITY,
     OPT_UUID,
     {"uuid", 0, "UUID", "the superblock's UUID (derived from the root hash)"}},
    {CLI_VERITY, OPT_NO_SUPERBLOCK, {"no-superblock", 0, NULL, "a hash device without superblock"}},
    {CLI_TREE, OPT_THREADS, {"threads", 0, "COUNT", "threads that hash (one for each CPU)"}},
    {CLI_TREE,
     OPT_DIRECT,
     {"direct", 0, "auto|on|off",
      "read past the page cache: auto does so for data larger than "
      "free memory (auto)"}},
    {CLI_TREE, OPT_CACHE, {"cache", 0, "SIZE", "memory for nodes of the tree (64M)"}},
    {CLI_KEEP, OPT_TREE, {"tree", 0, "FILE", "keep the tree in FILE (IMAGE.qvtree)"}},
    {CLI_KEEP, OPT_NO_TREE, {"no-tree", 0, NULL, "neither use nor write a tree file"}},
    {CLI_KEEP, OPT_LEAN, {"lean", 0, NULL, "keep only level 1 and up: a 128th of the space"}},
    {CLI_KEEP, OPT_RESCAN, {"rescan", 0, NULL, "read everything, whatever the tree file says"}},
    {CLI_SANDBOX,
     OPT_NO_SANDBOX,
     {"no-sandbox", 0, NULL, "do not confine the process; for debugging"}},
    {CLI_JSON, OPT_JSON, {"json", 0, NULL, "print one JSON object"}},
    {0, OPT_QUIET, {"quiet", 'q', NULL, "no progress, no warnings"}},
    {0, OPT_VERBOSE, {"verbose", 'v', NULL, "tell more; twice for debugging"}},
    {0, OPT_HELP, {"help", 'h', NULL, "this text"}},
};

#define SHARED_COUNT (sizeof(shared_options) / sizeof(shared_options[0]))

static bool command_has(const struct cli_command *command, size_t shared)
{
    unsigned group = shared_options[shared].group;

    return group == 0 || (command->groups & group) != 0;
}

static bool is_named(const struct cli_option *option, const char *name, size_t length)
{
    return strlen(option->name) == length && strncmp(option->name, name, length) == 0;
}

bool cli_has_option(const struct cli_command *command, const char *name, size_t length)
{
    for (size_t i = 0; i < SHARED_COUNT; i++)
        if (command_has(command, i) && is_named(&shared_options[i].option, name, length))
            return true;
    for (const struct cli_option *o = command->options; o != NULL && o->name != NULL; o++)
        if (is_named(o, name, length))
            return true;
    return false;
}

/* --- Help --- */

static void print_option(const struct cli_option *option)
{
    char left[64];
    int n = 0;

    if (option->short_name != 0)
        n = snprintf(left, sizeof(left), "  -%c, ", option->short_name);
    else
        n = snprintf(left, sizeof(left), "      ");
    snprintf(left + n, sizeof(left) - (size_t)n, "--%s%s%s", option->name,
             option->argument != NULL ? " " : "", option->argument != NULL ? option->argument : "");
    if (strlen(left) > 32)
        printf("%s\n%34s%s\n", left, "", option->help);
    else
        printf("%-32s  %s\n", left, option->help);
}

static void print_group(const struct cli_command *command, unsigned group, const char *title)
{
    if (group != 0 && (command->groups & group) == 0)
        return;
    printf("\n%s:\n", title);
    for (size_t i = 0; i < SHARED_COUNT; i++)
        if (shared_options[i].group == group ||
            (group == 0 && shared_options[i].group == CLI_JSON && command_has(command, i)))
            print_option(&shared_options[i].option);
}

static void print_help(const struct cli_command *command)
{
    printf("Usage: qverity %s [OPTION…] %s\n\n%s\n", command->name, command->arguments,
           command->summary);
    if (command->details != NULL)
        printf("\n%s\n", command->details);
    if (command->options != NULL && command->options[0].name != NULL) {
        printf("\nOptions:\n");
        for (const struct cli_option *o = command->options; o->name != NULL; o++)
            print_option(o);
    }
    print_group(command, CLI_IMAGE, "Image");
    print_group(command, CLI_PARTITION, "Partition");
    print_group(command, CLI_VERITY, "Verity, as veritysetup has them");
    print_group(command, CLI_TREE, "Hashing");
    print_group(command, CLI_KEEP, "Tree file");
    print_group(command, 0, "General");
}

/* --- Parsing --- */

int cli_usage_error(struct error *err, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    _cleanup_free_ char *text = text_vformat(format, args);
    va_end(args);
    return error_set(err, CLI_USAGE_CODE, "%s", text != NULL ? text : format);
}

static int parse_u64_into(const char *argument, const char *what, uint64_t *value, bool *set,
                          bool size, struct error *err)
{
    int r = size ? parse_size(argument, what, value, err) : parse_u64(argument, what, value, err);

    if (r == 0)
        *set = true;
    return r;
}

static int parse_direct(const char *argument, enum hashtree_direct *ret, struct error *err)
{
    static const char *const names[] = {
        [HASHTREE_DIRECT_AUTO] = "auto",
        [HASHTREE_DIRECT_ON] = "on",
        [HASHTREE_DIRECT_OFF] = "off",
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(argument, names[i]) == 0) {
            *ret = (enum hashtree_direct)i;
            return 0;
        }
    return error_set(err, EINVAL, "--direct: '%s' is not auto, on or off", argument);
}

static int apply_shared(enum shared_id id, const char *argument, struct cli_options *o,
                        struct error *err)
{
    uint64_t value;
    int r;

    switch (id) {
    case OPT_FORMAT:
        o->image.format = argument;
        return 0;
    case OPT_SNAPSHOT:
        o->image.snapshot = argument;
        return 0;
    case OPT_PASSWORD_FILE:
        o->image.password_file = argument;
        return 0;
    case OPT_FORCE:
        o->image.force = true;
        return 0;
    case OPT_NO_SANDBOX:
        o->no_sandbox = true;
        return 0;
    case OPT_PARTITION:
        o->partition = argument;
        return 0;
    case OPT_HASH:
        o->verity.hash = argument;
        return 0;
    case OPT_FORMAT_VERSION:
        return parse_u64_into(argument, "--format-version", &o->verity.format_version,
                              &o->verity.format_version_set, false, err);
    case OPT_DATA_BLOCK_SIZE:
        return parse_u64_into(argument, "--data-block-size", &o->verity.data_block_size,
                              &o->verity.data_block_size_set, true, err);
    case OPT_HASH_BLOCK_SIZE:
        return parse_u64_into(argument, "--hash-block-size", &o->verity.hash_block_size,
                              &o->verity.hash_block_size_set, true, err);
    case OPT_DATA_BLOCKS:
        return parse_u64_into(argument, "--data-blocks", &o->verity.data_blocks,
                              &o->verity.data_blocks_set, false, err);
    case OPT_HASH_OFFSET:
        return parse_u64_into(argument, "--hash-offset", &o->verity.hash_offset,
                              &o->verity.hash_offset_set, true, err);
    case OPT_SALT:
        o->verity.salt = argument;
        return 0;
    case OPT_UUID:
        o->verity.uuid = argument;
        return 0;
    case OPT_NO_SUPERBLOCK:
        o->verity.no_superblock = true;
        return 0;
    case OPT_THREADS:
        r = parse_u64(argument, "--threads", &value, err);
        if (r < 0)
            return r;
        if (value < 1 || value > 1024)
            return error_set(err, EINVAL, "--threads: '%s' is not between 1 and 1024", argument);
        o->tree.threads = (unsigned)value;
        return 0;
    case OPT_DIRECT:
        return parse_direct(argument, &o->tree.direct, err);
    case OPT_CACHE:
        r = parse_size(argument, "--cache", &value, err);
        if (r < 0)
            return r;
        if (value < 1024 * 1024)
            return error_set(err, EINVAL, "--cache: '%s' is less than 1M", argument);
        o->tree.cache_size = value;
        return 0;
    case OPT_TREE:
        o->keep.path = argument;
        return 0;
    case OPT_NO_TREE:
        o->no_tree = true;
        return 0;
    case OPT_LEAN:
        o->keep.lean = true;
        return 0;
    case OPT_RESCAN:
        o->keep.rescan = true;
        return 0;
    case OPT_JSON:
        o->json = true;
        return 0;
    case OPT_QUIET:
        o->quiet = true;
        return 0;
    case OPT_VERBOSE:
        o->verbose++;
        return 0;
    case OPT_HELP:
        break;
    }
    abort();
}

struct getopt_tables {
    struct option longs[OPTIONS_MAX];
    char shorts[OPTIONS_MAX * 2];
};

static void add_option(struct getopt_tables *tables, size_t *longs, size_t *shorts,
                       const struct cli_option *option, int value)
{
    if (*longs + 1 >= OPTIONS_MAX)
        abort();
    tables->longs[(*longs)++] = (struct option){
        option->name, option->argument != NULL ? required_argument : no_argument, NULL, value};
    if (option->short_name != 0) {
        tables->shorts[(*shorts)++] = option->short_name;
        if (option->argument != NULL)
            tables->shorts[(*shorts)++] = ':';
    }
}

static void make_tables(const struct cli_command *command, struct getopt_tables *tables)
{
    size_t longs = 0, shorts = 0;

    memset(tables, 0, sizeof(*tables));
    /* '-': operands are returned in their place, so that those behind "--" can be told apart;
     * ':': a missing argument is told apart from an unknown option. */
    tables->shorts[shorts++] = '-';
    tables->shorts[shorts++] = ':';
    for (size_t i = 0; i < SHARED_COUNT; i++)
        if (command_has(command, i))
            add_option(tables, &longs, &shorts, &shared_options[i].option, SHARED_BASE + (int)i);
    if (command->options != NULL)
        for (size_t i = 0; command->options[i].name != NULL; i++)
            add_option(tables, &longs, &shorts, &command->options[i], OWN_BASE + (int)i);
}

/* A short option's place in the tables. */
static int long_value(const struct cli_command *command, int c)
{
    if (c >= SHARED_BASE)
        return c;
    for (size_t i = 0; i < SHARED_COUNT; i++)
        if (command_has(command, i) && shared_options[i].option.short_name == c)
            return SHARED_BASE + (int)i;
    if (command->options != NULL)
        for (size_t i = 0; command->options[i].name != NULL; i++)
            if (command->options[i].short_name == c)
                return OWN_BASE + (int)i;
    abort();
}

static int check_operands(const struct cli_command *command, int operands, int behind_dashes,
                          struct error *err)
{
    int counted = command->takes_rest ? operands - behind_dashes : operands;

    if (counted < command->operands_min)
        return cli_usage_error(err, "%s: arguments are missing: qverity %s %s", command->name,
                               command->name, command->arguments);
    if (command->operands_max >= 0 && counted > command->operands_max)
        return cli_usage_error(err, "%s: too many arguments: qverity %s %s", command->name,
                               command->name, command->arguments);
    return 0;
}

int cli_parse(const struct cli_command *command, int argc, char **argv, struct cli_options *options,
              void *context, char **operands, int *ret_operands, struct error *err)
{
    struct getopt_tables tables;
    int count = 0;

    make_tables(command, &tables);
    optind = 1;
    opterr = 0;
    for (;;) {
        int before = optind;
        int c = getopt_long(argc, argv, tables.shorts, tables.longs, NULL);
        if (c == -1)
            break;
        if (c == 1) {
            operands[count++] = optarg;
            continue;
        }
        if (c == ':')
            return cli_usage_error(err, "%s: option '%s' needs an argument", command->name,
                                   argv[optind - 1]);
        if (c == '?') {
            /* A long option is wrong in whole; a short one within its cluster. */
            const char *word = argv[before] != NULL ? argv[before] : "";
            if (strncmp(word, "--", 2) == 0 || optopt == 0)
                return cli_usage_error(err, "%s: unknown option '%s'", command->name, word);
            return cli_usage_error(err, "%s: unknown option '-%c'", command->name, optopt);
        }
        int value = long_value(command, c);
        int r;
        if (value >= OWN_BASE) {
            r = command->option((size_t)(value - OWN_BASE), optarg, context, err);
        } else {
            /* cppcheck-suppress arrayIndexOutOfBoundsCond ; long_value() has it of this table */
            enum shared_id id = shared_options[value - SHARED_BASE].id;
            if (id == OPT_HELP) {
                print_help(command);
                return CLI_PARSE_HELP;
            }
            r = apply_shared(id, optarg, options, err);
        }
        if (r < 0) {
            if (err->code != CLI_USAGE_CODE)
                cli_usage_error(err, "%s: %s", command->name, error_message(err));
            return -CLI_USAGE_CODE;
        }
    }
    options->behind_dashes = argc - optind;
    for (int i = optind; i < argc; i++)
        operands[count++] = argv[i];
    int r = check_operands(command, count, options->behind_dashes, err);
    if (r < 0)
        return r;
    *ret_operands = count;
    return 0;
}
