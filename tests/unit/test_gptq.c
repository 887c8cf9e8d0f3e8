/* test_gptq.c - GPTQ against the plain form of its idea in double: round a column, spread its
 * error over the columns that are left by the inverse of THEIR Hessian, computed anew each
 * time.
 * SPDX-License-Identifier: MIT */
#include "quant/gptq.h"

#include "base/mem.h"
#include "base/rng.h"
#include "quant/weight_scale.h"
#include "support/fl_test.h"
#include "support/random_data.h"

#include <math.h>
#include <string.h>

enum { K = 24, N = 37, ROWS = 200, FIRST = 30 }; /* N: more than one chunk of 32 rows */

static const fl_exec one = {.n_threads = 1}, two = {.n_threads = 2};

typedef struct problem {
    float *xq, *xf, *w; /* [ROWS, K] twice, [N, K] */
    fl_gram gram;
} problem;

typedef struct result {
    int8_t codes[N * K];
    float scale[N], shift[N], w[N * K]; /* w: W~ */
    double error, damping;
} result;

/* Moments of xq and xf, which keep their values. */
static void gather(problem *p)
{
    const size_t n_bytes = sizeof(float) * ROWS * K;
    float *q = fl__alloc(n_bytes, 1), *f = fl__alloc(n_bytes, 1);
    memcpy(q, p->xq, n_bytes);
    memcpy(f, p->xf, n_bytes);
    fl__gram_fini(&p->gram);
    assert_int_equal(fl__gram_init(&p->gram, K, true, NULL), FL_OK);
    fl__gram_add(&p->gram, &one, q, f, FIRST); /* its means are not those of all */
    fl__gram_add(&p->gram, &one, q + FIRST * K, f + FIRST * K, ROWS - FIRST);
    fl__gram_finish(&p->gram);
    fl__free(&q);
    fl__free(&f);
}

/* Inputs with unequal channels, correlations, and means; the quantised ones are near the
 * others. */
static problem make_problem(void)
{
    problem p = {fl_test_normal(ROWS * K, 1, "xq"),
                 fl_test_normal(ROWS * K, 0.2, "xf"),
                 fl_test_normal(N * K, 1, "w"),
                 {0}};
    fl_test_correlate(p.xq, ROWS, K, 0.7f);
    for (int i = 0; i < ROWS * K; i++) {
        p.xq[i] = p.xq[i] * (1 + (float)(i % K * 7 % K) / 5) + (float)(i % K % 3);
        p.xf[i] += p.xq[i];
    }
    gather(&p);
    return p;
}

static void problem_fini(problem *p)
{
    fl__gram_fini(&p->gram);
    fl__free(&p->xq);
    fl__free(&p->xf);
    fl__free(&p->w);
}

static void solve(result *r, const problem *p, const fl_gptq_options *o, const fl_exec *ex,
                  int bits, bool per_tensor)
{
    fl_gptq q;
    fl_err err = {""};
    if (fl__gptq_init(&q, &p->gram, o, ex, &err)) fail_msg("%s", err.text);
    memset(r, 0, sizeof *r);
    memcpy(r->w, p->w, sizeof r->w);
    if (fl__gptq_round(&q, ex, r->codes, r->scale, r->shift, r->w, N, bits, per_tensor,
                       &r->error, &err))
        fail_msg("%s", err.text);
    r->damping = q.damping_used;
    fl__gptq_fini(&q);
}

/* ---- the reference ----------------------------------------------------------------------- */

/* A = X^T X / rows (about the mean when centred) + damping * mean diagonal. */
static void reference_hessian(double a[K][K], const problem *p, const fl_gptq_options *o)
{
    double mean[K] = {0}, trace = 0;
    for (int i = 0; o->centred && i < ROWS * K; i++) mean[i % K] += (double)p->xq[i] / ROWS;
    for (int i = 0; i < K; i++)
        for (int j = 0; j < K; j++) {
            a[i][j] = 0;
            for (int r = 0; r < ROWS; r++)
                a[i][j] += (p->xq[r * K + i] - mean[i]) * (p->xq[r * K + j] - mean[j]) / ROWS;
            if (i == j) trace += a[i][j];
        }
    for (int i = 0; i < K; i++) a[i][i] += o->damping * trace / K;
}

