/* test_flatquant_fold.c - what a block with folded transforms gives at run time, in float and
 * with integer kernels, against the block in double and against the training pass.
 * SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant.h"

#include "base/mem.h"
#include "support/fl_test.h"
#include "support/flatquant_case.h"

#include <math.h>
#include <string.h>

static double rms(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += pow((double)a[i] - (double)b[i], 2);
    return sqrt(sum / (double)n);
}

/* At run time transforms are in bfloat16. The reference does the same roundings, so that the
 * two agree as float32 allows. The training pass does not: what bfloat16 adds, seen behind the
 * quantisers, must stay below half of what quantising itself does (or, without any, below what
 * four sites with two roundings of 2^-9 each come to). */
static void check_fold(const char *dir, const fl_flatquant_options *o)
{
    const bool is_float = o->w_bits == 16 && o->a_bits == 16 && o->k_bits == 16;
    fl_flatquant_case c;
    fl_test_case_open(&c, dir, o, true);
    fl_flatquant_pass *pass = fl_test_case_pass(&c);
    const fl_flatquant_result nothing = {0};
    const float *trained;
    fl_err err = {""};
    fl_test_must(fl__flatquant_pass_forward(&trained, pass, c.x, FL_CASE_WINDOWS, &err), &err);
    float *y = fl_test_case_run_folded(&c, &nothing), *plain = fl_test_case_plain(&c);
    const double exact = fl_test_relative_distance(y, c.want, c.n),
                 narrow = rms(y, trained, c.n);
    const double quantised = rms(trained, plain, c.n), change = rms(plain, c.x, c.n);
    assert_true(exact < 1e-4);
    assert_true(narrow <= (is_float ? 8 * 0x1p-9 * change : 0.5 * quantised));
    fl__free(&y);
    fl__free(&plain);
    fl__flatquant_pass_free(&pass);
    fl_test_case_close(&c);
}

static void check_fold_of_all(const fl_flatquant_options *o)
{
    check_fold(fl_test_case_llama(), o);
    check_fold(fl_test_case_wide_llama(), o);
    check_fold(fl_test_case_opt(), o);
    if (!o->fold_gain) check_fold(fl_test_case_post_norm(), o);
}

static void folded_in_float(void **state)
{
    fl_flatquant_options o = fl_test_case_options(16, 16, 16);
    (void)state;
    check_fold_of_all(&o);
}

static void folded_in_integers(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    check_fold_of_all(&o);
    o.weight_lr = 0.1; /* the learned weights are folded */
    check_fold(fl_test_case_llama(), &o);
    o.asymmetric = true;
    check_fold_of_all(&o);
    o.asymmetric = false;
    o.w_bits = o.a_bits = 8;
    check_fold(fl_test_case_llama(), &o);
    o.transform = FL_TRANSFORM_SVD;
    check_fold_of_all(&o);
    o.transform = FL_TRANSFORM_NONE;
    check_fold_of_all(&o);
    o.transform = FL_TRANSFORM_HADAMARD;
    o.scale = false;
    o.fold_gain = true;
    check_fold_of_all(&o);
}

static void folded_with_clips_per_linear(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.clip_per_linear = true;
    check_fold_of_all(&o);
    o.asymmetric = true;
    check_fold_of_all(&o);
    o.transform = FL_TRANSFORM_NONE;
    check_fold_of_all(&o);
}

static void folded_with_values_clipped_first(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.clip_v_first = true;
    check_fold_of_all(&o);
    o.transform = FL_TRANSFORM_SVD;
    o.clip_per_linear = true;
    check_fold_of_all(&o);
}

static void folded_centred_blocks(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 4, 4);
    (void)state;
    o.centre = o.asymmetric = true;
    check_fold(fl_test_case_opt(), &o);
    o.scale = false;
    check_fold(fl_test_case_opt(), &o);
}

static void folded_weights_alone(void **state)
{
    fl_flatquant_options o = fl_test_case_options(4, 16, 16);
    (void)state;
    check_fold_of_all(&o);
    o.k_bits = o.v_bits = 4;
    o.w_bits = 8;
    check_fold_of_all(&o);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(folded_in_float),
    cmocka_unit_test(folded_in_integers),
    cmocka_unit_test(folded_with_clips_per_linear),
    cmocka_unit_test(folded_with_values_clipped_first),
    cmocka_unit_test(folded_centred_blocks),
    cmocka_unit_test(folded_weights_alone),
};
FL_TEST_MAIN(tests)
