/* test_fake_quant.c - codes against the formulas written out, gradients against central
 * differences in double of a forward pass whose roundings are u + const and whose clamps are
 * decided once: there the straight-through gradient is the true one.
 * SPDX-License-Identifier: MIT */
#include "train/fake_quant.h"

#include "base/isa.h"
#include "base/mem.h"
#include "base/status.h"
#include "support/fl_test.h"
#include "support/random_data.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { R = 6, N = 53, MANY = 700 };

static const fl_exec two = {.n_threads = 2};

/* Instruction sets to try: all levels that this machine has. */
static int isa_levels(uint32_t levels[3])
{
    const uint32_t have = fl__isa_detect(), wide = FL_ISA_AVX2 | FL_ISA_AVX512;
    int n = 0;
    levels[n++] = 0;
    if (have & FL_ISA_AVX2) levels[n++] = FL_ISA_AVX2;
    if ((have & wide) == wide) levels[n++] = wide;
    return n;
}

/* Rows with different shapes: both signs, all positive, all negative, a large outlier. */
static float *make_rows(const char *purpose)
{
    float *x = fl_test_normal(R * N, 1, purpose);
    for (int i = 0; i < N; i++) {
        x[1 * N + i] = fabsf(x[1 * N + i]) + 0.01f;
        x[2 * N + i] = -fabsf(x[2 * N + i]) - 0.01f;
        x[3 * N + i] *= 1e-3f;
    }
    x[4 * N + 7] = 30;
    x[5 * N + N - 1] = -11;
    return x;
}

/* Nearest float16 of the compiler, by its own conversion. */
static float f16(float x)
{
    if (x > 65519.9f) return INFINITY;
    int e;
    (void)frexpf(x, &e);
    const float unit = ldexpf(1, FL_MAX(e - 11, -24));
    return rintf(x / unit) * unit;
}

/* The formulas as the header has them. */
static void plain_row(float *x_hat, int8_t *codes, float *scale, float *zero, const float *x,
                      int n, const fl_fake_quant *q)
{
    float most = 0, least = 0;
    for (int i = 0; i < n; i++) {
        if (x[i] > most) most = x[i];
        if (x[i] < least) least = x[i];
    }
    const float hi = q->clip_max * most, lo = q->clip_min * least;
    const int top = (1 << (q->asymmetric ? q->bits : q->bits - 1)) - 1;
    float s = (q->asymmetric ? hi - lo : fmaxf(hi, -lo)) / (float)top;
    if (q->f16_scale) s = f16(s);
    if (!(s >= FLT_MIN) || !isfinite(s)) s = 1;
    const float inv = 1.0f / s;
    float z = q->asymmetric ? rintf(-lo * inv) : 0;
    if (z > (float)top) z = (float)top;
    for (int i = 0; i < n; i++) {
        const float least_code = q->asymmetric ? 0 : (float)(-top - 1);
        float code = rintf(x[i] * inv) + z;
        code = code > least_code ? code : least_code;
        code = code < (float)top ? code : (float)top;
        x_hat[i] = (code - z) * s;
        codes[i] = (int8_t)((int)code - (q->asymmetric && q->bits == 8 ? 128 : 0));
    }
    *scale = s;
    *zero = z;
}

