/* test_text_pattern.c - Oniguruma patterns on PCRE2: what is translated, how it matches, and
 * what is refused. SPDX-License-Identifier: MIT */
#include "base/mem.h"
#include "text/byte_level.h"
#include "text/pattern.h"

#include "support/fl_test.h"

#include <stdio.h>
#include <string.h>

/* Matches of regex in text, joined with '|'. Valid until the next call. */
static const char *matches(const char *regex, const char *text, size_t n_bytes)
{
    static char shown[1024];
    fl_pattern *p;
    fl_matcher matcher = {0};
    fl_err err = {""};
    size_t n = 0, start, end;
    bool found;
    if (fl__pattern_new_regex(&p, regex, "t.json", "pattern", &err)) fail_msg("%s", err.text);
    fl_match_iter it = fl__match_iter_init(p, &matcher, text, n_bytes);
    shown[0] = '\0';
    for (int i = 0;; i++) {
        assert_int_equal(fl__match_iter_next(&found, &start, &end, &it, &err), FL_OK);
        if (!found) break;
        n += (size_t)snprintf(shown + n, sizeof shown - n, "%s%.*s", i ? "|" : "",
                              (int)(end - start), text + start);
    }
    fl__matcher_fini(&matcher);
    fl__pattern_free(&p);
    return shown;
}

static void matches_like_oniguruma(void **state)
{
    (void)state;
    static const struct {
        const char *regex, *text, *found;
    } cases[] = {
        {"a+", "aaba", "aa|a"},
        {"a+?", "aa", "a|a"},
        {"a*", "baac", "|aa|"}, /* no empty match directly behind one */
        {"", "ab", "||"},
        {"(ab)+|c", "ababc", "abab|c"},
        {"a{2}", "aaaaa", "aa|aa"},
        {"a{2,}", "aaaaa", "aaaaa"},
        {"a{,2}b", "aaab", "aab"}, /* literal text in PCRE2 10.42 */
        {"a{1,2}?", "aa", "a|a"},
        {"a{x}", "a{x}", "a{x}"},
        {"{", "{", "{"},
        {"a++b|a", "aaab", "aaab"},
        {"(?i:'s|'LL)", "x's 'S 'll '\xC5\xBF", "'s|'S|'ll|'\xC5\xBF"},
        {"(?i)ab", "ABaB", "AB|aB"},
        {"(?i:a(?-i:b))", "Ab AB", "Ab"},
        {"(?<=a)b(?!c)(?=d)(?<!x)", "abd abc", "b"},
        {"(?>a+)b", "aab", "aab"},
        /* classes */
        {"[a-c]+", "abcd", "abc"},
        {"[^a-c]+", "abcd", "d"},
        {"[a\\-c]+", "a-c", "a-c"},
        {"[-a]+", "a-b", "a-"},
        {"[a-]+", "a-b", "a-"},
        {"[\\w-]+", "a-b c", "a-b|c"},
        {"[a[bc]d]+", "abcdx", "abcd"}, /* a union; PCRE2 would see '[' and end at ']' */
        {"[^a[bc]]+", "abcd[", "d["},
        {"[\\]\\[]+", "[]x", "[]"},
        {"[\\n\\x41\\x{1F600}\\u00e9]+", "A\xF0\x9F\x98\x80\xC3\xA9\nB",
         "A\xF0\x9F\x98\x80\xC3\xA9\n"},
        {"[.*+?(){}|^$]+", "a.*+?(){}|^$", ".*+?(){}|^$"},
        {"[\xE4\xB8\x80-\xE9\xBE\xA5]+", "a\xE6\x97\xA5\xE6\x9C\xAC",
         "\xE6\x97\xA5\xE6\x9C\xAC"},
        /* escapes */
        {"\\s+", "a \xE2\x80\x83\xC2\x85\tb", " \xE2\x80\x83\xC2\x85\t"},
        {"\\s", "\xE1\xA0\x8E", ""}, /* U+180E is no space */
        {"\\S+", "a\xE1\xA0\x8E b", "a\xE1\xA0\x8E|b"},
        {"[^\\S\\n]+", "a \n\tb", " |\t"},
        {"\\w+", "e\xCC\x81_1\xE2\x80\xBF\xC2\xB2-x", "e\xCC\x81_1\xE2\x80\xBF\xC2\xB2|x"},
        {"\\W+", "a-+ b", "-+ "},
        {"[\\W]+", "a-+ \xE2\x82\xAC\xE3\x80\x80 b", "-+ \xE2\x82\xAC\xE3\x80\x80 "},
        {"\\d+", "a1\xD9\xA3\xC2\xB2", "1\xD9\xA3"},
        {"\\D+", "1a\xC2\xB2", "a\xC2\xB2"},
        {"\\h+", "xyz1aFg \t", "1aF"}, /* white space in PCRE2 */
        {"\\v", "\n\v\r", "\v"},       /* every vertical space in PCRE2 */
        {"\\t\\r\\f\\a\\e", "\t\r\f\a\x1B", "\t\r\f\a\x1B"},
        {"\\.\\*\\\\\\/\\'\\-", "x.*\\/'-", ".*\\/'-"},
        {".+", "a\r\xE2\x80\xA8x\nb", "a\r\xE2\x80\xA8x|b"}, /* only \n ends a line */
        {"\\p{L}+",
         "a\xC3\xA9\xE6\x97\xA5"
         "1",
         "a\xC3\xA9\xE6\x97\xA5"},
        {"\\P{L}+", "a12b", "12"},
        {"\\p{^L}+", "a12b", "12"},
        {"\\p{Lu}\\p{Ll}+", "Ab aB", "Ab"},
        {"\\p{Han}+", "a\xE6\x97\xA5\xE3\x80\x85\xE3\x83\xBC", "\xE6\x97\xA5\xE3\x80\x85"},
        {"[^\\p{L}\\p{N}]+", "a1-+b", "-+"},
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        const char *found = matches(cases[i].regex, cases[i].text, strlen(cases[i].text));
        if (strcmp(found, cases[i].found) != 0)
            fail_msg("%s on %s: %s, wanted %s", cases[i].regex, cases[i].text, found,
                     cases[i].found);
    }
}

