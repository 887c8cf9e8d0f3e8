/* test_tokenizer_golden.c - ids that Hugging Face's tokenizer gave for the shared models.
 *
 * golden/golden.json of each model: prompts with their ids and continuations with their text,
 * and the number of tokens of WikiText-2's test text, encoded at once without BOS. Also the
 * text itself: decoding its ids gives it back. SPDX-License-Identifier: MIT */
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "text/tokenizer.h"

#include "support/fl_test.h"

#include <stdio.h>
#include <string.h>

enum { MAX_FILE_BYTES = 1 << 26, MAX_IDS = 4096 };

static fl_tokenizer *open_model(const char *model)
{
    char path[128];
    fl_tokenizer *t;
    fl_err err = {""};
    (void)snprintf(path, sizeof path, "models/%s", model);
    if (fl__tokenizer_open(&t, fl_test_shared(path), &err)) fail_msg("%s", err.text);
    return t;
}

static json_t *load_golden(const char *model)
{
    char path[128];
    json_t *golden;
    fl_err err = {""};
    (void)snprintf(path, sizeof path, "models/%s/golden/golden.json", model);
    if (fl__json_load(&golden, fl_test_shared(path), MAX_FILE_BYTES, &err))
        fail_msg("%s", err.text);
    return golden;
}

static void check_prompt(const fl_tokenizer *t, const json_t *prompt)
{
    const json_t *expected = json_object_get(prompt, "ids");
    const json_t *greedy_ids = json_object_get(prompt, "greedy_ids");
    const char *text = json_string_value(json_object_get(prompt, "text"));
    const char *greedy_text = json_string_value(json_object_get(prompt, "greedy_text"));
    int32_t *ids, greedy[MAX_IDS];
    size_t n_ids, n_bytes;
    char *decoded;
    assert_int_equal(fl__tokenizer_encode(&ids, &n_ids, t, text, strlen(text), true, NULL),
                     FL_OK);
    assert_int_equal(n_ids, json_array_size(expected));
    for (size_t i = 0; i < n_ids; i++)
        assert_int_equal(ids[i], json_integer_value(json_array_get(expected, i)));
    fl__free(&ids);
    const size_t n_greedy = json_array_size(greedy_ids);
    assert_true(n_greedy <= MAX_IDS);
    for (size_t i = 0; i < n_greedy; i++)
        greedy[i] = (int32_t)json_integer_value(json_array_get(greedy_ids, i));
    assert_int_equal(fl__tokenizer_decode(&decoded, &n_bytes, t, greedy, n_greedy, false, NULL),
                     FL_OK);
    assert_string_equal(decoded, greedy_text);
    fl__free(&decoded);
}

static void check_model(const char *model)
{
    json_t *golden = load_golden(model);
    fl_tokenizer *t = open_model(model);
    const json_t *prompts = json_object_get(golden, "prompts");
    char *text, *decoded;
    size_t n_bytes, n_ids, n_decoded;
    int32_t *ids;
    assert_true(json_array_size(prompts) > 0);
    for (size_t i = 0; i < json_array_size(prompts); i++)
        check_prompt(t, json_array_get(prompts, i));
    const char *path = fl_test_shared("data/wikitext-2/wiki.test.raw");
    assert_int_equal(fl__file_read(&text, &n_bytes, path, MAX_FILE_BYTES, NULL), FL_OK);
    assert_int_equal(fl__tokenizer_encode(&ids, &n_ids, t, text, n_bytes, false, NULL), FL_OK);
    assert_int_equal(n_ids, json_integer_value(json_object_get(golden, "test_tokens")));
    assert_int_equal(fl__tokenizer_decode(&decoded, &n_decoded, t, ids, n_ids, false, NULL),
                     FL_OK);
    assert_int_equal(n_decoded, n_bytes);
    assert_memory_equal(decoded, text, n_bytes);
    fl__free(&decoded);
    fl__free(&ids);
    fl__free(&text);
    fl__tokenizer_close(&t);
    json_decref(golden);
}

static void llama_28m(void **state)
{
    (void)state;
    check_model("llama-28m");
}

static void llama_2m(void **state)
{
    (void)state;
    check_model("llama-2m");
}

static void opt_27m(void **state)
{
    (void)state;
    check_model("opt-27m");
}

static void opt_2m(void **state)
{
    (void)state;
    check_model("opt-2m");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(llama_28m),
    cmocka_unit_test(llama_2m),
    cmocka_unit_test(opt_27m),
    cmocka_unit_test(opt_2m),
};
FL_TEST_MAIN(tests)
