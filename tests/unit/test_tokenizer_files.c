/* test_tokenizer_files.c - tokenizers from model directories: tokenizer.json with its side
 * files, and vocab.json + merges.txt. SPDX-License-Identifier: MIT */
#include "base/file.h"
#include "base/mem.h"
#include "text/tokenizer.h"

#include "support/fl_test.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define VOCAB                                                                                  \
    "{\"a\":0,\"b\":1,\"ab\":2,\"\\u0120\":3,\"\\u0120a\":4,\"1\":5,\"11\":6,\"111\":7,"       \
    "\"<|endoftext|>\":8,\"\\u00cc\":9,\"\\u0123\":10,\"\\u00c3\":11,\"\\u00a9\":12}"
#define MERGES "#version: 0.2\na b\n\xC4\xA0 a\n1 1\n11 1\n"

static void write_file(const char *name, const char *text)
{
    fl_err err = {""};
    if (fl__file_write(fl_test_path(name), text, strlen(text), &err)) fail_msg("%s", err.text);
}

/* config NULL: no such file. */
static void write_model(const char *config)
{
    write_file("vocab.json", VOCAB);
    write_file("merges.txt", MERGES);
    if (config) write_file("tokenizer_config.json", config);
    else (void)unlink(fl_test_path("tokenizer_config.json"));
}

static fl_tokenizer *open_ok(void)
{
    fl_tokenizer *t;
    fl_err err = {""};
    if (fl__tokenizer_open(&t, fl_test_dir(), &err)) fail_msg("%s", err.text);
    return t;
}

static void assert_ids(const fl_tokenizer *t, const char *text, bool special,
                       const char *expected)
{
    char shown[512] = "";
    int32_t *ids;
    size_t n_ids;
    assert_int_equal(fl__tokenizer_encode(&ids, &n_ids, t, text, strlen(text), special, NULL),
                     FL_OK);
    for (size_t i = 0; i < n_ids; i++)
        (void)snprintf(shown + strlen(shown), sizeof shown - strlen(shown), i ? " %d" : "%d",
                       ids[i]);
    fl__free(&ids);
    assert_string_equal(shown, expected);
}

static void tokenizer_json_with_its_config(void **state)
{
    (void)state;
    write_file("tokenizer.json",
               "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"<s>\":1,\"</s>\":2},"
               "\"merges\":[]},\"added_tokens\":[{\"id\":1,\"content\":\"<s>\","
               "\"special\":true}]}");
    write_file("vocab.json", "broken, and not read");
    fl_tokenizer *t = open_ok();
    assert_int_equal(fl__tokenizer_bos(t), -1);
    fl__tokenizer_close(&t);
    write_file("tokenizer_config.json",
               "{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</s>\"},"
               "\"model_max_length\":1000000000000000019884624838656}");
    t = open_ok();
    assert_int_equal(fl__tokenizer_bos(t), 1);
    assert_int_equal(fl__tokenizer_eos(t), 2);
    assert_ids(t, "a<s>a", true, "0 1 0");
    fl__tokenizer_close(&t);
    write_file("tokenizer_config.json", "{\"bos_token\":null,\"eos_token\":\"none such\"}");
    write_file("special_tokens_map.json", "{\"bos_token\":\"</s>\",\"eos_token\":\"<s>\"}");
    t = open_ok();
    assert_int_equal(fl__tokenizer_bos(t), 2);
    assert_int_equal(fl__tokenizer_eos(t), -1);
    fl__tokenizer_close(&t);
}

static void vocab_and_merges_without_a_class_are_gpt2(void **state)
{
    (void)state;
    write_model(NULL);
    fl_tokenizer *t = open_ok();
    /* GPT-2 takes numbers whole; the space before a word belongs to it */
    assert_ids(t, "ab a 1111<|endoftext|>", true, "2 4 3 6 6 8");
    assert_int_equal(fl__tokenizer_n_vocab(t), 13);
    assert_true(fl__tokenizer_is_special(t, 8));
    assert_int_equal(fl__tokenizer_bos(t), -1);
    const int32_t ids[] = {2, 4, 8};
    char *text;
    size_t n_bytes;
    assert_int_equal(fl__tokenizer_decode(&text, &n_bytes, t, ids, 3, true, NULL), FL_OK);
    assert_string_equal(text, "ab a");
    fl__free(&text);
    fl__tokenizer_close(&t);
}

static void the_class_picks_the_layout(void **state)
{
    (void)state;
    static const struct {
        const char *class, *text, *ids;
    } cases[] = {
        {"GPT2Tokenizer", "11111", "6 7"},
        {"GPT2TokenizerFast", "ab", "2"},
        /* numbers in threes: 111, 11 */
        {"PreTrainedTokenizerFast", "11111", "7 6"},
        {"TokenizersBackend", "11111", "7 6"},
        {"LlamaTokenizerFast", "11111", "7 6"},
        /* digit by digit, and NFC: e + acute is C3 A9 */
        {"Qwen2Tokenizer", "11e\xCC\x81", "5 5 11 12"},
        {"Qwen2TokenizerFast", "11", "5 5"},
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        char config[128];
        (void)snprintf(config, sizeof config, "{\"tokenizer_class\":\"%s\"}", cases[i].class);
        write_model(config);
        fl_tokenizer *t = open_ok();
        assert_ids(t, cases[i].text, true, cases[i].ids);
        fl__tokenizer_close(&t);
    }
}

