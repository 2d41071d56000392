/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"
#include "common/text.h"
#include "common/units.h"

struct facts {
    struct image *image;
    struct partition_table *table; /* NULL: it could not be read, or cannot be; */
    struct error table_error;      /* then this says why */
    const struct partition *data;  /* the data partition, or NULL */
    uint64_t zero_bytes;           /* known to be zeros without reading */
    uint64_t compressed_bytes;     /* in compressed clusters */
    struct hashtree_file_info tree;
};

static void facts_clear(struct facts *facts)
{
    hashtree_file_info_clear(&facts->tree);
    error_clear(&facts->table_error);
    partition_table_free(facts->table);
    image_close(facts->image);
}
DEFINE_CLEANUP_INPLACE(struct facts, facts_clear);

static int count_bytes(struct facts *facts, struct error *err)
{
    uint64_t size = image_size(facts->image);
    struct image_hole_hint hint = {0};
    struct extent extent;

    for (uint64_t at = 0; at < size; at += extent.length) {
        int r = image_map_hinted(facts->image, at, size - at, 0, &hint, &extent, err);
        if (r < 0)
            return r;
        if (extent.kind == EXTENT_ZERO)
            facts->zero_bytes += extent.length;
        else if (extent.kind == EXTENT_COMPRESSED)
            facts->compressed_bytes += extent.length;
    }
    return 0;
}

/* The partitions are some facts of many: whoever asks what is wrong with an image wants the others,
 * too. */
static int find_partitions(struct facts *facts, struct error *err)
{
    int r = partition_table_read(facts->image, &facts->table, &facts->table_error);

    if (r == -ENOMEM) {
        error_move(err, &facts->table_error);
        return r;
    }
    /* Many an image has none that holds the data. */
    if (r >= 0 && partition_find(facts->table, NULL, &facts->data, NULL) < 0)
        facts->data = NULL;
    return 0;
}

static int facts_gather(const char *path, const struct cli_options *options, struct facts *facts,
                        struct error *err)
{
    _cleanup_free_ char *tree_path = NULL;
    struct cli_options all = *options;

    int r = image_open(path, &options->image, &facts->image, err);
    if (r < 0)
        return r;
    tree_path = hashtree_file_path(facts->image);
    if (tree_path == NULL)
        return error_oom(err);
    /* To tell the state of a tree file takes what hashing does. */
    all.hashes = all.any_digest = access(tree_path, F_OK) == 0;
    all.tree.threads = 1;
    r = cli_confine(&all, &facts->image, 1, NULL, err);
    if (r >= 0)
        r = find_partitions(facts, err);
    if (r >= 0)
        r = count_bytes(facts, err);
    if (r < 0)
        return r;
    const struct hashtree_file_options keep = {.snapshot = options->image.snapshot};
    return hashtree_file_info(facts->image, &keep, &facts->tree, err);
}

/* --- JSON --- */

/* Numbers that a format does not have are 0 in image_info, and null here. */
static json_t *number_or_null(uint64_t number)
{
    return number != 0 ? json_integer((json_int_t)number) : json_null();
}

/* One key and its value at a time; the first failure stays. */
struct object {
    json_t *json;
    int result;
    struct error *err;
};

static void put(struct object *object, const char *key, json_t *value)
{
    if (object->result < 0)
        json_decref(value);
    else
        object->result = json_put(object->json, key, value, object->err);
}

static json_t *number(uint64_t n)
{
    return json_integer((json_int_t)n);
}

/* Makes an array of `count` objects, each filled by `fill`. NULL: out of memory. */
static json_t *make_array(size_t count, void (*fill)(struct object *, const void *, size_t),
                          const void *from, struct error *err)
{
    _cleanup_json_ json_t *array = json_array();

    for (size_t i = 0; array != NULL && i < count; i++) {
        struct object object = {.json = json_object(), .err = err};

        if (json_array_append_new(array, object.json) != 0)
            return NULL;
        fill(&object, from, i);
        if (object.result < 0)
            return NULL;
    }
    return TAKE_PTR(array);
}

static void fill_snapshot(struct object *object, const void *from, size_t index)
{
    const struct image_snapshot *snapshot = &((const struct image_info *)from)->snapshots[index];

    put(object, "id", json_text(snapshot->id));
    put(object, "name", json_text(snapshot->name));
    put(object, "disk_size", number(snapshot->disk_size));
    put(object, "vm_state_size", number(snapshot->vm_state_size));
    put(object, "date", json_integer((json_int_t)snapshot->date));
}

static void fill_bitmap(struct object *object, const void *from, size_t index)
{
    const struct image_bitmap *bitmap = &((const struct image_info *)from)->bitmaps[index];

    put(object, "name", json_text(bitmap->name));
    put(object, "granularity", number(bitmap->granularity));
    put(object, "in_use", json_boolean(bitmap->in_use));
    put(object, "automatic", json_boolean(bitmap->automatic));
}

