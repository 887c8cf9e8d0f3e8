/* test_generate_golden.c - The reference implementation's figures for four small models
 * (shared/models/<name>/golden): greedy continuations token by token, and the cross entropy of
 * the first windows of a text. And on the same models: tokens fed one by one give the logits of
 * all fed at once.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"

#include "api/engine.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "eval/perplexity.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { SEQ_LEN = 1024, MAX_WINDOWS = 2, N_PIECED = 150 };
static const double NLL_TOLERANCE =
    1e-3; /* relative: one of the references was rounded to bf16 */
static const size_t MAX_GOLDEN_BYTES = (size_t)64 << 20;

static fl_engine *engine;
static json_t *golden;
static fl_err err;

/* One thread for single tokens of small models: waiting for others costs more than they do. */
static void open_model(const char *name, int n_threads)
{
    char path[128];
    fl_engine_options o;
    fl_engine_options_defaults(&o);
    o.n_threads = n_threads;
    (void)snprintf(path, sizeof path, "models/%s/golden/golden.json", name);
    const char *json = fl_test_shared(path);
    (void)snprintf(path, sizeof path, "models/%s", name);
    const char *dir = fl_test_shared(path);
    if (fl__json_load(&golden, json, MAX_GOLDEN_BYTES, &err) != FL_OK) fail_msg("%s", err.text);
    if (fl_engine_open(&engine, dir, &o, &err) != FL_OK) fail_msg("%s", err.text);
}

static int close_model(void **state)
{
    (void)state;
    json_decref(golden);
    fl_engine_close(&engine);
    return 0;
}

/* ---- greedy continuations ---------------------------------------------------------------- */

static void check_ids(const int32_t *ids, int n, const json_t *want, const char *what)
{
    for (int i = 0; i < n; i++)
        if (ids[i] != json_integer_value(json_array_get(want, (size_t)i)))
            fail_msg("%s: token %d is %d, the reference has %d", what, i, (int)ids[i],
                     (int)json_integer_value(json_array_get(want, (size_t)i)));
    assert_int_equal(n, json_array_size(want));
}

static void check_prompt(fl_session *session, const json_t *prompt)
{
    const char *text = json_string_value(json_object_get(prompt, "text"));
    const json_t *greedy = json_object_get(prompt, "greedy_ids");
    fl_generate_options o;
    fl_generate_result r;
    int32_t *ids;
    size_t n_ids;
    assert_int_equal(fl_engine_encode(&ids, &n_ids, engine, text, strlen(text), true, &err),
                     FL_OK);
    check_ids(ids, (int)n_ids, json_object_get(prompt, "ids"), text);
    fl_ids_free(&ids);
    fl_generate_options_defaults(&o);
    o.prompt = text;
    o.n_prompt_bytes = strlen(text);
    o.n_predict = (int)json_array_size(greedy);
    o.sample.temperature = 0;
    o.special = true;
    fl_session_truncate(session, 0);
    if (fl_session_generate(&r, session, &o, &err) != FL_OK) fail_msg("%s", err.text);
    check_ids(r.ids, r.n_tokens, greedy, text);
    assert_string_equal(r.text, json_string_value(json_object_get(prompt, "greedy_text")));
    fl_generate_result_fini(&r);
}

static void check_continuations(const char *name)
{
    fl_session *session;
    open_model(name, 1);
    const json_t *prompts = json_object_get(golden, "prompts");
    assert_true(json_array_size(prompts) > 0);
    assert_int_equal(fl_session_new(&session, engine, NULL, &err), FL_OK);
    for (size_t i = 0; i < json_array_size(prompts); i++)
        check_prompt(session, json_array_get(prompts, i));
    fl_session_free(&session);
}

/* ---- pieces ------------------------------------------------------------------------------ */

static void feed(const float **logits, fl_session *session, const int32_t *ids, size_t n)
{
    if (fl_session_feed(session, ids, n, logits, &err) != FL_OK) fail_msg("%s", err.text);
}

