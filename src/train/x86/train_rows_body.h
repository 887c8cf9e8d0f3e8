/* train_rows_body.h - the loops behind train_rows.h, once for all instruction sets.
 *
 * Included by the files that define TRAIN_ROWS_TABLE, _NAME and _ISA, one per instruction set;
 * the vectors come from train_vec.h. Sums over a row run in SUMS accumulators of VEC_N lanes.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_X86_TRAIN_ROWS_BODY_H
#define FL_TRAIN_X86_TRAIN_ROWS_BODY_H

#include "kernels/x86/simd.h"
#include "train/train_rows.h"
#include "train/x86/train_vec.h"

#include <math.h>
#include <string.h>

/* ---- sums over a row -------------------------------------------------------------------- */

enum { SUMS = 4 };

/* sum a[i] b[i] */
static float dot(const float *a, const float *b, int n)
{
    vec sum[SUMS] = {vec_set(0), vec_set(0), vec_set(0), vec_set(0)};
    int i = 0;
    for (; i + SUMS * VEC_N <= n; i += SUMS * VEC_N)
        for (int s = 0; s < SUMS; s++)
            sum[s] = vec_fma(vec_load(a + i + s * VEC_N, VEC_N),
                             vec_load(b + i + s * VEC_N, VEC_N), sum[s]);
    for (; i < n; i += VEC_N)
        sum[0] = vec_fma(vec_load(a + i, n - i), vec_load(b + i, n - i), sum[0]);
    return vec_sum(vec_add(vec_add(sum[0], sum[1]), vec_add(sum[2], sum[3])));
}

static float sum_of(const float *a, int n)
{
    vec sum[SUMS] = {vec_set(0), vec_set(0), vec_set(0), vec_set(0)};
    int i = 0;
    for (; i + SUMS * VEC_N <= n; i += SUMS * VEC_N)
        for (int s = 0; s < SUMS; s++)
            sum[s] = vec_add(sum[s], vec_load(a + i + s * VEC_N, VEC_N));
    for (; i < n; i += VEC_N) sum[0] = vec_add(sum[0], vec_load(a + i, n - i));
    return vec_sum(vec_add(vec_add(sum[0], sum[1]), vec_add(sum[2], sum[3])));
}

/* ---- norms ------------------------------------------------------------------------------ */

static float rms_norm(float *y, const float *x, const float *gain, int n, double eps)
{
    const float inv = (float)(1.0 / sqrt((double)dot(x, x, n) / n + eps));
    const vec r = vec_set(inv);
    for (int i = 0; i < n; i += VEC_N) {
        const vec z = vec_mul(vec_load(x + i, n - i), r);
        vec_store(y + i, vec_mul(z, vec_load(gain + i, n - i)), n - i);
    }
    return inv;
}

/* sum (x[i] - mean)^2 */
static float square_sum(const float *x, float mean, int n)
{
    vec sum[SUMS] = {vec_set(0), vec_set(0), vec_set(0), vec_set(0)};
    int i = 0;
    for (; i + SUMS * VEC_N <= n; i += SUMS * VEC_N)
        for (int s = 0; s < SUMS; s++) {
            const vec d = vec_sub(vec_load(x + i + s * VEC_N, VEC_N), vec_set(mean));
            sum[s] = vec_fma(d, d, sum[s]);
        }
    for (; i < n; i += VEC_N) {
        const vec d = vec_first(vec_sub(vec_load(x + i, n - i), vec_set(mean)), n - i);
        sum[0] = vec_fma(d, d, sum[0]);
    }
    return vec_sum(vec_add(vec_add(sum[0], sum[1]), vec_add(sum[2], sum[3])));
}

static float layer_norm(float *y, float *mean, const float *x, const float *gain,
                        const float *bias, int n, double eps)
{
    const float m = (float)((double)sum_of(x, n) / n);
    const double var = (double)square_sum(x, m, n) / n;
    const float inv = (float)(1.0 / sqrt(var + eps));
    for (int i = 0; i < n; i += VEC_N) {
        const vec d = vec_sub(vec_load(x + i, n - i), vec_set(m));
        const vec z = vec_mul(vec_mul(d, vec_set(inv)), vec_load(gain + i, n - i));
        vec_store(y + i, vec_add(z, vec_load(bias + i, n - i)), n - i);
    }
    *mean = m;
    return inv;
}

/* With z = (x - mean) inv and g = dy gain: dx = inv (g - mean_g - z mean(g z)); mean_g is 0 for
 * the RMS norm. */
