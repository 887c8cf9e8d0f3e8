/* test_weight_split.c - columns of weights in digits: the digits add up, the rule by hand, and
 * the scale that a split leaves.
 * SPDX-License-Identifier: MIT */
#include "quant/weight_split.h"

#include "base/mem.h"
#include "quant/weight_scale.h"
#include "support/fl_test.h"
#include "support/random_data.h"

#include <math.h>
#include <string.h>

static const fl_exec one = {.n_threads = 1}, two = {.n_threads = 2};

static void digits_add_up_to_the_code(void **state)
{
    (void)state;
    static const uint16_t copies[] = {1, 3, 1, 2, 7};
    for (int bits = 4; bits <= 8; bits += 4) {
        fl_weight_split s;
        int8_t row[16];
        assert_int_equal(fl__weight_split_init(&s, copies, 5, bits, NULL), FL_OK);
        assert_int_equal(s.ld, 5 + 2 + 1 + 6);
        for (int k = 0; k < 5; k++)
            for (int code = (int)s.lo[k]; code <= (int)s.hi[k]; code++) {
                memset(row, 0, sizeof row);
                fl__weight_split_put(row, &s, k, code);
                assert_int_equal(fl__weight_split_get(row, &s, k), code);
                for (int c = 0; c < s.ld; c++) {
                    const bool digit = c == k || (c >= s.second[k] &&
                                                  c < s.second[k] + copies[k] - 1);
                    assert_true(digit || row[c] == 0);
                    assert_true(row[c] >= fl__weight_qmin(bits) &&
                                row[c] <= fl__weight_qmax(bits));
                }
            }
        assert_true(s.lo[0] == (float)fl__weight_qmin(bits) && s.hi[1] == 3.0f * (float)s.qmax);
        assert_true(s.lo[1] == -s.hi[1]);
        fl__weight_split_fini(&s);
    }
}

static void first_digits_are_full_before_later_ones_start(void **state)
{
    (void)state;
    static const uint16_t copies[] = {2, 4};
    static const int8_t want[] = {-7, 7, -2, 7, 3, 0}; /* column 1 reaches 28 */
    fl_weight_split s;
    int8_t row[6];
    assert_int_equal(fl__weight_split_init(&s, copies, 2, 4, NULL), FL_OK);
    fl__weight_split_put(row, &s, 0, -9);
    fl__weight_split_put(row, &s, 1, 17);
    assert_memory_equal(row, want, sizeof row);
    fl__weight_split_fini(&s);
}

/* ---- the rule ---------------------------------------------------------------------------- */

enum { N = 32, K = 40 };

/* Rows of +-1, but some columns are larger. */
static float *made_weights(void)
{
    float *w = fl__alloc(N * K, sizeof *w);
    for (int i = 0; i < N * K; i++) w[i] = i * 7 % 3 == 0 ? -1 : 1;
    for (int n = 0; n < N; n++) {
        w[n * K + 5] *= n == 3 ? 4.5f : 0.5f; /* one entry */
        w[n * K + 11] *= 3;
    }
    return w;
}

static void large_columns_are_split(void **state)
{
    (void)state;
    float *w = made_weights();
    const fl_flatten_weight weights[1] = {{w, N}};
    int columns[K];
    for (int k = 0; k < K; k++) columns[k] = 1;
    fl_weight_split s;
    /* all but two columns have the same maximum: the fence is there, T is 1.3 of it */
    assert_int_equal(fl__weight_split_choose(&s, weights, 1, K, 4, true, columns, 1.3, 0.3,
                                             NULL),
                     FL_OK);
    for (int k = 0; k < K; k++)
        assert_int_equal(s.copies[k], k == 5 ? 4 : k == 11 ? 3 : 1); /* 4.5 and 3 over 1.3 */
    assert_int_equal(s.ld, K + 5);
    assert_true(fabs(s.ratio - 5.0 / K) < 1e-12);
    fl__weight_split_fini(&s);
    fl__free(&w);
}

/* The cap counts columns of the product: those of a channel whose activation has several count
 * so often. */
static void cap_counts_columns_of_the_product(void **state)
{
    (void)state;
    float *w = fl_test_normal(2 * N * K, 1, "w");
    const fl_flatten_weight weights[2] = {{w, N}, {w + N * K, N}};
    int columns[K];
    for (int tensor = 0; tensor < 2; tensor++)
        for (int ratio = 0; ratio < 5; ratio++) {
            fl_weight_split s;
            int added = 0;
            for (int k = 0; k < K; k++) columns[k] = 1 + k % 4;
            assert_int_equal(fl__weight_split_choose(&s, weights, 2, K, 4, tensor, columns, 0.1,
                                                     0.1 * ratio, NULL),
                             FL_OK);
            for (int k = 0; k < K; k++) added += columns[k] * (s.copies[k] - 1);
            assert_true(added <= 0.1 * ratio * K + 1e-9);
            assert_true(ratio == 0 ? s.ld == K : s.ld > K);
            fl__weight_split_fini(&s);
        }
    fl__free(&w);
}