/* What the header of one image of the chain says. */
static void fill_info(struct object *object, const void *from, size_t depth)
{
    const struct image_info *info = image_info(from, (unsigned)depth);

    put(object, "path", json_text(info->path));
    put(object, "format", json_text(info->format));
    put(object, "version", number_or_null(info->version));
    put(object, "virtual_size", number(info->size));
    put(object, "file_size", number(info->file_size));
    put(object, "disk_usage", number(info->disk_usage));
    put(object, "cluster_size", number_or_null(info->cluster_size));
    put(object, "compression", json_text(info->compression));
    put(object, "encryption", json_text(info->encryption));
    put(object, "refcount_bits", number_or_null(info->refcount_bits));
    put(object, "extended_l2", json_boolean(info->extended_l2));
    put(object, "lazy_refcounts", json_boolean(info->lazy_refcounts));
    put(object, "dirty", json_boolean(info->dirty));
    put(object, "corrupt", json_boolean(info->corrupt));
    put(object, "data_file", json_text(info->data_file));
    put(object, "data_file_raw", json_boolean(info->data_file_raw));
    put(object, "backing_file", json_text(info->backing_file));
    put(object, "backing_format", json_text(info->backing_format));
    put(object, "snapshots", make_array(info->snapshot_count, fill_snapshot, info, object->err));
    put(object, "bitmaps", make_array(info->bitmap_count, fill_bitmap, info, object->err));
}

static void fill_backing(struct object *object, const void *from, size_t index)
{
    fill_info(object, from, index + 1);
}

static void put_content(struct object *object, const struct partition *partition)
{
    put(object, "filesystem", json_text(partition->fs_type));
    put(object, "filesystem_label", json_text(partition->fs_label));
    put(object, "filesystem_uuid", json_text(partition->fs_uuid));
}

static void fill_partition(struct object *object, const void *from, size_t index)
{
    const struct facts *facts = from;
    const struct partition *partition = &facts->table->partitions[index];

    put(object, "number", number(partition->number));
    put(object, "start", number(partition->start));
    put(object, "size", number(partition->size));
    put(object, "type", json_text(partition->type));
    put(object, "label", json_text(partition->label));
    put(object, "uuid", json_text(partition->uuid));
    put_content(object, partition);
    put(object, "container", json_boolean(partition->container));
    put(object, "data", json_boolean(partition == facts->data));
}

static unsigned chain_length(const struct facts *facts)
{
    unsigned length = 0;

    while (image_info(facts->image, length) != NULL)
        length++;
    return length;
}

static const char *tree_state(const struct hashtree_file_info *tree)
{
    return !tree->exists          ? "none"
           : tree->untrusted      ? "untrusted"
           : tree->damage != NULL ? "damaged"
           : tree->current        ? "current"
                                  : "outdated";
}

static void fill_tree(struct object *object, const struct hashtree_file_info *tree)
{
    char root[2 * VERITY_DIGEST_MAX + 1];

    put(object, "path", json_text(tree->path));
    put(object, "state", json_string(tree_state(tree)));
    if (!tree->exists || tree->damage != NULL)
        return;
    hex_encode(tree->root, tree->root_size, root);
    put(object, "root_hash", json_string(root));
    put(object, "start", number(tree->start));
    put(object, "size", number(tree->size));
    put(object, "lean", json_boolean(tree->lean));
    put(object, "tracking", json_boolean(tree->tracking));
    put(object, "disk_usage", number(tree->usage));
}

static void put_partitions(struct object *object, const struct facts *facts)
{
    static const struct partition unknown;
    const struct partition_table *table = facts->table;

    put_content(object, table != NULL ? &table->disk : &unknown);
    put(object, "partition_table", json_text(table != NULL ? table->type : NULL));
    put(object, "partition_table_uuid", json_text(table != NULL ? table->uuid : NULL));
    put(object, "sector_size", table != NULL ? number(table->sector_size) : json_null());
    put(object, "partitions",
        table != NULL ? make_array(table->count, fill_partition, facts, object->err) : json_null());
}

