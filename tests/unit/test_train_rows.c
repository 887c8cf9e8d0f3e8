/* test_train_rows.c - norms, activations and rotary embedding: values and gradients against
 * plain loops in double, each table row, any number of threads.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/random_data.h"

#include "base/float16.h"
#include "base/isa.h"
#include "base/mem.h"
#include "base/status.h"
#include "train/train_activation.h"
#include "train/train_norm.h"
#include "train/train_rope.h"
#include "train/train_rows.h"

#include <math.h>
#include <string.h>

enum { R = 70, N = 37, MAX = R * N };

/* One problem: all arrays that any of the ops needs, and a loss sum(dy * y) in double whose
 * differences are the gradients. */
typedef struct problem {
    float x[MAX], u[MAX], dy[MAX], gain[N], bias[N];
    double eps;
} problem;

typedef double loss_fn(const problem *p);

static void problem_init(problem *p)
{
    float *const arrays[] = {p->x, p->u, p->dy, p->gain, p->bias};
    const size_t sizes[] = {MAX, MAX, MAX, N, N};
    for (size_t a = 0; a < FL_COUNT(arrays); a++) {
        float *v = fl_test_normal(sizes[a], 1.5, (const char *[]){"x", "u", "dy", "g", "b"}[a]);
        memcpy(arrays[a], v, sizes[a] * sizeof *v);
        fl__free(&v);
    }
    p->eps = 1e-5;
}

static double rms_loss(const problem *p)
{
    double loss = 0;
    for (int r = 0; r < R; r++) {
        const float *x = p->x + r * N, *dy = p->dy + r * N;
        double square = 0;
        for (int i = 0; i < N; i++) square += (double)x[i] * x[i];
        for (int i = 0; i < N; i++)
            loss += (double)dy[i] * x[i] * p->gain[i] / sqrt(square / N + p->eps);
    }
    return loss;
}

static double layer_loss(const problem *p)
{
    double loss = 0;
    for (int r = 0; r < R; r++) {
        const float *x = p->x + r * N, *dy = p->dy + r * N;
        double mean = 0, square = 0;
        for (int i = 0; i < N; i++) mean += (double)x[i] / N;
        for (int i = 0; i < N; i++) square += (x[i] - mean) * (x[i] - mean);
        for (int i = 0; i < N; i++)
            loss +=
                dy[i] * ((x[i] - mean) / sqrt(square / N + p->eps) * p->gain[i] + p->bias[i]);
    }
    return loss;
}

static double silu_mul_loss(const problem *p)
{
    double loss = 0;
    for (int i = 0; i < MAX; i++) loss += p->dy[i] * (p->x[i] / (1 + exp(-p->x[i])) * p->u[i]);
    return loss;
}

static double relu_loss(const problem *p)
{
    double loss = 0;
    for (int i = 0; i < MAX; i++) loss += p->dy[i] * fmax(p->x[i], 0);
    return loss;
}

/* Central difference of loss by *at. Steps of 2^-10 or so, taken as the floats around *at. */
static double slope(loss_fn *loss, const problem *p, float *at)
{
    const float keep = *at, up = keep + 1e-3f, down = keep - 1e-3f;
    *at = up;
    const double above = loss(p);
    *at = down;
    const double below = loss(p);
    *at = keep;
    return (above - below) / ((double)up - (double)down);
}

/* n values at x of p have the gradient got; relative to the largest. */
static void assert_gradient(loss_fn *loss, const problem *p, float *x, const float *got, int n)
{
    double most = 0, worst = 0;
    const int step = n > 200 ? 13 : 1; /* not every element of the large ones */
    for (int i = 0; i < n; i += step) {
        const double want = slope(loss, p, x + i);
        most = fmax(most, fabs(want));
        worst = fmax(worst, fabs(want - got[i]));
    }
    assert_true(most > 0);
    assert_true(worst <= 1e-4 * most);
}

