/* test_train_kron.c - rows times a Kronecker product against plain loops in double, gradients
 * against differences of the same (the loss is linear in each number, so they are exact).
 * SPDX-License-Identifier: MIT */
#include "train/kron.h"

#include "base/isa.h"
#include "base/mem.h"
#include "base/rng.h"
#include "support/fl_test.h"
#include "support/random_data.h"

#include <math.h>
#include <string.h>

static const struct {
    int R, n1, n2;
} shapes[] = {
    {1, 1, 1},    {40, 5, 7},   {37, 16, 32}, {33, 32, 44}, {70, 8, 64}, {300, 1, 64},
    {19, 17, 33}, {5, 64, 64},  {3, 2, 128},  {9, 13, 1},   {17, 6, 9},  {260, 3, 4},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

typedef struct problem {
    int R, n1, n2;
    float *x, *dy, *P1, *P2; /* P1, P2 may be NULL */
} problem;

static problem make_problem(int i, int form)
{
    problem p = {.R = shapes[i].R, .n1 = shapes[i].n1, .n2 = shapes[i].n2};
    const size_t n = (size_t)(p.n1 * p.n2);
    p.x = fl_test_normal((size_t)p.R * n, 1, "x");
    p.dy = fl_test_normal((size_t)p.R * n, 1, "dy");
    if (form & 1) p.P1 = fl_test_normal((size_t)(p.n1 * p.n1), 1, "P1");
    if (form & 2) p.P2 = fl_test_normal((size_t)(p.n2 * p.n2), 1, "P2");
    return p;
}

static void problem_fini(problem *p)
{
    fl__free(&p->x);
    fl__free(&p->dy);
    fl__free(&p->P1);
    fl__free(&p->P2);
}

/* y[j, l] = sum P1[i, j] x[i, k] P2[k, l]; size: the sum of the terms' magnitudes. */
static double plain_y(const problem *p, const float *x, int j, int l, double *magnitude)
{
    double sum = 0;
    *magnitude = 0;
    for (int i = 0; i < p->n1; i++) {
        const double left = p->P1 ? (double)p->P1[i * p->n1 + j] : i == j;
        for (int k = 0; left != 0 && k < p->n2; k++) {
            const double right = p->P2 ? (double)p->P2[k * p->n2 + l] : k == l;
            const double term = left * (double)x[i * p->n2 + k] * right;
            sum += term;
            *magnitude += fabs(term);
        }
    }
    return sum;
}

/* sum dy Y with Y = P1^T (X P2), in double. */
static double plain_loss(const problem *p)
{
    enum { MOST = 64 * 64 };
    static double t[MOST];
    const int n1 = p->n1, n2 = p->n2;
    double loss = 0;
    for (int r = 0; r < p->R; r++) {
        const float *x = p->x + r * n1 * n2, *dy = p->dy + r * n1 * n2;
        for (int i = 0; i < n1 * n2; i++) {
            t[i] = p->P2 ? 0 : (double)x[i];
            for (int k = 0; p->P2 && k < n2; k++)
                t[i] += (double)x[i / n2 * n2 + k] * (double)p->P2[k * n2 + i % n2];
        }
        for (int i = 0; i < n1 * n2; i++)
            for (int j = 0; j < n1; j++) {
                const double left = p->P1 ? (double)p->P1[i / n2 * n1 + j] : i / n2 == j;
                loss += left * t[i] * (double)dy[j * n2 + i % n2];
            }
    }
    return loss;
}

/* Float32 sums of n1 and n2 terms: each addition may lose half a unit in the last place. */
static double bound(const problem *p, double magnitude)
{
    return (p->n1 + p->n2 + 4) * 0x1p-24 * magnitude;
}

static void expect_forward(const problem *p, const float *y)
{
    const int n = p->n1 * p->n2;
    for (int r = 0; r < p->R; r += p->R > 50 ? 7 : 1)
        for (int i = r % 3; i < n; i += 1 + n / 100) {
            double magnitude;
            const double want = plain_y(p, p->x + r * n, i / p->n2, i % p->n2, &magnitude);
            assert_true(fabs(want - (double)y[r * n + i]) <= bound(p, magnitude));
        }
}

static int isa_levels(uint32_t levels[3])
{
    const uint32_t have = fl__isa_detect(), wide = FL_ISA_AVX2 | FL_ISA_AVX512;
    int n = 0;
    levels[n++] = 0;
    if (have & FL_ISA_AVX2) levels[n++] = FL_ISA_AVX2;
    if ((have & wide) == wide) levels[n++] = wide;
    return n;
}

static fl_kron *make_kron(uint32_t isa, int n_threads)
{
    const fl_exec ex = {.isa = isa, .n_threads = n_threads};
    fl_kron *kron;
    assert_int_equal(fl__kron_new(&kron, &ex, NULL), FL_OK);
    return kron;
}

static void forward(void **state)
{
    uint32_t levels[3];
    (void)state;
    for (int l = isa_levels(levels) - 1; l >= 0; l--) {
        fl_kron *kron = make_kron(levels[l], 2);
        for (int i = 0; i < N_SHAPES; i++)
            for (int form = 0; form < 4; form++) {
                problem p = make_problem(i, form);
                const size_t n = (size_t)p.R * (size_t)(p.n1 * p.n2);
                float *y = fl__alloc(n, sizeof *y), *z = fl__alloc(n, sizeof *z);
                assert_int_equal(fl__kron_rows(kron, y, p.x, p.R, p.n1, p.n2, p.P1, p.P2, NULL),
                                 FL_OK);
                expect_forward(&p, y);
                memcpy(z, p.x, n * sizeof *z); /* in place: the same bytes */
                assert_int_equal(fl__kron_rows(kron, z, z, p.R, p.n1, p.n2, p.P1, p.P2, NULL),
                                 FL_OK);
                assert_memory_equal(y, z, n * sizeof *y);
                fl__free(&y);
                fl__free(&z);
                problem_fini(&p);
            }
        fl__kron_free(&kron);
    }
}

/* Compares some of the n gradients g of the numbers in v with differences of the loss. */
static void expect_gradient(const problem *p, float *v, const float *g, int n, fl_rng *rng)
{
    const int n_tries = n < 4 ? n : 4;
    for (int t = 0; v && t < n_tries; t++) {
        const int i = n < 4 ? t : (int)fl__rng_below(rng, (uint64_t)n);
        const float kept = v[i];
        v[i] = kept + 1;
        const double up = plain_loss(p), step_up = (double)v[i];
        v[i] = kept - 1;
        const double want = (up - plain_loss(p)) / (step_up - (double)v[i]);
        v[i] = kept;
        const double reach = sqrt((double)p->R * p->n1 * p->n2 * (p->n1 + p->n2));
        assert_true(fabs(want - (double)g[i]) <= 1e-5 * (fabs(want) + 0.1 * reach));
    }
}

static void gradients(void **state)
{
    fl_rng rng = fl__rng_init(1, 0, "which");
    uint32_t levels[3];
    (void)state;
    for (int l = isa_levels(levels) - 1; l >= 0; l--) {
        fl_kron *kron = make_kron(levels[l], 2);
        for (int i = 0; i < N_SHAPES; i++)
            for (int form = 0; form < 4; form++) {
                problem p = make_problem(i, form);
                const int n = p.R * p.n1 * p.n2, n1 = p.n1, n2 = p.n2;
                float *dx = fl__alloc((size_t)n, sizeof *dx);
                float *dP1 = fl__alloc((size_t)(n1 * n1), sizeof *dP1);
                float *dP2 = fl__alloc((size_t)(n2 * n2), sizeof *dP2);
                assert_int_equal(fl__kron_rows_grad(kron, dx, dP1, dP2, p.dy, p.x, p.R, n1, n2,
                                                    p.P1, p.P2, NULL), FL_OK);
                expect_gradient(&p, p.x, dx, n, &rng);
                expect_gradient(&p, p.P1, dP1, n1 * n1, &rng);
                expect_gradient(&p, p.P2, dP2, n2 * n2, &rng);
                float *in_place = fl__alloc((size_t)n, sizeof *in_place);
                memcpy(in_place, p.dy, (size_t)n * sizeof *dx);
                assert_int_equal(fl__kron_rows_grad(kron, in_place, NULL, NULL, in_place, p.x,
                                                    p.R, n1, n2, p.P1, p.P2, NULL), FL_OK);
                assert_memory_equal(dx, in_place, (size_t)n * sizeof *dx);
                fl__free(&in_place);
                fl__free(&dx);
                fl__free(&dP1);
                fl__free(&dP2);
                problem_fini(&p);
            }
        fl__kron_free(&kron);
    }
}

/* Without dx the same dP; without dP the same dx; a second step allocates nothing; R = 0. */
static void parts_on_request(void **state)
{
    problem p = make_problem(2, 3);
    const int n1 = p.n1, n2 = p.n2;
    float *dx[2], dP1[2][256], dP2[2][1024];
    fl_kron *kron = make_kron(fl__isa_detect(), 2);
    (void)state;
    for (int i = 0; i < 2; i++) {
        dx[i] = fl__alloc((size_t)(p.R * n1 * n2), sizeof(float));
        assert_int_equal(fl__kron_rows_grad(kron, i ? NULL : dx[0], dP1[i], dP2[i], p.dy, p.x,
                                            p.R, n1, n2, p.P1, p.P2, NULL), FL_OK);
    }
    assert_memory_equal(dP1[0], dP1[1], sizeof dP1[0]);
    assert_memory_equal(dP2[0], dP2[1], sizeof dP2[0]);
    const uint64_t n_allocs = fl__mem_get().n_allocs;
    assert_int_equal(fl__kron_rows_grad(kron, dx[1], NULL, NULL, p.dy, p.x, p.R, n1, n2, p.P1,
                                        p.P2, NULL), FL_OK);
    assert_memory_equal(dx[0], dx[1], (size_t)(p.R * n1 * n2) * sizeof(float));
    assert_int_equal(fl__kron_rows(kron, dx[1], p.x, p.R, n1, n2, p.P1, NULL, NULL), FL_OK);
    assert_int_equal(fl__mem_get().n_allocs, n_allocs);
    assert_int_equal(fl__kron_rows_grad(kron, NULL, dP1[0], dP2[0], p.dy, p.x, 0, n1, n2, p.P1,
                                        p.P2, NULL), FL_OK);
    for (int i = 0; i < 256; i++) assert_true(dP1[0][i] == 0 && dP2[0][i] == 0);
    for (int i = 0; i < 2; i++) fl__free(&dx[i]);
    fl__kron_free(&kron);
    fl__kron_free(&kron);
    problem_fini(&p);
}

/* The bytes do not depend on threads, a row's result not on its neighbours. */
static void any_number_of_threads(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i++) {
        problem p = make_problem(i, 3);
        const size_t n = (size_t)(p.n1 * p.n2), all = (size_t)p.R * n;
        const size_t n_out = 2 * all + (size_t)(p.n1 * p.n1 + p.n2 * p.n2);
        float *out[2];
        for (int t = 0; t < 2; t++) {
            fl_kron *kron = make_kron(fl__isa_detect(), 1 + 2 * t);
            float *dP1 = (out[t] = fl__alloc(n_out, sizeof(float))) + 2 * all;
            assert_int_equal(fl__kron_rows(kron, out[t], p.x, p.R, p.n1, p.n2, p.P1, p.P2,
                                           NULL), FL_OK);
            assert_int_equal(fl__kron_rows_grad(kron, out[t] + all, dP1, dP1 + p.n1 * p.n1,
                                                p.dy, p.x, p.R, p.n1, p.n2, p.P1, p.P2, NULL),
                             FL_OK);
            fl__kron_free(&kron);
        }
        assert_memory_equal(out[0], out[1], n_out * sizeof(float));
        fl_kron *kron = make_kron(fl__isa_detect(), 1);
        assert_int_equal(fl__kron_rows(kron, out[1], p.x + all - n, 1, p.n1, p.n2, p.P1, p.P2,
                                       NULL), FL_OK);
        assert_memory_equal(out[1], out[0] + all - n, n * sizeof(float));
        fl__kron_free(&kron);
        fl__free(&out[0]);
        fl__free(&out[1]);
        problem_fini(&p);
    }
}

static void survives_no_memory(void **state)
{
    const fl_exec ex = {.n_threads = 1};
    const float x[4] = {1, 2, 3, 4}, P[4] = {0, 1, 1, 0};
    float y[4];
    fl_kron *kron;
    (void)state;
    fl__mem_fail_after(1);
    assert_int_equal(fl__kron_new(&kron, &ex, NULL), FL_E_NOMEM);
    assert_null(kron);
    assert_int_equal(fl__kron_new(&kron, &ex, NULL), FL_OK);
    fl__mem_fail_after(1);
    assert_int_equal(fl__kron_rows(kron, y, x, 1, 2, 2, P, P, NULL), FL_E_NOMEM);
    assert_int_equal(fl__kron_rows(kron, y, x, 1, 2, 2, P, P, NULL), FL_OK);
    assert_true(y[0] == 4 && y[1] == 3 && y[2] == 2 && y[3] == 1);
    fl__kron_free(&kron);
    assert_int_equal(fl__mem_get().now_bytes, 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(forward),
    cmocka_unit_test(gradients),
    cmocka_unit_test(parts_on_request),
    cmocka_unit_test(any_number_of_threads),
    cmocka_unit_test(survives_no_memory),
};
FL_TEST_MAIN(tests)
