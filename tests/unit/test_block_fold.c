/* test_block_fold.c - smoothing folded into a block leaves its function alone, in every family:
 * grouped heads, biases, norms before and behind.
 * SPDX-License-Identifier: MIT */
#include "quant/block.h"

#include "base/isa.h"
#include "base/mem.h"
#include "base/rng.h"
#include "support/fl_test.h"
#include "support/opt_model.h"
#include "support/random_data.h"
#include "support/small_model.h"

#include <math.h>
#include <string.h>

enum { ROWS = 20 };

typedef struct context {
    fl_exec ex;
    fl_model *model;
    fl_workspace *ws;
    fl_kv_cache *kv;
    fl_site_plan plan[FL_N_SITES];
    float *x;
    fl_site_stats inputs[FL_N_SITES]; /* channel maxima at the sites */
} context;

/* Random factors from 1/8 to 8; heads of a group share those of o. */
static void fill_plan(context *c)
{
    const fl_model_config *cfg = &c->model->cfg;
    const int group = cfg->n_heads / cfg->n_kv_heads;
    fl_rng rng = fl__rng_init(1, 0, "factors");
    for (int s = 0; s < FL_N_SITES; s++) {
        int linears[FL_SITE_MAX_LINEARS], n_out, n_in;
        (void)fl__site_linears(linears, cfg, s);
        fl__linear_shape(&n_out, &n_in, cfg, linears[0]);
        c->plan[s] = (fl_site_plan){.n_in = n_in, .smooth = fl__alloc((size_t)n_in, 4)};
        for (int k = 0; k < n_in; k++)
            c->plan[s].smooth[k] = (float)exp2(6 * fl__rng_unit(&rng) - 3);
    }
    float *o = c->plan[FL_SITE_O].smooth;
    for (int k = 0; k < c->plan[FL_SITE_O].n_in; k++) {
        const int head = k / cfg->head_dim;
        o[k] = o[head / group * group * cfg->head_dim + k % cfg->head_dim];
    }
}

static context open_context(const char *dir)
{
    context c = {.ex = {fl__isa_detect(), 1}};
    fl_err err = {""};
    if (fl__model_open(&c.model, dir, &c.ex, true, &err)) fail_msg("%s", err.text);
    fl_kv_options o = fl__model_kv_options(c.model, 1, ROWS);
    o.n_layers = 1;
    assert_int_equal(fl__kv_new(&c.kv, &o, NULL), FL_OK);
    assert_int_equal(fl__workspace_new(&c.ws, c.model, &c.ex, ROWS, NULL), FL_OK);
    c.x = fl_test_normal((size_t)(ROWS * c.model->cfg.hidden_size), 1, "x");
    fill_plan(&c);
    return c;
}

static void close_context(context *c)
{
    for (int s = 0; s < FL_N_SITES; s++) {
        fl__site_plan_fini(&c->plan[s]);
        fl__site_stats_fini(&c->inputs[s]);
    }
    fl__free(&c->x);
    fl__kv_free(&c->kv);
    fl__workspace_free(&c->ws);
    fl__model_close(&c->model);
}

static bool observe(void *user, int site, const float *x, int n_rows)
{
    context *c = user;
    fl__site_stats_fini(&c->inputs[site]);
    assert_int_equal(
        fl__site_stats_init(&c->inputs[site], c->plan[site].n_in, n_rows, n_rows, NULL), FL_OK);
    fl__site_stats_add(&c->inputs[site], x, n_rows);
    fl__site_stats_finish(&c->inputs[site]);
    return true;
}

/* The block's output; free with fl__free. */
static float *run_block(context *c, const fl_block *block)
{
    const size_t n = (size_t)(ROWS * c->model->cfg.hidden_size);
    const fl_span span = {.seq = 0, .pos = 0, .n_rows = ROWS};
    float *y = fl__alloc(n, sizeof *y);
    fl__kv_resize(c->kv, 0, ROWS);
    memcpy(c->ws->buf[FL_BUF_X], c->x, n * sizeof *y);
    fl__block_run(c->model, block, 0, FL_HALF_BOTH, &c->ex, c->ws, c->kv, &span, 1, observe, c);
    memcpy(y, c->ws->buf[FL_BUF_X], n * sizeof *y);
    return y;
}

static float *run_folded(context *c, int layer, const fl_site_plan *plan)
{
    fl_block block;
    fl_err err = {""};
    if (fl__block_fold(&block, c->model, layer, plan, &err)) fail_msg("%s", err.text);
    float *y = run_block(c, &block);
    fl__block_fini(&block);
    return y;
}

static float *run_loaded(context *c, int layer)
{
    fl_block block;
    assert_int_equal(fl__block_load(&block, c->model, layer, NULL), FL_OK);
    float *y = run_block(c, &block);
    fl__block_fini(&block);
    return y;
}

