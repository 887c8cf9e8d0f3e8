/* test_flatquant_train.c - where parameters start, and training on a small problem: that it
 * learns, stops, starts again and gives up; one result for any number of threads.
 * SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant.h"

#include "base/mem.h"
#include "support/fl_test.h"
#include "support/flatquant_case.h"

#include <math.h>
#include <string.h>

/* ---- training ---------------------------------------------------------------------------- */

static bool stop_after(void *user)
{
    int *left = user;
    return (*left)-- == 0;
}

/* Parameters after training on the block's own output with this many threads. */
static fl_status train(fl_flatquant_result *result, fl_flatquant_case *c, const float *y,
                       int n_threads, int *stop, fl_err *err)
{
    const fl_exec ex = {c->ex.isa, n_threads};
    const fl_flatquant_data data = {.x = c->x,
                                    .y = y,
                                    .n_windows = FL_CASE_WINDOWS,
                                    .seq_len = FL_CASE_TOKENS,
                                    .should_stop = stop ? stop_after : NULL,
                                    .user = stop};
    return fl__flatquant_train(result, &c->p, c->model, &c->block, &data, &ex, err);
}

static void check_training(const char *dir, const fl_flatquant_options *o)
{
    fl_adamw_group groups[2][FL_FLATQUANT_MAX_GROUPS];
    fl_flatquant_case c;
    fl_err err = {""};
    fl_test_case_load(&c, dir, o);
    float *y = fl_test_case_plain(&c);
    fl_flatquant_params first;
    fl_flatquant_result result[2];
    fl_test_case_start(&c, o);
    fl_test_must(train(&result[0], &c, y, 1, NULL, &err), &err);
    first = c.p;
    fl_test_case_start(&c, o);
    fl_test_must(train(&result[1], &c, y, 2, NULL, &err), &err);

    const int n = fl__flatquant_params_groups(&first, groups[0]);
    assert_int_equal(fl__flatquant_params_groups(&c.p, groups[1]), n);
    assert_true(n > 10);
    for (int i = 0; i < n; i++)
        assert_memory_equal(groups[0][i].p, groups[1][i].p, groups[0][i].n * sizeof(float));
    assert_int_equal(result[0].n_epochs, o->epochs);
    assert_int_equal(result[0].n_restarts, 0);
    assert_true(result[0].best_loss < 0.8 * result[0].first_loss);
    assert_memory_equal(result[0].epoch_loss, result[1].epoch_loss,
                        (size_t)o->epochs * sizeof(double));
    for (int i = 0; i < 2; i++) fl__flatquant_result_fini(&result[i]);
    fl__flatquant_params_fini(&first);
    fl__free(&y);
    fl_test_case_close(&c);
}

static void training_lowers_the_loss(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.batch_windows = 1;
    check_training(fl_test_case_llama(), &o);
    o.transform = FL_TRANSFORM_SVD;
    o.asymmetric = o.bf16 = true;
    check_training(fl_test_case_wide_llama(), &o);
    o.transform = FL_TRANSFORM_NONE;
    o.weight_lr = 0.1;
    o.batch_windows = 5;
    check_training(fl_test_case_opt(), &o);
}

