/* test_text_unicode.c - UTF-8 decoding, character classes, normal forms.
 * SPDX-License-Identifier: MIT */
#include "base/mem.h"
#include "text/unicode.h"

#include "support/fl_test.h"

#include <string.h>

static void reads_characters(void **state)
{
    (void)state;
    static const struct {
        const char *s;
        size_t n_bytes;
        fl_utf8_char c;
    } cases[] = {
        {"a", 1, {1, true, false, 'a'}},
        {"\x00", 1, {1, true, false, 0}},
        {"\x7F\x80", 2, {1, true, false, 0x7F}},
        {"\xC2\x80", 2, {2, true, false, 0x80}},
        {"\xDF\xBF", 2, {2, true, false, 0x7FF}},
        {"\xE0\xA0\x80", 3, {3, true, false, 0x800}},
        {"\xED\x9F\xBF", 3, {3, true, false, 0xD7FF}},
        {"\xEE\x80\x80", 3, {3, true, false, 0xE000}},
        {"\xEF\xBF\xBF", 3, {3, true, false, 0xFFFF}},
        {"\xF0\x90\x80\x80", 4, {4, true, false, 0x10000}},
        {"\xF4\x8F\xBF\xBF", 4, {4, true, false, 0x10FFFF}},
        /* ill-formed */
        {"\x80", 1, {1, false, false, 0}},
        {"\xC1\xBF", 2, {1, false, false, 0}},
        {"\xE0\x9F\xBF", 3, {1, false, false, 0}},
        {"\xED\xA0\x80", 3, {1, false, false, 0}},
        {"\xE2\x82z", 3, {2, false, false, 0}},
        {"\xF0\x8F\xBF\xBF", 4, {1, false, false, 0}},
        {"\xF4\x90\x80\x80", 4, {1, false, false, 0}},
        {"\xF0\x9F\x98z", 4, {3, false, false, 0}},
        {"\xF5\x80", 2, {1, false, false, 0}},
        /* cut off */
        {"\xC3", 1, {1, false, true, 0}},
        {"\xE2\x82", 2, {2, false, true, 0}},
        {"\xF0\x9F\x98", 3, {3, false, true, 0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const fl_utf8_char c = fl__utf8_read(cases[i].s, cases[i].n_bytes);
        assert_int_equal(c.n_bytes, cases[i].c.n_bytes);
        assert_int_equal(c.valid, cases[i].c.valid);
        assert_int_equal(c.truncated, cases[i].c.truncated);
        if (c.valid) assert_int_equal(c.cp, cases[i].c.cp);
    }
}

/* Every scalar value comes back from its own encoding, and each is its string's last one. */
static void every_character_comes_back(void **state)
{
    (void)state;
    fl_text_buf b = {0};
    for (int32_t cp = 0; cp < 0x110000; cp++) {
        if (cp >= 0xD800 && cp < 0xE000) continue;
        fl__text_buf_clear(&b);
        assert_int_equal(fl__text_buf_append(&b, "x", 1), 0);
        assert_int_equal(fl__text_buf_append_char(&b, cp), 0);
        const fl_utf8_char c = fl__utf8_read(b.data + 1, b.n_bytes - 1);
        if (!c.valid || c.cp != cp || (size_t)c.n_bytes != b.n_bytes - 1)
            fail_msg("U+%04X", (unsigned)cp);
        if (fl__utf8_last(b.data, b.n_bytes) != 1) fail_msg("U+%04X", (unsigned)cp);
        if (fl__utf8_valid_prefix(b.data, b.n_bytes) != b.n_bytes)
            fail_msg("U+%04X", (unsigned)cp);
    }
    fl__text_buf_fini(&b);
}

static void valid_prefix_stops_at_the_first_bad_byte(void **state)
{
    (void)state;
    char text[64];
    for (size_t at = 0; at < sizeof text; at++) { /* inside and outside of words of eight */
        memset(text, 'a', sizeof text);
        text[at] = (char)0xFF;
        assert_int_equal(fl__utf8_valid_prefix(text, sizeof text), at);
    }
    assert_int_equal(fl__utf8_valid_prefix(text, 0), 0);
}

static void repairs_each_ill_formed_subpart_once(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out; /* '?' stands for U+FFFD */
    } cases[] = {
        {"", ""},
        {"abc", "abc"},
        {"\xFF", "?"},
        {"a\xC3(b", "a?(b"},
        {"\xE2\x82\xE2\x82\xAC", "?\xE2\x82\xAC"},
        {"\xED\xA0\x80\xED\xB0\x80", "??????"},
        {"\xF0\x9F\x98\xF0\x9F", "??"},
        {"\xF8\x88\x80\x80\x80", "?????"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fl_text_buf b = {0}, expected = {0};
        assert_int_equal(fl__utf8_repair(&b, cases[i].in, strlen(cases[i].in)), 0);
        for (const char *c = cases[i].out; *c; c++)
            assert_int_equal(*c == '?' ? fl__text_buf_append(&expected, FL_REPLACEMENT, 3)
                                       : fl__text_buf_append(&expected, c, 1),
                             0);
        assert_int_equal(b.n_bytes, expected.n_bytes);
        if (b.n_bytes) assert_memory_equal(b.data, expected.data, b.n_bytes);
        fl__text_buf_fini(&b);
        fl__text_buf_fini(&expected);
    }
}

static void character_classes(void **state)
{
    (void)state;
    static const struct {
        int32_t cp;
        bool space, word, numeric, punctuation;
    } cases[] = {
        {' ', true, false, false, false},     {'\t', true, false, false, false},
        {0x85, true, false, false, false},    {0x3000, true, false, false, false},
        {0x180E, false, false, false, false}, /* was a space until Unicode 6.3 */
        {0x200B, false, false, false, false}, {0x200D, false, true, false, false},
        {'a', false, true, false, false},     {'_', false, true, false, true},
        {'7', false, true, true, false},      {0xB2, false, false, true, false},
        {0x2167, false, true, true, false},   {0x301, false, true, false, false},
        {0x24B6, false, true, false, false},  {'$', false, false, false, true},
        {'~', false, false, false, true},     {'!', false, false, false, true},
        {0x2026, false, false, false, true},  {0x20AC, false, false, false, false},
        {0, false, false, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(fl__char_is_space(cases[i].cp), cases[i].space);
        assert_int_equal(fl__char_is_word(cases[i].cp), cases[i].word);
        assert_int_equal(fl__char_is_numeric(cases[i].cp), cases[i].numeric);
        assert_int_equal(fl__char_is_punctuation(cases[i].cp), cases[i].punctuation);
    }
}

static void normal_forms(void **state)
{
    (void)state;
    /* NFC, NFD, NFKC, NFKD */
    static const struct {
        const char *in, *out[4];
    } cases[] = {
        {"", {"", "", "", ""}},
        {"plain", {"plain", "plain", "plain", "plain"}},
        {"\xC3\xA9", {"\xC3\xA9", "e\xCC\x81", "\xC3\xA9", "e\xCC\x81"}},
        {"e\xCC\x81", {"\xC3\xA9", "e\xCC\x81", "\xC3\xA9", "e\xCC\x81"}},
        /* marks in the wrong order: dot above, dot below */
        {"q\xCC\x87\xCC\xA3",
         {"q\xCC\xA3\xCC\x87", "q\xCC\xA3\xCC\x87", "q\xCC\xA3\xCC\x87", "q\xCC\xA3\xCC\x87"}},
        /* "a", macron, dot above: two of the same class keep their order */
        {"a\xCC\x84\xCC\x87",
         {"\xC4\x81\xCC\x87", "a\xCC\x84\xCC\x87", "\xC4\x81\xCC\x87", "a\xCC\x84\xCC\x87"}},
        /* Hangul */
        {"\xED\x95\x9C",
         {"\xED\x95\x9C", "\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", "\xED\x95\x9C",
          "\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB"}},
        /* the ligature fi, superscript 2, Angstrom sign */
        {"\xEF\xAC\x81", {"\xEF\xAC\x81", "\xEF\xAC\x81", "fi", "fi"}},
        {"\xC2\xB2", {"\xC2\xB2", "\xC2\xB2", "2", "2"}},
        {"\xE2\x84\xAB", {"\xC3\x85", "A\xCC\x8A", "\xC3\x85", "A\xCC\x8A"}},
        /* excluded from composition: DEVANAGARI LETTER QA */
        {"\xE0\xA5\x98",
         {"\xE0\xA4\x95\xE0\xA4\xBC", "\xE0\xA4\x95\xE0\xA4\xBC", "\xE0\xA4\x95\xE0\xA4\xBC",
          "\xE0\xA4\x95\xE0\xA4\xBC"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int form = 0; form < 4; form++) {
            fl_text_buf b = {0};
            assert_int_equal(fl__unicode_normalize(&b, cases[i].in, strlen(cases[i].in),
                                                   (fl_unicode_form)form),
                             0);
            assert_int_equal(b.n_bytes, strlen(cases[i].out[form]));
            assert_memory_equal(b.data, cases[i].out[form], b.n_bytes);
            fl__text_buf_fini(&b);
        }
    }
}

/* Half a megabyte of combining marks in the worst order: quadratic sorting would take
 * minutes. */
static void long_runs_of_marks(void **state)
{
    (void)state;
    enum { N = 1 << 18 };
    fl_text_buf text = {0}, b = {0};
    for (int i = 0; i < N; i++) /* class 230, then class 220 */
        assert_int_equal(fl__text_buf_append(&text, i < N / 2 ? "\xCC\x87" : "\xCC\xA3", 2), 0);
    assert_int_equal(fl__unicode_normalize(&b, text.data, text.n_bytes, FL_NFD), 0);
    assert_int_equal(b.n_bytes, text.n_bytes);
    assert_memory_equal(b.data, text.data + N, N);
    assert_memory_equal(b.data + N, text.data, N);
    fl__text_buf_fini(&text);
    fl__text_buf_fini(&b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(reads_characters),
    cmocka_unit_test(every_character_comes_back),
    cmocka_unit_test(valid_prefix_stops_at_the_first_bad_byte),
    cmocka_unit_test(repairs_each_ill_formed_subpart_once),
    cmocka_unit_test(character_classes),
    cmocka_unit_test(normal_forms),
    cmocka_unit_test(long_runs_of_marks),
};
FL_TEST_MAIN(tests)