/* inv = inverse of the rows and columns idx[0..n) of a, by Gauss-Jordan. */
static void invert(double inv[K][K], double a[K][K], const int *idx, int n)
{
    static double m[K][2 * K];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < 2 * n; j++) m[i][j] = j < n ? a[idx[i]][idx[j]] : i == j - n;
    for (int c = 0; c < n; c++) {
        const double pivot = m[c][c];
        for (int j = 0; j < 2 * n; j++) m[c][j] /= pivot;
        for (int i = 0; i < n; i++) {
            const double f = m[i][c];
            for (int j = 0; i != c && j < 2 * n; j++) m[i][j] -= f * m[c][j];
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) inv[i][j] = m[i][j + n];
}

/* Codes of w in the order given; scale as the code under test chose it. s: ranges of columns in
 * digits, or NULL. */
static void reference_round(int8_t *codes, const float *w, const float *scale, double a[K][K],
                            const int *order, int bits, const fl_weight_split *s)
{
    static double left[N][K], inv[K][K];
    for (int i = 0; i < N * K; i++) left[i / K][i % K] = w[i];
    for (int step = 0; step < K; step++) {
        const int *rest = order + step, n = K - step;
        invert(inv, a, rest, n);
        for (int r = 0; r < N; r++) {
            double q = rint(left[r][rest[0]] / scale[r]);
            q = fmin(fmax(q, s ? s->lo[rest[0]] : fl__weight_qmin(bits)),
                     s ? s->hi[rest[0]] : fl__weight_qmax(bits));
            codes[r * K + rest[0]] = (int8_t)q;
            const double d = (left[r][rest[0]] - scale[r] * q) / inv[0][0];
            for (int k = 1; k < n; k++) left[r][rest[k]] -= d * inv[0][k];
        }
    }
}

static void natural_order(int order[K])
{
    for (int i = 0; i < K; i++) order[i] = i;
}

/* Insertion sort by falling diagonal. */
static void falling_order(int order[K], double a[K][K])
{
    natural_order(order);
    for (int i = 1; i < K; i++)
        for (int j = i; j > 0 && a[order[j]][order[j]] > a[order[j - 1]][order[j - 1]]; j--) {
            const int t = order[j];
            order[j] = order[j - 1];
            order[j - 1] = t;
        }
}

/* tr(E A E^T), E = w - scale * codes */
static double output_error(const result *r, double a[K][K])
{
    double sum = 0;
    for (int n = 0; n < N; n++) {
        double e[K];
        for (int k = 0; k < K; k++)
            e[k] = (double)r->w[n * K + k] - (double)r->scale[n] * r->codes[n * K + k];
        for (int i = 0; i < K; i++)
            for (int j = 0; j < K; j++) sum += e[i] * a[i][j] * e[j];
    }
    return sum;
}

/* ---- tests ------------------------------------------------------------------------------- */

static void codes_are_those_of_the_plain_algorithm(void **state)
{
    (void)state;
    static result r;
    static double a[K][K];
    static int8_t want[N * K];
    static const int blocks[] = {1, 5, 24, 128};
    problem p = make_problem();
    for (int bits = 4; bits <= 8; bits += 4)
        for (int variant = 0; variant < 4; variant++)
            for (size_t b = 0; b < FL_COUNT(blocks); b++) {
                const fl_gptq_options o = {.damping = 0.01,
                                           .block = blocks[b],
                                           .act_order = variant & 1,
                                           .centred = variant & 2};
                int order[K];
                solve(&r, &p, &o, &one, bits, false);
                reference_hessian(a, &p, &o);
                if (o.act_order) falling_order(order, a);
                else natural_order(order);
                reference_round(want, p.w, r.scale, a, order, bits, NULL);
                assert_memory_equal(r.codes, want, sizeof want);
                assert_memory_equal(r.w, p.w, sizeof r.w); /* no compensation: W~ = W */
            }
    problem_fini(&p);
}

