/* test_tokenizer.c - every row of the tokenizer's tables, from a tokenizer.json made here.
 *
 * JSON is written with ' for " (and ` for '). To see how a pre-tokeniser or normaliser cuts or
 * changes a text, the vocabulary holds just the expected pieces and ignore_merges takes them whole:
 * any other piece falls apart into <unk>.
 * SPDX-License-Identifier: MIT */
#include "base/exec.h"
#include "base/mem.h"
#include "text/text_buf.h"
#include "text/tokenizer.h"

#include "support/fl_test.h"

#include <stdio.h>
#include <string.h>

/* ' becomes ", ` becomes '. Owned by the caller. */
static char *quoted(const char *json)
{
    char *copy = fl__strdup(json);
    assert_non_null(copy);
    for (char *c = copy; *c; c++) {
        if (*c == '\'') *c = '"';
        else if (*c == '`') *c = '\'';
    }
    return copy;
}

static fl_status open_status(fl_tokenizer **t, const char *json, fl_err *err)
{
    char *text = quoted(json);
    const fl_status st = fl__tokenizer_open_memory(t, text, strlen(text), err);
    fl__free(&text);
    return st;
}

static fl_tokenizer *open_ok(const char *json)
{
    fl_tokenizer *t;
    fl_err err = {""};
    if (open_status(&t, json, &err)) fail_msg("%s\n%s", err.text, json);
    return t;
}

/* Ids of text as "3 1 4". Valid until the next call. */
static const char *ids_of(const fl_tokenizer *t, const char *text, size_t n_bytes, bool special)
{
    static char shown[2048];
    int32_t *ids;
    size_t n_ids, n = 0;
    fl_err err = {""};
    if (fl__tokenizer_encode(&ids, &n_ids, t, text, n_bytes, special, &err))
        fail_msg("%s", err.text);
    shown[0] = '\0';
    for (size_t i = 0; i < n_ids && n < sizeof shown; i++)
        n += (size_t)snprintf(shown + n, sizeof shown - n, i ? " %d" : "%d", ids[i]);
    fl__free(&ids);
    return shown;
}

static void assert_ids(const fl_tokenizer *t, const char *text, const char *expected)
{
    assert_string_equal(ids_of(t, text, strlen(text), false), expected);
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

/* A tokenizer that knows exactly the pieces of "a|b|c", with `rest` as further members of the
 * document. */
static fl_tokenizer *open_pieces(const char *pieces, const char *rest)
{
    char vocab[2048] = "'<unk>':0", json[4096], known[2048] = "|";
    const char *piece = pieces;
    int id = 1;
    while (*piece) {
        const char *bar = strchr(piece, '|');
        const int n = bar ? (int)(bar - piece) : (int)strlen(piece);
        char marked[256];
        (void)snprintf(marked, sizeof marked, "|%.*s|", n, piece);
        if (!strstr(known, marked)) {
            char *end = vocab + strlen(vocab);
            (void)snprintf(end, sizeof vocab - (size_t)(end - vocab), ",'%.*s':%d", n, piece,
                           id++);
            (void)snprintf(known + strlen(known), sizeof known - strlen(known), "%s",
                           marked + 1);
        }
        piece += n + (bar != NULL);
    }
    (void)snprintf(json, sizeof json,
                   "{'model':{'type':'BPE','ignore_merges':true,'unk_token':'<unk>',"
                   "'merges':[],'vocab':{%s}},%s}",
                   vocab, rest);
    return open_ok(json);
}

/* ---- model -------------------------------------------------------------------------------- */

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
        fl_tokenizer *t = open_ok(json);
        assert_ids(t, cases[i].text, cases[i].ids);
        fl__tokenizer_close(&t);
        assert_null(t);
    }
}

static void model_without_type_is_bpe(void **state)
{
    (void)state;
    fl_tokenizer *t = open_ok("{'model':{'vocab':{'a':0,'b':1,'ab':2},'merges':['a b']}}");
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
        fl_tokenizer *t = open_ok(json);
        assert_ids(t, cases[i].text, cases[i].ids);
        fl__tokenizer_close(&t);
    }
}

