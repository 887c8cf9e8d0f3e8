/* test_tune.c - end-to-end tuning: gradients against slopes, the pass against the model's own
 * path, the loss against its definition, and what tuning does to a model.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/opt_model.h"
#include "support/quantize_once.h"
#include "support/random_data.h"
#include "support/small_model.h"

#include "base/isa.h"
#include "base/mem.h"
#include "quant/tune/tune.h"
#include "quant/tune/tune_head.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { WINDOWS = 2, T = 24, ROWS = WINDOWS * T };
static fl_err err;
static fl_exec ex = {.n_threads = 2};

static void must(fl_status st)
{
    if (st) fail_msg("%s", err.text);
}

/* A model whose blocks are to be tuned. */
static fl_model *open_quantised(const char *model, const char *name, int a_bits, int kv_bits,
                                const char *method)
{
    fl_model *m;
    fl_quantize_options o = fl_test_quantize_options(model, name, method);
    o.n_samples = 2;
    o.epochs = 1;
    o.tune_epochs = 0;
    o.w_bits = a_bits == 8 ? 8 : 4;
    o.a_bits = a_bits;
    o.kv_bits = kv_bits;
    const char *dir = fl_test_quantize(&o, NULL);
    ex.isa = fl__isa_detect();
    must(fl__model_open(&m, dir, &ex, false, &err));
    m->stream_k_format = m->k_format;
    m->stream_v_format = m->v_format;
    return m;
}

static const char *llama(void)
{
    const fl_small_model m = fl_test_small_model_defaults();
    return fl_test_small_model("llama", &m);
}

static const char *opt(void)
{
    const fl_opt_model m = fl_test_opt_model_defaults();
    return fl_test_opt_model("opt", &m);
}

/* ---- gradients --------------------------------------------------------------------------- */

typedef struct tuned_block {
    fl_model *m;
    fl_tune_factors f;
    fl_tune_pass *pass;
    float *x, *dy, *y;
    size_t n; /* floats of x */
} tuned_block;

static tuned_block start(fl_model *m)
{
    tuned_block b = {.m = m, .n = (size_t)ROWS * (size_t)m->cfg.hidden_size};
    must(fl__tune_factors_init(&b.f, m, &m->blocks[0], &err));
    must(fl__tune_pass_new(&b.pass, m, &ex, WINDOWS, T, false, &err));
    b.x = fl_test_normal(b.n, 1, "x");
    b.dy = fl_test_normal(b.n, 1, "dy");
    b.y = fl__alloc(b.n, sizeof(float));
    assert_non_null(b.y);
    for (size_t i = 0; i < b.f.n; i++) b.f.p[i] += 0.1f * sinf((float)i);
    return b;
}

static void finish(tuned_block *b)
{
    fl__tune_factors_fini(&b->f);
    fl__tune_pass_free(&b->pass);
    fl__free(&b->x);
    fl__free(&b->dy);
    fl__free(&b->y);
    fl__model_close(&b->m);
}

/* sum dy y of the block as it is. */
static double value(tuned_block *b)
{
    double sum = 0;
    fl__tune_pass_load(b->pass, &b->m->blocks[0], &b->f);
    must(fl__tune_pass_forward(b->pass, b->y, b->x, WINDOWS, &err));
    for (size_t i = 0; i < b->n; i++) sum += (double)b->y[i] * (double)b->dy[i];
    return sum;
}

static double slope(tuned_block *b, float *at)
{
    const float h = 4e-3f, was = *at;
    *at = was + h;
    const double up = value(b);
    *at = was - h;
    const double down = value(b);
    *at = was;
    return (up - down) / (2 * (double)h);
}