static void reported_error_is_that_of_the_codes(void **state)
{
    (void)state;
    static result r;
    static double a[K][K];
    const fl_gptq_options o = {.damping = 0.01, .block = 8, .act_order = true, .centred = true};
    problem p = make_problem();
    double whole = 0;
    solve(&r, &p, &o, &one, 4, false);
    reference_hessian(a, &p, &o);
    for (int i = 0; i < N * K; i++) whole += (double)r.w[i] * r.w[i] * a[i % K][i % K];
    const double want = output_error(&r, a) / whole;
    assert_true(fabs(r.error / want - 1) < 1e-3);
    problem_fini(&p);
}

static void rounding_to_nearest_is_worse(void **state)
{
    (void)state;
    static result r;
    static double a[K][K];
    const fl_gptq_options o = {.damping = 0.01, .block = 128};
    problem p = make_problem();
    solve(&r, &p, &o, &one, 4, false);
    reference_hessian(a, &p, &o);
    const double gptq = output_error(&r, a);
    (void)fl__weight_round(&one, r.codes, p.w, r.scale, 1, N, K, 4, NULL);
    assert_true(gptq < 0.7 * output_error(&r, a));
    problem_fini(&p);
}

/* What compensation minimises over W~ (and an intercept when centred), for output channel n:
 * mean |x w - x^ w~ - b|^2 + lambda |w - w~|^2. */
static double least_squares(const problem *p, int n, const double *w, bool centred,
                            double lambda)
{
    double sum = 0, mean = 0, ridge = 0, d[ROWS];
    for (int r = 0; r < ROWS; r++) {
        d[r] = 0;
        for (int k = 0; k < K; k++)
            d[r] += (double)p->xf[r * K + k] * p->w[n * K + k] - p->xq[r * K + k] * w[k];
        mean += centred ? d[r] / ROWS : 0;
    }
    for (int r = 0; r < ROWS; r++) sum += (d[r] - mean) * (d[r] - mean) / ROWS;
    for (int k = 0; k < K; k++) ridge += (p->w[n * K + k] - w[k]) * (p->w[n * K + k] - w[k]);
    return sum + lambda * ridge;
}

static void compensation_is_the_least_squares_weight(void **state)
{
    (void)state;
    static result r;
    static double a[K][K];
    problem p = make_problem();
    fl_rng rng = fl__rng_init(1, 0, "directions");
    for (int centred = 0; centred < 2; centred++) {
        const fl_gptq_options o = {.damping = 0.01,
                                   .block = 128,
                                   .centred = centred,
                                   .compensate = true},
                              plain = {.damping = 1e-30, .centred = centred};
        double trace = 0;
        solve(&r, &p, &o, &one, 8, false);
        reference_hessian(a, &p, &plain);
        for (int i = 0; i < K; i++) trace += a[i][i];
        for (int n = 0; n < N; n += 5) {
            double w[K], moved[K];
            for (int k = 0; k < K; k++) w[k] = r.w[n * K + k];
            const double best = least_squares(&p, n, w, centred, 0.01 * trace / K);
            for (int k = 0; k < K; k++) w[k] = p.w[n * K + k];
            assert_true(best < least_squares(&p, n, w, centred, 0.01 * trace / K));
            for (int i = 0; i < 50; i++) {
                const double step = pow(10, -(i % 4));
                for (int k = 0; k < K; k++)
                    moved[k] = r.w[n * K + k] + step * fl__rng_normal(&rng);
                assert_true(best <=
                            least_squares(&p, n, moved, centred, 0.01 * trace / K) + 1e-9);
            }
        }
    }
    problem_fini(&p);
}

