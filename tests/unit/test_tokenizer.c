/* test_tokenizer.c - every row of the tokenizer's tables, from a tokenizer.json made here.
 *
 * To see how a pre-tokeniser or normaliser cuts or
 * changes a text, the vocabulary holds just the expected pieces and ignore_merges takes them
 * whole: any other piece falls apart into <unk>.
 * SPDX-License-Identifier: MIT */
#include "base/mem.h"
#include "text/text_buf.h"
#include "text/tokenizer.h"

#include "support/fl_test.h"
#include "support/tokenizer_json.h"

#include <stdio.h>
#include <string.h>

static void assert_ids(const fl_tokenizer *t, const char *text, const char *expected)
{
    assert_string_equal(fl_test_ids(t, text, strlen(text), false), expected);
}

/* Tokens of text joined with '|'. Valid until the next call. */
static const char *tokens_of(const fl_tokenizer *t, const char *text)
{
    static char shown[4096];
    int32_t *ids;
    size_t n_ids, n = 0, n_bytes;
    fl_err err = {""};
    if (fl__tokenizer_encode(&ids, &n_ids, t, text, strlen(text), false, &err))
        fail_msg("%s", err.text);
    shown[0] = '\0';
    for (size_t i = 0; i < n_ids; i++) {
        const char *token = fl__tokenizer_text(t, ids[i], &n_bytes);
        n += (size_t)snprintf(shown + n, sizeof shown - n, "%s%.*s", i ? "|" : "", (int)n_bytes,
                              token);
        assert_true(n < sizeof shown);
    }
    fl__free(&ids);
    return shown;
}

/* Appends a piece to a JSON object of tokens; the quotes are those of fl_test_quoted. */
static void add_piece(fl_text_buf *vocab, const char *piece, size_t n_bytes, int id)
{
    char tail[16];
    int failed = fl__text_buf_append(vocab, ",'", 2);
    for (size_t i = 0; i < n_bytes; i++) {
        const char *json = piece[i] == '\'' ? "`" : piece[i] == '\n' ? "\\n" : NULL;
        failed |= json ? fl__text_buf_append(vocab, json, strlen(json))
                       : fl__text_buf_append(vocab, piece + i, 1);
    }
    const int n = snprintf(tail, sizeof tail, "':%d", id);
    failed |= fl__text_buf_append(vocab, tail, (size_t)n);
    assert_int_equal(failed, 0);
}

/* A tokenizer that knows exactly the pieces of "a|b|c", with `rest` as further members of the
 * document. */
static fl_tokenizer *open_pieces(const char *pieces, const char *rest)
{
    char json[4096];
    fl_text_buf vocab = {0};
    int id = 1;
    for (const char *piece = pieces; *piece;) {
        const size_t n = strcspn(piece, "|");
        bool known = false;
        for (const char *seen = pieces; seen < piece; seen += strcspn(seen, "|") + 1)
            known |= strcspn(seen, "|") == n && memcmp(seen, piece, n) == 0;
        if (!known) add_piece(&vocab, piece, n, id++);
        piece += n + (piece[n] == '|');
    }
    (void)snprintf(json, sizeof json,
                   "{'model':{'type':'BPE','ignore_merges':true,'unk_token':'<unk>',"
                   "'merges':[],'vocab':{'<unk>':0%.*s}},%s}",
                   (int)vocab.n_bytes, vocab.data, rest);
    fl__text_buf_fini(&vocab);
    return fl_test_tokenizer(json);
}

/* ---- model ------------------------------------------------------------------------------- */

#define ABC_VOCAB "'a':0,'b':1,'c':2,'ab':3,'bc':4,'abc':5,'aa':6,'aaaa':7"
#define MODEL(merges, more)                                                                    \
    "{'model':{'type':'BPE','vocab':{" ABC_VOCAB "},'merges':[" merges "]" more "}}"