static void opt_adds_its_bos(void **state)
{
    (void)state;
    write_model("{\"tokenizer_class\":\"GPT2Tokenizer\",\"add_bos_token\":true,"
                "\"add_prefix_space\":true,\"bos_token\":{\"content\":\"<|endoftext|>\"}}");
    fl_tokenizer *t = open_ok();
    assert_ids(t, "a", true, "8 4");
    assert_ids(t, "a", false, "4");
    assert_int_equal(fl__tokenizer_bos(t), 8);
    fl__tokenizer_close(&t);
}

static void added_tokens_come_from_three_files(void **state)
{
    (void)state;
    /* added_tokens.json, its ids in any order; special_tokens_map.json makes one special and
     * adds another behind the last id */
    write_model("{\"eos_token\":\"<end>\"}");
    write_file("added_tokens.json", "{\"<y>\":14,\"<x>\":13}");
    write_file(
        "special_tokens_map.json",
        "{\"additional_special_tokens\":[\"<x>\",{\"content\":\"<z>\",\"lstrip\":true}]}");
    fl_tokenizer *t = open_ok();
    assert_ids(t, "<x><y> <z><end>", true, "13 14 16 15");
    assert_true(fl__tokenizer_is_special(t, 13));
    assert_false(fl__tokenizer_is_special(t, 14));
    assert_true(fl__tokenizer_is_special(t, 15));
    assert_int_equal(fl__tokenizer_eos(t), 15);
    fl__tokenizer_close(&t);
    /* added_tokens_decoder says it all, and added_tokens.json is not read */
    write_model(
        "{\"added_tokens_decoder\":{\"8\":{\"content\":\"<|endoftext|>\",\"special\":true},"
        "\"13\":{\"content\":\"<w>\",\"rstrip\":true,\"special\":false}}}");
    write_file("special_tokens_map.json", "{}");
    t = open_ok();
    assert_ids(t, "<w> a<|endoftext|>", true, "13 0 8");
    assert_int_equal(fl__tokenizer_id(t, "<x>", 3), -1);
    fl__tokenizer_close(&t);
}

static void broken_directories(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text;
        fl_status status;
        const char *why;
    } cases[] = {
        {"merges.txt", "#version: 0.2\na b\nab q\n", FL_E_INPUT,
         "line 3: no such token in the vocabulary: \"q\""},
        {"merges.txt", "a b\r\nb a\r\n", FL_E_INPUT,
         "line 2: no such token in the vocabulary: \"ba\""},
        {"merges.txt", "a b\n\nab\n", FL_E_INPUT, "line 3: not two tokens"},
        {"merges.txt", "a b a\n", FL_E_INPUT, "line 1: not two tokens"},
        {"vocab.json", "{\"a\":0,", FL_E_INPUT, "vocab.json: line 1"},
        {"vocab.json", "[]", FL_E_INPUT, "not a JSON object"},
        {"vocab.json", "{\"a\":0,\"b\":0}", FL_E_INPUT, "id 0 is given to"},
        {"tokenizer_config.json", "{\"tokenizer_class\":\"T5Tokenizer\"}", FL_E_UNSUPPORTED,
         "tokenizer_class is \"T5Tokenizer\""},
        {"tokenizer_config.json", "{\"tokenizer_class\":3}", FL_E_INPUT, "tokenizer_class"},
        {"tokenizer_config.json", "3", FL_E_INPUT, "not a JSON object"},
        {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"x\":{\"content\":\"y\"}}}",
         FL_E_INPUT, "added_tokens_decoder[\"x\"]"},
        {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"99\":{\"content\":\"y\"}}}",
         FL_E_INPUT, "\"y\" has id 99, its place in the vocabulary is 13"},
        {"added_tokens.json", "{\"x\":\"y\"}", FL_E_INPUT, "the id of \"x\" is no integer"},
        {"special_tokens_map.json", "nonsense", FL_E_INPUT, "special_tokens_map.json"},
        {"tokenizer.json", "{\"model\":{\"type\":\"WordPiece\"}}", FL_E_UNSUPPORTED,
         "model.type is \"WordPiece\""},
        {"tokenizer.json", "", FL_E_INPUT, "tokenizer.json: line 1"},
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        fl_tokenizer *t = (fl_tokenizer *)1;
        fl_err err = {""};
        const size_t before = fl__mem_get().now_bytes;
        write_model(NULL);
        write_file(cases[i].name, cases[i].text);
        const fl_status st = fl__tokenizer_open(&t, fl_test_dir(), &err);
        if (st != cases[i].status) fail_msg("%zu: %d %s", i, st, err.text);
        assert_null(t);
        if (!strstr(err.text, cases[i].why)) fail_msg("%s lacks %s", err.text, cases[i].why);
        assert_int_equal(fl__mem_get().now_bytes, before);
        assert_int_equal(unlink(fl_test_path(cases[i].name)), 0);
    }
}

static void empty_directory(void **state)
{
    (void)state;
    fl_tokenizer *t;
    fl_err err;
    assert_int_equal(fl__tokenizer_open(&t, fl_test_dir(), &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "neither tokenizer.json nor vocab.json + merges.txt"));
    assert_int_equal(fl__tokenizer_open(&t, "/nonexistent", &err), FL_E_INPUT);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(tokenizer_json_with_its_config),
    cmocka_unit_test(vocab_and_merges_without_a_class_are_gpt2),
    cmocka_unit_test(the_class_picks_the_layout),
    cmocka_unit_test(opt_adds_its_bos),
    cmocka_unit_test(added_tokens_come_from_three_files),
    cmocka_unit_test(broken_directories),
    cmocka_unit_test(empty_directory),
};
FL_TEST_MAIN(tests)
