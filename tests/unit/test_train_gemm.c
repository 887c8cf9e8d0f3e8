/* test_train_gemm.c - products of training against sums in double: all three forms, tails, sums
 * cut into parts, float32 and bfloat16, any number of threads.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/random_data.h"

#include "base/float16.h"
#include "base/isa.h"
#include "base/mem.h"
#include "kernels/onednn.h"
#include "train/train_gemm.h"

#include <math.h>
#include <string.h>

enum { NT, NN, TN };

static fl_status multiply(fl_train_gemm *g, int form, int M, int N, int K, const float *A,
                          const float *B, float beta, float *C)
{
    switch (form) {
    case NT:
        return fl__train_gemm_nt(g, M, N, K, A, B, beta, C, NULL);
    case NN:
        return fl__train_gemm_nn(g, M, N, K, A, B, beta, C, NULL);
    default:
        return fl__train_gemm_tn(g, M, N, K, A, B, beta, C, NULL);
    }
}

static float rounded(float x, bool bf16)
{
    return bf16 ? fl__bf16_to_f32(fl__f32_to_bf16(x)) : x;
}

/* Every 7th element of C against the definition; float32 sums of K products of size 1 stay
 * within K * 2^-24 * sum|a b|, in practice far below. */
static void assert_product(int form, int M, int N, int K, const float *A, const float *B,
                           float beta, const float *before, const float *C, bool bf16)
{
    for (int64_t i = 0; i < (int64_t)M * N; i += 7) {
        const int64_t m = i / N, n = i % N;
        double sum = 0, size = 0;
        for (int64_t k = 0; k < K; k++) {
            const double a = rounded(form == TN ? A[k * M + m] : A[m * K + k], bf16);
            const double b = rounded(form == NT ? B[n * K + k] : B[k * N + n], bf16);
            sum += a * b;
            size += fabs(a * b);
        }
        const double old = beta != 0 ? beta * (double)before[i] : 0;
        assert_true(fabs(C[i] - (sum + old)) <= 2e-6 * (size + fabs(old)));
    }
}

static void check_one(int form, int M, int N, int K, float beta, bool bf16)
{
    const size_t size = (size_t)M * (size_t)N;
    float *A = fl_test_normal((size_t)M * (size_t)K, 1, "a");
    float *B = fl_test_normal((size_t)N * (size_t)K, 1, "b");
    float *before = fl_test_normal(size, 1, "c");
    float *C[2] = {fl__alloc(size, sizeof(float)), fl__alloc(size, sizeof(float))};
    for (int t = 0; t < 2; t++) {
        const fl_exec ex = {.isa = fl__isa_detect(), .n_threads = t + 1};
        fl_train_gemm *g = NULL;
        assert_int_equal(fl__train_gemm_new(&g, &ex, bf16, NULL), FL_OK);
        for (int call = 0; call < 2; call++) { /* a second call reuses everything */
            if (beta == 0) memset(C[t], 0xff, size * sizeof(float)); /* NaN: must not be read */
            else memcpy(C[t], before, size * sizeof(float));
            const uint64_t n_allocs = fl__mem_get().n_allocs;
            assert_int_equal(multiply(g, form, M, N, K, A, B, beta, C[t]), FL_OK);
            if (call) assert_true(fl__mem_get().n_allocs == n_allocs);
        }
        fl__train_gemm_free(&g);
        assert_null(g);
    }
    assert_product(form, M, N, K, A, B, beta, before, C[0], bf16);
    assert_memory_equal(C[0], C[1], size * sizeof(float));
    for (int t = 0; t < 2; t++) fl__free(&C[t]);
    fl__free(&A);
    fl__free(&B);
    fl__free(&before);
}

static void check_all(bool bf16)
{
    for (int form = NT; form <= TN; form++) {
        check_one(form, 1, 1, 1, 0, bf16);
        check_one(form, 5, 67, 33, 0, bf16);
        check_one(form, 131, 259, 70, 1, bf16);   /* tails of tiles */
        check_one(form, 130, 70, 1100, 0, bf16);  /* two parts, unequal */
        check_one(form, 65, 64, 2100, 0.5, bf16); /* four */
        check_one(form, 40, 37, 1024, 1, bf16);
        check_one(form, 40, 37, 32, -2, bf16);
        check_one(form, 256, 512, 20, 0, bf16); /* rows 1 KiB apart */
    }
}

static void f32_is_right(void **state)
{
    (void)state;
    check_all(false);
}

static void bf16_is_right(void **state)
{
    (void)state;
    check_all(true);
}

static void masked_isa_takes_the_float_path(void **state)
{
    (void)state;
    const fl_exec ex = {.isa = 0, .n_threads = 1};
    fl_train_gemm *g = NULL;
    assert_int_equal(fl__train_gemm_new(&g, &ex, true, NULL), FL_OK);
    assert_string_equal(fl__train_gemm_impl(g), "bf16 rounded, f32 products");
    fl__train_gemm_free(&g);
    assert_int_equal(fl__train_gemm_new(&g, &ex, false, NULL), FL_OK);
    assert_string_equal(fl__train_gemm_impl(g), "f32");
    fl__train_gemm_free(&g);
}

/* Every allocation of a product fails once; nothing leaks, the next call works. */
static void out_of_memory_is_reported(void **state)
{
    (void)state;
    enum { M = 40, N = 37, K = 1100 };
    float *A = fl_test_normal(M * K, 1, "a"), *B = fl_test_normal(N * K, 1, "b");
    static float C[M * N];
    const fl_exec ex = {.isa = fl__isa_detect(), .n_threads = 1};
    const size_t before = fl__mem_get().now_bytes;
    bool done = false;
    for (uint64_t n = 1; !done; n++) {
        fl_train_gemm *g = NULL;
        fl_err err;
        fl__mem_fail_after(n);
        fl_status st = fl__train_gemm_new(&g, &ex, true, &err);
        if (st == FL_OK) st = fl__train_gemm_nt(g, M, N, K, A, B, 0, C, &err);
        fl__mem_fail_after(0);
        done = st == FL_OK;
        if (!done) assert_int_equal(st, FL_E_NOMEM);
        if (g) assert_int_equal(fl__train_gemm_nt(g, M, N, K, A, B, 0, C, &err), FL_OK);
        fl__train_gemm_free(&g);
        assert_true(fl__mem_get().now_bytes == before);
        assert_true(n < 50);
    }
    fl__free(&A);
    fl__free(&B);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(f32_is_right),
    cmocka_unit_test(bf16_is_right),
    cmocka_unit_test(masked_isa_takes_the_float_path),
    cmocka_unit_test(out_of_memory_is_reported),
};

FL_TEST_MAIN(tests)