static void missing_unknown_token_fails_when_needed(void **state)
{
    (void)state;
    fl_tokenizer *t = open_ok(MODEL("", ",'unk_token':'<none>'"));
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
    fl_tokenizer *t = open_ok(MODEL("", ",'ignore_merges':true"));
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
    fl_tokenizer *t = open_ok(MODEL("'a a','aa aa'", ""));
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
    fl_tokenizer *t = open_ok("{'model':{'type':'BPE','vocab':{'0':0,'1':1,'2':2,'3':3,'4':4,"
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

/* ---- pre-tokenisers ------------------------------------------------------------------------- */

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
        {SPLIT("'Regex':'" LLAMA3 "'", "Isolated", "false"), "I`LL 12345 x  y\\n\\n z!?\\n",
         "I|`LL| |123|45| x| | y|\\n\\n| z|!?\\n"},
        {"'pre_tokenizer':{'type':'Digits','individual_digits':true}", "a12\xC2\xB2 b",
         "a|1|2|\xC2\xB2| b"},
        {"'pre_tokenizer':{'type':'Digits','individual_digits':false}", "a12\xC2\xB2 b",
         "a|12\xC2\xB2| b"},
        {"'pre_tokenizer':{'type':'Punctuation'}", "a,$b\xE2\x80\xA6", "a|,|$|b|\xE2\x80\xA6"},
        {"'pre_tokenizer':{'type':'Punctuation','behavior':'Removed'}", "a,$b", "a|b"},
        {"'pre_tokenizer':{'type':'Whitespace'}", " Hey, man_1 \xE2\x80\x94 x\xCC\x81!",
         "Hey|,|man_1|\xE2\x80\x94|x\xCC\x81|!"},
        {"'pre_tokenizer':{'type':'WhitespaceSplit'}", " Hey,\xE3\x80\x80man_1 \\n!",
         "Hey,|man_1|!"},
        {"'pre_tokenizer':{'type':'Sequence','pretokenizers':[]}", "a b", "a b"},
        {"'pre_tokenizer':{'type':'Sequence','pretokenizers':[{'type':'WhitespaceSplit'},"
         "{'type':'Sequence','pretokenizers':[{'type':'Digits','individual_digits':false},"
         "{'type':'Punctuation'}]}]}",
         "a1, b22", "a|1|,|b|22"},
        {GPT2_WORDS, "I`ve  seen 3\\n\\t x",
         "I|`ve|\xC4\xA0|\xC4\xA0seen|\xC4\xA0"
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
        char text[256], pieces[256];
        char *quoted_text = quoted(cases[i].text), *quoted_pieces = quoted(cases[i].pieces);
        /* \n and \t stand for themselves in JSON, but not in the text. */
        size_t n = 0;
        for (const char *c = quoted_text; *c; c++) {
            const bool escape = *c == '\\';
            if (escape) c++;
            text[n++] = escape ? (*c == 'n' ? '\n' : '\t') : *c;
        }
        text[n] = '\0';
        n = 0;
        for (const char *c = quoted_pieces; *c; c++) {
            if (*c == '\\') c++, pieces[n++] = '\n';
            else pieces[n++] = *c;
        }
        pieces[n] = '\0';
        fl_tokenizer *t = open_pieces(cases[i].pieces, cases[i].rest);
        assert_string_equal(tokens_of(t, text), pieces);
        fl__tokenizer_close(&t);
        fl__free(&quoted_text);
        fl__free(&quoted_pieces);
    }
}

/* ---- normalizers ------------------------------------------------------------------------------ */

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
    fl_tokenizer *t = open_ok(json);
    int32_t *ids;
    size_t n_ids;
    fl_err err;
    assert_int_equal(fl__tokenizer_encode(&ids, &n_ids, t, "a", 1, false, &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "normalizer"));
    fl__tokenizer_close(&t);
}

/* ---- added tokens ------------------------------------------------------------------------------- */

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
        fl_tokenizer *t = open_ok(cases[i].json);
        assert_ids(t, cases[i].text, cases[i].ids);
        fl__tokenizer_close(&t);
    }
}

