/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "common/checked.h"
#include "common/units.h"
#include "provision/disk.h"

/*
 * What the disk is to be like. There is nothing to do: whoever installs a system makes its disk,
 * and a system in a tree gets one when all its files are there.
 */

#define ALIGNMENT (UINT64_C(1024) * 1024)
#define SIZE_MIN (16 * ALIGNMENT)
#define SIZE_MAX_BYTES (UINT64_C(1) << 50)
#define EFI_DEFAULT (64 * ALIGNMENT)
#define EFI_MIN (33 * ALIGNMENT) /* that FAT32 needs */
#define ROOT_MIN (8 * ALIGNMENT)

static const char *const types[] = {"efi", "root", NULL};
static const char *const preallocations[] = {"off", "metadata", NULL};

static const struct field partition_fields[] = {
    {.name = "type",
     .type = FIELD_CHOICE,
     .offset = offsetof(struct partition_options, type),
     .flags = FIELD_REQUIRED,
     .choices = types},
    {.name = "size", .type = FIELD_SIZE, .offset = offsetof(struct partition_options, size)},
    {.name = "label", .type = FIELD_TEXT, .offset = offsetof(struct partition_options, label)},
    {0},
};

static const struct field fields[] = {
    {.name = "size",
     .type = FIELD_SIZE,
     .offset = offsetof(struct disk_options, size),
     .flags = FIELD_REQUIRED | FIELD_MAIN,
     .minimum = SIZE_MIN,
     .maximum = SIZE_MAX_BYTES},
    {.name = "preallocation",
     .type = FIELD_CHOICE,
     .offset = offsetof(struct disk_options, preallocation),
     .choices = preallocations},
    {.name = "partitions",
     .type = FIELD_OBJECTS,
     .offset = offsetof(struct disk_options, partitions),
     .fields = partition_fields,
     .size = sizeof(struct partition_options)},
    {0},
};

static const struct partition_options default_partitions[] = {
    {.type = PARTITION_EFI, .size = EFI_DEFAULT, .label = (char *)"EFI"},
    {.type = PARTITION_ROOT, .label = (char *)"root"},
};

/* Of a partition and of its file system, which takes fewer. */
static bool good_label(const char *label)
{
    return strlen(label) <= 16 &&
           label[strspn(
               label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")] == '\0';
}

/* Puts a partition at the place that is free; the text says why that cannot be. */
static const char *place(const struct partition_options *partition, uint64_t end,
                         struct disk_layout *layout, uint64_t *start)
{
    const uint64_t least = partition->type == PARTITION_EFI ? EFI_MIN : ROOT_MIN;
    uint64_t size = partition->size, next;

    if (*start >= end)
        return "they are larger than the disk";
    if (size == 0)
        size = end - *start;
    if (size % ALIGNMENT != 0)
        return "a size is no multiple of 1M";
    if (!checked_add(*start, size, &next) || next > end)
        return "they are larger than the disk";
    if (size < least)
        return partition->type == PARTITION_EFI ? "an EFI partition needs 33M"
                                                : "a root partition needs 8M";
    if (partition->label != NULL && !good_label(partition->label))
        return "a label must be up to 16 letters, digits, - and _";
    layout->partitions[layout->count++] = (struct disk_partition){
        .type = (enum partition_type)partition->type,
        .start = *start,
        .size = size,
        .label = partition->label != NULL ? partition->label : types[partition->type],
    };
    *start = next;
    return NULL;
}

const char *disk_layout(const struct disk_options *options, struct disk_layout *ret)
{
    const struct partition_options *partitions = options->partitions.items;
    size_t count = options->partitions.count, roots = 0;
    struct disk_layout layout = {.size = options->size};
    uint64_t start = ALIGNMENT;

    if (count == 0) {
        partitions = default_partitions;
        count = sizeof(default_partitions) / sizeof(default_partitions[0]);
    }
    if (count > DISK_PARTITIONS_MAX)
        return "there are more than 16";
    if (options->size % ALIGNMENT != 0)
        return "the disk's size is no multiple of 1M";
    for (size_t i = 0; i < count; i++) {
        /* Room for the backup of the partition table. */
        const char *fault = place(&partitions[i], options->size - ALIGNMENT, &layout, &start);
        if (fault != NULL)
            return fault;
        if (partitions[i].type == PARTITION_ROOT) {
            layout.root = i;
            roots++;
        }
    }
    if (roots != 1)
        return "there must be one of type root";
    *ret = layout;
    return NULL;
}

static void check(struct checker *checker, struct step *step)
{
    const struct disk_options *options = step->options;
    const struct step *install = recipe_step(checker->recipe, NULL, "install");
    struct disk_layout layout;

    if (recipe_step(checker->recipe, step, "disk") != NULL)
        checker_problem(checker, step, 0, "given twice");
    if (options->size == 0 || install == NULL)
        return;
    if (strcmp(install->type->variant, "mmdebstrap") == 0) {
        const char *fault = disk_layout(options, &layout);
        if (fault != NULL)
            checker_problem(checker, step, 0, "partitions: %s", fault);
        if (options->preallocation != PREALLOCATION_OFF)
            checker_problem(checker, step, 0,
                            "preallocation: has no meaning for install: mmdebstrap, whose disk is "
                            "made with what is on it");
    } else if (options->partitions.count > 0) {
        checker_problem(checker, step, 0, "partitions: install: %s partitions the disk by itself",
                        install->type->variant);
    }
}

static int run(struct build *build, struct step *step, struct error *err)
{
    const struct disk_options *options = step->options;
    char size[FORMAT_SIZE_MAX];

    (void)err;
    build_say(build, "a disk of %s", format_size(options->size, size));
    return 0;
}

static int plan(const struct build *build, const struct step *step, struct plan_step *plan,
                struct error *err)
{
    const struct disk_options *options = step->options;
    struct disk_layout layout;
    char size[FORMAT_SIZE_MAX];
    int r = 0;

    const struct step *install = recipe_step(build->recipe, NULL, "install");
    if (strcmp(install->type->variant, "mmdebstrap") != 0 || disk_layout(options, &layout) != NULL)
        return plan_action(plan, err, "a blank disk of %s", format_size(options->size, size));
    for (size_t i = 0; r == 0 && i < layout.count; i++)
        r = plan_action(plan, err, "partition %zu: %s, %s", i + 1, types[layout.partitions[i].type],
                        format_size(layout.partitions[i].size, size));
    return r;
}

const struct step_type step_disk = {
    .kind = "disk",
    .size = sizeof(struct disk_options),
    .fields = fields,
    .places = IN(PLACE_BLANK),
    .check = check,
    .run = run,
    .plan = plan,
};