static void norm_grad(float *dx, const float *dy, const float *x, const float *gain, float mean,
                      float inv, int n, int centred)
{
    vec gz = vec_set(0), g = vec_set(0);
    for (int i = 0; i < n; i += VEC_N) {
        const vec t = vec_mul(vec_load(dy + i, n - i), vec_load(gain + i, n - i));
        const vec z = vec_mul(vec_sub(vec_load(x + i, n - i), vec_set(mean)), vec_set(inv));
        gz = vec_fma(t, z, gz);
        g = vec_add(g, t);
    }
    const vec mean_gz = vec_set(-(float)((double)vec_sum(gz) / n));
    const vec mean_g = vec_set(centred ? (float)((double)vec_sum(g) / n) : 0.0f);
    for (int i = 0; i < n; i += VEC_N) {
        const vec t = vec_mul(vec_load(dy + i, n - i), vec_load(gain + i, n - i));
        const vec z = vec_mul(vec_sub(vec_load(x + i, n - i), vec_set(mean)), vec_set(inv));
        const vec d = vec_fma(z, mean_gz, vec_sub(t, mean_g));
        vec_store(dx + i, vec_mul(d, vec_set(inv)), n - i);
    }
}

static void rms_norm_grad(float *dx, const float *dy, const float *x, const float *gain,
                          float inv_rms, int n)
{
    norm_grad(dx, dy, x, gain, 0.0f, inv_rms, n, 0);
}

static void layer_norm_grad(float *dx, const float *dy, const float *x, const float *gain,
                            float mean, float inv_std, int n)
{
    norm_grad(dx, dy, x, gain, mean, inv_std, n, 1);
}

/* Adds n_rows rows to up to SUMS vectors of columns. */
static void add_gain_grad(float *dgain, float *dbias, const float *dy, const float *x,
                          const float *mean, const float *inv, int n_rows, int n, int n_columns)
{
    vec gain[SUMS], bias[SUMS];
    for (int s = 0; s < SUMS; s++) gain[s] = bias[s] = vec_set(0);
    for (int r = 0; r < n_rows; r++, dy += n, x += n) {
        const vec centre = vec_set(mean ? mean[r] : 0.0f), scale = vec_set(inv[r]);
        for (int s = 0; s < SUMS && s * VEC_N < n_columns; s++) {
            const int count = n_columns - s * VEC_N;
            const vec d = vec_load(dy + s * VEC_N, count);
            const vec z = vec_mul(vec_sub(vec_load(x + s * VEC_N, count), centre), scale);
            gain[s] = vec_fma(d, z, gain[s]);
            bias[s] = vec_add(bias[s], d);
        }
    }
    for (int s = 0; s < SUMS && s * VEC_N < n_columns; s++) {
        const int at = s * VEC_N, count = n_columns - at;
        vec_store(dgain + at, vec_add(vec_load(dgain + at, count), gain[s]), count);
        if (dbias) vec_store(dbias + at, vec_add(vec_load(dbias + at, count), bias[s]), count);
    }
}

/* CHUNK rows at a time: a sum of thousands of rows loses less, and the rows are still in a
 * cache when the next columns come. */
static void norm_gain_grad(float *dgain, float *dbias, const float *dy, const float *x,
                           const float *mean, const float *inv, int n_rows, int n,
                           int n_columns)
{
    enum { CHUNK = 64 };
    memset(dgain, 0, (size_t)n_columns * sizeof *dgain);
    if (dbias) memset(dbias, 0, (size_t)n_columns * sizeof *dbias);
    for (int r = 0; r < n_rows; r += CHUNK)
        for (int j = 0; j < n_columns; j += SUMS * VEC_N) {
            const int64_t at = (int64_t)r * n + j;
            add_gain_grad(dgain + j, dbias ? dbias + j : NULL, dy + at, x + at,
                          mean ? mean + r : NULL, inv + r,
                          n_rows - r < CHUNK ? n_rows - r : CHUNK, n, n_columns - j);
        }
}

/* ---- elements --------------------------------------------------------------------------- */

/* 1 / (1 + exp(-x)) */
static inline vec sigmoid(vec x)
{
    const vec one = vec_set(1.0f);
    return vec_div(one, vec_add(one, vec_exp(vec_sub(vec_set(0), x))));
}

static void silu_mul(float *y, const float *gate, const float *up, int n)
{
    for (int i = 0; i < n; i += VEC_N) {
        const vec g = vec_load(gate + i, n - i);
        const vec silu = vec_mul(g, sigmoid(g));
        vec_store(y + i, vec_mul(silu, vec_load(up + i, n - i)), n - i);
    }
}

static void silu_mul_grad(float *dgate, float *dup, const float *dy, const float *gate,
                          const float *up, int n)
{
    const vec one = vec_set(1.0f);
    for (int i = 0; i < n; i += VEC_N) {
        const vec g = vec_load(gate + i, n - i), d = vec_load(dy + i, n - i);
        const vec u = vec_load(up + i, n - i), s = sigmoid(g);
        const vec slope = vec_mul(s, vec_fma(g, vec_sub(one, s), one));
        vec_store(dgate + i, vec_mul(vec_mul(d, u), slope), n - i);
        vec_store(dup + i, vec_mul(d, vec_mul(g, s)), n - i);
    }
}