static double weighted(const float *dy, const float *y, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)dy[i] * y[i];
    return sum;
}

/* Calls fn for each row of the table that this machine can run. */
static void each_isa(void (*fn)(const fl_exec *ex, problem *p))
{
    static problem p;
    for (int i = 0; i < fl__n_train_rows; i++) {
        const uint32_t isa = fl__train_rows[i]->isa;
        if (isa & ~fl__isa_detect()) continue;
        problem_init(&p);
        fn(&(fl_exec){.isa = isa, .n_threads = 2}, &p);
    }
}

static void rms_norm_checks(const fl_exec *ex, problem *p)
{
    static float y[MAX], dx[MAX], dgain[N], inv[R];
    fl__rms_norm_rows(ex, y, inv, p->x, p->gain, R, N, p->eps);
    const double loss = rms_loss(p);
    assert_true(fabs(weighted(p->dy, y, MAX) - loss) < 1e-4 * fabs(loss));
    fl__rms_norm_grad(ex, dx, dgain, p->dy, p->x, p->gain, inv, R, N);
    assert_gradient(rms_loss, p, p->x, dx, MAX);
    assert_gradient(rms_loss, p, p->gain, dgain, N);

    static float in_place[MAX];
    memcpy(in_place, p->dy, sizeof in_place);
    fl__rms_norm_grad(ex, in_place, NULL, in_place, p->x, p->gain, inv, R, N);
    assert_memory_equal(in_place, dx, sizeof dx);
}

static void rms_norm_is_right(void **state)
{
    (void)state;
    each_isa(rms_norm_checks);
}

static void layer_norm_checks(const fl_exec *ex, problem *p)
{
    static float y[MAX], dx[MAX], dgain[N], dbias[N], mean[R], inv[R];
    fl__layer_norm_rows(ex, y, mean, inv, p->x, p->gain, p->bias, R, N, p->eps);
    const double loss = layer_loss(p);
    assert_true(fabs(weighted(p->dy, y, MAX) - loss) < 1e-4 * fabs(loss));
    fl__layer_norm_grad(ex, dx, dgain, dbias, p->dy, p->x, p->gain, mean, inv, R, N);
    assert_gradient(layer_loss, p, p->x, dx, MAX);
    assert_gradient(layer_loss, p, p->gain, dgain, N);
    assert_gradient(layer_loss, p, p->bias, dbias, N);

    static float in_place[MAX];
    memcpy(in_place, p->dy, sizeof in_place);
    fl__layer_norm_grad(ex, in_place, NULL, NULL, in_place, p->x, p->gain, mean, inv, R, N);
    assert_memory_equal(in_place, dx, sizeof dx);
}

static void layer_norm_is_right(void **state)
{
    (void)state;
    each_isa(layer_norm_checks);
}

static void silu_mul_checks(const fl_exec *ex, problem *p)
{
    static float y[MAX], dgate[MAX], dup[MAX];
    fl__silu_mul_forward(ex, y, p->x, p->u, MAX);
    for (int i = 0; i < MAX; i++) {
        const double want = p->x[i] / (1 + exp(-p->x[i])) * p->u[i];
        assert_true(fabs(y[i] - want) <= 2e-6 * fabs(want));
    }
    fl__silu_mul_grad(ex, dgate, dup, p->dy, p->x, p->u, MAX);
    assert_gradient(silu_mul_loss, p, p->x, dgate, MAX);
    assert_gradient(silu_mul_loss, p, p->u, dup, MAX);
}

static void silu_mul_is_right(void **state)
{
    (void)state;
    each_isa(silu_mul_checks);
}