static void merges_by_rank(void **state)
{
    (void)state;
    static const struct {
        const char *merges, *text, *ids;
    } cases[] = {
        {"", "abc", "0 1 2"},
        {"'a b'", "abcab", "3 2 3"},
        {"'b c','a b'", "abc", "0 4"},
        {"'a b','b c'", "abc", "3 2"},
        {"'a b','ab c'", "abcabab", "5 3 3"},
        {"['a','b'],['ab','c']", "abc", "5"},
        {"'a bc','b c'", "abc", "5"},
        {"'a a'", "aaaaa", "6 6 0"},
        {"'a a','aa aa'", "aaaaaaa", "7 6 0"},
        {"'a b','b c','a b'", "abc", "0 4"}, /* of equal merges the later one counts */
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        char json[512];
        (void)snprintf(json, sizeof json,
                       "{'model':{'type':'BPE','vocab':{" ABC_VOCAB "},'merges':[%s]}}",
                       cases[i].merges);
        fl_tokenizer *t = fl_test_tokenizer(json);
        assert_ids(t, cases[i].text, cases[i].ids);
        fl__tokenizer_close(&t);
        assert_null(t);
    }
}

static void model_without_type_is_bpe(void **state)
{
    (void)state;
    fl_tokenizer *t =
        fl_test_tokenizer("{'model':{'vocab':{'a':0,'b':1,'ab':2},'merges':['a b']}}");
    assert_ids(t, "abab", "2 2");
    fl__tokenizer_close(&t);
}

static void unknown_characters(void **state)
{
    (void)state;
    static const struct {
        const char *more, *text, *ids;
    } cases[] = {
        {"", "axyb", "0 1"},
        {",'unk_token':'<u>'", "axyb", "0 2 2 1"},
        {",'unk_token':'<u>','fuse_unk':true", "axybz", "0 2 1 2"},
        {",'unk_token':'<u>','byte_fallback':true",
         "a\xC3\xA9\xE2\x82\xAC"
         "b",
         "0 3 4 2 1"},
        /* What waits to be fused comes behind the byte tokens. */
        {",'unk_token':'<u>','fuse_unk':true,'byte_fallback':true", "x\xC3\xA9y", "3 4 2"},
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        char json[512];
        (void)snprintf(json, sizeof json,
                       "{'model':{'type':'BPE','merges':[],'vocab':{'a':0,'b':1,'<u>':2,"
                       "'<0xC3>':3,'<0xA9>':4}%s}}",
                       cases[i].more);
        fl_tokenizer *t = fl_test_tokenizer(json);
        assert_ids(t, cases[i].text, cases[i].ids);
        fl__tokenizer_close(&t);
    }
}

static void missing_unknown_token_fails_when_needed(void **state)
{
    (void)state;
    fl_tokenizer *t = fl_test_tokenizer(MODEL("", ",'unk_token':'<none>'"));
    int32_t *ids = (int32_t *)1;
    size_t n_ids;
    fl_err err;
    assert_ids(t, "abc", "0 1 2");
    assert_int_equal(fl__tokenizer_encode(&ids, &n_ids, t, "x", 1, false, &err), FL_E_INPUT);
    assert_null(ids);
    assert_non_null(strstr(err.text, "<none>"));
    fl__tokenizer_close(&t);
}

static void ignore_merges_takes_whole_pieces(void **state)
{
    (void)state;
    fl_tokenizer *t = fl_test_tokenizer(MODEL("", ",'ignore_merges':true"));
    assert_ids(t, "abc", "5");
    assert_ids(t, "abcb", "0 1 2 1");
    fl__tokenizer_close(&t);
}

/* A megabyte without a cut must not take quadratic time. */
static void long_word(void **state)
{
    (void)state;
    const size_t n_bytes = 1 << 20;
    char *text = fl__alloc(n_bytes, 1);
    int32_t *ids;
    size_t n_ids;
    fl_tokenizer *t = fl_test_tokenizer(MODEL("'a a','aa aa'", ""));
    memset(text, 'a', n_bytes);
    assert_int_equal(fl__tokenizer_encode(&ids, &n_ids, t, text, n_bytes - 1, false, NULL),
                     FL_OK);
    assert_int_equal(n_ids, n_bytes / 4 + 1); /* .. aaaa aa a */
    assert_int_equal(ids[0], 7);
    assert_int_equal(ids[n_ids - 2], 6);
    assert_int_equal(ids[n_ids - 1], 0);
    fl__free(&ids);
    fl__free(&text);
    fl__tokenizer_close(&t);
}

