/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "provision/doc.h"
#include "provision/fields.h"
#include "provision/secrets.h"

/* --- Trees of YAML --- */

static struct doc *parse(const char *text, struct problems *problems)
{
    _cleanup_error_ struct error err = ERROR_INIT;
    struct doc *doc = NULL;

    assert_int_equal(doc_parse(text, strlen(text), "f", problems, &doc, &err), 0);
    return doc;
}

static void test_doc(void **state)
{
    _cleanup_problems_ struct problems problems = PROBLEMS_INIT;
    _cleanup_(doc_free_cleanup) struct doc *doc =
        parse("a: 1\nb:\n  - x\n  - {c: ~, d: '~'}\ne: \"two\\nlines\"\n", &problems);

    (void)state;
    assert_int_equal(problems.count, 0);
    assert_int_equal(doc->kind, DOC_MAP);
    assert_int_equal(doc->count, 3);
    assert_string_equal(doc_get(doc, "a")->text, "1");
    const struct doc *list = doc_get(doc, "b");
    assert_int_equal(list->kind, DOC_LIST);
    assert_int_equal(list->items[0]->line, 3);
    assert_int_equal(list->items[1]->line, 4);
    assert_true(doc_is_null(doc_get(list->items[1], "c")));
    assert_false(doc_is_null(doc_get(list->items[1], "d")));
    assert_string_equal(doc_get(doc, "e")->text, "two\nlines");
    assert_null(doc_get(doc, "f"));
}

static void test_doc_problems(void **state)
{
    static const struct {
        const char *text, *problem;
        bool has_tree;
    } cases[] = {
        {"a: 1\na: 2\n", "f:2: a: given twice, first in line 1", true},
        {"a: &x 1\n", "f:1: anchors (&x) are not for recipes", true},
        {"a: [*x, b]\n", "f:1: aliases (*x) are not for recipes", true},
        {"? [a]\n: b\n", "f:1: a key must be a text, not a list", true},
        {"a: 1\n---\nb: 2\n", "f:2: a second document; a recipe is one", false},
        {"", "f:1: the file is empty", false},
        {"a: 1\n b: 2\n", "f:2: not YAML: mapping values are not allowed in this context", false},
        {"a: \"\\0\"\n", "f:1: a NUL character in a text", true},
        {"a: \xff\n", "f:1: not YAML: invalid leading UTF-8 octet", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        _cleanup_problems_ struct problems problems = PROBLEMS_INIT;
        _cleanup_(doc_free_cleanup) struct doc *doc = parse(cases[i].text, &problems);
        assert_int_equal(problems.count, 1);
        assert_string_equal(problems.lines[0], cases[i].problem);
        assert_int_equal(doc != NULL, cases[i].has_tree);
    }
}

static void test_problems_sorted(void **state)
{
    _cleanup_problems_ struct problems problems = PROBLEMS_INIT;
    static const char *const sorted[] = {"f:1: d", "f:2: b", "f:2: c", "f:9: a"};

    (void)state;
    problems_add(&problems, "f", 9, "a");
    problems_add(&problems, "f", 2, "b");
    problems_add(&problems, "f", 2, "c");
    problems_add(&problems, "f", 1, "d");
    for (size_t i = 0; i < 4; i++)
        assert_string_equal(problems.lines[i], sorted[i]);
    for (size_t i = 0; i < 500; i++)
        problems_add(&problems, "f", 1, "x");
    assert_int_equal(problems.count + problems.dropped, 504);
}

/* --- Paths of guests --- */

static void test_guest_path(void **state)
{
    static const struct {
        const char *path;
        bool good;
    } cases[] = {
        {"/etc/passwd", true}, {"/a", true},     {"/a/", true},   {"/.a/..b/c..", true},
        {"/a/...", true},      {"", false},      {"a", false},    {"/", false},
        {"//", false},         {"/a//b", false}, {"/./a", false}, {"/a/..", false},
        {"/a/../b", false},    {"/..", false},
    };
    char name[300] = "/";

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(guest_path_fault(cases[i].path) == NULL, cases[i].good);
    memset(name + 1, 'x', 255);
    assert_null(guest_path_fault(name));
    name[256] = 'x';
    assert_non_null(guest_path_fault(name));
}

/* --- Secrets --- */

static bool found_in_pieces(const struct secret *secret, const char *bytes, size_t length,
                            size_t piece)
{
    _cleanup_(search_free_cleanup) struct search *search = NULL;
    const struct secret *found = NULL;

    assert_int_equal(search_new(secret, 1, &search, NULL), 0);
    for (size_t i = 0; i < length && found == NULL; i += piece)
        found = search_feed(search, bytes + i, length - i < piece ? length - i : piece);
    return found != NULL;
}

/* Wherever it is and however the bytes are cut. */
static void test_secrets(void **state)
{
    char bytes[700], needle[SEALER_SECRET_MAX];
    static const size_t lengths[] = {SEALER_SECRET_MIN, 33, SEALER_SECRET_MAX};

    (void)state;
    for (size_t i = 0; i < sizeof(needle); i++)
        needle[i] = (char)(i + 1);
    for (size_t l = 0; l < 3; l++)
        for (size_t at = 0; at + lengths[l] <= sizeof(bytes); at += 13)
            for (size_t piece = 1; piece < sizeof(bytes); piece += 37) {
                const struct secret secret = {.bytes = needle, .length = lengths[l]};
                memset(bytes, 0, sizeof(bytes));
                memcpy(bytes + at, needle, lengths[l]);
                assert_true(found_in_pieces(&secret, bytes, sizeof(bytes), piece));
                bytes[at + lengths[l] / 2] ^= 1;
                assert_false(found_in_pieces(&secret, bytes, sizeof(bytes), piece));
            }
}

/* --- Digests --- */

static void digest_of(void (*add)(struct digest *digest), uint8_t ret[static DIGEST_SIZE])
{
    _cleanup_(digest_free_cleanup) struct digest *digest = NULL;

    assert_int_equal(digest_new(&digest, NULL), 0);
    add(digest);
    assert_int_equal(digest_end(digest, ret, NULL), 0);
}

static void add_two(struct digest *digest)
{
    digest_text(digest, "ab");
    digest_text(digest, "c");
}

static void add_other_two(struct digest *digest)
{
    digest_text(digest, "a");
    digest_text(digest, "bc");
}

static void add_nothing(struct digest *digest)
{
    digest_text(digest, NULL);
}

static void add_empty(struct digest *digest)
{
    digest_text(digest, "");
}

static void test_digest(void **state)
{
    void (*const adds[])(struct digest *) = {add_two, add_other_two, add_nothing, add_empty};
    uint8_t digests[4][DIGEST_SIZE];

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        digest_of(adds[i], digests[i]);
        for (size_t j = 0; j < i; j++)
            assert_memory_not_equal(digests[i], digests[j], DIGEST_SIZE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_doc),
        cmocka_unit_test(test_doc_problems),
        cmocka_unit_test(test_problems_sorted),
        cmocka_unit_test(test_guest_path),
        cmocka_unit_test(test_secrets),
        cmocka_unit_test(test_digest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
