/* test_model.c - one forward pass for all uses: a token's bits at every site of a quantised
 * model are the same in a prefill, alone, beside other sequences and on any number of threads;
 * the float path agrees up to the order of its sums.
 * SPDX-License-Identifier: MIT */
#include "model/model.h"

#include "base/isa.h"
#include "base/mem.h"
#include "support/fl_test.h"
#include "support/opt_model.h"
#include "support/quantize_once.h"
#include "support/random_data.h"
#include "support/small_model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { T = 70, MAX_SITES = 32 }; /* more than one page and one block of queries */

/* All inputs of all sites of a sequence of T tokens, and the final hidden states. */
typedef struct trace {
    float *site[MAX_SITES]; /* [T, n_in] */
    float *hidden;          /* [T, embed_size] */
    int n_sites, row, layer;
    const fl_model *model;
} trace;

static int32_t token(const fl_model *m, int i, int seq)
{
    return (i * 31 + i * i * 7 + seq * 101) % m->cfg.vocab_size;
}

static trace trace_new(const fl_model *m)
{
    trace t = {.n_sites = m->cfg.n_layers * FL_N_SITES, .model = m};
    assert_true(t.n_sites <= MAX_SITES);
    for (int i = 0; i < t.n_sites; i++)
        t.site[i] = fl__calloc((size_t)(T * m->blocks[0].site[i % FL_N_SITES].n_in), 4);
    t.hidden = fl__calloc((size_t)(T * m->cfg.embed_size), sizeof(float));
    return t;
}

static void trace_fini(trace *t)
{
    for (int i = 0; i < t->n_sites; i++) fl__free(&t->site[i]);
    fl__free(&t->hidden);
}

static bool record(void *user, int site, const float *x, int n_rows)
{
    trace *t = user;
    const size_t n_in = (size_t)t->model->blocks[0].site[site].n_in;
    const size_t n = (size_t)FL_MIN(n_rows, T) * n_in; /* the first sequence is the traced
                                                          one */
    memcpy(t->site[t->layer * FL_N_SITES + site] + (size_t)t->row * n_in, x, n * sizeof *x);
    return true;
}

/* Runs tokens [pos, pos + n) of the first sequences of the cache (each its own tokens). */
static void pass(trace *t, const fl_exec *ex, fl_workspace *ws, fl_kv_cache *kv, int pos, int n,
                 int n_seqs)
{
    const fl_model *m = t->model;
    int32_t ids[3 * T];
    fl_span spans[3];
    for (int s = 0; s < n_seqs; s++) {
        spans[s] = (fl_span){.seq = s, .pos = pos, .n_rows = n};
        fl__kv_resize(kv, s, pos + n);
        for (int i = 0; i < n; i++) ids[s * n + i] = token(m, pos + i, s);
    }
    t->row = pos;
    fl__model_embed(m, ex, ws, ids, spans, n_seqs);
    for (t->layer = 0; t->layer < m->cfg.n_layers; t->layer++)
        fl__block_run(m, &m->blocks[t->layer], t->layer, FL_HALF_BOTH, ex, ws, kv, spans,
                      n_seqs, n_seqs == 1 || n == T ? record : NULL, t);
    const float *hidden = fl__model_finish(m, ex, ws, n * n_seqs);
    memcpy(t->hidden + (size_t)(pos * m->cfg.embed_size), hidden,
           sizeof(float) * (size_t)(n * m->cfg.embed_size));
}

/* step: tokens per pass. */
static trace run(const fl_model *m, int step, int n_seqs, int n_threads)
{
    const fl_exec ex = {fl__isa_detect(), n_threads};
    const fl_kv_options o = fl__model_kv_options(m, 3, T);
    fl_workspace *ws;
    fl_kv_cache *kv;
    trace t = trace_new(m);
    assert_int_equal(fl__kv_new(&kv, &o, NULL), FL_OK);
    assert_int_equal(fl__workspace_new(&ws, m, &ex, 3 * T, NULL), FL_OK);
    for (int pos = 0; pos < T; pos += step)
        pass(&t, &ex, ws, kv, pos, FL_MIN(step, T - pos), n_seqs);
    fl__workspace_free(&ws);
    fl__kv_free(&kv);
    return t;
}

