/* test_weight_scale.c - scales and rounding of weights, by hand and against double.
 * SPDX-License-Identifier: MIT */
#include "quant/weight_scale.h"

#include "base/mem.h"
#include "support/fl_test.h"
#include "support/random_data.h"

#include <math.h>
#include <string.h>

static const fl_exec one = {.n_threads = 1}, two = {.n_threads = 2};

static void plain_scales_are_maxima_over_qmax(void **state)
{
    (void)state;
    static const float w[] = {1, -14, 7, 0, 0, 0, 0.5f, 0.25f, -0.125f};
    float scale[3];
    fl__weight_scale_find(&one, scale, w, 3, 3, 4, false, false, NULL);
    assert_true(scale[0] == 2 && scale[1] == 1 && scale[2] == 0.5f / 7);
    fl__weight_scale_find(&one, scale, w, 3, 3, 8, false, false, NULL);
    assert_true(scale[0] == 14.0f / 127 && scale[1] == 1 && scale[2] == 0.5f / 127);
    scale[1] = -1;
    fl__weight_scale_find(&one, scale, w, 3, 3, 4, true, false, NULL);
    assert_true(scale[0] == 2 && scale[1] == -1); /* one scale, no more written */
}

static void codes_round_half_to_even_and_clamp(void **state)
{
    (void)state;
    static const float w[] = {0.5f, 1.5f, -2.5f, 7.4f, 9, -7.6f, -100, 0};
    static const int8_t want4[] = {0, 2, -2, 7, 7, -8, -8, 0};
    static const float big[] = {126.5f, 127.5f, 500, -127.4f, -128, -500, 0.49f, -0.5f};
    static const int8_t want8[] = {126, 127, 127, -127, -127, -127, 0, 0};
    const float scale = 1;
    int8_t codes[8];
    /* errors squared: .5, .5, .5, .4, 2, .4, 92 */
    const double error = fl__weight_round(&one, codes, w, &scale, 0, 1, 8, 4, NULL);
    assert_memory_equal(codes, want4, sizeof codes);
    assert_true(fabs(error - (3 * 0.25 + 2 * 0.16 + 4 + 92.0 * 92)) < 1e-2);
    (void)fl__weight_round(&one, codes, big, &scale, 0, 1, 8, 8, NULL);
    assert_memory_equal(codes, want8, sizeof codes);
}

static double double_error(const float *w, const float *h, int K, float scale, int bits)
{
    double sum = 0;
    for (int k = 0; k < K; k++) {
        double q = rint((double)w[k] / scale);
        q = fmin(fmax(q, fl__weight_qmin(bits)), fl__weight_qmax(bits));
        sum += (w[k] - scale * q) * (w[k] - scale * q) * (h ? h[k] : 1);
    }
    return sum;
}

/* The searched scale is as good as any on a fine grid, up to the search's own steps. */
static void searched_scales_are_near_the_best(void **state)
{
    (void)state;
    enum { N = 40, K = 64 };
    float *w = fl_test_normal(N * K, 1, "w"), *h = fl_test_normal(K, 1, "h"), scale[N],
          plain[N];
    int8_t codes[N * K];
    for (int k = 0; k < K; k++) h[k] = h[k] * h[k];
    w[3] = 9;
    for (int bits = 4; bits <= 8; bits += 4) {
        fl__weight_scale_find(&one, scale, w, N, K, bits, false, true, h);
        fl__weight_scale_find(&one, plain, w, N, K, bits, false, false, h);
        double total = 0;
        for (int n = 0; n < N; n++) {
            const float *row = w + n * K;
            const double got = double_error(row, h, K, scale[n], bits);
            double best = got;
            for (int i = 300; i <= 1000; i++)
                best = fmin(best, double_error(row, h, K, plain[n] * (float)i / 1000, bits));
            assert_true(got <= double_error(row, h, K, plain[n], bits) * 1.0001);
            /* at 8 bits the error wavers between the steps */
            assert_true(got <= best * (bits == 4 ? 1.35 : 4));
            total += got;
        }
        const double reported = fl__weight_round(&one, codes, w, scale, 1, N, K, bits, h);
        assert_true(fabs(reported / total - 1) < 1e-3);
    }
    h[3] = 0; /* the outlier meets no input: nothing speaks against clipping it */
    fl__weight_scale_find(&one, scale, w, 1, K, 4, false, true, h);
    assert_true(scale[0] < 0.6f * 9 / 7);
    fl__free(&w);
    fl__free(&h);
}

static void one_scale_for_the_tensor_minimises_the_sum(void **state)
{
    (void)state;
    enum { N = 8, K = 32 };
    float *w = fl_test_normal(N * K, 1, "w"), scale, top = 0;
    for (int i = 0; i < N * K; i++) top = fmaxf(top, fabsf(w[i]));
    fl__weight_scale_find(&one, &scale, w, N, K, 4, true, true, NULL);
    const double got = double_error(w, NULL, N * K, scale, 4);
    for (int i = 0; i < 32; i++) {
        const float other = top / 7 * (1 - 0.64f * (float)i / 32);
        assert_true(got <= double_error(w, NULL, N * K, other, 4) * 1.0001);
    }
    fl__free(&w);
}

static void threads_do_not_change_a_bit(void **state)
{
    (void)state;
    enum { N = 100, K = 50 };
    float *w = fl_test_normal(N * K, 1, "w"), a[N], b[N];
    static int8_t ca[N * K], cb[N * K];
    fl__weight_scale_find(&one, a, w, N, K, 4, false, true, NULL);
    fl__weight_scale_find(&two, b, w, N, K, 4, false, true, NULL);
    assert_memory_equal(a, b, sizeof a);
    const double ea = fl__weight_round(&one, ca, w, a, 1, N, K, 4, NULL);
    const double eb = fl__weight_round(&two, cb, w, b, 1, N, K, 4, NULL);
    assert_true(ea == eb);
    assert_memory_equal(ca, cb, sizeof ca);
    fl__free(&w);
}

/* Weights of any size give finite positive scales and codes in range. */
static void sizes_at_the_edge_of_float_are_fine(void **state)
{
    (void)state;
    static const float tops[] = {1e-45f, 1e-40f, 1e-30f, 1e30f, 3.4e38f};
    for (size_t i = 0; i < FL_COUNT(tops); i++)
        for (int bits = 4; bits <= 8; bits += 4) {
            const float w[] = {tops[i], -tops[i] / 2, 0, tops[i] / 3};
            float scale;
            int8_t codes[4];
            for (int search = 0; search < 2; search++) {
                fl__weight_scale_find(&one, &scale, w, 1, 4, bits, false, search, NULL);
                assert_true(isfinite(scale) && scale > 0);
                assert_true(isfinite(1 / scale));
                (void)fl__weight_round(&one, codes, w, &scale, 0, 1, 4, bits, NULL);
                assert_true(codes[2] == 0 && codes[0] >= 0 && codes[1] <= 0);
            }
        }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(plain_scales_are_maxima_over_qmax),
    cmocka_unit_test(codes_round_half_to_even_and_clamp),
    cmocka_unit_test(searched_scales_are_near_the_best),
    cmocka_unit_test(one_scale_for_the_tensor_minimises_the_sum),
    cmocka_unit_test(threads_do_not_change_a_bit),
    cmocka_unit_test(sizes_at_the_edge_of_float_are_fine),
};
FL_TEST_MAIN(tests)
