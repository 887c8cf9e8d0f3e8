/* test_eval.c - Evaluation of small models against the definition computed from sessions, token
 * by token, and the texts and models that do not compare.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/small_model.h"

#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { N_BYTES = 1000, SEQ_LEN = 33, VOCAB = 264 };

static char text[N_BYTES + 1];
static fl_err err;

static const char *write_text(void)
{
    const char *path = fl_test_path("text.txt");
    for (int i = 0; i < N_BYTES; i++) text[i] = (char)('a' + i * i * 7 % 26);
    fl_test_write_text(path, text);
    return path;
}

static fl_eval_options options(const char *dir, const char *baseline)
{
    fl_eval_options o;
    fl_eval_options_defaults(&o);
    o.model_dir = dir;
    o.baseline_dir = baseline;
    o.ppl_path = write_text();
    o.seq_len = SEQ_LEN;
    o.n_threads = 2;
    return o;
}

/* Log probabilities of every prediction of a window, [SEQ_LEN - 1, VOCAB]. */
static void predict(double *log_p, fl_session *session, const char *window)
{
    fl_session_truncate(session, 0);
    for (int i = 0; i + 1 < SEQ_LEN; i++) {
        const float *logits;
        const int32_t id = window[i];
        double sum = 0;
        assert_int_equal(fl_session_feed(session, &id, 1, &logits, &err), FL_OK);
        for (int v = 0; v < VOCAB; v++) sum += exp((double)logits[v]);
        for (int v = 0; v < VOCAB; v++) log_p[i * VOCAB + v] = logits[v] - log(sum);
    }
}

static int argmax(const double *row)
{
    int best = 0;
    for (int v = 1; v < VOCAB; v++)
        if (row[v] > row[best]) best = v;
    return best;
}

/* The definition, of two models. */
static void expect(fl_eval_result *r, const char *dirs[2])
{
    static double log_p[2][(SEQ_LEN - 1) * VOCAB];
    fl_engine *engine[2];
    fl_session *session[2];
    double nll[2] = {0}, kld = 0;
    int n = 0, n_agree = 0;
    for (int m = 0; m < 2; m++) {
        assert_int_equal(fl_engine_open(&engine[m], dirs[m], NULL, &err), FL_OK);
        assert_int_equal(fl_session_new(&session[m], engine[m], NULL, &err), FL_OK);
    }
    const int n_windows = N_BYTES / SEQ_LEN;
    for (int w = 0; w < n_windows; w++) {
        const char *window = text + w * SEQ_LEN;
        for (int m = 0; m < 2; m++) predict(log_p[m], session[m], window);
        for (int i = 0; i + 1 < SEQ_LEN; i++, n++) {
            const double *p = log_p[0] + i * VOCAB, *b = log_p[1] + i * VOCAB;
            nll[0] -= p[(int)window[i + 1]];
            nll[1] -= b[(int)window[i + 1]];
            for (int v = 0; v < VOCAB; v++) kld += exp(b[v]) * (b[v] - p[v]);
            n_agree += argmax(p) == argmax(b);
        }
    }
    for (int m = 0; m < 2; m++) {
        fl_session_free(&session[m]);
        fl_engine_close(&engine[m]);
    }
    *r = (fl_eval_result){.ppl = exp(nll[0] / n),
                          .baseline_ppl = exp(nll[1] / n),
                          .kld_mean = kld / n,
                          .top1_agreement = (double)n_agree / n,
                          .windows = n_windows,
                          .n_predictions = n};
}

static void figures_are_those_of_the_definition(void **state)
{
    (void)state;
    fl_small_model m = fl_test_small_model_defaults();
    const char *dirs[2];
    dirs[0] = fl_test_small_model("model", &m);
    m.seed = 1;
    dirs[1] = fl_test_small_model("baseline", &m);
    const fl_eval_options o = options(dirs[0], dirs[1]);
    fl_eval_result got, want;
    if (fl_eval_run(&got, &o, &err) != FL_OK) fail_msg("%s", err.text);
    expect(&want, dirs);
    assert_int_equal(got.tokens, N_BYTES);
    assert_int_equal(got.windows, want.windows);
    assert_int_equal(got.n_predictions, want.n_predictions);
    assert_float_equal(got.ppl / want.ppl, 1, 1e-5);
    assert_float_equal(got.baseline_ppl / want.baseline_ppl, 1, 1e-5);
    assert_float_equal(got.kld_mean / want.kld_mean, 1, 1e-4);
    assert_float_equal(got.top1_agreement, want.top1_agreement,
                       1.5 / (double)want.n_predictions);
    assert_string_equal(got.model.quant_method, "none");
    assert_string_equal(got.baseline.kv_format, "f32");
    assert_int_equal(fl__mem_get().now_bytes, 0);
}

static void figures_do_not_depend_on_the_threads(void **state)
{
    (void)state;
    fl_small_model m = fl_test_small_model_defaults();
    const char *dir = fl_test_small_model("model", &m);
    m.seed = 1;
    fl_eval_options o = options(dir, fl_test_small_model("baseline", &m));
    fl_eval_result one, three;
    o.n_threads = 1;
    assert_int_equal(fl_eval_run(&one, &o, &err), FL_OK);
    o.n_threads = 3;
    assert_int_equal(fl_eval_run(&three, &o, &err), FL_OK);
    assert_true(one.ppl == three.ppl && one.baseline_ppl == three.baseline_ppl);
    assert_true(one.kld_mean == three.kld_mean && one.top1_agreement == three.top1_agreement);
}