static void check_same(const trace *a, const trace *b)
{
    for (int i = 0; i < a->n_sites; i++) {
        const int n_in = a->model->blocks[0].site[i % FL_N_SITES].n_in;
        for (int r = 0; r < T; r++)
            if (memcmp(a->site[i] + r * n_in, b->site[i] + r * n_in,
                       sizeof(float) * (size_t)n_in))
                fail_msg("layer %d, site %d: token %d differs", i / FL_N_SITES, i % FL_N_SITES,
                         r);
    }
}

static fl_model *open_model(const char *dir)
{
    const fl_exec ex = {fl__isa_detect(), 1};
    fl_model *m;
    fl_err err = {""};
    if (fl__model_open(&m, dir, &ex, false, &err)) fail_msg("%s", err.text);
    return m;
}

/* ---- a token has one value --------------------------------------------------------------- */

static void check_tokens(const char *dir)
{
    fl_model *m = open_model(dir);
    trace whole = run(m, T, 1, 1);
    for (int way = 0; way < 5; way++) {
        static const int step[] = {1, 13, 64, T, T}, seqs[] = {1, 1, 1, 3, 1},
                         threads[] = {1, 1, 1, 1, 2};
        trace other = run(m, step[way], seqs[way], threads[way]);
        check_same(&whole, &other);
        assert_memory_equal(whole.hidden, other.hidden,
                            sizeof(float) * (size_t)(T * m->cfg.embed_size));
        trace_fini(&other);
    }
    trace_fini(&whole);
    fl__model_close(&m);
}

static void tokens_of_flattenquant_have_one_value(void **state)
{
    (void)state;
    const fl_quantize_options o = fl_test_quantize_options(NULL, "out", "flattenquant");
    check_tokens(fl_test_quantize(&o, NULL));
}

static void tokens_of_per_token_scales_have_one_value(void **state)
{
    (void)state;
    fl_quantize_options o = fl_test_quantize_options(NULL, "out", "rtn");
    o.w_bits = o.a_bits = 8;
    check_tokens(fl_test_quantize(&o, NULL));
}

static void tokens_of_a_quantised_cache_have_one_value(void **state)
{
    (void)state;
    static const int bits[][2] = {{8, 8}, {4, 4}, {2, 3}, {16, 4}};
    for (size_t i = 0; i < FL_COUNT(bits); i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "kv%zu", i);
        fl_quantize_options o = fl_test_quantize_options(NULL, name, "rtn");
        o.w_bits = o.a_bits = 8;
        o.k_bits = bits[i][0];
        o.v_bits = bits[i][1];
        check_tokens(fl_test_quantize(&o, NULL));
    }
}

static void tokens_of_opt_have_one_value(void **state)
{
    (void)state;
    fl_opt_model m = fl_test_opt_model_defaults();
    m.outlier = 10;
    for (int pre = 0; pre < 2; pre++) {
        m.pre_norm = pre; /* behind: the smoothing stays at the sites */
        fl_quantize_options o = fl_test_quantize_options(
            fl_test_opt_model(pre ? "pre" : "post", &m), pre ? "out1" : "out0", "flattenquant");
        o.kv_bits = pre ? 16 : 4;
        check_tokens(fl_test_quantize(&o, NULL));
    }
}

static void tokens_of_weight_only_models_have_one_value(void **state)
{
    (void)state;
    fl_quantize_options o = fl_test_quantize_options(NULL, "out", "rtn");
    o.w_bits = 4;
    o.a_bits = 16;
    check_tokens(fl_test_quantize(&o, NULL));
}