static void expect_plain(const float *x, int rows, int n, const fl_fake_quant *q)
{
    float *want = fl__alloc((size_t)n, sizeof *want);
    float *got = fl__alloc((size_t)rows * (size_t)n, sizeof *got), want_scale, want_zero;
    float *scale = fl__alloc((size_t)rows, sizeof *scale);
    float *zero = fl__alloc((size_t)rows, sizeof *zero);
    int8_t *want_codes = fl__alloc((size_t)n, 1), *codes = fl__alloc((size_t)(rows * n), 1);
    uint32_t levels[3];
    for (int l = isa_levels(levels) - 1; l >= 0; l--) {
        const fl_exec ex = {.isa = levels[l], .n_threads = 2};
        fl__fake_quant_rows(&ex, q, got, codes, scale, zero, x, rows, n);
        for (int r = 0; r < rows; r++) {
            plain_row(want, want_codes, &want_scale, &want_zero, x + r * n, n, q);
            assert_true(scale[r] == want_scale && zero[r] == want_zero);
            assert_memory_equal(codes + r * n, want_codes, (size_t)n);
            for (int i = 0; i < n; i++) assert_true(got[r * n + i] == want[i]);
        }
        memset(codes, 99, (size_t)(rows * n)); /* and without one or the other */
        fl__fake_quant_rows(&ex, q, NULL, codes, scale, zero, x, rows, n);
        assert_memory_equal(codes + (rows - 1) * n, want_codes, (size_t)n);
        memcpy(got, x, (size_t)(rows * n) * sizeof *x);
        fl__fake_quant_rows(&ex, q, got, NULL, scale, q->asymmetric ? zero : NULL, got, rows,
                            n);
        for (int i = 0; i < n; i++) assert_true(got[(rows - 1) * n + i] == want[i]);
    }
    fl__free(&want);
    fl__free(&got);
    fl__free(&scale);
    fl__free(&zero);
    fl__free(&want_codes);
    fl__free(&codes);
}

static void codes_follow_formulas(void **state)
{
    float *x = make_rows("x");
    (void)state;
    for (int bits = 2; bits <= 8; bits++)
        for (int form = 0; form < 4; form++) {
            const fl_fake_quant q = {.bits = bits,
                                     .asymmetric = form & 1,
                                     .f16_scale = form >> 1,
                                     .clip_max = bits == 3 ? 1 : 0.83f,
                                     .clip_min = bits == 3 ? 1 : 0.71f};
            expect_plain(x, R, N, &q);
            expect_plain(x, R, 1, &q);
            expect_plain(x, R, 16, &q);
        }
    fl__free(&x);
}

static void odd_rows(void **state)
{
    float x[11][9] = {{0}};
    (void)state;
    for (int i = 0; i < 9; i++) {
        x[1][i] = 1e-41f * (float)(i - 4);
        x[2][i] = 3.0e38f * (float)(i % 3 - 1);
        x[3][i] = i == 4 ? 0.5f : 0;
        x[4][i] = 7;
        x[5][i] = -7;
        x[6][i] = i == 2 ? NAN : (float)i;
        x[7][i] = 2e-7f * (float)(i - 6); /* scale is a subnormal float16 */
        x[8][i] = 70000.0f * (float)(i - 3);
        x[9][i] = i == 1 ? INFINITY : (float)i;
        x[10][i] = i == 1 ? 509537.8f : 1; /* 4 bits: a scale just under float16's end */
    }
    for (int bits = 2; bits <= 8; bits += 2)
        for (int form = 0; form < 4; form++) {
            const fl_fake_quant q = {.bits = bits,
                                     .asymmetric = form & 1,
                                     .f16_scale = form >> 1,
                                     .clip_max = 0.9f,
                                     .clip_min = 1};
            for (int r = 0; r < 11; r++) expect_plain(x[r], 1, 9, &q);
        }
}

/* ---- gradients --------------------------------------------------------------------------- */

/* What rounding and clamping decided at the point x0, and the loss sum g x^ near it. */
typedef struct smooth {
    double shift[N]; /* rne(u) - u */
    int clamped[N];  /* -1, 0, 1 */
    double zero_shift, scale_shift;
    bool constant_scale;
} smooth;

static double extreme(const double *x, int n, int sign)
{
    double best = 0;
    for (int i = 0; i < n; i++) best = x[i] * sign > best ? x[i] * sign : best;
    return best * sign;
}

static double raw_scale(const double *x, int n, const fl_fake_quant *q, const double clip[2])
{
    const double hi = clip[0] * extreme(x, n, 1), lo = clip[1] * extreme(x, n, -1);
    const int top = (1 << (q->asymmetric ? q->bits : q->bits - 1)) - 1;
    return (q->asymmetric ? hi - lo : fmax(hi, -lo)) / top;
}

