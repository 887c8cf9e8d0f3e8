/* test_tokenizer_decode.c - every row of the decoders, at once and id by id.
 * SPDX-License-Identifier: MIT */
#include "base/mem.h"
#include "text/text_buf.h"
#include "text/tokenizer.h"

#include "support/fl_test.h"
#include "support/tokenizer_json.h"

#include <stdio.h>
#include <string.h>

/* 0 "_a" 1 "b_" 2 "<0xE2>" 3 "<0x82>" 4 "<0xAC>" 5 "__" 6 "<s>" special, 7 "\u0120x" 8 "\u00e2"
 * 9 "\u0124" 10 "\u00ac" 11 "\u20ac" 12 "_"; 8 9 10 are the bytes E2 82 AC, the euro sign. */
#define DECODER_JSON                                                                           \
    "{'model':{'type':'BPE','merges':[],'vocab':{'_a':0,'b_':1,'<0xE2>':2,'<0x82>':3,"         \
    "'<0xAC>':4,'__':5,'<s>':6,'\\u0120x':7,'\\u00e2':8,'\\u0124':9,'\\u00ac':10,"             \
    "'\\u20ac':11,'_':12}},'added_tokens':[{'id':6,'content':'<s>','special':true}],"          \
    "'decoder':%s}"
#define LLAMA2_DECODER                                                                         \
    "{'type':'Sequence','decoders':[{'type':'Replace','pattern':{'String':'_'},"               \
    "'content':' '},{'type':'ByteFallback'},{'type':'Fuse'},"                                  \
    "{'type':'Strip','content':' ','start':1,'stop':0}]}"
#define REPLACED "\xEF\xBF\xBD"

static const struct {
    const char *decoder;
    int32_t ids[8];
    int n_ids;
    const char *text;
} decoder_cases[] = {
    {"null", {0, 1, 6, 0}, 4, "_a b_ <s> _a"},
    {"null", {0}, 0, ""},
    {"{'type':'Fuse'}", {0, 1, 12}, 3, "_ab__"},
    {"{'type':'ByteLevel'}", {7, 8, 9, 10, 7}, 5, " x\xE2\x82\xAC x"},
    {"{'type':'ByteLevel'}", {8, 9, 7, 8, 9}, 5, REPLACED " x" REPLACED},
    {"{'type':'ByteLevel'}",
     {10, 8, 8, 9, 10, 10},
     6,
     REPLACED REPLACED "\xE2\x82\xAC" REPLACED},
    {"{'type':'ByteLevel'}", {11, 7}, 2, "\xE2\x82\xAC x"}, /* no stand-in: the text itself */
    {"{'type':'ByteLevel'}", {0}, 0, ""},
    {"{'type':'ByteFallback'}", {2, 3, 4, 0, 2, 3, 4}, 7, "\xE2\x82\xAC_a\xE2\x82\xAC"},
    {"{'type':'ByteFallback'}", {2, 3, 0, 3}, 4, REPLACED REPLACED "_a" REPLACED},
    {"{'type':'ByteFallback'}", {2, 3, 4, 2}, 4, REPLACED REPLACED REPLACED REPLACED},
    {"{'type':'Replace','pattern':{'String':'_'},'content':'--'}", {0, 5, 1}, 3, "--a----b--"},
    {"{'type':'Replace','pattern':{'Regex':'_+'},'content':''}", {0, 5, 1}, 3, "ab"},
    {"{'type':'Strip','content':'_','start':1,'stop':0}", {0, 5, 1, 12}, 4, "a_b_"},
    {"{'type':'Strip','content':'_','start':0,'stop':1}", {0, 5, 1, 12}, 4, "_a_b"},
    {"{'type':'Strip','content':'_','start':1,'stop':1}", {0, 5, 1, 12}, 4, "ab"},
    {"{'type':'Sequence','decoders':[{'type':'Fuse'},{'type':'Strip','content':'_','start':3,"
     "'stop':2}]}",
     {12, 5, 5, 0, 1, 5},
     6,
     "___ab_"},
    {"{'type':'Sequence','decoders':[{'type':'Fuse'},{'type':'Replace','pattern':{'String':"
     "'a_'},'content':'+'},{'type':'Fuse'}]}",
     {0, 12, 1},
     3,
     "_+b_"},
    {"{'type':'Sequence','decoders':[{'type':'ByteLevel'},{'type':'Strip','content':' ',"
     "'start':1,'stop':0}]}",
     {7, 7},
     2,
     "x x"},
    {LLAMA2_DECODER, {0, 1, 2, 3, 4, 5, 0}, 7, "ab \xE2\x82\xAC   a"},
    {LLAMA2_DECODER, {12, 0, 2, 3}, 4, " a" REPLACED REPLACED},
    {"{'type':'Fuse'}", {-1, 0, 1000, 1}, 4, "_ab_"}, /* ids that no token has */
};