static void check_model(const char *dir)
{
    context c = open_context(dir);
    const size_t n = (size_t)(ROWS * c.model->cfg.hidden_size);
    for (int layer = 0; layer < c.model->cfg.n_layers; layer++) {
        float *want = run_loaded(&c, layer), *copy = run_folded(&c, layer, NULL);
        float *before[FL_N_SITES];
        double size = 0;
        assert_memory_equal(want, copy, n * sizeof *want); /* no plan: a plain copy */
        for (int s = 0; s < FL_N_SITES; s++) {
            before[s] = c.inputs[s].absmax;
            c.inputs[s].absmax = NULL;
        }
        float *folded = run_folded(&c, layer, c.plan);
        for (size_t i = 0; i < n; i++) size = fmax(size, fabs((double)want[i]));
        assert_true(fl_test_max_diff(want, folded, n) < 2e-5 * size);
        /* the sites' inputs are divided by the factors (where the site itself does not) */
        for (int s = 0; s < FL_N_SITES; s++) {
            const bool kept = !c.model->cfg.pre_norm && (s == FL_SITE_QKV || s == FL_SITE_UP);
            for (int k = 0; k < c.plan[s].n_in; k++) {
                const double factor = kept ? 1 : c.plan[s].smooth[k];
                assert_true(fabs(c.inputs[s].absmax[k] * factor - before[s][k]) <=
                            1e-4 * before[s][k] + 1e-6);
            }
            fl__free(&before[s]);
        }
        fl__free(&want);
        fl__free(&copy);
        fl__free(&folded);
    }
    close_context(&c);
}

static void llama_with_grouped_heads(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    assert_true(m.n_heads != m.n_kv_heads);
    check_model(fl_test_small_model("model", &m));
}

static void llama_with_a_head_for_each(void **state)
{
    (void)state;
    fl_small_model m = fl_test_small_model_defaults();
    m.n_kv_heads = m.n_heads;
    check_model(fl_test_small_model("model", &m));
}

static void embedded_llama(void **state)
{
    (void)state;
    check_model(FL_SOURCE_DIR "/models/tiny-llama");
}

static void opt_with_norms_before(void **state)
{
    (void)state;
    const fl_opt_model m = fl_test_opt_model_defaults();
    check_model(fl_test_opt_model("model", &m));
}

static void opt_without_biases(void **state)
{
    (void)state;
    fl_opt_model m = fl_test_opt_model_defaults();
    m.no_bias = true;
    check_model(fl_test_opt_model("model", &m));
}

static void opt_with_norms_behind(void **state)
{
    (void)state;
    fl_opt_model m = fl_test_opt_model_defaults();
    m.pre_norm = false;
    m.embed_size = 32;
    check_model(fl_test_opt_model("model", &m));
}

/* K in codes: the key bias of OPT goes, and the softmax does not notice; LLaMA's is turned by
 * the rotary embedding and stays. */
static void a_key_bias_that_cancels_is_dropped(void **state)
{
    (void)state;
    fl_opt_model m = fl_test_opt_model_defaults();
    context c = open_context(fl_test_opt_model("model", &m));
    const size_t n = (size_t)(ROWS * c.model->cfg.hidden_size);
    for (int layer = 0; layer < c.model->cfg.n_layers; layer++) {
        fl_block block;
        double size = 0, biased = 0;
        float *want = run_loaded(&c, layer);
        c.model->stream_k_format = FL_KV_INT4;
        assert_int_equal(fl__block_fold(&block, c.model, layer, NULL, NULL), FL_OK);
        float *got = run_block(&c, &block);
        c.model->stream_k_format = FL_KV_BF16;
        for (int i = 0; i < m.hidden_size; i++) {
            assert_true(block.linear[FL_LIN_K].bias[i] == 0);
            biased += fabs((double)block.linear[FL_LIN_Q].bias[i]);
        }
        fl__block_fini(&block);
        assert_int_equal(fl__block_load(&block, c.model, layer, NULL), FL_OK);
        for (int i = 0; i < m.hidden_size; i++) {
            biased += fabs((double)block.linear[FL_LIN_K].bias[i]);
            block.linear[FL_LIN_K].bias[i] += 3; /* whatever it is */
        }
        assert_true(biased > 0.1);
        float *other = run_block(&c, &block);
        fl__block_fini(&block);
        for (size_t i = 0; i < n; i++) size = fmax(size, fabs((double)want[i]));
        assert_true(fl_test_max_diff(want, got, n) < 2e-5 * size);
        assert_true(fl_test_max_diff(want, other, n) < 2e-5 * size);
        fl__free(&want);
        fl__free(&got);
        fl__free(&other);
    }
    c.model->stream_k_format = FL_KV_INT4;
    assert_true(fl__key_bias_is_dropped(c.model));
    c.model->cfg.rope.kind = FL_ROPE_DEFAULT;
    assert_false(fl__key_bias_is_dropped(c.model));
    close_context(&c);
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    fl_opt_model m = fl_test_opt_model_defaults();
    m.pre_norm = false;
    context c = open_context(fl_test_opt_model("model", &m));
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned n = 1;; n++) {
        fl_block block;
        fl__mem_fail_after(n);
        const fl_status st = fl__block_fold(&block, c.model, 0, c.plan, NULL);
        if (!st) {
            fl__block_fini(&block);
            break;
        }
        assert_int_equal(st, FL_E_NOMEM);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
    fl__mem_fail_after(0);
    close_context(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(llama_with_grouped_heads),
    cmocka_unit_test(llama_with_a_head_for_each),
    cmocka_unit_test(embedded_llama),
    cmocka_unit_test(opt_with_norms_before),
    cmocka_unit_test(opt_without_biases),
    cmocka_unit_test(opt_with_norms_behind),
    cmocka_unit_test(a_key_bias_that_cancels_is_dropped),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
