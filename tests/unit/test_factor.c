/* test_factor.c - factors of the transform: inverses, orthogonality, starts, and gradients
 * against central differences of a plain forward pass in double.
 * SPDX-License-Identifier: MIT */
#include "train/factor.h"

#include "base/mem.h"
#include "support/fl_test.h"

#include <math.h>
#include <string.h>

enum { MOST = 16 }; /* order of the factors whose gradients are checked, at most */

static const fl_exec one = {.n_threads = 1}, two = {.n_threads = 2};

static fl_factor make(fl_factor_kind kind, int n, fl_factor_start start, uint64_t seed)
{
    fl_factor f;
    fl_err err = {""};
    if (fl__factor_init(&f, &two, kind, n, start, fl__rng_init(seed, 3, "left"), &err))
        fail_msg("%s", err.text);
    return f;
}

/* Largest element of a^T b - I. */
static double off_identity(const float *a, const float *b, int n)
{
    double most = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            double sum = i == j ? -1 : 0;
            for (int k = 0; k < n; k++) sum += (double)a[k * n + i] * (double)b[k * n + j];
            most = fmax(most, fabs(sum));
        }
    return most;
}

static fl_status update(fl_factor *f, fl_err *err)
{
    fl_factor *const list[] = {NULL, f};
    return fl__factors_update(&two, list, 2, err);
}

static void starts_are_orthogonal(void **state)
{
    const int orders[] = {1, 2, 7, 16, 22, 64};
    (void)state;
    for (int kind = FL_FACTOR_FREE; kind <= FL_FACTOR_FIXED; kind++)
        for (int start = FL_START_IDENTITY; start <= FL_START_HADAMARD; start++)
            for (size_t i = 0; i < FL_COUNT(orders); i++) {
                const int n = orders[i];
                if (kind == FL_FACTOR_SVD && start != FL_START_IDENTITY &&
                    start != FL_START_CAYLEY)
                    continue;
                fl_factor f = make((fl_factor_kind)kind, n, (fl_factor_start)start, 5);
                assert_true(off_identity(f.p, f.p, n) < 1e-6);
                assert_true(off_identity(f.p, f.q, n) < 1e-6);
                for (int k = 0; start == FL_START_IDENTITY && k < n * n; k++)
                    assert_true(f.p[k] == (k % (n + 1) == 0));
                fl__factor_fini(&f);
                fl__factor_fini(&f);
            }
}

/* Away from the start: P^T Q = I, in all forms that learn. */
static void inverse_follows(void **state)
{
    (void)state;
    for (int kind = FL_FACTOR_FREE; kind <= FL_FACTOR_SVD; kind++) {
        fl_factor f = make((fl_factor_kind)kind, 44, FL_START_CAYLEY, 9);
        fl_rng rng = fl__rng_init(2, 0, "moved");
        for (size_t i = 0; i < f.n_params; i++)
            f.param[i] += (float)(0.05 * fl__rng_normal(&rng));
        assert_int_equal(update(&f, NULL), FL_OK);
        assert_true(off_identity(f.p, f.p, 44) > 0.01);
        assert_true(off_identity(f.p, f.q, 44) < 4e-6);
        for (int i = 0; i < 44 * 44; i++) assert_true(f.q[i] == (float)f.q_wide[i]);
        fl__factor_fini(&f);
    }
}

static void random_starts(void **state)
{
    double haar = 0, official = 0;
    (void)state;
    for (uint64_t seed = 0; seed < 4; seed++) {
        fl_factor a = make(FL_FACTOR_FREE, 64, FL_START_ORTHOGONAL, seed);
        fl_factor b = make(FL_FACTOR_SVD, 64, FL_START_CAYLEY, seed);
        for (int i = 0; i < 64; i++) {
            haar += (double)a.p[i * 65] / 256;
            official += (double)b.p[i * 65] / 256;
        }
        fl__factor_fini(&a);
        fl__factor_fini(&b);
    }
    assert_true(fabs(haar) < 0.05);                    /* uniform: no direction is preferred */
    assert_true(official > 0.38 && official < 0.47);   /* nearer the identity */
}