static void known_expressions(void **state)
{
    (void)state;
    static const char llama3[] =
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
        " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    static const struct {
        const char *regex, *text, *found;
    } cases[] = {
        {fl__byte_level_regex, "I've 12  x's\n\n !?", "I|'ve| 12| | x|'s|\n\n| !?"},
        {fl__byte_level_regex, "I'LL\t\t\xC2\xA0y", "I|'|LL|\t\t|\xC2\xA0|y"},
        {llama3, "I'LL 12345\r\n\r\n  x\t!?\n y", "I|'LL| |123|45|\r\n\r\n| | x|\t|!?\n| y"},
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++)
        assert_string_equal(matches(cases[i].regex, cases[i].text, strlen(cases[i].text)),
                            cases[i].found);
}

static void nul_is_a_character(void **state)
{
    (void)state;
    static const char text[] = "a\0b";
    fl_pattern *p;
    fl_matcher matcher = {0};
    size_t start, end;
    bool found;
    assert_int_equal(fl__pattern_new_regex(&p, "[^a]+", "t", "p", NULL), FL_OK);
    fl_match_iter it = fl__match_iter_init(p, &matcher, text, 3);
    assert_int_equal(fl__match_iter_next(&found, &start, &end, &it, NULL), FL_OK);
    assert_true(found);
    assert_int_equal(start, 1);
    assert_int_equal(end, 3);
    fl__matcher_fini(&matcher);
    fl__pattern_free(&p);
}