static double smooth_loss(const double *x, const float *g, int n, const fl_fake_quant *q,
                          const double clip[2], const smooth *m)
{
    const int top = (1 << (q->asymmetric ? q->bits : q->bits - 1)) - 1;
    const double s = raw_scale(x, n, q, clip) + m->scale_shift;
    const double z = q->asymmetric ? -clip[1] * extreme(x, n, -1) / s + m->zero_shift : 0;
    double loss = 0;
    for (int i = 0; i < n; i++) {
        double code = x[i] / s + m->shift[i] + z;
        if (m->clamped[i] > 0) code = top;
        if (m->clamped[i] < 0) code = q->asymmetric ? 0 : -top - 1;
        loss += (double)g[i] * (code - z) * s;
    }
    return loss;
}

static smooth decide(const float *x, int n, const fl_fake_quant *q)
{
    const int top = (1 << (q->asymmetric ? q->bits : q->bits - 1)) - 1;
    const double clip[2] = {(double)q->clip_max, (double)q->clip_min};
    float x_hat[N], s, z;
    int8_t codes[N];
    double wide[N];
    smooth m = {.constant_scale = false};
    plain_row(x_hat, codes, &s, &z, x, n, q);
    for (int i = 0; i < n; i++) wide[i] = (double)x[i];
    m.scale_shift = (double)s - raw_scale(wide, n, q, clip);
    m.zero_shift = (double)z + clip[1] * extreme(wide, n, -1) / (double)s;
    for (int i = 0; i < n; i++) {
        const double code = rint((double)(x[i] * (1.0f / s))) + (double)z;
        m.shift[i] = rint((double)(x[i] * (1.0f / s))) - wide[i] / (double)s;
        m.clamped[i] = code > top ? 1 : code < (q->asymmetric ? 0 : -top - 1) ? -1 : 0;
    }
    return m;
}

static void expect_row_gradient(const fl_exec *ex, const float *x, const float *g, int n,
                                const fl_fake_quant *q)
{
    const double h = 1e-6, clip[2] = {(double)q->clip_max, (double)q->clip_min};
    const smooth m = decide(x, n, q);
    double wide[N], dclip[2], norm = 0;
    float dx[N];
    for (int i = 0; i < n; i++) wide[i] = (double)x[i];
    fl__fake_quant_rows_grad(ex, q, dx, dclip, g, x, 1, n);
    for (int i = 0; i < n; i++) norm = fmax(norm, fabs((double)dx[i]));
    const double reach = fmax(extreme(wide, n, 1), -extreme(wide, n, -1)), step = h * reach;
    for (int i = 0; i < n; i++) {
        const double kept = wide[i];
        wide[i] = kept + step;
        const double up = smooth_loss(wide, g, n, q, clip, &m);
        wide[i] = kept - step;
        const double down = smooth_loss(wide, g, n, q, clip, &m);
        wide[i] = kept;
        assert_true(fabs((up - down) / (2 * step) - (double)dx[i]) <= 1e-5 * (norm + 1));
    }
    for (int c = 0; c < 2; c++) {
        double at[2] = {clip[0], clip[1]};
        at[c] = clip[c] + h;
        const double up = smooth_loss(wide, g, n, q, at, &m);
        at[c] = clip[c] - h;
        const double down = smooth_loss(wide, g, n, q, at, &m), want = (up - down) / (2 * h);
        assert_true(fabs(want - dclip[c]) <= 1e-5 * (fabs(want) + reach));
    }
}

static void row_gradients(void **state)
{
    float *x = make_rows("x"), *g = fl_test_normal(R * N, 1, "g");
    uint32_t levels[3];
    (void)state;
    for (int l = isa_levels(levels) - 1; l >= 0; l--)
        for (int bits = 2; bits <= 8; bits++)
            for (int form = 0; form < 8; form++)
                for (int r = 0; r < R; r++) {
                    const fl_exec ex = {.isa = levels[l], .n_threads = 1};
                    const fl_fake_quant q = {.bits = bits,
                                             .asymmetric = form & 1,
                                             .f16_scale = form >> 1 & 1,
                                             .clip_max = form & 4 ? 0.55f : 0.98f,
                                             .clip_min = form & 4 ? 0.71f : 0.97f};
                    expect_row_gradient(&ex, x + r * N, g + r * N, N - r, &q);
                }
    fl__free(&x);
    fl__free(&g);
}