static int print_json(const struct facts *facts, struct error *err)
{
    _cleanup_json_ json_t *json = json_object();
    struct object object = {.json = json, .err = err};

    if (json == NULL)
        return error_oom(err);
    fill_info(&object, facts->image, 0);
    put(&object, "disk_size", number(image_size(facts->image)));
    put(&object, "allocated_bytes", number(image_size(facts->image) - facts->zero_bytes));
    put(&object, "compressed_bytes", number(facts->compressed_bytes));
    put(&object, "zero_bytes", number(facts->zero_bytes));
    put(&object, "backing_chain",
        make_array(chain_length(facts) - 1, fill_backing, facts->image, err));
    put_partitions(&object, facts);
    struct object tree = {.json = json_object(), .err = err};
    if (tree.json == NULL)
        return error_oom(err);
    fill_tree(&tree, &facts->tree);
    put(&object, "tree_file", tree.json);
    if (tree.result < 0)
        return tree.result;
    return object.result < 0 ? object.result : json_print(json, err);
}

/* --- Text --- */

static void print_label(const char *label)
{
    printf("%-19s", label);
}

/* A string out of the image, without what a terminal would take for a command, in a column of
 * `width` bytes. */
static void print_column(const char *text, int width)
{
    _cleanup_free_ char *printable = text_printable(text);

    printf("%-*s", width, printable != NULL ? printable : "?");
}

static void print_text(const char *text)
{
    print_column(text, 0);
}

static void print_line(const char *label, const char *text)
{
    if (text == NULL)
        return;
    print_label(label);
    print_text(text);
    putchar('\n');
}

static void print_size(const char *label, uint64_t size)
{
    char text[FORMAT_SIZE_MAX];

    print_label(label);
    printf("%s", format_size(size, text));
    if (size >= 1024)
        printf(" (%" PRIu64 " bytes)", size);
    putchar('\n');
}

static void print_features(const struct image_info *info)
{
    const struct {
        bool set;
        const char *name;
    } features[] = {
        {info->extended_l2, "extended L2"},
        {info->lazy_refcounts, "lazy refcounts"},
        {info->data_file != NULL, "external data file"},
        {info->data_file_raw, "raw external data"},
        {info->dirty, "dirty"},
        {info->corrupt, "corrupt"},
    };
    bool any = false;

    print_label("Features:");
    if (info->compression != NULL) {
        printf("compression %s", info->compression);
        any = true;
    }
    if (info->encryption != NULL) {
        printf("%sencryption %s", any ? ", " : "", info->encryption);
        any = true;
    }
    if (info->refcount_bits != 0) {
        printf("%srefcounts of %u bits", any ? ", " : "", info->refcount_bits);
        any = true;
    }
    for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
        if (!features[i].set)
            continue;
        printf("%s%s", any ? ", " : "", features[i].name);
        any = true;
    }
    puts(any ? "" : "none");
}

static void print_date(int64_t date)
{
    time_t seconds = (time_t)date;
    char text[64];
    struct tm tm;

    if (gmtime_r(&seconds, &tm) != NULL && strftime(text, sizeof(text), "%F %T", &tm) > 0)
        printf("%-21s", text);
    else
        printf("%-21" PRId64, date);
}

static void print_snapshots(const struct image_info *info)
{
    char size[FORMAT_SIZE_MAX], state[FORMAT_SIZE_MAX];

    if (info->snapshot_count == 0)
        return;
    printf("\nSnapshots:\n  %-10s %-10s %-20s  ID, name\n", "Disk size", "VM state", "Date (UTC)");
    for (size_t i = 0; i < info->snapshot_count; i++) {
        const struct image_snapshot *snapshot = &info->snapshots[i];

        printf("  %-10s %-10s ", format_size(snapshot->disk_size, size),
               format_size(snapshot->vm_state_size, state));
        print_date(snapshot->date);
        print_text(snapshot->id);
        printf(", ");
        print_text(snapshot->name);
        putchar('\n');
    }
}

static void print_bitmaps(const struct image_info *info)
{
    char size[FORMAT_SIZE_MAX];

    if (info->bitmap_count == 0)
        return;
    printf("\nBitmaps:\n  %-12s %-14s Name\n", "Granularity", "State");
    for (size_t i = 0; i < info->bitmap_count; i++) {
        const struct image_bitmap *bitmap = &info->bitmaps[i];

        printf("  %-12s %-14s ", format_size(bitmap->granularity, size),
               bitmap->in_use      ? "in use"
               : bitmap->automatic ? "recording"
                                   : "disabled");
        print_text(bitmap->name);
        putchar('\n');
    }
}

static void print_chain(const struct facts *facts)
{
    const struct image_info *info;
    char size[FORMAT_SIZE_MAX];

    for (unsigned depth = 1; (info = image_info(facts->image, depth)) != NULL; depth++) {
        print_label(depth == 1 ? "Backing chain:" : "");
        print_text(info->path);
        printf(" (%s, %s)\n", info->format, format_size(info->size, size));
    }
}

