/* SPDX-License-Identifier: MIT */
/*
 * Recipes: what reads YAML and checks steps. Input is the file. A recipe that is accepted can be
 * planned; one that is refused has mistakes that are told, each with a line of the file.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "provision/provision.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/mutate.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_start();
    return 0;
}

static void plan(const struct recipe *recipe)
{
    static const struct build_options options = {.work = "work", .interrupt = -1};
    struct error err = ERROR_INIT;
    struct plan_step *steps;
    size_t count;

    int r = recipe_plan(recipe, &options, &steps, &count, &err);
    if (r < 0) {
        fuzz_expect_error(&err, r);
        return;
    }
    for (size_t i = 0; i < count; i++)
        if (steps[i].name == NULL || steps[i].done)
            fuzz_fail("step %u of %zu: no name, or done already", steps[i].number, count);
    recipe_plan_free(steps, count);
}

static void check_problems(const struct problems *problems, unsigned lines)
{
    static const char prefix[] = "recipe.yaml:";

    if (problems->count == 0)
        fuzz_fail("refused, and nobody says why");
    for (size_t i = 0; i < problems->count; i++)
        if (strncmp(problems->lines[i], prefix, sizeof(prefix) - 1) != 0 ||
            problems->numbers[i] == 0 || problems->numbers[i] > lines + 1)
            fuzz_fail("line %u of %u: %s", problems->numbers[i], lines, problems->lines[i]);
}

/* YAML has more line breaks than one. */
static unsigned count_lines(const uint8_t *data, size_t size)
{
    unsigned lines = 1;

    for (size_t i = 0; i < size; i++)
        lines += data[i] == '\n' || data[i] == '\r' || data[i] == 0x85 || data[i] == 0xa8 ||
                 data[i] == 0xa9;
    return lines;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    _cleanup_problems_ struct problems problems = PROBLEMS_INIT;
    struct error err = ERROR_INIT;
    struct recipe *recipe;

    fuzz_write("recipe.yaml", data, size);
    int r = recipe_load("recipe.yaml", &problems, &recipe, &err);
    if (r == 0) {
        if (problems.count > 0)
            fuzz_fail("accepted, but: %s", problems.lines[0]);
        plan(recipe);
        recipe_free(recipe);
        return 0;
    }
    if (r == -EINVAL)
        check_problems(&problems, count_lines(data, size));
    fuzz_expect_error(&err, r);
    return 0;
}

/* --- Mutations: of lines, as a recipe is made of them --- */

struct line {
    size_t start, length; /* with its end */
};

static struct line random_line(struct mutator *m)
{
    size_t at = (size_t)mutator_below(m, m->size), start = at, end = at;

    while (start > 0 && m->bytes[start - 1] != '\n')
        start--;
    while (end < m->size && m->bytes[end++] != '\n')
        ;
    return (struct line){start, end - start};
}

/* Puts `bytes` in the place of what is there. */
static void replace(struct mutator *m, struct line where, const uint8_t *bytes, size_t length)
{
    if (m->size - where.length + length > m->room)
        return;
    memmove(m->bytes + where.start + length, m->bytes + where.start + where.length,
            m->size - where.start - where.length);
    memcpy(m->bytes + where.start, bytes, length);
    m->size = m->size - where.length + length;
}

static void mutate_lines(struct mutator *m)
{
    uint8_t copy[4096];
    struct line from = random_line(m), to = random_line(m);
    size_t length = from.length < sizeof(copy) ? from.length : sizeof(copy);

    memcpy(copy, m->bytes + from.start, length);
    switch (mutator_below(m, 4)) {
    case 0: /* another line instead */
        replace(m, to, copy, length);
        break;
    case 1: /* one more */
        to.length = 0;
        replace(m, to, copy, length);
        break;
    case 2: /* one less */
        replace(m, to, copy, 0);
        break;
    case 3: /* deeper or less deep */
        if (to.length > 2 && m->bytes[to.start] == ' ' && mutator_below(m, 2) == 0)
            replace(m, (struct line){to.start, 2}, copy, 0);
        else
            replace(m, (struct line){to.start, 0}, (const uint8_t *)"  ", 2);
        break;
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    struct mutator m = {.bytes = data, .size = size, .room = room, .random = mutator_seed(seed)};

    if (size == 0 || mutator_below(&m, 2) == 0)
        return LLVMFuzzerMutate(data, size, room);
    mutate_lines(&m);
    return m.size;
}
