/* test_adamw.c - steps against the same formulas in double, schedule, best state, NaNs.
 * SPDX-License-Identifier: MIT */
#include "train/adamw.h"

#include "base/mem.h"
#include "support/fl_test.h"

#include <math.h>
#include <string.h>

enum { N = 7, M = 3 };

static void follows_formula(void **state)
{
    float p[N], q[M], g[N], h[M];
    double rp[N + M], rm[N + M] = {0}, rv[N + M] = {0};
    for (int i = 0; i < N + M; i++) {
        rp[i] = 0.3 * i - 1;
        *(i < N ? &p[i] : &q[i - N]) = (float)rp[i];
    }
    const fl_adamw_group groups[] = {{"p", p, g, N, 1}, {"q", q, h, M, 10}};
    fl_adamw_options o = fl__adamw_defaults(20);
    o.n_warmup = 3;
    fl_adamw *a;
    (void)state;
    assert_int_equal(fl__adamw_new(&a, groups, 2, &o, NULL), FL_OK);
    const uint64_t n_allocs = fl__mem_get().n_allocs;
    for (int t = 0; t < 20; t++) {
        for (int i = 0; i < N + M; i++) {
            const float gi = (float)(sin(1.7 * i + t) + 0.4 * rp[i]);
            const double rate = fl__adamw_rate(&o, i < N ? 1 : 10, t);
            *(i < N ? &g[i] : &h[i - N]) = gi;
            rm[i] = 0.9 * rm[i] + 0.1 * gi;
            rv[i] = 0.999 * rv[i] + 0.001 * (double)gi * gi;
            rp[i] = rp[i] * (1 - rate * 0.01) - rate * rm[i] / (1 - pow(0.9, t + 1)) /
                                                    (sqrt(rv[i] / (1 - pow(0.999, t + 1))) +
                                                     1e-8);
        }
        assert_int_equal(fl__adamw_step(a, 1, NULL), FL_OK);
    }
    for (int i = 0; i < N + M; i++)
        assert_true(fabs(rp[i] - (double)(i < N ? p[i] : q[i - N])) < 2e-6);
    assert_int_equal(fl__adamw_n_done(a), 20);
    assert_int_equal(fl__mem_get().n_allocs, n_allocs);
    fl__adamw_free(&a);
}

static void schedule(void **state)
{
    fl_adamw_options o = fl__adamw_defaults(100);
    (void)state;
    assert_float_equal(fl__adamw_rate(&o, 1, 0), 5e-3, 1e-12);
    assert_float_equal(fl__adamw_rate(&o, 10, 50), (5e-2 + 5e-6) / 2, 1e-12);
    assert_float_equal(fl__adamw_rate(&o, 10, 100), 5e-6, 1e-12); /* one floor for all */
    assert_float_equal(fl__adamw_rate(&o, 1, 1000), 5e-6, 1e-12);
    o.n_warmup = 4;
    assert_float_equal(fl__adamw_rate(&o, 1, 0), 1e-3, 1e-12);
    assert_float_equal(fl__adamw_rate(&o, 1, 3), 4e-3, 1e-12);
    assert_float_equal(fl__adamw_rate(&o, 1, 4), 5e-3, 1e-12);
    o.n_steps = 4; /* nothing is left for the cosine */
    assert_float_equal(fl__adamw_rate(&o, 1, 5), 5e-6, 1e-12);
}

static void keeps_the_best(void **state)
{
    float p[2] = {1, 2}, g[2] = {1, -1};
    const fl_adamw_group groups[] = {{"p", p, g, 2, 1}, {"none", NULL, NULL, 0, 1}};
    const fl_adamw_options o = fl__adamw_defaults(10);
    fl_adamw *a;
    (void)state;
    assert_int_equal(fl__adamw_new(&a, groups, 2, &o, NULL), FL_OK);
    fl__adamw_restore_best(a); /* nothing kept yet */
    assert_true(p[0] == 1 && p[1] == 2);
    assert_false(fl__adamw_keep_best(a, NAN));
    assert_true(fl__adamw_keep_best(a, 5));
    assert_int_equal(fl__adamw_step(a, 5, NULL), FL_OK);
    assert_true(p[0] < 1 && p[1] > 1.99f);
    assert_false(fl__adamw_keep_best(a, 5));
    assert_false(fl__adamw_keep_best(a, NAN));
    fl__adamw_restore_best(a);
    assert_true(p[0] == 1 && p[1] == 2);
    fl__adamw_free(&a);
    fl__adamw_free(&a);
}

static void refuses_what_is_not_finite(void **state)
{
    float p[3] = {1, 2, 3}, q[1] = {4}, g[3] = {1, 1, 1}, h[1] = {INFINITY};
    const float before[3] = {1, 2, 3};
    const fl_adamw_group groups[] = {{"left factor", p, g, 3, 1}, {"clips of q", q, h, 1, 1}};
    const fl_adamw_options o = fl__adamw_defaults(10);
    fl_adamw *a;
    fl_err err;
    (void)state;
    assert_int_equal(fl__adamw_new(&a, groups, 2, &o, NULL), FL_OK);
    assert_int_equal(fl__adamw_step(a, 1, &err), FL_E_FAIL);
    assert_non_null(strstr(err.text, "clips of q"));
    h[0] = 1;
    assert_int_equal(fl__adamw_step(a, NAN, &err), FL_E_FAIL);
    assert_non_null(strstr(err.text, "loss"));
    g[1] = NAN;
    assert_int_equal(fl__adamw_step(a, 1, &err), FL_E_FAIL);
    assert_non_null(strstr(err.text, "left factor"));
    assert_memory_equal(p, before, sizeof p);
    assert_int_equal(fl__adamw_n_done(a), 0);
    fl__adamw_free(&a);
}

static void survives_no_memory(void **state)
{
    float p[1] = {1}, g[1] = {0};
    const fl_adamw_group group = {"p", p, g, 1, 1};
    const fl_adamw_options o = fl__adamw_defaults(10);
    (void)state;
    for (uint64_t n = 1; n < 6; n++) {
        fl_adamw *a;
        fl__mem_fail_after(n);
        assert_int_equal(fl__adamw_new(&a, &group, 1, &o, NULL), FL_E_NOMEM);
        assert_null(a);
    }
    fl__mem_fail_after(0);
    assert_int_equal(fl__mem_get().now_bytes, 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(follows_formula),            cmocka_unit_test(schedule),
    cmocka_unit_test(keeps_the_best),             cmocka_unit_test(refuses_what_is_not_finite),
    cmocka_unit_test(survives_no_memory),
};
FL_TEST_MAIN(tests)