static void starts_are_keyed(void **state)
{
    (void)state;
    for (int start = FL_START_ORTHOGONAL; start <= FL_START_HADAMARD; start++) {
        fl_factor f[4];
        for (int i = 0; i < 4; i++)
            assert_int_equal(
                fl__factor_init(&f[i], i == 1 ? &one : &two, FL_FACTOR_FREE, 12,
                                (fl_factor_start)start,
                                fl__rng_init(i == 2, i == 3, "left"), NULL), FL_OK);
        const size_t n_bytes = 144 * sizeof(float);
        assert_memory_equal(f[0].p, f[1].p, n_bytes);
        assert_true(memcmp(f[0].p, f[2].p, n_bytes) != 0);
        assert_true(memcmp(f[0].p, f[3].p, n_bytes) != 0);
        for (int i = 0; i < 4; i++) fl__factor_fini(&f[i]);
    }
}

static void hadamard(void **state)
{
    fl_factor f = make(FL_FACTOR_FIXED, 16, FL_START_HADAMARD, 1);
    (void)state;
    for (int i = 0; i < 256; i++) assert_true(fabsf(f.p[i]) == 0.25f);
    assert_int_equal(f.n_params, 0);
    assert_int_equal(update(&f, NULL), FL_OK);
    fl__factor_fini(&f);
    /* 12 = 4 x 3: blocks of 3 are one orthogonal matrix but for signs */
    f = make(FL_FACTOR_FIXED, 12, FL_START_HADAMARD, 1);
    for (int i = 0; i < 12; i++)
        for (int j = 0; j < 12; j++)
            assert_float_equal(fabsf(f.p[i * 12 + j]), fabsf(f.p[i % 3 * 12 + j % 3]), 1e-7f);
    fl__factor_fini(&f);
}

/* A rotation by 2 atan(l / 2), counter-clockwise for a positive element below the diagonal. */
static void cayley_convention(void **state)
{
    fl_factor f = make(FL_FACTOR_SVD, 2, FL_START_IDENTITY, 1);
    const double angle = 2 * atan(0.35);
    (void)state;
    f.param[1] = 99; /* above the diagonal: unused */
    f.param[2] = 0.7f;
    assert_int_equal(update(&f, NULL), FL_OK);
    assert_float_equal(f.p[0], cos(angle), 1e-6);
    assert_float_equal(f.p[1], -sin(angle), 1e-6);
    assert_float_equal(f.p[2], sin(angle), 1e-6);
    f.param[2] = 0;
    f.param[6] = 0.7f; /* of V, transposed in P */
    f.param[8] = 2;
    assert_int_equal(update(&f, NULL), FL_OK);
    assert_float_equal(f.p[0], 2 * cos(angle), 1e-6);
    assert_float_equal(f.p[1], 2 * sin(angle), 1e-6);
    assert_float_equal(f.p[2], -sin(angle), 1e-6);
    fl__factor_fini(&f);
}

/* ---- gradients --------------------------------------------------------------------------- */

/* inv = a^-1 by Gauss-Jordan with row exchange. */
static void plain_inverse(double *inv, const double *a, int n)
{
    double m[MOST][2 * MOST];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < 2 * n; j++) m[i][j] = j < n ? a[i * n + j] : i == j - n;
    for (int c = 0; c < n; c++) {
        int top = c;
        for (int i = c + 1; i < n; i++) top = fabs(m[i][c]) > fabs(m[top][c]) ? i : top;
        for (int j = 0; j < 2 * n; j++) {
            const double swap = m[c][j];
            m[c][j] = m[top][j];
            m[top][j] = swap;
        }
        const double pivot = m[c][c];
        for (int j = 0; j < 2 * n; j++) m[c][j] /= pivot;
        for (int i = 0; i < n; i++) {
            const double factor = m[i][c];
            for (int j = 0; i != c && j < 2 * n; j++) m[i][j] -= factor * m[c][j];
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) inv[i * n + j] = m[i][j + n];
}

