/* test_session.c - Sessions and generation on a small model: feeding in pieces, forgetting, no
 * allocation while decoding, what ends a text.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/small_model.h"

#include "base/mem.h"

#include <stdio.h>
#include <string.h>

enum { N_IDS = 80 };

static fl_engine *engine;
static fl_session *session;
static int32_t ids[N_IDS];
static fl_err err;

static void open_model(const fl_small_model *m, int n_positions)
{
    fl_engine_options eo;
    fl_session_options so;
    fl_engine_options_defaults(&eo);
    fl_session_options_defaults(&so);
    eo.n_threads = 1; /* single tokens of a small model: waiting would cost more */
    so.n_positions = n_positions;
    const char *dir = fl_test_small_model("model", m);
    if (fl_engine_open(&engine, dir, &eo, &err) != FL_OK) fail_msg("%s", err.text);
    if (fl_session_new(&session, engine, &so, &err) != FL_OK) fail_msg("%s", err.text);
    for (int i = 0; i < N_IDS; i++) ids[i] = (i * 37 + 11) % 256;
}

static int close_all(void **state)
{
    (void)state;
    fl_session_free(&session);
    fl_engine_close(&engine);
    return fl__mem_get().now_bytes == 0 ? 0 : -1;
}

static const float *feed(const int32_t *what, size_t n)
{
    const float *logits;
    if (fl_session_feed(session, what, n, &logits, &err) != FL_OK) fail_msg("%s", err.text);
    return logits;
}

static int argmax(const float *row, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (row[i] > row[best]) best = i;
    return best;
}

static void pieces_give_the_logits_of_the_whole(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    float whole[264];
    open_model(&m, 0);
    memcpy(whole, feed(ids, N_IDS), sizeof whole);
    fl_session_truncate(session, 0);
    assert_int_equal(fl_session_length(session), 0);
    const float *logits = feed(ids, 30);
    for (int i = 30; i < N_IDS; i++) logits = feed(ids + i, 1);
    assert_memory_equal(logits, whole, sizeof whole);
}

static void truncated_tokens_are_forgotten(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    float before[264];
    open_model(&m, 0);
    (void)feed(ids, 40);
    memcpy(before, feed(ids + 40, 1), sizeof before);
    (void)feed(ids + 50, 20);
    fl_session_truncate(session, 40);
    assert_int_equal(fl_session_length(session), 40);
    assert_memory_equal(feed(ids + 40, 1), before, sizeof before);
    fl_session_truncate(session, 1000); /* more than there is: nothing happens */
    assert_int_equal(fl_session_length(session), 41);
}

static void decoding_allocates_nothing(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    open_model(&m, 0);
    (void)feed(ids, 20);
    const uint64_t before = fl__mem_get().n_allocs;
    for (int i = 20; i < N_IDS; i++) (void)feed(ids + i, 1);
    assert_int_equal(fl__mem_get().n_allocs, before);
}

static void bad_feeds_are_refused_and_change_nothing(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    const float *logits;
    open_model(&m, 32);
    (void)feed(ids, 30);
    const int32_t negative = -1, large = 264;
    assert_int_equal(fl_session_feed(session, ids, 3, &logits, &err), FL_E_USAGE);
    assert_non_null(strstr(err.text, "context full: "));
    assert_null(logits);
    assert_int_equal(fl_session_feed(session, ids, 0, &logits, &err), FL_E_USAGE);
    assert_int_equal(fl_session_feed(session, &negative, 1, &logits, &err), FL_E_USAGE);
    assert_int_equal(fl_session_feed(session, &large, 1, &logits, &err), FL_E_USAGE);
    assert_int_equal(fl_session_length(session), 30);
    (void)feed(ids, 2);
}

static void options_out_of_range_are_usage_errors(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    fl_engine *e;
    fl_session *s;
    fl_engine_options eo;
    fl_session_options so = {.n_positions = 97};
    open_model(&m, 0);
    assert_int_equal(fl_session_new(&s, engine, &so, &err), FL_E_USAGE);
    assert_null(s);
    so.n_positions = -1;
    assert_int_equal(fl_session_new(&s, engine, &so, &err), FL_E_USAGE);
    fl_engine_options_defaults(&eo);
    eo.isa = "sse9";
    assert_int_equal(fl_engine_open(&e, "model", &eo, &err), FL_E_USAGE);
    assert_null(e);
    fl_engine_options_defaults(&eo);
    eo.n_threads = -1;
    assert_int_equal(fl_engine_open(&e, "model", &eo, &err), FL_E_USAGE);
}