/* A scale that is a replacement does not move: g passes through but for what is clamped. */
static void constant_scale(void **state)
{
    const float x[2][5] = {{0, 0, 0, 0, 0}, {1e-42f, 0, -1e-42f, NAN, 0}};
    const float g[5] = {1, 2, 3, 4, 5};
    (void)state;
    for (int form = 0; form < 4; form++) {
        const fl_fake_quant q = {4, form & 1, form >> 1, 0.5f, 0.5f};
        for (int r = 0; r < 2; r++) {
            float dx[5];
            double dclip[2];
            fl__fake_quant_rows_grad(&two, &q, dx, dclip, g, x[r], 1, 5);
            assert_true(dclip[0] == 0 && dclip[1] == 0);
            for (int i = 0; i < 5; i++) assert_true(dx[i] == (isnan(x[r][i]) ? 0 : g[i]));
        }
    }
}

static void no_quantisation(void **state)
{
    const fl_fake_quant q = {.bits = 16, .clip_max = 0.5f, .clip_min = 0.5f};
    float *x = make_rows("x"), y[R * N], scale[R], zero[R], dc[R];
    double dclip[2] = {3, 3};
    (void)state;
    fl__fake_quant_rows(&two, &q, y, NULL, scale, zero, x, R, N);
    assert_memory_equal(x, y, sizeof y);
    assert_true(scale[R - 1] == 1 && zero[R - 1] == 0);
    memset(y, 0, sizeof y);
    fl__fake_quant_rows_grad(&two, &q, y, dclip, x, y, R, N);
    assert_memory_equal(x, y, sizeof y);
    assert_true(dclip[0] == 0 && dclip[1] == 0);
    memset(y, 0, sizeof y);
    fl__fake_quant_weight(&two, 16, y, NULL, scale, x, NULL, NULL, R, N);
    assert_memory_equal(x, y, sizeof y);
    memset(y, 0, sizeof y);
    fl__fake_quant_weight_grad(&two, 16, y, dc, NULL, x, y, NULL, NULL, R, N);
    assert_memory_equal(x, y, sizeof y);
    assert_true(dc[R - 1] == 0);
    fl__free(&x);
}

/* ---- weights ----------------------------------------------------------------------------- */

/* Loss of one weight row near the point where shift, inside and the branch of s were fixed. */
static double weight_loss(const double *w, const float *g, int n, int bits,
                          const double clip[2], const double *shift, const int *clamped,
                          double fixed_scale)
{
    const double hi = clip[0] * extreme(w, n, 1), lo = clip[1] * extreme(w, n, -1);
    const double s = fixed_scale > 0 ? fixed_scale : fmax(hi, -lo) / ((1 << (bits - 1)) - 1);
    double loss = 0;
    for (int i = 0; i < n; i++) {
        const double v = clamped[i] > 0 ? hi : clamped[i] < 0 ? lo : w[i];
        loss += (double)g[i] * (v / s + shift[i]) * s;
    }
    return loss;
}

typedef struct weight_row {
    float w_hat[N], scale, dw[N], dclip[2];
    int8_t codes[N];
} weight_row;

static void expect_weight_codes(const weight_row *got, const float *w, int n, int bits,
                                const float clip[2])
{
    const float top = (float)((1 << (bits - 1)) - 1);
    float most = 0, least = 0;
    for (int i = 0; i < n; i++) {
        most = fmaxf(most, w[i]);
        least = fminf(least, w[i]);
    }
    const float hi = clip[0] * most, lo = clip[1] * least;
    const float s = hi == 0 && lo == 0 ? 1 : fmaxf(fmaxf(hi, -lo), 1e-5f) / top;
    assert_true(got->scale == s);
    for (int i = 0; i < n; i++) {
        const float c = rintf(fminf(fmaxf(w[i], lo), hi) * (1.0f / s));
        assert_int_equal(got->codes[i], (int)fminf(fmaxf(c, -top - 1), top));
        assert_true(got->w_hat[i] == (float)got->codes[i] * s);
    }
}