/* Centred: the mean of the integer layer's output plus the shift is the float layer's mean. */
static void bias_shift_restores_the_mean(void **state)
{
    (void)state;
    static result r;
    problem p = make_problem();
    for (int compensate = 0; compensate < 2; compensate++) {
        const fl_gptq_options o = {.damping = 0.01,
                                   .block = 16,
                                   .act_order = true,
                                   .centred = true,
                                   .compensate = compensate};
        solve(&r, &p, &o, &one, 4, false);
        for (int n = 0; n < N; n++) {
            double mean_float = 0, mean_int = r.shift[n], size = 0;
            for (int i = 0; i < ROWS * K; i++) {
                mean_float += (double)p.xf[i] * p.w[n * K + i % K] / ROWS;
                mean_int += (double)p.xq[i] * r.scale[n] * r.codes[n * K + i % K] / ROWS;
                size += fabs((double)p.xf[i] * p.w[n * K + i % K]) / ROWS;
            }
            assert_true(fabs(mean_float - mean_int) < 1e-6 * size);
        }
    }
    const fl_gptq_options o = {.damping = 0.01, .block = 16};
    solve(&r, &p, &o, &one, 4, false);
    for (int n = 0; n < N; n++) assert_true(r.shift[n] == 0);
    problem_fini(&p);
}

static void one_scale_serves_a_tensor(void **state)
{
    (void)state;
    static result r;
    static double a[K][K];
    static int8_t want[N * K];
    const fl_gptq_options o = {.damping = 0.01, .block = 128};
    problem p = make_problem();
    int order[K];
    solve(&r, &p, &o, &one, 4, true);
    for (int n = 1; n < N; n++) {
        assert_true(r.scale[n] == 0); /* not written */
        r.scale[n] = r.scale[0];
    }
    natural_order(order);
    reference_hessian(a, &p, &o);
    reference_round(want, p.w, r.scale, a, order, 4, NULL);
    assert_memory_equal(r.codes, want, sizeof want);
    problem_fini(&p);
}

/* A split column is rounded whole, within its wider range; what is written are its digits. */
static void columns_in_digits_are_rounded_whole(void **state)
{
    (void)state;
    static result r;
    static double a[K][K];
    static int8_t want[N * K], digits[N * 2 * K];
    const fl_gptq_options o = {.damping = 0.01, .block = 8, .centred = true};
    problem p = make_problem();
    uint16_t copies[K];
    int order[K], beyond = 0;
    fl_gptq q;
    fl_weight_split split;
    for (int k = 0; k < K; k++) copies[k] = k == 5 ? 6 : k == 17 ? 2 : 1;
    for (int i = 0; i < N * K; i++) p.w[i] *= i % K == 5 ? 9 : i % K == 17 ? 3 : 1;
    assert_int_equal(fl__weight_split_init(&split, copies, K, 4, NULL), FL_OK);
    assert_int_equal(fl__gptq_init(&q, &p.gram, &o, &one, NULL), FL_OK);
    q.split = &split;
    memcpy(r.w, p.w, sizeof r.w);
    assert_int_equal(fl__gptq_round(&q, &one, digits, r.scale, r.shift, r.w, N, 4, false,
                                    &r.error, NULL),
                     FL_OK);
    natural_order(order);
    reference_hessian(a, &p, &o);
    reference_round(want, p.w, r.scale, a, order, 4, &split);
    for (int n = 0; n < N; n++) {
        double shift = 0;
        for (int k = 0; k < K; k++) {
            const int code = fl__weight_split_get(digits + n * split.ld, &split, k);
            assert_int_equal(code, want[n * K + k]);
            beyond += code > 7 || code < -8;
            shift += (double)p.w[n * K + k] * q.mean_f[k] -
                     (double)r.scale[n] * code * q.mean_q[k];
        }
        assert_true(fabs(shift - (double)r.shift[n]) < 1e-3);
    }
    assert_true(beyond > N / 4);
    fl__gptq_fini(&q);
    fl__weight_split_fini(&split);
    problem_fini(&p);
}

static void threads_do_not_change_a_bit(void **state)
{
    (void)state;
    static result a, b;
    const fl_gptq_options o = {
        .damping = 0.01, .block = 8, .act_order = true, .centred = true, .compensate = true};
    problem p = make_problem();
    solve(&a, &p, &o, &one, 4, false);
    solve(&b, &p, &o, &two, 4, false);
    assert_memory_equal(&a, &b, sizeof a);
    problem_fini(&p);
}