static void note_line(void *user, fl_log_level level, const char *line)
{
    (void)level;
    (void)snprintf(user, 200, "%s", line);
}

static void a_level_that_the_machine_lacks_is_lowered_aloud(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    const char *dir = fl_test_small_model("model", &m);
    char line[200] = "";
    fl_engine_info info;
    fl_engine_options eo;
    fl_engine_options_defaults(&eo);
    eo.isa = "amx";
    eo.log = (fl_log){.write = note_line, .user = line};
    assert_int_equal(fl_engine_open(&engine, dir, &eo, &err), FL_OK);
    fl_engine_get_info(engine, &info);
    assert_string_equal(info.family, "llama");
    assert_string_equal(info.quant_method, "none");
    assert_string_equal(info.kv_format, "f32");
    assert_int_equal(info.vocab_size, 264);
    if (strcmp(info.isa, "amx") == 0) assert_string_equal(line, "");
    else assert_non_null(strstr(line, "does not have amx: using "));
}

/* ---- generate ---------------------------------------------------------------------------- */

typedef struct sink {
    char text[1024];
    size_t n;
    int n_calls, stop_after; /* 0: never */
} sink;

static bool on_text(void *user, const char *text, size_t n_bytes)
{
    sink *s = user;
    assert_true(s->n + n_bytes < sizeof s->text);
    memcpy(s->text + s->n, text, n_bytes);
    s->n += n_bytes;
    return ++s->n_calls != s->stop_after;
}

static fl_generate_options prompt_options(const char *prompt, sink *s)
{
    fl_generate_options o;
    fl_generate_options_defaults(&o);
    o.prompt = prompt;
    o.n_prompt_bytes = strlen(prompt);
    o.n_predict = 24;
    o.on_text = s ? on_text : NULL;
    o.user = s;
    return o;
}

static fl_generate_result generate(const fl_generate_options *o)
{
    fl_generate_result r;
    fl_session_truncate(session, 0);
    if (fl_session_generate(&r, session, o, &err) != FL_OK) fail_msg("%s", err.text);
    return r;
}

static void pieces_of_text_make_the_text_and_are_whole_characters(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    open_model(&m, 0);
    for (int seed = 0; seed < 4; seed++) {
        sink s = {.n = 0};
        fl_generate_options o = prompt_options("some text", &s);
        o.sample.temperature = 2; /* noise: ill-formed UTF-8 for sure */
        o.sample.seed = (uint64_t)seed;
        fl_generate_result r = generate(&o);
        assert_int_equal(r.n_prompt_tokens, 9);
        assert_int_equal(r.n_text_bytes, s.n);
        assert_memory_equal(r.text, s.text, s.n);
        assert_int_equal(r.text[r.n_text_bytes], 0);
        fl_generate_result again = generate(&o);
        assert_int_equal(r.n_tokens, again.n_tokens);
        assert_memory_equal(r.ids, again.ids, (size_t)r.n_tokens * sizeof *r.ids);
        fl_generate_result_fini(&again);
        fl_generate_result_fini(&r);
    }
}

static void greedy_generation_is_feeding_the_largest_logit(void **state)
{
    (void)state;
    fl_small_model m = fl_test_small_model_defaults();
    open_model(&m, 0);
    fl_generate_options o = prompt_options("abc", NULL);
    o.sample.temperature = 0;
    fl_generate_result r = generate(&o);
    const int32_t prompt[] = {'a', 'b', 'c'};
    fl_session_truncate(session, 0);
    const float *logits = feed(prompt, 3);
    for (int i = 0; i < r.n_tokens; i++) {
        assert_int_equal(r.ids[i], argmax(logits, 264));
        logits = feed(&r.ids[i], 1);
    }
    assert_string_equal(r.finish_reason, "length");
    assert_int_equal(r.n_tokens, 24);
    fl_generate_result_fini(&r);
}

static void the_end_token_stops_and_is_not_part_of_the_text(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    char text[64];
    open_model(&m, 0);
    fl_generate_options o = prompt_options("abc", NULL);
    o.sample.temperature = 0;
    fl_generate_result r = generate(&o);
    int n = 0; /* tokens before the first that is the sixth */
    while (r.ids[n] != r.ids[5]) n++;
    (void)snprintf(text, sizeof text, "{\"eos_token_id\": [9999, %d]}", (int)r.ids[5]);
    assert_int_equal(close_all(NULL), -1); /* r is still alive */
    fl_test_write_text(fl_test_path("model/generation_config.json"), text);
    assert_int_equal(fl_engine_open(&engine, fl_test_path("model"), NULL, &err), FL_OK);
    assert_int_equal(fl_session_new(&session, engine, NULL, &err), FL_OK);
    fl_generate_result stopped = generate(&o);
    assert_string_equal(stopped.finish_reason, "stop");
    assert_int_equal(stopped.n_tokens, n);
    assert_memory_equal(stopped.ids, r.ids, (size_t)n * sizeof *r.ids);
    fl_generate_result_fini(&stopped);
    fl_generate_result_fini(&r);
}