static void vocabulary_queries(void **state)
{
    (void)state;
    fl_tokenizer *t = open_ok(ADDED("{'id':0,'content':'<s>','special':true},"
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

/* ---- post-processors ------------------------------------------------------------------------------ */

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
        fl_tokenizer *t = open_ok(json);
        assert_string_equal(ids_of(t, "ab", 2, true), cases[i].with);
        assert_string_equal(ids_of(t, "ab", 2, false), cases[i].without);
        fl__tokenizer_close(&t);
    }
}

static void empty_text_gives_only_special_tokens(void **state)
{
    (void)state;
    char json[2048];
    (void)snprintf(json, sizeof json, "{" ADDED_VOCAB "'post_processor':%s}",
                   TEMPLATE(SPECIAL("<s>") "," SEQUENCE_A));
    fl_tokenizer *t = open_ok(json);
    int32_t *ids;
    size_t n_ids;
    assert_string_equal(ids_of(t, "", 0, true), "0");
    assert_int_equal(fl__tokenizer_encode(&ids, &n_ids, t, "", 0, false, NULL), FL_OK);
    assert_int_equal(n_ids, 0);
    assert_non_null(ids);
    fl__free(&ids);
    fl__tokenizer_close(&t);
}

/* ---- decoders --------------------------------------------------------------------------------------- */

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
    return open_ok(json);
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
    assert_string_equal(ids_of(t, text, 3, false), "97 195 169");
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

/* ---- broken input ------------------------------------------------------------------------------------- */

static void invalid_bytes_become_replacement_characters(void **state)
{
    (void)state;
    /* as bytes.decode('utf-8', 'replace') counts them */
    static const struct {
        const char *bytes;
        size_t n_bytes;
        const char *ids; /* 0: U+FFFD, 1: a */
    } cases[] = {
        {"a\x80\xBF", 3, "1 0 0"},
        {"\xC3", 1, "0"},
        {"\xC3\xC3\xA1", 3, "0 2"},
        {"\xC0\x80", 2, "0 0"},
        {"\xE2\x82", 2, "0"},
        {"\xE2\x82"
         "a",
         3, "0 1"},
        {"\xE0\x9F\x80", 3, "0 0 0"},
        {"\xED\xA0\x80", 3, "0 0 0"},
        {"\xF0\x9F\x98", 3, "0"},
        {"\xF0\x8F\x98\x80", 4, "0 0 0 0"},
        {"\xF4\x90\x80\x80", 4, "0 0 0 0"},
        {"\xF5\x80\x80\x80", 4, "0 0 0 0"},
        {"\xFF\xFE", 2, "0 0"},
        {"a\x00"
         "a",
         3, "1 1"}, /* NUL is a character, here one without a token */
    };
    fl_tokenizer *t = open_ok("{'model':{'type':'BPE','merges':[],'vocab':{'\\ufffd':0,'a':1,"
                              "'\\u00e1':2}}}");
    for (size_t i = 0; i < FL_COUNT(cases); i++)
        assert_string_equal(ids_of(t, cases[i].bytes, cases[i].n_bytes, false), cases[i].ids);
    fl__tokenizer_close(&t);
}

#define SMALL_MODEL        "'model':{'type':'BPE','vocab':{'a':0,'b':1,'ab':2},'merges':['a b']}"
#define BAD_MODEL(members) "{'model':{'type':'BPE'," members "}}"
#define BAD_PART(member)   "{" SMALL_MODEL "," member "}"
#define PATTERN(regex)     BAD_PART(SPLIT("'Regex':'" regex "'", "Isolated", "false"))

static const struct {
    const char *json;
    fl_status status;
    const char *why;
} broken[] = {
    {"", FL_E_INPUT, "line 1"},
    {"[]", FL_E_INPUT, "not a JSON object"},
    {"{}", FL_E_INPUT, "no model"},
    {"{'version':'2.0'," SMALL_MODEL "}", FL_E_UNSUPPORTED, "version"},
    {"{'model':[]}", FL_E_INPUT, "model is no object"},
    {"{'model':{'type':'Unigram','vocab':[]}}", FL_E_UNSUPPORTED, "model.type is \"Unigram\""},
    {"{'model':{'type':7}}", FL_E_INPUT, "type"},
    {BAD_MODEL("'merges':[]"), FL_E_INPUT, "model.vocab"},
    {BAD_MODEL("'vocab':{}"), FL_E_INPUT, "model.merges"},
    {BAD_MODEL("'vocab':{'a':0.5},'merges':[]"), FL_E_INPUT, "no integer"},
    {BAD_MODEL("'vocab':{'a':-1},'merges':[]"), FL_E_INPUT, "id -1"},
    {BAD_MODEL("'vocab':{'a':4000000000},'merges':[]"), FL_E_INPUT, "id 4000000000"},
    {BAD_MODEL("'vocab':{'a':1,'b':1},'merges':[]"), FL_E_INPUT, "id 1 is given to \"a\""},
    {BAD_MODEL("'vocab':{'a':1,'a':2},'merges':[]"), FL_E_INPUT, "duplicate"},
    {BAD_MODEL("'vocab':{'a':0,'b':1},'merges':['a b']"), FL_E_INPUT, "entry 0: no such token"},
    {BAD_MODEL("'vocab':{'a':0,'aa':1},'merges':['a a','a x']"), FL_E_INPUT,
     "entry 1: no such token in the vocabulary: \"x\""},
    {BAD_MODEL("'vocab':{'a':0,'aa':1},'merges':['aa']"), FL_E_INPUT, "not two tokens"},
    {BAD_MODEL("'vocab':{'a':0,'aa':1},'merges':['a a a']"), FL_E_INPUT, "not two tokens"},
    {BAD_MODEL("'vocab':{'a':0,'aa':1},'merges':[['a']]"), FL_E_INPUT, "entry 0: neither"},
    {BAD_MODEL("'vocab':{'a':0,'aa':1},'merges':[['a',1]]"), FL_E_INPUT, "entry 0: neither"},
    {BAD_MODEL("'vocab':{'a':0},'merges':[],'dropout':0.1"), FL_E_UNSUPPORTED, "model.dropout"},
    {BAD_MODEL("'vocab':{'a':0},'merges':[],'end_of_word_suffix':'</w>'"), FL_E_UNSUPPORTED,
     "model.end_of_word_suffix"},
    {BAD_MODEL("'vocab':{'a':0},'merges':[],'continuing_subword_prefix':'##'"),
     FL_E_UNSUPPORTED, "model.continuing_subword_prefix"},
    {BAD_MODEL("'vocab':{'a':0},'merges':[],'fuse_unk':1"), FL_E_INPUT, "fuse_unk"},
    {BAD_PART("'normalizer':{'type':'Nmt'}"), FL_E_UNSUPPORTED, "normalizer.type is \"Nmt\""},
    {BAD_PART("'normalizer':{'type':'Sequence','normalizers':[{'type':'NFC'},{'type':"
              "'Precompiled'}]}"),
     FL_E_UNSUPPORTED, "normalizer.normalizers[1].type"},
    {BAD_PART("'normalizer':{'type':'Sequence'}"), FL_E_INPUT, "normalizer.normalizers"},
    {BAD_PART("'normalizer':{'type':'Prepend'}"), FL_E_INPUT, "prepend"},
    {BAD_PART("'normalizer':{'type':'Replace','pattern':{'String':''},'content':'x'}"),
     FL_E_UNSUPPORTED, "normalizer.pattern is an empty text"},
    {BAD_PART("'normalizer':{'type':'Replace','pattern':'x','content':'x'}"), FL_E_INPUT,
     "normalizer.pattern is neither"},
    {BAD_PART("'pre_tokenizer':{'type':'Metaspace'}"), FL_E_UNSUPPORTED,
     "pre_tokenizer.type is \"Metaspace\""},
    {BAD_PART("'pre_tokenizer':{'type':'ByteLevel'}"), FL_E_INPUT, "add_prefix_space"},
    {BAD_PART("'pre_tokenizer':{'type':'Digits','individual_digits':3}"), FL_E_INPUT,
     "individual_digits"},
    {BAD_PART(SPLIT("'Regex':'a'", "Sideways", "false")), FL_E_UNSUPPORTED, "Sideways"},
    {PATTERN("(a"), FL_E_UNSUPPORTED, "a group without end"},
    {PATTERN("a)"), FL_E_UNSUPPORTED, "a `)` too many"},
    {PATTERN("[a"), FL_E_UNSUPPORTED, "a class without end"},
    {PATTERN("(?<=a+)b"), FL_E_UNSUPPORTED, "no regular expression for PCRE2"},
    {BAD_PART("'post_processor':{'type':'BertProcessing'}"), FL_E_UNSUPPORTED,
     "post_processor.type"},
    {BAD_PART("'post_processor':" TEMPLATE(SPECIAL("<nope>"))), FL_E_INPUT, "<nope>"},
    {BAD_PART("'post_processor':" TEMPLATE(SPECIAL("xx"))), FL_E_INPUT, "\"xx\""},
    {BAD_PART("'post_processor':" TEMPLATE("{'Sequence':{'id':'B'}}")), FL_E_UNSUPPORTED,
     "not about sequence A"},
    {BAD_PART("'post_processor':{'type':'TemplateProcessing','single':'$A'}"), FL_E_UNSUPPORTED,
     "post_processor.single"},
    {BAD_PART("'decoder':{'type':'WordPiece'}"), FL_E_UNSUPPORTED, "decoder.type"},
    {BAD_PART("'decoder':{'type':'Strip','content':'ab','start':0,'stop':0}"), FL_E_INPUT,
     "not one character"},
    {BAD_PART("'decoder':{'type':'Strip','content':'a','start':-1,'stop':0}"), FL_E_INPUT,
     "start"},
    {BAD_PART("'added_tokens':{}"), FL_E_INPUT, "added_tokens is no list"},
    {BAD_PART("'added_tokens':[{'id':3}]"), FL_E_INPUT, "content"},
    {BAD_PART("'added_tokens':[{'content':'x'}]"), FL_E_INPUT, "id"},
    {BAD_PART("'added_tokens':[{'id':7,'content':'x'}]"), FL_E_INPUT, "is 3; get"},
    {BAD_PART("'added_tokens':[{'id':1,'content':'a'}]"), FL_E_INPUT, "is 0; get"},
    {BAD_PART("'added_tokens':[{'id':3,'content':'x'},{'id':3,'content':'x'}]"), FL_E_INPUT,
     "added_tokens[1] has the text of added_tokens[0]"},
};

static void broken_files(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(broken); i++) {
        fl_tokenizer *t = (fl_tokenizer *)1;
        fl_err err = {""};
        char *why = quoted(broken[i].why);
        for (char *c = why; *c; c++)
            if (broken[i].why[c - why] == '"') *c = '"';
        const size_t before = fl__mem_get().now_bytes;
        assert_int_equal(open_status(&t, broken[i].json, &err), broken[i].status);
        assert_null(t);
        if (!strstr(err.text, why)) fail_msg("\"%s\" lacks \"%s\"", err.text, why);
        assert_non_null(strstr(err.text, "; "));
        assert_null(strchr(err.text, '\n'));
        assert_int_equal(fl__mem_get().now_bytes, before);
        fl__free(&why);
    }
}