/* A layer of small weights and one of large ones: each is measured by its own scale. */
static void layers_of_a_site_count_alike(void **state)
{
    (void)state;
    float *a = made_weights(), *b = made_weights();
    for (int i = 0; i < N * K; i++) b[i] *= 1000;
    const fl_flatten_weight both[2] = {{a, N}, {b, N}}, small[1] = {{a, N}};
    int columns[K];
    for (int k = 0; k < K; k++) columns[k] = 1;
    for (int tensor = 0; tensor < 2; tensor++) {
        fl_weight_split s, t;
        assert_int_equal(fl__weight_split_choose(&s, both, 2, K, 8, tensor, columns, 1.3, 0.3,
                                                 NULL),
                         FL_OK);
        assert_int_equal(fl__weight_split_choose(&t, small, 1, K, 8, tensor, columns, 1.3, 0.3,
                                                 NULL),
                         FL_OK);
        assert_memory_equal(s.copies, t.copies, sizeof *s.copies * K);
        fl__weight_split_fini(&s);
        fl__weight_split_fini(&t);
    }
    fl__free(&a);
    fl__free(&b);
}

static void weights_of_zeros_stay_whole(void **state)
{
    (void)state;
    static const float zeros[4 * 8];
    static const int columns[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    const fl_flatten_weight weights[1] = {{zeros, 4}};
    fl_weight_split s;
    assert_int_equal(fl__weight_split_choose(&s, weights, 1, 8, 4, false, columns, 1.3, 0.3,
                                             NULL),
                     FL_OK);
    assert_int_equal(s.ld, 8);
    fl__weight_split_fini(&s);
}

/* ---- scales and rounding ----------------------------------------------------------------- */

static void scale_is_that_of_the_digits(void **state)
{
    (void)state;
    static const uint16_t copies[] = {1, 4, 1, 1};
    static const float w[] = {1, -14, 3.5f, 0, 0.5f, 1, -7, 2};
    fl_weight_split s;
    float scale[2];
    assert_int_equal(fl__weight_split_init(&s, copies, 4, 4, NULL), FL_OK);
    fl__weight_scale_find_split(&one, scale, w, &s, 2, 4, 4, false, false, NULL);
    assert_true(scale[0] == 0.5f && scale[1] == 1); /* 14 / 4 digits / 7, and the 7 is whole */
    fl__weight_scale_find_split(&one, scale, w, &s, 2, 4, 4, true, false, NULL);
    assert_true(scale[0] == 1);
    fl__weight_split_fini(&s);
}

static void searched_scale_and_codes_lose_less(void **state)
{
    (void)state;
    float *w = fl_test_normal(N * K, 1, "w");
    uint16_t copies[K];
    int8_t a[N * K], *b;
    float sa[N], sb[N], sc[N];
    for (int n = 0; n < N; n++) w[n * K + 7] *= 12;
    for (int k = 0; k < K; k++) copies[k] = k == 7 ? 12 : 1;
    fl_weight_split s;
    assert_int_equal(fl__weight_split_init(&s, copies, K, 4, NULL), FL_OK);
    b = fl__alloc((size_t)(N * s.ld), 1);
    fl__weight_scale_find(&one, sa, w, N, K, 4, false, true, NULL);
    fl__weight_scale_find_split(&one, sb, w, &s, N, K, 4, false, true, NULL);
    fl__weight_scale_find_split(&two, sc, w, &s, N, K, 4, false, true, NULL);
    assert_memory_equal(sb, sc, sizeof sb);
    const double ea = fl__weight_round(&one, a, w, sa, 1, N, K, 4, NULL);
    const double eb = fl__weight_round_split(&one, b, w, &s, sb, 1, N, K, 4, NULL);
    assert_true(eb < 0.5 * ea);
    double again = 0;
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            const int code = fl__weight_split_get(b + n * s.ld, &s, k);
            again += pow((double)w[n * K + k] - (double)sb[n] * code, 2);
        }
    assert_true(fabs(again - eb) < 1e-4 * eb);
    fl__weight_split_fini(&s);
    fl__free(&b);
    fl__free(&w);
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    float *w = made_weights();
    const fl_flatten_weight weights[1] = {{w, N}};
    int columns[K];
    for (int k = 0; k < K; k++) columns[k] = 1;
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned n = 1;; n++) {
        fl_weight_split s;
        fl__mem_fail_after(n);
        const fl_status st =
            fl__weight_split_choose(&s, weights, 1, K, 4, true, columns, 1.3, 0.3, NULL);
        fl__weight_split_fini(&s);
        assert_int_equal(fl__mem_get().now_bytes, before);
        if (!st) break;
        assert_int_equal(st, FL_E_NOMEM);
    }
    fl__mem_fail_after(0);
    fl__free(&w);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(digits_add_up_to_the_code),
    cmocka_unit_test(first_digits_are_full_before_later_ones_start),
    cmocka_unit_test(large_columns_are_split),
    cmocka_unit_test(cap_counts_columns_of_the_product),
    cmocka_unit_test(layers_of_a_site_count_alike),
    cmocka_unit_test(weights_of_zeros_stay_whole),
    cmocka_unit_test(scale_is_that_of_the_digits),
    cmocka_unit_test(searched_scale_and_codes_lose_less),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