static void silu_of_large_numbers_is_finite(void **state)
{
    (void)state;
    float x[] = {1e4f, -1e4f, 90, -90, 0, 1e-30f, -0.0f}, one[FL_COUNT(x)], y[FL_COUNT(x)],
          dup[FL_COUNT(x)];
    const int n = (int)FL_COUNT(x);
    const fl_exec ex = {.isa = fl__isa_detect(), .n_threads = 1};
    for (int i = 0; i < n; i++) one[i] = 1;
    fl__silu_mul_forward(&ex, y, x, one, n);
    assert_true(y[0] == 1e4f && fabsf(y[1]) < 1e-30f && y[2] == 90 && y[4] == 0);
    fl__silu_mul_grad(&ex, y, dup, one, x, one, n);
    assert_true(y[0] == 1 && fabsf(y[1]) < 1e-30f && y[4] == 0.5f && dup[0] == 1e4f);
}

static void relu_checks(const fl_exec *ex, problem *p)
{
    static float y[MAX], dx[MAX], again[MAX];
    for (int i = 0; i < MAX; i += 13) /* no corner inside a difference */
        if (fabsf(p->x[i]) < 0.01f) p->x[i] = 0.5f;
    fl__relu_forward(ex, y, p->x, MAX);
    for (int i = 0; i < MAX; i++) assert_true(y[i] == (p->x[i] > 0 ? p->x[i] : 0));
    fl__relu_grad(ex, dx, p->dy, p->x, MAX);
    assert_gradient(relu_loss, p, p->x, dx, MAX);
    fl__relu_grad(ex, again, p->dy, y, MAX);
    assert_memory_equal(dx, again, sizeof dx);
    fl__add_forward(ex, again, p->x, p->u, MAX);
    for (int i = 0; i < MAX; i++) assert_true(again[i] == p->x[i] + p->u[i]);
}

/* Sums and quotients of each row of the table, tails included, nothing beyond touched. */
static void element_checks(const fl_exec *ex, problem *p)
{
    const fl_train_rows *rows = fl__train_rows_select(ex->isa);
    float y[MAX + 1];
    for (int n = 1; n < MAX; n += 5) {
        memcpy(y, p->dy, MAX * sizeof *y);
        y[n] = 7;
        rows->add_product(y, p->x, p->u, n);
        for (int i = 0; i < n; i++) {
            const double a = (double)p->x[i] * (double)p->u[i], b = (double)p->dy[i];
            assert_true(fabs((double)y[i] - (a + b)) <= 0x1p-22 * (fabs(a) + fabs(b)));
        }
        rows->divide(y, p->x, 3, p->u, n);
        for (int i = 0; i < n; i++) {
            const double want = 3 * (double)p->x[i] / (double)p->u[i];
            assert_true(fabs((double)y[i] - want) <= 0x1p-22 * fabs(want));
        }
        assert_true(y[n] == 7);
    }
}

static void elements_are_right(void **state)
{
    (void)state;
    each_isa(element_checks);
}

static void relu_is_right(void **state)
{
    (void)state;
    each_isa(relu_checks);
}

enum { HEADS = 2, D = 18, T = 7, WIDTH = HEADS * D };

static void rope_checks(const fl_exec *ex, problem *p)
{
    static float cos_table[T * D / 2], sin_table[T * D / 2], y[R * WIDTH];
    for (int t = 0; t < T; t++)
        for (int i = 0; i < D / 2; i++) {
            cos_table[t * D / 2 + i] = (float)cos(t * pow(0.5, i));
            sin_table[t * D / 2 + i] = (float)sin(t * pow(0.5, i));
        }
    memcpy(y, p->x, sizeof y);
    fl__rope_rows(ex, y, cos_table, sin_table, R, T, HEADS, D);
    for (int r = 0; r < R; r++)
        for (int h = 0; h < HEADS; h++)
            for (int i = 0; i < D / 2; i++) {
                const int a = r * WIDTH + h * D + i, b = a + D / 2;
                const double c = cos(r % T * pow(0.5, i)), s = sin(r % T * pow(0.5, i));
                assert_true(fabs(y[a] - (p->x[a] * c - p->x[b] * s)) < 2e-6);
                assert_true(fabs(y[b] - (p->x[b] * c + p->x[a] * s)) < 2e-6);
            }
    /* <dy, rope(x)> = <rope_grad(dy), x> */
    const double forward = weighted(p->dy, y, R * WIDTH);
    fl__rope_grad_rows(ex, p->dy, cos_table, sin_table, R, T, HEADS, D);
    assert_true(fabs(weighted(p->dy, p->x, R * WIDTH) - forward) < 1e-4);
}