static void refuses_what_differs(void **state)
{
    (void)state;
    static const struct {
        const char *regex, *why;
    } cases[] = {
        {"^a", "offset 0: an anchor"},
        {"a$", "offset 1: an anchor"},
        {"\\bx", "an escape that is not known"},
        {"\\A", "an escape that is not known"},
        {"\\1", "an escape that is not known"},
        {"\\Qa\\E", "an escape that is not known"},
        {"a\\", "a backslash at the end"},
        {"\\xE9", "a bad \\x escape"},
        {"\\x{110000}", "a bad \\x escape"},
        {"\\x{d800}", "a bad \\x escape"},
        {"\\x{41", "a bad \\x escape"},
        {"\\ud800", "a bad \\u escape"},
        {"\\u12", "a bad \\u escape"},
        {"\\pL", "a bad \\p escape"},
        {"\\p{}", "a property"},
        {"\\p{Xx}", "a property"},
        {"\\p{L", "a property"},
        {"\\p{Alpha}", "no regular expression for PCRE2"},
        {"[", "a class without end"},
        {"[]", "an empty class"},
        {"[^]]", "an empty class"},
        {"[a[]]", "an empty class"},
        {"[a&&b]", "an intersection"},
        {"[a-&&b]", "a range that ends in a class"},
        {"[a[^b]]", "a POSIX bracket or a negated class"},
        {"[[:alpha:]]", "a POSIX bracket or a negated class"},
        {"[b-a]", "a range that ends before it starts"},
        {"[a-\\d]", "a range that ends before it starts"},
        {"[a-[b]]", "a range that ends in a class"},
        {"(", "a group without end"},
        {")", "a ')' too many"},
        {"(?<name>a)", "a group or option that is not known"},
        {"(?'name'a)", "a group or option that is not known"},
        {"(?m:a)", "a group or option that is not known"},
        {"(?x)a", "a group or option that is not known"},
        {"(?#c)", "a group or option that is not known"},
        {"(*FAIL)", "a callout"},
        {"a(?i)b", "an option in the middle"},
        {"*", "a repetition of nothing"},
        {"a|+", "a repetition of nothing"},
        {"(?=a)*", "a repetition of nothing"},
        {"a**", "a repetition of nothing"},
        {"a{2}{3}", "a repetition of nothing"},
        {"a{1,2}+", "a quantifier behind a repetition"},
        {"a{2}?", "a quantifier behind a repetition"},
        {"a{3,2}", "a repetition of n to fewer times"},
        {"(?i:ss)", "the folding of one character"},
        {"(?i:sT)", "the folding of one character"},
        {"(?i:\xC3\xA9)", "non-ASCII text under (?i)"},
        {"(?i:[\xC3\xA9])", "non-ASCII text under (?i)"},
        {"(?i:\\p{Lu})", "letter properties under (?i)"},
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        fl_pattern *p = (fl_pattern *)1;
        fl_err err = {""};
        const fl_status st = fl__pattern_new_regex(&p, cases[i].regex, "t.json", "a.b", &err);
        if (st != FL_E_UNSUPPORTED) fail_msg("%s: %d %s", cases[i].regex, st, err.text);
        assert_null(p);
        assert_non_null(strstr(err.text, "unsupported tokenizer: t.json: a.b"));
        if (!strstr(err.text, cases[i].why)) fail_msg("%s: %s", cases[i].regex, err.text);
    }
}

static void size_and_nesting_are_bounded(void **state)
{
    (void)state;
    fl_pattern *p;
    fl_err err;
    char *regex = fl__calloc(20001, 1);
    assert_non_null(regex);
    memset(regex, 'a', 20000);
    assert_int_equal(fl__pattern_new_regex(&p, regex, "t", "p", &err), FL_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "20000 bytes"));
    for (int i = 0; i < 100; i++) regex[i] = '(';
    for (int i = 100; i < 200; i++) regex[i] = ')';
    regex[200] = '\0';
    assert_int_equal(fl__pattern_new_regex(&p, regex, "t", "p", &err), FL_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "groups nested too deeply"));
    fl__free(&regex);
}

/* Too deep for the JIT's stack, fine for the interpreter. */
static void interpreter_takes_over(void **state)
{
    (void)state;
    enum { N = 200000 };
    fl_pattern *p;
    fl_matcher matcher = {0};
    size_t start, end;
    bool found;
    fl_err err = {""};
    char *text = fl__alloc(N, 1);
    assert_non_null(text);
    memset(text, 'a', N);
    assert_int_equal(fl__pattern_new_regex(&p, "(?:a|b)+", "t", "p", NULL), FL_OK);
    fl_match_iter it = fl__match_iter_init(p, &matcher, text, N);
    if (fl__match_iter_next(&found, &start, &end, &it, &err)) fail_msg("%s", err.text);
    assert_true(found);
    assert_int_equal(end, N);
    fl__matcher_fini(&matcher);
    fl__pattern_free(&p);
    fl__free(&text);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(matches_like_oniguruma),       cmocka_unit_test(known_expressions),
    cmocka_unit_test(nul_is_a_character),           cmocka_unit_test(refuses_what_differs),
    cmocka_unit_test(size_and_nesting_are_bounded), cmocka_unit_test(interpreter_takes_over),
};
FL_TEST_MAIN(tests)