static void the_end_of_the_context_is_length(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    open_model(&m, 16);
    fl_generate_options o = prompt_options("0123456789", NULL);
    o.sample.temperature = 0;
    o.n_predict = -1;
    fl_generate_result r = generate(&o);
    assert_string_equal(r.finish_reason, "length");
    assert_int_equal(r.n_tokens, 7); /* 6 more places, and one token that needs none */
    assert_int_equal(fl_session_length(session), 16);
    fl_generate_result_fini(&r);
}

static void the_caller_can_cancel(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    sink s = {.stop_after = 3};
    open_model(&m, 0);
    fl_generate_options o = prompt_options("abc", &s);
    o.sample.temperature = 0;
    fl_generate_result r = generate(&o);
    assert_string_equal(r.finish_reason, "cancelled");
    assert_int_equal(r.n_tokens, 3);
    fl_generate_result_fini(&r);
}

static void bos_is_added_to_the_beginning_only(void **state)
{
    (void)state;
    fl_small_model m = fl_test_small_model_defaults();
    fl_generate_result r;
    m.adds_bos = true;
    open_model(&m, 0);
    fl_generate_options o = prompt_options("abc", NULL);
    o.n_predict = 2;
    r = generate(&o);
    assert_int_equal(r.n_prompt_tokens, 4);
    fl_generate_result_fini(&r);
    assert_int_equal(fl_session_generate(&r, session, &o, &err), FL_OK); /* goes on */
    assert_int_equal(r.n_prompt_tokens, 3);
    fl_generate_result_fini(&r);
}

static void bad_prompts_are_usage_errors(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    fl_generate_result r;
    open_model(&m, 8);
    fl_generate_options o = prompt_options("", NULL);
    assert_int_equal(fl_session_generate(&r, session, &o, &err), FL_E_USAGE);
    assert_non_null(strstr(err.text, "empty prompt: "));
    o = prompt_options("123456789", NULL);
    assert_int_equal(fl_session_generate(&r, session, &o, &err), FL_E_USAGE);
    assert_non_null(strstr(err.text, "prompt too long: "));
    assert_null(r.text);
    o.prompt_path = fl_test_path("nothing-here");
    assert_int_equal(fl_session_generate(&r, session, &o, &err), FL_E_INPUT);
    assert_int_equal(fl_session_length(session), 0);
}

static void running_out_of_memory_leaks_nothing(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    fl_generate_result r;
    open_model(&m, 0);
    const fl_generate_options o = prompt_options("abc", NULL);
    const size_t before = fl__mem_get().now_bytes;
    fl_status st = FL_E_NOMEM;
    for (uint64_t n = 1; st != FL_OK && n < 200; n++) {
        fl_session_truncate(session, 0);
        fl__mem_fail_after(n);
        st = fl_session_generate(&r, session, &o, &err);
        fl__mem_fail_after(0);
        assert_true(st == FL_OK || st == FL_E_NOMEM);
        if (st != FL_OK) assert_int_equal(fl__mem_get().now_bytes, before);
    }
    assert_int_equal(st, FL_OK);
    fl_generate_result_fini(&r);
}

#define TEST(F) cmocka_unit_test_teardown(F, close_all)
static const struct CMUnitTest tests[] = {
    TEST(pieces_give_the_logits_of_the_whole),
    TEST(truncated_tokens_are_forgotten),
    TEST(decoding_allocates_nothing),
    TEST(bad_feeds_are_refused_and_change_nothing),
    TEST(options_out_of_range_are_usage_errors),
    TEST(a_level_that_the_machine_lacks_is_lowered_aloud),
    TEST(pieces_of_text_make_the_text_and_are_whole_characters),
    TEST(greedy_generation_is_feeding_the_largest_logit),
    TEST(the_end_token_stops_and_is_not_part_of_the_text),
    TEST(the_end_of_the_context_is_length),
    TEST(the_caller_can_cancel),
    TEST(bos_is_added_to_the_beginning_only),
    TEST(bad_prompts_are_usage_errors),
    TEST(running_out_of_memory_leaks_nothing),
};
FL_TEST_MAIN(tests)