/* More different words than the cache holds at first, then all of them again. */
static void cached_words_give_the_same_ids(void **state)
{
    (void)state;
    enum { N_WORDS = 5000 };
    fl_tokenizer *t =
        fl_test_tokenizer("{'model':{'type':'BPE','vocab':{'0':0,'1':1,'2':2,'3':3,'4':4,"
                          "'5':5,'6':6,'7':7,'8':8,'9':9,'12':10,'34':11,'1234':12},"
                          "'merges':['1 2','3 4','12 34']},"
                          "'pre_tokenizer':{'type':'WhitespaceSplit'}}");
    fl_text_buf text = {0};
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N_WORDS; i++) {
            char word[16];
            const int n = snprintf(word, sizeof word, "%d ", i);
            assert_int_equal(fl__text_buf_append(&text, word, (size_t)n), 0);
        }
    }
    int32_t *ids;
    size_t n_ids;
    assert_int_equal(
        fl__tokenizer_encode(&ids, &n_ids, t, text.data, text.n_bytes, false, NULL), FL_OK);
    assert_int_equal(n_ids % 2, 0);
    assert_memory_equal(ids, ids + n_ids / 2, n_ids / 2 * sizeof *ids);
    assert_string_equal(tokens_of(t, "1234 1235 123 1234"), "1234|12|3|5|12|3|1234");
    fl__free(&ids);
    fl__text_buf_fini(&text);
    fl__tokenizer_close(&t);
}

/* ---- pre-tokenisers ---------------------------------------------------------------------- */

#define SPLIT(pattern, behavior, invert)                                                       \
    "'pre_tokenizer':{'type':'Split','pattern':{" pattern "},'behavior':'" behavior            \
    "','invert':" invert "}"
#define GPT2_WORDS "'pre_tokenizer':{'type':'ByteLevel','add_prefix_space':false}"
#define LLAMA3                                                                                 \
    "(?i:`s|`t|`re|`ve|`m|`ll|`d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}|"      \
    " ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

static void pretokenizer_rows(void **state)
{
    (void)state;
    static const struct {
        const char *rest, *text, *pieces;
    } cases[] = {
        {"'pre_tokenizer':null", "a b", "a b"},
        {SPLIT("'String':', '", "Removed", "false"), "a, b, ", "a|b"},
        {SPLIT("'String':', '", "Isolated", "false"), "a, b, ", "a|, |b|, "},
        {SPLIT("'String':','", "MergedWithPrevious", "false"), ",a,,b", ",|a,|,|b"},
        {SPLIT("'String':','", "MergedWithNext", "false"), ",a,,b,", ",a|,|,b|,"},
        {SPLIT("'String':','", "Contiguous", "false"), ",,a,,b", ",,|a|,,|b"},
        {SPLIT("'Regex':'[a-z]+'", "Removed", "false"), "ab12cd", "12"},
        {SPLIT("'Regex':'[a-z]+'", "Removed", "true"), "ab12cd", "ab|cd"},
        {SPLIT("'Regex':'[a-z]+'", "Isolated", "true"), "ab12cd", "ab|12|cd"},
        {SPLIT("'Regex':'[a-z]'", "Contiguous", "false"), "ab12c", "ab|12|c"},
        {SPLIT("'Regex':'[a-z]'", "MergedWithPrevious", "true"), "1a23b", "1|a23|b"},
        {SPLIT("'Regex':''", "Isolated", "false"), "abc", "a|b|c"},
        {SPLIT("'Regex':'x*'", "Isolated", "false"), "axxb", "a|xx|b"},
        {SPLIT("'Regex':'" LLAMA3 "'", "Isolated", "false"), "I'LL 12345 x  y\n\n z!?\n",
         "I|'LL| |123|45| x| | y|\n\n| z|!?\n"},
        {"'pre_tokenizer':{'type':'Digits','individual_digits':true}", "a12\xC2\xB2 b",
         "a|1|2|\xC2\xB2| b"},
        {"'pre_tokenizer':{'type':'Digits','individual_digits':false}", "a12\xC2\xB2 b",
         "a|12\xC2\xB2| b"},
        {"'pre_tokenizer':{'type':'Punctuation'}", "a,$b\xE2\x80\xA6", "a|,|$|b|\xE2\x80\xA6"},
        {"'pre_tokenizer':{'type':'Punctuation','behavior':'Removed'}", "a,$b", "a|b"},
        {"'pre_tokenizer':{'type':'Whitespace'}", " Hey, man_1 \xE2\x80\x94 x\xCC\x81!",
         "Hey|,|man_1|\xE2\x80\x94|x\xCC\x81|!"},
        {"'pre_tokenizer':{'type':'WhitespaceSplit'}", " Hey,\xE3\x80\x80man_1 \n!",
         "Hey,|man_1|!"},
        {"'pre_tokenizer':{'type':'Sequence','pretokenizers':[]}", "a b", "a b"},
        {"'pre_tokenizer':{'type':'Sequence','pretokenizers':[{'type':'WhitespaceSplit'},"
         "{'type':'Sequence','pretokenizers':[{'type':'Digits','individual_digits':false},"
         "{'type':'Punctuation'}]}]}",
         "a1, b22", "a|1|,|b|22"},
        {GPT2_WORDS, "I've  seen 3\n\t x",
         "I|'ve|\xC4\xA0|\xC4\xA0seen|\xC4\xA0"
         "3|\xC4\x8A\xC4\x89|\xC4\xA0x"},
        {"'pre_tokenizer':{'type':'ByteLevel','add_prefix_space':true,'use_regex':false,"
         "'trim_offsets':true}",
         "a b",
         "\xC4\xA0"
         "a\xC4\xA0"
         "b"},
        {"'pre_tokenizer':{'type':'ByteLevel','add_prefix_space':true,'use_regex':false}",
         " \xC3\xA9\xAD",
         "\xC4\xA0\xC3\x83\xC2\xA9\xC3\xAF\xC2\xBF\xC2\xBD"}, /* e acute, U+FFFD */
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        fl_tokenizer *t = open_pieces(cases[i].pieces, cases[i].rest);
        assert_string_equal(tokens_of(t, cases[i].text), cases[i].pieces);
        fl__tokenizer_close(&t);
    }
}