/* Random ids: far from text, where errors grow most. */
static void check_pieces(const char *name)
{
    static const size_t steps[] = {1, 5, 64};
    int32_t ids[N_PIECED];
    const float *logits;
    fl_session *session;
    open_model(name, 1);
    const size_t vocab = (size_t)engine->model->cfg.vocab_size;
    float *whole = fl__alloc(vocab, sizeof *whole);
    fl_rng rng = fl__rng_init(1, 0, "ids");
    for (int i = 0; i < N_PIECED; i++) ids[i] = (int32_t)fl__rng_below(&rng, vocab);
    assert_int_equal(fl_session_new(&session, engine, NULL, &err), FL_OK);
    feed(&logits, session, ids, N_PIECED);
    memcpy(whole, logits, vocab * sizeof *whole);
    for (size_t s = 0; s < FL_COUNT(steps); s++) {
        fl_session_truncate(session, 0);
        for (size_t i = 0; i < N_PIECED; i += steps[s])
            feed(&logits, session, ids + i, FL_MIN(steps[s], N_PIECED - i));
        assert_memory_equal(logits, whole, vocab * sizeof *whole);
    }
    fl__free(&whole);
    fl_session_free(&session);
}

/* ---- cross entropy of windows ------------------------------------------------------------ */

static void check_windows(const char *name)
{
    double nll[MAX_WINDOWS];
    fl_file_map text;
    fl_perplexity p;
    int32_t *ids;
    size_t n_ids;
    open_model(name, 0);
    const char *path = fl_test_shared("data/wikitext-2/wiki.test.raw");
    if (fl__file_map(&text, path, &err) != FL_OK) fail_msg("%s", err.text);
    assert_int_equal(fl_engine_encode(&ids, &n_ids, engine, (const char *)text.data,
                                      text.n_bytes, false, &err),
                     FL_OK);
    fl__file_unmap(&text);
    assert_int_equal(n_ids, json_integer_value(json_object_get(golden, "test_tokens")));
    const fl_perplexity_job job = {.model = engine->model,
                                   .ex = &engine->exec,
                                   .ids = ids,
                                   .n_ids = MAX_WINDOWS * SEQ_LEN,
                                   .seq_len = SEQ_LEN,
                                   .window_nll = nll};
    if (fl__perplexity_run(&p, &job, &err) != FL_OK) fail_msg("%s", err.text);
    const json_t *want = json_object_get(golden, "nll_first_windows");
    for (int i = 0; i < MAX_WINDOWS; i++) {
        const double reference = json_number_value(json_array_get(want, (size_t)i));
        if (!(fabs(nll[i] / reference - 1) <= NLL_TOLERANCE))
            fail_msg("window %d: %.6f, the reference has %.6f", i, nll[i], reference);
    }
    fl_ids_free(&ids);
}

#define MODEL_TESTS(ID, NAME)                                                                  \
    static void continuations_of_##ID(void **state)                                            \
    {                                                                                          \
        (void)state;                                                                           \
        check_continuations(NAME);                                                             \
    }                                                                                          \
    static void pieces_of_##ID(void **state)                                                   \
    {                                                                                          \
        (void)state;                                                                           \
        check_pieces(NAME);                                                                    \
    }                                                                                          \
    static void windows_of_##ID(void **state)                                                  \
    {                                                                                          \
        (void)state;                                                                           \
        check_windows(NAME);                                                                   \
    }
MODEL_TESTS(llama_2m, "llama-2m")
MODEL_TESTS(llama_28m, "llama-28m")
MODEL_TESTS(opt_2m, "opt-2m")
MODEL_TESTS(opt_27m, "opt-27m")

#define TEST(F) cmocka_unit_test_teardown(F, close_model)
static const struct CMUnitTest tests[] = {
    TEST(continuations_of_llama_2m), TEST(continuations_of_llama_28m),
    TEST(continuations_of_opt_2m),   TEST(continuations_of_opt_27m),
    TEST(pieces_of_llama_2m),        TEST(pieces_of_llama_28m),
    TEST(pieces_of_opt_2m),          TEST(pieces_of_opt_27m),
    TEST(windows_of_llama_2m),       TEST(windows_of_llama_28m),
    TEST(windows_of_opt_2m),         TEST(windows_of_opt_27m),
};
FL_TEST_MAIN(tests)
