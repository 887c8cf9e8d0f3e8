/* test_flatquant_block.c - a block's training pass against the block in double
 * (support/flatquant_reference.h): its output, and every gradient against central differences.
 * SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant.h"

#include "base/mem.h"
#include "support/fl_test.h"
#include "support/flatquant_case.h"
#include "support/random_data.h"

#include <math.h>
#include <string.h>

static double loss(fl_flatquant_case *c, const float *direction)
{
    const double *y = fl_test_reference_replay(c->reference);
    double sum = 0;
    for (size_t i = 0; i < c->n; i++) sum += y[i] * (double)direction[i];
    return sum;
}

/* Entries of a group that are checked: all of small ones, every so many of weights. */
static size_t stride(size_t n)
{
    return n > 64 ? n / 25 | 1 : 1;
}

/* least: what a gradient of the group is measured against where all of them are smaller. */
static void check_group(fl_flatquant_case *c, const fl_reference_group *g,
                        const float *direction, double least)
{
    const double step = 1e-5;
    double most = 0, size = least;
    for (size_t i = 0; i < g->n; i += stride(g->n)) {
        const double at = g->value[i];
        g->value[i] = at + step;
        const double up = loss(c, direction);
        g->value[i] = at - step;
        const double slope = (up - loss(c, direction)) / (2 * step);
        g->value[i] = at;
        most = fmax(most, isfinite(g->grad[i]) ? fabs(slope - (double)g->grad[i]) : INFINITY);
        size = fmax(size, fabs(slope));
    }
    if (!(most <= 1e-4 * size)) fail_msg("%s: off by %g of %g", g->name, most, size);
}

/* ---- forward and backward ---------------------------------------------------------------- */

/* What a gradient is measured against at least. Without any rounding the transforms cancel, and
 * so do their gradients: what is left of them is nothing beside the weights'. */
static double least_gradient(const fl_reference_group *groups, int n,
                             const fl_flatquant_case *c)
{
    const bool cancels = c->p.o.w_bits == 16 && c->p.o.a_bits == 16;
    double most = 0;
    for (int i = 0; i < n; i++)
        for (size_t k = 0; k < groups[i].n; k++)
            most = fmax(most, fabs((double)groups[i].grad[k]));
    return cancels ? most : 1e-3 * most;
}

/* Windows are independent of each other: fewer of them give the same. */
static void check_one_window(fl_flatquant_case *c, fl_flatquant_pass *pass)
{
    const float *y;
    fl_err err = {""};
    fl_test_must(
        fl__flatquant_pass_forward(&y, pass, c->x + c->n / 2, FL_CASE_WINDOWS - 1, &err), &err);
    assert_true(fl_test_relative_distance(y, c->want + c->n / 2, c->n / 2) < 1e-5);
}

static void check_pass(const char *dir, const fl_flatquant_options *o)
{
    fl_flatquant_case c;
    fl_test_case_open(&c, dir, o, false);
    fl_reference_group groups[FL_REFERENCE_MAX_GROUPS];
    fl_flatquant_pass *pass = fl_test_case_pass(&c);
    float *direction = fl_test_normal(c.n, 1, "direction"), *dy = fl__alloc(c.n, sizeof *dy);
    const float *y;
    fl_err err = {""};
    for (int again = 0; again < 2; again++) { /* a second time leaves the same */
        fl_test_must(fl__flatquant_pass_forward(&y, pass, c.x, FL_CASE_WINDOWS, &err), &err);
        assert_true(fl_test_relative_distance(y, c.want, c.n) < 1e-5);
        memcpy(dy, direction, c.n * sizeof *dy);
        fl_test_must(fl__flatquant_pass_backward(pass, dy, FL_CASE_WINDOWS, &err), &err);
    }
    const int n = fl_test_reference_groups(c.reference, groups);
    const double least = least_gradient(groups, n, &c);
    check_one_window(&c, pass);
    for (int i = 0; i < n; i++) check_group(&c, &groups[i], direction, least);
    fl__free(&direction);
    fl__free(&dy);
    fl__flatquant_pass_free(&pass);
    fl_test_case_close(&c);
}

static void check_pass_of_all(const fl_flatquant_options *o)
{
    check_pass(fl_test_case_llama(), o);
    check_pass(fl_test_case_wide_llama(), o);
    check_pass(fl_test_case_opt(), o);
    check_pass(fl_test_case_post_norm(), o);
}

static void gradients_of_w4a4kv4(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.weight_lr = 0.1;
    check_pass_of_all(&o);
}

static void gradients_of_asymmetric_activations(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.asymmetric = true;
    check_pass_of_all(&o);
    o.a_bits = 8;
    o.k_bits = 3;
    o.v_bits = 2;
    check_pass(fl_test_case_llama(), &o);
}

