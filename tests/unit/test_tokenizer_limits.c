/* test_tokenizer_limits.c - broken text, broken files, patterns that never end, no memory,
 * several threads. SPDX-License-Identifier: MIT */
#include "base/exec.h"
#include "base/mem.h"
#include "text/tokenizer.h"

#include "support/fl_test.h"
#include "support/tokenizer_json.h"

#include <stdio.h>
#include <string.h>

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
    fl_tokenizer *t =
        fl_test_tokenizer("{'model':{'type':'BPE','merges':[],'vocab':{'\\ufffd':0,'a':1,"
                          "'\\u00e1':2}}}");
    for (size_t i = 0; i < FL_COUNT(cases); i++)
        assert_string_equal(fl_test_ids(t, cases[i].bytes, cases[i].n_bytes, false),
                            cases[i].ids);
    fl__tokenizer_close(&t);
}

#define SPLIT(pattern, behavior, invert)                                                       \
    "'pre_tokenizer':{'type':'Split','pattern':{" pattern "},'behavior':'" behavior            \
    "','invert':" invert "}"
#define TEMPLATE(single)                                                                       \
    "{'type':'TemplateProcessing','single':[" single "],'pair':[],"                            \
    "'special_tokens':{'<s>':{'id':'<s>','ids':[0],'tokens':['<s>']},"                         \
    "'xx':{'id':'xx','ids':[5,5],'tokens':['x','x']}}}"
#define SPECIAL(token) "{'SpecialToken':{'id':'" token "','type_id':0}}"

#define SMALL_MODEL "'model':{'type':'BPE','vocab':{'a':0,'b':1,'ab':2},'merges':['a b']}"

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
    {BAD_PART("'post_processor':{'type':'Sequence','processors':["
              "{'type':'TemplateProcessing','single':[]},"
              "{'type':'TemplateProcessing','single':[]}]}"),
     FL_E_UNSUPPORTED, "post_processor is more than one template"},
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
        char *why = fl_test_quoted(broken[i].why);
        for (char *c = why; *c; c++)
            if (broken[i].why[c - why] == '"') *c = '"';
        const size_t before = fl__mem_get().now_bytes;
        assert_int_equal(fl_test_tokenizer_open(&t, broken[i].json, &err), broken[i].status);
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
    assert_int_equal(fl_test_tokenizer_open(&t, json, &err), FL_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "nested too deeply"));
    (void)snprintf(json, sizeof json,
                   "{" SMALL_MODEL ",'normalizer':{'type':'Sequence',"
                   "'normalizers':[{'type':'NFC'}");
    for (int i = 0; i < 20; i++)
        (void)snprintf(json + strlen(json), sizeof json - strlen(json), ",{'type':'NFC'}");
    (void)snprintf(json + strlen(json), sizeof json - strlen(json), "]}}");
    assert_int_equal(fl_test_tokenizer_open(&t, json, &err), FL_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "one step too many"));
}

/* A pattern that backtracks without end is stopped by the match limit. */
static void runaway_pattern_is_stopped(void **state)
{
    (void)state;
    fl_tokenizer *t = fl_test_tokenizer(PATTERN("(a|a|aa)+(?=x)"));
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

/* ---- memory and threads ------------------------------------------------------------------ */

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
    fl_status st = fl_test_tokenizer_open(&t, EVERYTHING, NULL);
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
    fl_tokenizer *t = fl_test_tokenizer(EVERYTHING);
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
    cmocka_unit_test(invalid_bytes_become_replacement_characters),
    cmocka_unit_test(broken_files),
    cmocka_unit_test(nesting_and_steps_are_bounded),
    cmocka_unit_test(runaway_pattern_is_stopped),
    cmocka_unit_test(out_of_memory_at_every_allocation),
    cmocka_unit_test(two_threads_share_a_tokenizer),
};
FL_TEST_MAIN(tests)