static void expect_weight_gradient(const weight_row *got, const float *w, const float *g, int n,
                                   int bits, const float clips[2])
{
    const double clip[2] = {(double)clips[0], (double)clips[1]}, h = 1e-6;
    double wide[N], shift[N], norm = 0;
    int clamped[N];
    for (int i = 0; i < n; i++) wide[i] = (double)w[i];
    const double hi = clip[0] * extreme(wide, n, 1), lo = clip[1] * extreme(wide, n, -1);
    const double fixed = fmax(hi, -lo) < 1e-5 ? (double)got->scale : 0;
    const double s = fixed > 0 ? fixed : fmax(hi, -lo) / ((1 << (bits - 1)) - 1);
    for (int i = 0; i < n; i++) {
        clamped[i] = w[i] > (float)hi ? 1 : w[i] < (float)lo ? -1 : 0;
        shift[i] = got->codes[i] - fmin(fmax(wide[i], lo), hi) / s;
        norm = fmax(norm, fabs((double)got->dw[i]));
    }
    for (int i = 0; i < n; i++) {
        const double step = h * (hi - lo), kept = wide[i];
        wide[i] = kept + step;
        const double up = weight_loss(wide, g, n, bits, clip, shift, clamped, fixed);
        wide[i] = kept - step;
        const double down = weight_loss(wide, g, n, bits, clip, shift, clamped, fixed);
        wide[i] = kept;
        assert_true(fabs((up - down) / (2 * step) - (double)got->dw[i]) <= 1e-5 * (norm + 1));
    }
    for (int c = 0; c < 2; c++) {
        double at[2] = {clip[0], clip[1]};
        at[c] = clip[c] + h;
        const double up = weight_loss(wide, g, n, bits, at, shift, clamped, fixed);
        at[c] = clip[c] - h;
        const double down = weight_loss(wide, g, n, bits, at, shift, clamped, fixed);
        const double want = (up - down) / (2 * h);
        assert_true(fabs(want - (double)got->dclip[c]) <= 1e-5 * (fabs(want) + hi - lo + 1e-9));
    }
}

static void weights(void **state)
{
    float *w = make_rows("w"), *g = fl_test_normal(R * N, 1, "g");
    const float clips[3][2] = {{0.9f, 0.8f}, {0.98f, 0.5f}, {0.4f, 0.98f}};
    uint32_t levels[3];
    (void)state;
    for (int i = 0; i < N; i++) w[3 * N + i] *= 1e-3f; /* under the floor */
    memset(w + 5 * N, 0, 5 * sizeof *w);
    for (int l = isa_levels(levels) - 1; l >= 0; l--)
        for (int bits = 2; bits <= 8; bits++)
            for (int c = 0; c < 3; c++)
                for (int r = 0; r < R; r++) {
                    const fl_exec ex = {.isa = levels[l], .n_threads = 1};
                    const int n = N - 2 * r;
                    const float *row = w + r * N, *d = g + r * N;
                    weight_row got;
                    fl__fake_quant_weight(&ex, bits, got.w_hat, got.codes, &got.scale, row,
                                          &clips[c][0], &clips[c][1], 1, n);
                    expect_weight_codes(&got, row, n, bits, clips[c]);
                    fl__fake_quant_weight_grad(&ex, bits, got.dw, &got.dclip[0], &got.dclip[1],
                                               d, row, &clips[c][0], &clips[c][1], 1, n);
                    expect_weight_gradient(&got, row, d, n, bits, clips[c]);
                }
    fl__free(&w);
    fl__free(&g);
}