static void training_stops_when_told(void **state)
{
    const fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    fl_flatquant_result result;
    fl_err err = {""};
    fl_flatquant_case c;
    (void)state;
    fl_test_case_load(&c, fl_test_case_llama(), &o);
    float *y = fl_test_case_plain(&c);
    fl_test_case_start(&c, &o);
    const size_t before = fl__mem_get().now_bytes;
    for (int left = 0; left < 3; left++) {
        int n = left;
        assert_int_equal(train(&result, &c, y, 1, &n, &err), FL_E_INTERRUPTED);
        assert_int_equal(n, -1);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
    fl__free(&y);
    fl_test_case_close(&c);
}

/* Trains in vain; the parameters end as they started. */
static void check_giving_up(const fl_flatquant_options *o, float wanted)
{
    fl_flatquant_result result;
    fl_err err = {""};
    fl_flatquant_case c;
    fl_test_case_load(&c, fl_test_case_llama(), o);
    float *y = fl_test_case_plain(&c);
    fl_test_case_start(&c, o);
    const fl_factor *f = &c.p.site[FL_SITE_UP].right;
    const size_t n = f->n_params;
    float *first = fl__alloc(n, sizeof *first);
    memcpy(first, f->param, n * sizeof *first);
    y[7] = wanted;
    assert_int_equal(train(&result, &c, y, 1, NULL, &err), FL_E_FAIL);
    assert_memory_equal(f->param, first, n * sizeof *first);
    assert_memory_equal(f->p, first, n * sizeof *first);
    fl__free(&first);
    fl__free(&y);
    fl_test_case_close(&c);
}

static void training_gives_up(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.batch_windows = 1;
    check_giving_up(&o, NAN);
    o.lr = 1e38; /* factors leave the range of float32 with the first step */
    check_giving_up(&o, 0);
}

/* Of rates that double, the first one at which training breaks down: half of it works. */
static void training_starts_again(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    fl_flatquant_result result;
    fl_err err = {""};
    fl_flatquant_case c;
    (void)state;
    o.clip = o.scale = false;
    o.epochs = 1;
    o.batch_windows = 1;
    fl_test_case_load(&c, fl_test_case_llama(), &o);
    float *y = fl_test_case_plain(&c);
    int n_restarts = 0;
    for (o.lr = 1e17; n_restarts == 0 && o.lr < 1e38; o.lr *= 2) {
        fl_test_case_start(&c, &o);
        fl_test_must(train(&result, &c, y, 1, NULL, &err), &err);
        n_restarts = result.n_restarts;
        fl__flatquant_result_fini(&result);
        fl__flatquant_params_fini(&c.p);
    }
    assert_int_equal(n_restarts, 1);
    fl__free(&y);
    fl_test_case_close(&c);
}

/* ---- scales ------------------------------------------------------------------------------ */

static void scales_start_as_documented(void **state)
{
    const fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    fl_flatquant_case c;
    (void)state;
    fl_test_case_load(&c, fl_test_case_opt(), &o);
    c.x_max[FL_SITE_DOWN][4] = 0; /* a channel that ReLU never lets through */
    fl_test_case_start(&c, &o);
    for (int s = 0; s < FL_N_SITES; s++) {
        const fl_flatquant_site *site = &c.p.site[s];
        assert_int_equal(site->c != NULL, s != FL_SITE_O);
        for (int k = 0; site->c && k < site->n_in; k++) {
            double w_max = 0;
            for (int i = 0; i < c.block.site[s].n_linears; i++) {
                const fl_linear *l = c.block.site[s].linears[i];
                for (int n = 0; n < l->n_out; n++)
                    w_max = fmax(w_max, fabs((double)l->own_w[n * l->n_in + k]));
            }
            const bool idle = s == FL_SITE_DOWN && k == 4;
            const double want = pow(w_max, 0.7) / pow((double)c.x_max[s][k], 0.3);
            assert_true(fabs((double)site->c[k] - (idle ? 1 : want)) < 1e-5 * want);
        }
    }
    fl_test_case_close(&c);
}

static void scales_take_gains(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    fl_flatquant_case c;
    (void)state;
    o.scale = false;
    o.fold_gain = true;
    fl_test_case_load(&c, fl_test_case_opt(), &o);
    c.block.norm[0].gain[4] = 0;
    fl_test_case_start(&c, &o);
    for (int s = 0; s < FL_N_SITES; s++) {
        const float *scale = c.p.site[s].c;
        assert_int_equal(scale != NULL, s == FL_SITE_QKV || s == FL_SITE_UP);
        for (int k = 0; scale && k < c.p.site[s].n_in; k++) {
            const float gain = c.block.norm[s == FL_SITE_UP].gain[k];
            assert_true(gain != 0 ? fabsf(gain * scale[k] - 1) < 1e-6f : scale[k] == 1);
        }
    }
    fl_test_case_close(&c);
}

/* ---- memory ------------------------------------------------------------------------------ */

/* All of it once. */
static fl_status once(fl_flatquant_case *c, const fl_flatquant_options *o, const float *y)
{
    fl_flatquant_result result;
    fl_block folded;
    fl_err err = {""};
    fl_status st =
        fl__flatquant_params_init(&c->p, c->model, &c->block, 0, c->x_max, o, &c->ex, &err);
    if (st) return st;
    if (!(st = train(&result, c, y, 1, NULL, &err))) {
        fl__flatquant_result_fini(&result);
        if (!(st = fl__flatquant_fold(&folded, &c->p, c->model, 0, true, &c->ex, &err)))
            fl__block_fini(&folded);
    }
    fl__flatquant_params_fini(&c->p);
    return st;
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    fl_flatquant_case c;
    (void)state;
    o.epochs = 1;
    o.weight_lr = 0.1;
    fl_test_case_load(&c, fl_test_case_opt(), &o);
    float *y = fl_test_case_plain(&c);
    fl_status st = FL_E_NOMEM;
    assert_int_equal(once(&c, &o, y), FL_OK); /* libraries have what they keep */
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned n = 1; st; n++) {
        fl__mem_fail_after(n);
        st = once(&c, &o, y);
        if (st) assert_int_equal(st, FL_E_NOMEM);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
    fl__mem_fail_after(0);
    fl__free(&y);
    fl_test_case_close(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(training_lowers_the_loss),
    cmocka_unit_test(training_stops_when_told),
    cmocka_unit_test(training_gives_up),
    cmocka_unit_test(training_starts_again),
    cmocka_unit_test(scales_start_as_documented),
    cmocka_unit_test(scales_take_gains),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