static void without_a_baseline_the_comparison_is_nan(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    fl_eval_options o = options(fl_test_small_model("model", &m), NULL);
    fl_eval_result r;
    o.max_windows = 3;
    assert_int_equal(fl_eval_run(&r, &o, &err), FL_OK);
    assert_int_equal(r.windows, 3);
    assert_true(isnan(r.kld_mean) && isnan(r.top1_agreement) && isnan(r.baseline_ppl));
    assert_true(r.ppl > 1);
    o.seq_len = 0; /* the context: 96 */
    o.max_windows = 0;
    assert_int_equal(fl_eval_run(&r, &o, &err), FL_OK);
    assert_int_equal(r.seq_len, 96);
    assert_int_equal(r.windows, N_BYTES / 96);
}

static bool stop_at_once(void *user)
{
    (void)user;
    return true;
}

static void it_can_be_stopped(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    fl_eval_options o = options(fl_test_small_model("model", &m), NULL);
    fl_eval_result r;
    o.should_stop = stop_at_once;
    assert_int_equal(fl_eval_run(&r, &o, &err), FL_E_INTERRUPTED);
}

static void check_refused(const fl_eval_options *o, fl_status want, const char *part)
{
    fl_eval_result r;
    assert_int_equal(fl_eval_run(&r, o, &err), want);
    if (!strstr(err.text, part)) fail_msg("'%s' lacks '%s'", err.text, part);
    assert_int_equal(fl__mem_get().now_bytes, 0);
}

static void bad_texts_and_windows_are_refused(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    fl_eval_options o = options(fl_test_small_model("model", &m), NULL);
    o.seq_len = 97;
    check_refused(&o, FL_E_USAGE, "bad window length: 97: ");
    o.seq_len = 1;
    check_refused(&o, FL_E_USAGE, "bad window length: 1: ");
    o.seq_len = SEQ_LEN;
    o.max_windows = -1;
    check_refused(&o, FL_E_USAGE, "max_windows");
    o.max_windows = 0;
    fl_test_write_text(o.ppl_path, "short");
    check_refused(&o, FL_E_INPUT, "text too short: 5 tokens: ");
    fl_test_write_text(o.ppl_path, "");
    check_refused(&o, FL_E_INPUT, "text too short: 0 tokens: ");
    o.ppl_path = fl_test_path("nothing-here");
    check_refused(&o, FL_E_INPUT, "nothing-here");
    o.ppl_path = NULL;
    check_refused(&o, FL_E_USAGE, "ppl_path");
}

static void models_without_a_common_vocabulary_do_not_compare(void **state)
{
    (void)state;
    fl_small_model m = fl_test_small_model_defaults();
    const char *dir = fl_test_small_model("model", &m);
    m.vocab_size = 300;
    fl_eval_options o = options(dir, fl_test_small_model("larger", &m));
    check_refused(&o, FL_E_INPUT, "models do not compare: ");

    /* the same sizes, but 'a' and 'b' have changed places */
    m = fl_test_small_model_defaults();
    o.baseline_dir = fl_test_small_model("swapped", &m);
    static char json[1 << 16];
    FILE *f = fopen(fl_test_path("swapped/tokenizer.json"), "r+");
    assert_non_null(f);
    const size_t n = fread(json, 1, sizeof json - 1, f);
    json[n] = '\0';
    char *a = strstr(json, "\"a\":"), *b = strstr(json, "\"b\":");
    assert_true(a && b);
    a[1] = 'b';
    b[1] = 'a';
    rewind(f);
    assert_int_equal(fwrite(json, 1, n, f), n);
    (void)fclose(f);
    check_refused(&o, FL_E_INPUT, "its tokens of the text differ");
}

static void weights_that_are_no_numbers_are_a_failure(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    const float nan = NAN;
    const fl_eval_options o = options(fl_test_small_model("model", &m), NULL);
    FILE *f = fopen(fl_test_path("model/model.safetensors"), "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, -4, SEEK_END), 0);
    assert_int_equal(fwrite(&nan, sizeof nan, 1, f), 1);
    (void)fclose(f);
    check_refused(&o, FL_E_FAIL, "the logits are no finite numbers");
}

/* Every step of the way would take long: the steps grow. */
static void running_out_of_memory_leaks_nothing(void **state)
{
    (void)state;
    fl_small_model m = fl_test_small_model_defaults();
    const char *dir = fl_test_small_model("model", &m);
    const fl_eval_options o = options(dir, dir);
    fl_status st = FL_E_NOMEM;
    fl_eval_result r;
    for (uint64_t n = 1; st != FL_OK && n < 1000000; n += 1 + n / 8) {
        fl__mem_fail_after(n);
        st = fl_eval_run(&r, &o, &err);
        fl__mem_fail_after(0);
        if (st != FL_OK && st != FL_E_NOMEM) fail_msg("allocation %d: %s", (int)n, err.text);
        assert_int_equal(fl__mem_get().now_bytes, 0);
    }
    assert_int_equal(st, FL_OK);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(figures_are_those_of_the_definition),
    cmocka_unit_test(figures_do_not_depend_on_the_threads),
    cmocka_unit_test(without_a_baseline_the_comparison_is_nan),
    cmocka_unit_test(it_can_be_stopped),
    cmocka_unit_test(bad_texts_and_windows_are_refused),
    cmocka_unit_test(models_without_a_common_vocabulary_do_not_compare),
    cmocka_unit_test(weights_that_are_no_numbers_are_a_failure),
    cmocka_unit_test(running_out_of_memory_leaks_nothing),
};
FL_TEST_MAIN(tests)
