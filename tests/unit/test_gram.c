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

static fl_gram make(const fl_exec *ex, const float *xq, const float *xf)
{
    fl_gram g;
    assert_int_equal(fl__gram_init(&g, K, xf != NULL, NULL), FL_OK);
    fl__gram_add(&g, ex, xq, xf, FIRST);
    fl__gram_add(&g, ex, xq + (size_t)FIRST * K, xf ? xf + (size_t)FIRST * K : NULL,
                 ROWS - FIRST);
    fl__gram_finish(&g);
    return g;
}

static double moment(const float *a, int i, const float *b, int j)
{
    double sum = 0;
    for (int r = 0; r < ROWS; r++) sum += (double)a[r * K + i] * b[r * K + j];
    return sum;
}

static void moments_are_those_of_double_sums(void **state)
{
    (void)state;
    float *xq = fl_test_normal(ROWS * K, 1, "xq"), *xf = fl_test_normal(ROWS * K, 1, "xf");
    fl_gram g = make(&one, xq, xf);
    assert_int_equal(g.n_rows, ROWS);
    for (int i = 0; i < K; i += 7)
        for (int j = 0; j < K; j += 3) {
            assert_true(fabs(g.h[i * K + j] - moment(xq, i, xq, j)) < 1e-4);
            assert_true(fabs(g.c[i * K + j] - moment(xq, i, xf, j)) < 1e-4);
        }
    for (int i = 0; i < K; i++) {
        double sum_q = 0, sum_f = 0;
        for (int r = 0; r < ROWS; r++) {
            sum_q += xq[r * K + i];
            sum_f += xf[r * K + i];
        }
        assert_true(g.sum_q[i] == sum_q && g.sum_f[i] == sum_f);
        for (int j = 0; j < i; j++) assert_true(g.h[i * K + j] == g.h[j * K + i]);
    }
    fl__gram_fini(&g);
    fl__free(&xq);
    fl__free(&xf);
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
    assert_true(fabs(g.h[299 * K + 1] - moment(xq, 299, xq, 1)) < 1e-4);
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
    for (unsigned n = 1; n <= 4; n++) {
        fl_gram g;
        fl_err err;
        fl__mem_fail_after(n);
        assert_int_equal(fl__gram_init(&g, K, true, &err), FL_E_NOMEM);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(moments_are_those_of_double_sums),
    cmocka_unit_test(threads_do_not_change_a_bit),
    cmocka_unit_test(cross_moments_can_be_left_out),
    cmocka_unit_test(announced_bytes_are_taken),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