static void nesting_and_steps_are_bounded(void **state)
{
    (void)state;
    char json[4096] = "{" SMALL_MODEL ",'normalizer':";
    for (int i = 0; i < 20; i++)
        (void)snprintf(json + strlen(json), sizeof json - strlen(json),
                       "{'type':'Sequence','normalizers':[");
    for (int i = 0; i < 20; i++)
        (void)snprintf(json + strlen(json), sizeof json - strlen(json), "]}");
    (void)snprintf(json + strlen(json), sizeof json - strlen(json), "}");
    fl_tokenizer *t;
    fl_err err;
    assert_int_equal(open_status(&t, json, &err), FL_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "nested too deeply"));
    (void)snprintf(json, sizeof json,
                   "{" SMALL_MODEL ",'normalizer':{'type':'Sequence',"
                   "'normalizers':[{'type':'NFC'}");
    for (int i = 0; i < 20; i++)
        (void)snprintf(json + strlen(json), sizeof json - strlen(json), ",{'type':'NFC'}");
    (void)snprintf(json + strlen(json), sizeof json - strlen(json), "]}}");
    assert_int_equal(open_status(&t, json, &err), FL_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "one step too many"));
}

/* A pattern that backtracks without end is stopped by the match limit. */
static void runaway_pattern_is_stopped(void **state)
{
    (void)state;
    fl_tokenizer *t = open_ok(PATTERN("(a|a|aa)+(?=x)"));
    char text[64];
    int32_t *ids;
    size_t n_ids;
    fl_err err = {""};
    memset(text, 'a', sizeof text);
    assert_int_equal(fl__tokenizer_encode(&ids, &n_ids, t, text, sizeof text, false, &err),
                     FL_E_INPUT);
    assert_non_null(strstr(err.text, "pattern gave up"));
    fl__tokenizer_close(&t);
}