static void damping_grows_until_the_hessian_factors(void **state)
{
    (void)state;
    static result r;
    problem p = make_problem();
    for (int i = 0; i < ROWS * K; i++) p.xq[i] = p.xq[i / K * K]; /* all channels alike */
    gather(&p);
    const fl_gptq_options o = {.damping = 1e-25, .block = 128};
    solve(&r, &p, &o, &one, 4, false);
    assert_true(r.damping > o.damping && r.damping <= 1);
    assert_true(isfinite(r.error));
    problem_fini(&p);
}

/* Channels that hardly vary about a mean: what is left of them is not rounding noise. */
static void nearly_constant_inputs_need_no_damping(void **state)
{
    (void)state;
    static result r;
    const fl_gptq_options o = {
        .damping = 0.01, .block = 128, .centred = true, .compensate = true};
    problem p = make_problem();
    for (int i = 0; i < ROWS * K; i++) {
        p.xq[i] = p.xq[i] * 1e-4f + (float)(1 + i % K);
        p.xf[i] = p.xf[i] * 1e-4f + (float)(1 + i % K);
    }
    gather(&p);
    solve(&r, &p, &o, &one, 4, false);
    assert_true(r.damping == o.damping && r.error > 0 && r.error < 0.1);
    problem_fini(&p);
}

static void silent_inputs_round_to_nearest(void **state)
{
    (void)state;
    static result r;
    static int8_t want[N * K];
    problem p = make_problem();
    memset(p.xq, 0, sizeof(float) * ROWS * K);
    gather(&p);
    const fl_gptq_options o = {.damping = 0.01, .block = 128};
    solve(&r, &p, &o, &one, 8, false);
    (void)fl__weight_round(&one, want, p.w, r.scale, 1, N, K, 8, NULL);
    assert_memory_equal(r.codes, want, sizeof want);
    problem_fini(&p);
}

static void numbers_that_are_none_are_refused(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < FL_COUNT(bad); i++)
        for (int at = 0; at < 3; at++) {
            problem p = make_problem();
            fl_gptq q;
            fl_err err = {""};
            const fl_gptq_options o = {.damping = 0.01, .block = 128, .act_order = at == 1};
            p.gram.h[at == 0 ? 0 : at == 1 ? 7 * K + 7 : 3 * K + 2] = bad[i];
            p.gram.h[at == 0 ? 0 : at == 1 ? 7 * K + 7 : 2 * K + 3] = bad[i];
            const size_t before = fl__mem_get().now_bytes;
            assert_int_equal(fl__gptq_init(&q, &p.gram, &o, &one, &err), FL_E_FAIL);
            assert_non_null(strstr(err.text, "not all finite"));
            assert_int_equal(fl__mem_get().now_bytes, before);
            problem_fini(&p);
        }
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    static result r;
    const fl_gptq_options o = {
        .damping = 0.01, .block = 8, .act_order = true, .centred = true, .compensate = true};
    problem p = make_problem();
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned n = 1;; n++) {
        fl_gptq q = {0};
        fl__mem_fail_after(n);
        fl_status st = fl__gptq_init(&q, &p.gram, &o, &one, NULL);
        if (!st)
            st = fl__gptq_round(&q, &one, r.codes, r.scale, r.shift, r.w, N, 4, false, &r.error,
                                NULL);
        fl__gptq_fini(&q);
        assert_int_equal(fl__mem_get().now_bytes, before);
        if (!st) break;
        assert_int_equal(st, FL_E_NOMEM);
    }
    fl__mem_fail_after(0);
    problem_fini(&p);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(codes_are_those_of_the_plain_algorithm),
    cmocka_unit_test(reported_error_is_that_of_the_codes),
    cmocka_unit_test(rounding_to_nearest_is_worse),
    cmocka_unit_test(compensation_is_the_least_squares_weight),
    cmocka_unit_test(bias_shift_restores_the_mean),
    cmocka_unit_test(one_scale_serves_a_tensor),
    cmocka_unit_test(columns_in_digits_are_rounded_whole),
    cmocka_unit_test(threads_do_not_change_a_bit),
    cmocka_unit_test(damping_grows_until_the_hessian_factors),
    cmocka_unit_test(nearly_constant_inputs_need_no_damping),
    cmocka_unit_test(silent_inputs_round_to_nearest),
    cmocka_unit_test(numbers_that_are_none_are_refused),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
