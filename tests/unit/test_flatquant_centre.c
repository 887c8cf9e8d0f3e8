/* test_flatquant_centre.c - means of inputs moved into biases: the block computes what it did,
 * what the means were taken from has none left, and what training leaves as mean error goes.
 * SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant.h"

#include "base/mem.h"
#include "support/fl_test.h"
#include "support/flatquant_case.h"

#include <math.h>
#include <string.h>

static fl_flatquant_options centred(int kv_bits)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, kv_bits);
    o.asymmetric = o.centre = true;
    return o;
}

static double difference(const float *a, const float *b, size_t n)
{
    double *wide = fl__alloc(n, sizeof *wide);
    assert_non_null(wide);
    for (size_t i = 0; i < n; i++) wide[i] = (double)b[i];
    const double d = fl_test_relative_distance(a, wide, n);
    fl__free(&wide);
    return d;
}

/* With any means the block's output stays, keys with a bias and without. */
static void the_output_stays(void **state)
{
    (void)state;
    for (int kv_bits = 4; kv_bits <= 16; kv_bits += 12) {
        fl_flatquant_options o = centred(kv_bits);
        fl_flatquant_case with, without;
        fl_test_case_load(&with, fl_test_case_opt(), &o);
        o.centre = false;
        fl_test_case_load(&without, fl_test_case_opt(), &o);
        float *a = fl_test_case_plain(&with), *b = fl_test_case_plain(&without);
        assert_true(difference(a, b, with.n) < 1e-5);
        for (int i = 0; i < 2; i++)
            assert_true(difference(with.block.norm[i].bias, without.block.norm[i].bias,
                                   (size_t)with.model->cfg.hidden_size) > 0.1);
        const fl_linear *k = &with.block.linear[FL_LIN_K];
        for (int n = 0; n < k->n_out; n++) assert_int_equal(k->bias[n] == 0, kv_bits == 4);
        fl__free(&a);
        fl__free(&b);
        fl_test_case_close(&with);
        fl_test_case_close(&without);
    }
}

/* ---- true means -------------------------------------------------------------------------- */

typedef struct means {
    double *sum[FL_N_SITES]; /* [n_in] owned */
    int n_in[FL_N_SITES], n_rows[FL_N_SITES];
} means;

static bool add_rows(void *user, int site, const float *x, int n_rows)
{
    means *m = user;
    for (int i = 0; i < n_rows * m->n_in[site]; i++)
        m->sum[site][i % m->n_in[site]] += (double)x[i];
    m->n_rows[site] += n_rows;
    return true;
}

static void measure(means *m, fl_flatquant_case *c)
{
    for (int i = 0; i < FL_N_SITES; i++) {
        m->n_in[i] = c->block.site[i].n_in;
        m->n_rows[i] = 0;
        m->sum[i] = fl__calloc((size_t)m->n_in[i], sizeof(double));
        assert_non_null(m->sum[i]);
    }
    float *y = fl_test_case_watch(c, add_rows, m);
    fl__free(&y);
    for (int i = 0; i < FL_N_SITES; i++)
        for (int k = 0; k < m->n_in[i]; k++) m->sum[i][k] /= m->n_rows[i];
}

static double largest(const means *m, int site)
{
    double most = 0;
    for (int k = 0; k < m->n_in[site]; k++) most = fmax(most, fabs(m->sum[site][k]));
    return most;
}

static void means_fini(means *m)
{
    for (int i = 0; i < FL_N_SITES; i++) fl__free(&m->sum[i]);
}

static void means_are_gone(void **state)
{
    fl_flatquant_options o = centred(4);
    fl_flatquant_case c;
    means before, after;
    (void)state;
    o.centre = false;
    fl_test_case_load(&c, fl_test_case_opt(), &o);
    measure(&before, &c);
    fl__flatquant_centre(&c.block, c.model, before.sum);
    measure(&after, &c);
    for (int i = 0; i < FL_N_SITES; i++)
        assert_true(i == FL_SITE_DOWN ? largest(&after, i) > 0.9 * largest(&before, i)
                                      : largest(&after, i) < 1e-5 * largest(&before, i));
    means_fini(&before);
    means_fini(&after);
    fl_test_case_close(&c);
}

static void others_have_no_place_for_means(void **state)
{
    const fl_flatquant_options o = centred(4);
    const char *dirs[] = {fl_test_case_llama(), fl_test_case_post_norm(), fl_test_case_opt()};
    (void)state;
    for (int i = 0; i < 3; i++) {
        fl_flatquant_case c;
        fl_test_case_load(&c, dirs[i], &o);
        assert_int_equal(fl__flatquant_can_centre(&c.model->cfg), i == 2);
        fl_test_case_close(&c);
    }
}

/* ---- the mean error ---------------------------------------------------------------------- */

/* sum over channels of the squared mean of y - goal */
static double mean_square(const float *y, const float *goal, size_t n, int width)
{
    double sum = 0;
    for (int k = 0; k < width; k++) {
        double mean = 0;
        for (size_t i = (size_t)k; i < n; i += (size_t)width)
            mean += ((double)y[i] - (double)goal[i]) / FL_CASE_ROWS;
        sum += mean * mean;
    }
    return sum;
}

static void the_mean_error_is_taken_off(void **state)
{
    fl_flatquant_options o = centred(4);
    fl_flatquant_case c;
    fl_flatquant_result result;
    fl_err err = {""};
    (void)state;
    o.transform = FL_TRANSFORM_NONE; /* so that training and run time differ by nothing */
    fl_test_case_load(&c, fl_test_case_opt(), &o);
    fl_test_case_start(&c, &o);
    float *goal = fl_test_case_plain(&c);
    const fl_flatquant_data data = {.x = c.x, .y = goal, .n_windows = FL_CASE_WINDOWS,
                                    .seq_len = FL_CASE_TOKENS};
    fl_test_must(fl__flatquant_train(&result, &c.p, c.model, &c.block, &data, &c.ex, &err),
                 &err);
    assert_non_null(result.mean_error);
    fl_flatquant_result nothing = {0};
    float *left = fl_test_case_run_folded(&c, &nothing);
    float *gone = fl_test_case_run_folded(&c, &result);
    const int width = c.model->cfg.hidden_size;
    const double before = mean_square(left, goal, c.n, width);
    assert_true(before > 0);
    assert_true(mean_square(gone, goal, c.n, width) < 1e-6 * before);
    fl__free(&left);
    fl__free(&gone);
    fl__free(&goal);
    fl__flatquant_result_fini(&result);
    fl_test_case_close(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_output_stays),
    cmocka_unit_test(means_are_gone),
    cmocka_unit_test(others_have_no_place_for_means),
    cmocka_unit_test(the_mean_error_is_taken_off),
};
FL_TEST_MAIN(tests)