/* ---- normalizers ------------------------------------------------------------------------- */

static void normalizer_rows(void **state)
{
    (void)state;
    static const struct {
        const char *rest, *text, *piece;
    } cases[] = {
        {"'normalizer':null", "e\xCC\x81", "e\xCC\x81"},
        {"'normalizer':{'type':'NFC'}", "e\xCC\x81", "\xC3\xA9"},
        {"'normalizer':{'type':'NFD'}", "\xC3\xA9", "e\xCC\x81"},
        {"'normalizer':{'type':'NFKC'}", "\xEF\xAC\x81\xC2\xB2", "fi2"},
        {"'normalizer':{'type':'NFKD'}", "\xEF\xAC\x81\xC3\xA9", "fie\xCC\x81"},
        {"'normalizer':{'type':'Lowercase'}", "\xC3\x84 \xC4\xB0X", "\xC3\xA4 i\xCC\x87x"},
        {"'normalizer':{'type':'Prepend','prepend':'_'}", "ab", "_ab"},
        {"'normalizer':{'type':'Replace','pattern':{'String':' '},'content':'_'}", " a  b",
         "_a__b"},
        {"'normalizer':{'type':'Replace','pattern':{'Regex':'\\\\s+'},'content':''}", " a \tb ",
         "ab"},
        {"'normalizer':{'type':'Strip','strip_left':true,'strip_right':false}", " a ", "a "},
        {"'normalizer':{'type':'Strip','strip_left':true,'strip_right':true}",
         "\xE3\x80\x80 a\t", "a"},
        {"'normalizer':{'type':'Sequence','normalizers':[{'type':'Lowercase'},{'type':'NFD'},"
         "{'type':'Prepend','prepend':'>'}]}",
         "\xC3\x89", ">e\xCC\x81"},
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        fl_tokenizer *t = open_pieces(cases[i].piece, cases[i].rest);
        assert_string_equal(tokens_of(t, cases[i].text), cases[i].piece);
        assert_string_equal(tokens_of(t, ""), "");
        fl__tokenizer_close(&t);
    }
}