/* The Cayley map from its definition, (I - A/2)^-1 (I + A/2). */
static void plain_cayley(double *u, const double *l, int n)
{
    double minus[MOST * MOST] = {0}, plus[MOST * MOST] = {0}, inv[MOST * MOST];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            const double a = j < i ? l[i * n + j] : j > i ? -l[j * n + i] : 0;
            minus[i * n + j] = (i == j) - a / 2;
            plus[i * n + j] = (i == j) + a / 2;
        }
    plain_inverse(inv, minus, n);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            u[i * n + j] = 0;
            for (int k = 0; k < n; k++) u[i * n + j] += inv[i * n + k] * plus[k * n + j];
        }
}

/* sum dp P + dq P^-T at these parameters. */
static double loss_at(const fl_factor *f, const double *param)
{
    const int n = f->n;
    double p[MOST * MOST] = {0}, u[MOST * MOST], v[MOST * MOST], inv[MOST * MOST], sum = 0;
    const double *s = param + 2 * n * n;
    if (f->kind == FL_FACTOR_SVD) {
        plain_cayley(u, param, n);
        plain_cayley(v, param + n * n, n);
    }
    for (int i = 0; i < n * n; i++) {
        p[i] = f->kind == FL_FACTOR_SVD ? 0 : param[i];
        for (int k = 0; f->kind == FL_FACTOR_SVD && k < n; k++)
            p[i] += u[i / n * n + k] * s[k] * v[i % n * n + k];
    }
    plain_inverse(inv, p, n);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            sum += p[i * n + j] * (double)f->dp[i * n + j] +
                   inv[j * n + i] * (double)f->dq[i * n + j];
    return sum;
}

static void expect_gradient(fl_factor *f)
{
    double param[2 * MOST * MOST + MOST], norm = 0;
    const double h = 1e-6;
    fl_factor *const list[] = {f, NULL};
    fl_rng rng = fl__rng_init(7, f->n, "gradient");
    for (size_t i = 0; i < f->n_params; i++) {
        f->param[i] += (float)(0.1 * fl__rng_normal(&rng));
        param[i] = (double)f->param[i];
    }
    for (int i = 0; i < f->n * f->n; i++) {
        f->dp[i] = (float)fl__rng_normal(&rng);
        f->dq[i] = (float)fl__rng_normal(&rng);
    }
    assert_int_equal(update(f, NULL), FL_OK);
    fl__factors_grad(&two, list, 2);
    for (size_t i = 0; i < f->n_params; i++) norm = fmax(norm, fabs((double)f->grad[i]));
    for (size_t i = 0; i < f->n_params; i++) {
        const double kept = param[i];
        param[i] = kept + h;
        const double up = loss_at(f, param);
        param[i] = kept - h;
        const double want = (up - loss_at(f, param)) / (2 * h);
        param[i] = kept;
        assert_true(fabs(want - (double)f->grad[i]) <= 1e-6 * (1 + norm));
    }
}

static void gradients(void **state)
{
    const int orders[] = {1, 2, 5, 16};
    (void)state;
    for (int kind = FL_FACTOR_FREE; kind <= FL_FACTOR_SVD; kind++)
        for (size_t i = 0; i < FL_COUNT(orders); i++) {
            fl_factor f = make((fl_factor_kind)kind, orders[i], FL_START_CAYLEY, 11);
            expect_gradient(&f);
            fl__factor_fini(&f);
        }
}

static void any_number_of_threads(void **state)
{
    fl_factor f[2][5];
    (void)state;
    for (int t = 0; t < 2; t++) {
        const fl_exec ex = {.n_threads = 1 + 2 * t};
        fl_factor *list[5];
        for (int i = 0; i < 5; i++) {
            f[t][i] = make(i % 2 ? FL_FACTOR_SVD : FL_FACTOR_FREE, 20 + i, FL_START_CAYLEY, 1);
            for (int k = 0; k < f[t][i].n * f[t][i].n; k++) {
                f[t][i].dp[k] = (float)(k % 7);
                f[t][i].dq[k] = (float)(k % 5) - 2;
            }
            list[i] = &f[t][i];
        }
        const uint64_t n_allocs = fl__mem_get().n_allocs;
        assert_int_equal(fl__factors_update(&ex, list, 5, NULL), FL_OK);
        fl__factors_grad(&ex, list, 5);
        assert_int_equal(fl__mem_get().n_allocs, n_allocs);
    }
    for (int i = 0; i < 5; i++) {
        assert_memory_equal(f[0][i].q, f[1][i].q, (size_t)f[0][i].n * sizeof(float));
        assert_memory_equal(f[0][i].grad, f[1][i].grad, f[0][i].n_params * sizeof(float));
        fl__factor_fini(&f[0][i]);
        fl__factor_fini(&f[1][i]);
    }
}