static void tokens_of_float_models_have_one_value(void **state)
{
    (void)state;
    fl_opt_model post = fl_test_opt_model_defaults();
    post.pre_norm = false;
    post.embed_size = 32;
    const fl_small_model grouped = fl_test_small_model_defaults();
    check_tokens(FL_TEST_TINY_LLAMA);
    check_tokens(fl_test_small_model("grouped", &grouped));
    check_tokens(fl_test_opt_model("post", &post));
}

/* ---- loading ----------------------------------------------------------------------------- */

static void counts_are_those_of_the_files(void **state)
{
    (void)state;
    fl_opt_model post = fl_test_opt_model_defaults();
    post.pre_norm = false;
    post.embed_size = 32;
    post.untied = true;
    const fl_opt_model pre = fl_test_opt_model_defaults();
    const char *const dirs[] = {FL_TEST_TINY_LLAMA, fl_test_opt_model("pre", &pre),
                                fl_test_opt_model("post", &post)};
    for (size_t i = 0; i < FL_COUNT(dirs); i++) {
        fl_model *m = open_model(dirs[i]);
        int64_t n = 0;
        for (size_t t = 0; t < fl__tensors_count(m->tensors); t++)
            n += fl__tensors_at(m->tensors, t)->n_elements;
        assert_int_equal(m->n_params, n);
        assert_true(m->w_bits == 16 && m->a_bits == 16 && m->k_format == FL_KV_F32 &&
                    m->v_format == FL_KV_F32);
        fl__model_close(&m);
    }
}

static void quantised_models_say_what_they_are(void **state)
{
    (void)state;
    fl_quantize_options o = fl_test_quantize_options(NULL, "mix", "flattenquant");
    fl_model *m = open_model(fl_test_quantize(&o, NULL)), *fp = open_model(FL_TEST_TINY_LLAMA);
    assert_string_equal(m->quant_method, "flattenquant");
    assert_true(m->w_bits == 0 && m->a_bits == 0 && m->k_format == FL_KV_BF16 &&
                m->v_format == FL_KV_BF16);
    assert_int_equal(m->n_params, fp->n_params);
    assert_true(m->weight_bytes < fp->weight_bytes);
    fl__model_close(&m);
    o = fl_test_quantize_options(NULL, "w8a8", "rtn");
    o.w_bits = o.a_bits = 8;
    m = open_model(fl_test_quantize(&o, NULL));
    assert_string_equal(m->quant_method, "rtn");
    assert_true(m->w_bits == 8 && m->a_bits == 8);
    fl__model_close(&m);
    fl__model_close(&fp);
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    const fl_exec ex = {fl__isa_detect(), 1};
    const fl_small_model small = fl_test_small_model_defaults();
    const fl_quantize_options o =
        fl_test_quantize_options(fl_test_small_model("small", &small), "out", "flattenquant");
    const char *const dirs[] = {o.model_dir, fl_test_quantize(&o, NULL)};
    for (size_t d = 0; d < FL_COUNT(dirs); d++) {
        const size_t before = fl__mem_get().now_bytes;
        for (unsigned n = 1;; n++) {
            fl_model *m;
            fl__mem_fail_after(n);
            const fl_status st = fl__model_open(&m, dirs[d], &ex, false, NULL);
            fl__model_close(&m);
            assert_int_equal(fl__mem_get().now_bytes, before);
            if (!st) break;
            assert_true(st == FL_E_NOMEM);
        }
        fl__mem_fail_after(0);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(tokens_of_flattenquant_have_one_value),
    cmocka_unit_test(tokens_of_per_token_scales_have_one_value),
    cmocka_unit_test(tokens_of_a_quantised_cache_have_one_value),
    cmocka_unit_test(tokens_of_opt_have_one_value),
    cmocka_unit_test(tokens_of_weight_only_models_have_one_value),
    cmocka_unit_test(tokens_of_float_models_have_one_value),
    cmocka_unit_test(counts_are_those_of_the_files),
    cmocka_unit_test(quantised_models_say_what_they_are),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