static void gradients_of_clips_per_linear(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.clip_per_linear = true;
    o.weight_lr = 0.1;
    check_pass_of_all(&o);
    o.asymmetric = true;
    o.transform = FL_TRANSFORM_SVD;
    check_pass_of_all(&o);
    o.transform = FL_TRANSFORM_NONE;
    o.a_bits = 8;
    check_pass_of_all(&o);
}

static void gradients_of_values_clipped_first(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.clip_v_first = true;
    o.weight_lr = 0.1;
    check_pass(fl_test_case_llama(), &o);
    check_pass(fl_test_case_opt(), &o);
    o.transform = FL_TRANSFORM_SVD;
    o.weight_lr = 0;
    check_pass(fl_test_case_wide_llama(), &o);
    o.transform = FL_TRANSFORM_NONE; /* nothing to be first of */
    check_pass(fl_test_case_llama(), &o);
}

static void gradients_of_centred_blocks(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.centre = o.asymmetric = true;
    check_pass(fl_test_case_opt(), &o);
    o.k_bits = o.v_bits = 16;
    check_pass(fl_test_case_opt(), &o);
}

static void gradients_of_weights_alone(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 16, 16);
    (void)state;
    o.weight_lr = 0.1;
    check_pass_of_all(&o);
}

static void gradients_without_rounding(void **state)
{
    fl_flatquant_options o = fl_test_case_options(16, 16, 16);
    (void)state;
    o.weight_lr = 0.1;
    check_pass_of_all(&o);
}

static void gradients_of_svd_factors(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.transform = FL_TRANSFORM_SVD;
    check_pass_of_all(&o);
}

static void gradients_without_transforms(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.transform = FL_TRANSFORM_NONE;
    o.weight_lr = 0.1;
    check_pass_of_all(&o);
    o.scale = false;
    check_pass(fl_test_case_opt(), &o);
    check_pass(fl_test_case_post_norm(), &o);
}

static void gradients_of_fixed_transforms(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.transform = FL_TRANSFORM_HADAMARD;
    check_pass(fl_test_case_wide_llama(), &o);
    o.transform = FL_TRANSFORM_RANDOM;
    o.scale = o.clip = false;
    o.fold_gain = true;
    o.weight_lr = 0.1;
    check_pass(fl_test_case_llama(), &o);
    check_pass(fl_test_case_opt(), &o);
}

static void keys_and_values_alone(void **state)
{
    fl_flatquant_options o = fl_test_case_options(16, 16, 4);
    (void)state;
    check_pass_of_all(&o);
    o.k_bits = 16;
    check_pass(fl_test_case_llama(), &o);
}

static double *widened(const float *x, size_t n)
{
    double *y = fl__alloc(n, sizeof *y);
    for (size_t i = 0; i < n; i++) y[i] = (double)x[i];
    return y;
}

static void check_cancelling(const char *dir, fl_transform_kind kind)
{
    fl_flatquant_options o = fl_test_case_options(16, 16, 16);
    fl_err err = {""};
    const float *y;
    o.transform = kind;
    fl_flatquant_case c;
    fl_test_case_open(&c, dir, &o, false);
    fl_flatquant_pass *pass = fl_test_case_pass(&c);
    float *plain = fl_test_case_plain(&c);
    double *want = widened(plain, c.n);
    fl_test_must(fl__flatquant_pass_forward(&y, pass, c.x, FL_CASE_WINDOWS, &err), &err);
    assert_true(fl_test_relative_distance(y, want, c.n) < 1e-5);
    fl__free(&want);
    fl__free(&plain);
    fl__flatquant_pass_free(&pass);
    fl_test_case_close(&c);
}

static void transforms_cancel(void **state)
{
    (void)state;
    for (int kind = FL_TRANSFORM_NONE; kind <= FL_TRANSFORM_HADAMARD; kind++) {
        check_cancelling(fl_test_case_llama(), (fl_transform_kind)kind);
        check_cancelling(fl_test_case_wide_llama(), (fl_transform_kind)kind);
        check_cancelling(fl_test_case_opt(), (fl_transform_kind)kind);
        check_cancelling(fl_test_case_post_norm(), (fl_transform_kind)kind);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(gradients_of_w4a4kv4),
    cmocka_unit_test(gradients_of_asymmetric_activations),
    cmocka_unit_test(gradients_of_clips_per_linear),
    cmocka_unit_test(gradients_of_values_clipped_first),
    cmocka_unit_test(gradients_of_centred_blocks),
    cmocka_unit_test(gradients_of_weights_alone),
    cmocka_unit_test(gradients_without_rounding),
    cmocka_unit_test(gradients_of_svd_factors),
    cmocka_unit_test(gradients_without_transforms),
    cmocka_unit_test(gradients_of_fixed_transforms),
    cmocka_unit_test(keys_and_values_alone),
    cmocka_unit_test(transforms_cancel),
};
FL_TEST_MAIN(tests)