/* ---- what is refused --------------------------------------------------------------------- */

static void singular(void **state)
{
    fl_err err = {""};
    fl_factor f = make(FL_FACTOR_FREE, 6, FL_START_ORTHOGONAL, 1);
    (void)state;
    memcpy(f.param + 6, f.param, 6 * sizeof(float)); /* two equal rows */
    assert_int_equal(update(&f, &err), FL_E_FAIL);
    assert_non_null(strstr(err.text, "factor 1 of order 6"));
    for (int i = 0; i < 6; i++) f.param[6 + i] *= 1 + 1e-7f * (float)i; /* nearly */
    assert_int_equal(update(&f, &err), FL_E_FAIL);
    f.param[3] = NAN;
    assert_int_equal(update(&f, &err), FL_E_FAIL);
    memset(f.param, 0, 36 * sizeof(float));
    assert_int_equal(update(&f, &err), FL_E_FAIL);
    for (int i = 0; i < 6; i++) f.param[i * 7] = 1; /* and recovers */
    assert_int_equal(update(&f, &err), FL_OK);
    fl__factor_fini(&f);

    f = make(FL_FACTOR_SVD, 6, FL_START_CAYLEY, 1);
    f.param[2 * 36 + 4] = 0;
    assert_int_equal(update(&f, &err), FL_E_FAIL);
    f.param[2 * 36 + 4] = 1;
    f.param[6] = INFINITY;
    assert_int_equal(update(&f, &err), FL_E_FAIL);
    fl__factor_fini(&f);
}

static void svd_starts(void **state)
{
    fl_factor f;
    (void)state;
    assert_int_equal(fl__factor_init(&f, &one, FL_FACTOR_SVD, 4, FL_START_HADAMARD,
                                     fl__rng_init(1, 1, "x"), NULL), FL_E_USAGE);
    assert_int_equal(fl__factor_init(&f, &one, FL_FACTOR_SVD, 4, FL_START_ORTHOGONAL,
                                     fl__rng_init(1, 1, "x"), NULL), FL_E_USAGE);
    fl__factor_fini(&f);
}

static void survives_no_memory(void **state)
{
    fl_factor f;
    (void)state;
    for (uint64_t n = 1; n <= 9; n++) {
        fl__mem_fail_after(n);
        assert_int_equal(fl__factor_init(&f, &one, FL_FACTOR_SVD, 4, FL_START_CAYLEY,
                                         fl__rng_init(1, 1, "x"), NULL), FL_E_NOMEM);
    }
    fl__mem_fail_after(0);
    assert_int_equal(fl__mem_get().now_bytes, 0);
}

static void pairs(void **state)
{
    const int want[][3] = {{4096, 64, 64},    {11008, 86, 128}, {13696, 107, 128},
                           {14336, 112, 128}, {512, 16, 32},    {1408, 32, 44},
                           {127, 1, 127},     {1, 1, 1},        {2, 1, 2},
                           {6, 2, 3},         {2147483647, 1, 2147483647}};
    (void)state;
    for (size_t i = 0; i < FL_COUNT(want); i++) {
        int n1, n2;
        fl__factor_pair(want[i][0], &n1, &n2);
        assert_int_equal(n1, want[i][1]);
        assert_int_equal(n2, want[i][2]);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(starts_are_orthogonal),
    cmocka_unit_test(inverse_follows),
    cmocka_unit_test(random_starts),
    cmocka_unit_test(starts_are_keyed),
    cmocka_unit_test(hadamard),
    cmocka_unit_test(cayley_convention),
    cmocka_unit_test(gradients),
    cmocka_unit_test(any_number_of_threads),
    cmocka_unit_test(singular),
    cmocka_unit_test(svd_starts),
    cmocka_unit_test(survives_no_memory),
    cmocka_unit_test(pairs),
};
FL_TEST_MAIN(tests)