/* Slopes of every `step`th of n numbers against their gradient, by the largest gradient. */
static double worst(tuned_block *b, float *p, const float *g, size_t n, size_t step)
{
    double most = 0, off = 0;
    for (size_t i = 0; i < n; i++) most = fmax(most, fabs((double)g[i]));
    for (size_t i = 0; i < n; i += step) off = fmax(off, fabs(slope(b, p + i) - (double)g[i]));
    assert_true(most > 0);
    return off / most;
}

/* tolerance: of a group's largest gradient. ReLU has kinks between the two points of a
 * slope. */
static void gradients_are_slopes(fl_model *m, double tolerance)
{
    tuned_block b = start(m);
    float *d = fl__alloc(b.n, sizeof(float));
    assert_non_null(d);
    (void)value(&b);
    memcpy(d, b.dy, b.n * sizeof(float));
    must(fl__tune_pass_backward(b.pass, d, b.x, WINDOWS, &err));
    for (int i = 0; i < 2; i++)
        assert_true(worst(&b, b.f.norm[i], fl__tune_gradient(&b.f, b.f.norm[i]),
                          (size_t)m->cfg.hidden_size, 3) < tolerance);
    for (int i = 0; i < FL_N_LINEARS; i++)
        if (b.f.scale[i])
            assert_true(worst(&b, b.f.scale[i], fl__tune_gradient(&b.f, b.f.scale[i]),
                              (size_t)m->blocks[0].linear[i].n_out, 5) < tolerance);
    for (int i = 0; i < 2; i++)
        if (b.f.norm_shift[i])
            assert_true(worst(&b, b.f.norm_shift[i], fl__tune_gradient(&b.f, b.f.norm_shift[i]),
                              (size_t)m->cfg.hidden_size, 3) < tolerance);
    for (int i = 0; i < FL_N_LINEARS; i++)
        if (b.f.shift[i] && i != FL_LIN_K) /* that one's shift comes to nothing */
            assert_true(worst(&b, b.f.shift[i], fl__tune_gradient(&b.f, b.f.shift[i]),
                              (size_t)m->blocks[0].linear[i].n_out, 5) < tolerance);
    assert_true(worst(&b, b.x, d, b.n, b.n / 40) < tolerance);
    fl__free(&d);
    finish(&b);
}

static void llama_gradients(void **state)
{
    (void)state;
    gradients_are_slopes(open_quantised(llama(), "l16", 16, 16, "quarot"), 2e-3);
}

static void opt_gradients(void **state)
{
    (void)state;
    gradients_are_slopes(open_quantised(opt(), "o16", 16, 16, "quarot"), 2e-2);
}

/* ---- the same block as the model runs ---------------------------------------------------- */

/* Transforms run on bfloat16 in the model, on float32 here: codes of 8 bits flip. Without them
 * the two are the same but for the order of sums. */
static void runs_as_the_model(const char *model, const char *name, const char *method,
                              double tolerance)
{
    tuned_block b = start(open_quantised(model, name, 8, 8, method));
    fl_kv_options o = fl__model_kv_options(b.m, WINDOWS, T);
    fl_workspace *ws;
    fl_kv_cache *kv;
    fl_span spans[WINDOWS];
    double off = 0, all = 0;
    fl__tune_factors_reset(&b.f);
    (void)value(&b);
    must(fl__workspace_new(&ws, b.m, &ex, ROWS, &err));
    must(fl__kv_new(&kv, &o, &err));
    for (int w = 0; w < WINDOWS; w++) {
        spans[w] = (fl_span){.seq = w, .pos = 0, .n_rows = T};
        fl__kv_resize(kv, w, T);
    }
    memcpy(ws->buf[FL_BUF_X], b.x, b.n * sizeof(float));
    fl__block_run(b.m, &b.m->blocks[0], 0, FL_HALF_BOTH, &ex, ws, kv, spans, WINDOWS, NULL,
                  NULL);
    for (size_t i = 0; i < b.n; i++) {
        const double d = (double)b.y[i] - (double)ws->buf[FL_BUF_X][i];
        off += d * d;
        all += ((double)b.y[i] - (double)b.x[i]) * ((double)b.y[i] - (double)b.x[i]);
    }
    assert_true(sqrt(off / all) < tolerance);
    fl__kv_free(&kv);
    fl__workspace_free(&ws);
    finish(&b);
}

