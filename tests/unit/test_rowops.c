/* test_rowops.c - norms and rotary embedding against double. SPDX-License-Identifier: MIT */
#include "kernels/rowops.h"

#include "base/mem.h"
#include "support/fl_test.h"
#include "support/random_data.h"

#include <math.h>
#include <string.h>

enum { N = 100 };

static void rms_norm_is_its_formula(void **state)
{
    (void)state;
    float *x = fl_test_normal(N, 3, "x"), *gain = fl_test_normal(N, 1, "gain"), y[N];
    double square = 0;
    for (int i = 0; i < N; i++) square += (double)x[i] * x[i] / N;
    fl__rms_norm(y, x, gain, N, 1e-5);
    for (int i = 0; i < N; i++) {
        const double want = x[i] / sqrt(square + 1e-5) * gain[i];
        assert_true(fabs(y[i] - want) <= 4e-7 * fabs(want));
    }
    memset(x, 0, N * sizeof *x);
    fl__rms_norm(y, x, gain, N, 1e-5);
    for (int i = 0; i < N; i++) assert_true(y[i] == 0);
    fl__free(&x);
    fl__free(&gain);
}

static void layer_norm_is_its_formula(void **state)
{
    (void)state;
    float *x = fl_test_normal(N, 3, "x"), *gain = fl_test_normal(N, 1, "gain"),
          *bias = fl_test_normal(N, 1, "bias"), y[N], plain[N];
    double mean = 0, variance = 0;
    for (int i = 0; i < N; i++) x[i] += 1000; /* a mean that float32 sums would lose */
    for (int i = 0; i < N; i++) mean += (double)x[i] / N;
    for (int i = 0; i < N; i++) variance += (x[i] - mean) * (x[i] - mean) / N;
    fl__layer_norm(y, x, gain, bias, N, 1e-5);
    fl__layer_norm(plain, x, NULL, NULL, N, 1e-5);
    for (int i = 0; i < N; i++) {
        const double z = (x[i] - mean) / sqrt(variance + 1e-5), want = z * gain[i] + bias[i];
        assert_true(fabs(plain[i] - z) <= 2e-7 * fmax(1, fabs(z)));
        assert_true(fabs(y[i] - want) <= 1e-6 * (fabs(z * gain[i]) + fabs(bias[i])));
    }
    for (int i = 0; i < N; i++) x[i] = 5; /* no variance: eps keeps it finite */
    fl__layer_norm(y, x, gain, bias, N, 1e-5);
    for (int i = 0; i < N; i++) assert_true(y[i] == bias[i]);
    fl__layer_norm(x, x, gain, bias, N, 1e-5); /* in place */
    assert_memory_equal(x, y, sizeof y);
    fl__free(&x);
    fl__free(&gain);
    fl__free(&bias);
}

static void rope_rotates_pairs(void **state)
{
    (void)state;
    enum { D = 16 };
    float *x = fl_test_normal(D, 1, "x"), y[D], c[D / 2], s[D / 2];
    memcpy(y, x, sizeof y);
    for (int i = 0; i < D / 2; i++) {
        c[i] = cosf((float)i);
        s[i] = sinf((float)i);
    }
    fl__rope_head(y, c, s, D);
    assert_true(y[0] == x[0] && y[D / 2] == x[D / 2]); /* angle 0 */
    for (int i = 0; i < D / 2; i++) {
        const double a = x[i], b = x[i + D / 2];
        assert_true(fabs(y[i] - (a * cos(i) - b * sin(i))) < 1e-6);
        assert_true(fabs(y[i + D / 2] - (b * cos(i) + a * sin(i))) < 1e-6);
    }
    fl__free(&x);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(rms_norm_is_its_formula),
    cmocka_unit_test(layer_norm_is_its_formula),
    cmocka_unit_test(rope_rotates_pairs),
};
FL_TEST_MAIN(tests)