static void relu(float *y, const float *x, int n)
{
    for (int i = 0; i < n; i += VEC_N) {
        const vec v = vec_load(x + i, n - i);
        vec_store(y + i, vec_where_positive(v, v), n - i);
    }
}

static void relu_grad(float *dx, const float *dy, const float *x, int n)
{
    for (int i = 0; i < n; i += VEC_N)
        vec_store(dx + i, vec_where_positive(vec_load(x + i, n - i), vec_load(dy + i, n - i)),
                  n - i);
}

static void add(float *y, const float *a, const float *b, int n)
{
    for (int i = 0; i < n; i += VEC_N)
        vec_store(y + i, vec_add(vec_load(a + i, n - i), vec_load(b + i, n - i)), n - i);
}

static void add_product(float *y, const float *a, const float *b, int n)
{
    for (int i = 0; i < n; i += VEC_N) {
        const vec v = vec_load(a + i, n - i), w = vec_load(b + i, n - i);
        vec_store(y + i, vec_fma(v, w, vec_load(y + i, n - i)), n - i);
    }
}

/* Lanes beyond the row divide 0 by 0, unseen. */
static void divide(float *y, const float *a, float f, const float *b, int n)
{
    for (int i = 0; i < n; i += VEC_N) {
        const vec v = vec_mul(vec_load(a + i, n - i), vec_set(f));
        vec_store(y + i, vec_div(v, vec_load(b + i, n - i)), n - i);
    }
}

static void rope(float *x, const float *cos, const float *sin, float sign, int D)
{
    const int half = D / 2;
    float *upper = x + half;
    for (int i = 0; i < half; i += VEC_N) {
        const vec a = vec_load(x + i, half - i), b = vec_load(upper + i, half - i);
        const vec c = vec_load(cos + i, half - i);
        const vec s = vec_mul(vec_load(sin + i, half - i), vec_set(sign));
        vec_store(x + i, vec_sub(vec_mul(a, c), vec_mul(b, s)), half - i);
        vec_store(upper + i, vec_fma(b, c, vec_mul(a, s)), half - i);
    }
}

/* ---- softmax ---------------------------------------------------------------------------- */

static float exp_row(float *s, float *top, float scale, int n)
{
    vec most = vec_set(s[0]);
    int i = 0;
    for (; i + VEC_N <= n; i += VEC_N) most = vec_max(most, vec_load(s + i, VEC_N));
    float m = vec_top(most);
    for (; i < n; i++) m = s[i] > m ? s[i] : m;
    m *= scale;

    vec sum = vec_set(0);
    for (i = 0; i < n; i += VEC_N) {
        const vec u = vec_fma(vec_load(s + i, n - i), vec_set(scale), vec_set(-m));
        const vec e = vec_exp(u);
        sum = vec_add(sum, vec_first(e, n - i));
        vec_store(s + i, e, n - i);
    }
    *top = m;
    return vec_sum(sum);
}

static void softmax_grad(float *s, float *ds, float lse, float delta, float scale, int n)
{
    for (int i = 0; i < n; i += VEC_N) {
        const vec u = vec_fma(vec_load(s + i, n - i), vec_set(scale), vec_set(-lse));
        const vec p = vec_exp(u);
        const vec d = vec_mul(vec_sub(vec_load(ds + i, n - i), vec_set(delta)), vec_set(scale));
        vec_store(s + i, p, n - i);
        vec_store(ds + i, vec_mul(p, d), n - i);
    }
}

static void scale_row(float *x, float by, int n)
{
    for (int i = 0; i < n; i += VEC_N)
        vec_store(x + i, vec_mul(vec_load(x + i, n - i), vec_set(by)), n - i);
}

/* ---- bfloat16 --------------------------------------------------------------------------- */

static void round_bf16(float *y, const float *x, int n)
{
    for (int i = 0; i < n; i += VEC_N)
        vec_store(y + i, vec_round_bf16(vec_load(x + i, n - i)), n - i);
}

enum { STEP_K = 32, STEP_N = 64 };

/* 32 numbers of which n exist. */
FL_INLINE void bf16_step(uint16_t *to, const float *x, int n)
{
    if (n >= STEP_K) {
        for (int i = 0; i < STEP_K; i += VEC_N) vec_store_bf16(to + i, vec_load(x + i, VEC_N));
        return;
    }
    for (int i = 0; i < STEP_K; i += VEC_N)
        vec_store_bf16(to + i, n > i ? vec_load(x + i, n - i) : vec_set(0));
}

