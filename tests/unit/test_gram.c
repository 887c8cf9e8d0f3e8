/* test_gram.c - second moments against sums in double, tiles, threads, memory.
 * SPDX-License-Identifier: MIT */
#include "quant/gram.h"

#include "base/mem.h"
#include "support/fl_test.h"
#include "support/random_data.h"

#include <math.h>
#include <string.h>

enum { K = 300, ROWS = 90, FIRST = 37 }; /* K: more than one tile of 256, with a tail */

static const fl_exec one = {.n_threads = 1}, two = {.n_threads = 2};

/* Moments of copies of xq and xf, which keep their values. */
static fl_gram make(const fl_exec *ex, const float *xq, const float *xf)
{
    fl_gram g;
    const size_t n_bytes = ROWS * K * sizeof *xq;
    float *q = fl__alloc(n_bytes, 1), *f = fl__alloc(n_bytes, 1);
    memcpy(q, xq, n_bytes);
    if (xf) memcpy(f, xf, n_bytes);
    assert_int_equal(fl__gram_init(&g, K, xf != NULL, NULL), FL_OK);
    fl__gram_add(&g, ex, q, xf ? f : NULL, FIRST);
    fl__gram_add(&g, ex, q + FIRST * K, xf ? f + FIRST * K : NULL, ROWS - FIRST);
    fl__gram_finish(&g);
    fl__free(&q);
    fl__free(&f);
    return g;
}

static double moment(const float *a, float p, int i, const float *b, float r, int j)
{
    double sum = 0;
    for (int k = 0; k < ROWS; k++)
        sum += ((double)a[k * K + i] - p) * ((double)b[k * K + j] - r);
    return sum;
}

static void moments_are_those_of_double_sums(void **state)
{
    (void)state;
    float *xq = fl_test_normal(ROWS * K, 1, "xq"), *xf = fl_test_normal(ROWS * K, 1, "xf");
    fl_gram g = make(&one, xq, xf);
    const float *pq = g.pivot_q, *pf = g.pivot_f;
    assert_int_equal(g.n_rows, ROWS);
    for (int i = 0; i < K; i += 7)
        for (int j = 0; j < K; j += 3) {
            assert_true(fabs(g.h[i * K + j] - moment(xq, pq[i], i, xq, pq[j], j)) < 1e-4);
            assert_true(fabs(g.c[i * K + j] - moment(xq, pq[i], i, xf, pf[j], j)) < 1e-4);
        }
    for (int i = 0; i < K; i++) {
        double sum_q = 0, sum_f = 0, first_q = 0, first_f = 0;
        for (int r = 0; r < ROWS; r++) {
            sum_q += (double)xq[r * K + i] - pq[i];
            sum_f += (double)xf[r * K + i] - pf[i];
            first_q += r < FIRST ? (double)xq[r * K + i] / FIRST : 0;
            first_f += r < FIRST ? (double)xf[r * K + i] / FIRST : 0;
        }
        assert_true(fabs(g.sum_q[i] - sum_q) < 1e-5 && fabs(g.sum_f[i] - sum_f) < 1e-5);
        assert_true(fabs(pq[i] - first_q) < 1e-6 && fabs(pf[i] - first_f) < 1e-6);
        for (int j = 0; j < i; j++) assert_true(g.h[i * K + j] == g.h[j * K + i]);
    }
    fl__gram_fini(&g);
    fl__free(&xq);
    fl__free(&xf);
}

/* A variance that is a millionth of the squared mean keeps four digits. */
static void small_variances_about_large_means_survive(void **state)
{
    (void)state;
    float *x = fl_test_normal(ROWS * K, 0.001, "x");
    double worst = 0;
    for (int i = 0; i < ROWS * K; i++) x[i] += 1 + (float)(i % K) / 16;
    fl_gram g = make(&one, x, NULL);
    for (int i = 0; i < K; i++) {
        double mean = 0, variance = 0;
        for (int r = 0; r < ROWS; r++) mean += (double)x[r * K + i] / ROWS;
        for (int r = 0; r < ROWS; r++)
            variance += (x[r * K + i] - mean) * (x[r * K + i] - mean);
        const double got = g.h[i * K + i] - g.sum_q[i] * g.sum_q[i] / ROWS;
        worst = fmax(worst, fabs(got / variance - 1));
    }
    assert_true(worst < 1e-4);
    fl__gram_fini(&g);
    fl__free(&x);
}

static void threads_do_not_change_a_bit(void **state)
{
    (void)state;
    float *xq = fl_test_normal(ROWS * K, 1, "xq"), *xf = fl_test_normal(ROWS * K, 1, "xf");
    fl_gram a = make(&one, xq, xf), b = make(&two, xq, xf);
    assert_memory_equal(a.h, b.h, sizeof(float) * K * K);
    assert_memory_equal(a.c, b.c, sizeof(float) * K * K);
    assert_memory_equal(a.sum_q, b.sum_q, sizeof(double) * K);
    assert_memory_equal(a.sum_f, b.sum_f, sizeof(double) * K);
    fl__gram_fini(&a);
    fl__gram_fini(&b);
    fl__free(&xq);
    fl__free(&xf);
}

static void cross_moments_can_be_left_out(void **state)
{
    (void)state;
    float *xq = fl_test_normal(ROWS * K, 1, "xq");
    fl_gram g = make(&one, xq, NULL);
    assert_null(g.c);
    assert_true(fabs(g.h[299 * K + 1] -
                     moment(xq, g.pivot_q[299], 299, xq, g.pivot_q[1], 1)) < 1e-4);
    fl__gram_fini(&g);
    fl__free(&xq);
}

static void announced_bytes_are_taken(void **state)
{
    (void)state;
    for (int cross = 0; cross < 2; cross++) {
        const size_t before = fl__mem_get().now_bytes;
        fl_gram g;
        assert_int_equal(fl__gram_init(&g, K, cross, NULL), FL_OK);
        assert_int_equal(fl__mem_get().now_bytes - before, fl__gram_bytes(K, cross));
        fl__gram_fini(&g);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned n = 1; n <= 6; n++) {
        fl_gram g;
        fl_err err;
        fl__mem_fail_after(n);
        assert_int_equal(fl__gram_init(&g, K, true, &err), FL_E_NOMEM);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(moments_are_those_of_double_sums),
    cmocka_unit_test(small_variances_about_large_means_survive),
    cmocka_unit_test(threads_do_not_change_a_bit),
    cmocka_unit_test(cross_moments_can_be_left_out),
    cmocka_unit_test(announced_bytes_are_taken),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