static void print_partition(const struct facts *facts, const struct partition *partition)
{
    char size[FORMAT_SIZE_MAX];

    printf(" %c%-3u %-15" PRIu64 " %-10s ", partition == facts->data ? '*' : ' ', partition->number,
           partition->start, format_size(partition->size, size));
    print_column(partition->type != NULL ? partition->type : "-", 37);
    putchar(' ');
    print_column(partition->container         ? "(extended)"
                 : partition->fs_type != NULL ? partition->fs_type
                                              : "-",
                 12);
    if (partition->label != NULL) {
        printf(" label=\"");
        print_text(partition->label);
        putchar('"');
    }
    if (partition->fs_label != NULL) {
        printf(" fs-label=\"");
        print_text(partition->fs_label);
        putchar('"');
    }
    if (partition->uuid != NULL) {
        printf(" uuid=");
        print_text(partition->uuid);
    }
    putchar('\n');
}

static void print_partitions(const struct facts *facts)
{
    const struct partition_table *table = facts->table;

    if (table == NULL) {
        print_line("Partition table:", "unknown");
        return;
    }
    if (table->type == NULL) {
        print_line("Partition table:", "none");
        print_line("File system:", table->disk.fs_type);
        print_line("File system label:", table->disk.fs_label);
        print_line("File system UUID:", table->disk.fs_uuid);
        return;
    }
    print_label("Partition table:");
    print_text(table->type);
    if (table->uuid != NULL) {
        printf(", ");
        print_text(table->uuid);
    }
    if (table->sector_size != 512)
        printf(", sectors of %u bytes", table->sector_size);
    putchar('\n');
    if (table->count == 0)
        return;
    printf("\nPartitions (* holds the data):\n  %-3s %-15s %-10s %-37s %-12s Names\n", "No",
           "Start", "Size", "Type", "Content");
    for (size_t i = 0; i < table->count; i++)
        print_partition(facts, &table->partitions[i]);
}

static void print_tree(const struct hashtree_file_info *tree)
{
    char size[FORMAT_SIZE_MAX], root[2 * VERITY_DIGEST_MAX + 1];

    if (!tree->exists)
        return;
    print_line("Tree file:", tree->path);
    print_label("");
    if (tree->damage != NULL) {
        print_text(tree->damage);
        putchar('\n');
        return;
    }
    printf("%s%s%s, %s\n", tree_state(tree), tree->lean ? ", lean" : "",
           tree->tracking ? ", changes tracked" : "", format_size(tree->usage, size));
    hex_encode(tree->root, tree->root_size, root);
    print_line("Root hash:", tree->current ? root : NULL);
}

static void print_table(const struct facts *facts)
{
    const struct image_info *info = image_info(facts->image, 0);

    print_line("Image:", info->path);
    print_label("Format:");
    printf(info->version != 0 ? "%s, version %u\n" : "%s\n", info->format, info->version);
    print_size("Virtual size:", image_size(facts->image));
    print_size("File size:", info->file_size);
    print_size("Disk usage:", info->disk_usage);
    print_size("Allocated:", image_size(facts->image) - facts->zero_bytes);
    if (facts->compressed_bytes > 0)
        print_size("Compressed:", facts->compressed_bytes);
    print_size("Zeros:", facts->zero_bytes);
    if (info->cluster_size != 0)
        print_size("Cluster size:", info->cluster_size);
    if (info->version != 0)
        print_features(info);
    print_line("Data file:", info->data_file);
    print_line("Backing file:", info->backing_file);
    print_line("Backing format:", info->backing_format);
    print_chain(facts);
    print_partitions(facts);
    print_snapshots(info);
    print_bitmaps(info);
    print_tree(&facts->tree);
}

static int info_run(const struct cli_options *options, int argc, char **argv, void *context,
                    struct error *err)
{
    _cleanup_(facts_clear_cleanup) struct facts facts = {0};

    (void)argc;
    (void)context;
    int r = facts_gather(argv[0], options, &facts, err);
    if (r < 0)
        return r;
    if (options->json)
        r = print_json(&facts, err);
    else
        print_table(&facts);
    if (r >= 0 && facts.table == NULL) {
        error_move(err, &facts.table_error);
        return err->code > 0 ? -err->code : -EIO;
    }
    return r;
}

const struct cli_command cmd_info = {
    .name = "info",
    .arguments = "IMAGE",
    .summary = "Tells what an image is and which partitions it has",
    .details =
        "Allocated are the bytes that have to be read to know them; the rest, zeros, is not\n"
        "allocated, flagged as zeros, or a hole of the host file. An asterisk marks the data\n"
        "partition: the largest one with a Linux file system. Where the partition table cannot be\n"
        "read, or cannot be, everything else is told, then why, and the exit status is 1.",
    .groups = CLI_IMAGE | CLI_JSON | CLI_SANDBOX,
    .operands_min = 1,
    .operands_max = 1,
    .run = info_run,
};