static void weights_without_clips(void **state)
{
    float *w = make_rows("w"), *g = fl_test_normal(R * N, 1, "g"), one[R], scale[2][R];
    float hat[2][R * N], dw[2][R * N];
    (void)state;
    memset(w + N, 0, N * sizeof *w); /* a row of zeros */
    for (int r = 0; r < R; r++) one[r] = 1;
    fl__fake_quant_weight(&two, 4, hat[0], NULL, scale[0], w, one, one, R, N);
    fl__fake_quant_weight(&two, 4, hat[1], NULL, scale[1], w, NULL, NULL, R, N);
    assert_memory_equal(hat[0], hat[1], sizeof hat[0]);
    assert_true(scale[1][1] == 1 && hat[1][N] == 0);
    fl__fake_quant_weight_grad(&two, 4, dw[0], NULL, NULL, g, w, one, one, R, N);
    memcpy(dw[1], g, sizeof dw[1]);
    fl__fake_quant_weight_grad(&two, 4, dw[1], NULL, NULL, dw[1], w, NULL, NULL, R, N);
    assert_memory_equal(dw[0], dw[1], sizeof dw[0]);
    assert_memory_equal(dw[0] + N, g + N, N * sizeof *g);
    fl__free(&w);
    fl__free(&g);
}

/* ---- the rest ---------------------------------------------------------------------------- */

static void any_number_of_threads(void **state)
{
    float *x = fl_test_normal(MANY * N, 1, "x"), *g = fl_test_normal(MANY * N, 1, "g");
    float *y[2], *dx[2], scale[2][MANY], zero[2][MANY];
    double dclip[2][2];
    const fl_fake_quant q = {4, true, true, 0.9f, 0.8f};
    (void)state;
    for (int i = 0; i < 2; i++) {
        const fl_exec ex = {.isa = fl__isa_detect(), .n_threads = 1 + 2 * i};
        y[i] = fl__alloc(MANY * N, sizeof(float));
        dx[i] = fl__alloc(MANY * N, sizeof(float));
        fl__fake_quant_rows(&ex, &q, y[i], NULL, scale[i], zero[i], x, MANY, N);
        fl__fake_quant_rows_grad(&ex, &q, dx[i], dclip[i], g, x, MANY, N);
    }
    assert_memory_equal(y[0], y[1], MANY * N * sizeof(float));
    assert_memory_equal(dx[0], dx[1], MANY * N * sizeof(float));
    assert_memory_equal(scale[0], scale[1], sizeof scale[0]);
    assert_memory_equal(zero[0], zero[1], sizeof zero[0]);
    assert_memory_equal(dclip[0], dclip[1], sizeof dclip[0]);
    double sum[2] = {0, 0}; /* of the rows one by one */
    for (int r = 0; r < MANY; r++) {
        double one[2];
        fl__fake_quant_rows_grad(&two, &q, dx[1], one, g + r * N, x + r * N, 1, N);
        sum[0] += one[0];
        sum[1] += one[1];
    }
    for (int c = 0; c < 2; c++) assert_true(fabs(sum[c] - dclip[0][c]) < 1e-4 * fabs(sum[c]));
    for (int i = 0; i < 2; i++) {
        fl__free(&y[i]);
        fl__free(&dx[i]);
    }
    fl__free(&x);
    fl__free(&g);
}

static void clip_factors(void **state)
{
    const float raw[4] = {4, 0, -90, 90}, dclip[4] = {2, 2, 2, 2};
    float clip[4], draw[4];
    (void)state;
    fl__clip_from_raw(clip, raw, 4);
    assert_float_equal(clip[0], 0.98201379f, 1e-7f);
    assert_true(clip[1] == 0.5f && clip[2] > 0 && clip[3] == 1);
    fl__clip_grad(draw, dclip, clip, 4);
    assert_float_equal(draw[0], 2 * 0.01766271f, 1e-7f);
    assert_true(draw[1] == 0.5f && draw[3] == 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(codes_follow_formulas),
    cmocka_unit_test(odd_rows),
    cmocka_unit_test(row_gradients),
    cmocka_unit_test(constant_scale),
    cmocka_unit_test(no_quantisation),
    cmocka_unit_test(weights),
    cmocka_unit_test(weights_without_clips),
    cmocka_unit_test(any_number_of_threads),
    cmocka_unit_test(clip_factors),
};
FL_TEST_MAIN(tests)
