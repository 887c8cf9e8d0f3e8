/* test_train_attention.c - attention of training against plain loops in double: outputs, lse,
 * gradients by central differences, grouped heads, several blocks, any number of threads.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/random_data.h"

#include "base/isa.h"
#include "base/mem.h"
#include "train/train_attention.h"

#include <math.h>
#include <string.h>

/* A problem's arrays; inputs random, outputs by run(). */
typedef struct problem {
    fl_train_attention_shape s;
    int R;
    size_t n_q, n_kv;
    float *q, *k, *v, *dout;
    float *out, *lse, *dq, *dk, *dv;
} problem;

static problem problem_new(int n_windows, int T, int H, int G, int D)
{
    problem p = {.s = {.max_windows = n_windows, .T = T, .H = H, .G = G, .D = D},
                 .R = n_windows * T};
    p.n_q = (size_t)p.R * (size_t)(H * D);
    p.n_kv = (size_t)p.R * (size_t)(G * D);
    p.q = fl_test_normal(p.n_q, 1.5, "q");
    p.k = fl_test_normal(p.n_kv, 1.5, "k");
    p.v = fl_test_normal(p.n_kv, 1, "v");
    p.dout = fl_test_normal(p.n_q, 1, "dout");
    p.out = fl__alloc(p.n_q, sizeof(float));
    p.dq = fl__alloc(p.n_q, sizeof(float));
    p.dk = fl__alloc(p.n_kv, sizeof(float));
    p.dv = fl__alloc(p.n_kv, sizeof(float));
    p.lse = fl__alloc((size_t)p.R * (size_t)H, sizeof(float));
    return p;
}

static void problem_free(problem *p)
{
    float **const arrays[] = {&p->q,   &p->k,  &p->v,  &p->dout, &p->out,
                              &p->lse, &p->dq, &p->dk, &p->dv};
    for (size_t i = 0; i < FL_COUNT(arrays); i++) fl__free(arrays[i]);
}

static void run(problem *p, int n_threads, uint32_t isa, bool bf16)
{
    const fl_exec ex = {.isa = isa, .n_threads = n_threads};
    const int n = p->s.max_windows;
    fl_train_attention *a = NULL;
    assert_int_equal(fl__train_attention_new(&a, &ex, &p->s, bf16, NULL), FL_OK);
    for (int call = 0; call < 2; call++) { /* the second finds the first's scratch */
        memset(p->out, 0xff, p->n_q * sizeof(float));
        memset(p->dk, 0xff, p->n_kv * sizeof(float));
        const uint64_t n_allocs = fl__mem_get().n_allocs;
        assert_int_equal(
            fl__train_attention_forward(a, p->out, p->lse, p->q, p->k, p->v, n, NULL), FL_OK);
        assert_int_equal(fl__train_attention_grad(a, p->dq, p->dk, p->dv, p->dout, p->out,
                                                  p->lse, p->q, p->k, p->v, n, NULL),
                         FL_OK);
        assert_true(fl__mem_get().n_allocs == n_allocs);
    }
    fl__train_attention_free(&a);
    assert_null(a);
}

/* Row r, head h: out [D] and lse in double. weights: room for T. */
static double row_forward(const problem *p, int r, int h, double *out, double *weights)
{
    const fl_train_attention_shape *s = &p->s;
    const int g = h * s->G / s->H, first = r / s->T * s->T;
    const float *q = p->q + ((size_t)r * s->H + h) * s->D;
    double sum = 0;
    for (int t = first; t <= r; t++) {
        const float *k = p->k + ((size_t)t * s->G + g) * s->D;
        double dot = 0;
        for (int i = 0; i < s->D; i++) dot += (double)q[i] * k[i];
        weights[t - first] = exp(dot / sqrt(s->D));
        sum += weights[t - first];
    }
    for (int i = 0; i < s->D; i++) out[i] = 0;
    for (int t = first; t <= r; t++)
        for (int i = 0; i < s->D; i++)
            out[i] += weights[t - first] / sum * p->v[((size_t)t * s->G + g) * s->D + i];
    return log(sum);
}

/* sum(dout * out) over one window. */
static double window_loss(const problem *p, int window)
{
    double loss = 0, out[256], weights[512];
    for (int r = window * p->s.T; r < (window + 1) * p->s.T; r++)
        for (int h = 0; h < p->s.H; h++) {
            (void)row_forward(p, r, h, out, weights);
            for (int i = 0; i < p->s.D; i++)
                loss += p->dout[((size_t)r * p->s.H + h) * p->s.D + i] * out[i];
        }
    return loss;
}

static void assert_forward(const problem *p, double tolerance)
{
    double out[256], weights[512];
    for (int r = 0; r < p->R; r += 3)
        for (int h = 0; h < p->s.H; h++) {
            const size_t at = (size_t)r * p->s.H + h;
            const double lse = row_forward(p, r, h, out, weights);
            assert_true(fabs(p->lse[at] - lse) <= tolerance * (1 + fabs(lse)));
            for (int i = 0; i < p->s.D; i++)
                assert_true(fabs(p->out[at * p->s.D + i] - out[i]) <= 4 * tolerance);
        }
}