static fl_tokenizer *open_decoder(const char *decoder)
{
    char json[2048];
    (void)snprintf(json, sizeof json, DECODER_JSON, decoder);
    return fl_test_tokenizer(json);
}

static void decoder_rows(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(decoder_cases); i++) {
        fl_tokenizer *t = open_decoder(decoder_cases[i].decoder);
        char *text;
        size_t n_bytes;
        assert_int_equal(fl__tokenizer_decode(&text, &n_bytes, t, decoder_cases[i].ids,
                                              (size_t)decoder_cases[i].n_ids, false, NULL),
                         FL_OK);
        assert_string_equal(text, decoder_cases[i].text);
        assert_int_equal(n_bytes, strlen(text));
        fl__free(&text);
        fl__tokenizer_close(&t);
    }
}

static bool whole_characters(const char *s, size_t n_bytes)
{
    fl_text_buf repaired = {0};
    if (n_bytes == 0) return true;
    const bool starts = ((unsigned char)s[0] & 0xC0) != 0x80;
    size_t last = n_bytes - 1;
    while (last > 0 && ((unsigned char)s[last] & 0xC0) == 0x80) last--;
    const unsigned char lead = (unsigned char)s[last];
    const size_t wanted = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    fl__text_buf_fini(&repaired);
    return starts && n_bytes - last == wanted;
}

/* The pieces are whole characters and add up to the text, after a reset too. */
static void streams_add_up(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(decoder_cases); i++) {
        fl_tokenizer *t = open_decoder(decoder_cases[i].decoder);
        fl_detok *d;
        assert_int_equal(fl__detok_new(&d, t, false, NULL), FL_OK);
        for (int round = 0; round < 2; round++) {
            fl_text_buf all = {0};
            const int n = decoder_cases[i].n_ids;
            for (int k = 0; k <= n; k++) {
                const char *text;
                size_t n_bytes;
                assert_int_equal(
                    k < n ? fl__detok_push(&text, &n_bytes, d, decoder_cases[i].ids[k], NULL)
                          : fl__detok_finish(&text, &n_bytes, d, NULL),
                    FL_OK);
                assert_true(whole_characters(text, n_bytes));
                assert_int_equal(fl__text_buf_append(&all, text, n_bytes), 0);
            }
            assert_int_equal(all.n_bytes, strlen(decoder_cases[i].text));
            assert_memory_equal(all.data, decoder_cases[i].text, all.n_bytes);
            fl__text_buf_fini(&all);
            fl__detok_reset(d);
        }
        fl__detok_free(&d);
        assert_null(d);
        fl__tokenizer_close(&t);
    }
}

