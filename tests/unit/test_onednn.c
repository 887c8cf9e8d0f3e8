/* test_onednn.c - sgemm against loops; the opponents of the bench run or say that they cannot.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"

#include "base/float16.h"
#include "base/rng.h"
#include "kernels/onednn.h"

#include <math.h>
#include <string.h>

enum { M = 5, N = 7, K = 19, LDA = 23, LDB = 29, LDC = 11 };

static void fill(float *x, int n, int stream)
{
    fl_rng rng = fl__rng_init(1, stream, "test-onednn");
    for (int i = 0; i < n; i++) x[i] = (float)fl__rng_normal(&rng);
}

static void sgemm_one(bool transpose_b, float alpha, float beta)
{
    float A[M * LDA], B[LDB * LDB], C[M * LDC], before[M * LDC];
    fill(A, M * LDA, 1);
    fill(B, LDB * LDB, 2);
    fill(C, M * LDC, 3);
    memcpy(before, C, sizeof C);
    assert_int_equal(fl__onednn_sgemm(M, N, K, alpha, A, LDA, B, LDB, transpose_b, beta, C, LDC,
                                      NULL),
                     FL_OK);
    for (int m = 0; m < M; m++)
        for (int n = 0; n < LDC; n++) {
            double sum = 0;
            for (int k = 0; k < K; k++)
                sum += (double)A[m * LDA + k] * B[transpose_b ? n * LDB + k : k * LDB + n];
            const double want = n < N ? alpha * sum + beta * before[m * LDC + n]
                                      : before[m * LDC + n]; /* beyond N: untouched */
            assert_true(fabs(C[m * LDC + n] - want) < 1e-5);
        }
}

static void sgemm_matches_loops(void **state)
{
    (void)state;
    sgemm_one(false, 1, 0);
    sgemm_one(true, 1, 0);
    sgemm_one(true, -0.5f, 2);
}

static void opponents_run_or_are_unsupported(void **state)
{
    (void)state;
    for (int type = FL_ONEDNN_S8; type <= FL_ONEDNN_BF16; type++) {
        fl_onednn_matmul *mm = NULL;
        fl_err err;
        const fl_status st =
            fl__onednn_matmul_new(&mm, (fl_onednn_type)type, 4, 32, 64, 2, 1, &err);
        if (st == FL_E_UNSUPPORTED) {
            assert_null(mm);
            continue;
        }
        assert_int_equal(st, FL_OK);
        assert_true(strncmp(fl__onednn_matmul_impl(mm), "ref", 3) != 0);
        for (int call = 0; call < 3; call++)
            assert_int_equal(fl__onednn_matmul_run(mm, call, &err), FL_OK);
        fl__onednn_matmul_free(&mm);
        assert_null(mm);
    }
}

/* All row counts on the weights packed for the first. */
static void linears_multiply(void **state)
{
    enum { OUT = 48, IN = 64, ROWS = 9 };
    static const int counts[] = {ROWS, 4};
    uint16_t w[OUT * IN], x[ROWS * IN];
    float y[ROWS * OUT];
    fl_onednn_linear *linear;
    fl_err err;
    (void)state;
    for (int i = 0; i < OUT * IN; i++) w[i] = fl__f32_to_bf16((float)(i * 7 % 11 - 5));
    for (int i = 0; i < ROWS * IN; i++) x[i] = fl__f32_to_bf16((float)(i * 5 % 13 - 6));
    const fl_status st = fl__onednn_linear_new(&linear, w, OUT, IN, counts, 2, 1, &err);
    if (st == FL_E_UNSUPPORTED) fl_test_skip("oneDNN has plain loops only for bfloat16 here");
    assert_int_equal(st, FL_OK);
    assert_true(fl__onednn_linear_bytes(linear) >= sizeof w);
    assert_true(fl__onednn_linear_impl(linear)[0]);
    for (int c = 0; c < 2; c++) {
        assert_true(fl__onednn_linear_run(linear, x, counts[c], y));
        for (int i = 0; i < counts[c] * OUT; i++) {
            float sum = 0; /* whole numbers: exact in any order */
            for (int k = 0; k < IN; k++)
                sum += fl__bf16_to_f32(x[i / OUT * IN + k]) *
                       fl__bf16_to_f32(w[i % OUT * IN + k]);
            assert_true(y[i] == sum);
        }
    }
    assert_false(fl__onednn_linear_run(linear, x, 5, y));
    fl__onednn_linear_free(&linear);
    assert_null(linear);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(sgemm_matches_loops),
    cmocka_unit_test(opponents_run_or_are_unsupported),
    cmocka_unit_test(linears_multiply),
};

FL_TEST_MAIN(tests)