static void normalizer_that_grows_without_end_is_stopped(void **state)
{
    (void)state;
    char json[4096] = "{'model':{'type':'BPE','vocab':{'a':0},'merges':[]},'normalizer':"
                      "{'type':'Sequence','normalizers':[";
    for (int i = 0; i < 12; i++)
        (void)snprintf(json + strlen(json), sizeof json - strlen(json),
                       "%s{'type':'Replace','pattern':{'String':'a'},'content':'aaaaaaaaaa'}",
                       i ? "," : "");
    (void)snprintf(json + strlen(json), sizeof json - strlen(json), "]}}");
    fl_tokenizer *t = fl_test_tokenizer(json);
    int32_t *ids;
    size_t n_ids;
    fl_err err;
    assert_int_equal(fl__tokenizer_encode(&ids, &n_ids, t, "a", 1, false, &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "normalizer"));
    fl__tokenizer_close(&t);
}

/* ---- added tokens ------------------------------------------------------------------------ */

/* "<s>" is in the model's vocabulary, the others follow it. */
#define ADDED_VOCAB                                                                            \
    "'model':{'type':'BPE','vocab':{'<s>':0,'a':1,'b':2,' ':3,'<':4,'x':5,'>':6,'A':7},"       \
    "'merges':[]},"
#define ADDED(tokens, rest) "{" ADDED_VOCAB rest "'added_tokens':[" tokens "]}"

static void added_tokens_are_cut_out(void **state)
{
    (void)state;
    static const struct {
        const char *json, *text, *ids;
    } cases[] = {
        {ADDED("{'id':0,'content':'<s>','special':true}", ""), "a<s>b<s><s>", "1 0 2 0 0"},
        {ADDED("{'id':8,'content':'<x>'}", ""), "a<x>b<x", "1 8 2 4 5"},
        /* the longest of those that start first */
        {ADDED("{'id':8,'content':'ab'},{'id':9,'content':'aba'},{'id':10,'content':'bab'}",
               ""),
         "abab", "9 2"},
        {ADDED("{'id':8,'content':'<x>','lstrip':true}", ""), "a  <x> b", "1 8 3 2"},
        {ADDED("{'id':8,'content':'<x>','rstrip':true}", ""), "a <x>  b", "1 3 8 2"},
        {ADDED("{'id':8,'content':'<x>','lstrip':true,'rstrip':true}", ""), " <x> <x> b",
         "8 8 2"},
        {ADDED("{'id':8,'content':'xx','single_word':true}", ""), "xx axx xx>xx",
         "8 3 1 5 5 3 8 6 8"},
        {ADDED("{'id':8,'content':'xx','single_word':true}", ""), "\xC3\xA9xx", "5 5"},
        /* normalized ones are looked for in the normalised text, in their normalised form */
        {ADDED("{'id':8,'content':'XX','normalized':true}",
               "'normalizer':{'type':'Lowercase'},"),
         "aXxB", "1 8 2"},
        {ADDED("{'id':8,'content':'XX','normalized':false}",
               "'normalizer':{'type':'Lowercase'},"),
         "AXXxx", "1 8 5 5"},
        /* an empty one is passed over and takes no id */
        {ADDED("{'id':8,'content':''},{'id':8,'content':'<x>'}", ""), "<x>", "8"},
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        fl_tokenizer *t = fl_test_tokenizer(cases[i].json);
        assert_ids(t, cases[i].text, cases[i].ids);
        fl__tokenizer_close(&t);
    }
}

static void vocabulary_queries(void **state)
{
    (void)state;
    fl_tokenizer *t = fl_test_tokenizer(ADDED("{'id':0,'content':'<s>','special':true},"
                                              "{'id':8,'content':'XX','normalized':true}",
                                              "'normalizer':{'type':'Lowercase'},"));
    size_t n_bytes;
    assert_int_equal(fl__tokenizer_n_vocab(t), 9);
    assert_int_equal(fl__tokenizer_id(t, "a", 1), 1);
    assert_int_equal(fl__tokenizer_id(t, "XX", 2), 8);
    assert_int_equal(fl__tokenizer_id(t, "zz", 2), -1);
    assert_memory_equal(fl__tokenizer_text(t, 8, &n_bytes), "xx", 2);
    assert_int_equal(n_bytes, 2);
    assert_null(fl__tokenizer_text(t, 9, &n_bytes));
    assert_null(fl__tokenizer_text(t, -1, &n_bytes));
    assert_true(fl__tokenizer_is_special(t, 0));
    assert_false(fl__tokenizer_is_special(t, 1));
    assert_false(fl__tokenizer_is_special(t, 8));
    assert_false(fl__tokenizer_is_special(t, -5));
    assert_false(fl__tokenizer_is_special(t, 1000));
    assert_int_equal(fl__tokenizer_bos(t), -1);
    assert_int_equal(fl__tokenizer_eos(t), -1);
    fl__tokenizer_close(&t);
}