/* ---- memory and threads ------------------------------------------------------------------------------ */

/* Every row at once, so that each allocation gets its turn. */
#define EVERYTHING                                                                             \
    "{'model':{'type':'BPE','vocab':{'<u>':0,'a':1,'b':2,'ab':3,'\\u0120':4},"                 \
    "'merges':['a b'],'unk_token':'<u>'},"                                                     \
    "'added_tokens':[{'id':5,'content':'XY','normalized':true},"                               \
    "{'id':6,'content':'<s>','special':true}],"                                                \
    "'normalizer':{'type':'Sequence','normalizers':[{'type':'Lowercase'},{'type':'NFC'},"      \
    "{'type':'Replace','pattern':{'Regex':'z+'},'content':'a'},"                               \
    "{'type':'Prepend','prepend':' '}]},"                                                      \
    "'pre_tokenizer':{'type':'Sequence','pretokenizers':[{'type':'Split','pattern':"           \
    "{'String':','},'behavior':'Isolated','invert':false},{'type':'Punctuation'},"             \
    "{'type':'Digits','individual_digits':true},"                                              \
    "{'type':'ByteLevel','add_prefix_space':true}]},"                                          \
    "'post_processor':{'type':'TemplateProcessing','single':[{'SpecialToken':{'id':'s'}},"     \
    "{'Sequence':{'id':'A'}}],'special_tokens':{'s':{'ids':[6]}}},"                            \
    "'decoder':{'type':'Sequence','decoders':[{'type':'Replace','pattern':{'Regex':'b'},"      \
    "'content':'c'},{'type':'ByteFallback'},{'type':'Fuse'},{'type':'ByteLevel'},"             \
    "{'type':'Strip','content':' ','start':1,'stop':1}]}}"