/* A byte-level stream of every character length, cut at each byte. */
static void byte_level_stream_at_every_split(void **state)
{
    (void)state;
    static const char text[] = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z";
    fl_text_buf json = {0};
    int32_t ids[sizeof text];
    static const char head[] = "{\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{";
    static const char tail[] = "}},\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":"
                               "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}}";
    /* Stand-ins of all 256 bytes, as GPT-2 orders them. */
    int next = 0x100;
    assert_int_equal(fl__text_buf_append(&json, head, sizeof head - 1), 0);
    for (int b = 0; b < 256; b++) {
        char entry[32];
        const bool visible = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
        const int cp = visible ? b : next++;
        const int n = snprintf(entry, sizeof entry, "%s\"\\u%04x\":%d", b ? "," : "", cp, b);
        assert_int_equal(fl__text_buf_append(&json, entry, (size_t)n), 0);
    }
    assert_int_equal(fl__text_buf_append(&json, tail, sizeof tail - 1), 0);
    fl_tokenizer *t;
    fl_detok *d;
    fl_err err = {""};
    if (fl__tokenizer_open_memory(&t, json.data, json.n_bytes, &err)) fail_msg("%s", err.text);
    for (size_t i = 0; i < sizeof text - 1; i++) ids[i] = (unsigned char)text[i];
    assert_int_equal(fl__detok_new(&d, t, true, NULL), FL_OK);
    for (size_t n = 0; n < sizeof text; n++) { /* the first n bytes, then the end */
        fl_text_buf all = {0};
        const char *piece;
        size_t n_bytes;
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(fl__detok_push(&piece, &n_bytes, d, ids[i], NULL), FL_OK);
            assert_true(whole_characters(piece, n_bytes));
            assert_int_equal(fl__text_buf_append(&all, piece, n_bytes), 0);
        }
        assert_memory_equal(all.data, text, all.n_bytes);
        assert_true(n - all.n_bytes <= 3);
        const size_t held = n - all.n_bytes;
        assert_int_equal(fl__detok_finish(&piece, &n_bytes, d, NULL), FL_OK);
        assert_int_equal(n_bytes, held ? 3 : 0);
        if (held) assert_memory_equal(piece, REPLACED, 3);
        fl__text_buf_fini(&all);
        fl__detok_reset(d);
    }
    /* and the ids of the text are its bytes */
    assert_string_equal(fl_test_ids(t, text, 3, false), "97 195 169");
    fl__detok_free(&d);
    fl__text_buf_fini(&json);
    fl__tokenizer_close(&t);
}

static void skip_special_leaves_special_tokens_out(void **state)
{
    (void)state;
    static const int32_t ids[] = {6, 0, 6, 1, 6};
    static const char *const expected[] = {"<s>_a<s>b_<s>", "_ab_"};
    fl_tokenizer *t = open_decoder("{'type':'Fuse'}");
    for (int skip = 0; skip < 2; skip++) {
        char *text;
        size_t n_bytes;
        assert_int_equal(
            fl__tokenizer_decode(&text, &n_bytes, t, ids, FL_COUNT(ids), skip, NULL), FL_OK);
        assert_string_equal(text, expected[skip]);
        fl__free(&text);
    }
    fl__tokenizer_close(&t);
}

static void stream_does_not_allocate(void **state)
{
    (void)state;
    fl_tokenizer *t = open_decoder(LLAMA2_DECODER);
    fl_detok *d;
    const char *text;
    size_t n_bytes;
    assert_int_equal(fl__detok_new(&d, t, true, NULL), FL_OK);
    const uint64_t before = fl__mem_get().n_allocs;
    for (int i = 0; i < 1000; i++)
        assert_int_equal(fl__detok_push(&text, &n_bytes, d, i % 6, NULL), FL_OK);
    assert_int_equal(fl__mem_get().n_allocs, before);
    fl__detok_free(&d);
    fl__tokenizer_close(&t);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(decoder_rows),
    cmocka_unit_test(streams_add_up),
    cmocka_unit_test(byte_level_stream_at_every_split),
    cmocka_unit_test(skip_special_leaves_special_tokens_out),
    cmocka_unit_test(stream_does_not_allocate),
};
FL_TEST_MAIN(tests)