/* [16][64] pairs: rows 2i and 2i + 1 of up to 32 rows x[., ld], 64 columns of which n exist. */
FL_INLINE void bf16_pairs_step(uint32_t *to, const float *x, int64_t ld, int n_rows, int n)
{
    if (n_rows >= STEP_K && n >= STEP_N) {
        for (int k = 0; k < STEP_K; k += 2, to += STEP_N, x += 2 * ld)
            for (int i = 0; i < STEP_N; i += VEC_N)
                vec_store_bf16_pairs(to + i, vec_load(x + i, VEC_N),
                                     vec_load(x + ld + i, VEC_N));
        return;
    }
    for (int k = 0; k < STEP_K; k += 2, to += STEP_N)
        for (int i = 0; i < STEP_N; i += VEC_N) {
            const float *at = x + k * ld + i;
            const vec low = k < n_rows && i < n ? vec_load(at, n - i) : vec_set(0);
            const vec high = k + 1 < n_rows && i < n ? vec_load(at + ld, n - i) : vec_set(0);
            vec_store_bf16_pairs(to + i, low, high);
        }
}

static void pack_a(uint16_t *to, const float *A, int64_t lda, int n_rows, int K)
{
    for (int m = 0; m < n_rows; m++)
        for (int k = 0; k < K; k += STEP_K, to += STEP_K) bf16_step(to, A + m * lda + k, K - k);
}

/* Numbers of 32 bits: to[i][j] = from[j][i], i < n_rows, j < 16; from [16][STEP_N]. */
static void turn_pairs(uint32_t *to, int64_t ld_to, const uint32_t *from, int n_rows)
{
    enum { BLOCK = VEC_TURN };
    for (int i = 0; i < n_rows; i += BLOCK)
        for (int j = 0; j < STEP_K / 2; j += BLOCK) {
            uint32_t part[BLOCK * BLOCK];
            const uint32_t *at = from + (int64_t)j * STEP_N + i;
            if (i + BLOCK <= n_rows) {
                vec_turn(to + i * ld_to + j, ld_to, at, STEP_N);
                continue;
            }
            vec_turn(part, BLOCK, at, STEP_N);
            for (int r = i; r < n_rows; r++)
                memcpy(to + r * ld_to + j, part + (r - i) * BLOCK, BLOCK * sizeof *to);
        }
}

static void pack_a_transposed(uint16_t *to, int64_t ld_to, const float *A, int64_t lda,
                              int n_rows, int K)
{
    uint32_t pairs[STEP_K / 2][STEP_N];
    for (int m = 0; m < n_rows; m += STEP_N)
        for (int k = 0; k < K; k += STEP_K) {
            const int here = n_rows - m < STEP_N ? n_rows - m : STEP_N;
            bf16_pairs_step(pairs[0], A + k * lda + m, lda, K - k, n_rows - m);
            turn_pairs((uint32_t *)(void *)(to + m * ld_to + k), ld_to / 2, pairs[0], here);
        }
}

static void pack_b(uint16_t *to, const float *B, int64_t ldb, int n_columns, int K)
{
    uint32_t rows[STEP_N][STEP_K / 2];
    memset(rows, 0, sizeof rows);
    for (int k = 0; k < K; k += STEP_K, to += STEP_K * STEP_N) {
        uint32_t *pairs = (uint32_t *)(void *)to;
        for (int j = 0; j < n_columns; j++)
            bf16_step((uint16_t *)(void *)rows[j], B + j * ldb + k, K - k);
        for (int j = 0; j < STEP_N; j += VEC_TURN)
            for (int p = 0; p < STEP_K / 2; p += VEC_TURN)
                vec_turn(pairs + p * STEP_N + j, STEP_N, rows[j] + p, STEP_K / 2);
    }
}

static void pack_b_transposed(uint16_t *to, const float *B, int64_t ldb, int n_columns, int K)
{
    for (int k = 0; k < K; k += STEP_K, to += STEP_K * STEP_N)
        bf16_pairs_step((uint32_t *)(void *)to, B + k * ldb, ldb, K - k, n_columns);
}

const fl_train_rows TRAIN_ROWS_TABLE = {
    .name = TRAIN_ROWS_NAME,
    .isa = TRAIN_ROWS_ISA,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .rms_norm_grad = rms_norm_grad,
    .layer_norm_grad = layer_norm_grad,
    .norm_gain_grad = norm_gain_grad,
    .silu_mul = silu_mul,
    .silu_mul_grad = silu_mul_grad,
    .relu = relu,
    .relu_grad = relu_grad,
    .add = add,
    .add_product = add_product,
    .divide = divide,
    .rope = rope,
    .exp_row = exp_row,
    .softmax_grad = softmax_grad,
    .scale = scale_row,
    .dot = dot,
    .round_bf16 = round_bf16,
    .pack_a = pack_a,
    .pack_a_transposed = pack_a_transposed,
    .pack_b = pack_b,
    .pack_b_transposed = pack_b_transposed,
};

#endif