/* Some elements of x, an input of p, of n_columns columns. */
static void assert_gradient(const problem *p, float *x, const float *got, int n_columns,
                            double tolerance)
{
    const size_t n = (size_t)p->R * (size_t)n_columns;
    double most = 0, worst = 0;
    for (size_t i = n / 60; i < n; i += n / 23) {
        const int window = (int)(i / (size_t)n_columns) / p->s.T;
        const float keep = x[i], up = keep + 1e-3f, down = keep - 1e-3f;
        x[i] = up;
        const double above = window_loss(p, window);
        x[i] = down;
        const double below = window_loss(p, window);
        x[i] = keep;
        const double want = (above - below) / ((double)up - (double)down);
        most = fmax(most, fabs(want));
        worst = fmax(worst, fabs(want - got[i]));
    }
    assert_true(most > 0);
    assert_true(worst <= tolerance * most);
}

static void check_one(int n_windows, int T, int H, int G, int D, uint32_t isa)
{
    problem p = problem_new(n_windows, T, H, G, D);
    run(&p, 2, isa, false);
    assert_forward(&p, 1e-5);
    assert_gradient(&p, p.q, p.dq, H * D, 1e-4);
    assert_gradient(&p, p.k, p.dk, G * D, 1e-4);
    assert_gradient(&p, p.v, p.dv, G * D, 1e-4);
    problem_free(&p);
}

static void gradients_are_right(void **state)
{
    (void)state;
    check_one(2, 150, 4, 2, 12, fl__isa_detect()); /* grouped; a block and a part of one */
    check_one(1, 128, 2, 2, 9, fl__isa_detect());  /* a KV head each; one full block */
    check_one(3, 20, 3, 1, 64, fl__isa_detect());  /* one KV head */
    check_one(1, 70, 3, 1, 16, 0);
}

/* bfloat16 operands: 8 bits of mantissa, so a gradient is right to about 1 %. Where the machine
 * has no such products, the same as float32. */
static void bf16_is_close(void **state)
{
    (void)state;
    problem p = problem_new(2, 290, 4, 2, 72);
    run(&p, 2, fl__isa_detect(), true);
    assert_forward(&p, 0.02);
    assert_gradient(&p, p.q, p.dq, 4 * 72, 0.03);
    assert_gradient(&p, p.k, p.dk, 2 * 72, 0.03);
    assert_gradient(&p, p.v, p.dv, 2 * 72, 0.03);
    problem_free(&p);
}

static void threads_change_nothing(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        problem one = problem_new(2, 200, 4, 2, 16), two = problem_new(2, 200, 4, 2, 16);
        run(&one, 1, fl__isa_detect(), bf16);
        run(&two, 2, fl__isa_detect(), bf16);
        assert_memory_equal(one.out, two.out, one.n_q * sizeof(float));
        assert_memory_equal(one.dq, two.dq, one.n_q * sizeof(float));
        assert_memory_equal(one.dk, two.dk, one.n_kv * sizeof(float));
        assert_memory_equal(one.dv, two.dv, one.n_kv * sizeof(float));
        problem_free(&one);
        problem_free(&two);
    }
}

/* Scores of +-1000: the softmax is a choice, nothing overflows. */
static void large_scores_stay_finite(void **state)
{
    (void)state;
    problem p = problem_new(1, 40, 2, 1, 8);
    for (size_t i = 0; i < p.n_q; i++) p.q[i] *= 500;
    run(&p, 1, fl__isa_detect(), false);
    for (size_t i = 0; i < p.n_q; i++) assert_true(isfinite(p.out[i]) && isfinite(p.dq[i]));
    for (size_t i = 0; i < p.n_kv; i++) assert_true(isfinite(p.dk[i]) && isfinite(p.dv[i]));
    problem_free(&p);
}

static void out_of_memory_is_reported(void **state)
{
    (void)state;
    const fl_train_attention_shape s = {.max_windows = 1, .T = 140, .H = 2, .G = 1, .D = 8};
    const fl_exec ex = {.isa = fl__isa_detect(), .n_threads = 2};
    const size_t before = fl__mem_get().now_bytes;
    fl_status st = FL_E_NOMEM;
    for (uint64_t n = 1; st != FL_OK; n++) {
        fl_train_attention *a = NULL;
        fl__mem_fail_after(n);
        st = fl__train_attention_new(&a, &ex, &s, true, NULL);
        fl__mem_fail_after(0);
        assert_true(st == FL_OK || st == FL_E_NOMEM);
        assert_true((a != NULL) == (st == FL_OK));
        fl__train_attention_free(&a);
        assert_true(fl__mem_get().now_bytes == before);
        assert_true(n < 100);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(gradients_are_right),       cmocka_unit_test(bf16_is_close),
    cmocka_unit_test(threads_change_nothing),    cmocka_unit_test(large_scores_stay_finite),
    cmocka_unit_test(out_of_memory_is_reported),
};

FL_TEST_MAIN(tests)