static const char everything_text[] = "ab,aabb xy <s>\xC3\x89zz 12 abab\xFF";

static fl_status use_everything(void)
{
    fl_tokenizer *t;
    int32_t *ids = NULL;
    size_t n_ids, n_bytes;
    char *text = NULL;
    fl_status st = open_status(&t, EVERYTHING, NULL);
    if (!st)
        st = fl__tokenizer_encode(&ids, &n_ids, t, everything_text, sizeof everything_text - 1,
                                  true, NULL);
    if (!st) st = fl__tokenizer_decode(&text, &n_bytes, t, ids, n_ids, false, NULL);
    fl__free(&text);
    fl__free(&ids);
    fl__tokenizer_close(&t);
    return st;
}

static void out_of_memory_at_every_allocation(void **state)
{
    (void)state;
    const size_t now_bytes = fl__mem_get().now_bytes;
    uint64_t n_allocs = fl__mem_get().n_allocs;
    assert_int_equal(use_everything(), FL_OK);
    n_allocs = fl__mem_get().n_allocs - n_allocs;
    assert_true(n_allocs > 50);
    uint64_t n_failed = 0;
    for (uint64_t n = 2; n <= n_allocs; n++) { /* 1 is the test's own copy of the JSON */
        fl__mem_fail_after(n);
        const fl_status st = use_everything();
        assert_int_equal(fl__mem_get().now_bytes, now_bytes);
        if (st) assert_int_equal(st, FL_E_NOMEM);
        n_failed += st != FL_OK;
    }
    fl__mem_fail_after(0);
    /* The others: a pattern that the JIT has no memory for is interpreted. */
    assert_true(n_failed > n_allocs / 2);
}

typedef struct shared_tokenizer {
    const fl_tokenizer *t;
    const int32_t *ids;
    size_t n_ids;
    int n_wrong[2];
} shared_tokenizer;

static void encode_again(void *arg, int64_t item, int thread)
{
    shared_tokenizer *s = arg;
    int32_t *ids;
    size_t n_ids;
    (void)item;
    const fl_status st = fl__tokenizer_encode(&ids, &n_ids, s->t, everything_text,
                                              sizeof everything_text - 1, true, NULL);
    if (st || n_ids != s->n_ids || memcmp(ids, s->ids, n_ids * sizeof *ids) != 0)
        s->n_wrong[thread]++;
    fl__free(&ids);
}

static void two_threads_share_a_tokenizer(void **state)
{
    (void)state;
    const fl_exec ex = {.n_threads = 2};
    fl_tokenizer *t = open_ok(EVERYTHING);
    int32_t *ids;
    size_t n_ids;
    assert_int_equal(fl__tokenizer_encode(&ids, &n_ids, t, everything_text,
                                          sizeof everything_text - 1, true, NULL),
                     FL_OK);
    shared_tokenizer s = {t, ids, n_ids, {0, 0}};
    fl__parallel_for(&ex, 200, encode_again, &s);
    assert_int_equal(s.n_wrong[0] + s.n_wrong[1], 0);
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
    cmocka_unit_test(decoder_rows),
    cmocka_unit_test(streams_add_up),
    cmocka_unit_test(byte_level_stream_at_every_split),
    cmocka_unit_test(skip_special_leaves_special_tokens_out),
    cmocka_unit_test(stream_does_not_allocate),
    cmocka_unit_test(invalid_bytes_become_replacement_characters),
    cmocka_unit_test(broken_files),
    cmocka_unit_test(nesting_and_steps_are_bounded),
    cmocka_unit_test(runaway_pattern_is_stopped),
    cmocka_unit_test(out_of_memory_at_every_allocation),
    cmocka_unit_test(two_threads_share_a_tokenizer),
};
FL_TEST_MAIN(tests)