/* ---- post-processors --------------------------------------------------------------------- */

#define TEMPLATE(single)                                                                       \
    "{'type':'TemplateProcessing','single':[" single "],'pair':[],"                            \
    "'special_tokens':{'<s>':{'id':'<s>','ids':[0],'tokens':['<s>']},"                         \
    "'xx':{'id':'xx','ids':[5,5],'tokens':['x','x']}}}"
#define SEQUENCE_A     "{'Sequence':{'id':'A','type_id':0}}"
#define SPECIAL(token) "{'SpecialToken':{'id':'" token "','type_id':0}}"

static void postprocessor_rows(void **state)
{
    (void)state;
    static const struct {
        const char *processor, *with, *without;
    } cases[] = {
        {"null", "1 2", "1 2"},
        {"{'type':'ByteLevel','add_prefix_space':true,'trim_offsets':false}", "1 2", "1 2"},
        {TEMPLATE(SEQUENCE_A), "1 2", "1 2"},
        {TEMPLATE(SPECIAL("<s>") "," SEQUENCE_A), "0 1 2", "1 2"},
        {TEMPLATE(SPECIAL("<s>") "," SEQUENCE_A "," SPECIAL("xx")), "0 1 2 5 5", "1 2"},
        {"{'type':'Sequence','processors':[{'type':'ByteLevel'}," TEMPLATE(
             SEQUENCE_A "," SPECIAL("<s>")) "]}",
         "1 2 0", "1 2"},
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        char json[2048];
        (void)snprintf(json, sizeof json, "{" ADDED_VOCAB "'post_processor':%s}",
                       cases[i].processor);
        fl_tokenizer *t = fl_test_tokenizer(json);
        assert_string_equal(fl_test_ids(t, "ab", 2, true), cases[i].with);
        assert_string_equal(fl_test_ids(t, "ab", 2, false), cases[i].without);
        fl__tokenizer_close(&t);
    }
}

static void empty_text_gives_only_special_tokens(void **state)
{
    (void)state;
    char json[2048];
    (void)snprintf(json, sizeof json, "{" ADDED_VOCAB "'post_processor':%s}",
                   TEMPLATE(SPECIAL("<s>") "," SEQUENCE_A));
    fl_tokenizer *t = fl_test_tokenizer(json);
    int32_t *ids;
    size_t n_ids;
    assert_string_equal(fl_test_ids(t, "", 0, true), "0");
    assert_int_equal(fl__tokenizer_encode(&ids, &n_ids, t, "", 0, false, NULL), FL_OK);
    assert_int_equal(n_ids, 0);
    assert_non_null(ids);
    fl__free(&ids);
    fl__tokenizer_close(&t);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(merges_by_rank),
    cmocka_unit_test(model_without_type_is_bpe),
    cmocka_unit_test(unknown_characters),
    cmocka_unit_test(missing_unknown_token_fails_when_needed),
    cmocka_unit_test(ignore_merges_takes_whole_pieces),
    cmocka_unit_test(long_word),
    cmocka_unit_test(cached_words_give_the_same_ids),
    cmocka_unit_test(pretokenizer_rows),
    cmocka_unit_test(normalizer_rows),
    cmocka_unit_test(normalizer_that_grows_without_end_is_stopped),
    cmocka_unit_test(added_tokens_are_cut_out),
    cmocka_unit_test(vocabulary_queries),
    cmocka_unit_test(postprocessor_rows),
    cmocka_unit_test(empty_text_gives_only_special_tokens),
};
FL_TEST_MAIN(tests)