static void llama_runs_as_the_model(void **state)
{
    (void)state;
    runs_as_the_model(llama(), "l8", "rtn", 2e-6);
    runs_as_the_model(llama(), "lf", "flattenquant", 2e-6);
    runs_as_the_model(llama(), "lt", "flatquant", 0.03);
}

static void opt_runs_as_the_model(void **state)
{
    (void)state;
    runs_as_the_model(opt(), "o8", "rtn", 2e-6);
    runs_as_the_model(opt(), "ot", "flatquant", 0.03);
}

/* ---- the loss ---------------------------------------------------------------------------- */

static void loss_is_the_divergence(void **state)
{
    (void)state;
    fl_model *m;
    fl_tune_head *head;
    double kl, expected = 0;
    enum { N = 19 };
    ex.isa = fl__isa_detect();
    must(fl__model_open(&m, llama(), &ex, false, &err));
    const size_t E = (size_t)m->cfg.embed_size, V = (size_t)m->cfg.vocab_size, n = N * E;
    float *teacher = fl_test_normal(n, 3, "teacher"),
          *student = fl_test_normal(n, 3, "student");
    float *d = fl__alloc(n, sizeof(float));
    double *p = fl__alloc(2 * V, sizeof(double));
    assert_true(d && p);
    must(fl__tune_head_new(&head, m, &ex, 8, false, &err)); /* in tiles */
    must(fl__tune_head_loss(&kl, head, d, student, teacher, N, &err));
    for (size_t r = 0; r < N; r++) {
        double sum[2] = {0, 0};
        for (size_t v = 0; v < V; v++)
            for (int which = 0; which < 2; which++) {
                const float *h = (which ? student : teacher) + r * E;
                double logit = 0;
                for (size_t e = 0; e < E; e++) {
                    float w;
                    fl__dtype_to_f32(&w, m->head.w_type,
                                     (const char *)m->head.w +
                                         (v * E + e) * fl__dtype_bytes(m->head.w_type), 1);
                    logit += (double)h[e] * (double)w;
                }
                p[(size_t)which * V + v] = logit;
                sum[which] += exp(logit);
            }
        for (size_t v = 0; v < V; v++)
            expected += exp(p[v]) / sum[0] * (p[v] - log(sum[0]) - p[V + v] + log(sum[1])) / N;
    }
    assert_true(fabs(kl - expected) < 1e-5 * expected);
    double most = 0, off = 0;
    for (size_t i = 0; i < n; i++) most = fmax(most, fabs((double)d[i]));
    for (size_t i = 0; i < n; i += n / 50) {
        float *ignored = fl__alloc(n, sizeof(float)), was = student[i];
        double up, down;
        assert_non_null(ignored);
        student[i] = was + 0.01f;
        must(fl__tune_head_loss(&up, head, ignored, student, teacher, N, &err));
        student[i] = was - 0.01f;
        must(fl__tune_head_loss(&down, head, ignored, student, teacher, N, &err));
        student[i] = was;
        off = fmax(off, fabs((up - down) / 0.02 - (double)d[i]));
        fl__free(&ignored);
    }
    assert_true(off < 5e-3 * most);
    fl__tune_head_free(&head);
    fl__free(&teacher);
    fl__free(&student);
    fl__free(&d);
    fl__free(&p);
    fl__model_close(&m);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(llama_gradients),
    cmocka_unit_test(opt_gradients),
    cmocka_unit_test(llama_runs_as_the_model),
    cmocka_unit_test(opt_runs_as_the_model),
    cmocka_unit_test(loss_is_the_divergence),
};
FL_TEST_MAIN(tests)