static void rope_is_right(void **state)
{
    (void)state;
    each_isa(rope_checks);
}

static void threads_change_nothing(void **state)
{
    (void)state;
    static problem p;
    static float y[2][MAX], dx[2][MAX], dgain[2][N], dbias[2][N], mean[R], inv[R];
    problem_init(&p);
    for (int t = 0; t < 2; t++) {
        const fl_exec ex = {.isa = fl__isa_detect(), .n_threads = t + 1};
        fl__layer_norm_rows(&ex, y[t], mean, inv, p.x, p.gain, p.bias, R, N, p.eps);
        fl__layer_norm_grad(&ex, dx[t], dgain[t], dbias[t], p.dy, p.x, p.gain, mean, inv, R, N);
    }
    assert_memory_equal(y[0], y[1], sizeof y[0]);
    assert_memory_equal(dx[0], dx[1], sizeof dx[0]);
    assert_memory_equal(dgain[0], dgain[1], sizeof dgain[0]);
    assert_memory_equal(dbias[0], dbias[1], sizeof dbias[0]);
}

/* pack_a and pack_b of each row against their definition. */
static void packing_checks(const fl_exec *ex, problem *p)
{
    enum { K = 41, K32 = 64, COLUMNS = 61, LD = 60 };
    static uint16_t to[COLUMNS * K32 > 64 * K32 ? COLUMNS * K32 : 64 * K32];
    const fl_train_rows *rows = fl__train_rows_select(ex->isa);
    p->x[3] = NAN;
    for (int transposed = 0; transposed < 2; transposed++) {
        const int64_t by_row = transposed ? 1 : K, by_k = transposed ? LD : 1;
        memset(to, 0xff, sizeof to);
        if (transposed) rows->pack_a_transposed(to, K32, p->x, by_k, K - 4, K);
        else rows->pack_a(to, p->x, by_row, COLUMNS, K);
        for (int m = 0; m < (transposed ? K - 4 : COLUMNS); m++)
            for (int k = 0; k < K32; k++) {
                const uint16_t want = k < K ? fl__f32_to_bf16(p->x[m * by_row + k * by_k]) : 0;
                assert_int_equal(to[m * K32 + k], want);
            }
        memset(to, 0xff, sizeof to);
        if (transposed) rows->pack_b_transposed(to, p->x, by_k, K - 4, K);
        else rows->pack_b(to, p->x, by_row, COLUMNS, K);
        for (int n = 0; n < 64; n++)
            for (int k = 0; k < K32; k++) {
                const int exists = k < K && n < (transposed ? K - 4 : COLUMNS);
                const uint16_t want = exists ? fl__f32_to_bf16(p->x[n * by_row + k * by_k]) : 0;
                assert_int_equal(to[(k / 2 * 64 + n) * 2 + k % 2], want);
            }
    }
}

static void packing_is_right(void **state)
{
    (void)state;
    each_isa(packing_checks);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(rms_norm_is_right),      cmocka_unit_test(layer_norm_is_right),
    cmocka_unit_test(silu_mul_is_right),      cmocka_unit_test(silu_of_large_numbers_is_finite),
    cmocka_unit_test(elements_are_right),
    cmocka_unit_test(relu_is_right),          cmocka_unit_test(rope_is_right),
    cmocka_unit_test(threads_change_nothing), cmocka_unit_test(packing_is_right),
};

FL_TEST_MAIN(tests)
